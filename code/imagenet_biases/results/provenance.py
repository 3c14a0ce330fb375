"""When, where and by what a number was measured."""

import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch


@functools.cache
def versions():
    """Return the versions that may matter for a number."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


@functools.cache
def commit():
    """Return the project's git commit, with '+' where the code differs from it; None outside a checkout."""
    code = Path(__file__).resolve().parents[2]

    def git(*words):
        return subprocess.run(["git", "-C", code, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # results, tables and downloads beside the code are data: they change nothing
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device):
    """Return the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return _processor() or platform.machine()
    return device.type


@functools.cache
def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def circumstances(runtime, images_per_second=None):
    """Return when, where and by what something is measured now, JSON-able."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(runtime.device),
        "versions": versions(),
        "commit": commit(),
        "images_per_second": images_per_second and round(images_per_second, 2),
    }

"""When, where and by what a number was measured."""

import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that may matter for a number."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def commit() -> str | None:
    """Return the project's git commit, with '+' where the code differs from it; None outside a checkout."""
    code = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", code, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # results, tables and downloads beside the code are data: they change nothing
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: "torch.device") -> str:
    """Return the device in words."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return _processor() or platform.machine()
    return device.type


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def circumstances(runtime: Any, images_per_second: float | None = None) -> dict[str, Any]:
    """Return when, where and by what something is measured now, JSON-able; `runtime` needs a `device`."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(runtime.device),
        "versions": versions(),
        "commit": commit(),
        "images_per_second": images_per_second and round(images_per_second, 2),
    }

"""Results on disk: responses, found again by exactly what determines them, and one record a network and benchmark."""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from imagenet_biases.evaluate import UNSEEN
from imagenet_biases.files import atomic, write_json
from imagenet_biases.scores import Estimate


class Store:
    """Responses under results/NETWORK/responses, one file for each network, image set, condition and readout.

    A file holds `answers` int16 [N, k] (-2: not shown yet, -1: left out as unreadable) and `identity`, JSON text of all
    that determines them. A file that is only partly filled is a checkpoint. With `fresh`, what is there is not read.
    """

    def __init__(self, results, fresh=False):
        self.results, self.fresh = Path(results), fresh

    def path(self, identity, network):
        """Return the file of one cell."""
        text = json.dumps(identity, sort_keys=True)
        slug = re.sub(r"[^A-Za-z0-9.-]+", "_", identity["condition"])
        name = f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        return self.results / network / "responses" / identity["images"] / name

    def _parts(self, path):
        return sorted(path.parent.glob(f"{path.stem}.rank-*.npz"))

    def load(self, identity, network, images, width):
        """Return the answers known so far, int16 [images, width]; UNSEEN where there are none."""
        answers = np.full((images, width), UNSEEN, np.int16)
        path = self.path(identity, network)
        if self.fresh:
            return answers
        for file in (path, *self._parts(path)):
            try:
                with np.load(file, allow_pickle=False) as kept:
                    same = json.loads(str(kept["identity"])) == json.loads(json.dumps(identity))
                    if same and kept["answers"].shape == answers.shape:
                        answers = np.maximum(answers, kept["answers"])
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                print(f"warning: {file} is damaged and is measured again ({error})")
        return answers

    def save(self, identity, network, answers, rank=0, final=True):
        """Write answers, atomically. Other ranks' checkpoints lie beside rank 0's until the final one replaces all."""
        path = self.path(identity, network)
        if rank and final:
            return
        file = path.with_name(f"{path.stem}.rank-{rank}.npz") if rank else path
        with atomic(file) as out:
            np.savez(out, answers=answers, identity=np.array(json.dumps(identity, sort_keys=True)))
        if final:
            for part in self._parts(path):
                part.unlink(missing_ok=True)


@functools.cache
def versions():
    """Return the versions that may matter for a number."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


@functools.cache
def commit():
    """Return the project's git commit, with '+' where the tree differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words):
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
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


def make_record(
    benchmark,
    network,
    image_sets,
    metrics,
    settings,
    *,
    options=None,
    speed=None,
    left_out=(),
    warnings=(),
    details=None,
):
    """Return a record: metrics {name: number or Estimate}, with all that is needed to trust or repeat them.

    `network`: a Network, or a plain name where answers came from a file. `options`: the benchmark's own flags. `speed`
    in images x conditions a second, None where no forward pass was needed.
    """
    estimates = {name: value if isinstance(value, Estimate) else Estimate(value) for name, value in metrics.items()}
    identity = {} if isinstance(network, str) else dict(network.identity)
    return {
        "model": network if isinstance(network, str) else network.name,
        "benchmark": benchmark.name,
        "metrics": {name: _number(one.value) for name, one in estimates.items()},
        "intervals": {name: [one.low, one.high] for name, one in estimates.items() if one.low is not None},
        "images": sum(len(images) for images in image_sets),
        "subset": _subset(image_sets, left_out),
        "warnings": list(warnings),
        "left_out": list(left_out),
        "details": details or {},
        "options": options or {},
        "provenance": identity
        | {
            "category": "" if isinstance(network, str) else network.category,
            "collection": "+".join(sorted({images.collection for images in image_sets})),
            "image_sets": {
                images.name: {"fingerprint": images.fingerprint, "images": len(images)} for images in image_sets
            },
            "view": settings.view,
            "precision": settings.precision,
            "seed": settings.seed,
            "versions": versions(),
            "device": device_name(settings.device),
            "commit": commit(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "images_per_second": speed and round(speed, 2),
        },
    }


def _number(value):
    return None if value is None or not np.isfinite(value) else float(value)


def _subset(image_sets, left_out):
    parts = {images.name: images.subset for images in image_sets if images.subset}
    if not parts and not left_out:
        return False
    whole = sum((images.subset or {}).get("of", len(images)) for images in image_sets)
    return {
        "images": sum(len(images) for images in image_sets) - len(left_out),
        "of": whole,
        **({"left_out": len(left_out)} if left_out else {}),
        "sets": parts,
    }


def variant(record):
    """Return what distinguishes records of one network and benchmark, as a word."""
    source, subset = record["provenance"], record["subset"]
    words = [source["view"], source["precision"], f"seed{source['seed']}", source["collection"]]
    return "-".join(words + ([f"{subset['images']}of{subset['of']}"] if subset else []))


def _measures_the_same(one, other):
    keys = ("network", "image_sets")
    return all(one["provenance"].get(key) == other["provenance"].get(key) for key in keys)


def write_record(results, record):
    """Write results/NETWORK/BENCHMARK.json and return its path.

    A record of another variant (view, precision, seed, subset) that stands there is kept as BENCHMARK.VARIANT.json. One
    of the same network and images under other options of the benchmark (other attacks, say) lends its metrics.
    """
    path = Path(results) / record["model"] / f"{record['benchmark']}.json"
    try:
        before = json.loads(path.read_text("utf-8"))
        other = variant(before)
    except (OSError, ValueError, KeyError, TypeError):
        before, other = {}, None  # none there, or not one of ours
    if other and other != variant(record):
        path.rename(path.with_suffix(f".{other}.json"))
    elif other and before.get("options") != record["options"] and _measures_the_same(before, record):
        record = record | {key: before[key] | record[key] for key in ("metrics", "intervals")}
    write_json(path, record)
    path.with_suffix(f".{variant(record)}.json").unlink(missing_ok=True)
    return path

"""Runs that no single machine at hand can make for real, made small: each prints its target and its figure.

Run:  python benchmarks/simulations.py checkpoint    48 networks x 23 conditions x 50,000 images: one checkpoint
      python benchmarks/simulations.py slow-rank     two ranks share a network's images, one is 10 times slower
      python benchmarks/simulations.py dying-rank    one of two ranks is killed; the same command then goes on
      python benchmarks/simulations.py two-hosts     two shards with a results folder each, then put together
"""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from common import on
from imagenet_biases import benchmarks
from imagenet_biases.loop import Loop, Showing
from imagenet_biases.networks.load import from_module
from imagenet_biases.plan import Job, make_plan
from imagenet_biases.progress import Progress
from imagenet_biases.results.responses import ANSWERED, ResponseStore
from imagenet_biases.synthetic.image_sets import draw
from imagenet_biases.vocabulary import Benchmark, Data, Pass

EVAL = Path(__file__).resolve().parent.parent / "code" / "eval_all.py"
NET = """
import os, time, torch
class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(1000, 147, generator=torch.Generator().manual_seed({seed})))
    def forward(self, pixels):
        time.sleep(float(os.environ.get("PAUSE", 0)) * len(pixels))
        return torch.nn.functional.avg_pool2d(pixels, 32).flatten(1) @ self.weight.T
def build():
    return Small()
"""


class FullSize:
    """ImageNet's validation set, of which nothing is there but its numbers."""

    name, fingerprint, collection, subset, sample = "imagenet", "0" * 64, "imagenet", None, None

    def __init__(self, images=50_000):
        self.labels, self.keys = np.zeros(images, np.int64), np.arange(images)

    def __len__(self):
        return len(self.labels)

    def view(self, view):
        return view


def said(name, target, figure, held):
    print(f"{name:60} target: {target:22} measured: {figure:28} {'held' if held else 'MISSED'}", flush=True)


def checkpoint():
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "drawn")
        conditions = benchmarks.find("spectral").passes(Data(Path(folder) / "drawn"))[0].conditions
        here = on("cpu", batch_size=32, compile="off")
        networks = []
        for seed in range(48):
            torch.manual_seed(seed)
            layers = (torch.nn.AdaptiveAvgPool2d(7), torch.nn.Flatten(), torch.nn.Linear(147, 1000))
            networks.append(from_module(torch.nn.Sequential(*layers), f"small-{seed}"))
        passes = [Pass(FullSize(), tuple(conditions))]
        plan = make_plan([Job(Benchmark("timing", None, None), passes, {})], networks, here)
        loop = Loop(plan, ResponseStore(Path(folder) / "results"), here)
        with ThreadPoolExecutor(1) as loop.writer:
            for group in plan.groups[-1:]:
                for cell in group.cells:
                    cell.kept = loop.store.load(cell.identity, cell.network.name, len(group.images), cell.readout)
                showing = Showing(loop, group, [], iter(()), Progress(0, False))
                showing.started, showing.passes = time.monotonic() - 60, 10_000
                for cell in group.cells:
                    cell.kept.state[:25_000] = ANSWERED
                started = time.monotonic()
                showing._checkpoint()
                waited = time.monotonic() - started
                showing._written()
                whole = time.monotonic() - started
                size = sum(file.stat().st_size for file in Path(folder, "results").rglob("*.npz")) / 1e6
                at_hand = sum(cell.kept.values.nbytes for cell in group.cells) / 1e6
                loop._free(group.cells)
                left = sum(cell.kept.values.nbytes for cell in group.cells if cell.kept.values is not None) / 1e6
        said("a checkpoint of 48 networks, the loop waits", "at most 5 s", f"{waited:.2f} s", waited <= 5)
        said("the same, until it is on the disk", "none", f"{whole:.2f} s for {size:.0f} MB", True)
        said("answers in memory after their group", "0 MB", f"{left:.0f} of {at_hand:.0f} MB", left == 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        said("memory at the most (torch and a group's answers twice)", "none", f"{peak:.1f} GB", True)


def command(folder, *more):
    """Return the command of the runs below: one small network, the drawn images, clean and filtered."""
    (folder / "net.py").write_text(NET.format(seed=0))
    return [sys.executable, str(EVAL), "--model", f"{folder / 'net.py'}:build", "--data", str(folder / "drawn"),
            "--benchmarks", "imagenet,spectral", "--batch-size", "8", "--wandb", "disabled", "--device", "cpu",
            "--num-workers", "0", "--checkpoint-seconds", "0", *map(str, more)]  # fmt: skip


def started(words, **environment):
    return subprocess.Popen(
        words, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def ranks(words, pauses):
    """Start ranks that split the images, each with its pause an image."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    common = {"WORLD_SIZE": str(len(pauses)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        started([*words, "--split", "images"], **common, RANK=str(rank), PAUSE=str(pause))
        for rank, pause in enumerate(pauses)
    ]


def metrics(results):
    return {path.name: json.loads(path.read_text())["metrics"] for path in sorted(results.glob("net.build/*.json"))}


def whole(folder):
    """Return the metrics of a run in one piece."""
    process = started(command(folder, "--results", folder / "whole"))
    assert not process.wait(), process.stderr.read()
    return metrics(folder / "whole")


def slow_rank(folder):
    expected = whole(folder)
    begun = time.monotonic()
    found = ranks(command(folder, "--results", folder / "results"), (0.002, 0.02))
    for process in found:
        process.communicate()
    ended = [process.returncode for process in found]
    figure = f"{ended}, {time.monotonic() - begun:.0f} s"
    said("a rank 10 times slower: both end well", "status 0 and 0", figure, ended == [0, 0])
    same = metrics(folder / "results") == expected
    said("the same, metrics", "those of one process", "equal" if same else "other", same)


def dying_rank(folder):
    expected, results = whole(folder), folder / "results"
    words = command(folder, "--results", results)
    one, other = ranks(words, (0.005, 0.005))
    while not list(results.rglob("*.rank-1.npz")):
        time.sleep(0.02)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    time.sleep(5)
    one.send_signal(signal.SIGTERM)  # as torchrun does
    _, text = one.communicate()
    kept = sum(int((np.load(file)[key] > 0).sum()) for file in results.rglob("*.npz") for key in np.load(file).files
               if key.endswith("state"))  # fmt: skip
    said("a rank is killed: the other saves, and says so", "status 143", str(one.returncode), "is kept" in text)
    said("the same, answers kept", "some of 2,208", str(kept), kept > 0)
    again = started(words)
    again.wait()
    same = metrics(results) == expected
    said("the same command goes on, metrics", "those of one process", "equal" if same else "other", same)


def two_hosts(folder):
    expected, missing = whole(folder), []
    for number in (1, 2):
        process = started(command(folder, "--results", folder / str(number), "--shard", f"{number}/2"))
        missing += re.findall(r"(\d+) records wait", process.communicate()[1])
        shutil.copytree(folder / str(number), folder / "all", dirs_exist_ok=True)
    said("two shards without a common folder: what waits is said", "on both", str(len(missing)), len(missing) == 2)
    begun = time.monotonic()
    process = started(command(folder, "--results", folder / "all"), PAUSE="1")  # an image shown would take a second
    process.communicate()
    same = metrics(folder / "all") == expected
    said("put together and run once more, metrics", "those of one process", "equal" if same else "other", same)
    seconds = time.monotonic() - begun
    said("the same, nothing is measured again", "at most 60 s", f"{seconds:.0f} s", seconds <= 60)


if __name__ == "__main__":
    wanted = {"slow-rank": slow_rank, "dying-rank": dying_rank, "two-hosts": two_hosts}
    if sys.argv[1:] == ["checkpoint"]:
        checkpoint()
    elif len(sys.argv) == 2 and sys.argv[1] in wanted:
        with tempfile.TemporaryDirectory() as place:
            draw(Path(place) / "drawn")
            wanted[sys.argv[1]](Path(place))
    else:
        raise SystemExit(__doc__)

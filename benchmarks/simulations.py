"""Runs that no single machine at hand can make for real, made small: each prints its target and its figure.

Run:  python benchmarks/simulations.py checkpoint    48 networks x 23 conditions x 50,000 images: one checkpoint
      python benchmarks/simulations.py slow-shard    two shards share a network's images, one is 10 times slower
      python benchmarks/simulations.py dying-shard   one of two shards is killed; the same command fills its gap
      python benchmarks/simulations.py two-hosts     two shards with a results folder each, then put together
      python benchmarks/simulations.py networks      48 networks, at once by one process, then as two shards
      python benchmarks/simulations.py cache         16 processes open and fill one cache of decoded images at once
      python benchmarks/simulations.py shared-memory decoding processes where /dev/shm has 64 MB, as in a container
      python benchmarks/simulations.py sample        what a study on a sample of the images tells (samples.py)

The listing and plan of a full-size set: startup.py.
"""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common import on, photographs
from imagenet_biases import benchmarks
from imagenet_biases.engine.loop import Loop
from imagenet_biases.engine.plan import Job, make_plan
from imagenet_biases.engine.recorder import Recorder
from imagenet_biases.images.listing import ImageNames, Listing
from imagenet_biases.images.preprocessing import STUDY, Reader
from imagenet_biases.images.sets import ImageSet, image_set
from imagenet_biases.networks.load import from_module
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


def full_size(images=50_000):
    """Return ImageNet's validation set, of which nothing is there but its numbers."""
    names = ImageNames(map(str, range(images)), np.zeros(images, np.int64))
    return ImageSet("imagenet", Listing(Path(), names, np.zeros(images, np.int64)), np.arange(images))


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
        passes = [Pass(full_size(), tuple(conditions))]
        plan = make_plan([Job(Benchmark("timing", None, None), passes, {})], networks, here)
        loop = Loop(plan, ResponseStore(Path(folder) / "results"), here)
        with ThreadPoolExecutor(1) as writer:
            # more at once than a plan has: there, a network with so many conditions has its turn
            group = replace(plan.groups[-1], cells=[cell for group in plan.groups for cell in group.cells])
            for cell in group.cells:
                cell.stored = loop.store.load(cell.identity, cell.network.name, group.images, cell.readout)
            due = {cell: np.ones(len(group.images), bool) for cell in group.cells}
            recorder = Recorder(group, due, loop.store, here, writer)
            recorder.started, recorder.passes, recorder.next_save = time.monotonic() - 60, 10_000, 0.0
            for cell in group.cells:
                cell.stored.state[:25_000] = ANSWERED
            started = time.monotonic()
            recorder.save_when_due()
            waited = time.monotonic() - started
            recorder.saving.result()
            whole = time.monotonic() - started
            size = sum(file.stat().st_size for file in Path(folder, "results").rglob("*.npz")) / 1e6
            at_hand = sum(cell.stored.values.nbytes for cell in group.cells) / 1e6
            loop._free(group.cells)
            left = sum(cell.stored.values.nbytes for cell in group.cells if cell.stored.values is not None) / 1e6
        said("a checkpoint of 48 networks, the loop waits", "at most 5 s", f"{waited:.2f} s", waited <= 5)
        said("the same, until it is on the disk", "none", f"{whole:.2f} s for {size:.0f} MB", True)
        said("answers in memory after their group", "0 MB", f"{left:.0f} of {at_hand:.0f} MB", left == 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        said("memory at the most (torch and a group's answers twice)", "none", f"{peak:.1f} GB", True)


def command(folder, *more):
    """Return the command of the runs below: one small network, the drawn images, clean and filtered."""
    (folder / "net.py").write_text(NET.format(seed=0))
    return [*command_of([f"{folder / 'net.py'}:build"], folder), "--batch-size", "8",
            "--num-workers", "0", "--checkpoint-seconds", "0", *map(str, more)]  # fmt: skip


def command_of(networks, folder):
    return [sys.executable, str(EVAL), "--model", ",".join(networks), "--data", str(folder / "drawn"),
            "--benchmarks", "imagenet,spectral", "--wandb", "disabled", "--device", "cpu"]  # fmt: skip


def started(words, **environment):
    return subprocess.Popen(
        words, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def shards(words, pauses):
    """Start shards, each with its pause an image."""
    return [
        started([*words, "--shard", f"{number}/{len(pauses)}"], PAUSE=str(pause))
        for number, pause in enumerate(pauses, 1)
    ]


def metrics(results):
    return {path.name: json.loads(path.read_text())["metrics"] for path in sorted(results.glob("net.build/*.json"))}


def whole(folder):
    """Return the metrics of a run in one piece."""
    process = started(command(folder, "--results", folder / "whole"))
    assert not process.wait(), process.stderr.read()
    return metrics(folder / "whole")


def slow_shard(folder):
    expected = whole(folder)
    begun = time.monotonic()
    both = shards(command(folder, "--results", folder / "results"), (0.002, 0.02))
    for process in both:
        process.communicate()
    ended = [process.returncode for process in both]
    figure = f"{ended}, {time.monotonic() - begun:.0f} s"
    said("a shard 10 times slower: both end well", "status 0 and 0", figure, ended == [0, 0])
    same = metrics(folder / "results") == expected
    said("the same, metrics", "those of one process", "equal" if same else "other", same)


def dying_shard(folder):
    expected, results = whole(folder), folder / "results"
    words = command(folder, "--results", results)
    first, second = shards(words, (0.005, 0.005))
    while not list(results.rglob("*.shard-2-of-2.npz")):
        time.sleep(0.02)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    _, text = first.communicate()
    said("a shard is killed: the other ends, and says what waits", "status 0", str(first.returncode), "wait" in text)
    again = started([*words, "--shard", "2/2"])
    again.wait()
    same = metrics(results) == expected
    said("the same command fills the gap, metrics", "those of one process", "equal" if same else "other", same)


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


def networks(folder):
    """48 networks of one architecture: by one process, and again with everything there, and by two shards at once."""
    names = []
    for seed in range(48):
        (folder / f"net{seed:02d}.py").write_text(NET.format(seed=seed))
        names.append(f"{folder / f'net{seed:02d}.py'}:build")
    words, found = command_of(names, folder), {}
    for what, shards in (("one", [[]]), ("one", [[]]), ("two", [["--shard", "1/2"], ["--shard", "2/2"]])):
        begun = time.monotonic()
        processes = [started([*words, "--results", str(folder / what), *shard]) for shard in shards]
        ended = [(process.communicate()[1], process.returncode)[1] for process in processes]
        seconds = time.monotonic() - begun
        again = what in found
        records = {
            path.relative_to(folder / what).as_posix(): json.loads(path.read_text())["metrics"]
            for path in (folder / what).glob("net*.build/*.json")
        }
        held = set(ended) == {0} and len(records) == 96 and records == found.setdefault(what, records)
        name = "48 networks, 2 benchmarks, " + (
            "once more" if again else f"{len(shards)} process{'es'[: 2 * len(shards) - 2]}"
        )
        said(name, "96 records", f"{len(records)} in {seconds:.0f} s", held)
    same = found["one"] == found["two"]
    said("two shards at once, metrics", "those of one process", "equal" if same else "other", same)
    files = max(sum(1 for file in one.rglob("*") if file.is_file()) for one in (folder / "one").glob("net*.build"))
    said("files a network", "at most 40", str(files), files <= 40)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    said("memory of a process at the most", "none", f"{peak:.1f} GB", True)


def _fill(folder, moment, number):
    images = image_set("imagenet", Data(Path(folder) / "drawn"))
    time.sleep(max(0, moment - time.time()))
    reader = Reader(images, STUDY, Path(folder) / "cache")
    for position in np.random.default_rng(number).permutation(len(images)):
        reader.read(int(position))


def cache(folder):
    begun, moment = time.monotonic(), time.time() + 2
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(folder, moment, number)) for number in range(16)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    ended = [process.exitcode for process in processes]
    figure = f"{ended.count(0)} of 16, {time.monotonic() - begun:.0f} s"
    said("16 processes open and fill one cache", "all end well", figure, set(ended) == {0})
    images = image_set("imagenet", Data(folder / "drawn"))
    cached, decoded = Reader(images, STUDY, folder / "cache"), Reader(images, STUDY)
    kept = int(np.count_nonzero(cached.stamps["crc"]))
    said("images that the cache holds", f"all {len(images)}", str(kept), kept == len(images))
    same = all(np.array_equal(cached.read(i), decoded.read(i)) for i in range(len(images)))
    said("the same, pixels", "those decoded", "equal" if same else "other", same)


def shared_memory(folder):
    inside = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*inside, "mount", "-t", "tmpfs", "none", "/dev/shm"], capture_output=True).returncode:
        raise SystemExit("this machine lets nobody mount a file system of his own")
    mounted = [*inside, "sh", "-c", 'mount -t tmpfs -o size=64m none /dev/shm && exec "$@"', "sh"]
    photographs(folder / "photographs", 512)
    words = command(folder, "--imagenet", folder / "photographs", "--allow-partial", "--benchmarks", "imagenet")
    words += ["--batch-size", "64"]  # 8 batches of 9.6 MB, all of them on their way at once
    found = {}
    for name, start, workers in (("one", [], 0), ("eight", mounted, 8)):
        process = started([*start, *words, "--results", str(folder / name), "--num-workers", str(workers)])
        _, text = process.communicate()
        found[name] = metrics(folder / name)
    figure = f"status {process.returncode}"
    said("8 decoding processes, 64 MB of /dev/shm", "no hang, status 0", figure, not process.returncode)
    same = found["one"] == found["eight"] != {}
    said("the same, metrics", "those of one process", "equal" if same else text[-60:], same)


if __name__ == "__main__":
    wanted = {
        "slow-shard": slow_shard,
        "dying-shard": dying_shard,
        "two-hosts": two_hosts,
        "networks": networks,
        "cache": cache,
        "shared-memory": shared_memory,
    }
    if sys.argv[1:] == ["checkpoint"]:
        checkpoint()
    elif sys.argv[1:] == ["sample"]:
        import samples

        samples.main()
    elif len(sys.argv) == 2 and sys.argv[1] in wanted:
        with tempfile.TemporaryDirectory() as place:
            draw(Path(place) / "drawn")
            wanted[sys.argv[1]](Path(place))
    else:
        raise SystemExit(__doc__)

"""What the measurements share: the package on the path, the machine, the loop without a command line."""

import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "code"))
from imagenet_biases.engine.inference import Runners
from imagenet_biases.engine.loop import Loop
from imagenet_biases.engine.plan import Job, make_plan
from imagenet_biases.engine.runtime import make_runtime
from imagenet_biases.results.provenance import device_name, versions
from imagenet_biases.results.responses import ResponseStore
from imagenet_biases.study import wordnet_ids
from imagenet_biases.vocabulary import Benchmark, Settings


def on(device, **settings):
    """Return the Runtime of a device as for a long run; glibc keeps freed memory, as in every run."""
    return make_runtime(Settings(device=device, **settings), 10**9)


def timed(work, device):
    """Return how long `work` takes, the device's queue emptied before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def apart():
    """Return a process of its own for naive loops: there, nobody has told glibc to keep its memory."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def described(device):
    """Describe the machine: processor, cores, accelerator, versions."""
    return {
        "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "system": platform.system(),
        "versions": versions(),
    }


def prepared(network, here, crop=224, images=10**9):
    """Return Runners with the network made ready: folded, and compiled where the settings say so."""
    runners = Runners(here, {(network, crop): images})
    runners.get(network, crop)
    return runners


def show(passes, network, here, results=None, runners=None):
    """Run the loop over passes as a script does; what is stored under `results` is not measured again."""
    plan = make_plan([Job(Benchmark("timing", None, None), passes, {})], [network], here)
    loop = Loop(plan, ResponseStore(results), here, runners=runners)
    loop.load()
    for _ in loop.run(list(plan.cells)):
        pass


def photographs(folder, count, per_class=1):
    """Write JPEGs of the size and detail of ImageNet's: about 500 x 375 pixels, 110 kB."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noise = rng.normal(0, 12, (375, 500, 3))
        path = Path(folder) / wordnet_ids()[number // per_class % 1000] / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=92)

"""Throughput of the harness: images x conditions a second, against the fastest bare loop and against a naive one.

(a) bare: the fastest forward loop found (channels-last, batch norm folded, compiled), on a tensor already in memory;
(b) harness: the same network through imagenet_biases.evaluate: image files, decoded once, ten conditions, answers stored;
(c) naive: the data set scanned and decoded again for each condition, contiguous format, transforms on the CPU.

    python benchmarks/throughput.py [--images 128] [--rounds 5] [--arch resnet50] [--precisions fp32 ...]

Same network, images and process; the three take turns in every round, and medians of the rounds are compared. The
figures go to benchmarks/throughput-DEVICE.json with the machine's description.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import timm
import torch
from PIL import Image
from torchvision import datasets, transforms

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "code"))
from imagenet_biases.evaluate import Condition, Pass, Runners, Settings, float32_precision, grouped, measure
from imagenet_biases.images.pixels import STUDY
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks.load import Network
from imagenet_biases.networks.registry import NORMALIZATIONS
from imagenet_biases.results.records import Store, device_name, versions
from imagenet_biases.study import wordnet_ids

LEVELS = [round(0.1 * level, 1) for level in range(1, 11)]  # ten cheap stimuli: the forward passes are compared


def photographs(folder, count):
    """Write JPEGs of the size and detail of ImageNet's: about 500 x 375 pixels, 110 kB."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noise = rng.normal(0, 12, (375, 500, 3))
        path = folder / wordnet_ids()[number % 1000] / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=92)


def bare(runner, pixels, batch_size, conditions):
    """Forward passes over pixels in memory; the first answer is kept, as little as one can keep."""
    answers = []
    with torch.no_grad():
        for _ in range(conditions):
            for batch in pixels.split(batch_size):
                answers.append(runner.forward(batch).argmax(1))
    return torch.stack([answer.sum() for answer in answers]).sum().item()


def harness(images, network, settings, ready):
    """One run of the harness, nothing stored before; the compiled network of the warm-up is used again."""
    conditions = tuple(Condition(f"contrast {c}", lambda p, b, c=c: p * c, settings={"contrast": c}) for c in LEVELS)
    with tempfile.TemporaryDirectory() as results:
        groups, _ = grouped([Pass(images, conditions)], [network], settings)
        for _ in measure(groups, Store(results), settings, progress=False, runners=ready):
            pass


def naive(folder, network, batch_size, workers, device):
    """What a script without a harness does: for each condition, scan, decode, transform, forward, count on the host."""
    hits = 0
    for contrast in LEVELS:
        view = transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), lambda p, c=contrast: p * c]
        )
        loader = torch.utils.data.DataLoader(
            datasets.ImageFolder(folder, view), batch_size, num_workers=workers, pin_memory=device.type == "cuda"
        )
        with torch.no_grad():
            for pixels, labels in loader:
                hits += (network(pixels.to(device)).argmax(1).cpu() == labels).sum().item()
    return hits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    parser.add_argument("--compile", nargs="+", choices=["on", "off"], default=["on"])
    args = parser.parse_args()
    device, figures = torch.device(args.device), []
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), args.images)
        where = SimpleNamespace(imagenet=folder, data=None, limit=None, allow_partial=True, fresh=True, results=folder)
        images = image_set("imagenet", where)
        plain = Network(
            timm.create_model(args.arch), name=args.arch, mean=NORMALIZATIONS["imagenet"][0],
            std=NORMALIZATIONS["imagenet"][1], facts={},
        ).to(device)  # fmt: skip
        for precision in args.precisions:
            for compiled in args.compile:
                settings = Settings(
                    device=device,
                    precision=precision,
                    batch_size=args.batch_size,
                    workers=args.workers,
                    compile=compiled,
                )
                figures.append(compare(args, images, folder, plain, settings))
    path = Path(__file__).with_name(f"throughput-{device.type}.json")
    path.write_text(json.dumps({"machine": machine(device), "figures": figures}, indent=1) + "\n")


def compare(args, images, folder, plain, settings):
    """Time the three in turns, and return the medians and ratios."""
    network = copy.deepcopy(plain)
    work = args.images * len(LEVELS)
    pixels = torch.rand(args.images, 3, 224, 224).to(settings.device, memory_format=torch.channels_last)
    groups, _ = grouped([Pass(images)], [network], settings)
    with float32_precision(settings):
        ready = Runners(groups, settings)
        runner = ready.get(network, STUDY)
        steps = {
            "bare": lambda: bare(runner, pixels, args.batch_size, len(LEVELS)),
            "harness": lambda: harness(images, network, settings, ready),
            "naive": lambda: naive(folder, plain, args.batch_size, args.workers, settings.device),
        }
        for step in steps.values():
            step()  # warm-up: compiling, caches, worker start
        seconds = {name: [] for name in steps}
        for _ in range(args.rounds):
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - started)
    rate = {name: work / statistics.median(times) for name, times in seconds.items()}
    by_round = list(zip(*seconds.values(), strict=True))
    result = {
        "network": args.arch,
        "precision": settings.precision,
        "compiled": runner.padded,
        "images": args.images,
        "conditions": len(LEVELS),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "images_x_conditions_per_second": {name: round(value, 1) for name, value in rate.items()},
        "harness_over_bare": round(statistics.median(a / b for a, b, _ in by_round), 3),
        "harness_over_naive": round(statistics.median(c / b for _, b, c in by_round), 2),
    }
    print(json.dumps(result, indent=1), flush=True)
    return result


def machine(device):
    """Describe the machine: processor, cores, accelerator, versions."""
    return {
        "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "system": platform.system(),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()

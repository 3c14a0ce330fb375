"""Throughput of the harness: images x conditions a second, against the fastest bare loop and against a naive one.

(a) bare: the fastest forward loop found (channels-last, batch norm folded, compiled), on a tensor already in memory;
    on a CPU, with --compile on, also compiled as for a GPU: one program a graph, the weights handed over;
(b) harness: the same network through the loop: image files, decoded once, ten conditions, answers stored;
(c) naive: the data set scanned and decoded again for each condition, contiguous format, transforms on the CPU; in a
    process of its own, where nobody has told glibc to keep its memory.

    python benchmarks/throughput.py [--images 128] [--rounds 5] [--arch resnet50] [--precisions fp32 ...]

Same network, images and process; the three take turns in every round, and medians of the rounds are compared. The
figures go to benchmarks/throughput-DEVICE.json with the machine's description.
"""

import argparse
import copy
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

import timm
import torch
from torchvision import datasets, transforms

from common import apart, described, on, photographs, prepared, show, timed
from imagenet_biases.engine import compilation
from imagenet_biases.engine.inference import Runner
from imagenet_biases.engine.precision import float32_precision
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks.load import Network
from imagenet_biases.networks.registry import NORMALIZATIONS
from imagenet_biases.vocabulary import Condition, Data, Pass, identified

LEVELS = [round(0.1 * level, 1) for level in range(1, 11)]  # ten cheap stimuli: the forward passes are compared


def bare(runner, pixels, batch_size, conditions):
    """Forward passes over pixels in memory; the first answer is kept, as little as one can keep."""
    answers = []
    with torch.no_grad():
        for _ in range(conditions):
            for batch in pixels.split(batch_size):
                answers.append(runner.answer(batch, None).argmax(1))
    return torch.stack([answer.sum() for answer in answers]).sum().item()


@identified("dimmed")
def dimmed(pixels, batch, *, contrast):
    return pixels * contrast


def harness(images, network, here, ready):
    """One run of the harness; the compiled network of the warm-up is used again."""
    conditions = tuple(Condition(f"contrast {c}", stimulus=dimmed, settings={"contrast": c}) for c in LEVELS)
    with tempfile.TemporaryDirectory() as results:
        show([Pass(images, conditions)], network, here, results, ready)


def naive(folder, network, batch_size, workers, device):
    """What a script without a harness does: for each condition, scan, decode, transform, forward, count on the host."""
    network, hits = network.to(device), 0
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
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    parser.add_argument("--compile", nargs="+", choices=["on", "off"], default=["on"])
    args = parser.parse_args()
    if args.workers is None:
        args.workers = on(args.device).workers
    device, figures = torch.device(args.device), []
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), args.images)
        images = image_set("imagenet", Data(folders={"imagenet": folder}, allow_partial=True))
        mean, std = NORMALIZATIONS["imagenet"]
        plain = Network(timm.create_model(args.arch), name=args.arch, mean=mean, std=std, facts={})
        for precision in args.precisions:
            for compiled in args.compile:
                here = on(
                    device, precision=precision, batch_size=args.batch_size, workers=args.workers, compile=compiled
                )
                figures.append(compare(args, images, folder, plain, here))
    path = Path(__file__).with_name(f"throughput-{device.type}.json")
    path.write_text(json.dumps({"machine": described(device), "figures": figures}, indent=1) + "\n")


def compare(args, images, folder, plain, here):
    """Time the three in turns, and return the medians and ratios."""
    network = copy.deepcopy(plain)
    work = args.images * len(LEVELS)
    pixels = torch.rand(args.images, 3, 224, 224).to(here.device, memory_format=torch.channels_last)
    with float32_precision(here.precision), apart() as own_process:
        ready = prepared(network, here)
        runner = ready.get(network, 224)
        steps = {
            "bare": partial(bare, runner, pixels, args.batch_size, len(LEVELS)),
            "harness": partial(harness, images, network, here, ready),
            "naive": partial(naive, folder, plain, args.batch_size, args.workers, here.device),
        }
        if runner.padded and here.device.type == "cpu":
            handed = Runner(network, 224, here, compilation.Programs(shared=True))
            steps["bare, weights handed over"] = partial(bare, handed, pixels, args.batch_size, len(LEVELS))
        seconds = {name: [] for name in steps}
        for _ in range(args.rounds + 1):
            for name, step in steps.items():
                if name == "naive":
                    took = own_process.submit(timed, step, here.device).result()
                else:
                    took = timed(step, here.device)
                seconds[name].append(took)
    # the first round warms up: caches, processes
    seconds = {name: times[1:] for name, times in seconds.items()}
    rate = {name: work / statistics.median(times) for name, times in seconds.items()}
    by_round = list(zip(*seconds.values(), strict=True))
    result = {
        "network": args.arch,
        "precision": here.precision,
        "compiled": runner.padded,
        "images": args.images,
        "conditions": len(LEVELS),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "images_x_conditions_per_second": {name: round(value, 1) for name, value in rate.items()},
        "harness_over_bare": round(statistics.median(a / b for a, b, *_ in by_round), 3),
        "harness_over_naive": round(statistics.median(c / b for _, b, c, *_ in by_round), 2),
    }
    print(json.dumps(result, indent=1), flush=True)
    return result


if __name__ == "__main__":
    main()

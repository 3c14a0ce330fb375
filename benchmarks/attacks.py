"""PGD steps per second, against foolbox on the same network.

Run:  python benchmarks/attacks.py        (writes benchmarks/attacks-DEVICE.json; about 2 minutes)

The published attack (attacks.pgd) on ResNet-50 as the loop runs it, and foolbox's LinfPGD on the network as timm
gives it: once as it comes, which has foolbox compute the gradients of the weights as well, and once with its
parameters frozen. On a CPU also with steps in compiled code, which the loop takes on a GPU only. Targets: at least 1.3
times as fast as foolbox, and 0.9 of nothing but forward and backward passes through the same folded network. Medians of
several rounds in which they take turns.
"""

import argparse
import statistics
from pathlib import Path

import foolbox
import timm
import torch

from common import described, on, timed
from imagenet_biases.base.files import write_json
from imagenet_biases.engine import compilation
from imagenet_biases.engine.inference import Runner
from imagenet_biases.engine.precision import float32_precision
from imagenet_biases.networks.load import Network
from imagenet_biases.networks.registry import NORMALIZATIONS
from imagenet_biases.stimuli.attacks import pgd, summed_cross_entropy
from imagenet_biases.vocabulary import Batch

ROUNDS, STEPS, EPS, STEP_SIZE = 3, 8, 4 / 255, 2 / 255


def normalized():
    """Return ResNet-50 with random weights on pixels in [0, 1]."""
    mean, std = NORMALIZATIONS["imagenet"]
    return Network(timm.create_model("resnet50"), name="resnet50", mean=mean, std=std, facts={})


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 64 if device.type == "cuda" else 8
    here = on(device, batch_size=size)
    pixels = torch.rand(size, 3, 224, 224, device=device)
    channels_last = pixels.contiguous(memory_format=torch.channels_last)  # as the runner passes pixels
    plain, frozen = normalized().to(device).requires_grad_(True), normalized().to(device)
    with torch.no_grad():
        labels = plain(pixels).argmax(1)
    batch, attack = Batch(torch.arange(size, device=device), 0), pgd("PGD", EPS, STEPS, STEP_SIZE)
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS, random_start=True)

    def foolboxs(network):
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device=device)
        return lambda: theirs(model, pixels, labels, epsilons=EPS)

    with float32_precision(here.precision):

        def ours(programs):
            network = Runner(normalized(), 224, here, programs).differentiable(batch)
            return lambda: attack.attack(network, channels_last, labels, batch, **attack.settings)

        def passes():
            for _ in range(STEPS):
                images = channels_last.detach().requires_grad_()
                torch.autograd.grad(summed_cross_entropy(folded(images), labels), images)

        folded = Runner(normalized(), 224, here).folded
        compiled = ours(compilation.Programs(shared=True))
        contestants = {
            "ours": compiled if device.type == "cuda" else ours(None),
            **({} if device.type == "cuda" else {"ours, compiled": compiled}),
            "bare passes": passes,
            "foolbox": foolboxs(plain),
            "foolbox, frozen parameters": foolboxs(frozen),
        }
        times = {name: [] for name in contestants}
        for _ in range(ROUNDS + 1):
            for name, work in contestants.items():
                times[name].append(timed(work, device))
    pace = {name: size * STEPS / statistics.median(seconds[1:]) for name, seconds in times.items()}
    figures = {
        "machine": described(device) | {"foolbox": foolbox.__version__},
        "batch size": size,
        "image steps per second": {name: round(value, 2) for name, value in pace.items()},
        "times as fast": {name: round(pace["ours"] / value, 2) for name, value in pace.items() if name != "ours"},
    }
    write_json(Path(__file__).with_name(f"attacks-{device.type}.json"), figures)
    for key in ("image steps per second", "times as fast"):
        print(key, figures[key])


if __name__ == "__main__":
    main()

"""Throw-away benchmark: at which spatial frequencies an attack's perturbation lies."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from imagenet_biases.images.sets import image_set
from imagenet_biases.stimuli.attacks import fgsm
from imagenet_biases.vocabulary import Benchmark, Pass, Readout


@dataclass(frozen=True)
class Power(Readout):
    """Power of the perturbation by rounded radius in the frequency plane, cycles an image."""

    id: ClassVar[str] = "Power"
    shape: ClassVar[tuple[int, ...]] = (113,)

    def __call__(self, shown):
        change = shown.pixels - shown.before
        power = torch.fft.fft2(change).abs().square().sum(1)
        f = torch.fft.fftfreq(change.shape[-1], 1 / change.shape[-1])
        radius = torch.hypot(f[:, None], f).round().long().clamp(max=112).flatten().to(power.device)
        return torch.zeros(len(power), 113, device=power.device).index_add_(1, radius, power.flatten(1))


def report(found):
    cumulative = next(iter(found.values())).values.sum(0).cumsum()
    yield "metric/perturbation-spectrum/median", float((cumulative < cumulative[-1] / 2).sum())


BENCHMARK = Benchmark(
    "spectrum", lambda data: [Pass(image_set("imagenet", data), (fgsm("FGSM/high", 4 / 255),), Power())], report
)

"""Throw-away benchmark: how much a decision depends on each layer, found by zeroing its weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from imagenet_biases.images.sets import image_set
from imagenet_biases.vocabulary import Benchmark, Condition, Estimate, Pass, Readout, identified


@dataclass(frozen=True)
class Cosine(Readout):
    id: ClassVar[str] = "Cosine"
    dtype: ClassVar[str] = "float64"
    intact: ClassVar[bool] = True

    def __call__(self, shown):
        return torch.cosine_similarity(shown.logits.double().softmax(1), shown.intact.double().softmax(1))


zero = identified("zero")(lambda network, layer: torch.nn.init.zeros_(network.get_submodule(layer).weight))


def resets(network):
    layers = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    return tuple(Condition(f"zero {n}", change=zero, settings={"layer": n}) for n in layers)


def layers(found):
    values = {one.condition.settings["layer"]: Estimate(1 - one.values.mean()) for one in found.all()}
    return {"metric/criticality-zero/mean": values}


def report(found):
    yield "metric/criticality-zero/mean", sum(1 - one.values.mean() for one in found.all()) / len(found)


BENCHMARK = Benchmark("reset", lambda d: [Pass(image_set("imagenet", d), resets, Cosine())], report, layers=layers)

"""Throw-away benchmark: a network that answers in words, whose answers are kept and turned into options."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from imagenet_biases.images.sets import image_set
from imagenet_biases.vocabulary import Benchmark, Pass, Readout


class Namer(torch.nn.Module):
    answers = "words"

    def forward(self, pixels):
        return ["a dark thing" if mean < 0.5 else "ein hélles Ding" for mean in pixels.mean((1, 2, 3)).tolist()]


@dataclass(frozen=True)
class Words(Readout):
    id: ClassVar[str] = "words"
    dtype: ClassVar[str] = "U60"
    takes: ClassVar[str] = "words"

    def __call__(self, shown):
        return np.array(shown.words)


def report(found):
    words = found["imagenet", "clean"].values
    yield "metric/vlm/generic", float(np.mean(np.char.find(words, "thing") < 0))


BENCHMARK = Benchmark("words", lambda data: [Pass(image_set("imagenet", data), readout=Words())], report)

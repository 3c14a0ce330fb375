"""The effective receptive field of a network's last feature map (Luo et al., NeurIPS 2016, arXiv:1701.04128).

By definition here: the channels of the last feature map's centre are summed with random signs, the same for every
image (their plain sum is constant behind a layer norm), and differentiated with respect to the pixels; |gradient| is
summed over the three colours; each image's map is in units of its largest value; mean over images. The field is the
pixels above 4.55 % of the mean map's largest value (1 - 95.45 %, two standard deviations of a normal distribution).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from imagenet_biases.measures.accuracy import with_percentiles
from imagenet_biases.vocabulary import Condition, Readout, between, identified

THRESHOLD = 1 - 0.9545


def centre_gradient():
    """Return the condition whose perturbation is the gradient of the last feature map's centre."""
    return Condition("centre of the last features", change=answer_by_centre, attack=_sum_gradient, cost=4)


@identified("answer_by_centre")
def answer_by_centre(network):
    """Have the network answer by its last feature map's centre, with signs, instead of logits: [B, channels]."""
    maps = []

    def keep(_, __, output):
        if isinstance(output, torch.Tensor) and (found := centre(output)) is not None:
            maps.append(found)

    def answer(_, __, logits):
        if not maps:
            return logits * 0  # no module gives a map: no gradient
        last = maps.pop()
        maps.clear()
        signs = torch.randint(2, last.shape[1:], generator=torch.Generator().manual_seed(0))
        return last * (2 * signs - 1).to(last.device)

    for module in network.body.modules():
        module.register_forward_hook(keep)
    network.register_forward_hook(answer)


def centre(features):
    """Return the centre of a feature map, [B, channels], or None of what is none.

    Maps are [B, C, h, h], [B, h, h, C], or tokens [B, T, C] of which the last h * h are a map's rows; h > 1. The centre
    has index h // 2.
    """
    shape = features.shape
    if features.dim() == 4 and shape[2] == shape[3] > 1:
        return features[:, :, shape[2] // 2, shape[2] // 2]
    if features.dim() == 4 and shape[1] == shape[2] > 1:
        return features[:, shape[1] // 2, shape[1] // 2]
    if features.dim() == 3 and (side := math.isqrt(shape[1])) > 1:
        return features[:, shape[1] - side**2 + side // 2 * (side + 1)]
    return None


@identified("_sum_gradient")
def _sum_gradient(network, pixels, labels, batch):
    asked = pixels.detach().requires_grad_()
    return pixels, torch.autograd.grad(network(asked).sum(), asked)[0]


@dataclass(frozen=True)
class GradientMap(Readout):
    """|perturbation| summed over the colours, in units of the image's largest value, float16 [B, side, side].

    side: of the network's input, in pixels.
    """

    id: ClassVar[str] = "GradientMap"

    side: int = 224

    dtype: ClassVar[str] = "float16"

    @property
    def shape(self):
        return (self.side, self.side)

    def __call__(self, shown):
        size = shown.perturbation.abs().sum(1)
        return (size / size.amax((1, 2), keepdim=True).clamp(min=1e-37)).half()

    def possible(self, rows):
        return between(rows, 0, 1)


def field(maps, count=200, seed=0):
    """Return {name: Estimate} of maps [N, h, w]: area (share of pixels), size (its square root in pixels), sd (pixels).

    sd: of the mean map as a distribution, about its own centre, mean over both axes (root of the mean variance).
    Intervals: images resampled. Images without a gradient are left out. None where there is none.
    """
    maps = maps[maps.any((1, 2))].astype(np.float32)
    if not len(maps):
        return {}
    random = np.random.default_rng(seed)
    weights = random.multinomial(len(maps), np.full(len(maps), 1 / len(maps)), count).astype(np.float32)
    resampled = [_measures(np.tensordot(one, maps, 1)) for one in weights]
    values = _measures(maps.sum(0))
    return {name: with_percentiles(value, [one[name] for one in resampled]) for name, value in values.items()}


def _measures(total):
    inside = int((total > THRESHOLD * total.max()).sum())
    shares = total.astype(np.float64) / total.sum(dtype=np.float64)
    variances = []
    for axis in (0, 1):
        marginal, places = shares.sum(1 - axis), np.arange(total.shape[axis])
        mean = marginal @ places
        variances.append(marginal @ (places - mean) ** 2)
    return {"area": inside / total.size, "size": math.sqrt(inside), "sd": math.sqrt(np.mean(variances))}

"""The effective receptive field of a network's last feature map (Luo et al., NeurIPS 2016, arXiv:1701.04128).

By definition here: the channels of the last feature map's centre are summed with random signs, the same for every
image (their plain sum is constant behind a layer norm), and differentiated with respect to the pixels; |gradient| is
summed over the three colours; each image's map is scaled by its largest value; mean over images. The field is the
pixels above 4.55 % of the mean map's largest value (1 - 95.45 %, two standard deviations of a normal distribution).
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor

from imagenet_biases.measures.accuracy import with_percentiles
from imagenet_biases.networks.load import Network
from imagenet_biases.vocabulary import (
    Attacked,
    Batch,
    Condition,
    Estimate,
    Presentation,
    Readout,
    between,
    identified,
)

THRESHOLD = 1 - 0.9545


def centre_gradient() -> Condition:
    """Return the condition whose perturbation is the gradient of the last feature map's centre."""
    return Condition("centre of the last features", change=answer_by_centre, attack=_sum_gradient, cost=4)


@identified("answer_by_centre")
def answer_by_centre(network: Network) -> None:
    """Make the network answer with its last feature map's centre, with signs, instead of logits: [B, channels]."""
    maps: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and (features := centre(output)) is not None:
            maps.append(features)

    def answer(_: Any, __: Any, logits: Tensor) -> Tensor:
        if not maps:
            return logits * 0  # no module gives a map: no gradient
        last = maps.pop()
        maps.clear()
        return last * _signs(last.shape[1], last.device)

    for module in network.body.modules():
        module.register_forward_hook(keep)
    network.register_forward_hook(answer)


@functools.lru_cache(maxsize=16)
def _signs(count: int, device: torch.device) -> Int64[Tensor, " channels"]:
    """Return so many random signs, always the same, made once for a device."""
    signs = torch.randint(2, (count,), generator=torch.Generator().manual_seed(0))
    return (2 * signs - 1).to(device)


def centre(features: Tensor) -> Float[Tensor, "B channels"] | None:
    """Return the centre of a feature map, or None for anything else.

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
def _sum_gradient(network: Attacked, pixels: Tensor, labels: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    leaf = pixels.detach().requires_grad_()
    return pixels, torch.autograd.grad(network(leaf).sum(), leaf)[0]


@dataclass(frozen=True)
class GradientMap(Readout):
    """|perturbation| summed over the colours, scaled by the image's largest value, float16 [B, side, side].

    side: of the network's input, in pixels.
    """

    id: ClassVar[str] = "GradientMap"

    side: int = 224

    dtype: ClassVar[str] = "float16"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.side, self.side)

    def __call__(self, presentation: Presentation) -> Float16[Tensor, "B H W"]:
        size = presentation.perturbation.abs().sum(1)
        return (size / size.amax((1, 2), keepdim=True).clamp(min=1e-37)).half()

    def possible(self, rows: np.ndarray) -> bool:
        return between(rows, 0, 1)


def field(maps: Float16[np.ndarray, "N H W"], count: int = 200, seed: int = 0) -> dict[str, Estimate]:
    """Return {name: Estimate}: area (share of pixels), size (its square root in pixels), sd (pixels).

    sd: of the mean map as a distribution, about its own centre, mean over both axes (root of the mean variance).
    Intervals: images resampled. Images without a gradient are left out; {} if none has one.
    """
    maps = maps[maps.any((1, 2))].astype(np.float32)
    if not len(maps):
        return {}
    random = np.random.default_rng(seed)
    weights = random.multinomial(len(maps), np.full(len(maps), 1 / len(maps)), count).astype(np.float32)
    resampled = [_measures(np.tensordot(weight, maps, 1)) for weight in weights]
    values = _measures(maps.sum(0))
    return {name: with_percentiles(value, [measures[name] for measures in resampled]) for name, value in values.items()}


def _measures(total: Float[np.ndarray, "H W"]) -> dict[str, float]:
    inside = int((total > THRESHOLD * total.max()).sum())
    shares = total.astype(np.float64) / total.sum(dtype=np.float64)
    variances = []
    for axis in (0, 1):
        marginal, places = shares.sum(1 - axis), np.arange(total.shape[axis])
        mean = marginal @ places
        variances.append(marginal @ (places - mean) ** 2)
    return {"area": inside / total.size, "size": math.sqrt(inside), "sd": math.sqrt(np.mean(variances))}

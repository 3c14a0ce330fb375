"""Solarisation: pixel values from a threshold on are inverted. Pixels are float32 [B, C, H, W] in [0, 1]."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from imagenet_biases.vocabulary import Batch, Condition, identified

PIXEL_VALUES = 256  # of 8 bits


def solarized(level: int) -> Condition:
    """Return the condition that inverts the 8-bit pixel values from `level` (0 to 255) on; 0 inverts everything."""
    return Condition(f"solarized from {level}", stimulus=_solarized, settings={"level": level})


def threshold_level(numerator: int, denominator: int = 1) -> int:
    """Return the least 8-bit value that a threshold numerator / denominator in [0, 1] on pixels in [0, 1] inverts."""
    return -(-(PIXEL_VALUES - 1) * numerator // denominator)


@identified("_solarized")
def _solarized(pixels: Float[Tensor, "B C H W"], batch: Batch, *, level: int) -> Float[Tensor, "B C H W"]:
    return solarize(pixels, level)


def solarize(pixels: Float[Tensor, "B C H W"], levels: int | Int64[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Invert the 8-bit pixel values from a level on: v becomes 255 - v, where v >= level.

    `levels`: one number, or one per image.
    """
    thresholds = levels if isinstance(levels, int) else levels.reshape(-1, 1, 1, 1)
    values = (pixels * 255).round_()
    return torch.where(values >= thresholds, 255 - values, values).div_(255)

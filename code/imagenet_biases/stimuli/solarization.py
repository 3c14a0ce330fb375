"""Solarisation: pixel values from a threshold on are inverted. Pixels are float32 [B, C, H, W] in [0, 1]."""

import torch

from imagenet_biases.vocabulary import Condition, identified

LEVELS = 256  # values of an 8-bit pixel


def solarized(level):
    """Return the condition that inverts the 8-bit pixel values from `level` (0 to 255) on; 0 inverts everything."""
    return Condition(f"solarized from {level}", stimulus=_solarized, settings={"level": level})


def threshold_level(numerator, denominator=1):
    """Return the least 8-bit value that a threshold numerator / denominator in [0, 1] on pixels in [0, 1] inverts."""
    return -(-(LEVELS - 1) * numerator // denominator)


@identified("_solarized")
def _solarized(pixels, batch, *, level):
    return solarize(pixels, level)


def solarize(pixels, levels):
    """Invert the 8-bit pixel values from a level on: v becomes 255 - v, where v >= level.

    `levels`: one number, or int64 [B], one an image.
    """
    levels = torch.as_tensor(levels, device=pixels.device).reshape(-1, 1, 1, 1)
    values = (pixels * 255).round_()
    return torch.where(values >= levels, 255 - values, values).div_(255)

"""Band-pass filters in the frequency plane. Pixels are float32 [B, C, H, W] in [0, 1]."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from imagenet_biases.vocabulary import Batch, Condition, identified


def low_pass(cutoff: float) -> Condition:
    """Return the condition that keeps the share `cutoff` (0 to 1) of the spectrum around the zero frequency."""
    return _band_pass("low-pass", cutoff)


def high_pass(cutoff: float) -> Condition:
    """Return the condition that keeps the share `cutoff` (0 to 1) of the spectrum at its high end."""
    return _band_pass("high-pass", cutoff)


def _band_pass(kind: str, cutoff: float) -> Condition:
    return Condition(f"{kind} {cutoff}", stimulus=band_pass, settings={"kind": kind, "cutoff": cutoff})


@identified("band_pass")
def band_pass(
    pixels: Float[Tensor, "B C H W"], batch: Batch | None = None, *, kind: str, cutoff: float
) -> Float[Tensor, "B C H W"]:
    """Filter each channel by a square in the frequency plane, take the real part and clip it to [0, 1].

    With the zero frequency at index n/2 of an image of size n, the square has the rows and columns n/2 - r to
    n/2 + r - 1. 'low-pass' keeps it, r = int(cutoff * n/2); 'high-pass' removes it, r = int((1 - cutoff) * n/2).
    """
    size = pixels.shape[-2:]
    spectrum = torch.fft.rfft2(pixels).mul_(_mask(kind, cutoff, *size, pixels.device))
    return torch.fft.irfft2(spectrum, s=size).clamp_(0, 1)


@cache
def _mask(kind: str, cutoff: float, height: int, width: int, device: torch.device) -> Float[Tensor, "H half"]:
    """Return the filter on the half spectrum of a real image, float32 [height, width // 2 + 1].

    The square M has the frequency -r without its partner r. The real part of an image filtered by M is the image
    filtered by M's even part, (M(k) + M(-k)) / 2, which a half spectrum can hold.
    """
    share = cutoff if kind == "low-pass" else 1 - cutoff
    rows, columns = (slice(n // 2 - int(share * (n // 2)), n // 2 + int(share * (n // 2))) for n in (height, width))
    square = torch.zeros(height, width)
    square[rows, columns] = 1
    square = torch.fft.ifftshift(square)
    even = (square + square.flip(0, 1).roll((1, 1), (0, 1))) / 2
    return (even if kind == "low-pass" else 1 - even)[:, : width // 2 + 1].to(device)

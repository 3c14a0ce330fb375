"""Critical-band masking: grey images of low contrast under noise of one octave.

Pixels are float32 [B, C, H, W] in [0, 1].
"""

import math
from functools import cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from imagenet_biases.stimuli.seeded import normal, streams, uniform
from imagenet_biases.vocabulary import Batch, Condition, identified

OCTAVES = 7
CONTRAST, MEAN = 0.2, 0.449  # of the grey image that the noise is added to
REFILL = 0.1, 0.9  # what a pixel becomes that the noise takes below 0, above 1


def grey() -> Condition:
    """Return the condition that shows an image in grey and in low contrast, without noise."""
    return Condition("grey", stimulus=_grey)


def octave_noise(frequency: int, sd: float) -> Condition:
    """Return the condition that masks the image of `grey` by noise of one octave: `frequency` 0 (coarsest) to 6.

    `sd` is the standard deviation of the white noise that the octave is taken from, in units of the pixels.
    """
    settings = {"frequency": frequency, "sd": sd}
    return Condition(f"octave {frequency} noise {sd}", stimulus=masked, settings=settings, seeded=True)


@identified("_grey")
def _grey(pixels: Float[Tensor, "B 3 H W"], batch: Batch) -> Float[Tensor, "B 3 H W"]:
    return low_contrast(pixels)[:, None].expand_as(pixels)


@identified("masked")
def masked(pixels: Float[Tensor, "B 3 H W"], batch: Batch, *, frequency: int, sd: float) -> Float[Tensor, "B 3 H W"]:
    """Return the grey image of low contrast under octave-band noise, the same in all three channels (a view).

    White Gaussian noise is reduced to one octave, and scaled to the root-mean-square that it has in the finest octave
    (Subramanian et al., NeurIPS 2023, section 2).
    """
    name = f"octave {frequency} noise {sd}"
    white = normal(streams(batch, name), pixels.shape[-2:]).mul_(sd)
    noise = octave(white, frequency)
    if frequency < OCTAVES - 1:
        noise *= _norm(octave(white, OCTAVES - 1)) / _norm(noise)
    return add_noise(low_contrast(pixels), noise, sd, streams(batch, name + " redrawn"))[:, None].expand_as(pixels)


def _norm(noise: Float[Tensor, "B H W"]) -> Float[Tensor, "B 1 1"]:
    return torch.linalg.vector_norm(noise, dim=(-2, -1), keepdim=True)


def low_contrast(pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B H W"]:
    """Return 8-bit RGB pixels [B, 3, H, W] as grey images of the study's contrast and mean.

    Grey is Pillow's 'L' to the bit: its weights are integers, and float32 holds these sums exactly.
    """
    red, green, blue = (pixels * 255).round_().unbind(1)
    grey = (19595 * red).add_(green, alpha=38470).add_(blue, alpha=7471).add_(0x8000).div_(0x10000).floor_().div_(255)
    return grey.sub_(grey.mean((1, 2), keepdim=True)).mul_(CONTRAST).add_(MEAN)


def octave(images: Float[Tensor, "B H H"], frequency: int) -> Float[Tensor, "B H H"]:
    """Return one octave of square images [B, H, H]: one level of their Laplacian pyramid, reconstructed to full size.

    `frequency` counts from the low-pass rest, 0, to the finest level, 6; the sum over all is the image. Pyramid of
    Burt & Adelson (1983, IEEE Trans. Commun. 31, sections II-III) with the binomial filter, reflected at the borders.
    """
    steps, level = _steps(images.shape[-1], images.device), OCTAVES - 1 - frequency
    for down, _ in steps[:level]:
        images = down @ images @ down.T
    if frequency:
        down, up = steps[level]
        images = images - up @ (down @ images @ down.T) @ up.T
    for _, up in reversed(steps[:level]):
        images = up @ images @ up.T
    return images


@cache
def _steps(size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return the pyramid's (reduction, expansion) along one axis of `size` points, level by level, as matrices.

    Reduction keeps every second point of the filtered axis; expansion filters the axis with zeros between its points.
    """
    steps = []
    for _ in range(OCTAVES - 1):
        points = torch.arange(size)
        filtered = torch.zeros(size, size)
        for offset, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            mirrored = size - 1 - (size - 1 - (points + offset).abs()).abs()
            filtered[points, mirrored] += weight / 16 * math.sqrt(2)
        steps.append((filtered[::2].to(device), filtered[:, ::2].to(device)))
        size = (size + 1) // 2
    return steps


def add_noise(
    images: Float[Tensor, "B H W"], noise: Float[Tensor, "B H W"], sd: float, states: Int64[Tensor, " B"]
) -> Float[Tensor, "B H W"]:
    """Return images + noise within [0, 1]; pixels that would leave the range follow a rule. Both inputs are left alone.

    A pixel below 0 becomes 0.1 and one above 1 becomes 0.9, as if the image had the value 0.1 - noise or 0.9 - noise
    there. Where that value would itself lie outside [0, 1], the pixel's noise is drawn anew from N(0, sd^2) until
    image + noise is inside. That is one draw from the normal distribution cut to the range, made from its quantiles
    with the uniform numbers of `states` [B], so there is no loop.
    """
    noisy = images + noise
    low, high = REFILL
    redrawn = ((noisy < 0) & (noise < low - 1)) | ((noisy > 1) & (noise > high))
    noisy = torch.where(noisy < 0, low, torch.where(noisy > 1, high, noisy))
    if not redrawn.is_cuda and not redrawn.any():  # the rule; to ask a GPU would be to wait for it
        return noisy
    least, most = torch.special.ndtr(-images / sd), torch.special.ndtr((1 - images) / sd)
    drawn = torch.special.ndtri(least + (most - least) * uniform(states, noise.shape[1:])) * sd
    return torch.where(redrawn, (images + drawn).clamp_(0, 1), noisy)

"""Stimuli: pure functions on a batch of pixels, made on the pixels' device, and the seeded numbers they need.

Pixels are float32 [B, C, H, W] in [0, 1], and so is every stimulus. Randomness is a pure function of (seed, image,
condition): the batch size, the order, the number of workers and the device do not matter.
"""

import hashlib
import math
from functools import cache

import torch

from imagenet_biases.vocabulary import Condition, identified

# Seeded numbers ------------------------------------------------------------------------------------------------------


def _signed(number):
    """Return an unsigned 64-bit number as torch's int64 has it (there is no wrapping uint64 arithmetic in torch)."""
    return number - 2**64 if number >= 2**63 else number


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))


def _mix_(state):
    """Scramble int64 numbers in place by the output function of splitmix64 (Steele et al. 2014, OOPSLA, figure 15)."""
    for shift, factor in MIX:
        # int64 shifts keep the sign: the mask makes them logical; products wrap
        state.bitwise_xor_((state >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return state


def streams(batch, name):
    """Return the state of every image's own stream of random numbers, int64 [B].

    `name` says what the numbers are for: another name, another image or another seed gives unrelated numbers.
    """
    salt = hashlib.blake2b(f"{batch.seed}/{name}".encode(), digest_size=8).digest()
    return _mix_(batch.keys ^ int.from_bytes(salt, "little", signed=True))


def bits(states, count):
    """Return `count` 64-bit random numbers per stream, int64 [B, count]: splitmix64 started at each state [B]."""
    return _mix_(states[:, None] + torch.arange(1, count + 1, device=states.device) * GOLDEN)


def uniform(states, shape):
    """Return numbers drawn uniformly from [0, 1), float32 [B, *shape], multiples of 2^-24."""
    count = math.prod(shape)
    halves = bits(states, (count + 1) // 2).view(torch.int32)[:, :count]
    return ((halves >> 8) & 0xFFFFFF).float().mul_(2.0**-24).unflatten(1, shape)


def normal(states, shape):
    """Return standard normal numbers, float32 [B, *shape], of at most 6.7 in size (Box & Muller 1958)."""
    count = math.prod(shape)
    halves = bits(states, (count + 1) // 2).view(torch.int32).unflatten(1, (-1, 2))
    radius = (halves[..., 0] & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).log_().mul_(-2).sqrt_()
    angle = halves[..., 1].float().mul_(math.pi * 2.0**-31)
    return torch.cat((angle.cos().mul_(radius), angle.sin_().mul_(radius)), 1)[:, :count].unflatten(1, shape)


# Band-pass filters ---------------------------------------------------------------------------------------------------


def low_pass(cutoff):
    """Return the condition that keeps the share `cutoff` (0 to 1) of the spectrum around the zero frequency."""
    return _band_pass("low-pass", cutoff)


def high_pass(cutoff):
    """Return the condition that keeps the share `cutoff` (0 to 1) of the spectrum at its high end."""
    return _band_pass("high-pass", cutoff)


def _band_pass(kind, cutoff):
    return Condition(f"{kind} {cutoff}", stimulus=band_pass, settings={"kind": kind, "cutoff": cutoff})


@identified("band_pass")
def band_pass(pixels, batch=None, *, kind, cutoff):
    """Filter each channel by a square in the frequency plane, take the real part and clip it to [0, 1].

    With the zero frequency at index n/2 of an image of size n, the square has the rows and columns n/2 - r to
    n/2 + r - 1. 'low-pass' keeps it, r = int(cutoff * n/2); 'high-pass' removes it, r = int((1 - cutoff) * n/2).
    """
    size = pixels.shape[-2:]
    spectrum = torch.fft.rfft2(pixels).mul_(_mask(kind, cutoff, *size, pixels.device))
    return torch.fft.irfft2(spectrum, s=size).clamp_(0, 1)


@cache
def _mask(kind, cutoff, height, width, device):
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


# Solarisation --------------------------------------------------------------------------------------------------------

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


# Octave-band noise ---------------------------------------------------------------------------------------------------

OCTAVES = 7
CONTRAST, MEAN = 0.2, 0.449  # of the grey image that the noise is added to
REFILL = 0.1, 0.9  # what a pixel becomes that the noise takes below 0, above 1


def grey():
    """Return the condition that shows an image in grey and in low contrast, without noise."""
    return Condition("grey", stimulus=_grey)


def octave_noise(frequency, sd):
    """Return the condition that masks the image of `grey` by noise of one octave: `frequency` 0 (coarsest) to 6.

    `sd` is the standard deviation of the white noise that the octave is taken from, in units of the pixels.
    """
    settings = {"frequency": frequency, "sd": sd}
    return Condition(f"octave {frequency} noise {sd}", stimulus=masked, settings=settings, seeded=True)


@identified("_grey")
def _grey(pixels, batch):
    return low_contrast(pixels)[:, None].expand_as(pixels)


@identified("masked")
def masked(pixels, batch, *, frequency, sd):
    """Return the grey image of low contrast under octave-band noise, the same in the three channels (a view).

    White Gaussian noise is reduced to one octave, and scaled to the root-mean-square that it has in the finest octave
    (Subramanian et al., NeurIPS 2023, section 2).
    """
    name = f"octave {frequency} noise {sd}"
    white = normal(streams(batch, name), pixels.shape[-2:]).mul_(sd)
    noise = octave(white, frequency)
    if frequency < OCTAVES - 1:
        noise *= _norm(octave(white, OCTAVES - 1)) / _norm(noise)
    return add_noise(low_contrast(pixels), noise, sd, streams(batch, name + " redrawn"))[:, None].expand_as(pixels)


def _norm(noise):
    return torch.linalg.vector_norm(noise, dim=(-2, -1), keepdim=True)


def low_contrast(pixels):
    """Return 8-bit RGB pixels [B, 3, H, W] as grey images of the study's contrast and mean, float32 [B, H, W].

    Grey is Pillow's 'L' to the bit: its weights are integers, and float32 holds these sums exactly.
    """
    red, green, blue = (pixels * 255).round_().unbind(1)
    grey = (19595 * red).add_(green, alpha=38470).add_(blue, alpha=7471).add_(0x8000).div_(0x10000).floor_().div_(255)
    return grey.sub_(grey.mean((1, 2), keepdim=True)).mul_(CONTRAST).add_(MEAN)


def octave(images, frequency):
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
def _steps(size, device):
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


def add_noise(images, noise, sd, states):
    """Return images + noise [B, H, W], both kept, within [0, 1]: what would leave the range is changed by a rule.

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

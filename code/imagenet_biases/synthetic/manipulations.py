"""Imitations of the corruptions and manipulations, on drawn pictures.

All map float pixels [VIEW, VIEW, 3] in about [0, 1] to such pixels.
"""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32
from PIL import Image, ImageFilter

from imagenet_biases.synthetic.drawings import LUMA, VIEW, uint8

Pixels = Float[np.ndarray, "V V 3"]
Field = Float32[np.ndarray, "V V 1"]

ROWS, COLUMNS = np.mgrid[:VIEW, :VIEW].astype(np.float32)
RADIUS = np.maximum(np.hypot(np.fft.fftfreq(VIEW)[:, None], np.fft.rfftfreq(VIEW)[None]) * VIEW, 1)  # cycles per image


def _normal(rng: np.random.Generator, *shape: int) -> Float32[np.ndarray, "..."]:
    return rng.standard_normal(shape, dtype=np.float32)


def _field(rng: np.random.Generator, slope: float) -> Field:
    """Return noise whose amplitude falls as frequency ** -slope, of mean 0 and standard deviation 1."""
    spectrum = np.fft.rfft2(_normal(rng, VIEW, VIEW)) * RADIUS**-slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (VIEW, VIEW)).astype(np.float32)[..., None]
    return field / field.std()


def _warp(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the pixels at some places, nearest neighbour, the border repeated."""
    rows, columns = (np.clip(np.rint(place), 0, VIEW - 1).astype(np.intp) for place in (rows, columns))
    return pixels[rows, columns]


def _jitter(pixels: Pixels, rng: np.random.Generator, reach: float, slope: float) -> Pixels:
    """Displace every pixel by a random field: incoherent for slope 0, smooth for slope 2."""
    down, across = (reach * _field(rng, slope)[..., 0] for _ in range(2))
    return _warp(pixels, ROWS + down, COLUMNS + across)


def _smear(pixels: np.ndarray, places: Sequence) -> np.ndarray:
    """Return the mean over displacements (rows, columns)."""
    total = sum(_warp(pixels, ROWS[:, :1] + down, COLUMNS[:1] + across) for down, across in places)
    return np.asarray(total) / len(places)


def _disc(radius: float, number: int = 16) -> list[np.ndarray]:
    """Return displacements that fill a disc evenly, along a sunflower's spiral."""
    return [(radius * (k / number) ** 0.5 * np.array([np.sin(2.4 * k), np.cos(2.4 * k)])) for k in range(number)]


def _blur(pixels: Pixels, deviation: float) -> Pixels:
    blurred = Image.fromarray(uint8(pixels)).filter(ImageFilter.GaussianBlur(deviation))
    return np.asarray(blurred, np.float32) / 255


def _jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(uint8(pixels)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / 255


def _grey(pixels: Pixels) -> Pixels:
    return np.repeat((pixels @ LUMA)[..., None], 3, -1)


def _replace(pixels: Pixels, mask: np.ndarray, value: float | Sequence[float] | np.ndarray) -> Pixels:
    return np.where(mask, np.asarray(value, np.float32), pixels)


def _zoom(pixels: Pixels, factor: float) -> Pixels:
    middle = (VIEW - 1) / 2
    return _warp(pixels, middle + (ROWS[:, :1] - middle) / factor, middle + (COLUMNS[:1] - middle) / factor)


def _waves(rng: np.random.Generator, cycles: float, rings: bool) -> Float[np.ndarray, "V V 1"]:
    if rings:
        phase = np.hypot(ROWS - rng.uniform(0, VIEW), COLUMNS - rng.uniform(0, VIEW))
    else:
        angle = rng.uniform(0, np.pi)
        phase = ROWS * np.sin(angle) + COLUMNS * np.cos(angle)
    return np.sin(2 * np.pi * cycles / VIEW * phase)[..., None]


def _glow(rng: np.random.Generator, number: int) -> Field:
    """Return light around random points, in (0, 1]."""
    points = rng.uniform(0, VIEW, (number, 2))
    near = np.min([np.abs(ROWS - y) + np.abs(COLUMNS - x) for y, x in points], 0)
    return np.exp(-near / 12)[..., None].astype(np.float32)


def _checker(rng: np.random.Generator, side: int, share: float) -> Bool[np.ndarray, "V V 1"]:
    """Return a mask of a random share of every second square of a checkerboard."""
    number = -(-VIEW // side)
    squares = (np.indices((number, number)).sum(0) % 2 == 0) & (rng.random((number, number)) < share)
    return np.kron(squares, np.ones((side, side), bool))[:VIEW, :VIEW, None]


# name -> (pixels, severity 1 to 5, generator) -> pixels
CORRUPTIONS = {
    "gaussian_noise": lambda x, s, rng: x + 0.05 * s * _normal(rng, *x.shape),
    "shot_noise": lambda x, s, rng: x + 0.07 * s * np.sqrt(x) * _normal(rng, *x.shape),
    "impulse_noise": lambda x, s, rng: _replace(x, (u := rng.random(x.shape, np.float32)) < 0.04 * s, u > 0.02 * s),
    "defocus_blur": lambda x, s, rng: _smear(x, _disc(s)),
    "glass_blur": lambda x, s, rng: _jitter(x, rng, 0.6 * s, 0),
    "motion_blur": lambda x, s, rng: _smear(x, [(k / 2, k) for k in range(-2 * s, 2 * s + 1, 2)]),
    "zoom_blur": lambda x, s, rng: sum(_zoom(x, 1 + 0.06 * k) for k in range(s + 2)) / (s + 2),
    "snow": lambda x, s, rng: _replace(
        0.85 * x + 0.15, _smear(_field(rng, 0), [(k, k) for k in range(4)]) > 1.3 - s / 8, 1
    ),
    "frost": lambda x, s, rng: _replace(x, _field(rng, 1.2) > 1.6 - 0.25 * s, (0.8, 0.9, 1)),
    "fog": lambda x, s, rng: x + 0.14 * s * (0.85 + 0.15 * _field(rng, 1.5) - x),
    "brightness": lambda x, s, rng: x + 0.08 * s,
    "contrast": lambda x, s, rng: x.mean() + (x - x.mean()) * (0.6, 0.4, 0.25, 0.15, 0.08)[s - 1],
    "elastic_transform": lambda x, s, rng: _jitter(x, rng, 1.2 * s, 1.5),
    "pixelate": lambda x, s, rng: _warp(x, ROWS[:, :1] // (s + 1) * (s + 1), COLUMNS[:1] // (s + 1) * (s + 1)),
    "jpeg_compression": lambda x, s, rng: _jpeg(x, (25, 18, 14, 10, 7)[s - 1]),
    "speckle_noise": lambda x, s, rng: x + 0.12 * s * x * _normal(rng, *x.shape),
    "gaussian_blur": lambda x, s, rng: _blur(x, 0.8 * s),
    "spatter": lambda x, s, rng: _replace(x, _field(rng, 1) > 2.2 - 0.25 * s, (0.25, 0.2, 0.1)),
    "saturate": lambda x, s, rng: _grey(x) + (x - _grey(x)) * (0.3, 0.1, 2, 4, 8)[s - 1],
}
CORRUPTIONS_BAR = {
    "blue_noise_sample": lambda x, s, rng: x + 0.06 * s * _field(rng, -1),
    "brownish_noise": lambda x, s, rng: x + 0.06 * s * _field(rng, 1.5),
    "caustic_refraction": lambda x, s, rng: _jitter(x, rng, 1.5 * s, 1.5) + 0.04 * s * _field(rng, 1.5),
    "checkerboard_cutout": lambda x, s, rng: _replace(x, _checker(rng, 20, 0.2 * s), 0.5),
    "cocentric_sine_waves": lambda x, s, rng: x + 0.06 * s * _waves(rng, 10, rings=True),
    "inverse_sparkles": lambda x, s, rng: x * (1 - 0.18 * s * (1 - _glow(rng, 12))),
    "perlin_noise": lambda x, s, rng: x + 0.05 * s * _field(rng, 1),
    "plasma_noise": lambda x, s, rng: x + 0.06 * s * _field(rng, 2),
    "single_frequency_greyscale": lambda x, s, rng: x + 0.06 * s * _waves(rng, 30, rings=False),
    "sparkles": lambda x, s, rng: x + (1 - x) * _glow(rng, 3 * s),
}


def _scramble(pixels: Pixels, rng: np.random.Generator, degrees: float) -> Pixels:
    """Shift the phase of every frequency at random by at most `degrees`."""
    spectrum = np.fft.rfft2(pixels[..., 0])
    phase = np.angle(np.fft.rfft2(_normal(rng, VIEW, VIEW))) * degrees / 180
    phase[0, 0] = 0
    return np.repeat(np.fft.irfft2(spectrum * np.exp(1j * phase), (VIEW, VIEW))[..., None], 3, -1)


def _equalise(pixels: Pixels) -> Pixels:
    """Give the amplitude spectrum the form 1 / frequency; keep mean and standard deviation."""
    grey = pixels[..., 0]
    phase = np.angle(np.fft.rfft2(grey - grey.mean()))
    equal = np.fft.irfft2(np.exp(1j * phase) / RADIUS, (VIEW, VIEW))
    return np.repeat((grey.mean() + (equal - equal.mean()) / equal.std() * grey.std())[..., None], 3, -1)


def _eidolon(pixels: Pixels, rng: np.random.Generator, condition: str, slope: float) -> Pixels:
    return _jitter(_grey(pixels), rng, 0.5 * float(condition.split("-")[0]) ** 0.7, slope)


# name -> code in file names, conditions (of both kinds: counted in ood_mean and left out of it),
# (pixels, condition, generator) -> pixels
MANIPULATIONS = {
    "colour": ("cl", ("cr", "bw"), lambda x, c, rng: x if c == "cr" else _grey(x)),
    "contrast": ("cop", ("c100", "c30", "c10", "c03"), lambda x, c, rng: 0.5 + (_grey(x) - 0.5) * int(c[1:]) / 100),
    "high-pass": (
        "hp",
        ("inf", "3.0", "1.0", "0.4"),
        lambda x, c, rng: _grey(x) if c == "inf" else 0.5 + _grey(x) - _blur(_grey(x), float(c)),
    ),
    "low-pass": ("lp", ("0", "3", "7", "40"), lambda x, c, rng: _blur(_grey(x), float(c))),
    "phase-scrambling": ("ps", ("0", "30", "90", "180"), lambda x, c, rng: _scramble(_grey(x), rng, float(c))),
    "power-equalisation": ("pow", ("0", "pow"), lambda x, c, rng: _equalise(_grey(x)) if c == "pow" else _grey(x)),
    "false-colour": ("fc", ("True", "False"), lambda x, c, rng: x if c == "True" else 2 * _grey(x) - x),
    "rotation": ("rot", ("0", "90", "180"), lambda x, c, rng: np.rot90(x, int(c) // 90)),
    "eidolonI": ("eid", ("1-10-10", "8-10-10", "128-10-10"), lambda x, c, rng: _eidolon(x, rng, c, 1.5)),
    "eidolonII": ("eid", ("1-3-10", "8-3-10", "128-3-10"), lambda x, c, rng: _eidolon(x, rng, c, 0.75)),
    "eidolonIII": ("eid", ("1-0-10", "8-0-10", "128-0-10"), lambda x, c, rng: _eidolon(x, rng, c, 0)),
    "uniform-noise": (
        "nse",
        ("0.0", "0.1", "0.2", "0.9"),
        lambda x, c, rng: 0.35 + 0.3 * _grey(x) + float(c) * rng.uniform(-1, 1, (VIEW, VIEW, 1)),
    ),
}
CONFLICTS = (0, 1, 3, 6, 10, 13)  # a cue-conflict image's texture is that many categories after its silhouette

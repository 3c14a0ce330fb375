"""Drawn images and two small networks with known biases: the demo, and the instrument's ground truth.

Every picture holds two cues that lie apart in spatial frequency (cue-conflict images: Geirhos et al., ICLR 2019):

- a silhouette, soft-edged, so that little of it lies above 20 cycles per image;
- a texture over the whole picture, figure and ground alike: one, two, three or four gratings at orientations of their
  own, all within the octave TEXTURE_OCTAVE around 56 cycles per image.

Colours, contrast, phase, place, size and tilt are drawn anew for each picture and say nothing about the category. One
network of `build` was trained on the silhouette of such pictures, one on their texture (train_calibration.py), so shape
bias, low- or high-pass dependence and critical band of both are known before any benchmark measures them.
"""

import colorsys
import io
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import nn

from imagenet_biases.errors import UserError
from imagenet_biases.files import write_json
from imagenet_biases.images.labels import REAL
from imagenet_biases.images.sets import manifest_of
from imagenet_biases.schema import Malformed, check, count, read_json

DRAWING = 4  # version of the drawings: a drawn folder of another version is drawn anew
VIEW = 224  # pixels: side of the standard view, the 'image' of 'cycles per image'
RESIZED = 256  # pixels: short side from which the standard view is cropped
TEXTURE_OCTAVE = (56 / 2**0.5, 56 * 2**0.5)  # cycles per image
SOFTNESS = 3.0  # pixels of the view: standard deviation of a silhouette's blur
LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601, the weights of Pillow's 'L'


class Category(NamedTuple):
    """One of the 16 categories of Geirhos et al. and the one ImageNet class that stands for it."""

    name: str
    number: int
    wnid: str
    in_a: bool
    in_r: bool


# Each class is chosen so that as many categories as possible are in the 200 classes of ImageNet-A or ImageNet-R.
CATEGORIES = tuple(
    Category(name, number, wnid, "A" in lists, "R" in lists)
    for name, number, wnid, lists in (
        ("airplane", 404, "n02690373", "A"),
        ("bear", 296, "n02134084", "R"),
        ("bicycle", 671, "n03792782", ""),
        ("bird", 94, "n01833805", "AR"),
        ("boat", 472, "n02951358", "AR"),
        ("bottle", 907, "n04591713", "AR"),
        ("car", 817, "n04285008", ""),
        ("cat", 281, "n02123045", "R"),
        ("chair", 765, "n04099969", "A"),
        ("clock", 530, "n03196217", "A"),
        ("dog", 207, "n02099601", "AR"),
        ("elephant", 386, "n02504458", "A"),
        ("keyboard", 508, "n03085013", ""),
        ("knife", 499, "n03041632", ""),
        ("oven", 766, "n04111531", ""),
        ("truck", 717, "n03930630", "R"),
    )
)

# Silhouettes: filled parts in a square from -1 to 1, y downwards. Four numbers: an ellipse (centre x, y, radius x, y);
# more: a polygon x, y, x, y, ...; the parts after None are cut out again.
SILHOUETTES = {
    "airplane": [
        (0, 0, 0.16, 1),
        (0, -0.35, 1, 0.25, 1, 0.45, 0, 0.2, -1, 0.45, -1, 0.25),
        (0, 0.65, 0.42, 0.9, 0.42, 1, 0, 0.92, -0.42, 1, -0.42, 0.9),
    ],
    "bear": [
        (0, 0.3, 0.55, 0.6),
        (0, -0.5, 0.4, 0.36),
        (-0.36, -0.84, 0.18, 0.18),
        (0.36, -0.84, 0.18, 0.18),
        (-0.6, 0.05, 0.16, 0.4),
        (0.6, 0.05, 0.16, 0.4),
        (-0.35, 0.85, 0.25, 0.18),
        (0.35, 0.85, 0.25, 0.18),
    ],
    "bicycle": [
        (-0.56, 0.35, 0.46, 0.46),
        (0.56, 0.35, 0.46, 0.46),
        (-0.56, 0.42, -0.3, -0.35, 0.4, -0.35, 0.4, -0.2, -0.2, -0.2, -0.42, 0.42),
        (0.48, 0.4, 0.2, -0.6, 0.55, -0.6, 0.55, -0.48, 0.38, -0.48, 0.64, 0.4),
        None,
        (-0.56, 0.35, 0.3, 0.3),
        (0.56, 0.35, 0.3, 0.3),
    ],
    "bird": [
        (-0.1, 0.15, 0.5, 0.26),
        (0.42, -0.08, 0.22, 0.2),
        (0.58, -0.16, 1, -0.02, 0.58, 0.08),
        (-0.5, 0.05, -1, -0.12, -1, 0.3, -0.5, 0.3),
        (-0.35, 0.1, -0.55, -1, 0.25, 0.05),
    ],
    "boat": [
        (-1, 0.4, 1, 0.4, 0.6, 0.9, -0.6, 0.9),
        (-0.06, 0.45, -0.06, -1, 0.06, -1, 0.06, 0.45),
        (0.06, -0.95, 0.75, 0.2, 0.06, 0.2),
        (-0.06, -0.7, -0.06, 0.2, -0.55, 0.2),
    ],
    "bottle": [
        (-0.13, -1, 0.13, -1, 0.13, -0.4, 0.34, -0.1, 0.34, 1, -0.34, 1, -0.34, -0.1, -0.13, -0.4),
    ],
    "car": [
        (-1, 0, -0.6, -0.05, -0.35, -0.42, 0.35, -0.42, 0.62, -0.05, 1, 0.05, 1, 0.35, -1, 0.35),
        (-0.55, 0.38, 0.22, 0.22),
        (0.55, 0.38, 0.22, 0.22),
    ],
    "cat": [
        (0, 0.5, 0.42, 0.5),
        (0, -0.3, 0.38, 0.32),
        (-0.38, -0.3, -0.36, -1, -0.02, -0.5),
        (0.38, -0.3, 0.36, -1, 0.02, -0.5),
        (0.3, 0.95, 0.7, 0.7, 0.72, -0.2, 0.9, -0.2, 0.9, 0.8, 0.5, 1),
    ],
    "chair": [
        (-0.55, -1, -0.3, -1, -0.3, 1, -0.55, 1),
        (-0.55, -0.02, 0.55, -0.02, 0.55, 0.22, -0.55, 0.22),
        (0.3, 0, 0.55, 0, 0.55, 1, 0.3, 1),
    ],
    "clock": [
        (0, 0.05, 0.85, 0.85),
        (-0.6, 0.6, -0.3, 0.8, -0.55, 1.1, -0.75, 1),
        (0.6, 0.6, 0.3, 0.8, 0.55, 1.1, 0.75, 1),
        None,
        (-0.1, 0.15, -0.1, -0.6, 0.1, -0.6, 0.1, 0, 0.5, 0.2, 0.42, 0.38),
    ],
    "dog": [
        (-0.55, -0.15, 0.6, -0.15, 0.6, 0.3, -0.55, 0.3),
        (-0.55, 0.2, -0.36, 0.2, -0.36, 0.95, -0.55, 0.95),
        (0.41, 0.2, 0.6, 0.2, 0.6, 0.95, 0.41, 0.95),
        (-0.62, -0.4, 0.26, 0.28),
        (-0.7, -0.5, -1, -0.4, -1, -0.2, -0.65, -0.15),
        (0.5, -0.1, 0.8, -0.7, 0.95, -0.65, 0.65, 0),
    ],
    "elephant": [
        (0.2, -0.15, 0.75, 0.55),
        (-0.55, -0.3, 0.4, 0.42),
        (-0.4, 0, 0, 0, 0, 0.9, -0.4, 0.9),
        (0.45, 0, 0.85, 0, 0.85, 0.9, 0.45, 0.9),
        (-0.95, -0.25, -0.65, 0, -0.75, 0.8, -1, 0.8),
    ],
    "keyboard": [
        (-1, -0.4, 1, -0.4, 1, 0.4, -1, 0.4),
        None,
        (-0.85, -0.25, 0.85, -0.25, 0.85, -0.08, -0.85, -0.08),
        (-0.5, 0.12, 0.5, 0.12, 0.5, 0.28, -0.5, 0.28),
    ],
    "knife": [
        (-1, -0.12, 0.2, -0.12, 0.2, 0.12, -1, 0.12),
        (0.1, -0.14, 1, -0.08, 0.75, 0.3, 0.1, 0.34),
    ],
    "oven": [
        (-0.8, -0.9, 0.8, -0.9, 0.8, 0.9, -0.8, 0.9),
        None,
        (-0.55, -0.2, 0.55, -0.2, 0.55, 0.6, -0.55, 0.6),
    ],
    "truck": [
        (-1, -0.65, 0.3, -0.65, 0.3, 0.4, -1, 0.4),
        (0.3, -0.2, 0.75, -0.2, 1, 0.1, 1, 0.4, 0.3, 0.4),
        (-0.6, 0.45, 0.24, 0.24),
        (0.6, 0.45, 0.24, 0.24),
    ],
}

# Textures: number of gratings, spread evenly over the half circle, and the orientation of the first in degrees.
TEXTURES = dict(
    zip(
        SILHOUETTES,
        [(1, 22.5 * k) for k in range(8)] + [(2, 22.5 * k) for k in range(4)] + [(3, 0), (3, 30), (4, 0), (4, 22.5)],
        strict=True,
    )
)


def _outline(part):
    """The points [K, 2] of a part's outline, in the silhouette's square."""
    if len(part) != 4:
        return np.reshape(part, (-1, 2))
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.stack([part[0] + part[2] * np.cos(angle), part[1] + part[3] * np.sin(angle)], 1)


def silhouette(rng, name, width, height, unit=1.0, size=(0.6, 0.85)):
    """The category's silhouette at a random place, size and tilt: float32 [height, width], 0 ground to 1 figure.

    `unit` is the number of drawn pixels per pixel of the standard view; `size` bounds the silhouette's size as a share
    of the view's side.
    """
    scale = rng.uniform(*size)
    centre = np.array([width, height]) / 2 + rng.uniform(-0.8, 0.8, 2) * (1 - scale) * VIEW * unit / 2
    tilt = np.radians(rng.uniform(-10, 10))
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]]) * scale * VIEW * unit / 2
    canvas = Image.new("L", (width, height))
    pen, ink = ImageDraw.Draw(canvas), 255
    for part in SILHOUETTES[name]:
        if part is None:
            ink = 0
        else:
            pen.polygon([tuple(point) for point in _outline(part) @ turn + centre], fill=ink)
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(SOFTNESS * unit)), np.float32) / 255


def texture(rng, name, width, height, unit=1.0):
    """The category's texture at a random phase and frequency within TEXTURE_OCTAVE: float32 [height, width].

    Mean 0 and standard deviation about 1 whatever the category, so that contrast does not give the category away.
    """
    number, first = TEXTURES[name]
    low, high = TEXTURE_OCTAVE
    cycles = low * (high / low) ** rng.uniform(0.1, 0.9) / (VIEW * unit)
    x, y = np.arange(width), np.arange(height)
    pattern = np.zeros((height, width), np.float32)
    for k in range(number):
        angle = np.radians(first + 180 / number * k + rng.uniform(-4, 4))
        across = np.exp(2j * np.pi * (cycles * np.cos(angle) * x + rng.uniform())).astype(np.complex64)
        down = np.exp(2j * np.pi * cycles * np.sin(angle) * y).astype(np.complex64)
        pattern += np.outer(down.real, across.real) - np.outer(down.imag, across.imag)
    return pattern * np.sqrt(2 / number, dtype=np.float32)


def picture(rng, shape, surface, width=VIEW, height=VIEW, unit=1.0, *, size=(0.6, 0.85), contrast=1.0, clutter=0):
    """A picture of the silhouette of category `shape` with the texture of category `surface`: uint8 [height, width, 3].

    `contrast` scales figure-ground and texture contrast; `clutter` is a number of discs scattered over the ground.
    """
    mask = silhouette(rng, shape, width, height, unit, size)
    if clutter:
        mask = np.maximum(mask, 0.8 * _scatter(rng, width, height, unit, clutter))
    step = contrast * rng.uniform(0.3, 0.5) * rng.choice([-1, 1])
    level = 0.5 + rng.uniform(-0.08, 0.08) - step / 2
    ground, figure = (grey + _tint(rng) for grey in (level, level + step))
    pixels = ground + mask[..., None] * (figure - ground)
    pixels += (contrast * rng.uniform(0.04, 0.07) * texture(rng, surface, width, height, unit))[..., None]
    return _uint8(pixels)


def _scatter(rng, width, height, unit, number):
    """Small soft discs at random places: float32 [height, width] in [0, 1]."""
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    for x, y, radius in rng.uniform(size=(number, 3)) * (width, height, 5 * unit) + (0, 0, 4 * unit):
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(SOFTNESS * unit)), np.float32) / 255


def _tint(rng):
    """A random colour without luminance: float32 [3]."""
    colour = rng.uniform(-0.12, 0.12, 3).astype(np.float32)
    return colour - LUMA @ colour


def _uint8(pixels):
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def rendition(rng, name, width, height, unit):
    """The silhouette in two flat bright colours, without a texture: uint8 [height, width, 3]."""
    hue, light = rng.uniform(0, 1, 2), rng.permutation([0.35, 0.95])
    ground, figure = (np.float32(colorsys.hsv_to_rgb(h, 0.6, v)) for h, v in zip(hue, light, strict=True))
    mask = silhouette(rng, name, width, height, unit)[..., None]
    return _uint8(ground + mask * (figure - ground))


def sketch(rng, name, width=VIEW, height=VIEW, unit=1.0):
    """A grey outline on white: uint8 [height, width]. The outline is where the soft silhouette is near one half."""
    mask = silhouette(rng, name, width, height, unit)
    return _uint8(1 - rng.uniform(0.6, 0.9) * 4 * mask * (1 - mask))


# ---- Imitations of the corruptions and manipulations. All take and give float [VIEW, VIEW, 3] pixels in about [0, 1].

ROWS, COLUMNS = np.mgrid[:VIEW, :VIEW].astype(np.float32)
RADIUS = np.maximum(np.hypot(np.fft.fftfreq(VIEW)[:, None], np.fft.rfftfreq(VIEW)[None]) * VIEW, 1)  # cycles per image


def _normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def _field(rng, slope):
    """Noise whose amplitude falls as frequency ** -slope: float32 [VIEW, VIEW, 1], mean 0, standard deviation 1."""
    spectrum = np.fft.rfft2(_normal(rng, VIEW, VIEW)) * RADIUS**-slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (VIEW, VIEW)).astype(np.float32)[..., None]
    return field / field.std()


def _warp(pixels, rows, columns):
    """The pixels at the given places, nearest neighbour, the border repeated."""
    rows, columns = (np.clip(np.rint(place), 0, VIEW - 1).astype(np.intp) for place in (rows, columns))
    return pixels[rows, columns]


def _jitter(pixels, rng, reach, slope):
    """Displace every pixel by a random field: incoherent for slope 0, smooth for slope 2."""
    down, across = (reach * _field(rng, slope)[..., 0] for _ in range(2))
    return _warp(pixels, ROWS + down, COLUMNS + across)


def _smear(pixels, places):
    """The mean over displacements (rows, columns)."""
    return sum(_warp(pixels, ROWS[:, :1] + down, COLUMNS[:1] + across) for down, across in places) / len(places)


def _disc(radius, number=16):
    """Displacements that fill a disc evenly, along a sunflower's spiral."""
    return [(radius * (k / number) ** 0.5 * np.array([np.sin(2.4 * k), np.cos(2.4 * k)])) for k in range(number)]


def _blur(pixels, deviation):
    blurred = Image.fromarray(_uint8(pixels)).filter(ImageFilter.GaussianBlur(deviation))
    return np.asarray(blurred, np.float32) / 255


def _jpeg(pixels, quality):
    file = io.BytesIO()
    Image.fromarray(_uint8(pixels)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / 255


def _grey(pixels):
    return np.repeat((pixels @ LUMA)[..., None], 3, -1)


def _replace(pixels, where, value):
    return np.where(where, np.float32(value), pixels)


def _zoom(pixels, factor):
    middle = (VIEW - 1) / 2
    return _warp(pixels, middle + (ROWS[:, :1] - middle) / factor, middle + (COLUMNS[:1] - middle) / factor)


def _waves(rng, cycles, rings):
    if rings:
        phase = np.hypot(ROWS - rng.uniform(0, VIEW), COLUMNS - rng.uniform(0, VIEW))
    else:
        angle = rng.uniform(0, np.pi)
        phase = ROWS * np.sin(angle) + COLUMNS * np.cos(angle)
    return np.sin(2 * np.pi * cycles / VIEW * phase)[..., None]


def _glow(rng, number):
    """Bright around random points: float32 [VIEW, VIEW, 1] in (0, 1]."""
    points = rng.uniform(0, VIEW, (number, 2))
    near = np.min([np.abs(ROWS - y) + np.abs(COLUMNS - x) for y, x in points], 0)
    return np.exp(-near / 12)[..., None].astype(np.float32)


def _checker(rng, side, share):
    """True on a random share of every second square of a checkerboard: bool [VIEW, VIEW, 1]."""
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


def _scramble(pixels, rng, degrees):
    """Shift the phase of every frequency at random by at most `degrees`."""
    spectrum = np.fft.rfft2(pixels[..., 0])
    phase = np.angle(np.fft.rfft2(_normal(rng, VIEW, VIEW))) * degrees / 180
    phase[0, 0] = 0
    return np.repeat(np.fft.irfft2(spectrum * np.exp(1j * phase), (VIEW, VIEW))[..., None], 3, -1)


def _equalise(pixels):
    """Give the amplitude spectrum the form 1 / frequency; mean and standard deviation stay."""
    grey = pixels[..., 0]
    phase = np.angle(np.fft.rfft2(grey - grey.mean()))
    equal = np.fft.irfft2(np.exp(1j * phase) / RADIUS, (VIEW, VIEW))
    return np.repeat((grey.mean() + (equal - equal.mean()) / equal.std() * grey.std())[..., None], 3, -1)


def _eidolon(pixels, rng, condition, slope):
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


# ---- The image sets on disk


def draw(folder, seed=0):
    """Draw every image set of the study, small, in the layouts of the real ones, and return the folder as a Path.

    Under `folder`: imagenet (val/ and real.json), imagenet-a, -r, -sketch, -v2, imagenet-c, imagenet-cbar and
    model-vs-human, each with a manifest image-set.json: `collection` 'drawn', `images` (of imagenet-c and -cbar: per
    corruption and severity; of model-vs-human: name -> number) and `classes`, the names of the class folders. A folder
    drawn before with the same seed is left as it is; an interrupted drawing leaves nothing. The same seed gives the
    same bytes with the same Pillow and NumPy.

    Raises UserError when `folder` holds something else.
    """
    folder = Path(folder)
    label = {"drawing": DRAWING, "seed": seed}
    if _label(folder) == label:
        return folder
    if folder.exists() and _label(folder) is None and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else than drawn images: name a new folder for them")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        sources = _draw_imagenet(new / "imagenet", seed)
        draw_variants(new, seed)
        _draw_corrupted(new / "imagenet-c", sources, CORRUPTIONS, [seed, 5])
        _draw_corrupted(new / "imagenet-cbar", sources, CORRUPTIONS_BAR, [seed, 6])
        _draw_model_vs_human(new / "model-vs-human", seed)
        write_json(new / "drawn.json", label)
        if folder.exists() and _label(folder) != label:
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if _label(folder) != label:  # else another process drew the same meanwhile
                raise
    return folder


def _label(folder):
    """What a drawn folder says about itself, None for any other."""
    file = folder / "drawn.json"
    try:
        return read_json(file, dict)
    except (OSError, Malformed):
        return None


def _save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    image = image.convert(mode) if mode else image
    if path.suffix == ".png":
        image.save(path, compress_level=1)
    else:
        image.save(path, "JPEG", quality=92)


def _manifest(folder, images, classes=None):
    manifest = {"collection": "drawn", "images": images} | ({"classes": sorted(classes)} if classes else {})
    write_json(folder / "image-set.json", check(manifest, manifest_of((count, {str: count}))))


def _canvas(rng):
    """Width, height and drawn pixels per pixel of the view for a photograph that is resized and cropped."""
    width, height = (int(side) for side in rng.permutation([280 + rng.integers(-8, 9), 320 + rng.integers(-8, 9)]))
    return width, height, min(width, height) / RESIZED


def _view(file):
    """The standard view of a photograph: uint8 [VIEW, VIEW, 3]."""
    image = Image.open(file).convert("RGB")
    scale = RESIZED / min(image.size)
    image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - VIEW) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + VIEW, top + VIEW)))


def _draw_imagenet(folder, seed, per_class=6):
    """Validation images and ReaL labels. Returns class folder -> path of its first image, the sources of imagenet-c."""
    order = np.random.default_rng([seed, 0]).permutation(len(CATEGORIES) * per_class) % len(CATEGORIES)
    real, sources = [], {}
    for number, index in enumerate(order, 1):
        category = CATEGORIES[index]
        rng = np.random.default_rng([seed, 0, number])
        path = folder / "val" / category.wnid / f"ILSVRC2012_val_{number:08d}.JPEG"
        mode = {11: "L", 22: "CMYK"}.get(number)  # the real set has such files, too
        _save(path, picture(rng, category.name, category.name, *_canvas(rng)), mode)
        sources.setdefault(category.wnid, path)
        other = CATEGORIES[index - 1].number
        real.append({3: [], 7: sorted([category.number, other])}.get(number % 20, [category.number]))
    write_json(folder / "real.json", check(real, REAL))
    _manifest(folder, len(order), sources)
    return sources


def draw_variants(folder, seed, per_class=4):
    """ImageNet-A (small, faint, cluttered), -R (flat colours), -Sketch (outlines) and -v2 (drawn anew)."""
    drawings = {
        "imagenet-a": lambda rng, name, *canvas: picture(
            rng, name, name, *canvas, size=(0.4, 0.55), contrast=0.4, clutter=12
        ),
        "imagenet-r": rendition,
        "imagenet-sketch": sketch,
        "imagenet-v2": lambda rng, name, *canvas: picture(rng, name, name, *canvas),
    }
    listed = {"imagenet-a": [c for c in CATEGORIES if c.in_a], "imagenet-r": [c for c in CATEGORIES if c.in_r]}
    for number, (name, drawing) in enumerate(drawings.items(), 1):
        categories = listed.get(name, CATEGORIES)
        classes = [str(c.number) if name == "imagenet-v2" else c.wnid for c in categories]
        for index, (category, label) in enumerate(zip(categories, classes, strict=True)):
            for k in range(per_class):
                rng = np.random.default_rng([seed, number, index * per_class + k])
                file = {
                    "imagenet-a": f"0.{rng.integers(10**6):06d}_{category.name} _ {category.name}_0.{k}.jpg",
                    "imagenet-r": f"{('art', 'cartoon')[k % 2]}_{k // 2}.jpg",  # again in every class, as released
                    "imagenet-sketch": f"sketch_{k}.JPEG",
                    "imagenet-v2": f"{rng.bytes(20).hex()}.jpeg",
                }[name]
                _save(folder / name / label / file, drawing(rng, category.name, *_canvas(rng)))
        _manifest(folder / name, len(classes) * per_class, classes)


def _draw_corrupted(folder, sources, corruptions, seed):
    for number, (wnid, path) in enumerate(sources.items()):
        pixels = np.float32(_view(path)) / 255
        for index, (name, corruption) in enumerate(corruptions.items()):
            for severity in range(1, 6):
                rng = np.random.default_rng([*seed, index, number])  # the same noise, only more of it
                file = folder / name / str(severity) / wnid / path.name
                _save(file, _uint8(corruption(pixels, severity, rng)))
    _manifest(folder, len(sources), sources)


def _draw_model_vs_human(folder, seed, per_category=2):
    """The 17 data sets of Geirhos et al. (2021), in the layout of their release."""
    names = [category.name for category in CATEGORIES]
    for index, name in enumerate(names):
        for k in range(per_category):
            rng = np.random.default_rng([seed, 7, index, k])
            file = f"{name}/{name}{k + 1}.png"
            _save(folder / "edge" / file, 255 - sketch(rng, name))
            _save(folder / "silhouette" / file, _uint8(1 - silhouette(rng, name, VIEW, VIEW)))
            trial = index * per_category + k + 1
            other = names[index - 1 - k]
            for data_set, code, pixels in (
                ("sketch", "ske", sketch(rng, name)),
                ("stylized", "sty", picture(rng, name, other)),
            ):
                file = f"{trial:04d}_{code}_dnn_0_{name}_00_{name}-{trial:04d}.png"
                _save(folder / data_set / "dnn" / "session-1" / file, pixels)
        for k in CONFLICTS:
            rng = np.random.default_rng([seed, 8, index, k])
            other = (index + k) % len(names)
            file = f"{name}{1 + k % 10}-{names[other]}{1 + index % 10}.png"
            _save(folder / "cue-conflict" / name / file, picture(rng, name, names[other]))
    for number, (data_set, (code, conditions, manipulation)) in enumerate(MANIPULATIONS.items()):
        for trial in range(len(conditions) * len(names)):
            condition, category = conditions[trial % len(conditions)], CATEGORIES[trial // len(conditions)]
            rng = np.random.default_rng([seed, 9, number, trial])
            pixels = np.float32(picture(rng, category.name, category.name)) / 255
            file = f"{trial + 1:04d}_{code}_dnn_{condition}_{category.name}_10_{category.wnid}_{trial + 1}.png"
            path = folder / data_set / "dnn" / "session-1" / file
            _save(path, _uint8(manipulation(pixels, condition, rng)))
    counts = {data_set.name: sum(1 for _ in data_set.rglob("*.png")) for data_set in sorted(folder.iterdir())}
    _manifest(folder, counts)


# ---- The networks


class Network(nn.Module):
    """A small convolutional network: [N, 3, 224, 224] pixels in [0, 1] -> [N, 1000] logits.

    Each picture is first brought to mean 0 and standard deviation 1 (over all its values). Sixteen logits are learned,
    one for the class of each category; all other classes get FLOOR, far below them.
    """

    FLOOR = -100.0

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *_layer(3, 24, kernel=9, stride=4),
            *_layer(24, 32, kernel=3, stride=2),
            *_layer(32, 48, kernel=3, stride=2),
            *_layer(48, 64, kernel=3, stride=1),
            *_layer(64, 96, kernel=3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.scores = nn.Linear(96, len(CATEGORIES))
        numbers = torch.tensor([category.number for category in CATEGORIES])
        self.register_buffer("numbers", numbers, persistent=False)

    def forward(self, pixels):
        variance, mean = torch.var_mean(pixels, (1, 2, 3), keepdim=True)
        scores = self.scores(self.features((pixels - mean) * torch.rsqrt(variance + 1e-5)))
        return scores.new_full((scores.shape[0], 1000), self.FLOOR).index_copy(1, self.numbers, scores)


def _layer(inputs, outputs, kernel, stride):
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def build():
    """The architecture of both calibration networks, with random weights (the zoo fills them from safetensors)."""
    return Network()

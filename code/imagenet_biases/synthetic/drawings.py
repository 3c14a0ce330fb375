"""Drawn images and two small networks with known biases: the demo, and the instrument's ground truth.

Every picture holds two cues that lie apart in spatial frequency (cue-conflict images: Geirhos et al., ICLR 2019):

- a silhouette, soft-edged, so that little of it lies above 20 cycles per image;
- a texture over the whole picture, figure and ground alike: one, two, three or four gratings at distinct orientations,
  all within the octave TEXTURE_OCTAVE around 56 cycles per image.

Colours, contrast, phase, place, size and tilt are drawn anew for each picture and say nothing about the category. One
network of `build` was trained on the silhouette of such pictures, one on their texture (train_calibration.py), so shape
bias, low- or high-pass dependence and critical band of both are known before any benchmark measures them.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageDraw, ImageFilter

from imagenet_biases.study import STUDY_CROP, STUDY_RESIZE

DRAWING = 4  # version of the drawings: a drawn folder of another version is drawn anew
VIEW = STUDY_CROP  # pixels: side of the standard view, the 'image' of 'cycles per image'
RESIZED = STUDY_RESIZE  # pixels: short side from which the standard view is cropped
TEXTURE_OCTAVE = (56 / 2**0.5, 56 * 2**0.5)  # cycles per image
SOFTNESS = 3.0  # pixels of the view: standard deviation of a silhouette's blur
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, the weights of Pillow's 'L'


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


def _outline(part: Sequence[float]) -> Float[np.ndarray, "K 2"]:
    """Return the points of a part's outline, in the silhouette's square."""
    if len(part) != 4:
        return np.reshape(part, (-1, 2))
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.stack([part[0] + part[2] * np.cos(angle), part[1] + part[3] * np.sin(angle)], 1)


def silhouette(
    rng: np.random.Generator,
    name: str,
    width: int,
    height: int,
    unit: float = 1.0,
    size: tuple[float, float] = (0.6, 0.85),
) -> Float32[np.ndarray, "height width"]:
    """Return the category's silhouette at a random place, size and tilt: 0 ground to 1 figure.

    Args:
        unit: drawn pixels per pixel of the standard view.
        size: bounds of the silhouette's size, as a share of the view's side.
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


def texture(
    rng: np.random.Generator, name: str, width: int, height: int, unit: float = 1.0
) -> Float32[np.ndarray, "height width"]:
    """Return the category's texture at a random phase and frequency within TEXTURE_OCTAVE.

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


def picture(
    rng: np.random.Generator,
    shape: str,
    surface: str,
    width: int = VIEW,
    height: int = VIEW,
    unit: float = 1.0,
    *,
    size: tuple[float, float] = (0.6, 0.85),
    contrast: float = 1.0,
    clutter: int = 0,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a picture of the silhouette of category `shape` with the texture of category `surface`.

    Args:
        contrast: scales figure-ground and texture contrast.
        clutter: number of discs scattered over the ground.
    """
    mask = silhouette(rng, shape, width, height, unit, size)
    if clutter:
        mask = np.maximum(mask, 0.8 * _scatter(rng, width, height, unit, clutter))
    step = contrast * rng.uniform(0.3, 0.5) * rng.choice([-1, 1])
    level = 0.5 + rng.uniform(-0.08, 0.08) - step / 2
    ground, figure = (grey + _tint(rng) for grey in (level, level + step))
    pixels = ground + mask[..., None] * (figure - ground)
    pixels += (contrast * rng.uniform(0.04, 0.07) * texture(rng, surface, width, height, unit))[..., None]
    return uint8(pixels)


def _scatter(
    rng: np.random.Generator, width: int, height: int, unit: float, number: int
) -> Float32[np.ndarray, "height width"]:
    """Return small soft discs at random places, in [0, 1]."""
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    for x, y, radius in rng.uniform(size=(number, 3)) * (width, height, 5 * unit) + (0, 0, 4 * unit):
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(SOFTNESS * unit)), np.float32) / 255


def _tint(rng: np.random.Generator) -> Float32[np.ndarray, " 3"]:
    """Return a random colour without luminance."""
    colour = rng.uniform(-0.12, 0.12, 3).astype(np.float32)
    return colour - LUMA @ colour


def uint8(pixels: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Return pixels of about [0, 1] as uint8."""
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def rendition(
    rng: np.random.Generator, name: str, width: int, height: int, unit: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the silhouette in two flat bright colours, without a texture."""
    hue, light = rng.uniform(0, 1, 2), rng.permutation([0.35, 0.95])
    ground, figure = (np.array(colorsys.hsv_to_rgb(h, 0.6, v), np.float32) for h, v in zip(hue, light, strict=True))
    mask = silhouette(rng, name, width, height, unit)[..., None]
    return uint8(ground + mask * (figure - ground))


def sketch(
    rng: np.random.Generator, name: str, width: int = VIEW, height: int = VIEW, unit: float = 1.0
) -> UInt8[np.ndarray, "height width"]:
    """Return a grey outline on white, where the soft silhouette is near one half."""
    mask = silhouette(rng, name, width, height, unit)
    return uint8(1 - rng.uniform(0.6, 0.9) * 4 * mask * (1 - mask))

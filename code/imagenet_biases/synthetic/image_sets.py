"""The drawn image sets on disk: every set that a benchmark asks for, small, in the layout of its release."""

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import write_json
from imagenet_biases.base.schema import Count, Malformed, Object, Text, check, read_json
from imagenet_biases.images.labels import REAL
from imagenet_biases.images.sets import Manifest
from imagenet_biases.synthetic.drawings import (
    CATEGORIES,
    DRAWING,
    RESIZED,
    VIEW,
    picture,
    rendition,
    silhouette,
    sketch,
    uint8,
)
from imagenet_biases.synthetic.manipulations import CONFLICTS, CORRUPTIONS, CORRUPTIONS_BAR, MANIPULATIONS


def draw(folder: str | Path, seed: int = 0) -> Path:
    """Draw every image set of the study, small, in the layout of its release, and return the folder.

    Under `folder`: imagenet (val/ and real.json), imagenet-a, -r, -sketch, -v2, imagenet-c, imagenet-cbar and
    model-vs-human, each with a manifest image-set.json: `collection` 'drawn', `images` (of imagenet-c and -cbar: per
    corruption and severity; of model-vs-human: name -> number) and `classes`, the names of the class folders. A folder
    drawn before with the same seed is left unchanged; an interrupted drawing leaves nothing. The same seed gives the
    same bytes with the same Pillow and NumPy.

    Raises:
        UserError: `folder` holds something else.
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


def _label(folder: Path) -> dict[str, Any] | None:
    """Return the version and seed of a drawn folder, None for any other."""
    file = folder / "drawn.json"
    try:
        return read_json(file, Object)
    except (OSError, Malformed):
        return None


def _save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    image = image.convert(mode) if mode else image
    if path.suffix == ".png":
        image.save(path, compress_level=1)
    else:
        image.save(path, "JPEG", quality=92)


def _manifest(folder: Path, images: int | Mapping[str, int], classes: Iterable[str] | None = None) -> None:
    manifest = {"collection": "drawn", "images": images} | ({"classes": sorted(classes)} if classes else {})
    write_json(folder / "image-set.json", check(manifest, Manifest[Count | dict[Text, Count]]))


def _canvas(rng: np.random.Generator) -> tuple[int, int, float]:
    """Return width, height and drawn pixels per pixel of the view for a photograph that is resized and cropped."""
    width, height = (int(side) for side in rng.permutation([280 + rng.integers(-8, 9), 320 + rng.integers(-8, 9)]))
    return width, height, min(width, height) / RESIZED


def _view(file: Path) -> UInt8[np.ndarray, "V V 3"]:
    """Return the standard view of a photograph."""
    image = Image.open(file).convert("RGB")
    scale = RESIZED / min(image.size)
    image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - VIEW) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + VIEW, top + VIEW)))


def _draw_imagenet(folder: Path, seed: int, per_class: int = 6) -> dict[str, Path]:
    """Draw validation images and ReaL labels; return {class folder: its first image}, the sources of imagenet-c."""
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


def draw_variants(folder: Path, seed: int, per_class: int = 4) -> None:
    """Draw ImageNet-A (small, faint, cluttered), -R (flat colours), -Sketch (outlines) and -v2 (drawn anew)."""
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


def _draw_corrupted(
    folder: Path, sources: Mapping[str, Path], corruptions: Mapping[str, Callable], seed: Sequence[int]
) -> None:
    for number, (wnid, path) in enumerate(sources.items()):
        pixels = np.float32(_view(path)) / 255
        for index, (name, corruption) in enumerate(corruptions.items()):
            for severity in range(1, 6):
                rng = np.random.default_rng([*seed, index, number])  # the same noise, only more of it
                file = folder / name / str(severity) / wnid / path.name
                _save(file, uint8(corruption(pixels, severity, rng)))
    _manifest(folder, len(sources), sources)


def _draw_model_vs_human(folder: Path, seed: int, per_category: int = 2) -> None:
    """Draw the 17 data sets of Geirhos et al. (2021), in the layout of their release."""
    names = [category.name for category in CATEGORIES]
    for index, name in enumerate(names):
        for k in range(per_category):
            rng = np.random.default_rng([seed, 7, index, k])
            file = f"{name}/{name}{k + 1}.png"
            _save(folder / "edge" / file, 255 - sketch(rng, name))
            _save(folder / "silhouette" / file, uint8(1 - silhouette(rng, name, VIEW, VIEW)))
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
            _save(path, uint8(manipulation(pixels, condition, rng)))
    counts = {data_set.name: sum(1 for _ in data_set.rglob("*.png")) for data_set in sorted(folder.iterdir())}
    _manifest(folder, counts)

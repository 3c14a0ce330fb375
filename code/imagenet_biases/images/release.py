"""Is an image set the released one? What names, formats, sizes and labels say, as findings of a line each."""

import functools
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.images.archives import BLOCK, ArchiveReader
from imagenet_biases.images.labels import named_class, released_stem, shipped_real_labels
from imagenet_biases.images.preprocessing import Unreadable, decode
from imagenet_biases.study import (
    DECLARATIONS,
    IMAGENET_C_QUALITY,
    TRAINING_STEM,
    V2_VARIANTS,
    VALIDATION_FACTS,
    VALIDATION_TAR,
    Declaration,
    devkit_order,
    wordnet_ids,
)

if TYPE_CHECKING:
    from imagenet_biases.images.sets import ImageSet

NAMES = 1000  # that are looked at, to tell a set by them
OPENED = 16  # images, to tell whether they were resized
OPENED_READY_MADE = 3  # of each variant
MEGABYTE = 1 << 20
SMALL = 256  # pixels: short side of resized images
FEWEST_LABELS = 10  # of ReaL, to tell labels that are mixed up,
FEWEST_CLASSES = 5  # and of how many classes: of a few classes, ReaL confirms less than half
FEWEST_IDS = 4  # of V2_VARIANTS, to tell a variant
NOT_JPEG = (".png", ".bmp", ".webp", ".tif", ".tiff")
ALTERED = re.compile(r"blurred|obfuscat|resized", re.IGNORECASE)
V2_FOLDERS = {"threshold-0.7": "threshold", "top-images": "top-?_?images"}


def release_findings(images: "ImageSet", declared: Declaration) -> list[str]:
    """Return what tells a set from the release that it is given as, a line each; an empty list where nothing does.

    Every released set consists of JPEG files of known names. Nothing is concluded from names that no release has.

    Args:
        images: all that is there of the set.
        declared: the set as study.py declares it.
    """
    base = images.name.partition("/")[0]
    if other := _named_like_another(images.files, declared):
        return [f"{base}: the files are named like those of {other}: is --{base} the right folder?"]
    lines = [*_variant_of_v2(images)] if base == "imagenet-v2" else []
    if _share(images.files, declared.stems) > 0.5:
        lines += _other_format(images)
        lines += _validation(images) if base == "imagenet" else []
        lines += _made_anew(images) if base == "imagenet-c" else []
    lines += _labels(images) if base == "imagenet" else []
    return [f"{base}: {line}" for line in lines]


def _share(files: Sequence[str], pattern: str) -> float:
    """Return the share of files (of about NAMES) whose released name matches."""
    chosen = files[:: max(1, len(files) // NAMES)]
    return sum(re.fullmatch(pattern, released_stem(file)) is not None for file in chosen) / len(chosen)


def _named_like_another(files: Sequence[str], declared: Declaration) -> str | None:
    """Return the title of the set whose files are named so; None for the declared one and for unknown names."""
    titles = {TRAINING_STEM: "ImageNet's training set"}
    for declaration in DECLARATIONS.values():
        titles.setdefault(declaration.stems, declaration.title.partition(" matched")[0])
    for stems in sorted(titles, key=len):  # narrow ones first: ImageNet-R has sketches, too
        if _share(files, stems) > 0.5:
            return None if stems == declared.stems else titles[stems]
    return None


def _other_format(images: "ImageSet") -> Iterator[str]:
    endings = Counter(os.path.splitext(file)[1].lower() for file in images.files)
    others = [ending for ending in endings if ending in NOT_JPEG]
    if 2 * sum(endings[ending] for ending in others) > len(images):
        yield f"the files are {' or '.join(others)}, the released ones JPEG: they were re-encoded or made anew"


def _variant_of_v2(images: "ImageSet") -> Iterator[str]:
    """Tell the variants of ImageNet-v2, which have equal numbers of images, by file names and by folder."""
    begins = {os.path.basename(file)[:8] for file in images.files}
    hits = {variant: len(begins.intersection(names.split())) for variant, names in V2_VARIANTS.items()}
    best = max(hits, key=hits.__getitem__)
    if hits[best] < FEWEST_IDS or hits[best] < 1.5 * hits["matched-frequency"]:
        place, best = _place(images), "matched-frequency"
        if not any(hits.values()):  # renamed files: the folder may still tell
            by_folder = (name for name, folder in V2_FOLDERS.items() if re.search(folder, place, re.IGNORECASE))
            best = next(by_folder, best)
    if best != "matched-frequency":
        yield f"this is the variant {best}, not the study's matched-frequency: accuracies are 5 to 15 points higher"


def _place(images: "ImageSet") -> str:
    """Return the last folders of the set's path, and the names of its archives."""
    archives = images.listing.members.archives if images.listing.members else ()
    return "/".join([*images.listing.root.parts[-3:], *(path.name for path in archives)])


# ImageNet validation --------------------------------------------------------------------------------------------------


def validation_numbers(files: Iterable[str]) -> list[int]:
    """Return the number of each released validation image, from 1; 0 for files with other names."""
    numbers = []
    for file in files:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", released_stem(file))
        numbers.append(int(match[1]) if match else 0)
    return numbers


def _validation(images: "ImageSet") -> Iterator[str]:
    """Tell validation images that were resized, re-encoded or blurred, and images that are there twice."""
    numbers = validation_numbers(images.files)
    repeated = sorted(number for number, times in Counter(numbers).items() if number and times > 1)
    if repeated:
        examples = listed_briefly(f"ILSVRC2012_val_{number:08d}" for number in repeated)
        yield f"{len(repeated)} images are there more than once ({examples}): keep one of each"
    sizes = images.listing.sizes
    changed = []
    for number, size in sorted(zip(numbers, sizes.tolist(), strict=True)):
        if number in VALIDATION_FACTS and size != VALIDATION_FACTS[number][0]:
            changed.append(f"ILSVRC2012_val_{number:08d} has {size:,} bytes, released {VALIDATION_FACTS[number][0]:,}")
    whole = sorted(numbers) == [*range(1, 50_001)]
    if changed:
        yield f"not the released files ({listed_briefly(changed, 1)}): they were resized, re-encoded or blurred"
    elif whole and not _fits_the_tar(sizes):
        yield "not the released files (together they have another size): some were resized, re-encoded or blurred"
    elif side := _common_short_side(images):
        yield f"the short side of all images looked at is {side} pixels: they were resized"
    elif altered := ALTERED.search(_place(images)):
        yield f"the folder is called '{altered[0]}': the released images are neither resized nor blurred"


def _fits_the_tar(sizes: np.ndarray) -> bool:
    """Whether files of these sizes make up the released archive, to a megabyte: each a header and whole blocks."""
    return abs(int((1 + -(-sizes // BLOCK)).sum()) * BLOCK - VALIDATION_TAR) < MEGABYTE


def _common_short_side(images: "ImageSet") -> int | None:
    sides = {min(size) for size in _opened(images, OPENED, lambda image: image.size)}
    return sides.pop() if len(sides) == 1 and len(images) >= OPENED and max(sides) <= SMALL else None


def _opened(images: "ImageSet", count: int, look: Callable[[Image.Image], Any]) -> list[Any]:
    """Return what `look` says of some images, spread over the set; those that cannot be opened are left out."""
    listing, answers = images.listing, []
    reader = ArchiveReader(listing.members) if listing.members else None
    for position in np.unique(np.linspace(0, len(listing.files) - 1, count).astype(int)).tolist():
        data = functools.partial(reader.read, position, int(listing.sizes[position])) if reader else None
        try:
            answers.append(decode(images.path(position), look, data))
        except (Unreadable, UserError):
            continue
    return answers


@functools.cache
def _released_tables() -> dict[int, list[int]]:
    """Return the quantization tables of a JPEG of the quality of ImageNet-C."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=IMAGENET_C_QUALITY)
    with Image.open(file) as image:
        return dict(image.quantization)  # type: ignore[attr-defined]


def _made_anew(images: "ImageSet") -> Iterator[str]:
    """Tell ImageNet-C made anew by the quality of its JPEG files."""
    tables = _opened(images, OPENED_READY_MADE, lambda image: dict(getattr(image, "quantization", {})))
    if any(table and table[0] != _released_tables()[0] for table in tables):
        yield f"the JPEG files have another quality than the released {IMAGENET_C_QUALITY}: they were made anew"


# Labels ---------------------------------------------------------------------------------------------------------------


def _labels(images: "ImageSet") -> Iterator[str]:
    """Tell labels that contradict the file names, the known classes of a few images, or the shipped ReaL labels."""
    labels = images.labels.tolist()
    named = [named_class(os.path.basename(file)) for file in images.files]
    wrong = []
    for file, name, label in zip(images.files, named, labels, strict=True):
        if name not in (None, label):
            wrong.append(file)
    if wrong:
        yield f"{len(wrong)} images are named after another class than their label ({listed_briefly(wrong)})"
    numbers = validation_numbers(images.files)
    pairs = [(number, label) for number, label in zip(numbers, labels, strict=True) if 0 < number <= 50_000]
    if line := _against_real(pairs) or _against_known_classes(pairs):
        yield line


def _against_real(pairs: Sequence[tuple[int, int]]) -> str | None:
    """Return a line where ReaL confirms less than half of the labels, given pairs (number of the image, label)."""
    real = shipped_real_labels()
    labelled = [(real[number - 1], label) for number, label in pairs if real[number - 1]]
    confirmed = sum(label in accepted for accepted, label in labelled)
    enough = len(labelled) >= FEWEST_LABELS and len({label for _, label in labelled}) >= FEWEST_CLASSES
    if not enough or 2 * confirmed >= len(labelled):
        return None
    return (
        f"the labels disagree with ReaL's for {len(labelled) - confirmed} of {len(labelled)} images: "
        f"{_likely_labels(labelled) or 'they are those of other images'}"
    )


def _against_known_classes(pairs: Sequence[tuple[int, int]]) -> str | None:
    for number, label in pairs:
        if number in VALIDATION_FACTS and label != (right := VALIDATION_FACTS[number][1]):
            return (
                f"ILSVRC2012_val_{number:08d} is of class {right} ({wordnet_ids()[right]}), here {label}: "
                f"the labels are those of other images"
            )
    return None


def _likely_labels(labelled: Sequence[tuple[list[int], int]]) -> str | None:
    """Return what the labels seem to be instead, given pairs (ReaL labels, label)."""
    order = devkit_order()
    readings: dict[str, Callable[[int], int]] = {
        "the devkit's numbers minus 1": lambda label: order[label],
        "the devkit's numbers": lambda label: order[label - 1],
        "numbered from 1": lambda label: label - 1,
    }
    for name, reading in readings.items():
        if 2 * sum(reading(label) in accepted for accepted, label in labelled) > len(labelled):
            return f"they seem to be {name}; give WordNet ids, or numbers 0-999 in the order of the sorted WordNet ids"
    return None


# What is left out -----------------------------------------------------------------------------------------------------


def left_out(name: str, files: Sequence[str | Path], archives: Sequence[Path]) -> list[str]:
    """Return what there is beside a set's images and is not measured, a line each.

    Args:
        name: of the set.
        files: images of formats that are not read.
        archives: those that are named after another split.
    """
    lines = []
    if files:
        examples = listed_briefly(os.path.basename(file) for file in files)
        lines.append(f"{name}: {len(files)} images are of formats that are not read ({examples}): convert them")
    if archives:
        examples = listed_briefly(path.name for path in archives)
        lines.append(f"{name}: {len(archives)} archives are named after another split and not read ({examples})")
    return lines


def in_several_classes(images: "ImageSet") -> list[str]:
    """Return the images that are there, with the same name and content, under several classes."""
    places: dict[tuple[str, int], list[int]] = {}
    sizes = images.listing.sizes.tolist()
    for position in images.chosen.tolist():
        places.setdefault((released_stem(images.listing.files[position]), sizes[position]), []).append(position)
    reader = ArchiveReader(images.listing.members) if images.listing.members else None
    repeated = []
    for (_, size), positions in places.items():
        if len(set(images.listing.labels[positions].tolist())) > 1:
            contents = set()
            for position in positions:
                contents.add(reader.read(position, size) if reader else images.path(position).read_bytes())
            if len(contents) < len(positions):
                repeated.append(images.listing.files[positions[0]])
    return repeated

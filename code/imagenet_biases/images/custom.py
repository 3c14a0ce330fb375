"""Custom image sets: any folder or archive of images of ImageNet classes."""

import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.files import demand_file, safe_name
from imagenet_biases.images.archives import ArchiveFolder
from imagenet_biases.images.labels import label, table
from imagenet_biases.images.listing import (
    Folder,
    Listing,
    class_of,
    list_classes,
    list_labelled,
    subfolders,
    unread,
)
from imagenet_biases.images.release import in_several_classes, left_out
from imagenet_biases.images.sets import ImageSet, look_in, places, read_manifest, skipped
from imagenet_biases.study import Declaration

if TYPE_CHECKING:
    from imagenet_biases.vocabulary import Data

PREFIX = "own-"  # begins the names of custom sets, so that none is mistaken for a set of the study


def custom_set(
    name: str, location: str | Path, data: "Data", classes: str | Path | None = None, labels: str | Path | None = None
) -> ImageSet:
    """Return the images below a folder, or in archives, as an image set; `variables['accepted']`: the right classes.

    Args:
        name: of the set; it is stored under own-NAME.
        location: a folder or archives. Without `labels` its folders are named after WordNet ids, or all after class
            numbers.
        data: its `limit` makes it a sample.
        classes: a text file with one class per line, the only ones that the network may answer.
        labels: a text file of lines NAME CLASS [CLASS ...]: NAME is an image or a folder (a path below `location`, or
            its last part), each class (WordNet id or number) is right; images without a line are left out.

    Raises:
        UserError: the name is not allowed, there are no images, or labels are not classes or not among `classes`.
    """
    name = PREFIX + safe_name(name)
    declared = Declaration(name, images=0)
    listing_of: Callable[[Folder], Listing] = partial(_by_class, name, declared)
    accepted: dict[str, tuple[int, ...]] = {}
    paths = places(location)
    if labels is not None:
        demand_file(labels, "a text file of lines NAME CLASS [CLASS ...]")
        accepted = _accepted(labels)
        listing_of = partial(list_labelled, label_of=lambda file: _first(accepted, file))
    top, listing = look_in(name, paths, data, listing_of)
    labelled = np.flatnonzero(listing.labels >= 0)
    if not len(labelled):
        raise UserError(f"{name}: no images{f' that {labels} names' if labels else ''} under {location}")
    right = None
    if labels is not None:
        right = tuple(frozenset(_of(accepted, file) or ()) for file in listing.files)
    allowed = None if classes is None else _classes(classes)
    present = set(listing.labels[labelled].tolist()).union(*(right or ()))
    if allowed and (strange := sorted(present - {*allowed})):
        raise UserError(
            f"{name}: images of the classes {listed_briefly(map(str, strange))}, which {classes} does not list"
        )
    manifest = read_manifest(top.beside if isinstance(top, ArchiveFolder) else top)
    images = ImageSet(
        *(name, listing, labelled),
        as_seen=True,
        collection=manifest.get("collection", "imagenet"),
        classes=allowed,
        variables={"accepted": right},
    )
    for line in [*left_out(name, unread(top), skipped(paths)), *_left_out(name, images, labels, accepted)]:
        warnings.warn(line, stacklevel=2)
    return images if data.limit is None else images.first(data.limit)


def _left_out(
    name: str, images: ImageSet, labels: str | Path | None, accepted: dict[str, tuple[int, ...]]
) -> Iterator[str]:
    """Yield what is not measured, or cannot be right: images without a line, lines without an image, double images."""
    files, chosen = images.listing.files, set(images.chosen.tolist())
    without = [file for position, file in enumerate(files) if position not in chosen]
    if without:
        yield f"{name}: {len(without)} images have no line in {labels} and are left out ({listed_briefly(without)})"
    names = set()
    for file in files:
        names |= _keys_of(file)
    if unknown := [key for key in accepted if key not in names]:
        yield f"{name}: {len(unknown)} lines of {labels} name no image and no folder ({listed_briefly(unknown)})"
    if labels is None and (repeated := in_several_classes(images)):
        yield (
            f"{name}: {len(repeated)} images lie in several class folders ({listed_briefly(repeated)}): at most one of "
            f"their labels counts as right; give all of them with --labels FILE"
        )


def _keys_of(file: str) -> set[str]:
    """Return what a line may call an image: its path, its name, those of its folders."""
    keys = set()
    while file:
        keys |= {file, os.path.basename(file)}
        file = os.path.dirname(file)
    return keys


def accepted(images: ImageSet) -> list[set[int] | frozenset[int]]:
    """Return the right class numbers of each chosen image of a custom set."""
    sets = images.variables["accepted"]
    return [{int(label)} for label in images.labels] if sets is None else [sets[i] for i in images.chosen]


def _by_class(name: str, declared: Declaration, top: Folder) -> Listing:
    names = subfolders(top)
    numbered = Declaration(name, 0, numbered=True)
    if names and all(class_of(folder, numbered) is not None for folder in names):
        declared = numbered
    return list_classes(name, top, declared)


def _accepted(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return {image or folder: (class numbers)} of a label file."""
    accepted: dict[str, tuple[int, ...]] = {}
    for number, (name, *words) in enumerate(table(path), 1):
        if not words:
            raise UserError(f"{path}, line {number}: '{name}' has no class: write NAME CLASS [CLASS ...]")
        key = os.path.normpath(name)
        if key in accepted:
            raise UserError(f"{path}, line {number}: '{name}' is named twice: put its classes on one line")
        accepted[key] = tuple(label(word, path, number) for word in words)
    return accepted


def _of(accepted: dict[str, tuple[int, ...]], file: str) -> tuple[int, ...] | None:
    """Return the classes of an image: those of its line, else of its nearest folder's; None where there is none."""
    path = file
    while path:
        for key in (path, os.path.basename(path)):
            if key in accepted:
                return accepted[key]
        path = os.path.dirname(path)
    return None


def _first(accepted: dict[str, tuple[int, ...]], file: str) -> int:
    classes = _of(accepted, file)
    return classes[0] if classes else -1


def _classes(path: str | Path) -> tuple[int, ...]:
    demand_file(path, "a text file with one class per line")
    numbers = [label(words[0], path, number) for number, words in enumerate(table(path), 1)]
    if not numbers:
        raise UserError(f"{path} lists no class: write one WordNet id or class number per line")
    return tuple(sorted(set(numbers)))

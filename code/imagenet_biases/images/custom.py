"""Image sets of one's own: any folder or archive of images of ImageNet's classes."""

import os
from functools import partial

import numpy as np

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.files import demand_file, safe_name
from imagenet_biases.images.archives import Inside
from imagenet_biases.images.labels import label, table
from imagenet_biases.images.listing import class_of, list_classes, list_labelled, subfolders
from imagenet_biases.images.sets import ImageSet, look_in, places, read_manifest, shortened
from imagenet_biases.study import Declaration

PREFIX = "own-"  # what the names of such sets begin with: none is taken for a set of the study


def own_set(name, where, data, classes=None, labels=None):
    """Return the images below `where` (a folder or archives) as an image set; `variables['accepted']`: what is right.

    Without `labels` they lie in folders named after WordNet ids, or all after class numbers. `labels`: a text file of
    lines NAME CLASS [CLASS ...], NAME an image or a folder (as a path below `where`, or its last part), the classes
    WordNet ids or numbers, any of which is right; images without a line are left out. `classes`: a text file with a
    class a line, the only ones that the network may answer. `--limit` shortens it. Raises UserError for a name that
    cannot be one, no images, labels that are none, or labels outside `classes`.
    """
    name = PREFIX + safe_name(name)
    declared = Declaration(name, images=0)
    if labels is None:
        listing_of = partial(_by_class, name, declared)
    else:
        demand_file(labels, "a text file of lines NAME CLASS [CLASS ...]")
        accepted = _accepted(labels)
        listing_of = partial(list_labelled, label_of=lambda file: _first(accepted, file))
    top, listing = look_in(name, places(where), data, listing_of)
    known = np.flatnonzero(listing.labels >= 0)
    if not len(known):
        raise UserError(f"{name}: no images{f' that {labels} names' if labels else ''} under {where}")
    right = tuple(frozenset(_of(accepted, file) or ()) for file in listing.files) if labels is not None else None
    allowed = None if classes is None else _classes(classes)
    shown = set(listing.labels[known].tolist()).union(*(right or ()))
    if allowed and (strange := sorted(shown - {*allowed})):
        raise UserError(
            f"{name}: images of the classes {listed_briefly(map(str, strange))}, which {classes} does not list"
        )
    manifest = read_manifest(top.beside if isinstance(top, Inside) else top)
    images = ImageSet(
        *(name, listing, known),
        collection=manifest.get("collection", "imagenet"),
        classes=allowed,
        variables={"accepted": right},
    )
    return shortened(images, data, len(known))


def accepted(images):
    """Return the sets of class numbers that are right for the chosen images of an own set."""
    every = images.variables["accepted"]
    return [{int(one)} for one in images.labels] if every is None else [every[i] for i in images.chosen]


def _by_class(name, declared, top):
    below = subfolders(top)
    if below and all(class_of(one, Declaration(name, 0, numbered=True)) is not None for one in below):
        declared = Declaration(name, 0, numbered=True)
    return list_classes(name, top, declared)


def _accepted(path):
    """Return {image or folder: (class numbers)} of a label file."""
    found = {}
    for number, (name, *words) in enumerate(table(path), 1):
        if not words:
            raise UserError(f"{path}, line {number}: '{name}' has no class: write NAME CLASS [CLASS ...]")
        key = os.path.normpath(name)
        if key in found:
            raise UserError(f"{path}, line {number}: '{name}' is named twice: put its classes on one line")
        found[key] = tuple(label(word, path, number) for word in words)
    return found


def _of(accepted, file):
    """Return the classes of an image: its own line's, else that of its nearest folder; None where there is none."""
    path = file
    while path:
        for key in (path, os.path.basename(path)):
            if key in accepted:
                return accepted[key]
        path = os.path.dirname(path)
    return None


def _first(accepted, file):
    classes = _of(accepted, file)
    return classes[0] if classes else -1


def _classes(path):
    demand_file(path, "a text file with a class a line")
    numbers = [label(words[0], path, number) for number, words in enumerate(table(path), 1)]
    if not numbers:
        raise UserError(f"{path} lists no class: write a WordNet id or a class number a line")
    return tuple(sorted(set(numbers)))

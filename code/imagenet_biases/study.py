"""Every fact of the study once: image sets, classes. Nothing here needs torch."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def _class_list(name):
    """Return the lines of a class list that timm ships; read as a file, since importing timm would import torch."""
    folder = Path(find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    return tuple((folder / name).read_text("utf-8").split())


@cache
def wordnet_ids():
    """Return the 1,000 WordNet ids of ImageNet-1k in the order of the logits (sorted)."""
    return _class_list("imagenet_synsets.txt")


@cache
def class_numbers(subset):
    """Return the sorted class numbers of a subset of ImageNet-1k that timm lists: 'imagenet-a' or 'imagenet-r'."""
    wanted = set(_class_list(subset.replace("-", "_") + "_synsets.txt"))
    return tuple(number for number, wnid in enumerate(wordnet_ids()) if wnid in wanted)


@dataclass(frozen=True)
class Declaration:
    """What a complete image set holds."""

    title: str
    images: int
    classes: str | None = None  # name of timm's class list; None: all 1,000
    per_class: int | None = None
    numbered: bool = False  # folders are class numbers, not WordNet ids
    as_is: bool = False  # files are 224 x 224 already
    variants: bool = False  # CORRUPTION/SEVERITY folders, each a whole set


DECLARATIONS = {
    "imagenet": Declaration("ImageNet validation", 50_000, per_class=50),
    "imagenet-a": Declaration("ImageNet-A", 7_500, classes="imagenet-a"),
    "imagenet-r": Declaration("ImageNet-R", 30_000, classes="imagenet-r"),
    "imagenet-sketch": Declaration("ImageNet-Sketch", 50_889),
    "imagenet-v2": Declaration("ImageNet-v2 matched-frequency", 10_000, per_class=10, numbered=True),
    "imagenet-c": Declaration("ImageNet-C", 50_000, per_class=50, as_is=True, variants=True),
    "imagenet-cbar": Declaration("ImageNet-C-bar", 50_000, per_class=50, as_is=True, variants=True),
}

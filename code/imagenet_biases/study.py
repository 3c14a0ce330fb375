"""Every fact of the study, stated once: image sets, classes, conditions, metrics, and what is derived from them.

Importing this module loads neither torch nor pandas nor scipy. metrics.toml defines every metric, in the order of the
table's columns (`DEFINITIONS`), and the study's scores and biases (`DERIVED`; Gavrikov & Keuper, CVPR 2024, section 3);
`metric(name)` refuses a name that it does not define.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from imagenet_biases.base.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def _class_info(name: str) -> str:
    """Return the text of a class list that timm ships; read as a file, since importing timm would import torch."""
    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        raise UserError("timm is not installed: pip install -r requirements.txt")
    return (Path(timm.origin).parent / "data" / "_info" / name).read_text("utf-8")


@cache
def _class_list(name: str) -> tuple[str, ...]:
    return tuple(_class_info(name).split())


@cache
def wordnet_ids() -> tuple[str, ...]:
    """Return the 1,000 WordNet ids of ImageNet-1k in the order of the logits (sorted)."""
    return _class_list("imagenet_synsets.txt")


@cache
def class_names() -> tuple[str, ...]:
    """Return the first English name of every class, e.g. 'great white shark'; two are cranes, two maillots."""
    lines = _class_info("imagenet_synset_to_lemma.txt").splitlines()
    names = dict(line.split("\t", 1) for line in lines if line)
    return tuple(names[wnid].partition(",")[0] for wnid in wordnet_ids())


@cache
def devkit_order() -> tuple[int, ...]:
    """Return the class numbers in the order of the ILSVRC2012 devkit (ILSVRC2012_ID 1 to 1,000)."""
    return tuple(json.loads(Path(__file__).with_name("devkit_order.json").read_text("utf-8")))


@cache
def class_numbers(subset: str) -> tuple[int, ...]:
    """Return the sorted class numbers of a subset of ImageNet-1k that timm lists: 'imagenet-a' or 'imagenet-r'."""
    members = set(_class_list(subset.replace("-", "_") + "_synsets.txt"))
    return tuple(number for number, wnid in enumerate(wordnet_ids()) if wnid in members)


CATEGORIES_16: dict[str, tuple[int, ...]] = {
    name: tuple(numbers)
    for name, numbers in json.loads(Path(__file__).with_name("categories16.json").read_text("utf-8")).items()
}
"""The 16 categories of Geirhos et al. in alphabetical order, each with the ImageNet class numbers that belong to it."""

# Image sets and networks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declaration:
    """What a complete image set contains."""

    title: str
    images: int
    classes: str | None = None  # name of timm's class list; None: all 1,000
    per_class: int | None = None
    numbered: bool = False  # folders are class numbers, not WordNet ids
    as_is: bool = False  # files are 224 x 224 already
    variants: bool = False  # CORRUPTION/SEVERITY folders, each a whole set
    stems: str = ""  # pattern of the released file names, without extension


VALIDATION_STEM = r"ILSVRC2012_val_\d{8}"
TRAINING_STEM = r"n\d{8}_\d+"
RENDITIONS = (  # of ImageNet-R
    *("art", "cartoon", "deviantart", "embroidery", "graffiti", "graphic", "misc", "origami", "painting"),
    *("sculpture", "sketch", "sticker", "tattoo", "toy", "videogame"),
)
DECLARATIONS = {  # the one list of image sets: a new one is an entry here
    "imagenet": Declaration("ImageNet validation", 50_000, per_class=50, stems=VALIDATION_STEM),
    "imagenet-a": Declaration("ImageNet-A", 7_500, classes="imagenet-a", stems=r"\d\.\d+_.+ _ .+_\d\.\d+"),
    "imagenet-r": Declaration("ImageNet-R", 30_000, classes="imagenet-r", stems=rf"({'|'.join(RENDITIONS)})_\d+"),
    "imagenet-sketch": Declaration("ImageNet-Sketch", 50_889, stems=r"sketch_\d+"),
    "imagenet-v2": Declaration(
        "ImageNet-v2 matched-frequency", 10_000, per_class=10, numbered=True, stems=r"[0-9a-f]{40}"
    ),
    "imagenet-c": Declaration("ImageNet-C", 50_000, per_class=50, as_is=True, variants=True, stems=VALIDATION_STEM),
    "imagenet-cbar": Declaration(
        "ImageNet-C-bar", 50_000, per_class=50, as_is=True, variants=True, stems=VALIDATION_STEM
    ),
}
VALIDATION_FACTS = {1: (109_527, 65), 2: (140_296, 970), 3: (122_660, 230)}
"""Size in bytes and class number of released ImageNet validation images, by their numbers."""

VALIDATION_TAR = 6_744_924_160  # bytes of ILSVRC2012_img_val.tar, whose members are the 50,000 images
IMAGENET_C_QUALITY = 85  # of the released JPEG files
V2_VARIANTS = {
    "matched-frequency": (
        "25949dd0 d79d9f96 07316f46 fa8a6595 e18bad6f a6bc5c70 ad03bdc2 13f58077 f7700215 6a65e853 1529a6c6 6028a9f9 "
        "32c6cbd4 c979f339 c996208d 70486937 d324325a 59b21aa6 36d2b6f5 bc98275a a50f4941 27896f27 1d46513c 5c567821"
    ),
    "threshold-0.7": (
        "0328e6b7 bb763aaa 0c5f24ca 86db103b d1ab4a49 a4901f95 aedf1d2f 69dbbe26 437204c6 8bd12073 86f4c0c4 b176856a "
        "bc6598ef 305037a2 16d6a94f 71cc8939 48274730 c597d097 a2b63069 573f458d 8bf62e0f 79697621 95687406 90011fa0"
    ),
    "top-images": (
        "e9b31557 d7689d5c 59203fea ac7a7888 676e0f11 dd9bb115 f15eeed0 a6fb6ef9 e4d365b1 6b1fd2f5 e8c043d4 b797b141 "
        "d708e605 825d5c9b d127bc2f 105d99ee 1476a77a 413be904 5afc542d 98d902b9 60bfc932 e2bb6382 d1d53595 b4cb9d0c"
    ),
}
"""How the names of 24 images of each variant of ImageNet-v2 begin (github.com/modestyachts/ImageNetV2, data/datasets:
the first of imagenetv2-b-33, -a-44 and -c-12). Variants share images."""

# how the rows of the tables are measured unless they say otherwise, as records have it. The study's own arithmetic was
# probably torch's default on its GPUs (tf32-conv), which is no basis for comparison: it changes 6 % of the answers to
# attacked photographs (benchmarks/README.md)
AS_IN_STUDY: dict[str, Any] = {"view": "study", "precision": "fp32", "seed": 0, "frontend": ""}

CLEAN_SET = "imagenet"  # its clean images reveal a network that is loaded incorrectly
MODEL_VS_HUMAN = "model-vs-human"  # a folder of 17 image sets, declared in humans/stimulus_sets.py
IMAGE_FOLDERS: dict[str, str] = {
    name: f"{declared.title}: {declared.images:,} images, unpacked or as .tar, .parquet"
    for name, declared in DECLARATIONS.items()
} | {MODEL_VS_HUMAN: "the data sets of model-vs-human"}
"""What each folder contains: --NAME DIR gives it, and --data ROOT finds it as ROOT/NAME."""

STUDY_RESIZE, STUDY_CROP = 256, 224  # the study's preprocessing: short side (bilinear), then the centre, in pixels

STUDY_CATEGORIES = (  # of networks
    "baseline",
    "training_recipes",
    "augmentation",
    "stylized",
    "freezing",
    "adversarial_training",
    "contrastive",
)
DRAWN_CATEGORIES = (
    "calibration",
    "dial",
)  # networks for drawn images, which are not compared with those of photographs

# Conditions ----------------------------------------------------------------------------------------------------------

SEVERITIES = (1, 2, 3, 4, 5)

# AlexNet's published top-1 errors on ImageNet-C, mean over the five severities (Hendrycks & Dietterich, ICLR 2019,
# arXiv:1903.12261, table 2), by which the mean corruption error is normalised.
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
USUAL_CORRUPTIONS = tuple(ALEXNET_ERROR)  # in the paper's order
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
CORRUPTIONS = USUAL_CORRUPTIONS + EXTRA_CORRUPTIONS
CORRUPTIONS_BAR = (
    "blue_noise_sample",
    "brownish_noise",
    "caustic_refraction",
    "checkerboard_cutout",
    "cocentric_sine_waves",  # spelt so in the release
    "inverse_sparkles",
    "perlin_noise",
    "plasma_noise",
    "single_frequency_greyscale",
    "sparkles",
)
HUMAN_SETS = (  # of Geirhos et al., NeurIPS 2021
    *("edge", "silhouette", "cue-conflict", "colour", "contrast", "high-pass", "low-pass", "phase-scrambling"),
    *("power-equalisation", "false-colour", "rotation", "eidolonI", "eidolonII", "eidolonIII", "uniform-noise"),
    *("sketch", "stylized"),
)
CUTOFFS = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)  # share of the spectrum that is kept
MIDDLE_CUTOFFS = (0.1, 0.2, 0.3, 0.4, 0.5)  # those of LPP and HPP
NOISE_SDS = (0.02, 0.04, 0.08, 0.16)  # of pixels in [0, 1]
BAND_CENTRES = (1.75, 3.5, 7.0, 14.0, 28.0, 56.0, 112.0)  # octave bands of the noise, cycles per image of 224 pixels
ATTACK_EPSILONS = {"low": 0.5 / 255, "high": 4 / 255}  # ε of the l-infinity attacks


def _resnet50_layers() -> tuple[str, ...]:
    """Return the names of the layers with weights, in order."""
    layers = ["conv1", "bn1"]
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            parts = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3"]
            if block == 0:
                parts += ["downsample.0", "downsample.1"]
            layers += [f"layer{stage}.{block}.{part}" for part in parts]
    return (*layers, "fc")


RESNET50_LAYERS = _resnet50_layers()

# Metrics -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """What one number means and how it is shown."""

    name: str
    unit: str
    meaning: str
    script: str  # the script that computes it, '-' where none here does
    source: str = "published, measured"
    digits: int = 4  # decimals worth showing
    better: str = ""  # 'higher', 'lower', or '' where neither is
    slip: str = ""  # what is wrong with the published values
    published_images: int | None = None  # images that the published value actually rests on, where not the whole set
    short: str = ""  # a name for axes, where it differs
    logarithmic: bool = False  # values span decades: plots use a logarithmic axis

    @property
    def label(self) -> str:
        """The axis label, with its unit."""
        return f"{self.short or self.name} [{self.unit}]"


@dataclass(frozen=True)
class Definition:
    """Metrics that are defined together: `names` in this order, then whatever `pattern` matches, in natural order."""

    title: str  # how raw-data/README.md shows them
    names: tuple[str, ...]
    about: Metric  # what they share; its name is empty
    pattern: str | None = None

    def defines(self, name: str) -> bool:
        """Return whether a metric of this name belongs to the definition."""
        return name in self.names or (self.pattern is not None and re.fullmatch(self.pattern, name) is not None)


@dataclass(frozen=True)
class Derived:
    """A score or bias: `combine` of the metrics, or of other derived ones, that `parts` names."""

    about: Metric
    parts: tuple[str, ...]
    combine: Callable[..., Any]
    reported: str = ""  # the metric under which a script reports the same number, with its interval


def mean(*parts: Any) -> Any:
    """Return the mean of numbers, arrays or columns."""
    return sum(parts) / len(parts)


def high_share(low: Any, high: Any) -> Any:
    """Return high / (low + high) of numbers, arrays or columns."""
    return high / (low + high)


COMBINATIONS = {"mean": mean, "high_share": high_share}
LISTS: dict[str, Iterable[Any]] = {  # what {NAME} stands for in a name of metrics.toml
    "k": (1, 5),
    "corruption": CORRUPTIONS,
    "corruption_bar": CORRUPTIONS_BAR,
    "severity": SEVERITIES,
    "human_set": HUMAN_SETS,
    "level": ATTACK_EPSILONS,
    "cutoff": CUTOFFS,
    "middle_cutoff": MIDDLE_CUTOFFS,
    "layer": RESNET50_LAYERS,
}
_CHOICES = {"source": ("published, measured", "published", "measured"), "better": ("higher", "lower")}
_ABOUT = {key: kind for key, kind in get_type_hints(Metric).items() if key != "name"} | _CHOICES
_METRIC_KEYS = {"title": str, "names": list, "pattern": str} | _ABOUT
_DERIVED_KEYS = {"name": str, "parts": list, "combine": tuple(COMBINATIONS), "reported": str} | _ABOUT
del _DERIVED_KEYS["script"], _DERIVED_KEYS["source"]


def load_metrics(path: Path) -> tuple[tuple[Definition, ...], dict[str, Derived]]:
    """Read and check metrics.toml, whose head explains its entries.

    Returns:
        The definitions, and the derived metrics by name, in the order of the file.

    Raises:
        UserError: names the first entry that is malformed, repeats a name or uses an unknown one.
    """
    entry, definitions, derived = "", [], {}
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
        _check(tables, {"metric": list, "derived": list}, ("metric",))
        for number, row in enumerate(tables["metric"], 1):
            entry = _label("metric", number, row)
            _check(row, _METRIC_KEYS, ("title", "unit", "meaning", "script"))
            definitions.append(_definition(row, definitions))
        for number, row in enumerate(tables.get("derived", ()), 1):
            entry = _label("derived", number, row)
            _check(row, _DERIVED_KEYS, ("name", "parts", "unit", "meaning"))
            derived[row["name"]] = _derived(row, definitions, derived)
    except (ValueError, re.error) as error:  # the errors of TOML and of UTF-8 are ValueErrors
        raise UserError(f"{path.name}: {entry}{error}") from None
    return tuple(definitions), derived


def _label(kind: str, number: int, row: Any) -> str:
    title = row.get("title") or row.get("name") if isinstance(row, dict) else None
    return f"{kind} {title or number}: "


def _definition(row: dict[str, Any], before: list[Definition]) -> Definition:
    about = Metric("", **{key: value for key, value in row.items() if key in _ABOUT})
    names, pattern = _expanded(row.get("names", [])), row.get("pattern")
    if not names and not pattern:
        raise ValueError("it has neither names nor a pattern")
    if (about.script == "-") != (about.source == "published"):
        raise ValueError("script = '-' and source = 'published' go together")
    re.compile(pattern or "")
    taken = {name for definition in before for name in definition.names}
    for name in names:
        if name in taken or not name:
            raise ValueError(f"the name {name!r} is {'defined twice' if name else 'empty'}")
        taken.add(name)
    if any(row["title"] == definition.title for definition in before):
        raise ValueError("the title is used twice")
    return Definition(row["title"], names, about, pattern)


def _derived(row: dict[str, Any], definitions: list[Definition], before: dict[str, Derived]) -> Derived:
    shared = {key: value for key, value in row.items() if key in _ABOUT}
    about, parts = Metric(row["name"], **shared, script="-", source="derived"), _expanded(row["parts"])
    combine, reported = row.get("combine", "mean"), row.get("reported", "")
    if about.name in before or _defined(about.name, definitions):
        raise ValueError("the name is defined twice")
    for part in parts:
        if part not in before and not _defined(part, definitions):
            raise ValueError(f"{part!r} is neither a metric nor derived above")
    if reported and not _defined(reported, definitions):
        raise ValueError(f"reported = {reported!r} is not a metric")
    if combine == "high_share" and len(parts) != 2:
        raise ValueError(f"high_share takes two parts, not {len(parts)}")
    return Derived(about, parts, COMBINATIONS[combine], reported)


def _defined(name: str, definitions: list[Definition]) -> bool:
    return any(definition.defines(name) for definition in definitions)


def _check(row: Any, kinds: dict[str, Any], required: tuple[str, ...]) -> None:
    """Raise ValueError for a key that is unknown or missing, or for a value that is not of its type or choices."""
    if not isinstance(row, dict):
        raise ValueError(f"{row!r} is not a table")
    for key, value in row.items():
        if key not in kinds:
            raise ValueError(f"unknown key {key!r}; the keys are {', '.join(kinds)}")
        kind = kinds[key]
        if isinstance(kind, tuple):
            if value not in kind:
                raise ValueError(f"{key} = {value!r} is not one of {', '.join(map(repr, kind))}")
        elif not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{key} = {value!r} is not of type {getattr(kind, '__name__', kind)}")
    for key in required:
        if not row.get(key):
            raise ValueError(f"{key} is missing")


def _expanded(templates: list[Any]) -> tuple[str, ...]:
    """Return the names that templates stand for: all combinations of the lists in braces, the last varying fastest."""
    names = []
    for template in templates:
        if not isinstance(template, str):
            raise ValueError(f"{template!r} is not a name")
        keys = re.findall(r"\{(.*?)\}", template)
        for key in keys:
            if key not in LISTS:
                raise ValueError(f"unknown list {{{key}}}; the lists are {', '.join(LISTS)}")
        for values in product(*(LISTS[key] for key in keys)):
            names.append(template.format(**dict(zip(keys, values, strict=True))))
    return tuple(names)


DEFINITIONS, DERIVED = load_metrics(Path(__file__).with_name("metrics.toml"))
FLAGGED = frozenset(name for definition in DEFINITIONS if definition.about.slip for name in definition.names)
"""The metrics whose published values have a slip."""


@cache
def place(name: str) -> tuple[int, int, tuple[Any, ...]]:
    """Return the sort key of a metric among the table's columns.

    Raises:
        UserError: metrics.toml does not define the name.
    """
    for number, definition in enumerate(DEFINITIONS):
        if name in definition.names:
            return number, definition.names.index(name), ()
    for number, definition in enumerate(DEFINITIONS):
        if definition.defines(name):
            parts = re.findall(r"\d+(?:\.\d+)?|\D+", name)
            natural = tuple((0, float(part), "") if part[0].isdigit() else (1, 0.0, part) for part in parts)
            return number, len(definition.names), natural
    raise UserError(f"no definition matches the metric {name!r}: add it to imagenet_biases/metrics.toml")


def definition_of(name: str) -> Definition:
    """Return the Definition of a metric. Raises UserError for a name that metrics.toml does not define."""
    return DEFINITIONS[place(name)[0]]


def metric(name: str) -> Metric:
    """Return the Metric of this name. Raises UserError for a name that metrics.toml does not define."""
    return replace(definition_of(name).about, name=name)


# What is derived from metrics ----------------------------------------------------------------------------------------


CONTROL = "top1_acc/imagenet"
CORRECTED = {f"top1_acc/PGD-40/{level}": f"top1_acc/PGD-40/{level}/corrected" for level in ATTACK_EPSILONS}
"""Metric -> the published column without its slip. A measured value has no slip and stands for its own correction."""

WITNESSED = "top1_acc/imagenet-real/timm"  # another laboratory's ReaL, beside the published one with its slip

SCORES = ("ID", "Robustness", "Concepts", "Adversarial")
BIASES = ("shape-bias", "LPP", "HPP", "spectral bias", "bw_norm", "cf_norm", "pns_norm")
FURTHER_BIASES = ("criticality", "variance entropy", "sparsity", "orthogonality")  # of the group's other papers

FAMILY_MEASURES = (  # of families of networks that differ in one budget
    *BIASES,
    *FURTHER_BIASES,
    *SCORES[1:],
    "top1_acc/ood_mean",
    "metric/human/accuracy-difference",
    "metric/human/observed-consistency",
    "metric/human/error-consistency",
)


def derive(name: str, values: "Mapping[str, Any] | pd.DataFrame") -> Any:
    """Return a derived metric.

    Args:
        name: a key of DERIVED.
        values: maps metric names to numbers, arrays [images] or table columns; a dict or a pandas DataFrame.

    Raises:
        KeyError: a part is missing.
    """
    parts = [derive(part, values) if part in DERIVED else values[part] for part in DERIVED[name].parts]
    return DERIVED[name].combine(*parts)


def about(name: str) -> Metric:
    """Return the Metric of a reported or a derived metric. Raises UserError for a name that is neither."""
    return DERIVED[name].about if name in DERIVED else metric(name)


def unflagged(score: str) -> str:
    """Return the name of a score's variant without the columns in FLAGGED; its own name where it uses none of them."""
    return f"{score} (unflagged)" if FLAGGED.intersection(DERIVED[score].parts) else score

"""What other laboratories measured of the same networks (raw-data/witness.csv), and the gate that compares with it.

A witness speaks of one network under one preprocessing (ready-made sets, ImageNet-C, have none): a value is compared
with figures of the same preprocessing only. It also reveals which checkpoint a name stands for.
"""

import csv
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from imagenet_biases.base.paths import RAW_DATA
from imagenet_biases.estimate import Z95, Estimate
from imagenet_biases.images.preprocessing import STUDY, Preprocessing
from imagenet_biases.networks.registry import registry
from imagenet_biases.study import ALEXNET_ERROR, CONTROL, DECLARATIONS, STUDY_CROP, STUDY_RESIZE, definition_of

if TYPE_CHECKING:
    from imagenet_biases.images.sets import ImageSet
    from imagenet_biases.networks.load import Network

WITNESSES = RAW_DATA / "witness.csv"
KEYS = ("model", "source", "licence", "images", "img_size", "crop_pct", "interpolation")
POINT = 1.0  # a value farther than this from a witness's, beyond both intervals, is reported
CHANCE = 1.0  # per cent; chance is 0.1
REAL_LABELLED = 46_837  # of the 50,000 validation images
FEWEST = 4  # values by which a network is recognised: many have the same clean accuracy
FITS = 1.5  # root mean square of the differences in standard errors: that of one network is about 1

NETWORK_CAUSES = "another checkpoint, normalization, class order or preprocessing"
CHANCE_CAUSES = "classes in another order, weights that were never filled, pixels in another range than [0, 1]"
SUBSET_CAUSES = "answers that are not ranked among the set's own 200 classes"
CAUSES = {
    "imagenet-real": "labels other than the released real.json, or images in another order than its entries",
    "imagenet-v2": "class folders taken in text order (0, 1, 10, ...) or another variant than matched-frequency",
    "imagenet-a": SUBSET_CAUSES,
    "imagenet-r": SUBSET_CAUSES,
    "imagenet-sketch": "files that are not the released ones, or another preprocessing",
    "imagenet-c": "home-made files instead of the released ones, or another preprocessing (they are shown as they are)",
    "AutoAttack": "another ε, or another version of the attack",
}
"""Image set -> likely causes, where its network agrees on other sets."""


@dataclass(frozen=True)
class Witness:
    """One laboratory's figures for one network under one preprocessing.

    Attributes:
        images: the number it used, in per cent of which the values are; None: whole sets.
        values: {metric: value}.
    """

    model: str
    source: str
    licence: str
    images: int | None
    preprocessing: str
    values: Mapping[str, float]

    def speaks_of(self, metric: str, preprocessing: str) -> bool:
        """Return whether it has a value of the metric under this preprocessing, as str(Preprocessing) names it."""
        return metric in self.values and (image_set_of(metric) == "imagenet-c" or preprocessing == self.preprocessing)

    def error(self, metric: str, whole: float | None = None) -> float:
        """Return the standard error of its value as an estimate of what the whole set gives; 0 on whole sets.

        Of a simple random sample without replacement: p (1 - p) / n times 1 - n / N (Cochran 1977, 2.6).

        Args:
            metric: one that it has.
            whole: the value on the whole set, where it is known.
        """
        if self.images is None:
            return 0.0
        unseen = 1 - self.images / images_of(image_set_of(metric))
        return math.sqrt(unseen) * binomial_error(metric, self.values[metric] if whole is None else whole, self.images)


def image_set_of(metric: str) -> str:
    """Return the image set that a metric rests on, 'imagenet-c' for all its variants; attacks are named as such."""
    if definition_of(metric).about.script == "eval_imagenet_c":
        return "imagenet-c"
    return metric.split("/")[1]


def images_of(image_set: str) -> int:
    """Return how many images a whole set has."""
    if image_set == "imagenet-real":
        return REAL_LABELLED
    return DECLARATIONS[image_set].images if image_set in DECLARATIONS else DECLARATIONS["imagenet"].images


def binomial_error(metric: str, value: float, images: int) -> float:
    """Return the standard error of an accuracy in per cent on so many images; of an mCE, an upper bound.

    The error of a mean over conditions of the same images is at most that of an accuracy of its height.
    """
    scale = sum(ALEXNET_ERROR.values()) / len(ALEXNET_ERROR) if metric.startswith("mCE/") else 1.0
    share = min(max(value * scale / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / images) / scale


def witnesses() -> tuple[Witness, ...]:
    """Return the rows of the table."""
    return _read(WITNESSES)


@cache
def _read(path: Path) -> tuple[Witness, ...]:
    rows: list[Witness] = []
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            size = int(row["img_size"])
            resized = Preprocessing(math.floor(size / float(row["crop_pct"])), size, row["interpolation"])
            values = {name: float(value) for name, value in row.items() if name not in KEYS and value}
            images = int(row["images"]) if row["images"] else None
            rows.append(Witness(row["model"], row["source"], row["licence"], images, str(resized), values))
    return tuple(rows)


def names_of(model: str, source: str = "") -> set[str]:
    """Return the names under which other laboratories may know a network: its own, and timm's.

    Args:
        model: its name here.
        source: the address of its weights, as records have it.
    """
    names = {model, *re.findall(r"hf://timm/([^/@\s]+)[/@]", source)}
    entry = registry().get(model)
    return names | {file.location for file in (entry.files if entry else ()) if file.source == "timm"}


def witnesses_of(names: Collection[str]) -> list[Witness]:
    """Return the witnesses of a network, of all preprocessings, by its names (`names_of`)."""
    return [witness for witness in witnesses() if witness.model in names]


def nearest_witness(model: str, metric: str) -> Witness | None:
    """Return the witness whose preprocessing is the most like the study's among those of a network that have a metric.

    The study's own, else the one with the nearest crop, then the nearest size of the resized image.
    """
    having = [witness for witness in witnesses_of(names_of(model)) if metric in witness.values]
    return min(having, key=_unlike_study, default=None)


def _unlike_study(witness: Witness) -> tuple[bool, int, int]:
    interpolation_and_resize, crop = witness.preprocessing.split("-crop")
    resize = int(re.sub(r"\D", "", interpolation_and_resize))
    return witness.preprocessing != str(STUDY), abs(int(crop) - STUDY_CROP), abs(resize - STUDY_RESIZE)


def preprocessing_of(provenance: Mapping[str, Any]) -> str:
    """Return the preprocessing that a record was measured with, as str(Preprocessing); '' where it is unknown."""
    return str(STUDY) if provenance["view"] == "study" else provenance.get("native", "")


def expected_clean_accuracy(network: "Network", images: "ImageSet", preprocessing: Preprocessing) -> float | None:
    """Return the clean top-1 to expect of a network, in per cent: the zoo's, else another laboratory's, else None.

    The zoo's is for the study's preprocessing; a witness speaks of its own, on whole sets.

    Args:
        network: as loaded.
        images: the clean set; of a declared part of it, or of drawn images, nothing is known.
        preprocessing: that the network gets.
    """
    if images.subset:
        return None
    if network.expected_top1 is not None and str(preprocessing) == str(STUDY):
        return network.expected_top1
    if network.identity.get("frontend") or images.collection == "drawn":
        return None
    for witness in witnesses_of(names_of(network.name, network.identity.get("source") or "")):
        if witness.images is None and witness.speaks_of(CONTROL, str(preprocessing)):
            return witness.values[CONTROL]
    return None


# The gate ------------------------------------------------------------------------------------------------------------


def disagreements(record: Mapping[str, Any]) -> list[str]:
    """Return warnings on values of a record that lie more than a point from a witness's, with the likely causes.

    Beyond the interval of what the whole set gives: of a sample that of `sampled`, else the population's; a witness on
    a sample has an interval, too. Parts of sets, drawn images and networks behind a front end have no witness.
    """
    provenance = record["provenance"]
    if provenance.get("frontend") or "drawn" in provenance["collection"]:
        return []
    values = _values(record)
    preprocessing = preprocessing_of(provenance)
    warnings: list[str] = []
    names = names_of(record["model"], provenance.get("source") or "")
    for witness in witnesses_of(names):
        shared = [metric for metric in values if witness.speaks_of(metric, preprocessing)]
        counts = Counter(map(image_set_of, shared))
        off: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for metric in shared:
            image_set = image_set_of(metric)
            compared = counts[image_set] if metric in record["sampled"] else 1
            if (gap := distance(values[metric], witness, metric, compared)) > POINT:
                off[image_set][metric] = gap
        if off:
            everything = len(off) == len(set(map(image_set_of, shared)))
            causes = _causes(values, witness, off, everything)
            lookalike = likely_checkpoint(values, preprocessing)
            if lookalike is not None and lookalike.model not in names:
                causes.insert(0, f"these are the figures that {lookalike.source} gives for {lookalike.model}")
            warnings.append(_warning(values, witness, off, causes))
    return warnings


def _values(record: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return the values of whole sets and samples, with the interval of what the whole sets give."""
    values: dict[str, Estimate] = {}
    for metric, value in record["metrics"].items():
        sample = record["sampled"].get(metric)
        bounds = (sample["low"], sample["high"]) if sample else record["intervals"].get(metric, (value, value))
        if value is not None and metric not in record["partial"] and None not in bounds:
            values[metric] = Estimate(value, *bounds)
    return values


def distance(estimate: Estimate, witness: Witness, metric: str, compared: int = 1) -> float:
    """Return by how many points a value's interval lies beyond a witness's; negative where they overlap.

    Args:
        estimate: with its 95 % interval.
        witness: one that has the metric.
        metric: its name.
        compared: how many independent values are; the interval is widened so that 5 % of their families lie beyond it
            by chance (Bonferroni).
    """
    assert estimate.value is not None and estimate.low is not None and estimate.high is not None
    wider = NormalDist().inv_cdf(1 - 0.025 / compared) / Z95
    gap = estimate.value - witness.values[metric]
    reach = wider * (estimate.value - estimate.low if gap > 0 else estimate.high - estimate.value)
    return abs(gap) - reach - Z95 * witness.error(metric)


def _causes(
    values: Mapping[str, Estimate], witness: Witness, off: Mapping[str, Mapping[str, float]], everything: bool
) -> list[str]:
    """Return the likely causes; where several sets are compared and all are off, they are the network's."""
    causes: list[str] = []
    for image_set, gaps in off.items():
        cause = CAUSES.get(image_set, NETWORK_CAUSES)
        gains = {metric: (values[metric].value or 0.0) - witness.values[metric] for metric in gaps}
        if min(values[metric].value or 0.0 for metric in gaps) < CHANCE:
            cause = CHANCE_CAUSES
        elif (everything and len(off) > 1) or (cause == SUBSET_CAUSES and max(gains.values()) > 0):
            cause = NETWORK_CAUSES
        elif cause != NETWORK_CAUSES:
            cause = f"on {image_set} {cause}"
        causes.append(cause)
    if everything and CHANCE_CAUSES not in causes:
        causes.append(NETWORK_CAUSES)
    return list(dict.fromkeys(causes))


def _warning(
    values: Mapping[str, Estimate], witness: Witness, off: Mapping[str, Mapping[str, float]], causes: Iterable[str]
) -> str:
    """Return one line: the value of each set that is farthest off, how many more, and the likely causes."""
    parts: list[str] = []
    for gaps in off.values():
        worst = max(gaps, key=lambda metric: gaps[metric])
        estimate = values[worst]
        more = f" and {len(gaps) - 1} more" if len(gaps) > 1 else ""
        interval = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if estimate.low != estimate.high else ""
        parts.append(f"{worst} is {estimate.value:.2f}{interval}, there {witness.values[worst]:.2f}{more}")
    return (
        f"{witness.source} gives other values for {witness.model} with the same preprocessing: {'; '.join(parts)}; "
        f"likely causes: {'; '.join(causes)}"
    )


def likely_checkpoint(values: Mapping[str, Estimate], preprocessing: str) -> Witness | None:
    """Return a witness of the one network that has these values; None where none or several have."""
    fitting: dict[str, Witness] = {}
    for witness in witnesses():
        shared = [metric for metric in values if witness.speaks_of(metric, preprocessing)]
        if len(shared) >= FEWEST and fit([values[metric] for metric in shared], witness, shared) < FITS:
            fitting[witness.model] = witness
    return next(iter(fitting.values())) if len(fitting) == 1 else None


def fit(estimates: Iterable[Estimate], witness: Witness, metrics: Iterable[str]) -> float:
    """Return the root mean square of differences from a witness, in standard errors."""
    squares: list[float] = []
    for estimate, metric in zip(estimates, metrics, strict=True):
        difference = in_standard_errors(estimate, witness, metric)
        squares.append(math.inf if difference is None else difference**2)
    return math.sqrt(sum(squares) / len(squares))


def in_standard_errors(estimate: Estimate, witness: Witness, metric: str) -> float | None:
    """Return value minus a witness's value in standard errors of both; None where neither has one."""
    if estimate.value is None:
        return None
    width = 0.0 if estimate.low is None or estimate.high is None else estimate.high - estimate.low
    error = math.hypot(width / (2 * Z95), witness.error(metric))
    return (estimate.value - witness.values[metric]) / error if error else None

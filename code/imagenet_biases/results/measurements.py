"""What was measured of each network, metrics and what is derived from them, with half-samples: read from records.

A record on samples of its image sets also says what the whole sets would give (`Projection`): a value's 95 % interval,
which has no width where the whole sets were measured.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from imagenet_biases.estimate import Estimate
from imagenet_biases.measures.split_half import SPLITS, T95, difference, from_text, standard_error
from imagenet_biases.study import (
    AS_IN_STUDY,
    CLEAN_SET,
    CORRECTED,
    DERIVED,
    IMAGE_FOLDERS,
    MODEL_VS_HUMAN,
    definition_of,
    derive,
    mean,
)


@dataclass(frozen=True)
class Projection(Estimate):
    """A value with the 95 % interval of what its whole image sets would give (PROTOCOLS.md, 'Samples').

    Attributes:
        share: of the images, 0...1, that the value rests on: the smallest of its image sets'.
    """

    share: float = 1.0

    def narrowed(self, factor: float) -> "Projection":
        """Return it with an interval `factor` times as wide."""
        if self.value is None or self.low is None or self.high is None:
            return self
        low, high = self.value - factor * (self.value - self.low), self.value + factor * (self.high - self.value)
        return Projection(self.value, low, high, share=self.share)


def whole(value: float) -> Projection:
    """Return the projection of a value that was measured on whole image sets."""
    return Projection(value, value, value)


@dataclass(frozen=True)
class MeasurementKey:
    """One network and how it was measured; `network` is the hash of the weights and the architecture."""

    model: str
    network: str | None
    collection: str
    preprocessing: str = AS_IN_STUDY["view"]
    precision: str = AS_IN_STUDY["precision"]
    seed: int = 0
    frontend: str = ""

    @property
    def as_in_study(self) -> bool:
        """Whether it was measured as the study does."""
        settings = {
            "view": self.preprocessing,
            "precision": self.precision,
            "seed": self.seed,
            "frontend": self.frontend,
        }
        return settings == AS_IN_STUDY

    @property
    def intervention(self) -> tuple[str, str | None, str]:
        """What a measurement of the weights alone, which needs no images, shares with those on images."""
        return self.model, self.network, self.frontend


@dataclass
class Measurement:
    """Values by metric, derived ones included.

    Attributes:
        projections: of the values.
        halves: half-samples [SPLITS, 2] by metric, NaN where there are none.
        images: {image set: fingerprint}.
    """

    values: dict[str, float] = field(default_factory=dict[str, float])
    projections: dict[str, Projection] = field(default_factory=dict[str, Projection])
    halves: dict[str, Float[np.ndarray, "S 2"]] = field(default_factory=dict[str, Any])
    images: dict[str, str] = field(default_factory=dict[str, str])
    category: str = ""

    def _shares(self, name: str) -> list[float | None]:
        """Return the shares of the images that what a value is derived from rests on."""
        parts = map(self.projections.get, metrics_of(name))
        return [None if part is None else part.share for part in parts]

    def minus(self, other: "Measurement", name: str) -> Estimate | None:
        """Return the difference to another measurement's value, paired over the images.

        None where either has no value; without an interval where the two rest on different image sets. Samples of
        different size are paired, too: the smaller is part of the larger, and its halves of the larger's halves.
        """
        if name not in self.values or name not in other.values:
            return None
        common = self.images.keys() & other.images.keys()
        same_images = all(self.images[image_set] == other.images[image_set] for image_set in common)
        same_images = same_images and self._shares(name) == other._shares(name)  # samples of one size are the same
        halves = self.halves[name] if same_images else np.full((SPLITS, 2), np.nan)
        return difference(self.values[name], other.values[name], halves, other.halves[name])


def metrics_of(name: str) -> list[str]:
    """Return the metrics that a score or bias is derived from; a metric itself."""
    return [metric for part in DERIVED[name].parts for metric in metrics_of(part)] if name in DERIVED else [name]


def measurements(records: Iterable[Mapping[str, Any]]) -> dict[MeasurementKey, Measurement]:
    """Return the measurements of records.

    Where two hold a metric, the one with the larger share of the images counts, of equal shares the newest. Values of
    incomplete image sets do not count.
    """
    by_key: dict[MeasurementKey, Measurement] = {}
    for record in sorted(records, key=lambda record: record["provenance"]["time"]):
        _add(record, by_key.setdefault(_key(record), Measurement()))
    for key in list(by_key):
        if key.collection == "none":  # the weights alone: they belong to the measurements on images
            _share(key, by_key.pop(key), by_key)
    for measurement in by_key.values():
        for values in (measurement.values, measurement.halves):
            _derive(values)
        measurement.projections |= derived_projections(measurement.projections, measurement.halves)
    return by_key


def _key(record: Mapping[str, Any]) -> MeasurementKey:
    provenance = record["provenance"]
    return MeasurementKey(
        model=record["model"],
        network=provenance.get("network"),
        collection=provenance["collection"],
        preprocessing=provenance["view"],
        precision=provenance["precision"],
        seed=provenance["seed"],
        frontend=provenance.get("frontend") or "",
    )


def _add(record: Mapping[str, Any], measurement: Measurement) -> None:
    """Add what a record holds to the measurement that it belongs to."""
    provenance = record["provenance"]
    measurement.category = provenance.get("category", "")
    for name, images in provenance.get("image_sets", {}).items():
        measurement.images[name] = images["fingerprint"]
    for name, value in record["metrics"].items():
        if value is None or name in record.get("partial", {}):
            continue
        projection, before = projected(record, name, value), measurement.projections.get(name)
        if before is None or projection.share >= before.share:
            measurement.values[name], measurement.projections[name] = value, projection
            text = record.get("halves", {}).get(name)
            measurement.halves[name] = from_text(text) if text else np.full((SPLITS, 2), np.nan)


def projected(record: Mapping[str, Any], name: str, value: float) -> Projection:
    """Return what the whole image sets would give of a metric of a record."""
    sampled: dict[str, Any] = record.get("sampled") or {}
    sample = sampled.get(name)
    if sample is None:
        return whole(value)
    return Projection(value, sample["low"], sample["high"], share=sample["images"] / sample["of"])


def _share(key: MeasurementKey, weights: Measurement, by_key: Mapping[MeasurementKey, Measurement]) -> None:
    """Add a measurement of the weights alone to all measurements of the same network."""
    for candidate, measurement in by_key.items():
        if candidate.intervention == key.intervention:
            measurement.values = weights.values | measurement.values
            measurement.projections = weights.projections | measurement.projections
            measurement.halves = weights.halves | measurement.halves


def _derive(values: dict[str, Any]) -> None:
    """Add the study's scores and biases whose parts are there."""
    for raw, corrected in CORRECTED.items():
        if raw in values:
            values[corrected] = values[raw]
    for name in DERIVED:
        try:
            values[name] = derive(name, values)
        except (KeyError, ZeroDivisionError):
            continue


# What the whole image sets would give --------------------------------------------------------------------------------


def image_folder(metric: str) -> str:
    """Return the image folder (a key of study.IMAGE_FOLDERS) that a metric rests on."""
    _, _, name = metric.partition("/")
    if definition_of(metric).about.script == "eval_model_vs_human":
        return MODEL_VS_HUMAN
    return name if name in IMAGE_FOLDERS else CLEAN_SET


def derived_projections(
    projections: Mapping[str, Projection], halves: Mapping[str, Float[np.ndarray, "S 2"]] | None = None
) -> dict[str, Projection]:
    """Return the projections of the scores and biases whose parts are there.

    A score or bias that a script reports itself has that interval. Else a mean over image sets has the root of the
    summed squares of its parts' distances (within a set the distances are summed: the same images are easy under both
    parts, and the sum is the largest that their common variance can be), and a ratio the interval of its halves times
    the root of 1 - share.

    Args:
        projections: of metrics.
        halves: half-samples, also of the scores and biases, by name.
    """
    available = dict(projections)
    for raw, corrected in CORRECTED.items():
        if raw in available:
            available[corrected] = available[raw]
    derived: dict[str, Projection] = {}
    for name in DERIVED:
        projection = _derived_projection(name, available, halves or {})
        if projection is not None:
            derived[name] = available[name] = projection
    return derived


def _derived_projection(
    name: str, available: Mapping[str, Projection], halves: Mapping[str, Float[np.ndarray, "S 2"]]
) -> Projection | None:
    """Return the projection of a score or bias; None where a part is missing."""
    definition = DERIVED[name]
    parts = {part: available[part] for part in definition.parts if part in available}
    values = [part.value for part in parts.values() if part.value is not None]
    if len(values) < len(definition.parts):
        return None
    try:
        value = definition.combine(*values)
    except ZeroDivisionError:
        return None
    share = min(part.share for part in parts.values())
    reported = available.get(definition.reported)
    if share == 1:
        return whole(value)
    if reported is not None and reported.share == share:
        low, high = reported.low, reported.high
    elif definition.combine is mean:
        low, high = _mean_bounds(value, parts)
    else:
        low, high = _half_bounds(value, share, halves, name)
    return Projection(value, low, high, share=share)


Bounds = tuple[float | None, float | None]


def _mean_bounds(value: float, parts: Mapping[str, Projection]) -> Bounds:
    """Return the bounds of a mean of metrics of one or several image sets."""
    below: defaultdict[str, float] = defaultdict(float)
    above: defaultdict[str, float] = defaultdict(float)
    for name, part in parts.items():
        if part.value is None or part.low is None or part.high is None:
            return None, None
        below[image_folder(name)] += (part.value - part.low) / len(parts)
        above[image_folder(name)] += (part.high - part.value) / len(parts)
    return value - math.hypot(*below.values()), value + math.hypot(*above.values())


def _half_bounds(value: float, share: float, halves: Mapping[str, Float[np.ndarray, "S 2"]], name: str) -> Bounds:
    error = standard_error(halves[name]) if name in halves else math.nan
    reach = T95 * error * math.sqrt(1 - share)
    return (value - reach, value + reach) if math.isfinite(reach) else (None, None)

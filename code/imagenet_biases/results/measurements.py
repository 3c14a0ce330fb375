"""What was measured of each network, metrics and what is derived from them, with half-samples: read from records."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from imagenet_biases.estimate import Estimate
from imagenet_biases.measures.split_half import SPLITS, difference, from_text
from imagenet_biases.study import CORRECTED, DERIVED, derive


@dataclass(frozen=True)
class MeasurementKey:
    """One network and how it was measured; `network` is the hash of the weights and the architecture."""

    model: str
    network: str | None
    collection: str
    preprocessing: str = "study"
    precision: str = "fp32"
    seed: int = 0
    frontend: str = ""

    @property
    def as_in_study(self) -> bool:
        """Whether it was measured as the study does."""
        return (self.preprocessing, self.precision, self.seed, self.frontend) == ("study", "fp32", 0, "")

    @property
    def intervention(self) -> tuple[str, str | None, str]:
        """What a measurement of the weights alone, which needs no images, shares with those on images."""
        return self.model, self.network, self.frontend


@dataclass
class Measurement:
    """Values by metric, derived ones included.

    Attributes:
        halves: half-samples [SPLITS, 2] by metric, NaN where there are none.
        images: {image set: fingerprint}.
    """

    values: dict[str, float] = field(default_factory=dict[str, float])
    halves: dict[str, Float[np.ndarray, "S 2"]] = field(default_factory=dict[str, Any])
    images: dict[str, str] = field(default_factory=dict[str, str])
    category: str = ""

    def minus(self, other: "Measurement", name: str) -> Estimate | None:
        """Return the difference to another measurement's value, paired over the images.

        None where either has no value; without an interval where the two rest on different images.
        """
        if name not in self.values or name not in other.values:
            return None
        common = self.images.keys() & other.images.keys()
        same_images = all(self.images[image_set] == other.images[image_set] for image_set in common)
        halves = self.halves[name] if same_images else np.full((SPLITS, 2), np.nan)
        return difference(self.values[name], other.values[name], halves, other.halves[name])


def measurements(records: Iterable[Mapping[str, Any]]) -> dict[MeasurementKey, Measurement]:
    """Return the measurements of records; the newest record counts where two hold a metric, partial values do not."""
    by_key: dict[MeasurementKey, Measurement] = {}
    for record in sorted(records, key=lambda record: record["provenance"]["time"]):
        _add(record, by_key.setdefault(_key(record), Measurement()))
    for key in list(by_key):
        if key.collection == "none":  # the weights alone: they belong to the measurements on images
            _share(key, by_key.pop(key), by_key)
    for measurement in by_key.values():
        for values in (measurement.values, measurement.halves):
            _derive(values)
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
        if value is not None and name not in record.get("partial", {}):
            measurement.values[name] = value
            text = record.get("halves", {}).get(name)
            measurement.halves[name] = from_text(text) if text else np.full((SPLITS, 2), np.nan)


def _share(key: MeasurementKey, weights: Measurement, by_key: Mapping[MeasurementKey, Measurement]) -> None:
    """Add a measurement of the weights alone to all measurements of the same network."""
    for candidate, measurement in by_key.items():
        if candidate.intervention == key.intervention:
            measurement.values = weights.values | measurement.values
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

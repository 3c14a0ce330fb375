"""What was measured of a network, metrics and what is derived from them, with its half-samples: read from records."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from imagenet_biases.measures.split_half import SPLITS, difference, from_text
from imagenet_biases.study import CORRECTED, DERIVED, derive


@dataclass(frozen=True)
class Way:
    """One network and how it was measured."""

    model: str
    network: str | None  # hash of the weights and the architecture
    collection: str
    view: str = "study"
    precision: str = "fp32"
    seed: int = 0
    frontend: str = ""

    @property
    def usual(self):
        """Whether it is measured as the study does."""
        return (self.view, self.precision, self.seed, self.frontend) == ("study", "fp32", 0, "")


@dataclass
class Sample:
    """Values by metric (also derived ones) and their half-samples [SPLITS, 2], NaN where there are none."""

    values: dict = field(default_factory=dict)
    halves: dict = field(default_factory=dict)
    images: dict = field(default_factory=dict)  # {image set: fingerprint}
    category: str = ""

    def minus(self, other, name):
        """Return the difference to another sample's value as an Estimate, paired over the images.

        None where one of them has no value. There is no interval where the two rest on different images.
        """
        if name not in self.values or name not in other.values:
            return None
        common = self.images.keys() & other.images.keys()
        same = all(self.images[one] == other.images[one] for one in common)
        halves = self.halves[name] if same else np.full((SPLITS, 2), np.nan)
        return difference(self.values[name], other.values[name], halves, other.halves[name])


def samples(records):
    """Return {Way: Sample} of records, oldest first where two have the same metric; partial values are left out."""
    found = defaultdict(Sample)
    for record in sorted(records, key=lambda one: one["provenance"]["time"]):
        source = record["provenance"]
        way = Way(
            *(record["model"], source.get("network"), source["collection"], source["view"], source["precision"]),
            *(source["seed"], source.get("frontend") or ""),
        )
        one = found[way]
        one.category = source.get("category", "")
        one.images |= {name: images["fingerprint"] for name, images in source.get("image_sets", {}).items()}
        for name, value in record["metrics"].items():
            if value is not None and name not in record.get("partial", {}):
                one.values[name] = value
                text = record.get("halves", {}).get(name)
                one.halves[name] = from_text(text) if text else np.full((SPLITS, 2), np.nan)
    for way in [way for way in found if way.collection == "none"]:  # of the weights alone: they go with all images
        alone = found.pop(way)
        for other, one in found.items():
            if (other.model, other.network, other.frontend) == (way.model, way.network, way.frontend):
                one.values, one.halves = alone.values | one.values, alone.halves | one.halves
    for one in found.values():
        for part in (one.values, one.halves):
            part |= {corrected: part[raw] for raw, corrected in CORRECTED.items() if raw in part}
            for name in DERIVED:
                try:
                    part[name] = derive(name, part)
                except (KeyError, ZeroDivisionError):
                    continue
    return dict(found)

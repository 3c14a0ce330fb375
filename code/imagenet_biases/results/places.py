"""Where a network stands among the study's 48 published ones, and the range of places that a sample leaves open.

A place is 1 + the number of networks that are strictly better than the value: ties share the best place. Where neither
end is better (biases) the largest is first. A network's own published row does not count. The range goes over the
95 % interval of what the whole image sets would give; without one every place is open (PROTOCOLS.md, 'Samples').
"""

import csv
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from imagenet_biases.base.paths import PUBLISHED
from imagenet_biases.results.measurements import (
    Measurement,
    Projection,
    derived_projections,
    image_folder,
    metrics_of,
)
from imagenet_biases.study import BIASES, DERIVED, SCORES, STUDY_CATEGORIES, WITNESSED, about, definition_of, derive

FINE = {name: f"metric/criticalband/{name}_fine" for name in ("bw_norm", "cf_norm", "pns_norm")}
"""Step-wise channel -> the fine estimate that counts instead where places are to be narrowed."""
COUNTED = (*SCORES, *(FINE.get(bias, bias) for bias in BIASES))


class Standing(NamedTuple):
    """A value's place among other networks' values.

    Attributes:
        rank: 1...`of`, the best first; where neither end is better (biases), the largest first. Ties share the better.
        of: how many are ranked, the value itself included.
        percentile: per cent of the other values that it is ahead of, a tie counting half.
        better: 'higher', 'lower', or '' where the rank is by size only.
        best, worst: the range of places that the whole image sets may give.
    """

    rank: int
    of: int
    percentile: float
    better: str
    best: int
    worst: int

    @property
    def text(self) -> str:
        """The place with its range: '7/48', '7/48 (5 to 9)'."""
        place = f"{self.rank}/{self.of}"
        return place if self.best == self.worst else f"{place} ({self.best} to {self.worst})"


def standing(
    values: Iterable[float] | Float[np.ndarray, " n"], column: str, value: float | Projection | None
) -> Standing | None:
    """Return a value's standing among other networks' values [n] of a metric or derived column.

    NaN values do not count. A plain number is a value of whole image sets. None where the value, or every other, is
    missing.
    """
    projection = value if isinstance(value, Projection) else Projection(value, value, value)
    better = about(column).better
    sign = -1 if better == "lower" else 1
    others = _sorted(values, sign)
    if projection.value is None or np.isnan(projection.value) or not len(others):
        return None
    middle, low, high = _ends(projection, sign)
    of, ahead = len(others) + 1, _ahead(others, middle)
    level = len(others) - ahead - int(np.searchsorted(others, middle))
    percentile = 100 * (len(others) - ahead - level / 2) / len(others)
    return Standing(ahead + 1, of, percentile, better, _ahead(others, high) + 1, _ahead(others, low) + 1)


def _sorted(values: Iterable[float] | Float[np.ndarray, " n"], sign: int) -> Float[np.ndarray, " n"]:
    """Return the values that are there, the best last."""
    others = sign * np.asarray(values, float)
    return np.sort(others[~np.isnan(others)])


def _ends(projection: Projection, sign: int) -> tuple[float, float, float]:
    """Return value, worst and best bound, so that larger is better."""
    assert projection.value is not None
    if projection.low is None or projection.high is None:
        return sign * projection.value, -np.inf, np.inf
    bounds = sign * projection.value, sign * projection.low, sign * projection.high
    return bounds[0], min(bounds), max(bounds)


def _ahead(others: Float[np.ndarray, " n"], value: float) -> int:
    return len(others) - int(np.searchsorted(others, value, "right"))


@cache
def _published() -> dict[str, dict[str, float]]:
    """Return {model: {column: value}} of the study's networks, with scores and biases."""
    networks: dict[str, dict[str, float]] = {}
    with open(PUBLISHED, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["category"] not in STUDY_CATEGORIES:
                continue
            model = row["model"]
            del row["model"], row["category"], row["source"]
            values = {column: float(text) if text else np.nan for column, text in row.items()}
            values[WITNESSED] = np.nan  # stands in no file
            networks[model] = values | {name: derive(name, values) for name in DERIVED}
    return networks


def _others(model: str, name: str) -> Float[np.ndarray, " n"]:
    """Return the published values of the other networks; those of the step-wise channel for its fine estimate."""
    column = {fine: step for step, fine in FINE.items()}.get(name, name)
    return np.array([values.get(column, np.nan) for network, values in _published().items() if network != model])


def standings(
    model: str, projections: Mapping[str, Projection], names: Iterable[str] = (*SCORES, *BIASES)
) -> dict[str, Standing]:
    """Return a network's standing among the study's networks in those of `names` that have a projection.

    Args:
        model: its name; a published row of that name is left out.
        projections: as Measurement has them.
    """
    places: dict[str, Standing] = {}
    for name in names:
        place = standing(_others(model, name), name, projections.get(name))
        if place is not None:
            places[name] = place
    return places


def unsettled(
    model: str, projections: Mapping[str, Projection], names: Iterable[str] = COUNTED, places: int = 2
) -> list[str]:
    """Return which of `names` are not yet known to within so many places, up or down, beyond ties.

    Networks with the same value count as one place: to pass them, one step is enough. What has no projection is not
    known.
    """
    unknown: list[str] = []
    for name in names:
        projection = projections.get(name)
        if projection is None or projection.value is None:
            unknown.append(name)
            continue
        sign = -1 if about(name).better == "lower" else 1
        others = np.unique(_sorted(_others(model, name), sign))
        middle, low, high = _ends(projection, sign)
        if max(_ahead(others, low) - _ahead(others, middle), _ahead(others, middle) - _ahead(others, high)) > places:
            unknown.append(name)
    return unknown


def widths(
    model: str, measurement: Measurement, factors: Mapping[str, float], names: Iterable[str] = COUNTED
) -> dict[str, int]:
    """Return how many places the range of each of `names` would span if metrics' intervals were narrower.

    Args:
        factors: {metric: by what the distances of its bounds from the value are multiplied}; others stay as they are.
            Scores and biases are derived anew.
        names: of scores, biases and metrics; what has no value is left out.
    """
    narrowed = {name: part.narrowed(factors.get(name, 1)) for name, part in measurement.projections.items()}
    narrowed |= derived_projections(narrowed, measurement.halves)
    return {name: place.worst - place.best for name, place in standings(model, narrowed, names).items()}


def missing(name: str, values: Iterable[str]) -> list[tuple[str, str]]:
    """Return what must be measured before a score or bias has a value: pairs (benchmark, image folder).

    Args:
        name: of a score, a bias or a metric.
        values: names of the metrics that are there. `--FOLDER DIR` brings the images of a folder.
    """
    there = set(values)
    pairs: dict[tuple[str, str], None] = {}
    for part in metrics_of(name):
        if part not in there and part.removesuffix("/corrected") not in there:
            pairs[
                definition_of(part.removesuffix("/corrected")).about.script.removeprefix("eval_"), image_folder(part)
            ] = None
    return list(pairs)

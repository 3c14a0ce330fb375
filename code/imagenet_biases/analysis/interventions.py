"""Does a score move when a bias is moved? The same network with and without a front end, or trainings of two kinds.

A correlation over networks that others trained cannot tell what a change of one bias would do; this can, for the change
that was made. Differences of one network with itself are paired over the images (measures/split_half.py). Between
trained networks the trainings are the sample, not the images: one training of each kind says nothing about the kind.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.results.measurements import measurements
from imagenet_biases.study import BIASES, CONTROL, FURTHER_BIASES, SCORES

COLUMNS = ("intervention", "model", "measure", "before", "after", "difference", "low", "high", "n")
MEASURES = (*BIASES, *FURTHER_BIASES, *SCORES, CONTROL)
FEWEST_SEEDS = 3

Records = Iterable[Mapping[str, Any]]


def frontends(records: Records) -> pd.DataFrame:
    """Return a table with COLUMNS of what every front end did to every network that was also measured without it.

    `n` is 1: one network, its difference with a 95 % interval over images.

    Raises:
        UserError: no network was measured both with and without a front end.
    """
    by_key, rows = measurements(records), []
    plain = {}  # the hash of a network and its front end differs from the network's
    for key, measurement in by_key.items():
        if not key.frontend:
            plain.setdefault(replace(key, network=None), measurement)
    for key, after in by_key.items():
        before = plain.get(replace(key, network=None, frontend=""))
        if not key.frontend or before is None:
            continue
        for measure in MEASURES:
            if (gap := after.minus(before, measure)) is not None:
                values = (before.values[measure], after.values[measure], gap.value, gap.low, gap.high)
                rows.append((key.frontend, key.model, measure, *values, 1))
    if not rows:
        raise UserError(
            "no network was measured both plain and behind a front end: measure it again with --frontend, for example "
            "--frontend low-pass:0.3"
        )
    return _table(rows)


def trainings(records: Records, treated: Sequence[str], untreated: Sequence[str], name: str) -> pd.DataFrame:
    """Return a table with COLUMNS of the means of networks trained in two ways.

    With FEWEST_SEEDS of each or more, an interval by Welch's t-test over trainings; with fewer none, and `n`, the
    smaller number of trainings, says so.

    Args:
        treated, untreated: names of networks.
        name: of the difference between them.

    Raises:
        UserError: a network was not measured.
    """
    networks = {key.model: measurement for key, measurement in measurements(records).items() if key.as_in_study}
    if missing := [model for model in (*treated, *untreated) if model not in networks]:
        raise UserError(f"no record of {listed_briefly(missing)}: measure it first, or give --results")

    def values_of(models: Sequence[str], measure: str) -> np.ndarray:
        values = [networks[model].values for model in models]
        return np.array([of_network[measure] for of_network in values if measure in of_network])

    rows = []
    for measure in MEASURES:
        after, before = values_of(treated, measure), values_of(untreated, measure)
        if len(after) and len(before):
            gap, number = after.mean() - before.mean(), min(len(after), len(before))
            low, high = _welch(after, before) if number >= FEWEST_SEEDS else (np.nan, np.nan)
            rows.append((name, "", measure, before.mean(), after.mean(), gap, low, high, number))
    return _table(rows)


def _welch(treated: np.ndarray, untreated: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the difference of means (Welch 1947, Biometrika 34)."""
    import scipy.stats  # here: it takes half a second, which other figures need not wait for

    if not np.ptp(treated) and not np.ptp(untreated):
        gap = treated.mean() - untreated.mean()
        return gap, gap
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns where all trainings of one kind agree
        low, high = scipy.stats.ttest_ind(treated, untreated, equal_var=False).confidence_interval(0.95)
    return low, high


def _table(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS).astype({"low": float, "high": float})

"""Does a score move when a bias is moved? The same network with and without a front end, or trainings of two kinds.

A correlation over networks that others trained cannot tell what a change of one bias would do; this can, for the change
that was made. Differences of one network with itself are paired over the images (measures/split_half.py). Between
trained networks the trainings are the sample, not the images: one of each kind says nothing about the kind.
"""

import warnings

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from imagenet_biases.base.errors import UserError, some
from imagenet_biases.results.measurements import measurements
from imagenet_biases.study import BIASES, CONTROL, FURTHER_BIASES, SCORES

COLUMNS = ("intervention", "model", "measure", "before", "after", "difference", "low", "high", "n")
MEASURES = (*BIASES, *FURTHER_BIASES, *SCORES, CONTROL)
FEWEST_SEEDS = 3


def frontends(records):
    """Return a table with COLUMNS of what every front end did to every network that was also measured without it.

    `n` is 1: one network, its difference with a 95 % interval over images. Raises UserError where there is none.
    """
    found, rows = measurements(records), []
    for way, after in found.items():
        plain = next(
            (
                one
                for other, one in found.items()
                if not other.frontend and (other.model, other.collection) == (way.model, way.collection)
                and (other.preprocessing, other.precision, other.seed) == (way.preprocessing, way.precision, way.seed)
            ),
            None,
        )  # fmt: skip
        if way.frontend and plain:
            for measure in MEASURES:
                if (gap := after.minus(plain, measure)) is not None:
                    values = (plain.values[measure], after.values[measure], gap.value, gap.low, gap.high)
                    rows.append((way.frontend, way.model, measure, *values, 1))
    if not rows:
        raise UserError(
            "no network was measured both plain and behind a front end: measure it again with --frontend, for example "
            "--frontend low-pass:0.3"
        )
    return _table(rows)


def trainings(records, treated, untreated, name):
    """Return a table with COLUMNS of the means of networks trained in two ways, `name` the difference between them.

    treated, untreated: names of networks. With FEWEST_SEEDS of each or more, an interval by Welch's t-test over
    trainings; with fewer none, and `n`, the smaller number of trainings, says so. Raises UserError for a network that
    was not measured.
    """
    found = {way.model: one for way, one in measurements(records).items() if way.as_in_study}
    if missing := [one for one in (*treated, *untreated) if one not in found]:
        raise UserError(f"no record of {some(missing)}: measure it first, or give --results")
    rows = []
    for measure in MEASURES:
        after, before = (
            np.array([found[one].values[measure] for one in names if measure in found[one].values])
            for names in (treated, untreated)
        )
        if len(after) and len(before):
            gap, number = after.mean() - before.mean(), min(len(after), len(before))
            low, high = _welch(after, before) if number >= FEWEST_SEEDS else (np.nan, np.nan)
            rows.append((name, "", measure, before.mean(), after.mean(), gap, low, high, number))
    return _table(rows)


def _welch(treated: np.ndarray, untreated: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the difference of means (Welch 1947, Biometrika 34)."""
    if not np.ptp(treated) and not np.ptp(untreated):
        gap = treated.mean() - untreated.mean()
        return gap, gap
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns where all trainings of one kind agree
        low, high = ttest_ind(treated, untreated, equal_var=False).confidence_interval(0.95)
    return low, high


def _table(rows):
    return pd.DataFrame(rows, columns=COLUMNS).astype({"low": float, "high": float})

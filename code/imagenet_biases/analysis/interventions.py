"""Does a score move when a bias is moved? The same network with and without a front end, or trainings of two kinds.

A correlation over networks that others trained cannot tell what a change of one bias would do; this can, for the change
that was made. Differences of one network with itself are paired over the images (measures/split_half.py). Between
trained networks the trainings are the sample, not the images: one of each kind says nothing about the kind.
"""

import numpy as np
import pandas as pd
from scipy.stats import t as student

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.results.measurements import samples
from imagenet_biases.study import BIASES, CONTROL, FURTHER_BIASES, SCORES

COLUMNS = ("intervention", "model", "measure", "before", "after", "difference", "low", "high", "n")
MEASURES = (*BIASES, *FURTHER_BIASES, *SCORES, CONTROL)
FEWEST_SEEDS = 3


def frontends(records):
    """Return a table with COLUMNS of what every front end did to every network that was also measured without it.

    `n` is 1: one network, its difference with a 95 % interval over images. Raises UserError where there is none.
    """
    found, rows = samples(records), []
    for way, after in found.items():
        plain = next(
            (
                one
                for other, one in found.items()
                if not other.frontend and (other.model, other.collection) == (way.model, way.collection)
                and (other.view, other.precision, other.seed) == (way.view, way.precision, way.seed)
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
    found = {way.model: one for way, one in samples(records).items() if way.usual}
    if missing := [one for one in (*treated, *untreated) if one not in found]:
        raise UserError(f"no record of {listed_briefly(missing)}: measure it first, or give --results")
    rows = []
    for measure in MEASURES:
        after, before = (
            np.array([found[one].values[measure] for one in names if measure in found[one].values])
            for names in (treated, untreated)
        )
        if len(after) and len(before):
            gap, number = after.mean() - before.mean(), min(len(after), len(before))
            reach = _welch(after, before) if number >= FEWEST_SEEDS else np.nan
            rows.append((name, "", measure, before.mean(), after.mean(), gap, gap - reach, gap + reach, number))
    return _table(rows)


def _welch(one, other):
    """Half the length of the 95 % interval of a difference of means (Welch 1947, Biometrika 34)."""
    parts = [np.var(values, ddof=1) / len(values) for values in (one, other)]
    total = sum(parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True))
    return student.ppf(0.975, freedom) * np.sqrt(total)


def _table(rows):
    return pd.DataFrame(rows, columns=COLUMNS).astype({"low": float, "high": float})

"""How reliable the measures are as measurements of networks: over images, between seeds, between views.

A bias that would order the networks otherwise on other images, with other noise or in another view cannot go with a
score any closer than it goes with itself. Published rows are numbers without responses: nothing here is known of them.
"""

from itertools import product

import numpy as np
import pandas as pd

from imagenet_biases.analysis.statistics import FEWEST, rank_correlations
from imagenet_biases.base.errors import UserError
from imagenet_biases.measures.split_half import SPLITS
from imagenet_biases.results.measurements import measurements
from imagenet_biases.study import BIASES, CONTROL, FURTHER_BIASES, SCORES

COLUMNS = ("measure", "score", "method", "estimate", "low", "high", "networks")
MEASURES = (*BIASES, *FURTHER_BIASES, *SCORES, CONTROL)
SPLIT_HALF, SEEDS, VIEWS = "split-half", "between seeds", "between views"
RAW, CORRECTED = "spearman", "spearman corrected for attenuation"


def reliability(records, resamples=500, seed=0):
    """Return a table with COLUMNS of every measure that at least FEWEST networks have.

    - `split-half`: Spearman's correlation over networks between the halves of the images, mean over the splits, for
      the whole number of images (Spearman 1910 and Brown 1910: 2 r / (1 + r)).
    - `between seeds`, `between views`: Spearman's correlation over networks of the measure with itself, under the
      smallest and the next seed, and in the study's and the networks' own view.
    - `spearman`, `spearman corrected for attenuation`: of a bias with a score over the same networks, and divided by
      the root of the product of their split-half reliabilities (Spearman 1904), at most 1 in size.

    Intervals: networks resampled. Raises UserError where no measure has enough networks with half-samples.
    """
    found = measurements(records)
    usual = [one for way, one in found.items() if way.as_in_study]
    random, rows = np.random.default_rng(seed), []

    def add(bias, score, method, values, statistic):
        """Add a row from values [networks, ...] whose correlations [..., m, m] the statistic turns into numbers."""
        if len(values) < FEWEST:
            return
        table, number = np.reshape(values, (len(values), -1)).T, len(values)
        weights = np.vstack([np.ones(number), random.multinomial(number, np.full(number, 1 / number), resamples)])
        with np.errstate(invalid="ignore", divide="ignore"):
            estimate, *others = statistic(rank_correlations(table, weights))
        others = [one for one in others if np.isfinite(one)]
        low, high = np.quantile(others, (0.025, 0.975)) if len(others) > 0.9 * resamples else (np.nan, np.nan)
        rows.append((bias, score, method, estimate, low, high, number))

    for measure in MEASURES:
        add(measure, "", SPLIT_HALF, [one.halves[measure] for one in usual if _known(one, measure)], _split_half)
        for method, key in ((SEEDS, "seed"), (VIEWS, "preprocessing")):
            add(measure, "", method, _pairs(found, measure, key), _spearman)
    for pair in product((*BIASES, *FURTHER_BIASES), SCORES):
        both = [one for one in usual if all(_known(one, measure) for measure in pair)]
        add(*pair, RAW, [[one.values[measure] for measure in pair] for one in both], _spearman)
        together = [np.concatenate([[one.values[m], *one.halves[m].ravel()] for m in pair]) for one in both]
        add(*pair, CORRECTED, together, _disattenuated)
    if not rows:
        raise UserError(
            f"no measure has half-samples of {FEWEST} networks: measure them first (published rows have no responses, "
            f"records of earlier editions no half-samples)"
        )
    return pd.DataFrame(rows, columns=COLUMNS).round(5)


def _known(one, measure):
    return measure in one.values and np.isfinite(one.halves.get(measure, np.nan)).all()


def _pairs(found, measure, key):
    """Return [(value, value)] of the networks that were measured in two ways which differ in `key` only."""
    by_network = {}
    for way, one in found.items():
        rest = tuple(value for name, value in vars(way).items() if name != key)
        if measure in one.values:
            by_network.setdefault(rest, {})[getattr(way, key)] = one.values[measure]
    first_last = (sorted(ways.items()) for ways in by_network.values() if len(ways) > 1)
    return [(ways[0][1], ways[1][1]) for ways in first_last]


def _spearman(correlations):
    """Correlation [...] of two measures, from correlations [..., 2, 2]."""
    return correlations[..., 0, 1]


def _split_half(correlations, first=0):
    """Reliability [...] of the halves that are variables first, first + 1, ... of correlations [..., m, m].

    A mean correlation below 0 tells no two networks apart: 0.
    """
    places = first + 2 * np.arange(SPLITS)
    r = np.maximum(correlations[..., places, places + 1].mean(-1), 0)
    return 2 * r / (1 + r)


def _disattenuated(correlations):
    """Corrected correlation [...] of two measures, each followed by its halves; NaN where one is not reliable."""
    second = 1 + 2 * SPLITS
    scale = np.sqrt(_split_half(correlations, 1) * _split_half(correlations, second + 1))
    return np.clip(np.where(scale > 0, correlations[..., 0, second] / scale, np.nan), -1, 1)

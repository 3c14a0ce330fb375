"""How reliable the measures are as measurements of networks: over images, between seeds, between preprocessings.

A bias that would order the networks differently on other images, with other noise or under other preprocessing cannot
correlate with a score more closely than with itself. Published rows are numbers without responses: their reliability
is unknown. Values on samples of the images are less reliable than those of the whole sets: what the whole sets would
give stands beside their correlations.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num

from imagenet_biases.analysis.statistics import FEWEST, WITHIN, corrected_rank_correlations, rank_correlations
from imagenet_biases.base.errors import UserError
from imagenet_biases.measures.split_half import SPLITS
from imagenet_biases.results.measurements import Measurement, MeasurementKey, measurements
from imagenet_biases.study import BIASES, CONTROL, FURTHER_BIASES, SCORES

COLUMNS = ("measure", "score", "method", "estimate", "low", "high", "networks")
MEASURES = (*BIASES, *FURTHER_BIASES, *SCORES, CONTROL)
SPLIT_HALF, SEEDS, VIEWS = "split-half", "between seeds", "between views"
RAW, CORRECTED = "spearman", "spearman corrected for attenuation"
SAMPLED = "corrected for sampling"
CORRECTIONS = ("corrected", "corrected_low", "corrected_high")

Correlations = Float[np.ndarray, "... m m"]


def reliability(records: Iterable[Mapping[str, Any]], resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """Return a table with COLUMNS of every measure that at least FEWEST networks have.

    - `split-half`: Spearman's correlation over networks between the halves of the images, mean over the splits, for
      the whole number of images (Spearman 1910 and Brown 1910: 2 r / (1 + r)).
    - `between seeds`, `between views`: Spearman's correlation over networks of the measure with itself, under the
      smallest and the next seed, and under the study's and the networks' own preprocessing.
    - `spearman`, `spearman corrected for attenuation`: of a bias with a score over the same networks, and divided by
      the root of the product of their split-half reliabilities (Spearman 1904), at most 1 in size.
    - `spearman within categories`, and both Spearman's with ` corrected for sampling`, where values rest on samples:
      what the whole image sets would give (statistics.corrected_rank_correlations).

    Intervals: networks resampled, within categories inside each.

    Raises:
        UserError: no measure has half-samples of enough networks.
    """
    by_key = measurements(records)
    of_study = [measurement for key, measurement in by_key.items() if key.as_in_study]
    random, rows = np.random.default_rng(seed), []

    def add(bias: str, score: str, method: str, values: list, statistic: Callable[[Correlations], Any]) -> None:
        """Add a row from values [networks, ...] whose correlations the statistic turns into numbers."""
        if len(values) < FEWEST:
            return
        table, number = np.reshape(values, (len(values), -1)).T, len(values)
        weights = np.vstack([np.ones(number), random.multinomial(number, np.full(number, 1 / number), resamples)])
        with np.errstate(invalid="ignore", divide="ignore"):
            correlations = statistic(rank_correlations(table, weights))
        rows.append((bias, score, method, *_with_interval(correlations), number))

    for measure in MEASURES:
        halved = [measurement.halves[measure] for measurement in _with_halves(of_study, measure)]
        add(measure, "", SPLIT_HALF, halved, _split_half)
        for method, key in ((SEEDS, "seed"), (VIEWS, "preprocessing")):
            add(measure, "", method, _pairs(by_key, measure, key), _spearman)
    for bias, score in product((*BIASES, *FURTHER_BIASES), SCORES):
        values, with_halves, complete = [], [], _with_halves(of_study, bias, score)
        for measurement in complete:
            pair = [measurement.values[bias], measurement.values[score]]
            x, y = (measurement.halves[measure].ravel() for measure in (bias, score))
            values.append(pair)
            with_halves.append(np.concatenate([pair[:1], x, pair[1:], y]))
        add(bias, score, RAW, values, _spearman)
        add(bias, score, CORRECTED, with_halves, _disattenuated)
        for method, *numbers in _of_samples(complete, (bias, score), resamples, random):
            rows.append((bias, score, method, *numbers, len(complete)))
    if not rows:
        raise UserError(
            f"no measure has half-samples of {FEWEST} networks: measure them first (published rows have no responses, "
            f"records of earlier editions no half-samples)"
        )
    return pd.DataFrame(rows, columns=COLUMNS).round(5)


def sampling_corrections(
    records: Iterable[Mapping[str, Any]], names: Collection[str], resamples: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Return the columns CORRECTIONS for a table of statistics.statistics: what the whole image sets would give.

    For Spearman's correlations over all networks and within categories, with nothing excluded, of pairs of which some
    values rest on samples.

    Args:
        records: of the networks measured here.
        names: of the networks in the statistics.
        resamples: of networks, for the interval.
        seed: of the resamples.
    """
    by_key = measurements(records)
    of_study = [measurement for key, measurement in by_key.items() if key.as_in_study and key.model in names]
    random, rows = np.random.default_rng(seed), []
    for bias, score in product((*BIASES, *FURTHER_BIASES), SCORES):
        complete = _with_halves(of_study, bias, score)
        for method, *numbers in _of_samples(complete, (bias, score), resamples, random):
            if method.endswith(SAMPLED):
                rows.append((bias, score, method.removesuffix(f" {SAMPLED}"), "none", len(complete), *numbers))
    return pd.DataFrame(rows, columns=["bias", "score", "method", "excluded", "networks", *CORRECTIONS]).round(5)


def _with_halves(candidates: Iterable[Measurement], *measures: str) -> list[Measurement]:
    """Return those that have all measures, with half-samples."""
    complete = []
    for measurement in candidates:
        values, halves = measurement.values, measurement.halves
        if all(name in values and np.isfinite(halves.get(name, np.nan)).all() for name in measures):
            complete.append(measurement)
    return complete


def _of_samples(
    networks: list[Measurement], pair: tuple[str, str], resamples: int, random: np.random.Generator
) -> Iterator[tuple[str, float, float, float]]:
    """Yield (method, estimate, low, high) of the correlations of two measures, if any value rests on a sample."""
    shares = np.array([[network.projections[name].share for network in networks] for name in pair])
    if len(networks) < FEWEST or (shares == 1).all():
        return
    values = np.array([[network.values[name] for network in networks] for name in pair])
    halves = np.array([[network.halves[name] for network in networks] for name in pair])
    gaps = halves[..., 0] - halves[..., 1]
    categories = np.unique([network.category for network in networks], return_inverse=True)[1]
    for name, groups in ((RAW, None), (WITHIN, categories)):
        weights = _resampled(np.zeros_like(categories) if groups is None else groups, resamples, random)
        if groups is not None:
            if len(networks) - groups.max() - 1 < FEWEST:
                return
            yield name, *_with_interval(rank_correlations(values, weights, groups)[:, 0, 1])
        corrected = corrected_rank_correlations(values, gaps, shares, weights, groups)
        yield f"{name} {SAMPLED}", *_with_interval(corrected[:, 0, 1])


def _resampled(groups: Int[np.ndarray, " n"], resamples: int, random: np.random.Generator) -> Num[np.ndarray, "r n"]:
    """Return how often each network counts: once, then resampled within groups."""
    weights = np.ones((1 + resamples, len(groups)))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        weights[1:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    return weights


def _with_interval(correlations: Float[np.ndarray, " r"]) -> tuple[float, float, float]:
    """Return the first number and the central 95 % of the others; no interval if they are missing too often."""
    estimate, *resampled = correlations
    finite = [value for value in resampled if np.isfinite(value)]
    low, high = np.quantile(finite, (0.025, 0.975)) if len(finite) > 0.9 * len(resampled) else (np.nan, np.nan)
    return float(estimate), float(low), float(high)


def _pairs(by_key: Mapping[MeasurementKey, Measurement], measure: str, key: str) -> list[tuple[float, float]]:
    """Return [(value, value)] of the networks that were measured in two ways which differ in `key` only."""
    groups: dict[tuple, dict[Any, float]] = {}
    for measured, measurement in by_key.items():
        fixed = tuple(value for name, value in vars(measured).items() if name != key)
        if measure in measurement.values:
            groups.setdefault(fixed, {})[getattr(measured, key)] = measurement.values[measure]
    pairs = []
    for group in groups.values():
        if len(group) > 1:
            (_, first), (_, second), *_ = sorted(group.items())
            pairs.append((first, second))
    return pairs


def _spearman(correlations: Float[np.ndarray, "... 2 2"]) -> Float[np.ndarray, "..."]:
    """Return the correlation of two measures."""
    return correlations[..., 0, 1]


def _split_half(correlations: Correlations, first: int = 0) -> Float[np.ndarray, "..."]:
    """Return the reliability from the halves that are variables first, first + 1, ...

    A mean correlation below 0 does not tell any networks apart: 0.
    """
    places = first + 2 * np.arange(SPLITS)
    r = np.maximum(correlations[..., places, places + 1].mean(-1), 0)
    return 2 * r / (1 + r)


def _disattenuated(correlations: Correlations) -> Float[np.ndarray, "..."]:
    """Return the corrected correlation of two measures, each followed by its halves; NaN where one is unreliable."""
    second = 1 + 2 * SPLITS
    scale = np.sqrt(_split_half(correlations, 1) * _split_half(correlations, second + 1))
    return np.clip(np.where(scale > 0, correlations[..., 0, second] / scale, np.nan), -1, 1)

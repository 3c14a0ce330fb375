"""Do biases explain generalization? Associations between each bias and each score over networks, with uncertainty.

`statistics(rows)` returns one tidy table with the columns COLUMNS. The unit of analysis is the network: intervals come
from resampling networks (percentile bootstrap, Efron & Tibshirani 1993, ch. 13), p-values from permuting one variable
among them, and Holm's correction (1979) runs over all pairs of one method and one exclusion. Everything is
deterministic in `seed`. Networks that lack a value of a pair are left out of that pair; `networks` counts the others.
A resample is a count for each network, which makes resampled rank correlations matrix products: a third of the time of
scipy.stats.bootstrap and permutation_test, with which the tests compare them.

Networks of one category were often made by one group with one recipe, so they are not independent draws: the intervals
are optimistic, which is why every association is also given without each category in turn.
"""

import functools
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logit
from scipy.stats import rankdata
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneGroupOut, LeaveOneOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from imagenet_biases.files import atomic
from imagenet_biases.study import BIASES, CONTROL, SCORES, STUDY_CATEGORIES, unflagged

COLUMNS = ("bias", "score", "method", "excluded", "estimate", "low", "high", "p", "p_holm", "networks")
FEWEST = 6  # networks; with fewer there is no row, an interval would say nothing
ALL_BIASES = "all biases"
PREDICTED = ("none", "adversarial_training", "flagged columns")  # what is excluded where scores are predicted


def spearman(x, y, weights=1):
    """Spearman's rank correlation of x and y [n] with each network counted `weights` times ([..., n], default once)."""
    weights = np.broadcast_to(weights, np.broadcast_shapes(np.shape(weights), x.shape))
    return _pearson(_midranks(x, weights), _midranks(y, weights), weights)


def kendall(x, y, weights=1):
    """Kendall's tau-b (Kendall 1945) of x and y [n] with each network counted `weights` times ([..., n])."""
    weights = np.broadcast_to(weights, np.broadcast_shapes(np.shape(weights), x.shape))
    x, y = (np.sign(np.subtract.outer(v, v)) for v in (x, y))
    together, alone_x, alone_y = (((weights @ pairs) * weights).sum(-1) for pairs in (x * y, np.abs(x), np.abs(y)))
    return _divide(together, np.sqrt(alone_x * alone_y))


def partial_spearman(x, y, control, weights=1):
    """Spearman's partial rank correlation of x and y given `control`, all [n]; `weights` as in `spearman`."""
    xy, xz, yz = spearman(x, y, weights), spearman(x, control, weights), spearman(y, control, weights)
    return _divide(xy - xz * yz, np.sqrt((1 - xz**2) * (1 - yz**2)))


def effective_robustness(accuracy, score):
    """By how many logits a score is above what ImageNet accuracy predicts (Taori et al., NeurIPS 2020, section 3).

    Both in per cent, [n]. The line is a least-squares fit on logit axes (accuracy on the line, Miller et al., ICML
    2021) over the networks given; 0 and 100 % are moved inside by half an image of 50,000. NaN where either is.
    """
    x, y = (logit(np.clip(np.asarray(v, float) / 100, 1e-5, 1 - 1e-5)) for v in (accuracy, score))
    known = ~(np.isnan(x) | np.isnan(y))
    slope, intercept = np.polyfit(x[known], y[known], 1)
    return y - (slope * x + intercept)


def predictions(features, targets, groups=None):
    """Predict targets [n, m] from features [n, k], each network by a ridge regression that has not seen it.

    Left out at a time: one network, or with `groups` [n] one whole group. The features are standardised and the
    penalty is chosen (generalised leave-one-out) within the other networks. Returns the predictions and, as the
    yardstick, the mean of the other networks, both [n, m].
    """
    splitter = LeaveOneOut() if groups is None else LeaveOneGroupOut()
    predicted, means = np.empty_like(targets), np.empty_like(targets)
    for train, test in splitter.split(features, groups=groups):
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 3, 11), alpha_per_target=True))
        predicted[test] = model.fit(features[train], targets[train]).predict(features[test]).reshape(len(test), -1)
        means[test] = targets[train].mean(axis=0)
    return predicted, means


def r_squared(target, predicted, mean, weights=1):
    """1 - squared error / squared error of the other networks' mean, over the last axis; below 0: worse than that."""
    return 1 - ((target - predicted) ** 2 * weights).sum(-1) / ((target - mean) ** 2 * weights).sum(-1)


def statistics(rows, resamples=2000, permutations=4999, seed=0):
    """Every association between BIASES and SCORES over `rows` (results.table.study), as a table with COLUMNS.

    `bias`, `score`: names as in study.BIASES and SCORES; ALL_BIASES and CONTROL (ImageNet accuracy) also stand as
    predictors. `excluded`: 'none', the category left out, or 'flagged columns' (scores without the columns that
    study.FLAGGED names). `method`:

    - `spearman`, `kendall`: rank correlations.
    - `spearman given accuracy`: partial rank correlation given ImageNet accuracy.
    - `spearman with effective robustness`: with `effective_robustness` of the score in the score's place. Not for ID,
      which contains the ImageNet accuracy. The line is fitted once, not in every resample.
    - `R2 leave-one-network-out`, `R2 leave-one-category-out`: how well the predictors foretell the score of networks
      (of whole categories) that the fit has not seen. The interval resamples the predictions, not the fits.
    - the same with `, permuted`: scores permuted among networks; mean R2 and the range of its central 95 %.

    Raises ValueError where `rows` holds fewer than FEWEST networks.
    """
    if len(rows) < FEWEST:
        raise ValueError(f"{len(rows)} networks are too few for statistics, at least {FEWEST} are needed")
    settings = {"none": rows}
    settings |= {c: rows[rows["category"] != c] for c in STUDY_CATEGORIES if (rows["category"] == c).any()}
    settings["flagged columns"] = rows.assign(**{score: rows[unflagged(score)] for score in SCORES})
    records = [
        {"bias": bias, "score": score, "method": method, "excluded": excluded} | values
        for excluded, some in settings.items()
        for bias, score, method, values in (
            *_correlations(some, resamples, permutations, seed),
            *(_predictions(some, resamples, permutations // 10, seed) if excluded in PREDICTED else ()),
        )
    ]
    table = pd.DataFrame(records)
    table["p_holm"] = table.groupby(["method", "excluded"])["p"].transform(_holm)
    return table[list(COLUMNS)].round(5)


def write(table, path):
    """Write what `statistics` gave as CSV, atomically."""
    with atomic(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")


def _correlations(rows, resamples, permutations, seed):
    """Yield (bias, score, method, values) of every pair and correlation."""
    for bias in BIASES:
        for score in SCORES:
            known = rows[[bias, score, CONTROL]].dropna()
            if len(known) < FEWEST:
                continue
            x, y, accuracy = known.to_numpy().T
            draws = _draws(len(known), resamples, permutations, seed)
            ranks_x, ranks_y, ranks_accuracy = (rankdata(v) for v in (x, y, accuracy))
            yield bias, score, "spearman", _summary(spearman, (x, y), draws, _p_product(ranks_x, ranks_y, draws))
            yield bias, score, "kendall", _summary(kendall, (x, y), draws, _p_kendall(x, y, draws))
            p = _p_product(_residuals(ranks_x, ranks_accuracy), _residuals(ranks_y, ranks_accuracy), draws)
            yield bias, score, "spearman given accuracy", _summary(partial_spearman, (x, y, accuracy), draws, p)
            if score != "ID":
                y = effective_robustness(accuracy, y)
                p = _p_product(ranks_x, rankdata(y), draws)
                yield bias, score, "spearman with effective robustness", _summary(spearman, (x, y), draws, p)


def _predictions(rows, resamples, permutations, seed):
    """Yield (predictors, score, method, values) of the held-out R2 and its permuted baseline."""
    known = rows[[*BIASES, CONTROL, *SCORES, "category"]].dropna()
    if len(known) < FEWEST or known["category"].nunique() < 3:
        return
    draws = _draws(len(known), resamples, permutations, seed)
    scores = known[list(SCORES)].to_numpy().T
    targets = np.concatenate([scores[:, None], scores[:, draws.orders]], axis=1)  # [scores, 1 + permutations, n]
    for name, predictors in ((ALL_BIASES, list(BIASES)), (CONTROL, [CONTROL])):
        for left_out, groups in (("network", None), ("category", known["category"].to_numpy())):
            predicted, means = predictions(known[predictors].to_numpy(), targets.reshape(-1, len(known)).T, groups)
            predicted, means = predicted.T.reshape(targets.shape), means.T.reshape(targets.shape)
            method = f"R2 leave-one-{left_out}-out"
            for score, *one in zip(SCORES, targets, predicted, means, strict=True):
                observed, *permuted = r_squared(*one)
                resampled = r_squared(*(values[0] for values in one), draws.weights)
                p = _p(np.array(permuted), observed)
                yield name, score, method, _values(observed, resampled, p, len(known))
                yield name, score, f"{method}, permuted", _values(np.mean(permuted), permuted, np.nan, len(known))


class _Draws(NamedTuple):
    weights: np.ndarray  # how often each network is drawn in each resample, [resamples, n]
    orders: np.ndarray  # random orders of the networks, [permutations, n]
    pairs: np.ndarray  # where the pairs i < j go, as positions in an n x n matrix, [permutations, n (n - 1) / 2]


@functools.lru_cache(maxsize=1)
def _draws(n, resamples, permutations, seed):
    random = np.random.default_rng(seed)
    orders = random.permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)
    i, j = np.triu_indices(n, 1)
    return _Draws(random.multinomial(n, np.full(n, 1 / n), resamples), orders, orders[:, i] * n + orders[:, j])


def _summary(statistic, columns, draws, p):
    return _values(statistic(*columns), statistic(*columns, draws.weights), p, len(columns[0]))


def _values(estimate, spread, p, networks):
    if np.isnan(estimate):  # one of the two does not vary
        return {"estimate": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "networks": networks}
    low, high = np.nanpercentile(spread, (2.5, 97.5))
    return {"estimate": estimate, "low": low, "high": high, "p": p, "networks": networks}


def _p_product(a, b, draws):
    """Two-sided permutation p of the correlation of a and b [n]."""
    a, b = a - a.mean(), b - b.mean()
    return _p(np.abs(b[draws.orders] @ a), abs(b @ a))


def _p_kendall(x, y, draws):
    """Two-sided permutation p of Kendall's tau of x and y [n]: of the pairs in agreement less those in disagreement."""
    a, b = (np.sign(np.subtract.outer(v, v)).astype(np.float32) for v in (x, y))
    a, observed = a[np.triu_indices(len(x), 1)], np.sum(a * b) / 2
    return _p(np.abs(b.ravel()[draws.pairs] @ a), abs(observed))


def _p(permuted, observed):
    return (1 + np.sum(permuted >= observed - 1e-9 * abs(observed))) / (1 + len(permuted))  # ties up to rounding count


def _holm(p):
    """Holm's step-down correction of the p-values of one family; NaN stays NaN and does not count."""
    ascending = p.dropna().sort_values()
    steps = np.arange(len(ascending), 0, -1)
    return pd.Series(np.minimum(np.maximum.accumulate(ascending.to_numpy() * steps), 1), ascending.index).reindex(
        p.index
    )


def _midranks(values, weights):
    """Ranks of `values` [n] among themselves with each counted `weights` times [..., n]; ties share a rank."""
    before = np.less.outer(values, values) + 0.5 * np.equal.outer(values, values)  # [j, i]: j comes before i
    return weights @ before


def _pearson(x, y, weights):
    x, y = (v - (v * weights).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True) for v in (x, y))
    return _divide((x * y * weights).sum(-1), np.sqrt((x * x * weights).sum(-1) * (y * y * weights).sum(-1)))


def _residuals(y, x):
    return y - np.polyval(np.polyfit(x, y, 1), x)


def _divide(a, b):
    """a / b, NaN where b is 0: a variable that does not vary is correlated with nothing."""
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b > 1e-12)[()]

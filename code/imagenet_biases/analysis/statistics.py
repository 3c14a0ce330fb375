"""Do biases explain generalization? Associations between each bias and each score over networks, with uncertainty.

`statistics(rows)` returns one tidy table with the columns COLUMNS. Networks of one category were often made by one
group with one recipe: they are relatives, not independent draws, and a test that takes them for strangers finds an
association wherever two quantities differ between categories, whatever the reason. So every association is given in
three ways: over all networks, which is what a figure shows; between the means of categories, which few categories can
tell; and within categories, where relatives are compared with each other only. What stands within categories is an
association that the way of training, as the categories name it, does not make by itself.

Intervals come from resampling networks (percentile bootstrap, Efron & Tibshirani 1993, ch. 13; within categories from
resampling within them), p-values from permuting one variable (within categories: inside each), and Holm's correction
(1979) runs over all pairs of one method and one exclusion. Everything is deterministic in `seed`. Networks that lack a
value of a pair are left out of that pair. A resample is a count for each network, which makes the resampled rank
correlations of all pairs a few matrix products; the tests compare them with scipy's.
"""

import contextlib
import functools
import hashlib
import itertools
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logit

from imagenet_biases.base.files import atomic
from imagenet_biases.study import BIASES, CONTROL, FURTHER_BIASES, SCORES, STUDY_CATEGORIES, unflagged

COLUMNS = ("bias", "score", "method", "excluded", "estimate", "low", "high", "p", "p_holm", "networks")
FEWEST = 6  # networks (categories, for what is between them); with fewer there is no row, it would say nothing
ALL_BIASES = "all biases"
EXCLUSIONS = ("none", *STUDY_CATEGORIES, "flagged columns")
PREDICTED = ("none", "adversarial_training", "flagged columns")  # what is excluded where scores are predicted
PENALTIES = np.logspace(-2, 3, 11)

SPEARMAN, KENDALL, EFFECTIVE = "spearman", "kendall", "spearman with effective robustness"
WITHIN, BETWEEN, LINEAGES = (
    f"spearman {where}" for where in ("within categories", "between categories", "between lineages")
)
GIVEN = "given accuracy"
ICC = "intraclass correlation"
OUT = {"network": "R2 leave-one-network-out", "category": "R2 leave-one-category-out"}
OUT_WITHIN = f"{OUT['network']} within categories"


# Estimates -----------------------------------------------------------------------------------------------------------


def rank_correlations(values, weights=None, groups=None):
    """Spearman's rank correlations of the rows of `values` [m, n], float [..., m, m]; NaN where one does not vary.

    `weights` [..., n]: how often each network counts (default: once). With `groups` [n], integers from 0, the ranks
    (over all networks) are centred by group first, so that only differences within groups count.
    """
    weights = np.ones(values.shape[1]) if weights is None else np.asarray(weights, float)
    ranks = _centred(_midranks(values, weights), weights, groups)
    products = (ranks * weights[..., None, :]) @ np.swapaxes(ranks, -1, -2)
    scale = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    return _divide(products, scale[..., :, None] * scale[..., None, :])


def partial(correlations, control):
    """Partial correlations [..., m, m] given the variable of number `control`, from correlations [..., m, m]."""
    one = correlations[..., control]
    rest = np.sqrt(np.maximum(1 - one**2, 0))
    return _divide(correlations - one[..., :, None] * one[..., None, :], rest[..., :, None] * rest[..., None, :])


def kendall(x, y, weights=1):
    """Kendall's tau-b (Kendall 1945) of x and y [n] with each network counted `weights` times ([..., n])."""
    weights = np.broadcast_to(weights, np.broadcast_shapes(np.shape(weights), x.shape))
    x, y = (np.sign(np.subtract.outer(v, v)) for v in (x, y))
    together, alone_x, alone_y = (((weights @ pairs) * weights).sum(-1) for pairs in (x * y, np.abs(x), np.abs(y)))
    return _divide(together, np.sqrt(alone_x * alone_y))


def intraclass_correlation(values, groups):
    """The share of the variance of `values` [n] that lies between `groups` [n], from a one-way analysis of variance.

    ICC(1) with the mean group size for groups of different sizes (Donner 1986, International Statistical Review 54).
    Below 0 where groups differ less than chance would have them; NaN where nothing varies.
    """
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n, k = len(values), len(sizes)
    means = np.bincount(groups, values) / sizes
    between = (sizes * (means - np.mean(values)) ** 2).sum() / (k - 1)
    within = ((values - means[groups]) ** 2).sum() / (n - k)
    size = (n - (sizes**2).sum() / n) / (k - 1)
    return float(_divide(between - within, np.asarray(between + (size - 1) * within)))


def effective_robustness(accuracy, score):
    """By how many logits a score is above what ImageNet accuracy predicts (Taori et al., NeurIPS 2020, section 3).

    Both in per cent, [n]. The line is a least-squares fit on logit axes (accuracy on the line, Miller et al., ICML
    2021) over the networks given; 0 and 100 % are moved inside by half an image of 50,000. NaN where either is.
    """
    slope, intercept = accuracy_on_the_line(accuracy, score)
    x, y = _logits(accuracy, score)
    return y - (slope * x + intercept)


def accuracy_on_the_line(accuracy, score):
    """Return slope and intercept of the line of that fit, on logit axes."""
    x, y = _logits(accuracy, score)
    known = ~(np.isnan(x) | np.isnan(y))
    return np.polyfit(x[known], y[known], 1)


def _logits(*percentages):
    return [logit(np.clip(np.asarray(one, float) / 100, 1e-5, 1 - 1e-5)) for one in percentages]


def predictions(features, targets, groups=None):
    """Predict targets [n, m] from features [n, k], each network by a ridge regression that has not seen it.

    Left out at a time: one network, or with `groups` [n] one whole group. The features are standardised and the
    penalty is chosen (for each target, by leave-one-out error) within the other networks. Returns the predictions and,
    as the yardstick, the mean of the other networks, both [n, m].
    """
    groups = np.arange(len(features)) if groups is None else groups
    predicted, means = np.empty_like(targets), np.empty_like(targets)
    for group in np.unique(groups):
        test = groups == group
        predicted[test] = _ridge(features[~test], targets[~test], features[test])
        means[test] = targets[~test].mean(axis=0)
    return predicted, means


def _ridge(x, y, new):
    """Predict at `new` from a ridge regression of y [n, m] on x [n, k]; leave-one-out errors in closed form.

    With the singular vectors u of the centred x, the prediction shrinks each component by s^2 / (s^2 + penalty), and
    the error without network i is its residual / (1 - leverage) (Hastie, Tibshirani & Friedman 2009, section 7.10).
    """
    centre, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    u, s, vt = np.linalg.svd((x - centre) / scale, full_matrices=False)
    mean = y.mean(0)
    y = y - mean
    components = u.T @ y
    shrinkage = s**2 / (s**2 + PENALTIES[:, None])  # [penalties, k]
    leverage = 1 / len(x) + shrinkage @ (u**2).T
    errors = [
        (((y - u @ (d[:, None] * components)) / (1 - h)[:, None]) ** 2).sum(0)
        for d, h in zip(shrinkage, leverage, strict=True)
    ]
    best = PENALTIES[np.argmin(errors, axis=0)]  # [m]
    return mean + (new - centre) / scale @ vt.T @ (components * s[:, None] / (s[:, None] ** 2 + best))


def r_squared(target, predicted, mean, weights=1):
    """1 - squared error / squared error of the other networks' mean, over the last axis; below 0: worse than that."""
    return 1 - ((target - predicted) ** 2 * weights).sum(-1) / ((target - mean) ** 2 * weights).sum(-1)


# The table -----------------------------------------------------------------------------------------------------------


def statistics(rows, resamples=2000, permutations=4999, seed=0, exclusions=EXCLUSIONS):
    """Every association between biases and SCORES over `rows` (results.table.study), as a table with COLUMNS.

    `bias`, `score`: names as in study.BIASES, FURTHER_BIASES (criticality and filter quality, corrected for their own
    number; with nothing, adversarial training or the flagged columns excluded) and SCORES; ALL_BIASES (the seven) and
    CONTROL (ImageNet accuracy) also stand as predictors. `excluded`: 'none', the category left out, or
    'flagged columns' (scores without the columns that study.FLAGGED names); `exclusions` says which of them to compute.
    `networks`: how many units the estimate rests on.
    `method`:

    - `spearman`: rank correlation over all networks; `kendall`: tau-b, where nothing is excluded.
    - `spearman within categories`: ranks over all networks, centred by category.
    - `spearman between categories`: of the categories' mean ranks, one unit each; p over all their orders, no interval.
    - `spearman between lineages`: within categories, with the mean of each lineage (same group and recipe) as the unit;
      no interval.
    - the first, the third and the fourth with ` given accuracy`: partial, given ImageNet accuracy.
    - `spearman with effective robustness`: with `effective_robustness` of the score in the score's place. Not for ID,
      which contains the ImageNet accuracy. The line is fitted once, not in every resample.
    - `R2 leave-one-network-out`, `R2 leave-one-category-out`: how well the predictors foretell the score of networks
      (of whole categories) that the fit has not seen. The interval resamples the predictions, not the fits.
    - `R2 leave-one-network-out within categories`: the same for differences from the category's mean.
    - the same with `, permuted`: scores permuted among networks; mean R2 and the range of its central 95 %.
    - `intraclass correlation`: share of the variance of the ranks of a bias, a score or ImageNet accuracy (in column
      `bias`) that lies between categories (`score` is 'categories').

    Raises ValueError where `rows` holds fewer than FEWEST networks.
    """
    if len(rows) < FEWEST:
        raise ValueError(f"{len(rows)} networks are too few for statistics, at least {FEWEST} are needed")
    settings = {"none": rows}
    settings |= {c: rows[rows["category"] != c] for c in STUDY_CATEGORIES if (rows["category"] == c).any()}
    settings["flagged columns"] = rows.assign(**{score: rows[unflagged(score)] for score in SCORES})
    settings = {excluded: some for excluded, some in settings.items() if excluded in exclusions}
    records = [
        {"bias": bias, "score": score, "method": method, "excluded": excluded} | values
        for excluded, some in settings.items()
        for bias, score, method, values in (
            *_correlations(some, resamples, permutations, seed, excluded == "none"),
            *(
                _correlations(some, resamples, permutations, seed, biases=FURTHER_BIASES)
                if excluded in PREDICTED
                else ()
            ),
            *(_predictions(some, resamples, permutations // 10, seed) if excluded in PREDICTED else ()),
            *_intraclass(some),
        )
    ]
    table = pd.DataFrame(records)
    further = table["bias"].isin(FURTHER_BIASES)  # a family of their own: they take nothing from the study's seven
    table["p_holm"] = table.groupby(["method", "excluded", further])["p"].transform(_holm)
    return table[list(COLUMNS)].round(5)


def write(table, path):
    """Write what `statistics` gave as CSV, atomically."""
    with atomic(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")


def shared(rows, folder):
    """Return `statistics(rows)`, and keep it as FOLDER/statistics.csv: figures and report need it computed once.

    A file that is there is used if the key beside it is that of the same rows and the same code.
    """
    path, key = Path(folder) / "statistics.csv", Path(folder) / "statistics.key"
    columns = sorted({*BIASES, *FURTHER_BIASES, *SCORES, CONTROL, *map(unflagged, SCORES)})
    text = rows[["model", "category", "lineage", *columns]].to_csv(index=False) + Path(__file__).read_text("utf-8")
    own = hashlib.sha256(text.encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError):
        if key.read_text("utf-8") == own + hashlib.sha256(path.read_bytes()).hexdigest():
            return pd.read_csv(path)
    table = statistics(rows)
    write(table, path)
    with atomic(key, "w") as file:
        file.write(own + hashlib.sha256(path.read_bytes()).hexdigest())
    return table


def _correlations(rows, resamples, permutations, seed, tau=False, biases=BIASES):
    """Yield (bias, score, method, values) of every pair and correlation."""
    rows = rows.reindex(columns=list(dict.fromkeys([*rows.columns, *biases])))
    known = rows[[*biases, *SCORES, CONTROL]].notna()
    by_networks = {}  # pairs that the same networks know are computed together
    for bias, score in itertools.product(biases, SCORES):
        use = (known[bias] & known[score] & known[CONTROL]).to_numpy()
        by_networks.setdefault(use.tobytes(), (use, []))[1].append((bias, score))
    found = {}
    for use, pairs in by_networks.values():
        if use.sum() >= FEWEST:
            found |= _together(rows[use], pairs, resamples, permutations, seed, tau)
    for bias, score in itertools.product(biases, SCORES):
        yield from ((bias, score, method, values) for method, values in found.get((bias, score), {}).items())


def _together(rows, pairs, resamples, permutations, seed, tau):
    """Return {(bias, score): {method: values}} of pairs that have a value for every row."""
    biases, scores = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    n, b = len(rows), len(biases)
    categories = np.unique(rows["category"], return_inverse=True)[1]
    accuracy = rows[CONTROL].to_numpy()
    x, y = rows[biases].to_numpy().T, rows[scores].to_numpy().T
    above = np.array([effective_robustness(accuracy, score) for score in y])
    draws = _draws(n, tuple(categories.tolist()), resamples, permutations, seed)
    methods = {}

    def summarised(name, other, weights, orders, groups=None, given=False):
        values = np.vstack([x, other, accuracy])
        estimate, spread = (rank_correlations(values, w, groups) for w in (None, weights))
        ranks = _centred(_midranks(values), np.ones(n), groups)
        if given:
            estimate, spread = partial(estimate, -1), partial(spread, -1)
            ranks = _residuals(ranks)
        grid = np.s_[..., :b, b : b + len(other)]
        p = _p_products(ranks[:b], ranks[b : b + len(other)], orders)
        methods[name] = estimate[grid], *_interval(spread[grid]), p, n

    summarised(SPEARMAN, y, draws.weights, draws.orders)
    summarised(f"{SPEARMAN} {GIVEN}", y, draws.weights, draws.orders, given=True)
    summarised(EFFECTIVE, above, draws.weights, draws.orders)
    if n - categories.max() - 1 >= FEWEST:  # degrees of freedom within categories
        summarised(WITHIN, y, draws.weights_within, draws.orders_within, categories)
        summarised(f"{WITHIN} {GIVEN}", y, draws.weights_within, draws.orders_within, categories, given=True)
    if tau:
        methods[KENDALL] = _kendalls(x, y, draws)
    values = np.vstack([x, y, accuracy])
    methods |= _between(values, b, categories, permutations, seed)
    methods |= _lineages(values, b, categories, rows["lineage"].to_numpy(), permutations, seed)
    shape = b, len(scores)
    whole = {method: [np.broadcast_to(part, shape) for part in parts] for method, parts in methods.items()}
    return {
        (bias, score): {
            method: _values(*(part[i, j] for part in parts))
            for method, parts in whole.items()
            if not (method == EFFECTIVE and score == "ID")
        }
        for i, bias in enumerate(biases)
        for j, score in enumerate(scores)
        if (bias, score) in pairs
    }


def _kendalls(x, y, draws):
    """Kendall's tau of every pair with interval and p: of the pairs in agreement less those in disagreement."""
    n = x.shape[1]
    upper = np.triu_indices(n, 1)
    pairs = draws.orders[:, upper[0]] * n + draws.orders[:, upper[1]]  # where the pairs i < j go, in an n x n matrix
    signs_x, signs_y = (np.sign(v[:, :, None] - v[:, None, :]).astype(np.float32) for v in (x, y))
    a, p = signs_x[:, upper[0], upper[1]], np.empty((len(x), len(y)))
    for j, signs in enumerate(signs_y):
        observed = a @ signs[upper]
        p[:, j] = _p(np.abs(signs.ravel()[pairs] @ a.T), np.abs(observed))
    estimate, spread = (np.array([[kendall(one, other, w) for other in y] for one in x]) for w in (1, draws.weights))
    return estimate, *_interval(np.moveaxis(spread, -1, 0)), p, n


def _between(values, b, categories, permutations, seed):
    """{method: ...} of the categories' mean ranks of biases (the first b values), scores and accuracy (the last)."""
    means, _ = _means(_midranks(values), categories)
    k = means.shape[1]
    if k < FEWEST:
        return {}
    every = math.factorial(k) <= 5040
    orders = (
        np.array([*itertools.permutations(range(k))]) if every else _draws(k, (0,) * k, 1, permutations, seed).orders
    )
    return _without_interval(means, b, orders, BETWEEN, exact=every)


def _lineages(values, b, categories, lineages, permutations, seed):
    """{method: ...} within categories of the lineages' mean ranks."""
    lineage = np.unique(lineages, return_inverse=True)[1]
    means, _ = _means(_midranks(values), lineage)
    groups = np.unique(_means(categories[None].astype(float), lineage)[0][0], return_inverse=True)[1]
    if len(groups) - groups.max() - 1 < FEWEST:
        return {}
    orders = _draws(len(groups), tuple(groups.tolist()), 1, permutations, seed).orders_within
    return _without_interval(means, b, orders, LINEAGES, groups)


def _without_interval(values, b, orders, name, groups=None, exact=False):
    found = {}
    for given in (False, True):
        estimate = rank_correlations(values, None, groups)
        ranks = _centred(_midranks(values), np.ones(values.shape[1]), groups)
        if given:
            estimate, ranks = partial(estimate, -1), _residuals(ranks)
        p = _p_products(ranks[:b], ranks[b:-1], orders, exact)
        found[f"{name} {GIVEN}" if given else name] = estimate[:b, b:-1], np.nan, np.nan, p, values.shape[1]
    return found


def _predictions(rows, resamples, permutations, seed):
    """Yield (predictors, score, method, values) of the held-out R2 and its permuted baseline."""
    known = rows[[*BIASES, CONTROL, *SCORES, "category"]].dropna()
    if len(known) < FEWEST or known["category"].nunique() < 3:
        return
    categories = np.unique(known["category"], return_inverse=True)[1]
    draws = _draws(len(known), tuple(categories.tolist()), resamples, permutations, seed)
    scores = known[list(SCORES)].to_numpy().T

    def centred(values):
        return _centred(values, np.ones(len(known)), categories)

    for name, predictors in ((ALL_BIASES, list(BIASES)), (CONTROL, [CONTROL])):
        features = known[predictors].to_numpy().T
        for method, x, y, orders, weights, groups in (
            (OUT["network"], features, scores, draws.orders, draws.weights, None),
            (OUT["category"], features, scores, draws.orders, draws.weights, categories),
            (OUT_WITHIN, centred(features), centred(scores), draws.orders_within, draws.weights_within, None),
        ):
            targets = np.concatenate([y[:, None], y[:, orders]], axis=1)  # [scores, 1 + permutations, n]
            predicted, means = predictions(x.T, targets.reshape(-1, len(known)).T, groups)
            predicted, means = predicted.T.reshape(targets.shape), means.T.reshape(targets.shape)
            r2 = r_squared(targets, predicted, means).T  # [1 + permutations, scores]
            resampled = r_squared(*(values[:, 0] for values in (targets, predicted, means)), weights[:, None])
            spread, chance, p = _interval(resampled), _interval(r2[1:]), _p(r2[1:], r2[0])
            for i, score in enumerate(SCORES):
                yield name, score, method, _values(r2[0, i], spread[0][i], spread[1][i], p[i], len(known))
                values = _values(r2[1:, i].mean(), chance[0][i], chance[1][i], np.nan, len(known))
                yield name, score, f"{method}, permuted", values


def _intraclass(rows):
    """Yield (variable, '', method, values) of every bias's, every score's and the accuracy's ranks in categories."""
    for name in (*BIASES, *SCORES, CONTROL):
        known = rows[[name, "category"]].dropna()
        if len(known) >= FEWEST and 1 < known["category"].nunique() < len(known):
            estimate = intraclass_correlation(known[name].rank().to_numpy(), known["category"])
            yield name, "categories", ICC, _values(estimate, np.nan, np.nan, np.nan, len(known))


# Resampling and permuting --------------------------------------------------------------------------------------------


class _Draws(NamedTuple):
    weights: np.ndarray  # how often each network is drawn in each resample, [resamples, n]
    orders: np.ndarray  # random orders of the networks, [permutations, n]
    weights_within: np.ndarray  # as the first two, with each category resampled, or permuted, in itself
    orders_within: np.ndarray


@functools.lru_cache(maxsize=16)
def _draws(n, groups, resamples, permutations, seed):
    random = np.random.default_rng(seed)
    orders = random.permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)
    weights = random.multinomial(n, np.full(n, 1 / n), resamples)
    weights_within, orders_within = np.empty((resamples, n)), np.empty((permutations, n), int)
    for group in set(groups):
        inside = np.flatnonzero(np.array(groups) == group)
        weights_within[:, inside] = random.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), resamples)
        orders_within[:, inside] = random.permuted(np.tile(inside, (permutations, 1)), axis=1)
    return _Draws(weights, orders, weights_within, orders_within)


def _interval(spread):
    """The central 95 % of `spread` over its first axis; what does not vary in a resample is left out there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one that never varies has no interval
        return (np.nanpercentile if np.isnan(spread).any() else np.percentile)(spread, (2.5, 97.5), axis=0)


def _values(estimate, low, high, p, networks):
    if np.isnan(estimate):  # one of the two does not vary
        low = high = p = np.nan
    return {"estimate": estimate, "low": low, "high": high, "p": p, "networks": int(networks)}


def _p_products(a, b, orders, exact=False):
    """Two-sided permutation p [x, y] of the products of the centred rows of a [x, n] and b [y, n]."""
    return np.stack([_p(np.abs(one[orders] @ a.T), np.abs(a @ one), exact) for one in b], axis=1)


def _p(permuted, observed, exact=False):
    """Share of permutations [permutations, ...] that reach what was observed [...]; ties up to rounding count.

    `exact`: they are all there are, and the observed order is one of them.
    """
    reached = np.sum(permuted >= observed - 1e-9 * np.abs(observed), axis=0)
    return reached / len(permuted) if exact else (1 + reached) / (1 + len(permuted))


def _holm(p):
    """Holm's step-down correction of the p-values of one family; NaN stays NaN and does not count."""
    ascending = p.dropna().sort_values()
    steps = np.arange(len(ascending), 0, -1)
    return pd.Series(np.minimum(np.maximum.accumulate(ascending.to_numpy() * steps), 1), ascending.index).reindex(
        p.index
    )


def _midranks(values, weights=None):
    """Ranks of each row of `values` [m, n] with each network counted `weights` times [..., n]: [..., m, n]."""
    m, n = values.shape
    before = np.less(values[:, :, None], values[:, None, :]) + 0.5 * np.equal(values[:, :, None], values[:, None, :])
    weights = np.ones(n) if weights is None else weights
    return (weights @ before.transpose(1, 0, 2).reshape(n, m * n)).reshape(*np.shape(weights)[:-1], m, n)


def _means(values, groups):
    """Mean of each row of `values` [m, n] in each of the groups 0 ... k - 1: [m, k], and the groups' sizes [k]."""
    sizes = np.bincount(groups)
    return values @ np.eye(len(sizes))[groups] / sizes, sizes


def _centred(values, weights, groups=None):
    """`values` [..., m, n] less their mean, weighted [..., n], over all or in each of the groups 0 ... k - 1."""
    member = np.ones((values.shape[-1], 1)) if groups is None else np.eye(groups.max() + 1)[groups]
    means = (values * weights[..., None, :]) @ member / (weights @ member)[..., None, :]
    return values - means @ member.T


def _residuals(ranks):
    """Centred rows [m, n] less what the last one predicts of them by least squares."""
    control = ranks[-1]
    square = control @ control
    return ranks - np.outer(ranks @ control, control) / square if square else ranks


def _divide(a, b):
    """a / b, NaN where b is 0: a variable that does not vary is correlated with nothing."""
    return np.divide(a, b, out=np.full(np.broadcast_shapes(np.shape(a), np.shape(b)), np.nan), where=b > 1e-12)[()]

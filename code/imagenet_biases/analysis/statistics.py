"""Do biases explain generalization? Associations between each bias and each score over networks, with uncertainty.

`statistics(rows)` returns one tidy table with the columns COLUMNS. Networks of one category were often made by one
group with one recipe: they are related, and a test that treats related networks as independent finds an association
wherever two quantities differ between categories, whatever the reason. So every association is given in three ways:
over all networks, which is what a figure shows; between the means of categories, which few categories can resolve; and
within categories, where only related networks are compared. An association that holds within categories does not come
from the training method alone, as far as the categories name it.

Intervals come from resampling networks (percentile bootstrap, Efron & Tibshirani 1993, ch. 13; within categories from
resampling within them), p-values from permuting one variable (within categories: inside each), and Holm's correction
(1979) runs over all pairs of one method and one exclusion. Everything is deterministic in `seed`. Networks that lack a
value of a pair are left out of that pair. A resample is one count per network, which makes the resampled rank
correlations of all pairs a few matrix products; the tests compare them with scipy's.
"""

import contextlib
import functools
import hashlib
import itertools
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num, Shaped
from scipy.special import logit

from imagenet_biases.base.files import atomic
from imagenet_biases.study import BIASES, CONTROL, FURTHER_BIASES, SCORES, STUDY_CATEGORIES, unflagged

COLUMNS = ("bias", "score", "method", "excluded", "estimate", "low", "high", "p", "p_holm", "networks")
FEWEST = 6  # networks (categories, for what is between them); with fewer, a row would say nothing
ALL_BIASES = "all biases"
EXCLUSIONS = ("none", *STUDY_CATEGORIES, "flagged columns")
PREDICTED = ("none", "adversarial_training", "flagged columns")  # what is excluded where scores are predicted
PENALTIES = np.logspace(-2, 3, 11)

SPEARMAN, KENDALL, EFFECTIVE = "spearman", "kendall", "spearman with effective robustness"
WITHIN, BETWEEN, LINEAGES = "spearman within categories", "spearman between categories", "spearman between lineages"
GIVEN = "given accuracy"
ICC = "intraclass correlation"
OUT = {"network": "R2 leave-one-network-out", "category": "R2 leave-one-category-out"}
OUT_WITHIN = f"{OUT['network']} within categories"


# Estimates -----------------------------------------------------------------------------------------------------------


def rank_correlations(
    values: Num[np.ndarray, "m n"],
    weights: Num[np.ndarray, "... n"] | None = None,
    groups: Int[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "... m m"]:
    """Return Spearman's rank correlations of the rows of `values`; NaN where one does not vary.

    Args:
        weights: how often each network counts (default: once).
        groups: integers from 0; the ranks (over all networks) are centred by group, so that only differences within
            groups count.
    """
    weights = np.ones(values.shape[1]) if weights is None else np.asarray(weights, float)
    ranks = _centred(_midranks(values, weights), weights, groups)
    products = (ranks * weights[..., None, :]) @ np.swapaxes(ranks, -1, -2)
    scale = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    return _divide(products, scale[..., :, None] * scale[..., None, :])


def corrected_rank_correlations(
    values: Float[np.ndarray, "m n"],
    gaps: Float[np.ndarray, "m n S"],
    shares: Float[np.ndarray, "m n"],
    weights: Num[np.ndarray, "... n"] | None = None,
    groups: Int[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "... m m"]:
    """Return Spearman's rank correlations that the whole image sets would give, from values on samples.

    Sampling errors add to the sums of squares and products of the ranks; what they add is subtracted (attenuation with
    correlated errors: Zimmerman & Williams 1977, Journal of Mathematical Psychology 16). Errors correlate between
    networks and between measures, which share images: what all networks have in common cancels, and what the two
    measures have in common makes a correlation up instead of attenuating it. The gap between half-samples stands for a
    network's error (measures.split_half), on the scale of ranks. Samples are nested, so that the (co)variance of two
    errors has the factor 1 - the larger share.

    Args:
        gaps: value on the first less that on the second half of the sample, by network and split; any number for whole
            values.
        shares: of the images that each value rests on, 1 for whole values.
        weights, groups: as `rank_correlations` takes them.

    Returns:
        NaN where the errors leave no variance of a measure; else within -1...1.
    """
    weights = np.ones(values.shape[1]) if weights is None else np.asarray(weights, float)
    errors = _rank_errors(values, gaps)
    covariances = np.einsum("ais,bjs->abij", errors, errors) / errors.shape[-1]
    covariances *= 1 - np.maximum(shares[:, None, :, None], shares[None, :, None, :])
    ranks = _centred(_midranks(values, weights), weights, groups)
    products = (ranks * weights[..., None, :]) @ np.swapaxes(ranks, -1, -2)
    member = np.ones((values.shape[1], 1)) if groups is None else np.eye(groups.max() + 1)[groups]
    own = np.einsum("...i,abii->...ab", weights, covariances)
    for group in member.T:
        counted = weights * group
        common = np.einsum("...i,abij,...j->...ab", counted, covariances, counted, optimize=True)
        own = own - common / counted.sum(-1)[..., None, None]
    own = own * (weights.sum(-1) / weights.shape[-1])[..., None, None] ** 2  # ranks run to the sum of the weights
    scale = np.sqrt(np.maximum(np.diagonal(products - own, axis1=-2, axis2=-1), 0))
    return np.clip(_divide(products - own, scale[..., :, None] * scale[..., None, :]), -1, 1)


def _rank_errors(values: Float[np.ndarray, "m n"], gaps: Float[np.ndarray, "m n S"]) -> Float[np.ndarray, "m n S"]:
    """Return by how much errors of half the gaps move each value's rank, ranks interpolated between the values."""
    errors = np.empty_like(gaps)
    for row, ranks, of_row, moved in zip(values, _midranks(values), gaps, errors, strict=True):
        order = np.argsort(row, kind="stable")
        up, down = (np.interp(row[:, None] + sign * of_row / 2, row[order], ranks[order]) for sign in (1, -1))
        moved[:] = (up - down) / 2
    return errors


def partial(correlations: Float[np.ndarray, "... m m"], control: int) -> Float[np.ndarray, "... m m"]:
    """Return the partial correlations given the variable of number `control`."""
    with_control = correlations[..., control]
    unexplained = np.sqrt(np.maximum(1 - with_control**2, 0))
    return _divide(
        correlations - with_control[..., :, None] * with_control[..., None, :],
        unexplained[..., :, None] * unexplained[..., None, :],
    )


def kendall(x: Num[np.ndarray, " n"], y: Num[np.ndarray, " n"], weights: Any = 1) -> Float[np.ndarray, "..."]:
    """Return Kendall's tau-b (Kendall 1945) with each network counted `weights` times ([..., n])."""
    weights = np.broadcast_to(weights, np.broadcast_shapes(np.shape(weights), x.shape))
    x, y = (np.sign(np.subtract.outer(variable, variable)) for variable in (x, y))
    together, alone_x, alone_y = (((weights @ pairs) * weights).sum(-1) for pairs in (x * y, np.abs(x), np.abs(y)))
    return _divide(together, np.sqrt(alone_x * alone_y))


def intraclass_correlation(values: Num[np.ndarray, " n"], groups: Sequence | Shaped[np.ndarray, " n"]) -> float:
    """Return the share of the variance of `values` between `groups`, from a one-way analysis of variance.

    ICC(1) with the mean group size for groups of different sizes (Donner 1986, International Statistical Review 54).
    Below 0 where groups differ less than chance would make them; NaN where nothing varies.
    """
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n, k = len(values), len(sizes)
    means = np.bincount(groups, values) / sizes
    between = (sizes * (means - np.mean(values)) ** 2).sum() / (k - 1)
    within = ((values - means[groups]) ** 2).sum() / (n - k)
    size = (n - (sizes**2).sum() / n) / (k - 1)
    return float(_divide(between - within, np.asarray(between + (size - 1) * within)))


Percentages = Float[np.ndarray, " n"] | pd.Series


def effective_robustness(accuracy: Percentages, score: Percentages) -> Percentages:
    """Return by how many logits a score is above what ImageNet accuracy predicts (Taori et al., NeurIPS 2020, sec. 3).

    The line is a least-squares fit on logit axes (accuracy on the line, Miller et al., ICML 2021) over these networks;
    0 and 100 % are moved inside by half an image of 50,000. NaN where either is.
    """
    gradient, intercept = accuracy_on_the_line(accuracy, score)
    x, y = _logits(accuracy), _logits(score)
    return y - (gradient * x + intercept)


def accuracy_on_the_line(accuracy: Percentages, score: Percentages) -> Float[np.ndarray, " 2"]:
    """Return gradient and intercept of the line of that fit, on logit axes."""
    x, y = _logits(accuracy), _logits(score)
    complete = ~(np.isnan(x) | np.isnan(y))
    return np.polyfit(x[complete], y[complete], 1)


def _logits(percentages: Percentages) -> Percentages:
    return logit(np.clip(np.asarray(percentages, float) / 100, 1e-5, 1 - 1e-5))


def predictions(
    features: Float[np.ndarray, "n k"],
    targets: Float[np.ndarray, "n m"],
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """Predict targets from features, each network by a ridge regression that has not seen it.

    Left out at a time: one network, or with `groups` one whole group. The features are standardised and the penalty is
    chosen (for each target, by leave-one-out error) within the other networks.

    Returns:
        The predictions and, as the yardstick, the mean of the other networks.
    """
    groups = np.arange(len(features)) if groups is None else groups
    predicted, means = np.empty_like(targets), np.empty_like(targets)
    for group in np.unique(groups):
        test = groups == group
        predicted[test] = _ridge(features[~test], targets[~test], features[test])
        means[test] = targets[~test].mean(axis=0)
    return predicted, means


def _ridge(
    x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "n m"], new: Float[np.ndarray, "t k"]
) -> Float[np.ndarray, "t m"]:
    """Predict at `new` from a ridge regression of y on x; leave-one-out errors in closed form.

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
    errors = []
    for factors, leverages in zip(shrinkage, leverage, strict=True):
        residuals = y - u @ (factors[:, None] * components)
        errors.append(((residuals / (1 - leverages)[:, None]) ** 2).sum(0))
    best = PENALTIES[np.argmin(errors, axis=0)]  # [m]
    return mean + (new - centre) / scale @ vt.T @ (components * s[:, None] / (s[:, None] ** 2 + best))


def r_squared(
    target: Float[np.ndarray, "... n"],
    predicted: Float[np.ndarray, "... n"],
    mean: Float[np.ndarray, "... n"],
    weights: Any = 1,
) -> Float[np.ndarray, "..."]:
    """Return 1 - squared error / that of the other networks' mean, over the last axis; below 0: worse than it."""
    return 1 - ((target - predicted) ** 2 * weights).sum(-1) / ((target - mean) ** 2 * weights).sum(-1)


# The table -----------------------------------------------------------------------------------------------------------


def statistics(
    rows: pd.DataFrame,
    resamples: int = 2000,
    permutations: int = 4999,
    seed: int = 0,
    exclusions: Collection[str] = EXCLUSIONS,
) -> pd.DataFrame:
    """Return every association between biases and SCORES over `rows` (results.table.study), as a table with COLUMNS.

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
    - `R2 leave-one-network-out`, `R2 leave-one-category-out`: how well the predictors predict the score of networks
      (of whole categories) that the fit has not seen. The interval resamples the predictions, not the fits.
    - `R2 leave-one-network-out within categories`: the same for differences from the category's mean.
    - the same with `, permuted`: scores permuted among networks; mean R2 and the range of its central 95 %.
    - `intraclass correlation`: share of the variance of the ranks of a bias, a score or ImageNet accuracy (in column
      `bias`) that lies between categories (`score` is 'categories').

    Raises:
        ValueError: `rows` holds fewer than FEWEST networks.
    """
    if len(rows) < FEWEST:
        raise ValueError(f"{len(rows)} networks are too few for statistics, at least {FEWEST} are needed")
    records = []
    for excluded, remaining in _settings(rows, exclusions):
        associations = [
            _correlations(remaining, resamples, permutations, seed, excluded == "none"),
            _intraclass(remaining),
        ]
        if excluded in PREDICTED:
            further = _correlations(remaining, resamples, permutations, seed, biases=FURTHER_BIASES)
            associations[1:1] = [further, _predictions(remaining, resamples, permutations // 10, seed)]
        for bias, score, method, values in itertools.chain(*associations):
            records.append({"bias": bias, "score": score, "method": method, "excluded": excluded} | values)
    table = pd.DataFrame(records)
    further = table["bias"].isin(FURTHER_BIASES)  # a family of their own: they take nothing from the study's seven
    table["p_holm"] = table.groupby(["method", "excluded", further])["p"].transform(_holm)
    return table[list(COLUMNS)].round(5)


def _settings(rows: pd.DataFrame, exclusions: Collection[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (what is excluded, the rest) of the exclusions that apply."""
    if "none" in exclusions:
        yield "none", rows
    for category in STUDY_CATEGORIES:
        if category in exclusions and (rows["category"] == category).any():
            yield category, rows[rows["category"] != category]
    if "flagged columns" in exclusions:
        yield "flagged columns", rows.assign(**{score: rows[unflagged(score)] for score in SCORES})


def write(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table of `statistics` as CSV, atomically."""
    with atomic(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")


def shared(rows: pd.DataFrame, folder: str | Path, corrections: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return `statistics(rows)`, stored as FOLDER/statistics.csv: figures and report compute it once.

    An existing file is used if the key beside it belongs to the same rows and the same code.

    Args:
        rows: of networks.
        folder: where the table is stored.
        corrections: further columns beside the raw estimates of the same networks (reliability.sampling_corrections).
    """
    path, key = Path(folder) / "statistics.csv", Path(folder) / "statistics.key"
    columns = sorted({*BIASES, *FURTHER_BIASES, *SCORES, CONTROL, *map(unflagged, SCORES)})
    text = rows[["model", "category", "lineage", *columns]].to_csv(index=False) + Path(__file__).read_text("utf-8")
    if corrections is not None:
        text += corrections.to_csv(index=False)
    source = hashlib.sha256(text.encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError):
        if key.read_text("utf-8") == source + hashlib.sha256(path.read_bytes()).hexdigest():
            return pd.read_csv(path)
    table = statistics(rows)
    if corrections is not None:
        table = table.merge(corrections, "left", ["bias", "score", "method", "excluded", "networks"])
    write(table, path)
    with atomic(key, "w") as file:
        file.write(source + hashlib.sha256(path.read_bytes()).hexdigest())
    return table


Association = tuple[str, str, str, dict[str, float]]
"""Bias (or predictors), score, method, values."""
Method = tuple[Any, Any, Any, Any, int]
"""Estimates, lower and upper bounds, p-values, each [biases, scores], and the number of units."""


def _correlations(
    rows: pd.DataFrame, resamples: int, permutations: int, seed: int, tau: bool = False, biases: Sequence[str] = BIASES
) -> Iterator[Association]:
    """Yield every pair and correlation; `tau`: Kendall's, too."""
    rows = rows.reindex(columns=list(dict.fromkeys([*rows.columns, *biases])))
    complete = rows[[*biases, *SCORES, CONTROL]].notna()
    by_networks: dict[bytes, tuple[Bool[np.ndarray, " n"], list]] = {}
    for bias, score in itertools.product(biases, SCORES):  # pairs of the same networks are computed together
        use = (complete[bias] & complete[score] & complete[CONTROL]).to_numpy()
        by_networks.setdefault(use.tobytes(), (use, []))[1].append((bias, score))
    by_pair = {}
    for use, pairs in by_networks.values():
        if use.sum() >= FEWEST:
            by_pair |= _of_pairs(rows[use], pairs, resamples, permutations, seed, tau)
    for bias, score in itertools.product(biases, SCORES):
        for method, values in by_pair.get((bias, score), {}).items():
            yield bias, score, method, values


def _of_pairs(
    rows: pd.DataFrame, pairs: list[tuple[str, str]], resamples: int, permutations: int, seed: int, tau: bool
) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Return {(bias, score): {method: values}} of pairs that have a value for every row."""
    biases, scores = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    n, b = len(rows), len(biases)
    categories = np.unique(rows["category"], return_inverse=True)[1]
    accuracy = rows[CONTROL].to_numpy()
    x, y = rows[biases].to_numpy().T, rows[scores].to_numpy().T
    draws = _draws(n, tuple(categories.tolist()), resamples, permutations, seed)
    values = np.vstack([x, y, accuracy])
    above = np.vstack([x, [effective_robustness(accuracy, score) for score in y], accuracy])
    all_networks = draws.weights, draws.orders
    methods = {
        SPEARMAN: _spearman(values, b, *all_networks),
        f"{SPEARMAN} {GIVEN}": _spearman(values, b, *all_networks, given=True),
        EFFECTIVE: _spearman(above, b, *all_networks),
    }
    if n - categories.max() - 1 >= FEWEST:  # degrees of freedom within categories
        within = draws.weights_within, draws.orders_within, categories
        methods[WITHIN] = _spearman(values, b, *within)
        methods[f"{WITHIN} {GIVEN}"] = _spearman(values, b, *within, given=True)
    if tau:
        methods[KENDALL] = _kendalls(x, y, draws)
    methods |= _between(values, b, categories, permutations, seed)
    methods |= _lineages(values, b, categories, rows["lineage"].to_numpy(), permutations, seed)
    by_pair: dict[tuple[str, str], dict[str, dict[str, float]]] = {pair: {} for pair in pairs}
    for method, parts in methods.items():
        table = np.stack([np.broadcast_to(part, (b, len(scores))) for part in parts])
        for bias, score in pairs:
            if method != EFFECTIVE or score != "ID":
                by_pair[bias, score][method] = _values(*table[:, biases.index(bias), scores.index(score)])
    return by_pair


def _spearman(
    values: Float[np.ndarray, "m n"],
    b: int,
    weights: Num[np.ndarray, "r n"],
    orders: Int[np.ndarray, "p n"],
    groups: Int[np.ndarray, " n"] | None = None,
    given: bool = False,
) -> Method:
    """Correlate the first b rows with the others but the last, the accuracy; `given`: given the accuracy."""
    estimate, spread = rank_correlations(values, None, groups), rank_correlations(values, weights, groups)
    ranks = _centred(_midranks(values), np.ones(values.shape[1]), groups)
    if given:
        estimate, spread, ranks = partial(estimate, -1), partial(spread, -1), _residuals(ranks)
    p = _p_products(ranks[:b], ranks[b:-1], orders)
    return estimate[:b, b:-1], *_interval(spread[:, :b, b:-1]), p, values.shape[1]


def _kendalls(x: Float[np.ndarray, "b n"], y: Float[np.ndarray, "s n"], draws: "_Draws") -> Method:
    """Return Kendall's tau of every pair with interval and p: pairs in agreement less those in disagreement."""
    n = x.shape[1]
    upper = np.triu_indices(n, 1)
    pairs = draws.orders[:, upper[0]] * n + draws.orders[:, upper[1]]  # new place of each pair i < j in an n x n matrix
    signs_x, signs_y = (np.sign(rows[:, :, None] - rows[:, None, :]).astype(np.float32) for rows in (x, y))
    above, p = signs_x[:, upper[0], upper[1]], np.empty((len(x), len(y)))
    for column, signs in enumerate(signs_y):
        observed = above @ signs[upper]
        p[:, column] = _p(np.abs(signs.ravel()[pairs] @ above.T), np.abs(observed))
    estimate, spread = np.empty((len(x), len(y))), np.empty((len(draws.weights), len(x), len(y)))
    for row, column in np.ndindex(estimate.shape):
        estimate[row, column] = kendall(x[row], y[column])
        spread[:, row, column] = kendall(x[row], y[column], draws.weights)
    return estimate, *_interval(spread), p, n


def _between(
    values: Float[np.ndarray, "m n"], b: int, categories: Int[np.ndarray, " n"], permutations: int, seed: int
) -> dict[str, Method]:
    """Return {method: ...} of the categories' mean ranks; rows: b biases, then the scores, then the accuracy."""
    means = _means(_midranks(values), categories)
    k = means.shape[1]
    if k < FEWEST:
        return {}
    exact = math.factorial(k) <= 5040
    if exact:
        orders = np.array([*itertools.permutations(range(k))])
    else:
        orders = _draws(k, (0,) * k, 1, permutations, seed).orders
    return _without_interval(means, b, orders, BETWEEN, exact=exact)


def _lineages(
    values: Float[np.ndarray, "m n"],
    b: int,
    categories: Int[np.ndarray, " n"],
    lineages: Shaped[np.ndarray, " n"],
    permutations: int,
    seed: int,
) -> dict[str, Method]:
    """Return {method: ...} within categories of the lineages' mean ranks."""
    lineage = np.unique(lineages, return_inverse=True)[1]
    means = _means(_midranks(values), lineage)
    groups = np.unique(_means(categories[None].astype(float), lineage)[0], return_inverse=True)[1]
    if len(groups) - groups.max() - 1 < FEWEST:
        return {}
    orders = _draws(len(groups), tuple(groups.tolist()), 1, permutations, seed).orders_within
    return _without_interval(means, b, orders, LINEAGES, groups)


def _without_interval(
    values: Float[np.ndarray, "m u"],
    b: int,
    orders: Int[np.ndarray, "p u"],
    name: str,
    groups: Int[np.ndarray, " u"] | None = None,
    exact: bool = False,
) -> dict[str, Method]:
    methods = {}
    for given in (False, True):
        estimate = rank_correlations(values, None, groups)
        ranks = _centred(_midranks(values), np.ones(values.shape[1]), groups)
        if given:
            estimate, ranks = partial(estimate, -1), _residuals(ranks)
        p = _p_products(ranks[:b], ranks[b:-1], orders, exact)
        methods[f"{name} {GIVEN}" if given else name] = estimate[:b, b:-1], np.nan, np.nan, p, values.shape[1]
    return methods


def _predictions(rows: pd.DataFrame, resamples: int, permutations: int, seed: int) -> Iterator[Association]:
    """Yield the held-out R2 and its permuted baseline."""
    complete = rows[[*BIASES, CONTROL, *SCORES, "category"]].dropna()
    n = len(complete)
    if n < FEWEST or complete["category"].nunique() < 3:
        return
    categories = np.unique(complete["category"], return_inverse=True)[1]
    draws = _draws(n, tuple(categories.tolist()), resamples, permutations, seed)
    scores = complete[list(SCORES)].to_numpy().T

    def centred(values: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
        return _centred(values, np.ones(n), categories)

    for name, predictors in ((ALL_BIASES, list(BIASES)), (CONTROL, [CONTROL])):
        features = complete[predictors].to_numpy().T
        for method, x, y, orders, weights, groups in (
            (OUT["network"], features, scores, draws.orders, draws.weights, None),
            (OUT["category"], features, scores, draws.orders, draws.weights, categories),
            (OUT_WITHIN, centred(features), centred(scores), draws.orders_within, draws.weights_within, None),
        ):
            targets = np.concatenate([y[:, None], y[:, orders]], axis=1)  # [scores, 1 + permutations, n]
            predicted, means = predictions(x.T, targets.reshape(-1, n).T, groups)
            predicted, means = predicted.T.reshape(targets.shape), means.T.reshape(targets.shape)
            r2 = r_squared(targets, predicted, means).T  # [1 + permutations, scores]
            resampled = r_squared(targets[:, 0], predicted[:, 0], means[:, 0], weights[:, None])
            spread, chance, p = _interval(resampled), _interval(r2[1:]), _p(r2[1:], r2[0])
            for column, score in enumerate(SCORES):
                yield name, score, method, _values(r2[0, column], *spread[:, column], p=p[column], networks=n)
                values = _values(r2[1:, column].mean(), *chance[:, column], p=np.nan, networks=n)
                yield name, score, f"{method}, permuted", values


def _intraclass(rows: pd.DataFrame) -> Iterator[Association]:
    """Yield the intraclass correlation in categories of every bias's, every score's and the accuracy's ranks."""
    for name in (*BIASES, *SCORES, CONTROL):
        complete = rows[[name, "category"]].dropna()
        if len(complete) >= FEWEST and 1 < complete["category"].nunique() < len(complete):
            estimate = intraclass_correlation(complete[name].rank().to_numpy(), complete["category"].to_numpy())
            yield name, "categories", ICC, _values(estimate, np.nan, np.nan, np.nan, len(complete))


# Resampling and permuting --------------------------------------------------------------------------------------------


class _Draws(NamedTuple):
    """How often each network is drawn in each resample, and random orders of the networks.

    The last two: with each category resampled, or permuted, in itself.
    """

    weights: Int[np.ndarray, "resamples n"]
    orders: Int[np.ndarray, "permutations n"]
    weights_within: Float[np.ndarray, "resamples n"]
    orders_within: Int[np.ndarray, "permutations n"]


@functools.lru_cache(maxsize=16)
def _draws(n: int, groups: tuple[int, ...], resamples: int, permutations: int, seed: int) -> _Draws:
    random = np.random.default_rng(seed)
    orders = random.permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)
    weights = random.multinomial(n, np.full(n, 1 / n), resamples)
    weights_within, orders_within = np.empty((resamples, n)), np.empty((permutations, n), int)
    for group in set(groups):
        inside = np.flatnonzero(np.array(groups) == group)
        weights_within[:, inside] = random.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), resamples)
        orders_within[:, inside] = random.permuted(np.tile(inside, (permutations, 1)), axis=1)
    return _Draws(weights, orders, weights_within, orders_within)


def _interval(spread: Float[np.ndarray, "r ..."]) -> Float[np.ndarray, "2 ..."]:
    """Return the central 95 % of `spread` over its first axis, without the resamples in which nothing varies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a variable that never varies has no interval
        return (np.nanpercentile if np.isnan(spread).any() else np.percentile)(spread, (2.5, 97.5), axis=0)


def _values(estimate: float, low: float, high: float, p: float, networks: int) -> dict[str, float]:
    if np.isnan(estimate):  # one of the two does not vary
        low = high = p = np.nan
    return {"estimate": estimate, "low": low, "high": high, "p": p, "networks": int(networks)}


def _p_products(
    x: Float[np.ndarray, "b n"], y: Float[np.ndarray, "s n"], orders: Int[np.ndarray, "p n"], exact: bool = False
) -> Float[np.ndarray, "b s"]:
    """Return the two-sided permutation p of the products of the centred rows of x and y."""
    columns = [_p(np.abs(row[orders] @ x.T), np.abs(x @ row), exact) for row in y]
    return np.stack(columns, axis=1)


def _p(
    permuted: Float[np.ndarray, "p ..."], observed: Float[np.ndarray, "..."], exact: bool = False
) -> Float[np.ndarray, "..."]:
    """Return the share of permutations that reach the observed value; ties up to rounding count.

    `exact`: these are all permutations, and the observed order is among them.
    """
    reached = np.sum(permuted >= observed - 1e-9 * np.abs(observed), axis=0)
    return reached / len(permuted) if exact else (1 + reached) / (1 + len(permuted))


def _holm(p: pd.Series) -> pd.Series:
    """Return Holm's step-down correction of the p-values of one family; NaN stays NaN and does not count."""
    ascending = p.dropna().sort_values()
    steps = np.arange(len(ascending), 0, -1)
    corrected = np.minimum(np.maximum.accumulate(ascending.to_numpy() * steps), 1)
    return pd.Series(corrected, ascending.index).reindex(p.index)


def _midranks(
    values: Num[np.ndarray, "m n"], weights: Num[np.ndarray, "... n"] | None = None
) -> Float[np.ndarray, "... m n"]:
    """Return the ranks of each row with each network counted `weights` times."""
    m, n = values.shape
    before = np.less(values[:, :, None], values[:, None, :]) + 0.5 * np.equal(values[:, :, None], values[:, None, :])
    weights = np.ones(n) if weights is None else weights
    return (weights @ before.transpose(1, 0, 2).reshape(n, m * n)).reshape(*np.shape(weights)[:-1], m, n)


def _means(values: Float[np.ndarray, "m n"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, "m k"]:
    """Return the mean of each row in each of the groups 0 ... k - 1."""
    sizes = np.bincount(groups)
    return values @ np.eye(len(sizes))[groups] / sizes


def _centred(
    values: Float[np.ndarray, "... m n"], weights: Num[np.ndarray, "... n"], groups: Int[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "... m n"]:
    """Return the values less their weighted mean, over all networks or in each of the groups 0 ... k - 1."""
    member = np.ones((values.shape[-1], 1)) if groups is None else np.eye(groups.max() + 1)[groups]
    means = (values * weights[..., None, :]) @ member / (weights @ member)[..., None, :]
    return values - means @ member.T


def _residuals(ranks: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """Return the centred rows less what the last row predicts by least squares."""
    control = ranks[-1]
    square = control @ control
    return ranks - np.outer(ranks @ control, control) / square if square else ranks


def _divide(numerator: Any, denominator: Any) -> Any:
    """Return the quotient, NaN where the denominator is 0: a variable that does not vary is correlated with nothing."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator > 1e-12)[()]

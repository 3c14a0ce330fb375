"""What 48 networks can reveal: the whole analysis on simulated studies whose truth is known.

A simulated study has the networks, categories, lineages and values of the real one, but its biases, accuracy and scores
are drawn anew. Each quantity is the sum of a part that the networks of a category share, a part that those of a lineage
share and a part of each network alone, with the (co)variances that the biases and the accuracy have in the real study
(normal scores, nested analysis of variance; Searle, Casella & McCulloch 1992, section 5.2), and its ranks are filled
with the real study's values. One bias, CAUSE, acts on each score in a different way (MECHANISMS):

- nothing: the score is unrelated to any bias; both only differ between categories, lineages and networks;
- within: it follows the cause within categories, not between them;
- between: it follows the cause between categories, not within them;
- accuracy: it follows ImageNet accuracy on all levels, and the cause only as far as accuracy correlates with it.

An effect of strength b (STRENGTHS) makes the correlation of the parts b.
"""

import concurrent.futures
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from scipy.special import ndtri
from tqdm import tqdm

from imagenet_biases.analysis.statistics import (
    ALL_BIASES,
    GIVEN,
    ICC,
    KENDALL,
    LINEAGES,
    OUT,
    OUT_WITHIN,
    SPEARMAN,
    WITHIN,
    statistics,
)
from imagenet_biases.base.files import atomic
from imagenet_biases.study import BIASES, CONTROL, SCORES, STUDY_CATEGORIES, unflagged

CAUSE = "shape-bias"
MECHANISMS = {"ID": "nothing", "Robustness": "within", "Concepts": "between", "Adversarial": "accuracy"}
STRENGTHS = {"none": 0.0, "weak": 0.35, "middle": 0.6, "strong": 0.85}
MEANS = ("estimate", "alarm", "alarm_holm", "always", "coverage")  # over studies
COLUMNS = ("mechanism", "strength", "predictor", "method", "studies", *MEANS)
RESAMPLES, PERMUTATIONS = 300, 999  # per study; fewer permutations could never reach 0.05 after Holm's correction


class Families:
    """The covariances of quantities between categories, between lineages and between networks."""

    def __init__(
        self,
        values: Float[np.ndarray, "n m"],
        categories: Shaped[np.ndarray, " n"] | pd.Series,
        lineages: Shaped[np.ndarray, " n"] | pd.Series,
    ) -> None:
        """Estimate them from values on any scale; each lineage lies in one category."""
        category = np.unique(categories, return_inverse=True)[1]
        lineage = np.unique(lineages, return_inverse=True)[1]
        n = len(values)
        scores = ndtri((_ranked(values) - 0.5) / n)
        scores -= scores.mean(0)
        sizes, lineage_sizes = np.bincount(category), np.bincount(lineage)
        category_of = category[np.unique(lineage, return_index=True)[1]]  # of each lineage
        by_category, by_lineage = _means(scores, category), _means(scores, lineage)
        residuals = scores - by_lineage[lineage]
        between = by_lineage - by_category[category_of]
        k, count = len(sizes), len(lineage_sizes)
        of_networks = residuals.T @ residuals / (n - count)
        of_lineages = (between.T * lineage_sizes) @ between / (count - k)
        of_categories = (by_category.T * sizes) @ by_category / (k - 1)
        shared = (lineage_sizes**2 / sizes[category_of]).sum()
        of_lineages = (of_lineages - of_networks) / ((n - shared) / (count - k))
        mixed = (shared - (lineage_sizes**2).sum() / n) / (k - 1) * of_lineages
        of_categories = (of_categories - of_networks - mixed) / ((n - (sizes**2).sum() / n) / (k - 1))
        parts = np.stack(list(map(_no_less_than_zero, (of_categories, of_lineages, of_networks))))
        scale = np.sqrt(np.einsum("pii->i", parts))
        self.covariances = parts / np.outer(scale, scale)  # [levels, m, m], variances that sum to 1
        self.groups = (category, lineage, np.arange(n))

    def draw(self, random: np.random.Generator) -> list[Float[np.ndarray, "n m"]]:
        """Return the quantities' parts, one array per level, with equal rows within a group."""
        parts = []
        for covariance, groups in zip(self.covariances, self.groups, strict=True):
            root = _root(covariance)
            parts.append((random.normal(size=(groups.max() + 1, len(root))) @ root.T)[groups])
        return parts


def _ranked(values: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
    from scipy.stats import rankdata  # here: figures need this module's names, and scipy.stats takes half a second

    return rankdata(values, axis=0)


def _means(values: Float[np.ndarray, "n m"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, "k m"]:
    sums = [np.bincount(groups, column) for column in values.T]
    return np.stack(sums, axis=1) / np.bincount(groups)[:, None]


def _no_less_than_zero(covariance: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """Return the nearest covariance without negative variances: an estimate by differences may have some."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.clip(values, 0, None)) @ vectors.T


def _root(covariance: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.clip(values, 0, None))


def simulate(rows: pd.DataFrame, strength: float, seed: int | Sequence[int]) -> pd.DataFrame:
    """Return a study like `rows` (results.table.study) in which CAUSE acts on the scores with `strength`, 0 to 1."""
    random = np.random.default_rng(seed)
    names = [*BIASES, CONTROL, *SCORES]
    families = Families(rows[names].to_numpy(), rows["category"], rows["lineage"])
    parts = families.draw(random)
    place = {name: number for number, name in enumerate(names)}
    for score, mechanism in MECHANISMS.items():
        source = place[CONTROL if mechanism == "accuracy" else CAUSE]
        for level, (part, groups) in enumerate(zip(parts, families.groups, strict=True)):
            follows = {"within": level > 0, "between": level == 0, "accuracy": True, "nothing": False}[mechanism]
            variances = np.diagonal(families.covariances[level])
            spread = np.sqrt(variances[source])
            effect = strength if follows and spread > 1e-6 else 0.0
            chance = random.normal(size=groups.max() + 1)[groups]
            standard = part[:, source] / spread if effect else 0.0
            part[:, place[score]] = np.sqrt(variances[place[score]]) * (
                effect * standard + np.sqrt(1 - effect**2) * chance
            )
    drawn = sum(parts[1:], parts[0])
    values = {name: np.sort(rows[name].to_numpy())[_ranked(drawn[:, i]).astype(int) - 1] for name, i in place.items()}
    values |= {unflagged(score): values[score] for score in SCORES}
    return rows[["model", "category", "lineage", "source"]].assign(**values)


def power(
    rows: pd.DataFrame, studies: int = 1000, seed: int = 0, workers: int = 1, progress: bool = False
) -> pd.DataFrame:
    """Return a table with COLUMNS of what the analysis finds in `studies` simulated studies of each of STRENGTHS.

    `predictor`: 'cause', 'company' (the other biases together), 'all biases', 'accuracy', or for the intraclass
    correlation the quantity itself. `estimate`: the mean over studies. `alarm`, `alarm_holm`: the share of studies in
    which p (after Holm's correction) is below 0.05; `always`: after Holm whichever category is left out. `coverage`:
    the share of 95 % intervals that hold the mean estimate, what studies of this size give on average.
    """
    tasks = [(rows, name, (seed, i, number)) for i, name in enumerate(STRENGTHS) for number in range(studies)]
    bar = {"total": len(tasks), "unit": "study", "disable": not progress}
    if workers > 1:
        with concurrent.futures.ProcessPoolExecutor(workers) as pool:
            analysed = list(tqdm(pool.map(_analysed, tasks, chunksize=4), **bar))
    else:
        analysed = list(tqdm(map(_analysed, tasks), **bar))
    table = pd.concat(analysed, ignore_index=True)
    keys = ["mechanism", "strength", "predictor", "method"]
    mean = table.groupby([*keys, "bias"])["estimate"].transform("mean")
    inside = (table["low"] <= mean) & (mean <= table["high"])
    paired = table["method"].str.startswith((SPEARMAN, KENDALL))  # Holm's correction is for pairs of bias and score
    table = table.assign(
        alarm=_below(table["p"]),
        alarm_holm=_below(table["p_holm"]).where(paired),
        always=_below(table["p_always"]).where(paired),
        coverage=inside.where(table["low"].notna()).astype(float),
    )
    means = table.groupby(keys, sort=False)[[*MEANS]].mean()
    return means.reset_index().assign(studies=studies)[list(COLUMNS)].round(4)


def _below(p: pd.Series) -> pd.Series:
    return (p < 0.05).where(p.notna()).astype(float)


def _analysed(task: tuple[pd.DataFrame, str, tuple[int, int, int]]) -> pd.DataFrame:
    rows, strength, seed = task
    study = simulate(rows, STRENGTHS[strength], seed)
    table = statistics(study, RESAMPLES, PERMUTATIONS, seed[-1], ("none", *STUDY_CATEGORIES))
    table = table[~table["method"].str.endswith("permuted")]
    by_exclusion = table.groupby(["bias", "score", "method"])["p_holm"]
    always = by_exclusion.max().where(by_exclusion.size() > 1).rename("p_always").reset_index()
    table = table[table["excluded"] == "none"].merge(always, on=["bias", "score", "method"])
    kinds = {CAUSE: "cause", ALL_BIASES: ALL_BIASES, CONTROL: "accuracy"}
    predictor = table["bias"].map(lambda bias: kinds.get(str(bias), "company"))
    return table.assign(
        strength=strength,
        mechanism=table["score"].map(MECHANISMS).fillna("families"),
        predictor=predictor.where(table["method"] != ICC, table["bias"]),
    )


def write(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table of `power` as CSV, atomically."""
    with atomic(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")


def could_not_miss(
    table: pd.DataFrame, share: float = 0.8, method: str = WITHIN, alarm: str = "alarm_holm"
) -> float | None:
    """Return the correlation within categories that a `share` of studies finds, interpolated between STRENGTHS.

    None where even the strongest effect is found less often.
    """
    cause = table[(table["mechanism"] == "within") & (table["predictor"] == "cause") & (table["method"] == method)]
    cause = cause.sort_values("estimate")
    detected = np.maximum.accumulate(cause[alarm].to_numpy())
    return float(np.interp(share, detected, cause["estimate"])) if detected[-1] >= share else None


METHOD_LABELS = (  # method, and how a figure names it
    (SPEARMAN, "all networks"),
    (f"{SPEARMAN} {GIVEN}", "all networks, given accuracy"),
    (WITHIN, "within categories"),
    (f"{WITHIN} {GIVEN}", "within categories, given accuracy"),
    (LINEAGES, "between lineages"),
    (OUT["network"], "joint prediction of networks"),
    (OUT["category"], "joint prediction of categories"),
    (OUT_WITHIN, "joint prediction within categories"),
)

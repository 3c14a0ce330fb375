"""What 48 networks can tell: the whole analysis on simulated studies whose truth is known.

A simulated study has the networks, categories, lineages and values of the real one, but its biases, accuracy and scores
are drawn anew. Each quantity is the sum of a part that the networks of a category share, a part that those of a lineage
share and a part of each network's own, with the (co)variances that the biases and the accuracy have in the real study
(normal scores, nested analysis of variance; Searle, Casella & McCulloch 1992, section 5.2), and its ranks are filled
with the real study's values. One bias, CAUSE, acts on the scores, each in another way (MECHANISMS):

- nothing: the score has nothing to do with any bias; both only differ between categories, lineages and networks;
- within: it follows the cause within categories, not between them;
- between: it follows the cause between categories, not within them;
- accuracy: it follows ImageNet accuracy on all levels, and the cause only as far as accuracy goes with it.

An effect of strength b (STRENGTHS) makes the correlation of the parts b.
"""

import concurrent.futures

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata
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
COLUMNS = (
    *(
        "mechanism",
        "strength",
        "predictor",
        "method",
        "studies",
        "estimate",
        "alarm",
        "alarm_holm",
        "always",
        "coverage",
    ),
)
RESAMPLES, PERMUTATIONS = 300, 999  # a study; fewer permutations could never reach 0.05 after Holm's correction


class Families:
    """The covariances of quantities between categories, between lineages and between networks."""

    def __init__(self, values, categories, lineages):
        """`values` [n, m], any scale; `categories`, `lineages` [n]: each lineage lies in one category."""
        self.category = np.unique(categories, return_inverse=True)[1]
        self.lineage = np.unique(lineages, return_inverse=True)[1]
        n = len(values)
        scores = norm.ppf((rankdata(values, axis=0) - 0.5) / n)
        scores -= scores.mean(0)
        sizes, of = np.bincount(self.category), np.bincount(self.lineage)
        home = self.category[np.unique(self.lineage, return_index=True)[1]]  # a lineage's category
        by_category, by_lineage = (self._means(scores, groups) for groups in (self.category, self.lineage))
        own = scores - by_lineage[self.lineage]
        between = by_lineage - by_category[home]
        k, lineages = len(sizes), len(of)
        squares = [own.T @ own, (between.T * of) @ between, (by_category.T * sizes) @ by_category]
        network, lineage, category = (s / d for s, d in zip(squares, (n - lineages, lineages - k, k - 1), strict=True))
        shared = (of**2 / sizes[home]).sum()
        lineage = (lineage - network) / ((n - shared) / (lineages - k))
        mixed = (shared - (of**2).sum() / n) / (k - 1) * lineage
        category = (category - network - mixed) / ((n - (sizes**2).sum() / n) / (k - 1))
        parts = np.stack([_no_less_than_zero(part) for part in (category, lineage, network)])
        scale = np.sqrt(np.einsum("pii->i", parts))
        self.covariances = parts / np.outer(scale, scale)  # [levels, m, m], variances that sum to 1
        self.groups = (self.category, self.lineage, np.arange(n))

    @staticmethod
    def _means(values, groups):
        return np.stack([np.bincount(groups, column) for column in values.T], axis=1) / np.bincount(groups)[:, None]

    def draw(self, random):
        """Return the quantities' parts, one array [n, m] a level, with the rows of a group alike."""
        roots = (_root(covariance) for covariance in self.covariances)
        return [
            (random.normal(size=(groups.max() + 1, len(root))) @ root.T)[groups]
            for root, groups in zip(roots, self.groups, strict=True)
        ]


def _no_less_than_zero(covariance):
    """The nearest covariance without negative variances: an estimate by differences may have some."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.clip(values, 0, None)) @ vectors.T


def _root(covariance):
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.clip(values, 0, None))


def simulate(rows, strength, seed):
    """Return a study like `rows` (results.table.study) in which CAUSE acts on the scores with `strength`, 0 to 1.

    `seed`: a number or a sequence of them, as numpy takes it.
    """
    random = np.random.default_rng(seed)
    names = [*BIASES, CONTROL, *SCORES]
    families = Families(rows[names].to_numpy(), rows["category"], rows["lineage"])
    parts = families.draw(random)
    place = {name: number for number, name in enumerate(names)}
    for score, mechanism in MECHANISMS.items():
        for level, (part, groups) in enumerate(zip(parts, families.groups, strict=True)):
            follows = {"within": level > 0, "between": level == 0, "accuracy": True, "nothing": False}[mechanism]
            source = part[:, place[CONTROL if mechanism == "accuracy" else CAUSE]]
            variances = np.diagonal(families.covariances[level])
            spread = np.sqrt(variances[place[CONTROL if mechanism == "accuracy" else CAUSE]])
            effect = strength if follows and spread > 1e-6 else 0.0
            chance = random.normal(size=groups.max() + 1)[groups]
            standard = source / spread if effect else 0.0
            part[:, place[score]] = np.sqrt(variances[place[score]]) * (
                effect * standard + np.sqrt(1 - effect**2) * chance
            )
    drawn = sum(parts)
    values = {name: np.sort(rows[name].to_numpy())[rankdata(drawn[:, i]).astype(int) - 1] for name, i in place.items()}
    values |= {unflagged(score): values[score] for score in SCORES}
    return rows[["model", "category", "lineage", "source"]].assign(**values)


def power(rows, studies=1000, seed=0, workers=1, progress=False):
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
            found = list(tqdm(pool.map(_analysed, tasks, chunksize=4), **bar))
    else:
        found = list(tqdm(map(_analysed, tasks), **bar))
    every = pd.concat(found, ignore_index=True)
    keys = ["mechanism", "strength", "predictor", "method"]
    mean = every.groupby([*keys, "bias"])["estimate"].transform("mean")
    inside = (every["low"] <= mean) & (mean <= every["high"])
    paired = every["method"].str.startswith((SPEARMAN, KENDALL))  # Holm's correction is for pairs of bias and score
    every = every.assign(
        alarm=_below(every["p"]),
        alarm_holm=_below(every["p_holm"]).where(paired),
        always=_below(every["p_always"]).where(paired),
        coverage=inside.where(every["low"].notna()).astype(float),
    )
    table = every.groupby(keys, sort=False)[["estimate", "alarm", "alarm_holm", "always", "coverage"]].mean()
    return table.reset_index().assign(studies=studies)[list(COLUMNS)].round(4)


def _below(p):
    return (p < 0.05).where(p.notna()).astype(float)


def _analysed(task):
    rows, strength, seed = task
    study = simulate(rows, STRENGTHS[strength], seed)
    found = statistics(study, RESAMPLES, PERMUTATIONS, seed[-1], ("none", *STUDY_CATEGORIES))
    found = found[~found["method"].str.endswith("permuted")]
    every = found.groupby(["bias", "score", "method"])["p_holm"]
    always = every.max().where(every.size() > 1).rename("p_always").reset_index()
    found = found[found["excluded"] == "none"].merge(always, on=["bias", "score", "method"])
    kinds = {CAUSE: "cause", ALL_BIASES: ALL_BIASES, CONTROL: "accuracy"}
    predictor = found["bias"].map(lambda bias: kinds.get(bias, "company"))
    return found.assign(
        strength=strength,
        mechanism=found["score"].map(MECHANISMS).fillna("families"),
        predictor=predictor.where(found["method"] != ICC, found["bias"]),
    )


def write(table, path):
    """Write what `power` gave as CSV, atomically."""
    with atomic(path, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")


def could_not_miss(table, share=0.8, method=WITHIN, alarm="alarm_holm"):
    """Return the correlation within categories that a `share` of studies finds, interpolated between STRENGTHS.

    None where even the strongest effect is found less often.
    """
    some = table[(table["mechanism"] == "within") & (table["predictor"] == "cause") & (table["method"] == method)]
    some = some.sort_values("estimate")
    found = np.maximum.accumulate(some[alarm].to_numpy())
    return float(np.interp(share, found, some["estimate"])) if found[-1] >= share else None


SHOWN = (  # method, and how a figure names it
    (SPEARMAN, "all networks"),
    (f"{SPEARMAN} {GIVEN}", "all networks, given accuracy"),
    (WITHIN, "within categories"),
    (f"{WITHIN} {GIVEN}", "within categories, given accuracy"),
    (LINEAGES, "between lineages"),
    (OUT["network"], "joint prediction of networks"),
    (OUT["category"], "joint prediction of categories"),
    (OUT_WITHIN, "joint prediction within categories"),
)

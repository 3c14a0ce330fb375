"""ImageNet's images as 16 categories: where people and networks meet on the stimuli of other benchmarks.

A person sees each image under one condition (humans.experiment), a network may see it under all of them. Both are
scored from the accuracy of each condition, by the formulas of the benchmark itself (Benchmark.by_condition).
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imagenet_biases.base.errors import UserError
from imagenet_biases.benchmarks import find
from imagenet_biases.estimate import Estimate
from imagenet_biases.humans.trials import ANSWERS, OTHER_EXPERIMENTS, read_trials
from imagenet_biases.images.listing import ImageNames, Listing
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.study import CATEGORIES_16
from imagenet_biases.vocabulary import Benchmark, Categories, Condition, Data, Metrics, Responses, Results

PREFIX = "imagenet-16/"
"""What an ImageSet's name has before the benchmark's."""
IMAGES = 1280  # of a session and of a measurement: 80 per category, as in the released experiments
CATEGORY_OF = np.full(1000, -1)
for _number, _classes in enumerate(CATEGORIES_16.values()):
    CATEGORY_OF[list(_classes)] = _number


@dataclass(frozen=True)
class CategoriesOfClasses(Categories):
    """Categories on images whose labels are ImageNet's classes."""

    id: ClassVar[str] = "CategoriesOfClasses"

    def hits(self, rows: Any, labels: Any) -> Bool[Tensor, " B"]:
        return torch.as_tensor(rows) == torch.from_numpy(CATEGORY_OF)[torch.as_tensor(labels).cpu()].to(rows.device)


READOUT = CategoriesOfClasses(tuple(CATEGORIES_16.items()))


def presented(name: str, data: Data, alpha: str, count: int = IMAGES) -> tuple[ImageSet, list[Condition]]:
    """Return the images and the conditions of a benchmark that people can be shown.

    The images are the first of the set's order in each category, equally many of each, so a smaller `count` is a part
    of a larger one. Conditions that need a network (attacks) are left out.

    Raises:
        UserError: a category has no image.
    """
    benchmark = find(name)
    (part,) = benchmark.passes(data, **benchmark.options_from({"alpha": alpha} if name == "solarization" else {}))
    images, categories = part.images, CATEGORY_OF[part.images.labels]
    available = int(np.bincount(categories[categories >= 0], minlength=len(CATEGORIES_16)).min())
    if not available:
        raise UserError(f"{images.name} under {images.listing.root} lacks a category of the 16: give the whole set")
    share = max(1, count // len(CATEGORIES_16))
    if available < share:
        warnings.warn(f"{images.name}: {available} images per category instead of {share}", stacklevel=2)
    chosen = []
    for number in range(len(CATEGORIES_16)):
        chosen.append(images.order[categories[images.order] == number][: min(share, available)])
    positions = images.chosen[np.sort(np.concatenate(chosen))]
    whole = replace(images, name=PREFIX + name, chosen=positions, whole=None, asked=None, subset=None)
    return whole, [condition for condition in part.conditions_for(None) if condition.kind in ("clean", "stimulus")]


def from_files(paths: Sequence[str | Path]) -> list[tuple[str, Results]]:
    """Return (name, responses) of every subject in trial files that run_experiment.py wrote for a benchmark."""
    frame = read_trials(*paths, sets=OTHER_EXPERIMENTS)
    subjects = []
    for subj, of_subject in frame.groupby("subj", sort=False):
        answers = []
        for name, trials in of_subject.groupby("set", sort=False):
            labels = [CATEGORIES_16[category][0] for category in trials.category]
            names = ImageNames(trials.imagename, labels)
            listing = Listing(Path(), names, np.zeros(len(labels), np.int64))
            images = ImageSet(PREFIX + str(name), listing, np.arange(len(labels)), variables={"subj": subj})
            values = np.array(list(map(ANSWERS.index, trials.object_response)), np.int16)
            for condition in trials.condition.unique():
                counted = (trials.condition == condition).to_numpy()
                answers.append(Responses(images, Condition(condition), values, counted, READOUT))
        subjects.append((str(subj), Results(answers)))
    return subjects


def report(results: Results) -> Metrics:
    """Yield the metrics of every benchmark that was presented, each under its own name with /16."""
    by_benchmark: dict[str, dict[str, tuple[int, int]]] = {}
    for (images, condition), responses in results.items():
        right = (CATEGORY_OF[responses.labels] == responses.values) & responses.counts
        counts = by_benchmark.setdefault(images.removeprefix(PREFIX), {})
        counts[condition] = int(right.sum()), int(responses.counts.sum())
    for name, counts in by_benchmark.items():
        for metric, estimate in _estimates(find(name), counts, results.options, results.resamples(200)):
            yield f"{metric}/16", replace(estimate, sets=(PREFIX + name,))


def _estimates(
    benchmark: Benchmark, counts: Mapping[str, tuple[int, int]], options: Mapping[str, Any], draws: int
) -> Iterator[tuple[str, Estimate]]:
    """Yield (metric, value with its interval) from {condition: (right, trials)}.

    The interval holds the middle 95 % of what the metric is when each accuracy is drawn from Jeffreys' posterior, a
    beta distribution with right + 1/2 and wrong + 1/2 (Brown, Cai & DasGupta 2001, Statistical Science 16). There is
    none where more than 5 % of the draws have no value.
    """
    assert benchmark.by_condition is not None
    random = np.random.default_rng(0)
    accuracy, drawn = {}, {}
    for condition, (right, trials) in counts.items():
        accuracy[condition] = np.float64(right / trials if trials else math.nan)
        drawn[condition] = random.beta(right + 0.5, trials - right + 0.5, draws)
    try:
        values = _values(benchmark, accuracy, options)
    except KeyError as error:
        raise UserError(
            f"{benchmark.name}: no trial shows {error}; finish the session, or give the --alpha it was run with"
        ) from None
    resampled: list[dict[str, float]] = []
    for draw in range(draws):
        shares = {condition: column[draw] for condition, column in drawn.items()}
        resampled.append(_values(benchmark, shares, options))
    for metric, value in values.items():
        yield metric, _estimate(value, np.array([values_of_draw[metric] for values_of_draw in resampled]))


def _estimate(value: float, draws: Float[np.ndarray, " draws"]) -> Estimate:
    finite = draws[np.isfinite(draws)]
    if math.isnan(value):
        return Estimate(None)
    if not len(draws) or len(finite) < 0.95 * len(draws):
        return Estimate(value)
    low, high = np.percentile(finite, (2.5, 97.5)).tolist()
    return Estimate(value, min(low, value), max(high, value))


def _values(benchmark: Benchmark, accuracy: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, float]:
    assert benchmark.by_condition is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        values = dict(benchmark.by_condition(accuracy, options))
    return {metric: math.nan if value is None else float(value) for metric, value in values.items()}

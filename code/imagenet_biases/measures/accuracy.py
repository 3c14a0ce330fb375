"""Scores: pure functions on responses and labels. Counts are integers over images, divided once.

`Responses` (imagenet_biases.vocabulary) have `values` (here int16 [N, k], class numbers by rank, or [N]), `counts`
bool [N] (which images count), and `images` with `labels` int64 [N] and `keys` int64 [N]. Accuracies are in per cent.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, Shaped

from imagenet_biases.estimate import Z95, Estimate, proportion
from imagenet_biases.networks.packages import CLASSES
from imagenet_biases.study import ALEXNET_ERROR, class_names, devkit_order
from imagenet_biases.vocabulary import Responses


def within(estimate: Estimate, lowest: float, highest: float) -> Estimate:
    """Return an Estimate whose interval does not leave [lowest, highest], where the quantity lies by its definition."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    low, high = _inside((estimate.low, estimate.high), estimate.value, lowest, highest)
    whole_set = estimate.whole_set and _inside(estimate.whole_set, estimate.value, lowest, highest)
    return replace(estimate, low=low, high=high, whole_set=whole_set)


def _inside(bounds: tuple[float, float], value: float, lowest: float, highest: float) -> tuple[float, float]:
    return min(max(bounds[0], lowest), value), max(min(bounds[1], highest), value)


def mean_over_images(values: Float[np.ndarray, " N"], lowest: float = -math.inf, highest: float = math.inf) -> Estimate:
    """Return the mean of one number per image, its normal interval within [lowest, highest]; None without images."""
    if not len(values):
        return Estimate(None)
    value, half = float(np.mean(values)), Z95 * float(np.std(values)) / math.sqrt(len(values))
    return within(Estimate(value, value - half, value + half), lowest, highest)


def ratio(parts: Shaped[np.ndarray, " N"], wholes: Shaped[np.ndarray, " N"], highest: float = math.inf) -> Estimate:
    """Return sum(parts) / sum(wholes) over images, both >= 0, with its interval in [0, highest]; None for 0 / 0.

    The linearised variance of a ratio (Cochran 1977, Sampling Techniques, 2.11) after two images of ratio 1 and two of
    ratio 0 are added, as Agresti & Coull (1998, The American Statistician 52) do for a proportion: otherwise an
    interval has no width where no image, or every image, has its part, and too little near there.
    """
    total = wholes.sum()
    if not total:
        return Estimate(None)
    value = float(parts.sum() / total)
    parts, wholes = np.append(parts, (1, 1, 0, 0)), np.append(wholes, (1, 1, 1, 1))
    middle = parts.sum() / wholes.sum()
    half = Z95 * math.sqrt(((parts - middle * wholes) ** 2).sum()) / wholes.sum()
    return within(Estimate(value, float(middle - half), float(middle + half)), 0.0, highest)


def resampled_means(
    values: Float[np.ndarray, "labels draws N"],
    count: int = 1000,
    seed: int = 0,
    at_once: int = 50,
    fixed_draws: bool = False,
) -> Float[np.ndarray, "resamples labels"]:
    """Return the mean of values over draws and images, both resampled (or images alone), by label.

    Images and draws are resampled independently and the same for all labels (Owen 2007, Annals of Applied Statistics 1,
    the pigeonhole bootstrap). The same seed and shape give the same resamples, so ratios can be taken.
    """
    (_, draws, images), random, means = values.shape, np.random.default_rng(seed), []
    for _ in range(count // at_once):
        of_images = random.multinomial(images, np.full(images, 1 / images), at_once) / images
        of_draws = np.full((at_once, draws), 1 / draws)
        if not fixed_draws:
            of_draws = random.multinomial(draws, np.full(draws, 1 / draws), at_once) / draws
        means.append(np.einsum("ldr,rd->rl", values @ of_images.T, of_draws))
    return np.concatenate(means) if means else np.empty((0, len(values)))


def with_percentiles(value: float, resampled: Sequence[float] | Float[np.ndarray, " resamples"]) -> Estimate:
    """Return a value with the 2.5 % and 97.5 % quantiles of its resamples; no interval without resamples."""
    if not len(resampled):
        return Estimate(float(value))
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


def correct(responses: Responses, k: int = 1) -> Bool[np.ndarray, " N"]:
    """Return whether each image's label is among the first k answers."""
    ranked = responses.values.reshape(len(responses.values), -1)
    return (ranked[:, :k] == responses.labels[:, None]).any(1) & responses.counts


def top(responses: Responses, k: int = 1) -> Estimate:
    """Return the top-k accuracy."""
    estimate = proportion(int(correct(responses, k).sum()), int(responses.counts.sum()))
    return replace(estimate, sets=(responses.images.name,))


def likely_order(responses: Responses) -> str:
    """Return in which known order of classes a network with a top-1 below 10 % answers; '' if in none of them.

    Neighbouring classes look alike, so a shifted network is not always wrong. An order is named if it makes at least
    three answers, 5 % of them and five times as many as the order at hand right: three of 50 come about by chance in
    one case of 5,000. Lists of class names differ in a few, which moves few others in their order.
    """
    answers, labels = responses.values.reshape(len(responses.values), -1)[:, 0], responses.labels
    counted = responses.counts & (labels >= 0)
    answers, labels = answers[counted].astype(np.int64), labels[counted]
    if not len(labels):
        return ""
    accuracy = float((answers == labels).mean())
    orders: dict[str, np.ndarray] = {
        "shifted by one, as when the last of 1,001 outputs is cut off (give outputs[:, 1:])": answers - 1,
        "shifted by one, as when the first class is cut off": answers + 1,
    }
    for name, order in _other_orders().items():
        orders |= {name: order[answers], f"{name}, in the labels": order.argsort()[answers]}
    shares = {order: float((reordered == labels).mean()) for order, reordered in orders.items()}
    order = max(shares, key=lambda name: shares[name])
    if accuracy >= 0.1 or shares[order] < max(0.05, 3 / len(labels), 5 * accuracy):
        return ""
    return f"{order}; so read, top-1 is {100 * shares[order]:.2f} %"


def _other_orders() -> dict[str, Int64[np.ndarray, " C"]]:
    """Return {what is said of an order: the class numbers in it}, of orders in which people number the classes."""
    names = class_names()
    in_order = {
        "that of class numbers sorted as texts (0, 1, 10, 100, ...), such as names of folders": str,
        "that of the English class names, sorted": lambda n: names[n],
        "that of the English class names, sorted without regard to capital letters": lambda n: names[n].lower(),
    }
    orders = {name: np.array(sorted(range(CLASSES), key=key)) for name, key in in_order.items()}
    return orders | {"that of the ILSVRC2012 devkit (ILSVRC2012_ID - 1)": np.array(devkit_order())}


def accuracies(responses: Responses, name: str, ks: Iterable[int] = (1, 5)) -> Iterator[tuple[str, Estimate]]:
    """Yield `top1_acc/NAME` and `top5_acc/NAME`, each where so many classes per image are known."""
    for k in ks:
        if k <= max((1, *responses.values.shape[1:])):
            yield f"top{k}_acc/{name}", top(responses, k)


def among(responses: Responses, label_sets: Sequence[Set[int]], k: int = 1) -> Estimate:
    """Return the share of images with one of the first k answers in the image's label set, in per cent.

    Images with an empty set are left out. With the ReaL labels and k = 1 this is the ReaL accuracy.
    """
    counts = responses.counts & np.array(list(map(bool, label_sets)))
    hits = sum(not label_sets[i].isdisjoint(responses.values[i, :k].tolist()) for i in np.flatnonzero(counts).tolist())
    return replace(proportion(hits, int(counts.sum())), sets=(responses.images.name,))


def combined(parts: Iterable[tuple[float, Responses]], constant: float = 0.0) -> Estimate:
    """Return constant + the sum of weight * top-1 accuracy over `parts`, pairs (weight, responses).

    The interval treats images as the unit: the same photograph under several corruptions is one draw, so its share of
    every part goes into one term (the cluster-robust variance of a weighted mean; Cameron & Miller 2015, section II).
    What the whole sets would give depends on samples that are drawn for each set by itself: there sets are strata.
    """
    parts = list(parts)
    sets = tuple(dict.fromkeys(responses.images.name for _, responses in parts))
    value, keys, shares = constant, [], []
    by_set: dict[str, Any] = {}
    for weight, responses in parts:
        counted = responses.counts
        hits = correct(responses)[counted]
        if not len(hits):
            return Estimate(None, sets=sets)
        value += weight * 100 * int(hits.sum()) / len(hits)
        keys.append(responses.images.keys[counted])
        shares.append(weight * 100 * (hits - hits.mean()) / len(hits))
        factor, whole_share = _without_replacement(responses), np.zeros(len(responses.counts))
        whole_share[responses.counts] = math.sqrt(factor) * shares[-1]
        by_set[responses.images.name] = by_set.get(responses.images.name, 0) + whole_share
    _, image = np.unique(np.concatenate(keys), return_inverse=True)
    half = Z95 * math.sqrt(float((np.bincount(image, np.concatenate(shares)) ** 2).sum()))
    stratified = Z95 * math.sqrt(sum(float((of_images**2).sum()) for of_images in by_set.values()))
    return Estimate(value, value - half, value + half, sets, (value - stratified, value + stratified))


def _without_replacement(responses: Responses) -> float:
    """Return the factor on sum((x - mean)^2) / n^2 in the variance of a sample's mean: (1 - n / N) n / (n - 1)."""
    count = int(responses.counts.sum())
    return responses.images.unseen * count / max(count - 1, 1)


def percentile_factor(responses: Responses) -> float:
    """Return the factor on the variance of resamples in the whole set's interval: estimate.whole_set_percentiles.

    It is that of a sample's mean, widened as Student's t is beside the normal distribution: the expanded percentile
    interval (Hesterberg 2015, The American Statistician 69).
    """
    from scipy.special import stdtrit  # here: it takes a third of a second, which --help need not wait for

    degrees = max(int(responses.counts.sum()) - 1, 1)
    return _without_replacement(responses) * float(stdtrit(degrees, 0.975) / Z95) ** 2


def mean_accuracy(parts: Iterable[Responses]) -> Estimate:
    """Return the mean top-1 accuracy over several responses of one network."""
    parts = list(parts)
    return within(combined([(1 / len(parts), part) for part in parts]), 0.0, 100.0)


def mean_corruption_error(severities: Mapping[str, Sequence[Responses]]) -> Estimate:
    """Return mCE in per cent from {corruption: [responses of severity 1..5]} for the 15 corruptions of ALEXNET_ERROR.

    Mean over corruptions of the error summed over severities, divided by AlexNet's (Hendrycks & Dietterich 2019, 3).
    """
    parts, constant = [], 0.0
    for corruption, alexnet in ALEXNET_ERROR.items():
        weight = 1 / (len(ALEXNET_ERROR) * alexnet * len(severities[corruption]))
        parts += [(-weight, responses) for responses in severities[corruption]]
        constant += 100 / (len(ALEXNET_ERROR) * alexnet)
    return within(combined(parts, constant), 0.0, math.inf)


def per_class(responses: Responses) -> dict[int, tuple[int, int]]:
    """Return {class number: (hits, images)} of top-1 answers."""
    counted, hits, labels = responses.counts, correct(responses), responses.labels
    by_class = {}
    for number in np.unique(labels[counted]):
        of_class = counted & (labels == number)
        by_class[int(number)] = int(hits[of_class].sum()), int(of_class.sum())
    return by_class

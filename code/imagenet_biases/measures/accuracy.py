"""Scores: pure functions on responses and labels. Counts are integers over images, divided once.

`Responses` (imagenet_biases.vocabulary) have `values` (here int16 [N, k], class numbers by rank, or [N]), `counts`
bool [N] (which images count), and `images` with `labels` int64 [N] and `keys` int64 [N]. Accuracies are in per cent.
"""

import math
from dataclasses import replace

import numpy as np

from imagenet_biases.estimate import Estimate
from imagenet_biases.study import ALEXNET_ERROR

Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def proportion(hits, images):
    """Return 100 * hits / images with the Wilson interval (Wilson 1927, JASA 22); None without images."""
    if not images:
        return Estimate(None)
    share, square = hits / images, Z95**2 / images
    middle = (share + square / 2) / (1 + square)
    half = Z95 / (1 + square) * math.sqrt(share * (1 - share) / images + square / (4 * images))
    low = 0.0 if hits == 0 else middle - half  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if hits == images else middle + half
    return Estimate(100 * share, 100 * low, 100 * high)


def within(estimate, lowest, highest):
    """Return an Estimate whose interval does not leave [lowest, highest], where the quantity lies by its definition."""
    if estimate.low is None:
        return estimate
    low, high = max(estimate.low, lowest), min(estimate.high, highest)
    return replace(estimate, low=min(low, estimate.value), high=max(high, estimate.value))


def mean_over_images(values, lowest=-math.inf, highest=math.inf):
    """Return the mean of one number an image [N] with its normal interval, cut to [lowest, highest]; None without."""
    if not len(values):
        return Estimate(None)
    value, half = float(np.mean(values)), Z95 * float(np.std(values)) / math.sqrt(len(values))
    return within(Estimate(value, value - half, value + half), lowest, highest)


def ratio(parts, wholes, highest=math.inf):
    """Return sum(parts) / sum(wholes) over images [N], both >= 0, with its interval in [0, highest]; or None for 0 / 0.

    The linearised variance of a ratio (Cochran 1977, Sampling Techniques, 2.11) after two images of ratio 1 and two of
    ratio 0 were added, as Agresti & Coull (1998, The American Statistician 52) do for a proportion: else an interval
    has no width where no image, or every one, has its part, and too little near there.
    """
    total = wholes.sum()
    if not total:
        return Estimate(None)
    value = float(parts.sum() / total)
    parts, wholes = np.append(parts, (1, 1, 0, 0)), np.append(wholes, (1, 1, 1, 1))
    middle = parts.sum() / wholes.sum()
    half = Z95 * math.sqrt(((parts - middle * wholes) ** 2).sum()) / wholes.sum()
    return within(Estimate(value, float(middle - half), float(middle + half)), 0.0, highest)


def resampled_means(values, count=1000, seed=0, at_once=50):
    """Return the mean of values [labels, draws, images] over draws and images, both resampled, [count, labels].

    Images and draws are resampled independently and the same for all labels (Owen 2007, Annals of Applied Statistics 1,
    the pigeonhole bootstrap). The same seed and shape give the same resamples, so ratios can be taken.
    """
    (_, draws, images), random, found = values.shape, np.random.default_rng(seed), []
    for _ in range(count // at_once):
        of_images = random.multinomial(images, np.full(images, 1 / images), at_once) / images
        of_draws = random.multinomial(draws, np.full(draws, 1 / draws), at_once) / draws
        found.append(np.einsum("ldr,rd->rl", values @ of_images.T, of_draws))
    return np.concatenate(found) if found else np.empty((0, len(values)))


def with_percentiles(value, resampled):
    """Return a value with the 2.5 % and 97.5 % quantiles of its resamples [count]; without any, no interval."""
    if not len(resampled):
        return Estimate(float(value))
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


def correct(responses, k=1):
    """Return for each image whether its label is among the first k answers, bool [N]."""
    ranked = responses.values.reshape(len(responses.values), -1)
    return (ranked[:, :k] == responses.labels[:, None]).any(1) & responses.counts


def top(responses, k=1):
    """Return the top-k accuracy."""
    estimate = proportion(int(correct(responses, k).sum()), int(responses.counts.sum()))
    return replace(estimate, sets=(responses.images.name,))


def accuracies(responses, name, ks=(1, 5)):
    """Yield `top1_acc/NAME` and `top5_acc/NAME`."""
    for k in ks:
        yield f"top{k}_acc/{name}", top(responses, k)


def among(responses, label_sets, k=1):
    """Return the share of images with one of the first k answers in the image's label set, in per cent.

    Images with an empty set are left out. With the ReaL labels and k = 1 this is the ReaL accuracy.
    """
    counts = responses.counts & np.array([bool(labels) for labels in label_sets])
    hits = sum(not label_sets[i].isdisjoint(responses.values[i, :k].tolist()) for i in np.flatnonzero(counts))
    return replace(proportion(hits, int(counts.sum())), sets=(responses.images.name,))


def combined(parts, constant=0.0):
    """Return constant + the sum of weight * top-1 accuracy over `parts`, pairs (weight, responses).

    The interval treats images as the unit: the same photograph under several corruptions is one draw, so its share of
    every part goes into one term (the cluster-robust variance of a weighted mean; Cameron & Miller 2015, section II).
    """
    parts = list(parts)
    sets = tuple(dict.fromkeys(responses.images.name for _, responses in parts))
    value, keys, shares = constant, [], []
    for weight, responses in parts:
        counted = responses.counts
        hits = correct(responses)[counted]
        if not len(hits):
            return Estimate(None, sets=sets)
        value += weight * 100 * int(hits.sum()) / len(hits)
        keys.append(responses.images.keys[counted])
        shares.append(weight * 100 * (hits - hits.mean()) / len(hits))
    _, image = np.unique(np.concatenate(keys), return_inverse=True)
    half = Z95 * math.sqrt(float((np.bincount(image, np.concatenate(shares)) ** 2).sum()))
    return Estimate(value, value - half, value + half, sets)


def mean_accuracy(parts):
    """Return the mean top-1 accuracy over several responses of one network."""
    parts = list(parts)
    return within(combined([(1 / len(parts), part) for part in parts]), 0.0, 100.0)


def mean_corruption_error(severities):
    """Return mCE in per cent from {corruption: [responses of severity 1..5]} for the 15 corruptions of ALEXNET_ERROR.

    Mean over corruptions of the error summed over severities, divided by AlexNet's (Hendrycks & Dietterich 2019, 3).
    """
    parts, constant = [], 0.0
    for corruption, alexnet in ALEXNET_ERROR.items():
        weight = 1 / (len(ALEXNET_ERROR) * alexnet * len(severities[corruption]))
        parts += [(-weight, responses) for responses in severities[corruption]]
        constant += 100 / (len(ALEXNET_ERROR) * alexnet)
    return within(combined(parts, constant), 0.0, math.inf)


def per_class(responses):
    """Return {class number: (hits, images)} of the top-1 answers."""
    counted, hits, labels = responses.counts, correct(responses), responses.labels
    return {
        int(number): (int(hits[counted & (labels == number)].sum()), int((counted & (labels == number)).sum()))
        for number in np.unique(labels[counted])
    }

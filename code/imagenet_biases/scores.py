"""Scores: pure functions on responses and labels. Counts are integers over images, divided once.

Every function takes `Responses` (imagenet_biases.evaluate): `answers` int16 [N, k] with -1 for an image left out, `images`
with `labels` int64 [N] and `keys` int64 [N]. Accuracies are in per cent.
"""

import math
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution

# AlexNet's published top-1 errors on ImageNet-C, mean over the five severities (Hendrycks & Dietterich, ICLR 2019,
# arXiv:1903.12261, table 2), by which the mean corruption error is normalised.
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (None where there is none)."""

    value: float | None
    low: float | None = None
    high: float | None = None


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


def seen(responses):
    """Return which images count, bool [N]: all but those left out as unreadable."""
    return responses.answers[:, 0] >= 0


def correct(responses, k=1):
    """Return for each image whether its label is among the first k answers, bool [N]."""
    return (responses.answers[:, :k] == responses.images.labels[:, None]).any(1)


def top(responses, k=1):
    """Return the top-k accuracy."""
    return proportion(int(correct(responses, k).sum()), int(seen(responses).sum()))


def accuracies(responses, name, ks=(1, 5)):
    """Yield `top1_acc/NAME` and `top5_acc/NAME`."""
    for k in ks:
        yield f"top{k}_acc/{name}", top(responses, k)


def real(responses, label_sets):
    """Return the ReaL accuracy: the first answer is in the image's label set; images with an empty set are left out."""
    counts = seen(responses) & np.array([bool(labels) for labels in label_sets])
    hits = sum(int(responses.answers[i, 0]) in label_sets[i] for i in np.flatnonzero(counts))
    return proportion(hits, int(counts.sum()))


def combined(parts, constant=0.0):
    """Return constant + the sum of weight * top-1 accuracy over `parts`, pairs (weight, responses).

    The interval treats images as the unit: the same photograph under several corruptions is one draw, so its share of
    every part goes into one term (the cluster-robust variance of a weighted mean; Cameron & Miller 2015, section II).
    """
    value, keys, shares = constant, [], []
    for weight, responses in parts:
        counted = seen(responses)
        hits = correct(responses)[counted]
        if not len(hits):
            return Estimate(None)
        value += weight * 100 * int(hits.sum()) / len(hits)
        keys.append(responses.images.keys[counted])
        shares.append(weight * 100 * (hits - hits.mean()) / len(hits))
    _, image = np.unique(np.concatenate(keys), return_inverse=True)
    half = Z95 * math.sqrt(float((np.bincount(image, np.concatenate(shares)) ** 2).sum()))
    return Estimate(value, value - half, value + half)


def mean_accuracy(parts):
    """Return the mean top-1 accuracy over several responses of one network."""
    parts = list(parts)
    return combined([(1 / len(parts), part) for part in parts])


def mean_corruption_error(severities):
    """Return mCE in per cent from {corruption: [responses of severity 1..5]} for the 15 corruptions of ALEXNET_ERROR.

    Mean over corruptions of the error summed over severities, divided by AlexNet's (Hendrycks & Dietterich 2019, 3).
    """
    parts, constant = [], 0.0
    for corruption, alexnet in ALEXNET_ERROR.items():
        weight = 1 / (len(ALEXNET_ERROR) * alexnet * len(severities[corruption]))
        parts += [(-weight, responses) for responses in severities[corruption]]
        constant += 100 / (len(ALEXNET_ERROR) * alexnet)
    return combined(parts, constant)


def per_class(responses):
    """Return {class number: (hits, images)} of the top-1 answers."""
    counted, hits, labels = seen(responses), correct(responses), responses.images.labels
    return {
        int(number): (int(hits[counted & (labels == number)].sum()), int((counted & (labels == number)).sum()))
        for number in np.unique(labels[counted])
    }

"""Quality of convolution filters: how many are dead, how varied and different they are, how far from random ones.

C_in is that of one group: a layer has n = C_out * C_in filters of p = k * k weights each.
Definitions: Gavrikov & Keuper, CVPR 2022, arXiv:2203.15331, as its published figures have them; those of random filters
are closed forms.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from imagenet_biases.base.errors import UserError

Measures = dict[str, Any]

SPARSITY_THRESHOLD = 0.01  # published
LEVEL = 0.05  # of the test for random filters
BINS, EMPTY = 70, 2.0**-23  # of the histograms behind a shift; probability of an empty bin before normalizing
# the published normalization of the variance entropy by n, a sigmoid fitted to 3 x 3 filters
LIMIT, MIDDLE, SLOPE, OFFSET = 1.2618047, 2.30436435, 0.88767525, -0.31050834


def convolutions(network: torch.nn.Module, kernel: int | str = 3) -> dict[str, Float64[Tensor, "C_out C_in k k"]]:
    """Return {layer: weight} of the convolutions with kernel x kernel filters, on the CPU.

    kernel: 3, or 'all' for every filter of more than one weight. Subclasses of Conv2d count, with the weights they hold
    (standardized convolutions before they standardize them); convolutions called as functions cannot be seen.
    Raises UserError for weights that are not finite.
    """
    weights = {}
    for name, module in network.named_modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        size = tuple(module.kernel_size)
        if size == (3, 3) or (kernel == "all" and math.prod(size) > 1):
            weight = module.weight.detach().double().cpu().contiguous()
            if not weight.isfinite().all():
                raise UserError(f"the weights of the layer {name} are not all finite: the checkpoint is damaged")
            weights[name.removeprefix("body.")] = weight
    return weights


# Measures of one layer ------------------------------------------------------------------------------------------------


def quality(weight: Float64[Tensor, "C_out C_in k k"], threshold: float = SPARSITY_THRESHOLD) -> Measures:
    """Return the measures of one layer; None for what so few filters do not allow.

    sp: share of sparse filters; ve: variance entropy, ve_norm as published relative to a fitted curve (3 x 3 only),
    ve_rel relative to what random filters are expected to have; ve_clean, ve_clean_norm: without the sparse filters;
    or: orthogonality, or_rel likewise; ks: distance from i.i.d. weights; filters, dead_channels: numbers.
    """
    filters = weight.flatten(2).flatten(0, 1)
    n, p = filters.shape
    sparse = sparse_filters(filters, threshold)
    live = weight.flatten(1)[weight.flatten(1).square().sum(1) > 0]
    result = {"filters": n, "dead_channels": len(weight) - len(live), "sp": float(sparse.double().mean())}
    for name, chosen in (("ve", filters), ("ve_clean", filters[~sparse])):
        enough = len(chosen) > p
        result[name] = variance_entropy(chosen) if enough else None
        result[f"{name}_norm"] = result[name] / fitted_entropy(len(chosen)) if enough and p == 9 else None
    result["or"] = orthogonality(live) if len(live) > 1 else None
    result["ve_rel"] = None if result["ve"] is None else result["ve"] / random_entropy(n, p)
    result["or_rel"] = None if result["or"] is None else result["or"] / random_orthogonality(live.shape[1])
    result["ks"] = distance_from_iid(weight.flatten())
    return result


def sparse_filters(filters: Float64[Tensor, "n p"], threshold: float) -> Bool[Tensor, " n"]:
    """Return which filters [n, p] have all weights below `threshold` times the layer's largest, as booleans."""
    largest = filters.abs().max()
    return filters.abs().amax(1) < (threshold * largest if largest > 0 else 1)


def variance_entropy(filters: Float64[Tensor, "n p"]) -> float:
    """Return the entropy (base 10) of the shares of variance along the principal components of filters [n, p].

    0: all filters are one pattern; log10(p): patterns of all kinds alike.
    """
    centred = filters - filters.mean(0)
    variances = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    total = variances.sum()
    if total <= 1e-24 * filters.square().sum():  # rounding: the filters are equal
        return 0.0
    return float(torch.special.entr(variances / total).sum()) / math.log(10)


def orthogonality(channels: Float64[Tensor, "C d"]) -> float:
    """Return 1 - mean |cosine| over the pairs of output channels [C, d], none of which is zero."""
    unit = channels / channels.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).abs()
    count = len(channels)
    return 1 - float(cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))


def distance_from_iid(weights: Float64[Tensor, " N"]) -> float | None:
    """Return the Kolmogorov-Smirnov distance of weights [N] from the normal or the uniform distribution of the same
    mean and standard deviation, whichever is nearer; None where all weights are equal.
    """
    ordered = ((weights - weights.mean()) / weights.std()).sort().values
    if not ordered.isfinite().all():
        return None
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    distances = []
    for expected in (torch.special.ndtr(ordered), (0.5 + ordered / math.sqrt(12)).clamp(0, 1)):
        distances.append(float(torch.maximum(steps[1:] - expected, expected - steps[:-1]).max()))
    return min(distances)


def over_layers(layers: Mapping[str, Measures], key: str, kind: str) -> float | None:
    """Return the mean over layers weighted by their filters ('wmean'), 'max' or 'min' of a measure; None without any.

    layers: {layer: measures}, as `quality` returns them.
    """
    values = {name: measures[key] for name, measures in layers.items() if measures[key] is not None}
    if not values:
        return None
    if kind != "wmean":
        return {"max": max, "min": min}[kind](values.values())
    total = sum(layers[name]["filters"] for name in values)
    return sum(value * layers[name]["filters"] for name, value in values.items()) / total


# What random filters have ---------------------------------------------------------------------------------------------


def fitted_entropy(n: int) -> float:
    """Return the curve by which the published figures normalize the variance entropy of n 3 x 3 filters."""
    return LIMIT / (1 + math.exp(-SLOPE * (math.log2(n) - MIDDLE))) + OFFSET


def random_entropy(n: int, p: int) -> float:
    """Return the expected variance entropy of n i.i.d. filters of p weights, to the second order of their spectrum."""
    return math.log10(p) - (p + 2) * (p - 1) / (2 * p * math.log(10) * (n - 1))


def random_orthogonality(d: int) -> float:
    """Return the expected orthogonality of i.i.d. Gaussian channels of d weights: 1 - E|cos| of random directions."""
    return 1 - math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


def is_random(measures: Measures, weight: Float64[Tensor, "C_out C_in k k"], level: float) -> bool | None:
    """Whether both measures of a layer lie where those of i.i.d. Gaussian filters do with probability 1 - level each.

    Variance entropy: n - 1 times what it lacks is chi-square by John's test of sphericity (1971, Biometrika 58).
    Orthogonality: the cosines of random directions are pairwise independent, so their mean has a known variance.
    None where one of the two is not measured.
    """
    from scipy.stats import chi2, norm

    if measures["ve"] is None or measures["or"] is None:
        return None
    (channels, d), p = weight.flatten(1).shape, weight[0, 0].numel()
    channels -= measures["dead_channels"]
    freedom = (p + 2) * (p - 1) / 2
    lack = (math.log10(p) - measures["ve"]) * p * math.log(10) * (measures["filters"] - 1)
    low, high = (chi2.ppf(quantile, freedom) for quantile in (level / 2, 1 - level / 2))
    expected = random_orthogonality(d)
    variance = (1 / d - (1 - expected) ** 2) / (channels * (channels - 1) / 2)
    return bool(low <= lack <= high and abs(measures["or"] - expected) <= norm.isf(level / 2) * math.sqrt(variance))


def random_layers(
    layers: Mapping[str, Measures], weights: Mapping[str, Tensor], level: float = LEVEL
) -> dict[str, bool]:
    """Return which layers cannot be told from random filters, {layer: bool}, without those that are not measured.

    All tests of a network together err with probability `level`: where all filters are random, all layers are called
    random in 19 of 20 networks. layers: {layer: measures}; weights: {layer: weight}.
    """
    level_per_test = level / (2 * max(len(layers), 1))
    random = {}
    for name, measures in layers.items():
        verdict = is_random(measures, weights[name], level_per_test)
        if verdict is not None:
            random[name] = verdict
    return random


# Between two networks -------------------------------------------------------------------------------------------------


def pooled(network: torch.nn.Module) -> Float64[Tensor, "n 9"]:
    """Return the 3 x 3 filters of all layers of a network."""
    filters = [weight.flatten(2).flatten(0, 1) for weight in convolutions(network).values()]
    return torch.cat([torch.zeros(0, 9, dtype=torch.float64), *filters])


def shift(first: Float64[Tensor, "n p"], second: Float64[Tensor, "m p"]) -> float | None:
    """Return how far apart two sets of filters lie, in nats: symmetric, 0 for the same distribution.

    None if one of them is empty.
    Each filter is divided by its largest absolute weight; the principal components are those of both sets together; per
    component the symmetric Kullback-Leibler divergence of two histograms, weighted by the share of variance.
    """
    if not (len(first) and len(second)):
        return None
    first, second = (filters / filters.abs().amax(1, keepdim=True).clamp(min=1e-300) for filters in (first, second))
    both = torch.cat([first, second])
    # what is centred and summed must not depend on which set comes first
    middle = (first.sum(0) + second.sum(0)) / len(both)
    first, second = first - middle, second - middle
    variances, axes = torch.linalg.eigh(first.T @ first + second.T @ second)
    shares = variances.clamp(min=0) / variances.sum()
    total = 0.0
    for share, axis in zip(shares.tolist(), axes.T, strict=True):
        if share > 0:
            total += share * divergence((first @ axis).numpy(), (second @ axis).numpy())
    return float(total)


def divergence(first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " m"]) -> float:
    """Return KL(p|q) + KL(q|p) in nats of two samples, from histograms over their common range."""
    span = min(first.min(), second.min()), max(first.max(), second.max())
    if not span[0] < span[1]:
        return 0.0
    p, q = (np.histogram(sample, BINS, span)[0] / len(sample) for sample in (first, second))
    p, q = (np.where(shares > 0, shares, EMPTY) for shares in (p, q))
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())

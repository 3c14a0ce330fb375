"""Half-samples: what a benchmark reports on random halves of its images, from the responses it has anyway.

They tell how reliable a measure is, and how sure a difference between two networks on the same images is: which half
an image is in depends on the image alone, so the halves of all networks are the same. For a measure T of independent
images the difference of its two halves has four times the variance of T (Shao & Wu, Annals of Statistics 17, 1989:
delete-half jackknife), whatever T is, if it is smooth enough; the same holds for the difference of two networks' T.
"""

import dataclasses
import functools
import itertools
import warnings

import numpy as np

from imagenet_biases.base.errors import noted
from imagenet_biases.estimate import Estimate

SPLITS = 16  # random ways of halving
FEWEST = 32  # images
T95 = 2.1199  # the 97.5 % quantile of Student's t with so many degrees of freedom


def in_first(keys, split):
    """Return which images, by their keys int64 [N], are in the first half of a split, bool [N]."""
    import torch  # here: tables and figures import this module, and need no torch

    from imagenet_biases.stimuli.seeded import streams
    from imagenet_biases.vocabulary import Batch

    return (streams(Batch(torch.from_numpy(keys), 0), f"half {split}") & 1).numpy().astype(bool)


def halves(benchmark, found):
    """Return {metric: float64 [SPLITS, 2]}, what a benchmark reports on the halves; NaN where a half has no value.

    Nothing where it shows no images or fewer than FEWEST. A report that fails on half of the images costs a warning:
    what was measured of the whole stands.
    """
    if not found.all() or min(one.counts.sum() for one in found.all()) < FEWEST:
        return {}
    values = {}
    try:
        with noted():  # what there is to say of a report has been said of the whole
            for split, half in itertools.product(range(SPLITS), (0, 1)):
                for name, one in benchmark.report(_half(found, split, half)):
                    value = one.value if isinstance(one, Estimate) else one
                    both = values.setdefault(name, np.full((SPLITS, 2), np.nan))
                    both[split, half] = np.nan if value is None else value
    except Exception as error:
        line = f"{benchmark.name} does not report on half of the images ({type(error).__name__}: {error})"
        warnings.warn(f"{line}: differences from other networks will have no interval", stacklevel=2)
        return {}
    return values


def _half(found, split, half):
    from imagenet_biases.vocabulary import Results

    @functools.cache
    def chosen(images):
        return in_first(images.keys, split) == (half == 0)

    responses = [dataclasses.replace(one, counts=one.counts & chosen(one.images)) for one in found.all()]
    return Results(responses, found.network, found.options, "half")


def standard_error(values):
    """Return the standard error of a measure, or of a difference of two, from its halves [SPLITS, 2].

    NaN where fewer than half of the splits have both.
    """
    gaps = values[:, 0] - values[:, 1]
    gaps = gaps[np.isfinite(gaps)]
    return float(np.sqrt(np.mean(gaps**2)) / 2) if len(gaps) >= SPLITS / 2 else float("nan")


def difference(value, other, values, others):
    """Return value - other with its 95 % interval, paired over the images, as an Estimate.

    values, others: the halves [SPLITS, 2] of both. Student's t with as many degrees of freedom as splits.
    """
    error = standard_error(values - others)
    reach = T95 * error
    gap = value - other
    return Estimate(gap, gap - reach, gap + reach) if np.isfinite(error) else Estimate(gap)


def as_text(values):
    """Return halves as one line: SPLITS pairs, to six significant digits."""
    return " ".join(f"{value:.6g}" for value in values.ravel())


def from_text(text):
    """Return halves [SPLITS, 2] from their line. Raises ValueError for anything else."""
    return np.array([float(word) for word in text.split()]).reshape(SPLITS, 2)

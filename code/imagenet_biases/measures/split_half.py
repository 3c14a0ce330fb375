"""Half-samples: what a benchmark reports on random halves of its images, from the responses it has anyway.

They tell how reliable a measure is, and how certain a difference between two networks on the same images: which half an
image is in depends on the image alone, so all networks have the same halves. For a measure T of independent
images the difference of its two halves has four times the variance of T (Shao & Wu, Annals of Statistics 17, 1989:
delete-half jackknife), whatever T is, if it is smooth enough; the same holds for the difference of two networks' T.
"""

import dataclasses
import itertools
import warnings
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float64, Int64

from imagenet_biases.base.errors import collected_warnings
from imagenet_biases.estimate import Estimate

if TYPE_CHECKING:
    from imagenet_biases.images.sets import ImageSet
    from imagenet_biases.vocabulary import Benchmark, Results

SPLITS = 16  # random ways of halving
FEWEST = 32  # images
T95 = 2.1199  # the 97.5 % quantile of Student's t with so many degrees of freedom


Halves = Float64[np.ndarray, "SPLITS 2"]


def in_first(keys: Int64[np.ndarray, " N"], split: int) -> Bool[np.ndarray, " N"]:
    """Return which images, by their keys, are in the first half of a split."""
    import torch  # here: tables and figures import this module, and need no torch

    from imagenet_biases.stimuli.seeded import streams
    from imagenet_biases.vocabulary import Batch

    return (streams(Batch(torch.from_numpy(keys), 0), f"half {split}") & 1).numpy().astype(bool)


def halves(benchmark: "Benchmark", results: "Results") -> dict[str, Halves]:
    """Return what a benchmark reports on the halves, by metric; NaN where a half has no value.

    {} if it shows fewer than FEWEST images, or none. A report that fails on half of the images costs a warning: what
    was measured on the whole stands.
    """
    if not results.all() or min(responses.counts.sum() for responses in results.all()) < FEWEST:
        return {}
    values: dict[str, Halves] = {}
    try:
        with collected_warnings():  # the report on the whole has warned already
            for split, half in itertools.product(range(SPLITS), (0, 1)):
                for name, reported in benchmark.report(_half(results, split, half)):
                    value = reported.value if isinstance(reported, Estimate) else reported
                    pairs = values.setdefault(name, np.full((SPLITS, 2), np.nan))
                    pairs[split, half] = np.nan if value is None else value
    except Exception as error:
        line = f"{benchmark.name} does not report on half of the images ({type(error).__name__}: {error})"
        warnings.warn(f"{line}: differences from other networks will have no interval", stacklevel=2)
        return {}
    return values


def _half(results: "Results", split: int, half: int) -> "Results":
    from imagenet_biases.vocabulary import Results

    members: dict[ImageSet, Bool[np.ndarray, " N"]] = {}
    responses = []
    for whole in results.all():
        if whole.images not in members:
            members[whole.images] = in_first(whole.images.keys, split) == (half == 0)
        responses.append(dataclasses.replace(whole, counts=whole.counts & members[whole.images]))
    return Results(responses, results.network, results.options, "half")


def standard_error(values: Halves) -> float:
    """Return the standard error of a measure, or of a difference of two, from its halves.

    NaN if fewer than half of the splits have both halves.
    """
    gaps = values[:, 0] - values[:, 1]
    gaps = gaps[np.isfinite(gaps)]
    return float(np.sqrt(np.mean(gaps**2)) / 2) if len(gaps) >= SPLITS / 2 else float("nan")


def difference(value: float, reference: float, values: Halves, reference_values: Halves) -> Estimate:
    """Return value - reference with its 95 % interval, paired over the images.

    Args:
        values, reference_values: the halves of both. Student's t with as many degrees of freedom as splits.
    """
    error = standard_error(values - reference_values)
    gap, half_width = value - reference, T95 * error
    return Estimate(gap, gap - half_width, gap + half_width) if np.isfinite(error) else Estimate(gap)


def as_text(values: Halves) -> str:
    """Return halves as one line: SPLITS pairs, to six significant digits."""
    return " ".join(f"{value:.6g}" for value in values.ravel())


def from_text(text: str) -> Halves:
    """Return halves from their line. Raises ValueError for anything else."""
    return np.array(list(map(float, text.split()))).reshape(SPLITS, 2)

"""A value with its interval, apart from vocabulary.py so that tables and figures need not import torch."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (None where there is none).

    Attributes:
        sets: names of the image sets it rests on; None: all that its benchmark shows. A value that rests on whole sets
            is whole, whatever else its benchmark lacks.
        whole_set: the interval of what the whole sets would give, for a value on samples; None: as for a sample from
            one set (`for_whole_set`).
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    sets: tuple[str, ...] | None = None
    whole_set: tuple[float, float] | None = None

    def as_share(self) -> "Estimate":
        """Return an estimate in per cent as one in 0...1."""
        value, low, high = (number and number / 100 for number in (self.value, self.low, self.high))
        whole_set = None if self.whole_set is None else (self.whole_set[0] / 100, self.whole_set[1] / 100)
        return Estimate(value, low, high, self.sets, whole_set)

    def for_whole_set(self, unseen: float) -> tuple[float, float] | None:
        """Return the 95 % interval of what the whole image sets would give; None where there is no interval.

        For simple random samples without replacement the variance has the factor 1 - n / N (Cochran 1977, Sampling
        Techniques, 2.6); the distance of each bound from the value has its root.

        Args:
            unseen: 1 - n / N, the share of the N images that the sample of n leaves out.
        """
        if self.whole_set is not None or self.value is None or self.low is None or self.high is None:
            return self.whole_set
        narrower = math.sqrt(unseen)
        return self.value - narrower * (self.value - self.low), self.value + narrower * (self.high - self.value)


def whole_set_percentiles(
    value: float, resampled: Sequence[float] | Float[np.ndarray, " resamples"], factor: float
) -> tuple[float, float] | None:
    """Return the 95 % interval of what a whole image set would give, from resamples of a sample of it.

    The bounds are the B resamples' order statistics k / (B + 1), between which a further one lies with just this
    probability (Hyndman & Fan 1996, The American Statistician 50, type 6).

    Args:
        factor: on the variance, as measures.accuracy.percentile_factor gives it.
    """
    low, high = np.quantile(resampled, (0.025, 0.975), method="weibull")
    return Estimate(float(value), float(low), float(high)).for_whole_set(factor)


Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def proportion(hits: int, images: int) -> Estimate:
    """Return 100 * hits / images with the Wilson interval (Wilson 1927, JASA 22); None without images."""
    if not images:
        return Estimate(None)
    low, high = _wilson(hits, images)
    return Estimate(100 * (hits / images), 100 * low, 100 * high)  # not 100 * hits / images: its last digit differs


@functools.lru_cache(maxsize=1 << 16)
def _wilson(hits: int, images: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    interval = binomtest(hits, images).proportion_ci(method="wilson")
    return interval.low, interval.high

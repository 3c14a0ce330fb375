"""A value with its interval, apart from vocabulary.py so that tables and figures need not import torch."""

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (None where there is none).

    `sets`: names of the image sets it rests on; None: all that its benchmark shows. A value that rests on whole sets is
    whole, whatever else its benchmark lacks.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    sets: tuple[str, ...] | None = None

    def as_share(self) -> "Estimate":
        """Return an estimate in per cent as one in 0...1."""
        value, low, high = (number and number / 100 for number in (self.value, self.low, self.high))
        return Estimate(value, low, high, self.sets)


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

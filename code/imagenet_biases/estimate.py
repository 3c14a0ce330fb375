"""A value with its interval, apart from vocabulary.py so that tables and figures need not import torch."""

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

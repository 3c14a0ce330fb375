"""Where a network stands among the study's 48 published ones: rank and percentile of a score, a bias or any metric."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from imagenet_biases.results.table import derived, study
from imagenet_biases.study import DRAWN_CATEGORIES, about


class Standing(NamedTuple):
    """A value's place among other networks' values.

    Attributes:
        rank: 1...`of`, the best first; where neither end is better (biases), the largest first. Ties share the better.
        of: how many are ranked, the value itself included.
        percentile: per cent of the other values that it is ahead of, a tie counting half.
        better: 'higher', 'lower', or '' where the rank is by size only.
    """

    rank: int
    of: int
    percentile: float
    better: str


def standing(values: pd.Series | np.ndarray, column: str, value: float | None) -> Standing | None:
    """Return a value's standing among other networks' values [n] of a metric or derived column.

    NaN values do not count. None where the value, or every other, is NaN.
    """
    better = about(column).better
    sign = -1 if better == "lower" else 1
    compared = sign * np.asarray(values, float)
    compared = compared[~np.isnan(compared)]
    if value is None or np.isnan(value) or not len(compared):
        return None
    ahead, level = int((compared > sign * value).sum()), int((compared == sign * value).sum())
    percentile = 100 * (len(compared) - ahead - level / 2) / len(compared)
    return Standing(ahead + 1, len(compared) + 1, percentile, better)


def ranks(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return every network's standing among the study's published networks, one row per network, source and column.

    A network of the study is compared with the others: its own published value does not count. Networks that were made
    for drawn images have no rank among photographs, and unmeasured values have none.

    Args:
        table: as read_table gives it.
        columns: names of metrics or derived columns.

    Returns:
        Columns: model, source, column, value, rank, of, percentile, better.
    """
    networks = study(table).reindex(columns=["model", *columns])
    rows = []
    for row in derived(table).reindex(columns=["model", "category", "source", *columns]).to_dict("records"):
        if row["category"] in DRAWN_CATEGORIES:
            continue
        peers = networks[networks["model"] != row["model"]]
        for column in columns:
            if place := standing(peers[column], column, row[column]):
                rows.append((row["model"], row["source"], column, row[column], *place))
    return pd.DataFrame(rows, columns=["model", "source", "column", "value", *Standing._fields])

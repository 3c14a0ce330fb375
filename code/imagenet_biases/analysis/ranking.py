"""Where a network stands among the study's 48 published ones: rank and percentile of a score, a bias or any metric."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from imagenet_biases.results.table import derived, study
from imagenet_biases.study import DRAWN_CATEGORIES, about


class Standing(NamedTuple):
    """A value's place among others.

    `rank` 1...`of`, the best first; where neither is better (the biases), the largest first. Ties share the better
    rank. `of` counts the others and the value itself. `percentile`: per cent of the others that it is ahead of, a tie
    counting half. `better`: 'higher', 'lower', or '' where the rank is by size only.
    """

    rank: int
    of: int
    percentile: float
    better: str


def standing(values, column, value):
    """Return the Standing of a value of a metric or derived column among those of others, None where it is NaN.

    `values`: the others' [n], NaN where unknown, which do not count. None, too, where none of them is known.
    """
    better = about(column).better
    sign = -1 if better == "lower" else 1
    others = sign * np.asarray(values, float)
    others = others[~np.isnan(others)]
    if value is None or np.isnan(value) or not len(others):
        return None
    ahead, level = int((others > sign * value).sum()), int((others == sign * value).sum())
    percentile = 100 * (len(others) - ahead - level / 2) / len(others)
    return Standing(ahead + 1, len(others) + 1, percentile, better)


def ranks(table, columns):
    """Return every network's Standing among the study's published networks, one row a network, source and column.

    `table`: as read_table gives it; `columns`: names of metrics or derived columns. A network of the study is compared
    with the others: its own published value does not count. Networks that were made for drawn images have no rank
    among photographs, and neither has what was not measured. Columns: model, source, column, value, rank, of,
    percentile, better.
    """
    networks = study(table).reindex(columns=["model", *columns])
    found = []
    for row in derived(table).reindex(columns=["model", "category", "source", *columns]).to_dict("records"):
        if row["category"] in DRAWN_CATEGORIES:
            continue
        others = networks[networks["model"] != row["model"]]
        for column in columns:
            if one := standing(others[column], column, row[column]):
                key = {"model": row["model"], "source": row["source"], "column": column, "value": row[column]}
                found.append(key | one._asdict())
    return pd.DataFrame(found, columns=["model", "source", "column", "value", *Standing._fields])

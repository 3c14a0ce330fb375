"""Where networks of a table stand among the study's 48 published ones."""

from collections.abc import Sequence

import pandas as pd

from imagenet_biases.results.places import Standing, standing
from imagenet_biases.results.table import Projections, derived, study
from imagenet_biases.study import DRAWN_CATEGORIES


def ranks(table: pd.DataFrame, columns: Sequence[str], projected: Projections | None = None) -> pd.DataFrame:
    """Return every network's standing among the study's published networks, one row per network, source and column.

    A network of the study is compared with the others: its own published value does not count. Networks that were made
    for drawn images have no rank among photographs, and unmeasured values have none.

    Args:
        table: as read_table gives it.
        columns: names of metrics or derived columns.
        projected: what the whole image sets of values on samples would give; None: all values are whole.

    Returns:
        Columns: model, source, column, value, rank, of, percentile, better, best, worst.
    """
    networks = study(table).reindex(columns=["model", *columns])
    rows = []
    for row in derived(table).reindex(columns=["model", "category", "source", *columns]).to_dict("records"):
        if row["category"] in DRAWN_CATEGORIES:
            continue
        peers = networks[networks["model"] != row["model"]]
        samples = (projected or {}).get((row["model"], row["source"]), {})
        for column in columns:
            if place := standing(peers[column], column, samples.get(column, row[column])):
                rows.append((row["model"], row["source"], column, row[column], *place))
    return pd.DataFrame(rows, columns=["model", "source", "column", "value", *Standing._fields])

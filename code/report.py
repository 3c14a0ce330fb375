"""Write the report: one HTML page that shows the merged table, needs no network and can be sent to anybody.

A table of networks to sort and filter, a scatter plot of any bias against any score, the rank correlations, and one
section a network: spectral curve, channel, corruptions, shape bias by category, provenance. Measured and published
values stand side by side. The page is code/imagenet_biases/analysis/report_page.html with plotly.js (MIT licence) and the data put in.

  python code/report.py                     # raw-data/benchmark.csv and results/ -> figures/report.html
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from plotly.offline import get_plotlyjs

from imagenet_biases.analysis.plotting import FIGURES, STYLES
from imagenet_biases.analysis.statistics import FEWEST, statistics
from imagenet_biases.errors import UserError, exit_on_user_error
from imagenet_biases.files import atomic
from imagenet_biases.results.table import (
    BIASES,
    CONTROL,
    CORRUPTIONS,
    CORRUPTIONS_BAR,
    CUTOFFS,
    GROUPS,
    KEYS,
    SCORES,
    TABLE,
    derived,
    group_of,
    read_table,
    study,
    unflagged,
)
from merge_results import local_records, select, uncertainty_path

PAGE = Path(__file__).parent / "imagenet_biases" / "analysis" / "report_page.html"
SAME = {  # the interval of a derived column is that of the metric it equals
    "Adversarial": "top1_acc/PGD-40/low",
    "LPP": "metric/bandpass/LPP",
    "HPP": "metric/bandpass/HPP",
    "spectral bias": "metric/bandpass/spectral-bias",
}


def page_data(table, uncertainty, found, records):
    """Return what the page shows, JSON-able: columns, rows with values and intervals, statistics, records.

    `uncertainty`: intervals of measured rows (columns as in merge_results), or None; `found`: as imagenet_biases.analysis.statistics
    gives it; `records`: those behind the measured rows.
    """
    everything = derived(table)
    main = list(dict.fromkeys([CONTROL, *SCORES, *map(unflagged, SCORES), *BIASES]))
    columns = list(dict.fromkeys([*main, *(column for column in table.columns if column not in KEYS)]))
    place = {column: number for number, column in enumerate(columns)}
    sets = [
        {
            "title": "Scores and biases",
            "columns": [place[column] for column in main if everything[column].notna().any()],
        }
    ]
    for group in GROUPS:
        members = [place[c] for c in columns if c in table and group_of(c) is group]
        sets += [{"title": group.title.replace("`", ""), "columns": members}] if members else []
    bounds = {}
    if uncertainty is not None:
        for one in uncertainty.dropna(subset=["low", "high"]).itertuples():
            bounds.setdefault((one.model, one.source), {})[one.metric] = [one.low, one.high]
    rows = []
    for values in everything[[*KEYS, *columns]].round(4).itertuples(index=False):
        own = bounds.get((values[0], values[2]), {})
        own |= {name: own[metric] for name, metric in SAME.items() if metric in own}
        rows.append(
            dict(zip(KEYS, values[: len(KEYS)], strict=True))
            | {"values": [None if pd.isna(value) else value for value in values[len(KEYS) :]]}
            | {"bounds": {place[column]: pair for column, pair in own.items() if column in place}}
        )
    return {
        "columns": [_column(column) for column in columns],
        "sets": sets,
        "categories": {category: vars(look) for category, look in STYLES.items()},
        "rows": rows,
        "scores": list(SCORES),
        "biases": list(BIASES),
        "statistics": json.loads(found.to_json(orient="records")),
        "records": [
            {key: r[key] for key in ("model", "benchmark", "details", "warnings", "provenance", "images")}
            for r in records
        ],
        "corruptions": [*CORRUPTIONS, *CORRUPTIONS_BAR],
        "cutoffs": CUTOFFS,
    }


def _column(column):
    """Return name, label with unit and, where the published values are a known slip, what is wrong with them."""
    if column in SCORES or column in BIASES:
        slip = "" if unflagged(column) == column else f"rests on a known slip; {unflagged(column)} does without"
        return {"name": column, "label": (SCORES | BIASES)[column], "slip": slip}
    if column.endswith("(unflagged)"):
        return {"name": column, "label": f"{column}: without the columns that are known slips", "slip": ""}
    group = group_of(column)
    return {"name": column, "label": f"{group.meaning} [{group.unit}]", "slip": group.slip}


@exit_on_user_error
def main(arguments=None):
    """Parse the command line; write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE, help="default: raw-data/benchmark.csv")
    parser.add_argument("--results", type=Path, default=Path("results"), help="records behind measured rows")
    parser.add_argument("--out", type=Path, default=FIGURES / "report.html", help="default: figures/report.html")
    args = parser.parse_args(arguments)

    table = read_table(args.table)
    networks = study(table)
    if len(networks) < FEWEST:
        raise UserError(f"{args.table} has {len(networks)} published networks of the study, too few for statistics")
    beside = uncertainty_path(args.table)
    records = select(local_records(args.results))[0] if args.results.is_dir() else []
    data = page_data(table, pd.read_csv(beside) if beside.exists() else None, statistics(networks), records)
    text = PAGE.read_text("utf-8")
    # '</' would end the script element; a JSON string may hold '<\/' as well
    for mark, filling in (("/*DATA*/null", json.dumps(data).replace("</", "<\\/")), ("/*PLOTLY*/", get_plotlyjs())):
        text = text.replace(mark, filling)
    with atomic(args.out, "w") as file:
        file.write(text)
    print(f"{args.out}: {len(data['rows'])} rows, {len(text) / 1e6:.1f} MB; open it in any browser")


if __name__ == "__main__":
    main()

"""Write the report: one HTML page that shows the tables, needs no network and can be sent to anybody.

A table of networks to sort and filter, a scatter plot of any bias against any score, the rank correlations, and one
section a network: spectral curve, channel, corruptions, shape bias by category, provenance. Measured and published
values stand side by side. The page is imagenet_biases/analysis/report_page.html with plotly.js (MIT licence) and the
data put in.

  python code/report.py                # raw-data/benchmark.csv, measured.csv and results/ -> figures/report.html
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from imagenet_biases.analysis.language import language_rows
from imagenet_biases.analysis.plotting import FIGURES, STYLES
from imagenet_biases.analysis.statistics import FEWEST, shared
from imagenet_biases.channel import FREQUENCIES, FWHM, Channel
from imagenet_biases.errors import Parser, UserError, exit_on_user_error
from imagenet_biases.files import atomic
from imagenet_biases.results.merge import local_records, select
from imagenet_biases.results.table import KEYS, derived, read_beside, read_table, study, tables
from imagenet_biases.study import (
    BIASES,
    CONTROL,
    CORRUPTIONS,
    CORRUPTIONS_BAR,
    CUTOFFS,
    DEFINITIONS,
    DERIVED,
    FURTHER_BIASES,
    SCORES,
    SEVERITIES,
    about,
    definition_of,
    unflagged,
)

PAGE = Path(__file__).parent / "imagenet_biases" / "analysis" / "report_page.html"
OCTAVES = np.linspace(0, len(FREQUENCIES) - 1, 121)  # where a channel's curve is drawn


def page_data(table, uncertainty, found, records):
    """Return what the page shows, JSON-able: columns, rows with values and intervals, statistics, records.

    `uncertainty`: intervals of measured rows (columns table.UNCERTAINTY); `found`: as analysis.statistics gives it;
    `records`: those behind the measured rows.
    """
    everything = derived(table)
    main = list(dict.fromkeys([CONTROL, *SCORES, *map(unflagged, SCORES), *BIASES, *FURTHER_BIASES]))
    columns = list(dict.fromkeys([*main, *(column for column in table.columns if column not in KEYS)]))
    place = {column: number for number, column in enumerate(columns)}
    shown = [place[column] for column in main if everything[column].notna().any()]
    sets = [{"title": "Scores and biases", "columns": shown}]
    for definition in DEFINITIONS:
        members = [place[c] for c in columns if c in table and definition_of(c) is definition]
        sets += [{"title": definition.title.replace("`", ""), "columns": members}] if members else []
    bounds = {}
    for one in uncertainty.dropna(subset=["low", "high"]).itertuples():
        bounds.setdefault((one.model, one.source), {})[one.metric] = [one.low, one.high]
    rows = []
    for _, row in everything.iterrows():
        own = bounds.get((row["model"], row["source"]), {})
        own |= {name: own[one.reported] for name, one in DERIVED.items() if one.reported in own}
        rows.append(
            {key: row[key] for key in KEYS}
            | {"values": [None if pd.isna(row[column]) else float(f"{row[column]:.6g}") for column in columns]}
            | {"bounds": {place[column]: pair for column, pair in own.items() if column in place}}
            | {"channel": _channel(*(row[name] for name in ("bw_norm", "cf_norm", "pns_norm")))}
        )
    return {
        "columns": [_column(column) for column in columns],
        "sets": sets,
        "categories": {category: vars(look) for category, look in STYLES.items()},
        "rows": rows,
        "scores": SCORES,
        "biases": [*BIASES, *FURTHER_BIASES],
        "statistics": json.loads(found.to_json(orient="records")),
        "records": [
            {key: r[key] for key in ("model", "benchmark", "details", "warnings", "provenance", "images")}
            | {
                "criticality": {
                    layer: value for layer, (value, *_) in r["layers"].get("metric/criticality", {}).items()
                }
            }
            for r in records
        ],
        "corruptions": [*CORRUPTIONS, *CORRUPTIONS_BAR],
        "severities": SEVERITIES,
        "cutoffs": CUTOFFS,
        "bands": FREQUENCIES.tolist(),
        "frequencies": (FREQUENCIES[0] * 2**OCTAVES).tolist(),
        "language": json.loads(language_rows(table).to_json(orient="records", double_precision=6)),
    }


def _channel(bandwidth, centre, sensitivity):
    """Return the thresholds of a channel at OCTAVES from its three numbers; None where one is missing."""
    if np.isnan([bandwidth, centre, sensitivity]).any():
        return None
    channel = Channel(4 + math.log2(sensitivity), math.log2(centre / FREQUENCIES[0]), bandwidth / FWHM)
    return channel(OCTAVES).round(4).tolist()


def _column(column):
    """Return name, axis label, meaning with unit, decimals, and what is wrong with the published values."""
    one = about(column)
    meaning = f"{one.meaning.replace('`', '')} [{one.unit}]"
    return {"name": column, "label": one.label, "meaning": meaning, "digits": one.digits, "slip": one.slip}


def page(data):
    """Return the page's HTML with plotly.js and `data` put in.

    The data is JSON in an element of its own, with everything that could end or comment out a script escaped, and both
    marks are replaced in one pass, so that nothing in the data is ever taken for one of them.
    """
    text = json.dumps(data)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    filling = {"PLOTLY": get_plotlyjs(), "DATA": text}
    return re.sub(r"/\*(PLOTLY|DATA)\*/", lambda mark: filling[mark[1]], PAGE.read_text("utf-8"))


@exit_on_user_error
def main(arguments=None):
    """Parse the command line; write the page."""
    parser = Parser(__doc__)
    parser.add_argument("--table", type=Path, nargs="+", help="default: raw-data/benchmark.csv and measured.csv")
    parser.add_argument("--results", type=Path, default=Path("results"), help="records behind measured rows")
    parser.add_argument("--out", type=Path, default=FIGURES / "report.html", help="default: figures/report.html")
    args = parser.parse_args(arguments)

    files = args.table or tables()
    table = read_table(files)
    networks = study(table)
    if len(networks) < FEWEST:
        raise UserError(f"{files[0]} has {len(networks)} published networks of the study, too few for statistics")
    records = select(local_records(args.results))[0] if args.results.is_dir() else []
    data = page_data(table, read_beside(files, "uncertainty"), shared(networks, FIGURES), records)
    text = page(data)
    with atomic(args.out, "w") as file:
        file.write(text)
    print(f"{args.out}: {len(data['rows'])} rows, {len(text) / 1e6:.1f} MB; open it in any browser")


if __name__ == "__main__":
    main()

"""Write the report: one HTML page that shows the tables, needs no network and can be sent to anybody.

First where the highlighted networks stand among the study's 48; then a table of networks to sort, filter and download,
a scatter plot and the rank correlation of any two columns, networks beside people where there are trial files, and one
section per network (its address: #network=NAME): spectral curve, channel, corruptions, shape bias by category,
provenance. Measured and published values stand side by side. The page is imagenet_biases/analysis/report_page.html
with plotly.js (MIT licence) and the data put in.

  python code/report.py                # raw-data/benchmark.csv, measured.csv and results/ -> figures/report.html
  python code/report.py --highlight resnet50_prime,my_network       # the page is about these
  python code/report.py --trials results MODEL-VS-HUMAN/raw-data    # with people beside what networks answered
"""

import datetime
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from imagenet_biases.analysis import statistics
from imagenet_biases.analysis.language import language_rows
from imagenet_biases.analysis.plotting import FIGURES, HIGHLIGHT_MARKERS, STYLES, Highlight, highlights, listed
from imagenet_biases.analysis.plotting_people import looks, published_likeness
from imagenet_biases.analysis.ranking import ranks
from imagenet_biases.analysis.statistics import FEWEST, shared
from imagenet_biases.analysis.witnesses import TITLES, agreement, paragraph
from imagenet_biases.base.errors import Parser, UserError, exit_on_user_error
from imagenet_biases.base.files import atomic
from imagenet_biases.humans.agreement import (
    PEOPLE,
    TRIALS_HELP,
    accuracy_by_condition,
    bias_by_category,
    consistency_by_condition,
    consistency_matrix,
    in_order,
    is_person,
    pairs,
    read_observers,
)
from imagenet_biases.measures.spatial_channel import FREQUENCIES, FWHM, Channel
from imagenet_biases.results.measurements import Projection
from imagenet_biases.results.merge import local_records, select
from imagenet_biases.results.provenance import commit
from imagenet_biases.results.table import (
    KEYS,
    PUBLISHED,
    RAW_DATA,
    Projections,
    beside_slips,
    derived,
    projections,
    read_beside,
    read_table,
    study,
    tables,
)
from imagenet_biases.study import (
    BIASES,
    CONTROL,
    CORRUPTIONS,
    CORRUPTIONS_BAR,
    CUTOFFS,
    DEFINITIONS,
    DERIVED,
    DRAWN_CATEGORIES,
    FURTHER_BIASES,
    SCORES,
    SEVERITIES,
    STUDY_CATEGORIES,
    about,
    definition_of,
    unflagged,
)

PAGE = Path(statistics.__file__).with_name("report_page.html")
OCTAVES = np.linspace(0, len(FREQUENCIES) - 1, 121)  # where a channel's curve is drawn
RANKED = (CONTROL, *SCORES, *BIASES, *FURTHER_BIASES)  # columns whose rank the page shows

Key = tuple[str, str]
"""Model and source."""


def page_data(
    table: pd.DataFrame,
    uncertainty: pd.DataFrame,
    associations: pd.DataFrame,
    records: Iterable[Mapping[str, Any]],
    names: Sequence[str] | None = None,
    trials: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Return what the page shows, JSON-able: columns, rows with values, intervals and ranks, statistics, records.

    Args:
        uncertainty: intervals of measured rows (columns table.UNCERTAINTY).
        associations: as analysis.statistics returns them.
        records: those behind the measured rows.
        names: of networks to highlight (default: see plotting.highlights).
        trials: a trial table of people and networks.
    """
    chosen = highlights(table, names)
    table = beside_slips(table)
    networks = derived(table)
    main = list(dict.fromkeys([CONTROL, *SCORES, *map(unflagged, SCORES), "ID (timm)", *BIASES, *FURTHER_BIASES]))
    columns = list(dict.fromkeys([*main, *(column for column in table.columns if column not in KEYS)]))
    place = {column: number for number, column in enumerate(columns)}
    samples = projections(table, uncertainty)
    return {
        "columns": list(map(_column, columns)),
        "sets": _sets(networks, main, place, set(table.columns)),
        "categories": {category: vars(look) for category, look in STYLES.items()},
        "rows": _rows(networks, columns, _bounds(uncertainty), _standings(table, place, samples), samples, chosen),
        "ranked": [place[column] for column in RANKED],
        "control": CONTROL,
        "scores": SCORES,
        "biases": [*BIASES, *FURTHER_BIASES],
        "statistics": json.loads(associations.to_json(orient="records")),
        "records": list(map(_record, records)),
        "corruptions": [*CORRUPTIONS, *CORRUPTIONS_BAR],
        "severities": SEVERITIES,
        "cutoffs": CUTOFFS,
        "bands": FREQUENCIES.tolist(),
        "frequencies": (FREQUENCIES[0] * 2**OCTAVES).tolist(),
        "criticality": _published_criticality(),
        "witnesses": _witnesses(table),
        "people": _people(trials, chosen),
        "likeness": _plain(published_likeness()),
        "language": json.loads(language_rows(table).to_json(orient="records", double_precision=6)),
        "made": _made(),
    }


def _sets(
    networks: pd.DataFrame, main: Iterable[str], place: Mapping[str, int], columns: set[str]
) -> list[dict[str, Any]]:
    """Return the sets of columns that the table can show, each without its empty columns."""
    nonempty = [place[column] for column in main if networks[column].notna().any()]
    sets = [{"title": "Scores and biases", "columns": nonempty}]
    for definition in DEFINITIONS:
        members = [place[column] for column in place if column in columns and definition_of(column) is definition]
        if members:
            sets.append({"title": definition.title.replace("`", ""), "columns": members})
    return sets


def _bounds(uncertainty: pd.DataFrame) -> dict[Key, dict[str, list[float]]]:
    """Return {(model, source): {metric: interval}}."""
    bounds: dict[Key, dict[str, list[float]]] = {}
    for row in uncertainty.dropna(subset=["low", "high"]).itertuples():
        bounds.setdefault((row.model, row.source), {})[row.metric] = [row.low, row.high]
    return bounds


def _rows(
    networks: pd.DataFrame,
    columns: Sequence[str],
    bounds: Mapping[Key, Mapping[str, list[float]]],
    standings: Mapping[Key, dict],
    samples: Projections,
    chosen: Iterable[Highlight],
) -> list[dict[str, Any]]:
    """Return the networks: keys, values and intervals by column number, ranks, channel, and how they are shown.

    `shares`: {column number: share of the images} of values on samples.
    `study`: one of the 48 published networks; `drawn`: made for drawn images, so without a place among photographs.
    """
    looks_of = {}
    for number, highlight in enumerate(chosen):
        looks_of[highlight.model, highlight.source] = vars(highlight) | {"place": number}
    rows = []
    for _, row in networks.iterrows():
        key, drawn = (row["model"], row["source"]), row["category"] in DRAWN_CATEGORIES
        projected = samples.get(key, {})
        intervals = _intervals(bounds.get(key, {}), projected)
        rows.append(
            {name: row[name] for name in KEYS}
            | {
                "values": [None if pd.isna(row[column]) else float(f"{row[column]:.6g}") for column in columns],
                "bounds": {number: intervals[name] for number, name in enumerate(columns) if name in intervals},
                "ranks": standings.get(key, {}),
                "shares": _shares(columns, projected),
                "channel": _channel(row["bw_norm"], row["cf_norm"], row["pns_norm"]),
                "study": row["source"] == "published" and row["category"] in STUDY_CATEGORIES,
                "drawn": drawn,
                "highlight": None if drawn else looks_of.get(key),
            }
        )
    return rows


def _intervals(measured: Mapping[str, list[float]], projected: Mapping[str, Projection]) -> dict[str, list[float]]:
    """Return a network's intervals by column: of metrics, of what is derived from one, of scores on samples."""
    intervals = dict(measured)
    for name, definition in DERIVED.items():
        if definition.reported in intervals:
            intervals[name] = intervals[definition.reported]
    for name, part in projected.items():  # scores over several sets have no other interval
        if part.share < 1 and part.low is not None and part.high is not None:
            intervals.setdefault(name, [part.low, part.high])
    return intervals


def _standings(
    table: pd.DataFrame, place: Mapping[str, int], samples: Projections
) -> dict[Key, dict[int, tuple[int, int, float, int, int]]]:
    """Return {(model, source): {column number: (rank, of, percentile, best, worst)}}."""
    standings: dict[Key, dict[int, tuple[int, int, float, int, int]]] = {}
    for row in ranks(table, RANKED, samples).itertuples():
        place_and_range = (row.rank, row.of, row.percentile, row.best, row.worst)
        standings.setdefault((row.model, row.source), {})[place[row.column]] = place_and_range
    return standings


def _record(record: Mapping[str, Any]) -> dict[str, Any]:
    layers = record["layers"].get("metric/criticality", {})
    part = {key: record[key] for key in ("model", "benchmark", "details", "warnings", "provenance", "images")}
    numbers = {layer: dict(zip(("value", "low", "high"), values, strict=True)) for layer, values in layers.items()}
    return part | {"criticality": numbers}


def _published_criticality() -> dict[str, list[float]]:
    """Return {layer of a ResNet-50: (mean, SD over 50 published networks, the baseline)}."""
    table = pd.read_csv(RAW_DATA / "criticality_layers.csv", index_col="layer") / 100
    return {layer: list(row) for layer, row in table[["mean_over_50", "sd_over_50", "tv_resnet50"]].round(5).iterrows()}


def _witnesses(table: pd.DataFrame) -> dict[str, Any]:
    """Return what other laboratories measured of the published networks: cells, titles of the sets, and a summary."""
    text = " ".join(paragraph(read_table(PUBLISHED)).replace("**", "").split())
    return {"cells": _plain(agreement(table)), "titles": TITLES, "text": text}


def _people(trials: pd.DataFrame | None, chosen: Sequence[Highlight]) -> dict[str, Any] | None:
    """Return the tables of humans.agreement, JSON-able, and how each observer looks; None without trials."""
    if trials is None:
        return None
    compared = pairs(trials)
    matrix = consistency_matrix(compared)
    accuracy, consistency = accuracy_by_condition(trials), consistency_by_condition(compared)
    observers = [*dict.fromkeys([PEOPLE, *(subj for subj in trials.subj if not is_person(subj))])]
    symbols = dict(HIGHLIGHT_MARKERS) | {"d": "diamond"}
    styles = {}
    for name, (colour, marker) in looks(observers, chosen).items():
        styles[name] = {"colour": colour, "symbol": symbols[marker]}
    return {
        "observers": styles,
        "bias": _plain(bias_by_category(trials)),
        "lines": {"accuracy": _plain(accuracy), "error consistency": _plain(consistency)},
        "levels": {name: in_order(name, levels) for name, levels in accuracy.groupby("set", sort=False)["level"]},
        "matrix": {"names": [*matrix.index], "values": json.loads(matrix.to_json(orient="values"))},
    }


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dicts, JSON-able: NaN is null."""
    return json.loads(frame.to_json(orient="records", double_precision=6))


def _made() -> dict[str, str]:
    version = commit()
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "version": version[:12] + "+" * version.endswith("+") if version else "unknown (not a git checkout)",
    }


def _shares(columns: Sequence[str], projected: Mapping[str, Projection]) -> dict[int, float]:
    """Return {number of a column: the share of the images} of values on samples."""
    shares = {}
    for number, name in enumerate(columns):
        if name in projected and projected[name].share < 1:
            shares[number] = projected[name].share
    return shares


def _channel(bandwidth: float, centre: float, sensitivity: float) -> list[float] | None:
    """Return the thresholds of a channel at OCTAVES from its three numbers; None where one is missing."""
    if np.isnan([bandwidth, centre, sensitivity]).any():
        return None
    channel = Channel(4 + math.log2(sensitivity), math.log2(centre / FREQUENCIES[0]), bandwidth / FWHM)
    return channel(OCTAVES).round(4).tolist()


def _column(column: str) -> dict[str, Any]:
    """Return name, axis label, meaning with unit, decimals, and what is wrong with the published values."""
    facts = about(column)
    meaning = f"{facts.meaning.replace('`', '')} [{facts.unit}]"
    text = {"name": column, "label": facts.label, "meaning": meaning}
    return text | {"digits": facts.digits, "slip": facts.slip, "better": facts.better}


def page(data: Mapping[str, Any]) -> str:
    """Return the page's HTML with plotly.js and `data` put in.

    The data is JSON in a separate element, with everything that could end or comment out a script escaped, and both
    marks are replaced in one pass, so that nothing in the data is ever taken for a mark.
    """
    text = json.dumps(data)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    filling = {"PLOTLY": get_plotlyjs(), "DATA": text}
    return re.sub(r"/\*(PLOTLY|DATA)\*/", lambda mark: filling[mark[1]], PAGE.read_text("utf-8"))


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; write the page."""
    parser = Parser(__doc__)
    parser.add_argument("--table", type=Path, nargs="+", help="default: raw-data/benchmark.csv and measured.csv")
    parser.add_argument("--results", type=Path, default=Path("results"), help="records behind measured rows")
    parser.add_argument("--out", type=Path, default=FIGURES / "report.html", help="default: figures/report.html")
    parser.add_argument("--highlight", metavar="NET,...", help="networks to point out (default: those measured here)")
    parser.add_argument("--trials", nargs="+", metavar="DIR", help=TRIALS_HELP)
    args = parser.parse_args(arguments)

    files = args.table or tables()
    table = read_table(files)
    networks = study(table)
    if len(networks) < FEWEST:
        raise UserError(f"{files[0]} has {len(networks)} published networks of the study, too few for statistics")
    names = listed(args.highlight)
    highlights(table, names)  # a mistyped name is reported before anything is computed
    records = select(local_records(args.results))[0] if args.results.is_dir() else []
    trials = read_observers(args.trials or ([args.results] if args.results.is_dir() else []))
    associations = shared(networks, FIGURES)
    data = page_data(table, read_beside(files, "uncertainty"), associations, records, names, trials)
    text = page(data)
    with atomic(args.out, "w") as file:
        file.write(text)
    print(f"{args.out}: {len(data['rows'])} rows, {len(text) / 1e6:.1f} MB; open it in any browser")


if __name__ == "__main__":
    main()

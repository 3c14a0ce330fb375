"""Where do networks stand? Scores and biases with rank among the study's 48, and how sure two networks differ.

  python code/compare.py my_network                        # after merge_results.py; published networks need nothing
  python code/compare.py my_network tv_resnet50            # and how they differ, paired over the images where measured
  python code/compare.py my_network --format latex         # or markdown, csv: for a paper (booktabs), a page, a program
  python code/compare.py my_network --benchmark spectral   # all numbers of one benchmark that are there

Nothing is measured. standing: value with its 95 % interval, rank and percentile among the 48 published networks (best
first; biases, where neither end is better: largest first; on a sample of the images with the range of ranks that all of
them may give, and the share), difference to the baseline, and for scores the points above
what ImageNet accuracy predicts (the line of the 48 on logit axes: effective robustness). nearest: the networks of the
48 with the most similar biases. differences: between each pair of networks that were both measured, from half-samples
of the same images (measures/split_half.py); published rows have no responses and so no interval.
"""

import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from imagenet_biases.analysis.statistics import accuracy_on_the_line
from imagenet_biases.base.errors import Parser, UserError, exit_on_user_error, nearest
from imagenet_biases.results.measurements import measurements
from imagenet_biases.results.merge import local_records, select
from imagenet_biases.results.places import standing
from imagenet_biases.results.table import Projections, derived, projections, read_beside, read_table, study, tables
from imagenet_biases.results.text_tables import FORMATS, interval, number
from imagenet_biases.study import (
    BIASES,
    CONTROL,
    DERIVED,
    DRAWN_CATEGORIES,
    FURTHER_BIASES,
    SCORES,
    about,
    definition_of,
    place,
)

MEASURES = (CONTROL, *SCORES, *BIASES, *FURTHER_BIASES)
WHAT = ("standing", "nearest", "differences")
NEAREST = 3


Bounds = dict[tuple[str, str, str], tuple[float, float]]
"""{(model, source, measure): (low, high)}"""


def chosen_rows(table: pd.DataFrame, names: Iterable[str], source: str | None, results: Path) -> list[pd.Series]:
    """Return the row of each network: the measured one before the published one, unless `source` is given.

    Raises:
        UserError: a network has no row; with what the folder of records, `results`, holds of it.
    """
    rows = []
    for name in names:
        candidates = table if source is None else table[table["source"] == source]
        of_network = candidates[candidates["model"] == name].sort_values("source", kind="stable")  # measured first
        if of_network.empty:
            hint = _unmerged(name, results) or nearest(name, candidates["model"])
            hint = hint or "is it measured (code/eval_all.py)?"
            raise UserError(f"the table has no {source + ' ' if source else ''}row of {name}; {hint}")
        rows.append(of_network.iloc[0])
    return rows


def _unmerged(name: str, results: Path) -> str:
    """Return why the records of a network are not in the table; '' where there are none."""
    stored = local_records(results) if results.is_dir() else []
    records = [record for record in stored if record["model"] == name]
    if not records:
        return ""
    chosen, notes = select(records)
    if chosen:
        return f"python code/merge_results.py puts its {len(chosen)} records in {results} into it"
    return "its records have no place in it: " + "; ".join(dict.fromkeys(note.rpartition(": ")[2] for note in notes))


def bounds_of(uncertainty: pd.DataFrame) -> Bounds:
    """Return the intervals of the table, also of measures that stand for a reported metric."""
    bounds = {}
    for row in uncertainty.dropna(subset=["low", "high"]).itertuples():
        bounds[row.model, row.source, row.metric] = (row.low, row.high)
    for name, definition in DERIVED.items():
        for (model, source, metric), pair in list(bounds.items()):
            if definition.reported and metric == definition.reported:
                bounds[model, source, name] = pair
    return bounds


def standing_table(
    rows: Iterable[pd.Series], networks: pd.DataFrame, bounds: Bounds, projected: Projections
) -> pd.DataFrame:
    """Return one row per network and measure: value, interval, rank, percentile, gap to the baseline, residual.

    Values on samples have a range of ranks; then there is a column with the share of the images, too.
    """
    lines = []
    baseline = networks[networks["category"] == "baseline"].iloc[0]
    for row in rows:
        photographs = row["category"] not in DRAWN_CATEGORIES
        samples = projected.get((row["model"], row["source"]), {})
        peers = networks[networks["model"] != row["model"]]
        for measure in MEASURES:
            value = row.get(measure, np.nan)
            if pd.isna(value):
                continue
            digits = about(measure).digits
            position = standing(peers[measure], measure, samples.get(measure, value)) if photographs else None
            line = {"network": row["model"], "source": row["source"], "measure": measure}
            line["value"] = number(value, digits)
            line["95 %"] = interval(*bounds.get((row["model"], row["source"], measure), (None, None)), digits)
            line["rank"] = position.text if position else ""
            line["percentile"] = f"{position.percentile:.0f}" if position else ""
            line["vs baseline"] = number(value - baseline[measure], digits, sign=True) if photographs else ""
            line["above the line"] = _above_the_line(row, measure, networks) if photographs else ""
            if projected:
                line["images"] = f"{samples[measure].share:.2%}" if measure in samples else "100%"
            lines.append(line)
    return pd.DataFrame(lines)


def _above_the_line(row: pd.Series, measure: str, networks: pd.DataFrame) -> str:
    """Return by how much a score is above what ImageNet accuracy predicts; '' for other measures."""
    if measure not in SCORES or measure == "ID" or pd.isna(row.get(CONTROL)):
        return ""
    gradient, intercept = accuracy_on_the_line(networks[CONTROL], networks[measure])
    expected = 100 * expit(gradient * logit(np.clip(row[CONTROL] / 100, 1e-5, 1 - 1e-5)) + intercept)
    return number(row[measure] - expected, about(measure).digits, sign=True)


def nearest_table(rows: Iterable[pd.Series], networks: pd.DataFrame) -> pd.DataFrame:
    """Return the networks of the 48 whose biases are most similar: root mean square distance in SDs over the 48."""
    lines = []
    for row in rows:
        biases = [bias for bias in BIASES if pd.notna(row.get(bias))]
        if not biases or row["category"] in DRAWN_CATEGORIES:
            continue
        peers = networks[networks["model"] != row["model"]]
        scaled = []
        for bias in biases:
            values, value = peers[bias], row[bias]
            if about(bias).logarithmic:
                values, value = np.log(values), np.log(value)
            scaled.append((values - value) / values.std())
        distance = np.sqrt(np.nanmean(np.square(scaled), axis=0))
        for position in np.argsort(distance, kind="stable")[:NEAREST]:
            peer = peers.iloc[position]
            line = {"network": row["model"], "source": row["source"], "nearest": peer["model"]}
            line |= {"category": peer["category"], "distance": number(distance[position], 2)}
            lines.append(line | {"biases": str(len(biases))})
    return pd.DataFrame(lines)


def difference_table(rows: Sequence[pd.Series], records: Iterable[dict]) -> pd.DataFrame:
    """Return one row per pair of networks and measure: the difference, with its interval where both were measured."""
    measured = {key.model: measurement for key, measurement in measurements(records).items() if key.as_in_study}
    lines = []
    for first, second in combinations(rows, 2):
        pair = [measured.get(row["model"]) if row["source"] == "measured" else None for row in (first, second)]
        for measure in MEASURES:
            if pd.isna(first.get(measure)) or pd.isna(second.get(measure)):
                continue
            digits, low, high = about(measure).digits, None, None
            gap = pair[0].minus(pair[1], measure) if pair[0] and pair[1] else None
            if gap is not None:
                low, high = gap.low, gap.high
            line = {"networks": f"{first['model']} - {second['model']}", "measure": measure}
            line["difference"] = number(first[measure] - second[measure], digits, sign=True)
            lines.append(line | {"95 %": interval(low, high, digits)})
    return pd.DataFrame(lines)


def benchmark_table(rows: Sequence[pd.Series], benchmark: str, bounds: Bounds) -> pd.DataFrame:
    """Return all numbers of one benchmark that the table has, one row per metric.

    Raises:
        UserError: the table has none.
    """
    metrics = [name for name in rows[0].index if "/" in name or name == "shape-bias"]
    metrics = [name for name in metrics if definition_of(name).about.script == f"eval_{benchmark}"]
    lines = []
    for metric in sorted(metrics, key=place):
        digits = about(metric).digits
        values = {}
        for row in rows:
            text = "" if pd.isna(row[metric]) else number(row[metric], digits)
            bracket = interval(*bounds.get((row["model"], row["source"], metric), (None, None)), digits)
            values[f"{row['model']} ({row['source']})"] = f"{text} {bracket}".strip()
        if any(values.values()):
            lines.append({"metric": metric} | values)
    if not lines:
        raise UserError(f"the table has no numbers of {benchmark} for {', '.join(row['model'] for row in rows)}")
    return pd.DataFrame(lines)


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; print the tables."""
    parser = Parser(__doc__)
    parser.add_argument("networks", nargs="+", metavar="NET")
    parser.add_argument("--benchmark", metavar="NAME", help="print all its numbers instead")
    parser.add_argument("--what", choices=WHAT, nargs="+", default=WHAT, help="which tables (default: all)")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument(
        "--source", help="of the rows, e.g. published, 'measured (native)'; default: measured, if there"
    )
    parser.add_argument("--table", type=Path, nargs="+", help="default: raw-data/benchmark.csv and measured.csv")
    parser.add_argument("--results", type=Path, default=Path("results"), help="records (default: results)")
    args = parser.parse_args(arguments)
    if args.format == "csv" and not args.benchmark and len(args.what) != 1:
        args.what = WHAT[:1]  # a file holds one table

    files = args.table or tables()
    table = read_table(files)
    rows = chosen_rows(derived(table), list(dict.fromkeys(args.networks)), args.source, args.results)
    uncertainty = read_beside(files, "uncertainty")
    networks, bounds = study(table), bounds_of(uncertainty)
    if args.benchmark:
        frames = {args.benchmark: benchmark_table(rows, args.benchmark, bounds)}
    else:
        records = local_records(args.results) if args.results.is_dir() else []
        makers = {
            "standing": lambda: standing_table(rows, networks, bounds, projections(pd.DataFrame(rows), uncertainty)),
            "nearest": lambda: nearest_table(rows, networks),
            "differences": lambda: difference_table(rows, records),
        }
        frames = {name: makers[name]() for name in args.what}
    if "standing" in frames and any(row["category"] in DRAWN_CATEGORIES for row in rows):
        print("note: networks made for drawn images have no rank among photographs", file=sys.stderr)
    texts = [FORMATS[args.format](name, frame) for name, frame in frames.items() if len(frame)]
    if not texts:
        raise UserError(f"nothing of {', '.join(args.networks)} is in the table")
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()

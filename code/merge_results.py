"""Merge what was measured into the table raw-data/benchmark.csv, or compare it with the published figures.

Reads every record in results/NETWORK/*.json, and with the options below the same records from Weights & Biases. Only
whole image sets, one view and one precision go into a row; what stays out is listed with the reason. A network's
measured row is replaced as a whole by what is found, rows of other networks stay. Several seeds of one benchmark become
their mean, of a repetition the newest counts; raw-data/benchmark_uncertainty.csv holds intervals and the spread over
seeds (W&B has no intervals). Running it twice changes nothing.

  python code/merge_results.py                                       # results/ -> raw-data/benchmark.csv
  python code/merge_results.py --compare                             # measured against published, changes nothing
  python code/merge_results.py --wandb-project ENTITY/imagenet_c     # one project; ENTITY alone: all its projects
  python code/merge_results.py --wandb-runs results/wandb            # runs that W&B kept offline
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from imagenet_biases.errors import UserError, exit_on_user_error
from imagenet_biases.files import atomic
from imagenet_biases.results.table import DECIMALS, KEYS, TABLE, group_of, place, read_table, write_table
from imagenet_biases.scores import proportion

UNCERTAINTY = ("model", "source", "metric", "low", "high", "seeds", "spread")
TOLERANCE = 0.05  # relative difference that is remarked on where there is no interval


@exit_on_user_error
def main(arguments=None):
    """Parse the command line; merge or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")
    parser.add_argument("--wandb-project", action="append", default=[], metavar="ENTITY[/PROJECT]")
    parser.add_argument("--wandb-runs", type=Path, action="append", default=[], metavar="DIR", help="local run folders")
    parser.add_argument(
        "--view", default="study", help="merge this view (default: study); others get rows of their own"
    )
    parser.add_argument("--precision", default="fp32", help="merge this precision (default: fp32)")
    parser.add_argument("--table", type=Path, default=TABLE, help="table to update (default: raw-data/benchmark.csv)")
    parser.add_argument("--rebuild", action="store_true", help="drop measured rows that are not found again")
    parser.add_argument("--compare", action="store_true", help="print measured against published and write nothing")
    args = parser.parse_args(arguments)

    records = local_records(args.results) if args.results.is_dir() else []
    records += [record for folder in args.wandb_runs for record in offline_records(folder)]
    records += [record for path in args.wandb_project for record in online_records(path)]
    if not records:
        raise UserError(f"no records in {args.results}: measure first, for example with `python code/eval_all.py`")
    chosen, notes = select(records, args.view, args.precision)
    table = read_table(args.table)
    rows, uncertainty, conflicts = merge(chosen, source_name(args.view, args.precision), table)
    for note in notes + conflicts:
        print(note)
    if args.compare:
        compare(rows, uncertainty, table)
    else:
        update(args.table, table, rows, uncertainty, args.rebuild)


# Records, wherever they are ------------------------------------------------------------------------------------------


def local_records(results):
    """Read all records in results/*/*.json, whatever their file names. Raises UserError for a damaged one."""
    found = ((path, _read(path)) for path in sorted(Path(results).glob("*/*.json")))
    return [_checked(record, path) for path, record in found if isinstance(record, dict) and "benchmark" in record]


def _read(path):
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): measure it again or remove it") from None


def _checked(record, where):
    missing = [key for key in ("model", "benchmark", "metrics") if key not in record]
    if missing:
        raise UserError(f"{where} is a damaged record, it lacks {', '.join(missing)}: remove it or measure again")
    metrics = record["metrics"]
    for name, value in metrics.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{where}: the metric {name} is {value!r}, not a number")
        try:
            place(name)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    provenance = {"view": "study", "precision": "fp32", "seed": 0, "collection": "imagenet", "category": "", "time": ""}
    empty = {"intervals": {}, "images": None, "subset": False, "warnings": [], "details": {}}
    return empty | record | {"provenance": provenance | record.get("provenance", {})}


def offline_records(folder):
    """Read the runs that W&B kept in local folders, with the W&B package. Raises UserError where there are none."""
    files = sorted(Path(folder).rglob("run-*.wandb"))
    if not files:
        raise UserError(f"{folder} holds no W&B runs (run-ID.wandb files)")
    records = []
    for file in files:
        config, summary = {}, {}
        for entry in _log_entries(file):
            for update in (entry.get("run", {}).get("config", {}), entry.get("config", {})):
                config |= update.get("update", {})
            summary |= entry.get("summary", {}).get("update", {})
        records += _from_wandb(config, summary, file)
    return records


def _log_entries(file):
    """Yield the entries of a W&B transaction log as dicts {'run' | 'config' | 'summary': {...}}."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"W&B cannot read {file}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    for line in done.stdout.splitlines():
        yield json.loads(line)


def online_records(path):
    """Read finished runs of 'ENTITY/PROJECT', or of all projects of 'ENTITY', from W&B."""
    import wandb
    import wandb.errors

    try:
        api = wandb.Api()
        entity, _, project = path.partition("/")
        projects = [path] if project else [f"{entity}/{found.name}" for found in api.projects(entity)]
        records = []
        for name in projects:
            for run in api.runs(name):
                if run.state == "finished":
                    records += _from_wandb(dict(run.config), dict(run.summary), f"W&B run {'/'.join(run.path)}")
                else:
                    print(f"left out: W&B run {'/'.join(run.path)} is {run.state}, not finished")
    except (wandb.errors.Error, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"W&B project {path} cannot be read ({reason}): check the name, and `wandb login`") from None
    return records


def _from_wandb(config, summary, where):
    if "model" not in config or "benchmark" not in config:
        print(f"left out: {where} is not a run of this project")
        return []
    # metrics have a '/' in their names, all but one; W&B's own entries and the parts of tables and pictures have none
    metrics = {
        name: value
        for name, value in summary.items()
        if isinstance(value, int | float | None)
        and ("/" in name or name == "shape-bias")
        and not name.startswith("progress/")
    }
    record = {key: config[key] for key in ("model", "benchmark", "images", "subset", "warnings") if key in config}
    return [_checked(record | {"metrics": metrics, "provenance": config}, where)]


# From records to rows ------------------------------------------------------------------------------------------------


def select(records, view="study", precision="fp32"):
    """Return the records that may share a row, oldest first, and lines that say why others may not."""
    notes, fitting = [], []
    for record in sorted(records, key=lambda r: (r["provenance"]["time"], bool(r["intervals"]))):
        if reason := _reason_to_leave_out(record, view, precision):
            notes.append(f"left out: {record['model']} {record['benchmark']}: {reason}")
        else:
            fitting.append(record)
    weights = {record["model"]: record["provenance"].get("network") for record in fitting}  # the newest ones
    chosen = []
    for record in fitting:
        name = f"{record['model']} {record['benchmark']}"
        if record["provenance"].get("network") != weights[record["model"]]:
            notes.append(f"left out: {name}: other weights than those of the newest record of this name")
        else:
            notes += [f"note: {name}: {warning}" for warning in record["warnings"]]
            chosen.append(record)
    return chosen, list(dict.fromkeys(notes))


def _reason_to_leave_out(record, view, precision):
    provenance, subset = record["provenance"], record["subset"]
    if subset:
        seen = f" ({subset['images']} of {subset['of']} images)" if isinstance(subset, dict) and "of" in subset else ""
        return f"a subset{seen}"
    for key, wanted in (("view", view), ("precision", precision)):
        if provenance[key] != wanted:
            return f"{key} {provenance[key]}, not {wanted} (--{key} {provenance[key]} gives it a row of its own)"
    collection, wanted = provenance["collection"] or "imagenet", "imagenet"
    if provenance["category"] == "calibration":
        wanted = "drawn"  # what these networks were made for
    return f"measured on {collection} images, its row is for {wanted} ones" if collection != wanted else None


def source_name(view, precision):
    """Return what the column `source` says of a measured row: 'measured', with what differs from the study's way."""
    unusual = [word for word, usual in ((view, "study"), (precision, "fp32")) if word != usual]
    return f"measured ({', '.join(unusual)})" if unusual else "measured"


def merge(records, source, published):
    """Merge selected records into one row a network.

    `published`: the table whose networks' categories count. Returns the rows, as `read_table` gives them, their
    uncertainty (columns UNCERTAINTY), and lines about metrics on which two benchmarks disagree (the newer one counts).
    """
    together = {}  # seeds and repetitions of one network and benchmark; the benchmark that was measured last comes last
    for record in records:
        key = record["model"], record["benchmark"]
        together[key] = [*together.pop(key, []), record]
    cells, notes = defaultdict(dict), []
    for (model, benchmark), ones in together.items():
        for metric in dict.fromkeys(name for record in ones for name in record["metrics"]):
            cell = _cell(metric, ones)
            before = cells[model].get(metric, cell)
            if cell and abs(before["value"] - cell["value"]) > 0.5 * 10**-DECIMALS:
                notes.append(
                    f"note: {model} {metric}: {before['value']:.4f} before, {cell['value']:.4f} in {benchmark}"
                )
            if cell:
                cells[model][metric] = cell
    # sorted: a record that does not know the category (older, or from elsewhere) does not hide one that does
    categories = dict(sorted((record["model"], record["provenance"]["category"]) for record in records))
    categories |= dict(zip(published["model"], published["category"], strict=True))
    rows = [
        {"model": model, "category": categories[model], "source": source}
        | {metric: cell["value"] for metric, cell in row.items()}
        for model, row in cells.items()
    ]
    uncertainty = [
        {"model": model, "source": source, "metric": metric} | cell
        for model, row in cells.items()
        for metric, cell in sorted(row.items(), key=lambda item: place(item[0]))
        if cell["low"] is not None or cell["seeds"] > 1
    ]
    return pd.DataFrame(rows, columns=None if rows else KEYS), pd.DataFrame(uncertainty, columns=UNCERTAINTY), notes


def _cell(metric, records):
    """The mean over seeds with the mean interval, and the standard deviation between seeds; None without a value."""
    found = {r["provenance"]["seed"]: r for r in records if r["metrics"].get(metric) is not None}  # the newest ones
    if not found:
        return None
    values = [record["metrics"][metric] for record in found.values()]
    bounds = [record["intervals"][metric] for record in found.values() if metric in record["intervals"]]
    low, high = np.mean(bounds, axis=0).tolist() if bounds else (None, None)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"value": float(np.mean(values)), "low": low, "high": high, "seeds": len(values), "spread": spread}


def update(path, table, rows, uncertainty, rebuild=False):
    """Put measured rows into the table at `path` and their uncertainty beside it, and say what was done."""
    beside = uncertainty_path(path)
    old = pd.read_csv(beside) if beside.exists() else pd.DataFrame(columns=UNCERTAINTY)
    found = set(zip(rows["model"], rows["source"], strict=True))

    def stays(frame):
        measured = frame["source"] != "published"
        replaced = pd.Series([key in found for key in zip(frame["model"], frame["source"], strict=True)], frame.index)
        return frame[~(measured & (replaced | rebuild))]

    kept = stays(table)
    merged = pd.concat([frame for frame in (kept, rows) if len(frame)], ignore_index=True)
    order = {model: number for number, model in enumerate(table.loc[table["source"] == "published", "model"])}
    rank = [
        (source != "published", source, order.get(model, len(order)), model)
        for model, source in zip(merged["model"], merged["source"], strict=True)
    ]
    merged = merged.iloc[sorted(range(len(merged)), key=rank.__getitem__)]
    write_table(merged, path)
    bounds = pd.concat([frame for frame in (stays(old), uncertainty) if len(frame)] or [old], ignore_index=True)
    bounds = bounds.sort_values(["source", "model"], kind="stable", ignore_index=True)
    with atomic(beside, "w") as file:
        bounds.round(DECIMALS).to_csv(file, index=False, lineterminator="\n")
    for row in rows.itertuples(index=False):
        print(f"{row.model} ({row.source}): {pd.Series(row[len(KEYS) :]).notna().sum()} values")
    others = int((kept["source"] != "published").sum())
    print(
        f"{path}: {(kept['source'] == 'published').sum()} published and {len(rows)} measured rows"
        + (f"; {others} measured rows of before stay (--rebuild drops them)" if others else "")
    )


def uncertainty_path(table):
    """Return where the uncertainty of a table's measured rows lies: TABLE_uncertainty.csv beside it."""
    return Path(table).with_name(f"{Path(table).stem}_uncertainty.csv")


# Measured against published ------------------------------------------------------------------------------------------


def compare(rows, uncertainty, table):
    """Print measured against published figures, metric by metric, with a mark where they differ or one is a slip."""
    published = table[table["source"] == "published"].set_index("model")
    known = uncertainty.dropna(subset=["low", "high"])
    bounds = {(bound.model, bound.metric): (bound.low, bound.high) for bound in known.itertuples()}
    for _, row in rows.iterrows():
        if row["model"] not in published.index:
            print(f"\n{row['model']}: the study has no such network")
            continue
        other = published.loc[row["model"]]
        metrics = [
            m for m in sorted(set(rows.columns) - {*KEYS}, key=place) if pd.notna(row[m]) and pd.notna(other.get(m))
        ]
        print(f"\n{row['model']}: measured against published, {len(metrics)} metrics")
        print(f"  {'metric':<34} {'measured':>10}  {'95 % interval':<18} {'published':>10} {'difference':>10}")
        remarks = []
        for metric in metrics:
            low, high = bounds.get((row["model"], metric), (None, None))
            mark, remark = judge(metric, row[metric], low, high, other)
            interval = f"[{low:.4g}, {high:.4g}]" if low is not None else "-"
            difference = row[metric] - other[metric]
            values = f"{row[metric]:>10.4f}  {interval:<18} {other[metric]:>10.4f} {difference:>+10.4f}"
            print(f"  {metric:<34} {values}  {mark}".rstrip())
            remarks += [f"  {mark}: {metric}: {remark}"] if remark else []
        print("\n".join(remarks) or "  nothing is off")


def judge(metric, measured, low, high, published):
    """Return a mark ('', 'OFF', 'SLIP', 'SLIP, OFF') and what it means, for one measured value.

    `published`: the network's published row. Where the published value is a known slip, the corrected one is compared
    if there is one, and otherwise the interval that the published one has by the images it really rests on.
    """
    group, value = group_of(metric), published[metric]
    if not group.slip:
        return ("OFF", _distance(measured, low, high, value)) if _apart(measured, low, high, value) else ("", "")
    corrected = published.get(f"{metric}/corrected")
    if corrected is not None and pd.notna(corrected):
        off = _apart(measured, low, high, corrected)
        remark = f"{group.slip}; corrected it is {corrected:.4f}"
    elif group.published_images:
        one = proportion(round(value / 100 * group.published_images), group.published_images)
        off = (high or measured) < one.low or (low or measured) > one.high
        remark = f"{group.slip}; its own 95 % interval is [{one.low:.1f}, {one.high:.1f}]"
    else:
        off, remark = False, f"{group.slip}; not comparable"
    return ("SLIP, OFF", f"{remark}; the measured {measured:.4f} does not fit it") if off else ("SLIP", remark)


def _apart(measured, low, high, value):
    if low is not None:
        return not low <= value <= high
    return abs(measured - value) > max(TOLERANCE * abs(value), 0.01)


def _distance(measured, low, high, value):
    if low is not None:
        return f"the published {value:.4f} is outside the measured interval [{low:.4g}, {high:.4g}]"
    return f"measured {measured:.4f} and published {value:.4f} differ by more than {100 * TOLERANCE:.0f} %"


if __name__ == "__main__":
    main()

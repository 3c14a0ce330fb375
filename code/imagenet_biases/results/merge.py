"""From records to rows: which records count, what they give together, and how that compares with the published figures.

A record is what one benchmark measured of one network (results/NETWORK/*.json). Two editions are read: the first, whose
`subset` speaks for all its metrics, and format 2, whose `partial` names the metrics that rest on part of their images.
"""

import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.schema import Malformed, check, read_json
from imagenet_biases.measures.accuracy import proportion
from imagenet_biases.results.record_schema import FORMAT, RECORD
from imagenet_biases.results.table import KEYS, LAYERS, UNCERTAINTY, beside, read_beside, write_beside, write_table
from imagenet_biases.results.table import read_table as read
from imagenet_biases.study import DRAWN_CATEGORIES, place
from imagenet_biases.study import metric as definition

TOLERANCE = 0.05  # relative difference that is remarked on where there is no interval
USUAL = {"view": "study", "precision": "fp32", "frontend": ""}  # the study's way; others have rows of their own

# Records, wherever they are ------------------------------------------------------------------------------------------


def local_records(results):
    """Read all records in results/*/*.json, whatever their file names, and name JSON files that are none.

    Raises UserError for a damaged one.
    """
    files = sorted(Path(results).glob("*/*.json"))
    return _records([path for path in files if path.name != "drawn.json"])  # which marks the demo's own image set


def offline_records(folder):
    """Read the records of the W&B runs in a local folder, results/wandb. Raises UserError where there are none."""
    files = sorted(Path(folder).glob("*run-*/files/record.json"))
    if not files:
        raise UserError(f"{folder} holds no W&B runs with a record (offline-run-*/files/record.json)")
    return _records(files)


def online_records(path):
    """Read the records of the finished runs of 'ENTITY/PROJECT', or of all projects of 'ENTITY', from W&B."""
    import wandb
    import wandb.errors

    try:
        api = wandb.Api()
        entity, _, project = path.partition("/")
        projects = [path] if project else [f"{entity}/{found.name}" for found in api.projects(entity)]
        return [record for name in projects for run in api.runs(name) for record in _of_run(run)]
    except (wandb.errors.Error, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"W&B project {path} cannot be read ({reason}): check the name, and `wandb login`") from None


def _of_run(run):
    where = f"W&B run {'/'.join(run.path)}"
    file = next((file for file in run.files(["record.json"]) if file.size), None)
    if run.state != "finished" or file is None:
        print(f"left out: {where} " + ("carries no record" if run.state == "finished" else f"is {run.state}"))
        return []
    with tempfile.TemporaryDirectory() as folder:
        file.download(root=folder).close()
        return _records([Path(folder) / file.name], where)


def _records(files, where=None):
    records = []
    for path in files:
        try:
            record = read_json(path, (dict, list, str, bool, float, None))
        except (OSError, Malformed) as error:
            raise UserError(f"{where or path} cannot be read ({error}): measure it again or remove it") from None
        if not isinstance(record, dict) or not {"format", "benchmark", "metrics"} & record.keys():
            print(f"left alone: {where or path} is not a record")
            continue
        records.append(checked(record, where or path))
    return records


def checked(record, where):
    """Return a record of either edition in the form of format 2, with nothing missing.

    Raises UserError, with `where` it is, for one that is damaged, of a later edition, or holds an unknown metric.
    """
    if record.get("format", 1) not in (1, FORMAT):
        raise UserError(f"{where} is a record of format {record['format']!r}: update this repository to read it")
    if missing := [key for key in ("model", "benchmark", "metrics") if key not in record]:
        raise UserError(f"{where} is a damaged record, it lacks {', '.join(missing)}: remove it or measure again")
    provenance = USUAL | {
        "seed": 0,
        "collection": "imagenet",
        "category": "",
        "time": "",
        "network": None,
        "source": "",
    }
    empty = {key: {} for key in ("intervals", "partial", "details", "layers")}
    record = empty | {"images": None, "subset": False, "warnings": [], "provenance": {}} | record
    if isinstance(record["provenance"], dict):
        record["provenance"] = provenance | record["provenance"]
    try:
        check(record, RECORD)
    except Malformed as error:
        raise UserError(f"{where} is a damaged record ({error}): remove it or measure again") from None
    if "format" not in record and record["subset"] is not False:
        about = record["subset"] if isinstance(record["subset"], dict) else {}
        part = {key: about[key] for key in ("images", "of") if key in about}
        record["partial"] = dict.fromkeys(record["metrics"], part)
    for name in [*record["partial"], *(name for name, *_ in _values(record))]:
        try:
            place(name)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return record


def _values(record):
    """Yield (metric, layer or None, value, low, high) of all that a record holds."""
    for name, value in record["metrics"].items():
        low, high = record["intervals"].get(name) or (None, None)
        yield name, None, value, low, high
    for name, layers in record["layers"].items():
        for layer, (value, low, high) in layers.items():
            yield name, layer, value, low, high


# From records to rows ------------------------------------------------------------------------------------------------


def select(records, view="study", precision="fp32", frontend=""):
    """Return the records that may share a row, oldest first, with their whole metrics only, and lines about the rest.

    Of several networks under one name the one that was measured last counts.
    """
    wanted = {"view": view, "precision": precision, "frontend": frontend}
    notes, fitting = [], []
    for record in sorted(records, key=lambda r: r["provenance"]["time"]):
        name = f"{record['model']} {record['benchmark']}"
        if reason := _reason_to_leave_out(record, wanted):
            notes.append(f"left out: {name}: {reason}")
            continue
        whole, lines = _whole(record)
        notes += [f"left out: {name}: {line}" for line in lines]
        if any(value is not None for value in whole["metrics"].values()) or whole["layers"]:
            fitting.append(whole)
    newest = {record["model"]: record["provenance"]["network"] for record in fitting}
    others, chosen = defaultdict(list), []
    for record in fitting:
        if record["provenance"]["network"] == newest[record["model"]]:
            notes += [f"note: {record['model']} {record['benchmark']}: {warning}" for warning in record["warnings"]]
            chosen.append(record)
        else:
            others[record["model"], record["provenance"]["network"]].append(record)
    for (model, network), older in others.items():
        last = older[-1]["provenance"]
        notes.append(
            f"left out: {model}: {listed_briefly(record['benchmark'] for record in older)} of other weights than "
            f"those that were measured last under this name (network {str(network)[:8]}, "
            f"{last['source'] or 'source unknown'}, {last['time']}): --name gives a network a name of its own"
        )
    return chosen, list(dict.fromkeys(notes))


def _reason_to_leave_out(record, wanted):
    provenance = record["provenance"]
    for key, value in wanted.items():
        if provenance[key] != value:
            own = f" (--{key} {provenance[key]} gives it a row of its own)" if provenance[key] != USUAL[key] else ""
            return f"{key} {provenance[key] or 'none'}, not {value or 'none'}{own}"
    collection, usual = provenance["collection"] or "imagenet", "imagenet"
    if provenance["category"] in DRAWN_CATEGORIES:
        usual = "drawn"  # what these networks were made for
    if collection in (usual, "none"):  # none: of the weights alone
        return None
    return f"measured on {collection} images, its row is for {usual} ones"


def _whole(record):
    """Return the record without the metrics that rest on part of their images, and a line for each kind of part."""
    parts = defaultdict(list)
    for name, part in record["partial"].items():
        seen = f" ({part['images']} of {part['of']} images)" if {"images", "of"} <= part.keys() else ""
        parts[seen].append(name)
    lines = [f"a subset{seen}: {listed_briefly(sorted(names, key=place))}" for seen, names in parts.items()]
    metrics = {name: value for name, value in record["metrics"].items() if name not in record["partial"]}
    layers = {  # values by layer go with the metrics of their name: metric/criticality with metric/criticality/mean
        name: values
        for name, values in record["layers"].items()
        if not any(f"{other}/".startswith(f"{name}/") for other in record["partial"])
    }
    return record | {"metrics": metrics, "layers": layers}, lines


def source_name(view="study", precision="fp32", frontend=""):
    """Return what the column `source` says of a measured row: 'measured', with what differs from the study's way."""
    given = {"view": view, "precision": precision, "frontend": frontend}
    unusual = [value for key, value in given.items() if value != USUAL[key]]
    return f"measured ({', '.join(unusual)})" if unusual else "measured"


def merge(records, source, published):
    """Merge selected records into one row a network.

    `published`: the table whose networks' categories count. Returns the rows, as `read_table` gives them, their
    uncertainty (columns UNCERTAINTY), the values by layer (columns LAYERS), and lines about metrics on which two
    benchmarks disagree (the one that was measured last counts).
    """
    found = defaultdict(dict)  # (model, metric, layer): {benchmark: {seed: (value, low, high)}}, the newest ones last
    for record in records:
        for metric, layer, *values in _values(record):
            if values[0] is not None:
                by_benchmark = found[record["model"], metric, layer]
                ones = by_benchmark.pop(record["benchmark"], {})
                by_benchmark[record["benchmark"]] = ones | {record["provenance"]["seed"]: values}
    rows, uncertainty, layers, notes = defaultdict(dict), [], [], []
    for (model, metric, layer), by_benchmark in sorted(found.items(), key=_position):
        (benchmark, cell), *older = ((name, _cell(ones)) for name, ones in reversed(by_benchmark.items()))
        key = {"model": model, "source": source, "metric": metric}
        if layer is not None:
            layers.append(key | {"layer": layer} | {name: cell[name] for name in ("value", "low", "high")})
            continue
        rows[model][metric] = cell["value"]
        if cell["low"] is not None or cell["seeds"] > 1:
            uncertainty.append(key | cell)
        for other, one in older:
            if f"{one['value']:.6g}" != f"{cell['value']:.6g}":
                notes.append(
                    f"note: {model} {metric}: {one['value']:.6g} in {other}, {cell['value']:.6g} in {benchmark}"
                )
    # sorted: a record that does not know the category (older, or from elsewhere) does not hide one that does
    categories = dict(sorted((record["model"], record["provenance"]["category"]) for record in records))
    categories |= dict(zip(published["model"], published["category"], strict=True))
    table = [{"model": m, "category": categories[m], "source": source} | values for m, values in rows.items()]
    return (
        pd.DataFrame(table, columns=None if table else KEYS),
        pd.DataFrame(uncertainty, columns=UNCERTAINTY),
        pd.DataFrame(layers, columns=LAYERS),
        notes,
    )


def _position(item):
    model, metric, layer = item[0]
    return model, place(metric), layer is not None  # layers stay in the network's order


def _cell(by_seed):
    """The mean over seeds with the mean interval, and the standard deviation between seeds."""
    values = [value for value, _, _ in by_seed.values()]
    bounds = [(low, high) for _, low, high in by_seed.values() if low is not None]
    low, high = np.mean(bounds, axis=0).tolist() if bounds else (None, None)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"value": float(np.mean(values)), "low": low, "high": high, "seeds": len(values), "spread": spread}


def update(path, rows, uncertainty, layers, published, rebuild=False):
    """Put measured rows into the table at `path`, with their uncertainty and layers beside it; say what was done.

    A network's row is replaced as a whole. With `rebuild`, rows that were not found again are dropped. The order of
    the networks is that of the published rows.
    """
    path = Path(path)
    replaced = set(zip(rows["model"], rows["source"], strict=True))

    def kept(old):
        if rebuild:
            return old.iloc[:0]
        return old[[key not in replaced for key in zip(old["model"], old["source"], strict=True)]]

    old = kept(read(path)) if path.exists() else rows.iloc[:0]
    joined = pd.concat([frame for frame in (old, rows) if len(frame)] or [rows], ignore_index=True)
    order = {model: number for number, model in enumerate(published["model"])}
    rank = [(row.source, order.get(row.model, len(order)), row.model) for row in joined[[*KEYS]].itertuples()]
    write_table(joined.iloc[sorted(range(len(joined)), key=rank.__getitem__)], path)
    for what, new in (("uncertainty", uncertainty), ("layers", layers)):
        before = kept(read_beside(path, what))
        both = pd.concat([frame for frame in (before, new) if len(frame)] or [new], ignore_index=True)
        if len(both) or beside(path, what).exists():
            write_beside(both, path, what)
    for _, row in rows.iterrows():
        print(f"{row['model']} ({row['source']}): {row.drop(list(KEYS)).notna().sum()} values")
    stay = f"; {len(old)} of before stay (--rebuild drops them)" if len(old) else ""
    print(f"{path}: {len(rows)} measured rows{stay}")


# Measured against published ------------------------------------------------------------------------------------------


def compare(rows, uncertainty, published):
    """Print measured against published figures, metric by metric, with a mark where they differ or one is a slip."""
    published = published[published["source"] == "published"].set_index("model")
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
            values = f"{row[metric]:>10.6g}  {interval:<18} {other[metric]:>10.6g} {difference:>+10.4f}"
            print(f"  {metric:<34} {values}  {mark}".rstrip())
            remarks += [f"  {mark}: {metric}: {remark}"] if remark else []
        print("\n".join(remarks) or "  nothing is off")


def judge(metric, measured, low, high, published):
    """Return a mark ('', 'OFF', 'SLIP', 'SLIP, OFF') and what it means, for one measured value.

    `published`: the network's published row. Where the published value is a known slip, the corrected one is compared
    if there is one, and otherwise the interval that the published accuracy has by the images it really rests on.
    """
    about, value = definition(metric), published[metric]
    if not about.slip:
        return ("OFF", _distance(measured, low, high, value)) if _apart(measured, low, high, value) else ("", "")
    corrected = published.get(f"{metric}/corrected")
    if corrected is not None and pd.notna(corrected):
        off = _apart(measured, low, high, corrected)
        remark = f"{about.slip}; corrected it is {corrected:.6g}"
    elif about.published_images and about.unit.startswith("%"):
        one = proportion(round(value / 100 * about.published_images), about.published_images)
        off = (high or measured) < one.low or (low or measured) > one.high
        remark = f"{about.slip}; its own 95 % interval is [{one.low:.1f}, {one.high:.1f}]"
    else:
        off, remark = False, f"{about.slip}; not comparable"
    return ("SLIP, OFF", f"{remark}; the measured {measured:.6g} does not fit it") if off else ("SLIP", remark)


def _apart(measured, low, high, value):
    if low is not None:
        return not low <= value <= high
    return abs(measured - value) > max(TOLERANCE * abs(value), 0.01)


def _distance(measured, low, high, value):
    if low is not None:
        return f"the published {value:.6g} is outside the measured interval [{low:.4g}, {high:.4g}]"
    return f"measured {measured:.6g} and published {value:.6g} differ by more than {100 * TOLERANCE:.0f} %"

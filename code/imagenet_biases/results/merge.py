"""From records to rows: which records count, what they give together, and how that compares with the published figures.

A record is what one benchmark measured of one network (results/NETWORK/*.json). Two editions are read: the first, whose
`subset` speaks for all its metrics, and format 2, whose `partial` names the metrics of incomplete image sets. Values on
samples are merged with their share and the interval of what the whole sets would give; the largest share counts.
"""

import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.schema import Malformed, is_object, read_json
from imagenet_biases.estimate import Estimate, proportion
from imagenet_biases.results.measurements import Projection, projected, whole
from imagenet_biases.results.record_schema import FORMAT, check_record
from imagenet_biases.results.table import (
    KEYS,
    LAYERS,
    UNCERTAINTY,
    beside,
    read_beside,
    read_table,
    write_beside,
    write_table,
)
from imagenet_biases.results.text_tables import aligned
from imagenet_biases.results.witness import Witness, in_standard_errors, names_of, preprocessing_of, witnesses_of
from imagenet_biases.study import AS_IN_STUDY, DRAWN_CATEGORIES, place
from imagenet_biases.study import metric as definition

logger = logging.getLogger(__name__)

TOLERANCE = 0.05  # relative difference that is remarked on where there is no interval
USUAL = {key: AS_IN_STUDY[key] for key in ("view", "precision", "frontend")}  # anything else has rows of its own
FLAGS = {"view": "preprocessing"}  # of merge_results.py, where they are not called as the records' keys

Content = dict[str, Any]

# Records, wherever they are ------------------------------------------------------------------------------------------


def local_records(results: str | Path) -> list[Content]:
    """Read all records in results/*/*.json, whatever their file names; other JSON files are logged.

    Raises:
        UserError: a damaged record.
    """
    files = sorted(Path(results).glob("*/*.json"))
    return _records([path for path in files if path.name != "drawn.json"])  # which marks the demo's own image set


def offline_records(folder: str | Path) -> list[Content]:
    """Read the records of the W&B runs in a local folder, results/wandb.

    Raises:
        UserError: the folder has none, or a damaged one.
    """
    files = sorted(Path(folder).glob("*run-*/files/record.json"))
    if not files:
        raise UserError(f"{folder} holds no W&B runs with a record (offline-run-*/files/record.json)")
    return _records(files)


def online_records(path: str) -> list[Content]:
    """Read the records of the finished runs of 'ENTITY/PROJECT', or of all projects of 'ENTITY', from W&B.

    Raises:
        UserError: W&B cannot be read, or a record is damaged.
    """
    import wandb
    import wandb.errors

    try:
        api: Any = wandb.Api()
        entity, _, project = path.partition("/")
        projects = [path] if project else [f"{entity}/{listed.name}" for listed in api.projects(entity)]
        records: list[Content] = []
        for name in projects:
            for run in api.runs(name):
                records += _of_run(run)
        return records
    except (wandb.errors.Error, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"W&B project {path} cannot be read ({reason}): check the name, and `wandb login`") from None


def _of_run(run: Any) -> list[Content]:
    origin = f"W&B run {'/'.join(run.path)}"
    file = next((file for file in run.files(["record.json"]) if file.size), None)
    if run.state != "finished" or file is None:
        reason = "carries no record" if run.state == "finished" else f"is {run.state}"
        logger.warning("left out: %s %s", origin, reason)
        return []
    with tempfile.TemporaryDirectory() as folder:
        file.download(root=folder).close()
        return _records([Path(folder) / file.name], origin)


def _records(files: Iterable[Path], origin: str | None = None) -> list[Content]:
    records: list[Content] = []
    for path in files:
        try:
            record = read_json(path, Any)
        except (OSError, Malformed) as error:
            raise UserError(f"{origin or path} cannot be read ({error}): measure it again or remove it") from None
        if not is_object(record) or not {"format", "benchmark", "metrics"} & record.keys():
            logger.warning("left alone: %s is not a record", origin or path)
            continue
        records.append(checked(record, origin or path))
    return records


def checked(record: Content, origin: str | Path) -> Content:
    """Return a record of either edition in the form of format 2, with nothing missing.

    Raises:
        UserError: a record that is damaged, of a later edition, or holds an unknown metric; names its `origin`.
    """
    if record.get("format", 1) not in (1, FORMAT):
        raise UserError(f"{origin} is a record of format {record['format']!r}: update this repository to read it")
    if missing := [key for key in ("model", "benchmark", "metrics") if key not in record]:
        raise UserError(f"{origin} is a damaged record, it lacks {', '.join(missing)}: remove it or measure again")
    record = _completed(record)
    try:
        check_record(record)
    except Malformed as error:
        raise UserError(f"{origin} is a damaged record ({error}): remove it or measure again") from None
    if "format" not in record and record["subset"] is not False:
        subset = record["subset"] if is_object(record["subset"]) else {}
        part = {key: subset[key] for key in ("images", "of") if key in subset}
        record["partial"] = dict.fromkeys(record["metrics"], part)
    for name in [*record["partial"], *record["metrics"], *record["layers"]]:
        try:
            place(name)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
    return record


def _completed(record: Content) -> Content:
    """Return a record with defaults for what its edition lacks."""
    provenance = AS_IN_STUDY | {"collection": "imagenet", "category": "", "time": "", "network": None}
    provenance["source"] = ""
    empty: Content = {"intervals": {}, "partial": {}, "details": {}, "layers": {}, "provenance": {}}
    empty |= {"images": None, "subset": False, "warnings": []}
    record = empty | record
    if is_object(record["provenance"]):
        record["provenance"] = provenance | record["provenance"]
    return record


class Value(NamedTuple):
    """A number of a record, with its interval, and what the whole image sets would give."""

    value: float
    low: float | None
    high: float | None
    projection: Projection


def _values(record: Content) -> Iterator[tuple[str, str | None, Value]]:
    """Yield (metric, layer or None, number) of all that a record holds."""
    share = record.get("share")
    of_layers = share["images"] / share["of"] if share else 1.0  # no sample has an interval by layer
    for name, value in record["metrics"].items():
        if value is not None:
            low, high = record["intervals"].get(name) or (None, None)
            yield name, None, Value(value, low, high, projected(record, name, value))
    for name, layers in record["layers"].items():
        for layer, (value, low, high) in layers.items():
            if value is not None:
                projection = Projection(value, share=of_layers) if share else whole(value)
                yield name, layer, Value(value, low, high, projection)


# From records to rows ------------------------------------------------------------------------------------------------


def select(
    records: Iterable[Content],
    preprocessing: str = USUAL["view"],
    precision: str = USUAL["precision"],
    frontend: str = "",
) -> tuple[list[Content], list[str]]:
    """Return the records that may share a row, oldest first, with their whole metrics only, and lines about the rest.

    Of several networks under one name the one that was measured last counts.
    """
    wanted = {"view": preprocessing, "precision": precision, "frontend": frontend}
    notes: list[str] = []
    fitting: list[Content] = []
    for record in sorted(records, key=lambda record: record["provenance"]["time"]):
        name = f"{record['model']} {record['benchmark']}"
        if reason := _reason_to_leave_out(record, wanted):
            notes.append(f"left out: {name}: {reason}")
            continue
        whole, lines = _whole(record)
        notes += [f"left out: {name}: {line}" for line in lines]
        if any(value is not None for value in whole["metrics"].values()) or whole["layers"]:
            fitting.append(whole)
    chosen, lines = _of_newest_network(fitting)
    return chosen, list(dict.fromkeys(notes + lines))


def _of_newest_network(records: Sequence[Content]) -> tuple[list[Content], list[str]]:
    """Return the records of the network that was measured last under each name, and lines about them and the others."""
    newest = {record["model"]: record["provenance"]["network"] for record in records}
    superseded: defaultdict[tuple[str, Any], list[Content]] = defaultdict(list)
    chosen: list[Content] = []
    notes: list[str] = []
    for record in records:
        network = record["provenance"]["network"]
        if network == newest[record["model"]]:
            notes += [f"note: {record['model']} {record['benchmark']}: {warning}" for warning in record["warnings"]]
            chosen.append(record)
        else:
            superseded[record["model"], network].append(record)
    for (model, network), older in superseded.items():
        last = older[-1]["provenance"]
        notes.append(
            f"left out: {model}: {listed_briefly(record['benchmark'] for record in older)} of other weights than "
            f"those that were measured last under this name (network {str(network)[:8]}, "
            f"{last['source'] or 'source unknown'}, {last['time']}): --name gives a network a name of its own"
        )
    return chosen, notes


def _reason_to_leave_out(record: Content, wanted: Mapping[str, str]) -> str | None:
    provenance = record["provenance"]
    for key, value in wanted.items():
        actual, flag = provenance[key], FLAGS.get(key, key)
        if actual != value:
            hint = f" (--{flag} {actual} gives it a row of its own)" if actual != USUAL[key] else ""
            return f"{flag} {actual or 'none'}, not {value or 'none'}{hint}"
    collection, expected = provenance["collection"] or "imagenet", "imagenet"
    if provenance["category"] in DRAWN_CATEGORIES:
        expected = "drawn"  # what these networks were made for
    if collection in (expected, "none"):  # none: of the weights alone
        return None
    return f"measured on {collection} images, its row is for {expected} ones"


def _whole(record: Content) -> tuple[Content, list[str]]:
    """Return the record without the metrics that rest on part of their images, and a line for each kind of part."""
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for name, part in record["partial"].items():
        extent = f" ({part['images']} of {part['of']} images)" if {"images", "of"} <= part.keys() else ""
        parts[extent].append(name)
    lines = [f"a subset{extent}: {listed_briefly(sorted(names, key=place))}" for extent, names in parts.items()]
    metrics = {name: value for name, value in record["metrics"].items() if name not in record["partial"]}
    layers: Content = {}
    for name, values in record["layers"].items():
        # values by layer go with the metrics of their name: metric/criticality with metric/criticality/mean
        if not any(f"{metric}/".startswith(f"{name}/") for metric in record["partial"]):
            layers[name] = values
    return record | {"metrics": metrics, "layers": layers}, lines


def source_name(preprocessing: str = USUAL["view"], precision: str = USUAL["precision"], frontend: str = "") -> str:
    """Return what the column `source` says of a measured row: 'measured', with what differs from the study."""
    pairs = zip(USUAL.values(), (preprocessing, precision, frontend), strict=True)
    unusual = ", ".join(value for usual, value in pairs if value != usual)
    return f"measured ({unusual})" if unusual else "measured"


def merge(
    records: Sequence[Content], source: str, published: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, list[str]]:
    """Merge selected records into one row per network.

    Args:
        source: the column `source` of the rows.
        published: the table whose networks' categories count.

    Returns:
        The rows, as `read_table` gives them; their uncertainty (columns UNCERTAINTY); the values by layer (columns
        LAYERS); lines about metrics on which two benchmarks disagree (the one that was measured last counts).
    """
    rows: defaultdict[str, Content] = defaultdict(dict)
    uncertainty: list[Content] = []
    layers: list[Content] = []
    notes: list[str] = []
    for (model, metric, layer), by_benchmark in sorted(_by_benchmark(records).items(), key=_position):
        cells = [(name, _cell(by_seed)) for name, by_seed in reversed(by_benchmark.items())]
        (benchmark, cell), *older = sorted(cells, key=lambda pair: -pair[1]["share"])
        key = {"model": model, "source": source, "metric": metric}
        if layer is not None:
            layers.append(key | {"layer": layer, "value": cell["value"], "low": cell["low"], "high": cell["high"]})
            continue
        rows[model][metric] = cell["value"]
        if cell["low"] is not None or cell["seeds"] > 1 or cell["share"] < 1:
            uncertainty.append(key | cell)
        value = f"{cell['value']:.6g}"
        for other_benchmark, other_cell in older:
            other_value = f"{other_cell['value']:.6g}"
            if other_value != value and other_cell["share"] == cell["share"]:
                notes.append(f"note: {model} {metric}: {other_value} in {other_benchmark}, {value} in {benchmark}")
    # sorted: a record that does not know the category (older, or from elsewhere) does not hide one that does
    categories = dict(sorted((record["model"], record["provenance"]["category"]) for record in records))
    categories |= dict(zip(published["model"], published["category"], strict=True))
    table: list[Content] = []
    for model, values in rows.items():
        table.append({"model": model, "category": categories[model], "source": source} | values)
    return (
        pd.DataFrame(table, columns=None if table else KEYS),
        pd.DataFrame(uncertainty, columns=UNCERTAINTY),
        pd.DataFrame(layers, columns=LAYERS),
        notes,
    )


CellKey = tuple[str, str, str | None]  # model, metric, layer


def _by_benchmark(records: Iterable[Content]) -> dict[CellKey, dict[str, dict[int, Value]]]:
    """Return {cell: {benchmark: {seed: number}}}; the benchmark that was measured last comes last.

    Of records of one benchmark and seed the one with the larger share of the images counts, of equal ones the last.
    """
    cells: dict[CellKey, dict[str, dict[int, Value]]] = defaultdict(dict)
    for record in records:
        seed = record["provenance"]["seed"]
        for metric, layer, value in _values(record):
            by_benchmark = cells[record["model"], metric, layer]
            by_seed = by_benchmark.get(record["benchmark"], {})
            if seed in by_seed and by_seed[seed].projection.share > value.projection.share:
                continue
            by_benchmark.pop(record["benchmark"], None)
            by_benchmark[record["benchmark"]] = by_seed | {seed: value}
    return cells


def _position(item: tuple[CellKey, Any]) -> tuple[Any, ...]:
    model, metric, layer = item[0]
    return model, place(metric), layer is not None  # layers stay in the network's order


def _cell(by_seed: Mapping[int, Value]) -> Content:
    """Return the mean over seeds with the mean intervals, the smallest share, and the SD between seeds."""
    values = [value.value for value in by_seed.values()]
    low, high = _mean_bounds([(value.low, value.high) for value in by_seed.values() if value.low is not None])
    projections = [value.projection for value in by_seed.values()]
    bounds = [(projection.low, projection.high) for projection in projections]
    whole_low, whole_high = _mean_bounds([] if (None, None) in bounds else bounds)
    return {
        "value": float(np.mean(values)),
        "low": low,
        "high": high,
        "seeds": len(values),
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "share": min(projection.share for projection in projections),
        "whole_low": whole_low,
        "whole_high": whole_high,
    }


def _mean_bounds(bounds: Sequence[tuple[float | None, float | None]]) -> tuple[float | None, float | None]:
    low, high = np.mean(np.array(bounds, float), axis=0).tolist() if bounds else (None, None)
    return low, high


def update(
    path: str | Path,
    rows: pd.DataFrame,
    uncertainty: pd.DataFrame,
    layers: pd.DataFrame,
    published: pd.DataFrame,
    rebuild: bool = False,
) -> list[str]:
    """Put measured rows into the table at `path`, with their uncertainty and layers beside it; report it in lines.

    A network's row is replaced as a whole. With `rebuild`, rows that were not found again are dropped. The order of
    the networks is that of the published rows.
    """
    path = Path(path)
    replaced = set(zip(rows["model"], rows["source"], strict=True))

    def retained(frame: pd.DataFrame) -> pd.DataFrame:
        if rebuild:
            return frame.iloc[:0]
        return frame[[key not in replaced for key in zip(frame["model"], frame["source"], strict=True)]]

    old = retained(read_table(path)) if path.exists() else rows.iloc[:0]
    joined = _joined(old, rows)
    order = {model: number for number, model in enumerate(published["model"])}
    positions = [(row.source, order.get(row.model, len(order)), row.model) for row in joined[[*KEYS]].itertuples()]
    write_table(joined.iloc[sorted(range(len(joined)), key=positions.__getitem__)], path)
    for kind, new in (("uncertainty", uncertainty), ("layers", layers)):
        both = _joined(retained(read_beside(path, kind)), new)
        if len(both) or beside(path, kind).exists():
            write_beside(both, path, kind)
    lines: list[str] = []
    for _, row in rows.iterrows():
        shares = uncertainty.loc[(uncertainty["model"] == row["model"]) & (uncertainty["share"] < 1), "share"]
        samples = f", {len(shares)} of them on samples (from {shares.min():.2%} of the images)" if len(shares) else ""
        lines.append(f"{row['model']} ({row['source']}): {row.drop(list(KEYS)).notna().sum()} values{samples}")
    stay = f"; {len(old)} of before stay (--rebuild drops them)" if len(old) else ""
    return [*lines, f"{path}: {len(rows)} measured rows{stay}"]


def _joined(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Return two frames as one; an empty frame would change the columns' types."""
    return pd.concat([frame for frame in (old, new) if len(frame)] or [new], ignore_index=True)


# Measured against published ------------------------------------------------------------------------------------------


def compare(
    rows: pd.DataFrame, uncertainty: pd.DataFrame, published: pd.DataFrame, records: Iterable[Content] = ()
) -> Iterator[str]:
    """Yield lines on measured against published figures by metric, marked where they differ or one is a slip.

    Beside them stands what another laboratory measured with the same preprocessing. SE: the difference of the measured
    value in standard errors, of the measured value and of a witness on a sample.

    Args:
        rows, uncertainty: as `merge` returns them.
        published: the published rows.
        records: those behind the rows; they say which network was measured, and with which preprocessing.
    """
    references: Any = published[published["source"] == "published"].set_index("model")
    bounds = uncertainty.dropna(subset=["low", "high"]).set_index(["model", "metric"])[["low", "high"]]
    bounds = dict(zip(bounds.index, bounds.itertuples(index=False), strict=True))
    witnesses = _witnesses(records)
    for _, row in rows.iterrows():
        model = row["model"]
        witness = witnesses.get(model, {})
        reference = references.loc[model].dropna() if model in references.index else pd.Series(dtype=float)
        metrics = sorted((set(row.dropna().index) & {*reference.index, *witness}) - {*KEYS}, key=place)
        whom = "published" if model in references.index else "other laboratories (the study has no such network)"
        if model not in references.index and not metrics:
            yield f"\n{model}: the study has no such network"
            continue
        yield f"\n{model}: measured against {whom}, {len(metrics)} metrics"
        cells = [["  metric", "measured", "95 % interval", "published", "difference", "SE", "witness", "SE", ""]]
        remarks: list[str] = []
        for metric in metrics:
            low, high = bounds.get((model, metric), (None, None))
            line, remark = _compared(metric, Estimate(row[metric], low, high), reference, witness.get(metric))
            cells.append(line)
            remarks += [remark] if remark else []
        yield from aligned(cells, right=(1, 3, 4, 5, 6, 7))
        yield from remarks or ["  no metric is off"]
        if sources := sorted({witness[metric].source for metric in metrics if metric in witness}):
            yield f"  witness: {', '.join(sources)}"


def _witnesses(records: Iterable[Content]) -> dict[str, dict[str, Witness]]:
    """Return {model: {metric: a witness of the same preprocessing}}, of whole sets where there is one."""
    witnesses: defaultdict[str, dict[str, Witness]] = defaultdict(dict)
    for record in records:
        provenance = record["provenance"]
        if provenance["frontend"] or provenance["collection"] != "imagenet":
            continue
        heard = witnesses_of(names_of(record["model"], provenance["source"] or ""))
        for witness in sorted(heard, key=lambda witness: witness.images is None):
            for metric in record["metrics"]:
                if witness.speaks_of(metric, preprocessing_of(provenance)):
                    witnesses[record["model"]][metric] = witness
    return witnesses


def _compared(
    metric: str, measured: Estimate, reference: pd.Series, witness: Witness | None
) -> tuple[list[str], str | None]:
    """Return the cells of one metric's line, and a remark on it."""
    assert measured.value is not None
    low, high = measured.low, measured.high
    line = [f"  {metric}", f"{measured.value:.6g}", f"[{low:.4g}, {high:.4g}]" if low is not None else "-"]
    mark, remark = "", ""
    if metric in reference:
        value = float(reference[metric])
        mark, remark = judge(metric, measured.value, low, high, reference)
        whole = Witness("", "", "", None, "", {metric: value})
        line += [f"{value:.6g}", f"{measured.value - value:+.4f}", _errors(measured, whole, metric)]
    else:
        line += ["-", "-", "-"]
    line += ["-", "-"] if witness is None else [f"{witness.values[metric]:.6g}", _errors(measured, witness, metric)]
    return [*line, mark], f"  {mark}: {metric}: {remark}" if remark else None


def _errors(measured: Estimate, witness: Witness, metric: str) -> str:
    difference = in_standard_errors(measured, witness, metric)
    return "-" if difference is None else f"{difference:+.1f}"


def judge(
    metric: str, measured: float, low: float | None, high: float | None, published: Mapping[str, Any] | pd.Series
) -> tuple[str, str]:
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
        accuracy = proportion(round(value / 100 * about.published_images), about.published_images)
        assert accuracy.low is not None and accuracy.high is not None
        off = (high or measured) < accuracy.low or (low or measured) > accuracy.high
        remark = f"{about.slip}; its own 95 % interval is [{accuracy.low:.1f}, {accuracy.high:.1f}]"
    else:
        off, remark = False, f"{about.slip}; not comparable"
    return ("SLIP, OFF", f"{remark}; the measured {measured:.6g} does not fit it") if off else ("SLIP", remark)


def _apart(measured: float, low: float | None, high: float | None, value: float) -> bool:
    if low is not None and high is not None:
        return not low <= value <= high
    return abs(measured - value) > max(TOLERANCE * abs(value), 0.01)


def _distance(measured: float, low: float | None, high: float | None, value: float) -> str:
    if low is not None:
        return f"the published {value:.6g} is outside the measured interval [{low:.4g}, {high:.4g}]"
    return f"measured {measured:.6g} and published {value:.6g} differ by more than {100 * TOLERANCE:.0f} %"

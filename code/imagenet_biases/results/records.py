"""Records: one JSON file per network and benchmark, with all that is needed to trust or repeat its numbers.

results/LABEL/BENCHMARK.json is the result on whole image sets with the study's preprocessing; records of other
preprocessing, precision, seed, subset or weights under the same label lie beside it as BENCHMARK.VARIANT.json. Readers
go by content.
"""

import datetime
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from imagenet_biases import study
from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import safe_name, sweep, write_json
from imagenet_biases.base.schema import Malformed, Object, read_json
from imagenet_biases.estimate import Estimate
from imagenet_biases.measures.split_half import FEWEST, as_text, halves
from imagenet_biases.results.provenance import circumstances, commit
from imagenet_biases.results.record_schema import FORMAT, check_record
from imagenet_biases.results.witness import disagreements

if TYPE_CHECKING:
    from imagenet_biases.images.sets import ImageSet
    from imagenet_biases.networks.load import Network
    from imagenet_biases.vocabulary import Benchmark, Metrics, Results

Content = dict[str, Any]
"""What a record holds (record_schema.RecordContent)."""

CIRCUMSTANCES = ("time", "device", "versions", "commit", "images_per_second")
"""The keys by which a record says when, where and by what it was measured."""


class Record:
    """What a benchmark measured on a network; `content` is JSON-able."""

    def __init__(self, content: Content) -> None:
        self.content = content

    @property
    def model(self) -> str:
        """The network's label."""
        return self.content["model"]

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return self.content["benchmark"]

    @property
    def metrics(self) -> dict[str, Estimate]:
        """The metrics with their intervals, by name."""
        bounds = self.content["intervals"]
        estimates: dict[str, Estimate] = {}
        for name, value in self.content["metrics"].items():
            estimates[name] = Estimate(value, *bounds.get(name, (None, None)))
        return estimates

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __repr__(self) -> str:
        return f"Record({self.model}, {self.benchmark}, {len(self.content['metrics'])} metrics)"


def named(pairs: "Metrics", benchmark: str) -> dict[str, Estimate]:
    """Return the metrics that a report yields, by name.

    Raises:
        UserError: a metric that is reported twice, or that metrics.toml does not define.
    """
    metrics: dict[str, Estimate] = {}
    for name, value in pairs:
        if name in metrics:
            raise UserError(f"{benchmark} reports {name} twice; one of the two is lost")
        study.metric(name)
        metrics[name] = value if isinstance(value, Estimate) else Estimate(value)
    return metrics


def make_record(
    benchmark: "Benchmark",
    label: str,
    network: "Network | None",
    results: "Results",
    metrics: Mapping[str, Estimate],
    runtime: Any,
    *,
    options: Mapping[str, Any] | None = None,
    image_sets: "Sequence[ImageSet]" = (),
    notes: Iterable[str] = (),
) -> Content:
    """Return the content of a record.

    Args:
        network: None where the answers came from files.
        results: the responses behind the metrics; their halves say how certain differences are.
        image_sets: those that were presented.
        notes: warnings.
    """
    left_out = _left_out(results)
    layers = benchmark.layers(results) if benchmark.layers else {}
    for name in layers:
        study.metric(name)
    content: Content = {
        "format": FORMAT,
        "model": label,
        "benchmark": benchmark.name,
        **_values(metrics),
        "partial": _partial(metrics, image_sets),
        "sampled": _sampled(metrics, image_sets),
        "layers": _layers(layers),
        "halves": {name: as_text(values) for name, values in halves(benchmark, results).items()},
        "images": sum(map(len, image_sets)),
        "share": _share(image_sets),
        "subset": _subset(image_sets, left_out),
        "warnings": list(notes),
        "left_out": left_out,
        "details": json.loads(json.dumps(benchmark.details(results) if benchmark.details else {})),
        "options": json.loads(json.dumps(options or {}, default=str)),
        "metric_options": {},
        "scored": [],
        "provenance": _provenance(network, results, runtime, image_sets),
    }
    content["warnings"] += disagreements(content)
    return json.loads(json.dumps(content, allow_nan=False, default=str))  # what is compared is what will be read


def _provenance(
    network: "Network | None", results: "Results", runtime: Any, image_sets: "Sequence[ImageSet]"
) -> Content:
    """Return what was measured, how, when, where and by what."""
    measured = _measured(results, runtime)
    provenance: Content = {} if network is None else dict(network.identity)
    provenance |= {
        "category": "" if network is None else network.category,
        "collection": collection_of(image_sets),
        "image_sets": {},
        "view": runtime.preprocessing,
        "precision": runtime.precision,
        "seed": runtime.seed,
        **measured[-1],
        "measured": measured,
    }
    if network is not None and image_sets and runtime.preprocessing == "native":
        provenance["native"] = str(network.native_preprocessing)
    for images in image_sets:
        provenance["image_sets"][images.name] = {
            "fingerprint": images.fingerprint,
            "images": len(images),
            "subset": images.subset,
            "share": images.share(),
        }
    return provenance


def collection_of(image_sets: "Iterable[ImageSet]") -> str:
    """Return where the images of some sets come from, in a word; 'none' where there are no images."""
    return "+".join(sorted({images.collection for images in image_sets})) or "none"


def _left_out(results: "Results") -> list[str]:
    """Return the images that were left out as unreadable."""
    names: set[str] = set()
    for responses in results.all():
        files = responses.images.files
        names |= {f"{responses.images.name}/{files[position]}" for position in np.flatnonzero(~responses.counts)}
    return sorted(names)


def _measured(results: "Results", runtime: Any) -> list[Content]:
    """Return when, where and by what the responses were measured, oldest first; now, where there are none."""
    distinct: dict[str, Content] = {}
    for responses in results.all():
        for moment in responses.measured:
            distinct[json.dumps(moment, sort_keys=True)] = moment
    return sorted(distinct.values(), key=lambda moment: moment["time"]) or [circumstances(runtime)]


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _bounds(estimate: Estimate) -> list[float | None]:
    """Return the interval of an estimate: both bounds, or [None, None]."""
    bounds = [_number(estimate.low), _number(estimate.high)]
    return [None, None] if None in bounds else bounds


def _values(metrics: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """Return the metrics, and the intervals of those that have one."""
    values, intervals = {}, {}
    for name, estimate in metrics.items():
        values[name], bounds = _number(estimate.value), _bounds(estimate)
        if bounds != [None, None]:
            intervals[name] = bounds
    return {"metrics": values, "intervals": intervals}


def _layers(layers: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, list[float | None]]]:
    """Return [value, low, high] by metric and layer."""
    values: dict[str, dict[str, list[float | None]]] = {}
    for metric, estimates in layers.items():
        values[metric] = {}
        for layer, estimate in estimates.items():
            values[metric][layer] = [_number(estimate.value), *_bounds(estimate)]
    return values


def _partial(metrics: Mapping[str, Estimate], image_sets: "Iterable[ImageSet]") -> dict[str, Content]:
    """Return {metric: {images, of}} of the metrics that rest on incomplete sets."""
    sets = {images.name: images for images in image_sets}
    partial: dict[str, Content] = {}
    for name, estimate in metrics.items():
        used = sets if estimate.sets is None else estimate.sets
        lacking = sorted(set(used) - sets.keys())
        present = [sets[set_name] for set_name in used if set_name in sets]
        if lacking or any(images.subset for images in present):
            partial[name] = {"images": sum(map(len, present)), "of": _whole(present)}
            partial[name] |= {"without": lacking} if lacking else {}
    return partial


def _sampled(metrics: Mapping[str, Estimate], image_sets: "Iterable[ImageSet]") -> dict[str, Content]:
    """Return {metric: {images, of, low, high}} of metrics on samples, with what the whole sets would give."""
    sets = {images.name: images for images in image_sets}
    sampled: dict[str, Content] = {}
    for name, estimate in metrics.items():
        used = [images for images in sets.values() if estimate.sets is None or images.name in estimate.sets]
        if not any(images.unseen for images in used):
            continue
        bounds = None
        if min(map(len, used)) >= FEWEST:
            bounds = estimate.for_whole_set(max(images.unseen for images in used))
        low, high = map(_number, bounds or (None, None))
        of = sum(images.population for images in used)
        sampled[name] = {"images": sum(map(len, used)), "of": of, "low": low, "high": high}
    return sampled


def _share(image_sets: "Sequence[ImageSet]") -> Content | None:
    """Return how many of the images that the benchmark asks for were shown, {images, of, order}; None for all."""
    orders = [share["order"] for images in image_sets if images.unseen and (share := images.share())]
    if not orders:
        return None
    of = sum(images.population for images in image_sets)
    return {"images": sum(map(len, image_sets)), "of": of, "order": orders[0]}


def _whole(image_sets: "Iterable[ImageSet]") -> int:
    """Return how many images the complete sets have."""
    return sum((images.subset or {}).get("of", len(images.whole or images)) for images in image_sets)


def _subset(image_sets: "Sequence[ImageSet]", left_out: Collection[str]) -> Content | bool:
    """Return what of the complete image sets is there and readable, or False where all of it is."""
    parts = {images.name: images.subset for images in image_sets if images.subset}
    if not parts and not left_out:
        return False
    there = sum(len(images.whole or images) for images in image_sets)
    subset = {"images": there - len(left_out), "of": _whole(image_sets)}
    return subset | ({"left_out": len(left_out)} if left_out else {}) | {"sets": parts}


# Which record is which ------------------------------------------------------------------------------------------------


def variant(record: Mapping[str, Any]) -> str:
    """Return what distinguishes records of one label and benchmark, as a word: settings, subset, and the weights."""
    provenance, subset = record["provenance"], record["subset"]
    words = [provenance["view"], provenance["precision"], f"seed{provenance['seed']}"]
    words.append(provenance["collection"].replace("+", "_"))
    words += [provenance["frontend"]] if provenance.get("frontend") else []
    if subset:  # how many images are left out may differ from round to round
        words.append(f"{subset['images'] + subset.get('left_out', 0)}of{subset['of']}")
    words += [provenance["network"][:8]] if provenance.get("network") else []
    return safe_name("-".join(re.sub(r"[^\w.]", "_", word) for word in words))


def _precedence(record: Mapping[str, Any]) -> tuple[bool, bool, int, str]:
    """Which record owns BENCHMARK.json: complete sets, whole sets, the study's way before others, then the newest."""
    provenance = record["provenance"]
    of_study = study.AS_IN_STUDY | {"collection": "imagenet"}
    deviations = sum((provenance.get(key) or "") != (value or "") for key, value in of_study.items())
    return (
        not record["subset"],
        not record.get("share"),
        -deviations,
        provenance["time"],
    )


def read_record(path: Path) -> Content | None:
    """Return a record's content, or None where the file is missing or not a record of this project."""
    try:
        record = read_json(path, Object)
        check_record(record)
        variant(record)
        return record
    except (OSError, Malformed, KeyError, TypeError, UserError):  # the first edition's subset may lack its numbers
        return None


def check_place(results: str | Path, label: str, benchmark: str) -> None:
    """Make the folder of a label's records, and check that a record can be written there: before hours of measuring.

    Raises:
        UserError: a file that is not a record has the record's name, or the folder is read-only.
        OSError: the folder cannot be made.
    """
    folder = Path(results) / safe_name(label)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(f"nothing can be written in {folder}: give another folder with --results DIR")
    _check_ours(folder / f"{safe_name(benchmark)}.json")
    sweep(folder)


def _check_ours(path: Path) -> None:
    """Raise UserError for a file that exists and is not a record: foreign files are never replaced."""
    if os.path.lexists(path) and read_record(path) is None:
        raise UserError(f"{path} is not a record of this project; move it away, the responses are kept")


def write_record(results: str | Path, record: Content) -> tuple[Content, Path, bool]:
    """Put a record into the results folder; return it as it stands there, its path, and whether anything changed.

    A repetition that changes nothing writes nothing. One that scores the same responses differently adds a line to
    `scored`. Metrics that this record lacks (other options, other image sets) are taken over from the record of the
    same variant, with the options they were measured under.

    Raises:
        UserError: a file that is not a record has the record's name.
    """
    folder = Path(results) / safe_name(record["model"])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of shards that end together both may write it
        return _written(folder, record)


def _written(folder: Path, record: Content) -> tuple[Content, Path, bool]:
    owner = folder / f"{safe_name(record['benchmark'])}.json"
    beside = folder / f"{record['benchmark']}.{variant(record)}.json"
    check_record(record)
    for path in (owner, beside):
        _check_ours(path)
        before = read_record(path)
        if before and variant(before) == variant(record):
            # the values of a longer run stay
            record = _completed(before, record) if _shown(before) > _shown(record) else _joined(before, record)
            if record == before:
                return record, path, False
    before = read_record(owner)
    if before and variant(before) != variant(record):
        if _precedence(before) > _precedence(record):
            write_json(beside, record)
            return record, beside, True
        # first the copy, then the new owner: a run that dies in between loses neither
        write_json(folder / f"{record['benchmark']}.{variant(before)}.json", before)
    write_json(owner, record)
    with suppress(FileNotFoundError):
        beside.unlink()
    return record, owner, True


def _shown(record: Mapping[str, Any]) -> float:
    """Return the share of the images that a record rests on."""
    share = record.get("share")
    return share["images"] / share["of"] if share else 1.0


def _joined(before: Content, record: Content) -> Content:
    """Return the new record with what the record before it (same variant) adds; `before` itself if nothing is new."""
    missing = [name for name in before["metrics"] if name not in record["metrics"]]
    options = dict(before.get("metric_options", {}))
    if missing:
        for name in missing:
            options.setdefault(name, before.get("options", {}))
        record = _with_metrics_of(before, record)
    # metrics that this record measured, or that share its options, need no line of their own
    record["metric_options"] = {}
    for name, value in options.items():
        if name in missing and value != record["options"]:
            record["metric_options"][name] = value
    if before.get("format") != FORMAT:
        return record
    same_responses = _moments(record) <= _moments(before) and _shown(record) == _shown(before)
    if same_responses or not record["provenance"]["image_sets"]:
        return _rescored(before, record)
    return record


def _completed(before: Content, record: Content) -> Content:
    """Return the record of a longer run with the metrics that only a later, shorter one has; `before` without any."""
    new = [name for name in record["metrics"] if name not in before["metrics"]]
    if not new:
        return before
    options = before.get("metric_options", {})
    if record["options"] != before["options"]:
        options = options | dict.fromkeys(new, record["options"])
    return _with_metrics_of(record, before) | {"metric_options": options}


def _with_metrics_of(before: Content, record: Content) -> Content:
    """Return the record with the metrics that only the record before it has."""
    merged = dict(record)
    for part in ("metrics", "intervals", "partial", "sampled", "layers", "halves"):
        own, earlier = record.get(part, {}), before.get(part, {})
        merged[part] = {name: earlier[name] for name in earlier if name not in record["metrics"]} | own
    merged["details"] = before.get("details", {}) | record["details"]
    image_sets = before["provenance"].get("image_sets", {}) | record["provenance"]["image_sets"]
    merged["provenance"] = record["provenance"] | {"image_sets": image_sets}
    merged["images"] = sum(images["images"] for images in image_sets.values())
    return merged


def _rescored(before: Content, record: Content) -> Content:
    """Return the record of the same responses with a line that says what changed; `before` where nothing did."""
    source = before["provenance"]
    record["provenance"] = dict(record["provenance"])
    for key in (*CIRCUMSTANCES, "measured"):
        if key in source:
            record["provenance"][key] = source[key]
    record["scored"] = before.get("scored", [])
    compared = record.keys() - {"scored", "provenance"}
    changed = sorted(key for key in compared if record[key] != before.get(key))
    if not changed:
        return before
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record["scored"] = [*record["scored"], {"time": now, "commit": commit(), "changed": changed}]
    return record


def _moments(record: Mapping[str, Any]) -> set[str]:
    return {json.dumps(moment, sort_keys=True) for moment in record["provenance"].get("measured", [])}

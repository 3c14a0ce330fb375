"""Records: one JSON file a network and benchmark, with all that is needed to trust or repeat its numbers.

results/LABEL/BENCHMARK.json is the result on whole image sets in the study's view; records of another view, precision,
seed, subset or other weights under the same label lie beside it as BENCHMARK.VARIANT.json. Readers go by content.
"""

import datetime
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from imagenet_biases import study
from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import safe_name, sweep, write_json
from imagenet_biases.base.schema import Malformed, check, read_json
from imagenet_biases.measures.split_half import as_text, halves
from imagenet_biases.results.provenance import circumstances, commit
from imagenet_biases.results.record_schema import FORMAT, RECORD
from imagenet_biases.vocabulary import Estimate


class Record:
    """What a benchmark found on a network: `.model`, `.benchmark`, `.metrics` {name: Estimate}; `.content` is JSON."""

    def __init__(self, content):
        self.content = content

    @property
    def model(self):
        return self.content["model"]

    @property
    def benchmark(self):
        return self.content["benchmark"]

    @property
    def metrics(self):
        bounds = self.content["intervals"]
        return {
            name: Estimate(value, *bounds.get(name, (None, None))) for name, value in self.content["metrics"].items()
        }

    def __getitem__(self, key):
        return self.content[key]

    def __repr__(self):
        return f"Record({self.model}, {self.benchmark}, {len(self.content['metrics'])} metrics)"


def named(pairs, benchmark):
    """Return {metric: Estimate} of what a report yields; UserError for a name given twice or unknown to study.py."""
    metrics = {}
    for name, value in pairs:
        if name in metrics:
            raise UserError(f"{benchmark} reports {name} twice; one of the two is lost")
        study.metric(name)
        metrics[name] = value if isinstance(value, Estimate) else Estimate(value)
    return metrics


def make_record(benchmark, label, network, found, metrics, runtime, *, options=None, image_sets=(), notes=()):
    """Return a record of `metrics` {name: Estimate}; its `halves` (halves.as_text) say how sure differences are.

    `network`: a Network, or None where the answers came from files; `found`: the Found behind the metrics;
    `image_sets`: those shown; `notes`: warnings.
    """
    partial = _partial(metrics, image_sets)
    measured = _measured(found, runtime)
    left_out = sorted(
        {
            f"{one.images.name}/{one.images.files[position]}"
            for one in found.all()
            for position in np.flatnonzero(~one.counts)
        }
    )
    details = benchmark.details(found) if benchmark.details else {}
    layers = benchmark.layers(found) if benchmark.layers else {}
    for name in layers:
        study.metric(name)
    content = {
        "format": FORMAT,
        "model": label,
        "benchmark": benchmark.name,
        "metrics": {name: _number(one.value) for name, one in metrics.items()},
        "intervals": {name: bounds for name, one in metrics.items() if (bounds := _bounds(one)) != [None, None]},
        "partial": partial,
        "layers": {
            metric: {layer: [_number(one.value), *_bounds(one)] for layer, one in values.items()}
            for metric, values in layers.items()
        },
        "halves": {name: as_text(values) for name, values in halves(benchmark, found).items()},
        "images": sum(len(images) for images in image_sets),
        "subset": _subset(image_sets, partial, left_out),
        "warnings": list(notes),
        "left_out": left_out,
        "details": json.loads(json.dumps(details)),
        "options": json.loads(json.dumps(options or {}, default=str)),
        "metric_options": {},
        "scored": [],
        "provenance": (dict(network.identity) if network is not None else {})
        | {
            "category": network.category if network is not None else "",
            "collection": collection_of(image_sets),
            "image_sets": {
                images.name: {
                    "fingerprint": images.fingerprint,
                    "images": len(images),
                    "subset": images.subset,
                    "sample": images.sample,
                }
                for images in image_sets
            },
            "view": runtime.preprocessing,
            "precision": runtime.precision,
            "seed": runtime.seed,
            **measured[-1],
            "measured": measured,
        },
    }
    return json.loads(json.dumps(content, allow_nan=False, default=str))  # what is compared is what will be read


def collection_of(image_sets):
    """Return where the images of some sets come from, in a word; 'none' where there are no images."""
    return "+".join(sorted({images.collection for images in image_sets})) or "none"


def _measured(found, runtime):
    """Return when, where and by what the responses were measured, oldest first; now, where there are none."""
    distinct = {json.dumps(one, sort_keys=True): one for responses in found.all() for one in responses.measured}
    return sorted(distinct.values(), key=lambda one: one["time"]) or [circumstances(runtime)]


def _number(value):
    return None if value is None or not np.isfinite(value) else float(value)


def _bounds(estimate):
    """Return the interval of an estimate: both bounds, or [None, None]."""
    bounds = [_number(estimate.low), _number(estimate.high)]
    return [None, None] if None in bounds else bounds


def _partial(metrics, image_sets):
    """Return {metric: {images, of}} of the metrics that rest on less than whole sets (declared samples are whole)."""
    sets = {images.name: images for images in image_sets}
    partial = {}
    for name, estimate in metrics.items():
        used = sets if estimate.sets is None else estimate.sets
        lacking = [one for one in used if one not in sets]
        subsets = [sets[one].subset for one in used if one in sets and sets[one].subset]
        if lacking or subsets:
            partial[name] = {
                "images": sum(len(sets[one]) for one in used if one in sets),
                "of": sum((sets[one].subset or {"of": len(sets[one])})["of"] for one in used if one in sets),
            } | ({"without": sorted(lacking)} if lacking else {})
    return partial


def _subset(image_sets, partial, left_out):
    """Return what of the image sets was measured, or False where all of it was."""
    parts = {images.name: images.subset for images in image_sets if images.subset}
    if not parts and not left_out:
        return False
    whole = sum((images.subset or {}).get("of", len(images)) for images in image_sets)
    return {
        "images": sum(len(images) for images in image_sets) - len(left_out),
        "of": whole,
        **({"left_out": len(left_out)} if left_out else {}),
        "sets": parts,
    }


# Which record is which ------------------------------------------------------------------------------------------------


def variant(record):
    """Return what distinguishes records of one label and benchmark, as a word: settings, subset, and the weights."""
    source, subset = record["provenance"], record["subset"]
    words = [source["view"], source["precision"], f"seed{source['seed']}", source["collection"].replace("+", "_")]
    words += [source["frontend"]] if source.get("frontend") else []
    words += [f"{subset['images']}of{subset['of']}"] if subset else []
    words += [source["network"][:8]] if source.get("network") else []
    return safe_name("-".join("".join(c if c.isalnum() or c in "._" else "_" for c in word) for word in words))


def _rank(record):
    """Which record owns BENCHMARK.json: whole before subset, the study's way before others, then the newest."""
    source = record["provenance"]
    usual = {"view": "study", "precision": "fp32", "seed": 0, "collection": "imagenet"}
    unusual = sum(source.get(key) != value for key, value in usual.items()) + bool(source.get("frontend"))
    return not record["subset"], -unusual, source["time"]


def read_record(path):
    """Return a record's content, or None where there is none or it is not one of ours."""
    try:
        record = read_json(path, RECORD)
        variant(record)
        return record
    except (OSError, Malformed, KeyError, TypeError, UserError):  # the first edition's subset may lack its numbers
        return None


def check_place(results, label, benchmark):
    """Make the folder of a label's records, and see that a record can be written there: before hours of measuring.

    Raises UserError where a file that is not a record has the record's name, and OSError where nothing can be written.
    """
    folder = Path(results) / safe_name(label)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(f"nothing can be written in {folder}: give another folder with --results DIR")
    _check_ours(folder / f"{safe_name(benchmark)}.json")
    sweep(folder)


def _check_ours(path):
    """Raise UserError for a file that is there and is no record: what is not ours is never replaced."""
    if os.path.lexists(path) and read_record(path) is None:
        raise UserError(f"{path} is not a record of this project; move it away, the responses are kept")


def write_record(results, record):
    """Put a record into the results folder; return it as it stands there, its path, and whether that is news.

    A repetition that changes nothing writes nothing. One that scores the same responses otherwise adds a line to
    `scored`. A record of the same network and way of measuring lends the metrics that this one lacks (other options,
    other image sets), with the options they were measured under.
    """
    folder = Path(results) / safe_name(record["model"])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of shards that end together both may write it
        return _written(folder, record)


def _written(folder, record):
    owner = folder / f"{safe_name(record['benchmark'])}.json"
    own = folder / f"{record['benchmark']}.{variant(record)}.json"
    check(record, RECORD)
    for path in (owner, own):
        _check_ours(path)
        before = read_record(path)
        if before and variant(before) == variant(record):
            record = _joined(before, record)
            if record == before:
                return record, path, False
    before = read_record(owner)
    if before and variant(before) != variant(record):
        if _rank(before) > _rank(record):
            write_json(own, record)
            return record, own, True
        # first the copy, then the new owner: a run that dies in between loses neither
        write_json(folder / f"{record['benchmark']}.{variant(before)}.json", before)
    write_json(owner, record)
    with suppress(FileNotFoundError):
        own.unlink()
    return record, owner, True


def _joined(before, record):
    """Return the new record with what the one before it (same variant) adds; `before` itself if nothing is new."""
    lent = [name for name in before["metrics"] if name not in record["metrics"]]
    options = dict(before.get("metric_options", {}))
    if lent:
        merged = dict(record)
        for part in ("metrics", "intervals", "partial", "layers", "halves"):
            kept = {name: value for name, value in before.get(part, {}).items() if name not in record["metrics"]}
            merged[part] = kept | record.get(part, {})
        merged["details"] = before.get("details", {}) | record["details"]
        merged["provenance"] = record["provenance"] | {
            "image_sets": before["provenance"].get("image_sets", {}) | record["provenance"]["image_sets"]
        }
        merged["images"] = sum(one["images"] for one in merged["provenance"]["image_sets"].values())
        options |= {name: before.get("options", {}) for name in lent if name not in options}
        record = merged
    # metrics that this record measured, or that share its options, need no line of their own
    record["metric_options"] = {
        name: value for name, value in options.items() if name in lent and value != record["options"]
    }
    if before.get("format") != FORMAT:
        return record
    same_responses = _moments(record) <= _moments(before)
    if same_responses or not record["provenance"]["image_sets"]:
        record["provenance"] = record["provenance"] | {
            key: before["provenance"][key]
            for key in (*circumstances_keys(before), "measured")
            if key in before["provenance"]
        }
        record["scored"] = before.get("scored", [])
        changed = sorted(
            key for key in record if key not in ("scored", "provenance") and record[key] != before.get(key)
        )
        if not changed:
            return before
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record["scored"] = [*record["scored"], {"time": now, "commit": commit(), "changed": changed}]
    return record


def circumstances_keys(record):
    """Return the keys by which a record says when, where and by what it was measured."""
    return [key for key in ("time", "device", "versions", "commit", "images_per_second") if key in record["provenance"]]


def _moments(record):
    return {json.dumps(one, sort_keys=True) for one in record["provenance"].get("measured", [])}

"""Weights & Biases shows what is measured: it never stops a run, and nothing is stored only there."""

import fnmatch
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from imagenet_biases.base.errors import UserError
from imagenet_biases.measures.accuracy import per_class
from imagenet_biases.results.measurements import projected
from imagenet_biases.results.records import variant
from imagenet_biases.study import wordnet_ids

if TYPE_CHECKING:
    from imagenet_biases.networks.load import Network
    from imagenet_biases.vocabulary import Results

logger = logging.getLogger(__name__)

PROJECT = "imagenet-biases"
LAYOUTS = ("study", "benchmarks")
MOST = 10  # scalars of a run: the headline; everything else is in its table and charts
DELETED = 3  # ids of one record that users may have deleted
ROWS, COLUMNS = 8, 4  # of the sheet of stimuli

Pictures = Mapping[tuple[str, str], Any]  # {(image set, condition): pictures}


class WandbLogger:
    """One W&B run per network and benchmark, grouped by network, with the record itself as a file and an artifact.

    A run's id depends only on what is measured, so that a run that is resumed or repeated is the same, and, where a
    user has deleted it, on how often. A sweep gives all runs of a process its own id, so W&B is left alone there.

    Attributes:
        mode: online, offline or disabled; 'auto' follows WANDB_MODE, else it is online where a key is configured.
        project: its name, by default WANDB_PROJECT's, else PROJECT.
        layout: 'benchmarks' uses one project per benchmark, named as the study's.
    """

    LIVE = 8  # runs that may be open at once: more benchmarks x networks are logged one by one, when each is done

    def __init__(
        self, mode: str, results: str | Path | None, runtime: Any, project: str | None = None, layout: str = "study"
    ) -> None:
        if layout not in LAYOUTS:
            raise UserError(f"--wandb-layout {layout}: it must be {' or '.join(LAYOUTS)}")
        self.folder, self.runtime = Path(results or "."), runtime
        self.project, self.layout = project or os.environ.get("WANDB_PROJECT") or PROJECT, layout
        self.runs: dict[tuple[Any, ...], Any] = {}
        self.ids: set[str] = set()  # of runs that are this one's
        self.offline: list[Path] = []
        self.mode = _mode(mode)
        if self.mode != "disabled" and os.environ.get("WANDB_SWEEP_ID"):
            logger.warning("warning: W&B is left alone: a sweep has one run, and here every record has one of its own")
            self.mode = "disabled"

    def start(self, job: Any, network: "Network") -> None:
        """Open a run to be watched while it measures."""
        if self.mode == "disabled" or (job, network) in self.runs:
            return
        run = _guarded("no run opened", self._open_online, job, network) if self.mode == "online" else None
        if run is None and self.mode == "online":
            self.mode = "offline"  # no network or no quota: keep the runs here, to be synced later
            _guarded("restart", _forget)  # the client still holds the id of the run that failed
        self.runs[job, network] = run or _guarded("no run opened", self._open, job, network, "offline")

    def _open_online(self, job: Any, network: "Network") -> Any:
        """Open a run online, under a further id where it was deleted; where these are, too, it alone is offline."""
        for deleted in range(DELETED):
            try:
                return self._open(job, network, "online", deleted)
            except Exception as error:
                if not ("409" in str(error) and "deleted" in str(error)):
                    raise
            logger.warning("warning: W&B: the run of %s, %s was deleted; it gets a new id", network.name, job.name)
        return self._open(job, network, "offline", DELETED)

    def _open(self, job: Any, network: "Network", mode: str, deleted: int = 0) -> Any:
        runtime = self.runtime
        settings = [runtime.preprocessing, runtime.precision, runtime.seed]
        subsets = [[images.name, images.collection, images.subset] for images in job.image_sets]
        tags = [network.category, runtime.preprocessing, runtime.precision]
        tags += ["subset"] if any(images.subset for images in job.image_sets) else []
        identity = [network.name, job.name, network.identity["network"], *settings, subsets]
        identity += [f"deleted {deleted}"] if deleted else []
        self.ids.add(_id(identity))
        run = _init(
            self.folder,
            mode,
            identity,
            project=(job.benchmark.project or job.name) if self.layout == "benchmarks" else self.project,
            name=f"{network.name} {job.name}",
            group=network.name,
            job_type=job.name,
            tags=[tag for tag in tags if tag],
            config={
                "model": network.name,
                "benchmark": job.name,
                "options": _json(job.options),
                "batch_size": runtime.batch_size,
                "command": shlex.join(sys.argv),
            },
            reinit="create_new",
        )
        if mode == "offline":
            self.offline.append(Path(run.settings.sync_dir))
        return run

    def watch(self, group: Any, progress: Any, accuracies: Mapping[tuple[Any, str], float]) -> None:
        """Log to every open run the accuracies of its network's conditions on the images so far, and how many."""
        counts = {"progress/images": progress.group.shown, "progress/forward passes": progress.done}
        for (_, network), run in self.runs.items():
            if run is None:
                continue
            so_far: dict[str, float] = {}
            for (measured, condition), value in accuracies.items():
                if measured is network:
                    so_far[f"progress/{group.images.name}/{condition} so far"] = value
            if so_far:
                _guarded("progress", run.log, counts | so_far)

    def round(self, job: Any, network: "Network", record: dict[str, Any]) -> None:
        """Log what a record says first after a round, with bounds, over the share measured, to a run that is open."""
        run = self.runs.get((job, network))
        if run is not None:
            _guarded("a round", run.log, _scalars(record, job.benchmark.headline))

    def finish(
        self, job: Any, network: "Network", record: dict[str, Any], results: "Results", pictures: Pictures
    ) -> None:
        """Log a record that is on disk: headline, table and charts of metrics, stimuli, classes, the record; close."""
        if self.mode == "disabled":
            return
        self.start(job, network)
        run = self.runs.pop((job, network), None)
        if run is not None:
            _guarded("results", self._write, run, record, results, pictures, job.benchmark.headline)
            _guarded("closing", run.finish)
            if run.offline and run.id in self.ids:  # an agent's id is shared with runs of other records
                _guarded("older runs", _forget_older, run)

    def _write(
        self, run: Any, record: dict[str, Any], results: "Results", pictures: Pictures, headline: Sequence[str]
    ) -> None:
        import wandb

        context = {key: record[key] for key in ("model", "benchmark", "images", "subset", "warnings", "options")}
        run.config.update(record["provenance"] | context | {"variant": variant(record)}, allow_val_change=True)
        metrics = {name: value for name, value in record["metrics"].items() if value is not None}
        rows: list[list[Any]] = []
        for name, value in metrics.items():
            part = projected(record, name, value)
            rows.append([name, value, *record["intervals"].get(name, (None, None)), part.share, part.low, part.high])
        columns = ("metric", "value", "low", "high", "share", "whole_low", "whole_high")
        media: dict[str, Any] = {"metrics": wandb.Table([*columns], [*rows])}
        for title, (x, lines) in curves(metrics).items():
            media[f"curves/{title}"] = wandb.plot.line_series(x, [*lines.values()], [*lines], title)
        for base, of_set in _by_set(pictures).items():
            media[f"stimuli/{base}"] = wandb.Image(_sheet(of_set))
        by_class = _class_table(results)
        if by_class:
            media["per_class"] = wandb.Table(*by_class)
        scalars = {name: metrics[name] for name in first_of(metrics, headline)}
        run.log(_scalars(record, headline) | media)
        run.summary.update(scalars | {"state": "complete"})
        file = Path(run.dir) / "record.json"
        file.write_text(json.dumps(record), "utf-8")
        name = re.sub(r"[^\w.-]", "_", f"{record['model']}-{record['benchmark']}-{run.id}")
        artifact = wandb.Artifact(name[-128:], "record")
        artifact.add_file(str(file))
        run.log_artifact(artifact)
        run.save(str(file), base_path=run.dir, policy="now")

    def close(self) -> None:
        """Mark runs that are still open as interrupted, and report how to upload what is offline."""
        for run in self.runs.values():
            if run is not None:
                _guarded("interrupted", run.summary.update, {"state": "interrupted"})
                _guarded("closing", run.finish, 1)
        self.runs = {}
        if self.offline:
            folders = self.offline[0].parent / "offline-run-*"
            logger.warning("%d W&B runs are offline; upload them with: wandb sync %s", len(self.offline), folders)
            self.offline = []


def _scalars(record: Mapping[str, Any], headline: Sequence[str]) -> dict[str, float]:
    """Return the metrics to show first, for a record on samples with their bounds, and the per cent measured."""
    metrics = {name: value for name, value in record["metrics"].items() if value is not None}
    share = record.get("share")
    scalars = {"progress/share": 100 * share["images"] / share["of"] if share else 100.0}
    for name in first_of(metrics, headline):
        bounds = record.get("sampled", {}).get(name, {"low": metrics[name], "high": metrics[name]})
        scalars[name] = metrics[name]
        if bounds["low"] is not None:
            scalars |= {f"bounds/{name}/low": bounds["low"], f"bounds/{name}/high": bounds["high"]}
    return scalars


def _mode(mode: str) -> str:
    """Return online, offline or disabled."""
    mode = os.environ.get("WANDB_MODE", mode) if mode == "auto" else mode
    if mode not in ("online", "offline", "disabled"):
        mode = "online" if _guarded("no key", _has_key) else "offline"
    return mode


def _id(identity: list[Any]) -> str:
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


def _guarded(step: str, action: Callable[..., Any], *arguments: Any) -> Any:
    """Call into W&B; whatever goes wrong there costs a warning, not the run."""
    try:
        return action(*arguments)
    except Exception as error:  # whatever a service and its client may come up with, the measurement continues
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.warning("warning: W&B, %s: %s; the local record is complete", step, line)
        return None


def _init(folder: Path, mode: Any, identity: list[Any], **settings: Any) -> Any:
    """Open a run whose id is a function of `identity`."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        id=_id(identity),
        dir=str(folder),
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(console="off", silent=True),
        **settings,
    )


def _forget_older(run: Any) -> None:
    """Remove what earlier, interrupted runs of the same id left offline: this run holds all of it."""
    current = Path(run.settings.sync_dir)
    for folder in current.parent.glob(f"offline-run-*-{run.id}"):
        if folder != current and not list(folder.glob("*.synced")):
            shutil.rmtree(folder, ignore_errors=True)


def first_of(metrics: Iterable[str], patterns: Sequence[str], most: int = MOST) -> list[str]:
    """Return the names of at most `most` metrics to show first: those that match a pattern, or all without patterns."""
    chosen: list[str] = []
    for name in metrics:
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns or ("*",)):
            chosen.append(name)
    return chosen[:most]


Chart = tuple[list[float], dict[str, list[float]]]


def curves(metrics: Mapping[str, float]) -> dict[str, Chart]:
    """Return {title: (x, {line: y})} of metrics whose names end in numbers (a cut-off, severity, band or threshold).

    Lines over the same numbers that begin alike share a chart. Fewer than three points are not a line.
    """
    lines: dict[str, dict[float, float]] = {}
    for name, value in metrics.items():
        if match := re.fullmatch(r"(.*?[^\d.])(\d+(?:\.\d+)?)", name):
            lines.setdefault(match[1], {})[float(match[2])] = value
    charts: dict[tuple[str, tuple[float, ...]], dict[str, list[float]]] = {}
    for name, points in lines.items():
        x = tuple(sorted(points))
        if len(x) > 2:
            chart = charts.setdefault((name.partition("/")[0], x), {})
            chart[name.rstrip("/_")] = [points[position] for position in x]
    titled: dict[str, Chart] = {}
    for (kind, x), chart in charts.items():
        common = os.path.commonpath([*chart]) if len(chart) > 1 else next(iter(chart))
        title = common.rstrip("/_-.") or kind
        while title in titled:
            title += " "
        titled[title] = list(x), chart
    return titled


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _forget() -> None:
    import wandb

    wandb.teardown()


def training_run(mode: str, folder: str | Path, config: Mapping[str, Any]) -> Callable[[Mapping[str, float]], Any]:
    """Return a function that logs a line {name: number} of the training in `folder`; resumed, it is the same run."""
    mode, path = _mode(mode), Path(folder).resolve()
    if mode == "disabled":
        return lambda line: None
    settings = {"project": "training", "name": path.name, "config": config}
    run = _guarded("no run opened", lambda: _init(Path(folder), mode, [str(path), config], **settings))
    return (lambda line: _guarded("progress", run.log, line)) if run else (lambda line: None)


def _has_key() -> bool:
    import wandb

    return wandb.login(prompt=False, verify=False)


def _by_set(pictures: Pictures) -> dict[str, dict[str, Any]]:
    """Return {image set: {row: pictures}}; the folders of a corrupted set and the 17 stimulus sets are rows of one."""
    by_set: dict[str, dict[str, Any]] = {}
    for (images, condition), of_condition in pictures.items():
        base, _, folder = images.partition("/")
        shown_condition = condition if not folder or condition != "clean" else ""
        by_set.setdefault(base, {})[" ".join(filter(None, (folder, shown_condition)))] = of_condition
    return by_set


def _sheet(pictures: Mapping[str, Any], side: int = 112, label: int = 190) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture with a labelled row for each of at most ROWS conditions, evenly chosen."""
    names = [*pictures]
    chosen: list[int] = np.linspace(0, len(names) - 1, min(ROWS, len(names))).round().astype(int).tolist()
    names = [names[position] for position in dict.fromkeys(chosen)]
    sheet = Image.new("RGB", (label + COLUMNS * side, len(names) * side), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        lines = textwrap.wrap(name, 28)[:5]
        draw.multiline_text((4, row * side + 8), "\n".join(lines), fill="black")
        for column, image in enumerate(pictures[name][:COLUMNS]):
            small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
            sheet.paste(small, (label + column * side, row * side))
    return np.asarray(sheet)


def _class_table(results: "Results") -> tuple[list[Any], list[Any]] | None:
    """Return (columns, rows) of the accuracy of every class under every condition, or None for other labels."""
    from imagenet_biases.vocabulary import TopClasses

    tables: dict[str, dict[int, tuple[int, int]]] = {}
    for responses in results.all():
        if isinstance(responses.readout, TopClasses):
            tables[f"{responses.images.name} {responses.condition.name}"] = per_class(responses)
    if not tables:
        return None
    rows: list[Any] = []
    for number in sorted(set[int]().union(*tables.values())):
        row: list[Any] = [number, wordnet_ids()[number]]
        for table in tables.values():
            hits, images = table.get(number, (0, 0))
            row.append(100 * hits / images if images else None)
        rows.append(row)
    return ["class", "wnid", *tables], rows

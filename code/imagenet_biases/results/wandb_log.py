"""Weights & Biases shows what is measured: it never stops a run, and nothing lives only there."""

import fnmatch
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from imagenet_biases.base.errors import UserError
from imagenet_biases.measures.accuracy import per_class
from imagenet_biases.results.records import variant
from imagenet_biases.study import wordnet_ids
from imagenet_biases.vocabulary import TopClasses

PROJECT = "imagenet-biases"
LAYOUTS = ("study", "benchmarks")
MOST = 10  # scalars of a run: the headline; everything else is in its table and charts
ROWS, COLUMNS = 8, 4  # of the sheet of stimuli


class WandbLogger:
    """One W&B run a network and benchmark, grouped by network; it carries the record itself as a file and an artifact.

    `mode`: online, offline, disabled, or auto: as WANDB_MODE says, else online where a key is configured. `project`:
    its name, else WANDB_PROJECT's, else PROJECT; under the layout 'benchmarks', a project for each benchmark, named as
    the study's. A run's id is a function of what is measured, so that one that goes on, or is repeated, is the same.
    """

    LIVE = 8  # runs that may be open at once: more benchmarks x networks are logged one by one, when each is done

    def __init__(self, mode, results, runtime, project=None, layout="study"):
        if layout not in LAYOUTS:
            raise UserError(f"--wandb-layout {layout}: it is {' or '.join(LAYOUTS)}")
        self.folder, self.runtime = Path(results or "."), runtime
        self.project, self.layout = project or os.environ.get("WANDB_PROJECT") or PROJECT, layout
        self.runs, self.offline = {}, []
        self.mode = os.environ.get("WANDB_MODE", mode) if mode == "auto" else mode
        if self.mode not in ("online", "offline", "disabled"):
            self.mode = "online" if self._guarded("no key", _has_key) else "offline"

    def _guarded(self, what, action, *arguments):
        """Call into W&B; whatever goes wrong there costs a warning, not the run."""
        try:
            return action(*arguments)
        except Exception as error:  # whatever a service and its client may come up with, the measurement goes on
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"warning: W&B, {what}: {line}; the local record is complete", file=sys.stderr)
            return None

    def start(self, job, network):
        """Open a run to be watched while it measures."""
        if self.mode == "disabled" or (job, network) in self.runs:
            return
        run = self._guarded("no run opened", self._open, job, network)
        if run is None and self.mode == "online":
            self.mode = "offline"  # no network or no quota: keep the runs here, to be synced later
            self._guarded("restart", _forget)  # the client still holds the id of the run that failed
            run = self._guarded("no run opened", self._open, job, network)
        self.runs[job, network] = run

    def _open(self, job, network):
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        subsets = [[images.name, images.collection, images.subset] for images in job.image_sets]
        runtime = self.runtime
        identity = [
            network.name,
            job.name,
            network.identity["network"],
            runtime.preprocessing,
            runtime.precision,
            runtime.seed,
        ]
        tags = [network.category, runtime.preprocessing, runtime.precision]
        tags += ["subset"] if any(images.subset for images in job.image_sets) else []
        run = wandb.init(
            project=(job.benchmark.project or job.name) if self.layout == "benchmarks" else self.project,
            id=hashlib.sha256(repr([*identity, subsets]).encode()).hexdigest()[:16],
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
            dir=str(self.folder),
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        if self.mode == "offline":
            self.offline.append(Path(run.settings.sync_dir))
        return run

    def watch(self, group, progress, accuracies):
        """Log to every open run how far its network's conditions are: accuracies on the images so far, as such."""
        for (_, network), run in self.runs.items():
            if run is None:
                continue
            mine = {
                f"progress/{group.images.name}/{condition} so far": value
                for (one, condition), value in accuracies.items()
                if one is network
            }
            if mine:
                counts = {"progress/images": progress.images, "progress/forward passes": progress.done}
                self._guarded("progress", run.log, counts | mine)

    def finish(self, job, network, record, found, pictures):
        """Log a record that is on disk: headline, table and charts of metrics, stimuli, classes, the record; close."""
        if self.mode == "disabled":
            return
        self.start(job, network)
        run = self.runs.pop((job, network), None)
        if run is not None:
            self._guarded("results", self._write, run, record, found, pictures, job.benchmark.headline)
            self._guarded("closing", run.finish)
            if self.mode == "offline":
                self._guarded("older runs", self._forget_older, run)

    def _write(self, run, record, found, pictures, headline):
        import wandb

        context = {key: record[key] for key in ("model", "benchmark", "images", "subset", "warnings", "options")}
        run.config.update(record["provenance"] | context | {"variant": variant(record)}, allow_val_change=True)
        metrics = {name: value for name, value in record["metrics"].items() if value is not None}
        rows = [[name, value, *record["intervals"].get(name, (None, None))] for name, value in metrics.items()]
        media = {"metrics": wandb.Table(["metric", "value", "low", "high"], rows)}
        for title, (x, lines) in curves(metrics).items():
            media[f"curves/{title}"] = wandb.plot.line_series(x, [*lines.values()], [*lines], title)
        for base, some in _by_set(pictures).items():
            media[f"stimuli/{base}"] = wandb.Image(_sheet(some))
        by_class = _class_table(found)
        if by_class:
            media["per_class"] = wandb.Table(*by_class)
        scalars = {name: metrics[name] for name in first_of(metrics, headline)}
        run.log(scalars | media)
        run.summary.update(scalars | {"state": "complete"})
        file = Path(run.dir) / "record.json"
        file.write_text(json.dumps(record), "utf-8")
        name = re.sub(r"[^\w.-]", "_", f"{record['model']}-{record['benchmark']}-{run.id}")
        artifact = wandb.Artifact(name[-128:], "record")
        artifact.add_file(str(file))
        run.log_artifact(artifact)
        run.save(str(file), base_path=run.dir, policy="now")

    def _forget_older(self, run):
        """Remove what earlier, interrupted runs of the same id left offline: this one holds all of it."""
        own = Path(run.settings.sync_dir)
        for folder in own.parent.glob(f"offline-run-*-{run.id}"):
            if folder != own and not list(folder.glob("*.synced")):
                shutil.rmtree(folder, ignore_errors=True)

    def close(self):
        """Mark runs that are still open as interrupted, and say how to upload what was kept offline."""
        for run in self.runs.values():
            if run is not None:
                self._guarded("interrupted", run.summary.update, {"state": "interrupted"})
                self._guarded("closing", run.finish, 1)
        self.runs = {}
        if self.offline:
            folders = self.offline[0].parent / "offline-run-*"
            print(f"W&B kept {len(self.offline)} runs offline; upload them with: wandb sync {folders}")
            self.offline = []


def first_of(metrics, patterns, most=MOST):
    """Return the names of the metrics to show first: of those that match a pattern (of all, without), so many."""
    chosen = [name for name in metrics if any(fnmatch.fnmatch(name, one) for one in patterns or ("*",))]
    return chosen[:most]


def curves(metrics):
    """Return {title: (x, {line: y})} of metrics whose names end in numbers (a cut-off, severity, band or threshold).

    Lines over the same numbers that begin alike share a chart. Fewer than three points are no line.
    """
    lines = {}
    for name, value in metrics.items():
        if match := re.fullmatch(r"(.*?[^\d.])(\d+(?:\.\d+)?)", name):
            lines.setdefault(match[1], {})[float(match[2])] = value
    charts = {}
    for name, points in lines.items():
        x = tuple(sorted(points))
        if len(x) > 2:
            chart = charts.setdefault((name.partition("/")[0], x), {})
            chart[name.rstrip("/_")] = [points[one] for one in x]
    found = {}
    for (kind, x), chart in charts.items():
        common = os.path.commonpath([*chart]) if len(chart) > 1 else next(iter(chart))
        title = common.rstrip("/_-.") or kind
        while title in found:
            title += " "
        found[title] = list(x), chart
    return found


def _json(value):
    return json.loads(json.dumps(value, default=str))


def _forget():
    import wandb

    wandb.teardown()


def training_run(mode, folder, config):
    """Return a function that logs a line {name: number} of the training in `folder`: one run, also when it goes on."""
    logger = WandbLogger(mode, folder, None)
    if logger.mode == "disabled":
        return lambda line: None

    def opened():
        import wandb

        identity = hashlib.sha256(repr([str(Path(folder).resolve()), config]).encode()).hexdigest()[:16]
        return wandb.init(
            project="training",
            id=identity,
            name=Path(folder).resolve().name,
            dir=str(folder),
            mode=logger.mode,
            resume="allow" if logger.mode == "online" else None,
            config=config,
            settings=wandb.Settings(console="off", silent=True),
        )

    run = logger._guarded("no run opened", opened)
    return (lambda line: logger._guarded("progress", run.log, line)) if run else (lambda line: None)


def _has_key():
    import wandb

    return wandb.login(prompt=False, verify=False)


def _by_set(pictures):
    """Return {image set: {row: pictures}}; the folders of a corrupted set and the 17 stimulus sets are rows of one."""
    found = {}
    for (images, condition), some in pictures.items():
        base, _, variant = images.partition("/")
        row = " ".join(part for part in (variant, condition if not variant or condition != "clean" else "") if part)
        found.setdefault(base, {})[row] = some
    return found


def _sheet(pictures, side=112, label=190):
    """Return a picture with a labelled row for each of at most ROWS conditions, evenly chosen; uint8 [h, w, 3]."""
    names = [*pictures]
    names = [names[i] for i in dict.fromkeys(np.linspace(0, len(names) - 1, min(ROWS, len(names))).round().astype(int))]
    sheet = Image.new("RGB", (label + COLUMNS * side, len(names) * side), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        lines = textwrap.wrap(name, 28)[:5]
        draw.multiline_text((4, row * side + 8), "\n".join(lines), fill="black")
        for column, image in enumerate(pictures[name][:COLUMNS]):
            small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
            sheet.paste(small, (label + column * side, row * side))
    return np.asarray(sheet)


def _class_table(found):
    """Return (columns, rows) of the accuracy of every class under every condition, or None for other labels."""
    tables = {
        f"{one.images.name} {one.condition.name}": per_class(one)
        for one in found.all()
        if isinstance(one.readout, TopClasses)
    }
    if not tables:
        return None
    numbers = sorted(set().union(*tables.values()))
    rows = []
    for number in numbers:
        cells = [table.get(number, (0, 0)) for table in tables.values()]
        rows.append([number, wordnet_ids()[number], *(100 * hits / n if n else None for hits, n in cells)])
    return ["class", "wnid", *tables], rows

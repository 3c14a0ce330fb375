"""Weights & Biases shows what is measured: it never stops a run, and nothing lives only there."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from imagenet_biases.results.records import variant
from imagenet_biases.scores import per_class
from imagenet_biases.study import wordnet_ids
from imagenet_biases.vocabulary import TopClasses


class WandbLogger:
    """One W&B run a network and benchmark, with a deterministic id; it carries the record itself as a file.

    `mode`: online, offline, disabled, or auto: as WANDB_MODE says, else online where a key is configured.
    """

    LIVE = 8  # runs that may be open at once: more benchmarks x networks are logged one by one, when each is done

    def __init__(self, mode, results, machine):
        self.folder, self.machine = Path(results or "."), machine
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
        machine = self.machine
        identity = [network.name, job.name, network.identity["network"], machine.view, machine.precision, machine.seed]
        run = wandb.init(
            project=job.benchmark.project or job.name,
            id=hashlib.sha256(repr([*identity, subsets]).encode()).hexdigest()[:16],
            name=network.name,
            dir=str(self.folder),
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        run.config.update({"model": network.name, "benchmark": job.name, "options": _json(job.options)})
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
                counts = {"progress/images": progress.seen, "progress/forward passes": progress.done}
                self._guarded("progress", run.log, counts | mine)

    def finish(self, job, network, record, found, pictures):
        """Log a record that is on disk: config, metrics, pictures of stimuli, a table by class, the record; close."""
        if self.mode == "disabled":
            return
        self.start(job, network)
        run = self.runs.pop((job, network), None)
        if run is not None:
            self._guarded("results", self._write, run, record, found, pictures)
            self._guarded("closing", run.finish)

    def _write(self, run, record, found, pictures):
        import wandb

        context = {key: record[key] for key in ("model", "benchmark", "images", "subset", "warnings", "options")}
        run.config.update(record["provenance"] | context | {"variant": variant(record)}, allow_val_change=True)
        metrics = {name: value for name, value in record["metrics"].items() if value is not None}
        rows = [[name, value, *record["intervals"].get(name, (None, None))] for name, value in metrics.items()]
        media = {"metrics": wandb.Table(["metric", "value", "low", "high"], rows)}
        if pictures:
            media["stimuli"] = wandb.Image(_sheet(pictures), caption="rows: " + ", ".join(pictures))
        by_class = _class_table(found)
        if by_class:
            media["per_class"] = wandb.Table(*by_class)
        run.log(metrics | media)
        run.summary.update(metrics)
        file = Path(run.dir) / "record.json"
        file.write_text(json.dumps(record), "utf-8")
        artifact = wandb.Artifact(f"record-{run.id}", "record")
        artifact.add_file(str(file))
        run.log_artifact(artifact)
        run.save(str(file), base_path=run.dir, policy="now")

    def close(self):
        """Say how to upload what was kept offline."""
        if self.offline:
            folders = self.offline[0].parent / "offline-run-*"
            print(f"W&B kept {len(self.offline)} runs offline; upload them with: wandb sync {folders}")


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


def _sheet(pictures, side=112):
    """Return a picture with one row a condition, uint8 [rows * side, columns * side, 3]."""
    columns = max(len(images) for images in pictures.values())
    sheet = np.full((len(pictures) * side, columns * side, 3), 255, np.uint8)
    for row, images in enumerate(pictures.values()):
        for column, image in enumerate(images):
            small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
            sheet[row * side : (row + 1) * side, column * side : (column + 1) * side] = small
    return sheet


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

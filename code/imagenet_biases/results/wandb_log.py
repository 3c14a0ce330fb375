"""Weights & Biases as a mirror of the local records: it never stops a run, and nothing lives only there."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from imagenet_biases.study import wordnet_ids
from imagenet_biases.results.records import variant
from imagenet_biases.scores import per_class

LIVE = 8  # runs that may be open at once: more benchmarks x networks are mirrored one by one, when each is done


class Mirror:
    """One W&B run a network and benchmark, with a deterministic id.

    `mode`: online, offline, disabled, or auto: as WANDB_MODE says, else online where a key is configured.
    """

    def __init__(self, mode, results):
        self.results, self.runs, self.offline = Path(results), {}, []
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

    def start(self, benchmark, network, identity):
        """Open a run to be watched while it measures; `identity`: JSON-able, what its id is made of."""
        if self.mode == "disabled" or (benchmark.name, network) in self.runs:
            return
        run = self._guarded("no run opened", self._open, benchmark, network, identity)
        if run is None and self.mode == "online":
            self.mode = "offline"  # no network or no quota: keep the runs here, to be synced later
            self._guarded("restart", _forget)  # the client still holds the id of the run that failed
            run = self._guarded("no run opened", self._open, benchmark, network, identity)
        self.runs[benchmark.name, network] = run

    def _open(self, benchmark, network, identity):
        import wandb

        self.results.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=benchmark.project or benchmark.name,
            id=hashlib.sha256(repr([network, benchmark.name, identity]).encode()).hexdigest()[:16],
            name=network,
            dir=str(self.results),
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        if self.mode == "offline":
            self.offline.append(Path(run.settings.sync_dir))
        return run

    def watch(self, shown, accuracy):
        """Log progress to every open run."""
        for run in self.runs.values():
            if run is not None:
                self._guarded("progress", run.log, {"progress/shown": shown, "progress/accuracy": accuracy})

    def finish(self, benchmark, record, responses, pictures, identity):
        """Mirror a record that is on disk: config, metrics, pictures of the stimuli, a table by class; close."""
        if self.mode == "disabled":
            return
        self.start(benchmark, record["model"], identity)
        run = self.runs.pop((benchmark.name, record["model"]), None)
        if run is not None:
            self._guarded("results", self._write, run, record, responses, pictures)
            self._guarded("closing", run.finish)

    def _write(self, run, record, responses, pictures):
        import wandb

        context = {key: record[key] for key in ("model", "benchmark", "images", "subset", "warnings")}
        run.config.update(record["provenance"] | context | {"variant": variant(record)}, allow_val_change=True)
        metrics = {name: value for name, value in record["metrics"].items() if value is not None}
        rows = [[name, value, *record["intervals"].get(name, (None, None))] for name, value in metrics.items()]
        media = {"metrics": wandb.Table(["metric", "value", "low", "high"], rows)}
        if pictures:
            media["stimuli"] = wandb.Image(_sheet(pictures), caption="rows: " + ", ".join(pictures))
        by_class = _class_table(responses)
        if by_class:
            media["per_class"] = wandb.Table(*by_class)
        run.log(metrics | media)
        run.summary.update(metrics)

    def close(self):
        """Say how to upload what was kept offline."""
        if self.offline:
            folders = self.offline[0].parent / "offline-run-*"
            print(f"W&B kept {len(self.offline)} runs offline; upload them with: wandb sync {folders}")


def _forget():
    import wandb

    wandb.teardown()


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


def _class_table(responses):
    """Return (columns, rows) of the accuracy of every class under every condition, or None for other labels."""
    tables = {
        f"{images} {condition}": per_class(one)
        for (images, condition), one in responses.items()
        if one.answers.shape[1] > 1  # ranked classes; categories have one answer
    }
    if not tables:
        return None
    numbers = sorted(set().union(*tables.values()))
    rows = []
    for number in numbers:
        cells = [table.get(number, (0, 0)) for table in tables.values()]
        rows.append([number, wordnet_ids()[number], *(100 * hits / n if n else None for hits, n in cells)])
    return ["class", "wnid", *tables], rows

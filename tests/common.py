"""What several tests share: the repository's folders, the shared data, running a script as a user does."""

import contextlib
import datetime
import importlib
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest

from imagenet_biases.results import provenance

ROOT = Path(__file__).resolve().parent.parent
CODE = ROOT / "code"
TABLES = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared" / "data" if (ROOT.parent / "shared" / "data").is_dir() else None
needs_shared = pytest.mark.skipif(
    SHARED is None, reason="photographs, stimuli, trial files and a real network: ../shared/data is missing"
)


def outside():
    """Return the environment without what W&B's client leaves in it for processes of its own: here, of other tests."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def script(name, *arguments, check=True, cwd=None, **environment):
    """Run code/NAME as a user does; return the CompletedProcess with its text. W&B stays off unless asked for."""
    command = [sys.executable, str(CODE / name), *map(str, arguments)]
    environment = {**outside(), **environment}
    result = subprocess.run(command, cwd=cwd or ROOT, capture_output=True, text=True, env=environment, timeout=1700)
    if check and result.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return result


def measured(benchmark, network, data, results=None, options=None, **settings):
    """Run a benchmark on a network (a module or a name) through the Python door; return what its report found."""
    from imagenet_biases import Settings, evaluate

    caught = []

    def report(found):
        if found.purpose == "whole":
            caught.append(found)
        return benchmark.report(found)

    spied = replace(benchmark, report=report)
    settings = Settings(**{"device": "cpu", "batch_size": 16, "compile": "off", **settings})
    networks = network if isinstance(network, str | dict) else {"network": network}
    if results is not None:
        for path in Path(results).glob(f"*/{benchmark.name}.*json"):
            path.unlink()  # a record that stands would not be scored again
    evaluate(networks, spied, data, settings, options={benchmark.name: options or {}}, results=results)
    return caught[-1]


def responses(passes, network, results=None, **settings):
    """Measure passes on a network; return the Found."""
    from imagenet_biases import Benchmark, Data

    data = Data(skip_unreadable=settings.pop("skip_unreadable", False))
    return measured(Benchmark("probe", lambda data: passes, lambda found: ()), network, data, results, **settings)


def answered(results):
    """Return how many images a process has stored answers to so far."""
    most = 0
    for path in Path(results).rglob("*.parts/*.npz"):
        with contextlib.suppress(OSError), np.load(path) as kept:
            most = max(most, *(int((kept[name] > 0).sum()) for name in kept.files if name.endswith("state")))
    return most


def images_named(name, sizes, seed=0):
    """Return a made-up image set with classes of such sizes; there are no files."""
    from imagenet_biases.images.listing import ImageNames, Listing
    from imagenet_biases.images.sets import ImageSet

    labels = np.repeat(np.arange(len(sizes)), sizes)
    files = [f"{seed}-{number}.png" for number in range(len(labels))]
    listing = Listing(None, ImageNames(files, labels), np.zeros(len(labels), np.int64))
    return ImageSet(name, listing, np.arange(len(labels)))


class Ended(NamedTuple):
    """How a script ended; also as (status, stdout, stderr)."""

    returncode: int
    stdout: str
    stderr: str


def run(name, *arguments, check=False):
    """Run code/NAME in this process, as `script` does in one of its own."""
    module, words = importlib.import_module(Path(name).stem), [*map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", [str(CODE / name), *words]),
    ):
        try:
            status = module.main(words) or 0
        except SystemExit as end:
            status = end.code or 0
    ended = Ended(status, out.getvalue(), err.getvalue())
    assert not (check and status), f"{name} ended with {status}:\n{ended.stdout}\n{ended.stderr}"
    return ended


def run_and_exit(name, *arguments):
    """Run code/NAME as `run` does and end this process, one of multiprocessing's, with its status."""
    sys.exit(run(name, *arguments).returncode)


def later(monkeypatch, seconds=2):
    """Let the records to come tell a later time than those before, since they tell it in seconds."""
    offset = datetime.timedelta(seconds=seconds)
    clock = SimpleNamespace(now=lambda zone: datetime.datetime.now(zone) + offset)
    monkeypatch.setattr(provenance, "datetime", SimpleNamespace(UTC=datetime.UTC, datetime=clock))

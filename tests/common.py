"""What several tests share: the repository's folders, the shared data, running a script as a user does."""

import contextlib
import datetime
import functools
import importlib
import io
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import signal
import subprocess
import sys
import tempfile
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
    settings = Settings(**{"device": "cpu", "batch_size": 8, "compile": "off", **settings})
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


@functools.cache
def processes():
    """Return multiprocessing's context of processes that begin with the libraries loaded, which takes seconds else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common", "eval_all", "imagenet_biases.engine.evaluate"])
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(sys.path)}):
        multiprocessing.forkserver.ensure_running()
    return context


def _become(name, words, streams, folder, environment, limit):
    """Be the process of a script, from a process of `launch`."""
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(("/dev/null", *streams)):
        os.dup2(os.open(path, os.O_RDWR if number else os.O_RDONLY), number)
    os.chdir(folder)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = [str(CODE / name), *words]
    sys.exit(importlib.import_module(Path(name).stem).main(words) or 0)


class Launched:
    """A script under way, with what these tests use of subprocess.Popen."""

    def __init__(self, process, files):
        self.process, self.files = process, files

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        """Return its status, or that it goes on: None."""
        self.process.join(0)
        return self.returncode

    def send_signal(self, number):
        """Send a signal, if it is still under way."""
        if self.poll() is None:
            os.kill(self.process.pid, number)

    def kill(self):
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout=300):
        """Wait for its end; return its status."""
        self.process.join(timeout)
        assert self.returncode is not None, f"still under way after {timeout} seconds"
        return self.returncode

    def communicate(self, timeout=300):
        """Wait for its end; return what it printed (stdout, stderr); '' for what a test sent elsewhere."""
        self.wait(timeout)
        return tuple(Path(file.name).read_text() if file else "" for file in self.files)


def launch(name, *arguments, stdout=None, stderr=None, cwd=ROOT, limit=None, **environment):
    """Start code/NAME in a process of its own, with the libraries already loaded; return it, `Launched`.

    For tests in which a process matters, because it is killed, shares a folder or is refused something, and its start
    does not. `stdout`, `stderr`: paths to print to; `limit`: largest file in bytes that it may write.
    """
    files = [None if path else tempfile.NamedTemporaryFile() for path in (stdout, stderr)]  # noqa: SIM115
    streams = [path or file.name for path, file in zip((stdout, stderr), files, strict=True)]
    settings = name, list(map(str, arguments)), streams, cwd, {**outside(), **environment}, limit
    process = processes().Process(target=_become, args=settings)
    process.start()
    return Launched(process, files)


def later(monkeypatch, seconds=2):
    """Let the records to come tell a later time than those before, since they tell it in seconds."""
    offset = datetime.timedelta(seconds=seconds)
    clock = SimpleNamespace(now=lambda zone: datetime.datetime.now(zone) + offset)
    monkeypatch.setattr(provenance, "datetime", SimpleNamespace(UTC=datetime.UTC, datetime=clock))

"""What several tests share: the repository's folders, the shared data, running a script as a user does."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ROOT / "code"
SHARED = ROOT.parent / "shared" / "data" if (ROOT.parent / "shared" / "data").is_dir() else None
needs_shared = pytest.mark.skipif(
    SHARED is None, reason="photographs, stimuli, trial files and a real network: ../shared/data is missing"
)


def script(name, *arguments, check=True, cwd=None, **environment):
    """Run code/NAME as a user does; return the CompletedProcess with its text. W&B stays off unless asked for."""
    command = [sys.executable, str(CODE / name), *map(str, arguments)]
    result = subprocess.run(
        command, cwd=cwd or ROOT, capture_output=True, text=True, env={**os.environ, **environment}, timeout=1700
    )
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


def run(name, *arguments):
    """Run code/NAME in this process as `script` does in one of its own; return (status, stdout, stderr)."""
    module = importlib.import_module(Path(name).stem)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = module.main([str(word) for word in arguments]) or 0
        except SystemExit as end:
            status = end.code or 0
    return status, out.getvalue(), err.getvalue()

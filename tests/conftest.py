"""Shared fixtures and settings: one thread per process, since pytest runs as many processes as there are cores."""

import ctypes
import gc
import hashlib
import multiprocessing.forkserver
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import numpy as np
import PIL
import pytest
from filelock import FileLock
from jaxtyping import install_import_hook

# shapes and types of stimuli and measures are checked at every call
install_import_hook(["imagenet_biases.stimuli", "imagenet_biases.measures"], "typechecking.typechecked")

MOST_MEMORY = 1.25 * 2**30  # bytes of a test process from which freed memory goes back to the system

# handed out last, a long file keeps a test process busy when the others are done
LONGEST = (
    *("test_rounds", "test_readme", "test_plots", "test_sources", "test_train_resnet", "test_report", "test_scripts"),
    *("test_hostile_runs", "test_whole_set_intervals", "test_shards", "test_wandb", "test_experiment_page"),
    *("test_fast", "test_door", "test_known_observers", "test_zoo", "test_evaluate"),
)


@pytest.fixture(scope="session")
def drawn(request, tmp_path_factory, worker_id):
    """The demo's drawn image sets, drawn once for all test processes, and again when the package or a library changes.

    Kept in pytest's cache; each session has a copy of its own.
    """
    from imagenet_biases.synthetic.image_sets import draw

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "drawn"
    package = Path(__file__).parent.parent / "code" / "imagenet_biases"
    source = b"".join(file.read_bytes() for file in sorted(package.rglob("*.py")))
    key = hashlib.sha256(source + f"{sys.version} {np.__version__} {PIL.__version__}".encode()).hexdigest()
    cache = request.config.cache.mkdir("drawn")
    with FileLock(f"{cache}.lock"):
        if not (cache / key).exists():
            for older in cache.iterdir():
                shutil.rmtree(older)
            draw(cache / key)
        if not folder.exists():
            shutil.copytree(cache / key, folder)
    return folder


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Give freed memory back to the system: the C library keeps it in a process that lives on (runtime.keep_memory)."""
    if sys.platform != "linux":
        return
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident > MOST_MEMORY:
        if nextitem is None or nextitem.path != item.path:
            gc.collect()
            gc.freeze()  # what is left are imports and caches: the next collections leave them out, and take no time
        ctypes.CDLL(None).malloc_trim(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests that use a browser or start a web server, by their fixtures; put the longest files first."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        for fixture, marker in (("browser", "browser"), ("server", "server"), ("mirror", "server")):
            if fixture in item.fixturenames:
                item.add_marker(marker)


def pytest_sessionfinish():
    """End the process from which `common.launch` starts others, and wait for it."""
    multiprocessing.forkserver._forkserver._stop()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    """Say in one line what was not tested, and why."""
    reasons = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = str(report.longrepr[-1]).removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        parts = [f"{count} tests ({reason})" for reason, count in sorted(reasons.items())]
        terminalreporter.write_line(f"not tested: {'; '.join(parts)}")

"""Shared fixtures and settings: one thread per process, since pytest runs as many processes as there are cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
from jaxtyping import install_import_hook

# shapes and types of stimuli and measures are checked at every call
install_import_hook(["imagenet_biases.stimuli", "imagenet_biases.measures"], "typechecking.typechecked")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory, worker_id):
    """The demo's drawn image sets, drawn once for all test processes."""
    from imagenet_biases.synthetic.image_sets import draw

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "drawn"
    draw(folder)
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests that use a browser or start a web server, by their fixtures."""
    for item in items:
        for fixture, marker in (("browser", "browser"), ("server", "server"), ("mirror", "server")):
            if fixture in item.fixturenames:
                item.add_marker(marker)


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

"""Shared fixtures; one thread a process, since pytest runs as many processes as there are cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest


@pytest.fixture(scope="session")
def drawn(tmp_path_factory, worker_id):
    """The demo's drawn image sets, drawn once for all test processes."""
    from imagenet_biases.synthetic.image_sets import draw

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "drawn"
    draw(folder)
    return folder

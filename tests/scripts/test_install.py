"""The package without a checkout: a wheel is built, installed into a folder, and used from an empty one."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from common import ROOT
from imagenet_biases.results.table import PUBLISHED

pytestmark = pytest.mark.slow

PARTS = ("code", "models", "raw-data", "pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.txt")


def ended(*command, **settings):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **settings)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that runs python in an empty folder where only the installed package is on the path."""
    folder = tmp_path_factory.mktemp("install")
    ignored = shutil.ignore_patterns("__pycache__", "measured*.csv", "checkpoints", "*.user.*")
    (folder / "source").mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / "source" / part, ignore=ignored)
        else:
            shutil.copy(ROOT / part, folder / "source")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    quiet = ("--no-deps", "--no-build-isolation", "--no-index")
    status, _, err = ended(*pip, "wheel", folder / "source", *quiet, "-w", folder)
    assert status == 0, err
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 10e6
    status, _, err = ended(*pip, "install", wheel, *quiet, "--target", folder / "site")
    assert status == 0, err
    empty = folder / "empty"
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(folder / "site"), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return lambda *words: ended(sys.executable, *words, cwd=empty, env=environment)


def test_a_benchmark_by_name_outside_a_checkout(installed, drawn):
    code = (
        "import imagenet_biases; from imagenet_biases import Data, Settings, evaluate\n"
        f"(record,) = evaluate('calibration_texture', ['spectral'], Data(root={str(drawn)!r}, limit=20), Settings())\n"
        "print(imagenet_biases.__file__); print(record.metrics['metric/bandpass/HPP'].value)"
    )
    status, out, err = installed("-c", code)
    assert status == 0, err
    file, value = out.splitlines()[-2:]
    assert str(ROOT) not in file and 0 < float(value) < 1


def test_scripts_tables_and_figures_by_one_command(installed, drawn):
    words = ("--model", "calibration_texture", "--imagenet", drawn / "imagenet", "--num-workers", "0")
    status, _, err = installed("-m", "imagenet_biases", "eval_imagenet", *words)
    assert status == 0, err
    assert installed("-m", "imagenet_biases", "merge_results")[0] == 0
    status, out, err = installed("-m", "imagenet_biases", "compare", "calibration_texture", "--format", "csv")
    assert status == 0 and "top1_acc/imagenet" in out, err  # merged into the folder at hand
    status, out, _ = installed("-c", "from imagenet_biases.results.table import read_table; print(len(read_table()))")
    assert int(out) == len(pd.read_csv(PUBLISHED)) + 1
    status, _, err = installed("-m", "imagenet_biases", "eval_imagenett")
    assert status == 2 and "did you mean eval_imagenet" in err


def test_the_laboratory_has_its_page(installed, drawn):
    words = ("--set", "edge", "--data", drawn, "--subject", "me", "--list-only")
    status, out, err = installed("-m", "imagenet_biases", "run_experiment", *words)
    assert status == 0 and out.startswith("32 trials"), err
    code = "from imagenet_biases.humans.experiment_server import PAGE; print(*sorted(p.name for p in PAGE.iterdir()))"
    status, out, err = installed("-c", code)
    assert out.split() == ["experiment.js", "page.html", "pictograms.svg", "style.css", "texts.json"], err

"""A newcomer's path: an own checkpoint file, measured, merged, compared with the study's 48, and in the report."""

import json
import re
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from common import ROOT, launch, run
from imagenet_biases.results.table import PUBLISHED, read_table
from imagenet_biases.study import CONTROL, MIDDLE_CUTOFFS, STUDY_CATEGORIES

pytestmark = pytest.mark.slow

CODE_OF_THE_NETWORK = """
def build():
    from imagenet_biases.synthetic.networks import build
    return build()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An empty folder with a network's code and its checkpoint, as a training script leaves it after 90 epochs."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "net.py").write_text(CODE_OF_THE_NETWORK)
    weights = load_file(ROOT / "models" / "calibration" / "texture.safetensors")
    torch.save({"epoch": 90, "state_dict": {f"module.{key}": one for key, one in weights.items()}}, folder / "mine.pth")
    return folder


def measure(home, *arguments):
    network = ("--model", "mine.pth", "--arch", "net.py:build", "--normalization", "none")
    process = launch("eval_all.py", *network, *arguments, cwd=home, WANDB_MODE="disabled")
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def first(home, drawn):
    """The path up to the table. The small set stands for ImageNet validation, and says so itself in image-set.json."""
    shutil.copytree(drawn / "imagenet", home / "data" / "imagenet")
    manifest = home / "data" / "imagenet" / "image-set.json"
    declared = json.loads(manifest.read_text())
    assert declared.pop("collection") == "drawn"
    manifest.write_text(json.dumps(declared))
    printed = measure(home, "--data", "data", "--benchmarks", "imagenet,spectral")
    records = [
        json.loads((home / "results" / "mine" / f"{name}.json").read_text()) for name in ("imagenet", "spectral")
    ]
    metrics = records[0]["metrics"] | records[1]["metrics"]
    assert metrics[CONTROL] > 90  # so that the path is that of a network which was filled with its own weights
    status, merged, _ = run("merge_results.py", "--results", home / "results", "--out", home / "table")
    assert status == 0 and f"mine (measured): {len(metrics)} values" in merged and "left out" not in merged
    return printed, metrics, ("--table", PUBLISHED, home / "table" / "measured.csv", "--results", home / "results")


def test_the_first_numbers_are_printed_and_in_the_table(first, home):
    printed, metrics, _ = first
    for name in (CONTROL, "metric/bandpass/LPP", "metric/bandpass/HPP", "metric/bandpass/spectral-bias"):
        assert re.search(rf"^{name} +{metrics[name]:.4g} \[", printed, re.M), name
    (row,) = read_table(home / "table" / "measured.csv").to_dict("records")
    assert (row["model"], row["source"]) == ("mine", "measured")
    assert {name: row[name] for name in metrics} == pytest.approx(metrics, rel=5e-6)  # six digits


def rank(value, *columns):
    """The place of a value among the 48 published networks' means over `columns` and itself, and how many these are."""
    published = read_table(PUBLISHED)
    study = published[published["source"].eq("published") & published["category"].isin(STUDY_CATEGORIES)]
    others = study[[*columns]].mean(axis=1)
    assert len(others) == 48
    return 1 + int((others > value).sum()), 49


def test_compare_ranks_the_network(first, home):
    _, metrics, where = first
    status, out, err = run("compare.py", "mine", *where, "--what", "standing", "--format", "csv")
    assert status == 0, err
    (home / "standing.csv").write_text(out)
    found = pd.read_csv(home / "standing.csv", index_col="measure", dtype=str)
    assert found["network"].eq("mine").all()
    for measure, value, columns in (
        (CONTROL, metrics[CONTROL], [CONTROL]),
        ("LPP", metrics["metric/bandpass/LPP"], [f"metric/bandpass/LFC/{c}" for c in MIDDLE_CUTOFFS]),
        ("HPP", metrics["metric/bandpass/HPP"], [f"metric/bandpass/HFC/{c}" for c in MIDDLE_CUTOFFS]),
    ):
        assert float(found.loc[measure, "value"]) == pytest.approx(value, abs=0.006)
        assert found.loc[measure, "rank"] == "{}/{}".format(*rank(value, *columns))


def test_the_report_begins_with_it(first, home):
    _, metrics, where = first
    status, _, err = run("report.py", *where, "--highlight", "mine", "--out", home / "report.html")
    assert status == 0, err
    text = (home / "report.html").read_text("utf-8")
    (data,) = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', text, re.S)
    data = json.loads(data)
    (row,) = [row for row in data["rows"] if row["highlight"]]
    assert (row["model"], row["source"], row["drawn"]) == ("mine", "measured", False)
    columns = {one["name"]: number for number, one in enumerate(data["columns"])}
    for name, value in {CONTROL: metrics[CONTROL], "LPP": metrics["metric/bandpass/LPP"]}.items():
        assert row["values"][columns[name]] == pytest.approx(value, rel=1e-5)
    assert tuple(row["ranks"][str(columns[CONTROL])][:2]) == rank(metrics[CONTROL], CONTROL)
    assert "mine" in {one["model"] for one in data["records"]}


def test_on_drawn_images_it_has_numbers_but_no_place_among_photographs(home, drawn):
    """What the demo's images say of an own network is printed; why it is in no table, each script says."""
    printed = measure(home, "--imagenet", drawn / "imagenet", "--benchmarks", "imagenet", "--results", "on-drawn")
    assert re.search(rf"^{CONTROL} +\d", printed, re.M)
    where = ("--results", home / "on-drawn")
    _, merged, _ = run("merge_results.py", *where, "--out", home / "other")
    assert "left out: mine imagenet: measured on drawn images, its row is for imagenet ones" in merged
    status, _, err = run("compare.py", "mine", "--table", PUBLISHED, *where)
    assert status == 2 and "no row of mine; its records have no place in it: measured on drawn images" in err


def test_compare_before_merge_says_what_to_do(first, home):
    status, _, err = run("compare.py", "mine", "--table", PUBLISHED, "--results", home / "results")
    assert status == 2 and "merge_results.py puts its 2 records" in err

"""Merging: idempotent and total, nothing mixed silently, from disk and from W&B; comparing names what is off."""

import json
import re
import types

import pandas as pd
import pytest

import merge_results
from common import ROOT, script
from imagenet_biases.errors import UserError
from imagenet_biases.results.table import read_table

PUBLISHED = ROOT / "raw-data" / "benchmark.csv"


@pytest.fixture
def place(tmp_path):
    """A folder with a copy of the table, an empty results folder, and ways to add records and to merge."""
    (tmp_path / "table.csv").write_text(PUBLISHED.read_text())
    (tmp_path / "results").mkdir()

    def add(model, benchmark, metrics, file=None, intervals=None, subset=False, warnings=(), **provenance):
        known = {"network": "a1", "category": "", "collection": "imagenet", "view": "study", "precision": "fp32"}
        record = {
            "model": model,
            "benchmark": benchmark,
            "metrics": metrics,
            "intervals": intervals or {},
            "images": 50_000,
            "subset": subset,
            "warnings": [*warnings],
            "details": {},
            "provenance": known | {"seed": 0, "time": "2026-01-01T00:00:00+00:00"} | provenance,
        }
        path = tmp_path / "results" / model / f"{file or benchmark}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record))
        return record

    def merge(*options):
        merge_results.main(["--results", f"{tmp_path / 'results'}", "--table", f"{tmp_path / 'table.csv'}", *options])
        return read_table(tmp_path / "table.csv").set_index(["model", "source"])

    def run():
        return script(
            "merge_results.py", "--results", tmp_path / "results", "--table", tmp_path / "table.csv", check=False
        )

    return types.SimpleNamespace(path=tmp_path, add=add, merge=merge, run=run)


def uncertainty(place):
    return pd.read_csv(place.path / "table_uncertainty.csv").set_index(["model", "metric"])


def test_merge_is_idempotent_and_total(place, capsys):
    place.add("tv_resnet50", "imagenet", {"top1_acc/imagenet": 76.13}, intervals={"top1_acc/imagenet": [75.7, 76.5]})
    place.add("tv_resnet50", "spectral", {"metric/bandpass/LFC/0.1": 0.18, "metric/bandpass/LPP": 0.6})
    place.add("my.net", "imagenet", {"top1_acc/imagenet": 12.0, "top5_acc/imagenet": None}, category="augmentation")
    table = place.merge()
    assert len(table) == 72
    measured = table.loc[("tv_resnet50", "measured")]
    assert measured["top1_acc/imagenet"] == 76.13 and measured["metric/bandpass/LPP"] == 0.6
    assert measured["category"] == "baseline"  # the published one, whatever the record says
    assert pd.isna(measured["top1_acc/imagenet-a"])  # not measured: an empty cell
    assert table.loc[("my.net", "measured"), "category"] == "augmentation"
    assert uncertainty(place).loc[("tv_resnet50", "top1_acc/imagenet"), ["low", "high"]].tolist() == [75.7, 76.5]
    before = {path.name: path.read_bytes() for path in place.path.glob("*.csv")}
    capsys.readouterr()
    place.merge()
    assert {path.name: path.read_bytes() for path in place.path.glob("*.csv")} == before
    assert "left out" not in capsys.readouterr().out


def test_published_rows_never_change(place):
    place.add("tv_resnet50", "imagenet", {"top1_acc/imagenet": 1.0})
    place.merge()
    (place.path / "results" / "tv_resnet50" / "imagenet.json").unlink()
    place.add("other", "imagenet", {"top1_acc/imagenet": 2.0})
    table = place.merge()
    assert ("tv_resnet50", "measured") in table.index  # a row of before stays
    table = place.merge("--rebuild")
    assert ("tv_resnet50", "measured") not in table.index and ("other", "measured") in table.index
    (place.path / "results" / "other" / "imagenet.json").unlink()
    place.add("other", "imagenet", {"top1_acc/imagenet": 2.0}, subset=True)
    place.merge("--rebuild")
    assert (place.path / "table.csv").read_text() == PUBLISHED.read_text()


@pytest.mark.parametrize(
    ("difference", "reason"),
    [
        ({"subset": {"images": 100, "of": 7500}}, "subset (100 of 7500 images)"),
        ({"view": "native"}, "view native"),
        ({"precision": "bf16"}, "precision bf16"),
        ({"collection": "drawn"}, "drawn images"),
        ({"category": "calibration"}, "measured on imagenet images, its row is for drawn ones"),
        ({"network": "b2", "time": "2025-01-01"}, "other weights"),
    ],
)
def test_what_may_not_share_a_row_stays_out_with_a_reason(place, capsys, difference, reason):
    place.add("net", "imagenet", {"top1_acc/imagenet": 50.0})
    place.add("net", "imagenet_ood", {"top1_acc/imagenet-a": 5.0}, **difference)
    table = place.merge()
    assert pd.isna(table.loc[("net", "measured"), "top1_acc/imagenet-a"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert "net imagenet_ood" in line and reason in line


def test_another_view_or_precision_gets_a_row_of_its_own(place):
    place.add("net", "imagenet", {"top1_acc/imagenet": 50.0})
    place.add("net", "imagenet", {"top1_acc/imagenet": 60.0}, file="imagenet.native", view="native", precision="bf16")
    place.merge()
    table = place.merge("--view", "native", "--precision", "bf16")
    assert table.loc[("net", "measured"), "top1_acc/imagenet"] == 50.0
    assert table.loc[("net", "measured (native, bf16)"), "top1_acc/imagenet"] == 60.0


def test_calibration_networks_are_admitted_on_drawn_images(place):
    place.add(
        "calibration_texture", "imagenet", {"top1_acc/imagenet": 99.0}, collection="drawn", category="calibration"
    )
    assert place.merge().loc[("calibration_texture", "measured"), "category"] == "calibration"


def test_seeds_become_mean_and_spread_and_a_repetition_replaces(place):
    name = "metric/criticalband/bw_norm"
    for seed, value, low in ((0, 4.0, 3.0), (1, 5.0, 4.0), (2, 6.0, 5.0)):
        place.add("net", "criticalband", {name: value}, f"cb{seed}", {name: [low, low + 2]}, seed=seed)
    place.add("net", "criticalband", {name: 9.0}, "older", seed=2, time="2025-01-01T00:00:00+00:00")
    assert place.merge().loc[("net", "measured"), name] == 5.0
    row = uncertainty(place).loc[("net", name)]
    assert row[["low", "high", "seeds", "spread"]].tolist() == [4.0, 6.0, 3, 1.0]


def test_two_benchmarks_that_disagree_are_noted_and_the_newer_counts(place, capsys):
    place.add("net", "imagenet", {"top1_acc/imagenet": 50.0}, time="2026-02-01T00:00:00+00:00")
    place.add("net", "imagenet_ood", {"top1_acc/imagenet": 49.0, "top1_acc/imagenet-a": 1.0})
    assert place.merge().loc[("net", "measured"), "top1_acc/imagenet"] == 50.0
    assert "49.0000 before, 50.0000 in imagenet" in capsys.readouterr().out


def test_warnings_of_a_record_are_shown(place, capsys):
    place.add("net", "imagenet", {"top1_acc/imagenet": 50.0}, warnings=["26 points below the published top-1"])
    place.merge()
    assert "note: net imagenet: 26 points below" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read"),
        ('{"benchmark": "imagenet", "metrics": {}}', "lacks model"),
        ('{"model": "net", "benchmark": "imagenet", "metrics": {"top1": 3}}', "'top1'"),
        ('{"model": "net", "benchmark": "imagenet", "metrics": {"shape-bias": "big"}}', "not a number"),
    ],
)
def test_a_broken_record_stops_with_one_line_and_changes_nothing(place, text, problem):
    place.add("good", "imagenet", {"top1_acc/imagenet": 50.0})
    (place.path / "results" / "good" / "bad.json").write_text(text)
    result = script(
        "merge_results.py", "--results", place.path / "results", "--table", place.path / "table.csv", check=False
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert problem in line and "bad.json" in line
    assert (place.path / "table.csv").read_text() == PUBLISHED.read_text()


def test_other_json_is_passed_over_and_nothing_measured_is_said(place):
    (place.path / "results" / "drawn").mkdir()
    (place.path / "results" / "drawn" / "drawn.json").write_text('{"seed": 0}')
    result = script(
        "merge_results.py", "--results", place.path / "results", "--table", place.path / "table.csv", check=False
    )
    assert result.returncode == 2 and "measure first" in result.stderr


# Weights & Biases -----------------------------------------------------------------------------------------------------


def test_offline_runs_give_the_same_row_as_the_records(place, monkeypatch):
    """Runs as imagenet_biases/results/wandb_log.py writes them: provenance as config, metrics and media logged."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    records = [
        place.add("net", "imagenet", {"top1_acc/imagenet": 50.123456, "shape-bias": 0.5}, category="augmentation"),
        place.add("net", "spectral", {"metric/bandpass/LFC/0.1": 0.2, "metric/bandpass/LPP": None}),
        place.add("net", "imagenet_ood", {"top1_acc/imagenet-a": 5.0}, subset={"images": 100, "of": 7500}),
    ]
    for record in records:
        run = wandb.init(project=record["benchmark"], dir=place.path, mode="offline", reinit="create_new")
        run.config.update(
            record["provenance"] | {key: record[key] for key in ("model", "benchmark", "subset", "warnings")}
        )
        metrics = {name: value for name, value in record["metrics"].items() if value is not None}
        run.log({"progress/shown": 3, "metrics": wandb.Table(["metric", "value"], [["a", 1.0]])} | metrics)
        run.summary.update(metrics)
        run.finish()
    other = wandb.init(project="something else", dir=place.path, mode="offline", reinit="create_new")
    other.log({"loss": 1.0})
    other.finish()
    from_disk = place.merge()
    (place.path / "table.csv").write_text(PUBLISHED.read_text())
    from_wandb = place.merge("--results", f"{place.path / 'none'}", "--wandb-runs", f"{place.path / 'wandb'}")
    pd.testing.assert_frame_equal(from_disk, from_wandb)
    both = place.merge("--wandb-runs", f"{place.path / 'wandb'}")
    pd.testing.assert_frame_equal(from_disk, both)


def test_online_projects_are_read_through_the_public_api(place, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")

    class Api:  # as much of wandb.Api as is used; the service itself cannot be had in a test
        def projects(self, entity):
            assert entity == "lab"
            return [types.SimpleNamespace(name="imagenet"), types.SimpleNamespace(name="other")]

        def runs(self, path):
            config = {"model": "net", "benchmark": "imagenet", "view": "study", "subset": False}
            summary = {"top1_acc/imagenet": 50.0, "_runtime": 3, "progress/shown": 9, "metrics": {"ncols": 4}}
            made = {
                "lab/imagenet": [("finished", config, summary), ("crashed", config, {"top1_acc/imagenet": 7.0})],
                "lab/other": [("finished", {"lr": 0.1}, {"loss": 1.0})],
            }
            return [
                types.SimpleNamespace(state=state, config=config, summary=summary, path=[*path.split("/"), "id"])
                for state, config, summary in made[path]
            ]

    monkeypatch.setattr(wandb, "Api", Api)
    for project in ("lab", "lab/imagenet"):
        (place.path / "table.csv").write_text(PUBLISHED.read_text())
        table = place.merge("--wandb-project", project)
        assert table.loc[("net", "measured"), "top1_acc/imagenet"] == 50.0
        assert "lab/imagenet/id is crashed" in capsys.readouterr().out


def test_a_project_that_cannot_be_read_is_one_line(place, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(*_):
        raise wandb.errors.CommError("no such project\nmore")

    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(UserError, match=re.escape("lab/none cannot be read (no such project)")):
        merge_results.online_records("lab/none")


# Measured against published ------------------------------------------------------------------------------------------


def test_compare_says_what_is_off_and_writes_nothing(place, capsys):
    place.add("tv_resnet50", "imagenet", {"top1_acc/imagenet": 76.13}, intervals={"top1_acc/imagenet": [75.75, 76.5]})
    place.add("tv_resnet50", "imagenet_real", {"top1_acc/imagenet-real": 12.3})
    place.add("tv_resnet50", "imagenet_adv", {"top1_acc/PGD-40/low": 18.3, "top1_acc/PGD-40/high": 0.002})
    place.add("tv_resnet50", "spectral", {"metric/bandpass/LFC/0.1": 0.3, "metric/bandpass/LFC/0.2": 0.5302})
    place.add("new_net", "imagenet", {"top1_acc/imagenet": 50.0})
    place.merge("--compare")
    assert not (place.path / "table_uncertainty.csv").exists()
    assert (place.path / "table.csv").read_text() == PUBLISHED.read_text()
    lines = capsys.readouterr().out.splitlines()

    def line(metric):
        return next(line.split() for line in lines if line.split()[:1] == [metric])

    assert line("top1_acc/imagenet")[-2:] == ["76.1460", "-0.0160"]  # no mark
    assert line("top1_acc/imagenet-real")[-2:] == ["SLIP,", "OFF"]
    assert line("top1_acc/PGD-40/low")[-1] == "SLIP"  # 18.390 raw, 18.312 corrected
    assert line("metric/bandpass/LFC/0.1")[-1] == "OFF"
    assert line("metric/bandpass/LFC/0.2")[-1] not in ("OFF", "SLIP")
    remark = next(line for line in lines if line.startswith("  SLIP, OFF: top1_acc/imagenet-real"))
    assert "last batch only" in remark and "[82.4, 89.8]" in remark and "12.3000 does not fit" in remark
    assert any("new_net: the study has no such network" in line for line in lines)


def test_compare_accepts_a_sound_real_value(place, capsys):
    # torchvision's ResNet-50 has about 82.8 on ReaL: inside the interval of 326 images
    place.add(
        "tv_resnet50",
        "imagenet_real",
        {"top1_acc/imagenet-real": 82.8},
        intervals={"top1_acc/imagenet-real": [82.5, 83.2]},
    )
    place.merge("--compare")
    out = capsys.readouterr().out
    assert "SLIP: top1_acc/imagenet-real" in out and "OFF" not in out

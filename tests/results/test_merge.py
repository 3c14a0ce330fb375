"""Merging: idempotent and total, nothing mixed silently, from disk and from W&B; comparing names what is off."""

import json
import math
import re
import subprocess
import types
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import merge_results
from common import ROOT, run
from imagenet_biases.base.errors import UserError
from imagenet_biases.results.merge import online_records
from imagenet_biases.results.table import PUBLISHED, SAMPLE, projections, read_beside, read_table


@pytest.fixture
def place(tmp_path):
    """An empty results folder and ways to add records of either edition and to merge them into measured.csv."""
    (tmp_path / "results").mkdir()

    def add(model, benchmark, metrics, file=None, intervals=None, warnings=(), subset=False, first=False, **more):
        own = {key: more.pop(key) for key in ("partial", "layers", "share", "sampled") if key in more}
        known = {"network": "a1", "category": "", "collection": "imagenet", "view": "study", "precision": "fp32"}
        record = {
            **({} if first else {"format": 2}),
            "model": model,
            "benchmark": benchmark,
            "metrics": metrics,
            "intervals": intervals or {},
            "images": 50_000,
            "subset": subset,
            "warnings": [*warnings],
            "details": {},
            "provenance": known | {"seed": 0, "time": "2026-01-01T00:00:00+00:00"} | more,
        } | own
        path = tmp_path / "results" / model / f"{file or benchmark}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record))
        return record

    where = ("--results", f"{tmp_path / 'results'}", "--out", f"{tmp_path}")

    def merge(*options):
        merge_results.main([*where, *options])
        return read_table(tmp_path / "measured.csv").set_index(["model", "source"])

    return types.SimpleNamespace(path=tmp_path, add=add, merge=merge, run=partial(run, "merge_results.py", *where))


def read(place, what):
    return pd.read_csv(place.path / f"measured_{what}.csv").set_index(["model", "metric"])


def left_out(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]


def test_merge_is_idempotent_and_total(place, capsys):
    place.add("tv_resnet50", "imagenet", {"top1_acc/imagenet": 76.13}, intervals={"top1_acc/imagenet": [75.7, 76.5]})
    place.add("tv_resnet50", "spectral", {"metric/bandpass/LFC/0.1": 0.18, "metric/bandpass/LPP": 0.6})
    place.add("my.net", "imagenet", {"top1_acc/imagenet": 12.0, "top5_acc/imagenet": None}, category="augmentation")
    table = place.merge()
    assert len(table) == 2
    measured = table.loc[("tv_resnet50", "measured")]
    assert measured["top1_acc/imagenet"] == 76.13 and measured["metric/bandpass/LPP"] == 0.6
    assert measured["category"] == "baseline"  # the published one, whatever the record says
    assert pd.isna(table.loc[("my.net", "measured"), "metric/bandpass/LPP"])  # not measured: an empty cell
    assert table.loc[("my.net", "measured"), "category"] == "augmentation"
    assert read(place, "uncertainty").loc[("tv_resnet50", "top1_acc/imagenet"), ["low", "high"]].tolist() == [
        75.7,
        76.5,
    ]
    before = {path.name: path.read_bytes() for path in place.path.glob("*.csv")}
    capsys.readouterr()
    place.merge()
    assert {path.name: path.read_bytes() for path in place.path.glob("*.csv")} == before
    assert "left out" not in capsys.readouterr().out


def test_rows_stay_until_a_rebuild_and_published_ones_never_change(place):
    published = PUBLISHED.read_bytes()
    place.add("tv_resnet50", "imagenet", {"top1_acc/imagenet": 1.0})
    place.merge()
    (place.path / "results" / "tv_resnet50" / "imagenet.json").unlink()
    place.add("other", "imagenet", {"top1_acc/imagenet": 2.0}, intervals={"top1_acc/imagenet": [1.0, 3.0]})
    assert [*place.merge().index] == [("tv_resnet50", "measured"), ("other", "measured")]  # in the published order
    assert [*place.merge("--rebuild").index] == [("other", "measured")]
    place.add("other", "imagenet", {"top1_acc/imagenet": 2.0}, partial={"top1_acc/imagenet": {"images": 5, "of": 9}})
    assert place.merge("--rebuild").empty and read(place, "uncertainty").empty
    assert PUBLISHED.read_bytes() == published


def test_the_checkout_stays_clean():
    ignored = subprocess.run(
        ["git", "-C", ROOT, "check-ignore", "raw-data/measured.csv", "raw-data/measured_layers.csv", "figures/x.png"],
        capture_output=True,
        text=True,
    )
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert len(ignored.stdout.splitlines()) == 3


def test_completeness_is_judged_by_metric(place, capsys):
    """One record may hold whole metrics and partial ones; another file of the same benchmark may hold the rest."""
    part = {"images": 100, "of": 50_000}
    names = [f"top1_acc/fog_{severity}" for severity in (1, 2, 3, 4, 5)]
    place.add(
        *("net", "imagenet_c"),
        {"top1_acc/imagenet-c-15": 40.0} | dict.fromkeys(names, 30.0) | {"top1_acc/imagenet-c": 35.0},
        partial=dict.fromkeys([*names, "top1_acc/imagenet-c"], part),
    )
    place.add("net", "imagenet_c", {"top1_acc/fog_1": 31.0}, "imagenet_c.older", time="2025-01-01T00:00:00+00:00")
    row = place.merge().loc[("net", "measured")]
    assert row[["top1_acc/imagenet-c-15", "top1_acc/fog_1"]].tolist() == [40.0, 31.0]
    assert set(row.dropna().index) == {"category", "top1_acc/imagenet-c-15", "top1_acc/fog_1"}
    (line,) = left_out(capsys)
    assert "net imagenet_c: a subset (100 of 50000 images): top1_acc/imagenet-c, top1_acc/fog_1" in line


def sample(images, of, **bounds):
    """The keys of a record on a sample: `bounds` is {metric: (low, high)} or {metric: None}."""
    parts = {name: dict(zip(("low", "high"), pair or (None, None), strict=True)) for name, pair in bounds.items()}
    counts = {"images": images, "of": of}
    return {"share": counts | {"order": 1}, "sampled": {name: counts | part for name, part in parts.items()}}


def test_the_larger_share_is_merged_with_what_the_whole_sets_would_give(place, capsys):
    names = {"metric/bandpass/LPP": 0.6, "metric/bandpass/HPP": 0.2, "top1_acc/imagenet": 70.0}
    bounds = {"metric/bandpass/LPP": (0.58, 0.63), "metric/bandpass/HPP": None}
    intervals = {"metric/bandpass/LPP": [0.57, 0.64]}
    place.add("net", "spectral", names, intervals=intervals, **sample(2500, 50_000, **bounds))
    newer = dict(zip(bounds, (0.5, 0.1), strict=True)) | {"top1_acc/imagenet": 70.0}
    later = "2026-02-01T00:00:00+00:00"
    place.add("net", "spectral", newer, "smaller", time=later, **sample(500, 50_000, **bounds))
    row = place.merge().loc[("net", "measured")]
    assert row[[*names]].tolist() == [*names.values()]
    found = read(place, "uncertainty").drop(columns=["source", "seeds", "spread"])
    assert found.loc[("net", "metric/bandpass/LPP")].tolist() == [0.57, 0.64, 0.05, 0.58, 0.63]
    assert found.loc[("net", "metric/bandpass/HPP"), "share"] == 0.05
    assert found.loc[("net", "metric/bandpass/HPP")].isna().sum() == 4
    assert ("net", "top1_acc/imagenet") not in found.index  # whole, and without an interval
    assert "3 values, 2 of them on samples (from 5.00% of the images)" in capsys.readouterr().out
    place.add("net", "spectral", {"metric/bandpass/LPP": 0.61}, "whole", time="2025-01-01T00:00:00+00:00",
              intervals={"metric/bandpass/LPP": [0.605, 0.615]})  # fmt: skip
    assert place.merge().loc[("net", "measured"), "metric/bandpass/LPP"] == 0.61  # older, but whole
    found = read(place, "uncertainty").loc[("net", "metric/bandpass/LPP"), ["share", "whole_low", "whole_high"]]
    assert found.tolist() == [1, 0.61, 0.61]


def test_of_two_benchmarks_the_larger_share_counts_and_no_disagreement_is_noted(place, capsys):
    adversarial = {"top1_acc/imagenet": 71.0}
    place.add("net", "imagenet", {"top1_acc/imagenet": 70.0})
    place.add("net", "imagenet_adv", adversarial, time="2026-02-01T00:00:00+00:00",
              **sample(2500, 50_000, **{"top1_acc/imagenet": (70.0, 72.0)}))  # fmt: skip
    assert place.merge().loc[("net", "measured"), "top1_acc/imagenet"] == 70.0
    assert "note:" not in capsys.readouterr().out


def test_uncertainty_of_earlier_editions_is_read_as_that_of_whole_sets(place):
    place.add("net", "imagenet", {"top1_acc/imagenet": 70.0}, intervals={"top1_acc/imagenet": [69.0, 71.0]})
    place.merge()
    path = place.path / "measured_uncertainty.csv"
    pd.read_csv(path).drop(columns=[*SAMPLE]).to_csv(path, index=False)
    uncertainty = read_beside(place.path / "measured.csv", "uncertainty")
    assert uncertainty[[*SAMPLE]].isna().all(axis=None) and uncertainty["low"].tolist() == [69.0]
    assert projections(read_table(place.path / "measured.csv"), uncertainty) == {}


def test_values_by_layer_go_into_a_table_of_their_own(place):
    layers = {"metric/criticality": {"fc": [0.9, 0.8, 1.0], "conv1": [0.7, None, None]}}
    mean = {"metric/criticality/mean": 0.8}
    place.add("net", "criticality", mean, layers=layers)
    place.add("net", "criticality", {"metric/criticality/mean": 0.6}, "seed1", seed=1, layers={
        "metric/criticality": {"fc": [0.7, 0.6, 0.8], "conv1": [0.5, None, None]}})  # fmt: skip
    place.add("part", "criticality", mean, layers=layers, partial={"metric/criticality/mean": {"images": 9, "of": 10}})
    table = place.merge()
    assert table.loc[("net", "measured"), "metric/criticality/mean"] == pytest.approx(0.7)
    assert not [column for column in table.columns if "fc" in column]
    found = read(place, "layers")
    assert found["layer"].tolist() == ["fc", "conv1"] and found["value"].tolist() == [0.8, 0.6]  # the network's order
    assert found[["low", "high"]].iloc[0].tolist() == [0.7, 0.9] and found["low"].isna().tolist() == [False, True]


def test_records_of_the_first_edition_are_read(place, capsys):
    place.add("net", "imagenet", {"top1_acc/imagenet": 50.0}, first=True)
    place.add("net", "imagenet_ood", {"top1_acc/imagenet-a": 5.0}, first=True, subset={"images": 100, "of": 7500})
    row = place.merge().loc[("net", "measured")]
    assert row["top1_acc/imagenet"] == 50.0 and "top1_acc/imagenet-a" not in row
    assert "a subset (100 of 7500 images): top1_acc/imagenet-a" in left_out(capsys)[0]


def test_of_two_networks_under_one_name_the_newest_counts_and_the_other_is_named(place, capsys):
    older = {"network": "b2" * 32, "source": "exp1/model_best.pth.tar", "time": "2025-01-01T00:00:00+00:00"}
    place.add("net", "imagenet", {"top1_acc/imagenet": 60.0}, "imagenet.older", **older)
    place.add("net", "spectral", {"metric/bandpass/LPP": 0.6}, **older)
    place.add("net", "imagenet", {"top1_acc/imagenet": 50.0})
    row = place.merge().loc[("net", "measured")]
    assert row["top1_acc/imagenet"] == 50.0 and "metric/bandpass/LPP" not in row
    (line,) = left_out(capsys)
    for word in ("net: imagenet, spectral of other weights", "b2b2b2b2", "exp1/model_best.pth.tar", "2025-01-01"):
        assert word in line


def test_a_trial_run_of_new_weights_does_not_displace_the_whole_result(place):
    place.add("net", "imagenet", {"top1_acc/imagenet": 50.0})
    part = {"top1_acc/imagenet": {"images": 10, "of": 50_000}}
    newer = {"network": "c3", "time": "2027-01-01T00:00:00+00:00"}
    place.add("net", "imagenet", {"top1_acc/imagenet": 70.0}, "imagenet.trial", partial=part, **newer)
    assert place.merge().loc[("net", "measured"), "top1_acc/imagenet"] == 50.0


@pytest.mark.parametrize(
    ("difference", "reason"),
    [
        ({"view": "native"}, "preprocessing native"),
        ({"precision": "bf16"}, "precision bf16"),
        ({"collection": "drawn"}, "drawn images"),
        ({"category": "calibration"}, "measured on imagenet images, its row is for drawn ones"),
        ({"frontend": "low-pass:0.3"}, "frontend low-pass:0.3, not none (--frontend low-pass:0.3 gives it a row"),
    ],
)
def test_records_that_cannot_share_a_row_are_left_out_with_a_reason(place, capsys, difference, reason):
    place.add("net", "imagenet", {"top1_acc/imagenet": 50.0})
    place.add("net", "imagenet_ood", {"top1_acc/imagenet-a": 5.0}, **difference)
    assert "top1_acc/imagenet-a" not in place.merge()
    (line,) = left_out(capsys)
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


@pytest.mark.parametrize(("category", "collection"), [("", "imagenet"), ("calibration", "drawn")])
def test_what_is_measured_of_the_weights_alone_goes_with_any_images(place, category, collection):
    place.add("net", "imagenet", {"top1_acc/imagenet": 99.0}, collection=collection, category=category)
    place.add("net", "filters", {"metric/quality/ve_wmean": 0.5}, collection="none", category=category)
    row = place.merge().loc[("net", "measured")]
    assert (row["top1_acc/imagenet"], row["metric/quality/ve_wmean"]) == (99.0, 0.5)


def test_seeds_become_mean_and_spread_and_a_repetition_replaces(place):
    name = "metric/criticalband/bw_norm"
    for seed, value, low in ((0, 4.0, 3.0), (1, 5.0, 4.0), (2, 6.0, 5.0)):
        place.add("net", "criticalband", {name: value}, f"cb{seed}", {name: [low, low + 2]}, seed=seed)
    place.add("net", "criticalband", {name: 9.0}, "older", seed=2, time="2025-01-01T00:00:00+00:00")
    assert place.merge().loc[("net", "measured"), name] == 5.0
    row = read(place, "uncertainty").loc[("net", name)]
    assert row[["low", "high", "seeds", "spread"]].tolist() == [4.0, 6.0, 3, 1.0]


def test_two_benchmarks_that_disagree_are_noted_and_the_newer_counts(place, capsys):
    place.add("net", "imagenet", {"top1_acc/imagenet": 50.0}, time="2026-02-01T00:00:00+00:00")
    place.add("net", "imagenet_ood", {"top1_acc/imagenet": 49.0, "top1_acc/imagenet-a": 1.0})
    assert place.merge().loc[("net", "measured"), "top1_acc/imagenet"] == 50.0
    assert "note: net top1_acc/imagenet: 49 in imagenet_ood, 50 in imagenet" in capsys.readouterr().out


def test_warnings_of_a_record_are_shown(place, capsys):
    place.add("net", "imagenet", {"top1_acc/imagenet": 50.0}, warnings=["26 points below the published top-1"])
    place.merge()
    assert "note: net imagenet: 26 points below" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read"),
        ('{"benchmark": "imagenet", "metrics": {"shape-bias": NaN}}', "NaN is not JSON"),
        ('{"benchmark": "imagenet", "metrics": {}}', "lacks model"),
        ('{"format": 3, "model": "net", "benchmark": "imagenet", "metrics": {}}', "format 3"),
        ('{"model": "net", "benchmark": "imagenet", "metrics": {"top1": 3}}', "'top1'"),
        ('{"model": "net", "benchmark": "imagenet", "metrics": {"shape-bias": "big"}}', "not a number"),
        ('{"model": "net", "benchmark": "imagenet", "metrics": ["shape-bias"]}', "damaged"),
        (
            '{"format": 2, "model": "n", "benchmark": "b", "metrics": {}, "layers": {"metric/x": {"fc": [1, 0, 2]}}}',
            "'metric/x'",
        ),
    ],
)
def test_a_broken_record_stops_with_one_line_and_changes_nothing(place, text, problem):
    place.add("good", "imagenet", {"top1_acc/imagenet": 50.0})
    bad = place.path / "results" / "good" / "bad.json"
    bad.write_text(text)
    result = place.run()
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert problem in line and "bad.json" in line
    assert bad.read_text() == text and not list(place.path.glob("*.csv"))


def test_foreign_json_is_ignored_and_missing_measurements_are_reported(place):
    (place.path / "results" / "drawn").mkdir()
    for name in ("drawn", "mine"):
        (place.path / "results" / "drawn" / f"{name}.json").write_text('{"seed": 0}')
    result = place.run()
    assert result.returncode == 2 and "measure first" in result.stderr
    assert "mine.json is not a record" in result.stderr and "drawn.json" not in result.stderr


# Weights & Biases -----------------------------------------------------------------------------------------------------


def test_offline_runs_give_the_same_tables_as_the_records(place, monkeypatch):
    """A run carries its record as the file record.json."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    bounds = {"top1_acc/imagenet": [49.0, 51.0]}
    part = {"top1_acc/imagenet-a": {"images": 100, "of": 7500}}
    records = [
        place.add("net", "imagenet", {"top1_acc/imagenet": 50.123456, "shape-bias": 0.5}, intervals=bounds),
        place.add("net", "spectral", {"metric/bandpass/LFC/0.1": 0.2, "metric/bandpass/LPP": None}),
        place.add("net", "imagenet_ood", {"top1_acc/imagenet-a": 5.0}, partial=part),
    ]
    for record in records:
        with wandb.init(project=record["benchmark"], dir=place.path, mode="offline", reinit="create_new") as one:
            Path(one.dir, "record.json").write_text(json.dumps(record))
    with wandb.init(project="something else", dir=place.path, mode="offline", reinit="create_new") as other:
        other.log({"loss": 1.0})
    place.merge()
    from_disk = {path.name: path.read_bytes() for path in place.path.glob("*.csv")}
    assert len(from_disk) == 2
    for results in (place.path / "none", place.path / "results"):
        for path in place.path.glob("*.csv"):
            path.unlink()
        place.merge("--results", f"{results}", "--wandb-offline", f"{place.path / 'wandb'}")
        assert {path.name: path.read_bytes() for path in place.path.glob("*.csv")} == from_disk


def test_a_folder_without_runs_is_one_line(place):
    with pytest.raises(SystemExit, match="2"):
        merge_results.main(["--wandb-offline", f"{place.path}"])


def test_online_projects_are_read_through_the_public_api(place, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")
    record = place.add("net", "imagenet", {"top1_acc/imagenet": 50.0})

    class File:  # as much of wandb's public API as is used; the service itself cannot be had in a test
        name = "record.json"

        def __init__(self, size):
            self.size = size

        def download(self, root):
            path = f"{root}/{self.name}"
            with open(path, "w") as file:
                json.dump(record, file)
            return open(path)

    class Api:
        def projects(self, entity):
            assert entity == "lab"
            return [types.SimpleNamespace(name="imagenet"), types.SimpleNamespace(name="other")]

        def runs(self, path):
            made = {"lab/imagenet": [("finished", 90), ("crashed", 90)], "lab/other": [("finished", 0)]}
            return [
                types.SimpleNamespace(
                    state=state, path=[*path.split("/"), "id"], files=lambda names, size=size: [File(size)]
                )
                for state, size in made[path]
            ]

    monkeypatch.setattr(wandb, "Api", Api)
    for project in ("lab", "lab/imagenet"):
        table = place.merge("--results", "none", "--wandb-project", project, "--rebuild")
        assert table.loc[("net", "measured"), "top1_acc/imagenet"] == 50.0
        out = caplog.text
        caplog.clear()
        assert "lab/imagenet/id is crashed" in out
        assert ("lab/other/id carries no record" in out) == (project == "lab")


def test_a_project_that_cannot_be_read_is_one_line(place, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(*_):
        raise wandb.errors.CommError("no such project\nmore")

    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(UserError, match=re.escape("lab/none cannot be read (no such project)")):
        online_records("lab/none")


# Measured against published ------------------------------------------------------------------------------------------


def test_compare_names_deviations_and_writes_nothing(place, capsys):
    place.add("tv_resnet50", "imagenet", {"top1_acc/imagenet": 76.13}, intervals={"top1_acc/imagenet": [75.75, 76.5]})
    place.add("tv_resnet50", "imagenet_real", {"top1_acc/imagenet-real": 12.3})
    place.add("tv_resnet50", "imagenet_adv", {"top1_acc/PGD-40/low": 18.3, "top1_acc/PGD-40/high": 0.002})
    place.add("tv_resnet50", "spectral", {"metric/bandpass/LFC/0.1": 0.3, "metric/bandpass/LFC/0.2": 0.5302})
    place.add("new_net", "imagenet", {"top1_acc/imagenet": 50.0})
    merge_results.main(["--results", f"{place.path / 'results'}", "--out", f"{place.path}", "--compare"])
    assert not list(place.path.glob("*.csv"))
    lines = capsys.readouterr().out.splitlines()

    def line(metric):
        return next(line.split() for line in lines if line.split()[:1] == [metric])

    # published, difference, in standard errors of 0.191; timm's, in the same; no mark
    assert line("top1_acc/imagenet")[-5:] == ["76.146", "-0.0160", "-0.1", "76.156", "-0.1"]
    assert line("top1_acc/imagenet-real")[-2:] == ["SLIP,", "OFF"]
    assert line("top1_acc/PGD-40/low")[-1] == "SLIP"  # 18.390 raw, 18.312 corrected
    assert line("metric/bandpass/LFC/0.1")[-1] == "OFF"
    assert line("metric/bandpass/LFC/0.2")[-1] not in ("OFF", "SLIP")
    remark = next(line for line in lines if line.startswith("  SLIP, OFF: top1_acc/imagenet-real"))
    assert "last batch only" in remark and "[82.4, 89.8]" in remark and "12.3 does not fit" in remark
    assert any("new_net: the study has no such network" in line for line in lines)
    assert "  witness: timm aa4b585" in lines


def test_compare_shows_a_witness_of_the_same_preprocessing(place, capsys):
    """A network of timm that the study lacks, at the larger of two sizes; a study's network on ImageNet-C."""
    native = {"view": "native", "native": "bicubic288-crop288"}
    interval = {"top1_acc/imagenet": [73.0, 73.76]}
    place.add("resnet18.a1_in1k", "imagenet", {"top1_acc/imagenet": 73.38}, intervals=interval, **native)
    merge_results.main(["--results", f"{place.path / 'results'}", "--compare", "--preprocessing", "native"])
    out = capsys.readouterr().out
    (line,) = (line.split() for line in out.splitlines() if line.startswith("  top1_acc/imagenet "))
    assert line[-5:] == ["-", "-", "-", "73.164", "+1.1"]  # 0.22 / 0.194
    assert "other laboratories (the study has no such network), 1 metrics" in out
    interval = {"top1_acc/fog_3": [50.0, 50.88]}
    place.add("tv_resnet50", "imagenet_c", {"top1_acc/fog_3": 50.44}, intervals=interval)
    merge_results.main(["--results", f"{place.path / 'results'}", "--compare"])
    (line,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  top1_acc/fog_3"))
    own, witness = 0.88 / 2 / 1.96, 100 * math.sqrt(0.4674 * 0.5326 / 5000 * 0.9)
    differences = [f"{(50.44 - 46.242) / own:+.1f}", "46.74", f"{(50.44 - 46.74) / math.hypot(own, witness):+.1f}"]
    assert line[-6:] == ["46.242", "+4.1980", *differences, "OFF"]


def test_compare_accepts_a_sound_real_value(place, capsys):
    # torchvision's ResNet-50 has about 82.8 on ReaL: inside the interval of 326 images
    place.add(
        "tv_resnet50",
        "imagenet_real",
        {"top1_acc/imagenet-real": 82.8},
        intervals={"top1_acc/imagenet-real": [82.5, 83.2]},
    )
    merge_results.main(["--results", f"{place.path / 'results'}", "--compare"])
    out = capsys.readouterr().out
    assert "SLIP: top1_acc/imagenet-real" in out and "OFF" not in out

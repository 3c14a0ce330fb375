"""compare.py: ranks against scipy's, residuals against a fit of its own, pairs of measured networks, four formats."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scipy.special import expit, logit

from common import run
from imagenet_biases.measures.split_half import T95, from_text, standard_error
from imagenet_biases.results.table import PUBLISHED, read_table, study


@pytest.fixture(scope="module")
def networks():
    return study(read_table(PUBLISHED))


def compared(*words):
    status, out, err = run("compare.py", *words)
    assert status == 0, err
    return out


def as_frame(*words):
    return pd.read_csv(io.StringIO(compared(*words, "--format", "csv")))


def test_ranks_percentiles_and_residuals_of_published_networks(networks):
    name = "resnet50_augmix_180ep"
    found = as_frame(name, "--table", PUBLISHED).set_index("measure")
    own, others = networks.set_index("model").loc[name], networks[networks["model"] != name]
    for measure in ("top1_acc/imagenet", "Robustness", "shape-bias", "HPP"):
        rank = scipy.stats.rankdata(-networks[measure], "min")[list(networks["model"]).index(name)]
        assert found.loc[measure, "rank"] == f"{rank:.0f}/48"
        percentile = scipy.stats.percentileofscore(others[measure], own[measure], "mean")
        assert found.loc[measure, "percentile"] == pytest.approx(percentile, abs=0.51)
    assert found.loc["ID", "vs baseline"] == pytest.approx(
        own["ID"] - networks.set_index("category").loc["baseline", "ID"], abs=0.006
    )
    x, y = logit(networks["top1_acc/imagenet"] / 100), logit(networks["Concepts"] / 100)
    fit = scipy.stats.linregress(x, y)
    expected = 100 * expit(fit.intercept + fit.slope * logit(own["top1_acc/imagenet"] / 100))
    assert found.loc["Concepts", "above the line"] == pytest.approx(own["Concepts"] - expected, abs=0.006)
    near = as_frame(name, "--table", PUBLISHED, "--what", "nearest")
    assert near["nearest"].iloc[0] == "resnet50_noisymix" and name not in set(near["nearest"])
    assert near["distance"].is_monotonic_increasing


@pytest.fixture(scope="module")
def measured(drawn, tmp_path_factory):
    """Two networks measured and merged, under names of their own."""
    folder = tmp_path_factory.mktemp("compared")
    words = (
        "--data",
        drawn,
        "--results",
        folder / "results",
        "--benchmarks",
        "imagenet,spectral",
        "--wandb",
        "disabled",
    )
    assert run("eval_all.py", "--model", "calibration", *words)[0] == 0
    assert run("merge_results.py", "--results", folder / "results", "--out", folder)[0] == 0
    return folder


@pytest.mark.slow
def test_measured_networks_differ_with_a_paired_interval(measured):
    names = ("calibration_silhouette", "calibration_texture")
    where = ("--table", PUBLISHED, measured / "measured.csv", "--results", measured / "results")
    table = as_frame(*names, *where, "--what", "differences").set_index("measure")
    halves, values = [], []
    for name in names:
        record = json.loads((measured / "results" / name / "spectral.json").read_text())
        halves.append(from_text(record["halves"]["metric/bandpass/LPP"]))
        values.append(record["metrics"]["metric/bandpass/LPP"])
    gap, reach = values[0] - values[1], T95 * standard_error(halves[0] - halves[1])
    assert table.loc["LPP", "difference"] == pytest.approx(gap, abs=1e-4)
    assert json.loads(table.loc["LPP", "95 %"]) == pytest.approx([gap - reach, gap + reach], abs=2e-4)
    assert gap - reach > 0.3  # one reads coarse outlines, the other fine patterns
    standing = as_frame(*names, *where)
    assert standing["rank"].isna().all() and standing["95 %"].notna().any()  # drawn images have no rank
    unpaired = as_frame("calibration_silhouette", "tv_resnet50", *where, "--what", "differences")
    assert unpaired["95 %"].isna().all()


def test_values_on_samples_have_a_range_of_ranks(networks, tmp_path):
    """Robustness from three sets, two of them on samples: variances are added, whole parts add nothing."""
    parts = {"top1_acc/imagenet-a": 3.0, "top1_acc/imagenet-c": 45.0, "top1_acc/imagenet-cbar": 42.0}
    row = {"model": "mine", "category": "", "source": "measured"} | parts
    pd.DataFrame([row]).to_csv(tmp_path / "measured.csv", index=False)
    bounds = {"low": 40, "high": 50, "seeds": 1, "spread": np.nan, "share": 0.05}
    keys = {"model": "mine", "source": "measured"}
    pd.DataFrame([
        keys | {"metric": "top1_acc/imagenet-c", "whole_low": 42.0, "whole_high": 48.0} | bounds,
        keys | {"metric": "top1_acc/imagenet-cbar", "whole_low": 38.0, "whole_high": 46.0} | bounds,
    ]).to_csv(tmp_path / "measured_uncertainty.csv", index=False)  # fmt: skip
    where = ("--table", PUBLISHED, tmp_path / "measured.csv", "--what", "standing")
    line = as_frame("mine", *where).set_index("measure").loc["Robustness"]
    others = networks["Robustness"]
    worst, rank, best = (1 + int((others > bound).sum()) for bound in (30 - 5 / 3, 30, 30 + 5 / 3))
    assert best < rank < worst and line["rank"] == f"{rank}/49 ({best} to {worst})" and line["images"] == "5.00%"
    whole = as_frame("tv_resnet50", *where)
    assert "images" not in whole and not whole["rank"].str.contains("to").any()


@pytest.mark.slow
def test_every_number_of_a_benchmark_without_measuring(measured):
    where = ("--table", PUBLISHED, measured / "measured.csv")
    table = as_frame("calibration_texture", "tv_resnet50", *where, "--benchmark", "spectral").set_index("metric")
    record = json.loads((measured / "results" / "calibration_texture" / "spectral.json").read_text())
    assert set(record["metrics"]) - {"top1_acc/imagenet", "top5_acc/imagenet"} <= set(table.index)
    shown = table.loc["metric/bandpass/HFC/0.5"]
    assert shown["tv_resnet50 (published)"] and "[" in shown["calibration_texture (measured)"]


def test_formats(networks):
    text, markdown, latex, csv = (
        compared("tv_resnet50", "resnet50_dino", "--table", PUBLISHED, "--format", one)
        for one in ("text", "markdown", "latex", "csv")
    )
    rows = len(pd.read_csv(io.StringIO(csv)))
    table = markdown.split("\n\n")[1].splitlines()
    assert len(table) == rows + 2 and len({line.count("|") for line in table}) == 1
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 3
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == rows and all(line.endswith(r"\\") and line.count(" & ") == 8 for line in body)
    assert r"tv\_resnet50" in latex and "_" not in latex.replace(r"\_", "")
    assert text.splitlines()[0] == "standing" and len(text.split("\n\n")[0].splitlines()) == rows + 2
    assert "nan" not in text + markdown + latex and np.isfinite(pd.read_csv(io.StringIO(csv))["value"]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet50_augmix_180e"], "no row of resnet50_augmix_180e; did you mean resnet50_augmix_180ep"),
        (["my_network"], "no row of my_network; is it measured"),
        (["tv_resnet50", "--source", "measured (native)"], "no measured (native) row of tv_resnet50"),
        (["tv_resnet50", "--benchmark", "erf"], "no numbers of erf for tv_resnet50"),
        (["tv_resnet50", "--format", "word"], "invalid choice"),
    ],
)
def test_mistakes_are_one_clear_line(words, message):
    status, _, err = run("compare.py", *words, "--table", PUBLISHED)
    assert status == 2 and message in err and len(err.splitlines()) == 1

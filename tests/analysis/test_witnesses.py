"""Published figures against other laboratories': cells, distribution, verdicts, and what the answer says of them."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from common import ROOT, run
from imagenet_biases.analysis import plotting
from imagenet_biases.analysis.witnesses import (
    PARAGRAPH,
    SETS,
    agreement,
    confirmed,
    correlations_of_id,
    distribution,
    largest,
    paragraph,
)
from imagenet_biases.results.table import PUBLISHED, beside_slips, derived, read_table, study
from imagenet_biases.study import FLAGGED, WITNESSED

REAL = "top1_acc/imagenet-real"


@pytest.fixture(scope="module")
def table():
    return read_table(PUBLISHED)


@pytest.fixture(scope="module")
def cells(table):
    return agreement(table)


def test_errors_are_those_of_the_images(cells):
    """5,000 of the 50,000 images; whole sets: an accuracy on so many images."""
    whole = {"imagenet": 50_000, "imagenet-real": 46_837, "imagenet-v2": 10_000, "imagenet-a": 7_500,
             "imagenet-r": 30_000, "imagenet-sketch": 50_889}  # fmt: skip
    assert set(cells["set"]) == {*SETS} and len(cells[cells["set"] == "imagenet-c"]) == 525
    for cell in cells.itertuples():
        p = cell.published / 100
        images = 5000 / 0.9 if cell.source.startswith("RobustBench") else whole[cell.set]
        assert cell.error == pytest.approx(100 * math.sqrt(p * (1 - p) / images), rel=1e-9)
        assert cell.z == pytest.approx((cell.witness - cell.published) / cell.error)


def test_the_distribution_over_all_shared_cells(cells):
    """Beyond 3 standard errors lies nothing but a known slip or what was shown with another preprocessing."""
    same = cells[cells["same"] & ~cells["metric"].isin(FLAGGED)]
    assert same["z"].abs().max() < 3 and len(same) == 525 + 11 + 3 + 2 + 3 + 3
    by_network = distribution(same[same["set"] == "imagenet-c"], ("model",))
    assert list(by_network["cells"]) == [75] * 7
    assert (by_network["mean"].min() > -0.1) and (by_network["mean"].max() < 0.53)
    assert by_network["sd"].between(0.63, 0.92).all()
    outliers = largest(cells, 60)
    assert (outliers["z"].abs() > 3).all() and (outliers["reason"] != "").all()
    explained = outliers["metric"].isin(FLAGGED) | outliers["reason"].str.startswith("shown as")
    assert explained.all()
    both = cells[(cells["set"] == "imagenet") & (cells["model"] == "resnet50.a1h_in1k")]
    assert set(both["preprocessing"]) == {"bicubic195-crop176", "bicubic224-crop224"}


def test_the_verdicts(cells):
    verdicts = confirmed(cells)
    assert set(verdicts) == {*SETS}
    assert [name for name, holds in verdicts.items() if not holds] == ["imagenet-real"]
    shifted = cells.assign(difference=cells["difference"] + 1.2 * (cells["set"] == "imagenet-r"))
    assert [name for name, holds in confirmed(shifted).items() if not holds] == ["imagenet-real", "imagenet-r"]


def test_the_column_beside_the_slip(table):
    """Of the study's preprocessing where there is one, else of the crop that is nearest."""
    beside = beside_slips(table).set_index(["model", "source"])[WITNESSED]
    assert beside["tv_resnet50", "published"] == 82.969
    assert beside["resnet50.a1h_in1k", "published"] == 86.336  # 224 pixels, not 176
    assert math.isnan(beside["resnet50_prime", "published"])
    measured = table[table["model"] == "tv_resnet50"].assign(source="measured")
    assert beside_slips(measured)[WITNESSED].isna().all()
    row = derived(beside_slips(table)).set_index(["model", "source"]).loc[("tv_resnet50", "published")]
    assert row["ID (timm)"] == pytest.approx((76.146 + 63.14 + 82.969) / 3, abs=1e-3)


def test_correlations_with_the_corrected_id(table):
    found = correlations_of_id(table).set_index("bias")
    networks = study(beside_slips(table)).dropna(subset=[WITNESSED])
    assert (found["networks"] == 11).all() and len(networks) == 11
    for bias, row in found.iterrows():
        assert row["published"] == pytest.approx(spearmanr(networks[bias], networks["ID"])[0])
        assert row["witness"] == pytest.approx(spearmanr(networks[bias], networks["ID (timm)"])[0])


def test_the_answer_says_it(table):
    answer = (ROOT / "raw-data" / "ANSWER.md").read_text("utf-8")
    assert PARAGRAPH.findall(answer) == [paragraph(table)]
    text = " ".join(paragraph(table).split())
    assert "all 525 shared conditions of 7 networks" in text and "Not confirmed: ReaL" in text
    off = table.assign(**{"top1_acc/imagenet-r": table["top1_acc/imagenet-r"] + 2})
    assert "Not confirmed: ReaL, -R" in " ".join(paragraph(off).split())


def test_the_figure_shows_every_cell(cells):
    figure = plotting.published_and_witness(cells)
    for ax, name in zip(figure.axes, SETS, strict=False):
        group = cells[cells["set"] == name]
        assert f"{len(group)} values" in ax.get_title()
        points = np.concatenate(
            [np.c_[line.get_xdata(), line.get_ydata()] for line in ax.lines if line.get_marker() in "ox"]
        )
        expected = group[["witness", "published"]].to_numpy(float)
        assert np.allclose(points[np.lexsort(points.T)], expected[np.lexsort(expected.T)])
    assert plotting.published_and_witness(cells.iloc[:0]) is None


def test_a_table_without_shared_networks_has_no_cells(table):
    strangers = table[table["model"] == "resnet50_prime"]
    assert agreement(strangers).empty and largest(agreement(strangers)).empty


@pytest.mark.slow
def test_the_report_and_the_figures_have_it(study_figures, tmp_path):
    run("report.py", "--table", PUBLISHED, "--out", tmp_path / "report.html", check=True)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Other laboratories" in page and "all 525 shared conditions" in page and "ID (timm)" in page
    assert (study_figures / "published_and_witness.pdf").exists()
    assert len(pd.read_csv(study_figures / "witnesses.csv")) > 700

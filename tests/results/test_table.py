"""The merged table: its published rows are the study's, its columns are defined, its derived columns are right."""

import re

import numpy as np
import pandas as pd
import pytest

from common import ROOT, TABLES
from imagenet_biases.base.errors import UserError
from imagenet_biases.results.table import (
    KEYS,
    LAYERS,
    PUBLISHED,
    beside,
    derived,
    describe,
    describe_derived,
    read_beside,
    read_table,
    study,
    write_beside,
    write_descriptions,
    write_table,
)
from imagenet_biases.study import place


@pytest.fixture(scope="module")
def table():
    return read_table(PUBLISHED)


def test_published_rows_are_the_studys_figures(table):
    figures = pd.read_csv(TABLES / "published_results.csv")
    published = table[table["source"] == "published"].reset_index(drop=True)
    others = published[len(figures) :].dropna(axis="columns", how="all")  # of other papers, known by nothing else
    assert all("/solarize/" in column for column in others.columns if column not in KEYS)
    published = published[: len(figures)]
    assert list(published["model"]) == list(figures["model"])
    assert list(published["category"]) == list(figures["category"].fillna(""))
    metrics = [column for column in figures.columns if column not in KEYS]
    assert not {*metrics} - {*published.columns}
    pd.testing.assert_frame_equal(published[metrics], figures[metrics], rtol=5.001e-6, atol=0)  # 6 significant digits
    for column in metrics:
        digits = figures[column].dropna().map("{:.6g}".format).nunique()
        assert published[column].nunique() == digits  # as many values as there are in the source


def test_columns_stand_in_the_defined_order(table):
    metrics = [column for column in table.columns if column not in KEYS]
    assert list(table.columns[:3]) == list(KEYS)
    assert metrics == sorted(metrics, key=place)
    assert metrics.index("top1_acc/imagenet") == 0
    assert metrics.index("top1_acc/gaussian_noise_5") + 1 == metrics.index("top1_acc/shot_noise_1")


def test_48_networks_in_7_categories(table):
    counts = study(table)["category"].value_counts()
    assert counts.to_dict() == {
        "baseline": 1,
        "training_recipes": 10,
        "augmentation": 12,
        "stylized": 3,
        "freezing": 1,
        "adversarial_training": 15,
        "contrastive": 6,
    }


@pytest.mark.parametrize("column", ["top1_acc/imagenet-x", "accuracy", "top1_acc/gaussian_noise_6"])
def test_an_unknown_column_is_an_error_that_names_it_and_the_file(column, table, tmp_path):
    table[[*KEYS]].assign(**{column: 1.0}).to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(UserError, match=f"table.csv: .*{re.escape(column)}"):
        read_table(tmp_path / "table.csv")


def test_read_and_written_again_it_is_the_same_file(table, tmp_path):
    write_table(table.iloc[:, ::-1], tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == PUBLISHED.read_text()


def test_tables_are_read_together_and_the_later_row_counts(table, tmp_path):
    """Also a table of the first edition, which has measured rows among the published ones, with four decimals."""
    measured = pd.DataFrame([{"model": "tv_resnet50", "category": "baseline", "source": "measured", "shape-bias": 0.2}])
    write_table(pd.concat([table.round(4), measured]), tmp_path / "benchmark.csv")
    new = measured.assign(**{"shape-bias": 0.3, "metric/criticality/mean": 0.7})
    write_table(new, tmp_path / "measured.csv")
    first = read_table(tmp_path / "benchmark.csv").set_index(["model", "source"])
    assert first.loc[("tv_resnet50", "measured"), "shape-bias"] == 0.2 and len(first) == len(table) + 1
    both = read_table([tmp_path / "benchmark.csv", tmp_path / "measured.csv"])
    rows = both.set_index(["model", "source"])
    assert len(both) == len(table) + 1 and rows.loc[("tv_resnet50", "measured"), "shape-bias"] == 0.3
    assert rows.loc[("tv_resnet50", "published"), "shape-bias"] == 0.2146
    metrics = [column for column in both.columns if column not in KEYS]
    assert metrics == sorted(metrics, key=place) and "metric/criticality/mean" in metrics


def test_layers_lie_beside_their_table(tmp_path):
    values = [["net", "measured", "metric/criticality", layer, 0.123456789, None, None] for layer in ("fc", "conv1")]
    write_beside(pd.DataFrame(values, columns=LAYERS), tmp_path / "measured.csv", "layers")
    assert beside(tmp_path / "measured.csv", "layers").name == "measured_layers.csv"
    found = read_beside([tmp_path / "none.csv", tmp_path / "measured.csv"], "layers")
    assert found["layer"].tolist() == ["fc", "conv1"] and found["value"].tolist() == [0.123457] * 2
    (tmp_path / "measured_layers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"measured_layers\.csv is not a table of layers"):
        read_beside(tmp_path / "measured.csv", "layers")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model,source\nx,published\n", "category"),
        ("model,category,source,shape-bias\nx,,published,much\n", "much"),
        ("model,category,source,shape-bias\nx,,published,1\nx,,published,2\n", "two rows for x"),
    ],
)
def test_a_broken_table_is_one_clear_line(text, problem, tmp_path):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(UserError, match=problem):
        read_table(tmp_path / "table.csv")
    with pytest.raises(UserError, match="no table"):
        read_table(tmp_path / "none.csv")


def test_derived_columns_by_hand(table):
    row = study(table).set_index("model").loc["tv_resnet50"]
    assert row["ID"] == pytest.approx((76.146 + 86.5031 + 63.14) / 3)
    assert row["ID (unflagged)"] == pytest.approx((76.146 + 63.14) / 2)
    assert row["Robustness"] == pytest.approx(
        row[["top1_acc/imagenet-a", "top1_acc/imagenet-c", "top1_acc/imagenet-cbar"]].mean()
    )
    assert row["Concepts"] == pytest.approx(
        row[["top1_acc/imagenet-sketch", "top1_acc/imagenet-r", "top1_acc/stylized"]].mean()
    )
    assert row["LPP"] == pytest.approx(row[[f"metric/bandpass/LFC/0.{c}" for c in (1, 2, 3, 4, 5)]].mean())
    assert row["spectral bias"] == pytest.approx(row["HPP"] / (row["LPP"] + row["HPP"]))
    # PROTOCOLS: torchvision's ResNet-50 has LPP 0.633, HPP 0.0069, spectral bias 0.0108
    assert [round(row["LPP"], 3), round(row["HPP"], 4), round(row["spectral bias"], 4)] == [0.633, 0.0069, 0.0108]


def test_the_corrected_attack_columns_undo_the_slip(table):
    rows = study(table)
    for level in ("low", "high"):
        raw, corrected = rows[f"top1_acc/PGD-40/{level}"], rows[f"top1_acc/PGD-40/{level}/corrected"]
        robust = (raw / 100 * 50_048 - 48).dropna()
        assert np.allclose(robust / 50_000 * 100, corrected.dropna(), atol=2e-4)
        assert np.allclose(robust, robust.round(), atol=0.1)  # whole images
    assert (rows["Adversarial (unflagged)"] == rows["top1_acc/PGD-40/low/corrected"]).all()


def test_the_published_real_column_is_of_326_images(table):
    real = study(table)["top1_acc/imagenet-real"] * 326 / 100
    assert np.allclose(real, real.round(), atol=1e-3)
    assert len(study(table)["metric/criticalband/bw"].unique()) == 7


def test_measured_rows_have_no_corrected_value_and_need_every_part():
    rows = pd.DataFrame(
        [
            {
                "model": "a",
                "category": "",
                "source": "measured",
                "top1_acc/PGD-40/low": 20.0,
                "top1_acc/imagenet": 70.0,
            },
            {"model": "b", "category": "", "source": "measured"},
        ]
    )
    found = derived(rows)
    assert found["Adversarial (unflagged)"].tolist()[0] == 20.0
    assert found.loc[0, ["ID", "ID (unflagged)", "LPP", "spectral bias"]].isna().all()
    assert found.loc[1, "Adversarial (unflagged)"] is not None and np.isnan(found.loc[1, "Adversarial (unflagged)"])


def test_the_readme_shows_the_definitions(tmp_path):
    """If not: cd code && python -c "from imagenet_biases.results.table import write_descriptions as f; f()"."""
    text = (ROOT / "raw-data" / "README.md").read_text("utf-8")
    assert describe() in text and describe_derived() in text
    stale = re.sub(r"^\| `(mCE|shape-bias).*\n", "", text.replace("HPP / (LPP", "LPP / (LPP"), flags=re.M)
    (tmp_path / "README.md").write_text(stale, "utf-8")
    write_descriptions(tmp_path / "README.md")
    assert stale != text and (tmp_path / "README.md").read_text("utf-8") == text


def test_published_layer_resets_are_shares_of_few_images(table):
    """The slip that study.py names: every value is a number of images over the hits of one batch."""
    rows = study(table).set_index("model")
    for model, hits in (("tv_resnet50", 401), ("robust_resnet50_linf_eps8.0", 289)):
        images = rows.loc[model].filter(like="metric/weight_reset/").astype(float) * hits
        assert len(images) == 107 and np.allclose(images, images.round(), atol=0.002)

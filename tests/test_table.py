"""The merged table: its published rows are the study's, its columns are defined, its derived columns are right."""

import re

import numpy as np
import pandas as pd
import pytest

from common import CODE, ROOT, SHARED, needs_shared
from imagenet_biases.errors import UserError
from imagenet_biases.results.table import (
    CORRUPTIONS,
    CORRUPTIONS_BAR,
    CUTOFFS,
    DECIMALS,
    FLAGGED,
    GROUPS,
    KEYS,
    RESNET50_LAYERS,
    derived,
    describe,
    group_of,
    place,
    read_table,
    study,
    write_table,
)


@pytest.fixture(scope="module")
def table():
    return read_table()


@needs_shared
def test_published_rows_are_the_studys_figures(table):
    figures = pd.read_csv(SHARED / "published_results.csv")
    published = table[table["source"] == "published"].reset_index(drop=True)
    assert list(published["model"]) == list(figures["model"])
    assert list(published["category"]) == list(figures["category"].fillna(""))
    metrics = [column for column in figures.columns if column not in KEYS]
    assert not {*metrics} - {*published.columns}
    pd.testing.assert_frame_equal(published[metrics], figures[metrics], rtol=0, atol=0.5001 * 10**-DECIMALS)


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


def test_no_column_belongs_to_two_groups():
    named = [column for group in GROUPS for column in group.columns]
    assert len(named) == len(set(named))
    for group in GROUPS:
        for column in group.columns:
            assert group_of(column) is group


def test_the_networks_layers_are_those_of_resnet50():
    import torch
    from torchvision.models import resnet50

    with torch.device("meta"):
        network = resnet50()
    with_weights = [name for name, module in network.named_modules() if getattr(module, "weight", None) is not None]
    assert list(RESNET50_LAYERS) == with_weights


def test_names_agree_with_the_scripts():
    import eval_imagenet_c
    import eval_imagenet_cbar
    import eval_spectral

    assert CORRUPTIONS == eval_imagenet_c.USUAL + eval_imagenet_c.EXTRA
    assert CORRUPTIONS_BAR == eval_imagenet_cbar.CORRUPTIONS
    assert tuple(map(str, eval_spectral.CUTOFFS)) == CUTOFFS
    assert all((CODE / f"{group.script}.py").exists() for group in GROUPS if group.script != "-")


@pytest.mark.parametrize(
    "column",
    [
        "metric/human/error-consistency",
        "top1_acc/PGD-tuned/eps-2",
        "top1_acc/PGD-20/high-step-1",
        "top1_acc/criticalband/sd0.02/f3",
        "metric/criticalband/bw_norm_fine",
        "metric/weight_reset/blocks.3.attn.qkv",
    ],
)
def test_a_new_metric_of_a_known_family_has_a_place(column):
    assert place("top1_acc/imagenet") < place(column)


@pytest.mark.parametrize("column", ["top1_acc/imagenet-x", "accuracy", "top1_acc/gaussian_noise_6", "metric/erf/mean"])
def test_an_unknown_column_is_an_error_that_names_it(column, table, tmp_path):
    with pytest.raises(UserError, match=re.escape(column)):
        place(column)
    table[["model", "category", "source"]].assign(**{column: 1.0}).to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(UserError, match=re.escape(column)):
        read_table(tmp_path / "table.csv")


def test_numbers_in_names_are_ordered_as_numbers():
    names = ["top1_acc/criticalband/sd0.16/f0", "top1_acc/criticalband/sd0.02/f10", "top1_acc/criticalband/sd0.02/f9"]
    assert sorted(names, key=place) == [names[2], names[1], names[0]]


def test_read_and_written_again_it_is_the_same_file(table, tmp_path):
    write_table(table.iloc[:, ::-1], tmp_path / "table.csv")
    published = (ROOT / "raw-data" / "benchmark.csv").read_text()
    assert (tmp_path / "table.csv").read_text() == published


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
    assert "top1_acc/imagenet-real" in FLAGGED
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


def test_the_readme_shows_the_definitions():
    assert describe() in (ROOT / "raw-data" / "README.md").read_text("utf-8")

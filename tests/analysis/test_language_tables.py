"""The published figures of answers in words, and measured ones beside them."""

import csv

import pandas as pd
import pytest

from common import ROOT, TABLES
from imagenet_biases.analysis.language import language_models, language_rows
from imagenet_biases.results.table import UNCERTAINTY, read_table

TABLE = ROOT / "raw-data" / "benchmark.csv"
ANSWERS = ROOT / "raw-data" / "vlm_answers.csv"


def test_the_table_has_the_counts_of_all_released_files():
    with open(ANSWERS, encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    with open(TABLES / "related" / "vlm_counts.csv", encoding="utf-8") as file:
        counts = list(csv.DictReader(file))
    assert len(rows) == len(counts) == 70
    for one in counts:
        row = rows[f"{one['group']}/{one['file']}"]
        assert [row[key] for key in ("shape", "texture", "images")] == [one["shape"], one["texture"], one["conflict"]]
        assert round(100 * float(row["shape_bias"]), 2) == float(one["shape_bias"])
        assert round(float(row["accuracy"]), 2) == float(one["accuracy"])


def test_measured_models_stand_beside_them():
    table = read_table(TABLE)
    assert len(language_rows(table)) == 70
    mine = pd.DataFrame(
        [["my_model", "", "measured", 0.6, 80.0], ["other", "", "measured", float("nan"), 70.0]],
        columns=["model", "category", "source", "shape-bias/vqa", "top1_acc/cue-conflict-either/vqa"],
    )
    rows = language_rows(pd.concat([table, mine], ignore_index=True))
    assert len(rows) == 71
    assert rows.iloc[-1].to_dict() == {
        "task": "vqa",
        "network": "my_model",
        "source": "measured",
        "prompts": "",
        "shape_bias": 0.6,
        "accuracy": 80.0,
    }
    figure = language_models(rows)
    assert sum(len(part.get_offsets()) for part in figure.axes[0].collections) == 71
    assert "my_model" in {text.get_text() for text in figure.axes[0].texts}


def test_the_report_and_the_figures_have_them():
    import report
    from imagenet_biases.analysis.statistics import COLUMNS

    table = read_table(TABLE)
    empty = pd.DataFrame(columns=UNCERTAINTY)
    data = report.page_data(table, empty, pd.DataFrame(columns=COLUMNS), [])
    assert len(data["language"]) == 70
    internvl = next(row for row in data["language"] if row["network"] == "internvl_chat" and row["task"] == "vqa")
    assert (internvl["shape_bias"], internvl["accuracy"]) == pytest.approx((0.6828, 89.33), abs=0.005)

"""Families of adversarially trained networks: the zoo's fields, the published figures, the curves."""

import csv

import pytest
from scipy.stats import spearmanr

from common import ROOT, TABLES
from imagenet_biases.analysis.families import family_curves, family_rows, read_likeness
from imagenet_biases.networks import registry
from imagenet_biases.results.table import read_table
from imagenet_biases.study import about

TABLE = ROOT / "raw-data" / "benchmark.csv"


def trained():
    return {name: entry for name, entry in registry.registry().items() if entry.family}


def test_the_zoo_has_the_published_families_with_the_cards_accuracy():
    entries = trained()
    assert list(entries) == registry.groups()["adversarial_families"] and len(entries) == 48
    series = {(e.arch, e.norm, e.eps): e for e in entries.values() if e.family == "salman2020"}
    with open(TABLES / "related" / "adversarial_families.csv", encoding="utf-8") as file:
        published = [row for row in csv.DictReader(file) if row["norm"]]
    assert len(published) == len(series) == 45
    for row in published:
        entry = series[row["arch"], row["norm"], float(row["eps"])]
        # the study's own figures stand for ResNet-50, within 0.06 of the card
        assert entry.expected_top1 == pytest.approx(float(row["card_top1"]), abs=0.06)
        assert f"{row['arch']}_{row['norm']}_eps" in entry.location
        assert float(entry.location.rpartition("eps")[2].removesuffix(".ckpt")) == entry.eps


def test_norm_and_budget_go_together(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_FOLDER", str(tmp_path))
    head = '[[network]]\nname = "mine"\nnormalization = "none"\nsource = "url"\nlocation = "https://a.org/x.pth"\n'
    for fault in ('norm = "l2"', "eps = 1.0", 'norm = "l1"\neps = 1.0', 'norm = "l2"\neps = -1.0'):
        (tmp_path / "zoo.user.toml").write_text(head + fault)
        with pytest.raises(registry.UserError, match="go together"):
            registry.registry()
    (tmp_path / "zoo.user.toml").write_text(head + 'norm = "l2"\neps = 1')
    assert registry.registry()["mine"].eps == 1


def test_rows_join_the_table_with_the_published_agreement_with_people():
    rows = family_rows(read_table(TABLE), read_likeness())
    assert len(rows) == 45 and not rows.duplicated(["arch", "norm", "eps", "source"]).any()
    of_resnet50 = rows[rows["arch"] == "resnet50"]
    for norm, expected in (("l2", 0.988), ("linf", 1.0)):
        line = of_resnet50[of_resnet50["norm"] == norm]
        assert spearmanr(line["eps"], line["shape-bias"]).statistic == pytest.approx(expected, abs=0.0005)
    assert rows["metric/human/error-consistency"].notna().all()
    assert rows.loc[rows["arch"] == "wide_resnet50_2", "shape-bias"].isna().all()  # not released


def test_every_line_of_the_figure_is_its_rows():
    rows = family_rows(read_table(TABLE), read_likeness())
    figure = family_curves(rows)
    axes = {title: ax for ax in figure.axes if (title := ax.get_title(loc="left"))}
    ax = axes[about("metric/human/error-consistency").label]
    assert len(ax.lines) == 3  # three architectures under the l2 norm
    drawn = {tuple(line.get_ydata()) for line in ax.lines}
    expected = rows[rows["norm"] == "l2"].groupby("arch")["metric/human/error-consistency"].agg(tuple)
    assert drawn == set(expected)
    assert family_curves(family_rows(read_table(TABLE))).axes  # without the further table, ResNet-50 alone

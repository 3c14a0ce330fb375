"""The facts: cheap to read, every metric defined once and in full, one formula that works on anything."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from common import CODE
from imagenet_biases import benchmarks, study
from imagenet_biases.base.errors import UserError
from imagenet_biases.humans.stimulus_sets import STIMULUS_SETS
from imagenet_biases.humans.trials import MEASURES


def test_it_needs_none_of_the_heavy_packages():
    code = "import sys, imagenet_biases.study; print(*({'torch', 'numpy', 'pandas', 'scipy', 'timm'} & {*sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=CODE, capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


def test_counts_of_conditions():
    assert (len(study.USUAL_CORRUPTIONS), len(study.CORRUPTIONS), len(study.CORRUPTIONS_BAR)) == (15, 19, 10)
    assert set(study.HUMAN_SETS) == set(STIMULUS_SETS) and len(study.HUMAN_SETS) == 17
    assert [str(cutoff) for cutoff in study.MIDDLE_CUTOFFS] == ["0.1", "0.2", "0.3", "0.4", "0.5"]
    assert set(study.MIDDLE_CUTOFFS) < set(study.CUTOFFS) and len(study.CUTOFFS) == 11
    assert study.BAND_CENTRES == (1.75, 3.5, 7, 14, 28, 56, 112)


def test_the_networks_layers_are_those_of_resnet50():
    import torch
    from torchvision.models import resnet50

    with torch.device("meta"):
        network = resnet50()
    with_weights = [name for name, module in network.named_modules() if getattr(module, "weight", None) is not None]
    assert list(study.RESNET50_LAYERS) == with_weights


def test_no_metric_belongs_to_two_definitions_and_each_is_told_in_full():
    named = [name for definition in study.DEFINITIONS for name in definition.names]
    assert len(named) == len(set(named))
    for definition in study.DEFINITIONS:
        assert definition.names or definition.pattern
        for name in definition.names:
            assert study.definition_of(name) is definition
            one = study.metric(name)
            assert one.name == name and one.unit and one.meaning
            assert one.source in ("published", "measured", "published, measured")
            assert one.better in ("", "higher", "lower") and one.label.endswith(f"[{one.unit}]")
            assert (one.script == "-") == (one.source == "published")


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("top1_acc/PGD-40/low", "% of images"),
        ("top1_acc/PGD-tuned/eps-2", "% of images"),
        ("top1_acc/PGD-20/high-step-1", "% of images"),
        ("top1_acc/PGD-l2-40/eps-0.5", "% of images"),
        ("top1_acc/criticalband/sd0", "% of images"),
        ("top1_acc/criticalband/sd0.02/f3", "% of images"),
        ("metric/criticalband/cf_norm_fine", "cycles/image"),
        ("metric/weight_reset/blocks.3.attn.qkv", "ratio"),
        ("metric/criticality/mean", "1 − mean cos"),
        ("metric/criticality", "1 − mean cos"),
        ("metric/criticality/layer1.0.conv1", "1 − mean cos"),
        ("metric/criticality-permute/fc", "1 − mean cos"),
        ("metric/criticality/layer1.0.conv1/l1", "distance"),
        ("metric/criticality/fc/l2", "distance"),
        ("metric/criticality-zero/fc/recovered", "ratio"),
        ("top1_acc/random-spatial/bn-recalibrated", "% of images"),
        ("metric/quality/random_share", "share of layers"),
        ("metric/quality/layer/layer1.0.conv2/ve_norm", "as above"),
        ("metric/filter-shift/tv_resnet50", "nats"),
        ("top1_acc/solarize/0.12", "% of images"),
        ("metric/solarize/worst-alpha", "share of the value range"),
        ("top5_acc/RandSol-10/expected", "% of images"),
        ("metric/border/pgd-l2/ring-0", "ratio"),
        ("metric/border/gradient/asymmetry-x", "ratio"),
        ("metric/perturbation-spectrum/gradient/56", "share"),
        ("metric/perturbation-spectrum/gradient/median", "cycles/image"),
        ("top1_acc/padding/circular", "% of images"),
        ("top1_acc/border-masked/8", "% of images"),
        ("metric/erf-luo/size", "pixels"),
        ("shape-bias/vqa/texture", "share"),
        ("top1_acc/cue-conflict-either/vqa", "% of images"),
        ("metric/vlm/steering", "points"),
        ("metric/vlm/unparsed", "share"),
        *((f"metric/human/{name}", unit) for name, unit in zip(MEASURES, ("share²", "share", "κ"), strict=True)),
    ],
)
def test_units(name, unit):
    assert study.metric(name).unit == unit


@pytest.mark.parametrize(
    "name",
    [
        *("top1_acc/imagenet-x", "accuracy", "top1_acc/gaussian_noise_6", "metric/erf/mean", "metric/erf-luo/mean"),
        *("metric/quality/mean", "top5_acc/PGD-40/low", "metric/criticalband/bw_fine_norm", "shape-bias/", "LPP"),
        "metric/human/kappa",
    ],
)
def test_an_unknown_metric_is_refused_by_its_name(name):
    with pytest.raises(UserError, match=re.escape(repr(name))):
        study.metric(name)


METRIC = """[[metric]]
title = "Dimmed"
names = ["top{k}_acc/dim-{severity}"]
pattern = 'dim/\\d+'
unit = "%"
meaning = "accuracy on dimmed images"
script = "eval_dim"
source = "measured"
"""
DERIVED = """[[derived]]
name = "dimness"
parts = ["top1_acc/dim-{severity}", "dim/1"]
unit = "%"
meaning = "mean"
"""


def loaded(folder, text):
    (folder / "metrics.toml").write_text(text, "utf-8")
    return study.load_metrics(folder / "metrics.toml")


def test_an_entry_is_read(tmp_path):
    (definition,), derived = loaded(tmp_path, METRIC + DERIVED)
    names = [f"top{k}_acc/dim-{severity}" for k in (1, 5) for severity in (1, 2, 3, 4, 5)]
    shared = study.Metric("", "%", "accuracy on dimmed images", "eval_dim", "measured")
    assert definition == study.Definition("Dimmed", tuple(names), shared, r"dim/\d+")
    assert [*derived] == ["dimness"] and derived["dimness"].combine is study.mean
    assert derived["dimness"].parts == (*names[:5], "dim/1")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[[metric]]", "[[metric]", r"^metrics.toml: .*line 1"),
        ("[[metric]]", "[[metrics]]", r"^metrics.toml: unknown key 'metrics'; the keys are metric, derived"),
        ("unit", "units", r"^metrics.toml: metric Dimmed: unknown key 'units'; the keys are title, "),
        ('title = "Dimmed"', "", r"^metrics.toml: metric 1: title is missing"),
        (METRIC, "metric = [1]\n", "metric 1: 1 is not a table"),
        ('unit = "%"', 'unit = ""', "metric Dimmed: unit is missing"),
        ('unit = "%"', "unit = 1", "unit = 1 is not of type str"),
        ('unit = "%"', 'unit = "%"\ndigits = true', "digits = True is not of type int"),
        ('unit = "%"', 'unit = "%"\nlogarithmic = 1', "logarithmic = 1 is not of type bool"),
        ('unit = "%"', 'unit = "%"\nbetter = "more"', "better = 'more' is not one of 'higher', 'lower'"),
        ('names = ["top{k}_acc/dim-{severity}"]', "names = 'dim'", "names = 'dim' is not of type list"),
        ("top{k}", "top{n}", "unknown list {n}; the lists are k, corruption, "),
        ("top{k}", "top{}", "unknown list {}"),
        ("top{k}", "top{k", "Single '{'|expected '}'|unknown list"),
        ('["top', '["dim", "dim", "top', "the name 'dim' is defined twice"),
        ('["top', '["", "top', "the name '' is empty"),
        ('["top', '[1, "top', "1 is not a name"),
        (r"'dim/\d+'", "'dim/('", "metric Dimmed: missing \\)"),
        ('source = "measured"', 'source = "guessed"', "source = 'guessed' is not one of"),
        ('source = "measured"', 'source = "published"', "script = '-' and source = 'published' go together"),
        (
            "[[derived]]",
            METRIC.replace("Dimmed", "Other") + "[[derived]]",
            "Other: the name 'top1_acc/dim-1' is",
        ),
        ("[[derived]]", METRIC.replace("names", "#") + "[[derived]]", "metric Dimmed: the title is used twice"),
        ("dim/1", "dim/one", r"derived dimness: 'dim/one' is neither a metric nor derived above"),
        ("[[derived]]", DERIVED + "[[derived]]", "derived dimness: the name is defined twice"),
        ('"dimness"', '"dim/3"', "derived dim/3: the name is defined twice"),
        ("parts", 'combine = "median"\nparts', "combine = 'median' is not one of 'mean', 'high_share'"),
        ("parts", 'combine = "high_share"\nparts', "high_share takes"),
        ("parts", 'reported = "dimness"\nparts', "'dimness' is not a metric"),
        ("parts", 'script = "eval_dim"\nparts', "unknown key 'script'"),
        ('parts = ["top1_acc/dim-{severity}", "dim/1"]', "parts = []", "parts is missing"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, before, after, message):
    text = METRIC + DERIVED
    assert before in text
    with pytest.raises(UserError, match=message) as caught:
        loaded(tmp_path, text.replace(before, after, 1))
    assert str(caught.value).startswith("metrics.toml: ") and "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "metrics.toml").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"^metrics\.toml: .*utf-8"):
        study.load_metrics(tmp_path / "metrics.toml")


def test_every_script_of_a_metric_exists_and_every_benchmark_has_metrics():
    scripts = {definition.about.script for definition in study.DEFINITIONS} - {"-"}
    assert scripts == {f"eval_{name}" for name in benchmarks.names()}


def test_numbers_in_names_are_ordered_as_numbers():
    names = ["top1_acc/criticalband/sd0.16/f0", "top1_acc/criticalband/sd0.02/f10", "top1_acc/criticalband/sd0.02/f9"]
    assert sorted(names, key=study.place) == [names[2], names[1], names[0]]


def test_slips_of_the_protocol():
    assert study.metric("top1_acc/imagenet-real").published_images == 326
    reset = study.metric("metric/weight_reset/layer4.2.conv3")
    assert reset.published_images == 512 and "512 images" in reset.slip
    assert {"top1_acc/PGD-40/low", "metric/criticalband/bw", "metric/weight_reset/fc"} < study.FLAGGED
    assert study.unflagged("ID") == "ID (unflagged)" and study.unflagged("Concepts") == "Concepts"


def test_one_formula_for_numbers_arrays_and_columns():
    random = np.random.default_rng(0)
    names = [f"metric/bandpass/{kind}/{cutoff}" for kind in ("LFC", "HFC") for cutoff in study.CUTOFFS]
    columns = dict(zip(names, random.uniform(0.1, 1, (len(names), 5)), strict=True))
    for name in ("LPP", "HPP", "spectral bias"):
        one = [study.derive(name, {metric: float(values[i]) for metric, values in columns.items()}) for i in range(5)]
        low, high = (np.mean([columns[f"metric/bandpass/{k}/0.{c}"] for c in range(1, 6)], 0) for k in ("LFC", "HFC"))
        expected = {"LPP": low, "HPP": high, "spectral bias": high / (low + high)}[name]
        assert one == pytest.approx([*expected])
        assert study.derive(name, columns) == pytest.approx(expected)
        assert study.derive(name, pd.DataFrame(columns)).tolist() == pytest.approx(expected)
    with pytest.raises(KeyError):
        study.derive("ID", columns)


def test_every_derived_metric_rests_on_defined_ones():
    assert set(study.SCORES) < set(study.DERIVED) and set(study.BIASES) - set(study.DERIVED) == {"shape-bias"}
    for derived in study.DERIVED.values():
        assert all(part in study.DERIVED or study.metric(part) for part in derived.parts)
        assert not derived.reported or study.metric(derived.reported)
    assert study.about("HPP").logarithmic and study.about("HPP").label == "high-pass performance [ratio]"
    assert study.about("shape-bias").label == "shape bias [share]"

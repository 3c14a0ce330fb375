"""Filter quality against the published rows, closed forms and what must not change it."""

import csv
import json
import math

import numpy as np
import pytest
import timm
import torch

from common import SHARED, TABLES, needs_shared, run
from imagenet_biases import Data, Settings, evaluate
from imagenet_biases.measures.filter_quality import (
    divergence,
    orthogonality,
    quality,
    random_entropy,
    random_layers,
    random_orthogonality,
    shift,
    variance_entropy,
)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metrics_of(module, **options):
    record = evaluate(module, "filters", Data(), Settings(device="cpu"), options={"filters": options})[0]
    return {name: one.value for name, one in record.metrics.items()}, record


@pytest.fixture(scope="module")
def untrained():
    """The published row resnet50_untrained is the constructor after seed 0, and after no other."""
    torch.manual_seed(0)
    return metrics_of(timm.create_model("resnet50").eval())


@pytest.mark.slow
def test_an_untrained_resnet50_has_the_published_row(untrained):
    got, record = untrained
    published = {
        "ve_wmean": 0.9542155,
        "sparsity_wmean": 0,
        "sparsity_max": 0,
        "orthogonality_wmean": 0.9859194,
    }
    for name, value in published.items():
        assert got[f"metric/quality/{name}"] == pytest.approx(value, abs=1e-6), name
    assert got["metric/quality/random_share"] == 1
    assert got["metric/quality/ve_rel_wmean"] == pytest.approx(1, abs=2e-5)
    assert got["metric/quality/gauss-ks"] < 0.01
    assert len(record["layers"]["metric/quality/layer/ve"]) == 16


@pytest.mark.slow
def test_its_extremes_are_published_too(untrained):
    with open(TABLES / "published_results.csv", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    row = rows.get("resnet50_untrained")
    if row is None:
        pytest.skip("the shared figures have no row resnet50_untrained")
    columns = [name for name in row if name.startswith("metric/quality/") and row[name]]
    assert len(columns) == 8
    for name in columns:
        assert untrained[0][name] == pytest.approx(float(row[name]), abs=1e-6), name


@pytest.mark.parametrize("channels", [64, 256])
def test_random_filters_have_the_closed_forms(channels):
    weight = gaussian(channels, channels, 3, 3)
    measures = quality(weight)
    d = 9 * channels
    deviation = math.sqrt((1 / d - (1 - random_orthogonality(d)) ** 2) / (channels * (channels - 1) / 2))
    assert abs(measures["or"] - random_orthogonality(d)) < 3 * deviation
    freedom = 44  # of a 9 x 9 covariance, less its scale
    spread = math.sqrt(2 * freedom) / (9 * math.log(10) * (channels**2 - 1))
    assert abs(measures["ve"] - random_entropy(channels**2, 9)) < 3 * spread
    assert measures["ve_clean"] == measures["ve"] and measures["sp"] < 1e-3


@pytest.mark.parametrize(("n", "p"), [(256, 25), (1024, 49)])
def test_the_expected_entropy_holds_for_other_kernels(n, p):
    found = [variance_entropy(gaussian(n, p, seed=seed)) for seed in range(20)]
    assert np.mean(found) == pytest.approx(random_entropy(n, p), abs=1e-3)


def test_published_expectations_of_random_channels():
    expected = {64: 0.966740, 128: 0.976487, 256: 0.983376, 512: 0.988245}
    for channels, value in expected.items():
        assert random_orthogonality(9 * channels) == pytest.approx(value, abs=1e-6)


def test_the_test_for_random_filters_keeps_its_level_and_finds_structure():
    """1 layer, both measures at 2.5 % each: random filters are doubted in about 5 of 100 cases; a blur never passes."""
    verdicts = []
    for seed in range(200):
        weight = gaussian(24, 24, 3, 3, seed=seed)
        verdicts.append(random_layers({"a": quality(weight)}, {"a": weight})["a"])
    assert 180 <= sum(verdicts) <= 199
    uniform = torch.rand(64, 64, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    assert random_layers({"a": quality(uniform)}, {"a": uniform}) == {"a": True}
    smooth = gaussian(24, 24, 3, 3) + 0.3
    assert random_layers({"a": quality(smooth)}, {"a": smooth}) == {"a": False}


def test_order_of_channels_and_scale_change_nothing():
    weight = gaussian(32, 16, 3, 3)
    weight[:4, :, :, :] *= 1e-3  # some sparse filters
    before = quality(weight)
    shuffled = weight[torch.randperm(32, generator=torch.Generator().manual_seed(1))]
    shuffled = shuffled[:, torch.randperm(16, generator=torch.Generator().manual_seed(2))]
    for other in (shuffled, weight * -3.7, weight * 1e-6):
        after = quality(other)
        assert after["sp"] == before["sp"] == 0.125
        for name in ("ve", "ve_clean", "ve_norm", "or", "ve_rel", "or_rel"):
            assert after[name] == pytest.approx(before[name], abs=1e-12), name


def test_extremes():
    pattern = gaussian(1, 1, 3, 3)
    assert quality(pattern.expand(8, 8, 3, 3))["ve"] == 0
    half = gaussian(16, 4, 3, 3)
    half[::2] = 0
    assert quality(half)["sp"] == 0.5
    assert orthogonality(torch.eye(12, dtype=torch.float64)) == 1


def test_an_undefined_measure_is_reported_and_has_no_value():
    """A dead layer, one with a single output, a tiny one; never NaN."""
    dead, one_output, tiny = torch.zeros(8, 8, 3, 3), gaussian(1, 64, 3, 3), gaussian(3, 3, 3, 3)
    for weight in (dead.double(), one_output, tiny):
        values = [value for value in quality(weight).values() if value is not None]
        assert np.isfinite(values).all()
    assert quality(dead.double())["sp"] == 1 and quality(dead.double())["or"] is None
    assert quality(dead.double())["ve"] == 0 and quality(dead.double())["ve_clean"] is None
    assert quality(one_output)["or"] is None and quality(one_output)["ve"] is not None
    assert quality(tiny)["ve"] is None
    half = gaussian(8, 8, 3, 3)
    half[:3] = 0
    assert quality(half)["dead_channels"] == 3
    assert quality(half)["or"] == pytest.approx(orthogonality(half[3:].flatten(1)))


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 8, 5)
        self.fc = torch.nn.Linear(8, 1000)
        with torch.no_grad():
            self.a.weight[0] = 0

    def forward(self, pixels):
        return self.fc(self.b(self.a(pixels).relu()).mean((2, 3)))


def test_the_script_says_what_is_left_out_and_names_other_settings_otherwise():
    got, record = metrics_of(Small())
    assert any("1 dead output channels" in note for note in record["warnings"])
    every, _ = metrics_of(Small(), kernel="all", sparsity_threshold=0.05)
    assert set(every) == {name.replace("quality/", "quality-all-threshold-0.05/") for name in got}
    linear = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 1000))
    got, record = metrics_of(linear)
    assert set(got.values()) == {None} and "nothing was measured" in record["warnings"][0]


def test_shift_is_a_distance():
    one, other = gaussian(5000, 9), gaussian(4000, 9, seed=1) + torch.arange(9) / 9
    assert shift(one, one) == 0
    assert shift(one, other) == pytest.approx(shift(other, one), rel=1e-9)
    assert shift(one, other) > 10 * shift(one, gaussian(4000, 9, seed=2))
    assert shift(5 * one, 0.1 * other) == pytest.approx(shift(one, other), rel=1e-9)  # filters have no scale
    assert shift(one, one[:0]) is None


def test_divergence_of_known_distributions():
    """N(0, 1) and N(1, 1) are 1 nat apart, counted both ways; the scale of the samples does not matter."""
    random = np.random.default_rng(0)
    one, other = random.standard_normal(400_000), 1 + random.standard_normal(400_000)
    assert divergence(one, other) == pytest.approx(1, abs=0.03)
    assert divergence(10 * one, 10 * other) == pytest.approx(divergence(one, other), rel=1e-6)


@needs_shared
def test_a_trained_network_from_the_command_line(tmp_path):
    """MobileNetV2's 3 x 3 filters are depthwise and trained: never random; the shift to itself is 0."""
    network = f"{SHARED / 'nets' / 'mobilenet.py'}:load"
    words = ["--model", network, "--results", tmp_path, "--wandb", "disabled", "--shift-to", network]
    status, _, err = run("eval_filters.py", *words)
    assert status == 0, err
    record = json.loads((tmp_path / "mobilenet.load" / "filters.json").read_text())
    assert record["metrics"]["metric/filter-shift/mobilenet.load"] == 0
    assert record["metrics"]["metric/quality/random_share"] < 0.2
    assert len(record["layers"]["metric/quality/layer/or"]) == 18
    assert run("eval_filters.py", *words[:-1], "no_such_network")[0] == 2

"""Effective receptive fields of networks whose field is known."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

import eval_erf
from common import SHARED, measured, needs_shared, run
from imagenet_biases import Data
from imagenet_biases.measures.receptive_field import centre, field

BENCHMARK = eval_erf.BENCHMARK


def metrics(network, data):
    found = measured(BENCHMARK, network, data)
    return {name.rpartition("/")[2]: getattr(one, "value", one) for name, one in BENCHMARK.report(found)}, found


def network(*convolutions, channels_last=False):
    """Convolutions of ones behind each other, a mean over the map, and a classifier."""
    layers = [nn.Conv2d(3 if not n else 1, 1, k, padding=k // 2, bias=False) for n, k in enumerate(convolutions)]
    for layer in layers:
        nn.init.ones_(layer.weight)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1000))


@pytest.mark.parametrize("k", [1, 5, 31])
def test_one_convolution_has_the_field_of_its_kernel(k, drawn):
    data = Data(root=drawn, limit=3)
    got, found = metrics(network(k), data)
    assert got["size"] == pytest.approx(k) and got["area"] == pytest.approx(k**2 / 224**2)
    assert got["sd"] == pytest.approx(math.sqrt((k**2 - 1) / 12), abs=1e-6)
    (only,) = found.all()
    rows, columns = np.nonzero(only.values[0])
    assert {rows.min(), columns.min()} == {112 - k // 2} and {rows.max(), columns.max()} == {112 + k // 2}


def test_variances_of_convolutions_behind_each_other_add_up_and_thin_ends_do_not_count(drawn):
    """Two boxes of 9 make a triangle of 17; its corners, below 4.55 % of the peak of 81, are no part of the field."""
    got, _ = metrics(network(9, 9), Data(root=drawn, limit=2))
    triangle = 9 - np.abs(np.arange(-8, 9))
    inside = int((np.outer(triangle, triangle) > 0.0455 * 81).sum())
    assert got["size"] == pytest.approx(math.sqrt(inside)) and inside < 17**2
    assert got["sd"] == pytest.approx(math.sqrt(2 * 80 / 12), abs=1e-3)


def test_maps_of_all_layouts():
    maps = torch.randn(2, 5, 7, 7)
    expected = maps[:, :, 3, 3]
    assert torch.equal(centre(maps), expected)
    last = maps.permute(0, 2, 3, 1)
    assert torch.equal(centre(last), expected)
    tokens = torch.cat([torch.zeros(2, 1, 5), last.flatten(1, 2)], 1)
    assert torch.equal(centre(tokens), expected) and torch.equal(centre(tokens[:, 1:]), expected)
    assert centre(maps.mean((2, 3))) is None and centre(maps.mean((2, 3), keepdim=True)) is None


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_networks_that_end_in_norms_and_tokens_have_one(arch, drawn):
    torch.manual_seed(0)
    got, _ = metrics(timm.create_model(arch).eval(), Data(root=drawn, limit=2))
    assert 0.001 < got["area"] <= 1 and 5 < got["sd"] < 100


@pytest.mark.slow
def test_an_untrained_residual_network_sees_through_its_shortcuts_alone(drawn):
    """timm's last norm of every block starts at 0: what is left is the stem, 7 x 7 and a maximum over 3 x 3 of its
    points, two pixels apart, and 1 x 1 shortcuts: 7 + 2 * 2 pixels."""
    got, _ = metrics(timm.create_model("resnet18").eval(), Data(root=drawn, limit=24))
    assert got["size"] == pytest.approx(11, abs=0.6)


class Blind(nn.Module):
    """Makes a map that does not depend on the image."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Conv2d(3, 4, 1)

    def forward(self, pixels):
        return self.bias(pixels * 0).mean((2, 3)) @ torch.ones(4, 1000)


def test_a_missing_receptive_field_is_reported(drawn):
    linear = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(12), nn.Linear(12, 1000))
    for one in (Blind(), linear):
        with pytest.warns(UserWarning, match="no feature map, or its centre does not depend on the pixels"):
            got, _ = metrics(one, Data(root=drawn, limit=2))
        assert set(got.values()) == {None}


def test_intervals_hold_the_value_and_shrink_with_images():
    random = np.random.default_rng(0)
    places = np.abs(np.arange(64) - 32)
    maps = np.array([np.exp(-np.add.outer(places, places) / s) for s in random.uniform(4, 8, 64)], np.float16)
    few, many = field(maps[:8]), field(maps)
    for name in ("area", "size", "sd"):
        assert many[name].low <= many[name].value <= many[name].high
        assert many[name].high - many[name].low < few[name].high - few[name].low
    assert field(maps[:0]) == {}


@pytest.mark.slow
def test_calibration_networks_as_expected_before_measuring(drawn):
    """Both have the same layers, whose theoretical field is 9 + 2 * (4 + 8 + 16 + 16) = 97 pixels wide: the effective
    one cannot be wider, and textures, to be told from a few periods of at most 224 / 40 pixels, need less than
    silhouettes."""
    data = Data(root=drawn)
    texture, _ = metrics("calibration_texture", data)
    silhouette, _ = metrics("calibration_silhouette", data)
    assert texture["size"] <= silhouette["size"] <= 97
    assert texture["sd"] < silhouette["sd"]


@needs_shared
def test_the_script_as_a_user_runs_it(tmp_path):
    words = ["--model", f"{SHARED / 'nets' / 'mobilenet.py'}:load", "--imagenet", SHARED / "imagenet_samples"]
    status, out, err = run("eval_erf.py", *words, "--limit", "4", "--results", tmp_path, "--wandb", "disabled")
    assert status == 0, err
    assert "metric/erf-luo/size" in out

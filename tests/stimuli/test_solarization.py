"""Solarisation: the rule against Pillow, random thresholds against their exact expectation, known observers."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

import eval_solarization
from common import SHARED, TABLES, measured, needs_shared, run
from imagenet_biases import Data
from imagenet_biases.networks.load import load_model
from imagenet_biases.stimuli.solarization import solarize, threshold_level
from imagenet_biases.study import wordnet_ids

BENCHMARK = eval_solarization.BENCHMARK


def metrics(found):
    return {name: getattr(one, "value", one) for name, one in BENCHMARK.report(found)}


def test_the_rule_is_pillows_in_all_256_x_256_cases():
    values = np.arange(256, dtype=np.uint8)
    pixels = torch.from_numpy(values).float().div_(255).expand(256, 1, 1, 256)  # as the loop makes pixels
    ours = solarize(pixels, torch.arange(256))
    for level in range(256):
        theirs = np.array(ImageOps.solarize(Image.fromarray(values[None]), level))
        assert torch.equal(ours[level, 0], torch.from_numpy(theirs).float().div_(255)), level


def test_levels_of_the_published_grid():
    levels = list(eval_solarization.grid("101").values())
    assert levels[:6] == [0, 3, 6, 8, 11, 13] and levels[-3:] == [250, 253, 255]
    assert eval_solarization.grid("101")["0.12"] == threshold_level(12, 100) == 31
    with open(TABLES / "related" / "solarization_curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert levels == [int(row["k"]) for row in rows]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Uniform pictures, 40 grey values: under a threshold each is wholly inverted or not at all."""
    folder = tmp_path_factory.mktemp("uniform") / "images"
    for value in np.linspace(3, 252, 40).round().astype(int):
        target = folder / wordnet_ids()[0] / f"{value}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (256, 256), (int(value),) * 3).save(target)
    return folder


class Dark(nn.Module):
    """Says class 0 of pictures of a mean below 0.5 and class 9 of others."""

    def forward(self, pixels):
        bright = pixels.mean((1, 2, 3)) > 0.5
        return nn.functional.one_hot(torch.where(bright, 9, 0), 1000).float()


def shares():
    """Share of the levels 1 ... 255 under which Dark answers a picture of each value with 0."""
    values = np.linspace(3, 252, 40).round().astype(int)
    levels = np.arange(1, 256)
    shown = np.where(values[:, None] >= levels, 255 - values[:, None], values[:, None])
    return (shown < 127.5).mean(1)


@pytest.mark.slow
def test_a_known_observer_gets_exact_scores(pictures):
    data = Data(folders={"imagenet": pictures}, allow_partial=True)
    got = metrics(measured(BENCHMARK, Dark(), data, options={"alpha": "all"}))
    expected = shares()
    assert got["top1_acc/RandSol-10/expected"] == pytest.approx(100 * np.mean(expected**10))
    assert got["top1_acc/solarize/worst"] == pytest.approx(100 * np.mean(expected == 1))
    values = np.linspace(3, 252, 40).round()
    assert got["top1_acc/solarize/0"] == pytest.approx(100 * np.mean(255 - values < 127.5))  # all inverted
    assert got["top1_acc/solarize/1"] == got["top1_acc/imagenet"]  # no value is 255
    least = min(value for name, value in got.items() if name.startswith("top1_acc/solarize/0."))
    assert got["top1_acc/solarize/min"] == min(least, got["top1_acc/solarize/0"])


@pytest.mark.slow
@pytest.mark.parametrize("draws", [1, 3, 10])
def test_random_thresholds_meet_their_expectation(pictures, draws):
    """20 seeds: the mean share of survivors within 4 standard errors of mean s ** draws; never more with more draws."""
    data = Data(folders={"imagenet": pictures}, allow_partial=True)
    expected = shares() ** draws
    error = np.sqrt(np.mean(expected * (1 - expected)) / len(expected) / 20)
    found = []
    for seed in range(20):
        options = {"alpha": "2", "draws": draws, "target": ("top1",)}
        got = metrics(measured(BENCHMARK, Dark(), data, options=options, seed=seed))
        found.append(got[f"top1_acc/RandSol-{draws}/top1"] / 100)
    assert abs(np.mean(found) - expected.mean()) < 4 * error


@pytest.mark.slow
@needs_shared
def test_batches_do_not_matter_and_more_draws_leave_fewer():
    network = load_model(f"{SHARED / 'nets' / 'mobilenet.py'}:load")
    data = Data(folders={"imagenet": SHARED / "imagenet_samples"}, limit=10)
    got = {}
    for size in (3, 10):
        options = {"alpha": "3", "draws": 4}
        got[size] = metrics(measured(BENCHMARK, network, data, options=options, batch_size=size))
    assert got[3] == got[10]
    assert got[3]["top1_acc/RandSol-4/top1"] <= got[3]["top1_acc/imagenet"]
    fewer = metrics(measured(BENCHMARK, network, data, options={"alpha": "3", "draws": 1}))
    assert fewer["top1_acc/RandSol-1/top1"] >= got[3]["top1_acc/RandSol-4/top1"]
    assert got[3]["top1_acc/RandSol-4/top1/clean"] <= got[3]["top1_acc/RandSol-4/top1"]


@pytest.mark.slow
def test_calibration_networks_as_expected_before_measuring(drawn):
    """Silhouettes are found as contours against the ground, in either polarity of the drawings; the textures are
    periodic, and an inverted grating is a shifted grating: full inversion, which only flips the sign once a network
    has removed the mean, must leave the texture network nearly what it can do. A threshold in the middle of the range
    folds the wave, which doubles its frequency, so that the least accuracy must lie inside the range and not at 0."""
    data = Data(root=drawn)
    got = metrics(measured(BENCHMARK, "calibration_texture", data, options={"alpha": "11", "draws": 3}))
    assert got["top1_acc/solarize/0"] > got["top1_acc/imagenet"] - 15
    assert 0 < got["metric/solarize/worst-alpha-11"] < 1
    assert got["top1_acc/RandSol-3/top1"] <= got["top1_acc/imagenet"]


@needs_shared
def test_the_script_as_a_user_runs_it(tmp_path):
    words = ["--model", f"{SHARED / 'nets' / 'mobilenet.py'}:load", "--imagenet", SHARED / "imagenet_samples"]
    words += ["--limit", "2", "--results", tmp_path, "--wandb", "disabled", "--alpha", "5", "--draws", "2"]
    status, out, err = run("eval_solarization.py", *words)
    assert status == 0, err
    assert "top1_acc/solarize/min-5" in out
    assert run("eval_solarization.py", *words[:-3], "nonsense")[0] == 2

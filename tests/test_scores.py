"""Scores against scipy, closed forms and resampling."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest
from timm.data import RealLabelsImagenet

from imagenet_biases import scores
from imagenet_biases.images.listing import Listing, Names
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.vocabulary import CLEAN, Responses


def responses(answers, labels, name="imagenet", files=None):
    """Make responses of made-up images."""
    files = tuple(files or (f"c{label}/i{number}.png" for number, label in enumerate(labels)))
    listing = Listing(None, Names(files, labels), np.ones(len(files), np.int64))
    images = ImageSet(name, listing, np.arange(len(files)))
    values = np.asarray(answers, np.int16).reshape(len(files), -1)
    return Responses(images, CLEAN, np.maximum(values, 0), values[:, 0] >= 0)


@pytest.mark.parametrize("hits, images", [(0, 10), (3, 10), (10, 10), (38_065, 50_000), (1, 1)])
def test_wilson_interval_is_scipys(hits, images):
    expected = binomtest(hits, images).proportion_ci(method="wilson")
    got = scores.proportion(hits, images)
    assert got.value == 100 * hits / images
    assert (got.low, got.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_no_images_no_accuracy():
    assert scores.proportion(0, 0).value is None


def test_images_left_out_do_not_count():
    one = responses([[1, 2], [-1, -1], [5, 4], [3, 9]], [1, 1, 4, 7])
    assert scores.top(one, 1).value == pytest.approx(100 / 3)
    assert scores.top(one, 2).value == pytest.approx(200 / 3)


def test_real_is_timms(tmp_path):
    rng = np.random.default_rng(0)
    sets = [sorted(rng.choice(1000, rng.integers(0, 3), replace=False).tolist()) for _ in range(200)]
    (tmp_path / "real.json").write_text(json.dumps(sets))
    files = [f"n/ILSVRC2012_val_{number:08d}.JPEG" for number in rng.permutation(200) + 1]
    answers = np.argsort(rng.random((200, 1000)), 1)[:, :5]
    for row, file in enumerate(files):  # make about half of them right
        labels = sets[int(file[-13:-5]) - 1]
        if labels and row % 2:
            answers[row, 0] = labels[0]
    oracle = RealLabelsImagenet(files, real_json=str(tmp_path / "real.json"))
    import torch

    logits = torch.zeros(200, 1000)
    for place, weight in enumerate((9, 8, 7, 6, 5)):
        logits[np.arange(200), answers[:, place]] = float(weight)
    oracle.add_result(logits)
    one = responses(answers, np.zeros(200), files=files)
    label_sets = [set(sets[int(file[-13:-5]) - 1]) for file in files]
    got = scores.among(one, label_sets)
    assert got.value == oracle.get_accuracy(k=1)
    assert 20 < got.value < 80  # a test that could fail


def test_mean_corruption_error_closed_form():
    rng = np.random.default_rng(1)
    severities, expected = {}, []
    for corruption, alexnet in scores.ALEXNET_ERROR.items():
        hits = rng.random((5, 40)) < rng.random((5, 1))
        severities[corruption] = [responses(np.where(row, 3, 4), np.full(40, 3)) for row in hits]
        expected.append(100 * (1 - hits.mean()) / alexnet)
    assert scores.mean_corruption_error(severities).value == pytest.approx(np.mean(expected), abs=1e-9)


def test_interval_of_a_mean_covers_at_the_rate_it_says():
    """Correlated conditions on the same images: the interval is about the images, so it must not shrink with them."""
    rng = np.random.default_rng(2)
    covered, runs = 0, 400
    for _ in range(runs):
        skill = rng.random(150)  # an image's own chance to be recognised, the same under all conditions
        parts = [responses((rng.random(150) < skill).astype(int), np.ones(150)) for _ in range(6)]
        mean = scores.mean_accuracy(parts)
        covered += mean.low <= 50 <= mean.high
    assert 0.92 <= covered / runs <= 0.98


def test_per_class():
    one = responses([[1], [1], [2], [-1]], [1, 2, 2, 2])
    assert scores.per_class(one) == {1: (1, 1), 2: (1, 2)}

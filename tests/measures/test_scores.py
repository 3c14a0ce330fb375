"""Scores against scipy, closed forms and resampling."""

import json
import re

import numpy as np
import pytest
from scipy.stats import binomtest
from timm.data import RealLabelsImagenet
from torchvision.models import ResNet50_Weights

from imagenet_biases.images.listing import ImageNames, Listing
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.measures import accuracy
from imagenet_biases.study import devkit_order, wordnet_ids
from imagenet_biases.vocabulary import CLEAN, Responses


def responses(answers, labels, name="imagenet", files=None):
    """Make responses of made-up images."""
    files = tuple(files or (f"c{label}/i{number}.png" for number, label in enumerate(labels)))
    listing = Listing(None, ImageNames(files, labels), np.ones(len(files), np.int64))
    images = ImageSet(name, listing, np.arange(len(files)))
    values = np.asarray(answers, np.int16).reshape(len(files), -1)
    return Responses(images, CLEAN, np.maximum(values, 0), values[:, 0] >= 0)


@pytest.mark.parametrize("hits, images", [(0, 10), (3, 10), (10, 10), (38_065, 50_000), (1, 1)])
def test_wilson_interval_is_scipys(hits, images):
    expected = binomtest(hits, images).proportion_ci(method="wilson")
    got = accuracy.proportion(hits, images)
    assert got.value == 100 * hits / images
    assert (got.low, got.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_no_images_no_accuracy():
    assert accuracy.proportion(0, 0).value is None


def test_images_left_out_do_not_count():
    one = responses([[1, 2], [-1, -1], [5, 4], [3, 9]], [1, 1, 4, 7])
    assert accuracy.top(one, 1).value == pytest.approx(100 / 3)
    assert accuracy.top(one, 2).value == pytest.approx(200 / 3)


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
    got = accuracy.among(one, label_sets)
    assert got.value == oracle.get_accuracy(k=1)
    assert 20 < got.value < 80  # a test that could fail


def test_mean_corruption_error_closed_form():
    rng = np.random.default_rng(1)
    severities, expected = {}, []
    for corruption, alexnet in accuracy.ALEXNET_ERROR.items():
        hits = rng.random((5, 40)) < rng.random((5, 1))
        severities[corruption] = [responses(np.where(row, 3, 4), np.full(40, 3)) for row in hits]
        expected.append(100 * (1 - hits.mean()) / alexnet)
    assert accuracy.mean_corruption_error(severities).value == pytest.approx(np.mean(expected), abs=1e-9)


def test_interval_of_a_mean_covers_at_the_rate_it_says():
    """Correlated conditions on the same images: the interval is about the images, so it must not shrink with them."""
    rng = np.random.default_rng(2)
    covered, runs = 0, 400
    for _ in range(runs):
        skill = rng.random(150)  # an image's own chance to be recognised, the same under all conditions
        parts = [responses((rng.random(150) < skill).astype(int), np.ones(150)) for _ in range(6)]
        mean = accuracy.mean_accuracy(parts)
        covered += mean.low <= 50 <= mean.high
    assert 0.92 <= covered / runs <= 0.98


def test_per_class():
    one = responses([[1], [1], [2], [-1]], [1, 2, 2, 2])
    assert accuracy.per_class(one) == {1: (1, 1), 2: (1, 2)}


@pytest.mark.parametrize(
    "clean, low, high", [(0.76, 0.6, 0.01), (0.76, 0.6, 0.2), (0.3, 0.02, 0.002), (0.95, 0.9, 0.9)]
)
@pytest.mark.parametrize("images", [100, 2000])
def test_intervals_of_ratios_cover_and_stay_in_their_range(clean, low, high, images):
    """Simulated networks whose images differ in difficulty: what is recognised filtered mostly is so clean, too.

    `low`, `high`: accuracies under each of five low- and high-pass cut-offs; LPP, HPP, spectral bias follow.
    """
    random, runs = np.random.default_rng(0), 600
    truths = {"LPP": low / clean, "HPP": high / clean, "spectral bias": high / (low + high)}
    covered = dict.fromkeys(truths, 0)
    for _ in range(runs):
        difficulty = random.random(images)
        right = (difficulty < clean).astype(float)

        def under(accuracy, difficulty=difficulty):
            mixed = np.where(random.random((5, images)) < 0.7, difficulty, random.random((5, images)))
            return (mixed < accuracy).mean(0)

        lows, highs = under(low), under(high)
        found = {
            "LPP": accuracy.ratio(lows, right),
            "HPP": accuracy.ratio(highs, right),
            "spectral bias": accuracy.ratio(highs, lows + highs, highest=1.0),
        }
        for name, one in found.items():
            if one.value is not None:
                assert 0 <= one.low <= one.value <= one.high and (name != "spectral bias" or one.high <= 1)
                assert one.high > one.low
            covered[name] += one.value is None or one.low <= truths[name] <= one.high
    shares = {name: count / runs for name, count in covered.items()}
    assert min(shares.values()) > 0.92, shares


def test_a_ratio_of_nothing_has_no_interval_without_width():
    none = accuracy.ratio(np.zeros(100), np.ones(100))
    assert none.value == none.low == 0 and 0.01 < none.high < 0.1
    every = accuracy.ratio(np.ones(100), np.ones(100), highest=1.0)
    assert every.value == every.high == 1 and 0.9 < every.low < 0.99
    assert accuracy.ratio(np.zeros(3), np.zeros(3)).value is None


DEVKIT = np.array(devkit_order())
AS_TEXT = np.array(sorted(range(1000), key=str))


def by_name(key):
    """The class numbers in the order of torchvision's names, of which two are not timm's."""
    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    return np.array(sorted(range(1000), key=lambda number: key(names[number])))


ORDERS = {  # {what is said: how such a network numbers the classes}
    "1,001 outputs is cut off": lambda classes: np.minimum(classes + 1, 999),
    "first class is cut off": lambda classes: np.maximum(classes - 1, 0),
    r"sorted as texts \(0, 1, 10[^;]*folders;": lambda classes: AS_TEXT.argsort()[classes],
    r"sorted as texts \(0, 1, 10[^;]*, in the labels;": lambda classes: AS_TEXT[classes],
    r"devkit \(ILSVRC2012_ID - 1\);": lambda classes: DEVKIT.argsort()[classes],
    r"devkit \(ILSVRC2012_ID - 1\), in the labels": lambda classes: DEVKIT[classes],
    "English class names, sorted;": lambda classes: by_name(str).argsort()[classes],
    "capital letters;": lambda classes: by_name(str.lower).argsort()[classes],
    "capital letters, in the labels;": lambda classes: by_name(str.lower)[classes],
}


def answered(number, count=50, share=0.8):
    """Responses of a network that is right on a share of images but numbers the classes by a function."""
    labels = np.arange(count) * (1000 // count) + 3
    classes = np.where(np.arange(count) < share * count, labels, (labels * 7 + 500) % 1000)
    return responses(number(classes)[:, None], labels)


@pytest.mark.parametrize("said", ORDERS)
@pytest.mark.parametrize(("count", "share"), [(50, 0.8), (1000, 0.3), (60, 0.06)])
def test_the_order_in_which_a_network_answers_is_named(said, count, share):
    found = answered(ORDERS[said], count, share)
    assert accuracy.top(found).value < 1
    with_order = accuracy.likely_order(found)
    assert re.search(said, with_order)
    right = float(re.search(r"top-1 is ([\d.]+) %", with_order)[1])
    assert right == pytest.approx(100 * share, abs=100 * 2.5 / count)


def test_the_order_of_the_devkit():
    """Its numbers of the first two validation images are 490 and 361: a sea snake and an alp."""
    assert sorted(DEVKIT) == list(range(1000))
    assert [wordnet_ids()[DEVKIT[number - 1]] for number in (490, 361)] == ["n01751748", "n09193705"]
    assert [wordnet_ids()[DEVKIT[number - 1]] for number in (1, 449, 1000)] == ["n02119789", "n01440764", "n03255030"]


def test_no_order_is_named_without_need_or_by_chance():
    assert accuracy.likely_order(answered(lambda classes: classes)) == ""
    rng = np.random.default_rng(0)
    for count in (50, 100, 1000):
        for _ in range(300):
            found = responses(rng.integers(0, 1000, (count, 1)), rng.integers(0, 1000, count))
            assert accuracy.likely_order(found) == ""
    assert accuracy.likely_order(responses(np.full((5, 1), -1), np.arange(5))) == ""  # no image counts

"""Half-samples: standard errors against closed forms, pairs against McNemar's, reports on halves."""

import json

import numpy as np
import pytest

from common import run
from imagenet_biases.measures.accuracy import mean_over_images
from imagenet_biases.measures.split_half import (
    FEWEST,
    SPLITS,
    as_text,
    difference,
    from_text,
    halves,
    in_first,
    standard_error,
)
from imagenet_biases.vocabulary import CLEAN, Benchmark, Estimate, Responses, Results

STUDIES = 80


class Images:
    name, subset = "imagenet", None

    def __init__(self, number, seed=0):
        self.keys = np.random.default_rng(seed).integers(2**63, size=number, dtype=np.int64)
        self.labels = np.zeros(number, np.int64)

    def __len__(self):
        return len(self.keys)


def found(values, images):
    return Results([Responses(images, CLEAN, np.asarray(values), np.ones(len(images), bool))])


def report(found):
    one = found["imagenet", CLEAN.name]
    values = one.values[one.counts].astype(float)
    yield "mean", mean_over_images(values)
    yield "squared", float(values.mean() ** 2)
    yield "never", None


BENCHMARK = Benchmark("own", None, report)


def test_halves_depend_on_the_image_alone_and_are_halves():
    keys = Images(20_000).keys
    order = np.random.default_rng(1).permutation(len(keys))
    firsts = np.array([in_first(keys, split) for split in range(SPLITS)])
    assert np.array_equal(in_first(keys[order], 3), firsts[3][order])
    share = firsts.mean(1)
    assert np.abs(share - 0.5).max() < 4.5 * 0.5 / np.sqrt(len(keys))  # binomial
    agreement = np.corrcoef(firsts)[np.triu_indices(SPLITS, 1)]
    assert np.abs(agreement).max() < 4.5 / np.sqrt(len(keys))  # splits know nothing of each other


def test_the_standard_error_is_that_of_the_closed_form():
    """Of a mean and of its square (delta method), averaged over studies: one study's has 16 degrees of freedom."""
    errors, expected = [], []
    for study in range(STUDIES):
        random = np.random.default_rng(study)
        values = random.normal(3, 2, 500)
        got = halves(BENCHMARK, found(values, Images(500, study)))
        errors.append([standard_error(got[name]) ** 2 for name in ("mean", "squared")])
        expected.append(np.array([1, 4 * values.mean() ** 2]) * values.var() / 500)
    ratio = np.mean(errors, 0) / np.mean(expected, 0)
    assert np.abs(ratio - 1).max() < 4 * np.sqrt(2 / SPLITS / STUDIES)
    assert np.isnan(standard_error(got["never"]))


def test_a_pair_is_surer_than_two_strangers_and_covers_the_truth():
    """Two networks that agree on most images: intervals of paired accuracies against McNemar's standard error."""
    ratios, covered, truth, number = [], 0, 6.0, 400
    for study in range(STUDIES):
        random = np.random.default_rng([study, 1])
        one = random.random(number) < 0.7
        other = np.where(random.random(number) < 0.06 / 0.7 * one, False, one)  # right on 6 points fewer, on average
        images = Images(number, study)
        first, second = (halves(BENCHMARK, found(100.0 * hits, images))["mean"] for hits in (one, other))
        gap = difference(100 * one.mean(), 100 * other.mean(), first, second)
        b, c = (one & ~other).sum(), (other & ~one).sum()
        mcnemar = 100 * np.sqrt(b + c - (b - c) ** 2 / number) / number
        ratios.append((standard_error(first - second) / mcnemar) ** 2)
        covered += gap.low <= truth <= gap.high
    assert abs(np.mean(ratios) - 1) < 4 * np.sqrt(2 / SPLITS / STUDIES)
    assert covered >= 67  # of 80 at 95 %: fewer once in 5,000 times
    assert np.mean(ratios) * mcnemar < standard_error(first)  # unpaired, the common images would count as noise


def test_text_and_what_has_no_halves():
    values = np.random.default_rng(0).normal(size=(SPLITS, 2))
    values[2, 1] = np.nan
    np.testing.assert_allclose(from_text(as_text(values)), values, rtol=1e-5)
    with pytest.raises(ValueError, match="reshape"):
        from_text("1 2 3")
    few = Images(FEWEST - 1)
    assert halves(BENCHMARK, found(np.ones(len(few)), few)) == {} == halves(BENCHMARK, Results([]))
    lonely = difference(3.0, 1.0, values, np.full((SPLITS, 2), np.nan))
    assert lonely == Estimate(2.0)


def test_a_report_that_fails_on_halves_costs_a_warning():
    def picky(found):
        assert found["imagenet", CLEAN.name].counts.all()
        yield "mean", 1.0

    images = Images(100)
    with pytest.warns(UserWarning, match="own does not report on half of the images.*AssertionError"):
        assert halves(Benchmark("own", None, picky), found(np.ones(100), images)) == {}


@pytest.mark.slow
def test_every_record_of_images_holds_them(drawn, tmp_path):
    run("eval_spectral.py", "--model", "calibration_texture", "--imagenet", drawn / "imagenet", "--results", tmp_path)
    record = json.loads((tmp_path / "calibration_texture" / "spectral.json").read_text())
    assert record["halves"].keys() == record["metrics"].keys()
    values = from_text(record["halves"]["metric/bandpass/HPP"])
    low, high = record["intervals"]["metric/bandpass/HPP"]
    assert abs(values.mean() - record["metrics"]["metric/bandpass/HPP"]) < high - low
    assert 0.5 < standard_error(values) / ((high - low) / 3.92) < 2

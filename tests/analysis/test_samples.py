"""What a study on samples can tell: the simulation of benchmarks/samples.py, and what the answer quotes of it."""

import importlib.util

import numpy as np
import pandas as pd
import pytest

from common import ROOT
from imagenet_biases.results.table import PUBLISHED, read_table, study

SPEC = importlib.util.spec_from_file_location("samples", ROOT / "benchmarks" / "samples.py")
samples = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(samples)
STORED = pd.read_csv(ROOT / "raw-data" / "samples.csv")


@pytest.fixture
def published():
    table = read_table(PUBLISHED)
    return table[table["model"].isin(study(table)["model"]) & (table["source"] == "published")]


def test_all_images_give_the_published_values(published, monkeypatch):
    monkeypatch.setattr(samples, "IMAGES", 100)
    whole = samples.sampled(published, 1.0, np.random.default_rng(0))
    pd.testing.assert_frame_equal(whole, published)


def test_accuracies_have_the_variance_of_samples_without_replacement(published, monkeypatch):
    """Of 200 of 1,000 images: p (1 - p) / n x (1 - n / N), for the attack; the mean of 95 variants has less."""
    monkeypatch.setattr(samples, "IMAGES", 1000)
    random, name = np.random.default_rng(0), "top1_acc/PGD-40/low"
    draws = [samples.sampled(published, 0.2, random)[[name, "top1_acc/imagenet-c"]] for _ in range(40)]
    off = np.stack([(drawn - published[[*drawn]]).to_numpy() for drawn in draws])
    share = published[name].to_numpy() / 100
    expected = 100 * np.sqrt(share * (1 - share) / 200 * 0.8)
    assert np.sqrt(np.mean((off[..., 0] / expected) ** 2)) == pytest.approx(1, rel=0.15)
    assert np.abs(np.mean(off[..., 0] / expected)) < 0.3
    of_all = [published[variant].to_numpy() / 100 for variant in samples.VARIANTS]
    variances = [p * (1 - p) / 200 * 0.8 for p in of_all]
    expected = 100 * np.sqrt(np.sum(variances, axis=0)) / 95  # the variants show different images
    assert np.sqrt(np.mean((off[..., 1] / expected) ** 2)) == pytest.approx(1, rel=0.15)


def test_the_stored_table_is_what_the_simulation_gives():
    (found,) = samples.simulate(samples.SHARES[:1]).to_dict("records")
    assert found == pytest.approx(STORED.iloc[0].to_dict(), rel=0.05)
    assert STORED["change"].is_monotonic_decreasing and [*STORED["share"]] == [*samples.SHARES]


def test_the_answer_says_what_5_per_cent_would_have_said():
    answer = (ROOT / "raw-data" / "ANSWER.md").read_text("utf-8")
    assert f"\n{samples.sentence(STORED)}\n" in answer
    assert samples.SENTENCE.sub(samples.sentence(STORED), answer) == answer
    worse = samples.sentence(STORED.assign(stand=0.9, worst=0.241))
    assert "90 % of the correlations beyond 0.5" in worse and "more than 0.25" in " ".join(worse.split())
    assert samples.SENTENCE.fullmatch(worse)

"""Reliability and interventions, on records whose truth is known."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from common import run
from imagenet_biases.analysis import interventions, statistics
from imagenet_biases.analysis.reliability import (
    CORRECTED,
    RAW,
    SAMPLED,
    SEEDS,
    SPLIT_HALF,
    VIEWS,
    reliability,
    sampling_corrections,
)
from imagenet_biases.analysis.statistics import WITHIN, rank_correlations
from imagenet_biases.base.errors import UserError
from imagenet_biases.measures.split_half import SPLITS, as_text
from imagenet_biases.results.measurements import measurements
from imagenet_biases.results.table import PUBLISHED, read_table, study
from sampled import on_sample

LPP, ACCURACY = "metric/bandpass/LFC/{}", "top1_acc/imagenet"
NETWORKS = 400  # more than there are, so that the estimates are near the truth


def record(model, metrics, *, halves=None, time="2026-01-01T00:00:00+00:00", fingerprint="f", **provenance):
    known = {"network": f"hash of {model}", "category": "", "collection": "imagenet", "view": "study"}
    known |= {"precision": "fp32", "seed": 0, "time": time}
    known |= {"image_sets": {"imagenet": {"fingerprint": fingerprint, "images": 100}}}
    texts = {name: as_text(values) for name, values in (halves or {}).items()}
    return {"model": model, "benchmark": "own", "metrics": metrics, "halves": texts, "provenance": known | provenance}


def noisy(random, truth, noise, count):
    """Measures of `truth` [networks] on `count` images with noise of SD `noise` each: values, halves.

    The halves' errors are that of the whole plus and minus one of the same size.
    """
    whole = truth + random.normal(0, noise / np.sqrt(count), len(truth))
    apart = random.normal(0, noise / np.sqrt(count), (len(truth), SPLITS, 1))
    return whole, whole[:, None, None] + apart * [1, -1]


@pytest.fixture(scope="module")
def studied():
    """Records of a bias (shape-bias) and a score (Adversarial) that correlate at 0.6, measured with known noise.

    A noise as large as the spread of the networks, over the root of the images, makes the reliability 1/2.
    """
    random = np.random.default_rng(0)
    bias = random.normal(size=NETWORKS)
    score = 0.6 * bias + 0.8 * random.normal(size=NETWORKS)
    found = [noisy(random, truth, 10, 100) for truth in (bias, score)]
    names = ("shape-bias", "top1_acc/PGD-40/low")
    return [
        record(
            f"n{number}",
            {name: float(values[number]) for name, (values, _) in zip(names, found, strict=True)},
            halves={name: halves[number] for name, (_, halves) in zip(names, found, strict=True)},
        )
        for number in range(NETWORKS)
    ]


def test_reliability_and_attenuation_are_those_of_the_simulation(studied):
    table = reliability(studied, resamples=200).set_index(["measure", "score", "method"])
    for measure in ("shape-bias", "Adversarial"):
        row = table.loc[measure, "", SPLIT_HALF]
        assert row.networks == NETWORKS and row.low < row.estimate < row.high
        assert row.estimate == pytest.approx(0.5, abs=0.1)
    observed, corrected = (table.loc["shape-bias", "Adversarial", method] for method in (RAW, CORRECTED))
    assert observed.estimate == pytest.approx(0.3, abs=0.1)  # 0.6 x 1/2
    assert corrected.estimate == pytest.approx(0.6, abs=0.15) and corrected.low < 0.6 < corrected.high


@pytest.fixture(scope="module")
def sampled():
    """Records of a bias and a score on the first 5 % of the same images, and the same networks' values on all."""
    random, networks, images, first = np.random.default_rng(3), 48, 4000, 200
    truth = random.normal(size=(2, networks))
    truth[1] = 0.7 * truth[0] + np.sqrt(1 - 0.7**2) * truth[1]
    difficulty, halves = random.normal(size=images), random.random((first, SPLITS)) < 0.5
    names, records, wholes = ("shape-bias", "top1_acc/PGD-40/low"), [], []
    for number, ends in enumerate(truth.T):
        latent = np.sqrt(0.6) * difficulty + np.sqrt(0.4) * random.normal(size=(2, images))
        right = latent < 0.1 * ends[:, None]
        start = right[:, :first].astype(float)
        of_halves = [start @ half / half.sum(0) for half in (halves, ~halves)]
        values = dict(zip(names, start.mean(1).tolist(), strict=True))
        one = record(f"n{number}", values, category=f"c{number % 2}", image_sets={})
        by_name = dict(zip(names, np.stack(of_halves, axis=-1), strict=True))
        records.append(on_sample(one, first, images, halves=by_name))
        wholes.append(right.mean(1))
    return records, np.array(wholes)


def test_correlations_of_samples_stand_beside_what_the_whole_sets_give(sampled):
    records, wholes = sampled
    table = reliability(records, resamples=100).set_index(["measure", "score", "method"]).sort_index()
    by_method = table.loc["shape-bias", "Adversarial"]
    groups = np.arange(48) % 2
    for method, expected in (
        (RAW, rank_correlations(wholes.T)[0, 1]),
        (WITHIN, rank_correlations(wholes.T, groups=groups)[0, 1]),
    ):
        raw, corrected = by_method.loc[method], by_method.loc[f"{method} {SAMPLED}"]
        assert raw.estimate < corrected.estimate - 0.05 and corrected.networks == 48
        assert corrected.low < expected < corrected.high and raw.low < raw.estimate < raw.high
    unsampled = [{key: value for key, value in one.items() if key not in ("share", "sampled")} for one in records]
    assert not reliability(unsampled, resamples=100)["method"].str.contains(SAMPLED).any()


def test_the_statistics_have_corrected_correlations_beside_the_raw_ones(sampled, tmp_path, monkeypatch):
    records, wholes = sampled
    rows = study(read_table(PUBLISHED)).reset_index(drop=True)
    by_name = {one["model"]: one for one in records}
    rows = rows.assign(model=[*by_name], category=[one["provenance"]["category"] for one in records])
    rows["shape-bias"] = [one["metrics"]["shape-bias"] for one in records]
    rows["Adversarial"] = [one["metrics"]["top1_acc/PGD-40/low"] for one in records]
    monkeypatch.setattr(statistics, "statistics", partial(statistics.statistics, resamples=20, permutations=19))
    corrections = sampling_corrections([*records, record("other", {"shape-bias": 0.5})], {*by_name}, resamples=100)
    table = statistics.shared(rows, tmp_path, corrections)
    pd.testing.assert_frame_equal(statistics.shared(rows, tmp_path, corrections), table, check_dtype=False)
    assert table["corrected"].notna().sum() == 2  # over all networks and within categories, of the one pair on samples
    groups = np.arange(48) % 2
    whole = {RAW: rank_correlations(wholes.T)[0, 1], WITHIN: rank_correlations(wholes.T, groups=groups)[0, 1]}
    for row in table[table["corrected"].notna()].itertuples():
        assert (row.bias, row.score, row.excluded, row.networks) == ("shape-bias", "Adversarial", "none", 48)
        assert row.estimate + 0.05 < row.corrected and row.corrected_low < whole.pop(row.method) < row.corrected_high
    assert not whole and "corrected" not in statistics.shared(rows, tmp_path)
    fewer = sampling_corrections(records, {*[*by_name][:40]}, resamples=20)
    assert set(fewer["networks"]) == {40}  # beside an estimate of 48 networks it would not stand
    assert statistics.shared(rows, tmp_path, fewer)["corrected"].isna().all()


def test_seeds_and_views(studied):
    random, more = np.random.default_rng(1), []
    for one in studied[:100]:
        other = {name: value + random.normal() * 1e-3 for name, value in one["metrics"].items()}
        more.append(one | {"metrics": other, "provenance": one["provenance"] | {"seed": 7}})
        turned = {name: -value for name, value in one["metrics"].items()}
        more.append(one | {"metrics": turned, "provenance": one["provenance"] | {"view": "native"}})
    table = reliability([*studied[:100], *more], resamples=50).set_index(["measure", "method"])["estimate"]
    assert table["shape-bias", SEEDS] > 0.99 and table["shape-bias", VIEWS] == pytest.approx(-1)


def test_published_rows_have_no_reliability():
    with pytest.raises(UserError, match="published rows have no responses"):
        reliability([])
    bare = [record(f"n{number}", {"shape-bias": 0.5}) for number in range(48)]
    with pytest.raises(UserError, match="no half-samples"):
        reliability(bare)


# Interventions --------------------------------------------------------------------------------------------------------


def pair(random, gap, images=100, shared=1.0, own=0.1):
    """Two records of one network, plain and behind a front end: noise that they share, and their own."""
    common = random.normal(0, shared, (SPLITS, 2))
    records = []
    for frontend, value in (("", 0.5), ("low-pass:0.3", 0.5 + gap)):
        halves = value + common + random.normal(0, own, (SPLITS, 2))
        records.append(record("net", {"shape-bias": value}, halves={"shape-bias": halves}, frontend=frontend))
    return records


def test_a_front_ends_effect_is_paired_over_the_images():
    table = interventions.frontends(pair(np.random.default_rng(0), 0.2)).set_index("measure")
    row = table.loc["shape-bias"]
    assert (row.intervention, row.model, row.n) == ("low-pass:0.3", "net", 1)
    assert (row.before, row.after) == (0.5, 0.7) and row.difference == pytest.approx(0.2)
    error = (row.high - row.low) / 2 / 2.1199
    assert error == pytest.approx(0.1, rel=0.5)  # sd of own noise: gaps have 4 times its variance, halved; not 1.0


def test_other_images_give_no_interval_and_other_ways_no_pair():
    plain, changed = pair(np.random.default_rng(0), 0.2)
    elsewhere = changed["provenance"] | {"image_sets": {"imagenet": {"fingerprint": "g", "images": 100}}}
    (row,) = interventions.frontends([plain, changed | {"provenance": elsewhere}]).itertuples()
    assert row.difference == pytest.approx(0.2) and np.isnan(row.low) and np.isnan(row.high)
    with pytest.raises(UserError, match="--frontend low-pass"):
        interventions.frontends([plain, changed | {"provenance": changed["provenance"] | {"seed": 3}}])


def test_trainings_need_three_seeds():
    values = {"a0": 0.5, "a1": 0.52, "a2": 0.48, "b0": 0.7, "b1": 0.74, "b2": 0.66}
    records = [record(name, {"shape-bias": value}) for name, value in values.items()]
    (row,) = interventions.trainings(records, ["b0", "b1", "b2"], ["a0", "a1", "a2"], "noise").itertuples()
    import scipy.stats

    oracle = scipy.stats.ttest_ind([0.7, 0.74, 0.66], [0.5, 0.52, 0.48], equal_var=False).confidence_interval()
    assert (row.low, row.high) == pytest.approx((oracle.low, oracle.high)) and row.n == 3
    (row,) = interventions.trainings(records, ["b0"], ["a0", "a1", "a2"], "noise").itertuples()
    assert row.n == 1 and np.isnan(row.low) and row.difference == pytest.approx(0.2)
    with pytest.raises(UserError, match="no record of c0"):
        interventions.trainings(records, ["c0"], ["a0"], "noise")


def test_what_is_measured_of_the_weights_goes_with_every_image_set_and_newer_values_count():
    records = [
        record("n", {ACCURACY: 70.0, "shape-bias": 0.2}),
        record("n", {ACCURACY: 71.0}, time="2026-02-01T00:00:00+00:00"),
        record("n", {"metric/quality/ve_wmean": 0.5}, collection="none"),
    ]
    ((way, one),) = measurements(records).items()
    assert way.as_in_study and one.values[ACCURACY] == 71.0 and one.values["variance entropy"] == 0.5
    assert one.values["shape-bias"] == 0.2 and "LPP" not in one.values


def test_the_script_writes_tables_and_figures_from_records(studied, tmp_path):
    import json

    records = [*studied[:20], *pair(np.random.default_rng(0), 0.2)]
    for number, one in enumerate(records):
        one = one | {"intervals": {}, "subset": False, "format": 2}
        path = tmp_path / "results" / one["model"] / f"own{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one))
    where = ("--results", tmp_path / "results", "--out", tmp_path)
    shown = run("plot_study.py", *where, "--reliability", check=True).stdout
    table = pd.read_csv(tmp_path / "reliability.csv")
    assert set(table["method"]) == {SPLIT_HALF, RAW, CORRECTED} and "shape-bias" in shown
    words = ("--interventions", "--treated", "n1,n2,n3", "--untreated", "n4,n5,n6")
    run("plot_study.py", *where, *words, check=True)
    assert (pd.read_csv(tmp_path / "interventions.csv")["n"] == 3).all()
    for name in ("reliability", "interventions"):
        assert all((tmp_path / f"{name}.{kind}").stat().st_size > 5_000 for kind in ("png", "pdf"))
    failed = run("plot_study.py", *where, "--treated", "n1")
    assert failed.returncode == 2 and "go together" in failed.stderr
    failed = run("plot_study.py", *where, "--interventions")
    assert failed.returncode == 2 and "no bias and score in common" in failed.stderr  # a bias alone was measured

"""Places among the 48 published networks and their ranges, on samples whose whole sets are known."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from imagenet_biases.base.schema import Malformed
from imagenet_biases.estimate import Z95
from imagenet_biases.measures.split_half import SPLITS, T95
from imagenet_biases.results.measurements import Measurement, Projection, derived_projections, measurements, whole
from imagenet_biases.results.places import COUNTED, FINE, missing, standing, standings, unsettled, widths
from imagenet_biases.results.record_schema import check_record
from imagenet_biases.results.table import PUBLISHED, read_table, study
from imagenet_biases.study import BIASES, SCORES, derive
from sampled import on_sample

LPP, HPP = "metric/bandpass/LFC/{}", "metric/bandpass/HFC/{}"
OOD = ("top1_acc/imagenet-sketch", "top1_acc/imagenet-r", "top1_acc/stylized")


def record(metrics, benchmark="own", time="2026-01-01T00:00:00+00:00", intervals=None):
    known = {"network": "a1", "category": "", "collection": "imagenet", "view": "study", "precision": "fp32"}
    known |= {"seed": 0, "time": time, "image_sets": {"imagenet": {"fingerprint": "f", "images": 100}}}
    return {"model": "net", "benchmark": benchmark, "metrics": metrics, "intervals": intervals or {}, "subset": False,
            "provenance": known}  # fmt: skip


def only(*records):
    for one in records:
        check_record(one)
    (measurement,) = measurements(records).values()
    return measurement


@pytest.mark.parametrize(
    ("column", "bounds", "rank", "best", "worst"),
    [
        ("ID", (15, 35), 2, 1, 4),
        ("ID", (20, 30), 2, 1, 2),  # on a bound, ties share the best place
        ("ID", (19.9, 29.9), 2, 2, 4),
        ("mCE/imagenet-c", (15, 35), 4, 2, 5),
        ("ID", (None, None), 2, 1, 5),
        ("ID", (25, 25), 2, 2, 2),
    ],
)
def test_a_range_goes_over_the_bounds(column, bounds, rank, best, worst):
    place = standing([10, 20, 20, 30, np.nan], column, Projection(25, *bounds, share=0.05))
    assert (place.rank, place.best, place.worst, place.of) == (rank, best, worst, 5)


def test_a_plain_number_is_whole():
    assert standing([10, 20, 20, 30], "ID", 20)[4:] == (2, 2)
    assert standing([10, 20], "ID", Projection(math.nan)) is None


def test_published_networks_have_their_own_places():
    networks = study(read_table(PUBLISHED)).set_index("model")
    for name in (*SCORES, *BIASES):
        ranks = networks[name].rank(ascending=False, method="min")
        for model, value in networks[name].items():
            place = standings(model, {name: whole(value)})[name]
            assert (place.rank, place.best, place.worst, place.of) == (*[ranks[model]] * 3, 48)
    stranger = standings("stranger", {"ID": Projection(70.0, share=0.01)})["ID"]
    assert (stranger.best, stranger.worst, stranger.of) == (1, 49, 49)


def test_known_to_within_two_places_beyond_ties():
    values = np.sort(study(read_table(PUBLISHED))["Robustness"].to_numpy())
    middle = (values[20] + values[21]) / 2

    def known(low, high):
        return "Robustness" not in unsettled("stranger", {"Robustness": Projection(middle, low, high)})

    assert known(values[19], values[22]) and known(values[18] + 1e-9, middle)
    assert not known(values[17], middle) and not known(middle, values[23] + 1e-9)
    assert not known(None, None)
    steps = np.sort(study(read_table(PUBLISHED))["cf_norm"].dropna().to_numpy())
    distinct = np.unique(steps)
    low, high = distinct[2] - 1e-9, distinct[4]
    fine = FINE["cf_norm"]
    assert fine in COUNTED and "cf_norm" not in COUNTED
    assert (np.sum(steps > low) - np.sum(steps > high)) > 3  # networks that tie
    assert fine not in unsettled("stranger", {fine: Projection(distinct[3], low, high)})
    assert unsettled("stranger", {}) == [*COUNTED]


def test_narrower_intervals_have_narrower_ranges_and_derive_scores_anew():
    metrics = {"top1_acc/imagenet-a": 10.0, "top1_acc/imagenet-c": 45.0, "top1_acc/imagenet-cbar": 45.0}
    bounds = {name: (value - 3, value + 3) for name, value in metrics.items()}
    measurement = only(on_sample(record(metrics), 50, 1000, bounds))
    before, none, all_of_it = (
        widths("net", measurement, dict.fromkeys(metrics, factor))["Robustness"] for factor in (1, 0.5, 0)
    )
    assert before > none > all_of_it == 0
    one_set = widths("net", measurement, {"top1_acc/imagenet-c": 0})["Robustness"]
    assert none < one_set < before
    place = standings("net", measurement.projections)["Robustness"]
    assert before == place.worst - place.best


def test_what_is_missing_is_named_with_its_folder():
    assert missing("Concepts", [OOD[0]]) == [("imagenet_ood", "imagenet-r"), ("model_vs_human", "model-vs-human")]
    assert missing("Robustness", ["top1_acc/imagenet-a"]) == [
        ("imagenet_c", "imagenet-c"), ("imagenet_cbar", "imagenet-cbar")]  # fmt: skip
    assert missing("ID", []) == [
        ("imagenet", "imagenet"), ("imagenet_ood", "imagenet-v2"), ("imagenet_real", "imagenet")]  # fmt: skip
    assert missing("spectral bias", []) == [("spectral", "imagenet")]
    assert missing("shape-bias", []) == [("model_vs_human", "model-vs-human")]
    assert missing("Adversarial (unflagged)", ["top1_acc/PGD-40/low"]) == []


# From records ---------------------------------------------------------------------------------------------------------


def test_the_larger_share_wins_and_the_whole_for_good():
    small = on_sample(record({"shape-bias": 0.4}, time="2026-03-01"), 100, 1000, {"shape-bias": (0.3, 0.5)})
    large = on_sample(record({"shape-bias": 0.5}, time="2026-02-01"), 500, 1000, {"shape-bias": (0.45, 0.55)})
    all_of_it = record({"shape-bias": 0.52}, time="2026-01-01")
    assert only(small).projections["shape-bias"] == Projection(0.4, 0.3, 0.5, share=0.1)
    found = only(small, large)
    assert found.values["shape-bias"] == 0.5 and found.projections["shape-bias"].share == 0.5
    found = only(small, large, all_of_it)
    assert found.values["shape-bias"] == 0.52 and found.projections["shape-bias"] == whole(0.52)
    newer = record({"shape-bias": 0.53}, time="2026-02-01")
    assert only(all_of_it, newer).values["shape-bias"] == 0.53


@pytest.mark.parametrize("images", [0, -1, 2.5, "10", None])
def test_a_share_of_nothing_is_a_damaged_record(images):
    sampled = on_sample(record({"shape-bias": 0.4}), 100, 1000)
    with pytest.raises(Malformed, match="share/of is"):
        check_record(sampled | {"share": sampled["share"] | {"of": images}})
    sampled["sampled"]["shape-bias"]["of"] = images
    with pytest.raises(Malformed, match="sampled/shape-bias/of is"):
        check_record(sampled)


def test_a_score_has_the_smallest_share_and_its_reported_interval():
    spectral = {LPP.format(cutoff): 0.6 for cutoff in (0.1, 0.2, 0.3, 0.4, 0.5)} | {"metric/bandpass/LPP": 0.6}
    sampled = on_sample(record(spectral), 100, 1000, {"metric/bandpass/LPP": (0.55, 0.66)})
    concepts = record(dict.fromkeys(OOD[:2], 30.0), "imagenet_ood")
    rest = on_sample(record({OOD[2]: 30.0}, "model_vs_human"), 200, 800, {OOD[2]: (24.0, 39.0)})
    found = only(sampled, concepts, rest).projections
    assert found["LPP"] == Projection(0.6, 0.55, 0.66, share=0.1)
    assert (found["Concepts"].low, found["Concepts"].high) == pytest.approx((28, 33)) and found[
        "Concepts"
    ].share == 0.25
    missing_bounds = on_sample(record({OOD[2]: 30.0}, "model_vs_human"), 20, 800)
    assert only(concepts, missing_bounds).projections["Concepts"] == Projection(30.0, share=0.025)


def test_a_ratio_without_an_interval_of_its_own_has_that_of_its_halves():
    random = np.random.default_rng(0)
    values = {LPP.format(cutoff): 0.6 for cutoff in (0.1, 0.2, 0.3, 0.4, 0.5)}
    values |= {HPP.format(cutoff): 0.2 for cutoff in (0.1, 0.2, 0.3, 0.4, 0.5)}
    halves = {name: value + random.normal(0, 0.02, (SPLITS, 2)) for name, value in values.items()}
    found = only(on_sample(record(values), 360, 1000, halves=halves)).projections["spectral bias"]
    rounded = {name: np.array([[float(f"{x:.6g}") for x in pair] for pair in pairs]) for name, pairs in halves.items()}
    gaps = np.subtract(*derive("spectral bias", rounded).T)
    reach = T95 * np.sqrt(np.mean(gaps**2)) / 2 * 0.8  # the root of 1 - 0.36
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25 - reach, 0.25 + reach))


def test_samples_of_different_size_are_paired():
    """Two networks on the first 200 and 800 images: most of an image's difficulty is shared."""
    random, errors, gaps = np.random.default_rng(2), [], []
    halves = random.random((800, SPLITS)) < 0.5
    for _ in range(300):
        difficulty = random.normal(size=800)
        measured = [difficulty[:count] + 0.3 * random.normal(size=count) for count in (200, 800)]
        sides = [[y @ half[: len(y)] / half[: len(y)].sum(0) for half in (halves, ~halves)] for y in measured]
        first, second = (
            Measurement({"ID": y.mean()}, halves={"ID": np.transpose(pair)})
            for y, pair in zip(measured, sides, strict=True)
        )
        gap = first.minus(second, "ID")
        gaps.append(gap.value)
        errors.append((gap.high - gap.low) / 2 / T95)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(gaps), rel=0.1)
    apart = math.sqrt(1.09 / 200 + 1.09 / 800)
    assert np.std(gaps) < 0.85 * apart


@pytest.mark.parametrize("score", ["Robustness", "ID"])
def test_bounds_of_scores_cover_the_whole_sets_value(score):
    """Samples without replacement of 10 % of three sets; ID's parts imagenet and imagenet-real share their images."""
    random, draws, images, n = np.random.default_rng(1), 400, 2000, 200
    parts = {
        "Robustness": ("imagenet-a", "imagenet-c", "imagenet-cbar"),
        "ID": ("imagenet", "imagenet-v2", "imagenet-real"),
    }
    hits = {f"top1_acc/{part}": random.random(images) < 0.6 for part in parts[score]}
    if score == "ID":
        agree = random.random(images) < 0.8
        hits["top1_acc/imagenet-real"] = np.where(agree, hits["top1_acc/imagenet"], hits["top1_acc/imagenet-real"])
    truth = derive(score, {name: 100 * right.mean() for name, right in hits.items()})
    covered, spans, values = 0, [], []
    for _ in range(draws):
        first = random.permutation(images)[:n]
        known = {}
        for name, right in hits.items():
            of_set = right[first if "real" in name or name == "top1_acc/imagenet" else random.permutation(images)[:n]]
            p, half = 100 * of_set.mean(), 100 * Z95 * of_set.std(ddof=1) * math.sqrt((1 - n / images) / n)
            known[name] = Projection(p, p - half, p + half, share=n / images)
        found = derived_projections(known)[score]
        covered += found.low <= truth <= found.high
        spans.append(found.high - found.low)
        values.append(found.value)
    assert covered >= binom.ppf(0.05, draws, 0.95)
    assert np.mean(spans) <= 1.3 * 2 * Z95 * np.std(values)

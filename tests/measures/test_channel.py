"""Thresholds and channels: against published networks, profiles with a known channel, and ones without."""

import csv
import json

import numpy as np
import pytest

from common import TABLES
from imagenet_biases.measures import spatial_channel

# Their thresholds are not published: these were found by fitting all 5^7 vectors; each triple has just one.
PUBLISHED_NORM = (
    *("0123444", "0012343", "0013443", "0013343", "0013444", "0023443", "0012443", "1233443", "0123443", "0122343"),
    *("0122342", "0012444", "0013333", "0134444", "0234444", "1233444", "1233333", "1223333", "1233343", "1222333"),
)
PUBLISHED = ("0123444", "2344444", "1234444", "0234444", "0134444", "1344444")  # at 50 %, and a flat one


def triple(found):
    return found.bandwidth, found.centre_frequency, found.peak_noise_sensitivity


def test_eleven_networks_to_the_printed_digits():
    examples = json.loads((TABLES / "channel_examples.json").read_text())
    assert len(examples) == 11
    for name, known in examples.items():
        steps = spatial_channel.thresholds(known["accuracy"])
        assert steps.tolist() == known["thresholds"], name
        expected = abs(known["bw"]), known["cf"], known["pns"]
        assert triple(spatial_channel.fit(steps)) == pytest.approx(expected, rel=1e-7), name


@pytest.mark.parametrize(("suffix", "vectors"), [("_norm", PUBLISHED_NORM), ("", PUBLISHED)])
def test_published_networks(suffix, vectors):
    """Every published triple, printed with six decimals, is the fit of a threshold vector, and every vector is met."""
    with open(TABLES / "published_results.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["category"]]
    assert len(rows) == 48
    columns = [f"metric/criticalband/{name}{suffix}" for name in ("bw", "cf", "pns")]
    published = np.array([[float(row[column]) for column in columns] for row in rows])
    published = published[published[:, 0] < 11_000]  # the fits of the flat profile
    fits = np.array([triple(spatial_channel.fit([int(step) for step in vector])) for vector in vectors])
    distance = (np.abs(published[:, None] - fits) / (1e-6 + 1e-7 * fits)).max(
        2
    )  # the last digit, the solver's tolerance
    assert distance.min(1).max() < 1
    assert len(set(distance.argmin(1))) == len(vectors)


def test_flat_profile_has_no_channel():
    """27 of the 48 have all thresholds 4: published as a bandwidth of 11,295 octaves at 4,247 cycles/image."""
    for level in range(5):
        found = spatial_channel.fit([level] * 7)
        assert triple(found) == (None, None, None)
        assert "flat" in found.problem


@pytest.mark.parametrize(
    ("profile", "problem"),
    [
        ((3, 4, 4, 4, 4, 4, 4), "flat"),  # one step in one band: the fit is 16 octaves wide
        ((3.8, 3.9, 3.9, 4.0, 3.9, 3.9, 3.8), "flat"),
        ((4, 0, 4, 0, 4, 0, 4), "outside the bands"),
        ((1, 1, 1, 1, 1, 1, 2), "outside the bands"),
        ((1, 0, 0, 0, 0, 0, 1), "variance"),
        ((4, 0, 0, 4, 0, 0, 4), ""),
    ],
)
def test_profiles_without_a_channel_say_why(profile, problem):
    found = spatial_channel.fit(profile)
    assert found.problem
    assert problem in found.problem
    assert triple(found) == (None, None, None)


@pytest.mark.parametrize("mu", [0.3, 2.0, 3.5, 5.8])
@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.5])
@pytest.mark.parametrize("amplitude", [1.0, 3.9])
def test_a_gaussian_profile_is_recovered(amplitude, mu, sigma):
    found = spatial_channel.fit(amplitude * np.exp(-((np.arange(7) - mu) ** 2) / (2 * sigma**2)))
    expected = 2 * np.sqrt(np.log(4)) * sigma, 1.75 * 2**mu, 2 ** (amplitude - 4)
    assert triple(found) == pytest.approx(expected, rel=1e-4)


def test_a_single_band_is_a_channel_of_one_octave():
    """The published start finds nothing here (its slope is zero); narrower than a band of noise cannot be told."""
    for band in range(7):
        found = spatial_channel.fit([4 * (f == band) for f in range(7)])
        assert found.bandwidth == pytest.approx(1, abs=1e-6)
        assert abs(np.log2(found.centre_frequency / 1.75) - band) < 0.2


def table(columns):
    """Return an accuracy table with these accuracies at sd 0, .02, .04, .08, .16 in the first bands, else 0."""
    return np.array([*columns, *[[0] * 5] * (7 - len(columns))]).T


def test_thresholds_count_levels_from_the_strongest():
    accuracy = table([[90] * 5, [90, 80, 70, 60, 50], [90, 80, 70, 50, 40], [90, 80, 50, 60, 0], [90, 51, 0, 0, 0]])
    assert spatial_channel.thresholds(accuracy).tolist() == [0, 1, 2, 1, 3, 4, 4]  # 50 does not exceed 50
    assert spatial_channel.thresholds(accuracy, 65).tolist() == [0, 2, 2, 3, 4, 4, 4]
    assert spatial_channel.own_criterion(accuracy) == 450 / 7 / 2


def test_fine_thresholds_interpolate_on_the_octave_axis():
    accuracy = table([[90] * 5, [90, 80, 70, 60, 40], [90, 80, 80, 40, 40], [90, 30, 0, 0, 0], [40] * 5])
    assert spatial_channel.fine_thresholds(accuracy).tolist() == pytest.approx([0, 0.5, 1.25, 3 + 1 / 3, 4, 4, 4])


def test_fine_thresholds_rounded_up_are_the_thresholds():
    for accuracy in np.random.default_rng(0).uniform(0, 100, (500, 5, 7)):
        assert np.array_equal(np.ceil(spatial_channel.fine_thresholds(accuracy)), spatial_channel.thresholds(accuracy))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="5 noise levels x 7 bands"):
        spatial_channel.thresholds(np.zeros((7, 5)))
    with pytest.raises(ValueError, match="7 numbers"):
        spatial_channel.fit([1, 2, 3])


def test_resampled_tables_have_the_binomial_spread():
    hits = np.random.default_rng(1).random((5, 7, 400)) < 0.3
    tables = spatial_channel.resampled(hits, count=500)
    accuracy = 100 * hits.mean(2)
    assert tables.shape == (500, 5, 7)
    assert np.abs(tables.mean(0) - accuracy).max() < 5 * 2.3 / np.sqrt(500)
    assert tables.std(0) / np.sqrt(accuracy * (100 - accuracy) / 400) == pytest.approx(np.ones((5, 7)), abs=0.15)
    same = spatial_channel.resampled(np.repeat(hits[:1], 5, 0), count=3)
    assert np.array_equal(same[:, 0], same[:, 4])  # an image is drawn with all its conditions


@pytest.mark.slow
def test_interval_covers_the_truth():
    """Observers with a known channel, 300 images, 25 times: 95 % intervals of the centre hold it as often as that."""
    random, covered = np.random.default_rng(2), 0
    noise = np.array([-np.inf, -3, -2, -1, 0])[:, None]  # log2(sd / 0.16)
    limits = -4 * np.exp(-((np.arange(7) - 3.4) ** 2) / (2 * 1.5**2))  # noise at which half of the images are lost
    share = 0.9 / (1 + np.exp(4 * (noise - limits)))

    def centre(accuracy):
        return spatial_channel.fit(spatial_channel.fine_thresholds(accuracy, spatial_channel.own_criterion(accuracy)))

    truth = centre(100 * share).centre_frequency
    for _ in range(25):
        hits = random.random((5, 7, 300)) < share[..., None]
        others = [centre(accuracy) for accuracy in spatial_channel.resampled(hits, count=30)]
        estimate = spatial_channel.estimates(centre(100 * hits.mean(2)), others)["cf"]
        covered += estimate.low <= truth <= estimate.high
    assert covered >= 20  # 95 % would be 23.75; so few resamples make the interval a little narrow


def test_no_interval_where_resamples_lose_the_channel():
    good, none = spatial_channel.fit([0, 1, 2, 3, 4, 3, 2]), spatial_channel.fit([4] * 7)
    estimate = spatial_channel.estimates(good, [good] * 90 + [none] * 10)["bw"]
    assert estimate.value == good.bandwidth
    assert estimate.low is None
    assert spatial_channel.estimates(none, [good] * 100)["bw"].value is None
    assert spatial_channel.estimates(none, [good] * 100)["bw"].low is None

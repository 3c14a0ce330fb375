"""Stimuli against plain implementations of their definitions, and the seeded noise against statistics."""

from itertools import pairwise

import numpy as np
import pyrtools
import pytest
import scipy.stats
import torch
from PIL import Image

from imagenet_biases.stimuli import bandpass, octave_noise, seeded
from imagenet_biases.vocabulary import Batch

CUTOFFS = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
LOW_RADII = (1, 11, 22, 33, 44, 56, 67, 78, 89, 100, 110)
HIGH_RADII = (110, 100, 89, 78, 67, 56, 44, 33, 22, 11, 1)


@pytest.fixture(scope="module")
def photographs():
    """Uint8 pictures [4, 224, 224, 3] with the 1/f spectrum of photographs, and one of white noise."""
    random = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(224), np.fft.fftfreq(224)))[..., None]
    spectrum = np.fft.fft2(random.standard_normal((3, 224, 224, 3)), axes=(1, 2)) / np.maximum(frequency, 1 / 224)
    pictures = np.fft.ifft2(spectrum, axes=(1, 2)).real
    pictures = 128 + 50 * pictures / pictures.std((1, 2, 3), keepdims=True)
    noise = random.uniform(0, 256, (1, 224, 224, 3))
    return np.concatenate([pictures.clip(0, 255), noise]).astype(np.uint8)


def pixels_of(pictures):
    """Return pictures as the runner shows them: float32 [B, 3, H, W] in [0, 1], channels last in memory."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255)


def batch(*keys, seed=0):
    return Batch(torch.tensor(keys), seed)


def presented(condition, pixels, batch):
    return condition.stimulus(pixels, batch, **condition.settings)


# Band-pass ------------------------------------------------------------------------------------------------------------


def defined_band_pass(picture, radius, keep):
    """The definition, one channel at a time: shifted 2-D FFT, the square kept or removed, inverse, real part, clip."""
    filtered = np.empty(picture.shape)
    inside = np.zeros(picture.shape[:2], bool)
    inside[112 - radius : 112 + radius, 112 - radius : 112 + radius] = True
    for channel in range(3):
        spectrum = np.fft.fftshift(np.fft.fft2(picture[..., channel] / 255))
        spectrum[inside != keep] = 0
        filtered[..., channel] = np.fft.ifft2(np.fft.ifftshift(spectrum)).real
    return filtered.clip(0, 1)


@pytest.mark.parametrize("number", range(11))
def test_band_pass_is_the_definition(photographs, number):
    for make, radii, keep in ((bandpass.low_pass, LOW_RADII, True), (bandpass.high_pass, HIGH_RADII, False)):
        shown = presented(make(CUTOFFS[number]), pixels_of(photographs), None)
        for picture, one in zip(photographs, shown, strict=True):
            expected = defined_band_pass(picture, radii[number], keep)
            assert np.abs(one.permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_band_pass_keeps_pixels_in_range(photographs):
    for condition in (bandpass.low_pass(0.3), bandpass.high_pass(0.9)):
        shown = presented(condition, pixels_of(photographs), None)
        assert shown.shape == (4, 3, 224, 224)
        assert shown.dtype == torch.float32
        assert 0 <= shown.min() <= shown.max() <= 1


# Seeded numbers -------------------------------------------------------------------------------------------------------


def splitmix64(state):
    """The published generator in plain integers (Steele et al. 2014)."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def test_bits_are_splitmix64():
    states = [1234567, 0, -1, 2**62 + 11, -(2**63)]
    drawn = seeded.bits(torch.tensor(states), 50)
    assert drawn[0, 0].item() == 6457827717110365317  # the published test vector of seed 1234567
    for state, row in zip(states, drawn.tolist(), strict=True):
        generator = splitmix64(state % 2**64)
        assert [number % 2**64 for number in row] == [next(generator) for _ in row]


def test_normal_numbers_are_normal():
    drawn = seeded.normal(seeded.streams(batch(*range(40)), "a"), (224, 224)).double().flatten().numpy()
    count = len(drawn)  # two million
    assert abs(drawn.mean()) < 4 / np.sqrt(count)
    assert abs(drawn.std() - 1) < 4 / np.sqrt(2 * count)
    assert abs(scipy.stats.skew(drawn)) < 4 * np.sqrt(6 / count)
    assert abs(scipy.stats.kurtosis(drawn)) < 4 * np.sqrt(24 / count)
    assert scipy.stats.kstest(drawn, "norm").pvalue > 0.001
    assert scipy.stats.kstest(drawn[np.abs(drawn) > 3], lambda x: (  # the tails, on which thresholds may hang
        np.where(x < 0, scipy.stats.norm.cdf(x), scipy.stats.norm.cdf(x) - 1 + 2 * scipy.stats.norm.sf(3))
        / (2 * scipy.stats.norm.sf(3))
    )).pvalue > 0.001  # fmt: skip


def test_uniform_numbers_are_uniform():
    drawn = seeded.uniform(seeded.streams(batch(*range(10)), "a"), (3, 101, 101)).flatten().numpy()
    assert drawn.dtype == np.float32
    assert 0 <= drawn.min() < 1e-4 < 0.9999 < drawn.max() < 1
    assert scipy.stats.kstest(drawn, "uniform").pvalue > 0.001


def test_numbers_of_images_conditions_and_seeds_are_unrelated():
    """Neighbouring keys, conditions, seeds, rows and the two halves of a Box-Muller pair have no correlation."""
    size = (224, 224)
    fields = [
        seeded.normal(seeded.streams(batch(5, 6, 2**62), "a"), size),
        seeded.normal(seeded.streams(batch(5), "b"), size),
        seeded.normal(seeded.streams(batch(5, seed=1), "a"), size),
    ]
    rows = torch.cat(fields).flatten(1)
    halves = rows[0].view(2, -1)
    correlation = torch.corrcoef(torch.stack([*rows, rows[0].roll(1), rows[0].roll(224)]))
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 5 / 224
    assert abs(torch.corrcoef(halves)[0, 1]) < 5 / np.sqrt(halves.shape[1])
    assert abs(torch.corrcoef(halves.square())[0, 1]) < 5 / np.sqrt(halves.shape[1])


def test_numbers_do_not_depend_on_the_batch():
    keys = (3, 1 << 60, 17, 9)
    together = seeded.normal(seeded.streams(batch(*keys, seed=4), "a"), (31, 7))
    for row, key in enumerate(keys):
        alone = seeded.normal(seeded.streams(batch(key, seed=4), "a"), (31, 7))
        assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-6)


# Octave-band noise ----------------------------------------------------------------------------------------------------


def test_octaves_are_those_of_pyrtools():
    white = np.random.default_rng(3).standard_normal((2, 224, 224))
    for image, octaves in zip(white, zip(*octaves_of(white), strict=True), strict=True):
        pyramid = pyrtools.pyramids.LaplacianPyramid(image)
        assert pyramid.num_scales == 7
        for frequency, one in enumerate(octaves):
            assert np.abs(one.numpy() - pyramid.recon_pyr(levels=[6 - frequency])).max() < 1e-5


def octaves_of(white):
    return [octave_noise.octave(torch.from_numpy(white).float(), frequency) for frequency in range(7)]


def test_octaves_add_up_and_lie_at_their_frequencies():
    white = np.random.default_rng(4).standard_normal((4, 224, 224))
    octaves = octaves_of(white)
    assert np.abs(sum(octaves).numpy() - white).max() < 1e-5
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(224, 1 / 224), np.fft.fftfreq(224, 1 / 224)))
    power = [np.abs(np.fft.fft2(one.numpy())) ** 2 for one in octaves]
    peaks = [float((p * np.log2(np.maximum(radius, 0.5))).sum() / p.sum()) for p in power]
    assert all(0.7 < b - a < 1.2 for a, b in pairwise(peaks[1:6]))  # an octave apart; 6 has the corners besides


def test_grey_is_pillows():
    colours = np.random.default_rng(5).integers(0, 256, (1, 224, 224, 3), np.uint8)
    grey = np.asarray(Image.fromarray(colours[0]).convert("L")) / 255
    expected = (grey - grey.mean()) * 0.2 + 0.449
    assert np.abs(octave_noise.low_contrast(pixels_of(colours))[0].numpy() - expected).max() < 1e-6
    # every grey level, and the rounding of all reds, greens and blues
    ramps = np.zeros((1, 224, 224, 3), np.uint8)
    for channel in range(3):
        ramps[0, :, channel * 64 : channel * 64 + 64, channel] = np.arange(224)[:, None] + np.arange(64) % 32
    grey = np.asarray(Image.fromarray(ramps[0]).convert("L"), float)
    shown = octave_noise.low_contrast(pixels_of(ramps))[0].double().numpy()
    assert np.array_equal(np.round((shown - 0.449) * 255 / 0.2 + grey.mean()), grey)


def test_without_noise_the_image_is_grey_and_of_low_contrast(photographs):
    shown = presented(octave_noise.grey(), pixels_of(photographs), None)
    assert shown.shape == (4, 3, 224, 224)
    assert torch.equal(shown[:, 0], shown[:, 2])
    assert shown[:, 0].mean((1, 2)).numpy() == pytest.approx(np.full(4, 0.449), abs=1e-6)


@pytest.mark.parametrize("frequency", range(7))
def test_masked_images_are_the_definition(photographs, frequency):
    """Against pyrtools and Pillow, one picture at a time, with the same white noise."""
    sd = 0.08
    keys = batch(11, 12, 13, 14, seed=3)
    condition = octave_noise.octave_noise(frequency, sd)
    shown = presented(condition, pixels_of(photographs), keys)
    white = seeded.normal(seeded.streams(keys, condition.name), (224, 224))
    for picture, noise, one in zip(photographs, white.double().numpy() * sd, shown.numpy(), strict=True):
        grey = np.asarray(Image.fromarray(picture).convert("L")) / 255
        image = (grey - grey.mean()) * 0.2 + 0.449
        pyramid = pyrtools.pyramids.LaplacianPyramid(noise)
        band, finest = (pyramid.recon_pyr(levels=[level]) for level in (6 - frequency, 0))
        noisy = image + band * np.sqrt((finest**2).mean() / (band**2).mean())
        noisy[noisy < 0], noisy[noisy > 1] = 0.1, 0.9
        assert np.mean(np.abs(one - noisy) < 1e-5) > 0.99999  # but for a pixel on the very edge of the range


def test_masks_have_the_same_strength_in_all_bands(photographs):
    pixels = pixels_of(photographs)
    plain = presented(octave_noise.grey(), pixels, None)
    strength = [
        (presented(octave_noise.octave_noise(f, 0.04), pixels, batch(1, 2, 3, 4)) - plain).square().mean().sqrt().item()
        for f in range(7)
    ]
    assert max(strength) / min(strength) < 1.03
    assert 0.8 * 0.04 < np.mean(strength) < 0.04


def test_masked_images_depend_on_seed_image_and_condition_only(photographs):
    pixels, keys = pixels_of(photographs), batch(7, 8, 9, 10)
    shown = presented(octave_noise.octave_noise(2, 0.16), pixels, keys)
    reversed_ = presented(octave_noise.octave_noise(2, 0.16), pixels.flip(0), Batch(keys.keys.flip(0), 0)).flip(0)
    assert torch.allclose(shown, reversed_, rtol=0, atol=1e-6)
    alone = presented(octave_noise.octave_noise(2, 0.16), pixels[2:3], batch(9))
    assert torch.allclose(shown[2:3], alone, rtol=0, atol=1e-6)
    for other in (
        presented(octave_noise.octave_noise(2, 0.16), pixels, batch(7, 8, 9, 10, seed=1)),
        presented(octave_noise.octave_noise(2, 0.16), pixels, batch(17, 18, 19, 20)),
        presented(octave_noise.octave_noise(2, 0.08), pixels, keys),
    ):
        assert (shown - other).abs().mean() > 0.05


def refilled(image, noise, sd, redraw):
    """The rule for pixels out of range, one pixel at a time."""
    result = np.empty_like(image)
    for place in np.ndindex(image.shape):
        x, n = image[place], noise[place]
        if x + n < 0:
            x = 0.1 - n
        elif x + n > 1:
            x = 0.9 - n
        if not 0 <= x <= 1:
            x = image[place]
            while not 0 <= x + n <= 1:
                n = redraw.normal(0, sd)
        result[place] = x + n
    return result


def test_pixels_out_of_range_follow_the_rule():
    random = np.random.default_rng(6)
    image = random.uniform(0.25, 0.65, (50, 40, 40))
    noise = random.normal(0, 0.5, image.shape)
    states = seeded.streams(batch(*range(50)), "redrawn")
    shown = octave_noise.add_noise(*(torch.from_numpy(a).float() for a in (image, noise)), 0.5, states).double().numpy()
    expected = refilled(image, noise, 0.5, random)
    redrawn = (image + noise < 0) & (noise < -0.9) | (image + noise > 1) & (noise > 0.9)
    assert 0.03 < redrawn.mean() < 0.1
    assert np.abs(shown - expected)[~redrawn].max() < 1e-6
    assert 0 <= shown.min() <= shown.max() <= 1
    # what is drawn anew cannot be the same numbers, but must have the same distribution
    assert scipy.stats.ks_2samp(shown[redrawn], expected[redrawn]).pvalue > 0.001
    again = octave_noise.add_noise(*(torch.from_numpy(a[7:8]).float() for a in (image, noise)), 0.5, states[7:8])
    assert np.abs(again.numpy()[0] - shown[7]).max() < 1e-6

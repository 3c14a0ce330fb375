"""Spatial-frequency channels from critical-band masking: noise thresholds, the fitted channel, their uncertainty.

Subramanian, Sizikova, Majaj & Pelli, "Spatial-frequency channels, shape bias, and adversarial robustness", NeurIPS
2023, arXiv:2309.13190, section 2. Nothing here reads or writes anything.

An accuracy table is [5, 7] in per cent: rows are the standard deviations of the noise SDS, columns the octave bands
f = 0 ... 6 from coarse to fine, centred at FREQUENCIES. Without noise the bands are the same.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from imagenet_biases.estimate import Estimate, whole_set_percentiles
from imagenet_biases.study import BAND_CENTRES, NOISE_SDS

SDS = (0.0, *NOISE_SDS)
FREQUENCIES = np.array(BAND_CENTRES)  # cycles per image
BANDS = np.arange(len(FREQUENCIES))
ArrayLike = np.ndarray | Sequence
Accuracy = ArrayLike  # [5, 7], in per cent
FWHM = 2 * math.sqrt(math.log(4))  # full width at half maximum of a Gaussian of standard deviation 1


def thresholds(accuracy: Accuracy, criterion: float = 50.0) -> Int[np.ndarray, "7"]:
    """Return, per band, how many noise levels must be taken away before the accuracy exceeds the criterion.

    Counted from the strongest noise: 0 if the accuracy exceeds it at sd 0.16, 1 at 0.08, 2 at 0.04, 3 at 0.02, else 4.
    `criterion` in per cent; half the network's accuracy without noise is `own_criterion`.
    """
    above = _descending(accuracy)[:-1] > criterion
    return np.where(above.any(0), above.argmax(0), len(SDS) - 1)


def fine_thresholds(accuracy: Accuracy, criterion: float = 50.0) -> Float[np.ndarray, "7"]:
    """Return the noise at which the accuracy falls to the criterion, in octaves below sd 0.16, from 0 to 4.

    The accuracy is interpolated between neighbouring noise levels on the axis of log noise, on which they are one
    octave apart; no noise stands one octave below 0.02, as it does for `thresholds`, which are these values rounded up.
    """
    table = _descending(accuracy)
    above = table > criterion
    first = np.maximum(above.argmax(0), 1)
    upper, lower = table[first, BANDS], table[first - 1, BANDS]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = first - (upper - criterion) / (upper - lower)
    return np.where(above[0], 0.0, np.where(above.any(0), crossing, len(SDS) - 1.0))


def own_criterion(accuracy: Accuracy) -> float:
    """Return half the network's own accuracy without noise, in per cent: the criterion of the `_norm` metrics."""
    return float(np.mean(np.asarray(accuracy)[0])) / 2


def _descending(accuracy: Accuracy) -> Float[np.ndarray, "5 7"]:
    table = np.asarray(accuracy, float)
    if table.shape != (len(SDS), len(BANDS)):
        raise ValueError(f"accuracy must be {len(SDS)} noise levels x {len(BANDS)} bands, not {table.shape}")
    return table[::-1]  # from the strongest noise to none


@dataclass(frozen=True)
class Channel:
    """A Gaussian over the bands, A exp(-(f - mu)^2 / 2 sigma^2), or why it is not a channel (`problem`)."""

    amplitude: float | None
    mu: float | None
    sigma: float | None
    problem: str | None = None

    @property
    def bandwidth(self) -> float | None:
        """Full width at half maximum in octaves; None where there is no channel."""
        return None if self.problem or self.sigma is None else FWHM * abs(self.sigma)

    @property
    def centre_frequency(self) -> float | None:
        """Frequency of the peak in cycles per image; None where there is no channel."""
        return None if self.problem or self.mu is None else float(FREQUENCIES[0] * 2**self.mu)

    @property
    def peak_noise_sensitivity(self) -> float | None:
        """0.01 / (sd of the noise that brings the accuracy to the criterion, at the peak); None without a channel."""
        return None if self.problem or self.amplitude is None else 2 ** (self.amplitude - 4)

    def __call__(self, bands: ArrayLike) -> Float[np.ndarray, "..."]:
        """Return the fitted thresholds at the bands."""
        assert self.amplitude is not None and self.mu is not None and self.sigma is not None
        return _gaussian(np.asarray(bands), self.amplitude, self.mu, self.sigma)


def fit(thresholds: ArrayLike) -> Channel:
    """Fit a Channel to the thresholds of the 7 bands (whole or not, 0 to 4) by least squares, 0 <= A <= 4.

    The published start (1, 0, 1) comes first. If it leads to no channel, or to one narrower than a band of noise (an
    octave), a second fit starts at the highest threshold and is confined to what 7 octave bands can tell: a centre
    among them and a bandwidth of at least one octave.

    A fit is not a channel (`problem` says so, and bandwidth, centre and sensitivity are None) if
    - all thresholds are equal: every Gaussian that is wide enough fits them;
    - it does not converge;
    - its centre lies outside the bands (more than half a band beyond the first or the last): no peak was seen;
    - over the bands it falls by less than half a noise level: thresholds are counted in whole levels, so that this
      cannot be told from a flat profile;
    - it is wider than 14 octaves, twice the range of the bands: wherever its centre is, half the maximum lies beyond
      the bands on either side, so that the bandwidth was not seen;
    - it explains less than half of the variance of the thresholds: the profile has another shape.
    """
    profile = np.asarray(thresholds, float)
    if profile.shape != BANDS.shape:
        raise ValueError(f"thresholds must be {len(BANDS)} numbers, not of shape {profile.shape}")
    if np.ptp(profile) == 0:
        return Channel(None, None, None, "flat: the noise of every band has the same effect")
    published = _least_squares(profile, (1, 0, 1), ((0, -np.inf, -np.inf), (4, np.inf, np.inf)))
    if published.bandwidth is not None and published.bandwidth >= 1:
        return published
    top = profile.max()
    start = (top, float(BANDS[profile == top].mean()), 1)
    confined = _least_squares(profile, start, ((0, BANDS[0] - 0.5, 1 / FWHM), (4, BANDS[-1] + 0.5, np.inf)))
    return confined if confined.problem is None else published


def _gaussian(f: np.ndarray, amplitude: float, mu: float, sigma: float) -> np.ndarray:
    return amplitude * np.exp(-((f - mu) ** 2) / (2 * sigma**2))


def _least_squares(profile: Float[np.ndarray, "7"], start: Sequence[float], bounds: tuple) -> Channel:
    from scipy.optimize import OptimizeWarning, curve_fit

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # no covariance: it is not used
            parameters, _ = curve_fit(_gaussian, BANDS.astype(float), profile, p0=start, bounds=bounds)
    except RuntimeError:
        return Channel(None, None, None, "the fit does not converge")
    amplitude, mu, sigma = map(float, parameters)
    channel = Channel(amplitude, mu, sigma)
    fitted = channel(BANDS)
    assert channel.mu is not None and channel.bandwidth is not None
    if not BANDS[0] - 0.5 <= channel.mu <= BANDS[-1] + 0.5:
        problem = f"the centre of the fit, 1.75 * 2^{channel.mu:.1f} cycles/image, is outside the bands"
    elif np.ptp(fitted) < 0.5:
        problem = f"flat: over the bands the fit changes by only {np.ptp(fitted):.2f} noise levels"
    elif channel.bandwidth > 2 * len(BANDS):
        problem = f"flat: a bandwidth of {channel.bandwidth:.1f} octaves cannot be seen in {len(BANDS)}"
    elif np.sum((profile - fitted) ** 2) > 0.5 * np.sum((profile - profile.mean()) ** 2):
        problem = "the fit explains less than half of the variance of the thresholds"
    else:
        return channel
    return Channel(channel.amplitude, channel.mu, channel.sigma, problem)


def resampled(hits: Bool[np.ndarray, "5 7 N"], count: int = 200, seed: int = 0) -> Float[np.ndarray, "resamples 5 7"]:
    """Return accuracy tables of images drawn with replacement."""
    images = hits.shape[-1]
    table, random = hits.reshape(-1, images).astype(np.float32), np.random.default_rng(seed)
    draws = (np.bincount(random.integers(images, size=images), minlength=images) for _ in range(count))
    tables = [table @ draw.astype(np.float32) for draw in draws]
    return np.reshape(tables, (-1, *hits.shape[:2])) * (100 / images)


def estimates(channel: Channel, others: Sequence[Channel], factor: float = 0.0) -> dict[str, Estimate]:
    """Return {'bw', 'cf', 'pns'} of a channel as Estimates, with 95 % intervals from the channels of resampled images.

    There is no interval without `others`, nor if more than 5 % of them are not channels.

    Args:
        factor: measures.accuracy.percentile_factor; above 0 for a sample, for which the whole set's interval is
            given as well.
    """
    valid = [other for other in others if other.problem is None]
    values = {"bw": "bandwidth", "cf": "centre_frequency", "pns": "peak_noise_sensitivity"}
    measured = {}
    for name, attribute in values.items():
        value = getattr(channel, attribute)
        measured[name] = Estimate(value)
        if valid and channel.problem is None and len(valid) >= 0.95 * len(others):
            resampled = [getattr(other, attribute) for other in valid]
            low, high = np.percentile(resampled, (2.5, 97.5)).tolist()
            whole_set = whole_set_percentiles(value, resampled, factor) if factor else None
            measured[name] = Estimate(value, low, high, whole_set=whole_set)
    return measured

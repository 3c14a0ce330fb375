"""How long until a network's places among the 48 are known to within two, by benchmark, on two CPU cores.

    python benchmarks/places.py

For each of the 48 published networks in turn, its published values stand for what all images would give. Samples of
growing size are simulated until the range of places, by the interval of the whole set, is within two beyond ties of
the 47 others' (as --until places asks at one look per round). Hours are passes times the measured pace of a ResNet-50
(throughput-cpu.json), beside those of the whole benchmark; medians and 90 % quantiles over networks.

Accuracies are simulated as binomial; LPP and HPP as the mean of five filtered accuracies that are fully correlated
(the widest case), over the clean accuracy. The accuracies behind a published channel are unknown. They are taken to
fall with log noise as a logistic function through the channel's threshold, from the clean accuracy, with the median
slope of the 45 bands of 11 networks of Subramanian et al. (NeurIPS 2023) whose accuracy passes the criterion; hits of
two conditions correlate at 1/3, as with half of an image's difficulty in common. The fine estimates are then fitted
anew, with intervals from tables drawn around the measured one.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from common import described  # noqa: F401  the package on the path
from imagenet_biases.engine.evaluate import refined
from imagenet_biases.estimate import Z95
from imagenet_biases.measures.spatial_channel import (
    BANDS,
    FREQUENCIES,
    FWHM,
    SDS,
    Channel,
    fine_thresholds,
    fit,
    own_criterion,
)
from imagenet_biases.measures.split_half import FEWEST
from imagenet_biases.results.measurements import Projection
from imagenet_biases.results.places import FINE, _published, unsettled
from imagenet_biases.vocabulary import ROUNDS

IMAGES = 50_000
# benchmark -> forward passes per image in all, and {score or bias: (metric, independent variants)}
BENCHMARKS = {
    "spectral": (23, {"LPP": ("LPP", 1), "HPP": ("HPP", 1)}),
    "imagenet_adv": (2 * 3 * 41 + 4, {"Adversarial": ("top1_acc/PGD-40/low", 1)}),
    "imagenet_c and _cbar": (95 + 50, {"Robustness": ("top1_acc/imagenet-c", 95)}),
    "criticalband": (29, {}),  # the three fine estimates
}
SLOPE = 1.56  # of accuracy / clean accuracy against octaves of noise, in logits
TOGETHER = 1 / 3  # correlation of hits at 50 %, tetrachoric 0.5
RESAMPLES = 60


def error(name: str, values: dict, metric: str, variants: int, images: int) -> float:
    """Return the standard error of what all images would give, from samples of so many images of each variant."""
    clean = values["top1_acc/imagenet"] / 100
    share = values[metric] * clean if metric in ("LPP", "HPP") else values[metric] / 100
    share = min(max(share, 0.0), 1.0)
    unseen = 1 - images / IMAGES
    own = math.sqrt(share * (1 - share) / images / variants * unseen)
    if name == "Robustness":  # the mean of -A, which is whole, -C and -C-bar
        return 100 * own * math.sqrt(1 + variants / 50) / 3
    return own / clean if metric in ("LPP", "HPP") else 100 * own


def channel_accuracies(values: dict) -> np.ndarray:
    """Return an accuracy table [5, 7] in per cent with the channel that is published for a network."""
    channel = Channel(4 + math.log2(values["pns_norm"]), math.log2(values["cf_norm"] / FREQUENCIES[0]),
                      values["bw_norm"] / FWHM)  # fmt: skip
    noise = np.log2(np.maximum(SDS, 1e-9) / SDS[-1])[:, None]  # octaves above the strongest
    relative = 1 / (1 + np.exp(SLOPE * (noise + np.clip(channel(BANDS), 0, len(SDS) - 1))))
    return values["top1_acc/imagenet"] * relative


def measured(accuracies: np.ndarray, images: int, random: np.random.Generator, count: int = 1) -> np.ndarray:
    """Return accuracy tables [count, 5, 7] on so many of all images; the bands are the same where there is no noise."""
    share = np.clip(accuracies / 100, 0, 1)
    error = 100 * np.sqrt(share * (1 - share) / images * (1 - images / IMAGES))
    common, own = random.normal(size=(count, 1, 1)), random.normal(size=(count, *accuracies.shape))
    own[:, 0] = own[:, 0, :1]
    return np.clip(accuracies + error * (math.sqrt(TOGETHER) * common + math.sqrt(1 - TOGETHER) * own), 0, 100)


def fine_channel(accuracies: np.ndarray) -> list[float]:
    """Return bandwidth, centre frequency and peak sensitivity of the fine estimate, NaN where there is no channel."""
    channel = fit(fine_thresholds(accuracies, own_criterion(accuracies)))
    numbers = channel.bandwidth, channel.centre_frequency, channel.peak_noise_sensitivity
    return [math.nan if number is None else number for number in numbers]


def projections_of(benchmark: str, values: dict, images: int, random: np.random.Generator) -> dict[str, Projection]:
    """Return what samples of so many images tell of a network's scores and biases of a benchmark."""
    share, projections = images / IMAGES, {}
    for name, (metric, variants) in BENCHMARKS[benchmark][1].items():
        half = error(name, values, metric, variants, images)
        value = values[name] + half * random.normal()
        projections[name] = Projection(value, value - Z95 * half, value + Z95 * half, share=share)
    if benchmark == "criticalband":
        (table,) = measured(channel_accuracies(values), images, random)
        others = np.array(list(map(fine_channel, measured(table, images, random, RESAMPLES))))
        settled = np.isfinite(others).all(1).mean() >= 0.95
        ends = np.nanpercentile(others, (2.5, 97.5), axis=0).T if settled else [(None, None)] * 3
        for name, value, (low, high) in zip(FINE.values(), fine_channel(table), ends, strict=True):
            projections[name] = Projection(None if math.isnan(value) else value, low, high, share=share)
    return projections


def main() -> None:
    """Simulate; print and store the hours."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    folder, random = Path(__file__).parent, np.random.default_rng(0)
    speed = json.loads((folder / "throughput-cpu.json").read_text())["figures"][0]
    pace = speed["images_x_conditions_per_second"]["harness"]
    figures = {}
    for benchmark, (cost, measures) in BENCHMARKS.items():
        names, shares = measures or FINE.values(), []
        for model, values in _published().items():
            for share in refined(ROUNDS):
                images = max(round(IMAGES * share / 100), FEWEST)
                if not unsettled(model, projections_of(benchmark, values, images, random), names):
                    break
            shares.append(share)
        whole = cost * IMAGES / pace / 3600
        hours = [round(whole * float(np.quantile(shares, quantile)) / 100, 2) for quantile in (0.5, 0.9)]
        figures[benchmark] = {"share_median": float(np.median(shares)), "hours_median": hours[0],
                              "hours_90_percent": hours[1], "hours_whole": round(whole, 1)}  # fmt: skip
        print(benchmark, figures[benchmark])
    assumed = " ".join(__doc__.partition("\n\nAccuracies are")[2].split())
    contents = {"pace": pace, "simulated": f"Accuracies are {assumed}", "figures": figures}
    (folder / "places.json").write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()

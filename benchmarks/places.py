"""How long until a network's places among the 48 are known to within two, by benchmark, on two CPU cores.

    python benchmarks/places.py

For each of the 48 published networks in turn, its published values stand for what all images would give. Samples of
growing size are simulated until the range of places, by the interval of the whole set, is within two beyond ties of
the 47 others' (as --until places asks at one look per round). Hours are passes times the measured pace of a ResNet-50
(throughput-cpu.json), beside those of the whole benchmark; medians and 90 % quantiles over networks.

Accuracies are simulated as binomial; LPP and HPP as the mean of five filtered accuracies that are fully correlated
(the widest case), over the clean accuracy. The fine channel has no closed form and is left out.
"""

import json
import math
from pathlib import Path

import numpy as np

from common import described  # noqa: F401  the package on the path
from imagenet_biases.engine.evaluate import refined
from imagenet_biases.estimate import Z95
from imagenet_biases.measures.split_half import FEWEST
from imagenet_biases.results.measurements import Projection
from imagenet_biases.results.places import _published, unsettled
from imagenet_biases.vocabulary import ROUNDS

IMAGES = 50_000
# benchmark -> forward passes per image in all, and {score or bias: (metric, independent variants)}
BENCHMARKS = {
    "spectral": (23, {"LPP": ("LPP", 1), "HPP": ("HPP", 1)}),
    "imagenet_adv": (2 * 3 * 41 + 4, {"Adversarial": ("top1_acc/PGD-40/low", 1)}),
    "imagenet_c and _cbar": (95 + 50, {"Robustness": ("top1_acc/imagenet-c", 95)}),
}


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


def main() -> None:
    """Simulate; print and store the hours."""
    folder, random = Path(__file__).parent, np.random.default_rng(0)
    speed = json.loads((folder / "throughput-cpu.json").read_text())["figures"][0]
    pace = speed["images_x_conditions_per_second"]["harness"]
    figures = {}
    for benchmark, (cost, measures) in BENCHMARKS.items():
        shares = []
        for model, values in _published().items():
            for share in refined(ROUNDS):
                images = max(round(IMAGES * share / 100), FEWEST)
                projections = {}
                for name, (metric, variants) in measures.items():
                    half = error(name, values, metric, variants, images)
                    value = values[name] + half * random.normal()
                    projections[name] = Projection(value, value - Z95 * half, value + Z95 * half, share=share / 100)
                if not unsettled(model, projections, measures):
                    break
            shares.append(share)
        whole = cost * IMAGES / pace / 3600
        hours = [round(whole * np.quantile(shares, quantile) / 100, 2) for quantile in (0.5, 0.9)]
        figures[benchmark] = {"share_median": float(np.median(shares)), "hours_median": hours[0],
                              "hours_90_percent": hours[1], "hours_whole": round(whole, 1)}  # fmt: skip
        print(benchmark, figures[benchmark])
    (folder / "places.json").write_text(json.dumps({"pace": pace, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()

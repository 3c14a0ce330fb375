"""Solarisation: accuracy when all pixel values from a threshold on are inverted, for every threshold and the worst one.

Paper: Gavrikov & Keuper, Don't Look into the Sun, 2023, arXiv:2308.12661.
Data:  ILSVRC-2012 validation, as for eval_imagenet.py; --probe N shows the first N images of its order.
Run:   python code/eval_solarization.py --model tv_resnet50 --imagenet DIR
       ... --alpha all (every threshold: exact expectation, worst case)    ... --draws 10 --target top1
Gives: top1_acc/solarize/A for the published thresholds A = 0, 0.01, ..., 1 (A = 0 inverts everything, A = 1 pure 255
       alone), their least, its threshold and their mean; top1_acc/RandSol-10/top1, the images that stand up to ten
       random thresholds drawn against top-1 (.../top5: against top-5), top5_acc likewise, .../clean: those of them that
       are right without solarisation, too. With --alpha all: RandSol-10/expected, its exact expectation, and
       solarize/worst, the images that stand up to all 255 thresholds. Thresholds are drawn by seed, image and draw; the
       published ones depended on the batch size and are not repeated.
       torchvision's ResNet-50 (tv_resnet50): 33.720 at 0, 22.644 at 0.12, its least, 74.602 at 1.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from imagenet_biases.base.errors import UserError
from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures.accuracy import accuracies, correct, mean_accuracy, mean_over_images, proportion, top
from imagenet_biases.stimuli.attacks import random_solarization
from imagenet_biases.stimuli.solarization import PIXEL_VALUES, solarized, threshold_level
from imagenet_biases.vocabulary import CLEAN, Benchmark, Condition, Data, Metrics, Option, Pass, Results

GRID = 101  # points of the published grid
OPTIONS = (
    Option("alpha", str(GRID), "a number of thresholds between 0 and 1, or all: also every one of 8-bit pixels"),
    Option("draws", 10, "random thresholds per image", type=int),
    Option("target", ("top1", "top5"), "the answers that the draws attack", choices=("top1", "top5"), several=True),
    Option("probe", None, "show only so many images, the first of the order (default: all)", type=int),
)


def grid(alpha: str) -> dict[str, int]:
    """Return {threshold: level} of the thresholds between 0 and 1; a pixel value from the level on is inverted."""
    points = GRID if alpha == "all" else int(alpha) if alpha.isdigit() else 0
    if not 2 <= points <= 1001:
        raise UserError(f"--alpha {alpha}: give a number of thresholds from 2 to 1001, or all")
    return {f"{number / (points - 1):.4g}": threshold_level(number, points - 1) for number in range(points)}


def attacks(draws: int, target: Sequence[str]) -> dict[str, Condition]:
    """Return {target: condition} of the random thresholds."""
    if draws < 1:
        raise UserError(f"--draws {draws}: give 1 or more")
    return {name: random_solarization(f"RandSol-{draws}/{name}", draws, int(name[3:])) for name in target}


def passes(data: Data, alpha: str, draws: int, target: Sequence[str], probe: int | None) -> list[Pass]:
    """Show the images as they are, under each threshold, and under random ones."""
    images = image_set("imagenet", data)
    levels = set(grid(alpha).values()) | (set(range(PIXEL_VALUES)) if alpha == "all" else set())
    conditions = (CLEAN, *map(solarized, sorted(levels)), *attacks(draws, target).values())
    return [Pass(images.probe(probe), conditions)]


def report(results: Results) -> Metrics:
    """Yield the accuracies by threshold, their minimum and mean, and those under random thresholds."""
    options = results.options
    clean = results["imagenet", CLEAN.name]
    yield from accuracies(clean, "imagenet")
    levels = grid(options["alpha"])
    by_alpha = {alpha: results["imagenet", solarized(level).name] for alpha, level in levels.items()}
    for alpha, responses in by_alpha.items():
        yield f"top1_acc/solarize/{alpha}", top(responses)
    suffix = "" if len(by_alpha) == GRID else f"-{len(by_alpha)}"
    worst = min(by_alpha, key=lambda alpha: top(by_alpha[alpha]).value)
    yield f"top1_acc/solarize/min{suffix}", top(by_alpha[worst])
    yield f"metric/solarize/worst-alpha{suffix}", float(worst)
    yield f"top1_acc/solarize/mean{suffix}", mean_accuracy(by_alpha.values())
    name = f"RandSol-{options['draws']}"
    for target, attack in attacks(options["draws"], options["target"]).items():
        solarised = results["imagenet", attack.name]
        yield from accuracies(solarised, f"{name}/{target}")
        survivors = correct(solarised) & correct(clean)
        yield f"top1_acc/{name}/{target}/clean", proportion(int(survivors.sum()), int(solarised.counts.sum()))
    if options["alpha"] == "all":
        survived = [correct(results["imagenet", solarized(level).name]) for level in range(1, PIXEL_VALUES)]
        share = np.mean(survived, 0)[clean.counts]
        yield f"top1_acc/{name}/expected", mean_over_images(100 * share ** options["draws"], 0.0, 100.0)
        yield "top1_acc/solarize/worst", proportion(int((share == 1).sum()), len(share))


def by_condition(accuracy: Mapping[str, float], options: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the accuracies by threshold, their minimum and mean, from the accuracy of each condition alone."""
    shares = {alpha: 100 * accuracy[solarized(level).name] for alpha, level in grid(options["alpha"]).items()}
    shares |= {f"min-{len(shares)}": min(shares.values()), f"mean-{len(shares)}": float(np.mean([*shares.values()]))}
    for name, share in ({"clean": 100 * accuracy[CLEAN.name]} | shares).items():
        yield f"top1_acc/solarize/{name}", share


BENCHMARK = Benchmark(
    "solarization",
    passes,
    report,
    by_condition=by_condition,
    options=OPTIONS,
    headline=("*/imagenet", "*/min*", "*alpha*", "*/mean*", "*RandSol*"),
)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

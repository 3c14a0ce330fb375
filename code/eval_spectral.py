"""Band-pass accuracy and spectral bias: what a network still recognises in low or in high spatial frequencies alone.

Paper: Gavrikov & Keuper, Can Biases in ImageNet Models Explain Generalization?, CVPR 2024, arXiv:2404.01509, section 4.
Data:  ILSVRC-2012 validation, as for eval_imagenet.py.
Run:   python code/eval_spectral.py --model tv_resnet50 --imagenet DIR
Gives: metric/bandpass/LFC/c and HFC/c, top-1 under the low-pass (high-pass) that keeps the share c of the spectrum,
       divided by the clean top-1; LPP and HPP, their means over c = 0.1 to 0.5; spectral-bias = HPP / (LPP + HPP).
       The 48 published networks have LPP 0.43 to 0.84, HPP 0.002 to 0.135 and a spectral bias of 0.003 to 0.159;
       torchvision's ResNet-50 (tv_resnet50) has 0.633, 0.0069 and 0.0108.
"""

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures.accuracy import accuracies, correct, ratio
from imagenet_biases.stimuli.bandpass import high_pass, low_pass
from imagenet_biases.study import CUTOFFS, MIDDLE_CUTOFFS, high_share, mean
from imagenet_biases.vocabulary import CLEAN, Benchmark, Data, Metrics, Pass, Results

FILTERS = {"LFC": low_pass, "HFC": high_pass}


def passes(data: Data) -> list[Pass]:
    """Show the validation images as they are and through the 22 filters."""
    filters = [make(cutoff) for make in FILTERS.values() for cutoff in CUTOFFS]
    return [Pass(image_set("imagenet", data), (CLEAN, *filters))]


def report(results: Results) -> Metrics:
    """Yield the clean accuracy, every ratio to it, LPP, HPP and the spectral bias."""
    clean = results["imagenet", "clean"]
    counted = clean.counts
    right = correct(clean)[counted]
    yield from accuracies(clean, "imagenet")
    under = {}
    for band, make in FILTERS.items():
        filtered = [results["imagenet", make(cutoff).name] for cutoff in CUTOFFS]
        under[band] = np.array([correct(responses)[counted] for responses in filtered])
        for cutoff, hits in zip(CUTOFFS, under[band], strict=True):
            yield f"metric/bandpass/{band}/{cutoff}", ratio(hits, right)
    middle = list(map(CUTOFFS.index, MIDDLE_CUTOFFS))
    low, high = (mean(*under[band][middle].astype(float)) for band in FILTERS)
    yield "metric/bandpass/LPP", ratio(low, right)
    yield "metric/bandpass/HPP", ratio(high, right)
    yield "metric/bandpass/spectral-bias", ratio(high, low + high, highest=1.0)


def by_condition(accuracy: Mapping[str, float], _: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield the same from the accuracy of each condition alone."""
    clean = accuracy[CLEAN.name]
    yield "top1_acc/imagenet", 100 * clean
    middle = []
    for band, make in FILTERS.items():
        ratios = [accuracy[make(cutoff).name] / clean for cutoff in CUTOFFS]
        for cutoff, share in zip(CUTOFFS, ratios, strict=True):
            yield f"metric/bandpass/{band}/{cutoff}", share
        middle.append(mean(*(ratios[CUTOFFS.index(cutoff)] for cutoff in MIDDLE_CUTOFFS)))
    yield "metric/bandpass/LPP", middle[0]
    yield "metric/bandpass/HPP", middle[1]
    yield "metric/bandpass/spectral-bias", high_share(*middle)


BENCHMARK = Benchmark(
    "spectral",
    passes,
    report,
    by_condition=by_condition,
    headline=tuple(f"metric/bandpass/{name}" for name in ("LPP", "HPP", "spectral-bias")),
)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

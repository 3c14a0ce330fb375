"""Critical-band masking: which spatial frequencies a network needs, found by noise of one octave at a time.

Papers: Subramanian et al., Spatial-frequency channels, shape bias, and adversarial robustness, NeurIPS 2023,
        arXiv:2309.13190 (the method); Gavrikov & Keuper, CVPR 2024, arXiv:2404.01509 (on 1,000 classes).
Data:   ILSVRC-2012 validation, as for eval_imagenet.py.
Run:    python code/eval_criticalband.py --model tv_resnet50 --imagenet DIR
Gives:  metric/criticalband/bw (bandwidth, octaves), cf (centre frequency, cycles/image), pns (peak noise sensitivity)
        at a criterion of 50 %, the same with _norm at half of the network's own accuracy without noise, and with _fine
        from interpolated thresholds, with intervals; top1_acc/criticalband/... per condition. No channel: no number,
        and the record's details say why. A second run reads the stored responses and shows no image again.
        The 48 published networks have bw_norm 3.7 to 10.5, cf_norm 33 to 114, pns_norm 0.52 to 1; torchvision's
        ResNet-50 (tv_resnet50) has 5.67, 54.7 and 1.
"""

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures import spatial_channel
from imagenet_biases.measures.accuracy import correct, percentile_factor, top
from imagenet_biases.stimuli.octave_noise import OCTAVES, grey, octave_noise
from imagenet_biases.study import NOISE_SDS
from imagenet_biases.vocabulary import Benchmark, Data, Metrics, Pass, Results

CRITERIA = {"": lambda accuracy: 50.0, "_norm": spatial_channel.own_criterion}  # suffix: accuracy table -> per cent
FINE = "_fine"  # suffix of what rests on interpolated thresholds
PLAIN = grey()
MASKED = {(sd, f): octave_noise(f, sd) for sd in NOISE_SDS for f in range(OCTAVES)}
CELLS = [[MASKED.get((sd, f), PLAIN).name for f in range(OCTAVES)] for sd in spatial_channel.SDS]  # of the table


def passes(data: Data) -> list[Pass]:
    """Show the validation images in grey and low contrast, without noise and under 7 bands x 4 levels of it."""
    return [Pass(image_set("imagenet", data), (PLAIN, *MASKED.values()))]


def hits(results: Results) -> Bool[np.ndarray, "5 7 N"]:
    """Return what was recognised, by noise level and band; row 0 is without noise, the same for all bands."""
    counted = results["imagenet", PLAIN.name].counts
    rows = []
    for names in CELLS:
        rows.append([correct(results["imagenet", name])[counted] for name in names])
    return np.array(rows)


def profiles(accuracy: Float[np.ndarray, "5 7"]) -> dict[str, np.ndarray]:
    """Return {suffix: thresholds [7]} of an accuracy table: both criteria, in whole steps and interpolated."""
    thresholds = {}
    for suffix, criterion in CRITERIA.items():
        thresholds[suffix] = spatial_channel.thresholds(accuracy, criterion(accuracy))
        thresholds[suffix + FINE] = spatial_channel.fine_thresholds(accuracy, criterion(accuracy))
    return thresholds


def report(results: Results) -> Metrics:
    """Yield the channels' three numbers by criterion and kind of threshold, and the accuracies."""
    right, factor = hits(results), percentile_factor(results["imagenet", PLAIN.name])
    resampled = [profiles(accuracy) for accuracy in spatial_channel.resampled(right, results.resamples(200))]
    for suffix, steps in profiles(100 * right.mean(2)).items():
        others = []
        if suffix.endswith(FINE):
            others = [spatial_channel.fit(profile[suffix]) for profile in resampled]
        for name, estimate in spatial_channel.estimates(spatial_channel.fit(steps), others, factor).items():
            yield f"metric/criticalband/{name}{suffix}", estimate
    yield "top1_acc/criticalband/sd0", top(results["imagenet", PLAIN.name])
    for (sd, f), condition in MASKED.items():
        yield f"top1_acc/criticalband/sd{sd}/f{f}", top(results["imagenet", condition.name])


def by_condition(accuracy: Mapping[str, float], _: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield the same from the accuracy of each condition alone."""
    table = [list(map(accuracy.__getitem__, names)) for names in CELLS]
    for suffix, steps in profiles(100 * np.array(table)).items():
        for name, estimate in spatial_channel.estimates(spatial_channel.fit(steps), ()).items():
            yield f"metric/criticalband/{name}{suffix}", estimate.value
    yield "top1_acc/criticalband/sd0", 100 * accuracy[PLAIN.name]
    for (sd, f), condition in MASKED.items():
        yield f"top1_acc/criticalband/sd{sd}/f{f}", 100 * accuracy[condition.name]


def details(results: Results) -> dict[str, Any]:
    """Return the thresholds behind each channel, and why a fit is not a channel."""
    channels = {}
    for suffix, steps in profiles(100 * hits(results).mean(2)).items():
        problem = spatial_channel.fit(steps).problem
        channels[f"channel{suffix}"] = {"thresholds": steps.tolist(), "problem": problem}
    return channels


BENCHMARK = Benchmark(
    "criticalband",
    passes,
    report,
    details=details,
    by_condition=by_condition,
    headline=("metric/criticalband/*_norm", f"metric/criticalband/*_norm{FINE}"),
)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

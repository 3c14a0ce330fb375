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
from functools import partial

import numpy as np

from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures import spatial_channel
from imagenet_biases.measures.accuracy import correct, top
from imagenet_biases.stimuli.octave_noise import OCTAVES, grey, octave_noise
from imagenet_biases.study import NOISE_SDS
from imagenet_biases.vocabulary import Benchmark, Pass

CRITERIA = {"": lambda accuracy: 50.0, "_norm": spatial_channel.own_criterion}  # suffix: accuracy table -> per cent
FINE = "_fine"  # suffix of what rests on interpolated thresholds
PLAIN = grey()
MASKED = {(sd, f): octave_noise(f, sd) for sd in NOISE_SDS for f in range(OCTAVES)}


def passes(data):
    """Show the validation images in grey and low contrast, without noise and under 7 bands x 4 levels of it."""
    return [Pass(image_set("imagenet", data), (PLAIN, *MASKED.values()))]


def hits(found):
    """Return what was recognised, bool [5, 7, images]: noise levels x bands; row 0 is the same image."""
    shown = [[MASKED.get((sd, f), PLAIN) for f in range(OCTAVES)] for sd in spatial_channel.SDS]
    counted = found["imagenet", PLAIN.name].counts
    return np.array([[correct(found["imagenet", one.name])[counted] for one in row] for row in shown])


def profiles(accuracy):
    """Return {suffix: thresholds [7]} of an accuracy table: both criteria, in whole steps and interpolated."""
    return {
        suffix + kind: measure(accuracy, criterion(accuracy))
        for suffix, criterion in CRITERIA.items()
        for kind, measure in (("", spatial_channel.thresholds), (FINE, spatial_channel.fine_thresholds))
    }


def report(found):
    """Yield the channels' three numbers by criterion and kind of threshold, and the accuracies."""
    right = hits(found)
    resampled = [profiles(accuracy) for accuracy in spatial_channel.resampled(right, found.resamples(200))]
    for suffix, steps in profiles(100 * right.mean(2)).items():
        others = [spatial_channel.fit(one[suffix]) for one in resampled] if suffix.endswith(FINE) else []
        for name, estimate in spatial_channel.estimates(spatial_channel.fit(steps), others).items():
            yield f"metric/criticalband/{name}{suffix}", estimate
    yield "top1_acc/criticalband/sd0", top(found["imagenet", PLAIN.name])
    for (sd, f), condition in MASKED.items():
        yield f"top1_acc/criticalband/sd{sd}/f{f}", top(found["imagenet", condition.name])


def details(found):
    """Return the thresholds behind each channel, and why one is none."""
    steps_of = profiles(100 * hits(found).mean(2))
    return {
        f"channel{suffix}": {"thresholds": steps.tolist(), "problem": spatial_channel.fit(steps).problem}
        for suffix, steps in steps_of.items()
    }


BENCHMARK = Benchmark(
    "criticalband",
    passes,
    report,
    details=details,
    headline=tuple(
        f"metric/criticalband/{name}{kind}" for name in ("bw_norm", "cf_norm", "pns_norm") for kind in ("", FINE)
    ),
)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

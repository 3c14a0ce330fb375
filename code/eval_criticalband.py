"""Critical-band masking: which spatial frequencies a network needs, found by noise of one octave at a time.

Papers: Subramanian et al., Spatial-frequency channels, shape bias, and adversarial robustness, NeurIPS 2023,
        arXiv:2309.13190 (the method); Gavrikov & Keuper, CVPR 2024, arXiv:2404.01509 (on 1,000 classes).
Data:   ILSVRC-2012 validation, as for eval_imagenet.py.
Run:    python code/eval_criticalband.py --model resnet50.tv_in1k --imagenet DIR
Gives:  metric/criticalband/bw (bandwidth, octaves), cf (centre frequency, cycles/image), pns (peak noise sensitivity)
        at a criterion of 50 %, the same with _norm at half of the network's own accuracy without noise, and with _fine
        from interpolated thresholds, with intervals; top1_acc/criticalband/... per condition. No channel: no number,
        and the record's details say why. A second run reads the stored responses and shows no image again.
        The 48 published networks have bw_norm 3.7 to 10.5, cf_norm 32 to 115, pns_norm 0.52 to 1.
"""

import numpy as np

from harness import channel
from harness.evaluate import Benchmark, Pass
from harness.images import image_set
from harness.run import run
from harness.scores import correct, seen, top
from harness.stimuli import OCTAVES, grey, octave_noise

CRITERIA = {"": lambda accuracy: 50.0, "_norm": channel.own_criterion}  # suffix: accuracy table -> per cent
PLAIN = grey()
MASKED = {(sd, f): octave_noise(f, sd) for sd in channel.SDS[1:] for f in range(OCTAVES)}


def passes(args):
    """Show the validation images in grey and low contrast, without noise and under 7 bands x 4 levels of it."""
    return [Pass(image_set("imagenet", args), (PLAIN, *MASKED.values()))]


def hits(responses):
    """Return what was recognised, bool [5, 7, images]: noise levels channel.SDS x bands; row 0 is the same image."""
    shown = [[MASKED.get((sd, f), PLAIN) for f in range(OCTAVES)] for sd in channel.SDS]
    counted = seen(responses["imagenet", PLAIN.name])
    return np.array([[correct(responses["imagenet", one.name])[counted] for one in row] for row in shown])


def channels(responses):
    """Return {suffix: (thresholds, channel)} for each criterion, whole and fine, and the accuracy table."""
    accuracy = 100 * hits(responses).mean(2)
    found = {}
    for suffix, criterion in CRITERIA.items():
        for kind, measure in (("", channel.thresholds), ("_fine", channel.fine_thresholds)):
            steps = measure(accuracy, criterion(accuracy))
            found[suffix + kind] = steps, channel.fit(steps)
    return found, accuracy


def report(responses):
    """Yield the channels' three numbers by criterion and kind of threshold, and the accuracies."""
    found, _ = channels(responses)
    again = channel.resampled(hits(responses))
    for suffix, (_, one) in found.items():
        others = []
        if suffix.endswith("_fine"):
            criterion = CRITERIA[suffix.removesuffix("_fine")]
            others = [channel.fit(channel.fine_thresholds(table, criterion(table))) for table in again]
        for name, estimate in channel.estimates(one, others).items():
            yield f"metric/criticalband/{name}{suffix}", estimate
    yield "top1_acc/criticalband/sd0", top(responses["imagenet", PLAIN.name])
    for (sd, f), condition in MASKED.items():
        yield f"top1_acc/criticalband/sd{sd}/f{f}", top(responses["imagenet", condition.name])

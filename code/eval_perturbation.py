"""Where a network is attacked: the place of a perturbation by distance from the border, and its spatial frequencies.

Papers: Gavrikov & Keuper, 2023, arXiv:2308.06612 (padding and adversarial robustness); Gavrikov, Keuper & Keuper, 2023,
        arXiv:2303.12669 (cumulative radial power); Alsallakh et al., 2021, arXiv:2010.02178 (asymmetric padding).
Data:   ILSVRC-2012 validation, as for eval_imagenet.py: --probe images of it, drawn by class with --seed.
Run:    python code/eval_perturbation.py --model tv_resnet50 --imagenet DIR
        ... --source gradient pgd-l2 pgd-linf    ... --padding zeros circular    ... --mask 8 16
Gives:  by source, metric/border/SOURCE/ring-D (mean size D pixels from the border over that of the centre, 1 if even),
        /anomaly, /asymmetry-x, -y; metric/perturbation-spectrum/SOURCE/F (share of the power up to F cycles/image) and
        /median. Images that the network gets wrong are left out of these. The gradient is also taken, and the accuracy
        measured, with the padding of all convolutions switched (top1_acc/padding/MODE) and with the outer K pixels
        replaced by the mean colour (top1_acc/border-masked/K). Details of the record: whole profiles. There are no
        published figures for ImageNet; white noise has ring-D = 1 and power in proportion to the frequencies.
"""

import math
import sys
import warnings
from functools import partial

from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_set, sampled
from imagenet_biases.measures import perturbation_maps
from imagenet_biases.measures.accuracy import accuracies, correct
from imagenet_biases.measures.perturbation_maps import Radii, Rings
from imagenet_biases.stimuli.attacks import length, linf_size, pgd, pgd_l2
from imagenet_biases.vocabulary import CLEAN, Benchmark, Option, Pass, TopClasses

STEPS, EPS, EPS_L2, MODES = 40, 4 / 255, 0.5, perturbation_maps.MODES
OPTIONS = (
    Option("source", ("gradient",), "of perturbations", choices=("gradient", "pgd-linf", "pgd-l2"), several=True),
    Option("eps", EPS, "of pgd-linf", type=linf_size),
    Option("eps_l2", EPS_L2, "of pgd-l2: the norm of the change of an image", type=length),
    Option("padding", MODES, "of the convolutions at test time", choices=MODES, several=True),
    Option("mask", (8,), "widths of the border to cover, in pixels", type=perturbation_maps.width, several=True),
    Option("probe", 1000, "images", type=int),
)
PLACES = (*(f"ring-{number}" for number in range(8)), "anomaly", "asymmetry-x", "asymmetry-y")
FREQUENCIES = ("1", "2", "4", "7", "14", "28", "56", "112", "median")


def shown(source, eps, eps_l2, mask, **_):
    """Return {name in the metrics: condition} of what every network meets; steps that reach every point of a ball."""
    linf = "pgd-linf" if math.isclose(eps, EPS) else f"pgd-linf-eps-{255 * eps:g}"
    l2 = "pgd-l2" if math.isclose(eps_l2, EPS_L2) else f"pgd-l2-eps-{eps_l2:g}"
    made = {
        "gradient": ("gradient", perturbation_maps.slope()),
        "pgd-linf": (linf, pgd(linf, eps, STEPS, 2.5 * eps / STEPS)),
        "pgd-l2": (l2, pgd_l2(l2, eps_l2, STEPS)),
    }
    return dict(made[one] for one in source) | {f"gradient-masked-{one}": perturbation_maps.slope(one) for one in mask}


def padded(network, padding, **_):
    """Return {name in the metrics: condition} of a network's padding; none where it pads by other means."""
    can = perturbation_maps.padding_convolutions(network)[0]
    return {f"gradient-padding-{mode}": perturbation_maps.slope_padded(mode) for mode in padding if can}


def passes(data, probe, **options):
    """Show a sample of the images, plain and perturbed, and keep answers, places and frequencies."""
    images = sampled(image_set("imagenet", data), probe, data.seed)
    always = tuple(shown(**options).values())

    def conditions(network):
        return (*always, *padded(network, **options).values())

    return [Pass(images), *(Pass(images, conditions, readout) for readout in (TopClasses(), Rings(), Radii()))]


def profiles(found):
    """Return {name: {measure: Estimate}} over the images that the network gets right."""
    right = correct(found["imagenet", CLEAN.name])
    result = {}
    for name, condition in (shown(**found.options) | padded(found.network, **found.options)).items():
        rings, radii = (found["imagenet", condition.name, one].values[right] for one in (Rings, Radii))
        result[name] = perturbation_maps.border(rings) | perturbation_maps.spectrum(radii)
    return result


def report(found):
    """Yield the profiles, and the accuracy under each padding and mask."""
    for name, measures in profiles(found).items():
        yield from ((f"metric/border/{name}/{place}", measures[place]) for place in PLACES)
        yield from ((f"metric/perturbation-spectrum/{name}/{place}", measures[place]) for place in FREQUENCIES)
    for width in found.options["mask"]:
        yield from accuracies(found["imagenet", f"gradient masked {width}", TopClasses], f"border-masked/{width}")
    for name, condition in padded(found.network, **found.options).items():
        yield from accuracies(found["imagenet", condition.name, TopClasses], f"padding/{name.rpartition('-')[2]}")
    if said := perturbation_maps.unswitched(found.network):
        warnings.warn(said, stacklevel=2)


def details(found):
    """Return how many convolutions were switched, on how many images the profiles rest, and the whole profiles."""
    clean = found["imagenet", CLEAN.name]
    return {
        "switched_convolutions": len(perturbation_maps.padding_convolutions(found.network)[0]),
        "images": {"shown": int(clean.counts.sum()), "right": int(correct(clean).sum())},
        "profiles": {n: {key: one.value for key, one in parts.items()} for n, parts in profiles(found).items()},
    }


HEADLINE = ("*anomaly", "*asymmetry*", "*median", "top1*")
BENCHMARK = Benchmark("perturbation", passes, report, options=OPTIONS, details=details, headline=HEADLINE)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

"""Where a network is attacked: the place of a perturbation by distance from the border, and its spatial frequencies.

Papers: Gavrikov & Keuper, 2023, arXiv:2308.06612 (padding and adversarial robustness); Gavrikov, Keuper & Keuper, 2023,
        arXiv:2303.12669 (cumulative radial power); Alsallakh et al., 2021, arXiv:2010.02178 (asymmetric padding).
Data:   ILSVRC-2012 validation, as for eval_imagenet.py: the first --probe images of its order.
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
from typing import Any

from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures import perturbation_maps as maps
from imagenet_biases.measures.accuracy import accuracies, correct
from imagenet_biases.stimuli.attacks import length, linf_size, pgd, pgd_l2
from imagenet_biases.vocabulary import CLEAN, Benchmark, Condition, Data, Metrics, Option, Pass, Results, TopClasses

STEPS, EPS, EPS_L2, MODES = 40, 4 / 255, 0.5, maps.MODES
OPTIONS = (
    Option("source", ("gradient",), "of perturbations", choices=("gradient", "pgd-linf", "pgd-l2"), several=True),
    Option("eps", EPS, "of pgd-linf", type=linf_size),
    Option("eps_l2", EPS_L2, "of pgd-l2: the norm of the change of an image", type=length),
    Option("padding", MODES, "of the convolutions at test time", choices=MODES, several=True),
    Option("mask", (8,), "widths of the border to cover, in pixels", type=maps.width, several=True),
    Option("probe", 1000, "images", type=int),
)
PLACES = (*(f"ring-{number}" for number in range(8)), "anomaly", "asymmetry-x", "asymmetry-y")
FREQUENCIES = ("1", "2", "4", "7", "14", "28", "56", "112", "median")


def shown(source: tuple[str, ...], eps: float, eps_l2: float, mask: tuple[int, ...], **_: Any) -> dict[str, Condition]:
    """Return {name in the metrics: condition} for every network; the attacks' steps reach every point of a ball."""
    linf = "pgd-linf" if math.isclose(eps, EPS) else f"pgd-linf-eps-{255 * eps:g}"
    l2 = "pgd-l2" if math.isclose(eps_l2, EPS_L2) else f"pgd-l2-eps-{eps_l2:g}"
    sources = {
        "gradient": ("gradient", maps.loss_gradient()),
        "pgd-linf": (linf, pgd(linf, eps, STEPS, 2.5 * eps / STEPS)),
        "pgd-l2": (l2, pgd_l2(l2, eps_l2, STEPS)),
    }
    masked = {f"gradient-masked-{width}": maps.loss_gradient(width) for width in mask}
    return dict(sources[name] for name in source) | masked


def padded(network: Any, padding: tuple[str, ...], **_: Any) -> dict[str, Condition]:
    """Return {name in the metrics: condition} for a network's padding; {} if it pads by other means."""
    modes = padding if maps.padding_convolutions(network)[0] else []
    return {f"gradient-padding-{mode}": maps.loss_gradient_padded(mode) for mode in modes}


def passes(data: Data, probe: int, **options: Any) -> list[Pass]:
    """Show the first images of the order, plain and perturbed, and keep answers, places and frequencies."""
    images = image_set("imagenet", data).probe(probe)
    always, readouts = tuple(shown(**options).values()), (TopClasses(), maps.Rings(), maps.Radii())

    def conditions(network: Any) -> tuple[Condition, ...]:
        return (*always, *padded(network, **options).values())

    return [Pass(images), *(Pass(images, conditions, readout) for readout in readouts)]


def profiles(results: Results) -> dict[str, dict[str, Any]]:
    """Return {name: {measure: Estimate}} over the images that the network gets right."""
    right, by_name = correct(results["imagenet", CLEAN.name]), {}
    for name, condition in (shown(**results.options) | padded(results.network, **results.options)).items():
        rings, radii = (results["imagenet", condition.name, kind] for kind in (maps.Rings, maps.Radii))
        by_name[name] = maps.border(rings.values[right]) | maps.spectrum(radii.values[right])
    return by_name


def report(results: Results) -> Metrics:
    """Yield the profiles, and the accuracy under each padding and mask."""
    for name, measures in profiles(results).items():
        yield from ((f"metric/border/{name}/{place}", measures[place]) for place in PLACES)
        yield from ((f"metric/perturbation-spectrum/{name}/{place}", measures[place]) for place in FREQUENCIES)
    for width in results.options["mask"]:
        yield from accuracies(results["imagenet", f"gradient masked {width}", TopClasses], f"border-masked/{width}")
    for name, condition in padded(results.network, **results.options).items():
        yield from accuracies(results["imagenet", condition.name, TopClasses], f"padding/{name.rpartition('-')[2]}")
    if note := maps.unswitched(results.network):
        warnings.warn(note, stacklevel=2)


def details(results: Results) -> dict[str, Any]:
    """Return how many convolutions were switched, how many images the profiles rest on, and the whole profiles."""
    clean, values = results["imagenet", CLEAN.name], {}
    for name, measures in profiles(results).items():
        values[name] = {key: estimate.value for key, estimate in measures.items()}
    images = {"shown": int(clean.counts.sum()), "right": int(correct(clean).sum())}
    switched = len(maps.padding_convolutions(results.network)[0])
    return {"switched_convolutions": switched, "images": images, "profiles": values}


HEADLINE = ("*anomaly", "*asymmetry*", "*median", "top1*")
BENCHMARK = Benchmark("perturbation", passes, report, options=OPTIONS, details=details, headline=HEADLINE)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

"""Layer criticality: how much the answers change when one layer loses what it has learned, all others kept.

Papers: Gavrikov, Agnihotri, Keuper & Keuper, 2024, arXiv:2410.14470; Zhang, Bengio & Singer, JMLR 23(67), 2022
        (re-randomisation). All chosen layers at once (--joint): Gavrikov & Keuper, 2023, arXiv:2301.11360.
Data:   ILSVRC-2012 validation, as for eval_imagenet.py: the first --probe images of its order.
Run:    python code/eval_criticality.py --model tv_resnet50 --imagenet DIR
        ... --reset permute    ... --layers bn    ... --layers spatial --reset moments --joint --recalibrate 2000
Gives:  metric/criticality/mean, 1 - mean cosine of the softmax vectors with and without the reset, mean over draws and
        layers, and by layer in the record; /l1 and /l2, their distances; /recovered, the accuracy divided by the intact
        one. Resets: fresh (as in an untrained network), pytorch (PyTorch's default for the layer's type, also where
        nothing builds an untrained network), permute, moments (Gaussian, same mean and SD), zero. Only the default goes
        by the plain name (metric/criticality-permute/mean). Batch-norm statistics are kept, unless --recalibrate
        estimates them anew. Intervals: over images and draws together. metric/weight_reset is another measurement.
        Published means: 0.401 to 0.933; for torchvision's ResNet-50 (tv_resnet50) 0.700.
"""

import re
import sys
import warnings
from functools import partial
from typing import Any

from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures import layer_criticality
from imagenet_biases.measures.accuracy import top
from imagenet_biases.networks.load import Network
from imagenet_biases.vocabulary import CLEAN, Benchmark, Condition, Data, Estimate, Metrics, Option, Pass, Results

LAYERS = ("conv", "fc")
OPTIONS = (
    Option("reset", "fresh", "what a layer is reset to", choices=layer_criticality.RESETS),
    Option("draws", 3, "of the reset's random numbers", type=int),
    Option("layers", LAYERS, "conv, fc, bn, spatial, all, or patterns of layers' names", several=True),
    Option("probe", 10_000, "images", type=int),
    Option("recalibrate", 0, "images to estimate batch-norm statistics on after the reset", type=int),
    Option("joint", False, "reset all layers at once", flag=True),
    Option("untrained", None, "file.py:function that builds the network with random weights"),
)


def passes(data: Data, probe: int, recalibrate: int, **options: Any) -> list[Pass]:
    """Show the first images of the order to the network as it is and after every draw of every reset."""
    images = image_set("imagenet", data).probe(probe)
    recalibration = layer_criticality.Recalibration(images, recalibrate) if recalibrate else None
    changed = partial(conditions, seed=data.seed, recalibration=recalibration, **options)
    return [Pass(images), Pass(images, changed), Pass(images, changed, layer_criticality.SoftmaxDistances())]


def conditions(network: Network, seed: int, recalibration: Any, **options: Any) -> list[Condition]:
    """Return the resets that a network meets: layer by layer, or all at once."""
    kind, source = layer_criticality.resolved_reset(network, options["reset"], options["untrained"])
    names, draws = layer_criticality.layers_of(network, options["layers"]), range(options["draws"])
    groups = {"joint": names} if options["joint"] else {name: [name] for name in names}
    resets = []
    for label, group in groups.items():
        resets += [layer_criticality.reset(label, group, kind, draw, seed, source, recalibration) for draw in draws]
    return resets


def prefix(results: Results) -> str:
    """Return how metric names begin: the plain name is that of the published setting."""
    options, kind = results.options, layer_criticality.settings_of(results)["way"]
    words = [kind] if kind != "fresh" else []
    words += [re.sub(r"\W+", "_", "_".join(options["layers"]))] if tuple(options["layers"]) != LAYERS else []
    return "-".join(["metric/criticality", *words, *(["recalibrated"] if options["recalibrate"] else [])])


def report(results: Results) -> Metrics:
    """Yield the means over layers, or the values of the joint reset."""
    options, kind = results.options, layer_criticality.settings_of(results).get("way")
    if kind is None:
        warnings.warn(f"it has no such layers ({', '.join(options['layers'])}): nothing was measured", stacklevel=2)
        return
    if kind != options["reset"]:
        text = f"nothing says how to build it untrained (--untrained file.py:function): the reset is {kind}"
        warnings.warn(text, stacklevel=2)
    for measure, (_, mean) in layer_criticality.outcomes(results).items():
        yield f"{prefix(results)}/{'joint' if options['joint'] else 'mean'}{measure}", mean
    if options["joint"] and (kind, tuple(options["layers"])) == ("moments", ("spatial",)):
        for k, accuracy in layer_criticality.accuracy(results).items():
            yield f"top{k}_acc/random-spatial{'/bn-recalibrated' if options['recalibrate'] else ''}", accuracy


def by_layer(results: Results) -> dict[str, dict[str, Estimate]]:
    """Return the measures by layer."""
    if not layer_criticality.settings_of(results):
        return {}
    return {
        f"{prefix(results)}{measure}": layers for measure, (layers, _) in layer_criticality.outcomes(results).items()
    }


def details(results: Results) -> dict[str, Any]:
    """Return the reset, what it puts into each layer, and the intact network's accuracy on the same images."""
    if not layer_criticality.settings_of(results):
        return {}
    intact, layers = top(results["imagenet", CLEAN.name]).value, layer_criticality.distributions(results)
    return {"reset": layer_criticality.settings_of(results), "layers": layers, "intact_top1": intact}


HEADLINE = ("*mean", "*joint", "*recovered", "*random*")
BENCHMARK = Benchmark(
    "criticality", passes, report, options=OPTIONS, layers=by_layer, details=details, headline=HEADLINE
)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

"""Quality of the convolution filters: how many are dead, how varied and how different they are. No image is needed.

Papers: Gavrikov & Keuper, CNN Filter DB, CVPR 2022, arXiv:2203.15331 (entropy, sparsity, orthogonality, shift);
        The Power of Linear Combinations, arXiv:2301.11360 (filters that were never trained).
Data:   none, the weights alone.
Run:    python code/eval_filters.py --model tv_resnet50
        ... --kernel all    ... --shift-to NETWORK[,NETWORK]
Gives:  metric/quality/ve_..., sparsity_..., orthogonality_... as published, over the layers with 3 x 3 filters (means
        weighted by their filters); relative to random filters (..._rel_wmean, 1 for those); random_share, the share of
        layers that cannot be told from random ones; gauss-ks, the largest distance of a layer from i.i.d. weights;
        metric/filter-shift/NETWORK in nats, 0 for equal filters. By layer in the record.
        torchvision's ResNet-50 (tv_resnet50) has a variance entropy of 0.576101, a sparsity of 0.000749 and an
        orthogonality of 0.959018; an untrained one 0.954, 0, 0.986 and a random_share of 1.
"""

import math
import sys
import warnings
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from imagenet_biases.base.errors import listed_briefly
from imagenet_biases.cli import run
from imagenet_biases.measures import filter_quality
from imagenet_biases.networks.load import load_model
from imagenet_biases.networks.registry import network_name
from imagenet_biases.vocabulary import Benchmark, Data, Estimate, Metrics, Option, Pass, Results

OPTIONS = (
    Option("kernel", "3", "all: filters of every size above 1 x 1", choices=("3", "all")),
    Option("sparsity_threshold", filter_quality.SPARSITY_THRESHOLD, "share of a layer's largest weight", type=float),
    Option("shift_to", None, "networks to compare the 3 x 3 filters with", several=True),
)
AGGREGATES = {
    "ve": ("wmean", "max", "min"),
    "sp": ("wmean", "max"),
    "or": ("wmean", "max", "min"),
    **dict.fromkeys(("ve_rel", "or_rel"), ("wmean",)),
}
LONG = {"sp": "sparsity", "or": "orthogonality"}


def passes(data: Data, shift_to: Sequence[str] | None, **_: Any) -> list[Pass]:
    """Show nothing; check the networks to compare with before anything is computed."""
    for name in shift_to or []:
        network_name(name)
    return []


def prefix(options: dict[str, Any]) -> str:
    """Return how the names of the measures begin: only the published settings get the published names."""
    published = math.isclose(options["sparsity_threshold"], filter_quality.SPARSITY_THRESHOLD)
    suffix = "" if published else f"-threshold-{options['sparsity_threshold']:g}"
    return f"metric/quality{'-all' if options['kernel'] == 'all' else ''}{suffix}"


def layers_of(results: Results) -> tuple[dict[str, Any], dict[str, filter_quality.Measures]]:
    """Return {layer: weight} and {layer: measures} of a network."""
    weights = filter_quality.convolutions(results.network, results.options["kernel"])
    threshold = results.options["sparsity_threshold"]
    return weights, {name: filter_quality.quality(weight, threshold) for name, weight in weights.items()}


@cache
def reference(name: str) -> Any:
    """Return the 3 x 3 filters [n, 9] of the network that `--shift-to` names."""
    return filter_quality.pooled(load_model(name))


def report(results: Results) -> Metrics:
    """Yield the aggregates over layers and the shifts; warn of what could not be measured."""
    weights, layers = layers_of(results)
    if not layers:
        warnings.warn("it has no Conv2d layer with such filters: nothing was measured", stacklevel=2)
    if dead := {name: measures["dead_channels"] for name, measures in layers.items() if measures["dead_channels"]}:
        number = sum(dead.values())
        warnings.warn(
            f"{number} dead output channels are left out of the orthogonality ({listed_briefly(dead)})", stacklevel=2
        )
    if tiny := [name for name, measures in layers.items() if None in (measures["ve"], measures["or"])]:
        warnings.warn(f"{len(tiny)} layers have too few filters to be measured ({listed_briefly(tiny)})", stacklevel=2)
    start = prefix(results.options)
    for key, kinds in AGGREGATES.items():
        for kind in kinds:
            yield f"{start}/{LONG.get(key, key)}_{kind}", filter_quality.over_layers(layers, key, kind)
    random = filter_quality.random_layers(layers, weights)
    yield f"{start}/random_share", sum(random.values()) / len(random) if random else None
    yield f"{start}/gauss-ks", filter_quality.over_layers(layers, "ks", "max")
    for name in results.options["shift_to"] or []:
        shift = filter_quality.shift(filter_quality.pooled(results.network), reference(name))
        yield f"metric/filter-shift/{network_name(name)}", shift


def by_layer(results: Results) -> dict[str, dict[str, Estimate]]:
    """Return all measures by layer."""
    by_measure: dict[str, dict[str, Estimate]] = {}
    for layer, measures in layers_of(results)[1].items():
        for key, value in measures.items():
            by_measure.setdefault(f"{prefix(results.options)}/layer/{key}", {})[layer] = Estimate(value)
    return by_measure


HEADLINE = ("*mean", "*share", "*shift/*")
BENCHMARK = Benchmark("filters", passes, report, sets=None, options=OPTIONS, layers=by_layer, headline=HEADLINE)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

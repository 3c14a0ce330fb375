"""Effective receptive field: how much of the image the centre of a network's last feature map looks at.

Paper: Luo, Li, Urtasun & Zemel, Understanding the Effective Receptive Field in Deep Convolutional Neural Networks,
       NeurIPS 2016, arXiv:1701.04128.
Data:  ILSVRC-2012 validation, as for eval_imagenet.py: the first --probe images of its order.
Run:   python code/eval_erf.py --model tv_resnet50 --imagenet DIR
Gives: metric/erf-luo/area (share of the pixels whose mean |gradient| is above 4.55 % of the largest), /size (the root
       of their number, in pixels) and /sd (of the mean map as a distribution). The map is the gradient at the centre of
       feature maps, channels-last maps or tokens, whatever the class; the exact definition stands in
       measures/receptive_field.py. The study's metric/erf/area and max_amplitude have no published definition: these
       are not they. A k x k convolution of ones has a size of k and an sd of the root of (k^2 - 1) / 12.
"""

import sys
import warnings
from functools import partial

from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures.receptive_field import GradientMap, centre_gradient, field
from imagenet_biases.vocabulary import Benchmark, Data, Metrics, Option, Pass, Results

CENTRE = centre_gradient()
NAMES = ("area", "size", "sd")


def passes(data: Data, probe: int) -> list[Pass]:
    """Show the first images of the order and keep each one's gradient map."""
    return [Pass(image_set("imagenet", data).probe(probe), (CENTRE,), GradientMap())]


def report(results: Results) -> Metrics:
    """Yield the field's area, size and standard deviation."""
    maps = results["imagenet", CENTRE.name]
    values = field(maps.values[maps.counts], results.resamples(200))
    if not values:
        warnings.warn(
            "the network has no feature map, or its centre does not depend on the pixels: nothing was measured",
            stacklevel=2,
        )
    for name in NAMES:
        yield f"metric/erf-luo/{name}", values.get(name)


BENCHMARK = Benchmark("erf", passes, report, options=(Option("probe", 100, "images", type=int),))

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

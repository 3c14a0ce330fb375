"""ImageNet validation under the reassessed labels (ReaL).

Paper: Beyer et al., Are we done with ImageNet?, 2020, arXiv:2006.07159.
Data:  ImageNet validation under its released file names (ILSVRC2012_val_00000001.JPEG); the labels come with timm,
       a real.json in the ImageNet folder wins over them.
Run:   python code/eval_imagenet_real.py --model tv_resnet50 --imagenet DIR
Gives: top1_acc/imagenet-real over the 46,837 images with a label. The answers of eval_imagenet are used again: after
       it, this takes no forward pass. The published study's column is the accuracy on its last batch only.
"""

import sys
from functools import partial
from typing import Any

from imagenet_biases.cli import run
from imagenet_biases.images.labels import real_labels
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures.accuracy import among
from imagenet_biases.vocabulary import Benchmark, Data, Metrics, Pass, Results


def passes(data: Data) -> list[Pass]:
    """Show the validation images as they are."""
    images = image_set("imagenet", data)
    real_labels(images)  # names and labels are checked before anything is computed
    return [Pass(images)]


def report(results: Results) -> Metrics:
    """Yield the share of first answers that are in the image's label set."""
    clean = results["imagenet", "clean"]
    yield "top1_acc/imagenet-real", among(clean, real_labels(clean.images))


def details(results: Results) -> dict[str, Any]:
    """Return how many images have a label at all."""
    return {"labelled_images": sum(map(bool, real_labels(results["imagenet", "clean"].images)))}


BENCHMARK = Benchmark("imagenet_real", passes, report, project="imagenet_ReaL", details=details)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

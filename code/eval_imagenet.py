"""ImageNet validation: clean accuracy.

Paper: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015, arXiv:1409.0575.
Data:  ILSVRC-2012 validation, 50,000 images: DIR/val/WNID/*.JPEG, DIR/WNID/*.JPEG, or flat with a label file.
Run:   python code/eval_imagenet.py --model tv_resnet50 --imagenet DIR
Gives: top1_acc/imagenet and top5_acc/imagenet; torchvision's ResNet-50 (tv_resnet50) has a top-1 of 76.15.
"""

import sys
from functools import partial

from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures.accuracy import accuracies
from imagenet_biases.vocabulary import Benchmark, Data, Metrics, Pass, Results


def passes(data: Data) -> list[Pass]:
    """Show the validation images as they are."""
    return [Pass(image_set("imagenet", data))]


def report(results: Results) -> Metrics:
    """Yield top-1 and top-5."""
    yield from accuracies(results["imagenet", "clean"], "imagenet")


BENCHMARK = Benchmark("imagenet", passes, report)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

"""ImageNet validation: clean accuracy.

Paper: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015, arXiv:1409.0575.
Data:  ILSVRC-2012 validation, 50,000 images: DIR/val/WNID/*.JPEG, DIR/WNID/*.JPEG, or flat with a label file.
Run:   python code/eval_imagenet.py --model tv_resnet50 --imagenet DIR
Gives: top1_acc/imagenet and top5_acc/imagenet; torchvision's ResNet-50 (tv_resnet50) has a top-1 of 76.15.
"""

from imagenet_biases.evaluate import Benchmark, Pass
from imagenet_biases.images.sets import image_set
from imagenet_biases.run import run
from imagenet_biases.scores import accuracies


def passes(args):
    """Show the validation images as they are."""
    return [Pass(image_set("imagenet", args))]


def report(responses):
    """Yield top-1 and top-5."""
    yield from accuracies(responses["imagenet", "clean"], "imagenet")


BENCHMARK = Benchmark("imagenet", passes, report)

if __name__ == "__main__":
    run(BENCHMARK, __doc__)

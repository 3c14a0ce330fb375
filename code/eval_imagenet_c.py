"""ImageNet-C: common corruptions.

Paper: Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
       2019, arXiv:1903.12261.
Data:  CORRUPTION/SEVERITY/WNID/*.JPEG, 224 x 224 as released: 15 corruptions and 4 extra, 5 severities, 50,000 images
       each.
Run:   python code/eval_imagenet_c.py --model tv_resnet50 --imagenet-c DIR
Gives: top1_acc/CORRUPTION_SEVERITY and top5; top1_acc/imagenet-c, the mean over all 19 x 5 as in the study;
       top1_acc/imagenet-c-15, the mean over the usual 15; mCE/imagenet-c, their error relative to AlexNet's (76.7 for
       the paper's ResNet-50).
"""

from imagenet_biases.evaluate import Benchmark, Pass
from imagenet_biases.images.sets import image_sets
from imagenet_biases.run import run
from imagenet_biases.scores import ALEXNET_ERROR, accuracies, mean_accuracy, mean_corruption_error

USUAL = tuple(ALEXNET_ERROR)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = (1, 2, 3, 4, 5)


def passes(args):
    """Show every corruption at every severity."""
    variants = [f"{corruption}/{severity}" for corruption in USUAL + EXTRA for severity in SEVERITIES]
    return [Pass(images) for images in image_sets("imagenet-c", variants, args)]


def report(responses):
    """Yield each accuracy, and the means where all that they need was shown."""
    by_corruption = {}
    for (name, _), one in responses.items():
        _, corruption, severity = name.split("/")
        by_corruption.setdefault(corruption, []).append(one)
        yield from accuracies(one, f"{corruption}_{severity}")
    whole = {corruption for corruption, found in by_corruption.items() if len(found) == len(SEVERITIES)}
    if whole.issuperset(USUAL):
        usual = {corruption: by_corruption[corruption] for corruption in USUAL}
        yield "top1_acc/imagenet-c-15", mean_accuracy(one for found in usual.values() for one in found)
        yield "mCE/imagenet-c", mean_corruption_error(usual)
    if whole.issuperset(USUAL + EXTRA):
        yield "top1_acc/imagenet-c", mean_accuracy(responses.values())


BENCHMARK = Benchmark(
    "imagenet_c", passes, report, headline=("top1_acc/imagenet-c", "top1_acc/imagenet-c-15", "mCE/imagenet-c")
)

if __name__ == "__main__":
    run(BENCHMARK, __doc__)

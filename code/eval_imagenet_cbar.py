"""ImageNet-C-bar: corruptions that are perceptually unlike those of ImageNet-C.

Paper: Mintun et al., On Interaction Between Augmentations and Corruptions in Natural Corruption Robustness, NeurIPS
       2021, arXiv:2102.11273.
Data:  CORRUPTION/SEVERITY/WNID/*.JPEG, 224 x 224 as made by the paper's code: 10 corruptions, 5 severities, 50,000
       images each.
Run:   python code/eval_imagenet_cbar.py --model tv_resnet50 --imagenet-cbar DIR
Gives: top1_acc/CORRUPTION_SEVERITY and top5; top1_acc/imagenet-cbar, their mean (39.7 for tv_resnet50).
"""

import sys
from collections.abc import Sequence
from functools import partial

from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_sets
from imagenet_biases.measures.accuracy import accuracies, mean_accuracy
from imagenet_biases.study import CORRUPTIONS_BAR, SEVERITIES
from imagenet_biases.vocabulary import Benchmark, Data, Metrics, Option, Pass, Results

OPTIONS = (
    Option("corruptions", CORRUPTIONS_BAR, "which of the 10", choices=CORRUPTIONS_BAR, several=True),
    Option("severities", SEVERITIES, "which of the 5", type=int, choices=SEVERITIES, several=True),
)


def passes(data: Data, corruptions: Sequence[str], severities: Sequence[int]) -> list[Pass]:
    """Show every chosen corruption at every chosen severity, if it is there."""
    variants = [f"{corruption}/{severity}" for corruption in corruptions for severity in severities]
    return [Pass(images) for images in image_sets("imagenet-cbar", variants, data)]


def report(results: Results) -> Metrics:
    """Yield each accuracy, and the mean if all were shown."""
    for (name, _), responses in results.items():
        yield from accuracies(responses, "_".join(name.split("/")[1:]))
    if len(results) == len(CORRUPTIONS_BAR) * len(SEVERITIES):
        yield "top1_acc/imagenet-cbar", mean_accuracy(results.values())


BENCHMARK = Benchmark(
    "imagenet_cbar", passes, report, sets=("imagenet-cbar",), options=OPTIONS, headline=("top1_acc/imagenet-cbar",)
)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

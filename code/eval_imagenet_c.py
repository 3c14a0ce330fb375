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

import itertools
import sys
from collections.abc import Sequence
from functools import partial

from imagenet_biases.cli import run
from imagenet_biases.images.sets import image_sets
from imagenet_biases.measures.accuracy import accuracies, mean_accuracy, mean_corruption_error
from imagenet_biases.study import CORRUPTIONS, SEVERITIES, USUAL_CORRUPTIONS
from imagenet_biases.vocabulary import Benchmark, Data, Metrics, Option, Pass, Responses, Results

OPTIONS = (
    Option("corruptions", CORRUPTIONS, "which of the 19", choices=CORRUPTIONS, several=True),
    Option("severities", SEVERITIES, "which of the 5", type=int, choices=SEVERITIES, several=True),
)


def passes(data: Data, corruptions: Sequence[str], severities: Sequence[int]) -> list[Pass]:
    """Show every chosen corruption at every chosen severity, if it is there."""
    variants = [f"{corruption}/{severity}" for corruption in corruptions for severity in severities]
    return [Pass(images) for images in image_sets("imagenet-c", variants, data)]


def report(results: Results) -> Metrics:
    """Yield each accuracy, and the means for which everything was shown."""
    by_corruption: dict[str, list[Responses]] = {}
    for (name, _), responses in results.items():
        _, corruption, severity = name.split("/")
        by_corruption.setdefault(corruption, []).append(responses)
        yield from accuracies(responses, f"{corruption}_{severity}")
    whole = {corruption for corruption, severities in by_corruption.items() if len(severities) == len(SEVERITIES)}
    if whole.issuperset(USUAL_CORRUPTIONS):
        usual = {corruption: by_corruption[corruption] for corruption in USUAL_CORRUPTIONS}
        yield "top1_acc/imagenet-c-15", mean_accuracy(itertools.chain(*usual.values()))
        yield "mCE/imagenet-c", mean_corruption_error(usual)
    if whole.issuperset(CORRUPTIONS):
        yield "top1_acc/imagenet-c", mean_accuracy(results.values())


BENCHMARK = Benchmark(
    "imagenet_c",
    passes,
    report,
    sets=("imagenet-c",),
    options=OPTIONS,
    headline=("top1_acc/imagenet-c", "top1_acc/imagenet-c-15", "mCE/imagenet-c"),
)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

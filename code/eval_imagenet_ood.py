"""Natural distribution shifts: ImageNet-v2, -A, -R and -Sketch beside the validation set.

Papers: Recht et al. 2019, arXiv:1902.10811 (v2); Hendrycks et al. 2021, arXiv:1907.07174 (A) and arXiv:2006.16241 (R);
        Wang et al. 2019, arXiv:1905.13549 (Sketch).
Data:   one folder each, as released; v2 is matched-frequency, whose folders are class NUMBERS (read as numbers).
Run:    python code/eval_imagenet_ood.py --model tv_resnet50 --data ROOT    (or --imagenet-a DIR ...: those given)
Gives:  top1_acc/NAME and top5_acc/NAME; -A and -R rank the logits of their 200 classes only. torchvision's ResNet-50
        has about 63 on v2, 0 on A, 36 on R and 24 on Sketch.
"""

import sys
from functools import partial

from imagenet_biases.cli import run
from imagenet_biases.images.sets import given_sets
from imagenet_biases.measures.accuracy import accuracies
from imagenet_biases.vocabulary import Benchmark, Data, Metrics, Pass, Results, TopClasses

SETS = ("imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")


def passes(data: Data) -> list[Pass]:
    """Show each set that is given as it is, its logits restricted to its classes."""
    return [Pass(images, readout=TopClasses(classes=images.classes)) for images in given_sets(SETS, data)]


def report(results: Results) -> Metrics:
    """Yield top-1 and top-5 of each set."""
    for (name, _), responses in results.items():
        yield from accuracies(responses, name)


BENCHMARK = Benchmark("imagenet_ood", passes, report, sets=SETS, headline=tuple(f"top1_acc/{name}" for name in SETS))

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

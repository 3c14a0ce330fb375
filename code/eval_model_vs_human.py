"""Shape bias, accuracy out of distribution and comparison with people, on 17 sets of manipulated images.

Papers: Geirhos et al. 2019, arXiv:1811.12231 (shape bias); 2020, arXiv:2006.16736 (error consistency); 2021,
        arXiv:2106.07411 (the 17 sets and people's answers to them).
Data:   the release v0.1 of bethgelab/model-vs-human: DIR/NAME/... for the images, DIR/raw-data/NAME/*.csv for the
        people's trials. --download fetches what is missing under DIR.
Run:    python code/eval_model_vs_human.py --model tv_resnet50 --model-vs-human DIR --download
        python code/eval_model_vs_human.py --trials FILE ... --model-vs-human DIR     people, other toolboxes' networks
Gives:  top1_acc/NAME (the category, of 16, with the highest mean probability); shape-bias: shape / (shape + texture
        decisions) where they disagree; top1_acc/ood_mean and metric/human/... without the conditions that are not out
        of distribution or on which people are below 20 % (humans/stimulus_sets.py has the table). metric/human/ is
        the squared difference of accuracies, the observed and the error consistency. A network's answers also go as
        trial files into results/NETWORK/trials.zip. torchvision's ResNet-50 has a shape bias of about 0.21 and an
        ood_mean of about 55.9; people have a shape bias of 0.96, an error consistency of about 0.45 with each other.
"""

import sys
from collections.abc import Sequence
from functools import partial

from imagenet_biases.base.errors import UserError
from imagenet_biases.cli import run
from imagenet_biases.humans import people
from imagenet_biases.humans.stimulus_sets import image_sets
from imagenet_biases.humans.trials import MEASURES, accuracies, combined, decisions, mean_accuracy, shape_bias
from imagenet_biases.vocabulary import Benchmark, Data, Metrics, Pass, Results

HEADLINE = ("top1_acc/cue-conflict", "top1_acc/ood_mean", "shape-bias")
HUMAN = tuple(f"metric/human/{measure}" for measure in MEASURES)


def passes(data: Data, download: bool, trials: Sequence[str] | None) -> list[Pass]:
    """Show each image of each set that is there once, unchanged."""
    if trials:
        raise UserError("--trials scores files without a network: give it to eval_model_vs_human.py alone")
    return [Pass(images, readout=people.READOUT) for images in image_sets(data, download)]


def report(results: Results) -> Metrics:
    """Yield what the sets that are there allow."""
    trials = people.trials(results)
    for name, accuracy in accuracies(trials).items():
        yield f"top1_acc/{name}", accuracy
    if (mean := mean_accuracy(trials)).value is not None:
        yield "top1_acc/ood_mean", mean
    if (bias := shape_bias(decisions(trials))).value is not None:
        yield "shape-bias", bias
    if compared := people.comparisons(results, trials):
        yield from zip(HUMAN, combined(compared.values()).values(), strict=True)


BENCHMARK = Benchmark(
    "model_vs_human",
    passes,
    report,
    details=people.details,
    sets=("model-vs-human",),
    options=people.OPTIONS,
    export=people.export,
    without_network=people.from_files,
    headline=HEADLINE + HUMAN,
)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

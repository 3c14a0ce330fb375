"""Shape bias, accuracy out of distribution and comparison with people on the 17 stimulus sets of Geirhos et al.

Geirhos et al., "Partial success in closing the gap between human and machine vision", NeurIPS 2021 (arXiv:2106.07411);
shape bias: "ImageNet-trained CNNs are biased towards texture", ICLR 2019 (arXiv:1811.12231).

Needs: the release bethgelab/model-vs-human v0.1 under --model-vs-human DIR (DIR/NAME/... and the people's trials
DIR/raw-data/NAME/*.csv); --download fetches what is missing. A response is the category, of 16, with the highest mean
softmax probability over its ImageNet classes. `shape-bias` is shape / (shape + texture decisions) on cue-conflict
images; `top1_acc/ood_mean` and `metric/human/...` leave out conditions that are not out of distribution or on which
people are below 20 % (harness/stimulus_sets.py has the table). `--trials FILE ...` scores trial files of people or of
other toolboxes' networks instead; every run of a network writes such files to results/NETWORK/trials/.

  python code/eval_model_vs_human.py --model resnet50 --model-vs-human DIR --download
  python code/eval_model_vs_human.py --trials DIR/raw-data/cue-conflict/*subject-01*.csv --model-vs-human DIR

Expect a shape bias of 0.21-0.22 and ood_mean 55.9 for torchvision's ResNet-50 (tv_resnet50), 0.96 for people.
"""

from harness import people
from harness.errors import UserError
from harness.evaluate import Benchmark, Categories, Pass
from harness.run import run
from harness.stimulus_sets import CATEGORIES, image_sets

READOUT = Categories(tuple(CATEGORIES.items()))
HEADLINE = ("top1_acc/cue-conflict", "top1_acc/ood_mean", "shape-bias")
HUMAN = tuple(f"metric/human/{measure}" for measure in people.MEASURES)


def passes(args):
    """Show every image of every set once, as it is."""
    if args.trials:
        raise UserError("--trials scores files without a network: give it to eval_model_vs_human.py alone")
    return [Pass(images, readout=READOUT) for images in image_sets(args)]


def report(responses):
    """Yield what can be told from the sets that are there."""
    trials = people.trials(responses)
    for name, accuracy in people.accuracies(trials).items():
        yield f"top1_acc/{name}", accuracy
    if (mean := people.mean_accuracy(trials)).value is not None:
        yield "top1_acc/ood_mean", mean
    if (bias := people.shape_bias(people.decisions(trials))).value is not None:
        yield "shape-bias", bias
    if compared := people.comparisons(responses):
        yield from zip(HUMAN, people.combined(compared.values()).values(), strict=True)


BENCHMARK = Benchmark(
    "model_vs_human",
    passes,
    report,
    details=people.details,
    options=people.options,
    export=people.export,
    without_network=people.from_files,
    headline=HEADLINE + HUMAN,
)

if __name__ == "__main__":
    run(BENCHMARK, __doc__)

"""ImageNet-C-bar: corruptions that are perceptually unlike those of ImageNet-C.

Paper: Mintun et al., On Interaction Between Augmentations and Corruptions in Natural Corruption Robustness, NeurIPS
       2021, arXiv:2102.11273.
Data:  CORRUPTION/SEVERITY/WNID/*.JPEG, 224 x 224 as made by the paper's code: 10 corruptions, 5 severities, 50,000
       images each.
Run:   python code/eval_imagenet_cbar.py --model tv_resnet50 --imagenet-cbar DIR
Gives: top1_acc/CORRUPTION_SEVERITY and top5; top1_acc/imagenet-cbar, their mean (39.7 for tv_resnet50).
"""

from imagenet_biases.evaluate import Benchmark, Pass
from imagenet_biases.images.sets import image_sets
from imagenet_biases.run import run
from imagenet_biases.scores import accuracies, mean_accuracy

CORRUPTIONS = (
    "blue_noise_sample",
    "brownish_noise",
    "caustic_refraction",
    "checkerboard_cutout",
    "cocentric_sine_waves",  # spelt so in the release
    "inverse_sparkles",
    "perlin_noise",
    "plasma_noise",
    "single_frequency_greyscale",
    "sparkles",
)
VARIANTS = tuple(f"{corruption}/{severity}" for corruption in CORRUPTIONS for severity in (1, 2, 3, 4, 5))


def passes(args):
    """Show every corruption at every severity."""
    return [Pass(images) for images in image_sets("imagenet-cbar", VARIANTS, args)]


def report(responses):
    """Yield each accuracy, and the mean where all were shown."""
    for (name, _), one in responses.items():
        yield from accuracies(one, "_".join(name.split("/")[1:]))
    if len(responses) == len(VARIANTS):
        yield "top1_acc/imagenet-cbar", mean_accuracy(responses.values())


BENCHMARK = Benchmark("imagenet_cbar", passes, report, headline=("top1_acc/imagenet-cbar",))

if __name__ == "__main__":
    run(BENCHMARK, __doc__)

"""Your own images of ImageNet's classes: ObjectNet, other variants of ImageNet-v2, a private collection.

Data: --images DIR, a folder (or .tar, .parquet) of folders named after WordNet ids, or all after class numbers. Else
      --labels FILE says what is right, in lines NAME CLASS [CLASS ...]: NAME an image or a folder, CLASS a WordNet id
      or a class number, of which any is right. --classes FILE, a class a line: the network chooses among these only.
Run:  python code/eval_images.py --model tv_resnet50 --images DIR --images-name my-photographs
Gives: top1_acc/own/NAME and top5_acc/own/NAME: the images whose first (one of whose first five) answers is right.
       ImageNet-v2's folders, given so, have the figures of eval_imagenet_ood.py.
"""

import sys
from functools import partial

from imagenet_biases.cli import run
from imagenet_biases.images.custom import PREFIX, accepted, custom_set
from imagenet_biases.images.sets import NotGiven
from imagenet_biases.measures.accuracy import among
from imagenet_biases.vocabulary import Benchmark, Data, Metrics, Option, Pass, Results, TopClasses

OPTIONS = (
    Option("images", None, "folder or archive of the images"),
    Option("images_name", "images", "what the set is called in the metrics"),
    Option("classes", None, "text file: the classes that may be answered"),
    Option("labels", None, "text file: what is right, by image or folder"),
)


def passes(data: Data, images: str | None, images_name: str, classes: str | None, labels: str | None) -> list[Pass]:
    """Show the images as they are."""
    if images is None:
        raise NotGiven("images: no images of your own were given; add --images DIR")
    custom = custom_set(images_name, images, data, classes, labels)
    k = min(5, len(custom.classes)) if custom.classes else 5
    return [Pass(custom, readout=TopClasses(k=k, classes=custom.classes))]


def report(results: Results) -> Metrics:
    """Yield top-1 and top-5."""
    for (name, _), responses in results.items():
        for k in (1, 5):
            yield f"top{k}_acc/own/{name.removeprefix(PREFIX)}", among(responses, accepted(responses.images), k)


BENCHMARK = Benchmark("images", passes, report, sets=(), options=OPTIONS)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

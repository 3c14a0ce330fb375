"""Start-up at full size: how long until everything is listed, checked and planned, and in how much memory.

Image sets of full size are made of hard links to one small image a class: ImageNet validation, v2, -A, -R, -Sketch and
the 145 folders of -C and -C-bar, 7.4 million files. A first start lists them, a second one uses the kept listings; both
are processes of their own, imports included, and end where the networks would be loaded.

    python benchmarks/startup.py [--variants 145] [--networks 48] [--folder DIR]

The folder (700 MB of directory entries) is kept where it is named. Figures go to benchmarks/startup.json.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from common import described, on
from imagenet_biases.study import CORRUPTIONS, CORRUPTIONS_BAR, DECLARATIONS, class_numbers, wordnet_ids

TARGETS = {"first": {"seconds": 60}, "second": {"seconds": 15, "gigabytes": 1.0}}


def make(folder, variants):
    """Make the sets under a folder; what is there is left as it is."""
    source = folder / "source"
    source.mkdir(parents=True, exist_ok=True)
    one = source / "image.jpg"
    if not one.exists():
        Image.new("RGB", (224, 224), (90, 120, 60)).save(one)
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    validation = {wnid: names[50 * index : 50 * index + 50] for index, wnid in enumerate(wordnet_ids())}

    def spread(classes, total):
        """Share `total` images out over classes as evenly as it goes."""
        return {c: [f"{i}.jpg" for i in range(total // len(classes) + (k < total % len(classes)))]
                for k, c in enumerate(classes)}  # fmt: skip

    wnids = {name: [wordnet_ids()[n] for n in class_numbers(name)] for name in ("imagenet-a", "imagenet-r")}
    tops = {
        "imagenet/val": validation,
        "imagenet-v2": {str(number): [f"{number}-{i}.jpeg" for i in range(10)] for number in range(1000)},
        "imagenet-a": spread(wnids["imagenet-a"], DECLARATIONS["imagenet-a"].images),
        "imagenet-r": spread(wnids["imagenet-r"], DECLARATIONS["imagenet-r"].images),
        "imagenet-sketch": spread(wordnet_ids(), DECLARATIONS["imagenet-sketch"].images),
    }
    all_variants = [("imagenet-c", *one) for one in itertools.product(CORRUPTIONS, range(1, 6))]
    all_variants += [("imagenet-cbar", *one) for one in itertools.product(CORRUPTIONS_BAR, range(1, 6))]
    for name, corruption, severity in all_variants[:variants]:
        tops[f"{name}/{corruption}/{severity}"] = validation

    def fill(top, classes):
        for number, (name, files) in enumerate(classes.items()):
            place = folder / top / name
            if place.exists():
                continue
            (building := folder / "source" / f"{top.replace('/', '-')}-{name}").mkdir()
            # a file system allows some 65,000 links to a file: one file for each class will do
            mine = folder / "source" / f"{number}.jpg"
            if not mine.exists():
                mine.write_bytes(one.read_bytes())
            for file in files:
                os.link(mine, building / file)
            place.parent.mkdir(parents=True, exist_ok=True)
            building.rename(place)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda item: fill(*item), tops.items()))


def start(folder, results, networks):
    """List, check and plan what is under a folder for all benchmarks that show images, as a run does."""
    from imagenet_biases.benchmarks import names
    from imagenet_biases.engine.evaluate import Recording, Request
    from imagenet_biases.engine.plan import make_plan
    from imagenet_biases.vocabulary import Data, Settings

    class Stand(torch.nn.Module):  # a network, as far as a plan looks at it
        answers, wants_batch = "logits", False

        def __init__(self, name):
            super().__init__()
            self.name, self.identity = name, {"network": name}

    shown = [one for one in names() if one not in ("criticality", "filters", "model_vs_human")]
    request = Request([], shown, Data(folder), Settings(device="cpu"), recording=Recording(results), skip_missing=True)
    plan = make_plan(request.jobs, [Stand(f"network-{n}") for n in range(networks)], request.runtime)
    sets = {images.name: images for job in request.jobs for images in job.image_sets}
    keys = sum(len(images.keys) for images in sets.values())
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"sets": len(sets), "images": keys, "groups": len(plan.groups)}
    figures |= {"cpu_seconds": round(used.ru_utime + used.ru_stime, 1), "gigabytes": round(used.ru_maxrss / 1e6, 2)}
    print(json.dumps(figures))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=145, help="of -C (95) and -C-bar (50), 50,000 images each")
    parser.add_argument("--networks", type=int, default=48)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--start", metavar="RESULTS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        start(args.folder, args.start, args.networks)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary, "sets")
        make(folder, args.variants)
        time.sleep(3)  # folders that changed a moment ago are not kept
        figures = {}
        for which, target in TARGETS.items():
            words = ["--start", f"{temporary}/results", "--folder", folder, "--networks", args.networks]
            started = time.perf_counter()
            told = subprocess.run(
                [sys.executable, __file__, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            figures[which] = {"seconds": round(time.perf_counter() - started, 1), **json.loads(told.splitlines()[-1])}
            print(which, figures[which], "target:", target)
        kept = sum(path.stat().st_size for path in Path(temporary, "results").rglob("*") if path.is_file())
        print(f"kept listings: {kept / 1e6:.1f} MB")
        figures |= {"variants": args.variants, "networks": args.networks, "kept_megabytes": round(kept / 1e6, 1)}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"machine": described(on("cpu").device), "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()

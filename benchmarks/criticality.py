"""Layer resets a second: passes that start at the block of the layer, against whole passes, on ResNet-50.

Run:  python benchmarks/criticality.py [--images 8] [--rounds 5]      (writes benchmarks/criticality-DEVICE.json)

Both are engine.inference.Runner.changed on the same fresh layers, network and images, over all 53
convolutions and the classifier, one draw; pixels that are not those of the intact pass have it run in whole. The intact
pass counts for the restarted ones. They take turns; the ratio is that of the rounds' medians. Target: at least 1.6.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "code"))
from imagenet_biases import Settings
from imagenet_biases.base.files import write_json
from imagenet_biases.engine.inference import Runner
from imagenet_biases.engine.precision import float32_precision
from imagenet_biases.engine.runtime import make_runtime
from imagenet_biases.measures.layer_criticality import layers_of, reset
from imagenet_biases.networks.load import from_module
from imagenet_biases.results.provenance import circumstances
from imagenet_biases.vocabulary import Batch, Presentation


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    here = make_runtime(Settings(batch_size=args.images, compile="off"), args.images)
    network = from_module(timm.create_model("resnet50").eval(), "resnet50").eval().requires_grad_(False)
    maker = {"build": "resnet50", "code": ""}
    conditions = [reset(name, [name], "fresh", 0, 0, maker) for name in layers_of(network, ["conv", "fc"])]
    pixels = torch.rand(args.images, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(here.device)
    keys = torch.arange(args.images, device=here.device)
    batch = Batch(keys, 0)
    shown, elsewhere = (Presentation(None, one, one, keys, batch) for one in (pixels, pixels.clone()))
    with float32_precision(here.precision):
        runner = Runner(network, 224, here)

        def restarted():
            runner.intact(pixels, batch)
            return [runner.changed(one, shown)[1].argmax(1).tolist() for one in conditions]

        def whole():
            return [runner.changed(one, elsewhere)[1].argmax(1).tolist() for one in conditions]

        runner.intact(pixels, batch)  # which activations the network overwrites is seen in the first pass
        contestants = {"restarted": restarted, "whole": whole}
        seconds = {name: [] for name in contestants}
        answers = {name: work() for name, work in contestants.items()}
        assert answers["restarted"] == answers["whole"]
        for _ in range(args.rounds):
            for name, work in contestants.items():
                started = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(listed_briefly) for name, listed_briefly in seconds.items()}
    resets = args.images * len(conditions)
    figures = {
        "machine": circumstances(here, resets / median["restarted"]),
        "images": args.images,
        "resets": len(conditions),
        "images x resets a second": {name: round(resets / one, 2) for name, one in median.items()},
        "times as fast": round(median["whole"] / median["restarted"], 2),
        "seconds": {name: [round(one, 3) for one in listed_briefly] for name, listed_briefly in seconds.items()},
    }
    write_json(Path(__file__).with_name(f"criticality-{here.device.type}.json"), figures)
    for key in ("images x resets a second", "times as fast"):
        print(key, figures[key])


if __name__ == "__main__":
    main()

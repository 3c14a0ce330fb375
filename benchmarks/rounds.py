"""What rounds cost: the same benchmark on the same images in one pass, and in rounds of 1, 5, 20 and 100 %.

    python benchmarks/rounds.py [--images 1000] [--repeats 3]

Two networks (the demo's, which are fast: a ResNet-50's passes make the same bookkeeping a smaller share) on the
spectral benchmark, decoded images in the cache, both ways in turn. Medians of the repeats, in benchmarks/rounds.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from common import described, photographs
from imagenet_biases import Data, Settings, evaluate
from imagenet_biases.networks.load import load_model

ROUNDS = (1.0, 5.0, 20.0, 100.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    networks = {name: load_model(f"calibration_{name}") for name in ("silhouette", "texture")}
    seconds = {"one pass": [], "rounds": []}
    metrics = {}
    with tempfile.TemporaryDirectory() as temporary:
        photographs(Path(temporary, "images"), args.images)
        data = Data(folders={"imagenet": Path(temporary, "images")}, allow_partial=True)
        for repeat in range(args.repeats + 1):
            for way, rounds in (("one pass", (100.0,)), ("rounds", ROUNDS)):
                settings = Settings(device="cpu", cache=Path(temporary, "cache"), rounds=rounds)
                started = time.perf_counter()
                records = evaluate(networks, "spectral", data, settings, results=Path(temporary, f"{way}-{repeat}"))
                seconds[way].append(time.perf_counter() - started)
                metrics[way] = [record["metrics"] for record in records]
    if metrics["one pass"] != metrics["rounds"]:
        raise AssertionError("rounds give other numbers")
    medians = {way: round(statistics.median(times[1:]), 2) for way, times in seconds.items()}
    ratios = [rounds / whole for whole, rounds in zip(*seconds.values(), strict=True)][1:]
    figures = {"images": args.images, "seconds": medians, "rounds_over_one_pass": round(statistics.median(ratios), 3)}
    print(json.dumps(figures))
    content = {"machine": described(torch.device("cpu")), "figures": figures}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What reduced precision changes: answers, by how sure they are; metrics, against their intervals; attack gradients.

Run:  python benchmarks/precision.py [--photographs DIR --network FILE.py:FUNCTION]
                                      (writes benchmarks/precision-DEVICE.json; about 10 minutes on two cores)

Each precision against fp32 on the same device, nothing else changed: both calibration networks on the demo's drawn
images and, where they are given, a network of yours on photographs of yours (folders by WordNet id). Shown are the
images as they are (imagenet), under filters (spectral) and noise (criticalband) and under attack (imagenet_adv, FGSM
and 10 steps of PGD). An answer is the first class; its margin is the fp32 difference of the two largest logits.

Where there is no NVIDIA GPU, TensorFloat-32 is emulated: what goes into the convolutions (tf32-conv, torch's default on
such GPUs) and the matrix products as well (tf32), forward and backward, is rounded to 10 bits of mantissa, and summed
in float32.
"""

import argparse
import contextlib
import itertools
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from common import described
from imagenet_biases import Data, Settings, benchmarks, evaluate
from imagenet_biases.base.files import write_json
from imagenet_biases.engine.inference import Runner
from imagenet_biases.engine.precision import float32_precision
from imagenet_biases.engine.runtime import make_runtime
from imagenet_biases.images.preprocessing import STUDY, decode
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks.load import load_model
from imagenet_biases.stimuli.attacks import gradient, summed_cross_entropy
from imagenet_biases.synthetic.image_sets import draw
from imagenet_biases.vocabulary import Batch, Readout, Results

NAMES = ("imagenet", "spectral", "criticalband", "imagenet_adv")
STEPS = 10  # of PGD
MARGINS = (0.0, 0.1, 0.5, 1.0, 2.0, np.inf)  # of logits


aten = torch.ops.aten
CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
EMULATED = {"tf32-conv": CONVOLUTIONS, "tf32": CONVOLUTIONS | PRODUCTS}


def rounded_to_tf32(tensor):
    """Return float32 values with 10 of their 23 bits of mantissa, rounded to nearest, ties to even."""
    if not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32):
        return tensor
    bits = tensor.detach().view(torch.int32)
    rounded = (bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF
    return torch.where(tensor.isfinite(), rounded.view(torch.float32), tensor)


class TF32(TorchDispatchMode):
    """Rounds what goes into some of torch's operations as TensorFloat-32 does; biases are added in float32."""

    def __init__(self, operations):
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in self.operations:
            bias = {aten.convolution.default: 2, aten.addmm.default: 0, aten.baddbmm.default: 0}.get(operation)
            args = [arg if place == bias else tree_map(rounded_to_tf32, arg) for place, arg in enumerate(args)]
        return operation(*args, **(kwargs or {}))


def arithmetic(precision, device):
    """Return (the precision to ask for, a context to run in)."""
    if precision in EMULATED and not str(device).startswith("cuda"):
        return "fp32", TF32(EMULATED[precision])
    return precision, contextlib.nullcontext()


@dataclass(frozen=True)
class Margin(Readout):
    """How far the largest logit is above the second, float32 [B]."""

    id: ClassVar[str] = "Margin"
    dtype: ClassVar[str] = "float32"

    def __call__(self, shown):
        first, second = shown.logits.topk(2).values.unbind(1)
        return first - second


def watched(benchmark, caught):
    """Return the benchmark with the margins of all its answers kept as well; `caught` gets what its report found."""

    def passes(data, **options):
        usual = benchmark.passes(data, **options)
        return usual + [replace(one, readout=Margin()) for one in usual]

    def report(found):
        usual = [one for one in found.all() if not isinstance(one.readout, Margin)]
        estimates = dict(benchmark.report(Results(usual, found.network, found.options, found.purpose)))
        margins = {key: found[(*key, Margin)].values for key in found}
        answers = {
            (one.images.name, one.condition.name): one.values.reshape(len(one.values), -1)[:, 0] for one in usual
        }
        if found.purpose == "whole":
            caught.append((answers, margins, estimates))
        yield from estimates.items()

    return replace(benchmark, passes=passes, report=report, details=None, layers=None)


def measured(network, data, args, precision):
    """Return {benchmark: (answers, margins, metrics)}."""
    found, device = {}, args.device
    attacks = {"imagenet_adv": {"attack": args.attacks, "steps": str(STEPS)}}
    for name in NAMES:
        caught, options = [], {name: attacks[name]} if name in attacks else None
        asked, context = arithmetic(precision, device)
        settings = Settings(device=device, precision=asked, compile="off", batch_size=20)
        with context:
            evaluate(network, watched(benchmarks.find(name), caught), data, settings, options=options)
        found[name] = caught[-1]
    return found


def changed(usual, reduced):
    """Return how many answers differ, of how many, overall and by the margin of the usual answer."""
    answers, margins, _ = usual
    differs = np.concatenate([answers[key] != reduced[0][key] for key in answers])
    sure = np.concatenate([margins[key] for key in answers])
    by_margin = {}
    for low, high in itertools.pairwise(MARGINS):
        here = (sure >= low) & (sure < high)
        by_margin[f"margin {low:g} to {high:g}"] = [int(differs[here].sum()), int(here.sum())]
    return {"all": [int(differs.sum()), len(differs)], **by_margin}


def effects(usual, reduced):
    """Return {metric: [fp32, reduced, change over half the width of fp32's interval]} of metrics that change."""
    found = {}
    for name, one in usual[2].items():
        value, other = (getattr(e, "value", e) for e in (one, reduced[2][name]))
        low, high = getattr(one, "low", None), getattr(one, "high", None)
        if value is not None and other is not None and value != other:
            half = (high - low) / 2 if low is not None and high > low else None
            found[name] = [round(value, 4), round(other, 4), round(abs(other - value) / half, 3) if half else None]
    return found


def gradients(name, data, device, precisions):
    """Return {precision: share of pixels whose gradient has another sign than in fp32, mean cosine with fp32's}."""
    images, found = image_set("imagenet", data), {}
    listed_briefly = range(0, len(images), max(1, len(images) // 20))
    pixels = [decode(images.listing.root / images.files[i], STUDY) for i in listed_briefly]
    pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div(255).to(device)
    labels, keys = (torch.from_numpy(one[list(listed_briefly)]).to(device) for one in (images.labels, images.keys))
    for precision in ("fp32", *precisions):
        asked, context = arithmetic(precision, device)
        here = make_runtime(Settings(device=device, precision=asked, batch_size=20), 0)
        with float32_precision(asked), context:
            network = Runner(load_model(name), 224, here).differentiable(Batch(keys, 0))
            found[precision] = gradient(network, pixels, labels, summed_cross_entropy)[0].flatten(1).float()
    usual, result = found["fp32"], {}
    for precision in precisions:
        other = found[precision]
        result[precision] = {
            "other sign": float((usual.sign() != other.sign()).float().mean()),
            "cosine": float(torch.nn.functional.cosine_similarity(usual.double(), other.double()).mean()),
            "not finite": int((~other.isfinite()).sum()),
        }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--photographs", type=Path, help="a folder with folders named by WordNet ids")
    parser.add_argument("--network", help="as for --model")
    parser.add_argument("--attacks", default="pgd,fgsm", help="of imagenet_adv, comma-separated")
    parser.add_argument("--no-drawn", action="store_true", help="leave the drawn images out")
    parser.add_argument("--precisions", nargs="+", help="default: all that the device has")
    args = parser.parse_args()
    precisions = args.precisions or ("tf32-conv", "tf32", "bf16", "fp16")
    path, figures = Path(__file__).with_name(f"precision-{torch.device(args.device).type}.json"), {}
    with tempfile.TemporaryDirectory() as folder:
        draw(folder)
        names = () if args.no_drawn else ("calibration_silhouette", "calibration_texture")
        subjects = [(f"{name}, drawn", name, Data(folder)) for name in names]
        if args.photographs and args.network:
            subjects.append(
                ("photographs", args.network, Data(folders={"imagenet": args.photographs}, allow_partial=True))
            )
        print("| images | precision | benchmark | answers changed | margin of the surest that changed, at most | "
              "largest effect on a metric, of half its interval |\n| --- | --- | --- | --- | --- | --- |")  # fmt: skip
        for title, name, data in subjects:
            usual, figures[title] = measured(name, data, args, "fp32"), {}
            for precision in precisions:
                reduced, rows = measured(name, data, args, precision), {}
                for benchmark in NAMES:
                    count, moved = (
                        changed(usual[benchmark], reduced[benchmark]),
                        effects(usual[benchmark], reduced[benchmark]),
                    )
                    rows[benchmark] = {"answers changed": count, "metrics": moved}
                    highest = [key.split()[-1] for key, (turned, _) in count.items() if key != "all" and turned]
                    share = "{:.2f} % ({} of {})".format(100 * count["all"][0] / count["all"][1], *count["all"])
                    most = max(((m[2], n) for n, m in moved.items() if m[2] is not None), default=(0, "none"))
                    print(f"| {title} | {precision} | {benchmark} | {share} | {highest[-1] if highest else '-'} | "
                          f"{most[0]} ({most[1]}) |", flush=True)  # fmt: skip
                figures[title][precision] = rows
            for precision, found in gradients(name, data, args.device, precisions).items():
                figures[title][precision]["gradients"] = found
                print(f"| {title} | {precision} | gradients | {100 * found['other sign']:.2f} % of signs, cosine "
                      f"{found['cosine']:.5f}, {found['not finite']} not finite | | |", flush=True)  # fmt: skip
            if path.exists():  # what was measured of other images, or in other precisions, stays
                kept = json.loads(path.read_text())["figures"]
                figures = kept | {title: kept.get(title, {}) | rows for title, rows in figures.items()}
            write_json(path, {"machine": described(torch.device(args.device)), "figures": figures})


if __name__ == "__main__":
    main()

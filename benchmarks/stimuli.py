"""What the stimuli cost beside the forward passes, and what a naive loop over images costs.

Run:  python benchmarks/stimuli.py        (writes benchmarks/stimuli-DEVICE.json; about 10 minutes)

Two questions, each answered by the median of several rounds in which the contestants take turns:
1. time per image of making each stimulus, against one forward pass of ResNet-50 as the harness runs it (channels-last,
   folded, compiled). Target: all 22 filters and 28 noises together below 15 % of their forward passes on a CPU, below
   5 % on a GPU.
2. time per image and condition of eval_spectral and eval_criticalband, decoding included, against the naive loop: each
   condition decodes every file again, filters it with numpy or masks it with pyrtools noise on the CPU, and runs the
   network as timm gives it. Target: at least 2 times on a CPU, 5 times on a GPU.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyrtools
import timm
import torch
from PIL import Image

from common import apart, described, on, prepared, show, timed
from imagenet_biases import benchmarks
from imagenet_biases.base.files import write_json
from imagenet_biases.engine import compilation
from imagenet_biases.engine.inference import Runner
from imagenet_biases.engine.precision import float32_precision
from imagenet_biases.images.preprocessing import STUDY
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks.load import from_module
from imagenet_biases.study import wordnet_ids
from imagenet_biases.vocabulary import Batch, Data, Pass

ROUNDS = 5
IMAGES = 32  # of the comparison with the naive loop
# how many of a script's conditions are timed: all cost the same, and turns of like length meet the same load
OUR_CONDITIONS, NAIVE_CONDITIONS = 7, 2


class Network(torch.nn.Module):
    """ResNet-50 with random weights, which take the same time as trained ones."""

    def __init__(self):
        super().__init__()
        self.body = timm.create_model("resnet50").eval().requires_grad_(False)

    def forward(self, pixels):
        return self.body((pixels - 0.45) / 0.225)


def medians(contestants, device):
    """Return the median time of each of {name: work}, taking turns for ROUNDS rounds after one to warm up."""
    times = {name: [] for name in contestants}
    for _ in range(ROUNDS + 1):
        for name, work in contestants.items():
            times[name].append(timed(work, device))
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def cost_of_stimuli(conditions, settings):
    """Time every stimulus and a forward pass, ms per image."""
    size, device = settings.batch_size, settings.device
    rows = torch.randint(0, 256, (size, 224, 224, 3), dtype=torch.uint8, device=device)
    pixels = rows.permute(0, 3, 1, 2).to(torch.float32).div_(255)
    batch = Batch(torch.arange(size, device=device), 0)
    with float32_precision(settings.precision), torch.no_grad():
        runner = Runner(
            from_module(Network(), "resnet50"), 224, settings, compilation.Programs(shared=device.type != "cpu")
        )
        work = {
            condition.name: partial(condition.stimulus, pixels, batch, **condition.settings) for condition in conditions
        }
        found = medians({"forward": partial(runner.answer, pixels, batch)} | work, device)
    found = {name: 1000 * value / size for name, value in found.items()}
    forward = found.pop("forward")
    return {
        "forward ms": round(forward, 3),
        "stimulus ms": {name: round(value, 3) for name, value in found.items()},
        "share of the forward passes": round(sum(found.values()) / (forward * len(found)), 4),
    }


def photographs(folder):
    """Write IMAGES JPEG files of the size of ImageNet's, 500 x 375, with the spectrum of photographs."""
    random = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(500), np.fft.fftfreq(375)))[..., None]
    for number in range(IMAGES):
        white = np.fft.fft2(random.standard_normal((375, 500, 3)), axes=(0, 1))
        picture = np.fft.ifft2(white / np.maximum(frequency, 1 / 500), axes=(0, 1)).real
        picture = (128 + 50 * picture / picture.std()).clip(0, 255).astype(np.uint8)
        target = folder / wordnet_ids()[number] / "picture.JPEG"
        target.parent.mkdir(parents=True)
        Image.fromarray(picture).save(target, quality=90)


def naive_filter(image, condition, random):
    kind, cutoff = condition.settings["kind"], condition.settings["cutoff"]
    radius = int((cutoff if kind == "low-pass" else 1 - cutoff) * 112)
    mask = np.zeros((224, 224), bool)
    mask[112 - radius : 112 + radius, 112 - radius : 112 + radius] = True
    shown = np.empty((224, 224, 3), np.float32)
    for channel in range(3):
        spectrum = np.fft.fftshift(np.fft.fft2(np.asarray(image)[..., channel] / 255))
        spectrum[mask != (kind == "low-pass")] = 0
        shown[..., channel] = np.fft.ifft2(np.fft.ifftshift(spectrum)).real.clip(0, 1)
    return shown


def naive_noise(image, condition, random):
    frequency, sd = condition.settings["frequency"], condition.settings["sd"]
    grey = np.asarray(image.convert("L")) / 255
    grey = (grey - grey.mean()) * 0.2 + 0.449
    pyramid = pyrtools.pyramids.LaplacianPyramid(random.normal(0, sd, (224, 224)))
    noise, finest = (pyramid.recon_pyr(levels=[level]) for level in (6 - frequency, 0))
    shown = grey + noise * np.sqrt((finest**2).mean() / (noise**2).mean())
    shown[shown < 0], shown[shown > 1] = 0.1, 0.9
    return np.repeat(shown[..., None], 3, 2).astype(np.float32)


def naive(images, conditions, transform, network, settings):
    """Each condition on its own: decode, transform, batch, forward."""
    random, network = np.random.default_rng(0), network.to(settings.device)
    for condition in conditions:
        for start in range(0, len(images), settings.batch_size):
            batch = []
            for file in images.files[start : start + settings.batch_size]:
                with Image.open(images.listing.root / file) as photograph:
                    picture = Image.fromarray(STUDY(photograph))
                batch.append(torch.from_numpy(transform(picture, condition, random)).permute(2, 0, 1))
            with torch.no_grad():
                network(torch.stack(batch).to(settings.device)).argmax(1).cpu()


def against_naive(images, conditions, transform, folder, settings):
    """Time a script on some of its conditions and the naive loop on fewer, ms per image and condition, by turns."""
    ours, theirs = [], []
    step = len(conditions) // OUR_CONDITIONS
    listed_briefly, fewer = conditions[1::step], conditions[1 :: len(conditions) // NAIVE_CONDITIONS]
    network, plain = from_module(Network(), "resnet50"), Network()
    runners = prepared(network, settings)  # folding and compiling are done once in a long run, and not timed
    loop = partial(naive, images, fewer, transform, plain, settings)
    with apart() as own_process:
        for number in range(ROUNDS):
            results = folder / f"{transform.__name__}-{number}"
            work = partial(show, [Pass(images, tuple(listed_briefly))], network, settings, results, runners)
            ours.append(timed(work, settings.device) / len(listed_briefly))
            theirs.append(own_process.submit(timed, loop, settings.device).result() / len(fewer))
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    ours, theirs = (1000 * statistics.median(times) / len(images) for times in (ours, theirs))
    return {"ours ms": round(ours, 2), "naive ms": round(theirs, 2), "ratio": round(ratio, 2)}


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = on(device, compile="on")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photographs(root / "photographs")
        data = Data(folders={"imagenet": root / "photographs"}, allow_partial=True)
        images, stimuli, compared = image_set("imagenet", data), [], {}
        for name, transform in (("spectral", naive_filter), ("criticalband", naive_noise)):
            benchmark = benchmarks.find(name)
            conditions = [one for one in benchmark.passes(data)[0].conditions if one.seeded or "cutoff" in one.settings]
            stimuli += conditions
            compared[name] = against_naive(images, conditions, transform, root, settings)
    figures = {
        "machine": described(device),
        "batch size": settings.batch_size,
        "per image and condition, decoding included": compared,
        "stimuli": cost_of_stimuli(stimuli, settings),
    }
    write_json(Path(__file__).with_name(f"stimuli-{device.type}.json"), figures)
    print(f"stimuli: {100 * figures['stimuli']['share of the forward passes']:.1f} % of their forward passes")
    for name, one in compared.items():
        print(f"{name}: {one['ours ms']} ms per image and condition, naive {one['naive ms']} ms: {one['ratio']} times")


if __name__ == "__main__":
    main()

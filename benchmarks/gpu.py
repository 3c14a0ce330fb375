"""All figures that a GPU is asked for, in 8 minutes and one file, and what the study costs by them.

Run:  python benchmarks/gpu.py                          (writes benchmarks/gpu-DEVICE.json)
      python benchmarks/gpu.py --device cpu --quick     whether it runs, in 3 minutes; its figures are of a CPU

ResNet-50 with random weights on synthetic photographs of ImageNet's size, in each precision, compiled and not:
- bare: forward passes (forward and backward for PGD) over pixels in memory, nothing else;
- harness: the same network through the loop, images cached, answers stored: clean (1 condition), spectral (23),
  critical band (29), PGD; its pace is that of the images beyond the first batch, the time until then is `start`;
- criticality: resets of every third layer, images x resets a second (never compiled);
- naive: each condition on its own, files decoded and filtered on the CPU (fp32, uncompiled);
- feed: images a second that reach a network that takes no time: decoded from files, from a tar and a parquet file, and
  from the cache;
- agreement: logits on the device against a CPU's in fp32; memory; seconds to compile, and what a second network of the
  same architecture takes of both; from how many images on compiling pays.
What is not measured before --minutes are over is named. The hours of the study are the passes of all benchmarks, at
this pace, of the slowest of 1, 8 and 64 such devices, to which units are dealt as --shard deals them.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from feed import as_parquet, as_tar
from PIL import Image

from common import described, on, photographs, show, timed
from imagenet_biases import benchmarks
from imagenet_biases.base.files import write_json
from imagenet_biases.engine.inference import Runners
from imagenet_biases.engine.plan import make_jobs
from imagenet_biases.engine.precision import float32_precision
from imagenet_biases.engine.sharding import deal
from imagenet_biases.images.preprocessing import STUDY
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks.load import Network
from imagenet_biases.networks.registry import NORMALIZATIONS
from imagenet_biases.stimuli.attacks import pgd, summed_cross_entropy
from imagenet_biases.study import DECLARATIONS
from imagenet_biases.vocabulary import CLEAN, Batch, Data, Pass

NETWORKS, VALIDATION, STEPS = 48, DECLARATIONS["imagenet"].images, 10
TARGETS = {
    "spectral / bare": ("at least", 0.98),
    "clean / bare": ("at least", 0.90),
    "PGD / bare": ("at least", 0.90),
    "spectral / naive": ("at least", 6.0),
    "critical band / naive": ("at least", 6.0),
}


class Nothing(torch.nn.Module):
    """A network that takes no time."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1000))

    def forward(self, pixels):
        return pixels[:, 0, 0, :1] * self.weight


def network_of(body, name):
    mean, std = NORMALIZATIONS["imagenet"]
    return Network(body.eval().requires_grad_(False), name=name, mean=mean, std=std, facts={})


def pace_of(work, size, device, seconds):
    """Return the images a second of `work` on a batch of `size`, repeated for some seconds after one to warm up."""
    work()
    once = timed(work, device)
    count = max(2, round(seconds / once))
    return size * count / timed(lambda: [work() for _ in range(count)], device)


class Bench:
    """The images, the network and the time that there is."""

    def __init__(self, args, folder):
        self.args, self.folder, self.device = args, Path(folder), torch.device(args.device)
        self.ends = time.monotonic() + 60 * args.minutes
        self.size = args.batch_size
        own = self.folder / "own"
        photographs(own, args.photographs)
        for copy in range(-(-args.images // args.photographs)):  # decoding costs the same, writing them does not
            for file in own.glob("*/*"):
                target = self.folder / "photographs" / file.parent.name / f"{copy:04d}-{file.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, target)
        torch.manual_seed(0)
        self.network, self.other = (network_of(timm.create_model(args.arch), name) for name in (args.arch, "another"))

    def images(self, count, place="photographs"):
        limit = min(count, self.args.images)
        return image_set("imagenet", Data(folders={"imagenet": self.folder / place}, allow_partial=True, limit=limit))

    def here(self, **settings):
        cache = settings.pop("cache", self.folder / "cache")
        return on(self.device, batch_size=self.size, workers=self.args.workers, cache=cache, **settings)

    def through(self, conditions, count, here, network, runners, place="photographs"):
        """Return (images, seconds that the loop takes for them), of so many."""
        images = self.images(count, place)
        with tempfile.TemporaryDirectory() as results:
            return len(images), timed(
                lambda: show([Pass(images, tuple(conditions))], network, here, results, runners), self.device
            )

    def harness(self, conditions, here, bare, network=None, runners=None):
        """Return (images x conditions a second beyond the first batch, seconds until then)."""
        network, cost = network or self.network, sum(one.cost for one in conditions)
        count = self.size * max(2, round(self.args.seconds * bare / cost / self.size))
        few, start = self.through(conditions, self.size, here, network, runners)
        many, whole = self.through(conditions, count, here, network, runners)
        pace = (many - few) * len(conditions) / max(whole - start, 1e-9)
        return pace, max(0.0, start - few * len(conditions) / pace)

    def configuration(self, precision, compiled):
        """Return all figures of one precision, compiled or not."""
        here, args = self.here(precision=precision, compile=compiled), self.args
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        pixels = torch.rand(self.size, 3, 224, 224, device=self.device).to(memory_format=torch.channels_last)
        batch, labels = (
            Batch(torch.arange(self.size, device=self.device), 0),
            torch.arange(self.size, device=self.device),
        )
        clean = (CLEAN,)
        spectral = conditions_of("spectral", self.data)
        critical = conditions_of("criticalband", self.data)
        attack = pgd(f"PGD-{STEPS}", 4 / 255, STEPS, 2 / 255)
        with float32_precision(precision):
            runners = Runners(here, {(one, 224): 10**9 for one in (self.network, self.other)})
            found = {}
            for one, what in ((self.network, "get ready"), (self.other, "get a second network ready")):
                memory = self.memory()
                found[f"seconds to {what}"] = timed(
                    lambda one=one: runners.get(one, 224).answer(pixels, batch), self.device
                )
                found[f"GB to {what}"] = (self.memory() - memory) / 1e9
            runner = runners.get(self.network, 224)
            bare = pace_of(lambda: runner.answer(pixels, batch).argmax(1), self.size, self.device, args.seconds)
            steps = self.bare_steps(runner, pixels, labels, here, compiled)
            found |= {"bare": bare, "bare PGD steps": steps}
            for name, conditions in (("clean", clean), ("spectral", spectral), ("critical band", critical)):
                found[name], found[f"{name}, start"] = self.harness(conditions, here, bare, runners=runners)
            attacked, found["PGD, start"] = self.harness((attack,), here, bare, runners=runners)
            found["PGD steps"] = attacked * STEPS
            found["criticality"] = self.criticality(here, runners)
            shown = runner.answer(self.shown.to(self.device), batch).cpu()
        away = (shown - self.expected).abs().max() / self.expected.abs().max()
        found["largest difference from the CPU, of the largest logit"] = float(away)
        found |= {f"{name} / bare": found[name] / bare for name in ("clean", "spectral", "critical band")}
        found["PGD / bare"] = found["PGD steps"] / steps
        if self.device.type == "cuda":
            found["memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
        return found

    def memory(self):
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0

    def criticality(self, here, runners):
        """Return images x resets a second, of every third layer, after a run that sees where each reset acts."""
        benchmark = benchmarks.find("criticality")
        (_, one, *_) = benchmark.passes(self.data, **benchmark.options_from({"reset": "permute"}))
        resets = one.conditions_for(self.network)[::9]
        self.through(resets, self.size, here, self.network, runners)
        count, seconds = self.through(resets, self.size, here, self.network, runners)
        return count * len(resets) / seconds

    def bare_steps(self, runner, pixels, labels, here, compiled):
        """Return the forward and backward passes a second, in images, of nothing but them."""
        program = torch.compile(runner.folded, dynamic=False) if compiled == "on" else runner.folded

        def step():
            images = pixels.detach().requires_grad_()
            with here.autocast():
                logits = program(images).float()
            return torch.autograd.grad(summed_cross_entropy(logits, labels), images)[0].sign_()

        return pace_of(step, self.size, self.device, self.args.seconds)

    def prepare(self):
        """Fill the cache, and have a CPU answer in fp32 what the device will be compared with."""
        self.data = Data(folders={"imagenet": self.folder / "photographs"}, allow_partial=True, limit=8)
        self.shown = torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.expected = self.network(self.shown)
        return self.feed()

    def feed(self):
        """Return the images a second that reach a network which takes no time: decoded, then from the cache."""
        nothing, found = network_of(Nothing(), "nothing"), {}
        as_tar(self.folder / "photographs", self.folder / "images.tar")
        as_parquet(self.folder / "photographs", self.folder / "images.parquet")
        with float32_precision("fp32"):
            for name, place, cache in (
                ("from a tar file", "images.tar", None),
                ("from a parquet file", "images.parquet", None),
                ("decoded", "photographs", None),
                ("filling the cache", "photographs", self.folder / "cache"),
            ):
                here = self.here(compile="off", cache=cache)
                count, seconds = self.through((CLEAN,), self.args.images, here, nothing, None, place)
                found[name] = count / seconds
            found["cached"] = self.harness((CLEAN,), here, self.args.images / self.args.seconds, nothing)[0]
        return {name: round(pace, 1) for name, pace in found.items()} | {"decoding processes": self.args.workers}

    def naive(self):
        """Return images x conditions a second of a loop without a harness, by benchmark."""
        from stimuli import naive_filter, naive_noise  # needs pyrtools

        found = {}
        network = self.network.to(self.device)
        for name, transform in (("spectral", naive_filter), ("critical band", naive_noise)):
            condition = conditions_of(name.replace(" ", ""), self.data)[-1]
            random, images = np.random.default_rng(0), self.images(self.size)

            def work(condition=condition, transform=transform, random=random, images=images):
                batch = []
                for file in images.files:
                    with Image.open(images.listing.root / file) as photograph:
                        picture = Image.fromarray(STUDY(photograph))
                    batch.append(torch.from_numpy(transform(picture, condition, random)).permute(2, 0, 1))
                with torch.no_grad():
                    network(torch.stack(batch).to(self.device)).argmax(1).cpu()

            found[name] = len(images) / statistics.median(timed(work, self.device) for _ in range(3))
        return found


def conditions_of(benchmark, data, **options):
    """Return the conditions of a benchmark's first pass."""
    found = benchmarks.find(benchmark)
    return found.passes(data, **found.options_from(options))[0].conditions


def study_units(paces, feed, network, data):
    """Return {study: seconds of each benchmark of one network}, at these paces (images a second)."""
    fed = min(paces["clean"], feed)
    of_kind = {"clean": fed, "stimulus": paces["spectral"], "change": paces["criticality"]}
    whole = [VALIDATION * 5 * (19 + 10), 18_080] + [
        one.images for name, one in DECLARATIONS.items() if not one.variants and name != "imagenet"
    ]
    usual, tuned, seen = [images / fed for images in whole], 0.0, set()
    # what is made of ImageNet's validation images: as many as the benchmark takes of them
    jobs, _ = make_jobs(
        [benchmarks.find(name) for name in benchmarks.names()], data, {"imagenet_adv": {"attack": "pgd,fgsm,tuned"}}
    )
    for job in jobs:
        images, seconds = min(VALIDATION, job.options.get("probe") or VALIDATION), 0.0
        for condition in (one for each in job.passes for one in each.conditions_for(network)):
            identity = json.dumps(condition.identity(), sort_keys=True)
            if identity in seen:
                continue
            seen.add(identity)
            # a step of PGD is a forward and a backward pass, and an attack of cost c has about c / 3 of them
            slopes = condition.attack is not None
            took = images * (condition.cost / 3 / paces["PGD steps"] if slopes else 1 / of_kind[condition.kind])
            if condition.stepwise is None:
                seconds += took
            else:
                tuned += took
        usual.append(seconds)
    return {"without the tuned attack": usual, "with the tuned attack": [*usual, tuned]}


def hours(paces, feed, network, data):
    """Return {study: {devices: hours of the slowest}}."""
    found = {}
    for name, seconds in study_units(paces, feed, network, data).items():
        costs = [round(1000 * one) for one in seconds] * NETWORKS
        found[name] = {}
        for count in (1, 8, 64):
            runs, sums = deal(costs, count), [0] * count
            for cost, run in zip(costs, runs, strict=True):
                sums[run] += cost
            found[name][str(count)] = round(max(sums) / 3.6e6, 1)
    return found


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="few images and a small network: to see whether it runs")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    cuda = torch.device(args.device).type == "cuda"
    sizes = {"arch": "resnet18", "images": 32, "photographs": 8, "batch_size": 8, "seconds": 0.5}
    full = {"arch": "resnet50", "images": 16_384, "photographs": 256, "batch_size": 256, "seconds": 4.0}
    slow = full | {"images": 128, "photographs": 64, "batch_size": 32}
    for name, value in (sizes if args.quick else full if cuda else slow).items():
        setattr(args, name, value)
    if args.workers is None:
        args.workers = on(args.device).workers if cuda else 1
    args.out = args.out or Path(__file__).with_name(f"gpu-{torch.device(args.device).type}.json")
    return args, cuda


def rounded(figures):
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}


def main():
    args, cuda = parsed()
    if not cuda:
        print("There is no GPU in this: all figures below are of a CPU and say nothing about one.")
    kinds = ("fp32", "bf16", "tf32", "fp16") if cuda else ("fp32", "bf16")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, folder)
        feed = bench.prepare()
        print("feed, images a second", feed, flush=True)
        try:
            naive = bench.naive()
        except ImportError as error:
            naive = {}
            print(f"not measured: the naive loops ({error})")
        figures, missed = {}, []
        for precision, compiled in [(kind, compiled) for compiled in ("on", "off") for kind in kinds]:
            name = f"{precision}, {'compiled' if compiled == 'on' else 'not compiled'}"
            if time.monotonic() > bench.ends:
                missed.append(name)
                continue
            found = bench.configuration(precision, compiled)
            found |= {f"{one} / naive": found[one] / pace for one, pace in naive.items()}
            figures[name] = rounded(found) | {
                "hours of the study": hours(found, feed["decoded"], bench.network, bench.data)
            }
            print(f"\n{name}")
            for key, value in figures[name].items():
                sign, bound = TARGETS.get(key, ("", 0))
                held = f"   target: {sign} {bound}, {'held' if value >= bound else 'MISSED'}" if sign else ""
                print(f"  {key:55} {value}{held}", flush=True)
    for kind in kinds:
        on_, off = (figures.get(f"{kind}, {how}") for how in ("compiled", "not compiled"))
        if on_ and off and on_["bare"] > off["bare"]:
            ready = on_["seconds to get ready"] - off["seconds to get ready"]
            pays = ready / (1 / off["bare"] - 1 / on_["bare"])
            on_["compiling pays from, images"] = float(f"{pays:.2g}")
            print(f"{kind}: compiling pays from {pays:,.0f} images")
    for name in missed:
        print(f"not measured, {args.minutes:g} minutes were over: {name}")
    write_json(
        args.out,
        {
            "machine": described(torch.device(args.device)),
            "of": "a GPU" if cuda else "a CPU: says nothing about a GPU",
            "network": args.arch,
            "batch size": args.batch_size,
            "targets": {name: list(target) for name, target in TARGETS.items()},
            "feed, images a second": feed,
            "naive, images x conditions a second": rounded(naive),
            "figures": figures,
            "not measured": missed,
        },
    )


if __name__ == "__main__":
    main()

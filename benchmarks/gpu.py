"""All figures that a GPU is asked for, in 8 minutes and one file, and what the study costs by them.

Run:  python benchmarks/gpu.py                          (writes benchmarks/gpu-DEVICE.json)
      python benchmarks/gpu.py --device cpu --quick     whether it runs, in 3 minutes; its figures are of a CPU

ResNet-50 with random weights on synthetic photographs of ImageNet's size, in each precision, compiled and not:
- bare: forward passes (forward and backward for PGD) over pixels in memory, nothing else;
- harness: the same network through the loop, images cached, answers stored: clean (1 condition), spectral (23),
  critical band (29), PGD; its pace is that of the images beyond the first batch, shown twice before: the first time is
  the cold start, the second is not counted;
- criticality: resets of every third layer, images x resets a second (never compiled);
- naive: each condition on its own, files decoded and filtered on the CPU, the network uncompiled in the precision that
  it is compared in, and with few images;
- feed: images a second that reach a network that takes no time: decoded from files, from a tar and a parquet file, and
  from the cache;
- agreement: logits on the device against a CPU's in fp32; memory; seconds to compile, and what a second network of the
  same architecture takes of both; from how many images on compiling pays.

The steps come in such an order that every question has an answer early and the rest refines it; the file is written
after each, and what was not measured before --minutes were over is named. The hours of the study are the passes of all
benchmarks, at this pace, of the slowest of 1, 8 and 64 such devices, to which units are dealt as --shard deals them.
"""

import argparse
import json
import os
import tempfile
import time
from functools import partial
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

NETWORKS, VALIDATION, STEPS, NAIVE = 48, DECLARATIONS["imagenet"].images, 10, 64
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
        self.configurations = {}
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

    def harness(self, name, conditions, bare, here, runners, network=None, cost=1):
        """Return (images x conditions a second beyond the first batch, seconds that the first batch took more)."""
        network = network or self.network
        passes = sum(condition.cost for condition in conditions)
        count = self.size * max(2, round(self.args.seconds * bare / passes / self.size))
        (few, cold), (_, warm) = (self.through(conditions, self.size, here, network, runners) for _ in range(2))
        many, whole = self.through(conditions, count, here, network, runners)
        pace = (many - few) * len(conditions) * cost / max(whole - warm, 1e-9)
        return {name: pace, f"{name}, cold start in seconds": max(0.0, cold - warm)}

    def ready(self, precision, compiled):
        """Return (Runtime, Runners) of a configuration, made once."""
        if (precision, compiled) not in self.configurations:
            here = self.here(precision=precision, compile=compiled)
            planned = {(network, 224): 10**9 for network in (self.network, self.other)}
            self.configurations[precision, compiled] = here, Runners(here, planned)
        return self.configurations[precision, compiled]

    def basics(self, here, runners, _):
        """Return what it takes to get ready, whether a CPU agrees, and the bare pace."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        pixels, batch, found = self.pixels(), Batch(torch.arange(self.size, device=self.device), 0), {}
        for network, what in ((self.network, "get ready"), (self.other, "get a second network ready")):
            memory = self.memory()
            prepare = partial(runners.get, network, 224)
            found[f"seconds to {what}"] = timed(lambda prepare=prepare: prepare().answer(pixels, batch), self.device)
            found[f"GB to {what}"] = (self.memory() - memory) / 1e9
        runner = runners.get(self.network, 224)
        shown = runner.answer(self.shown.to(self.device), batch).cpu()
        away = (shown - self.expected).abs().max() / self.expected.abs().max()
        found["largest difference from the CPU, of the largest logit"] = float(away)
        bare = pace_of(lambda: runner.answer(pixels, batch).argmax(1), self.size, self.device, self.args.seconds)
        found["bare"] = bare
        if self.device.type == "cuda":
            found["memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
        return found

    def harnessed(self, *names):
        """Return a step that measures the harness under some benchmarks' conditions."""

        def step(here, runners, figures):
            found = {}
            for name in names:
                conditions = (CLEAN,) if name == "clean" else conditions_of(name.replace(" ", ""), self.data)
                found |= self.harness(name, conditions, figures["bare"], here, runners)
                found[f"{name} / bare"] = found[name] / figures["bare"]
            return found

        step.__name__ = ", ".join(names)
        return step

    def attacked(self, here, runners, figures):
        """Return forward and backward passes a second of PGD, in the harness and bare."""
        runner, labels = runners.get(self.network, 224), torch.arange(self.size, device=self.device)
        steps = self.bare_steps(runner, self.pixels(), labels, here, here.compile)
        attack = pgd(f"PGD-{STEPS}", 4 / 255, STEPS, 2 / 255)
        found = self.harness("PGD steps", (attack,), figures["bare"], here, runners, cost=STEPS)
        return {"bare PGD steps": steps} | found | {"PGD / bare": found["PGD steps"] / steps}

    def pixels(self):
        pixels = torch.rand(self.size, 3, 224, 224, device=self.device)
        return pixels.to(memory_format=torch.channels_last)

    def memory(self):
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0

    def criticality(self, here, runners, _):
        """Return images x resets a second, of every third layer, after a run that sees where each reset acts."""
        benchmark = benchmarks.find("criticality")
        (_, one, *_) = benchmark.passes(self.data, **benchmark.options_from({"reset": "permute"}))
        resets = one.conditions_for(self.network)[::9]
        self.through(resets, self.size, here, self.network, runners)
        count, seconds = self.through(resets, self.size, here, self.network, runners)
        return {"criticality": count * len(resets) / seconds}

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
        return self.feed(("decoded", None), ("filling the cache", self.folder / "cache")) | {
            "decoding processes": self.args.workers
        }

    def feed(self, *ways, place="photographs"):
        """Return the images a second that reach a network which takes no time, in some ways: (name, cache)."""
        nothing, found = network_of(Nothing(), "nothing"), {}
        with float32_precision("fp32"):
            for name, cache in ways:
                here = self.here(compile="off", cache=cache)
                count, seconds = self.through((CLEAN,), self.args.images, here, nothing, None, place)
                found[name] = round(count / seconds, 1)
        return found

    def more_feeds(self):
        """Return the images a second from the cache, a tar file and a parquet file."""
        as_tar(self.folder / "photographs", self.folder / "images.tar")
        as_parquet(self.folder / "photographs", self.folder / "images.parquet")
        return (
            self.feed(("cached", self.folder / "cache"))
            | self.feed(("from a tar file", None), place="images.tar")
            | self.feed(("from a parquet file", None), place="images.parquet")
        )

    def naive(self, here, runners, figures):
        """Return images x conditions a second of a loop without a harness, and how much faster the harness is."""
        from stimuli import naive_filter, naive_noise  # needs pyrtools

        found, network = {}, self.network.to(self.device)
        for name, transform in (("spectral", naive_filter), ("critical band", naive_noise)):
            condition = conditions_of(name.replace(" ", ""), self.data)[-1]
            random, images = np.random.default_rng(0), self.images(min(self.size, NAIVE))

            def work(condition=condition, transform=transform, random=random, images=images):
                batch = []
                for file in images.files:
                    with Image.open(images.listing.root / file) as photograph:
                        picture = Image.fromarray(STUDY(photograph))
                    batch.append(torch.from_numpy(transform(picture, condition, random)).permute(2, 0, 1))
                with torch.no_grad(), here.autocast():
                    network(torch.stack(batch).to(self.device)).argmax(1).cpu()

            work()
            found[f"naive {name}"] = len(images) / timed(work, self.device)
            if name in figures:
                found[f"{name} / naive"] = figures[name] / found[f"naive {name}"]
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


def plan(bench, cuda):
    """Yield (precision, compiled, step): every question first, then the rest."""
    kinds = ("fp32", "tf32-conv", "bf16", "tf32", "fp16") if cuda else ("fp32", "bf16")
    main, rest = kinds[:3], kinds[3:]
    for precision in kinds:
        yield precision, "off", bench.basics
    for precision in main:
        yield precision, "on", bench.basics
    yield "fp32", "on", bench.harnessed("spectral", "clean")
    yield "fp32", "on", bench.attacked
    yield "fp32", "on", bench.naive
    for precision in main[1:]:
        yield precision, "on", bench.harnessed("spectral")
        yield precision, "on", bench.attacked
    yield "fp32", "on", bench.harnessed("critical band")
    yield "fp32", "on", bench.criticality
    yield "fp32", "off", bench.harnessed("spectral")
    yield "fp32", "off", bench.attacked
    for precision in main[1:]:
        yield precision, "on", bench.naive
        yield precision, "on", bench.harnessed("clean", "critical band")
        yield precision, "on", bench.criticality
    for precision in rest:
        yield precision, "on", bench.basics
        yield precision, "on", bench.harnessed("spectral", "clean")
        yield precision, "on", bench.attacked
        yield precision, "on", bench.criticality


def rounded(figures):
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}


def shown(figures):
    """Print figures, beside their targets."""
    for key, value in figures.items():
        sign, bound = TARGETS.get(key, ("", 0))
        held = f"   target: {sign} {bound}, {'held' if value >= bound else 'MISSED'}" if sign else ""
        print(f"  {key:55} {value}{held}", flush=True)


def break_even(figures):
    """Return {precision: images from which compiling pays}, where both ways were measured."""
    pays = {}
    for name, compiled in figures.items():
        precision, _, way = name.partition(", ")
        plain = figures.get(f"{precision}, not compiled", {})
        if way == "compiled" and compiled.get("bare", 0) > plain.get("bare", float("inf")):
            ready = compiled["seconds to get ready"] - plain["seconds to get ready"]
            pays[precision] = float(f"{ready / (1 / plain['bare'] - 1 / compiled['bare']):.2g}")
    return pays


def main():
    args, cuda = parsed()
    if not cuda:
        print("There is no GPU in this: all figures below are of a CPU and say nothing about one.")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, folder)
        content = {
            "machine": described(torch.device(args.device)),
            "of": "a GPU" if cuda else "a CPU: says nothing about a GPU",
            "network": args.arch,
            "batch size": args.batch_size,
            "targets": {name: list(target) for name, target in TARGETS.items()},
            "feed, images a second": bench.prepare(),
            "figures": {},
            "not measured": [],
        }
        print("feed, images a second", content["feed, images a second"], flush=True)
        figures = content["figures"]
        for precision, compiled, step in plan(bench, cuda):
            name = f"{precision}, {'compiled' if compiled == 'on' else 'not compiled'}"
            label, known = f"{name}: {step.__name__}", figures.setdefault(name, {})
            if time.monotonic() > bench.ends:
                content["not measured"].append(label)
                continue
            started = time.monotonic()
            try:
                with float32_precision(precision):
                    found = rounded(step(*bench.ready(precision, compiled), known))
            except ImportError as error:  # of the naive loops, which need pyrtools
                content["not measured"].append(f"{label} ({error})")
                continue
            print(f"\n{label} ({time.monotonic() - started:.0f} s)")
            shown(found)
            known |= found
            content["compiling pays from, images"] = break_even(figures)
            write_json(args.out, content)
        if time.monotonic() <= bench.ends:
            content["feed, images a second"] |= bench.more_feeds()
        for name, known in figures.items():
            if {"clean", "spectral", "PGD steps", "criticality"} <= known.keys():
                decoded = content["feed, images a second"]["decoded"]
                known["hours of the study"] = hours(known, decoded, bench.network, bench.data)
                print(f"{name}: hours of the study {known['hours of the study']}")
        print("compiling pays from, images:", content["compiling pays from, images"])
        for label in content["not measured"]:
            print(f"not measured: {label}")
        write_json(args.out, content)


if __name__ == "__main__":
    main()

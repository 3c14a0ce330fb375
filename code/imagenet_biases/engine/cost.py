"""What a study will cost, before any checkpoint is there: forward passes by benchmark, and the time they take here."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imagenet_biases.engine.inference import Runner
from imagenet_biases.engine.plan import Job
from imagenet_biases.engine.precision import float32_precision
from imagenet_biases.engine.runtime import Runtime
from imagenet_biases.networks.load import Network
from imagenet_biases.vocabulary import Condition, Pass

if TYPE_CHECKING:
    from imagenet_biases.engine.evaluate import Request


@dataclass
class BenchmarkCost:
    """One benchmark's part: images, forward passes in total, those to do and their seconds by round."""

    images: int
    passes: int
    todo: list[int]
    seconds: list[float]


def forecast(request: "Request") -> Iterator[tuple[Job, BenchmarkCost]]:
    """Yield the cost of each job, in order. What several benchmarks need counts for the first of them.

    For a shard, its own share. Networks are built without their weights, one per architecture, to see which conditions
    they meet and how fast they are. What is stored under a network's label counts as done; whether it belongs to the
    same weights shows when they load.
    """
    paces: dict[Network, float] = {}
    shown: dict[tuple[str, Identity], int] = {}  # images that an earlier job, or round, shows
    counted: set[tuple[str, Identity]] = set()
    store, rounds = request.store(), len(request.shares)
    for _, label in request.labels():
        for identity, answered in _stored(store.labelled(label)).items():
            shown[label, identity] = answered
    of_shard = 1 / request.runtime.shard[1]
    for job in request.jobs:
        cost = BenchmarkCost(sum(map(len, job.image_sets)), 0, [0] * rounds, [0.0] * rounds)
        for name, label, image_pass, condition in _presentations(request, job):
            key = label, _identity(image_pass, condition, request.runtime)
            images = image_pass.images
            if key not in counted:
                counted.add(key)
                cost.passes += round(len(images) * condition.cost * of_shard)
            for number, goal in enumerate(job.goals[images.name]):
                passes = round(max(goal - shown.get(key, 0), 0) * condition.cost * of_shard)
                shown[key] = max(goal, shown.get(key, 0))
                if passes:
                    cost.todo[number] += passes
                    cost.seconds[number] += passes / _pace(request.built(name), request.runtime, paces)
        yield job, cost


def _presentations(request: "Request", job: Job) -> Iterator[tuple[str, str, Pass, Condition]]:
    """Yield (name, label, pass, condition) of all that is shown for a job, once whatever the readouts."""
    for name, label in request.labels():
        yielded = set()
        for image_pass in job.passes:
            network = request.built(name) if callable(image_pass.conditions) else None
            for condition in image_pass.conditions_for(network):
                key = image_pass.images.name, repr(condition.identity())
                if key not in yielded:
                    yielded.add(key)
                    yield name, label, image_pass, condition


Identity = tuple[str, str, str]


def _identity(image_pass: Pass, condition: Condition, runtime: Runtime) -> Identity:
    """What tells stored responses apart, except the weights, the preprocessing and the readout."""
    words = [condition.identity(), runtime.precision, runtime.seed if condition.seeded else None]
    return image_pass.images.name, image_pass.images.fingerprint, repr(words)


def _stored(entries: Iterable[Mapping[str, Any]]) -> dict[Identity, int]:
    """Return {what tells responses apart: images answered} of a label's stored entries."""
    answered: dict[Identity, int] = {}
    for entry in entries:
        identity = entry["identity"]
        keys = ("condition", "kind", "settings", "function", "version")
        condition = {key: identity[key] for key in keys if key in identity}
        words = [condition, identity["precision"], identity.get("seed")]
        key = identity["images"], identity["fingerprint"], repr(words)
        answered[key] = max(answered.get(key, 0), entry["answered"])
    return answered


def _pace(network: Network, runtime: Runtime, paces: dict[Network, float]) -> float:
    """Return the forward passes per second of an architecture, before compiling."""
    if network not in paces:
        with float32_precision(runtime.precision):
            runner = Runner(network, 224, runtime)
            pixels = torch.rand(min(runtime.batch_size, 16), 3, 224, 224, device=runtime.device)
            runner.answer(pixels, None)
            started = time.monotonic()
            answer = runner.answer(pixels, None)
            if isinstance(answer, Tensor):
                float(answer.sum())
            paces[network] = len(pixels) / (time.monotonic() - started)
    return paces[network]

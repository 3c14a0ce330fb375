"""What a study will cost, before any checkpoint is there: forward passes by benchmark, and the time they take here."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imagenet_biases.engine.inference import Runner, float32_precision
from imagenet_biases.engine.plan import Job
from imagenet_biases.engine.runtime import Runtime
from imagenet_biases.networks.load import Network
from imagenet_biases.vocabulary import Condition, Pass

if TYPE_CHECKING:
    from imagenet_biases.engine.evaluate import Request


@dataclass
class BenchmarkCost:
    """One benchmark's part: images, forward passes in total and still to do, seconds."""

    images: int = 0
    passes: int = 0
    todo: int = 0
    seconds: float = 0.0


def forecast(request: "Request") -> Iterator[tuple[Job, BenchmarkCost]]:
    """Yield the cost of each job, in order. What several benchmarks need counts for the first of them.

    For a shard, its own share. Networks are built without their weights, one per architecture, to see which conditions
    they meet and how fast they are. What is stored under a network's label counts as done; whether it belongs to the
    same weights shows when they load.
    """
    paces: dict[Network, float] = {}
    counted = set()
    store = request.store()
    stored = {label: _stored(store.labelled(label)) for _, label in request.labels()}
    for job in request.jobs:
        cost = BenchmarkCost(sum(len(images) for images in job.image_sets))
        for name, label, each, condition in _presentations(request, job):
            identity = _identity(each, condition, request.runtime)
            if (label, identity[:3]) in counted:
                continue
            counted.add((label, identity[:3]))
            cost.passes += len(each.images) * condition.cost
            todo = (len(each.images) - stored[label].get(identity, 0)) * condition.cost
            if todo:
                cost.todo += todo
                pace = _pace(request.built(name), request.runtime, paces)
                cost.seconds += todo / pace / request.runtime.world
        yield job, cost


def _presentations(request: "Request", job: Job) -> Iterator[tuple[str, str, Pass, Condition]]:
    """Yield (name, label, pass, condition) of all that this shard shows for a job."""
    for name, label in request.labels():
        for each in job.passes:
            for condition in each.conditions_for(request.built(name) if callable(each.conditions) else None):
                if request.has(name, each.images.name, condition.kind):
                    yield name, label, each, condition


Identity = tuple[str, str, str, str]


def _identity(each: Pass, condition: Condition, runtime: Runtime) -> Identity:
    """What tells stored responses apart, except the weights and the preprocessing; the readout comes last."""
    words = [condition.identity(), runtime.precision, runtime.seed if condition.seeded else None]
    return each.images.name, each.images.fingerprint, repr(words), repr(each.readout.identity())


def _stored(entries: Iterable[Mapping[str, Any]]) -> dict[Identity, int]:
    """Return {what tells responses apart: images answered} of a label's stored entries."""
    answered: dict[Identity, int] = {}
    for entry in entries:
        identity = entry["identity"]
        keys = ("condition", "kind", "settings", "function", "version")
        condition = {key: identity[key] for key in keys if key in identity}
        words = [condition, identity["precision"], identity.get("seed")]
        key = identity["images"], identity["fingerprint"], repr(words), repr(identity["readout"])
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

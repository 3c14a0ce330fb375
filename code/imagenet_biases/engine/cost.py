"""What a study will cost, before any checkpoint is there: forward passes by benchmark, and the time they take here."""

import time
from dataclasses import dataclass

import torch

from imagenet_biases.engine.inference import Runner, float32_precision
from imagenet_biases.engine.runtime import Runtime


@dataclass
class BenchmarkCost:
    """One benchmark's share: images, forward passes in all and to do, seconds."""

    images: int = 0
    passes: int = 0
    todo: int = 0
    seconds: float = 0.0


def forecast(measurement):
    """Yield (job, Line) in the order of the jobs. What several benchmarks need counts for the first of them.

    Of a shard, its own share. Networks are built without their weights, one an architecture, to see which conditions
    they meet and how fast they are. What is stored under a network's label counts as done; whether it is of the same
    weights shows when they load.
    """
    networks = measurement.labels()
    paces, counted = {}, set()
    stored = {label: _stored(measurement.store.labelled(label)) for _, label in networks}
    for job in measurement.jobs:
        line = BenchmarkCost(sum(len(images) for images in job.image_sets))
        for name, label in networks:
            for one in job.passes:
                for condition in one.conditions_for(measurement.built(name) if callable(one.conditions) else None):
                    if not measurement.has(name, one.images.name, condition.kind):
                        continue
                    identity = _identity(one, condition, measurement.runtime)
                    key = label, identity[:3]
                    if key in counted:
                        continue
                    counted.add(key)
                    passes = len(one.images) * condition.cost
                    todo = (len(one.images) - stored[label].get(identity, 0)) * condition.cost
                    line.passes, line.todo = line.passes + passes, line.todo + todo
                    if todo:
                        network = measurement.built(name)
                        line.seconds += todo / _pace(network, measurement.runtime, paces) / measurement.runtime.world
        yield job, line


def _identity(one, condition, runtime: Runtime):
    """What tells stored responses apart, but for the weights and the view; the readout comes last."""
    words = [condition.identity(), runtime.precision, runtime.seed if condition.seeded else None]
    return (one.images.name, one.images.fingerprint, repr(words), repr(one.readout.identity()))


def _stored(entries):
    """Return {what tells responses apart: images answered} of a label's stored entries."""
    found = {}
    for entry in entries:
        one = entry["identity"]
        condition = {key: one[key] for key in ("condition", "kind", "settings", "function", "version") if key in one}
        words = [condition, one["precision"], one.get("seed")]
        key = (one["images"], one["fingerprint"], repr(words), repr(one["readout"]))
        found[key] = max(found.get(key, 0), entry["answered"])
    return found


def _pace(network, runtime, paces):
    """Forward passes a second of an architecture, before compiling."""
    if network not in paces:
        with float32_precision(runtime.precision):
            runner = Runner(network, 224, runtime)
            pixels = torch.rand(min(runtime.batch_size, 16), 3, 224, 224, device=runtime.device)
            batch = None
            runner.answer(pixels, batch)
            started = time.monotonic()
            answer = runner.answer(pixels, batch)
            if isinstance(answer, torch.Tensor):
                float(answer.sum())
            paces[network] = len(pixels) / (time.monotonic() - started)
    return paces[network]

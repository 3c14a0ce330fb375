"""Which process measures what: slices of a run, dealt to its shards round by round.

A slice is a network, an image set, a kind of condition and a part of a round. Shards share only the results folder. The
deal depends on the command alone, neither on what is measured already nor on the machine, so the same command gives the
same shard the same slices on every host and at every repetition.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from imagenet_biases.engine.plan import Job, Ranges
from imagenet_biases.networks.load import Network

KINDS = ("clean", "stimulus", "change", "attack")

Unit = tuple[str, str, int, str]
"""Network, image set, size of its largest sample, kind of condition; or network, '', 0, job that shows no image."""


@dataclass
class Work:
    """What a unit takes: forward passes per image, how many images by the end of each round, the least step of both."""

    cost: int
    goals: tuple[int, ...]
    step: int = 1


def units(
    jobs: Sequence[Job], networks: Iterable[str], build: Callable[[str], Network], rounds: int, batch_size: int
) -> dict[Unit, Work]:
    """Return the work of each unit: network by network, clean before stimuli before changes before attacks.

    A condition that several jobs need counts once.

    Args:
        build: turns a network's name into a Network (without weights), for conditions that depend on the network.
        rounds: their number.
        batch_size: the step of conditions whose answers depend on the batch.
    """
    work: dict[Unit, Work] = {}
    for network in networks:
        of_network = _work(network, jobs, build, rounds, batch_size)
        work |= dict(sorted(of_network.items(), key=lambda item: KINDS.index(item[0][3]) if item[0][1] else -1))
    return work


def _work(
    network: str, jobs: Sequence[Job], build: Callable[[str], Network], rounds: int, batch_size: int
) -> dict[Unit, Work]:
    work: dict[Unit, Work] = {}
    conditions: dict[tuple[str, str, str], tuple[int, Work]] = {}  # size of the sample, passes and goals
    for job in jobs:
        if not job.passes:
            work[network, "", 0, job.name] = Work(1, (1,) * rounds)
        for image_pass in job.passes:
            images = image_pass.images
            for condition in image_pass.conditions_for(build(network) if callable(image_pass.conditions) else None):
                key = images.name, condition.kind, images.fingerprint + repr(condition.identity())
                size, before = conditions.get(key, (0, Work(0, (0,) * rounds)))
                goals = tuple(map(max, before.goals, job.goals[images.name]))
                step = batch_size if condition.batched else 1
                conditions[key] = max(size, len(images)), Work(condition.cost, goals, step)
    for (name, kind, _), (size, added) in conditions.items():
        unit = network, name, size, kind
        before = work.setdefault(unit, Work(0, added.goals))
        goals = tuple(map(max, before.goals, added.goals))
        work[unit] = Work(before.cost + added.cost, goals, max(before.step, added.step))
    return work


def deal(work: Sequence[Work], round: int, count: int) -> list[list[int]]:
    """Cut a round's images into `count` shares of nearly equal numbers of forward passes, one after the other.

    Neighbours stay together: as few shards as possible load, and compile, a network.

    Returns:
        For each unit `count` + 1 rising numbers: the n-th share shows its images from the n-th to the next of them.
    """
    starts = [unit.goals[round - 1] if round else 0 for unit in work]
    costs = [(unit.goals[round] - start) * unit.cost for unit, start in zip(work, starts, strict=True)]
    ends = list(accumulate(costs, initial=0))
    cuts = [[start] for start in starts]
    for share in range(1, count):
        passes = ends[-1] * share // count
        cut = bisect_right(ends, passes) - 1  # the unit in which this share ends
        for number, unit in enumerate(work):
            images = starts[number] if number > cut else unit.goals[round]
            if number == cut:
                steps = (passes - ends[number]) // (unit.cost * unit.step)
                images = min(starts[number] + steps * unit.step, unit.goals[round])
            cuts[number].append(images)
    return [[*of_unit, unit.goals[round]] for of_unit, unit in zip(cuts, work, strict=True)]


def slices(work: dict[Unit, Work], rounds: int, shard: tuple[int, int]) -> dict[Unit, Ranges]:
    """Return what a shard (its number from 1, and of how many) shows of each unit that it has a part in, by round."""
    number, count = shard
    ranges: dict[Unit, list[tuple[int, int]]] = {unit: [] for unit in work}
    for round in range(rounds):
        for unit, cuts in zip(work, deal(list(work.values()), round, count), strict=True):
            ranges[unit].append(list(pairwise(cuts))[number - 1])
    shares: dict[Unit, Ranges] = {}
    for unit, of_unit in ranges.items():
        if any(start < stop for start, stop in of_unit):
            shares[unit] = tuple(of_unit)
    return shares

"""Which process measures what: the units of a run (network, image set, kind of condition), dealt to its shards.

Shards share only the results folder. The deal depends on the command alone, neither on what is measured already nor on
the machine, so the same command gives the same shard the same units on every host and at every repetition.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from imagenet_biases.engine.plan import Job
from imagenet_biases.networks.load import Network

KINDS = ("clean", "stimulus", "change", "attack")

Unit = tuple[str, str, str]  # network, image set, kind of condition


def units(jobs: Iterable[Job], networks: Iterable[str], build: Callable[[str], Network]) -> dict[Unit, int]:
    """Return {unit: forward passes}: network by network, clean before stimuli before changes before attacks.

    A job that shows no image is a unit of its own, (network, '', its name). A condition that several jobs need counts
    once.

    Args:
        build: turns a network's name into a Network (without weights), for conditions that depend on the network.
    """
    passes: dict[Unit, int] = {}
    for network in networks:
        costs = _costs(network, jobs, build)
        passes |= dict(sorted(costs.items(), key=lambda item: KINDS.index(item[0][2]) if item[0][1] else -1))
    return passes


def _costs(network: str, jobs: Iterable[Job], build: Callable[[str], Network]) -> dict[Unit, int]:
    costs: dict[Unit, int] = {}
    counted = set()
    for job in jobs:
        if not job.passes:
            costs[network, "", job.name] = 1
        for each in job.passes:
            for condition in each.conditions_for(build(network) if callable(each.conditions) else None):
                key = each.images.name, each.images.fingerprint, repr(condition.identity())
                if key not in counted:
                    counted.add(key)
                    unit = network, each.images.name, condition.kind
                    costs[unit] = costs.get(unit, 0) + len(each.images) * condition.cost
    return costs


def deal(costs: Sequence[int], count: int) -> list[int]:
    """Cut costs (at least one, >= 0), in their order, into at most `count` runs of nearly equal sums.

    The largest sum is as small as possible. Neighbours stay together: as few shards as possible load, and compile, a
    network.

    Returns:
        The number of each cost's run, from 0.
    """
    least, most = max(*costs, -(-sum(costs) // count)), sum(costs)
    while least < most:
        middle = (least + most) // 2
        if _filled(costs, middle)[-1] < count:
            most = middle
        else:
            least = middle + 1
    return _filled(costs, least)


def _filled(costs: Sequence[int], most: int) -> list[int]:
    """Return the number of each cost's run where runs are filled one after the other, each up to `most`."""

    def put(place: tuple[int, int], cost: int) -> tuple[int, int]:
        run, filled = place
        return (run, filled + cost) if filled + cost <= most else (run + 1, cost)

    return [run for run, _ in accumulate(costs, put, initial=(0, 0))][1:]


def share(
    jobs: Iterable[Job], networks: Iterable[str], build: Callable[[str], Network], shard: tuple[int, int]
) -> set[Unit]:
    """Return the units of a shard (its number from 1, and of how many)."""
    number, count = shard
    costs = units(jobs, networks, build)
    runs = deal(list(costs.values()), count)
    return {unit for unit, run in zip(costs, runs, strict=True) if run == number - 1}

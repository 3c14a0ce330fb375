"""Which process measures what: the units of a run (network, image set, kind of condition), dealt to its shards.

Shards share nothing but the results folder. The deal depends on the command alone, neither on what is measured already
nor on the machine, so that the same command gives the same shard the same units on every host and at every repetition.
"""

from itertools import accumulate

KINDS = ("clean", "stimulus", "change", "attack")


def units(jobs, networks, build):
    """Return {(network, image set, kind): forward passes}: network by network, clean before stimuli before attacks.

    `networks`: names, or whatever `build` turns into a Network (without weights) for passes whose conditions depend on
    it. A job that shows no image is a unit of its own, (network, '', its name). A condition that several jobs need
    counts once.
    """
    found = {}
    for network in networks:
        costs, counted = {}, set()
        for job in jobs:
            if not job.passes:
                costs[network, "", job.name] = 1
            for one in job.passes:
                for condition in one.conditions_for(build(network) if callable(one.conditions) else None):
                    key = one.images.name, one.images.fingerprint, repr(condition.identity())
                    if key not in counted:
                        counted.add(key)
                        unit = network, one.images.name, condition.kind
                        costs[unit] = costs.get(unit, 0) + len(one.images) * condition.cost
        found |= dict(sorted(costs.items(), key=lambda item: KINDS.index(item[0][2]) if item[0][1] else -1))
    return found


def deal(costs, count):
    """Cut costs (integers >= 0, at least one), in their order, into at most `count` runs of nearly equal sums.

    The largest sum is as small as it can be. Returns the number of the run, from 0, of each. Neighbours stay together:
    a network is loaded, and compiled, by as few shards as possible.
    """
    least, most = max(*costs, -(-sum(costs) // count)), sum(costs)
    while least < most:
        middle = (least + most) // 2
        if _filled(costs, middle)[-1] < count:
            most = middle
        else:
            least = middle + 1
    return _filled(costs, least)


def _filled(costs, most):
    """Return the number of each cost's run where runs are filled one after the other, each up to `most`."""

    def put(place, cost):
        run, filled = place
        return (run, filled + cost) if filled + cost <= most else (run + 1, cost)

    return [run for run, _ in accumulate(costs, put, initial=(0, 0))][1:]


def share(jobs, networks, build, shard):
    """Return the set of units of a shard (number from 1, count)."""
    number, count = shard
    costs = units(jobs, networks, build)
    return {unit for unit, run in zip(costs, deal(list(costs.values()), count), strict=True) if run == number - 1}

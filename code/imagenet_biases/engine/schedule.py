"""What is shown next, and when a run ends: rounds in turn, or, with a budget, where the next images say most."""

import fnmatch
import math
import time
from collections.abc import Iterator, Sequence

from imagenet_biases.engine.loop import Loop, Pair
from imagenet_biases.engine.plan import Job
from imagenet_biases.engine.progress import duration
from imagenet_biases.results.measurements import Measurement, measurements
from imagenet_biases.results.places import COUNTED, missing, unsettled, widths
from imagenet_biases.results.records import Record
from imagenet_biases.study import about
from imagenet_biases.vocabulary import Settings


class Schedule:
    """Steps of a run: the pairs (job, network) that are granted a further round each.

    Attributes:
        reason: what was found out before the last round, so that the run ends, in a line.
    """

    def __init__(self, settings: Settings, loop: Loop, pairs: Sequence[Pair], started: float) -> None:
        self.settings, self.loop, self.pairs, self.started = settings, loop, list(pairs), started
        self.records: dict[Pair, Record] = {}
        self.seconds: dict[Pair, float] = {}  # that the last report of each pair took
        self.reason = ""

    def __iter__(self) -> Iterator[list[Pair]]:
        first = True
        while pairs := self._open():
            chosen = pairs
            if self.settings.budget and not first and self.loop.runtime.shard[1] == 1:
                chosen = self._most_telling(pairs)
            self._keep_time(chosen)
            yield chosen
            first = False

    def ending(self) -> str:
        """Return why the run ended before its last round, in a line; '' where it did not."""
        complete = all(map(self.loop.complete, self.pairs))
        if self.settings.budget and not complete and time.monotonic() > self.loop.progress.deadline:
            return f"the budget of {duration(self.settings.budget)} is used up"
        return self.reason

    def note(self, pair: Pair, record: Record, seconds: float) -> None:
        """Take notice of a record, and of how long it took to report."""
        self.records[pair], self.seconds[pair] = record, seconds

    def _keep_time(self, step: Sequence[Pair]) -> None:
        """Set the loop's deadline so that what a step measures can still be reported within the budget."""
        if self.settings.budget:
            reports = [seconds for pair, seconds in self.seconds.items() if pair in step]
            self.loop.progress.deadline = self.started + self.settings.budget - sum(reports)

    def _open(self) -> list[Pair]:
        """Return the pairs that have rounds left and something left to find out."""
        pairs = []
        for pair in self.pairs:
            if self.loop.pairs[pair].granted < self.loop.plan.rounds and pair[1] not in self.loop.failed:
                pairs.append(pair)
        wanted = pairs
        if self.settings.until == "places":
            wanted = [pair for pair in pairs if self._places_depend_on(pair)]
        elif self.settings.until:
            wanted = [pair for pair in pairs if pair not in self.records or self._half_width(pair) > 1]
        if pairs and not wanted:
            self.reason = f"ended early: what --until {self.settings.until} asks for is known, at one look per round"
        return wanted

    # What is known

    def _measurement(self, network: object) -> Measurement | None:
        records = [record.content for pair, record in self.records.items() if pair[1] is network]
        return next(iter(measurements(records).values()), None)

    def _places_depend_on(self, pair: Pair) -> bool:
        """Whether more images of a job may narrow a place that is not known to within two places."""
        job, network = pair
        if pair not in self.records:
            return True
        measurement = self._measurement(network)
        if measurement is None:
            return False
        there = [name for name in COUNTED if not missing(name, measurement.values)]
        for name in unsettled(network.name, measurement.projections, there):
            others = measurement.values.keys() - self.records[pair].metrics.keys()
            if any(benchmark == job.name for benchmark, _ in missing(name, others)):
                return True
        return False

    def _half_width(self, pair: Pair) -> float:
        """Return the largest half-width of what a job reports first, in units of what `until` asks for."""
        assert isinstance(self.settings.until, float | int)
        largest, content = 0.0, self.records[pair].content
        patterns = pair[0].benchmark.headline or ("*",)
        for name, sampled in content.get("sampled", {}).items():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                if sampled["low"] is None:
                    return math.inf
                wanted = self.settings.until / (1 if about(name).unit.startswith("%") else 100)
                largest = max(largest, (sampled["high"] - sampled["low"]) / 2 / wanted)
        return largest

    # With a budget

    def _most_telling(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Return the pairs of the job whose next round narrows the ranges of places most per forward pass.

        Intervals are taken to narrow as those of means do. Of jobs that narrow none, the one with the shortest round.
        """
        best, of_best = (-1.0, 0.0), list(pairs)
        for job in dict.fromkeys(job for job, _ in pairs):
            of_job = [pair for pair in pairs if pair[0] is job]
            rounds = {pair: self.loop.pairs[pair].granted + 1 for pair in of_job}
            passes = max(self.loop.passes(rounds), 1)
            narrowed = sum(map(self._narrowed, of_job))
            if (worth := (narrowed / passes, 1 / passes)) > best:
                best, of_best = worth, of_job
        return of_best

    def _narrowed(self, pair: Pair) -> int:
        """Return by how many places all ranges together would narrow if a pair had its next round."""
        job, network = pair
        measurement = self._measurement(network)
        if pair not in self.records or measurement is None:
            return 0
        factors = {}
        for name, sampled in self.records[pair].content.get("sampled", {}).items():
            factors[name] = self._factor(job, self.loop.pairs[pair].granted, sampled["images"] / sampled["of"])
        before, after = (widths(network.name, measurement, scaled) for scaled in ({}, factors))
        return sum(before[name] - after[name] for name in after)

    def _factor(self, job: Job, rounds: int, share: float) -> float:
        """Return by what the next round multiplies the intervals of a metric that rests on a share of the images."""
        shown, population = 0, 0
        for images in job.image_sets:
            shown += job.goals[images.name][rounds]
            population += images.population
        following = max(shown / population, share)
        return math.sqrt((1 / following - 1) / (1 / share - 1)) if share < 1 else 0.0

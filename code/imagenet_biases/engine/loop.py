"""THE forward loop, the only one: groups x conditions x networks -> responses.

Each image is decoded once, and each stimulus computed once, for all conditions and networks of a group; the plan
decides the grouping. Answers stay on the device until a save point.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional  # noqa: F401  here, or every decoding process would import it anew
from jaxtyping import Float
from torch import Tensor

from imagenet_biases.base.errors import Terminated, UserError, clean, device_stopped, listed_briefly, out_of_memory
from imagenet_biases.engine.inference import Runner, Runners, attacked
from imagenet_biases.engine.plan import Cell, Group, Job, Plan
from imagenet_biases.engine.progress import Progress
from imagenet_biases.engine.recorder import Places, Positions, Recorder, checksum
from imagenet_biases.engine.runtime import Runtime, on_device
from imagenet_biases.images.loader import batches
from imagenet_biases.images.preprocessing import Reader, Unreadable
from imagenet_biases.networks.load import Network
from imagenet_biases.results.responses import ResponseStore, StoredResponses
from imagenet_biases.vocabulary import Batch, Condition, Presentation

NETWORK_FAULTS = (  # what a user's network may raise; mistakes of this package in its place are found by the tests
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)

logger = logging.getLogger(__name__)

Pair = tuple[Job, Network]
Picture = np.ndarray  # uint8 [H, W, 3]


@dataclass
class Observer:
    """Who is told about a run: once a second how far it is, and when a group is done."""

    progressed: Callable[[Group, Progress, dict[tuple[Network, str], float]], None] = lambda *_: None
    group_done: Callable[[Group], None] = lambda _: None


@dataclass(frozen=True)
class Answered:
    """What a record can be written of: a pair (job, network) with answers to the first images of each set's order.

    Attributes:
        images: {image set: how many}.
        last: whether it is all that the run is to show.
    """

    job: Job
    network: Network
    images: Mapping[str, int]
    last: bool


@dataclass
class Reached:
    """How far a pair is: rounds that may be shown, and images that were there when it was last yielded (-1: never)."""

    granted: int = 0
    reported: int = -1


class OutOfTime(Exception):
    """The run's time is over."""


class Loop:
    """Shows a plan's groups to their networks, round by round.

    Responses in the store are not measured again, and interrupted runs resume from the last save point. A shard shows
    its own slices only and waits for nobody: what others have stored is read when a pair (job, network) is looked at.

    Attributes:
        pairs: how far each pair (job, network) is that is to be reported.
    """

    def __init__(
        self,
        plan: Plan,
        store: ResponseStore,
        runtime: Runtime,
        skip_unreadable: bool = False,
        progress: Progress | None = None,
        runners: Runners | None = None,
    ) -> None:
        self.plan, self.store, self.runtime, self.skip_unreadable = plan, store, runtime, skip_unreadable
        self.progress = progress or Progress(False)
        self.runners = runners or Runners(runtime, self._planned_passes())
        self.failed: dict[Network, str] = {}
        self.pictures: dict[tuple[str, Condition, Network | None], list[Picture]] = {}
        self.pairs: dict[Pair, Reached] = {}
        self.observer = Observer()

    # What is stored

    def load(self) -> None:
        """Read what is stored of every cell."""
        for group in self.plan.groups:
            checked: dict[str, int | None] = {}
            for cell in group.cells:
                if cell.stored is not None:
                    continue
                cell.stored = self._load(cell)
                if cell.stored.pixels and _other_pixels(group, cell.stored.pixels, checked):
                    warnings.warn(
                        f"{group.images.name}: images have changed since they were measured; {cell.condition.name} is "
                        f"measured again",
                        stacklevel=2,
                    )
                    cell.stored = cell.stored.forgotten()
                cell.count()
                self._free([cell])

    def _load(self, cell: Cell) -> StoredResponses:
        return self.store.load(cell.identity, cell.network.name, cell.images, cell.readout)

    def _fetch(self, cells: Iterable[Cell]) -> None:
        """Read the answers of cells again where they were freed."""
        for cell in cells:
            if cell.stored.values is None:
                stored = self._load(cell)
                cell.stored = stored.forgotten() if cell.stored.stale else stored
                cell.count()

    def _free(self, cells: Iterable[Cell]) -> None:
        """Free the answers of cells whose store keeps them."""
        if self.store.results is not None:
            for cell in cells:
                cell.stored.release()

    def _has(self, cell: Cell, goal: int) -> bool:
        """Whether the first images up to a goal are answered, by this shard or another."""
        elsewhere = cell.answered < goal and cell.ranges is not None
        if elsewhere and self.store.answered(cell.identity, cell.network.name) >= goal:
            cell.stored.values = None
            self._fetch([cell])
            self._free([cell])
        return cell.answered >= goal

    def missing(self, pair: Pair) -> bool:
        """Whether images are still to be shown for a pair, in any round."""
        job, network = pair
        return any(cell.answered < job.goals[cell.images.name][-1] for cell in self.plan.cells[job, network])

    # Showing

    def run(self, pairs: Iterable[Pair], steps: Iterable[Iterable[Pair]] | None = None) -> Iterator[Answered | None]:
        """Yield each of the pairs (job, network) whenever it has a round's new answers, all of them stored.

        None follows each step. At the deadline, and on a signal, what is between two rounds is yielded, too.

        Args:
            steps: pairs that are granted a further round each; asked for when all that was granted before is shown.
                None: all pairs, round by round.
        """
        self.pairs = {pair: Reached() for pair in pairs}
        with self.progress, ThreadPoolExecutor(1) as writer:
            try:
                self.progress.total = self.passes(dict.fromkeys(self.pairs, self.plan.rounds))
                yield from self._completed()
                for step in [list(self.pairs)] * self.plan.rounds if steps is None else steps:
                    for pair in step:
                        self.pairs[pair].granted += 1
                    yield from self._show(self._slices(self._granted()), writer)
                    yield None
            except OutOfTime:
                yield from self._interrupted()
            except (KeyboardInterrupt, Terminated):
                yield from self._interrupted()
                raise
            finally:
                self.runners.close()

    def _slices(self, rounds: Mapping[Pair, int]) -> "list[Slice]":
        """Return what is to be shown until so many rounds of each pair are over."""
        goals = self._goals(rounds)
        slices: list[Slice] = []
        split: dict[
            tuple[str, int, bool, bytes], list[Positions]
        ] = {}  # groups of one image set mostly miss the same images
        for group in self.plan.groups:
            due = [cell.due(*goals[cell]) for cell in group.cells if cell in goals]
            order, size = group.images.order, self.runtime.batch_size
            places = np.flatnonzero(np.any(due, axis=0)[order]) if due else np.empty(0, np.int64)
            if not len(places):
                continue
            batched = any(cell.condition.batched for cell in group.cells)
            # positions are those of a sample: samples of other sizes have others
            key = group.images.fingerprint, len(group.images), batched, places.tobytes()
            if key not in split:
                # answers that depend on the batch need the same batches in every run
                turns = places // size if batched else np.arange(len(places)) // size
                shown = order[places] if batched else group.images.as_stored(order[places])
                split[key] = np.split(shown, np.flatnonzero(np.diff(turns)) + 1)
            slices.append(Slice(replace(group, cells=[cell for cell in group.cells if cell in goals]), split[key]))
        return slices

    def passes(self, rounds: Mapping[Pair, int]) -> int:
        """Return the forward passes that are left until so many rounds of each pair are over."""
        return _passes(self._slices(rounds))

    def _granted(self) -> dict[Pair, int]:
        return {pair: reached.granted for pair, reached in self.pairs.items()}

    def _goals(self, rounds: Mapping[Pair, int]) -> dict[Cell, tuple[int, int]]:
        """Return {cell: (how many images it is to have, after how many rounds)} of the pairs that go on."""
        goals: dict[Cell, tuple[int, int]] = {}
        for (job, network), count in rounds.items():
            if not count or network in self.failed:
                continue
            for cell in self.plan.cells[job, network]:
                goal, before = job.goals[cell.images.name][count - 1], goals.get(cell, (0, 0))
                goals[cell] = max(goal, before[0]), max(count, before[1])
        return goals

    def _show(self, slices: "Sequence[Slice]", writer: ThreadPoolExecutor) -> Iterator[Answered]:
        """Show slices one after the other; yield what is complete after each."""
        self.progress.begin_round(_passes(slices))
        sets = [(part.group.images, part.group.preprocessing) for part in slices]
        numbered = [(number, task) for number, part in enumerate(slices) for task in part.tasks]
        feed = batches(sets, numbered, self.runtime)
        try:
            for part in slices:
                self.runners.rest({cell.network for cell in part.group.cells}, self._finished())
                self._fetch(part.group.cells)
                recorder = Recorder(*self._due(part), self.store, self.runtime, writer)
                Presenter(self, recorder, feed, self.progress).run(part.tasks)
                self.observer.group_done(part.group)
                self._free(part.group.cells)
                yield from self._completed()
        finally:
            feed.close()
        yield from self._completed()

    def _finished(self) -> set[Network]:
        """Return the networks of which nothing is to be shown any more."""
        left = {pair[1] for pair in self.pairs if not self.complete(pair)}
        return set(self.plan.networks) - left

    def _due(self, part: "Slice") -> "tuple[Group, dict[Cell, np.ndarray]]":
        """Return the part's group with the cells that still miss images, and which images these are."""
        goals, due = self._goals(self._granted()), {}
        for cell in part.group.cells:
            if cell.network not in self.failed and (rows := cell.due(*goals[cell])).any():
                due[cell] = rows
        return replace(part.group, cells=list(due)), due

    # What is complete

    def _completed(self) -> Iterator[Answered]:
        """Yield the pairs that have completed a round since they were last yielded."""
        for pair in self.pairs:
            for count in range(self.plan.rounds, 0, -1):
                goals = {images.name: pair[0].goals[images.name][count - 1] for images in pair[0].image_sets}
                if sum(goals.values()) <= self.pairs[pair].reported:
                    break
                if all(self._has(cell, goals[cell.images.name]) for cell in self.plan.cells[pair]):
                    yield from self._answered(pair, goals)
                    break

    def _interrupted(self) -> Iterator[Answered]:
        """Yield the pairs that have answers beyond what was last yielded: to the first images, without a gap."""
        for pair in self.pairs:
            goals: dict[str, int] = {}
            for cell in self.plan.cells[pair]:
                asked = pair[0].goals[cell.images.name][-1]
                goals[cell.images.name] = min(cell.answered, goals.get(cell.images.name, asked))
            if goals and min(goals.values()) and sum(goals.values()) > self.pairs[pair].reported:
                yield from self._answered(pair, goals)

    def _answered(self, pair: Pair, goals: dict[str, int]) -> Iterator[Answered]:
        job, network = pair
        cells = self.plan.cells[pair]
        self._fetch(cells)
        if any(cell.answered < goals[cell.images.name] for cell in cells):  # damaged since
            return
        self._pack(pair)
        self.pairs[pair].reported = sum(goals.values())
        if network not in self.failed:
            last = all(count == job.goals[name][-1] for name, count in goals.items())
            yield Answered(job, network, goals, last)
        self._free(cells)

    def complete(self, pair: Pair) -> bool:
        """Whether all that a pair asks for has been yielded."""
        job, _ = pair
        return self.pairs[pair].reported >= sum(job.goals[images.name][-1] for images in job.image_sets)

    def _planned_passes(self) -> dict[tuple[Network, int], int]:
        """Return the passes of each (network, crop) in the whole job, whatever is left of it or this shard's share.

        Whether a network is compiled depends on it, and all shards must compute alike.
        """
        planned: dict[tuple[Network, int], int] = {}
        for group in self.plan.groups:
            for condition, by_network in group.presentations(("clean", "stimulus", "attack")):
                for network, _ in by_network:
                    key = network, group.preprocessing.crop
                    planned[key] = planned.get(key, 0) + len(group.images) * condition.cost
        return planned

    def _pack(self, pair: Pair) -> None:
        stems = {cell.images.name.partition("/")[0]: cell.identity for cell in self.plan.cells[pair]}
        for identity in stems.values():
            self.store.pack(identity, pair[1].name)

    def pictures_of(self, cells: Iterable[Cell]) -> dict[tuple[str, str], list[Picture]]:
        """Return {(image set, condition): a few images as presented, uint8 [H, W, 3]} of some cells."""
        pictures = {}
        for cell in cells:
            for network in (None, cell.network):
                presented = self.pictures.get((cell.images.name, cell.condition, network))
                if presented:
                    pictures[cell.images.name, cell.condition.name] = presented
        return pictures


@dataclass(frozen=True)
class Slice:
    """What is shown at a time: the cells of a group, and batches of images by their positions."""

    group: Group
    tasks: Sequence[Positions]


def _passes(slices: Iterable[Slice]) -> int:
    """Return the forward passes of some slices."""
    return sum(part.group.cost() * sum(map(len, part.tasks)) for part in slices)


def _other_pixels(group: Group, checksums: dict[str, int], checked: dict[str, int | None]) -> bool:
    """Whether some image has other pixels than when it was measured; `checked`: {position: crc32 of today's}."""
    images = group.images.whole or group.images
    reader = Reader(images, group.preprocessing)
    for position, crc in checksums.items():
        if position not in checked:
            try:
                checked[position] = checksum(reader.read(int(images.chosen[int(position)])))
            except (Unreadable, IndexError, ValueError):
                checked[position] = None
        if checked[position] != crc:
            return True
    return False


class Presenter:
    """Shows one group's missing images to its networks; a recorder keeps the answers."""

    def __init__(self, loop: Loop, recorder: Recorder, feed: Iterator, progress: Progress) -> None:
        self.loop, self.recorder, self.feed, self.progress = loop, recorder, feed, progress
        self.group, self.images, self.runtime = recorder.group, recorder.group.images, loop.runtime
        device = self.runtime.device
        self.labels = torch.from_numpy(self.images.labels).to(device)
        self.keys = torch.from_numpy(self.images.keys).to(device)
        self.attacks: dict[tuple[Condition, Network], Any] = {}  # attacks under way that images join and leave

    def run(self, tasks: Iterable[Positions]) -> None:
        """Show all images; the cells of networks that fail are dropped."""
        self.progress.begin_group(self.images.name, len(self.images))
        reported = time.monotonic()
        try:
            for positions in tasks:
                if time.monotonic() > self.progress.deadline:
                    raise OutOfTime
                self._batch(positions)
                reported = self._report_and_save(reported)
            for condition, network in self.attacks:
                if network not in self.loop.failed:
                    self._guarded(network, self._continue_attack, condition, network, True)
                    reported = self._report_and_save(reported)
        except BaseException as error:
            if device_stopped(error):
                self.loop.runners.abandon()
                names = listed_briefly(dict.fromkeys(cell.network.name for cell in self.group.cells))
                raise UserError(
                    f"the GPU has stopped on images of {self.images.name}, networks {names} "
                    f"({str(error).splitlines()[0]}): a network uses an index that is out of range, or the machine is "
                    f"at fault; what was saved is kept, and CUDA_LAUNCH_BLOCKING=1 or --device cpu shows the place"
                ) from error
            self.recorder.save()  # also on Ctrl-C: what was measured is kept
            if isinstance(error, OutOfTime) or not out_of_memory(error):
                raise
            size = self.runtime.batch_size
            raise UserError(f"out of memory with --batch-size {size}; repeat with half of it") from None
        self.recorder.save(final=True)
        if unanswered := self.recorder.unanswered():
            raise AssertionError(f"{unanswered} conditions of {self.images.name} have images that were not shown")

    def _report_and_save(self, reported: float) -> float:
        """Report progress once a second and save when it is time; return when progress was last reported."""
        if time.monotonic() - reported > 1:
            reported = time.monotonic()
            accuracies = self.recorder.accuracies()
            self.progress.report({(network.name, name): value for (network, name), value in accuracies.items()})
            self.loop.observer.progressed(self.group, self.progress, accuracies)
        self.recorder.save_when_due()
        return reported

    def _batch(self, positions: Positions) -> None:
        """Show one batch under every condition that some image of it still needs."""
        rows, unreadable = next(self.feed)
        self._report_unreadable(unreadable)
        self.recorder.sample.remember(rows, positions, unreadable)
        device = self.runtime.device
        index = on_device(positions, device)
        # uint8 rows [B, H, W, 3] become float NCHW in channels-last order without a copy of their own
        pixels = on_device(rows, device).permute(0, 3, 1, 2).to(torch.float32).div_(255)
        readable = np.ones(len(positions), bool)
        readable[list(unreadable)] = False
        places = Places(positions, index, readable)
        batch = Batch(self.keys[index], self.runtime.seed)
        original = Presentation(None, pixels, pixels, self.labels[index], batch)
        for condition, by_network in self.group.presentations(("clean", "stimulus", "attack")):
            presented = None
            for network, cells in self.recorder.due(by_network, positions):
                if _stepwise(condition, network):
                    self._guarded(network, self._join, condition, network, cells, original, places)
                    continue
                if presented is None:
                    presented = replace(original, pixels=_stimulated(condition, original))
                answered = self._guarded(network, self._show, condition, network, cells, presented, places)
                if answered:
                    self._count(condition, positions)
        # a network's own activations are kept from its intact pass over the batch: all its changes in one go
        for network in dict.fromkeys(c.network for c in self.group.cells if c.condition.kind == "change"):
            if network not in self.loop.failed:
                self._guarded(network, self._show_changed, network, original, places)
        at_once = [cell for cell in self.group.cells if not _stepwise(cell.condition, cell.network)]
        self.recorder.mark(at_once, positions, readable)
        self.progress.count_images(len(positions))

    def _report_unreadable(self, unreadable: dict[int, str]) -> None:
        if unreadable and not self.loop.skip_unreadable:
            raise UserError(
                f"unreadable image {next(iter(unreadable.values()))}; replace it, or leave such images out with "
                f"--skip-unreadable"
            )
        for message in unreadable.values():
            logger.warning("left out: %s", message)

    def _show(
        self,
        condition: Condition,
        network: Network,
        cells: Sequence[Cell],
        presented: Presentation,
        places: Places,
    ) -> None:
        """Show a stimulus to one network, attacked where the condition is an attack; keep what its readouts need."""
        if condition.attack is not None:
            network_of_batch = self._runner(network).differentiable(presented.batch)
            presented = attacked(condition.attack, network_of_batch, presented, **condition.settings)
            self.recorder.count_gradients(cells, network_of_batch)
        self._answer(condition, network, cells, presented, places)

    def _answer(
        self,
        condition: Condition,
        network: Network,
        cells: Sequence[Cell],
        presented: Presentation,
        places: Places,
    ) -> None:
        """Have a network answer what is presented."""
        runner = self._runner(network)
        self._keep_picture(condition, network, presented.pixels, places.positions)
        answer = runner.answer(presented.pixels, presented.batch, condition.prompt)
        if any(cell.readout.intact for cell in cells):
            unchanged = presented.pixels is presented.before
            intact = answer if unchanged else runner.answer(presented.before, presented.batch)
            presented = replace(presented, intact=intact)
        self.recorder.keep(cells, _answered(presented, answer), places)

    def _join(
        self,
        condition: Condition,
        network: Network,
        cells: Sequence[Cell],
        original: Presentation,
        places: Places,
    ) -> None:
        """Have the images that are due join an attack under way."""
        joining = self.recorder.due_rows(cells, places.positions)
        self.recorder.mark(cells, places.positions[joining & ~places.readable], False)
        key, rows = (condition, network), np.flatnonzero(joining & places.readable)
        if key not in self.attacks:
            assert condition.stepwise is not None
            attacked_network = self._runner(network).differentiable(None)
            seed, size = self.runtime.seed, self.runtime.batch_size
            self.attacks[key] = condition.stepwise(attacked_network, seed, size, **condition.settings)
        chosen = slice(None) if len(rows) == len(joining) else on_device(rows, self.runtime.device)
        keys = original.batch.keys[chosen]
        self.attacks[key].add(places.index[chosen], original.pixels[chosen], original.labels[chosen], keys)
        self._continue_attack(condition, network)

    def _continue_attack(self, condition: Condition, network: Network, last: bool = False) -> None:
        """Continue an attack while batches are full, at the end to its end; keep the answers to finished images."""
        cells = [cell for cell in self.group.cells if cell.condition is condition and cell.network is network]
        for tickets, before, pixels in self.attacks[condition, network].finished(last):
            positions, readable = tickets.cpu().numpy(), np.ones(len(tickets), bool)
            batch = Batch(self.keys[tickets], self.runtime.seed)
            presented = Presentation(None, pixels, before, self.labels[tickets], batch)
            self._answer(condition, network, cells, presented, Places(positions, tickets, readable))
            self.recorder.count_gradients(cells, self.attacks[condition, network].network)
            self.recorder.mark(cells, positions, readable)
            self._count(condition, positions)

    def _show_changed(self, network: Network, original: Presentation, places: Places) -> None:
        """Show the pixels to one network under each of its changes."""
        runner, intact = self._runner(network), None
        for condition, by_network in self.group.presentations(("change",)):
            for _, cells in self.recorder.due([pair for pair in by_network if pair[0] is network], places.positions):
                if intact is None and (condition.attack is None or any(cell.readout.intact for cell in cells)):
                    intact = runner.intact(original.pixels, original.batch)
                presented, answer = runner.changed(condition, original)
                presented = _answered(replace(presented, intact=intact), answer)
                self.recorder.keep(cells, presented, places)
                self._count(condition, places.positions)
        runner.forget_activations()

    def _runner(self, network: Network) -> Runner:
        return self.loop.runners.get(network, self.group.preprocessing.crop)

    def _count(self, condition: Condition, positions: Positions) -> None:
        passes = len(positions) * condition.cost
        self.recorder.passes += passes
        self.progress.count_passes(passes)

    def _guarded(self, network: Network, action: Callable[..., None], *arguments: Any) -> bool:
        """Run a network; one that fails is dropped, and the others continue. Returns whether it succeeded."""
        try:
            action(*arguments)
            return True
        except UserError:
            raise
        except NETWORK_FAULTS as error:
            if out_of_memory(error) or device_stopped(error):
                raise
            reason = f"{type(error).__name__}: {clean(error, 300)}"
            if len(self.loop.plan.networks) == 1:
                raise UserError(f"{network.name} failed: {reason}") from error
            self.loop.failed[network] = reason
            self.recorder.drop(network)
            logger.error("error: %s failed: %s; the others continue", network.name, reason)
            return False

    def _keep_picture(
        self, condition: Condition, network: Network, pixels: Float[Tensor, "B 3 H W"], positions: Positions
    ) -> None:
        """Remember the sample as it is presented; a stimulus that leaves [0, 1] is a mistake in its code."""
        key = self.images.name, condition, network if condition.kind == "attack" else None
        if key not in self.loop.pictures:
            low, high = map(float, pixels.aminmax())
            if not (low >= 0 and high <= 1):
                name = condition.name
                raise UserError(f"condition '{name}' gives pixels in [{low:.4g}, {high:.4g}], not within [0, 1]")
        pictures = self.loop.pictures.setdefault(key, [])
        rows = self.recorder.sample.rows(positions)
        if rows and len(pictures) < len(self.recorder.sample.positions):
            pictures += [*pixels[rows].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()]


def _stepwise(condition: Condition, network: Network) -> bool:
    """Whether images join and leave an attack one by one; those on a network that draws stay with their batch."""
    return condition.kind == "attack" and condition.stepwise is not None and not network.wants_batch


def _stimulated(condition: Condition, original: Presentation) -> Float[Tensor, "B 3 H W"]:
    if condition.stimulus is None:
        return original.pixels
    with torch.no_grad():
        return condition.stimulus(original.pixels, original.batch, **condition.settings)


def _answered(presented: Presentation, answer: Any) -> Presentation:
    """Return the presentation with the network's answer: logits or words."""
    if isinstance(answer, Tensor):
        return replace(presented, logits=answer)
    return replace(presented, words=answer)

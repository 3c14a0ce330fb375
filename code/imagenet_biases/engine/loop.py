"""THE forward loop, the only one: groups x conditions x networks -> responses.

An image is decoded, and a stimulus made, once for all conditions and networks that are shown together: which these are
says the plan. Answers stay on the device until a checkpoint; nothing waits for the device within a batch.
"""

import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
import torchvision.transforms.functional  # noqa: F401  here, or every decoding process would import it anew
from tqdm import tqdm

from imagenet_biases.base.errors import UserError, out_of_memory
from imagenet_biases.engine.inference import Runners, attacked
from imagenet_biases.engine.progress import Progress
from imagenet_biases.engine.ranks import collected, meet, summed
from imagenet_biases.images.loader import batches
from imagenet_biases.images.preprocessing import Reader, Unreadable
from imagenet_biases.results.provenance import circumstances
from imagenet_biases.results.responses import ANSWERED, LEFT_OUT, UNSEEN, key_of
from imagenet_biases.vocabulary import Batch, Presentation

NETWORK_FAULTS = (  # what a stranger's network may raise; our own mistakes in its place are found by the tests
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Loop:
    """Shows every group of a plan to its networks.

    Responses that the store has are not measured again; a run that was stopped, at any moment, goes on from the last
    checkpoint. A shard shows its own cells only, and waits for nobody: what the others have stored is seen when a pair
    (job, network) is looked at. Ranks that split the images take every world-th missing image each.
    """

    def __init__(self, plan, store, runtime, skip_unreadable=False, progress=False, runners=None):
        self.plan, self.store, self.runtime = plan, store, runtime
        self.skip_unreadable, self.progress, self.runners = skip_unreadable, progress, runners
        self.failed, self.pictures, self.waiting = {}, {}, {}
        self.watch = self.gate = self.writer = None

    def load(self):
        """Read what is known of every cell; of other shards' cells, those that are complete."""
        for group in self.plan.groups:
            checked = {}
            for cell in group.cells:
                if not cell.mine and not self._stored_by_others(cell):
                    continue
                cell.kept = cell.kept or self._load(cell)
                if cell.kept.pixels and _other_pixels(group, cell.kept.pixels, checked):
                    warnings.warn(
                        f"{group.images.name}: images have changed since they were measured; {cell.condition.name} is "
                        f"measured again",
                        stacklevel=2,
                    )
                    cell.kept = cell.kept.forgotten()
                self._free([cell])
        meet()  # nobody writes before everybody has read the same state

    def _load(self, cell):
        return self.store.load(cell.identity, cell.network.name, len(cell.images), cell.readout)

    def _stored_by_others(self, cell):
        """Whether another shard's cell is complete by now; its answers are read if so."""
        if cell.kept is None and self.store.complete(cell.identity, cell.network.name):
            kept = self._load(cell)
            cell.kept = None if (kept.state == UNSEEN).any() else kept
            self._free([cell] if cell.kept else [])
        return cell.kept is not None

    def _fetch(self, cells):
        """Have the answers of some cells at hand: they are read again where they were given up."""
        for cell in cells:
            if cell.kept.values is None:
                kept = self._load(cell)
                cell.kept = kept.forgotten() if cell.kept.stale else kept

    def _free(self, cells):
        """Give up the answers of some cells, of which the store keeps what is there."""
        if self.store.results is not None:
            for cell in cells:
                cell.kept.release()

    def missing(self, cells):
        """Whether some image is still to be shown for some of the cells."""
        return any(cell.kept is None or (cell.kept.state == UNSEEN).any() for cell in cells)

    def run(self, pairs):
        """Yield each of the pairs (job, network) as soon as its responses are complete and stored."""
        waiting = self.waiting = dict.fromkeys(pairs)

        def complete():
            for pair in [pair for pair in waiting if self._complete(self.plan.cells[pair])]:
                cells = self.plan.cells[pair]
                self._fetch(cells)
                if self.missing(cells):  # damaged since
                    continue
                del waiting[pair]
                self._pack(pair)
                if pair[1] not in self.failed:
                    yield pair
                self._free(cells)

        yield from complete()
        needed = {cell for pair in waiting for cell in self.plan.cells[pair] if cell.mine}
        groups = [replace(g, cells=[c for c in g.cells if c.mine]) for g in self.plan.groups]
        groups = [g for g in groups if needed.intersection(g.cells) and self.missing(g.cells)]
        if self.runners is None:
            planned = {}
            for group in self.plan.groups:
                for network in {cell.network for cell in group.cells if cell.condition.kind != "change"}:
                    # what the whole job needs, not what is left of it or this shard's share: all compute alike
                    cost = sum(
                        c.cost
                        for c, by_network in group.shows(("clean", "stimulus", "attack"))
                        if dict(by_network).get(network)
                    )
                    key = network, group.preprocessing.crop
                    planned[key] = planned.get(key, 0) + len(group.images) * cost
            self.runners = Runners(self.runtime, planned)
        known = {}  # groups of one image set mostly miss the same images
        tasks = [self._tasks(group, known) for group in groups]
        total = sum(group.cost() * sum(len(task) for task in own) for group, own in zip(groups, tasks, strict=True))
        sets = [(group.images, group.preprocessing) for group in groups]
        feed = batches(sets, [(number, task) for number, own in enumerate(tasks) for task in own], self.runtime)
        with Progress(total, self.progress) as progress, ThreadPoolExecutor(1) as self.writer:
            try:
                for group, own in zip(groups, tasks, strict=True):
                    self._fetch(group.cells)
                    Showing(self, group, own, feed, progress).run()
                    if self.gate:
                        self.gate(group)
                    self._free(group.cells)
                    yield from complete()
            finally:
                feed.close()
                self.runners.close()

    def _complete(self, cells):
        """Whether all of the cells are complete, by this shard's work and that of others."""
        own, others = [c for c in cells if c.mine], [c for c in cells if not c.mine]
        return not self.missing(own) and all(self._stored_by_others(cell) for cell in others)

    def _tasks(self, group, known):
        """Return this rank's batches of missing images, as positions; `known`: {missing images: batches}."""
        missing = np.flatnonzero(np.any([cell.kept.state == UNSEEN for cell in group.cells], axis=0))
        mine, size = missing[self.runtime.rank :: self.runtime.world], self.runtime.batch_size
        return known.setdefault(mine.tobytes(), [mine[i : i + size] for i in range(0, len(mine), size)])

    def _pack(self, pair):
        if self.runtime.rank:
            return
        stems = {cell.images.name.partition("/")[0]: cell.identity for cell in self.plan.cells[pair]}
        for identity in stems.values():
            self.store.pack(identity, pair[1].name)

    def pictures_of(self, cells):
        """Return {(image set, condition): a few images as shown, uint8 [H, W, 3]} of some cells."""
        found = {}
        for cell in cells:
            for network in (None, cell.network):
                picture = self.pictures.get((cell.images.name, cell.condition, network))
                if picture:
                    found[cell.images.name, cell.condition.name] = picture
        return found


def _other_pixels(group, sample, checked):
    """Whether some image does not have the pixels that it had when it was measured; `checked`: {position: crc32}."""
    reader = Reader(group.images, group.preprocessing)
    for position, crc in sample.items():
        if position not in checked:
            try:
                checked[position] = _crc(reader.read(int(group.images.chosen[int(position)])))
            except (Unreadable, IndexError, ValueError):
                checked[position] = None
        if checked[position] != crc:
            return True
    return False


def _crc(pixels):
    return zlib.crc32(np.ascontiguousarray(pixels))


SAMPLE = 4  # images of a set, of several classes, whose pixels are remembered with the answers and to be looked at


class Showing:
    """One group's missing images shown to its networks; answers are saved now and then, at the end, and on a fault."""

    def __init__(self, loop, group, tasks, batches, progress):
        self.loop, self.group, self.tasks, self.batches, self.progress = loop, group, tasks, batches, progress
        self.runtime, self.images = loop.runtime, group.images
        device = self.runtime.device
        self.labels, self.keys = (torch.from_numpy(a).to(device) for a in (self.images.labels, self.images.keys))
        self.values = {cell: _buffer(cell, device) for cell in group.cells}
        self.due = {cell: cell.kept.state == UNSEEN for cell in group.cells}
        self.asked_rows = {cell: rows.copy() for cell, rows in self.due.items()}
        self.asked = {cell: bool(rows.any()) for cell, rows in self.due.items()}
        self.nonfinite = {cell: torch.zeros((), dtype=torch.int64, device=device) for cell in group.cells}
        self.hits = {cell: torch.zeros((), dtype=torch.int64, device=device) for cell in group.cells}
        self.counted = dict.fromkeys(group.cells, 0)
        sample = np.linspace(0, len(self.images) - 1, min(SAMPLE, len(self.images))).astype(int)
        self.sample, self.crcs = set(sample.tolist()), {}
        self.under_way = {}  # {(condition, network): an attack that images join and leave}
        self.passes = 0  # forward passes, with what an attack takes counted as such
        self.writing = None  # a checkpoint on its way to the disk

    def run(self):
        """Show all; the cells of networks that fail are dropped."""
        self.started = self.told = time.monotonic()
        self.save_at = self.started + self.runtime.checkpoint_seconds
        self.progress.group(self.images.name, len(self.images))
        try:
            for positions in self.tasks:
                self._batch(positions)
                self._now_and_then()
            for condition, network in self.under_way:
                if network not in self.loop.failed:
                    self._guarded(network, self._attack_on, condition, network, True)
                    self._now_and_then()
        except BaseException as error:
            self._save()  # also on Ctrl-C: what was measured is kept
            if not out_of_memory(error):
                raise
            raise UserError(
                f"out of memory with --batch-size {self.runtime.batch_size}; repeat with half of it"
            ) from None
        self._save(final=True)
        unseen = [cell for cell in self.group.cells if self._alive(cell) and (cell.kept.state == UNSEEN).any()]
        if unseen:
            raise AssertionError(f"{len(unseen)} conditions of {self.images.name} have images that were not shown")

    def _now_and_then(self):
        """Say how far it is and save, where it is time."""
        now = time.monotonic()
        if now - self.told > 1:
            self.told = now
            self._tell()
        if now > self.save_at:
            self._checkpoint()
            # many networks and conditions take long to copy: never more than a twentieth of the time
            self.save_at = time.monotonic() + max(self.runtime.checkpoint_seconds, 20 * (time.monotonic() - now))

    def _alive(self, cell):
        return cell.network not in self.loop.failed

    def _batch(self, positions):
        """Show one batch under every condition that some image of it still needs."""
        rows, unreadable = next(self.batches)
        self._note_unreadable(unreadable)
        for row in (row for row, position in enumerate(positions) if position in self.sample and row not in unreadable):
            self.crcs[str(positions[row])] = _crc(rows[row].numpy())
        device = self.runtime.device
        here = torch.from_numpy(positions).to(device)
        # uint8 rows [B, H, W, 3] become float NCHW in channels-last order without a copy of their own
        pixels = rows.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32).div_(255)
        readable = np.ones(len(positions), bool)
        readable[list(unreadable)] = False
        shown = Presentation(None, pixels, pixels, self.labels[here], Batch(self.keys[here], self.runtime.seed))
        for condition, by_network in self.group.shows(("clean", "stimulus", "attack")):
            presented = None
            for network, cells in self._due(by_network, positions):
                if self._in_steps(condition, network):
                    self._guarded(network, self._join, condition, network, cells, shown, positions, readable)
                    continue
                if presented is None:
                    presented = self._presented(condition, shown)
                if self._guarded(
                    network, self._answer, condition, network, cells, shown, presented, positions, readable
                ):
                    self._count(condition, positions)
        # a network's own activations are kept from its intact pass over the batch: all its changes in one go
        for network in self._networks("change"):
            self._guarded(network, self._changed, network, shown, positions, readable)
        at_once = [cell for cell in self.group.cells if not self._in_steps(cell.condition, cell.network)]
        self._mark(at_once, positions, readable)
        self.progress.images(len(positions))

    def _mark(self, cells, positions, readable):
        """Note that images have been answered, or left out."""
        for cell in cells:
            self.due[cell][positions] = False
            state = cell.kept.state[positions]
            cell.kept.state[positions] = np.where(state == UNSEEN, np.where(readable, ANSWERED, LEFT_OUT), state)

    def _note_unreadable(self, unreadable):
        if unreadable and not self.loop.skip_unreadable:
            raise UserError(
                f"unreadable image {next(iter(unreadable.values()))}; replace it, or leave such images out with "
                f"--skip-unreadable"
            )
        for message in unreadable.values():
            tqdm.write(f"left out: {message}", file=sys.stderr)

    def _due(self, by_network, positions):
        """Return the networks whose cells some image of the batch still needs, with these cells."""
        due = [(n, [cell for cell in cells if self.due[cell][positions].any()]) for n, cells in by_network]
        return [(network, cells) for network, cells in due if cells and network not in self.loop.failed]

    def _networks(self, kind):
        return list(dict.fromkeys(c.network for c in self.group.cells if c.condition.kind == kind and self._alive(c)))

    @staticmethod
    def _presented(condition, shown):
        if condition.stimulus is None:
            return shown.pixels
        with torch.no_grad():
            return condition.stimulus(shown.pixels, shown.batch, **condition.settings)

    def _answer(self, condition, network, cells, shown, presented, positions, readable):
        """Show what is presented to one network; keep what its readouts say of the answer."""
        runner, now = self._runner(network), replace(shown, pixels=presented)
        if condition.attack is not None:
            now = attacked(condition.attack, runner.differentiable(shown.batch), now, **condition.settings)
        self._ask(condition, network, cells, shown, now, positions, readable)

    def _ask(self, condition, network, cells, shown, now, positions, readable):
        """Show one network what has become of what was shown; keep what its readouts say of the answer."""
        runner = self._runner(network)
        self._picture(condition, network, now.pixels, positions)
        answer = runner.answer(now.pixels, shown.batch, condition.prompt)
        intact = None
        if any(cell.readout.intact for cell in cells):
            intact = answer if now.pixels is shown.pixels else runner.answer(shown.pixels, shown.batch)
        self._keep(cells, replace(now, intact=intact), answer, positions, readable)

    @staticmethod
    def _in_steps(condition, network):
        """Whether images join and leave an attack one by one; those on a network that draws stay with their batch."""
        return condition.kind == "attack" and condition.stepwise is not None and not network.wants_batch

    def _join(self, condition, network, cells, shown, positions, readable):
        """Have the images that are due join an attack under way."""
        joining = np.any([self.due[cell][positions] for cell in cells], axis=0)
        self._mark(cells, positions[joining & ~readable], False)
        key, rows = (condition, network), np.flatnonzero(joining & readable)
        if key not in self.under_way:
            attacker = self._runner(network).differentiable(None)
            size = self.runtime.batch_size
            self.under_way[key] = condition.stepwise(attacker, self.runtime.seed, size, **condition.settings)
        tickets, rows = (torch.from_numpy(a).to(self.runtime.device) for a in (positions[rows], rows))
        self.under_way[key].add(tickets, shown.pixels[rows], shown.labels[rows], shown.batch.keys[rows])
        self._attack_on(condition, network)

    def _attack_on(self, condition, network, last=False):
        """Go on with an attack as long as batches are full, at the end to its end; keep the answers to what is done."""
        cells = [cell for cell in self.group.cells if cell.condition is condition and cell.network is network]
        for here, before, pixels in self.under_way[condition, network].finished(last):
            positions, readable = here.cpu().numpy(), np.ones(len(here), bool)
            shown = Presentation(None, before, before, self.labels[here], Batch(self.keys[here], self.runtime.seed))
            self._ask(condition, network, cells, shown, replace(shown, pixels=pixels), positions, readable)
            self._mark(cells, positions, readable)
            self._count(condition, positions)

    def _changed(self, network, shown, positions, readable):
        """Show the pixels to one network under each of its changes."""
        runner, intact = self._runner(network), None
        for condition, by_network in self.group.shows(("change",)):
            for _, cells in self._due([pair for pair in by_network if pair[0] is network], positions):
                if intact is None and (condition.attack is None or any(cell.readout.intact for cell in cells)):
                    intact = runner.intact(shown.pixels, shown.batch)
                now, answer = runner.changed(condition, shown)
                self._keep(cells, replace(now, intact=intact), answer, positions, readable)
                self._count(condition, positions)

    def _runner(self, network):
        return self.loop.runners.get(network, self.group.preprocessing.crop)

    def _keep(self, cells, shown, answer, positions, readable):
        """Store what the readouts make of an answer: only missing rows, so that nothing is changed or doubled."""
        words = not isinstance(answer, torch.Tensor)
        shown = replace(shown, words=answer) if words else replace(shown, logits=answer)
        for cell in cells:
            rows = cell.readout(shown)
            due = np.flatnonzero(self.due[cell][positions])
            if isinstance(self.values[cell], np.ndarray):
                self.values[cell][positions[due]] = np.asarray(rows)[due]
            else:
                rows = torch.as_tensor(rows, device=self.runtime.device).to(self.values[cell].dtype)
                where = torch.from_numpy(positions[due]).to(self.runtime.device)
                self.values[cell][where] = rows if len(due) == len(positions) else rows[torch.from_numpy(due)]
            if not words:
                self.nonfinite[cell] += (~answer.isfinite().all(1)).sum()
            hits = cell.readout.hits(rows, shown.labels)
            if hits is not None:
                self.hits[cell] += hits.sum()
                self.counted[cell] += int(readable.sum())

    def _count(self, condition, positions):
        self.passes += len(positions) * condition.cost
        self.progress.passes(len(positions) * condition.cost)

    def _guarded(self, network, action, *arguments):
        """Run a network; one that fails is out, and the others go on. Returns whether it went well."""
        try:
            action(*arguments)
            return True
        except UserError:
            raise
        except NETWORK_FAULTS as error:
            if out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:300]
            if len(self.loop.plan.networks) == 1 or self.runtime.world > 1:
                raise UserError(f"{network.name} failed: {type(error).__name__}: {reason}") from error
            self.loop.failed[network] = f"{type(error).__name__}: {reason}"
            print(f"error: {network.name} failed: {self.loop.failed[network]}; the others go on", file=sys.stderr)
            return False

    def _picture(self, condition, network, pixels, positions):
        """Remember the sample as it is shown; a stimulus that leaves [0, 1] is a mistake in its code."""
        key = self.images.name, condition, network if condition.kind == "attack" else None
        if key not in self.loop.pictures:
            low, high = (float(value) for value in pixels.aminmax())
            if not (low >= 0 and high <= 1):
                name = condition.name
                raise UserError(f"condition '{name}' gives pixels in [{low:.4g}, {high:.4g}], not within [0, 1]")
        kept = self.loop.pictures.setdefault(key, [])
        rows = [row for row, position in enumerate(positions) if position in self.sample]
        if rows and len(kept) < SAMPLE:
            kept += [*pixels[rows].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()]

    def _tell(self):
        """Say how far it is, and each network's and condition's accuracy on the images so far."""
        accuracies = {
            (cell.network, cell.condition.name): 100 * self.hits[cell].item() / self.counted[cell]
            for cell in self.group.cells
            if self.counted[cell] and self._alive(cell)
        }
        self.progress.tell({(network.name, name): value for (network, name), value in accuracies.items()})
        if self.loop.watch:
            self.loop.watch(self.group, self.progress, accuracies)

    def _checkpoint(self):
        """Copy the answers, and write them while the next images are shown; not before the last ones are written."""
        if self.writing is not None and not self.writing.done():
            return
        self._written()
        cells = [cell for cell in self.group.cells if self._alive(cell)]
        for cell in cells:
            values = self.values[cell]
            cell.kept.values = values.copy() if isinstance(values, np.ndarray) else values.to("cpu", copy=True).numpy()
        counts = [int(self.nonfinite[cell]) for cell in cells]
        kept = self._kept(cells, counts, self.passes, time.monotonic() - self.started)
        for one in kept:
            one.state = one.state.copy()
        self.writing = self.loop.writer.submit(self._write, cells, kept)

    def _written(self):
        """Wait for the checkpoint on its way, if any. Raises what stopped it, a full disk for instance."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _save(self, final=False):
        """Bring the answers to the host and to disk, each rank its own; at the end, all ranks' to rank 0's file."""
        self._written()
        cells = [cell for cell in self.group.cells if self._alive(cell)]
        for cell in cells:
            values = self.values[cell]
            cell.kept.values = values if isinstance(values, np.ndarray) else values.cpu().numpy()
        counts = [int(self.nonfinite[cell]) for cell in cells]
        passes, seconds = self.passes, time.monotonic() - self.started
        if passes or not final:
            self._write(cells, self._kept(cells, counts, passes, seconds))
        if final and self.runtime.world > 1:
            passes, *counts = summed(torch.tensor([passes, *counts], device=self.runtime.device)).tolist()
            seconds = time.monotonic() - self.started  # the slowest rank's: all have come
            for cell in cells:
                self._gather(cell)
            if not self.runtime.rank:
                self._write(cells, self._kept(cells, counts, passes, seconds))
        if final:
            for cell, kept in zip(cells, self._kept(cells, counts, passes, seconds), strict=True):
                cell.kept = kept

    def _kept(self, cells, counts, passes, seconds):
        """Return what is known of each cell with what this run has added: when, where, how many odd answers."""
        now = [circumstances(self.runtime, passes / seconds)] if passes else []
        return [
            type(cell.kept)(
                cell.kept.values,
                cell.kept.state,
                cell.kept.measured + (now if self.asked[cell] else []),
                cell.kept.nonfinite + count,
                cell.kept.pixels | self.crcs,
            )
            for cell, count in zip(cells, counts, strict=True)
        ]

    def _write(self, cells, kept):
        kept = dict(zip(cells, kept, strict=True))
        for network in dict.fromkeys(cell.network for cell in cells):
            mine = [(cell.identity, kept[cell]) for cell in cells if cell.network is network and self.asked[cell]]
            name = key_of([key_of(identity) for identity, _ in mine])
            self.loop.store.save(name, mine, network.name, self.runtime.rank)

    def _gather(self, cell):
        """Bring together what the ranks have seen of a cell; every image was one rank's."""
        new = self.asked_rows[cell] & (cell.kept.state != UNSEEN)
        if cell.kept.values.dtype.kind not in "biuf":
            parts = [None] * self.runtime.world
            collected(torch.distributed.all_gather_object, parts, (new, cell.kept.values, cell.kept.state))
            for seen, values, state in parts:
                cell.kept.values[seen], cell.kept.state[seen] = values[seen], state[seen]
            return
        wide = np.float64 if cell.kept.values.dtype.kind == "f" else np.int64  # what every backend can add
        values = np.where(new.reshape(-1, *[1] * (cell.kept.values.ndim - 1)), cell.kept.values, 0).astype(wide)
        values, state = (
            torch.from_numpy(np.ascontiguousarray(one)).to(self.runtime.device)
            for one in (values, np.where(new, cell.kept.state, 0).astype(np.int64))
        )
        for one in (values, state):
            collected(torch.distributed.all_reduce, one)
        state = state.cpu().numpy()
        cell.kept.values[state > 0] = values.cpu().numpy()[state > 0].astype(cell.kept.values.dtype)
        cell.kept.state[state > 0] = state[state > 0]


def _buffer(cell, device):
    """Return where a cell's rows are collected: on the device, or on the host where torch has no such dtype."""
    if cell.kept.values.dtype.kind in "biuf":
        return torch.from_numpy(cell.kept.values).to(device, copy=True)
    return cell.kept.values

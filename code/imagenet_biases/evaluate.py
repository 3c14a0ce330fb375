"""THE forward loop, the only one: passes x conditions x networks -> responses.

An image is decoded once for all its conditions and all networks. A stimulus is made once for all networks. Answers
stay on the device until a checkpoint; nothing waits for the device within a batch.
"""

import contextlib
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed
from torch.nn import Module
from tqdm import tqdm

from imagenet_biases import fast
from imagenet_biases.errors import UserError
from imagenet_biases.images.pixels import STUDY, Reader, Unreadable
from imagenet_biases.images.sets import ImageSet

UNSEEN, LEFT_OUT = -2, -1  # answers of images not shown yet, and of unreadable ones


class Batch(NamedTuple):
    """What a stimulus or attack may depend on besides the pixels."""

    keys: torch.Tensor  # int64 [B], on the pixels' device: a stable number of each image (ImageSet.keys)
    seed: int


@dataclass(frozen=True, eq=False)
class Condition:
    """What is done to the pixels: nothing, a stimulus (the same for every network), an attack (on each network).

    A stimulus maps float32 pixels [B, 3, H, W] in [0, 1] and a Batch to pixels of the same shape and range, without
    gradients. An attack maps (network, pixels, labels int64 [B], batch) to pixels; it runs with gradients enabled,
    while the networks' parameters do not require them.
    """

    name: str
    stimulus: Callable[[torch.Tensor, Batch], torch.Tensor] | None = None
    attack: Callable[[Module, torch.Tensor, torch.Tensor, Batch], torch.Tensor] | None = None
    settings: Mapping = field(default_factory=dict)  # JSON-able: all that determines the pixels
    seeded: bool = False  # whether batch.seed matters
    cost: int = 1  # forward passes an image, for the estimate of time (a gradient counts as two more)


CLEAN = Condition("clean")


@dataclass(frozen=True)
class TopClasses:
    """Readout: the first `k` class numbers by logit, among `classes` (None: all), int16 [B, k]."""

    k: int = 5
    classes: tuple[int, ...] | None = None

    @property
    def width(self):
        return self.k

    def __call__(self, logits):
        if self.classes is None:
            return logits.topk(self.k).indices.to(torch.int16)
        classes = _on_device(self.classes, logits.device)
        return classes[logits[:, classes].topk(self.k).indices].to(torch.int16)

    def identity(self):
        return {"top": self.k, "classes": self.classes and list(self.classes)}


@dataclass(frozen=True)
class Categories:
    """Readout: the number of the category with the highest MEAN softmax probability over its classes, int16 [B, 1].

    `groups`: pairs (category name, class numbers).
    """

    groups: tuple[tuple[str, tuple[int, ...]], ...]
    width = 1

    def __call__(self, logits):
        probabilities = logits.float().softmax(1)
        means = [probabilities[:, _on_device(classes, logits.device)].mean(1) for _, classes in self.groups]
        return torch.stack(means, 1).argmax(1, keepdim=True).to(torch.int16)

    def identity(self):
        return {"categories": [[name, list(classes)] for name, classes in self.groups]}


@functools.lru_cache(maxsize=256)
def _on_device(numbers, device):
    return torch.tensor(numbers, device=device)


@dataclass(frozen=True, eq=False)
class Pass:
    """One image set, what is shown of it, and what is kept of the logits."""

    images: ImageSet
    conditions: tuple[Condition, ...] = (CLEAN,)
    readout: TopClasses | Categories = field(default_factory=TopClasses)


class Responses(NamedTuple):
    """One network's answers to one condition: int16 [N, k] class (or category) numbers, -1 for an image left out."""

    images: ImageSet
    condition: Condition
    answers: np.ndarray


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what is shown, and what is reported of the responses."""

    name: str
    passes: Callable[..., list[Pass]]  # parsed command line -> passes
    report: Callable[[dict], Iterable]  # {(image set name, condition name): Responses} -> (metric name, number) pairs
    project: str = ""  # the W&B project; the name unless given
    details: Callable[[dict], dict] | None = None  # JSON-able facts beyond the metrics
    options: Callable | None = None  # adds arguments of its own to a parser
    export: Callable | None = None  # (network name, responses, folder): files beside the record
    without_network: Callable | None = None  # parsed command line -> (name, responses) pairs, or None: use networks
    headline: tuple[str, ...] = ()  # the metrics to show first; all of them unless given


@dataclass(frozen=True)
class Settings:
    """How to run: nothing here but precision, view and seed may change an answer."""

    device: torch.device
    precision: str = "fp32"
    view: str = "study"
    seed: int = 0
    batch_size: int = 64
    workers: int = 0
    cache: str | None = None
    skip_unreadable: bool = False
    compile: str = "auto"
    checkpoint_seconds: float = 180.0
    rank: int = 0
    world: int = 1

    def autocast(self):
        """Return a context in which networks run in the chosen precision."""
        if self.precision in ("bf16", "fp16"):
            return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)
        return contextlib.nullcontext()


class Cell:
    """The answers of one network to one condition of one image set, as one readout keeps them."""

    def __init__(self, network, images, view, condition, readout, settings):
        self.network, self.images, self.condition, self.readout = network, images, condition, readout
        self.identity = {
            "network": network.identity["network"],
            "images": images.name,
            "fingerprint": images.fingerprint,
            "view": str(view),
            "condition": condition.name,
            "settings": dict(condition.settings),
            "readout": readout.identity(),
            "precision": settings.precision,
        } | ({"seed": settings.seed} if condition.seeded else {})
        self.answers = None

    def responses(self):
        return Responses(self.images, self.condition, self.answers)


class Group:
    """All cells over the same images in the same view: they share every decoded batch."""

    def __init__(self, images, view):
        self.images, self.view, self.cells = images, view, []
        self.pictures = {}  # {condition name: uint8 [n, H, W, 3]}, the first images as shown
        self.seconds, self.shown, self.nonfinite = 0.0, 0, {}

    def cell(self, network, condition, readout, settings):
        """Return the cell of this identity, made if it is new: two benchmarks that ask the same get the same cell."""
        new = Cell(network, self.images, self.view, condition, readout, settings)
        for cell in self.cells:
            if cell.network is network and cell.identity == new.identity:
                return cell
        self.cells.append(new)
        return new

    @functools.cached_property
    def missing(self):
        """Which images some cell has not seen, as positions."""
        return np.flatnonzero(np.any([cell.answers[:, 0] == UNSEEN for cell in self.cells], axis=0))

    def shows(self):
        """Yield (condition, [(network, cells)]) so that a stimulus is made once and a network called once for each."""
        order = {}
        for cell in self.cells:
            by_network = order.setdefault(id(cell.condition), (cell.condition, {}))[1]
            by_network.setdefault(id(cell.network), (cell.network, []))[1].append(cell)
        return [(condition, list(by_network.values())) for condition, by_network in order.values()]


def view_of(network, images, settings):
    """Return the view under which a network gets these images."""
    return images.view(STUDY if settings.view == "study" else network.native_view)


def grouped(passes, networks, settings):
    """Merge passes over the same images, also across benchmarks.

    Returns the groups in order, and for each pass and network the cells: {(id(pass), network name): [Cell]}.
    """
    groups, cells, conditions = {}, {}, {}
    for one in passes:
        for network in networks:
            view = view_of(network, one.images, settings)
            key = (one.images.name, one.images.fingerprint, str(view))
            group = groups.setdefault(key, Group(one.images, view))
            for condition in one.conditions:
                same = (condition.name, repr(sorted(condition.settings.items())))
                condition = conditions.setdefault(same, condition)
                cell = group.cell(network, condition, one.readout, settings)
                cells.setdefault((id(one), network.name), []).append(cell)
    return list(groups.values()), cells


class _Shown(torch.utils.data.Dataset):
    """Decoded batches: (group number, positions) -> uint8 pixels [B, H, W, 3] and messages about unreadable images."""

    def __init__(self, groups, cache):
        self.sets = [(group.images, group.view, cache) for group in groups]
        self.reader = None, None  # of the group at hand: batches come in the order of the groups

    def __getitem__(self, task):
        number, positions = task
        if self.reader[0] != number:
            self.reader = number, Reader(*self.sets[number])
        reader = self.reader[1]
        crop = reader.view.crop
        pixels = np.zeros((len(positions), crop, crop, 3), np.uint8)
        unreadable = {}
        for row, position in enumerate(positions):
            try:
                pixels[row] = reader.read(int(reader.images.chosen[position]))
            except Unreadable as error:
                unreadable[row] = str(error)
        return torch.from_numpy(pixels), unreadable


def _ignore_interrupts(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business


@contextlib.contextmanager
def float32_precision(settings):
    """Run float32 products in full (fp32) or in TensorFloat-32 (tf32), whatever the process's default."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    reduced = settings.precision == "tf32"
    torch.set_float32_matmul_precision("high" if reduced else "highest")
    torch.backends.cudnn.allow_tf32 = reduced
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Runner:
    """A network made ready on a device: `forward` without gradients, `differentiable` for attacks."""

    def __init__(self, network, view, settings, long):
        self.settings = settings
        network = network.to(settings.device, memory_format=torch.channels_last)
        # a whole batch: compiled code is made for its shape
        size = (settings.batch_size, 3, view.crop, view.crop)
        example = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(settings.device)
        example = example.to(memory_format=torch.channels_last)
        self.network = fast.folded(network, example[:2])
        self.program = fast.compiled(self.network, example, settings.autocast) if long else self.network
        self.padded = self.program is not self.network  # compiled for one batch size: a ragged batch is filled up

    def differentiable(self, pixels):
        """Return logits of pixels [B, 3, H, W], with gradients."""
        with self.settings.autocast():
            return self.network(pixels).float()

    def forward(self, pixels):
        """Return logits [B, classes] of pixels [B, 3, H, W], without gradients."""
        count = len(pixels)
        if self.padded and count < self.settings.batch_size:
            filler = pixels[-1:].expand(self.settings.batch_size - count, -1, -1, -1)
            pixels = torch.cat([pixels, filler])
        with torch.no_grad(), self.settings.autocast():
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            return self.program(pixels)[:count].float()


def measure(groups, store, settings, progress=True, watch=None, runners=None):
    """Show every group to its networks and yield each group when its responses are complete and stored.

    Responses that `store` has already are not measured again; a run that was stopped, at any moment, goes on from the
    last checkpoint. With several ranks (torch.distributed) each takes every world-th missing image. `watch`, if given,
    is called about once a second with (images shown, running accuracy). `runners`: networks made ready before.

    Raises UserError for an unreadable image unless settings.skip_unreadable.
    """
    for group in groups:
        for cell in group.cells:
            cell.answers = store.load(cell.identity, cell.network.name, len(group.images), cell.readout.width)
    if settings.world > 1:
        torch.distributed.barrier()  # nobody writes before everybody has read the same state
    tasks = []
    for number, group in enumerate(groups):
        mine = group.missing[settings.rank :: settings.world]
        tasks.append([(number, mine[i : i + settings.batch_size]) for i in range(0, len(mine), settings.batch_size)])
    loader = torch.utils.data.DataLoader(
        _Shown(groups, settings.cache),
        sampler=[task for batches in tasks for task in batches],
        batch_size=None,
        num_workers=settings.workers if any(tasks) else 0,
        pin_memory=settings.device.type == "cuda",
        worker_init_fn=_ignore_interrupts,
    )
    total = sum(_presentations(group, len(group.missing[settings.rank :: settings.world])) for group in groups)
    pause = 0.2 if sys.stderr.isatty() else 30  # a log file gets a line now and then
    bar = tqdm(total=total, unit="img", mininterval=pause, disable=not progress or not total, dynamic_ncols=True)
    with float32_precision(settings), bar:
        runners = runners or Runners(groups, settings)
        batches = iter(loader)
        for group, own in zip(groups, tasks, strict=True):
            yield _show(group, own, batches, runners, store, settings, bar, watch)


def _presentations(group, images):
    return images * sum(
        cell.condition.cost for cell in {(id(c.network), id(c.condition)): c for c in group.cells}.values()
    )


class Runners:
    """The networks made ready on the device, each when its first image comes."""

    def __init__(self, groups, settings):
        self.settings, self.ready, self.planned = settings, {}, {}
        for group in groups:
            for _, by_network in group.shows():
                for network, _ in by_network:
                    # what the whole job needs, not what is left of it: a resumed run computes as the first one did
                    key = id(network), group.view.crop
                    self.planned[key] = self.planned.get(key, 0) + len(group.images)

    def get(self, network, view):
        key = id(network), view.crop
        if key not in self.ready:
            long = self.settings.compile == "on" or (
                self.settings.compile == "auto" and self.planned[key] >= fast.COMPILE_FROM
            )
            self.ready[key] = Runner(network, view, self.settings, long)
        return self.ready[key]


def _show(group, tasks, batches, runners, store, settings, bar, watch):
    """Show one group's missing images; save its answers now and then, at the end, and when something goes wrong."""
    if not tasks and settings.world == 1:
        return group
    device, images = settings.device, group.images
    labels, keys = (torch.from_numpy(array).to(device) for array in (images.labels, images.keys))
    answers = {id(cell): torch.from_numpy(cell.answers).to(device) for cell in group.cells}
    missing = {id(cell): cell.answers[:, 0] == UNSEEN for cell in group.cells}
    nonfinite = {cell.network.name: torch.zeros((), dtype=torch.int64, device=device) for cell in group.cells}
    hits, counted = torch.zeros((), dtype=torch.int64, device=device), 0
    shows = group.shows()
    bar.set_description(images.name)

    def to_host(final):
        for cell in group.cells:
            merged = answers[id(cell)]
            if final and settings.world > 1:
                merged = merged.to(torch.int32)
                torch.distributed.all_reduce(merged, torch.distributed.ReduceOp.MAX)  # UNSEEN is the least
            cell.answers = merged.cpu().numpy().astype(np.int16)
            store.save(cell.identity, cell.network.name, cell.answers, settings.rank, final)

    started = told = time.monotonic()
    due_at = started + settings.checkpoint_seconds
    try:
        for _, positions in tasks:
            rows, unreadable = next(batches)
            if unreadable and not settings.skip_unreadable:
                raise UserError(
                    f"unreadable image {next(iter(unreadable.values()))}; replace it, or leave such images out with "
                    f"--skip-unreadable"
                )
            for message in unreadable.values():
                tqdm.write(f"left out: {message}", file=sys.stderr)
            here = torch.from_numpy(positions).to(device)
            # uint8 rows [B, H, W, 3] become float NCHW in channels-last order without a copy of their own
            pixels = rows.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32).div_(255)
            batch = Batch(keys[here], settings.seed)
            readable = torch.ones(len(positions), dtype=torch.bool, device=device)
            readable[list(unreadable)] = False
            for condition, by_network in shows:
                due = [
                    (network, [cell for cell in cells if missing[id(cell)][positions].any()])
                    for network, cells in by_network
                ]
                due = [(network, cells) for network, cells in due if cells]
                if not due:
                    continue
                shown = pixels
                if condition.stimulus is not None:
                    with torch.no_grad():
                        shown = condition.stimulus(pixels, batch)
                for network, cells in due:
                    runner = runners.get(network, group.view)
                    seen = shown
                    if condition.attack is not None:
                        seen = condition.attack(runner.differentiable, shown, labels[here], batch).detach()
                    if condition.name not in group.pictures:
                        group.pictures[condition.name] = _picture(seen, condition)
                    logits = runner.forward(seen)
                    nonfinite[network.name] += (~logits.isfinite().all(1)).sum()
                    for cell in cells:
                        out = cell.readout(logits)
                        out[~readable] = LEFT_OUT
                        # only what is missing: an image is never counted twice, nor a stored answer changed
                        due_rows = missing[id(cell)][positions]
                        if due_rows.all():
                            answers[id(cell)][here] = out
                        else:
                            rows_due = torch.from_numpy(np.flatnonzero(due_rows)).to(device)
                            answers[id(cell)][here[rows_due]] = out[rows_due]
                    if cells[0] is group.cells[0]:
                        hits += (out[:, 0] == labels[here]).sum()
                        counted += len(positions)
                    bar.update(len(positions) * condition.cost)
                    group.shown += len(positions)
            for cell in group.cells:
                missing[id(cell)][positions] = False
            now = time.monotonic()
            if now - told > 1 and counted:
                told, accuracy = now, 100 * hits.item() / counted
                bar.set_postfix_str(f"{group.cells[0].network.name} {group.cells[0].condition.name} {accuracy:.1f} %")
                if watch:
                    watch(bar.n, accuracy)
            if now > due_at:
                to_host(final=False)
                # many networks and conditions take long to write: never more than a twentieth of the time
                due_at = time.monotonic() + max(settings.checkpoint_seconds, 20 * (time.monotonic() - now))
    except torch.OutOfMemoryError:
        to_host(final=False)
        raise UserError(f"out of memory with --batch-size {settings.batch_size}; repeat with half of it") from None
    except BaseException:
        to_host(final=False)  # also on Ctrl-C: what was measured is kept
        raise
    to_host(final=True)
    group.seconds = time.monotonic() - started
    group.nonfinite = {name: int(count) for name, count in nonfinite.items()}
    unseen = [cell for cell in group.cells if (cell.answers == UNSEEN).any()]
    if unseen:
        raise AssertionError(f"{len(unseen)} conditions of {images.name} have images that were not shown")
    return group


def _picture(pixels, condition):
    """Return the first images as shown, uint8 [n, H, W, 3]; a stimulus that leaves [0, 1] is a mistake in its code."""
    low, high = (float(value) for value in pixels.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"condition '{condition.name}' gives pixels in [{low:.4g}, {high:.4g}], not within [0, 1]")
    return pixels[:4].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

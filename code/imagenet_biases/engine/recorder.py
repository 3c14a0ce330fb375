"""What one group's networks answer: collected on the device, saved at save points, at the end, and on a fault."""

import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from imagenet_biases.engine.plan import Cell, Group
from imagenet_biases.engine.runtime import Runtime, on_device
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.networks.load import Network
from imagenet_biases.results.provenance import circumstances
from imagenet_biases.results.responses import ANSWERED, LEFT_OUT, ResponseStore, StoredResponses, key_of
from imagenet_biases.vocabulary import Presentation

Positions: TypeAlias = Int64[np.ndarray, " B"]  # of a batch's images in their set
Readable: TypeAlias = Bool[np.ndarray, " B"]  # which of them can be decoded


@dataclass(frozen=True, eq=False)
class Places:
    """Where a batch's images are in their set, on the host and on the device, and which of them can be decoded."""

    positions: Positions
    index: Int64[Tensor, " B"]
    readable: Readable


SAMPLE = 4  # images of a set, of several classes, whose pixels are remembered with the answers and to be looked at


class PixelSample:
    """The first images of a set's order, whose checksums tell later whether the files still hold the same pixels.

    Attributes:
        positions: theirs.
        checksums: {position in the whole set: checksum}.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.positions: set[int] = set(images.order[:SAMPLE].tolist())
        self.checksums: dict[str, int] = {}

    def rows(self, positions: Positions) -> list[int]:
        """Return which rows of a batch show images of the sample."""
        return [row for row, position in enumerate(positions) if position in self.positions]

    def remember(self, pixels: Tensor, positions: Positions, unreadable: Iterable[int]) -> None:
        """Keep the checksums of the sample's images in a batch of decoded pixels, uint8 [B, H, W, 3]."""
        for row in self.rows(positions):
            if row not in unreadable:
                self.checksums[str(self.images.rows[positions[row]])] = checksum(pixels[row].numpy())


def checksum(pixels: np.ndarray) -> int:
    """Return the crc32 of decoded pixels."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)


@dataclass(eq=False)
class _Buffer:
    """One cell's rows while they are collected, and what is counted of them."""

    values: Any  # [N, *shape], on the device, or on the host where torch has no such dtype
    due: Bool[np.ndarray, " N"]  # images that are still to be answered
    asked: Bool[np.ndarray, " N"]  # images that this run was to answer
    nonfinite: Tensor  # answers with NaN or infinite logits
    hits: Tensor
    flat: Tensor  # gradients of attacks that are zero or not finite
    gradients: int = 0  # gradients that `flat` is of
    counted: int = 0  # images that `hits` is over

    @classmethod
    def of(cls, cell: Cell, due: Bool[np.ndarray, " N"], device: torch.device) -> "_Buffer":
        values = cell.stored.values
        if values.dtype.kind in "biuf":
            values = torch.from_numpy(values).to(device, copy=True)
        nonfinite, hits, flat = torch.zeros((3,), dtype=torch.int64, device=device)
        return cls(values, due, due.copy(), nonfinite, hits, flat)

    def on_host(self, copy: bool = False) -> np.ndarray:
        """Return the rows as an array."""
        if isinstance(self.values, np.ndarray):
            return self.values.copy() if copy else self.values
        return self.values.to("cpu", copy=copy).numpy()


class Recorder:
    """Records the answers to the images of one group that are due.

    Answers stay on the device until a save point, and nothing waits for the device in between. The cells of a network
    that fails are dropped; what was saved of them stays.
    """

    def __init__(
        self,
        group: Group,
        due: Mapping[Cell, Bool[np.ndarray, " N"]],
        store: ResponseStore,
        runtime: Runtime,
        writer: Executor,
    ) -> None:
        self.group, self.store, self.runtime, self.writer = group, store, runtime, writer
        self.buffers = {cell: _Buffer.of(cell, rows, runtime.device) for cell, rows in due.items()}
        self.sample = PixelSample(group.images)
        self.passes = 0  # forward passes; those that an attack takes count as such
        self.started = time.monotonic()
        self.next_save = self.started + runtime.checkpoint_seconds
        self.saving: Future[None] | None = None  # a save point on its way to the disk

    # What is still to be answered

    def due(
        self, by_network: Iterable[tuple[Network, list[Cell]]], positions: Positions
    ) -> list[tuple[Network, list[Cell]]]:
        """Return the networks whose cells some image of a batch still needs, with these cells."""
        pairs = []
        for network, cells in by_network:
            needed = [cell for cell in cells if cell in self.buffers and self.buffers[cell].due[positions].any()]
            if needed:
                pairs.append((network, needed))
        return pairs

    def due_rows(self, cells: Iterable[Cell], positions: Positions) -> Bool[np.ndarray, " B"]:
        """Return which images of a batch some of the cells still need."""
        return np.any([self.buffers[cell].due[positions] for cell in cells], axis=0)

    def drop(self, network: Network) -> None:
        """Forget the cells of a network that failed."""
        self.buffers = {cell: buffer for cell, buffer in self.buffers.items() if cell.network is not network}

    def unanswered(self) -> int:
        """Return how many cells still have images that were not shown."""
        return sum(bool(buffer.due.any()) for buffer in self.buffers.values())

    # What was answered

    def keep(self, cells: Sequence[Cell], presentation: Presentation, places: Places) -> None:
        """Store what the readouts make of an answer: missing rows only, so that nothing is changed or counted twice.

        Where all rows are missing, nothing goes to the device, which is not waited for.
        """
        positions, readable = places.positions, places.readable
        for cell in cells:
            buffer = self.buffers[cell]
            rows = cell.readout(presentation)
            due, where, chosen = np.flatnonzero(buffer.due[positions]), places.index, slice(None)
            if isinstance(buffer.values, np.ndarray):
                buffer.values[positions[due]] = np.asarray(rows)[due]
            else:
                rows = torch.as_tensor(rows, device=self.runtime.device).to(buffer.values.dtype)
                if len(due) < len(positions):
                    chosen = on_device(due, self.runtime.device)
                    where = places.index[chosen]
                buffer.values[where] = rows[chosen]
            if presentation.logits is not None:
                buffer.nonfinite += (~presentation.logits.isfinite().all(1)[chosen]).sum()
            hits = cell.readout.hits(rows, presentation.labels)
            if hits is not None:
                buffer.hits += hits.sum()
                buffer.counted += int(readable.sum())

    def count_gradients(self, cells: Iterable[Cell], network: Any) -> None:
        """Count an attack's gradients, and those that are none, as the network that it is made on noted them."""
        if network.flat is not None:
            for cell in cells:
                self.buffers[cell].flat += network.flat.sum()
                self.buffers[cell].gradients += len(network.flat)
            network.flat = None

    def mark(self, cells: Iterable[Cell], positions: Positions, readable: Readable | bool) -> None:
        """Note that images that were due have been answered or, where they are not readable, left out."""
        for cell in cells:
            if cell in self.buffers:
                due, state = self.buffers[cell].due, cell.stored.state
                state[positions] = np.where(due[positions], np.where(readable, ANSWERED, LEFT_OUT), state[positions])
                due[positions] = False

    def accuracies(self) -> dict[tuple[Network, str], float]:
        """Return each network's and condition's accuracy on the images so far, in per cent."""
        shares = {}
        for cell, buffer in self.buffers.items():
            if buffer.counted:
                shares[cell.network, cell.condition.name] = 100 * buffer.hits.item() / buffer.counted
        return shares

    # Saving

    def save_when_due(self) -> None:
        """Save if it is time, while the next images are shown; not before the last save point is written."""
        now = time.monotonic()
        if now <= self.next_save:
            return
        if self.saving is None or self.saving.done():
            self._wait()
            for cell, buffer in self.buffers.items():
                cell.stored.values = buffer.on_host(copy=True)
            counts = [int(buffer.nonfinite) for buffer in self.buffers.values()]
            parts = self._updated(counts, self.passes, time.monotonic() - self.started)
            for stored in parts.values():
                stored.state = stored.state.copy()
            self.saving = self.writer.submit(self._write, self._asked(parts))
        # many networks and conditions take long to copy: never more than a twentieth of the time
        self.next_save = time.monotonic() + max(self.runtime.checkpoint_seconds, 20 * (time.monotonic() - now))

    def save(self, final: bool = False) -> None:
        """Bring the answers to the host and to disk."""
        self._wait()
        for cell, buffer in self.buffers.items():
            cell.stored.values = buffer.on_host()
        counts = [int(buffer.nonfinite) for buffer in self.buffers.values()]
        updated = self._updated(counts, self.passes, time.monotonic() - self.started)
        if self.passes or not final:
            self._write(self._asked(updated))
        for cell, stored in updated.items():
            cell.stored = stored
            cell.count()

    def _wait(self) -> None:
        """Wait for the save point on its way, if any. Raises what stopped it, a full disk for instance."""
        saving, self.saving = self.saving, None
        if saving is not None:
            saving.result()

    def _updated(self, nonfinite: Sequence[int], passes: int, seconds: float) -> dict[Cell, StoredResponses]:
        """Return what is stored of each cell with what this run has added: when, where, how many odd answers."""
        moment = [circumstances(self.runtime, passes / seconds)] if passes else []
        updated = {}
        for (cell, buffer), count in zip(self.buffers.items(), nonfinite, strict=True):
            stored = cell.stored
            measured = stored.measured + (moment if buffer.asked.any() else [])
            checksums = stored.pixels | self.sample.checksums
            updated[cell] = StoredResponses(stored.values, stored.state, measured, stored.nonfinite + count, checksums)
            flat, gradients = stored.gradients
            updated[cell].gradients = flat + int(buffer.flat), gradients + buffer.gradients
        return updated

    def _asked(self, parts: dict[Cell, StoredResponses]) -> dict[Cell, StoredResponses]:
        """Return the parts to which this run adds something."""
        return {cell: stored for cell, stored in parts.items() if self.buffers[cell].asked.any()}

    def _write(self, parts: dict[Cell, StoredResponses]) -> None:
        number, count = self.runtime.shard
        shard = f".shard-{number}-of-{count}" if count > 1 else ""
        for network in dict.fromkeys(cell.network for cell in parts):
            entries = []
            for cell, stored in parts.items():
                if cell.network is network:
                    entries.append((cell.identity, stored.packed(cell.images)))
            name = key_of([key_of(identity) for identity, _ in entries])
            self.store.save(f"{name}{shard}", entries, network.name)

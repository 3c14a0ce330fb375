"""Decoded batches for the loop: decoding processes write them into slots of memory shared with the main process."""

import mmap
import shutil
import signal
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from imagenet_biases.base.errors import UserError
from imagenet_biases.images.preprocessing import Preprocessing, Reader, Unreadable
from imagenet_biases.images.sets import ImageSet

PREFETCH = 2  # batches that each process is ahead
Task: TypeAlias = tuple[int, Any]  # number of the set, positions among its chosen images


def batches(
    sets: Sequence[tuple[ImageSet, Preprocessing]], tasks: Sequence[Task], runtime: Any
) -> Generator[tuple[UInt8[Tensor, "B H W 3"], dict[int, str]], None, None]:
    """Yield (pixels, {row: why it is unreadable}) per task; unreadable rows are black.

    The pixels are valid until the next batch is requested: their memory is reused.

    Args:
        sets: image sets, each with the preprocessing to apply.
        tasks: one per batch; all tasks of a set follow each other.
        runtime: its `workers` and `cache` are used.

    Raises:
        UserError: decoding processes cannot start or have died, or memory is used up.
    """
    if not runtime.workers or not tasks:
        decoder = _Decoder(sets, runtime.cache)
        for number, positions in tasks:
            pixels = np.empty((len(positions), *decoder.shape(number)), np.uint8)
            yield torch.from_numpy(pixels), decoder.decode(number, positions, pixels)
        return
    decoder = _Decoder(sets, runtime.cache)
    if sys.platform == "linux":
        _check_semaphores(runtime.workers)
        slots = PREFETCH * runtime.workers + 1  # one batch is in use
        size = max(len(positions) * int(np.prod(decoder.shape(number))) for number, positions in tasks)
        decoder.ring = _shared_memory(slots, size)
    else:
        slots = 1
    loader = torch.utils.data.DataLoader(
        decoder,
        sampler=[(index % slots, *task) for index, task in enumerate(tasks)],
        batch_size=None,
        num_workers=runtime.workers,
        prefetch_factor=PREFETCH,
        worker_init_fn=_start,
        # the memory is inherited, which needs a fork
        multiprocessing_context="fork" if decoder.ring is not None else None,
    )
    yield from _received(iter(loader), tasks, decoder)


def _received(
    iterator: Iterator[Any], tasks: Sequence[Task], decoder: "_Decoder"
) -> Iterator[tuple[UInt8[Tensor, "B H W 3"], dict[int, str]]]:
    for index, (number, positions) in enumerate(tasks):
        try:
            pixels, unreadable = next(iterator)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                "a decoding process has died, probably for lack of memory: repeat with a smaller --batch-size, or "
                "with fewer --num-workers (0 for none)"
            ) from error
        if isinstance(unreadable, BaseException):
            raise unreadable
        if decoder.ring is not None:
            pixels = torch.from_numpy(decoder.place(index % len(decoder.ring), number, positions))
        yield pixels, unreadable


class _Decoder(torch.utils.data.Dataset):
    """Decodes tasks, in any process; `ring` is memory [slots, bytes] shared by all processes, or None."""

    def __init__(self, sets: Sequence[tuple[ImageSet, Preprocessing]], cache: str | Path | None) -> None:
        self.sets, self.cache = sets, cache
        self.ring: np.ndarray | None = None
        self.reader: tuple[Any, Any] = (None, None)  # number and reader of the current set: tasks come set by set

    def shape(self, number: int) -> tuple[int, int, int]:
        """Return the shape of a preprocessed image of a set."""
        images, preprocessing = self.sets[number]
        crop = images.preprocessing(preprocessing).crop
        return crop, crop, 3

    def place(self, slot: int, number: int, positions: Sequence[int]) -> UInt8[np.ndarray, "B H W 3"]:
        """Return the array for a task in a slot of the ring."""
        assert self.ring is not None
        shape = (len(positions), *self.shape(number))
        return self.ring[slot, : int(np.prod(shape))].reshape(shape)

    def decode(self, number: int, positions: Sequence[int], pixels: np.ndarray) -> dict[int, str]:
        """Write the images at some positions into `pixels`; return {row: why it is unreadable}."""
        if self.reader[0] != number:
            images, preprocessing = self.sets[number]
            self.reader = number, Reader(images, preprocessing, self.cache)
        reader, unreadable = self.reader[1], {}
        for row, position in enumerate(positions):
            try:
                reader.read(int(reader.images.chosen[position]), pixels[row])
            except Unreadable as error:
                pixels[row] = 0
                unreadable[row] = str(error)
        return unreadable

    def __getitem__(self, task: tuple[int, int, Sequence[int]]) -> tuple[Tensor | None, dict[int, str] | BaseException]:
        """Return (pixels, unreadable rows); pixels are None if they are in the ring, and an error replaces the rows.

        torch would pass errors on as the text of their tracebacks.
        """
        slot, number, positions = task
        try:
            if self.ring is not None:
                return None, self.decode(number, positions, self.place(slot, number, positions))
            pixels = np.empty((len(positions), *self.shape(number)), np.uint8)
            return torch.from_numpy(pixels), self.decode(number, positions, pixels)
        except (UserError, OSError, MemoryError) as error:
            return None, error


def _check_semaphores(workers: int) -> None:
    """Raise UserError if /dev/shm lacks the few pages for the queues' semaphores: torch would show a traceback."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        free = 0
    if free < 16_384 * (workers + 8):
        raise UserError(
            f"decoding processes cannot be started: /dev/shm has {free / 1000:,.0f} kB free; empty it, make it larger "
            f"(docker run --shm-size 64m), or repeat with --num-workers 0"
        )


def _shared_memory(slots: int, size: int) -> UInt8[np.ndarray, "slots size"]:
    """Return an array that processes forked from this one share.

    It has no name and so takes no space in /dev/shm, of which a container has 64 MB.
    """
    try:
        return np.frombuffer(mmap.mmap(-1, slots * size), np.uint8).reshape(slots, size)
    except OSError as error:
        raise UserError(
            f"no memory for decoded images ({slots * size / 1e6:,.0f} MB, {error.strerror}): repeat with fewer "
            f"--num-workers, 0 for none, or a smaller --batch-size"
        ) from None


def _start(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if worker:
        warnings.simplefilter("ignore")  # every process would repeat the warnings about the cache

"""Decoded batches for the loop: processes that decode write them into slots of memory that the main process sees."""

import mmap
import shutil
import signal
import sys
import warnings

import numpy as np
import torch

from imagenet_biases.base.errors import UserError
from imagenet_biases.images.preprocessing import Reader, Unreadable

PREFETCH = 2  # batches that each process is ahead


def batches(sets, tasks, runtime):
    """Yield (pixels uint8 [B, H, W, 3], {row: why it is unreadable}) for each task; unreadable rows are black.

    sets: pairs (ImageSet, View). tasks: pairs (number of the set, positions among its chosen images), all of a set
    together. The pixels are there until the next batch is asked for: their place is used again. Raises UserError for
    what ends the decoding.
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
        # one batch is shown, the copy of the one before may still be on its way to a GPU
        slots = PREFETCH * runtime.workers + 2
        most = max(len(positions) * int(np.prod(decoder.shape(number))) for number, positions in tasks)
        decoder.ring = _shared_memory(slots, most)
    else:
        slots = 1
    loader = torch.utils.data.DataLoader(
        decoder,
        sampler=[(index % slots, *task) for index, task in enumerate(tasks)],
        batch_size=None,
        num_workers=runtime.workers,
        prefetch_factor=PREFETCH,
        worker_init_fn=_start,
        # the memory is inherited, which takes a fork
        multiprocessing_context="fork" if decoder.ring is not None else None,
    )
    iterator = iter(loader)
    with _pinned(decoder.ring, runtime.device):
        yield from _received(iterator, tasks, decoder, runtime.device)


def _received(iterator, tasks, decoder, device):
    shown = []  # what the device has been given to do
    for index, (number, positions) in enumerate(tasks):
        if len(shown) > 1:
            shown.pop(0).synchronize()  # asking for the next batch hands out the slot of the last but one
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
        if device.type == "cuda":
            shown.append(torch.cuda.Event())
            shown[-1].record()


class _Decoder(torch.utils.data.Dataset):
    """Decodes tasks, in any process; `ring` is memory [slots, bytes] that all of them see, or None."""

    def __init__(self, sets, cache):
        self.sets, self.cache, self.ring = sets, cache, None
        self.reader = None, None  # of the set at hand: tasks come set by set

    def shape(self, number):
        """Return the shape of an image of a set under its view."""
        images, preprocessing = self.sets[number]
        crop = images.preprocessing(preprocessing).crop
        return crop, crop, 3

    def place(self, slot, number, positions):
        """Return the array in a slot of the ring for a task."""
        shape = (len(positions), *self.shape(number))
        return self.ring[slot, : int(np.prod(shape))].reshape(shape)

    def decode(self, number, positions, pixels):
        """Write the images at positions into `pixels`; return {row: why it is unreadable}."""
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

    def __getitem__(self, task):
        """Return (pixels, unreadable): None for pixels in the ring, an error in the place of the second.

        torch would hand errors on as the text of their tracebacks.
        """
        slot, number, positions = task
        try:
            if self.ring is not None:
                return None, self.decode(number, positions, self.place(slot, number, positions))
            pixels = np.empty((len(positions), *self.shape(number)), np.uint8)
            return torch.from_numpy(pixels), self.decode(number, positions, pixels)
        except (UserError, OSError, MemoryError) as error:
            return None, error


def _check_semaphores(workers):
    """The processes' queues need semaphores, a few pages of /dev/shm: without, torch would end in a traceback."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        free = 0
    if free < 16_384 * (workers + 8):
        raise UserError(
            f"decoding processes cannot be started: /dev/shm has {free / 1000:,.0f} kB free; empty it, make it larger "
            f"(docker run --shm-size 64m), or repeat with --num-workers 0"
        )


def _shared_memory(slots, size):
    """Return an array uint8 [slots, size] that processes forked from this one share.

    It has no name and so does not lie in /dev/shm, of which a container has 64 MB.
    """
    try:
        return np.frombuffer(mmap.mmap(-1, slots * size), np.uint8).reshape(slots, size)
    except OSError as error:
        raise UserError(
            f"no memory for decoded images ({slots * size / 1e6:,.0f} MB, {error.strerror}): repeat with fewer "
            f"--num-workers, 0 for none, or a smaller --batch-size"
        ) from None


class _pinned:
    """Lock the ring in memory while it is used, for fast copies to a GPU; they work without, only slower."""

    def __init__(self, ring, device):
        self.address = ring.ctypes.data if ring is not None and device.type == "cuda" else None
        self.size = ring.nbytes if ring is not None else 0

    def __enter__(self):
        if self.address and int(torch.cuda.cudart().cudaHostRegister(self.address, self.size, 0)):
            self.address = None

    def __exit__(self, *_):
        if self.address:
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self.address)


def _start(worker):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if worker:
        warnings.simplefilter("ignore")  # what one says of the cache, all would say

"""Processes that split the images of every group between them (torchrun with --split images).

They wait for each other at meetings: each looks, every now and then, whether all have come. So a slow rank may take
hours, signals end the wait, missing ranks can be named, and the collective that follows takes seconds.
"""

import contextlib
import datetime
import itertools
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from imagenet_biases.base.errors import UserError
from imagenet_biases.engine.runtime import Runtime

logger = logging.getLogger(__name__)

MEETING = datetime.timedelta(minutes=5)  # how long ranks wait for each other at the start
COLLECTIVE = datetime.timedelta(minutes=30)  # of tensors, once all have come
REPORT = 30.0  # seconds between messages that say who is waited for
BEAT, SILENCE = 10.0, 600.0  # seconds between heartbeats, and without any until a rank counts as dead
KEPT = "what was measured is kept: repeat the command"


class _Group:
    """The store through which the ranks of this process's group see each other."""

    def __init__(self, store: Any, runtime: Runtime) -> None:
        self.store, self.rank, self.world = store, runtime.rank, runtime.world
        self.turns, self.heard, self.left = itertools.count(), {}, threading.Event()
        store.set(f"host/{self.rank}", socket.gethostname())
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        for number in itertools.count():
            with contextlib.suppress(RuntimeError, OSError):
                self.store.set(f"beat/{self.rank}", str(number))
            if self.left.wait(BEAT):
                return

    def meet(self) -> None:
        """Wait until every rank has come to this meeting."""
        turn = next(self.turns)
        try:
            self.store.set(f"met/{turn}/{self.rank}", "")
            started = reported = time.monotonic()
            while missing := [rank for rank in range(self.world) if not self.store.check([f"met/{turn}/{rank}"])]:
                time.sleep(0.05 if time.monotonic() - started < 5 else 1.0)
                self._listen(missing)
                if time.monotonic() - reported > REPORT:
                    reported = time.monotonic()
                    if self.rank == min(set(range(self.world)) - set(missing)):
                        logger.info("waiting for %s", self.names(missing))
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"rank 0, which the others talk through, has ended ({reason}); {KEPT}") from None

    def _listen(self, missing: Iterable[int]) -> None:
        """Raise UserError for a missing rank whose heartbeat has stopped."""
        for rank in missing:
            beat = self.store.get(f"beat/{rank}") if self.store.check([f"beat/{rank}"]) else b""
            if self.heard.get(rank, (None,))[0] != beat:
                self.heard[rank] = beat, time.monotonic()
            elif time.monotonic() - self.heard[rank][1] > SILENCE:
                raise UserError(f"{self.names([rank])} has not been heard from for {SILENCE / 60:.0f} minutes; {KEPT}")

    def names(self, ranks: Iterable[int]) -> str:
        """Return ranks with their hosts, as text."""
        hosts = {r: self.store.get(f"host/{r}").decode() if self.store.check([f"host/{r}"]) else "?" for r in ranks}
        return ", ".join(f"rank {rank} ({host})" for rank, host in hosts.items())


_group: _Group | None = None


@contextlib.contextmanager
def ranks(runtime: Runtime) -> Iterator[None]:
    """Join the other ranks that torchrun started, if any, and leave them at the end."""
    global _group
    if runtime.world == 1:
        yield
        return
    if runtime.device.type == "cuda":
        torch.cuda.set_device(runtime.device)
    _group = _Group(_join(runtime), runtime)
    try:
        yield
        meet()
        collected(
            torch.distributed.barrier
        )  # rank 0 keeps the store: it leaves when the others have seen all have come
    finally:
        _group.left.set()
        _group = None
        torch.distributed.destroy_process_group()


def meet() -> None:
    """Wait for all ranks, hours if need be. Raises UserError for a rank that is gone."""
    if _group is not None:
        _group.meet()


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks."""
    meet()
    collected(torch.distributed.all_reduce, tensor)
    return tensor


def collected(collective: Callable[..., Any], *arguments: Any) -> Any:
    """Call one of torch's collectives, for which all ranks must be present. Raises UserError where one is gone."""
    try:
        return collective(*arguments)
    except RuntimeError as error:
        raise UserError(f"another rank has ended ({str(error).splitlines()[0][:150]}); {KEPT}") from None


def check_shared(runtime: Runtime, folder: str | Path | None) -> None:
    """Check that every rank sees the results folder of rank 0. Raises UserError, on all ranks, where one does not."""
    if runtime.world == 1 or folder is None or _group is None:
        return
    store, folder = _group.store, Path(folder)
    if runtime.rank == 0:
        name = f".ranks-{uuid.uuid4().hex}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        store.set("file", name)
    meet()
    file = folder / store.get("file").decode()
    until = time.monotonic() + 10  # other hosts' views of a folder may lag behind
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.2)
    store.set(f"sees/{runtime.rank}", str(int(file.exists())))
    meet()
    blind = [rank for rank in range(runtime.world) if store.get(f"sees/{rank}") == b"0"]
    names = _group.names(blind)
    collected(torch.distributed.barrier)  # all have looked
    if runtime.rank == 0:
        file.unlink(missing_ok=True)
    if blind:
        raise UserError(
            f"--split images needs one results folder for all ranks, and {names} does not see that of rank 0, "
            f"{folder.absolute()}: give one on a shared file system with --results, or run each host by itself "
            f"with --shard i/n"
        )


def _join(runtime: Runtime) -> Any:
    """Meet the other ranks for the first time; return the store that all of them see."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    message = f"rank {runtime.rank} waits at {address} for all {runtime.world} ranks that WORLD_SIZE promises"
    try:
        meeting = rendezvous("env://", runtime.rank, runtime.world, timeout=MEETING)
        store = _waited_for(lambda: next(meeting)[0], message)
        torch.distributed.init_process_group(
            "nccl" if runtime.device.type == "cuda" else "gloo",
            store=PrefixStore("collectives", store),
            rank=runtime.rank,
            world_size=runtime.world,
            timeout=COLLECTIVE,
        )
    except (RuntimeError, ValueError, OverflowError, OSError) as error:
        raise UserError(
            f"the {runtime.world} processes that WORLD_SIZE promises did not meet at {address} (MASTER_ADDR, "
            f"MASTER_PORT) within {MEETING.total_seconds() / 60:.0f} minutes: {str(error).splitlines()[0]}; let "
            f"torchrun start them, or unset WORLD_SIZE"
        ) from None
    return PrefixStore("company", store)


def _waited_for(action: Callable[[], Any], message: str) -> Any:
    """Return the result of an action that ignores signals while it blocks: in a thread, so that Ctrl-C ends the wait.

    `message` is logged if it takes long, and again every now and then.
    """
    outcome: list[tuple[Any, Exception | None]] = []

    def act() -> None:
        try:
            outcome.append((action(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    reported = time.monotonic()
    while thread.is_alive():
        thread.join(0.2)
        if time.monotonic() - reported > REPORT:
            reported = time.monotonic()
            logger.info("%s, %.0f minutes at most", message, MEETING.total_seconds() / 60)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result

"""What a run runs on: the device, the shard, the processes that decode."""

import contextlib
import ctypes
import functools
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from imagenet_biases.base.errors import UserError, clean, collected_warnings
from imagenet_biases.engine.precision import FLOAT32
from imagenet_biases.vocabulary import Settings

logger = logging.getLogger(__name__)

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # exists where a driver is loaded

# forward passes from which compiling (5-60 s) pays: of a network on a CPU; of all networks of a graph elsewhere, which
# is an estimate (2,000-5,000 images per second, a third saved): benchmarks/gpu.py says what it is on a GPU at hand
COMPILE_FROM, COMPILE_TOGETHER_FROM = 20_000, 500_000


@dataclass(frozen=True)
class Runtime:
    """Settings as they hold on this machine. Only precision, preprocessing and seed may change an answer.

    Attributes:
        shard: which share of the work is measured here: its number from 1, and of how many.
        lead: whether this process shows progress: one of those that torchrun started.
        started: when, on the clock of time.monotonic.
    """

    device: torch.device
    precision: str
    preprocessing: str
    seed: int
    batch_size: int
    workers: int
    cache: str | None
    compile: str
    checkpoint_seconds: float
    shard: tuple[int, int] = (1, 1)
    lead: bool = True
    started: float = field(default_factory=time.monotonic)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return a context in which networks run in the chosen precision."""
        if self.precision in ("bf16", "fp16"):
            return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)
        return contextlib.nullcontext()

    def compiles(self, images: int) -> bool:
        """Whether what is to see so many images is compiled: a network on a CPU, networks of one graph elsewhere."""
        least = COMPILE_FROM if self.device.type == "cpu" else COMPILE_TOGETHER_FROM
        return self.compile == "on" or (self.compile == "auto" and images >= least)


def make_runtime(settings: Settings, images: int) -> Runtime:
    """Return the runtime that settings mean on this machine.

    Args:
        images: how many are to be decoded.

    Raises:
        UserError: a device or environment that this machine does not have.
    """
    shard = _shard(settings)
    device = _device(settings.device)
    if device.type == "cuda":  # first of all: whatever names no GPU, events and pinned memory too, means this one
        torch.cuda.set_device(device)
    if settings.precision in FLOAT32 and not _has_tf32(device):
        raise UserError(
            f"--precision {settings.precision} is for NVIDIA GPUs of compute capability 8.0 (Ampere) or later; "
            f"omit it, or use bf16"
        )
    if device.type == "cpu":
        keep_memory()
    return Runtime(
        device=device,
        precision=settings.precision,
        preprocessing=settings.preprocessing,
        seed=settings.seed,
        batch_size=settings.batch_size or (256 if device.type == "cuda" else 32),
        workers=_workers(settings, device, images),
        cache=str(settings.cache) if settings.cache else None,
        compile=settings.compile,
        checkpoint_seconds=settings.checkpoint_seconds,
        shard=shard,
        lead=_number("RANK", 0) == 0,
    )


def _workers(settings: Settings, device: torch.device, images: int) -> int:
    if settings.workers is not None:
        return settings.workers
    if images < 512:
        return 0  # starting processes would take longer than decoding
    cores = available_cores() // max(1, _number("LOCAL_WORLD_SIZE", 1))
    # on two cores, a process that decodes beside the network costs more than it gives: benchmarks/README.md
    return cores // 4 if device.type == "cpu" else min(16, max(1, cores))


def _shard(settings: Settings) -> tuple[int, int]:
    """Return this process's shard; each process that torchrun started is one of those of the shard asked for."""
    number, count = settings.shard or (1, 1)
    if settings.alone:
        return number, count
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise UserError(
            f"RANK={rank} and WORLD_SIZE={world} contradict each other; let torchrun set them, or unset both"
        )
    if world > 1 and "RANK" not in os.environ:
        raise UserError(f"WORLD_SIZE={world}, but RANK is not set; let torchrun set them, or unset both")
    return (number - 1) * world + rank + 1, count * world


def available_cores() -> int:
    """Return how many cores this process may use, by its affinity and its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # microseconds, or 'max': no limit
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, default)
    try:
        return int(text)
    except ValueError:
        raise UserError(f"the environment variable {variable} is '{str(text)[:60]}', not a number; unset it") from None


def _device(name: str | torch.device) -> torch.device:
    if isinstance(name, torch.device):
        return name
    with collected_warnings() as reasons:
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    reason = "" if available["cuda"] else _unusable_gpu(reasons)
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
        if reason:
            logger.warning("warning: measuring without the NVIDIA GPU of this machine: %s", reason)
    kind = str(name).partition(":")[0]
    if not available.get(kind):
        if kind not in available:
            raise UserError(f"there is no device '{name}': it is auto, {', '.join(available)}")
        why = f" ({reason})" if kind == "cuda" and reason else ""
        raise UserError(f"--device {name}: this machine has none that torch can use{why}; omit --device")
    return _numbered(name, kind, available)


def _numbered(name: str, kind: str, available: Iterable[str]) -> torch.device:
    """Return the device of a kind that this machine has, the one of this process where torchrun started several."""
    try:
        device = torch.device("cuda", _number("LOCAL_RANK", 0)) if name == "cuda" else torch.device(name)
    except (RuntimeError, ValueError, OverflowError):
        raise UserError(
            f"there is no device '{name}': it is auto, {', '.join(available)}, or cuda:0, cuda:1, ..."
        ) from None
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not 0 <= (device.index or 0) < count:
        raise UserError(f"there is no device {device}: this machine has {count} of that kind (LOCAL_RANK, --device)")
    return device


def _has_tf32(device: torch.device) -> bool:
    """Whether a device computes in TensorFloat-32; older GPUs ignore the setting, and the record would be wrong."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def _unusable_gpu(reasons: Sequence[str]) -> str:
    """Return why torch cannot use the NVIDIA GPU that this machine has, by torch's own warnings, or ''."""
    if reasons:  # too old a driver, for instance: in the first sentences, before advice and addresses
        return clean(reasons[0], 200)
    if NVIDIA_DRIVER.exists() and torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; install another build"
    return ""


def on_device(numbers: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return numbers as a tensor on a device, without waiting for what the device still has to do.

    Their memory may be used again at once.
    """
    tensor = numbers if isinstance(numbers, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(numbers))
    if device.type == "cuda" and _pins():
        tensor = tensor.pin_memory()  # a copy, which torch keeps until the device has it
    return tensor.to(device, non_blocking=True)


@functools.cache
def _pins() -> bool:
    """Whether memory can be locked for fast copies to a GPU; without, they are only slower."""
    try:
        torch.empty(1).pin_memory()
        return True
    except RuntimeError as error:
        logger.warning("copies to the GPU are slower: no memory can be locked (%s)", str(error).splitlines()[0])
        return False


@functools.cache
def keep_memory() -> None:
    """Let the C library keep freed memory instead of returning it to the system after every layer.

    glibc returns every large block at once and fetches it again, page by page, for the next layer: on a CPU that is up
    to half of the time. With M_MMAP_MAX = 0 and no trimming the pages stay. Does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)  # as a size_t: more than there is

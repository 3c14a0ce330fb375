"""A network prepared on a device: answers without gradients, with gradients for attacks, and under changes."""

import itertools
import logging
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from imagenet_biases.base.errors import UserError
from imagenet_biases.engine import compilation
from imagenet_biases.engine.activation_cache import ActivationCache
from imagenet_biases.engine.runtime import Runtime
from imagenet_biases.networks.load import Network
from imagenet_biases.vocabulary import Attacked, Batch, Condition, Presentation

logger = logging.getLogger(__name__)

RESTING = 8  # prepared networks that wait for their next turn: each is a copy, which is made again in a second
MEASURE_FROM = 20_000  # forward passes of an architecture on a GPU: fewer take no longer than trying its kernels
DRAWS = 4  # for a network that draws: an attack averages each gradient over so many (expectation over transformation)

Pixels = Float[Tensor, "B 3 H W"]


class _PixelsOnly(torch.nn.Module):
    """A network as a function of pixels alone, which is what can be traced, folded and compiled."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Pixels) -> Tensor:
        return self.network(pixels)


class Runner:
    """A network on a device, in the settings' precision.

    The network itself goes to the device only where it runs as it was built; usually a folded copy does.

    Args:
        crop: side of its input in pixels.
        programs: where compiled programs are kept; None: the network is not compiled.
        layout: the order in which it takes pixels; None: channels-last if it accepts that.
    """

    def __init__(
        self,
        network: Network,
        crop: int,
        runtime: Runtime,
        programs: compilation.Programs | None = None,
        layout: torch.memory_format | None = None,
    ) -> None:
        self.network, self.runtime, self.crop, self.programs = network, runtime, crop, programs
        self.layout = layout or _layouts(network)[0]
        network.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.program: Callable[..., Any] = network
        self.folded: torch.nn.Module = network
        self.changes: ActivationCache | None = None
        self.steps: Callable[..., Any] | None = None
        self.resting = False
        if network.wants_batch or network.answers == "words":
            network.to(runtime.device)
            return  # their forward is more than a function of pixels
        example = self._example(2).to(next(network.buffers()).device)
        self.program = self.folded = compilation.folded(_PixelsOnly(network).eval(), example).to(runtime.device)
        if programs is not None:
            self.program = programs.compiled(self.folded, self._example(runtime.batch_size), runtime.autocast)

    @property
    def padded(self) -> bool:
        """Whether a ragged batch is filled up: a program is compiled for one batch size."""
        return self.program is not self.folded

    def _example(self, count: int) -> Pixels:
        """Return pixels to try a program on; compiled code is made for the shape of a whole batch."""
        return _pixels(count, self.crop, self.runtime).contiguous(memory_format=self.layout)

    def answer(self, pixels: Pixels, batch: Batch | None, prompt: Mapping[str, Any] | None = None) -> Any:
        """Return float32 logits [B, classes], without gradients, or a list of B strings.

        Args:
            prompt: keyword arguments for a network that accepts some.
        """
        count = len(pixels)
        if prompt and self.network.asks:
            self.network.to(self.runtime.device)
            with torch.no_grad(), self.runtime.autocast():
                return _floats(self.network(pixels, batch=batch, prompt=prompt), count)
        if self.padded and count < self.runtime.batch_size:
            filler = pixels[-1:].expand(self.runtime.batch_size - count, -1, -1, -1)
            pixels = torch.cat([pixels, filler])
        return _floats(self._run(self.program, pixels, batch), count)

    def intact(self, pixels: Pixels, batch: Batch | None) -> Any:
        """Return what `answer` does, from the network as it was built: the reference for a changed one."""
        return self._changes().intact(lambda: _floats(self._run(self.network, pixels, batch), len(pixels)), pixels)

    def changed(self, condition: Condition, original: Presentation) -> tuple[Presentation, Any]:
        """Return (what was presented, the answer) under a condition's change, all of it undone afterwards.

        If the condition has an attack, it is made on the changed network.
        """

        def run() -> tuple[Presentation, Any]:
            presented = original
            if condition.attack is not None:
                network = self.differentiable(original.batch, self.network)
                presented = attacked(condition.attack, network, original)
            pixels = presented.pixels
            return presented, _floats(self._run(self.network, pixels, original.batch), len(pixels))

        return self._changes().answer(condition, run, original.pixels if condition.attack is None else None)

    def differentiable(self, batch: Batch | None, program: Callable[..., Any] | None = None) -> Attacked:
        """Return the network of one batch for attacks, with gradients.

        For a network that draws, every call is a new draw, none of them the one it is measured with; its attribute
        `draws` says how many calls to average a gradient over.

        Args:
            program: the network to use, where it is not the fastest one.
        """
        calls = itertools.count(1)

        def network(pixels: Pixels, rows: Any = None) -> Tensor:
            with self.runtime.autocast():
                if not self.network.wants_batch:
                    run = program or self._stepping(len(pixels))
                    return run(pixels.contiguous(memory_format=self.layout)).float()
                assert batch is not None, "images join and leave no attack on a network that draws"
                attacked_batch = batch if rows is None else batch.rows(rows)
                if len(attacked_batch.keys) != len(pixels):
                    raise UserError(f"{self.network.name} needs to know which images an attack shows it; use another")
                return self.network(pixels, batch=replace(attacked_batch, draw=next(calls))).float()

        network.draws = DRAWS if self.network.wants_batch else 1  # type: ignore[attr-defined]
        network.flat = None  # type: ignore[attr-defined]
        return network  # type: ignore[return-value]

    def _stepping(self, count: int) -> Callable[..., Any]:
        """Return what attacks run for so many images: a whole batch goes through compiled code, if there is any."""
        if not self.padded or count != self.runtime.batch_size:
            return self.folded
        if self.steps is None:
            assert self.programs is not None
            example = self._example(count)
            self.steps = self.programs.differentiable(self.program, self.folded, example, self.runtime.autocast)
        return self.steps

    def _run(self, program: Callable[..., Any], pixels: Pixels, batch: Batch | None) -> Any:
        with torch.no_grad(), self.runtime.autocast():
            pixels = pixels.contiguous(memory_format=self.layout)
            return program(pixels, batch=batch) if self.network.wants_batch else program(pixels)

    def forget_activations(self) -> None:
        """Let go of what was kept of a batch for changed passes."""
        if self.changes is not None:
            self.changes.forget()

    def release(self) -> None:
        """Put the network back as it was before any change, on the host where only changes needed it elsewhere."""
        if self.changes is not None:
            self.changes.state.restore()
            self.changes = None
            if self.folded is not self.network:
                self.network.to("cpu")

    def rest(self) -> None:
        """Put the network back as it was before any change, and leave the device to others."""
        if not self.resting:
            self.release()
            self.folded.to("cpu")
            self.resting = True

    def wake(self) -> None:
        """Come back to the device for another turn."""
        if self.resting:
            self.folded.to(self.runtime.device)
            self.resting = False

    def _changes(self) -> ActivationCache:
        if self.changes is None:
            self.changes = ActivationCache(self.network.to(self.runtime.device))
        return self.changes


def attacked(attack: Callable[..., Any], network: Attacked, original: Presentation, **settings: Any) -> Presentation:
    """Return the presentation with what an attack on `network` makes of its pixels."""
    outcome = attack(network, original.pixels, original.labels, original.batch, **settings)
    pixels, gradient = outcome if isinstance(outcome, tuple) else (outcome, None)
    return replace(original, pixels=pixels.detach(), gradient=gradient)


def _floats(answer: Any, count: int) -> Any:
    return answer[:count].float() if isinstance(answer, Tensor) else answer


def _pixels(count: int, crop: int, runtime: Runtime) -> Pixels:
    pixels = torch.rand((count, 3, crop, crop), generator=torch.Generator().manual_seed(0))
    return pixels.to(runtime.device)


def _layouts(network: Network) -> list[torch.memory_format]:
    """Return the memory orders that a network accepts, the one to prefer unmeasured first."""
    return [torch.channels_last, torch.contiguous_format] if network.channels_last else [torch.contiguous_format]


@dataclass(frozen=True)
class Kernels:
    """How convolutions run: the memory order of pixels and weights, and whether cuDNN tries its algorithms first."""

    layout: torch.memory_format
    benchmark: bool = False


def fastest_kernels(network: Network, crop: int, runtime: Runtime) -> Kernels:
    """Return what answers a batch in the least time, measured with the network as it was built."""
    pixels, seconds = _pixels(runtime.batch_size, crop, runtime), dict[Kernels, float]()
    before, home = torch.backends.cudnn.benchmark, next(network.buffers()).device
    try:
        for kernels in itertools.starmap(Kernels, itertools.product(_layouts(network), (False, True))):
            torch.backends.cudnn.benchmark = kernels.benchmark
            network.to(runtime.device, memory_format=kernels.layout)  # type: ignore[call-overload]
            batch = pixels.contiguous(memory_format=kernels.layout)
            seconds[kernels] = min([_seconds(network, batch, runtime) for _ in range(4)][1:])  # the first warms up
    finally:
        torch.backends.cudnn.benchmark = before
        network.to(home)
    fastest = min(seconds, key=lambda kernels: seconds[kernels])
    for kernels, taken in seconds.items():
        layout, tries = str(kernels.layout).removeprefix("torch."), "with" if kernels.benchmark else "without"
        pace = len(pixels) / taken
        logger.info("%s: %s, %s cudnn.benchmark: %.0f images/s", network.name, layout, tries, pace)
    return fastest


def _seconds(network: Network, pixels: Pixels, runtime: Runtime) -> float:
    """Return how long a network takes to answer; reading an answer waits for the device."""
    started = time.perf_counter()
    with torch.no_grad(), runtime.autocast():
        float(network(pixels).float().sum())
    return time.perf_counter() - started


class Runners:
    """The networks of a run, each prepared when its first image comes.

    On a CPU every network is compiled by itself, with its weights frozen into the code. Elsewhere one program serves
    all networks of a graph, which then pay for it together, and runs the steps of attacks as well (on a CPU compiled
    code is no faster for these: benchmarks/README.md).

    Args:
        planned: {(network, crop): passes to come}.
    """

    def __init__(self, runtime: Runtime, planned: Mapping[tuple[Network, int], int]) -> None:
        self.runtime, self.planned = runtime, planned
        self.ready: dict[tuple[Network, int], Runner] = {}
        self.kernels: dict[tuple[Any, int], Kernels] = {}  # measured: by architecture and crop
        self.benchmark = torch.backends.cudnn.benchmark
        self.programs = compilation.Programs(shared=runtime.device.type != "cpu")

    def get(self, network: Network, crop: int) -> Runner:
        """Return the runner of a network for images of a side, prepared."""
        key = network, crop
        if key not in self.ready:
            programs = self.programs if self.runtime.compiles(self._passes(network, crop)) else None
            self.ready[key] = Runner(network, crop, self.runtime, programs, self._kernels(network, crop).layout)
        torch.backends.cudnn.benchmark = self._kernels(network, crop).benchmark
        self.ready[key] = runner = self.ready.pop(key)  # the last of them is the last used
        runner.wake()
        return runner

    def _kernels(self, network: Network, crop: int) -> Kernels:
        """Return how a network's convolutions run: on a GPU as measured where that pays."""
        usual = Kernels(_layouts(network)[0])
        function_of_pixels = not network.wants_batch and network.answers != "words"
        if self.runtime.device.type != "cuda" or not function_of_pixels:
            return usual
        key = network.identity.get("arch") or network, crop
        if key not in self.kernels:
            pays = self._passes(network, crop) >= MEASURE_FROM
            self.kernels[key] = fastest_kernels(network, crop, self.runtime) if pays else usual
        return self.kernels[key]

    def _passes(self, network: Network, crop: int) -> int:
        """Return the passes to come of all networks that are likely to share this one's program."""
        arch = self.programs.shared and network.identity.get("arch")
        total = 0
        for (other, side), passes in self.planned.items():
            if side == crop and (other is network or (arch and other.identity.get("arch") == arch)):
                total += passes
        return total

    def rest(self, active: Container[Network], finished: Container[Network] = ()) -> None:
        """Let go of what networks that are not active keep on the device.

        Compiled ones, and the RESTING last used of the others, stay prepared for their next turn. Finished networks are
        released with all that was prepared of them.
        """
        resting = []
        for key, runner in list(self.ready.items()):
            if key[0] in finished:
                self.ready.pop(key).release()
            elif key[0] not in active:
                runner.rest()
                resting += [] if runner.padded else [key]
        for key in resting[:-RESTING]:
            del self.ready[key]

    def abandon(self) -> None:
        """Forget all networks as they are: their device has stopped, and nothing comes back from it."""
        self.ready.clear()

    def close(self) -> None:
        """Put every network back as it was before any change, also after an interruption in the middle of one."""
        torch.backends.cudnn.benchmark = self.benchmark
        for runner in self.ready.values():
            runner.release()

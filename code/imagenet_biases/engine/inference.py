"""A network made ready on a device: answers without gradients, with gradients for attacks, and under changes."""

import contextlib
import itertools
from dataclasses import replace

import torch

from imagenet_biases.base.errors import UserError
from imagenet_biases.engine import compilation
from imagenet_biases.engine.activation_cache import ActivationCache

DRAWS = 4  # of a network that draws: over so many an attack averages each gradient (expectation over transformation)


class _Pixels(torch.nn.Module):
    """A network as a function of pixels alone, which is what can be traced, folded and compiled."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixels):
        return self.network(pixels)


class Runner:
    """A network on a device, in the settings' precision.

    `machine`: the Machine that runs it; `crop`: side of its input in pixels; `programs`: compilation.Programs, where
    compiling pays. The network itself goes to the device only where it runs as it was built: as a rule a folded copy
    does.
    """

    def __init__(self, network, crop, runtime, programs=None):
        self.network, self.runtime, self.crop, self.programs = network, runtime, crop, programs
        self.layout = torch.channels_last if network.channels_last else torch.contiguous_format
        network.to(memory_format=self.layout)
        self.program = self.folded = network
        self.padded = False  # a program is compiled for one batch size: a ragged batch is filled up
        self.changes = self.steps = None
        if network.wants_batch or network.answers == "words":
            network.to(runtime.device)
            return  # their forward is more than a function of pixels
        alone = _Pixels(network).eval()
        self.program = self.folded = compilation.folded(alone, self._example(2).to(network.mean.device)).to(
            runtime.device
        )
        if programs is not None:
            self.program = programs.compiled(self.folded, self._example(runtime.batch_size), runtime.autocast)
            self.padded = self.program is not self.folded

    def _example(self, count):
        """Return pixels to try a program on; compiled code is made for the shape of a whole batch."""
        pixels = torch.rand((count, 3, self.crop, self.crop), generator=torch.Generator().manual_seed(0))
        return pixels.to(self.runtime.device).contiguous(memory_format=self.layout)

    def answer(self, pixels, batch, prompt=None):
        """Return logits float32 [B, classes] of pixels [B, 3, H, W], without gradients; or a list of B strings.

        `question`: what else is put to a network that takes questions, {word: value}.
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

    def intact(self, pixels, batch):
        """Return what `answer` does from the network as it was built: the yardstick of a changed one."""
        return self._changes().intact(lambda: _floats(self._run(self.network, pixels, batch), len(pixels)), pixels)

    def changed(self, condition, shown):
        """Return (what was shown, the answer of the network) under a condition's change, all of it undone afterwards.

        An attack that the condition has as well is made on the changed network.
        """

        def run():
            now = shown
            if condition.attack is not None:
                now = attacked(condition.attack, self.differentiable(shown.batch, self.network), shown)
            return now, _floats(self._run(self.network, now.pixels, shown.batch), len(now.pixels))

        return self._changes().answer(condition, run, shown.pixels if condition.attack is None else None)

    def differentiable(self, batch, program=None):
        """Return the network of one batch for attacks: pixels [b, 3, H, W] -> logits [b, classes], with gradients.

        `rows`: which images of the batch these are, where not all. `program`: the network to use, where it is not the
        fastest one. Of a network that draws, every call is a new draw, none of them the one it is measured with; its
        attribute `draws` says how many to average a gradient over.
        """
        calls = itertools.count(1)

        def network(pixels, rows=None):
            with self.runtime.autocast():
                if not self.network.wants_batch:
                    run = program or self._stepping(len(pixels))
                    return run(pixels.contiguous(memory_format=self.layout)).float()
                mine = batch if rows is None else batch.rows(rows)
                if len(mine.keys) != len(pixels):
                    raise UserError(f"{self.network.name} needs to know which images an attack shows it; use another")
                return self.network(pixels, batch=replace(mine, draw=next(calls))).float()

        network.draws = DRAWS if self.network.wants_batch else 1
        return network

    def _stepping(self, count):
        """Return what attacks run for so many images: a whole batch goes through compiled code, where there is some."""
        if not self.padded or count != self.runtime.batch_size:
            return self.folded
        if self.steps is None:
            example = self._example(count)
            self.steps = self.programs.differentiable(self.program, self.folded, example, self.runtime.autocast)
        return self.steps

    def _run(self, program, pixels, batch):
        with torch.no_grad(), self.runtime.autocast():
            pixels = pixels.contiguous(memory_format=self.layout)
            return program(pixels, batch=batch) if self.network.wants_batch else program(pixels)

    def _changes(self):
        if self.changes is None:
            self.changes = ActivationCache(self.network.to(self.runtime.device))
        return self.changes


def attacked(attack, network, shown, **settings):
    """Return the presentation with what an attack on `network` makes of its pixels."""
    made = attack(network, shown.pixels, shown.labels, shown.batch, **settings)
    pixels, gradient = made if isinstance(made, tuple) else (made, None)
    return replace(shown, pixels=pixels.detach(), gradient=gradient)


def _floats(answer, count):
    return answer[:count].float() if isinstance(answer, torch.Tensor) else answer


class Runners:
    """The networks made ready, each when its first image comes; `planned`: {(network, crop): passes to come}.

    On a CPU every network is compiled by itself, with its weights frozen into the code; elsewhere one program serves
    all networks of a graph, which then pay for it together, and runs the steps of attacks as well (of which compiled
    code is no faster on a CPU: benchmarks/README.md).
    """

    def __init__(self, runtime, planned):
        self.runtime, self.planned, self.ready = runtime, planned, {}
        self.programs = compilation.Programs(shared=runtime.device.type != "cpu")

    def get(self, network, crop):
        key = network, crop
        if key not in self.ready:
            programs = self.programs if self.runtime.compiles(self._passes(network, crop)) else None
            self.ready[key] = Runner(network, crop, self.runtime, programs)
        return self.ready[key]

    def _passes(self, network, crop):
        """Return the passes to come of all that are likely to share the network's program."""
        arch = self.programs.shared and network.identity.get("arch")
        return sum(
            passes
            for (other, side), passes in self.planned.items()
            if side == crop and (other is network or (arch and other.identity.get("arch") == arch))
        )

    def close(self):
        """Put every network back as it was before any change, also after an interruption in the middle of one."""
        for runner in self.ready.values():
            if runner.changes is not None:
                runner.changes.state.restore()


@contextlib.contextmanager
def float32_precision(precision):
    """Run float32 products in full (fp32) or in TensorFloat-32 (tf32), whatever the process's default."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    reduced = precision == "tf32"
    torch.set_float32_matmul_precision("high" if reduced else "highest")
    torch.backends.cudnn.allow_tf32 = reduced
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]

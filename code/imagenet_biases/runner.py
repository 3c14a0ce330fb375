"""A network made ready on a device: answers without gradients, with gradients for attacks, and under changes."""

import contextlib
import itertools
from dataclasses import replace

import torch

from imagenet_biases import fast
from imagenet_biases.changes import Changed
from imagenet_biases.errors import UserError

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

    `machine`: the Machine that runs it; `crop`: side of its input in pixels; `long`: whether compiling pays.
    """

    def __init__(self, network, crop, machine, long=False):
        self.network, self.machine = network, machine
        self.layout = torch.channels_last if network.channels_last else torch.contiguous_format
        network.to(machine.device, memory_format=self.layout)
        self.program = self.folded = network
        self.padded = False  # a program is compiled for one batch size: a ragged batch is filled up
        self.changes = None
        if network.wants_batch or network.answers == "words":
            return  # their forward is more than a function of pixels
        # compiled code is made for the shape of a whole batch
        example = torch.rand(
            (machine.batch_size if long else 2, 3, crop, crop), generator=torch.Generator().manual_seed(0)
        )
        example = example.to(machine.device).contiguous(memory_format=self.layout)
        alone = _Pixels(network).eval()
        self.program = self.folded = fast.folded(alone, example[:2])
        if long:
            self.program = fast.compiled(self.folded, example, machine.autocast)
            self.padded = self.program is not self.folded

    def answer(self, pixels, batch, question=None):
        """Return logits float32 [B, classes] of pixels [B, 3, H, W], without gradients; or a list of B strings.

        `question`: what else is put to a network that takes questions, {word: value}.
        """
        count = len(pixels)
        if question and self.network.asks:
            with torch.no_grad(), self.machine.autocast():
                return _floats(self.network(pixels, batch=batch, question=question), count)
        if self.padded and count < self.machine.batch_size:
            filler = pixels[-1:].expand(self.machine.batch_size - count, -1, -1, -1)
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
        folded one. Of a network that draws, every call is a new draw, none of them the one it is measured with; its
        attribute `draws` says how many to average a gradient over.
        """
        calls, program = itertools.count(1), program or self.folded

        def network(pixels, rows=None):
            with self.machine.autocast():
                if not self.network.wants_batch:
                    return program(pixels).float()
                mine = batch if rows is None else batch.rows(rows)
                if len(mine.keys) != len(pixels):
                    raise UserError(f"{self.network.name} needs to know which images an attack shows it; use another")
                return self.network(pixels, batch=replace(mine, draw=next(calls))).float()

        network.draws = DRAWS if self.network.wants_batch else 1
        return network

    def _run(self, program, pixels, batch):
        with torch.no_grad(), self.machine.autocast():
            pixels = pixels.contiguous(memory_format=self.layout)
            return program(pixels, batch=batch) if self.network.wants_batch else program(pixels)

    def _changes(self):
        if self.changes is None:
            self.changes = Changed(self.network)
        return self.changes


def attacked(attack, network, shown, **settings):
    """Return Shown with what an attack on `network` makes of its pixels."""
    made = attack(network, shown.pixels, shown.labels, shown.batch, **settings)
    pixels, given = made if isinstance(made, tuple) else (made, None)
    return replace(shown, pixels=pixels.detach(), given=given)


def _floats(answer, count):
    return answer[:count].float() if isinstance(answer, torch.Tensor) else answer


class Runners:
    """The networks made ready, each when its first image comes; `planned`: {(network, crop): passes to come}."""

    def __init__(self, machine, planned):
        self.machine, self.planned, self.ready = machine, planned, {}

    def get(self, network, crop):
        key = network, crop
        if key not in self.ready:
            self.ready[key] = Runner(network, crop, self.machine, self.machine.compiles(self.planned.get(key, 0)))
        return self.ready[key]

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

"""Changes of a network, undone bit for bit, and run from where they act.

Layers before the change give the same activations as in the intact network: these are kept from its pass over the same
batch. What a change touches is found by comparing the network with its state before, once, so a change need not
declare it; where these are tensors only, the next batch gets copies of them, and the change is not made again.
"""

import collections
import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from imagenet_biases.vocabulary import Condition

Answer = TypeVar("Answer")
Module = torch.nn.Module

CHANGES_KEPT = 2 * 10**9  # bytes of a network's changed tensors that are kept: 20 draws of every layer of a ResNet-50


Values = list[tuple[Tensor, Tensor]]  # tensors of a network, with what is to be in them


@dataclass
class Touched:
    """What a change touches.

    Attributes:
        modules: in any order.
        values: what it makes of the network's tensors, or None where the change has to be made again: it touches more
            than tensors, or too much to keep.
    """

    modules: set[Module]
    values: Values | None


class NetworkState:
    """All that a change may touch of a network: tensors with their values, and every module's attributes."""

    def __init__(self, network: Module) -> None:
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in (*network.parameters(), *network.buffers())]
        self.attributes = [(module, _copied(vars(module))) for module in network.modules()]

    def touched(self, most_bytes: int) -> Touched:
        """Return what is not as it was; values only if they take no more than so many bytes."""
        # all comparisons first, then one look at them: each look waits for a GPU
        flags = [(tensor != value).any() for tensor, value in self.tensors]
        changed = torch.stack(flags).tolist() if flags else []
        different = [tensor for (tensor, _), flag in zip(self.tensors, changed, strict=True) if flag]
        numbers, modules, other = set(map(id, different)), set[Module](), False
        for module, before in self.attributes:
            differs = _differ(vars(module), before)
            other = other or differs
            tensors = (*module._parameters.values(), *module._buffers.values())
            if differs or any(id(tensor) in numbers for tensor in tensors):
                modules.add(module)
        if other or sum(tensor.nbytes for tensor in different) > most_bytes:
            return Touched(modules, None)
        return Touched(modules, [(tensor, tensor.detach().clone()) for tensor in different])

    def restore(self) -> None:
        """Put everything back."""
        for module, before in self.attributes:
            attributes = vars(module)
            attributes.clear()
            attributes.update(_copied(before))
        write(self.tensors)


def write(values: Values) -> None:
    """Copy values into a network's tensors."""
    if values:
        tensors, new = map(list, zip(*values, strict=True))
        with torch.no_grad():
            torch._foreach_copy_(tensors, new)  # type: ignore[attr-defined]  # pyright: ignore[reportPrivateImportUsage]


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """Copy a module's attributes, and one level of the dicts among them: parameters, buffers, submodules, hooks."""
    return {name: copy.copy(value) if isinstance(value, dict) else value for name, value in attributes.items()}


def _differ(attributes: dict[str, Any], before: dict[str, Any]) -> bool:
    if attributes.keys() != before.keys():
        return True
    for name, value in attributes.items():
        old = before[name]
        if isinstance(value, dict):
            if value.keys() != old.keys() or any(value[key] is not old[key] for key in value):
                return True
        elif value is not old:
            return True
    return False


class ActivationCache:
    """Runs a network intact and under changes, batch by batch; a changed pass starts at the first unit it touches.

    Units are the modules called one after another inside containers (blocks of a ResNet). Those before the change are
    answered from the intact pass over the same pixels. A unit that is called several times per pass, or that answers
    with something other than a tensor, is always run.
    """

    def __init__(self, network: Module) -> None:
        self.network, self.state = network, NetworkState(network)
        self.units = _units(network)
        self.activations: dict[Module, Tensor] = {}
        self.order: list[Module] = []
        self.pixels: Tensor | None = None
        self.overwritten: set[Module] = set()  # units whose answer the network overwrites (in-place activations)
        self.touched: dict[Condition, Touched] = {}
        self.starts: dict[Condition, Module | None] = {}  # the unit from which each condition's pass differs
        self.free = CHANGES_KEPT  # bytes

    def intact(self, run: Callable[[], Answer], pixels: Tensor) -> Answer:
        """Run the network as it is and keep its units' activations."""
        self.activations, self.order, self.pixels = {}, [], pixels
        versions = {}

        def keep(unit: Module, _: Any, output: Any) -> None:
            self.order.append(unit)
            if isinstance(output, Tensor):
                self.activations[unit] = output.clone() if unit in self.overwritten else output
                versions[unit] = output, output._version

        hooks = [unit.register_forward_hook(keep) for unit in self.units]
        try:
            answer = run()
        finally:
            for hook in hooks:
                hook.remove()
        calls = collections.Counter(self.order)
        self.units = [unit for unit in self.units if calls[unit] == 1 and unit in self.activations]
        self.order = [unit for unit in self.order if unit in set(self.units)]
        overwritten = {unit for unit, (output, version) in versions.items() if output._version != version}
        if not overwritten <= self.overwritten:  # seen only now: their kept activations are not what they answered
            self.overwritten |= overwritten
            self.order = []
        return answer

    def forget(self) -> None:
        """Let go of the activations of the last intact pass."""
        self.activations, self.order, self.pixels = {}, [], None

    def answer(self, condition: Condition, run: Callable[[], Answer], pixels: Tensor | None) -> Answer:
        """Run the network under a condition's change and undo the change, whatever happens."""
        try:
            self._change(condition)
            if condition not in self.starts and self.order:
                self.starts[condition] = self._first(self.touched[condition].modules)
            with self._replayed(self.starts.get(condition) if pixels is self.pixels else None):
                return run()
        finally:
            self.state.restore()

    def _change(self, condition: Condition) -> None:
        """Change the network as a condition says, by copies of what the change made the first time."""
        assert condition.change is not None
        touched = self.touched.get(condition)
        if touched is not None and touched.values is not None:
            write(touched.values)
            return
        condition.change(self.network, **condition.settings)
        if touched is None:
            touched = self.touched[condition] = self.state.touched(self.free)
            self.free -= sum(value.nbytes for _, value in touched.values or ())

    def _first(self, touched: set[Module]) -> Module | None:
        """Return the first unit in the order of the pass that holds a touched module; None: run the whole pass."""
        members = {unit: set(unit.modules()) for unit in self.units}
        if not touched or not touched <= set().union(*members.values()):
            return None
        return next(unit for unit in self.order if touched & members[unit])

    @contextlib.contextmanager
    def _replayed(self, start: Module | None) -> Iterator[None]:
        """Let the units before `start` answer as they did, without computing anything."""
        before = self.order[: self.order.index(start)] if start in self.order else []
        for unit in before:
            # the instance's own forward hides the class's
            replay = functools.partial(_replay, self.activations[unit], unit in self.overwritten)
            vars(unit)["forward"] = replay
        try:
            yield
        finally:
            for unit in before:
                vars(unit).pop("forward", None)


def _replay(output: Tensor, overwritten: bool, *_: Any, **__: Any) -> Tensor:
    return output.clone() if overwritten else output


CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)


def _units(network: Module) -> list[Module]:
    """Return the modules that are steps of the pass; containers, and what holds most of the network, are opened."""
    layers = _layers(network)
    units, queue = [], list(network.children())
    while queue:
        module = queue.pop(0)
        children = list(module.children())
        if children and (isinstance(module, CONTAINERS) or _layers(module) > layers / 2):
            queue = children + queue
        else:
            units.append(module)
    return units


def _layers(module: Module) -> int:
    return sum(bool(part._parameters) for part in module.modules())

"""Changes of a network, undone bit for bit, and run from where they act.

What comes before the change gives the same activations as in the intact network: they are kept from its pass over the
same batch and answered from there. Which modules a change touches is found by comparing the network with its state
before, so a change need not say it.
"""

import collections
import contextlib
import copy
import functools

import torch


class NetworkState:
    """All that a change may touch of a network: tensors with their values, and every module's attributes."""

    def __init__(self, network):
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in _tensors(network)]
        self.attributes = [(module, _copied(vars(module))) for module in network.modules()]

    def touched(self):
        """Return the modules that are not as they were, in any order."""
        different = {id(tensor) for tensor, value in self.tensors if not torch.equal(tensor, value)}
        return [
            module
            for module, before in self.attributes
            if _differ(vars(module), before)
            or any(id(one) in different for one in (*module._parameters.values(), *module._buffers.values()))
        ]

    def restore(self):
        """Put everything back."""
        for module, before in self.attributes:
            now = vars(module)
            now.clear()
            now.update(_copied(before))
        with torch.no_grad():
            for tensor, value in self.tensors:
                tensor.copy_(value)


def _tensors(network):
    return [*network.parameters(), *network.buffers()]


def _copied(attributes):
    """Copy a module's attributes, and one level of the dicts among them: parameters, buffers, submodules, hooks."""
    return {name: copy.copy(value) if isinstance(value, dict) else value for name, value in attributes.items()}


def _differ(one, other):
    if one.keys() != other.keys():
        return True
    for name, value in one.items():
        before = other[name]
        if isinstance(value, dict):
            if value.keys() != before.keys() or any(value[key] is not before[key] for key in value):
                return True
        elif value is not before:
            return True
    return False


class ActivationCache:
    """Runs a network intact and under changes, batch by batch; a changed pass starts at the first unit it touches.

    Units are the modules called one after another inside containers (blocks of a ResNet): those before the change are
    answered from the intact pass over the same pixels. A unit that is called several times a pass, or answers with
    something else than a tensor, is always run.
    """

    def __init__(self, network):
        self.network, self.state = network, NetworkState(network)
        self.units = _units(network)
        self.kept, self.order, self.pixels = {}, [], None
        self.overwritten = set()  # units whose answer the network writes into afterwards (in-place activations)
        self.starts = {}  # {condition: the unit from which its pass differs}

    def intact(self, run, pixels):
        """Run the network as it is and keep what its units answer."""
        self.kept, self.order, self.pixels = {}, [], pixels
        versions = {}

        def keep(unit, _, output):
            self.order.append(unit)
            if isinstance(output, torch.Tensor):
                self.kept[unit] = output.clone() if unit in self.overwritten else output
                versions[unit] = output, output._version

        hooks = [unit.register_forward_hook(keep) for unit in self.units]
        try:
            answer = run()
        finally:
            for hook in hooks:
                hook.remove()
        calls = collections.Counter(self.order)
        self.units = [unit for unit in self.units if calls[unit] == 1 and unit in self.kept]
        self.order = [unit for unit in self.order if unit in set(self.units)]
        overwritten = {unit for unit, (output, version) in versions.items() if output._version != version}
        if not overwritten <= self.overwritten:  # seen now: what was kept of them is not what they answered
            self.overwritten |= overwritten
            self.order = []
        return answer

    def answer(self, condition, run, pixels):
        """Run the network under a change and undo it, whatever happens."""
        try:
            condition.change(self.network, **condition.settings)
            if condition not in self.starts and self.order:
                self.starts[condition] = self._first(self.state.touched())
            with self._replayed(self.starts.get(condition) if pixels is self.pixels else None):
                return run()
        finally:
            self.state.restore()

    def _first(self, touched):
        """Return the first unit in the order of the pass that holds a touched module; None: run in whole."""
        insides = {unit: set(unit.modules()) for unit in self.units}
        if not touched or not all(any(module in inside for inside in insides.values()) for module in touched):
            return None
        return next(unit for unit in self.order if any(module in insides[unit] for module in touched))

    @contextlib.contextmanager
    def _replayed(self, start):
        """Let the units before `start` answer as they did, without computing anything."""
        before = [] if start is None else self.order[: self.order.index(start)] if start in self.order else []
        for unit in before:
            # the instance's own forward hides the class's
            vars(unit)["forward"] = functools.partial(_kept, self.kept[unit], unit in self.overwritten)
        try:
            yield
        finally:
            for unit in before:
                vars(unit).pop("forward", None)


def _kept(output, copied, *_, **__):
    return output.clone() if copied else output


CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)


def _units(network):
    """Return the modules that stand for steps of the pass: containers and what holds most of the network are opened."""
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


def _layers(module):
    return sum(1 for one in module.modules() if one._parameters)

"""Find the state dict in a file that nobody described, and fill a network with it, strictly."""

import collections
import re
import warnings

import torch

from imagenet_biases.errors import UserError, some
from imagenet_biases.networks.reading import tensors


def find(contents, network, where):
    """Return the part of `contents` that fits `network` once a prefix common to its names is taken off.

    Keys of nested dicts count as parts of the names, so wrappers are prefixes, too. Where several different parts fit
    (weights and their moving average), the first is taken, with a warning. Raises UserError with what came closest.
    """
    expected = network.state_dict()
    flat = {".".join(place): tensor for place, tensor in tensors(contents)}
    prefixes = collections.Counter(name[:i] for name in flat for i in _starts(name) if name[i:] in expected)
    candidates = {}
    for prefix, _ in prefixes.most_common(8):
        candidates[prefix] = {name.removeprefix(prefix): flat[name] for name in flat if name.startswith(prefix)}
    fitting = [prefix for prefix in candidates if not _differences(expected, candidates[prefix])]
    if not fitting:
        prefix, state = next(iter(candidates.items()), ("", flat))
        closest = f"the part under {prefix!r}" if prefix else "its names as they stand"
        raise UserError(_misfit(expected, state, f"{where}, of which {closest} came closest,"))
    first = next(prefix for prefix in dict.fromkeys(prefixes) if prefix in fitting)
    state = candidates[first]

    def differs(other):
        return any(not torch.equal(other[name], state[name]) for name in other.keys() & state.keys())

    others = [prefix for prefix in fitting if prefix != first and differs(candidates[prefix])]
    if others:
        warnings.warn(f"{where} holds several networks: {first!r} is taken, not {some(others)}", stacklevel=2)
    return state


def fill(network, state, where):
    """Copy `state` into `network`, in place: every parameter and buffer, equal shapes, nothing left over.

    Only batch norm's counter of training steps may be missing, as in files from before it existed: nothing reads it in
    evaluation mode. Raises UserError with the first names of both sides; warns of weights that are not finite.
    """
    expected = network.state_dict()
    if _differences(expected, state):
        raise UserError(_misfit(expected, state, where))
    network.load_state_dict({**{name: expected[name] for name in expected if name not in state}, **state})
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        warnings.warn(f"{where} has weights that are not finite numbers: {some(broken)}", stacklevel=2)


def _starts(name):
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def _differences(expected, state):
    """What keeps `state` from filling a network with the state dict `expected`: texts, none if it fits."""
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in expected]
    other = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = [
        f"{name} {state[name].dtype} instead of {tensor.dtype}"
        for name, tensor in expected.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    labelled = {"missing": missing, "left over": extra, "of another shape": other, "of another type": kinds}
    return [f"{len(names)} {label}: {some(names)}" for label, names in labelled.items() if names]


def _misfit(expected, state, where):
    return f"{where} does not fit the network ({len(expected)} tensors); " + "; ".join(_differences(expected, state))

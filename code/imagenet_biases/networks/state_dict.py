"""Find the state dict in a file that nobody described, and fill a network with it, strictly."""

import collections
import json
import re
import warnings

import torch

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.safe_pickle import tensors
from imagenet_biases.networks.registry import Layout


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
        misfit = _misfit(expected, state, f"{where}, of which {closest} came closest,")
        rules = layout_for(contents, expected, prefix)
        raise UserError(misfit + (f"; by an entry in zoo.user.toml with {_toml(rules)} it would fit" if rules else ""))
    first = next(prefix for prefix in dict.fromkeys(prefixes) if prefix in fitting)
    state = candidates[first]

    def differs(other):
        return any(not torch.equal(other[name], state[name]) for name in other.keys() & state.keys())

    others = [prefix for prefix in fitting if prefix != first and differs(candidates[prefix])]
    if others:
        warnings.warn(f"{where} holds several networks: {first!r} is taken, not {listed_briefly(others)}", stacklevel=2)
    return state


def layout_for(contents, expected, prefix=""):
    """Return a Layout by which `contents` fits the state dict `expected` exactly, or None if none of this kind does.

    prefix: what most of the names begin with (keys of nested dicts are parts of names). Parts of the network that are
    called otherwise in the file are renamed where the shapes leave no doubt (a head, say), what is left over is ignored
    (a projection, a second head).
    """
    wrapper = next(
        (key for key, value in contents.items() if isinstance(value, dict) and prefix.startswith(f"{key}.")), ""
    )
    part = contents[wrapper] if wrapper else contents
    strip = tuple(re.findall(r"[^.]*\.", prefix.removeprefix(f"{wrapper}.") if wrapper else prefix))
    originals = {}  # name without the prefixes -> name in the file
    for name in (name for name, value in part.items() if isinstance(value, torch.Tensor)):
        short = name
        for start in strip:
            short = short.removeprefix(start)
        originals[short] = name
    state = {short: part[name] for short, name in originals.items()}
    missing, extra = _modules(expected, state), _modules(state, expected)
    rename = []
    for module, shapes in missing.items():
        alike = [other for other, others in extra.items() if others.items() >= shapes.items()]
        if len(alike) == 1:
            rename.append((f"^{re.escape(alike[0])}", module))
            del extra[alike[0]]
    strangers = [originals[module + last] for module, shapes in extra.items() for last in shapes]
    needed = [name for name in originals.values() if name not in strangers]
    ignore = set()
    for name in strangers:  # by as short a beginning as no needed name has
        starts = [name[:end] for end in _starts(name)[1:]]
        ignore.add(next((start for start in starts if not any(other.startswith(start) for other in needed)), name))
    rules = Layout((wrapper,), tuple(f"^{re.escape(start)}" for start in sorted(ignore)), strip, tuple(rename))
    try:
        fits = not _differences(expected, rules.apply(contents, ""))
    except UserError:
        return None
    return rules if fits and len(ignore) + len(rename) <= 12 else None


def _modules(state, others):
    """{name of a module, with its dot: {its tensor's name: shape}} of the names in `state` that are not in `others`."""
    modules = collections.defaultdict(dict)
    for name, tensor in state.items():
        if name not in others and not name.endswith("num_batches_tracked"):
            module, dot, last = name.rpartition(".")
            modules[module + dot][last] = tuple(tensor.shape)
    return modules


def _toml(rules):
    """A layout as lines of an entry, in one line."""
    given = [(key, value) for key, value in vars(rules).items() if value not in ((), ("",))]
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in given)


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
        warnings.warn(f"{where} has weights that are not finite numbers: {listed_briefly(broken)}", stacklevel=2)


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
    return [f"{len(names)} {label}: {listed_briefly(names)}" for label, names in labelled.items() if names]


def _misfit(expected, state, where):
    return f"{where} does not fit the network ({len(expected)} tensors); " + "; ".join(_differences(expected, state))

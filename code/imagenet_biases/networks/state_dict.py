"""Find the state dict in a file without a description, and fill a network with it, strictly."""

import collections
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.safe_pickle import tensors
from imagenet_biases.networks.registry import Layout

StateDict: TypeAlias = Mapping[str, Tensor]
Modules: TypeAlias = dict[str, dict[str, tuple[int, ...]]]  # {module, with its dot: {its tensor: shape}}


def find(contents: dict[str, Any], network: torch.nn.Module, source: object) -> StateDict:
    """Return the part of `contents` that fits `network` once a prefix common to its names is removed.

    Keys of nested dicts count as parts of the names, so wrappers are prefixes, too. Where several different parts fit
    (weights and their moving average), the first is used, with a warning.

    Args:
        contents: of a file, from safe_pickle.read.
        network: to be filled.
        source: names the file in messages.

    Raises:
        UserError: nothing fits; the message says what came closest.
    """
    expected = network.state_dict()
    flat = {".".join(path): tensor for path, tensor in tensors(contents)}
    prefixes: collections.Counter[str] = collections.Counter()
    for name in flat:
        prefixes.update(_known_prefixes(name, expected))
    candidates = {}
    for prefix, _ in prefixes.most_common(8):
        candidates[prefix] = _part(flat, prefix)
    fitting = [prefix for prefix in candidates if not _differences(expected, candidates[prefix])]
    if not fitting:
        raise UserError(_closest(contents, expected, source, *next(iter(candidates.items()), ("", flat))))
    first = next(prefix for prefix in prefixes if prefix in fitting)
    state = candidates[first]
    different = [prefix for prefix in fitting if prefix != first and _differ(candidates[prefix], state)]
    if different:
        message = f"{source} contains several networks: {first!r} is used, not {listed_briefly(different)}"
        warnings.warn(message, stacklevel=2)
    return state


def _known_prefixes(name: str, expected: StateDict) -> list[str]:
    """Return the beginnings of a name after which it is a name of the network."""
    return [name[:end] for end in _starts(name) if name[end:] in expected]


def _part(flat: StateDict, prefix: str) -> StateDict:
    return {name.removeprefix(prefix): flat[name] for name in flat if name.startswith(prefix)}


def _closest(contents: dict[str, Any], expected: StateDict, source: object, prefix: str, state: StateDict) -> str:
    """Return why the part under a prefix does not fit, and rules by which it would."""
    closest = f"the part under {prefix!r}" if prefix else "its names as they stand"
    misfit = _misfit(expected, state, f"{source}, of which {closest} came closest,")
    rules = layout_for(contents, expected, prefix)
    return misfit + (f"; by an entry in zoo.user.toml with {_toml(rules)} it would fit" if rules else "")


def _differ(state: StateDict, other: StateDict) -> bool:
    return any(not torch.equal(state[name], other[name]) for name in state.keys() & other.keys())


def layout_for(contents: dict[str, Any], expected: StateDict, prefix: str = "") -> Layout | None:
    """Return a Layout by which `contents` fits the state dict `expected` exactly, or None if none of this kind does.

    Parts of the network with another name in the file are renamed where the shapes leave no doubt (a head, for
    example); what is left over is ignored (a projection, a second head).

    Args:
        contents: of the file.
        expected: the network's state dict.
        prefix: what most of the names begin with (keys of nested dicts are parts of names).
    """
    wrapper = _wrapper(contents, prefix)
    part = contents[wrapper] if wrapper else contents
    strip = tuple(re.findall(r"[^.]*\.", prefix.removeprefix(f"{wrapper}.") if wrapper else prefix))
    originals = _without_prefixes(part, strip)
    state = {short: part[name] for short, name in originals.items()}
    missing, extra = _modules(expected, state), _modules(state, expected)
    rename = _renames(missing, extra)
    unmatched = [originals[module + last] for module, shapes in extra.items() for last in shapes]
    needed = [name for name in originals.values() if name not in unmatched]
    ignore = {_shortest_start(name, needed) for name in unmatched}
    rules = Layout((wrapper,), tuple(f"^{re.escape(start)}" for start in sorted(ignore)), strip, tuple(rename))
    try:
        fits = not _differences(expected, rules.apply(contents, ""))
    except UserError:
        return None
    return rules if fits and len(ignore) + len(rename) <= 12 else None


def _wrapper(contents: dict[str, Any], prefix: str) -> str:
    """Return the key of the nested dict to which a prefix leads, '' for the top level."""
    for key, value in contents.items():
        if isinstance(value, dict) and prefix.startswith(f"{key}."):
            return key
    return ""


def _without_prefixes(part: dict[str, Any], prefixes: Iterable[str]) -> dict[str, str]:
    """Return {name without the prefixes: name} of the tensors in a part of a file."""
    originals = {}
    for name, value in part.items():
        if isinstance(value, Tensor):
            short = name
            for prefix in prefixes:
                short = short.removeprefix(prefix)
            originals[short] = name
    return originals


def _renames(missing: Modules, extra: Modules) -> list[tuple[str, str]]:
    """Return rules that rename modules to missing ones of their shapes, where only one fits; take it out of extra."""
    rules = []
    for module, shapes in missing.items():
        alike = [candidate for candidate, tensors in extra.items() if tensors.items() >= shapes.items()]
        if len(alike) == 1:
            rules.append((f"^{re.escape(alike[0])}", module))
            del extra[alike[0]]
    return rules


def _shortest_start(name: str, needed: list[str]) -> str:
    """Return the shortest beginning of a name, up to a dot, that no needed name has; else the name."""
    for end in _starts(name)[1:]:
        if not any(candidate.startswith(name[:end]) for candidate in needed):
            return name[:end]
    return name


def _modules(state: StateDict, other: StateDict) -> Modules:
    """Return the modules and shapes of the tensors in `state` that are not in `other`."""
    modules: Modules = collections.defaultdict(dict)
    for name, tensor in state.items():
        if name not in other and not name.endswith("num_batches_tracked"):
            module, dot, last = name.rpartition(".")
            modules[module + dot][last] = tuple(tensor.shape)
    return modules


def _toml(rules: Layout) -> str:
    """Return a layout as the lines of an entry, joined into one."""
    rows = [(key, value) for key, value in vars(rules).items() if value not in ((), ("",))]
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in rows)


def fill(network: torch.nn.Module, state: StateDict, source: object) -> None:
    """Copy `state` into `network`, in place: every parameter and buffer, equal shapes, nothing left over.

    Only batch norm's counter of training steps may be missing, as in files from before it existed: nothing reads it in
    evaluation mode. Warns about weights that are not finite.

    Raises:
        UserError: something is missing, left over or of another shape or type; the message gives the first names.
    """
    expected = network.state_dict()
    if _differences(expected, state):
        raise UserError(_misfit(expected, state, source))
    network.load_state_dict({**expected, **state})
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        warnings.warn(f"{source} has weights that are not finite numbers: {listed_briefly(broken)}", stacklevel=2)


def _starts(name: str) -> list[int]:
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def _differences(expected: StateDict, state: StateDict) -> list[str]:
    """Return what keeps `state` from filling a network with the state dict `expected`: texts, none if it fits."""
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in expected]
    shapes: list[str] = []
    types: list[str] = []
    for name, tensor in expected.items():
        if name not in state:
            continue
        if state[name].shape != tensor.shape:
            shapes.append(f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}")
        if state[name].is_floating_point() != tensor.is_floating_point():
            types.append(f"{name} {state[name].dtype} instead of {tensor.dtype}")
    labelled = {"missing": missing, "left over": extra, "of another shape": shapes, "of another type": types}
    return [f"{len(names)} {label}: {listed_briefly(names)}" for label, names in labelled.items() if names]


def _misfit(expected: StateDict, state: StateDict, source: object) -> str:
    return f"{source} does not fit the network ({len(expected)} tensors); " + "; ".join(_differences(expected, state))

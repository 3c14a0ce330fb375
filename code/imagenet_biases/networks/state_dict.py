"""Find the state dict in a file without a description, and fill a network with it, strictly."""

import collections
import inspect
import itertools
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.safe_pickle import tensors
from imagenet_biases.networks.normalization import constant_names
from imagenet_biases.networks.registry import Layout

StateDict: TypeAlias = Mapping[str, Tensor]
Modules: TypeAlias = dict[str, dict[str, tuple[int, ...]]]  # {module, with its dot: {its tensor: shape}}
COUNTERS = ("total_ops", "total_params")  # thop leaves them in every module that it counts
# last parts of names: what an architecture's code makes anew, or nothing reads
MADE_ANEW = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask", *COUNTERS)
# what torch.compile, data-parallel and sharded training insert into names
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, or of several, by name: keys of nested dicts are parts of names.

    Attributes:
        tensors: {name: tensor}.
        folders: {name: keys of the dicts that the tensor is in}.
        files: how many files; the first key is the file's where there are several.
    """

    tensors: dict[str, Tensor]
    folders: dict[str, tuple[str, ...]]
    files: int = 1

    @classmethod
    def of(cls, contents: dict[str, Any], files: int = 1) -> "Checkpoint":
        """Return the tensors in what safe_pickle.read returns."""
        values: dict[str, Tensor] = {}
        folders: dict[str, tuple[str, ...]] = {}
        for path, tensor in tensors(contents):
            values[".".join(path)], folders[".".join(path)] = tensor, path[:-1]
        return cls(values, folders, files)

    def renamed(self, names: Mapping[str, str]) -> "Checkpoint":
        """Return the tensors {new name: tensor} of {name: new name}."""
        checkpoint = Checkpoint({}, {}, self.files)
        for name, new in names.items():
            checkpoint.tensors[new], checkpoint.folders[new] = self.tensors[name], self.folders[name]
        return checkpoint


def find(contents: dict[str, Any], network: torch.nn.Module, source: object, files: int = 1) -> StateDict:
    """Return the part of `contents` that fits `network` once the names are the network's.

    A prefix common to its names is removed; keys of nested dicts count as parts of the names, so wrappers are prefixes,
    too. Parts of the network may have prefixes of their own (a backbone and a head). Wrappers of torch in the middle of
    names are removed, and timm's own translation is tried on files of an architecture's authors. Where several
    different parts fit (weights and their moving average), the first is used. Warns about that, and about tensors
    beside the network that are not used.

    Args:
        contents: of a file, from safe_pickle.read, or {key: contents} of several files.
        network: to be filled.
        source: names the file in messages.
        files: how many files.

    Raises:
        UserError: nothing fits; the message says what came closest.
    """
    expected = network.state_dict()
    everything = Checkpoint.of(contents, files)
    names = {name: name for name in everything.tensors if name in expected or not name.endswith(COUNTERS)}
    checkpoint = everything.renamed(names)
    fitting = _fitting(checkpoint, expected) or _without_wrappers(checkpoint, expected)
    unused = _unused(everything, fitting.values())
    if not fitting:
        fitting, unused = _by_timm(contents, network)
    if not fitting:
        common = _prefixes(checkpoint, expected).most_common(1)
        prefix = common[0][0] if common else ""
        raise UserError(_closest(contents, expected, source, prefix, _part(checkpoint.tensors, prefix)))
    first, state = next(iter(fitting.items()))
    if different := [place for place, other in fitting.items() if place != first and _differ(other, state)]:
        message = f"{source} contains several networks: {first!r} is used, not {listed_briefly(different)}"
        warnings.warn(message, stacklevel=2)
    _warn_of_unused(source, unused)
    return state


def _prefixes(checkpoint: Checkpoint, expected: StateDict) -> collections.Counter[str]:
    """Return how many names become names of the network without a prefix, by prefix in the order of the file."""
    prefixes: collections.Counter[str] = collections.Counter()
    for name in checkpoint.tensors:
        prefixes.update(_known_prefixes(name, expected))
    return prefixes


def _fitting(checkpoint: Checkpoint, expected: StateDict) -> dict[str, StateDict]:
    """Return {prefix: state dict} of the parts that fit, in the order of the file."""
    states: dict[str, StateDict] = {}
    prefixes = _prefixes(checkpoint, expected)
    for prefix, _ in prefixes.most_common(8):
        part = _part(checkpoint.tensors, prefix)
        state = part if not _differences(expected, part) else _composed(checkpoint, expected, prefix)
        if state is not None:
            states[prefix] = state
    return {prefix: states[prefix] for prefix in prefixes if prefix in states}


def _composed(checkpoint: Checkpoint, expected: StateDict, prefix: str) -> StateDict | None:
    """Return the state dict of a network most of which is under a prefix and the rest under others, or None.

    What is missing there is looked for beside it (in the same dict, or in another file) by its name at the end of a
    longer one and, in another file, as the only module of its shapes.
    """
    part = _part(checkpoint.tensors, prefix)
    state = {name: part[name] for name in expected if name in part}
    if 2 * len(state) <= len(expected):
        return None
    folder = checkpoint.folders[prefix + next(iter(state))]
    extra = part.keys() - _add_missing(state, checkpoint, expected, prefix, folder)
    if checkpoint.files > 1:
        state |= _of_other_file(checkpoint, expected, state, folder[0])
        tops = {name.partition(".")[0] for name in expected}  # another depth of the architecture would fit, too
        extra = {name for name in extra if name.partition(".")[0] in tops}
    return None if extra or _differences(expected, state) else state


def _add_missing(
    state: dict[str, Tensor], checkpoint: Checkpoint, expected: StateDict, prefix: str, folder: tuple[str, ...]
) -> set[str]:
    """Add what is missing of a network and lies beside a prefix; return which names under the prefix are used."""
    used = set(state)
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    for name in missing:
        original = _beside(checkpoint, name, prefix, folder, tuple(expected[name].shape))
        if original:
            state[name] = checkpoint.tensors[original]
            used.add(original.removeprefix(prefix) if original.startswith(prefix) else "")
    return used


def _beside(
    checkpoint: Checkpoint, name: str, prefix: str, folder: tuple[str, ...], shape: tuple[int, ...]
) -> str | None:
    """Return the tensor whose name ends with a missing one and begins most like a prefix; None if not just one does."""
    shared: dict[str, int] = {}
    for original, tensor in checkpoint.tensors.items():
        place = checkpoint.folders[original]
        near = place == folder or (checkpoint.files > 1 and place[0] != folder[0])
        if near and f".{original}".endswith(f".{name}") and tuple(tensor.shape) == shape:
            pairs = zip(original.split("."), prefix.split("."), strict=False)
            shared[original] = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    closest = [original for original, length in shared.items() if length == max(shared.values())]
    same = all(torch.equal(checkpoint.tensors[original], checkpoint.tensors[closest[0]]) for original in closest)
    return closest[0] if closest and same else None


def _of_other_file(checkpoint: Checkpoint, expected: StateDict, state: StateDict, first: str) -> StateDict:
    """Return the missing modules that a file beside the first contains under other names, by their shapes."""
    others = {name: tensor for name, tensor in checkpoint.tensors.items() if checkpoint.folders[name][0] != first}
    renamed: dict[str, Tensor] = {}
    for rule, module in _renames(_modules(expected, state), _modules(others, state)):
        for name, tensor in others.items():
            if re.match(rule, name):
                renamed[re.sub(rule, module, name)] = tensor
    return renamed


def _without_wrappers(checkpoint: Checkpoint, expected: StateDict) -> dict[str, StateDict]:
    """Return the parts that fit once the wrappers of torch (compiled, parallel) are taken out of names, anywhere."""
    names = {name: WRAPPERS.sub("", name) for name in checkpoint.tensors}
    originals = {WRAPPERS.sub("", name): name for name in expected}
    if names.keys() == set(names.values()) and originals.keys() == expected.keys():
        return {}  # as tried before
    if len(set(names.values())) < len(names) or len(originals) < len(expected):
        return {}
    plain = {short: expected[name] for short, name in originals.items()}
    states: dict[str, StateDict] = {}
    for prefix, state in _fitting(checkpoint.renamed(names), plain).items():
        states[prefix] = {originals[short]: tensor for short, tensor in state.items()}
    return states


def _by_timm(contents: dict[str, Any], network: torch.nn.Module) -> tuple[dict[str, StateDict], list[str]]:
    """Return the parts that timm's own translation of files that an architecture's authors published makes fit, and
    the tensors that it drops."""
    translate = _translation(network)
    if translate is None:
        return {}, []
    expected, states, dropped = network.state_dict(), {}, []
    for place, part in _dicts(contents):
        originals = {WRAPPERS.sub("", name): name for name, tensor in part.items() if isinstance(tensor, Tensor)}
        names = {short: part[name] for short, name in originals.items() if not short.endswith(COUNTERS)}
        try:
            state = translate(dict(names))
        except Exception:  # it expects a file of its own kind
            continue
        resampled = _sizes(state) - _sizes(names)  # to another size of images: not what the file's authors measured
        if not resampled and not _differences(expected, state):
            states[place] = state
            dropped += [f"{place}{originals[short]}" for short in _dropped(names, translate, state)]
    return states, dropped


def warn_of_dropped(contents: Mapping[str, Any], network: torch.nn.Module, source: object) -> None:
    """Warn of the tensors of a file that timm, which loaded it into a network, leaves out without a word."""
    translate = _translation(network)
    tensors_of_file = {name: value for name, value in contents.items() if isinstance(value, Tensor)}
    if translate is not None:
        _warn_of_unused(source, list(_dropped(tensors_of_file, translate, translate(dict(tensors_of_file)))))


def _warn_of_unused(source: object, names: Sequence[str]) -> None:
    if names:
        message = f"{source} has {len(names)} tensors beside the network, which are not used: {listed_briefly(names)}"
        warnings.warn(message, stacklevel=3)


def _translation(network: torch.nn.Module) -> Callable[[dict[str, Tensor]], StateDict] | None:
    """Return timm's translation of files for a network's architecture, None where it has none."""
    translate = getattr(sys.modules.get(type(network).__module__), "checkpoint_filter_fn", None)
    if translate is None or not type(network).__module__.startswith("timm."):
        return None
    settings = {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(translate).parameters else {}
    return lambda state: translate(state, network, **settings)


def _dropped(part: StateDict, translate: Callable[[dict[str, Tensor]], StateDict], state: StateDict) -> Iterator[str]:
    """Yield the tensors on which a translation does not depend, but for those that are made anew.

    Most tensors are in the translation as they are; of the others, each is changed to see whether it changes, too.
    """
    kept = {tensor.data_ptr() for tensor in state.values()}
    for name, tensor in part.items():
        if tensor.data_ptr() in kept or name.rpartition(".")[2] in MADE_ANEW:
            continue
        other = torch.zeros_like(tensor) if tensor.any() else torch.ones_like(tensor)
        changed = translate({**part, name: other})
        if changed.keys() == state.keys() and not _differ(changed, state):
            yield name


def _sizes(state: StateDict) -> collections.Counter[int]:
    return collections.Counter(map(Tensor.numel, state.values()))


def _dicts(contents: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, dict) of the dicts that contain tensors."""
    if any(isinstance(value, Tensor) for value in contents.values()):
        yield place, contents
    for key, value in contents.items():
        if isinstance(value, dict):
            yield from _dicts(value, f"{place}{key}.")


def _unused(checkpoint: Checkpoint, states: Iterable[StateDict]) -> list[str]:
    """Return the tensors that are in the dicts of a network's tensors and in none of the networks that fit."""
    used = set(map(id, itertools.chain(*(state.values() for state in states))))
    unused: dict[str, tuple[str, ...]] = {}
    folders: set[tuple[str, ...]] = set()
    for name, tensor in checkpoint.tensors.items():
        if id(tensor) in used:
            folders.add(checkpoint.folders[name])
        else:
            unused[name] = checkpoint.folders[name]
    constants = constant_names(checkpoint.tensors)  # of the pixels: networks.normalization says what becomes of them
    return [name for name, folder in unused.items() if folder in folders and name not in constants]


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
    unmatched: list[str] = []
    for module, shapes in extra.items():
        unmatched += [originals[module + last] for last in shapes]
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
    broken = []
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            broken.append(name)
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
    texts = []
    for label, names in labelled.items():
        if names:
            texts.append(f"{len(names)} {label}: {listed_briefly(names)}")
    return texts


def _misfit(expected: StateDict, state: StateDict, source: object) -> str:
    return f"{source} does not fit the network ({len(expected)} tensors); " + "; ".join(_differences(expected, state))

"""Which normalization a network gets: one rule, however it comes in.

What the user says comes first, then what the network's file or its own attributes say, then its library (timm's
configuration, torchvision), then the default. A module that normalizes its pixels itself is left alone.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.safe_pickle import tensors
from imagenet_biases.networks.registry import NORMALIZATION_CHOICES, NORMALIZATIONS

Values = tuple[float, ...]
MEAN = re.compile("mean|mu")
SPREADS = {"mean": ("std", "sd", "stdev"), "mu": ("sigma", "std", "sd")}
CLOSE = 1e-5  # of known constants: files hold them in float32, or multiplied by 255
LIBRARIES = {  # {what a module is: who says how pixels are normalized}
    "timm": "timm's configuration",
    "torchvision": "torchvision",
    "parts of torchvision": "torchvision, of whose parts it is made,",
    "parts of timm": "timm's default, since it is made of timm's parts,",
}


@dataclass(frozen=True)
class Normalization:
    """(pixels - mean) / std before the network, per channel of R, G, B in [0, 1]; `name` is what the record says."""

    mean: Values
    std: Values
    name: str

    @classmethod
    def named(cls, name: str) -> "Normalization":
        """Return one of NORMALIZATIONS; `builtin`: nothing before the network. Raises UserError for another name."""
        if name not in NORMALIZATION_CHOICES or name == "auto":
            raise UserError(f"normalization {name!r} is unknown: it is one of {', '.join(NORMALIZATION_CHOICES)}")
        return cls(*NORMALIZATIONS["none" if name == "builtin" else name], name)

    @classmethod
    def of(cls, mean: Values, std: Values) -> "Normalization":
        """Return the normalization with these constants, named where they are known ones."""
        for name, known in NORMALIZATIONS.items():
            if np.allclose((mean, std), known, rtol=0, atol=CLOSE):
                return cls(*known, name)
        return cls(mean, std, f"mean {_digits(mean)}, standard deviation {_digits(std)}")

    @property
    def constants(self) -> tuple[Values, Values]:
        """Mean and standard deviation."""
        return self.mean, self.std


def _digits(values: Values) -> str:
    return " ".join(f"{value:.4g}" for value in values)


@dataclass
class Statements:
    """What a network says about its normalization.

    Attributes:
        inside: the part of the module by which it normalizes its pixels itself; '' if none is seen.
        beside: {place: constants} that are stated and not applied: left over in a file, or attributes of the module.
        library: (which, constants), of a bare network of timm or torchvision, or of one that is put together from parts
            of theirs.
    """

    inside: str = ""
    beside: dict[str, Normalization] = field(default_factory=dict)
    library: tuple[str, Normalization] | None = None


def statements(body: torch.nn.Module, beside: Mapping[str, Normalization], side: int) -> Statements:
    """Return what a network in evaluation mode says about its normalization.

    Args:
        body: the network.
        beside: what its file states and the network does not contain.
        side: of the images with which it is tried, in pixels.
    """
    stated = Statements(beside=dict(beside), library=_of_library(body))
    if getattr(body, "wants_batch", False) or getattr(body, "answers", "logits") != "logits":
        return stated
    for place, (part, name, constants) in _constants_in(body).items():
        if not _matters(body, part, name, side):
            stated.beside[place] = constants
        else:
            stated.inside = stated.inside or place
    return stated


def decide(choice: str, stated: Statements, default: str, label: object) -> Normalization:
    """Return the normalization of a network; warn where it is not what would be assumed, or contradicts the network.

    Args:
        choice: the user's, or auto.
        stated: what the network says.
        default: where it says nothing: imagenet (checkpoint files) or builtin (modules).
        label: names the network in messages.

    Raises:
        UserError: there is no such choice.
    """
    if choice != "auto":
        chosen = Normalization.named(choice)
        if problem := _contradiction(chosen, stated):
            warnings.warn(f"{label}: {problem}; --normalization {choice} is used all the same", stacklevel=2)
        return chosen
    assumed = Normalization.named(default)
    if stated.inside:
        chosen, reason = Normalization.named("builtin"), f"it normalizes its pixels itself ({stated.inside})"
    elif stated.beside:
        place, chosen = next(iter(stated.beside.items()))
        reason = f"{place} says so"
        if different := [place for place, other in stated.beside.items() if other.constants != chosen.constants]:
            reason += f", although {different[0]} says {stated.beside[different[0]].name}"
    elif stated.library:
        chosen, reason = stated.library[1], f"{LIBRARIES[stated.library[0]]} says so"
    else:
        return assumed
    if chosen.constants == assumed.constants and "although" not in reason:
        return chosen if default != "builtin" else assumed
    warnings.warn(
        f"{label}: the normalization is {chosen.name}, not {default}: {reason}; --normalization sets another",
        stacklevel=2,
    )
    return chosen


def _contradiction(chosen: Normalization, stated: Statements) -> str:
    """Return what the network says against the user's choice, '' if nothing."""
    nothing = chosen.constants == NORMALIZATIONS["none"]
    if stated.inside and not nothing:
        return f"it normalizes its pixels itself ({stated.inside}), so they are normalized twice"
    if stated.inside:
        return ""
    for place, other in stated.beside.items():
        if other.constants != chosen.constants:
            return f"{place} says {other.name}"
    return ""  # a library knows its own weights, but not how the user's were trained


# Mean and standard deviation in files and modules ---------------------------------------------------------------------


def beside(contents: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Normalization]:
    """Return {place: constants} of the means and standard deviations in a file that are not in its network's state."""
    used = set(map(id, state.values()))
    values: dict[str, Any] = {}
    for path, tensor in tensors(dict(contents)):
        if id(tensor) not in used:
            values[".".join(path)] = tensor
    return {place: constants for place, (_, constants) in _pairs(values).items()}


def constant_names(values: Mapping[str, Any]) -> set[str]:
    """Return the names of the means and standard deviations of pixels among named values."""
    names: set[str] = set()
    for mean, (std, _) in _pairs(values).items():
        names |= {mean, std}
    return names


def _pairs(values: Mapping[str, Any]) -> dict[str, tuple[str, Normalization]]:
    """Return {name of a mean: (name of its standard deviation, constants)} of the values of three channels."""
    found: dict[str, tuple[str, Normalization]] = {}
    for name, value in values.items():
        folder, dot, last = name.rpartition(".")
        if "running" in last or _three(value) is None:
            continue
        for match in MEAN.finditer(last):
            for spread in SPREADS[match[0]]:
                partner = f"{folder}{dot}{last[: match.start()]}{spread}{last[match.end() :]}"
                constants = _constants(_three(value), _three(values.get(partner)))
                if constants is not None:
                    found.setdefault(name, (partner, constants))
    return found


def _three(value: Any) -> Values | None:
    """Return three finite numbers of a tensor, list or tuple, or None."""
    if isinstance(value, Tensor):
        if torch.nn.parameter.is_lazy(value) or value.numel() != 3 or value.is_meta or not value.is_floating_point():
            return None
        value = value.detach().flatten().tolist()
    plain = isinstance(value, list | tuple) and len(value) == 3
    if not plain or not all(type(number) in (int, float) for number in value):
        return None
    return tuple(map(float, value))


def _constants(mean: Values | None, std: Values | None) -> Normalization | None:
    """Return the constants for pixels in [0, 1]; a file may state them for 0 to 255. None where they are none."""
    if mean is None or std is None or min(std) <= 0:
        return None
    if max(map(abs, mean)) > 2 or max(std) > 2:
        mean, std = (tuple((np.array(numbers) / 255).tolist()) for numbers in (mean, std))
    return Normalization.of(mean, std)


def _constants_in(body: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, str, Normalization]]:
    """Return {place: (part, name, constants)} of the means with a standard deviation in a module's parts."""
    found: dict[str, tuple[torch.nn.Module, str, Normalization]] = {}
    for place, part in body.named_modules():
        values = {name: value for name, value in vars(part).items() if not isinstance(value, Tensor)}
        values |= dict(part.named_buffers(recurse=False)) | dict(part.named_parameters(recurse=False))
        for name, (_, constants) in _pairs(values).items():
            found[f"{place}.{name}" if place else name] = part, name, constants
    return found


@contextlib.contextmanager
def _changed(part: torch.nn.Module, name: str) -> Iterator[None]:
    """Change a mean of a module within the block."""
    value = getattr(part, name)
    try:
        if isinstance(value, Tensor):
            value.add_(1)
        else:
            setattr(part, name, type(value)(number + 1 for number in value))
        yield
    finally:
        if isinstance(value, Tensor):
            value.sub_(1)
        else:
            setattr(part, name, value)


def _matters(body: torch.nn.Module, part: torch.nn.Module, name: str, side: int) -> bool:
    """Whether a network's answers depend on a mean that it contains: several libraries only note the mean there."""
    images = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    with torch.no_grad():
        answer = body(images.clone())
        with _changed(part, name):
            changed = body(images.clone())
    return not (isinstance(answer, Tensor) and torch.equal(answer, changed))


# Libraries ------------------------------------------------------------------------------------------------------------


def _of_library(body: torch.nn.Module) -> tuple[str, Normalization] | None:
    """Return (library, constants) of a bare network of timm or torchvision, whose code takes normalized pixels."""
    part = _first_part(body)
    if part is None:
        return None
    for kind in type(part).__mro__:
        if kind.__module__.startswith("torchvision.models."):
            return "torchvision", Normalization.named("imagenet")
        if kind.__module__.startswith("timm.models."):
            config = getattr(part, "pretrained_cfg", None)
            config = config if isinstance(config, dict) else {}
            constants = _constants(_three(config.get("mean")), _three(config.get("std")))
            return ("timm", constants) if constants else None
        if any(callable(value) and (name == "__call__" or name[:2] != "__") for name, value in vars(kind).items()):
            break  # the user's own code, which may do anything with the pixels, or a layer of torch
    return _of_parts(part, body)


def _of_parts(first: torch.nn.Module, body: torch.nn.Module) -> tuple[str, Normalization] | None:
    """Return (parts of a library, its normalization) of a sequence of a network's parts, such as its children.

    They are known by their classes where the first is a convolution of the pixels into more channels, which is no
    normalization. The parts do not say for which constants they were trained: nearly all are for ImageNet's.
    """
    if type(first) is not torch.nn.Conv2d or first.in_channels != 3 or first.out_channels <= 3:
        return None
    for part in body.modules():
        for library in ("torchvision", "timm"):
            if type(part).__module__.startswith(f"{library}.models."):
                return f"parts of {library}", Normalization.named("imagenet")
    return None


def _first_part(body: torch.nn.Module) -> torch.nn.Module | None:
    """Return the part of a module that receives the pixels as they are, through torch's own wrappers."""
    while True:
        torchs = type(body).__module__.startswith("torch.")
        if body._forward_pre_hooks or ("forward" in vars(body) and not torchs):
            return None
        inner: Any = None
        if type(body).forward is torch.nn.Sequential.forward:
            inner = next(body.children(), None)
        elif torchs:
            inner = getattr(body, "_orig_mod", None) or getattr(body, "module", None)
        if not isinstance(inner, torch.nn.Module):
            return body
        body = inner

"""Resets: changes that replace what layers have learned, and what the answers then differ by.

A reset is a function of the network, the layers' names (as in `network.body`), the seed and the number of the draw: the
order of the layers, the device and the batches do not matter. A layer can be reset in these ways (RESETS):

- fresh: all state of the layer, statistics included, as in an untrained network of the same architecture
- pytorch: the layer's parameters as PyTorch's own default for its type makes them; its statistics stay
- permute: each parameter's numbers in random order; moments: Gaussian numbers of each parameter's mean and SD;
  zero: parameters 0. The statistics stay.
"""

import copy
import fnmatch
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imagenet_biases.base.errors import UserError
from imagenet_biases.estimate import whole_set_percentiles
from imagenet_biases.images.order import VERSION
from imagenet_biases.images.preprocessing import STUDY, Reader
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.measures.accuracy import (
    correct,
    percentile_factor,
    resampled_means,
    with_percentiles,
)
from imagenet_biases.networks.load import Network
from imagenet_biases.networks.user_code import build, buildable
from imagenet_biases.stimuli.seeded import bits, normal
from imagenet_biases.vocabulary import (
    CLEAN,
    Condition,
    Estimate,
    Presentation,
    Readout,
    Responses,
    Results,
    TopClasses,
    between,
    identified,
)

RESETS = ("fresh", "pytorch", "permute", "moments", "zero")
CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
NORMS = torch.nn.modules.batchnorm._BatchNorm
CHUNK = 50  # images that batch-norm statistics are estimated on at a time
RESAMPLES = 1000

Source = dict[str, str]  # {build: argument of user_code.build, code: hash of its file}

# Which layers ---------------------------------------------------------------------------------------------------------

LAYER_KINDS: dict[str, Callable[[torch.nn.Module], bool]] = {
    "conv": lambda module: isinstance(module, CONVOLUTIONS),
    "fc": lambda module: isinstance(module, torch.nn.Linear),
    "bn": lambda module: isinstance(module, NORMS),
    "spatial": lambda module: isinstance(module, CONVOLUTIONS) and math.prod(module.kernel_size) > 1,
    "all": lambda module: True,
}


def layers_of(network: Network, selection: Iterable[str]) -> list[str]:
    """Return the names of the selected layers, in the network's order. Subclasses count.

    Args:
        selection: words: conv, fc (linear), bn (batch norm), spatial (convolutions of more than one weight per filter),
            all (every module with parameters of its own), or a pattern of names.

    Raises:
        UserError: a word that selects no layer.
    """
    layers = {}
    for name, module in network.body.named_modules():
        if name and any(parameter is not None for parameter in module._parameters.values()):
            layers[name] = module
    selected: set[str] = set()
    for word in selection:
        if word in LAYER_KINDS:
            selected |= {name for name, module in layers.items() if LAYER_KINDS[word](module)}
        elif matches := fnmatch.filter(layers, word):
            selected |= set(matches)
        else:
            kinds = ", ".join(LAYER_KINDS)
            raise UserError(f"--layers {word}: neither one of {kinds} nor a pattern that fits a layer's name")
    return [name for name in layers if name in selected]


# Resets ---------------------------------------------------------------------------------------------------------------


def reset(
    label: str,
    layers: Iterable[str],
    kind: str,
    draw: int,
    seed: int,
    source: Source | None = None,
    recalibration: "Recalibration | None" = None,
) -> Condition:
    """Return the condition that resets layers together.

    Args:
        label: stands for the layers: one's name, or a word.
        kind: one of RESETS.
        source: for `fresh`, what builds an untrained network, see `resolved_reset`.
        recalibration: of the batch-norm statistics, to follow.
    """
    settings: dict[str, Any] = {"layers": list(layers), "way": kind, "draw": draw, "seed": seed, "maker": source}
    if recalibration is None:
        return Condition(f"{kind} {label} {draw}", change=apply, settings=settings)
    settings |= {"recalibrated": recalibration.identity()}
    change = ResetAndRecalibration(recalibration)
    return Condition(f"{kind} {label} {draw} recalibrated", change=change, settings=settings)


@identified("reset.<locals>.recalibrated")
@dataclass(frozen=True)
class ResetAndRecalibration:
    """A reset that is followed by a recalibration of the batch-norm statistics."""

    recalibration: "Recalibration"

    def __call__(self, network: Network, *, recalibrated: Any, **settings: Any) -> None:
        apply(network, **settings)
        self.recalibration(network, settings)


def resolved_reset(network: Network, kind: str, untrained: str | None = None) -> tuple[str, Source | None]:
    """Return (kind, source): `fresh` becomes `pytorch` where nothing builds an untrained network of the architecture.

    Args:
        untrained: file.py:function that builds one, for users' own modules, which come with their weights.
    """
    if kind != "fresh":
        return kind, None
    arch = untrained
    source = network.identity.get("source", "")
    if not arch and network.identity.get("normalization") != "its own" and source != "Python" and ".py:" not in source:
        arch = network.identity.get("arch")
    if arch and not untrained and not buildable(arch):
        arch = None
    return ("fresh", {"build": arch, "code": _code(arch)}) if arch else ("pytorch", None)


@lru_cache
def _code(arch: str) -> str:
    return build(arch)[1] if ".py:" in arch else ""


@identified("apply")
def apply(network: Network, *, layers: Iterable[str], **settings: Any) -> None:
    """Reset layers of a network in place; `settings` are those of `reset`."""
    state = {}
    for layer in layers:
        state |= dict(reset_state(network, layer, *_arguments(settings)))
    tensors = dict(_tensors(network.body, "", recurse=True))
    with torch.no_grad():
        for name, value in state.items():
            tensors[name].copy_(value)


def _arguments(settings: Mapping[str, Any]) -> tuple[str, int, int, Source | None]:
    """Return (kind, draw, seed, source) from a reset's settings."""
    return settings["way"], settings["draw"], settings["seed"], settings["maker"]


def _tensors(module: torch.nn.Module, prefix: str, recurse: bool = False) -> list[tuple[str, Tensor]]:
    """Return (name, tensor) of a module's parameters and buffers."""
    return [*module.named_parameters(prefix, recurse), *module.named_buffers(prefix, recurse)]


def reset_state(
    network: Network, layer: str, kind: str, draw: int, seed: int, source: Source | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a layer's state after a reset; tensors that it does not name stay as they are."""
    module = network.body.get_submodule(layer)
    if kind == "fresh":
        assert source is not None
        yield from _matching(fresh(source["build"], seed, draw), module, layer, source["build"])
    elif kind == "pytorch":
        yield from _matching(_pytorch_default(module, layer, draw, seed), module, layer, "PyTorch")
    else:
        for name, value in module.named_parameters(layer, recurse=False):
            yield name, _redrawn(kind, name, value.detach(), seed, draw)


def _redrawn(kind: str, name: str, value: Tensor, seed: int, draw: int) -> Tensor:
    """Return a parameter's numbers after a reset of kind permute, moments or zero."""
    if kind == "zero":
        return torch.zeros_like(value)
    states = torch.tensor([_number(kind, name, seed, draw)]).to(value.device, non_blocking=True)
    if kind == "permute":
        return value.flatten()[bits(states, value.numel())[0].argsort()].view(value.shape)
    mean, sd = value.double().mean(), value.double().std(correction=0)
    return (normal(states, value.shape)[0].double() * sd + mean).to(value.dtype)


def _matching(
    state: Mapping[str, Tensor], module: torch.nn.Module, layer: str, builder: str
) -> Iterator[tuple[str, Tensor]]:
    for name, value in _tensors(module, layer):
        if name not in state or state[name].shape != value.shape:
            raise UserError(f"{builder} builds another network: it has no {name} of shape {[*value.shape]}")
        yield name, state[name]


def _number(*words: Any) -> int:
    """Return an int64 that depends on all words."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@lru_cache(maxsize=16)
def fresh(arch: str, seed: int, draw: int) -> dict[str, Tensor]:
    """Return the state of an untrained network as its constructor initialises it, by (seed, draw)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_number("fresh", seed, draw))
        body, _ = build(arch)
    return {name: value.detach() for name, value in _tensors(body, "", recurse=True)}


def _pytorch_default(module: torch.nn.Module, layer: str, draw: int, seed: int) -> dict[str, Tensor]:
    """Return a layer's state as its own default initialises it, on the CPU; random by (seed, layer, draw)."""
    untrained = copy.deepcopy(module).cpu()
    default: Any = getattr(untrained, "reset_parameters", None) or getattr(untrained, "_reset_parameters", None)
    if default is None:
        raise UserError(
            f"the layer {layer} ({type(module).__name__}) has no default of PyTorch's: leave it out with --layers, or "
            f"give --untrained file.py:function, which builds the untrained network"
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_number("pytorch", layer, seed, draw))
        default()
    return {name: value.detach() for name, value in _tensors(untrained, layer)}


class Recalibration:
    """Batch-norm statistics estimated anew on `count` images after a change, from its first layer on.

    The images are read once, with the study's preprocessing; the statistics of each change are estimated once.
    """

    def __init__(self, images: ImageSet, count: int) -> None:
        self.images = (images.whole or images).first(count)
        self.pixels: Tensor | None = None
        self.statistics: dict[tuple[int, str], dict[str, tuple[Tensor, Tensor]]] = {}

    def identity(self) -> dict[str, Any]:
        """What determines the estimates, JSON-able."""
        return {"images": len(self.images), "of": self.images.fingerprint, "view": "study", "order": VERSION}

    def __call__(self, network: Network, settings: Mapping[str, Any]) -> None:
        key = id(network), repr(settings)
        norms = {name: module for name, module in network.body.named_modules() if isinstance(module, NORMS)}
        if key not in self.statistics:
            chunks = self._chunks(network)
            self.statistics[key] = estimated_statistics(network, settings["layers"], norms, chunks)
        with torch.no_grad():
            for name, (mean, variance) in self.statistics[key].items():
                norms[name].running_mean.copy_(mean)  # type: ignore[union-attr]
                norms[name].running_var.copy_(variance)  # type: ignore[union-attr]

    def _chunks(self, network: Network) -> Iterator[Float[Tensor, "B 3 H W"]]:
        if self.pixels is None:
            reader = Reader(self.images, self.images.preprocessing(STUDY))
            positions = self.images.chosen
            images = [torch.from_numpy(reader.read(int(position)).copy()) for position in positions]
            self.pixels = torch.stack(images)
        for chunk in self.pixels.split(CHUNK):
            yield chunk.to(next(network.buffers()).device).permute(0, 3, 1, 2).to(torch.float32).div_(255)


def estimated_statistics(
    network: Network, layers: Iterable[str], norms: Mapping[str, Any], chunks: Iterable[Float[Tensor, "B 3 H W"]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return {name: (mean, variance)} of the batch norms that are called from the first of the layers on.

    Means over chunks of images; within a chunk each norm normalises by the chunk's own statistics.
    """
    sums: dict[str, tuple[Any, Any, int]] = {}
    reached: list[bool] = []

    def reach(*_: Any) -> None:
        reached.append(True)

    def estimate(norm: Any, inputs: tuple[Tensor], name: str) -> None:
        if reached and norm.running_mean is not None:
            dimensions = [dimension for dimension in range(inputs[0].dim()) if dimension != 1]
            variance, mean = torch.var_mean(inputs[0], dimensions)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            before = sums.get(name, (0, 0, 0))
            sums[name] = before[0] + mean.double(), before[1] + variance.double(), before[2] + 1

    hooks = [network.body.get_submodule(layer).register_forward_pre_hook(reach) for layer in layers]
    hooks += [norm.register_forward_pre_hook(partial(estimate, name=name)) for name, norm in norms.items()]
    try:
        with torch.no_grad():
            for chunk in chunks:
                reached.clear()
                network(chunk)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (mean / count, variance / count) for name, (mean, variance, count) in sums.items()}


# What the answers then differ by --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SoftmaxDistances(Readout):
    """How far the softmax vector is from the intact network's on the same image: 1 - cosine, l1, l2, float32 [B, 3]."""

    id: ClassVar[str] = "SoftmaxDistances"
    shape: ClassVar[tuple[int, ...]] = (3,)
    intact: ClassVar[bool] = True

    def __call__(self, presentation: Presentation) -> Float[Tensor, "B 3"]:
        assert presentation.logits is not None and presentation.intact is not None
        wide = torch.float32 if presentation.logits.device.type == "mps" else torch.float64  # MPS has no float64
        p, q = (logits.to(wide).softmax(1) for logits in (presentation.intact, presentation.logits))
        gap = p - q
        # |p|, |q| from their sum of squares: 1 - cosine is exactly 0 for equal vectors
        cosine = (p * q).sum(1) / ((p * p).sum(1) * (q * q).sum(1)).sqrt()
        return torch.stack([1 - cosine, gap.abs().sum(1), gap.square().sum(1).sqrt()], 1)

    def possible(self, rows: np.ndarray) -> bool:
        return between(rows, -1e-5, np.array([1, 2, np.sqrt(2)]) + 1e-5)


Draws = Float[np.ndarray, "draws N"]


def settings_of(results: Results) -> dict[str, Any]:
    """Return the settings that all resets share, and the number of draws; {} if there is no reset."""
    settings = [responses.condition.settings for responses in _resets(results)]
    if not settings:
        return {}
    draws = 1 + max(reset_settings["draw"] for reset_settings in settings)
    return {key: value for key, value in settings[0].items() if key not in ("layers", "draw")} | {"draws": draws}


def _resets(results: Results) -> list[Responses]:
    return [responses for responses in results.all() if responses.condition.change]


def _by_label(
    results: Results, readout: type[Readout], measure: Callable[[Responses], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return {layer, or 'joint': [draws, images, ...]} of a measure of the responses to the resets."""
    counted = results["imagenet", CLEAN.name].counts
    rows: dict[str, list[np.ndarray]] = {}
    for responses in _resets(results):
        if isinstance(responses.readout, readout):
            rows.setdefault(_label(responses.condition), []).append(measure(responses)[counted])
    return {label: np.array(draws, np.float64) for label, draws in rows.items()}


def _label(condition: Condition) -> str:
    layers = condition.settings["layers"]
    return layers[0] if len(layers) == 1 else "joint"


def outcomes(results: Results) -> dict[str, tuple[dict[str, Estimate], Estimate]]:
    """Return {measure: (Estimate by label, Estimate of their mean)}: '' criticality, /l1, /l2, /recovered.

    Rows are averaged over images in their order, in float64, then over draws, then over layers.
    """
    distances = _by_label(results, SoftmaxDistances, lambda responses: responses.values)
    hits = _by_label(results, TopClasses, correct)
    clean = results["imagenet", CLEAN.name]
    intact, count = correct(clean)[clean.counts], results.resamples(RESAMPLES)
    factor = percentile_factor(clean)
    estimates = {}
    for column, measure in enumerate(("", "/l1", "/l2")):
        of_column = {label: rows[..., column] for label, rows in distances.items()}
        estimates[measure] = _estimates(of_column, count, factor)
    estimates["/recovered"] = _estimates(hits, count, factor, intact.astype(np.float64))
    return estimates


def _estimates(
    values: Mapping[str, Draws], count: int, factor: float, reference: Float[np.ndarray, " N"] | None = None
) -> tuple[dict[str, Estimate], Estimate]:
    """Return the Estimates of values by label and of their mean, relative to the reference's mean if there is one.

    What the whole set would give (of a sample, which has a percentile_factor above 0) has the same draws.
    """
    stacked = np.stack(list(values.values()))
    if reference is not None and not reference.any():
        return {label: Estimate(None) for label in values}, Estimate(None)

    def resampled(fixed_draws: bool) -> Float[np.ndarray, "resamples labels"]:
        means = resampled_means(stacked, count, fixed_draws=fixed_draws)
        return means if reference is None else means / resampled_means(reference[None, None], count)

    means = stacked.mean(2).mean(1)
    if reference is not None:
        means = means / reference.mean()
    of_both, of_images = resampled(False), resampled(True) if factor and count else None

    def estimate(value: float, columns: Any) -> Estimate:
        whole = with_percentiles(value, of_both[:, columns].mean(1))
        if of_images is None:
            return whole
        return replace(whole, whole_set=whole_set_percentiles(value, of_images[:, columns].mean(1), factor))

    by_label = {label: estimate(means[number], [number]) for number, label in enumerate(values)}
    return by_label, estimate(means.mean(), slice(None))


def accuracy(results: Results, ks: Iterable[int] = (1, 5)) -> dict[int, Estimate]:
    """Return {k: top-k accuracy under the resets, mean over draws and labels}."""
    accuracies = {}
    for k in ks:
        hits = _by_label(results, TopClasses, lambda responses, k=k: 100 * correct(responses, k))
        factor = percentile_factor(results["imagenet", CLEAN.name])
        accuracies[k] = _estimates(hits, results.resamples(RESAMPLES), factor)[1]
    return accuracies


def distributions(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """Return {layer: {parameter: its SD before, SD and largest number after the first draw}} of the reset layers."""
    facts: dict[str, dict[str, dict[str, float]]] = {}
    assert results.network is not None
    for responses in _resets(results):
        layers, settings = responses.condition.settings["layers"], dict(responses.condition.settings)
        settings.pop("layers")
        for layer in layers:
            if settings["draw"] == 0 and layer not in facts:
                facts[layer] = _distribution(results.network, layer, settings)
    return facts


def _distribution(network: Network, layer: str, settings: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    before = dict(_tensors(network.body.get_submodule(layer), layer))
    facts = {}
    for name, value in reset_state(network, layer, *_arguments(settings)):
        numbers = {
            "sd_before": float(before[name].double().std(correction=0)),
            "sd": float(value.double().std(correction=0)),
            "largest": float(value.abs().max()),
        }
        facts[name] = {key: float(f"{number:.5g}") for key, number in numbers.items()}
    return facts

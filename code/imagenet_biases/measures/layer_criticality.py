"""Resets: changes that replace what layers have learned, and what the answers then differ by.

A reset is a function of the network, the layers' names (as in `network.body`), the seed and the number of the draw: the
order of the layers, the device and the batches do not matter. Ways of resetting a layer:

- fresh: all state of the layer (statistics, too) as an untrained network of the same architecture has it
- pytorch: the layer's parameters as PyTorch's own default for its type makes them, with its statistics
- permute: each parameter's numbers in random order; moments: Gaussian numbers of each parameter's mean and SD;
  zero: parameters 0. The statistics stay.
"""

import copy
import fnmatch
import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np
import torch

from imagenet_biases.base.errors import UserError
from imagenet_biases.measures.accuracy import correct, resampled_means, with_percentiles
from imagenet_biases.networks.user_code import build
from imagenet_biases.stimuli.seeded import bits, normal
from imagenet_biases.vocabulary import CLEAN, Condition, Estimate, Readout, TopClasses, between, identified

WAYS = ("fresh", "pytorch", "permute", "moments", "zero")
CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
NORMS = torch.nn.modules.batchnorm._BatchNorm
CHUNK = 50  # images that batch-norm statistics are estimated on at a time


# Which layers ---------------------------------------------------------------------------------------------------------


def layers_of(network, chosen):
    """Return the names of the layers that `chosen` words select, in the network's order.

    conv, fc (linear), bn (batch norm), spatial (convolutions of more than one weight a filter), all (every module with
    parameters of its own), or a pattern of names. Subclasses count. Raises UserError for a word that selects none.
    """
    layers = {name: one for name, one in network.body.named_modules() if name and one._parameters}
    layers = {name: one for name, one in layers.items() if any(p is not None for p in one._parameters.values())}
    kinds = {
        "conv": lambda one: isinstance(one, CONVOLUTIONS),
        "fc": lambda one: isinstance(one, torch.nn.Linear),
        "bn": lambda one: isinstance(one, NORMS),
        "spatial": lambda one: isinstance(one, CONVOLUTIONS) and math.prod(one.kernel_size) > 1,
        "all": lambda one: True,
    }
    found = set()
    for word in chosen:
        if word in kinds:
            found |= {name for name, one in layers.items() if kinds[word](one)}
        elif hits := fnmatch.filter(layers, word):
            found |= set(hits)
        else:
            raise UserError(
                f"--layers {word}: neither one of {', '.join(kinds)} nor a pattern that a layer's name fits"
            )
    return [name for name in layers if name in found]


# Resets ---------------------------------------------------------------------------------------------------------------


def reset(label, layers, way, draw, seed, maker=None, recalibration=None):
    """Return the condition that resets the layers together; `label` is what stands for them, a layer's name or a word.

    maker: for `fresh`, what builds the network, see `way_for`; recalibration: a Recalibration to follow.
    """
    settings = {"layers": list(layers), "way": way, "draw": draw, "seed": seed, "maker": maker}
    if recalibration is None:
        return Condition(f"{way} {label} {draw}", change=apply, settings=settings)

    @identified("reset.<locals>.recalibrated")
    def recalibrated(network, recalibrated, **settings):
        apply(network, **settings)
        recalibration(network, settings)

    settings |= {"recalibrated": recalibration.identity()}
    return Condition(f"{way} {label} {draw} recalibrated", change=recalibrated, settings=settings)


def way_for(network, way, untrained=None):
    """Return (way, maker): `fresh` becomes `pytorch` where nothing builds an untrained network of the architecture.

    maker: {build: what `own_code.build` takes, code: hash of the user's file}, None where it is not needed. The user's
    own modules come with their weights: of these `untrained` builds one, file.py:function.
    """
    if way != "fresh":
        return way, None
    arch = untrained or (network.identity.get("arch") if network.identity.get("normalization") != "its own" else None)
    return ("fresh", {"build": arch, "code": _code(arch)}) if arch else ("pytorch", None)


@lru_cache
def _code(arch):
    return build(arch)[1] if ".py:" in arch else ""


@identified("apply")
def apply(network, *, layers, way, draw, seed, maker):
    """Reset layers of a network in place."""
    state = {name: value for layer in layers for name, value in reset_state(network, layer, way, draw, seed, maker)}
    tensors = dict(_tensors(network.body, "", recurse=True))
    with torch.no_grad():
        for name, value in state.items():
            tensors[name].copy_(value)


def _tensors(module, prefix, recurse=False):
    """Return (name, tensor) of a module's parameters and buffers."""
    return [*module.named_parameters(prefix, recurse), *module.named_buffers(prefix, recurse)]


def reset_state(network, layer, way, draw, seed, maker=None):
    """Yield (name, tensor) of what a layer holds after a reset; what it does not name stays as it is."""
    module = network.body.get_submodule(layer)
    if way in ("fresh", "pytorch"):
        made = fresh(maker["build"], seed, draw) if way == "fresh" else _as_pytorch(module, layer, draw, seed)
        for name, value in _tensors(module, layer):
            if name not in made or made[name].shape != value.shape:
                raise UserError(f"{maker['build']} builds another network: no {name} of shape {[*value.shape]} in it")
            yield name, made[name]
        return
    for name, value in module.named_parameters(layer, recurse=False):
        states = torch.tensor([_number(way, name, seed, draw)], device=value.device)
        if way == "zero":
            yield name, torch.zeros_like(value)
        elif way == "permute":
            order = bits(states, value.numel())[0].argsort()
            yield name, value.detach().flatten()[order].view(value.shape)
        else:
            mean, sd = value.detach().double().mean(), value.detach().double().std(correction=0)
            yield name, (normal(states, value.shape)[0].double() * sd + mean).to(value.dtype)


def _number(*words):
    """Return a number that depends on all words alike, int64."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@lru_cache(maxsize=16)
def fresh(arch, seed, draw):
    """Return the state of an untrained network, {name: tensor}, as its constructor makes it: here by (seed, draw)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_number("fresh", seed, draw))
        body, _ = build(arch)
    return {name: value.detach() for name, value in _tensors(body, "", recurse=True)}


def _as_pytorch(module, layer, draw, seed):
    """Return what a layer's own default makes of it, on the CPU: where that is random, by (seed, layer, draw)."""
    made = copy.deepcopy(module).cpu()
    default = getattr(made, "reset_parameters", None) or getattr(made, "_reset_parameters", None)
    if default is None:
        raise UserError(
            f"the layer {layer} ({type(module).__name__}) has no default of PyTorch's: leave it out by --layers, or "
            f"say by --untrained file.py:function how the network is made"
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_number("pytorch", layer, seed, draw))
        default()
    return {name: value.detach() for name, value in _tensors(made, layer)}


class Recalibration:
    """Batch-norm statistics estimated anew on `count` images after a change, from its first layer on.

    The images are read once, in the study's view; the statistics of each change are estimated once.
    """

    def __init__(self, images, count):
        self.images, self.count = images, min(count, len(images))
        self.pixels, self.known = None, {}

    def identity(self):
        """What determines the estimates, JSON-able."""
        return {"images": self.count, "of": self.images.fingerprint, "view": "study"}

    def __call__(self, network, settings):
        key = id(network), repr(settings)
        norms = {name: one for name, one in network.body.named_modules() if isinstance(one, NORMS)}
        if key not in self.known:
            self.known[key] = estimated_statistics(network, settings["layers"], norms, self._chunks(network))
        with torch.no_grad():
            for name, (mean, variance) in self.known[key].items():
                norms[name].running_mean.copy_(mean)
                norms[name].running_var.copy_(variance)

    def _chunks(self, network):
        from imagenet_biases.images.preprocessing import STUDY, Reader

        if self.pixels is None:
            reader = Reader(self.images, self.images.preprocessing(STUDY))
            positions = self.images.chosen[:: max(len(self.images) // self.count, 1)][: self.count]
            self.pixels = torch.stack([torch.from_numpy(reader.read(int(one)).copy()) for one in positions])
        for chunk in self.pixels.split(CHUNK):
            yield chunk.to(network.mean.device).permute(0, 3, 1, 2).to(torch.float32).div_(255)


def estimated_statistics(network, layers, norms, chunks):
    """Return {name: (mean, variance)} of those batch norms that are called from the first of the layers on.

    Mean over chunks of images of what each chunk has; within a chunk each norm goes by the chunk's own statistics.
    """
    sums, reached = {}, []

    def reach(*_):
        reached.append(True)

    def estimate(norm, inputs, name):
        if reached and norm.running_mean is not None:
            variance, mean = torch.var_mean(inputs[0], [n for n in range(inputs[0].dim()) if n != 1])
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

    def __call__(self, shown):
        wide = torch.float32 if shown.logits.device.type == "mps" else torch.float64  # which has no float64
        p, q = (logits.to(wide).softmax(1) for logits in (shown.intact, shown.logits))
        gap = p - q
        # |p|, |q| from their sum of squares: 1 - cosine is exactly 0 for equal vectors
        cosine = (p * q).sum(1) / ((p * p).sum(1) * (q * q).sum(1)).sqrt()
        return torch.stack([1 - cosine, gap.abs().sum(1), gap.square().sum(1).sqrt()], 1)

    def possible(self, rows):
        return between(rows, -1e-5, np.array([1, 2, np.sqrt(2)]) + 1e-5)


def settings_of(found):
    """Return the settings that all resets of a Found share, and the number of draws; {} where there is no reset."""
    shared = [one.condition.settings for one in found.all() if one.condition.change]
    if not shared:
        return {}
    draws = 1 + max(settings["draw"] for settings in shared)
    return {key: value for key, value in shared[0].items() if key not in ("layers", "draw")} | {"draws": draws}


def _by_label(found, readout, read):
    """Return {layer, or 'joint': [draws, images, ...]} of what `read` makes of the responses to the resets."""
    counted, rows = found["imagenet", CLEAN.name].counts, {}
    for one in found.all():
        if one.condition.change and isinstance(one.readout, readout):
            rows.setdefault(_label(one.condition), []).append(read(one)[counted])
    return {label: np.array(one, np.float64) for label, one in rows.items()}


def _label(condition):
    layers = condition.settings["layers"]
    return layers[0] if len(layers) == 1 else "joint"


def outcomes(found):
    """Return {measure: (Estimate by label, Estimate of their mean)}: '' criticality, /l1, /l2, /recovered.

    Rows an image are averaged in the order of the images in float64, then draws, then layers.
    """
    distances = _by_label(found, SoftmaxDistances, lambda one: one.values)
    hits = _by_label(found, TopClasses, correct)
    intact = correct(found["imagenet", CLEAN.name])[found["imagenet", CLEAN.name].counts]
    result = {}
    for number, measure in enumerate(("", "/l1", "/l2")):
        result[measure] = _estimates(
            {label: one[..., number] for label, one in distances.items()}, found.resamples(1000)
        )
    result["/recovered"] = _estimates(hits, found.resamples(1000), intact.astype(np.float64))
    return result


def _estimates(values, count, yardstick=None):
    """Return the Estimates of values by label, [draws, images], and of their mean; both divided by the yardstick's."""
    stacked = np.stack(list(values.values()))
    means, resampled = stacked.mean(2).mean(1), resampled_means(stacked, count)
    if yardstick is not None:
        if not yardstick.any():
            return {label: Estimate(None) for label in values}, Estimate(None)
        means, resampled = means / yardstick.mean(), resampled / resampled_means(yardstick[None, None], count)
    by_label = {label: with_percentiles(means[n], resampled[:, n]) for n, label in enumerate(values)}
    return by_label, with_percentiles(means.mean(), resampled.mean(1))


def accuracy(found, ks=(1, 5)):
    """Return {k: top-k accuracy under the resets, mean over draws and labels}."""
    hits = {k: _by_label(found, TopClasses, lambda one, k=k: 100 * correct(one, k)) for k in ks}
    return {k: _estimates(one, found.resamples(1000))[1] for k, one in hits.items()}


def distributions(found):
    """Return {parameter: its SD before, SD and largest number after the first draw} of the layers that were reset."""
    result = {}
    for settings in [one.condition.settings for one in found.all() if one.condition.change]:
        for layer in settings["layers"] if not settings["draw"] else ():
            before = dict(_tensors(found.network.body.get_submodule(layer), layer))
            how = {key: settings[key] for key in ("way", "draw", "seed", "maker")}
            for name, value in () if layer in result else reset_state(found.network, layer, **how):
                sds = (float(one.double().std(correction=0)) for one in (before[name], value))
                facts = zip(("sd_before", "sd", "largest"), (*sds, float(value.abs().max())), strict=True)
                result.setdefault(layer, {})[name] = {key: float(f"{number:.5g}") for key, number in facts}
    return result

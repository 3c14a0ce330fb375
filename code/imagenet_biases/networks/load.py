"""load_model(name) -> Network: a network of the registry, of timm, of a file or of one's own, on pixels in [0, 1].

from_module(module, label) makes one of a torch module; borrowed(module) is how it is given back as it was.
"""

import contextlib
import copy
import hashlib
import json
import math
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

from imagenet_biases.base.download import fetch, file_hash, hash_in_name
from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import demand_file, safe_name
from imagenet_biases.base.safe_pickle import read
from imagenet_biases.images.preprocessing import STUDY, Preprocessing
from imagenet_biases.networks import packages, registry
from imagenet_biases.networks.packages import CLASSES
from imagenet_biases.networks.pins import Pins
from imagenet_biases.networks.registry import NORMALIZATIONS
from imagenet_biases.networks.state_dict import fill, find
from imagenet_biases.networks.user_code import blaming, build, class_sources

FULL = 50_000  # ImageNet validation images
SAME = 1e-4  # of the largest logit; float32 sums in another order move logits by about 1e-6


class Network(torch.nn.Module):
    """A network on RGB pixels in [0, 1], float32 [B, 3, H, W], that gives 1,000 logits [B, 1000] (sorted WordNet ids).

    name: its label, and the folder of its results; category: '' if none; expected_top1: per cent, or None; identity: a
    JSON-able dict of what it is (`network` is a sha256 of weights, architecture and own code, whatever its label);
    native_view: the View its authors evaluate with.
    answers: 'logits', or 'words' where the body says so: it returns a list of str, one an image. wants_batch: whether
    the body is called as body(pixels, batch=batch), with the images' keys, the seed and the draw. asks: the keywords by
    which the body takes a question (Condition.question). channels_last: whether it takes weights and pixels in that
    order. side: of its images in pixels, where it takes no other, else None.
    In evaluation mode, float32, parameters without gradients.
    """

    def __init__(
        self,
        body,
        *,
        name,
        mean,
        std,
        facts,
        code="",
        category="",
        expected_top1=None,
        preprocessing=STUDY,
        allow_unstable=False,
        check=True,
    ):
        super().__init__()
        self.body = body
        self.name, self.category, self.expected_top1, self._preprocessing = (
            safe_name(name),
            category,
            expected_top1,
            preprocessing,
        )
        self.answers, self.wants_batch = getattr(body, "answers", "logits"), bool(getattr(body, "wants_batch", False))
        self.side = getattr(body, "side", None)
        self.asks = tuple(getattr(body, "asks", ()))
        if self.answers not in ("logits", "words"):
            raise UserError(f"{name}: its attribute `answers` is {self.answers!r}, not 'logits' or 'words'")
        self.normalized = (tuple(mean), tuple(std)) != NORMALIZATIONS["none"]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.channels_last, self.overwrites = True, False
        self.frontends, self._asks = (), self.wants_batch
        with blaming(f"{name}, shown two images,"), torch.no_grad():
            self.eval().requires_grad_(False).float()
            if check:
                self._check(allow_unstable)
        self.identity = {"network": _fingerprint(self, code), **facts}

    def forward(self, pixels, batch=None, prompt=None):
        for frontend in self.frontends:
            pixels = frontend(pixels, batch)
        if self.normalized:
            pixels = (pixels - self.mean) / self.std
        elif self.overwrites:
            pixels = pixels.clone()
        if not self.channels_last:
            pixels = pixels.contiguous()
        more = {"batch": batch} if self._asks else {}
        if self.asks:  # nothing that depends on the question is in the way of tracing other networks
            more |= {word: value for word, value in (prompt or {}).items() if word in self.asks}
        return self.body(pixels, **more)

    def behind(self, frontend):
        """Return the network behind a FrontEnd: another network, of the same parameters, of which nothing is known."""
        network = copy.copy(self)
        network.frontends = (frontend, *self.frontends)
        network.wants_batch = self._asks or any(one.seeded for one in network.frontends)
        network.expected_top1 = None
        text = json.dumps([self.identity["network"], frontend.identity()], sort_keys=True)
        network.identity = self.identity | {
            "network": hashlib.sha256(text.encode()).hexdigest(),
            "frontend": "+".join(filter(None, (frontend.text, self.identity.get("frontend")))),
        }
        return network

    @property
    def native_preprocessing(self):
        if not isinstance(self._preprocessing, Preprocessing):
            raise UserError(
                f"{self.name}: --preprocessing native cannot follow its own preprocessing ({self._preprocessing}); use study"
            )
        return self._preprocessing

    def _check(self, allow_unstable):
        """Show two images together, again, each alone, and in channels-last order: what the measurement relies on.

        Sets `overwrites` and `channels_last`. Raises UserError for answers of another shape, and, unless
        `allow_unstable`, for answers that are no function of the image.
        """
        size = self._preprocessing.crop if isinstance(self._preprocessing, Preprocessing) else STUDY.crop
        pixels = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.float32)

        def ask(*chosen, order=torch.contiguous_format):
            shown = pixels[list(chosen)].clone(memory_format=order)
            version = shown._version  # counts what is written into it, even where that changes no value
            answers = self(shown, SimpleNamespace(keys=torch.tensor(chosen), seed=0, draw=0))
            self._check_shape(answers, len(chosen))
            if shown._version != version:
                self.overwrites = True
            return answers.clone() if self.answers == "logits" else answers

        together, again, alone = ask(0, 1), ask(0, 1), [ask(0), ask(1)]
        alone = torch.cat(alone) if self.answers == "logits" else alone[0] + alone[1]
        doubt = None
        if seen := _difference(together, again):
            doubt = (
                f"answers the same two images differently when asked again ({seen}): dropout or other random numbers "
                f"in evaluation mode, or memory of what it has seen"
            )
        elif seen := _difference(together, alone):
            doubt = f"answers an image differently beside another one than alone ({seen}): batch statistics?"
        if doubt and not allow_unstable:
            raise UserError(
                f"{self.name} {doubt}; mend it, or measure it as it is, which is recorded, with --allow-unstable "
                f"(load_model(..., allow_unstable=True))"
            )
        if doubt:
            warnings.warn(f"{self.name} {doubt}; its figures depend on more than the images", stacklevel=2)
        if self.overwrites and not self.normalized:
            warnings.warn(f"{self.name} writes into its pixels: it is given a copy each time", stacklevel=2)
        try:
            self.to(memory_format=torch.channels_last)
            seen = _difference(together, ask(0, 1, order=torch.channels_last)) and not doubt and "its answers differ"
        except Exception as error:  # whatever its code raises, an assertion of its own, say
            seen = " ".join(str(error).split())[:160]
        finally:
            self.to(memory_format=torch.contiguous_format)
        if seen:
            self.channels_last = False
            warnings.warn(f"{self.name} runs without the channels-last order, slower ({seen})", stacklevel=2)

    def _check_shape(self, answers, images):
        """Anything but [images, 1000] floats (or as many texts) would be noticed only at the end of a long run."""
        if self.answers == "words":
            if not (isinstance(answers, list) and len(answers) == images and all(isinstance(a, str) for a in answers)):
                raise UserError(f"{self.name} answers {images} images with {_kind(answers)}, not with a list of str")
        elif _kind(answers) != (images, CLASSES) or not answers.is_floating_point():
            raise UserError(
                f"{self.name} answers {images} images with {_kind(answers)}, not with {CLASSES} logits each "
                f"({images}, {CLASSES})"
            )


def _kind(answers):
    return tuple(answers.shape) if isinstance(answers, torch.Tensor) else type(answers).__name__


def _difference(answers, others):
    """Say how two answers to the same images differ, '' if they agree up to rounding."""
    if isinstance(answers, list):
        unlike = [f"{one!r}, then {other!r}"[:200] for one, other in zip(answers, others, strict=True) if one != other]
        return unlike[0] if unlike else ""
    limit = max(SAME, 4 * torch.finfo(answers.dtype).eps)  # a network may compute in half precision
    answers, others = answers.float(), others.float()
    same = (answers == others) | (answers.isnan() & others.isnan())
    gap = torch.where(same, 0, (answers - others).abs()).nan_to_num(torch.inf).max().item()
    largest = torch.where(answers.isfinite(), answers, 0).abs().max().item()
    return f"logits differ by {gap:.3g}, the largest is {largest:.3g}" if gap > limit * largest else ""


@contextlib.contextmanager
def borrowed(module):
    """Within the block `module` is in evaluation mode, float32, without gradients, and may be moved to any device.

    Afterwards it is as it was: each part's training flag, each parameter's data (with its device, type and memory
    format), gradient and requires_grad, each buffer with its values. What the block writes into the numbers of a
    parameter themselves is its own to undo.
    """
    modes = [(part, part.training) for part in module.modules()]
    parameters = [
        (part, name, p, p.data, p.requires_grad, p.grad, None if p.grad is None else p.grad.data)
        for part in module.modules()
        for name, p in part._parameters.items()
        if p is not None
    ]
    buffers = [
        # a buffer made in inference mode counts no versions, and cannot be written into outside it
        (part, name, buffer, None if buffer.is_inference() else buffer._version, buffer.detach().clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    try:
        yield module.eval().requires_grad_(False).float()
    finally:
        for part, mode in modes:
            part.training = mode
        for part, name, parameter, data, trained, gradient, numbers in parameters:
            part._parameters[name] = parameter
            parameter.grad = None  # it must fit its parameter at any moment
            parameter.data = data
            parameter.requires_grad_(trained)
            if gradient is not None:
                gradient.data = numbers
                parameter.grad = gradient
        for part, name, buffer, version, values in buffers:
            part._buffers[name] = buffer
            if version is not None and buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(values)


def from_module(module, label, *, expected_top1=None, category="", allow_unstable=False):
    """Return the Network of a torch module on RGB pixels in [0, 1] (normalization inside) that gives 1,000 logits.

    label: the name of its results. expected_top1: per cent on the ImageNet validation images, if known.
    The module itself is left as it is; hold `borrowed(network)` open while the Network is used. Its identity is its
    state dict, its architecture as text and the source code of its classes, as far as that is to be had.
    Raises UserError for what is no such module.
    """
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"{label}: {type(module).__name__} is not a torch.nn.Module")
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in module.parameters()):
        raise UserError(f"{label}: some of its weights have no shape yet (lazy modules); show it one batch first")
    facts = {"checkpoint_sha256": None, "source": "Python", "arch": type(module).__qualname__}
    mean, std = NORMALIZATIONS["none"]
    with borrowed(module):
        return Network(
            module.cpu(),
            name=label,
            mean=mean,
            std=std,
            category=category,
            expected_top1=expected_top1,
            allow_unstable=allow_unstable,
            facts={**facts, "normalization": "its own"},
        )


def load_model(
    name,
    *,
    label=None,
    arch="resnet50",
    normalization="imagenet",
    checkpoints=None,
    allow_unstable=False,
    frontend=None,
    trust_remote_code=False,
):
    """Return the Network called `name`.

    name: registry entry, timm name, checkpoint file, `file.py:function`, `clip:ARCH/TAG` (networks.zero_shot) or
        `hf:ID` (networks.language).
    label: what its results are called (default: `registry.network_name(name)`).
    arch: for a checkpoint file: a timm name, `module:function` or `file.py:function` that builds the bare network.
    normalization: for a checkpoint file: imagenet, inception or none.
    checkpoints: folder of downloads (default: environment variable ZOO_CHECKPOINTS, else models/checkpoints).
    allow_unstable: take a network whose answers are no function of the image, with a warning.
    frontend: what stands before it, as text (networks.frontends). An entry of the registry may have one of its own.
    trust_remote_code: let a model of the hub bring code of its own, and run it.
    Raises UserError for anything that keeps the network from being complete and as expected.
    """
    kind = registry.kind_of(name)
    label = safe_name(label) if label is not None else registry.network_name(name)
    if kind == "registry":
        made = _from_registry(registry.registry()[name], checkpoints)
    elif kind == "zero-shot":
        made = _from_open_clip(name, checkpoints)
    elif kind == "function":
        made = _from_function(name)
    elif kind == "timm":
        made = _from_timm(name, checkpoints)
    elif kind == "language":
        made = _from_hub(name.removeprefix("hf:"), trust_remote_code)
    else:
        made = _from_file(Path(name), arch, normalization)
    network = Network(**made, name=label, allow_unstable=allow_unstable)
    own = registry.registry()[name].frontend if kind == "registry" else ""
    if own:  # part of what is published under this name, so it is what is known of it
        network = behind(network, own, expected_top1=network.expected_top1)
        network.identity["own_frontend"] = network.identity.pop("frontend")
    return behind(network, frontend) if frontend else network


def behind(network, text, expected_top1=None):
    """Return a network behind the front end that `text` names (networks.frontends)."""
    from imagenet_biases.networks.frontends import front_end

    network = network.behind(front_end(text))
    network.expected_top1 = expected_top1
    return network


def _from_registry(entry, checkpoints):
    """What the Network of an entry is made of; so do the functions below for other names."""
    if registry.zero_shot(entry.arch):
        known = {"category": entry.category, "expected_top1": entry.expected_top1}
        return _from_open_clip(entry.arch, checkpoints) | known
    addresses = [file.address for file in entry.files]  # a name that its package does not know is said first
    body, code = build(entry.arch)
    state, hashes = {}, {}
    for file, address in zip(entry.files, addresses, strict=True):
        path = file.obtain(checkpoints)
        contents, hashes[address] = read_verified(address, path, file.sha256)
        part = file.layout.apply(contents, path)
        if twice := state.keys() & part.keys():
            raise UserError(f"{entry.name}: two of its files bring {min(twice)!r}")
        state |= part
    if entry.files:
        fill(body, state, f"{entry.name} ({path})")
    _pin(hashes)
    location, config = entry.location, None
    preprocessing = Preprocessing(**entry.view) if entry.view else STUDY
    if entry.source == "timm":
        config = packages.timm_config(location)
        preprocessing = preprocessing if entry.view else packages.timm_preprocessing(config)
    elif entry.source == "torchvision":
        packages.as_torchvision_evaluates(body)
        preprocessing = preprocessing if entry.view else packages.torchvision_preprocessing(location)
    timms = entry.normalization == "timm"
    mean, std = (config["mean"], config["std"]) if timms else NORMALIZATIONS[entry.normalization]
    facts = {
        "checkpoint_sha256": "+".join(hashes.values()) or None,
        "source": " + ".join(hashes) or entry.arch,
        "arch": entry.arch,
        "normalization": entry.normalization,
    }
    known = {"category": entry.category, "expected_top1": entry.expected_top1}
    return {
        "body": body,
        "code": code,
        "mean": mean,
        "std": std,
        "preprocessing": preprocessing,
        "facts": facts,
        **known,
    }


def _from_file(path, arch, normalization):
    demand_file(path, "a checkpoint file")
    if normalization not in NORMALIZATIONS:
        raise UserError(f"normalization {normalization!r} is unknown: it is one of {', '.join(NORMALIZATIONS)}")
    body, code = build(arch)
    fill(body, find(read(path), body, path), path)
    facts = {"checkpoint_sha256": file_hash(path), "source": path.name, "arch": arch, "normalization": normalization}
    mean, std = NORMALIZATIONS[normalization]
    return {"body": body, "code": code, "mean": mean, "std": std, "facts": facts}


def _from_function(name):
    path, function = registry.split_function(name)
    body, code = build(name)
    source = f"{path.name}:{function}"
    facts = {"checkpoint_sha256": None, "source": source, "arch": source, "normalization": "its own"}
    mean, std = NORMALIZATIONS["none"]  # the module takes pixels
    return {"body": body, "code": code, "mean": mean, "std": std, "facts": facts}


def _from_timm(name, checkpoints):
    import timm

    address = packages.timm_address(name)
    path = fetch(address, registry.checkpoint_folder(checkpoints), name=f"{name}.safetensors")
    contents, sha256 = read_verified(address, path)
    try:  # timm's own strict loading: it also translates the names in files that others published
        body = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": contents})
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{address} does not fill timm's {name}: {' '.join(str(error).split())[:300]}") from error
    body.pretrained_cfg.pop("state_dict")  # or every network would be kept twice
    _pin({address: sha256})
    config = packages.timm_config(name)
    facts = {"checkpoint_sha256": sha256, "source": address, "arch": name, "normalization": "timm"}
    preprocessing = packages.timm_preprocessing(config)
    return {"body": body, "mean": config["mean"], "std": config["std"], "preprocessing": preprocessing, "facts": facts}


def _from_open_clip(name, checkpoints):
    from imagenet_biases.networks.zero_shot import zero_shot_network

    body, preprocessing, facts, hashes = zero_shot_network(name, checkpoints)
    _pin(hashes)
    mean, std = NORMALIZATIONS["none"]
    return {"body": body, "mean": mean, "std": std, "preprocessing": preprocessing, "facts": facts}


def _from_hub(name, trust_remote_code):
    from imagenet_biases.networks.vlm import vision_language_model

    body, facts = vision_language_model(name, trust_remote_code)
    digest = hashlib.sha256(facts.pop("chat_template").encode())
    _add_tensors(digest, body.model.state_dict())
    facts |= {"checkpoint_sha256": None, "normalization": "its own"}
    mean, std = NORMALIZATIONS["none"]
    # not shown two images: writing takes long, and in half precision a batch's size may turn a word
    return {"body": body, "code": digest.hexdigest(), "mean": mean, "std": std, "facts": facts, "check": False}


def read_verified(address, path, expected=None):
    """Return (contents, sha256) of a file, also one put there by hand.

    Raises UserError if its hash does not begin as `expected`, or as its address says, or is not the pinned one.
    """
    contents, sha256 = read(path), file_hash(path)
    expected = expected or hash_in_name(address) or ""
    if not sha256.startswith(expected):
        raise UserError(f"{path} has sha256 {sha256}, one that begins with {expected} was expected: delete it")
    _pins().check(address, sha256, path)
    return contents, sha256


def _pins():
    return Pins(registry.own_folder() / "zoo.user.lock.json", shipped=registry.PINS)


def _pin(hashes):
    """Pin {address: sha256} of downloads that have filled their network; the repository's own files have no address."""
    for address, sha256 in hashes.items():
        if "://" in address:
            _pins().add(address, sha256)


def _fingerprint(network, code):
    """sha256 of state dict (names, types, shapes, bytes), architecture as text, `code`, source code of own classes."""
    text = re.sub(" at 0x[0-9a-f]+", "", str(network.body))  # a function's place in memory differs from run to run
    digest = hashlib.sha256(f"{text}\n{code}\n{class_sources(network.body)}".encode())
    _add_tensors(digest, network.state_dict())
    return digest.hexdigest()


def _add_tensors(digest, state):
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):  # what a module adds by get_extra_state
            digest.update(f"{name} {value!r}\n".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


# --- the clean-accuracy gate -----------------------------------------------------------------------------------------


def clean_accuracy_warning(name, expected, measured, images):
    """Return a warning if the clean top-1 of the network `name` is far from what is known of it, else None.

    expected: per cent, or None where nothing is known; measured: per cent on `images` images. Far is more than 1 point
    (on fewer images than the whole validation set: and more than 1.96 standard errors), or near chance (0.1 %).
    """
    if measured < 1 and images >= 1000 and (expected is None or expected > 2):
        causes = "classes in another order, weights that were never filled, pixels in another range than [0, 1]"
    elif expected is None:
        return None
    else:
        share = expected / 100
        error = 196 * math.sqrt(share * (1 - share) / max(images, 1)) if images < FULL else 0
        if abs(measured - expected) <= max(1, error):
            return None
        causes = (
            "another checkpoint, normalization or view (the study's is 256/224 bilinear), images or labels mixed up"
        )
    known = f"{expected:.2f} % was expected" if expected is not None else "near chance"
    return f"{name}: top-1 is {measured:.2f} % on {images} clean images, {known}; likely causes: {causes}"


def architecture(name, arch="resnet50"):
    """Return what `load_model` builds for `name`, as text; networks of one architecture differ in their weights."""
    kind = registry.kind_of(name)
    return registry.registry()[name].arch if kind == "registry" else arch if kind == "file" else name


def skeleton(architecture):
    """Return a Network of an architecture without its weights: what can be known of it before a download.

    A user's own function is called as it is. Raises UserError as `load_model` does.
    """
    if architecture.startswith("hf:"):
        raise UserError(f"{architecture}: how long a model takes to write is not foreseen; leave --dry-run out")
    if registry.zero_shot(architecture):
        from imagenet_biases.networks.zero_shot import untrained

        body, code = untrained(architecture), ""
    else:
        body, code = build(architecture)
    mean, std = NORMALIZATIONS["none"]
    facts = {"arch": architecture}
    return Network(body, name="skeleton", mean=mean, std=std, facts=facts, code=code, allow_unstable=True)

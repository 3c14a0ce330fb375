"""load_model(name) -> Network: a network of the registry, of timm, of a file or of your own code, on [0, 1] pixels.

from_module(module, label) wraps a torch module; borrowed(module) restores the module afterwards.
"""

import contextlib
import copy
import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from imagenet_biases.base.download import fetch, file_hash, hash_in_name
from imagenet_biases.base.errors import UserError, clean
from imagenet_biases.base.files import demand_file, safe_name
from imagenet_biases.base.safe_pickle import read
from imagenet_biases.images.preprocessing import STUDY, Preprocessing
from imagenet_biases.networks import packages, registry
from imagenet_biases.networks.normalization import Normalization, Statements, beside, decide, statements
from imagenet_biases.networks.packages import CLASSES
from imagenet_biases.networks.registry import NORMALIZATIONS
from imagenet_biases.networks.state_dict import fill, find, warn_of_dropped
from imagenet_biases.networks.user_code import blaming, build, class_sources
from imagenet_biases.study import STUDY_RESIZE

if TYPE_CHECKING:
    from imagenet_biases.networks.frontends import FrontEnd
    from imagenet_biases.vocabulary import Batch

VALIDATION_IMAGES = 50_000
SMALLEST = torch.finfo(torch.float32).tiny  # a probability of 0 has no logarithm
ROUNDING = 1e-4  # of the largest logit; float32 sums in another order move logits by about 1e-6


class Network(torch.nn.Module):
    """A network on RGB pixels in [0, 1], float32 [B, 3, H, W], that gives 1,000 logits [B, 1000] (sorted WordNet ids).

    In evaluation mode, float32, parameters without gradients.

    Attributes:
        name: its label, and the folder of its results.
        category: '' if none.
        expected_top1: per cent, or None.
        identity: JSON-able; `network` is a sha256 of weights, architecture and custom code, whatever its label.
        channels_last: whether it accepts weights and pixels in that memory order.
        overwrites: whether it writes into its pixels.
        frontends: what stands before it, first to last.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: torch.nn.Module,
        *,
        name: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        facts: Mapping[str, Any],
        code: str = "",
        category: str = "",
        expected_top1: float | None = None,
        preprocessing: Preprocessing | str = STUDY,
        allow_unstable: bool = False,
        check: bool = True,
    ) -> None:
        super().__init__()
        self.body = body
        self.name, self.category, self.expected_top1 = safe_name(name), category, expected_top1
        self._preprocessing = preprocessing
        if self.answers not in ("logits", "words"):
            raise UserError(f"{name}: its attribute `answers` is {self.answers!r}, not 'logits' or 'words'")
        self.normalized = (tuple(mean), tuple(std)) != NORMALIZATIONS["none"]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.channels_last, self.overwrites = True, False
        self.identity: dict[str, Any] = {}
        self.frontends: tuple[FrontEnd, ...] = ()
        with blaming(f"{name}, given two images,"), torch.no_grad():
            self.eval().requires_grad_(False).float()
            if check:
                self._check(allow_unstable)
        if self.probabilities:
            code += "\nlogarithm of probabilities"
        self.identity = {"network": _fingerprint(self, code), **facts, **self.identity}

    @property
    def probabilities(self) -> bool:
        """Whether the body gives probabilities, of which the logarithm is taken."""
        return "outputs" in self.identity

    @property
    def answers(self) -> str:
        """'logits', or 'words' where the body says so: it returns a list of str, one per image."""
        return getattr(self.body, "answers", "logits")

    @property
    def wants_batch(self) -> bool:
        """Whether its answers depend on the images' keys, the seed and the draw (vocabulary.Batch)."""
        return self._body_wants_batch or any(frontend.seeded for frontend in self.frontends)

    @property
    def _body_wants_batch(self) -> bool:
        """Whether the body is called as body(pixels, batch=batch)."""
        return bool(getattr(self.body, "wants_batch", False))

    @property
    def asks(self) -> tuple[str, ...]:
        """The keywords by which the body accepts a prompt (Condition.prompt)."""
        return tuple(getattr(self.body, "asks", ()))

    @property
    def side(self) -> int | None:
        """The side of its images in pixels, where it accepts no other, else None."""
        return getattr(self.body, "side", None)

    @property
    def native_preprocessing(self) -> Preprocessing:
        """The preprocessing with which its authors evaluate it. Raises UserError where it cannot be followed."""
        if not isinstance(self._preprocessing, Preprocessing):
            raise UserError(
                f"{self.name}: --preprocessing native cannot follow its own preprocessing ({self._preprocessing}); use "
                f"study"
            )
        return self._preprocessing

    def forward(
        self, pixels: Float[Tensor, "B 3 H W"], batch: "Batch | None" = None, prompt: Mapping[str, Any] | None = None
    ) -> Float[Tensor, "B C"] | list[str]:
        """Return logits, or words. `prompt`: keyword arguments of which the body receives those that it asks for."""
        for frontend in self.frontends:
            pixels = frontend(pixels, batch)
        if self.normalized:
            pixels = (pixels - self.mean) / self.std
        elif self.overwrites:
            pixels = pixels.clone()
        if not self.channels_last:
            pixels = pixels.contiguous()
        arguments: dict[str, Any] = {"batch": batch} if self._body_wants_batch else {}
        if self.asks:  # other networks are traced without anything that depends on a prompt
            arguments |= {word: value for word, value in (prompt or {}).items() if word in self.asks}
        answers = self.body(pixels, **arguments)
        return answers.float().clamp_min(SMALLEST).log() if self.probabilities else answers

    def behind(self, frontend: "FrontEnd") -> "Network":
        """Return the network behind a front end: another network with the same parameters and no expected accuracy."""
        network = copy.copy(self)
        network.frontends = (frontend, *self.frontends)
        network.expected_top1 = None
        text = json.dumps([self.identity["network"], frontend.identity()], sort_keys=True)
        network.identity = self.identity | {
            "network": hashlib.sha256(text.encode()).hexdigest(),
            "frontend": "+".join(filter(None, (frontend.text, self.identity.get("frontend")))),
        }
        return network

    def _check(self, allow_unstable: bool) -> None:
        """Check what measurements rely on: two images answered together, again, one by one, and in channels-last order.

        Sets `overwrites`, `channels_last` and, in `identity`, the kind of outputs. Raises UserError for answers of
        another shape, and, unless `allow_unstable`, for answers that are not a function of the image.
        """
        size = self._preprocessing.crop if isinstance(self._preprocessing, Preprocessing) else STUDY.crop
        images = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.float32)

        def ask(*chosen: int, order: torch.memory_format = torch.contiguous_format) -> Any:
            pixels = images[list(chosen)].clone(memory_format=order)
            version = pixels._version  # counts writes, even those that change no value
            answers = self(pixels, SimpleNamespace(keys=torch.tensor(chosen), seed=0, draw=0))
            self._check_shape(answers, len(chosen))
            if pixels._version != version:
                self.overwrites = True
            return answers.clone() if isinstance(answers, Tensor) else answers

        together = ask(0, 1)
        doubt = self._doubt(together, ask)
        if doubt and not allow_unstable:
            raise UserError(
                f"{self.name} {doubt}; fix it, or measure it as it is, which is recorded, with --allow-unstable "
                f"(load_model(..., allow_unstable=True))"
            )
        if doubt:
            warnings.warn(f"{self.name} {doubt}; its figures depend on more than the images", stacklevel=2)
        if self.overwrites and not self.normalized:
            warnings.warn(f"{self.name} writes into its pixels: it receives a copy each time", stacklevel=2)
        try:
            self.to(memory_format=torch.channels_last)
            differs = _difference(together, ask(0, 1, order=torch.channels_last)) and not doubt
            problem = "its answers differ" if differs else ""
        except Exception as error:  # whatever its code raises, such as an assertion
            problem = clean(error, 160)
        finally:
            self.to(memory_format=torch.contiguous_format)
        if problem:
            self.channels_last = False
            warnings.warn(f"{self.name} runs without the channels-last order, slower ({problem})", stacklevel=2)
        if self.answers == "logits" and _probabilities(together):
            self.identity["outputs"] = "probabilities: their logarithm is taken"
            warnings.warn(f"{self.name} gives probabilities: their logarithm is measured as its logits", stacklevel=2)

    def _doubt(self, together: Any, ask: Callable[..., Any]) -> str:
        """Return how the answers depend on more than the image, '' if they do not."""
        again, first, second = ask(0, 1), ask(0), ask(1)
        alone = torch.cat([first, second]) if self.answers == "logits" else first + second
        if difference := _difference(together, again):
            return (
                f"answers the same two images differently when asked again ({difference}): dropout or other random "
                f"numbers in evaluation mode, or memory of earlier images"
            )
        if difference := _difference(together, alone):
            return f"answers an image differently beside another one than alone ({difference}): batch statistics?"
        return ""

    def _check_shape(self, answers: Any, images: int) -> None:
        """Refuse now what would be noticed only at the end of a long run: other answers than floats [images, 1000]."""
        if self.answers == "words":
            if not (isinstance(answers, list) and len(answers) == images and all(isinstance(a, str) for a in answers)):
                raise UserError(f"{self.name} answers {images} images with {_kind(answers)}, not with a list of str")
        elif _kind(answers) != (images, CLASSES) or not answers.is_floating_point():
            background = "; the first of 1,001 is usually the background: give outputs[:, 1:]"
            raise UserError(
                f"{self.name} answers {images} images with {_kind(answers)}, not with {CLASSES} logits each "
                f"({images}, {CLASSES}){background if _kind(answers) == (images, CLASSES + 1) else ''}"
            )


def _kind(answers: Any) -> tuple[int, ...] | str:
    return tuple(answers.shape) if isinstance(answers, torch.Tensor) else type(answers).__name__


def _probabilities(answers: Tensor) -> bool:
    """Whether answers are probabilities: none below 0, each row with the sum 1.

    A row may lack the probability of a background class that was cut off. Answers of only 0 and 1 are taken as logits.
    """
    answers = answers.float()
    sums = answers.sum(1)
    graded = ((answers > 0) & (answers < 1)).any(1)
    return bool((answers >= 0).all() and (sums > 0.5).all() and (sums < 1 + 1e-2).all() and graded.any())


def _difference(answers: Any, reference: Any) -> str:
    """Return how two answers to the same images differ, '' if they agree up to rounding."""
    if isinstance(answers, list):
        for first, second in zip(answers, reference, strict=True):
            if first != second:
                return f"{first!r}, then {second!r}"[:200]
        return ""
    limit = max(ROUNDING, 4 * torch.finfo(answers.dtype).eps)  # a network may compute in half precision
    answers, reference = answers.float(), reference.float()
    same = (answers == reference) | (answers.isnan() & reference.isnan())
    gap = torch.where(same, 0, (answers - reference).abs()).nan_to_num(torch.inf).max().item()
    largest = torch.where(answers.isfinite(), answers, 0).abs().max().item()
    return f"logits differ by {gap:.3g}, the largest is {largest:.3g}" if gap > limit * largest else ""


@contextlib.contextmanager
def borrowed(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield `module` in evaluation mode, float32, without gradients; the block may move it to any device.

    Afterwards it is as before: each part's training flag, each parameter's data (with its device, type and memory
    format), gradient and requires_grad, each buffer with its values. Only writes into the numbers of a parameter are
    the block's to undo.
    """
    modes = [(part, part.training) for part in module.modules()]
    parameters: list[tuple[Any, ...]] = []
    buffers: list[tuple[Any, ...]] = []
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                gradient = None if p.grad is None else p.grad.data
                parameters.append((part, name, p, p.data, p.requires_grad, p.grad, gradient))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                # a buffer created in inference mode counts no versions, and cannot be written outside it
                version = None if buffer.is_inference() else buffer._version
                buffers.append((part, name, buffer, version, buffer.detach().clone()))
    try:
        yield module.eval().requires_grad_(False).float()
    finally:
        _restore(modes, parameters, buffers)


def _restore(modes: list[Any], parameters: list[tuple[Any, ...]], buffers: list[tuple[Any, ...]]) -> None:
    for part, mode in modes:
        part.training = mode
    for part, name, parameter, data, requires_grad, gradient, numbers in parameters:
        part._parameters[name] = parameter
        parameter.grad = None  # it must match its parameter at any moment
        parameter.data = data
        parameter.requires_grad_(requires_grad)
        if gradient is not None:
            gradient.data = numbers
            parameter.grad = gradient
    for part, name, buffer, version, values in buffers:
        part._buffers[name] = buffer
        if version is not None and buffer._version != version:
            with torch.no_grad():
                buffer.copy_(values)


def from_module(
    module: torch.nn.Module,
    label: str,
    *,
    expected_top1: float | None = None,
    category: str = "",
    allow_unstable: bool = False,
    normalization: str = "auto",
) -> Network:
    """Return the Network of a torch module on RGB pixels in [0, 1] (normalization inside) that gives 1,000 logits.

    A bare network of timm or torchvision gets the normalization of its library, with a warning.

    The module itself stays as it is; keep `borrowed(network)` open while the Network is used. Its identity is its state
    dict, its architecture as text and the source code of its classes, as far as available.

    Args:
        module: in any mode, on any device.
        label: the name of its results.
        expected_top1: per cent on the ImageNet validation images, if known.
        category: of the network, '' for none.
        allow_unstable: accept a network whose answers are not a function of the image, with a warning.
        normalization: auto, imagenet, inception, clip, none or builtin, as for `load_model`.

    Raises:
        UserError: it is not such a module.
    """
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"{label}: {type(module).__name__} is not a torch.nn.Module")
    if any(map(torch.nn.parameter.is_lazy, module.parameters())):
        raise UserError(
            f"{label}: some of its weights have no shape yet (lazy modules); run one batch through it first"
        )
    with borrowed(module):
        chosen = _of_module(module.cpu(), normalization, label)
        return Network(
            module,
            name=label,
            **_constants(chosen),
            category=category,
            expected_top1=expected_top1,
            allow_unstable=allow_unstable,
            facts={**PYTHON, "arch": type(module).__qualname__, "normalization": _own(chosen)},
        )


PYTHON: dict[str, Any] = {"checkpoint_sha256": None, "source": "Python"}


def _of_module(
    body: torch.nn.Module, choice: str, label: str, default: str = "builtin", **stated: Any
) -> Normalization:
    """Return the normalization of a module; `stated` is what its file states (`beside`)."""
    with blaming(f"{label}, given an image,"):
        return decide(choice, statements(body.eval().float(), stated.get("beside", {}), STUDY.crop), default, label)


def _constants(chosen: Normalization) -> dict[str, Any]:
    """Return Network's arguments for a normalization."""
    return {"mean": chosen.mean, "std": chosen.std}


def _own(chosen: Normalization) -> str:
    """Return how the record names the normalization of a module from Python."""
    return "its own" if chosen.name == "builtin" else chosen.name


def load_model(
    name: str,
    *,
    label: str | None = None,
    arch: str = "resnet50",
    normalization: str = "auto",
    checkpoints: str | Path | None = None,
    allow_unstable: bool = False,
    frontend: str | None = None,
    trust_remote_code: bool = False,
    gradients: bool = False,
    api: Mapping[str, Any] | None = None,
) -> Network:
    """Return the Network called `name`.

    Args:
        name: registry entry, timm name, checkpoint file (or backbone.pth+head.pth), `file.py:function`, `net.onnx`, or
            a name with a prefix (registry.PREFIXES): clip:ARCH/TAG, hf:ID, hf-hub:ID, timm/NAME,
            torchhub:OWNER/REPO:ENTRY, api:MODEL.
        label: the name of its results (default: `registry.network_name(name)`).
        arch: for a checkpoint file: a timm name, `module:function` or `file.py:function` that builds the bare network.
        normalization: of pixels before the network: imagenet, inception, clip, none, builtin (the module does it), or
            auto: what the network's file or attributes say, then its library, else imagenet for a checkpoint file and
            builtin for a function. What it does not follow, or follows instead of the default, is a warning.
        checkpoints: folder of downloads (default: environment variable ZOO_CHECKPOINTS, else models/checkpoints).
        allow_unstable: accept a network whose answers are not a function of the image, with a warning.
        frontend: what stands before it, as text (networks.frontends). An entry of the registry may have its own.
        trust_remote_code: let a model of a hub run its own code.
        gradients: convert an ONNX file to torch, so that it can be attacked.
        api: how api:MODEL is asked: the arguments of networks.api.Endpoint.

    Raises:
        UserError: anything keeps the network from being complete and as expected.
    """
    kind = registry.kind_of(name)
    label = safe_name(label) if label is not None else registry.network_name(name)
    loaders: dict[str, Callable[[], dict[str, Any]]] = {
        "registry": lambda: _from_registry(registry.registry()[name], checkpoints),
        "zero-shot": lambda: _from_open_clip(name, checkpoints),
        "function": lambda: _from_function(name, normalization),
        "timm": lambda: _from_timm(name, checkpoints),
        "timm-hub": lambda: _from_timm_hub(name, checkpoints),
        "transformers": lambda: _from_transformers(name, trust_remote_code),
        "torchhub": lambda: _from_torch_hub(name, trust_remote_code, normalization),
        "onnx": lambda: _from_onnx(name, gradients, normalization),
        "api": lambda: _from_api(name, api or {}),
        "file": lambda: _from_files(registry.checkpoint_files(name), arch, normalization),
    }
    parts = loaders[kind]()
    if kind not in ("function", "torchhub", "onnx", "file") and normalization != "auto":
        parts |= _instead(normalization, parts, name)
    network = Network(**parts, name=label, allow_unstable=allow_unstable)
    frontend_of_entry = registry.registry()[name].frontend if kind == "registry" else ""
    if frontend_of_entry:  # published as part of the network, so the expected accuracy applies behind it
        network = behind(network, frontend_of_entry, expected_top1=network.expected_top1)
        network.identity["own_frontend"] = network.identity.pop("frontend")
    return behind(network, frontend) if frontend else network


def behind(network: Network, text: str, expected_top1: float | None = None) -> Network:
    """Return a network behind the front end that `text` names (networks.frontends). Raises UserError."""
    from imagenet_biases.networks.frontends import front_end

    network = network.behind(front_end(text))
    network.expected_top1 = expected_top1
    return network


def _from_registry(entry: registry.Entry, checkpoints: str | Path | None) -> dict[str, Any]:
    """Return Network's arguments for an entry; so do the functions below for other names."""
    facts_known = {"category": entry.category, "expected_top1": entry.expected_top1}
    if registry.zero_shot(entry.arch):
        return _from_open_clip(entry.arch, checkpoints) | facts_known
    addresses = [file.address for file in entry.files]  # reports first a name that its package does not have
    body, code = build(entry.arch)
    state, hashes, path = {}, {}, None
    for file, address in zip(entry.files, addresses, strict=True):
        path = file.obtain(checkpoints)
        contents, hashes[address] = read_verified(address, path, file.sha256)
        part = file.layout.apply(contents, path)
        if repeated := state.keys() & part.keys():
            raise UserError(f"{entry.name}: two of its files contain {min(repeated)!r}")
        state |= part
    if entry.files:
        fill(body, state, f"{entry.name} ({path})")
    _pin(hashes)
    normalization = NORMALIZATIONS.get(entry.normalization)
    preprocessing: Preprocessing | str = STUDY
    if entry.source == "timm":
        config = packages.timm_config(entry.location)
        preprocessing = packages.timm_preprocessing(config)
        normalization = normalization or (config["mean"], config["std"])
    elif entry.source == "torchvision":
        packages.as_torchvision_evaluates(body)
        preprocessing = packages.torchvision_preprocessing(entry.location)
    if entry.preprocessing:
        preprocessing = Preprocessing(**entry.preprocessing)
    assert normalization is not None, "an entry's normalization is checked when it is read"
    mean, std = normalization
    facts = {
        "checkpoint_sha256": "+".join(hashes.values()) or None,
        "source": " + ".join(hashes) or entry.arch,
        "arch": entry.arch,
        "normalization": entry.normalization,
    }
    parts = {"body": body, "code": code, "mean": mean, "std": std, "preprocessing": preprocessing, "facts": facts}
    return parts | facts_known


def _from_files(paths: list[Path], arch: str, normalization: str) -> dict[str, Any]:
    for path in paths:
        demand_file(path, "a checkpoint file")
    body, code = build(arch)
    contents = {str(number): read(path) for number, path in enumerate(paths)} if len(paths) > 1 else read(paths[0])
    source = "+".join(map(str, paths))
    state = find(contents, body, source, len(paths))
    fill(body, state, source)
    names = "+".join(path.name for path in paths)
    chosen = _of_module(body, normalization, names, "imagenet", beside=beside(contents, state))
    sha256 = "+".join(map(file_hash, paths))
    facts = {"checkpoint_sha256": sha256, "source": names, "arch": arch, "normalization": chosen.name}
    return {"body": body, "code": code, **_constants(chosen), "facts": facts}


def _from_function(name: str, normalization: str) -> dict[str, Any]:
    path, function = registry.split_function(name)
    body, code = build(name)
    source = f"{path.name}:{function}"
    chosen = _of_module(body, normalization, source)
    facts = {"checkpoint_sha256": None, "source": source, "arch": source, "normalization": _own(chosen)}
    return {"body": body, "code": code, **_constants(chosen), "facts": facts}


def _instead(choice: str, parts: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what of Network's arguments a user's choice replaces, for a network whose normalization is known."""
    facts = parts["facts"]
    if facts["normalization"] == "its own":
        warnings.warn(f"{name} normalizes its pixels itself; --normalization {choice} is not applied", stacklevel=3)
        return {}
    known = Normalization(parts["mean"], parts["std"], facts["normalization"])
    chosen = decide(choice, Statements(beside={"its entry or configuration": known}), "imagenet", name)
    return {**_constants(chosen), "facts": {**facts, "normalization": chosen.name}}


def _from_timm(name: str, checkpoints: str | Path | None) -> dict[str, Any]:
    import timm

    address = packages.timm_address(name)
    path = fetch(address, registry.checkpoint_folder(checkpoints), name=f"{name}.safetensors")
    contents, sha256 = read_verified(address, path)
    try:  # timm's own strict loading: it also translates the names in files that others published
        body: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": contents})
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{address} does not fill timm's {name}: {clean(error, 300)}") from error
    body.pretrained_cfg.pop("state_dict")  # or every network would be kept twice
    warn_of_dropped(contents, body, name)
    _pin({address: sha256})
    config = packages.timm_config(name)
    facts = {"checkpoint_sha256": sha256, "source": address, "arch": name, "normalization": "timm"}
    preprocessing = packages.timm_preprocessing(config)
    return {"body": body, "mean": config["mean"], "std": config["std"], "preprocessing": preprocessing, "facts": facts}


def _from_open_clip(name: str, checkpoints: str | Path | None) -> dict[str, Any]:
    from imagenet_biases.networks.zero_shot import zero_shot_network

    body, preprocessing, facts, hashes = zero_shot_network(name, checkpoints)
    _pin(hashes)
    mean, std = NORMALIZATIONS["none"]
    return {"body": body, "mean": mean, "std": std, "preprocessing": preprocessing, "facts": facts}


def _from_timm_hub(name: str, checkpoints: str | Path | None) -> dict[str, Any]:
    from imagenet_biases.networks.sources import timm_hub

    parts, hashes = timm_hub(name, checkpoints)
    _pin(hashes)
    return parts


def _from_torch_hub(name: str, trust_remote_code: bool, normalization: str) -> dict[str, Any]:
    from imagenet_biases.networks.sources import torch_hub

    body, label = torch_hub(name, trust_remote_code), registry.network_name(name)
    chosen = _of_module(body, normalization, label, "imagenet")
    source = label if Path(registry.split_hub(name)[0]).is_dir() else name
    facts = {"checkpoint_sha256": None, "source": source, "arch": label, "normalization": chosen.name}
    return {"body": body, **_constants(chosen), "facts": facts}


def _from_onnx(name: str, gradients: bool, normalization: str) -> dict[str, Any]:
    from imagenet_biases.networks.sources import onnx_network

    body, stated, sha256 = onnx_network(name, gradients)
    chosen = decide(normalization, stated, "imagenet", name)
    source = Path(name).name
    facts = {"checkpoint_sha256": sha256, "source": source, "arch": source, "normalization": chosen.name}
    side = getattr(body, "side", None)
    preprocessing = Preprocessing(STUDY.resize, side) if side and side <= STUDY_RESIZE else STUDY
    return {"body": body, "code": sha256, **_constants(chosen), "preprocessing": preprocessing, "facts": facts}


def _from_transformers(name: str, trust_remote_code: bool) -> dict[str, Any]:
    """Return an image classifier, or else a model that answers in words."""
    from imagenet_biases.networks.sources import image_classifier
    from imagenet_biases.networks.vlm import vision_language_model

    parts = image_classifier(name, trust_remote_code)
    if parts is not None:
        return parts
    body, facts = vision_language_model(name.removeprefix("hf:"), trust_remote_code)
    digest = hashlib.sha256(facts.pop("chat_template").encode())
    _add_tensors(digest, body.model.state_dict())
    # not checked with two images: writing takes long, and in half precision the batch size may change a word
    return _in_words(body, digest.hexdigest(), facts)


def _from_api(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    from imagenet_biases.networks.api import Endpoint, api_model

    body, facts = api_model(name.removeprefix("api:"), Endpoint(**settings))
    return _in_words(body, f"{facts['arch']}\n{facts['source']}", facts)


def _in_words(body: torch.nn.Module, code: str, facts: dict[str, Any]) -> dict[str, Any]:
    facts |= {"checkpoint_sha256": None, "normalization": "its own"}
    mean, std = NORMALIZATIONS["none"]
    return {"body": body, "code": code, "mean": mean, "std": std, "facts": facts, "check": False}


def read_verified(address: str, path: Path, expected: str | None = None) -> tuple[dict[str, Any], str]:
    """Return (contents, sha256) of a downloaded file, or of one put there by hand.

    Args:
        address: where it is published.
        path: of the file.
        expected: the hash or its first digits; by default those that the address gives.

    Raises:
        UserError: its hash is not the expected or the pinned one.
    """
    contents, sha256 = read(path), file_hash(path)
    expected = expected or hash_in_name(address) or ""
    if not sha256.startswith(expected):
        raise UserError(f"{path} has sha256 {sha256}, one that begins with {expected} was expected: delete it")
    registry.pins().check(address, sha256, path)
    return contents, sha256


def _pin(hashes: Mapping[str, str]) -> None:
    """Pin {address: sha256} of downloads that filled their network; files of the repository have no address."""
    for address, sha256 in hashes.items():
        if "://" in address:
            registry.pins().add(address, sha256)


def _fingerprint(network: Network, code: str) -> str:
    """Return the sha256 of state dict (names, types, shapes, bytes), architecture as text, `code` and class sources."""
    text = re.sub(" at 0x[0-9a-f]+", "", str(network.body))  # a function's address in memory differs between runs
    digest = hashlib.sha256(f"{text}\n{code}\n{class_sources(network.body)}".encode())
    _add_tensors(digest, network.state_dict())
    return digest.hexdigest()


def _add_tensors(digest: Any, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):  # from a module's get_extra_state
            digest.update(f"{name} {value!r}\n".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


# --- the clean-accuracy gate -----------------------------------------------------------------------------------------


def clean_accuracy_warning(
    name: str, expected: float | None, measured: float | None, images: int, order: str = ""
) -> str | None:
    """Return a warning if a network's clean top-1 is far from the expected accuracy or near chance (0.1 %), else None.

    Far is more than 1 point, and on fewer images than the whole validation set also more than 3 standard errors;
    near chance is below 1 %, or wrong but for the order of classes, from 50 images on.

    Args:
        name: of the network.
        expected: per cent, or None if unknown.
        measured: per cent, or None if no image counts.
        images: how many images were measured.
        order: the order of classes in which the answers are right (measures.accuracy.likely_order), where it is known.
    """
    if measured is None:
        return None
    if (order or measured < 1) and images >= 50 and (expected is None or expected > 2):
        causes = "classes in another order, weights that were never filled, pixels in another range than [0, 1]"
        if order:
            causes = f"classes in another order: {order}"
    elif expected is None:
        return None
    else:
        share = expected / 100
        error = 300 * math.sqrt(share * (1 - share) / max(images, 1)) if images < VALIDATION_IMAGES else 0
        if abs(measured - expected) <= max(1, error):
            return None
        causes = (
            "another checkpoint, normalization or preprocessing (the study's is 256/224 bilinear), images or labels "
            "mixed up"
        )
    expectation = f"{expected:.2f} % was expected" if expected is not None else "near chance"
    return f"{name}: top-1 is {measured:.2f} % on {images} clean images, {expectation}; likely causes: {causes}"


def architecture(name: str, arch: str = "resnet50") -> str:
    """Return the architecture that `load_model` builds for `name`, as text; its networks differ in their weights."""
    kind = registry.kind_of(name)
    return registry.registry()[name].arch if kind == "registry" else arch if kind == "file" else name


def skeleton(architecture: str, trust_remote_code: bool = False) -> Network:
    """Return a Network of an architecture without its weights: all that is known of it before a download.

    A user's function is called as it is, a network of another source loaded. Raises UserError as `load_model` does.
    """
    kind = registry.prefix_kind(architecture)
    if kind == "zero-shot":
        from imagenet_biases.networks.zero_shot import untrained

        body, code = untrained(architecture), ""
    elif kind in ("transformers", "api"):
        from imagenet_biases.networks.sources import image_classifier

        parts = image_classifier(architecture, trust_remote_code) if kind == "transformers" else None
        if parts is None:
            raise UserError(f"{architecture}: --dry-run cannot estimate generation time for models in words; omit it")
        body, code = parts["body"], ""
    elif kind:
        body, code = load_model(architecture, trust_remote_code=trust_remote_code).body, ""
    else:
        body, code = build(architecture)
    mean, std = NORMALIZATIONS["none"]
    facts = {"arch": architecture}
    return Network(body, name="skeleton", mean=mean, std=std, facts=facts, code=code, allow_unstable=True)

"""load_model(name) -> Network: a network of the registry, of timm, of a file or of one's own, on pixels in [0, 1]."""

import hashlib
import math
import re
from pathlib import Path

import torch

from imagenet_biases.errors import UserError
from imagenet_biases.images.pixels import STUDY, View
from imagenet_biases.networks import packages, registry
from imagenet_biases.networks.checkpoints import Pins, fetch, file_hash, hash_in_name
from imagenet_biases.networks.filling import fill, find
from imagenet_biases.networks.own_code import Blaming, build
from imagenet_biases.networks.packages import CLASSES
from imagenet_biases.networks.reading import read
from imagenet_biases.networks.registry import NORMALIZATIONS

FULL = 50_000  # ImageNet validation images


class Network(torch.nn.Module):
    """A network on RGB pixels in [0, 1], float [B, 3, H, W], that returns 1,000 logits [B, 1000] (sorted WordNet ids).

    name: its results folder; category: '' if none; expected_top1: per cent, or None; identity: a JSON-able dict of what
    it is (`network` is a sha256 of weights and architecture); native_view: the View its authors evaluate with.
    In evaluation mode, parameters without gradients.
    """

    def __init__(self, body, *, name, mean, std, facts, code="", category="", expected_top1=None, view=STUDY):
        super().__init__()
        self.body = body
        self.name, self.category, self.expected_top1, self._view = name, category, expected_top1, view
        self.normalized = (tuple(mean), tuple(std)) != NORMALIZATIONS["none"]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)
        self._check_output()
        self.identity = {"network": _fingerprint(self, code), **facts}

    def forward(self, pixels):
        return self.body((pixels - self.mean) / self.std if self.normalized else pixels)

    @property
    def native_view(self):
        if not isinstance(self._view, View):
            raise UserError(f"{self.name}: --view native cannot follow its own preprocessing ({self._view}); use study")
        return self._view

    def _check_output(self):
        """One grey image: anything but a [1, 1000] float tensor would be noticed only at the end of a long run."""
        size = self._view.crop if isinstance(self._view, View) else STUDY.crop
        with torch.no_grad():
            logits = self(torch.full((1, 3, size, size), 0.5))
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if shape != (1, CLASSES) or not logits.is_floating_point():
            raise UserError(f"{self.name} answers one image with {shape}, not with {CLASSES} logits (1, {CLASSES})")


def load_model(name, *, arch="resnet50", normalization="imagenet", checkpoints=None):
    """Return the Network called `name`.

    name: registry entry, timm name, checkpoint file, or `file.py:function`.
    arch: for a checkpoint file: a timm name, `module:function` or `file.py:function` that builds the bare network.
    normalization: for a checkpoint file: imagenet, inception or none.
    checkpoints: folder of downloads (default: environment variable ZOO_CHECKPOINTS, else models/checkpoints).
    Raises UserError for anything that keeps the network from being complete and as expected.
    """
    result = registry.network_name(name)
    kind = registry.kind_of(name)
    if kind == "registry":
        return _from_registry(registry.registry()[name], checkpoints)
    if kind == "function":
        return _from_function(name, result)
    if kind == "timm":
        return _from_timm(name, checkpoints)
    return _from_file(Path(name), result, arch, normalization)


def _from_registry(entry, checkpoints):
    body, code = build(entry.arch)
    state, hashes = {}, {}
    for file in entry.files:
        path = file.obtain(checkpoints)
        contents, hashes[file.address] = _read_verified(file.address, path, file.sha256)
        part = file.layout.apply(contents, path)
        if twice := state.keys() & part.keys():
            raise UserError(f"{entry.name}: two of its files bring {min(twice)!r}")
        state |= part
    if entry.files:
        fill(body, state, f"{entry.name} ({path})")
    _pin(hashes)
    config = packages.timm_config(entry.files[0].location) if entry.source == "timm" else None
    mean, std = (
        (config["mean"], config["std"]) if entry.normalization == "timm" else NORMALIZATIONS[entry.normalization]
    )
    return Network(
        body,
        name=entry.name,
        mean=mean,
        std=std,
        category=entry.category,
        expected_top1=entry.expected_top1,
        view=View(**entry.view) if entry.view else (packages.timm_view(config) if config else STUDY),
        code=code,
        facts={
            "checkpoint_sha256": "+".join(hashes.values()) or None,
            "source": " + ".join(hashes) or entry.arch,
            "arch": entry.arch,
            "normalization": entry.normalization,
        },
    )


def _from_file(path, result, arch, normalization):
    if not path.is_file():
        raise UserError(f"the file {path} does not exist")
    if normalization not in NORMALIZATIONS:
        raise UserError(f"normalization {normalization!r} is unknown: it is one of {', '.join(NORMALIZATIONS)}")
    body, code = build(arch)
    fill(body, find(read(path), body, path), path)
    facts = {
        "checkpoint_sha256": file_hash(path),
        "source": path.name,
        "arch": arch,
        "normalization": normalization,
    }
    mean, std = NORMALIZATIONS[normalization]
    return Network(body, name=result, mean=mean, std=std, code=code, facts=facts)


def _from_function(name, result):
    path, function = registry.split_function(name)
    body, code = build(name)
    source = f"{path.name}:{function}"
    facts = {"checkpoint_sha256": None, "source": source, "arch": source, "normalization": "its own"}
    mean, std = NORMALIZATIONS["none"]  # the module takes pixels
    with Blaming(path, function):
        return Network(body, name=result, mean=mean, std=std, code=code, facts=facts)


def _from_timm(name, checkpoints):
    address = packages.timm_address(name)
    contents, sha256 = _read_verified(
        address, fetch(address, registry.checkpoint_folder(checkpoints), name=f"{name}.safetensors")
    )
    import timm

    try:  # timm's own strict loading: it also translates the names in files that others published
        body = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": contents})
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{address} does not fill timm's {name}: {' '.join(str(error).split())[:300]}") from error
    body.pretrained_cfg.pop("state_dict")  # or every network would be kept twice
    _pin({address: sha256})
    config = packages.timm_config(name)
    facts = {"checkpoint_sha256": sha256, "source": address, "arch": name, "normalization": "timm"}
    return Network(
        body, name=name, mean=config["mean"], std=config["std"], view=packages.timm_view(config), code="", facts=facts
    )


def _read_verified(address, path, expected=None):
    """Return (contents, sha256) of a file, also one put there by hand.

    Raises UserError if its hash does not begin as `expected`, or as its address says, or is not the pinned one.
    """
    contents, sha256 = read(path), file_hash(path)
    expected = expected or hash_in_name(address) or ""
    if not sha256.startswith(expected):
        raise UserError(f"{path} has sha256 {sha256}, one that begins with {expected} was expected: delete it")
    Pins(registry.PINS).check(address, sha256, path)
    return contents, sha256


def _pin(hashes):
    """Pin {address: sha256} of downloads that have filled their network; the repository's own files have no address."""
    for address, sha256 in hashes.items():
        if "://" in address:
            Pins(registry.PINS).add(address, sha256)


def _fingerprint(network, code):
    """sha256 of a module's state dict (names, types, shapes, bytes), its architecture as text, and `code`."""
    text = re.sub(" at 0x[0-9a-f]+", "", str(network.body))  # a function's place in memory differs from run to run
    digest = hashlib.sha256(f"{text}\n{code}\n".encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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

"""Networks by name: `load_model(name)` gives a module on [0, 1] pixels. The registry is data: models/zoo.toml.

A name is an entry of the registry, any timm name, a checkpoint file (path.pth, path.safetensors, with an architecture)
or `file.py:function`, a function of one's own that returns a module on [0, 1] pixels.
"""

import collections
import difflib
import hashlib
import importlib
import importlib.util
import math
import os
import re
import sys
import tomllib
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import timm
import torch

from imagenet_biases.errors import UserError
from imagenet_biases.images.pixels import STUDY, View
from imagenet_biases.networks import checkpoints as files

ROOT = Path(__file__).resolve().parents[3]
ZOO = ROOT / "models" / "zoo.toml"
PINS = ROOT / "models" / "zoo.lock.json"
CHECKPOINTS = ROOT / "models" / "checkpoints"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
CLASSES = 1000
FULL = 50_000  # ImageNet validation images
NORMALIZATIONS = {  # mean and standard deviation of R, G, B in [0, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


# --- the registry ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """One file of an entry: where it comes from, its hash, and how it is laid out."""

    source: str  # url, huggingface, gdrive, timm, file (in this repository), hand (no public address)
    location: str
    name: str | None  # readable part of its local name, where the location gives none
    sha256: str | None
    layout: files.Layout

    @property
    def address(self):
        """What `checkpoints.fetch` takes; of files in this repository or put there by hand, the bare location."""
        if self.source == "timm":
            return timm_address(self.location)
        if self.source == "huggingface":
            return "hf://" + self.location.replace(":", "/", 1)
        return {"gdrive": "gdrive://"}.get(self.source, "") + self.location

    def path(self, checkpoints=None):
        """Where the file lies, or will lie."""
        if self.source == "file":
            return ROOT / self.location
        folder = checkpoint_folder(checkpoints)
        return folder / self.location if self.source == "hand" else files.local_path(self.address, folder, self.name)

    def obtain(self, checkpoints=None):
        """Return the path of the file, fetched if need be. Raises UserError if it cannot be had."""
        path = self.path(checkpoints)
        if self.source in ("file", "hand"):
            if not path.exists():
                raise UserError(f"{path} is missing, and no public address of it is known: put the file there")
            return path
        return files.fetch(self.address, path.parent, sha256=self.sha256, name=self.name)


@dataclass(frozen=True)
class Entry:
    """One network of the registry."""

    name: str
    category: str  # '' outside the study's categories
    in_study: bool
    files: tuple[File, ...]  # their state dicts are joined; none: `arch` brings its own weights
    arch: str  # timm name, or module:function
    normalization: str  # imagenet, inception, none, or timm (that of the timm name)
    expected_top1: float | None  # per cent on the ImageNet validation images, study view
    paper: str
    link: str
    licence: str  # '' where unknown
    view: View | None  # the network's own view, where it is neither the study's nor known to timm

    @property
    def source(self):
        return " + ".join(file.source for file in self.files) or "package"

    @property
    def location(self):
        return " + ".join(file.location for file in self.files) or self.arch


@cache
def registry():
    """Return {name: Entry} of models/zoo.toml, in its order (the study's). Raises UserError for a faulty entry."""
    try:
        rows = tomllib.loads(ZOO.read_text(encoding="utf-8"))["network"]
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{ZOO}: {error}") from error
    entries = {}
    for row in rows:
        name = row.get("name", "(no name)")
        try:
            entry = _entry(**row)
        except (TypeError, ValueError) as error:
            raise UserError(f"{ZOO}: entry {name}: {str(error).removeprefix('_entry() ')}") from error
        if name in entries:
            raise UserError(f"{ZOO}: entry {name} is there twice")
        entries[name] = entry
    return entries


def _entry(
    *,
    name,
    paper,
    link,
    normalization,
    category="",
    in_study=False,
    arch="resnet50",
    expected_top1=None,
    licence="",
    view=None,
    files=None,
    **file,
):
    if normalization not in (*NORMALIZATIONS, "timm"):
        raise ValueError(f"unknown normalization {normalization!r}")
    if normalization == "timm" and file.get("source") != "timm":
        raise ValueError("normalization 'timm' is for source 'timm' only")
    rows = ([file] if file else []) if files is None else [{**file, **part} for part in files]
    return Entry(
        name=name,
        category=category,
        in_study=in_study,
        files=tuple(_file(name, **row) for row in rows),
        arch=arch,
        normalization=normalization,
        expected_top1=expected_top1,
        paper=paper,
        link=link,
        licence=licence,
        view=view and View(**view),
    )


def _file(entry, *, source, location, sha256=None, wrapper=("",), ignore=(), strip=(), rename=()):
    if source not in ("url", "huggingface", "gdrive", "timm", "file", "hand"):
        raise ValueError(f"unknown source {source!r}")
    rules = files.Layout(tuple(wrapper), tuple(ignore), tuple(strip), tuple(map(tuple, rename)))
    name = {"gdrive": f"{entry}.pth", "timm": f"{location}.safetensors"}.get(source)
    return File(source, location, name, sha256, rules)


def groups():
    """Return {group: [names]}: `all` (the study's 48, in its order) and each category.

    A category's group has its networks in the study; `calibration`, which has none there, all of them.
    """
    found = {"all": []}
    for entry in registry().values():
        if entry.in_study:
            found["all"].append(entry.name)
        if entry.in_study or entry.category == "calibration":
            found.setdefault(entry.category, []).append(entry.name)
    return found


def resolve(spec):
    """Return the names that `spec` stands for, in order, each once.

    spec: comma-separated names, groups, files, `file.py:function`, and text files that list them (`@list.txt` or
    `list.txt`: one a line, # begins a comment). Raises UserError for what is none of these, and where two would share
    a results folder.
    """
    items = []
    for item in filter(None, (part.strip() for part in spec.split(","))):
        if item.startswith("@") or item.endswith(".txt"):
            path = Path(item.removeprefix("@"))
            if not path.is_file():
                raise UserError(f"the list of networks {path} does not exist")
            lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
            items += filter(None, lines)
        else:
            items.append(item)
    names = [name for item in items for name in groups().get(item) or [item]]
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError(f"no network is named in {spec!r}")
    sharing = collections.defaultdict(list)
    for name in names:
        sharing[network_name(name)].append(name)
    for result, several in sharing.items():
        if len(several) > 1:
            raise UserError(f"{' and '.join(several)} would both write the results of {result!r}: rename one of them")
    for name in names:
        kind = _kind(name)
        path = _split_function(name)[0] if kind == "function" else Path(name)
        if kind in ("function", "file") and not path.is_file():
            raise UserError(f"the file {path} does not exist")
    return names


def network_name(name):
    """Return the results folder's name of the network that `load_model` takes as `name`, without loading it.

    Registry and timm names stay as they are; `path/file.py:function` gives file.function, a checkpoint file its stem.
    Raises UserError for a name that is none of these.
    """
    kind = _kind(name)
    if kind == "function":
        path, function = _split_function(name)
        result = f"{path.stem}.{function}"
    elif kind == "file":
        result = Path(name).name
        while result.endswith(SUFFIXES):
            result = result.rpartition(".")[0]
    else:
        result = name
    if not result or result.startswith(".") or "/" in result or "\\" in result:
        raise UserError(f"{name!r} gives no name for a results folder: rename the file")
    return result


def _kind(name):
    if name in registry():
        return "registry"
    if ".py:" in name:
        return "function"
    if timm.models.is_model_pretrained(name):
        return "timm"
    if name.endswith(SUFFIXES) or Path(name).is_file():
        return "file"
    if timm.is_model(name):
        return "timm"
    known = [*registry(), *groups(), *timm.list_models(pretrained=True)]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`python code/zoo.py --list` shows the known ones"
    raise UserError(f"there is no network {name!r} in the zoo or in timm, and no such file: {hint}")


def checkpoint_folder(checkpoints=None):
    """The folder of downloads: `checkpoints`, else environment variable ZOO_CHECKPOINTS, else models/checkpoints."""
    return Path(checkpoints or os.environ.get("ZOO_CHECKPOINTS") or CHECKPOINTS)


# --- loading ---------------------------------------------------------------------------------------------------------


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
    result = network_name(name)
    kind = _kind(name)
    if kind == "registry":
        return _from_registry(registry()[name], checkpoints)
    if kind == "function":
        return _from_function(name, result)
    if kind == "timm":
        return _from_timm(name, checkpoints)
    return _from_file(Path(name), result, arch, normalization)


def _from_registry(entry, checkpoints):
    body, code = _build(entry.arch)
    state, hashes = {}, {}
    for file in entry.files:
        path = file.obtain(checkpoints)
        contents, hashes[file.address] = _read_verified(file.address, path, file.sha256)
        part = file.layout.apply(contents, path)
        if twice := state.keys() & part.keys():
            raise UserError(f"{entry.name}: two of its files bring {min(twice)!r}")
        state |= part
    if entry.files:
        files.fill(body, state, f"{entry.name} ({path})")
    _pin(hashes)
    config = _timm_config(entry.files[0].location) if entry.source == "timm" else None
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
        view=entry.view or (_timm_view(config) if config else STUDY),
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
    body, code = _build(arch)
    checkpoint = files.load(path)
    files.fill(body, files.find(checkpoint.contents, body, path), path)
    facts = {
        "checkpoint_sha256": checkpoint.sha256,
        "source": path.name,
        "arch": arch,
        "normalization": normalization,
    }
    mean, std = NORMALIZATIONS[normalization]
    return Network(body, name=result, mean=mean, std=std, code=code, facts=facts)


def _from_function(name, result):
    path, function = _split_function(name)
    body, code = _build(name)
    source = f"{path.name}:{function}"
    facts = {"checkpoint_sha256": None, "source": source, "arch": source, "normalization": "its own"}
    mean, std = NORMALIZATIONS["none"]  # the module takes pixels
    with _Blaming(path, function):
        return Network(body, name=result, mean=mean, std=std, code=code, facts=facts)


def _from_timm(name, checkpoints):
    address = timm_address(name)
    contents, sha256 = _read_verified(
        address, files.fetch(address, checkpoint_folder(checkpoints), name=f"{name}.safetensors")
    )
    try:  # timm's own strict loading: it also translates the names in files that others published
        body = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": contents})
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{address} does not fill timm's {name}: {' '.join(str(error).split())[:300]}") from error
    body.pretrained_cfg.pop("state_dict")  # or every network would be kept twice
    _pin({address: sha256})
    config = _timm_config(name)
    facts = {"checkpoint_sha256": sha256, "source": address, "arch": name, "normalization": "timm"}
    return Network(
        body, name=name, mean=config["mean"], std=config["std"], view=_timm_view(config), code="", facts=facts
    )


def _read_verified(address, path, expected=None):
    """Return (contents, sha256) of a file, also one put there by hand.

    Raises UserError if its hash does not begin as `expected`, or as its address says, or is not the pinned one.
    """
    checkpoint = files.load(path)
    expected = expected or files.hash_in_name(address) or ""
    if not checkpoint.sha256.startswith(expected):
        raise UserError(
            f"{path} has sha256 {checkpoint.sha256}, one that begins with {expected} was expected: delete it"
        )
    files.Pins(PINS).check(address, checkpoint.sha256, path)
    return checkpoint.contents, checkpoint.sha256


def _pin(hashes):
    """Pin {address: sha256} of downloads that have filled their network; the repository's own files have no address."""
    for address, sha256 in hashes.items():
        if "://" in address:
            files.Pins(PINS).add(address, sha256)


def _fingerprint(network, code):
    """sha256 of a module's state dict (names, types, shapes, bytes), its architecture as text, and `code`."""
    text = re.sub(" at 0x[0-9a-f]+", "", str(network.body))  # a function's place in memory differs from run to run
    digest = hashlib.sha256(f"{text}\n{code}\n".encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# --- timm ------------------------------------------------------------------------------------------------------------


def timm_address(name):
    """Return the address of a timm name's pretrained weights. Raises UserError if it has none for 1,000 classes."""
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise UserError(f"timm has no pretrained weights for {name!r}: `timm.list_pretrained()` lists what it has")
    if config.num_classes != CLASSES:
        raise UserError(f"timm's {name} has {config.num_classes} outputs; a network needs {CLASSES} (ImageNet-1k)")
    return (
        f"hf://{config.hf_hub_id}/{config.hf_hub_filename or 'model.safetensors'}" if config.hf_hub_id else config.url
    )


def _timm_config(name):
    """What timm evaluates `name` with: input_size, interpolation, mean, std, crop_pct, crop_mode."""
    return timm.data.resolve_data_config(
        pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict(), use_test_size=True
    )


def _timm_view(config):
    """The View of a timm configuration, or, where a View cannot say it, a description."""
    _, height, width = config["input_size"]
    if config["crop_mode"] != "center" or height != width:
        return f"crop mode {config['crop_mode']}, {height} x {width}"
    return View(math.floor(height / config["crop_pct"]), height, config["interpolation"])


# --- architectures and a user's own code -----------------------------------------------------------------------------


def _build(arch):
    """Return (module, hash of the user's source or '') of a timm name, `module:function` or `file.py:function`."""
    if ".py:" in arch:
        return _call_own(*_split_function(arch))
    if ":" in arch:
        module, _, function = arch.partition(":")
        try:
            module = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(f"the architecture {arch} needs the package {error.name!r}: install it first") from error
        return _call(module, function, Path(module.__file__)), ""
    if not timm.is_model(arch):
        close = difflib.get_close_matches(arch, timm.list_models(), n=3)
        raise UserError(
            f"there is no architecture {arch!r} in timm"
            + (f": did you mean {' or '.join(close)}?" if close else "; or give module:function or file.py:function")
        )
    return timm.create_model(arch), ""


def _split_function(name):
    path, _, function = name.rpartition(":")
    return Path(path), function


def _call(module, function, path):
    """Return the torch module that `module.function()` gives; `path` is the module's file."""
    with _Blaming(path, function):
        if not callable(getattr(module, function, None)):
            raise UserError(f"{path} has no function {function!r}")
        body = getattr(module, function)()
    if not isinstance(body, torch.nn.Module):
        raise UserError(f"{path}:{function} returns {type(body).__name__}, not a torch.nn.Module")
    return body


_neighbours = set()  # names of modules that came from the folders of users' files


def _call_own(path, function):
    """Call `function` of the user's file; return its module and a hash of that file and the neighbours it imported."""
    if not path.is_file():
        raise UserError(f"the file {path} does not exist")
    folder = path.resolve().parent
    while _neighbours:  # the `utils` of another folder must not answer for this one's
        sys.modules.pop(_neighbours.pop(), None)
    before = set(sys.modules)
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
    try:
        with _Blaming(path, function):
            name = f"{path.stem}_{hashlib.sha256(bytes(path.resolve())).hexdigest()[:8]}"
            spec = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        body = _call(module, function, path)
    finally:
        sys.path.remove(str(folder))
        sys.path.append(str(folder))  # for what the module imports only when it is called
    sources = {path.resolve()}
    for name in set(sys.modules) - before:
        source = Path(getattr(sys.modules[name], "__file__", None) or "/")
        package = name.partition(".")[0]
        if (
            source.is_relative_to(folder)
            and source.relative_to(folder).parts[0].partition(".")[0] == package != __package__
        ):
            _neighbours.add(name)
            sources.add(source)
    return body, hashlib.sha256(b"\n".join(source.read_bytes() for source in sorted(sources))).hexdigest()


class _Blaming:
    """Turn whatever goes wrong in a user's own code into one line that names its file, function and line."""

    def __init__(self, path, function):
        self.path, self.function = path, function

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if not isinstance(error, (Exception, SystemExit)) or isinstance(error, UserError):
            return
        folder = self.path.resolve().parent
        own = [frame for frame in traceback.extract_tb(trace) if Path(frame.filename).resolve().is_relative_to(folder)]
        place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
        text = " ".join(str(error).split())
        raise UserError(f"{self.path}:{self.function} failed: {kind.__name__}: {text}{place}") from error


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

"""The registry of networks as data: models/zoo.toml, its groups, and what the names on a command line stand for.

A name is an entry of the registry, any timm name, a checkpoint file (path.pth, path.safetensors, with an architecture)
or `file.py:function`, a function of one's own that returns a module on [0, 1] pixels. Neither torch nor timm is needed
to look an entry up.
"""

import collections
import difflib
import os
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from imagenet_biases.errors import UserError, some
from imagenet_biases.networks import checkpoints as files
from imagenet_biases.networks import packages

ROOT = Path(__file__).resolve().parents[3]
ZOO = ROOT / "models" / "zoo.toml"
PINS = ROOT / "models" / "zoo.lock.json"
CHECKPOINTS = ROOT / "models" / "checkpoints"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
NORMALIZATIONS = {  # mean and standard deviation of R, G, B in [0, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Layout:
    """How the state dict lies in a file, in the order in which the rules are applied.

    wrapper: keys under which it may lie, the first one present counts; "" is the file's top level.
    ignore: regular expressions; what they match anywhere in a name is left out.
    strip: prefixes to take off the names that begin with them, one after the other.
    rename: (regular expression, replacement) pairs, all applied to every name.
    """

    wrapper: tuple = ("",)
    ignore: tuple = ()
    strip: tuple = ()
    rename: tuple = ()

    def apply(self, contents, where):
        """Return the state dict {name: Tensor} in `contents`; `where` names the file in errors (UserError)."""
        for key in self.wrapper:
            part = contents if key == "" else contents.get(key)
            if isinstance(part, dict):
                break
        else:
            raise UserError(f"{where} has no {' or '.join(map(repr, self.wrapper))} in it, but {some(contents)}")
        state = {}
        for name, tensor in part.items():
            if isinstance(tensor, dict) or any(re.search(rule, name) for rule in self.ignore):
                continue
            for prefix in self.strip:
                name = name.removeprefix(prefix)
            for pattern, replacement in self.rename:
                name = re.sub(pattern, replacement, name)
            if name in state:
                raise UserError(f"{where} has two tensors that become {name!r} by its rules {self}")
            state[name] = tensor
        return state


@dataclass(frozen=True)
class File:
    """One file of an entry: where it comes from, its hash, and how it is laid out."""

    source: str  # url, huggingface, gdrive, timm, file (in this repository), hand (no public address)
    location: str
    name: str | None  # readable part of its local name, where the location gives none
    sha256: str | None
    layout: Layout

    @property
    def address(self):
        """What `checkpoints.fetch` takes; of files in this repository or put there by hand, the bare location."""
        if self.source == "timm":
            return packages.timm_address(self.location)
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
    view: dict | None  # resize, crop, interpolation of its own view, where it is neither the study's nor timm's

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
        view=view and _view(**view),
    )


def _view(*, resize, crop, interpolation="bilinear"):
    return {"resize": resize, "crop": crop, "interpolation": interpolation}


def _file(entry, *, source, location, sha256=None, wrapper=("",), ignore=(), strip=(), rename=()):
    if source not in ("url", "huggingface", "gdrive", "timm", "file", "hand"):
        raise ValueError(f"unknown source {source!r}")
    rules = Layout(tuple(wrapper), tuple(ignore), tuple(strip), tuple(map(tuple, rename)))
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
        kind = kind_of(name)
        path = split_function(name)[0] if kind == "function" else Path(name)
        if kind in ("function", "file") and not path.is_file():
            raise UserError(f"the file {path} does not exist")
    return names


def network_name(name):
    """Return the results folder's name of the network that `load_model` takes as `name`, without loading it.

    Registry and timm names stay as they are; `path/file.py:function` gives file.function, a checkpoint file its stem.
    Raises UserError for a name that is none of these.
    """
    kind = kind_of(name)
    if kind == "function":
        path, function = split_function(name)
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


def kind_of(name):
    if name in registry():
        return "registry"
    if ".py:" in name:
        return "function"
    if packages.in_timm(name):
        return "timm"
    if name.endswith(SUFFIXES) or Path(name).is_file():
        return "file"
    if packages.in_timm(name, pretrained=False):
        return "timm"
    known = [*registry(), *groups(), *packages.timm_names()]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`python code/zoo.py --list` shows the known ones"
    raise UserError(f"there is no network {name!r} in the zoo or in timm, and no such file: {hint}")


def split_function(name):
    """Return (path, function name) of `file.py:function`."""
    path, _, function = name.rpartition(":")
    return Path(path), function


def checkpoint_folder(checkpoints=None):
    """The folder of downloads: `checkpoints`, else environment variable ZOO_CHECKPOINTS, else models/checkpoints."""
    return Path(checkpoints or os.environ.get("ZOO_CHECKPOINTS") or CHECKPOINTS)

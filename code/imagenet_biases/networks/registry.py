"""The registry of networks as data: models/zoo.toml, its groups, and what the names on a command line stand for.

A name is an entry of the registry, any timm name, a checkpoint file (path.pth, path.safetensors, with an architecture;
backbone.pth+head.pth for a network in two files), `file.py:function`, your function that returns a module on [0, 1]
pixels, or a name with a prefix (PREFIXES). Looking up an entry needs neither torch nor timm.
"""

import ast
import codecs
import glob
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import TypedDict

from imagenet_biases.base import download as files
from imagenet_biases.base.errors import UserError, listed_briefly, nearest
from imagenet_biases.base.files import demand_file, safe_name
from imagenet_biases.base.paths import HOME, SHIPPED
from imagenet_biases.base.schema import Number, Object, Row, Text, check
from imagenet_biases.networks import packages
from imagenet_biases.networks.pins import Pins
from imagenet_biases.study import DRAWN_CATEGORIES

ZOO = SHIPPED / "models" / "zoo.toml"
PINS = SHIPPED / "models" / "zoo.lock.json"
CHECKPOINTS = HOME / "models" / "checkpoints"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
SOURCES = (
    "url",
    "huggingface",
    "gdrive",
    "timm",
    "torchvision",
    "file",  # in this repository, or beside the user's zoo.user.toml
    "hand",  # no public address
)
PREFIXES = {
    "clip:": "zero-shot",  # networks.zero_shot
    "hf:": "transformers",  # an image classifier (networks.sources) or a model that answers in words (networks.vlm)
    "api:": "api",  # networks.api
    "hf-hub:": "timm-hub",  # networks.sources, as the next two
    "timm/": "timm-hub",
    "torchhub:": "torchhub",
}
NORMALIZATIONS = {  # mean and standard deviation of R, G, B in [0, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
NORMALIZATION_CHOICES = ("auto", *NORMALIZATIONS, "builtin")


@dataclass(frozen=True)
class Layout:
    """Where the state dict is in a file, and how its names become the network's; rules apply in this order.

    Attributes:
        wrapper: keys that may contain it, of which the first present counts; "" is the file's top level.
        ignore: regular expressions; names in which one matches anywhere are left out.
        strip: prefixes to remove from names, one after the other.
        rename: (regular expression, replacement) pairs, all applied to every name.
    """

    wrapper: tuple[str, ...] = ("",)
    ignore: tuple[str, ...] = ()
    strip: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()

    def apply(self, contents: dict[str, Any], source: object) -> dict[str, Any]:
        """Return the state dict {name: Tensor} in `contents`. Raises UserError, naming the file as `source`."""
        for key in self.wrapper:
            part = contents if key == "" else contents.get(key)
            if isinstance(part, dict):
                break
        else:
            raise UserError(
                f"{source} has no {' or '.join(map(repr, self.wrapper))} in it, but {listed_briefly(contents)}"
            )
        state = {}
        for name, tensor in part.items():
            if isinstance(tensor, dict) or any(re.search(rule, name) for rule in self.ignore):
                continue
            for prefix in self.strip:
                name = name.removeprefix(prefix)
            for pattern, replacement in self.rename:
                name = re.sub(pattern, replacement, name)
            if name in state:
                raise UserError(f"{source} has two tensors that become {name!r} by its rules {self}")
            state[name] = tensor
        return state


@dataclass(frozen=True)
class File:
    """One file of an entry.

    Attributes:
        source: one of SOURCES.
        location: within the source.
        name: readable part of its local name, where the location gives none.
        sha256: known hash or its first digits.
        root: folder of the locations of source `file`.
    """

    source: str
    location: str
    name: str | None
    sha256: str | None
    layout: Layout
    root: Path

    @property
    def address(self) -> str:
        """The address for `download.fetch`; for files in this repository or put there by hand, the bare location."""
        if self.source == "timm":
            return packages.timm_address(self.location)
        if self.source == "torchvision":
            return packages.torchvision_weights(self.location).url
        if self.source == "huggingface":
            return "hf://" + self.location.replace(":", "/", 1)
        return {"gdrive": "gdrive://"}.get(self.source, "") + self.location

    def path(self, checkpoints: str | Path | None = None) -> Path:
        """Return where the file is, or will be."""
        if self.source == "file":
            return self.root / self.location
        folder = checkpoint_folder(checkpoints)
        return folder / self.location if self.source == "hand" else files.local_path(self.address, folder, self.name)

    def on_disk(self, checkpoints: str | Path | None = None) -> Path | None:
        """Return the path of the file if it is there, found without importing timm."""
        if self.source == "timm":
            pattern = f"{8 * '[0-9a-f]'}-{glob.escape(str(self.name))}"
            return next(checkpoint_folder(checkpoints).glob(pattern), None)
        path = self.path(checkpoints)
        return path if path.exists() else None

    def obtain(self, checkpoints: str | Path | None = None) -> Path:
        """Return the path of the file, fetched if necessary. Raises UserError if it is not available."""
        path = self.path(checkpoints)
        if self.source in ("file", "hand"):
            if not path.exists():
                raise UserError(f"{path} is missing, and no public address of it is known: put the file there")
            return path
        return files.fetch(self.address, path.parent, sha256=self.sha256, name=self.name)


@dataclass(frozen=True)
class Entry:
    """One network of the registry.

    Attributes:
        category: '' outside the study's categories.
        files: their state dicts are joined; none: `arch` provides its own weights.
        arch: timm name, or module:function.
        normalization: imagenet, inception, clip, none, or timm (that of the timm name).
        expected_top1: per cent on the ImageNet validation images, with the study's preprocessing.
        licence: '' where unknown.
        preprocessing: resize, crop, interpolation of its authors, where they are neither the study's nor timm's.
        frontend: what stands before it at test time, '' for nothing (networks.frontends).
        family: of adversarially trained networks: who trained the series.
        norm, eps: l2 (of pixels in [0, 1]) or linf (in 1/255), and the strength.
    """

    name: str
    category: str
    in_study: bool
    files: tuple[File, ...]
    arch: str
    normalization: str
    expected_top1: float | None
    paper: str
    link: str
    licence: str
    preprocessing: dict[str, Any] | None
    frontend: str
    family: str = ""
    norm: str = ""
    eps: float | None = None

    @property
    def source(self) -> str:
        """The sources of its files, or 'package'."""
        return " + ".join(file.source for file in self.files) or "package"

    @property
    def location(self) -> str:
        """The locations of its files, or its architecture."""
        return " + ".join(file.location for file in self.files) or self.arch


def user_folder() -> Path:
    """Return the folder of the user's entries and pins: environment variable ZOO_FOLDER, else models/ (git-ignored)."""
    return Path(os.environ.get("ZOO_FOLDER") or HOME / "models")


def pins() -> Pins:
    """Return the hashes of first verified downloads: the shipped lock file, and the user's, to which new ones go."""
    return Pins(user_folder() / "zoo.user.lock.json", shipped=PINS)


def registry() -> dict[str, Entry]:
    """Return {name: Entry}: the shipped models/zoo.toml in its order (the study's), then the user's zoo.user.toml.

    Raises:
        UserError: an entry is faulty, or a user's entry has the name of a shipped entry or of a group.
    """
    path = user_folder() / "zoo.user.toml"
    entries = dict(_entries(ZOO, _stamp(ZOO)))
    if os.path.isfile(path):
        for name, entry in _entries(path, _stamp(path)).items():
            if name in entries or name in groups():
                raise UserError(f"{path}: entry {name}: the zoo already has this name; give yours another one")
            if entry.in_study:
                raise UserError(f"{path}: entry {name}: in_study is for the networks that the study has published")
            entries[name] = entry
    return entries


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@cache
def _entries(path: Path, _: tuple[int, int]) -> dict[str, Entry]:
    """Read a file of entries; the second argument is its stamp, so that a changed file is read again."""
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("network", [])
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: every entry begins with [[network]]")
    entries = {}
    for row in rows:
        name = row.get("name", "(no name)")
        try:
            entry = _entry(SHIPPED if path == ZOO else path.parent, **check(row, ROW))
        except (TypeError, ValueError, OverflowError, RecursionError, re.error, UserError) as error:
            raise UserError(f"{path}: entry {name}: {str(error).removeprefix('_entry() ')}") from error
        if name in entries:
            raise UserError(f"{path}: entry {name} is there twice")
        entries[name] = entry
    return entries


_TEXTS = ("name", "category", "source", "location", "sha256", "arch", "normalization", "paper", "link", "licence")
ROW = TypedDict(  # type: ignore[misc]  # pyright: ignore
    "ROW",
    dict.fromkeys((*_TEXTS, "frontend", "family", "norm", "interpolation"), Text)  # type: ignore[misc]
    | dict.fromkeys(("wrapper", "ignore", "strip"), list[Text])
    | dict.fromkeys(("expected_top1", "eps"), Number)
    | dict.fromkeys(("resize", "crop"), int)
    | {"rename": list[Annotated[tuple[Text, Text], Row]], "files": list[Object], "in_study": bool, "view": Object},
    total=False,
)
"""The values of all keys of an entry, its files and its view; the functions below say which keys each may have."""


def _entry(
    root: Path,
    *,
    name: str,
    normalization: str | None = None,
    paper: str = "",
    link: str = "",
    category: str = "",
    in_study: bool = False,
    arch: str | None = None,
    expected_top1: float | None = None,
    licence: str = "",
    view: dict[str, Any] | None = None,
    frontend: str = "",
    family: str = "",
    norm: str = "",
    eps: float | None = None,
    files: list[dict[str, Any]] | None = None,
    **file: Any,
) -> Entry:
    source = file.get("source")
    if normalization is None and source == "torchvision":
        normalization = "imagenet"
    _check_entry(source, normalization, expected_top1, norm, eps)
    rows = ([file] if file else []) if files is None else [{**file, **check(part, ROW)} for part in files]
    if arch is None:
        arch = f"torchvision.models:{file['location'].partition(':')[0]}" if source == "torchvision" else "resnet50"
    return Entry(
        name=safe_name(name),
        category=category,
        in_study=in_study,
        files=tuple(_file(root, name, **row) for row in rows),
        arch=arch,
        normalization=str(normalization),
        expected_top1=expected_top1,
        paper=paper,
        link=link,
        licence=licence,
        preprocessing=view and _view(**check(view, ROW)),
        frontend=frontend,
        family=family,
        norm=norm,
        eps=eps,
    )


def _check_entry(
    source: str | None, normalization: str | None, expected_top1: float | None, norm: str, eps: float | None
) -> None:
    if normalization not in (*NORMALIZATIONS, "timm"):
        raise ValueError(f"normalization is {normalization!r}, not one of {', '.join((*NORMALIZATIONS, 'timm'))}")
    if normalization == "timm" and source != "timm":
        raise ValueError("normalization 'timm' is for source 'timm' only")
    if expected_top1 is not None and not 0 <= expected_top1 <= 100:
        raise ValueError(f"expected_top1 = {expected_top1} is not a percentage")
    if bool(norm) != (eps is not None) or norm not in ("", "l2", "linf") or (eps or 0) < 0:
        raise ValueError(f"norm = {norm!r} and eps = {eps} go together: l2 or linf, and a number from 0")


def _view(*, resize: int, crop: int, interpolation: str = "bilinear") -> dict[str, Any]:
    if not 1 <= crop <= resize <= 10_000:
        raise ValueError(f"the view's resize = {resize} and crop = {crop} are not sizes in pixels")
    if interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise ValueError(f"the view's interpolation {interpolation!r} is unknown")
    return {"resize": resize, "crop": crop, "interpolation": interpolation}


def _file(
    root: Path,
    entry: str,
    *,
    source: str,
    location: str,
    sha256: str | None = None,
    wrapper: Iterable[str] = ("",),
    ignore: Iterable[str] = (),
    strip: Iterable[str] = (),
    rename: Iterable[list[str]] = (),
) -> File:
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}: it is one of {', '.join(SOURCES)}")
    for rule in (*ignore, *(pair[0] for pair in rename)):
        re.compile(rule)
    rules = Layout(tuple(wrapper), tuple(ignore), tuple(strip), tuple((old, new) for old, new in rename))
    name = {"gdrive": f"{entry}.pth", "timm": f"{location}.safetensors"}.get(source)
    return File(source, location, name, sha256, rules, root)


def groups() -> dict[str, list[str]]:
    """Return {group: [names]}: `all` (the study's 48, in its order), each category, and `adversarial_families`.

    A category's group has its networks in the study; for zero-shot networks and networks made for drawn images, all.
    """
    members: dict[str, list[str]] = {"all": []}
    for entry in _entries(ZOO, _stamp(ZOO)).values():
        if entry.in_study:
            members["all"].append(entry.name)
        if entry.in_study or entry.category in (*DRAWN_CATEGORIES, "zero_shot"):
            members.setdefault(entry.category, []).append(entry.name)
        if entry.family:
            members.setdefault("adversarial_families", []).append(entry.name)
    return members


def resolve(spec: str) -> list[str]:
    """Return the names that `spec` stands for, in order, each spelling once.

    Two names may give the same label (two files net.py in two folders): their weights distinguish their results.

    Args:
        spec: comma-separated names, groups, files, `file.py:function`, and text files that list them (`@list.txt` or
            `list.txt`: one per line, # begins a comment).

    Raises:
        UserError: a part is not one of these.
    """
    items: list[str] = []
    for item in filter(None, (part.strip() for part in spec.split(","))):
        items += _listed(item.removeprefix("@")) if item.startswith("@") or item.endswith(".txt") else [item]
    names: list[str] = []
    for item in items:
        names += groups().get(item) or [item]
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError(f"no network is named in {spec!r}")
    for name in names:
        network_name(name)
        kind = kind_of(name)
        if kind == "function":
            demand_file(split_function(name)[0], "a file of Python code")
        for path in checkpoint_files(name) if kind in ("file", "onnx") else ():
            demand_file(path, "a checkpoint file")
    return names


def _listed(path: str) -> Iterator[str]:
    """Return the lines of a list of networks, without comments."""
    demand_file(path, "a list of networks")
    try:
        data = Path(path).read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except OSError as error:
        raise UserError(f"the list of networks {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"the list of networks {path} is not text in UTF-8: save it as that")
    return filter(None, (line.partition("#")[0].strip() for line in text.splitlines()))


def network_name(name: str) -> str:
    """Return the label, and results folder, of the network that `load_model` accepts as `name`, without loading it.

    Registry and timm names stay as they are; `path/file.py:function` gives file.function, a checkpoint file its stem.

    Raises:
        UserError: the name is not one of these, or does not give the name of a folder.
    """
    kind = kind_of(name)
    if kind in PREFIXES.values():
        return prefixed_name(name)
    if kind == "function":
        path, function = split_function(name)
        return safe_name(f"{path.stem}.{function}")
    if kind not in ("file", "onnx"):
        return safe_name(name)
    stems: list[str] = []
    for path in checkpoint_files(name):
        stem = path.name
        while stem.endswith((*SUFFIXES, ".onnx")):
            stem = stem.rpartition(".")[0]
        stems.append(stem)
    return safe_name("+".join(stems))


def checkpoint_files(name: str) -> list[Path]:
    """Return the paths in `path.pth`, or in `backbone.pth+head.pth`."""
    parts = name.split("+")
    several = all(part.endswith(SUFFIXES) for part in parts) and not os.path.isfile(name)
    return list(map(Path, parts if several else [name]))


def zero_shot(arch: str) -> bool:
    """Whether an architecture is a zero-shot network (networks.zero_shot)."""
    return arch.startswith("clip:")


def prefixed_name(name: str) -> str:
    """Return the label of a name with a prefix: its last part; of clip: and torchhub: names, all parts."""
    kind = prefix_kind(name)
    place = name.partition("/" if name.startswith("timm/") else ":")[2]
    if kind == "torchhub":
        place, entry = split_hub(name)
        return safe_name(f"{Path(place.partition(':')[0]).name}.{entry}")
    if kind != "zero-shot":
        return safe_name(Path(split_revision(place)[0]).name)
    place = Path(place).name if os.path.isdir(place.partition(":")[0]) else place
    return safe_name("clip-" + place.removesuffix(":80").replace("/", "-").replace(":", "-"))


def prefix_kind(name: str) -> str:
    """Return the kind that a name's prefix states, 'onnx' for such a file, else ''."""
    for prefix, kind in PREFIXES.items():
        if name.startswith(prefix):
            return "file" if prefix == "timm/" and os.path.isfile(name) else kind
    return "onnx" if name.endswith(".onnx") else ""


def split_revision(place: str) -> tuple[str, str]:
    """Return (OWNER/NAME, revision or '') of OWNER/NAME@REVISION, a branch, tag or commit; folders have none.

    Raises:
        UserError: there is nothing after the @.
    """
    repository, at, revision = (place, "", "") if os.path.isdir(place) else place.partition("@")
    if at and not revision:
        raise UserError(f"{place}: give OWNER/NAME@REVISION, a branch, tag or commit, or OWNER/NAME")
    return repository, revision


def split_hub(name: str) -> tuple[str, str]:
    """Return (OWNER/REPO or OWNER/REPO:REF or folder, entry) of torchhub:... Raises UserError if it is no such name."""
    place, _, entry = name.removeprefix("torchhub:").rpartition(":")
    if not (place and entry):
        raise UserError(f"{name}: give torchhub:OWNER/REPO:ENTRY, e.g. torchhub:pytorch/vision:resnet50")
    return place, entry


def kind_of(name: str) -> str:
    """Return what `name` is: registry, function, timm, file, onnx, or a kind of PREFIXES.

    Raises:
        UserError: it is none of them; the message gives the nearest names.
    """
    if name in registry():
        return "registry"
    if kind := prefix_kind(name):
        return kind
    if name.startswith(("predictions:", "answers:")):
        raise UserError(f"{name}: a file of answers is scored by the script of one benchmark, such as eval_imagenet.py")
    if ".py:" in name:
        return "function"
    if name.endswith(".py"):
        raise UserError(f"{name} is a file of Python code: {which_function(name)}")
    if name.endswith(SUFFIXES) or ("/" in name and os.path.isfile(name)):
        return "file"
    if packages.in_timm(name):
        return "timm"
    if os.path.isfile(name):
        return "file"
    if "." not in name and packages.in_timm(name, pretrained=False):
        return "timm"
    close = nearest(name, [*registry(), *groups(), *packages.timm_names()])
    hint = close or "`python code/zoo.py --list` shows the known ones"
    raise UserError(f"there is no network {name!r} in the zoo or in timm, and no such file: {hint}")


def which_function(path: str | Path) -> str:
    """Return a hint at the functions of a Python file, without running it."""
    try:
        body = ast.parse(Path(path).read_bytes()).body
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"it cannot be parsed ({error})"
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    if not functions:
        return "it has no function; write one that returns the network, and give file.py:function"
    names = listed_briefly(functions, 9)
    return f"say which of its functions returns the network, e.g. {path}:{functions[0]} (it has {names})"


def split_function(name: str) -> tuple[Path, str]:
    """Return (path, function name) of `file.py:function`."""
    path, _, function = name.rpartition(":")
    return Path(path), function


def checkpoint_folder(checkpoints: str | Path | None = None) -> Path:
    """Return the folder of downloads: `checkpoints`, else environment variable ZOO_CHECKPOINTS, else the default."""
    return Path(checkpoints or os.environ.get("ZOO_CHECKPOINTS") or CHECKPOINTS)

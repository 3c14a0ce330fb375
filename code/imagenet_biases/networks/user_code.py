"""Architectures, and users' code: `module:function` and `file.py:function`."""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from imagenet_biases.base.errors import UserError, clean, nearest
from imagenet_biases.base.files import demand_file
from imagenet_biases.networks import packages
from imagenet_biases.networks.registry import split_function, which_function

PUBLISHED = ("torch", "timm", "torchvision")  # packages whose code the architecture's text identifies
LANGUAGE = "pip install -r requirements-language.txt"
HARNESS = __name__.partition(".")[0]
# frames between the command line and a user's mistake, or below it
BESIDE = (*PUBLISHED, HARNESS, "contextlib", "importlib", "_frozen_importlib", "_frozen_importlib_external")


def build(arch: str) -> tuple[torch.nn.Module, str]:
    """Return (module, hash of the user's source or '') of a timm name, `module:function` or `file.py:function`.

    Raises:
        UserError: there is no such architecture, or its code fails.
    """
    if ".py:" in arch:
        return _use_file(*split_function(arch))
    if arch.endswith(".py"):
        raise UserError(f"the architecture {arch} is a file of Python code: {which_function(arch)}")
    if ":" in arch:
        return _call(_imported(arch), arch), ""
    if not buildable(arch):
        hint = nearest(arch, packages.timm_names(pretrained="." in arch))
        raise UserError(
            f"there is no architecture {arch!r} in timm: {hint or 'or give module:function or file.py:function'}"
        )
    import timm

    return timm.create_model(arch), ""


def buildable(arch: str) -> bool:
    """Whether `build` takes an architecture's name; a network from elsewhere may state one of another library."""
    # a tag names weights; timm accepts any tag of an architecture that it has
    return ":" in arch or packages.in_timm(arch) or ("." not in arch and packages.in_timm(arch, pretrained=False))


def class_id(name: str) -> str:
    """Return the id of a network class of this package: the source text by which edition 2 identified it.

    Fingerprints of networks, and so all stored responses, depend on these texts: never edit them.
    """
    return (Path(__file__).parent / "class_ids" / f"{name}.txt").read_text("utf-8")


def class_sources(body: torch.nn.Module) -> str:
    """Return a text that identifies the classes of a network's modules, except those of published packages.

    A class of this package is identified by id and version; any other by its source code, or, where that is not
    available (typed into a plain interpreter), by its name. A body of this package may name further published packages.
    """
    published = PUBLISHED
    if type(body).__module__.startswith(f"{HARNESS}."):
        published += getattr(body, "published", ())
    classes = {kind for module in body.modules() for kind in type(module).__mro__}
    texts = []
    for kind in classes:
        package = kind.__module__.partition(".")[0]
        if package == HARNESS and "id" in vars(kind):
            texts.append(kind.id if kind.version == 1 else f"{kind.id}\nversion {kind.version}")
        elif kind is not object and package not in published:
            try:
                texts.append(inspect.getsource(kind))
            except (OSError, TypeError):
                texts.append(kind.__qualname__)
    return "\n".join(sorted(texts))


@contextlib.contextmanager
def blaming(code: str) -> Iterator[None]:
    """Turn any failure of a user's code into a UserError of one line that names the code, the file and the line.

    torch's defaults (dtype, gradients) that the code changes are restored, with a warning.
    """
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        place = ""
        for frame, line in traceback.walk_tb(error.__traceback__):
            if (frame.f_globals.get("__name__") or "").partition(".")[0] not in BESIDE:
                place = f" ({Path(frame.f_code.co_filename).name}, line {line})"
        raise UserError(f"{code} failed: {type(error).__name__}: {clean(error)}{place}") from error
    finally:
        if torch.get_default_dtype() != dtype:
            warnings.warn(f"{code} sets torch's default type to {torch.get_default_dtype()}: restored", stacklevel=3)
            torch.set_default_dtype(dtype)
        if torch.is_grad_enabled() != gradients:
            warnings.warn(f"{code} switches gradients {'off' if gradients else 'on'} for all: restored", stacklevel=3)
            torch.set_grad_enabled(gradients)


@contextlib.contextmanager
def one_line(name: str, install: str = LANGUAGE, advice: str = "") -> Iterator[None]:
    """Turn any failure of an optional package, a hub or a file's content into a UserError of one line.

    Args:
        name: of the network or model.
        install: the command that installs what is missing.
        advice: what else helps, after a semicolon.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0].replace("_", "-")
            raise UserError(f"{name} needs {package}, which is not installed: {install}{advice}") from None
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{name} wants to run its own code; read it, and give --trust-remote-code if you trust it"
            ) from None
        raise UserError(f"{name} cannot be loaded: {type(error).__name__}: {clean(error, 300)}{advice}") from None


def _imported(arch: str) -> ModuleType:
    """Import the module of `module:function`."""
    name, _, function = arch.rpartition(":")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name) or not function.isidentifier():
        raise UserError(f"the architecture {arch!r} is not module:function with a module's full name (package.module)")
    with blaming(f"the architecture {arch}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f"the architecture {arch} needs the package {error.name!r}: install it first") from error


def _function(module: ModuleType, name: str) -> Callable[..., Any]:
    """Return the function of `module` that the last part of `name` names."""
    function = name.rpartition(":")[2]
    file = getattr(module, "__file__", None) or module.__name__
    if not callable(getattr(module, function, None)):
        hint = f": {which_function(file)}" if ".py:" in name else ""
        raise UserError(f"{file} has no function {function!r}{hint}")
    return getattr(module, function)


def _call(module: ModuleType, name: str) -> torch.nn.Module:
    """Return the torch module that the function of `module`, the last part of `name`, returns."""
    function = _function(module, name)
    with blaming(name):
        body = function()
    if not isinstance(body, torch.nn.Module):
        raise UserError(f"{name} returns {type(body).__name__}, not a torch.nn.Module")
    return body


_neighbours: set[str] = set()  # names of modules imported from the folders of users' files


def user_function(path: Path, name: str) -> tuple[Callable[..., Any], str]:
    """Return the function `name` of a user's file, and a hash of that file and the neighbours that it imports."""
    return _use_file(path, name, _function)


def _use_file(path: Path, function: str, use: Callable[[ModuleType, str], Any] | None = None) -> tuple[Any, str]:
    """Return what `function` of a user's file returns, or use(module, name), and a hash of the file.

    The hash includes the neighbours that the file imports.
    """
    demand_file(path, "a file of Python code")
    folder, qualified = path.resolve().parent, f"{path}:{function}"
    while _neighbours:  # another folder's `utils` must not replace this folder's
        sys.modules.pop(_neighbours.pop(), None)
    before = set(sys.modules)
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
    try:
        with blaming(qualified):
            name = f"{path.stem}_{hashlib.sha256(bytes(path.resolve())).hexdigest()[:8]}"
            spec: Any = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            # not exec_module: bytecode may be of another text of the same second and length
            exec(spec.loader.source_to_code(path.read_bytes(), str(path)), vars(module))
        body = (use or _call)(module, qualified)
    finally:
        sys.path.remove(str(folder))
        sys.path.append(str(folder))  # for modules that are imported only when the function is called
    sources = {path.resolve()}
    for name in set(sys.modules) - before:
        source = Path(getattr(sys.modules[name], "__file__", None) or "/")
        package = name.partition(".")[0]
        if (
            source.is_relative_to(folder)
            and source.relative_to(folder).parts[0].partition(".")[0] == package != HARNESS
        ):
            _neighbours.add(name)
            sources.add(source)
    return body, hashlib.sha256(b"\n".join(source.read_bytes() for source in sorted(sources))).hexdigest()

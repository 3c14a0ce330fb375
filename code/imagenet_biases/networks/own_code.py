"""Architectures, and a user's own code: `module:function` and `file.py:function`."""

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path

import torch

from imagenet_biases.errors import UserError
from imagenet_biases.networks import packages
from imagenet_biases.networks.registry import split_function


def build(arch):
    """Return (module, hash of the user's source or '') of a timm name, `module:function` or `file.py:function`."""
    if ".py:" in arch:
        return _call_own(*split_function(arch))
    if ":" in arch:
        module, _, function = arch.partition(":")
        try:
            module = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(f"the architecture {arch} needs the package {error.name!r}: install it first") from error
        return _call(module, function, Path(module.__file__)), ""
    if not packages.in_timm(arch, pretrained=False):
        close = difflib.get_close_matches(arch, packages.timm_names(pretrained=False), n=3)
        raise UserError(
            f"there is no architecture {arch!r} in timm"
            + (f": did you mean {' or '.join(close)}?" if close else "; or give module:function or file.py:function")
        )
    import timm

    return timm.create_model(arch), ""


def _call(module, function, path):
    """Return the torch module that `module.function()` gives; `path` is the module's file."""
    with Blaming(path, function):
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
        with Blaming(path, function):
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


class Blaming:
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

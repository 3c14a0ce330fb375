"""Checkpoints: fetch, know by hash, read safely, find the state dict, fill a network strictly.

fetch(address, folder, *, sha256=None, name=None) -> Path      any file: https://…, hf://owner/repo/file, gdrive://id
load(path) -> Checkpoint                                       contents (nested dicts of tensors) and sha256
Layout(...).apply(contents, where) -> state dict               how a known file is laid out
find(contents, network, where) -> state dict                   the part of an unknown file that fits the network
fill(network, state, where)                                    every tensor, nothing left over
"""

import collections
import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import urllib.parse
import warnings
from dataclasses import dataclass
from pathlib import Path

import gdown
import requests
import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from imagenet_biases.errors import UserError
from imagenet_biases.files import atomic, write_json
from imagenet_biases.networks.reading import read, tensors

CHUNK = 1 << 17
ATTEMPTS = 5
TIMEOUT = 60  # seconds without a byte
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # torch.hub: NAME-HASHPREFIX.pth
WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")


# --- fetching --------------------------------------------------------------------------------------------------------


def fetch(address, folder, *, sha256=None, name=None):
    """Return the path of the file at `address`, fetched into `folder` unless it lies there.

    address: https://…, hf://owner/repository/file (Hugging Face hub) or gdrive://id (Google Drive).
    sha256: the expected hash or its first digits; without it, digits in the file name as torch.hub puts them.
    name: readable part of the local name (default: the address' own). The local name begins with a key made of the
    address, so two sources never share a file; a file put there by hand is taken as it is.

    Goes on where an interrupted download stopped; several processes may fetch the same file. Raises UserError, with the
    address to open by hand and the place to put the file, when it cannot be had, is a web page or has another hash.
    """
    path = local_path(address, folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        if page := _web_page(path):
            raise UserError(f"{path} is a web page ({page}), not a checkpoint: delete it; {by_hand(address, path)}")
        return path
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():  # another process was faster
            return path
        part = path.with_name(f"{path.name}.part")
        try:
            _download(address, part)
            if page := _web_page(part):
                part.unlink()
                raise _Failed(f"a web page came instead of the file ({page})")
            expected = sha256 or hash_in_name(address)
            if expected and not (found := file_hash(part)).startswith(expected):
                part.unlink()
                raise _Failed(f"its sha256 begins with {found[: len(expected)]}, {expected} was expected")
        except (_Failed, OSError) as error:  # those of requests and huggingface_hub are OSErrors
            raise UserError(f"cannot fetch {address}: {reason(error)}; {by_hand(address, path)}") from error
        os.replace(part, path)
    return path


def local_path(address, folder, name=None):
    """Where `fetch` keeps the file of `address`."""
    own = Path(urllib.parse.urlsplit(address).path).name or urllib.parse.urlsplit(address).netloc
    return Path(folder) / f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{name or own}"


def web_address(address):
    """The address of a file for a browser."""
    scheme, _, rest = address.partition("://")
    if scheme == "gdrive":
        return f"https://drive.google.com/file/d/{rest}/view"
    if scheme == "hf":
        owner, repository, file = rest.split("/", 2)
        return f"{_hub()}/{owner}/{repository}/resolve/main/{file}"
    return address


def by_hand(address, path):
    return f"open {web_address(address)} in a browser and save the file as {path}"


def reason(error):
    """Why a request failed, in one line."""
    if isinstance(error, requests.ConnectionError) and error.request is not None:
        return f"no connection to {urllib.parse.urlsplit(error.request.url).hostname}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def hash_in_name(address):
    """The first digits of the sha256 that a file name gives (NAME-0676ba61.pth), or None."""
    found = HASH_IN_NAME.search(Path(urllib.parse.urlsplit(address).path).name)
    return found and found[1]


def file_hash(path):
    """sha256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Failed(Exception):
    """A download that trying again does not help."""


class _Interrupted(Exception):
    """A download that trying again may help: the connection ended, the server is busy."""


INTERRUPTIONS = (
    _Interrupted,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


def _download(address, part):
    """Bring the file at `address` to `part`, going on from there after an interruption."""
    source = {"hf": _from_hub, "gdrive": _from_drive}.get(address.partition("://")[0], _from_web)
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            return source(address, part)
        except INTERRUPTIONS as error:
            last = error
    raise _Failed(f"{reason(last)} ({ATTEMPTS} attempts)")


def _from_web(address, part):
    """http(s), from where `part` ends if the server still has the same file (its tag is kept beside `part`)."""
    tag = part.with_name(f"{part.name}.tag")
    headers = {"Accept-Encoding": "identity"}
    if part.exists() and tag.exists():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text()}
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT) as response:
        answer = f"the server answers {response.status_code} {response.reason}"
        if response.status_code == 416:  # nothing lies beyond `part`: begin anew
            part.unlink()
            raise _Interrupted(answer)
        if response.status_code == 429 or response.status_code >= 500:
            raise _Interrupted(answer)
        if not response.ok:
            raise _Failed(answer)
        done = part.stat().st_size if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        if done == 0:
            part.unlink(missing_ok=True)
            tag.unlink(missing_ok=True)
            if (name := response.headers.get("ETag", "")).startswith('"'):  # a weak tag (W/"…") allows other bytes
                tag.write_text(name)
        progress = tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem[:40], leave=False)
        with progress, part.open("ab") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    if total not in (None, part.stat().st_size):
        raise _Interrupted(f"the connection ended after {part.stat().st_size} of {total} bytes")
    tag.unlink(missing_ok=True)


def _hub():
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _from_hub(address, part):
    """Hugging Face hub; its client resumes, with a progress bar, within the folder it works in."""
    owner, repository, file = address.removeprefix("hf://").split("/", 2)
    folder = part.with_name(f"{part.name}.hub")
    try:
        fetched = hf_hub_download(f"{owner}/{repository}", file, local_dir=folder, endpoint=_hub())
        os.replace(fetched, part)
    finally:
        if not any(half.stat().st_size for half in folder.rglob("*.incomplete")):
            shutil.rmtree(folder, ignore_errors=True)


def _from_drive(address, part):
    """Google Drive, through the page that asks for confirmation of large files; gdown resumes, with a progress bar."""
    try:
        gdown.download(id=address.removeprefix("gdrive://"), output=str(part), resume=True, use_cookies=False)
    except gdown.exceptions.FileURLRetrievalError as error:
        text = " ".join(str(error).split())
        raise _Failed("Google Drive's quota for it is used up today" if "Too many users" in text else text) from error
    except gdown.exceptions.DownloadError as error:
        raise _Interrupted(error) from error


def _web_page(path):
    """The title of the web page that lies at `path`, or None for any other file."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head.lstrip().lower().startswith(WEB_PAGE):
        return None
    title = re.search(rb"<title[^>]*>(.*?)</title>", head, re.IGNORECASE | re.DOTALL)
    return " ".join(title[1].decode("utf-8", "replace").split()) if title else "no title"


class Pins:
    """The lock file: {address: sha256 of its first verified download}, to be committed."""

    def __init__(self, path):
        self.path = Path(path)

    def check(self, address, sha256, path):
        """Raise UserError if the file at `path`, from `address`, is not the one that was first verified."""
        known = self._read().get(address, sha256)
        if known != sha256:
            raise UserError(
                f"{path} has sha256 {sha256}, but {address} had {known} when it was first verified: delete the file "
                f"and fetch it again, or, if its authors are known to have changed it, remove its line from {self.path}"
            )

    def add(self, address, sha256):
        """Pin a verified download. A folder that cannot be written to leaves it unpinned, with a warning."""
        if address in self._read():
            return
        try:
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                write_json(self.path, dict(sorted({**self._read(), address: sha256}.items())))
        except OSError as error:
            warnings.warn(f"the hash of {address} could not be pinned in {self.path}: {error}", stacklevel=2)

    def _read(self):
        try:
            return json.loads(self.path.read_text()) if self.path.exists() else {}
        except ValueError as error:
            raise UserError(
                f"{self.path} is not JSON ({error}): mend it, or take it from the repository again"
            ) from error


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    contents: dict  # nested dicts {str: dict or Tensor}
    sha256: str  # of the original file


def load(path):
    """Read a checkpoint file safely. A torch file is converted once to safetensors beside it and read from that then.

    The converted file knows the size, time and sha256 of its original: a changed original is converted anew.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return Checkpoint(read(path), file_hash(path))
    converted = path.with_name(f"{path.name}.safetensors")
    status = path.stat()
    try:
        with safe_open(converted, "pt") as file:
            facts = json.loads(file.metadata()["original"])
            same = (facts["size"], facts["time"]) == (status.st_size, status.st_mtime_ns)
            if same or facts["sha256"] == file_hash(path):
                contents = {}
                for name, places in facts["places"].items():
                    tensor = file.get_tensor(name)
                    for *parents, last in places:
                        part = contents
                        for key in parents:
                            part = part.setdefault(key, {})
                        part[last] = tensor
                return Checkpoint(contents, facts["sha256"])
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
        pass  # not converted yet, or damaged
    contents, sha256 = read(path), file_hash(path)
    _convert(contents, converted, {"sha256": sha256, "size": status.st_size, "time": status.st_mtime_ns})
    return Checkpoint(contents, sha256)


def _convert(contents, path, facts):
    """Write `contents` as safetensors, a tensor that lies in several places once, optimizer states not at all."""
    names, kept, places = {}, {}, {}
    for place, tensor in tensors(contents):
        if len(place) > 1 and place[0].startswith("optim"):
            continue
        same = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        name = names.setdefault(same, f"{len(names)}/{'/'.join(place)}")
        places.setdefault(name, []).append(place)
        kept.setdefault(name, tensor)
    metadata = {"original": json.dumps({**facts, "places": places})}
    with contextlib.suppress(OSError), atomic(path) as file:  # a folder that is read-only or full: read the original
        file.write(
            save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in kept.items()}, metadata)
        )


# --- finding and filling ---------------------------------------------------------------------------------------------


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
            raise UserError(f"{where} has no {' or '.join(map(repr, self.wrapper))} in it, but {_some(contents)}")
        state = {}
        for name, tensor in part.items():
            if not isinstance(tensor, torch.Tensor) or any(re.search(rule, name) for rule in self.ignore):
                continue
            for prefix in self.strip:
                name = name.removeprefix(prefix)
            for pattern, replacement in self.rename:
                name = re.sub(pattern, replacement, name)
            if name in state:
                raise UserError(f"{where} has two tensors that become {name!r} by its rules {self}")
            state[name] = tensor
        return state


def find(contents, network, where):
    """Return the part of `contents` that fits `network` once a prefix common to its names is taken off.

    Keys of nested dicts count as parts of the names, so wrappers are prefixes, too. Where several different parts fit
    (weights and their moving average), the first is taken, with a warning. Raises UserError with what came closest.
    """
    expected = network.state_dict()
    flat = {".".join(place): tensor for place, tensor in tensors(contents)}
    prefixes = collections.Counter(name[:i] for name in flat for i in _starts(name) if name[i:] in expected)
    candidates = {}
    for prefix, _ in prefixes.most_common(8):
        candidates[prefix] = {name.removeprefix(prefix): flat[name] for name in flat if name.startswith(prefix)}
    fitting = [prefix for prefix in candidates if not _differences(expected, candidates[prefix])]
    if not fitting:
        prefix, state = next(iter(candidates.items()), ("", flat))
        closest = f"the part under {prefix!r}" if prefix else "its names as they stand"
        raise UserError(_misfit(expected, state, f"{where}, of which {closest} came closest,"))
    first = next(prefix for prefix in dict.fromkeys(prefixes) if prefix in fitting)
    state = candidates[first]

    def differs(other):
        return any(not torch.equal(other[name], state[name]) for name in other.keys() & state.keys())

    others = [prefix for prefix in fitting if prefix != first and differs(candidates[prefix])]
    if others:
        warnings.warn(f"{where} holds several networks: {first!r} is taken, not {_some(others)}", stacklevel=2)
    return state


def fill(network, state, where):
    """Copy `state` into `network`, in place: every parameter and buffer, equal shapes, nothing left over.

    Only batch norm's counter of training steps may be missing, as in files from before it existed: nothing reads it in
    evaluation mode. Raises UserError with the first names of both sides; warns of weights that are not finite.
    """
    expected = network.state_dict()
    if _differences(expected, state):
        raise UserError(_misfit(expected, state, where))
    network.load_state_dict({**{name: expected[name] for name in expected if name not in state}, **state})
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        warnings.warn(f"{where} has weights that are not finite numbers: {_some(broken)}", stacklevel=2)


def _starts(name):
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def _differences(expected, state):
    """What keeps `state` from filling a network with the state dict `expected`: texts, none if it fits."""
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in expected]
    other = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = [
        f"{name} {state[name].dtype} instead of {tensor.dtype}"
        for name, tensor in expected.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    labelled = {"missing": missing, "left over": extra, "of another shape": other, "of another type": kinds}
    return [f"{len(names)} {label}: {_some(names)}" for label, names in labelled.items() if names]


def _misfit(expected, state, where):
    return f"{where} does not fit the network ({len(expected)} tensors); " + "; ".join(_differences(expected, state))


def _some(names, most=3):
    names = list(names)
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")

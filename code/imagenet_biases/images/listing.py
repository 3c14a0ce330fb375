"""Lists the image files under a folder or in archives, with their sizes and class numbers."""

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64

from imagenet_biases.base.arrays import open_arrays
from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.files import atomic
from imagenet_biases.base.schema import Malformed
from imagenet_biases.images.archives import ArchiveFolder, ArchiveMembers, shard_labels
from imagenet_biases.images.labels import (
    EXTENSIONS,
    UNREAD,
    flat_labels,
    possible_label_file,
    released_stem,
    wordnet_index,
)
from imagenet_biases.study import Declaration

THREADS = 16
CLOCK_TICK = 2_000_000_000  # ns: a folder may change twice within it and keep its time
Folder: TypeAlias = Path | ArchiveFolder


class ImageNames:
    """Images by name: relative paths and class numbers. All variants of a corrupted set share one object."""

    def __init__(self, files: Iterable[str], labels: Sequence[int] | np.ndarray) -> None:
        self.files, self.labels = tuple(files), np.asarray(labels, np.int64)

    @cached_property
    def keys(self) -> Int64[np.ndarray, " N"]:
        """A stable 63-bit number per image, from its class and its released file name without extension.

        An image has the same key in every layout, order and subset, so seeded noise does not depend on them.
        """
        return np.array([_key(label, file) for label, file in zip(self.labels, self.files, strict=True)], np.int64)


def _key(label: int, file: str) -> int:
    return (
        int.from_bytes(hashlib.blake2b(f"{label}/{released_stem(file)}".encode(), digest_size=8).digest(), "big") >> 1
    )


@dataclass(frozen=True, eq=False)
class Listing:
    """All images under a root, ordered by class folder and name.

    Attributes:
        root: a folder, or an archive with the folder in it.
        sizes: in bytes.
        members: where the images are in archives.
    """

    root: Path
    names: ImageNames
    sizes: Int64[np.ndarray, " N"]
    members: ArchiveMembers | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Relative paths."""
        return self.names.files

    @property
    def labels(self) -> Int64[np.ndarray, " N"]:
        """Class numbers."""
        return self.names.labels

    @property
    def beside(self) -> tuple[Path, ...]:
        """The folders on disk that may contain further files about the images."""
        return (self.root, self.root.parent) if self.members is None else (self.members.archives[0].parent,)


def class_of(folder: str, declared: Declaration) -> int | None:
    """Return the class number that a folder's name stands for, or None."""
    if declared.numbered and folder.isdecimal():
        return int(folder) if int(folder) < 1000 else None  # '7', '007': numbers, whatever their order as text
    return wordnet_index().get(folder)


def subfolders(folder: Folder) -> list[str]:
    """Return the names of a folder's subfolders, sorted."""
    if isinstance(folder, ArchiveFolder):
        return folder.subfolders()
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


class NoImages(UserError):
    """A folder contains no image set."""


def list_classes(
    name: str,
    top: Folder,
    declared: Declaration,
    stored: str | Path | None = None,
    label_file: str | Path | None = None,
) -> Listing:
    """List the images of the class folders in `top`, in its folder val, or in its only folder with class folders.

    Args:
        name: of the image set. ImageNet may also be one flat folder.
        top: where to look.
        declared: the set as study.py declares it.
        stored: a folder that stores listings of corrupted sets.
        label_file: a text file with the labels of a flat ImageNet folder.

    Raises:
        NoImages: there are no class folders.
        UserError: several folders have class folders, or one has folders that name no class.
    """
    folders = _candidates(top, declared)
    numbers: dict[Folder, dict[str, int | None]] = {}
    with_classes: list[Folder] = []
    for folder in folders:
        numbers[folder] = {name: class_of(name, declared) for name in subfolders(folder)}
        if set(numbers[folder].values()) - {None}:
            with_classes.append(folder)
    if len(with_classes) > 1 and with_classes[0] != top:
        raise UserError(f"{name}: class folders in {listed_briefly(map(str, with_classes))}; give one of them")
    if with_classes:
        root = with_classes[0]
        strange = [folder for folder, number in numbers[root].items() if number is None]
        if strange:
            raise UserError(
                f"{name}: folders under {root} that name no ImageNet class: {listed_briefly(strange)}; move them away"
            )
        return _listing(root, numbers[root], stored if declared.variants else None)
    if name == "imagenet":
        for root in folders:
            if _scan(root)[0]:
                return _flat_listing(root, top, label_file)
    raise NoImages(
        f"{name}: no folders named after {'class numbers' if declared.numbered else 'WordNet ids'} in {top} or its "
        f"folder val; give the folder that contains them with --{name.partition('/')[0]} DIR"
    )


def _candidates(top: Folder, declared: Declaration) -> list[Folder]:
    """Return the folders that may contain the class folders."""
    if declared.variants:
        return [top]
    names = subfolders(top)
    return [top, top / "val"] if "val" in names else [top, *(top / name for name in names)]


def list_labelled(root: Folder, label_of: Callable[[str], int]) -> Listing:
    """List the images at any depth below a folder; `label_of(relative path)` gives the class."""
    prefixes, queue = [], [""]
    while queue:
        prefix = queue.pop(0)
        prefixes.append(prefix)
        queue += [f"{prefix}{name}/" for name in subfolders(root / prefix.rstrip("/") if prefix else root)]
    files: list[str] = []
    scans: list[Any] = []
    for prefix in prefixes:
        names, *columns = _scan(root / prefix.rstrip("/") if prefix else root)
        files += [prefix + name for name in names]
        scans.append(columns)
    sizes, *places = map(np.concatenate, zip(*scans, strict=True))
    image_names = ImageNames(files, list(map(label_of, files)))
    if isinstance(root, ArchiveFolder):
        return Listing(root.display_path, image_names, sizes, ArchiveMembers(root.archives.paths, *places))
    return Listing(root, image_names, sizes)


def _scan(folder: Folder) -> tuple[Any, ...]:
    """Return the names of a folder's images, sorted, and their sizes; in archives also the archives and places.

    Raises UserError where one of them cannot be an image.
    """
    if isinstance(folder, ArchiveFolder):
        names, *columns = folder.scan()
        images = [i for i, name in enumerate(names) if name.lower().endswith(EXTENSIONS)]
        return [names[i] for i in images], *(column[images] for column in columns)
    names, sizes = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."):
                names.append(entry.name)
                sizes.append(size_of(entry))
    return names, np.array(sizes, np.int64)


def unread(root: Folder) -> list[str]:
    """Return the files below a folder that are images by their names, but of formats that are not read."""
    if isinstance(root, ArchiveFolder):
        return root.below(UNREAD)
    files: list[str] = []
    for folder, _, names in os.walk(root):
        files += [os.path.join(folder, name) for name in sorted(names) if name.lower().endswith(UNREAD)]
    return files


def size_of(entry: Path | os.DirEntry) -> int:
    """Return the size in bytes of an image, without opening it.

    Raises:
        UserError: it can never be read as an image: a pipe, a device, a folder, a broken link, a name that is not text.
    """
    path = os.fspath(entry)
    try:
        if not path.isascii():
            path.encode()
        status = entry.stat()
    except UnicodeEncodeError:
        raise UserError(f"the name of {path} is not UTF-8: rename it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be an image ({error.strerror}): remove it, or fix the link") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is called an image but is not a file: remove it")
    return status.st_size


def _listing(root: Folder, folders: dict[str, Any], stored: str | Path | None) -> Listing:
    """List class folders, {folder: class number}; a stored listing is valid until a class folder changes."""
    if isinstance(root, ArchiveFolder):
        names, *columns = zip(*(_scan(root / folder) for folder in folders), strict=True)
        sizes, numbers, places = map(np.concatenate, columns)
        members = ArchiveMembers(root.archives.paths, numbers, places)
        return Listing(root.display_path, _shared_names(folders, names), sizes, members)
    times = np.array(_in_parallel(lambda folder: os.stat(root / folder).st_mtime_ns, folders), np.int64)
    path = stored and Path(stored) / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.npz"
    listing = _read_listing(path, root, folders, times) if path else None
    if listing is not None:
        return listing
    names, sizes = zip(*_in_parallel(lambda folder: _scan(root / folder), folders), strict=True)
    listing = Listing(root, _shared_names(folders, names), np.concatenate(sizes))
    if path and times.max() < time.time_ns() - CLOCK_TICK:
        _store_listing(path, listing, folders, _text(folders, names), times)
    return listing


def _in_parallel(action: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Return what an action on each item gives; a shared file system answers many requests at once."""
    parts = np.array_split(
        np.array(list(items), object), THREADS
    )  # a task per item would cost more than a local answer
    results: list[Any] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for part in pool.map(lambda part: [action(item) for item in part], parts):
            results += part
    return results


# Names and stored listings --------------------------------------------------------------------------------------------


_names_by_text: dict[tuple[bytes, tuple[int, ...]], ImageNames] = {}  # by sha256 of the text, and class numbers


def _text(folders: Iterable[str], names: Iterable[Iterable[str]]) -> str:
    """Return folders and the names in them as one text: 'FOLDER/' NUL 'NAME' NUL 'NAME' NUL 'FOLDER/' ..."""
    words: list[str] = []
    for folder, files in zip(folders, names, strict=True):
        words += [f"{folder}/", *files]
    return "\0".join(words)


def _shared_names(folders: dict[str, int], names: Sequence[Sequence[str]]) -> ImageNames:
    """Return the ImageNames of class folders; equal ones are one object: the 145 corrupted sets have the same."""
    key = hashlib.sha256(_text(folders, names).encode()).digest(), tuple(folders.values())
    if key not in _names_by_text:
        paths: list[str] = []
        for folder, files in zip(folders, names, strict=True):
            paths += [f"{folder}/{file}" for file in files]
        labels = np.repeat(np.array([*folders.values()], np.int64), list(map(len, names)))
        _names_by_text[key] = ImageNames(paths, labels)
    return _names_by_text[key]


def _store_listing(path: Path, listing: Listing, folders: dict[str, int], text: str, times: np.ndarray) -> None:
    """Store a listing, and the names, which many listings share, in a file of their own."""
    digest = hashlib.sha256(text.encode()).digest()
    try:
        _stored_names(path.parent, digest, tuple(folders.items()))
    except (OSError, Malformed, KeyError):
        with atomic(_names_file(path.parent, digest)) as file:
            np.savez(file, text=np.frombuffer(text.encode(), np.uint8))
    integer = np.uint32 if listing.sizes.max(initial=0) < 1 << 32 else np.int64
    with atomic(path) as file:
        np.savez(file, names=np.frombuffer(digest, np.uint8), times=times, sizes=listing.sizes.astype(integer))


def _names_file(folder: Path, digest: bytes) -> Path:
    return folder / f"{digest.hex()[:24]}.names.npz"


def _read_listing(path: Path, root: Path, folders: dict[str, int], times: np.ndarray) -> Listing | None:
    """Return a stored listing; None where there is none, a folder has changed, or the file does not fit."""
    try:
        with open_arrays(path) as arrays:
            if not np.array_equal(arrays["times"], times):
                return None
            digest, sizes = arrays["names"].tobytes(), arrays["sizes"]
        names = _stored_names(path.parent, digest, tuple(folders.items()))
    except (OSError, Malformed, KeyError):
        return None
    if not names or sizes.shape != (len(names.files),) or sizes.dtype not in (np.dtype("u4"), np.dtype("i8")):
        return None
    return Listing(root, names, sizes.astype(np.int64)) if (sizes >= 0).all() else None


@cache
def _stored_names(folder: Path, digest: bytes, folders: tuple[tuple[str, int], ...]) -> ImageNames | None:
    """Return the ImageNames in the file with this checksum, None where they belong to other class folders."""
    with open_arrays(_names_file(folder, digest)) as arrays:
        text = arrays["text"].tobytes()
    if hashlib.sha256(text).digest() != digest:
        raise Malformed("names that do not fit their checksum")
    names: dict[str, list[str]] = {}
    files: list[str] = []
    for word in text.decode().split("\0"):
        if word.endswith("/"):
            files = names.setdefault(word[:-1], [])
        else:
            files.append(word)
    numbers = dict(folders)
    return _shared_names(numbers, list(names.values())) if list(names) == list(numbers) else None


def _flat_listing(root: Folder, top: Folder, label_file: str | Path | None) -> Listing:
    """List ImageNet validation as one flat folder, with the labels of meta.bin, the devkit or a text file.

    The order is that of the class folders' listing, so that both layouts have the same fingerprint.
    """
    names, sizes, *places = _scan(root)
    if isinstance(root, ArchiveFolder):
        folders = [root.beside]
        labels = shard_labels(names, root) or flat_labels(names, folders, label_file)
    else:
        folders = list(dict.fromkeys((Path(str(top)), root, root.parent)))
        labels = flat_labels(names, folders, label_file)
    if labels is None:
        candidate = possible_label_file(folders)
        raise UserError(
            f"imagenet: {root} holds images without folders and labels; put beside it ILSVRC2012_devkit_t12/ or "
            f"ILSVRC2012_devkit_t12.tar.gz or meta.bin (torchvision), or give a text file with two columns (file name, "
            f"and WordNet id or class number 0-999) with --imagenet-labels {candidate or 'FILE'}"
        )
    order = np.argsort(np.asarray(labels), kind="stable")
    image_names = ImageNames([names[i] for i in order], np.asarray(labels, np.int64)[order])
    if not isinstance(root, ArchiveFolder):
        return Listing(root, image_names, sizes[order])
    members = ArchiveMembers(root.archives.paths, *(column[order] for column in places))
    return Listing(root.display_path, image_names, sizes[order], members)

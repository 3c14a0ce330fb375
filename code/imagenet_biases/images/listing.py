"""Which image files lie under a folder or in archives, with their sizes and class numbers."""

import hashlib
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from imagenet_biases.base.arrays import open_arrays
from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.files import atomic
from imagenet_biases.base.schema import Malformed
from imagenet_biases.images.archives import LABEL_IN_ARCHIVE, Inside, Members, shard_labels
from imagenet_biases.images.labels import EXTENSIONS, flat_labels, wordnet_index

THREADS = 16


class Names:
    """Images by name: relative paths and class numbers. All variants of a corrupted set share one."""

    def __init__(self, files, labels):
        self.files, self.labels = tuple(files), np.asarray(labels, np.int64)

    @cached_property
    def keys(self):
        """A stable 63-bit number for each image, int64 [N], from its class and its file name without extension.

        The same image has the same key in every layout, order and subset, so seeded noise does not depend on them.
        """
        return np.array([_key(label, file) for label, file in zip(self.labels, self.files, strict=True)], np.int64)


def _key(label, file):
    stem = os.path.splitext(os.path.basename(file))[0]
    return int.from_bytes(hashlib.blake2b(f"{label}/{stem}".encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, eq=False)
class Listing:
    """All images found under a root, in order: by class folder and name. Sizes are in bytes, int64 [N].

    `root` is a folder, or an archive with the folder in it; `members` says where in archives the images lie.
    """

    root: Path
    names: Names
    sizes: np.ndarray
    members: Members | None = None

    @property
    def files(self):
        """Relative paths."""
        return self.names.files

    @property
    def labels(self):
        """Class numbers, int64 [N]."""
        return self.names.labels

    @property
    def beside(self):
        """The folders on disk where further files about the images may lie."""
        return (self.root, self.root.parent) if self.members is None else (self.members.archives[0].parent,)


def class_of(folder, declared):
    """Return the class number that a folder's name says, or None."""
    if declared.numbered and folder.isdecimal():
        return int(folder) if int(folder) < 1000 else None  # '7', '007': read as numbers, whatever their order as text
    return wordnet_index().get(folder)


def subfolders(folder):
    """Return the names of a folder's folders, sorted; `folder` is a Path or Inside archives."""
    if isinstance(folder, Inside):
        return folder.subfolders()
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


class NoImages(UserError):
    """A folder holds no image set."""


def list_classes(name, top, declared, keep=None):
    """List the images of the class folders under `top` (or its folder val, or its only folder with class folders)."""
    folders = [top]
    if not declared.variants:
        below = subfolders(top)
        folders += [top / "val"] if "val" in below else [top / folder for folder in below]
    with_classes = [f for f in folders if any(class_of(sub, declared) is not None for sub in subfolders(f))]
    if with_classes and with_classes[0] != top and len(with_classes) > 1:
        raise UserError(f"{name}: class folders in {listed_briefly(map(str, with_classes))}; give one of them")
    if with_classes:
        root = with_classes[0]
        strange = [sub for sub in subfolders(root) if class_of(sub, declared) is None]
        if strange:
            raise UserError(
                f"{name}: folders under {root} that name no ImageNet class: {listed_briefly(strange)}; move them away"
            )
        return _listing(
            root, {sub: class_of(sub, declared) for sub in subfolders(root)}, keep if declared.variants else None
        )
    if name == "imagenet":
        for root in folders:
            if _scan(root)[0]:
                return _flat_listing(root, top)
    raise NoImages(
        f"{name}: no folders named after {'class numbers' if declared.numbered else 'WordNet ids'} in {top} or its "
        f"folder val; give the folder that holds them with --{name.partition('/')[0]} DIR"
    )


def list_labelled(root, label_of):
    """List the images at any depth below a folder (or Inside archives); `label_of(relative path)` gives the class."""
    folders, todo = [], [""]
    while todo:
        folder = todo.pop(0)
        folders.append(folder)
        todo += [f"{folder}{name}/" for name in subfolders(root / folder.rstrip("/") if folder else root)]
    names, *columns = zip(*(_scan(root / folder.rstrip("/") if folder else root) for folder in folders), strict=True)
    files = [f"{folder}{name}" for folder, inside in zip(folders, names, strict=True) for name in inside]
    named, (sizes, *inside) = Names(files, [label_of(file) for file in files]), map(np.concatenate, columns)
    if isinstance(root, Inside):
        return Listing(root.where, named, sizes, Members(root.archives.paths, *inside))
    return Listing(root, named, sizes)


def _scan(folder):
    """Return the names of a folder's images, sorted, and their sizes; in archives also which archive, and where.

    Raises UserError where one of them cannot be an image.
    """
    if isinstance(folder, Inside):
        names, *columns = folder.scan()
        images = [i for i, name in enumerate(names) if not name.endswith(LABEL_IN_ARCHIVE)]
        return [names[i] for i in images], *(column[images] for column in columns)
    with os.scandir(folder) as entries:
        images = [e for e in entries if e.name.lower().endswith(EXTENSIONS) and not e.name.startswith(".")]
    images.sort(key=lambda entry: entry.name)
    return [entry.name for entry in images], np.array([size_of(entry) for entry in images], np.int64)


def size_of(entry):
    """Return the size in bytes of an image (a Path or a directory's entry), which is not opened.

    Raises UserError for what can never be read as one: a pipe, a device, a folder, a link that leads nowhere, a name
    that is not text.
    """
    path = os.fspath(entry)
    try:
        if not path.isascii():
            path.encode()
        status = entry.stat()
    except UnicodeEncodeError:
        raise UserError(f"the name of {path} is not UTF-8: rename it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be an image ({error.strerror}): remove it, or mend the link") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is called an image but is no file: remove it")
    return status.st_size


def _listing(root, folders, keep):
    """List class folders, {folder: class number}; in a folder `keep` the listing stays until a class folder changes."""
    if isinstance(root, Inside):
        names, *columns = zip(*(_scan(root / folder) for folder in folders), strict=True)
        sizes, numbers, places = map(np.concatenate, columns)
        return Listing(root.where, _named(folders, names), sizes, Members(root.archives.paths, numbers, places))
    times = np.array(_side_by_side(lambda folder: os.stat(root / folder).st_mtime_ns, folders), np.int64)
    kept = keep and Path(keep) / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.npz"
    listing = _read_listing(kept, root, folders, times) if kept else None
    if listing is not None:
        return listing
    names, sizes = zip(*_side_by_side(lambda folder: _scan(root / folder), folders), strict=True)
    listing = Listing(root, _named(folders, names), np.concatenate(sizes))
    # a folder that changed a moment ago may change again within the clock's tick: do not trust its time yet
    if kept and times.max() < time.time_ns() - 2_000_000_000:
        _keep_listing(kept, listing, folders, _text(folders, names), times)
    return listing


def _side_by_side(action, items):
    """Return what an action on each item gives; a shared file system answers many questions at once."""
    parts = np.array_split(np.array(list(items), object), THREADS)  # a task an item would cost more than a local answer
    with ThreadPoolExecutor(THREADS) as pool:
        return [one for done in pool.map(lambda part: [action(item) for item in part], parts) for one in done]


# Names and kept listings ----------------------------------------------------------------------------------------------


_known = {}  # {(sha256 of the text, class numbers): Names}


def _text(folders, names):
    """Return folders and the names in them as one text: 'FOLDER/' NUL 'NAME' NUL 'NAME' NUL 'FOLDER/' ..."""
    return "\0".join(one for folder, files in zip(folders, names, strict=True) for one in (f"{folder}/", *files))


def _named(folders, names):
    """Return the Names of class folders; equal ones are one object: the 145 corrupted sets have the same."""
    key = hashlib.sha256(_text(folders, names).encode()).digest(), tuple(folders.values())
    if key not in _known:
        files = [f"{folder}/{name}" for folder, inside in zip(folders, names, strict=True) for name in inside]
        _known[key] = Names(files, np.repeat(np.array([*folders.values()], np.int64), [len(one) for one in names]))
    return _known[key]


def _keep_listing(kept, listing, folders, text, times):
    """Keep a listing: the names, which many listings share, in a file of their own."""
    digest = hashlib.sha256(text.encode()).digest()
    try:
        _kept_names(kept.parent, digest, tuple(folders.items()))
    except (OSError, Malformed, KeyError):
        with atomic(_names_file(kept.parent, digest)) as file:
            np.savez(file, text=np.frombuffer(text.encode(), np.uint8))
    small = np.uint32 if listing.sizes.max(initial=0) < 1 << 32 else np.int64
    with atomic(kept) as file:
        np.savez(file, names=np.frombuffer(digest, np.uint8), times=times, sizes=listing.sizes.astype(small))


def _names_file(folder, digest):
    return folder / f"{digest.hex()[:24]}.names.npz"


def _read_listing(path, root, folders, times):
    """Return a kept listing; None where there is none, or a folder has changed, or it does not fit."""
    try:
        with open_arrays(path) as kept:
            if not np.array_equal(kept["times"], times):
                return None
            digest, sizes = kept["names"].tobytes(), kept["sizes"]
        names = _kept_names(path.parent, digest, tuple(folders.items()))
    except (OSError, Malformed, KeyError):
        return None
    fits = names and sizes.shape == (len(names.files),) and sizes.dtype in (np.dtype("u4"), np.dtype("i8"))
    return Listing(root, names, sizes.astype(np.int64)) if fits and (sizes >= 0).all() else None


@cache
def _kept_names(folder, digest, folders):
    """Return the Names that a file of this checksum holds, None where they are not of these class folders."""
    with open_arrays(_names_file(folder, digest)) as kept:
        text = kept["text"].tobytes()
    if hashlib.sha256(text).digest() != digest:
        raise Malformed("names that do not fit their checksum")
    names = {}
    for one in text.decode().split("\0"):
        if one.endswith("/"):
            inside = names.setdefault(one[:-1], [])
        else:
            inside.append(one)
    return _named(dict(folders), list(names.values())) if list(names) == [name for name, _ in folders] else None


def _flat_listing(root, top):
    """List ImageNet validation as one flat folder; labels from meta.bin + ground truth, the devkit, or a text file.

    In the order of the class folders' listing, so that both layouts have the same fingerprint.
    """
    names, sizes, *places = _scan(root)
    if isinstance(root, Inside):
        labels = shard_labels(names, root) or flat_labels(names, [root.beside])
    else:
        labels = flat_labels(names, list(dict.fromkeys((top, root, root.parent))))
    if labels is None:
        raise UserError(
            f"imagenet: {root} holds images without folders and labels; put beside it ILSVRC2012_devkit_t12/ or "
            f"ILSVRC2012_devkit_t12.tar.gz, meta.bin (torchvision), or a text file with two columns: file name, and "
            f"WordNet id or class number 0-999"
        )
    order = np.lexsort((np.arange(len(names)), labels))
    names = Names([names[i] for i in order], np.asarray(labels, np.int64)[order])
    if not isinstance(root, Inside):
        return Listing(root, names, sizes[order])
    return Listing(root.where, names, sizes[order], Members(root.archives.paths, *(one[order] for one in places)))

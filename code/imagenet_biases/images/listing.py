"""Which image files lie under a folder, with their sizes and class numbers."""

import hashlib
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagenet_biases.arrays import open_arrays
from imagenet_biases.errors import UserError, some
from imagenet_biases.files import atomic
from imagenet_biases.images.labels import EXTENSIONS, flat_labels, wordnet_index
from imagenet_biases.schema import Malformed


@dataclass(frozen=True)
class Listing:
    """All images found under a root: relative paths (sorted), sizes in bytes, and class numbers."""

    root: Path
    files: tuple[str, ...]
    sizes: np.ndarray
    labels: np.ndarray


def class_of(folder, declared):
    """Return the class number that a folder's name says, or None."""
    if declared.numbered and folder.isdecimal():
        return int(folder) if int(folder) < 1000 else None  # '7', '007': read as numbers, whatever their order as text
    return wordnet_index().get(folder)


def _subfolders(folder):
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def list_classes(name, top, declared, keep=None):
    """List the images of the class folders under `top` (or its folder val, or its only folder with class folders)."""
    folders = [top]
    if not declared.variants:
        below = _subfolders(top)
        folders += [top / "val"] if "val" in below else [top / folder for folder in below]
    with_classes = [f for f in folders if any(class_of(sub, declared) is not None for sub in _subfolders(f))]
    if with_classes and with_classes[0] != top and len(with_classes) > 1:
        raise UserError(f"{name}: class folders in {some(map(str, with_classes))}; give one of them")
    if with_classes:
        root = with_classes[0]
        strange = [sub for sub in _subfolders(root) if class_of(sub, declared) is None]
        if strange:
            raise UserError(
                f"{name}: folders under {root} that name no ImageNet class: {some(strange)}; move them away"
            )
        return _listing(
            root, {sub: class_of(sub, declared) for sub in _subfolders(root)}, keep if declared.variants else None
        )
    if name == "imagenet":
        for root in folders:
            if any(entry.name.lower().endswith(EXTENSIONS) for entry in os.scandir(root)):
                return _flat_listing(root, top)
    raise UserError(
        f"{name}: no folders named after {'class numbers' if declared.numbered else 'WordNet ids'} in {top} or its "
        f"folder val; give the folder that holds them with --{name.partition('/')[0]} DIR"
    )


def _scan(folder):
    """Return [(name, size)] of a folder's images, sorted. Raises UserError where one of them cannot be one."""
    with os.scandir(folder) as entries:
        images = [e for e in entries if e.name.lower().endswith(EXTENSIONS) and not e.name.startswith(".")]
    return sorted((entry.name, size_of(entry)) for entry in images)


def size_of(entry):
    """Return the size in bytes of an image (a Path or a directory's entry), which is not opened.

    Raises UserError for what can never be read as one: a pipe, a device, a folder, a link that leads nowhere, a name
    that is not text.
    """
    path = os.fspath(entry)
    try:
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
    times = np.array([os.stat(root / folder).st_mtime_ns for folder in folders], np.int64)
    kept = keep and Path(keep) / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.npz"
    columns = _read_listing(kept, list(folders), times) if kept else None
    if columns is None:
        with ThreadPoolExecutor(16) as pool:
            scanned = list(pool.map(lambda f: _scan(root / f), folders))
        columns = {
            "files": np.array(
                [f"{folder}/{file}" for folder, files in zip(folders, scanned, strict=True) for file, _ in files]
            ),
            "sizes": np.array([size for files in scanned for _, size in files], np.int64),
            "counts": np.array([len(files) for files in scanned], np.int64),
        }
        # a folder that changed a moment ago may change again within the clock's tick: do not trust its time yet
        if kept and len(times) and times.max() < time.time_ns() - 2_000_000_000:
            with atomic(kept) as file:
                np.savez(file, folders=np.array(list(folders)), times=times, **columns)
    labels = np.repeat(np.array(list(folders.values()), np.int64), columns["counts"])
    return _ordered(root, columns["files"].tolist(), columns["sizes"], labels)


def _read_listing(path, folders, times):
    """Return the columns of a kept listing; None where there is none, or a folder has changed, or it does not fit."""
    try:
        with open_arrays(path) as kept:
            if kept["folders"].tolist() != folders or not np.array_equal(kept["times"], times):
                return None
            files, sizes, counts = (kept[column] for column in ("files", "sizes", "counts"))
    except (OSError, Malformed, KeyError):
        return None
    fits = counts.shape == (len(folders),) and files.shape == sizes.shape == (counts.sum(),) and (counts >= 0).all()
    kinds = files.dtype.kind == "U" and {counts.dtype.str, sizes.dtype.str} == {"<i8"}
    return {"files": files, "sizes": sizes, "counts": counts} if fits and kinds else None


_shared_names = {}


def _ordered(root, files, sizes, labels):
    order = sorted(range(len(files)), key=files.__getitem__)
    names = tuple(files[i] for i in order)
    # the 145 corrupted sets have the same names: one copy of them is enough
    names = _shared_names.setdefault(names, names)
    return Listing(root, names, np.asarray(sizes, np.int64)[order], np.asarray(labels, np.int64)[order])


def _flat_listing(root, top):
    """List ImageNet validation as one flat folder; labels from meta.bin + ground truth, the devkit, or a text file."""
    files = _scan(root)
    names = [name for name, _ in files]
    labels = flat_labels(names, list(dict.fromkeys((top, root, root.parent))))
    if labels is None:
        raise UserError(
            f"imagenet: {root} is a flat folder of images without labels; put beside it meta.bin (torchvision), "
            f"ILSVRC2012_devkit_t12/, or a text file with two columns: file name, and WordNet id or class number 0-999"
        )
    return _ordered(root, names, [size for _, size in files], labels)

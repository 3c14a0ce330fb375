"""Image sets as they are downloaded: tar and parquet files that are read without being unpacked.

An index says of every image where in which archive it lies. It is made once, by reading the headers, and kept. Nothing
is ever written under a name that an archive gives; an archive with a name that could lead elsewhere is refused anyway,
because it is not what it claims to be.
"""

import contextlib
import hashlib
import itertools
import os
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from imagenet_biases.base.arrays import open_arrays
from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.files import atomic, open_file
from imagenet_biases.base.schema import Malformed
from imagenet_biases.images.labels import EXTENSIONS
from imagenet_biases.study import wordnet_ids

READ = (".tar", ".parquet")
COMPRESSED = {
    (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"): "tar -xf {file} -C {folder}",
    (".zip",): "unzip -q {file} -d {folder}",
}  # these can only be read from their beginning
OTHER_SPLITS = re.compile(r"(^|[^a-z])(train|test|devkit)([^a-z]|$)", re.IGNORECASE)
LABEL_IN_ARCHIVE = ".cls"  # in WebDataset's shards: KEY.cls beside KEY.jpg
BLOCK = 512  # bytes: tar files consist of such blocks
LONGEST_IMAGE = 1 << 28  # bytes
LONGEST_NAME = 1 << 20


def archives_in(folder):
    """Return the archives of images in a folder, sorted; those whose names say another split are left out."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix in READ and not path.name.startswith(".")]
    return [path for path in found if path.is_file() and not OTHER_SPLITS.search(path.name)]


def unpacking(paths):
    """Return the command that unpacks the first compressed archive among paths, or None where there is none."""
    for path in map(Path, paths):
        for endings, line in COMPRESSED.items():
            ending = next((one for one in endings if path.name.lower().endswith(one)), None)
            if ending and not OTHER_SPLITS.search(path.name):
                folder = shlex.quote(str(path)[: -len(ending)])
                return f"mkdir -p {folder} && {line.format(file=shlex.quote(str(path)), folder=folder)}"
    return None


# What an archive holds ------------------------------------------------------------------------------------------------


def _tar_members(path):
    """Yield (name, place in bytes, size) of the images in a tar file; raises UserError where it is not a whole one."""
    with open_file(path) as file:
        handle = file.fileno()
        end = os.fstat(handle).st_size
        if hasattr(os, "posix_fadvise"):  # between two headers lies an image that is not wanted now
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
        at, further, last = 0, {}, "its beginning"
        while True:
            block = os.pread(handle, BLOCK, at)
            if len(block) < BLOCK:
                raise UserError(f"{path} is cut short: it ends after {last}; fetch it again")
            if block.count(0) == BLOCK:
                return
            kind, size = block[156:157], _octal(block[124:136])
            if size is None or _octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
                raise UserError(f"{path} is damaged, or no tar file, after {last} (byte {at:,}); fetch it again")
            size = further.get("size", size)
            place, at = at + BLOCK, at + BLOCK + -(-size // BLOCK) * BLOCK
            if place + size > end:
                raise UserError(f"{path} is cut short: it ends after {last}, {place + size - end:,} bytes are missing")
            if kind in b"LKxg":  # a long name, or pax's records, of the member that follows
                if size > LONGEST_NAME:
                    raise UserError(f"{path} has a name of {size:,} bytes after {last}; fetch it again")
                data = os.pread(handle, size, place)
                further |= _pax(data, path, last) if kind == b"x" else {"name": data} if kind == b"L" else {}
                continue
            name = further.get("name") or _header_name(block)
            further = {}
            with contextlib.suppress(UnicodeDecodeError):  # of an image's it is said below
                last = name.rstrip(b"\0").decode()
            name = _safe_name(name.rstrip(b"\0"), path)
            if name is None or kind == b"5":
                continue
            if kind not in (b"0", b"\0", b"7"):
                raise UserError(f"{path}: {name} is called an image but is a link, a device or sparse; fetch it again")
            yield name, place, size


def _octal(field):
    """Return the number in a tar header's field, None for what is none; large ones are written in base 256."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None  # 0xff: negative
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else None


def _header_name(block):
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(data, path, last):
    """Return the name and the size that pax's records ('LENGTH KEY=VALUE\\n') give to the next member."""
    found = {}
    while data:
        length, blank, _ = data[:20].partition(b" ")
        length = int(length) if blank and length.isdigit() else 0
        key, equals, value = data[:length].partition(b" ")[2].removesuffix(b"\n").partition(b"=")
        if not equals or length > len(data) or (key == b"size" and not value.isdigit()):
            raise UserError(f"{path} is damaged after {last}; fetch it again")
        if key == b"path":
            found["name"] = value
        elif key == b"size":
            found["size"] = int(value[:20])
        elif key.startswith(b"GNU.sparse"):
            raise UserError(f"{path} has sparse files; unpack it")
        data = data[length:]
    return found


def _safe_name(name, path):
    """Return the name of an image (or of a label, in shards) as text, None for all else; UserError for a bad one."""
    if not name.lower().endswith((*(one.encode() for one in EXTENSIONS), LABEL_IN_ARCHIVE.encode())):
        return None
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: the name of {name!r} is not UTF-8; fetch it again") from None
    parts = [part for part in text.split("/") if part != "."]
    if "" in parts or ".." in parts or "\0" in text:
        raise UserError(f"{path} is refused: {text!r} is no name of a file within a folder; fetch it again")
    return None if any(part.startswith(".") for part in parts) else "/".join(parts)


def _parquet_members(path):
    """Yield (class folder/name, row, size) of the images in a parquet file of a Hugging Face set.

    Its columns: `image`, a struct of bytes and path, and `label`, the class number in the standard order.
    """
    row = 0
    with _parquet(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, ["image", "label"], use_threads=False)
            images = table["image"].combine_chunks()
            sizes = [None if one is None else len(one) for one in images.field("bytes").to_pylist()]
            for name, size, label in zip(
                images.field("path").to_pylist(), sizes, table["label"].to_pylist(), strict=True
            ):
                if name is None or size is None or type(label) is not int or not 0 <= label < 1000:
                    raise UserError(f"{path}: row {row} has no name, no image or no class 0-999; fetch it again")
                # ImageNet's are called ILSVRC2012_val_00000001_n01751748.JPEG there
                released = re.fullmatch(r"(ILSVRC2012_val_\d{8})_(n\d{8})(\.\w+)", os.path.basename(name))
                wnid = wordnet_ids()[label]
                if released and released[2] != wnid:
                    raise UserError(f"{path}: row {row} is {name}, but its label says {wnid}; fetch it again")
                base = released[1] + released[3] if released else os.path.basename(name)
                if checked := _safe_name(f"{wnid}/{base}".encode("utf-8", "surrogatepass"), path):
                    yield checked, row, size
                row += 1


@contextlib.contextmanager
def _parquet(path):
    """Yield a pyarrow ParquetFile; on damaged files the reader raises all kinds of errors."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"to read {path} pyarrow is needed: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield file
    except UserError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as images with labels ({reason}); fetch it again") from None


# The index ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Index:
    """The images of one archive by folder: {folder: (number of its list of names, first, count)}.

    Folders and names are sorted. Equal lists of names (those of a class in the corrupted sets) are there once.
    """

    folders: dict
    lists: list  # texts: names separated by NUL
    sizes: np.ndarray  # int64 [N], bytes
    places: np.ndarray  # int64 [N]: byte or row


def _index(path):
    """Make the index of an archive, from its headers. Raises UserError for a damaged or dishonest one."""
    by_folder = {}
    try:
        for name, place, size in _parquet_members(path) if path.suffix == ".parquet" else _tar_members(path):
            folder, _, base = name.rpartition("/")
            by_folder.setdefault(folder, []).append((base, place, size))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend it or move it away") from None
    folders, lists, sizes, places = {}, {}, [], []
    for folder in sorted(by_folder):
        members = sorted(by_folder.pop(folder))
        names = [base for base, _, _ in members]
        _refuse_double(names, f"{path}/{folder}")
        text = "\0".join(names)
        folders[folder] = (lists.setdefault(text, len(lists)), len(sizes), len(names))
        places += [place for _, place, _ in members]
        sizes += [size for _, _, size in members]
    return Index(folders, list(lists), np.array(sizes, np.int64), np.array(places, np.int64))


def _refuse_double(names, where):
    """`names`: sorted."""
    double = [one for one, two in itertools.pairwise(names) if one == two]
    if double:
        raise UserError(f"{where} has {listed_briefly(double)} twice; fetch it again, or leave one of the archives out")


def _kept_index(path, size, time, keep):
    """Return the index of an archive of this size and time, from the folder `keep` where it is there."""
    kept = keep and Path(keep) / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]}.index.npz"
    stamp = np.array([size, time], np.int64)
    index = _read_index(kept, stamp) if kept else None
    if index is None:
        index = _index(path)
        if kept:
            columns = np.array(list(index.folders.values()), np.int64).reshape(-1, 3)
            texts = {"folders": "\0".join(index.folders), "lists": "/".join(index.lists)}
            with atomic(kept) as file:
                np.savez(
                    file, stamp=stamp, columns=columns, sizes=index.sizes, places=index.places,
                    **{name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()},
                )  # fmt: skip
    return index


def _read_index(path, stamp):
    """Return a kept index; None where there is none, or it is another archive's, or damaged."""
    try:
        with open_arrays(path) as kept:
            if not np.array_equal(kept["stamp"], stamp):
                return None
            columns, sizes, places = (kept[name] for name in ("columns", "sizes", "places"))
            folders, lists = (kept[name].tobytes().decode() for name in ("folders", "lists"))
    except (OSError, Malformed, KeyError, UnicodeDecodeError):
        return None
    folders, lists = folders.split("\0") if len(columns) else [], lists.split("/")
    if (
        columns.dtype != np.int64
        or columns.shape != (len(folders), 3)
        or {sizes.dtype, places.dtype} != {columns.dtype}
    ):
        return None
    ends = columns[:, 1:].sum(axis=1)
    counts = np.array([text.count("\0") + 1 for text in lists])
    fits = (
        sizes.shape == places.shape == (columns[:, 2].sum(),)
        and (columns >= 0).all()
        and (columns[:, 0] < len(lists)).all()
        and (counts[columns[:, 0]] == columns[:, 2]).all()
        and (ends <= len(sizes)).all()
    )
    return Index(dict(zip(folders, map(tuple, columns.tolist()), strict=True)), lists, sizes, places) if fits else None


# The archives of a set as folders -------------------------------------------------------------------------------------


def archives(paths, keep=None):
    """Return the Archives of these paths; their indexes are kept in a folder `keep`."""
    stamps = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); mend it or move it away") from None
        stamps.append((status.st_size, status.st_mtime_ns))
    return _archives(paths, tuple(stamps), keep)


@lru_cache(maxsize=16)
def _archives(paths, stamps, keep):
    with ThreadPoolExecutor(len(paths)) as pool:  # on a shared file system reading headers is mostly waiting
        indexes = list(pool.map(lambda path, stamp: _kept_index(path, *stamp, keep), paths, stamps))
    return Archives(paths, indexes)


class Archives:
    """Several archives as one tree of folders; `children`: {folder: the names of its folders}."""

    def __init__(self, paths, indexes):
        self.paths, self.indexes, self.children = paths, indexes, {}
        for folder in (folder for index in indexes for folder in index.folders):
            while folder:
                above, _, name = folder.rpartition("/")
                below = self.children.setdefault(above, set())
                if name in below:
                    break
                below.add(name)
                folder = above

    @property
    def root(self):
        """The archive, or the folder of several."""
        return self.paths[0] if len(self.paths) == 1 else Path(os.path.commonpath(self.paths))


@dataclass(frozen=True)
class Inside:
    """A folder in archives; what listing a set asks of a folder on disk."""

    archives: Archives
    path: str = ""

    def __truediv__(self, name):
        return Inside(self.archives, f"{self.path}/{name}" if self.path else name)

    def __str__(self):
        return str(self.where)

    @property
    def where(self):
        """A Path that names the folder in messages; it does not exist on disk."""
        return self.archives.root / self.path

    @property
    def beside(self):
        """The folder on disk in which the (first) archive lies: labels and manifests are there."""
        return self.archives.paths[0].parent

    def is_dir(self):
        """Whether the archives have the folder."""
        return self.path in self.archives.children or any(self.path in one.folders for one in self.archives.indexes)

    def subfolders(self):
        """Return the names of its folders, sorted."""
        return sorted(self.archives.children.get(self.path, ()))

    def scan(self):
        """Return the names of its files (sorted), their sizes in bytes, and which archive and where in it they are."""
        names, columns = [], []
        for number, index in enumerate(self.archives.indexes):
            chosen, first, count = index.folders.get(self.path, (0, 0, 0))
            if count:
                names += index.lists[chosen].split("\0")
                part = slice(first, first + count)
                columns.append([index.sizes[part], np.full(count, number), index.places[part]])
        columns = np.concatenate(columns, axis=1) if columns else np.zeros((3, 0), np.int64)
        if sum(self.path in index.folders for index in self.archives.indexes) > 1:
            order = sorted(range(len(names)), key=names.__getitem__)
            names, columns = [names[i] for i in order], columns[:, order]
            _refuse_double(names, str(self))
        return names, *columns


# Reading --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Members:
    """Where in archives the images of a listing lie."""

    archives: tuple[Path, ...]
    numbers: np.ndarray  # [N]: in which of them
    places: np.ndarray  # int64 [N]: byte of a tar file, row of a parquet file


class Opened:
    """The archives of a listing; each is opened when it is first read. One a process."""

    def __init__(self, members):
        self.members, self.sources = members, {}

    def read(self, position, size):
        """Return the bytes of the image at a position of the listing. Raises OSError or UserError."""
        if size > LONGEST_IMAGE:
            raise OSError(f"longer than {LONGEST_IMAGE:,} bytes")
        path = self.members.archives[self.members.numbers[position]]
        if path not in self.sources:
            self.sources[path] = (_Parquet if path.suffix == ".parquet" else _Tar)(path)
        return self.sources[path].read(int(self.members.places[position]), size)

    def time(self, position):
        """Return the time of the archive of the image at a position, in ns."""
        return self.members.archives[self.members.numbers[position]].stat().st_mtime_ns


class _Tar:
    def __init__(self, path):
        self.file = open_file(path)

    def read(self, place, size):
        data = os.pread(self.file.fileno(), size, place)
        if len(data) < size:
            raise OSError("the archive ends within it")
        return data


class _Parquet:
    """Rows are compressed in groups; the last group read is kept."""

    def __init__(self, path):
        self.path, self.group, self.images = path, None, None
        with _parquet(path) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.firsts = np.cumsum([0, *rows])

    def read(self, place, size):
        group = int(np.searchsorted(self.firsts, place, "right")) - 1
        if group != self.group:
            with _parquet(self.path) as file:
                table = file.read_row_group(group, ["image.bytes"], use_threads=False)
                self.group, self.images = group, table["image"].combine_chunks().field("bytes")
        data = self.images[place - int(self.firsts[group])].as_py()
        if len(data) != size:
            raise OSError("the archive has changed")
        return data


def shard_labels(names, folder):
    """Return the class numbers that WebDataset's shards give beside the images, KEY.cls; None where there are none.

    `names`: images in a folder of archives (archives.Inside).
    """
    files, sizes, numbers, places = folder.scan()
    where = {os.path.splitext(file)[0]: i for i, file in enumerate(files) if file.endswith(LABEL_IN_ARCHIVE)}
    if not where:
        return None
    opened, labels = Opened(Members(folder.archives.paths, numbers, places)), []
    for name in names:
        if (position := where.get(os.path.splitext(name)[0])) is None:
            raise UserError(f"{folder}: there is no label {LABEL_IN_ARCHIVE} for {name}; fetch the shard again")
        text = opened.read(position, min(int(sizes[position]), 20)).strip()
        if not text.isdigit() or len(text) > 4 or int(text) > 999:
            raise UserError(f"{folder}: the label of {name} is {text!r}, no class number 0-999; fetch the shard again")
        labels.append(int(text))
    return labels

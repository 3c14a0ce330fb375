"""Image sets as downloaded: tar and parquet files, read without unpacking.

An index gives the archive and position of every image; it is built once, from the headers, and stored. Nothing is ever
written under a name from an archive; an archive with a name that leads out of its folder is refused anyway, because it
is not what it claims to be.
"""

import contextlib
import hashlib
import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64

from imagenet_biases.base.arrays import open_arrays
from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.files import atomic, demand_content, open_file
from imagenet_biases.base.schema import Malformed
from imagenet_biases.images.labels import EXTENSIONS, UNREAD
from imagenet_biases.study import wordnet_ids

READ = (".tar", ".parquet")
COMPRESSED = {
    (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"): "tar -xf {file} -C {folder}",
    (".zip",): "unzip -q {file} -d {folder}",
}  # these have no random access
OTHER_SPLITS = re.compile(r"(^|[^a-z])(train|test|devkit)([^a-z]|$)", re.IGNORECASE)
LABEL_IN_ARCHIVE = ".cls"  # in WebDataset shards: KEY.cls beside KEY.jpg
ENDINGS = tuple(ending.encode() for ending in (*EXTENSIONS, *UNREAD, LABEL_IN_ARCHIVE))
INDEX_VERSION = 2  # of what is indexed
BLOCK = 512  # bytes: tar files consist of such blocks
LONGEST_IMAGE = 1 << 28  # bytes
LONGEST_NAME = 1 << 20
Member: TypeAlias = tuple[str, int, int]  # name, place (byte or row), size
ByteCounts: TypeAlias = Int64[np.ndarray, " N"]


def archives_in(folder: Path) -> list[Path]:
    """Return the image archives in a folder, sorted, without those named after another split."""
    return [path for path in _all_archives(folder) if not OTHER_SPLITS.search(path.name)]


def other_splits(folder: Path) -> list[Path]:
    """Return the archives in a folder that are named after a test split, sorted; they may be meant all the same."""
    paths = _all_archives(folder)
    return [path for path in paths if OTHER_SPLITS.search(path.name) and "test" in path.name.lower()]


def _all_archives(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir())
    return [path for path in paths if path.suffix in READ and path.name[0] != "." and path.is_file()]


def unpacking(paths: Iterable[str | Path]) -> str | None:
    """Return the command that unpacks the first compressed archive among paths, or None where there is none."""
    for path in map(Path, paths):
        for endings, line in COMPRESSED.items():
            ending = next(filter(path.name.lower().endswith, endings), None)
            if ending and not OTHER_SPLITS.search(path.name):
                folder = shlex.quote(str(path)[: -len(ending)])
                return f"mkdir -p {folder} && {line.format(file=shlex.quote(str(path)), folder=folder)}"
    return None


# What an archive contains ---------------------------------------------------------------------------------------------


def _tar_members(path: Path) -> Iterator[Member]:
    """Yield name, byte and size of the images in a tar file. Raises UserError where it is not whole."""
    with open_file(path) as file:
        handle = file.fileno()
        end = os.fstat(handle).st_size
        if hasattr(os, "posix_fadvise"):  # the images between the headers are not needed now
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
        offset, last = 0, "its beginning"
        announced: dict[str, Any] = {}  # what an extended header says of the next member
        while True:
            block = os.pread(handle, BLOCK, offset)
            if len(block) < BLOCK:
                raise UserError(f"{path} is cut short: it ends after {last}; fetch it again")
            if block.count(0) == BLOCK:
                return
            kind, size = block[156:157], announced.get("size", _header_size(block, path, offset, last))
            place, offset = offset + BLOCK, offset + BLOCK + -(-size // BLOCK) * BLOCK
            if place + size > end:
                raise UserError(f"{path} is cut short: it ends after {last}, {place + size - end:,} bytes are missing")
            if kind in b"LKxg":  # a long name, or pax records, of the member that follows
                if size > LONGEST_NAME:
                    raise UserError(f"{path} has a name of {size:,} bytes after {last}; fetch it again")
                data = os.pread(handle, size, place)
                announced |= _pax(data, path, last) if kind == b"x" else {"name": data} if kind == b"L" else {}
                continue
            raw_name = (announced.get("name") or _header_name(block)).rstrip(b"\0")
            announced = {}
            with contextlib.suppress(UnicodeDecodeError):  # reported below if it is an image
                last = raw_name.decode()
            name = _safe_name(raw_name, path)
            if name is None or kind == b"5":
                continue
            if kind not in (b"0", b"\0", b"7"):
                raise UserError(f"{path}: {name} is called an image but is a link, a device or sparse; fetch it again")
            yield name, place, size


def _header_size(block: bytes, path: Path, offset: int, last: str) -> int:
    """Return the size that a tar header gives. Raises UserError where the header is damaged."""
    size = _octal(block[124:136])
    if size is None or _octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise UserError(f"{path} is damaged, or not a tar file, after {last} (byte {offset:,}); fetch it again")
    return size


def _octal(field: bytes) -> int | None:
    """Return the number in a tar header's field, None if it is not one; large numbers are in base 256."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None  # 0xff: negative
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else None


def _header_name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(data: bytes, path: Path, last: str) -> dict[str, Any]:
    """Return the name and the size that pax records ('LENGTH KEY=VALUE\\n') give to the next member."""
    announced = {}
    while data:
        length, blank, _ = data[:20].partition(b" ")
        length = int(length) if blank and length.isdigit() else 0
        key, equals, value = data[:length].partition(b" ")[2].removesuffix(b"\n").partition(b"=")
        if not equals or length > len(data) or (key == b"size" and not value.isdigit()):
            raise UserError(f"{path} is damaged after {last}; fetch it again")
        if key == b"path":
            announced["name"] = value
        elif key == b"size":
            announced["size"] = int(value[:20])
        elif key.startswith(b"GNU.sparse"):
            raise UserError(f"{path} has sparse files; unpack it")
        data = data[length:]
    return announced


def _safe_name(name: bytes, path: Path) -> str | None:
    """Return the name of an image (or of a shard's label) as text, None for other files; UserError for a bad one."""
    if not name.lower().endswith(ENDINGS):
        return None
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: the name of {name!r} is not UTF-8; fetch it again") from None
    parts = [part for part in text.split("/") if part != "."]
    if "" in parts or ".." in parts or "\0" in text:
        raise UserError(f"{path} is refused: {text!r} does not name a file within a folder; fetch it again")
    return None if any(part.startswith(".") for part in parts) else "/".join(parts)


def _parquet_members(path: Path) -> Iterator[Member]:
    """Yield class folder/name, row and size of the images in a parquet file of a Hugging Face set.

    Its columns: `image`, a struct of bytes and path, and `label`, the class number in the standard order.
    """
    row = 0
    with _parquet(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, ["image", "label"], use_threads=False)
            images = table["image"].combine_chunks()
            columns = (images.field("path"), images.field("bytes"), table["label"])
            for name, data, label in zip(*(column.to_pylist() for column in columns), strict=True):
                if name is None or data is None or type(label) is not int or not 0 <= label < 1000:
                    raise UserError(f"{path}: row {row} has no name, no image or no class 0-999; fetch it again")
                # ImageNet images are called ILSVRC2012_val_00000001_n01751748.JPEG there
                released = re.fullmatch(r"(ILSVRC2012_val_\d{8})_(n\d{8})(\.\w+)", os.path.basename(name))
                wnid = wordnet_ids()[label]
                if released and released[2] != wnid:
                    raise UserError(f"{path}: row {row} is {name}, but its label says {wnid}; fetch it again")
                base = released[1] + released[3] if released else os.path.basename(name)
                if checked := _safe_name(f"{wnid}/{base}".encode("utf-8", "surrogatepass"), path):
                    yield checked, row, len(data)
                row += 1


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """Yield a pyarrow ParquetFile; turn the many kinds of errors that damaged files cause into UserError."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"reading {path} needs pyarrow: pip install pyarrow") from None
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
class ArchiveIndex:
    """The images of one archive by folder; folders and names are sorted.

    Attributes:
        folders: {folder: (number of its list of names, position of its first image, count)}.
        lists: texts of names separated by NUL; equal lists (a class in the corrupted sets) are stored once.
        sizes: in bytes.
        places: byte of a tar file, row of a parquet file.
    """

    folders: dict[str, tuple[int, ...]]
    lists: list[str]
    sizes: ByteCounts
    places: Int64[np.ndarray, " N"]


def _index(path: Path) -> ArchiveIndex:
    """Build the index of an archive from its headers. Raises UserError for a damaged or dishonest archive."""
    by_folder: dict[str, list[Member]] = {}
    demand_content(path)
    try:
        for name, place, size in _parquet_members(path) if path.suffix == ".parquet" else _tar_members(path):
            folder, _, base = name.rpartition("/")
            by_folder.setdefault(folder, []).append((base, place, size))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); fix it or move it away") from None
    folders, lists = {}, {}
    sizes: list[int] = []
    places: list[int] = []
    for folder in sorted(by_folder):
        names, member_places, member_sizes = zip(*sorted(by_folder.pop(folder)), strict=True)
        _refuse_double(names, f"{path}/{folder}")
        text = "\0".join(names)
        folders[folder] = (lists.setdefault(text, len(lists)), len(sizes), len(names))
        places += member_places
        sizes += member_sizes
    return ArchiveIndex(folders, list(lists), np.array(sizes, np.int64), np.array(places, np.int64))


def _refuse_double(names: Sequence[str], place: str) -> None:
    """Raise UserError where a name occurs twice among sorted names."""
    repeated = [name for name, following in itertools.pairwise(names) if name == following]
    if repeated:
        raise UserError(f"{place} has {listed_briefly(repeated)} twice; fetch it again, or omit one archive")


def _stored_index(path: Path, size: int, time: int, folder: str | Path | None) -> ArchiveIndex:
    """Return the index of an archive of this size and time, stored in `folder` where one is given."""
    stored = folder and Path(folder) / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]}.index.npz"
    stamp = np.array([size, time, INDEX_VERSION], np.int64)
    index = _read_index(stored, stamp) if stored else None
    if index is None:
        index = _index(path)
        if stored:
            columns = np.array(list(index.folders.values()), np.int64).reshape(-1, 3)
            arrays: dict[str, Any] = {"stamp": stamp, "columns": columns, "sizes": index.sizes, "places": index.places}
            for name, text in (("folders", "\0".join(index.folders)), ("lists", "/".join(index.lists))):
                arrays[name] = np.frombuffer(text.encode(), np.uint8)
            with atomic(stored) as file:
                np.savez(file, **arrays)
    return index


def _read_index(path: Path, stamp: np.ndarray) -> ArchiveIndex | None:
    """Return a stored index; None where there is none, it belongs to another archive, or it is damaged."""
    try:
        with open_arrays(path) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            columns, sizes, places = stored["columns"], stored["sizes"], stored["places"]
            folder_text = stored["folders"].tobytes().decode()
            lists = stored["lists"].tobytes().decode().split("/")
    except (OSError, Malformed, KeyError, UnicodeDecodeError):
        return None
    folders = folder_text.split("\0") if len(columns) else []
    if {array.dtype for array in (columns, sizes, places)} != {np.dtype(np.int64)}:
        return None
    if columns.shape != (len(folders), 3):
        return None
    counts = np.array([text.count("\0") + 1 for text in lists])
    fits = (
        sizes.shape == places.shape == (columns[:, 2].sum(),)
        and (columns >= 0).all()
        and (columns[:, 0] < len(lists)).all()
        and (counts[columns[:, 0]] == columns[:, 2]).all()
        and (columns[:, 1:].sum(axis=1) <= len(sizes)).all()
    )
    if not fits:
        return None
    return ArchiveIndex(dict(zip(folders, map(tuple, columns.tolist()), strict=True)), lists, sizes, places)


# The archives of a set as folders -------------------------------------------------------------------------------------


def archives(paths: tuple[Path, ...], index_folder: str | Path | None = None) -> "Archives":
    """Return the Archives of these paths; their indexes are stored in `index_folder` where one is given."""
    stamps = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); fix it or move it away") from None
        stamps.append((status.st_size, status.st_mtime_ns))
    return _archives(paths, tuple(stamps), index_folder)


@lru_cache(maxsize=16)
def _archives(paths: tuple[Path, ...], stamps: tuple[tuple[int, int], ...], index_folder: Any) -> "Archives":
    with ThreadPoolExecutor(len(paths)) as pool:  # on a shared file system, reading headers is mostly waiting
        indexes = list(
            pool.map(lambda path, stamp: _stored_index(path, stamp[0], stamp[1], index_folder), paths, stamps)
        )
    return Archives(paths, indexes)


class Archives:
    """Several archives as one tree of folders; `children`: {folder: the names of its subfolders}."""

    def __init__(self, paths: tuple[Path, ...], indexes: list[ArchiveIndex]) -> None:
        self.paths, self.indexes = paths, indexes
        self.children: dict[str, set[str]] = {}
        for index in indexes:
            for folder in index.folders:
                self._add(folder)

    def _add(self, folder: str) -> None:
        while folder:
            parent, _, name = folder.rpartition("/")
            siblings = self.children.setdefault(parent, set())
            if name in siblings:
                return
            siblings.add(name)
            folder = parent

    @property
    def root(self) -> Path:
        """The archive, or the folder that contains several."""
        return self.paths[0] if len(self.paths) == 1 else Path(os.path.commonpath(self.paths))


@dataclass(frozen=True)
class ArchiveFolder:
    """A folder in archives, with what listing an image set needs of a folder on disk."""

    archives: Archives
    path: str = ""

    def __truediv__(self, name: str) -> "ArchiveFolder":
        return ArchiveFolder(self.archives, f"{self.path}/{name}" if self.path else name)

    def __str__(self) -> str:
        return str(self.display_path)

    @property
    def display_path(self) -> Path:
        """The path that names the folder in messages; it does not exist on disk."""
        return self.archives.root / self.path

    @property
    def beside(self) -> Path:
        """The folder on disk that contains the (first) archive: labels and manifests are there."""
        return self.archives.paths[0].parent

    def is_dir(self) -> bool:
        """Whether the archives have the folder."""
        indexes = self.archives.indexes
        return self.path in self.archives.children or any(self.path in index.folders for index in indexes)

    def subfolders(self) -> list[str]:
        """Return the names of its subfolders, sorted."""
        return sorted(self.archives.children.get(self.path, ()))

    def below(self, endings: tuple[str, ...]) -> list[str]:
        """Return the files in it and its subfolders whose names end so."""
        prefix, files = f"{self.path}/" if self.path else "", []
        for index in self.archives.indexes:
            for folder, (number, *_) in index.folders.items():
                if f"{folder}/".startswith(prefix):
                    names = index.lists[number].split("\0")
                    files += [f"{folder}/{name}" for name in names if name.lower().endswith(endings)]
        return files

    def scan(self) -> tuple[list[str], ByteCounts, Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
        """Return the names of its files, sorted, and per file the size, the archive's number and the place in it."""
        names: list[str] = []
        columns: Any = []
        for number, index in enumerate(self.archives.indexes):
            chosen, first, count = index.folders.get(self.path, (0, 0, 0))
            if count:
                names += index.lists[chosen].split("\0")
                part = slice(first, first + count)
                columns.append([index.sizes[part], np.full(count, number), index.places[part]])
        several = len(columns) > 1
        columns = np.concatenate(columns, axis=1) if columns else np.zeros((3, 0), np.int64)
        if several:
            order = sorted(range(len(names)), key=names.__getitem__)
            names, columns = [names[i] for i in order], columns[:, order]
            _refuse_double(names, str(self))
        return names, *columns


# Reading --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ArchiveMembers:
    """Where in archives the images of a listing are.

    Attributes:
        numbers: of the archive, per image.
        places: byte of a tar file, row of a parquet file.
    """

    archives: tuple[Path, ...]
    numbers: Int64[np.ndarray, " N"]
    places: Int64[np.ndarray, " N"]


class ArchiveReader:
    """Reads images from the archives of a listing, each opened when first read. One reader per process."""

    def __init__(self, members: ArchiveMembers) -> None:
        self.members = members
        self.sources: dict[Path, _Tar | _Parquet] = {}

    def read(self, position: int, size: int) -> bytes:
        """Return the bytes of the image at a position of the listing. Raises OSError or UserError."""
        if size > LONGEST_IMAGE:
            raise OSError(f"longer than {LONGEST_IMAGE:,} bytes")
        path = self.members.archives[self.members.numbers[position]]
        if path not in self.sources:
            self.sources[path] = (_Parquet if path.suffix == ".parquet" else _Tar)(path)
        return self.sources[path].read(int(self.members.places[position]), size)

    def time(self, position: int) -> int:
        """Return the modification time, in ns, of the archive that contains the image at a position."""
        return self.members.archives[self.members.numbers[position]].stat().st_mtime_ns


class _Tar:
    def __init__(self, path: Path) -> None:
        self.file = open_file(path)

    def read(self, place: int, size: int) -> bytes:
        data = os.pread(self.file.fileno(), size, place)
        if len(data) < size:
            raise OSError("the archive ends within it")
        return data


class _Parquet:
    """Rows are compressed in groups; the last group read stays in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.group: int | None = None
        self.images: Any = None
        with _parquet(path) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.firsts = np.cumsum([0, *rows])

    def read(self, place: int, size: int) -> bytes:
        group = int(np.searchsorted(self.firsts, place, "right")) - 1
        if group != self.group:
            with _parquet(self.path) as file:
                table = file.read_row_group(group, ["image.bytes"], use_threads=False)
                self.group, self.images = group, table["image"].combine_chunks().field("bytes")
        data = self.images[place - int(self.firsts[group])].as_py()
        if len(data) != size:
            raise OSError("the archive has changed")
        return data


def shard_labels(names: list[str], folder: ArchiveFolder) -> list[int] | None:
    """Return the class numbers that WebDataset shards store beside the images (KEY.cls); None where there are none.

    Raises:
        UserError: a label is missing or not a class number.
    """
    files, sizes, numbers, places = folder.scan()
    positions = {}
    for position, file in enumerate(files):
        if file.endswith(LABEL_IN_ARCHIVE):
            positions[os.path.splitext(file)[0]] = position
    if not positions:
        return None
    reader, labels = ArchiveReader(ArchiveMembers(folder.archives.paths, numbers, places)), []
    for name in names:
        if (position := positions.get(os.path.splitext(name)[0])) is None:
            raise UserError(f"{folder}: there is no label {LABEL_IN_ARCHIVE} for {name}; fetch the shard again")
        text = reader.read(position, min(int(sizes[position]), 20)).strip()
        if not text.isdigit() or len(text) > 4 or int(text) > 999:
            raise UserError(f"{folder}: the label of {name} is {text!r}, not a class 0-999; fetch the shard again")
        labels.append(int(text))
    return labels

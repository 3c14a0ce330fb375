"""Responses on disk, found again by exactly what determines them.

results/LABEL/responses/SET.KIND.npz holds what one network (label) answered to one image set under one kind of
condition; while it is being measured, its parts lie in results/LABEL/responses/SET.parts/. A file has an index, JSON
text {key: entry}, and for each key the arrays `KEY.state` uint8 [N] (UNSEEN, ANSWERED, LEFT_OUT for each image of the
whole set) and `KEY.values` [n, ...], a row for each image that is not UNSEEN (or for all N). An entry has the identity
of what was measured, when and where (`measured`), how many answers were not finite, and checksums of the decoded pixels
of a few images, which reveal different images of the same names. Samples are kept under the whole set's identity, so
that a longer run continues them.
"""

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

import numpy as np
from filelock import FileLock
from jaxtyping import Shaped, UInt8
from typing_extensions import TypedDict

from imagenet_biases.base.arrays import StoredArrays, open_arrays
from imagenet_biases.base.files import atomic, safe_name
from imagenet_biases.base.schema import Count, Malformed, Object, Row, Text, check, parsed
from imagenet_biases.results.record_schema import Moment

if TYPE_CHECKING:
    from imagenet_biases.images.sets import ImageSet
    from imagenet_biases.vocabulary import Readout

UNSEEN, ANSWERED, LEFT_OUT = 0, 1, 2

Identity = Mapping[str, Any]  # of a cell: network, image set, condition, readout, precision, ...
Entry = dict[str, Any]


class StoredIdentity(TypedDict):
    """What determines a cell's answers."""

    images: Text
    fingerprint: Text
    condition: Text
    kind: Text
    settings: Object
    readout: Object
    network: NotRequired[Text]
    view: NotRequired[Text]
    precision: NotRequired[Text]
    seed: NotRequired[int]
    batch_size: NotRequired[int]


class StoredEntry(TypedDict):
    """What a file's index holds of a cell."""

    identity: StoredIdentity
    measured: list[Moment]
    nonfinite: Count
    pixels: dict[Text, Count]
    complete: bool
    answered: Count
    gradients: NotRequired[Annotated[tuple[Count, Count], Row]]


INDEX = dict[Text, StoredEntry]
DAMAGED = (OSError, KeyError, Malformed)


class StoredResponses:
    """What is stored of one cell: of the images of a sample, or, packed, of the whole set's that are not UNSEEN.

    Attributes:
        values: [n, ...], a row for each image, packed one for each image that is not UNSEEN; None after `release`.
        state: UNSEEN, ANSWERED or LEFT_OUT for each image; read-only after `release`.
        measured: when, where and by what.
        nonfinite: how many answers were not finite.
        gradients: how many gradients of an attack were zero or not finite, and of how many.
        pixels: {position: checksum of the decoded pixels} of a few images.
        stale: what is stored is not this, it is of other images.
    """

    def __init__(
        self,
        values: Shaped[np.ndarray, "N ..."],
        state: UInt8[np.ndarray, " N"],
        measured: Iterable[dict[str, Any]] = (),
        nonfinite: int = 0,
        pixels: dict[str, int] | None = None,
        stale: bool = False,
    ) -> None:
        self.values: Any = values
        self.state, self.measured, self.nonfinite = state, list(measured), nonfinite
        self.pixels, self.stale = pixels or {}, stale
        self.gradients: tuple[int, int] = (0, 0)

    def of_other_pixels(self, other: "StoredResponses") -> bool:
        """Whether the other was measured on images with other pixels, as far as both have checksums."""
        return any(other.pixels.get(position, checksum) != checksum for position, checksum in self.pixels.items())

    def forgotten(self) -> "StoredResponses":
        """Return responses of this shape without any answer."""
        return StoredResponses(np.zeros_like(self.values), np.zeros_like(self.state), stale=True)

    def release(self) -> None:
        """Free the values, and the state where it is the same for all images."""
        self.values = None
        if len(self.state) and (self.state == self.state[0]).all():
            self.state = np.broadcast_to(self.state[:1].copy(), self.state.shape)

    def take(self, other: "StoredResponses") -> None:
        """Add the answers that only the other has."""
        new = (self.state == UNSEEN) & (other.state != UNSEEN)
        if new.any():
            self.values[new], self.state[new] = other.values[new], other.state[new]
        self._describe(other, bool(new.any()))

    def _describe(self, other: "StoredResponses", new: bool) -> None:
        if new:
            self.measured += [moment for moment in other.measured if moment not in self.measured]
            self.nonfinite += other.nonfinite
            self.gradients = self.gradients[0] + other.gradients[0], self.gradients[1] + other.gradients[1]
        self.pixels |= other.pixels

    def packed(self, images: "ImageSet") -> "StoredResponses":
        """Return what is stored of a sample, packed."""
        seen, state = self.state != UNSEEN, np.zeros(len(images.whole or images), np.uint8)
        state[images.rows] = self.state
        values = self.values if seen.all() else self.values[seen]
        return self._with(values, state)

    def _with(self, values: Any, state: UInt8[np.ndarray, " N"]) -> "StoredResponses":
        """Return a description of other rows by the same facts."""
        described = StoredResponses(values, state, self.measured, self.nonfinite, dict(self.pixels), self.stale)
        described.gradients = self.gradients
        return described

    def unpacked(self, images: "ImageSet") -> "StoredResponses":
        """Return what is stored, packed, of the images of a sample."""
        seen = self.state != UNSEEN
        state = self.state[images.rows]
        values = np.zeros((len(images), *self.values.shape[1:]), self.values.dtype)
        values[state != UNSEEN] = self.values[(np.cumsum(seen) - 1)[images.rows[state != UNSEEN]]]
        return self._with(values, state)

    def joined(self, other: "StoredResponses") -> "StoredResponses":
        """Return these packed responses with the answers that only the other has."""
        mine, new = self.state != UNSEEN, (self.state == UNSEEN) & (other.state != UNSEEN)
        result = self._with(self.values, self.state)
        if new.any():
            result.state = np.where(new, other.state, self.state)
            rows = np.cumsum(result.state != UNSEEN) - 1
            result.values = np.empty((rows[-1] + 1, *self.values.shape[1:]), self.values.dtype)
            result.values[rows[mine]] = self.values
            result.values[rows[new]] = other.values[(np.cumsum(other.state != UNSEEN) - 1)[new]]
        result._describe(other, bool(new.any()))
        return result


Cell = tuple[Identity, StoredResponses]


def key_of(identity: Any) -> str:
    """Return the name of a cell's arrays in a file."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


class ResponseStore:
    """The responses in a results folder; without one (None) nothing is read or written.

    With `fresh`, stored responses are not read: they are measured again and replaced.
    """

    def __init__(self, results: str | Path | None, fresh: bool = False) -> None:
        self.results, self.fresh = Path(results) if results else None, fresh
        self._written: set[Path] = set()  # files of this run: read although `fresh`
        self._mentioned: set[str] = set()  # image sets with stored answers that are not used

    def _folder(self, label: str) -> Path:
        assert self.results is not None, "a store without a folder neither reads nor writes"
        return self.results / safe_name(label) / "responses"

    @staticmethod
    def _stem(identity: Identity) -> str:
        return safe_name(identity["images"].partition("/")[0])

    def packed(self, identity: Identity, label: str) -> Path:
        """Return the file that holds a cell in the end."""
        return self._folder(label) / f"{self._stem(identity)}.{identity['kind']}.npz"

    def _files(self, identity: Identity, label: str) -> list[Path]:
        parts = sorted((self._folder(label) / f"{self._stem(identity)}.parts").glob("*.npz"))
        files = [*parts, self.packed(identity, label)]  # in this order: another process may be packing them
        return [file for file in files if not self.fresh or file in self._written]

    def load(self, identity: Identity, label: str, images: "ImageSet", readout: "Readout") -> StoredResponses:
        """Return what is stored of a cell on some images; UNSEEN ones with values of a readout where nothing is."""
        count = len(images)
        responses = StoredResponses(np.zeros((count, *readout.shape), readout.dtype), np.zeros(count, np.uint8))
        if self.results is None:
            return responses
        key = key_of(identity)
        for file in self._files(identity, label):
            entry = self.index(file).get(key)
            if entry is None:
                continue
            try:
                with open_arrays(file) as arrays:
                    stored = _cell(arrays, key, entry)
                values = stored.values
                if values.dtype != responses.values.dtype or values.shape[1:] != readout.shape:
                    raise Malformed(f"values of type {values.dtype} and shape {values.shape}")
                if len(stored.state) != len(images.whole or images):
                    raise Malformed(f"answers to {len(stored.state)} images")
                if not readout.possible(values):
                    raise Malformed("answers that cannot be given")
                responses.take(stored.unpacked(images))
            except FileNotFoundError:
                continue
            except DAMAGED as error:
                _warn_damaged(file, error)
        if not responses.measured:
            self._mention_others(identity, label)
        return responses

    def _mention_others(self, identity: Identity, label: str) -> None:
        """Warn, once per image set, of answers to another selection of its images, which are not used."""
        name = identity["images"]
        if name in self._mentioned:
            return
        alike = {part: identity.get(part) for part in ("network", "images", "condition", "settings", "readout")}
        for file in self._files(identity, label):
            for entry in self.index(file).values():
                stored = entry["identity"]
                if stored["fingerprint"] == identity["fingerprint"]:
                    continue
                if all(stored.get(part) == value for part, value in alike.items()):
                    self._mentioned.add(name)
                    warnings.warn(
                        f"{name}: stored answers are to another selection of its images (other files, or a sample of "
                        f"an earlier edition); they are kept, and all is measured again",
                        stacklevel=3,
                    )
                    return

    def answered(self, identity: Identity, label: str) -> int:
        """Return how many images of a cell are answered at most, as far as the indexes say."""
        if self.results is None:
            return 0
        key = key_of(identity)
        return sum(self.index(file).get(key, {}).get("answered", 0) for file in self._files(identity, label))

    def index(self, file: Path) -> dict[str, Entry]:
        """Return the index of a file, {key: entry}; empty where the file is missing or cannot be read."""
        stamp = _stamp(file)
        return (_index(file, *stamp) if stamp else None) or {}

    def labelled(self, label: str) -> list[Entry]:
        """Return the entries of all cells under a label, complete or not, without reading any values."""
        if self.results is None or self.fresh or not self._folder(label).is_dir():
            return []
        entries: list[Entry] = []
        for file in self._folder(label).rglob("*.npz"):
            entries += self.index(file).values()
        return entries

    def save(self, name: str, cells: Sequence[Cell], label: str) -> None:
        """Write packed cells of one image set as the part called `name`, whole or not at all."""
        if self.results is None or not cells:
            return
        path = self._folder(label) / f"{self._stem(cells[0][0])}.parts" / f"{name}.npz"
        _write(path, cells)
        self._written.add(path)

    def pack(self, identity: Identity, label: str) -> None:
        """Put the parts of the image set that an identity belongs to into their files, and remove them."""
        if self.results is None:
            return
        folder = self._folder(label)
        parts = folder / f"{self._stem(identity)}.parts"
        if not parts.is_dir():
            return
        with FileLock(folder / ".lock"):
            files = {file: _stamp(file) for file in sorted(parts.glob("*.npz"))}
            for kind, cells in _by_kind(files).items():
                self._replace(folder / f"{self._stem(identity)}.{kind}.npz", cells)
            for file, stamp in files.items():
                if _stamp(file) == stamp:  # else another process has just written more
                    file.unlink(missing_ok=True)
            with suppress(OSError):
                parts.rmdir()

    def _replace(self, path: Path, cells: Mapping[str, Cell]) -> None:
        """Write a file again with cells added."""
        stored = _read_for_replacement(path) if path.exists() else {}
        if self.fresh and path not in self._written:  # measured again: what was there before is replaced
            stored = {key: cell for key, cell in stored.items() if key not in cells}
        for key, cell in cells.items():
            if key in stored and stored[key][1].of_other_pixels(cell[1]):
                del stored[key]  # the images have changed: it is measured again, and replaced
            stored[key] = _joined(stored.get(key), cell)
        _write(path, list(stored.values()))
        self._written.add(path)


def _by_kind(files: Iterable[Path]) -> dict[str, dict[str, Cell]]:
    """Return {kind of condition: {key: cell}} of part files, the parts of a cell joined."""
    by_kind: dict[str, dict[str, Cell]] = {}
    for file in files:
        for key, cell in _read_for_replacement(file).items():
            of_kind = by_kind.setdefault(cell[0]["kind"], {})
            of_kind[key] = _joined(of_kind.get(key), cell)
    return by_kind


def _joined(before: Cell | None, cell: Cell) -> Cell:
    return cell if before is None else (before[0], before[1].joined(cell[1]))


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _index(file: Path, size: int, time: int) -> dict[str, Entry] | None:
    """Return the index of a file as it was at that size and time; None for one that is damaged or foreign."""
    try:
        with open_arrays(file) as arrays:
            if "index" not in arrays and "identity" in arrays:
                warnings.warn(
                    f"{file.parent.parent} holds responses of the first edition, which are measured anew; remove them",
                    stacklevel=2,
                )
                return None
            entries = parsed(str(arrays["index"]).encode(), INDEX)
        if wrong := [key for key, entry in entries.items() if key != key_of(entry["identity"])]:
            raise Malformed(f"{wrong[0]} is not the key of its identity")
        return entries
    except FileNotFoundError:  # packed by another process
        return None
    except DAMAGED as error:
        _warn_damaged(file, error)
        return None


def _cell(arrays: StoredArrays, key: str, entry: Entry) -> StoredResponses:
    """Return the responses of a cell, packed. Raises KeyError or Malformed."""
    values, state = arrays[f"{key}.values"], arrays[f"{key}.state"]
    if state.dtype != np.uint8 or state.ndim != 1 or state.max(initial=0) > LEFT_OUT or not values.ndim:
        raise Malformed("an impossible state")
    seen = state != UNSEEN
    if len(values) == len(state):
        values = values[seen]
    elif len(values) != seen.sum():
        raise Malformed("an impossible state")
    responses = StoredResponses(values, state, entry["measured"], entry["nonfinite"], entry["pixels"])
    flat, gradients = entry.get("gradients", (0, 0))
    responses.gradients = flat, gradients
    return responses


def _read(file: Path) -> tuple[dict[str, Cell], bool]:
    """Return {key: cell} of a file, and whether that is all it should hold; warns of what is damaged."""
    cells: dict[str, Cell] = {}
    entries, whole = _index(file, *(_stamp(file) or (0, 0))), True
    if entries is None:
        return cells, False
    for key, entry in entries.items():
        try:
            with open_arrays(file) as arrays:
                cells[key] = entry["identity"], _cell(arrays, key, entry)
        except DAMAGED as error:
            _warn_damaged(file, error)
            whole = False
    return cells, whole


def _read_for_replacement(file: Path) -> dict[str, Cell]:
    """Return {key: cell} of a file that is about to be replaced; a damaged file is set aside, not lost."""
    cells, whole = _read(file)
    if not whole:
        with suppress(FileNotFoundError):
            os.replace(file, f"{file}.damaged")
    return cells


def _write(path: Path, cells: Iterable[Cell]) -> None:
    index: dict[str, Entry] = {}
    arrays: dict[str, Any] = {}
    for identity, responses in cells:
        key, seen = key_of(identity), responses.state != UNSEEN
        index[key] = {
            "identity": identity,
            "measured": responses.measured,
            "nonfinite": responses.nonfinite,
            "pixels": responses.pixels,
            "complete": bool(seen.all()),
            "answered": int(seen.sum()),
        }
        if responses.gradients[1]:
            index[key]["gradients"] = list(responses.gradients)
        arrays |= {f"{key}.values": responses.values, f"{key}.state": responses.state}
    check(index, INDEX, path.name)
    with atomic(path) as file:
        np.savez(file, index=np.array(json.dumps(index)), **arrays)


def _warn_damaged(file: Path, error: Exception) -> None:
    warnings.warn(f"{file} is damaged and is measured again ({error})", stacklevel=2)

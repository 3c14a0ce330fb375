"""Responses on disk, found again by exactly what determines them.

results/LABEL/responses/SET.KIND.npz holds what one network (label) answered to one image set under one kind of
condition; while it is being measured, its parts lie in results/LABEL/responses/SET.parts/. A file has an index, JSON
text {key: entry}, and for each key the arrays `KEY.values` [N, ...] and `KEY.state` uint8 [N] (UNSEEN, ANSWERED,
LEFT_OUT). An entry has the identity of what was measured, when and where (`measured`), how many answers were not
finite, and checksums of the decoded pixels of a few images, by which other images of the same names are noticed.
"""

import functools
import hashlib
import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from imagenet_biases.base.arrays import open_arrays
from imagenet_biases.base.files import atomic, safe_name
from imagenet_biases.base.schema import Fields, Malformed, check, count, parsed

UNSEEN, ANSWERED, LEFT_OUT = 0, 1, 2

IDENTITY = Fields(
    {"images": str, "fingerprint": str, "condition": str, "kind": str, "settings": dict, "readout": dict},
    {"network": str, "view": str, "precision": str, "seed": int, "batch_size": int},
)
ENTRY = Fields(
    {
        "identity": IDENTITY,
        "measured": [Fields({"time": str})],
        "nonfinite": count,
        "pixels": {str: count},
        "complete": bool,
        "answered": count,
    }
)
DAMAGED = (OSError, KeyError, Malformed)


class StoredResponses:
    """What is known of one cell: `values` [N, ...], `state` uint8 [N], and an entry's further facts.

    `stale`: what is stored is not this, it is of other images. Released, it has no values, and a state to be read only.
    """

    def __init__(self, values, state, measured=(), nonfinite=0, pixels=None, stale=False):
        self.values: Any = values
        self.state, self.measured, self.nonfinite = state, list(measured), nonfinite
        self.pixels, self.stale = pixels or {}, stale

    def of_other_pixels(self, other):
        """Whether another was measured on images of other pixels, as far as both remember some."""
        return any(other.pixels.get(position, crc) != crc for position, crc in self.pixels.items())

    def forgotten(self):
        """Return this without what is known."""
        return StoredResponses(np.zeros_like(self.values), np.zeros_like(self.state), stale=True)

    def release(self):
        """Let go of the values, and of the state where it is the same for all images."""
        self.values = None
        if len(self.state) and (self.state == self.state[0]).all():
            self.state = np.broadcast_to(self.state[:1].copy(), self.state.shape)

    def take(self, other):
        """Add what another has seen and this one has not."""
        new = (self.state == UNSEEN) & (other.state != UNSEEN)
        if new.any():
            self.values[new], self.state[new] = other.values[new], other.state[new]
            self.measured += [one for one in other.measured if one not in self.measured]
            self.nonfinite += other.nonfinite
        self.pixels |= other.pixels


def key_of(identity):
    """Return the name of a cell's arrays in a file."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


class ResponseStore:
    """The responses in a results folder; without one (None) nothing is read or written.

    With `fresh`, what is there is not read: it is measured again and replaced.
    """

    def __init__(self, results, fresh=False):
        self.results, self.fresh = results and Path(results), fresh
        self.mine = set()  # parts that this run has written: read although `fresh`

    def _folder(self, label):
        return self.results / safe_name(label) / "responses"

    @staticmethod
    def _stem(cell_identity):
        return safe_name(cell_identity["images"].partition("/")[0])

    def packed(self, identity, label):
        """Return the file that holds a cell in the end."""
        return self._folder(label) / f"{self._stem(identity)}.{identity['kind']}.npz"

    def _files(self, identity, label):
        folder = self._folder(label)
        parts = sorted((folder / f"{self._stem(identity)}.parts").glob("*.npz"))
        files = [*parts, self.packed(identity, label)]  # in this order: another process may be packing them
        return [file for file in files if not self.fresh or file in self.mine]

    def load(self, identity, label, images, readout):
        """Return what is known of a cell: StoredResponses with [images, *shape] values of a readout, UNSEEN where nothing is."""
        known = StoredResponses(np.zeros((images, *readout.shape), readout.dtype), np.zeros(images, np.uint8))
        if self.results is None:
            return known
        key = key_of(identity)
        for file in self._files(identity, label):
            entry = self.index(file).get(key)
            if entry is None:
                continue
            try:
                with open_arrays(file) as arrays:
                    kept = _cell(arrays, key, entry)
                if kept.values.dtype != known.values.dtype or kept.values.shape != known.values.shape:
                    raise Malformed(f"values of type {kept.values.dtype} and shape {kept.values.shape}")
                if not readout.possible(kept.values):
                    raise Malformed("answers that cannot be given")
                known.take(kept)
            except FileNotFoundError:
                continue
            except DAMAGED as error:
                _say_damaged(file, error)
        return known

    def complete(self, identity, label):
        """Whether all of a cell is in one file, as far as the indexes say."""
        if self.results is None:
            return False
        key = key_of(identity)
        return any(self.index(file).get(key, {}).get("complete") for file in self._files(identity, label))

    def index(self, file):
        """Return the index of a file, {key: entry}; empty where there is none that can be read."""
        stamp = _stamp(file)
        return (_index(file, *stamp) if stamp else None) or {}

    def labelled(self, label):
        """Return the entries of all cells under a label, complete or not, without reading any values."""
        if self.results is None or self.fresh or not self._folder(label).is_dir():
            return []
        return [entry for file in self._folder(label).rglob("*.npz") for entry in self.index(file).values()]

    def save(self, name, cells, label, rank=0):
        """Write cells, pairs (identity, StoredResponses) of one image set, as the part called `name`: whole or not at all."""
        if self.results is None or not cells:
            return
        folder = self._folder(label) / f"{self._stem(cells[0][0])}.parts"
        path = folder / f"{name}{f'.rank-{rank}' if rank else ''}.npz"
        _write(path, cells)
        self.mine.add(path)

    def pack(self, stem_of, label):
        """Put the parts of the image set that `stem_of` (an identity) belongs to into their files, and remove them."""
        if self.results is None:
            return
        folder = self._folder(label)
        parts = folder / f"{self._stem(stem_of)}.parts"
        if not parts.is_dir():
            return
        with FileLock(folder / ".lock"):
            found = {}
            files = {file: _stamp(file) for file in sorted(parts.glob("*.npz"))}
            for file in files:
                for key, (identity, kept) in _read_for_replacement(file).items():
                    found.setdefault(identity["kind"], {}).setdefault(key, (identity, kept))[1].take(kept)
            for kind, cells in found.items():
                path = folder / f"{self._stem(stem_of)}.{kind}.npz"
                before = _read_for_replacement(path) if path.exists() else {}
                if self.fresh and path not in self.mine:  # measured again: what was there before is replaced
                    before = {key: cell for key, cell in before.items() if key not in cells}
                for key, cell in cells.items():
                    if key in before and before[key][1].of_other_pixels(cell[1]):
                        del before[key]  # the images have changed: it is measured again, and replaced
                    before.setdefault(key, cell)[1].take(cell[1])
                _write(path, list(before.values()))
                self.mine.add(path)
            for file, stamp in files.items():
                if _stamp(file) == stamp:  # else another rank or process has just written more
                    file.unlink(missing_ok=True)
            with suppress(OSError):
                parts.rmdir()


def _stamp(file):
    try:
        status = file.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _index(file, size, time):
    """Return the index of a file as it was at that size and time; None of one that is damaged or foreign."""
    try:
        with open_arrays(file) as arrays:
            if "index" not in arrays and "identity" in arrays:
                warnings.warn(
                    f"{file.parent.parent} holds responses of the first edition, which are measured anew; remove them",
                    stacklevel=2,
                )
                return None
            entries = parsed(str(arrays["index"]).encode(), {str: ENTRY})
        if strange := [key for key, entry in entries.items() if key != key_of(entry["identity"])]:
            raise Malformed(f"{strange[0]} is not the key of its identity")
        return entries
    except FileNotFoundError:  # packed by another process
        return None
    except DAMAGED as error:
        _say_damaged(file, error)
        return None


def _cell(arrays, key, entry):
    """Return the StoredResponses of a cell. Raises KeyError or Malformed."""
    values, state = arrays[f"{key}.values"], arrays[f"{key}.state"]
    if state.dtype != np.uint8 or values.shape[:1] != state.shape or state.max(initial=0) > LEFT_OUT:
        raise Malformed("a state that is none")
    return StoredResponses(values, state, entry["measured"], entry["nonfinite"], entry["pixels"])


def _read(file):
    """Return {key: (identity, StoredResponses)} of a file, and whether that is all it should hold; what is damaged is said."""
    found, whole = {}, True
    entries = _index(file, *(_stamp(file) or (0, 0)))
    if entries is None:
        return found, False
    for key, entry in entries.items():
        try:
            with open_arrays(file) as arrays:
                found[key] = entry["identity"], _cell(arrays, key, entry)
        except DAMAGED as error:
            _say_damaged(file, error)
            whole = False
    return found, whole


def _read_for_replacement(file):
    """Return {key: (identity, StoredResponses)} of a file that is about to be replaced; a damaged one is set aside, not lost."""
    found, whole = _read(file)
    if not whole:
        with suppress(FileNotFoundError):
            os.replace(file, f"{file}.damaged")
    return found


def _write(path, cells):
    index, arrays = {}, {}
    for identity, kept in cells:
        key = key_of(identity)
        index[key] = {
            "identity": identity,
            "measured": kept.measured,
            "nonfinite": kept.nonfinite,
            "pixels": kept.pixels,
            "complete": bool((kept.state != UNSEEN).all()),
            "answered": int((kept.state != UNSEEN).sum()),
        }
        arrays |= {f"{key}.values": kept.values, f"{key}.state": kept.state}
    check(index, {str: ENTRY}, path.name)
    with atomic(path) as file:
        np.savez(file, index=np.array(json.dumps(index)), **arrays)


def _say_damaged(file, error):
    warnings.warn(f"{file} is damaged and is measured again ({error})", stacklevel=2)

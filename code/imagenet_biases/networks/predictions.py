"""predictions:FILE: a network's answers to unchanged images, from any program, scored without the network.

A CSV file has the column `image` (a file's name, with its folder where the name alone is not unique, with the image
set's name where several have it), and `class` (numbers from 0 in the order of the WordNet ids, or WordNet ids; several,
best first, separated by blanks) or 1,000 further columns, the logits. A .npz file has the arrays `image` and `class` or
`logits`.
"""

import csv
import io
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.files import read_bytes, safe_name
from imagenet_biases.images.labels import EXTENSIONS
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.networks.packages import CLASSES
from imagenet_biases.study import wordnet_ids
from imagenet_biases.vocabulary import Batch, Pass, Presentation, Readout, Responses, Results, TopClasses

CLASS_COLUMNS = ("class", "label", "prediction", "pred", "pred_label")


@dataclass(frozen=True)
class Table:
    """What a file says: names of images, and for each `ranked` class numbers, best first, or `logits`."""

    path: Path
    images: tuple[str, ...]
    ranked: Int64[np.ndarray, "N k"]
    logits: Float[np.ndarray, "N C"] | None = None


def scored(passes: Sequence[Pass], paths: Iterable[str | Path]) -> list[tuple[str, Results]]:
    """Return (name, responses) of every file of predictions, for the passes of a benchmark that it answers.

    Raises:
        UserError: a file is damaged or answers no image, or the benchmark presents more than unchanged images.
    """
    for shown in passes:
        if callable(shown.conditions) or [condition.kind for condition in shown.conditions] != ["clean"]:
            raise UserError("a file of predictions answers unchanged images only; this benchmark changes them")
    answers: list[tuple[str, Results]] = []
    for path in map(Path, paths):
        table = read_table(path)
        responses = _responses(table, passes)
        if not responses:
            names = listed_briefly(dict.fromkeys(shown.images.name for shown in passes))
            raise UserError(f"{path} has no image of {names}; its first is '{table.images[0][:60]}'")
        answers.append((safe_name(path.stem), Results(responses)))
    return answers


def _responses(table: Table, passes: Sequence[Pass]) -> list[Responses]:
    """Return what a table answers, per pass."""
    sets = {shown.images.name: shown.images for shown in passes}
    stated = [{name for name in sets if f"/{name}/" in f"/{image}"} for image in table.images]
    rows = {name: _rows(table, images, stated) for name, images in sets.items()}
    named = np.zeros(len(table.images), int)
    for of_set in rows.values():
        named[of_set[of_set >= 0]] += 1
    _check_names(table, named)
    responses: list[Responses] = []
    unanswered = []
    for shown in passes:
        rows_of_set = rows[shown.images.name]
        positions = np.flatnonzero(rows_of_set >= 0)
        if not len(positions):
            unanswered.append(shown.images.name)
        else:
            images = _part(shown.images, positions)
            readout, values = _read(table, rows_of_set[positions], shown.readout, images)
            responses.append(
                Responses(images, shown.conditions[0], values, np.ones(len(images), bool), readout)  # type: ignore[index]
            )
    if responses and unanswered:
        missing = ", ".join(dict.fromkeys(unanswered))
        warnings.warn(f"{table.path.name} has no image of {missing}", stacklevel=2)
    return responses


def _check_names(table: Table, named: Int64[np.ndarray, " N"]) -> None:
    """Refuse a row that several sets might mean; warn of rows that name no image."""
    if (named > 1).any():
        row = table.images[int(np.argmax(named > 1))]
        raise UserError(f"{table.path}: '{row[:60]}' is in several image sets; write the set's name before it: SET/...")
    if unknown := [table.images[row] for row in np.flatnonzero(named == 0)]:
        warnings.warn(
            f"{table.path.name}: {len(unknown)} of {len(named)} rows name no image of this benchmark: "
            f"{listed_briefly(unknown)}",
            stacklevel=2,
        )


def _rows(table: Table, images: ImageSet, stated: Sequence[set[str]]) -> Int64[np.ndarray, " images"]:
    """Return which row answers each image of a set, -1 for none; `stated`: the sets that each row's path names."""
    by_name: dict[tuple[str, ...], int] = {}
    for position, file in enumerate(images.files):
        parts = _parts(file)
        for length in (1, 2, 3):
            key = parts[-length:]
            if len(key) == length:
                by_name[key] = position if key not in by_name else -1  # of several images: the folder decides
    rows = np.full(len(images), -1)
    for row, name in enumerate(table.images):
        if stated[row] and images.name not in stated[row]:
            continue
        parts = _parts(name)
        position = next((by_name[key] for length in (3, 2, 1) if (key := parts[-length:]) in by_name), None)
        if position == -1:
            raise UserError(f"{table.path}: '{name[:60]}' is the name of several images; give their folders, too")
        if position is not None:
            if rows[position] >= 0:
                raise UserError(f"{table.path}: {images.files[position]} is answered twice; remove one")
            rows[position] = row
    return rows


def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of an image's path, the last without its extension."""
    path = PurePosixPath(name.replace("\\", "/"))
    stem = path.stem if path.suffix.lower() in EXTENSIONS else path.name
    return (*(part for part in path.parts[:-1] if part not in (".", "/")), stem)


def _part(images: ImageSet, positions: Int64[np.ndarray, " n"]) -> ImageSet:
    """Return the images that are answered: the set, or a declared subset."""
    if len(positions) == len(images):
        return images
    subset = {"images": len(positions), "of": (images.subset or {}).get("of", len(images))}
    variables = dict(images.variables)
    for name, value in variables.items():
        if isinstance(value, np.ndarray) and len(value) == len(images):
            variables[name] = value[positions]
    return replace(images, chosen=images.chosen[positions], whole=None, subset=subset, variables=variables)


def _read(
    table: Table, rows: Int64[np.ndarray, " n"], readout: Readout, images: ImageSet
) -> tuple[Readout, Shaped[np.ndarray, "n ..."]]:
    """Return (readout, values): what a benchmark's readout makes of logits, or the classes as they are given."""
    if table.logits is not None and not readout.intact and readout.takes == "logits":
        logits, labels = torch.from_numpy(table.logits[rows]), torch.from_numpy(images.labels)
        pixels = torch.zeros((len(rows), 3, 1, 1))
        batch = Batch(torch.from_numpy(images.keys), 0)
        return readout, np.asarray(readout(Presentation(logits, pixels, pixels, labels, batch)))
    if not isinstance(readout, TopClasses):
        raise UserError(f"{table.path}: this benchmark needs the 1,000 logits of every image, not a class")
    ranked = table.ranked[rows][:, : readout.k]
    if readout.classes is not None and (outside := ~np.isin(ranked[:, 0], readout.classes)).any():
        warnings.warn(
            f"{table.path.name}, {images.name}: {int(outside.sum())} first classes are not among the set's "
            f"{len(readout.classes)}, so they count as wrong; give logits to rank these alone",
            stacklevel=2,
        )
    return replace(readout, k=ranked.shape[1]), ranked.astype(np.int16)


# Files ----------------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> Table:
    """Return what a file of predictions says. Raises UserError for anything else."""
    try:
        data = read_bytes(path)
        if zipfile.is_zipfile(io.BytesIO(data)):
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return _of_arrays(path, {name: arrays[name] for name in arrays.files})
        table = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip().lower() for name in next(table, [])]
        rows = [row for row in table if row]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a file of predictions: {error}") from None
    if header.count("image") != 1 or not rows:
        problem = "no rows" if header.count("image") == 1 else "no column image, or two"
        raise UserError(f"{path} has {problem}; a file of predictions has image,class or image and 1,000 logits")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(f"{path}, row {number}: {len(row)} fields, the head has {len(header)}")
    return _of_rows(path, header, rows)


def _of_rows(path: Path, header: list[str], rows: list[list[str]]) -> Table:
    """Return what the rows of a CSV file say."""
    place = header.index("image")
    images = tuple(row[place].strip() for row in rows)
    if len(header) == CLASSES + 1:
        numbers = [name for name in header if name.rpartition("_")[2].isdecimal()]
        if numbers and [int(name.rpartition("_")[2]) for name in numbers] != list(range(CLASSES)):
            raise UserError(f"{path}: its columns are not numbered 0 to 999 in this order")
        try:
            values = np.array([list(map(float, (*row[:place], *row[place + 1 :]))) for row in rows])
        except ValueError as error:
            raise UserError(f"{path}: a logit is not a number: {error}") from None
        return _of_logits(path, images, values)
    columns = [name for name in CLASS_COLUMNS if name in header]
    if not columns:
        others = f"{listed_briefly(header)} ({len(header)} columns)"
        raise UserError(f"{path} has neither a column class nor {CLASSES} columns of logits, but {others}")
    column = header.index(columns[0])
    return _of_classes(path, images, [row[column].replace(",", " ").split() for row in rows])


def _of_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Table:
    names = [name for name in ("logits", "class") if name in arrays]
    if "image" not in arrays or not names or len(arrays["image"]) != len(arrays[names[0]]) or not len(arrays["image"]):
        raise ValueError(f"it needs the arrays image and class or logits, of one length; it has {', '.join(arrays)}")
    images, values = tuple(map(str, arrays["image"])), arrays[names[0]]
    if names[0] == "logits":
        return _of_logits(path, images, values)
    return _of_classes(path, images, [list(map(str, np.atleast_1d(row))) for row in values])


def _of_logits(path: Path, images: tuple[str, ...], values: np.ndarray) -> Table:
    if values.ndim != 2 or values.shape[1] != CLASSES or values.dtype.kind not in "fiu":
        raise UserError(f"{path}: logits of shape {values.shape}, not {CLASSES} numbers per image")
    logits = values.astype(np.float32)
    if not np.isfinite(logits).all():
        raise UserError(f"{path}: logits that are not finite; leave such rows out")
    if (logits >= 0).all() and np.allclose(logits.sum(1), 1, atol=1e-2):
        warnings.warn(f"{path.name} holds probabilities: their logarithm is taken", stacklevel=2)
        logits = np.log(np.maximum(logits, np.finfo(np.float32).tiny))
    return Table(path, images, np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int64), logits)


def _of_classes(path: Path, images: tuple[str, ...], texts: Sequence[Sequence[str]]) -> Table:
    numbers = {name: number for number, name in enumerate(wordnet_ids())}
    length, ranked = min(map(len, texts)), []
    for number, row in enumerate(texts, 1):
        classes = [numbers.get(text, int(text) if text.isdecimal() else -1) for text in row[:length]]
        if not classes or min(classes) < 0 or max(classes) >= CLASSES:
            text = " ".join(row) or "empty"
            hint = "; numbers begin with 0" if text == str(CLASSES) else ""
            raise UserError(f"{path}, row {number}: '{text[:40]}' is not a class number 0 to 999 or WordNet id{hint}")
        ranked.append(classes)
    return Table(path, images, np.array(ranked, np.int64))

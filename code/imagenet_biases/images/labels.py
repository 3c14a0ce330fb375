"""Labels of images in a flat folder (meta.bin, the devkit, a text file), and the reassessed labels (ReaL).

Each set of labels is checked as a whole before it is used; several sets must agree.
"""

import codecs
import gzip
import io
import os
import re
import tarfile
import warnings
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.files import demand_file, read_bytes
from imagenet_biases.base.schema import Malformed, read_json
from imagenet_biases.study import VALIDATION_STEM, wordnet_ids

if TYPE_CHECKING:
    from imagenet_biases.images.sets import ImageSet

EXTENSIONS = (".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
UNREAD = (".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm", ".psd", ".svg", ".tga")
"""Images that are not read, but named."""

HEADERS = re.compile(r"(class|label|wnid|synset|target|category|y)(es|s|_?(id|name|number|index))?", re.IGNORECASE)
LONGEST_TEXT = 1 << 26  # bytes: a label file of the whole training set has 50 million
WORD = re.compile(r"\"([^\"]*)\"|'([^']*)'|([^\s,;\"']+)")


@cache
def wordnet_index() -> dict[str, int]:
    """Return {WordNet id: class number}."""
    return {wnid: number for number, wnid in enumerate(wordnet_ids())}


def flat_labels(names: list[str], folders: list[Path], label_file: str | Path | None = None) -> list[int] | None:
    """Return the class numbers of the images in a flat folder, in the order of `names`; None where nothing gives them.

    Args:
        names: of the image files.
        folders: where meta.bin (torchvision's) and the devkit (or its tar.gz) are looked for.
        label_file: a text file of two columns, file name and WordNet id or class number.

    Raises:
        UserError: labels are damaged, do not cover the images, or disagree.
    """
    sources = _label_sources(names, folders, label_file)
    if not sources:
        return None
    first, labels = next(iter(sources.items()))
    for source, others in sources.items():
        differing = [name for name, a, b in zip(names, labels, others, strict=True) if a != b]
        if differing:
            raise UserError(
                f"{first} and {source} give {len(differing)} images different labels ({listed_briefly(differing)}): "
                f"keep the right one"
            )
    return labels


def _label_sources(names: list[str], folders: list[Path], label_file: str | Path | None) -> dict[Path | str, list[int]]:
    """Return the class numbers of the images by each source that gives some."""
    sources: dict[Path | str, list[int]] = {}
    named = [number for number in map(named_class, names) if number is not None]
    if names and len(named) == len(names):
        sources["the file names"] = named
    for folder in folders:
        if (folder / "meta.bin").is_file():
            sources[folder / "meta.bin"] = _of_numbers(names, _meta(folder / "meta.bin"), folder / "meta.bin")
        for devkit in (folder / "ILSVRC2012_devkit_t12" / "data", folder / "data", folder):
            truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
            if truth.is_file():
                sources[truth] = _of_numbers(names, _devkit(truth, devkit / "meta.mat"), truth)
        if (packed := folder / "ILSVRC2012_devkit_t12.tar.gz").is_file():
            sources[packed] = _of_numbers(names, _packed_devkit(packed), packed)
    if label_file is not None:
        sources[Path(label_file)] = _file_labels(names, Path(label_file))
    return sources


def named_class(name: str) -> int | None:
    """Return the class number of the WordNet id that is a part of a file name, None where there is none.

    Hugging Face calls validation images ILSVRC2012_val_00000293_n01440764.JPEG; training images are n01440764_10026.
    """
    wnid = re.search(r"(?:^|_)(n\d{8})(?=[_.]|$)", name)
    return wordnet_index().get(wnid[1]) if wnid else None


def released_stem(file: str) -> str:
    """Return an image's file name without folder and extension, and without the WordNet id of Hugging Face's copy."""
    stem = os.path.splitext(os.path.basename(file))[0]
    return stem[:-10] if re.fullmatch(rf"{VALIDATION_STEM}_n\d{{8}}", stem) else stem


def possible_label_file(folders: Iterable[Path]) -> Path | None:
    """Return the first text file in the folders whose name suggests labels, for a message; it is not opened."""
    for folder in folders:
        for path in sorted([*folder.glob("*.txt"), *folder.glob("*.csv")]):
            if re.search("label|val|truth|class", path.stem, re.IGNORECASE):
                return path
    return None


def _of_numbers(names: list[str], wnids: list[str], path: Path) -> list[int]:
    """Return the class numbers of images named after their number among the 50,000 validation images."""
    numbers = list(map(_validation_number, names))
    if unknown := set(wnids) - wordnet_index().keys():
        classes = listed_briefly(map(repr, unknown))
        raise UserError(f"{path} contains unknown class names ({classes}): fetch or make it again")
    if max(numbers) > len(wnids):
        raise UserError(f"{path} has {len(wnids)} entries, but there is an image number {max(numbers)}: fetch it again")
    return [wordnet_index()[wnids[number - 1]] for number in numbers]


def _meta(path: Path) -> list[str]:
    """Return the second part of torchvision's meta.bin: the WordNet ids in the order of the file numbers."""
    from imagenet_biases.base.safe_pickle import plain

    content = plain(path)
    if not isinstance(content, tuple | list) or len(content) != 2 or not isinstance(content[1], list):
        raise UserError(f"{path} is not a file that torchvision writes: remove it, or make it again")
    return [wnid if isinstance(wnid, str) else "" for wnid in content[1]]


def _devkit(truth: Path, meta: Path) -> list[str]:
    """Return the WordNet ids that the devkit's two files give, in the order of the file numbers."""
    if not meta.is_file():
        raise UserError(f"imagenet: {meta} is missing; it comes with the devkit's {truth.name}")
    return _wnids(_text(truth), meta, meta)


def _packed_devkit(path: Path) -> list[str]:
    """Return the WordNet ids that the devkit gives, read from its tar.gz."""
    try:
        with gzip.open(path) as file:
            data = file.read(LONGEST_TEXT + 1)
        if len(data) > LONGEST_TEXT:
            raise tarfile.ReadError(f"longer than {LONGEST_TEXT:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            read: Any = tar.extractfile
            files = {os.path.basename(file.name): read(file).read() for file in tar if file.isreg()}
        truth, meta = files["ILSVRC2012_validation_ground_truth.txt"], files["meta.mat"]
    except Exception as error:  # damaged files cause many kinds of errors
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {str(error)[:200]}): fetch it again") from None
    return _wnids(truth.decode(errors="replace"), io.BytesIO(meta), path)


def _wnids(truth: str, meta: Any, source: Path) -> list[str]:
    """Return the WordNet ids for a text of the devkit's own class numbers; `meta`: its meta.mat."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        wnid = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    except Exception as error:  # damaged files cause many kinds of errors
        raise UserError(f"{source} cannot be read ({str(error)[:200]}): unpack the devkit again") from None
    return [wnid.get(int(word), "") if word.isdecimal() and len(word) < 5 else "" for word in truth.split()]


def _text(path: str | Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte-order mark, or in UTF-16 with one."""
    try:
        data = read_bytes(path, LONGEST_TEXT)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): fix it or move it away") from None
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")


def _file_labels(names: list[str], path: Path) -> list[int]:
    """Return the class numbers that a text file of two columns gives; warns of lines about other images.

    Names may be written with or without folder and extension.
    """
    demand_file(path, "a text file with two columns: file name, and WordNet id or class number 0-999")
    classes, strangers = _by_image(names, path)
    if missing := [name for name in names if name not in classes]:
        raise UserError(f"{path} has no label for {len(missing)} images ({listed_briefly(missing)}); add them")
    if strangers:
        examples = listed_briefly(f"line {number}: {name[:80]}" for name, number in strangers.items())
        warnings.warn(f"{path}: {len(strangers)} lines name no image of the set ({examples})", stacklevel=2)
    labels, words, ambiguous = [], set(), []
    for name in names:
        numbers = {label(word, path, line) for word, line in classes[name].items()}
        if len(numbers) > 1:
            ambiguous.append(name)
        words.update(classes[name])
        labels.append(min(numbers))
    if ambiguous:
        raise UserError(
            f"{path} gives {len(ambiguous)} images two different labels ({listed_briefly(ambiguous)}); keep the right "
            f"ones"
        )
    if "0" not in words and all(map(str.isdecimal, words)) and set(labels) == set(range(1, max(labels) + 1)):
        warnings.warn(f"the classes in {path} are numbered from 1: they should be 0-999", stacklevel=2)
    return labels


def _by_image(names: list[str], path: Path) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Return {image: {word for its class: line}} of a label file, and {what names no image: line}."""
    full_names = {os.path.splitext(name)[0]: name for name in names} | dict(zip(names, names, strict=True))
    classes: dict[str, dict[str, int]] = {}
    strangers: dict[str, int] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = _words(line)
        name = full_names.get(os.path.basename(words[0])) if len(words) > 1 else None
        if name:
            classes.setdefault(name, {})[words[1]] = number
        elif words and not line.lstrip().startswith("#") and (classes or strangers or not _heads(words)):
            strangers[words[0]] = number
    return classes, strangers


def _heads(words: list[str]) -> bool:
    """Whether the words of a file's first line are titles of columns: the second is no class."""
    return len(words) > 1 and not words[1].isdecimal() and words[1] not in wordnet_index()


def _words(line: str) -> list[str]:
    return [next(filter(None, match), "") for match in WORD.findall(line)]


def table(path: str | Path) -> list[list[str]]:
    """Return the words of each non-empty line of a text file after its header, if any; # begins a comment."""
    lines = [line.partition("#")[0] for line in _text(path).splitlines()]
    rows = list(filter(None, map(_words, lines)))
    return rows[1:] if rows and HEADERS.fullmatch(rows[0][-1]) else rows


def label(word: str, path: str | Path, line: int) -> int:
    """Return the class number that a word of a label file stands for. Raises UserError if there is no such class."""
    if word in wordnet_index():
        return wordnet_index()[word]
    if word.isdecimal() and len(word) < 5 and int(word) < 1000:
        return int(word)
    counted = "; classes are counted from 0, in the order of the WordNet ids" if word == "1000" else ""
    raise UserError(
        f"{path}, line {line}: '{word}' is neither a WordNet id of ImageNet-1k nor a class number 0-999{counted}; "
        f"fix that line"
    )


def _validation_number(name: str) -> int:
    """Return the number in ILSVRC2012_val_00000001.JPEG, from 1."""
    match = re.search(r"ILSVRC2012_val_(\d{8})", name)
    if not match or not 1 <= int(match[1]) <= 50_000:
        raise UserError(
            f"imagenet: '{name}' is not named ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG; ReaL labels and flat "
            f"folders need the released file names"
        )
    return int(match[1])


REAL = list[list[Annotated[int, Field(ge=0, lt=1000)]]]
"""The shape of real.json: the right classes of each validation image, in the order of their numbers."""


def real_labels(images: "ImageSet") -> list[set[int]]:
    """Return each image's ReaL labels, a list of N sets of class numbers (Beyer et al. 2020, arXiv:2006.07159).

    A `real.json` in the ImageNet folder replaces the labels that come with timm. The images must have the released
    file names, whose number is the index (from 1). Warns where fewer than half of the images have their own class among
    their labels (in the published labels, 4 of 5 have).

    Raises:
        UserError: the file does not contain such labels.
    """
    source = next((p / "real.json" for p in images.listing.beside if (p / "real.json").exists()), _shipped_real())
    sets = _real(source, *_stamp(source))
    numbers = list(map(_validation_number, images.files))
    if max(numbers, default=0) > len(sets):
        raise UserError(
            f"{source} has {len(sets)} entries, but there is an image number {max(numbers)}; fix it or remove it"
        )
    labels = [set(sets[number - 1]) for number in numbers]
    labelled = sum(map(bool, labels))
    confirmed = sum(label in accepted for label, accepted in zip(images.labels.tolist(), labels, strict=True))
    if not labelled:
        warnings.warn(f"{source} has no label for any of the images", stacklevel=2)
    elif 2 * confirmed < labelled:
        warnings.warn(
            f"{source} has the class of only {confirmed} of {labelled} images among their labels: are its entries in "
            f"the order of the file numbers, and its classes 0-999?",
            stacklevel=2,
        )
    return labels


def shipped_real_labels() -> list[list[int]]:
    """Return the ReaL labels that come with timm, by the number of the image."""
    return _real(_shipped_real())


def _shipped_real() -> Path:
    return Path(str(resources.files("timm.data").joinpath("_info", "imagenet_real_labels.json")))


def _stamp(path: Path) -> tuple[int | None, int | None]:
    try:
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        return None, None


@cache
def _real(source: Path, *_: Any) -> list[list[int]]:
    """Read ReaL labels; the other arguments are the file's stamp, so that a changed file is read again."""
    try:
        return read_json(source, REAL)
    except (OSError, Malformed) as error:
        raise UserError(f"{source} cannot be read ({error}); remove it to use the labels that come with timm") from None

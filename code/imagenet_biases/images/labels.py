"""Labels of images: of a flat folder (meta.bin, the devkit, a text file), and the reassessed ones (ReaL).

Every set of labels is checked as a whole before it is used, and where there are several, they must agree.
"""

import codecs
import gzip
import io
import os
import re
import tarfile
import warnings
from functools import cache
from importlib import resources
from pathlib import Path

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.files import read_bytes
from imagenet_biases.base.schema import Malformed, read_json
from imagenet_biases.study import wordnet_ids

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LONGEST_TEXT = 1 << 26  # bytes: a label file of the whole training set has 50 million
WORD = re.compile(r"\"([^\"]*)\"|'([^']*)'|([^\s,;\"']+)")


@cache
def wordnet_index():
    """Return {WordNet id: class number}."""
    return {wnid: number for number, wnid in enumerate(wordnet_ids())}


def flat_labels(names, folders):
    """Return the class numbers of images in a flat folder, in the order of `names`; None where nothing tells them.

    Looked for in `folders`: meta.bin (torchvision's), the devkit (or its tar.gz), and text files of two columns, file
    name and WordNet id or class number. Raises UserError for labels that are damaged, do not cover the images, or
    disagree.
    """
    found = {}
    for folder in folders:
        if (folder / "meta.bin").is_file():
            found[folder / "meta.bin"] = _of_numbers(names, _meta(folder / "meta.bin"), folder / "meta.bin")
        for devkit in (folder / "ILSVRC2012_devkit_t12" / "data", folder / "data", folder):
            truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
            if truth.is_file():
                found[truth] = _of_numbers(names, _devkit(truth, devkit / "meta.mat"), truth)
        if (packed := folder / "ILSVRC2012_devkit_t12.tar.gz").is_file():
            found[packed] = _of_numbers(names, _packed_devkit(packed), packed)
        for path in sorted([*folder.glob("*.txt"), *folder.glob("*.csv")]):
            if path not in found and (labels := _of_text(names, path)) is not None:
                found[path] = labels
    for path, labels in found.items():
        first, known = next(iter(found.items()))
        if others := [name for name, one, two in zip(names, known, labels, strict=True) if one != two]:
            raise UserError(
                f"{first} and {path} give {len(others)} images different labels ({listed_briefly(others)}): keep the right one"
            )
    return next(iter(found.values()), None)


def _of_numbers(names, wnids, path):
    """Return the class numbers of images whose names say which of the 50,000 validation images they are."""
    numbers = [_validation_number(name) for name in names]
    if strange := set(wnids) - wordnet_index().keys():
        raise UserError(
            f"{path} names classes that are none ({listed_briefly(map(repr, strange))}): fetch or make it again"
        )
    if max(numbers) > len(wnids):
        raise UserError(f"{path} has {len(wnids)} entries, but there is an image number {max(numbers)}: fetch it again")
    return [wordnet_index()[wnids[number - 1]] for number in numbers]


def _meta(path):
    """Return the second part of torchvision's meta.bin: the WordNet ids in the order of the file numbers."""
    from imagenet_biases.base.safe_pickle import plain

    content = plain(path)
    if not isinstance(content, tuple | list) or len(content) != 2 or not isinstance(content[1], list):
        raise UserError(f"{path} is not what torchvision writes: remove it, or make it again")
    return [one if isinstance(one, str) else "" for one in content[1]]


def _devkit(truth, meta):
    """Return the WordNet ids that the devkit's two files give, in the order of the file numbers."""
    if not meta.is_file():
        raise UserError(f"imagenet: {meta} is missing; it comes with the devkit's {truth.name}")
    return _wnids(_text(truth), meta, meta)


def _packed_devkit(path):
    """Return the WordNet ids that the devkit gives, from its tar.gz."""
    try:
        with gzip.open(path) as file:
            data = file.read(LONGEST_TEXT + 1)
        if len(data) > LONGEST_TEXT:
            raise tarfile.ReadError(f"longer than {LONGEST_TEXT:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            files = {os.path.basename(one.name): tar.extractfile(one).read() for one in tar if one.isreg()}
        truth, meta = files["ILSVRC2012_validation_ground_truth.txt"], files["meta.mat"]
    except Exception as error:  # on damaged files the reader raises all kinds of errors
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {str(error)[:200]}): fetch it again") from None
    return _wnids(truth.decode(errors="replace"), io.BytesIO(meta), path)


def _wnids(truth, meta, where):
    """Return the WordNet ids for a text of the devkit's own numbers; `meta`: its meta.mat."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        wnid = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    except Exception as error:  # on damaged files the reader raises all kinds of errors
        raise UserError(f"{where} cannot be read ({str(error)[:200]}): unpack the devkit again") from None
    return [wnid.get(int(word), "") if word.isdecimal() and len(word) < 5 else "" for word in truth.split()]


def _text(path):
    """Return the text of a file that should be in UTF-8, with or without a byte-order mark, or in UTF-16 with one."""
    try:
        data = read_bytes(path, LONGEST_TEXT)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): mend it or move it away") from None
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")


def _of_text(names, path):
    """Return the class numbers that a text file of two columns gives; None for a file that is about something else.

    A file is a label file of these images if half of its lines, or a line for half of the images, begin with one of
    their names (with or without folder and extension).
    """
    stems = {os.path.splitext(name)[0]: name for name in names}
    known, given, lines = set(names), {}, 0
    try:
        text = _text(path)
    except UserError as error:
        warnings.warn(f"not looked through for labels: {error}", stacklevel=2)
        return None
    for number, line in enumerate(text.splitlines(), 1):
        words = [next(filter(None, match), "") for match in WORD.findall(line)]
        lines += bool(words)
        name = os.path.basename(words[0]) if len(words) > 1 else ""
        name = name if name in known else stems.get(name)
        if name:
            given.setdefault(name, {})[words[1]] = number
    if not given or 2 * len(given) < min(lines, len(names)):
        return None
    labels = {name: {label(word, path, number) for word, number in words.items()} for name, words in given.items()}
    if missing := [name for name in names if name not in labels]:
        raise UserError(f"{path} has no label for {len(missing)} images ({listed_briefly(missing)}); add them")
    if double := [name for name in names if len(labels[name]) > 1]:
        raise UserError(
            f"{path} gives {len(double)} images two different labels ({listed_briefly(double)}); keep the right ones"
        )
    found = [labels[name].pop() for name in names]
    words = {word for one in given.values() for word in one}
    if "0" not in words and all(word.isdecimal() for word in words) and set(found) == set(range(1, max(found) + 1)):
        warnings.warn(f"the classes in {path} are numbered from 1: they should be 0-999", stacklevel=2)
    return found


def table(path):
    """Return the lines of a text file that are not empty, as lists of words; what follows a # is left out."""
    lines = (line.partition("#")[0] for line in _text(path).splitlines())
    return [words for line in lines if (words := [next(filter(None, match), "") for match in WORD.findall(line)])]


def label(word, path, line):
    """Return the class number that a word stands for."""
    if word in wordnet_index():
        return wordnet_index()[word]
    if word.isdecimal() and len(word) < 5 and int(word) < 1000:
        return int(word)
    counted = "; classes are counted from 0, in the order of the WordNet ids" if word == "1000" else ""
    raise UserError(
        f"{path}, line {line}: '{word}' is neither a WordNet id of ImageNet-1k nor a class number 0-999{counted}; "
        f"mend that line"
    )


def _validation_number(name):
    """Return the number in ILSVRC2012_val_00000001.JPEG, from 1."""
    match = re.search(r"ILSVRC2012_val_(\d{8})", name)
    if not match or not 1 <= int(match[1]) <= 50_000:
        raise UserError(
            f"imagenet: '{name}' is not named ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG; ReaL labels and flat "
            f"folders need the released file names"
        )
    return int(match[1])


def class_number(value):
    """Whether a value is a class number of ImageNet-1k."""
    return type(value) is int and 0 <= value < 1000


REAL = [[class_number]]
"""What real.json holds: for each validation image, in the order of their numbers, the classes that are right."""


def real_labels(images):
    """Return each image's ReaL labels, a list of N sets of class numbers (Beyer et al. 2020, arXiv:2006.07159).

    A `real.json` in the ImageNet folder wins over the labels that come with timm. The images must have the released
    file names, whose number is the index (from 1). Raises UserError for a file that does not hold such labels; warns
    where less than half of the images have their own class among them (4 of 5 have it in the published ones).
    """
    own = next((p / "real.json" for p in images.listing.beside if (p / "real.json").exists()), None)
    source = own or Path(str(resources.files("timm.data").joinpath("_info", "imagenet_real_labels.json")))
    sets = _real(source, *_stamp(source))
    numbers = [_validation_number(file) for file in images.files]
    if max(numbers, default=0) > len(sets):
        raise UserError(
            f"{source} has {len(sets)} entries, but there is an image number {max(numbers)}; mend it or remove it"
        )
    labels = [set(sets[number - 1]) for number in numbers]
    labelled = [label in own for label, own in zip(images.labels.tolist(), labels, strict=True) if own]
    if not labelled:
        warnings.warn(f"{source} has no label for any of the images", stacklevel=2)
    elif 2 * sum(labelled) < len(labelled):
        warnings.warn(
            f"{source} has the class of only {sum(labelled)} of {len(labelled)} images among their labels: are its "
            f"entries in the order of the file numbers, and its classes 0-999?",
            stacklevel=2,
        )
    return labels


def _stamp(path):
    try:
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        return None, None


@cache
def _real(source, *_):
    """Read ReaL labels; the other arguments are the file's stamp, so that a changed one is read again."""
    try:
        return read_json(source, REAL)
    except (OSError, Malformed) as error:
        raise UserError(f"{source} cannot be read ({error}); remove it to use the labels that come with timm") from None

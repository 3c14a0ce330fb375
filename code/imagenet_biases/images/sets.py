"""Image sets: where the images are, how many and of which classes there must be, which of them to present.

Labels come from folder names (WordNet id or class number) or a label file, never from sort order.
"""

import hashlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm
from typing_extensions import TypedDict

from imagenet_biases.base.errors import UserError, collected_warnings, listed_briefly
from imagenet_biases.base.schema import Count, Malformed, Shape, Text, read_json
from imagenet_biases.images.archives import READ, ArchiveFolder, archives, archives_in, other_splits, unpacking
from imagenet_biases.images.listing import Folder, Listing, NoImages, class_of, list_classes, subfolders, unread
from imagenet_biases.images.order import VERSION, stratified_order
from imagenet_biases.images.preprocessing import AS_IS, Preprocessing
from imagenet_biases.images.release import left_out, release_findings
from imagenet_biases.study import DECLARATIONS, SEVERITIES, Declaration, class_numbers, wordnet_ids

if TYPE_CHECKING:
    from imagenet_biases.vocabulary import Data

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images to present, with labels.

    A sample is a set of its own that knows the `whole` set that it is from: the first images of the whole's order.

    Attributes:
        chosen: positions in the listing, rising; of a whole set, all that are to be shown.
        collection: where the images come from; 'drawn' for the demo's set.
        as_is: the files are ready-made: not preprocessed.
        as_seen: custom images: shown as viewers do (Preprocessing.as_seen).
        subset: what an incomplete set lacks.
        whole: the set that this one is a sample of.
        asked: how many images a benchmark asks for, where that is less than all: its whole.
        classes: class numbers to which logits are restricted; None: all.
        variables: further facts about the images, for a benchmark's use.
        findings: what tells it from the release that it is given as, a line each; image_set warns of them.
    """

    name: str
    listing: Listing
    chosen: Int64[np.ndarray, " N"]
    collection: str = "imagenet"
    as_is: bool = False
    as_seen: bool = False
    subset: dict[str, Any] | None = None
    whole: "ImageSet | None" = None
    asked: int | None = None
    classes: tuple[int, ...] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.chosen)

    @cached_property
    def _all_listed(self) -> bool:
        return np.array_equal(self.chosen, np.arange(len(self.listing.files)))

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Relative paths of the chosen images."""
        files = self.listing.files
        return files if self._all_listed else tuple(files[i] for i in self.chosen)

    @cached_property
    def labels(self) -> Int64[np.ndarray, " N"]:
        """Class numbers of the chosen images."""
        labels = self.listing.labels
        return labels if self._all_listed else labels[self.chosen]

    @cached_property
    def keys(self) -> Int64[np.ndarray, " N"]:
        """A stable 63-bit number per chosen image (listing.ImageNames.keys)."""
        keys = self.listing.names.keys
        return keys if self._all_listed else keys[self.chosen]

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the whole set's keys, labels and sizes: what the responses depend on."""
        if self.whole is not None:
            return self.whole.fingerprint
        digest = hashlib.sha256()
        for array in (self.keys, self.labels, self.listing.sizes[self.chosen]):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
        return digest.hexdigest()

    @cached_property
    def order(self) -> Int64[np.ndarray, " N"]:
        """The images, by their positions in this set, in the whole set's order (images.order)."""
        if self.whole is not None:
            return np.searchsorted(self.rows, self.whole.order[: len(self)])
        labels = self.labels
        if accepted := self.variables.get("accepted"):  # an image of several classes: with those of its folder
            folders = {folder: -number for number, folder in enumerate(sorted(map(os.path.dirname, self.files)), 1)}
            several = [len(accepted[position]) > 1 for position in self.chosen]
            labels = np.where(several, [folders[os.path.dirname(file)] for file in self.files], labels)
        return stratified_order(self.keys, labels, self.files, self.variant)

    @cached_property
    def rows(self) -> Int64[np.ndarray, " N"]:
        """The images' positions in the whole set."""
        return np.arange(len(self)) if self.whole is None else np.sort(self.whole.order[: len(self)])

    @property
    def variant(self) -> str:
        """Which variant this is of a set of variants (CORRUPTION/SEVERITY), '' for other sets."""
        base, _, variant = self.name.partition("/")
        return variant if base in DECLARATIONS and DECLARATIONS[base].variants else ""

    @property
    def population(self) -> int:
        """How many images a sample stands for: those that the benchmark asks for, or all."""
        return self.asked or len(self.whole or self)

    @property
    def unseen(self) -> float:
        """The share of the population that a sample leaves out, 1 - n / N; 0 for a whole set."""
        return 1 - len(self) / self.population

    def first(self, count: int) -> "ImageSet":
        """Return the sample of the first `count` images of the order; this set where it has no more."""
        if count >= len(self):
            return self
        whole = self.whole or self
        chosen = whole.chosen[np.sort(whole.order[:count])]
        return replace(self, chosen=chosen, whole=whole)

    def probe(self, size: int | None) -> "ImageSet":
        """Return the first `size` images of the order, as the whole of a benchmark that asks for no more."""
        if size is None or size >= len(self.whole or self):
            return self
        return replace(self.first(size), asked=size)

    def as_stored(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Return positions in the order in which they can be read: rows of a parquet file by their groups.

        Groups of rows are compressed; in another order each image would cost the reading of a group.
        """
        members = self.listing.members
        if members is None or all(path.suffix != ".parquet" for path in members.archives):
            return positions
        where = self.chosen[positions]
        return positions[np.lexsort((members.places[where], members.numbers[where]))]

    def share(self) -> dict[str, int] | None:
        """Return how much of the whole set this one is, for a record: {images, of, order}; None for a whole set.

        With `asked` where a benchmark asks for so many only.
        """
        if self.whole is None:
            return None
        share = {"images": len(self), "of": len(self.whole), "order": VERSION}
        return share | ({"asked": self.asked} if self.asked else {})

    def preprocessing(self, preprocessing: Preprocessing) -> Preprocessing:
        """Return the preprocessing that applies: the one given, or none where the files are ready-made."""
        if self.as_is:
            return AS_IS
        return replace(preprocessing, as_seen=True) if self.as_seen else preprocessing

    def path(self, position: int) -> Path:
        """Return the path of the image at a position of the listing; in an archive, the path to show."""
        return self.listing.root / self.listing.files[position]


class NotGiven(UserError):
    """No folder is given for an image set."""


class Missing(UserError):
    """A corruption and severity of a corrupted set is not there."""


# Where the images are ------------------------------------------------------------------------------------------------


def image_set(name: str, data: "Data") -> ImageSet:
    """Find, list and check an image set, before anything is computed on it; warns of what it finds.

    Args:
        name: one of study.DECLARATIONS, with /CORRUPTION/SEVERITY for the corrupted sets.
        data: the folders or archives.

    Raises:
        NotGiven: `data` names no folder for the set.
        UserError: the folder is missing, or contains a wrong number of images or an unknown class.
    """
    if data.listed is not None and name in data.listed:
        images = data.listed[name]
    else:
        images = _image_set(name, data)
        if data.listed is not None:
            data.listed[name] = images
    for finding in images.findings:  # in the record of every benchmark that shows the set
        warnings.warn(finding, stacklevel=2)
    return images


def _image_set(name: str, data: "Data") -> ImageSet:
    base, _, variant = name.partition("/")
    declared = DECLARATIONS[base]
    paths = _paths(base, data)
    with collected_warnings() as findings:
        top, listing = look_in(base, paths, data, lambda top: _listed(name, top, variant, declared, data))
    place, top = top, top.beside if isinstance(top, ArchiveFolder) else top
    manifest = read_manifest(top)
    classes = class_numbers(declared.classes) if declared.classes else None
    _check_classes(name, listing, classes)
    expected: Any = {class_of(name, declared) for name in manifest["classes"]} if "classes" in manifest else classes
    if expected and None in expected:
        raise UserError(f"{top / 'image-set.json'} contains unknown class names; fix or delete it")
    everything = ImageSet(
        name,
        listing,
        np.arange(len(listing.files)),
        collection=manifest.get("collection", "imagenet"),
        as_is=declared.as_is,
        classes=classes,
    )
    if len(everything) and not manifest:
        findings += release_findings(everything, declared)
    images = check_complete(
        replace(everything, findings=tuple(findings)),
        manifest.get("images", declared.images),
        data,
        per_class=None if manifest else declared.per_class,
        expected=expected if expected is not None else range(1000),
    )
    if images.subset:
        lines = left_out(base, unread(_variant_folder(place, variant, declared)), skipped(paths))
        images = replace(images, findings=(*images.findings, *lines))
    _show(images.findings, data)
    return images


def _show(findings: Iterable[str], data: "Data") -> None:
    """Show findings now, before hours are spent; the record has them, too. Those of another variant are known."""
    known: set[str] = set()
    for images in (data.listed or {}).values():
        known.update(images.findings)
    for finding in findings:
        if finding not in known:
            logger.warning("%s", finding)


def skipped(paths: Sequence[Path]) -> list[Path]:
    """Return the archives in a set's folder that are taken for another split's."""
    return other_splits(paths[0]) if len(paths) == 1 and paths[0].is_dir() else []


def image_sets(base: str, variants: Sequence[str], data: "Data") -> list[ImageSet]:
    """Return the image sets BASE/VARIANT of a corrupted set that are there, and warn about the others.

    Each is complete in itself; metrics that need the missing ones are not reported.

    Raises:
        UserError: none is there.
    """
    present: list[ImageSet] = []
    missing: list[str] = []
    for variant in tqdm(variants, f"looking through {base}", leave=False, delay=2):
        try:
            present.append(image_set(f"{base}/{variant}", data))
        except Missing:
            missing.append(variant)
    if not present:
        raise UserError(f"{base}: none of its {len(variants)} folders CORRUPTION/SEVERITY is there; unpack some")
    if missing:
        warnings.warn(
            f"{base}: {len(missing)} of {len(variants)} folders are not there: {listed_briefly(missing)}", stacklevel=2
        )
    return present


def given_sets(names: Iterable[str], data: "Data") -> list[ImageSet]:
    """Return the image sets for which there is a folder. Raises NotGiven if no set has one."""
    present: list[ImageSet] = []
    reasons: list[str] = []
    for name in names:
        try:
            present.append(image_set(name, data))
        except NotGiven as error:
            reasons.append(str(error))
    if not present:
        raise NotGiven(reasons[0])
    return present


def folder_of(base: str, data: "Data") -> Path:
    """Return the folder that `data` gives for an image set. Raises NotGiven if there is none, UserError if missing."""
    paths = _paths(base, data)
    if not paths[0].is_dir():
        raise UserError(f"{base}: there is no folder {paths[0]}; give the right one with --{base} DIR")
    return paths[0]


def _paths(base: str, data: "Data") -> list[Path]:
    """Return the folder, or the archives, that `data` gives for an image set. Raises NotGiven if there is none."""
    location = data.folders.get(base)
    if location:
        return places(location)
    if not data.root:
        raise NotGiven(f"{base}: no folder given; add --{base} DIR, or --data ROOT with a folder {base} in it")
    for name in (base, *(base + ending for ending in READ)):
        if (path := Path(data.root) / name).exists():
            return [path]
    raise NotGiven(f"{base}: there is no folder {base} in {data.root}; put it there, or give --{base} DIR")


def places(location: str | Path) -> list[Path]:
    """Return the paths of one image set: a folder, an archive, or several archives separated by commas."""
    whole, parts = Path(location), [part.strip() for part in str(location).split(",")]
    return [whole] if whole.exists() or not all(parts) else list(map(Path, parts))


def look_in(base: str, paths: list[Path], data: "Data", listed: Callable[[Folder], Listing]) -> tuple[Folder, Listing]:
    """Return the folder of a set, on disk or in archives, and what `listed(folder)` returns there.

    Unpacked images come first, then the archives beside them.

    Args:
        base: name of the image set, for messages.
        paths: a folder, or archives.
        data: its `listings` stores the indexes of archives.
        listed: lists the set in a folder; raises NoImages or Missing.

    Raises:
        UserError: the set is not there, or is packed in files that cannot be read.
    """
    folder = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    packed = archives_in(folder) if folder else paths
    _check_archives(base, packed)
    reason: UserError = NoImages(f"{base}: no folder and no archive")
    if folder:
        try:
            return folder, listed(folder)
        except (NoImages, Missing) as error:
            reason = error
    if packed:
        try:
            top = ArchiveFolder(archives(tuple(packed), data.listings))
            return top, listed(top)
        except (NoImages, Missing) as error:
            if not isinstance(reason, Missing) or isinstance(error, Missing):
                reason = error
    elif folder and (line := unpacking(sorted(folder.iterdir()))):
        raise UserError(f"{reason}; or unpack what is there:  {line}")
    if folder and (skipped := other_splits(folder)):
        names = listed_briefly(path.name for path in skipped)
        raise type(reason)(f"{reason} ({names}: named after another split, so not read; give the file itself)")
    raise reason


def _check_archives(base: str, paths: list[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise UserError(f"{base}: there is no folder or archive {path}; give the right one with --{base} DIR")
    unread = [path for path in paths if path.suffix not in READ]
    if unread:
        line = unpacking(unread)
        remedy = f"unpack it:  {line}" if line else f"give a folder, or archives in {' or '.join(READ)}"
        raise UserError(f"{base}: {unread[0]} cannot be read as it is; {remedy}")


def _listed(name: str, top: Folder, variant: str, declared: Declaration, data: "Data") -> Listing:
    folder = _variant_folder(top, variant, declared)
    return list_classes(name, folder, declared, data.listings, data.imagenet_labels)


Images = TypeVar("Images")


class Manifest(TypedDict, Generic[Images], total=False):
    """What image-set.json may hold; `images`: how many there must be, in all or by stimulus set."""

    collection: Text
    images: Images
    classes: list[Text]


def read_manifest(folder: Path, shape: Shape = Manifest[Count]) -> dict[str, Any]:
    """Return what `image-set.json` in a folder declares about the set (the drawn set has one), or an empty dict.

    `collection`: where the images come from; `images`: how many there must be; `classes`: the names of the class
    folders that must be there.

    Raises:
        UserError: the file is damaged or has other content.
    """
    path = folder / "image-set.json"
    try:
        return read_json(path, shape)
    except FileNotFoundError:
        return {}
    except (OSError, Malformed) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it or draw the set again") from None


def check_complete(
    images: ImageSet, whole: int, data: "Data", per_class: int | None = None, expected: Collection[int] | None = None
) -> ImageSet:
    """Check the number of images and classes, then apply --limit; a set that is not complete is declared a subset.

    Args:
        images: the set as listed.
        whole: how many images the complete set has.
        data: its `limit` and `allow_partial` are used.
        per_class: how many images each class must have.
        expected: class numbers that must occur.

    Raises:
        UserError: images or classes are missing or superfluous, and --allow-partial was not given.
    """
    total = len(images)
    if not total:
        raise UserError(f"{images.name}: no images under {images.listing.root}; give the folder of the class folders")
    problems = [] if total == whole else [f"{total:,} images instead of {whole:,}"]
    problems += _class_problems(np.bincount(images.labels, minlength=1000), per_class, expected or ())
    if problems and not data.allow_partial and data.limit is None:
        raise UserError(
            f"{images.name} under {images.listing.root} is not complete: {'; '.join(problems)}. Complete it, or "
            f"measure what is there with --allow-partial"
        )
    if problems:
        surplus = tuple(f"{images.name}: {problem}" for problem in _surplus(images, whole, per_class))
        images = replace(images, subset={"images": total, "of": whole}, findings=(*images.findings, *surplus))
    return images if data.limit is None else images.first(data.limit)


def _surplus(images: ImageSet, whole: int, per_class: int | None) -> Iterable[str]:
    """Yield what is too much: an incomplete download is tolerated as a subset, another release is not the same set."""
    counts = np.bincount(images.labels, minlength=1000)
    many = [number for number in np.flatnonzero(counts) if per_class and counts[number] > per_class]
    if many:
        examples = listed_briefly(f"{wordnet_ids()[number]} has {counts[number]}" for number in many)
        yield f"{len(many)} classes have more than {per_class} images ({examples}): is this another release?"
    elif len(images) > whole:
        yield f"{len(images):,} images, {whole:,} were released: is this another release?"


def _class_problems(counts: np.ndarray, per_class: int | None, expected: Collection[int]) -> list[str]:
    """Return what is wrong with the numbers of images per class."""
    problems = []
    absent = [wordnet_ids()[number] for number in expected if not counts[number]]
    if absent:
        problems.append(f"{len(absent)} classes without images ({listed_briefly(absent)})")
    wrong = [number for number in np.flatnonzero(counts) if per_class and counts[number] != per_class]
    if wrong:
        examples = listed_briefly(f"{wordnet_ids()[number]} has {counts[number]}" for number in wrong)
        problems.append(f"{len(wrong)} classes without exactly {per_class} images ({examples})")
    return problems


def _variant_folder(top: Folder, variant: str, declared: Declaration) -> Folder:
    if not declared.variants:
        return top
    corruption, severity = variant.split("/")
    # the released archives contain groups of corruptions (noise, blur, ...): both depths occur
    for parent in (top, *(top / folder for folder in subfolders(top))):
        if (folder := parent / corruption).is_dir() and (name := _severity_folder(folder, severity)):
            return folder / name
    raise Missing(f"{declared.title}: no folder {corruption}/{severity} under {top}; unpack that corruption there")


def _severity_folder(corruption: Folder, severity: str) -> str | None:
    """Return the name of a severity's folder: the number itself, or the place of a parameter among five.

    The script of ImageNet-C-bar's authors names folders by a parameter of the corruption, which rises with severity:
    1.00, 2.00, 3.00, 5.00, 6.00.

    Raises:
        UserError: there are parameters, but not five.
    """
    names = subfolders(corruption)
    parameters = sorted((name for name in names if re.fullmatch(r"\d+(\.\d+)?", name)), key=float)
    levels = list(map(str, SEVERITIES))
    if len(parameters) == len(levels) and severity in levels:
        return parameters[levels.index(severity)]
    if strange := [name for name in parameters if name not in levels]:
        raise UserError(
            f"{corruption}: the folders {', '.join(parameters)} are neither severities 1 to 5 nor five parameters in "
            f"rising order, so that {strange[0]} has no severity; make those that are missing"
        )
    return severity if severity in names else None


def _check_classes(name: str, listing: Listing, classes: tuple[int, ...] | None) -> None:
    if classes is None:
        return
    strangers = sorted(set(listing.labels.tolist()) - set(classes))
    if strangers:
        names = listed_briefly(wordnet_ids()[n] for n in strangers)
        raise UserError(
            f"{name} under {listing.root} has classes that are not among its {len(classes)}: {names}; is it another "
            f"set?"
        )

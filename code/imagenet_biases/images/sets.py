"""Image sets: where the images are, how many there must be, which classes, which of them are shown.

Labels come from folder names (WordNet id or class number) or a label file, never from sort order.
"""

import hashlib
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.schema import Fields, Malformed, count, read_json
from imagenet_biases.images.archives import READ, Inside, archives, archives_in, unpacking
from imagenet_biases.images.listing import Listing, NoImages, class_of, list_classes, subfolders
from imagenet_biases.images.preprocessing import AS_IS
from imagenet_biases.study import DECLARATIONS, class_numbers, wordnet_ids


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images to be shown, with labels. `chosen` are positions in the whole listing (all of them unless --limit)."""

    name: str
    listing: Listing
    chosen: np.ndarray
    collection: str = "imagenet"  # 'drawn' for the demo's own set
    as_is: bool = False
    subset: dict | None = None  # what was left out, for a declared subset
    sample: dict | None = None  # of which set this is a declared sample: whole for a benchmark that asks for one
    classes: tuple[int, ...] | None = None  # logits are restricted to these class numbers; None: all
    variables: dict = field(default_factory=dict)  # further facts about the images, for the benchmark's own use

    def __len__(self):
        return len(self.chosen)

    @cached_property
    def _whole(self):
        return np.array_equal(self.chosen, np.arange(len(self.listing.files)))

    @cached_property
    def files(self):
        """Relative paths of the chosen images."""
        files = self.listing.files
        return files if self._whole else tuple(files[i] for i in self.chosen)

    @cached_property
    def labels(self):
        """Class numbers of the chosen images, int64 [N]."""
        labels = self.listing.labels
        return labels if self._whole else labels[self.chosen]

    @cached_property
    def keys(self):
        """A stable 63-bit number for each chosen image, int64 [N] (listing.Names.keys)."""
        keys = self.listing.names.keys
        return keys if self._whole else keys[self.chosen]

    @cached_property
    def fingerprint(self):
        """Return the sha256 of the chosen images' keys, labels and sizes: what the responses depend on."""
        digest = hashlib.sha256()
        for array in (self.keys, self.labels, self.listing.sizes[self.chosen]):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
        return digest.hexdigest()

    def preprocessing(self, preprocessing):
        """Return the view that applies: `view`, or none at all where the files are ready-made."""
        return AS_IS if self.as_is else preprocessing

    def path(self, position):
        """Return the path of the image at a position of the listing; of one in an archive, what to call it."""
        return self.listing.root / self.listing.files[position]


class NotGiven(UserError):
    """Nothing names a folder for an image set."""


class Missing(UserError):
    """One corruption and severity of a corrupted set is not there."""


# Where the images are ------------------------------------------------------------------------------------------------


def image_set(name, data):
    """Find, list and check an image set, before anything is computed on it.

    `name` is one of study.DECLARATIONS, with /CORRUPTION/SEVERITY for the corrupted sets; `data` (vocabulary.Data) has
    the folders or archives. Raises NotGiven where it names none, UserError for a missing folder, a wrong count, an
    unknown class.
    """
    if data.listed is not None and name in data.listed:
        return data.listed[name]
    base, _, variant = name.partition("/")
    declared = DECLARATIONS[base]
    given = _given(base, data)
    top, listing = look_in(base, given, data, lambda top: _listed(name, top, variant, declared, data.listings))
    top = top.beside if isinstance(top, Inside) else top
    manifest = read_manifest(top)
    classes = class_numbers(declared.classes) if declared.classes else None
    _check_classes(name, listing, classes)
    expected = {class_of(name, declared) for name in manifest["classes"]} if "classes" in manifest else classes
    if expected and None in expected:
        raise UserError(f"{top / 'image-set.json'} names classes that are none; mend it or remove it")
    found = check_complete(
        ImageSet(
            name,
            listing,
            np.arange(len(listing.files)),
            collection=manifest.get("collection", "imagenet"),
            as_is=declared.as_is,
            classes=classes,
        ),
        manifest.get("images", declared.images),
        data,
        per_class=None if manifest else declared.per_class,
        expected=expected if expected is not None else range(1000),
    )
    if data.listed is not None:
        data.listed[name] = found
    return found


def image_sets(base, variants, data):
    """Return the image sets BASE/VARIANT of a corrupted set that are there, and warn of the others.

    Each is complete in itself; what needs the missing ones is not reported. Raises UserError where none is there.
    """
    found, missing = [], []
    for variant in tqdm(variants, f"looking through {base}", leave=False, delay=2):
        try:
            found.append(image_set(f"{base}/{variant}", data))
        except Missing:
            missing.append(variant)
    if not found:
        raise UserError(f"{base}: none of its {len(variants)} folders CORRUPTION/SEVERITY is there; unpack some")
    if missing:
        warnings.warn(
            f"{base}: {len(missing)} of {len(variants)} folders are not there: {listed_briefly(missing)}", stacklevel=2
        )
    return found


def given_sets(names, data):
    """Return those of the image sets for which there is a folder; NotGiven where there is none for any."""
    found, reasons = [], []
    for name in names:
        try:
            found.append(image_set(name, data))
        except NotGiven as error:
            reasons.append(str(error))
    if not found:
        raise NotGiven(reasons[0])
    return found


def sampled(images, size, seed=0):
    """Return a declared sample of `size` images, stratified by class: a function of the set, the size and the seed.

    Every class gives the same number of images, or one more; which ones is drawn. The whole set where it is no larger.
    A benchmark that asks for a sample is whole on it.
    """
    if size >= len(images):
        return images
    random = np.random.default_rng([seed, size])
    order = random.permutation(len(images))
    labels = images.labels[order]
    # the how many-th of its class each image is, in random order; the first ones of every class come first
    by_class = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(labels[by_class]) != 0])
    turn = np.empty(len(order), np.int64)
    turn[by_class] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    chosen = np.sort(order[np.argsort(turn, kind="stable")[:size]])
    declared = {"images": size, "of": len(images), "seed": seed, "stratified": True}
    return replace(images, chosen=images.chosen[chosen], sample=declared)


def folder_of(base, data):
    """Return the folder that `data` gives for an image set; NotGiven if it gives none or it is not there."""
    given = _given(base, data)
    if not given[0].is_dir():
        raise UserError(f"{base}: there is no folder {given[0]}; give the right one with --{base} DIR")
    return given[0]


def _given(base, data):
    """Return the folder, or the archives, that `data` gives for an image set; NotGiven if it gives none."""
    given = data.folders.get(base)
    if given:
        return places(given)
    if not data.root:
        raise NotGiven(f"{base}: no folder given; add --{base} DIR, or --data ROOT with a folder {base} in it")
    for name in (base, *(base + ending for ending in READ)):
        if (path := Path(data.root) / name).exists():
            return [path]
    raise NotGiven(f"{base}: there is no folder {base} in {data.root}; put it there, or give --{base} DIR")


def places(given):
    """Return the paths that a user gives for one image set: a folder, an archive, or archives separated by commas."""
    whole, parts = Path(given), [part.strip() for part in str(given).split(",")]
    return [whole] if whole.exists() or not all(parts) else [Path(part) for part in parts]


def look_in(base, given, data, listed):
    """Return where a set lies (a folder, or Inside archives) and what `listed(top)` gives there.

    given: paths of a folder or of archives. What is unpacked comes first, then the archives beside it.
    """
    folder = given[0] if len(given) == 1 and given[0].is_dir() else None
    tops, packed = ([folder], archives_in(folder)) if folder else ([], given)
    unread = [path for path in packed if path.suffix not in READ]
    if missing := [path for path in packed if not path.is_file()]:
        raise UserError(f"{base}: there is no folder or archive {missing[0]}; give the right one with --{base} DIR")
    if unread:
        line = unpacking(unread)
        remedy = f"unpack it:  {line}" if line else f"give a folder, or archives in {' or '.join(READ)}"
        raise UserError(f"{base}: {unread[0]} cannot be read as it is; {remedy}")
    reason = None
    for top in (*tops, *([None] if packed else [])):
        try:
            top = top or Inside(archives(tuple(packed), data.listings))
            return top, listed(top)
        except (NoImages, Missing) as error:
            reason = reason if isinstance(reason, Missing) and isinstance(error, NoImages) else error
    if not packed and tops and (line := unpacking(sorted(tops[0].iterdir()))):
        raise UserError(f"{reason}; or unpack what is there:  {line}")
    raise reason


def _listed(name, top, variant, declared, keep):
    return list_classes(name, _variant_folder(top, variant, declared), declared, keep)


def manifest_of(images):
    """Return the shape of image-set.json; `images`: that of its number of images."""
    return Fields({}, {"collection": str, "images": images, "classes": [str]})


def read_manifest(folder, images=count):
    """Return what `image-set.json` in a folder declares of the set (the drawn set has one), or an empty dict.

    `collection`: where the images come from; `images`: how many there must be; `classes`: the names of the class
    folders that must be there. Raises UserError for another file of that name.
    """
    path = folder / "image-set.json"
    try:
        return read_json(path, manifest_of(images))
    except FileNotFoundError:
        return {}
    except (OSError, Malformed) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it or draw the set again") from None


def check_complete(images, expected_images, data, per_class=None, expected=None):
    """Check the number of images (and classes), then apply --limit; what is less than whole is declared a subset.

    Raises UserError that names what is missing or too much, unless --allow-partial was given.
    """
    found = len(images)
    counts = np.bincount(images.labels, minlength=1000) if found else np.zeros(1000, int)
    problems = []
    if found != expected_images:
        problems.append(f"{found:,} images instead of {expected_images:,}")
    absent = [number for number in expected or () if not counts[number]]
    if absent:
        problems.append(f"{len(absent)} classes without images ({listed_briefly(wordnet_ids()[n] for n in absent)})")
    if per_class:
        odd = [n for n in np.flatnonzero(counts) if counts[n] != per_class]
        if odd:
            shown = listed_briefly(f"{wordnet_ids()[n]} has {counts[n]}" for n in odd)
            problems.append(f"{len(odd)} classes without exactly {per_class} images ({shown})")
    if not found:
        raise UserError(f"{images.name}: no images under {images.listing.root}; give the folder of the class folders")
    limit = data.limit
    if problems and not data.allow_partial and limit is None:
        raise UserError(
            f"{images.name} under {images.listing.root} is not complete: {'; '.join(problems)}. Complete it, or "
            f"measure what is there with --allow-partial"
        )
    if problems:
        images = replace(images, subset={"images": found, "of": expected_images})
    return shortened(images, data, expected_images)


def shortened(images, data, whole):
    """Apply --limit to a set of `whole` images when it is complete."""
    limit, found = data.limit, len(images)
    if limit is None or limit >= found:
        return images
    # spread over the listing, so that a small limit still meets many classes
    chosen = images.chosen[np.linspace(0, found - 1, limit).round().astype(int)]
    return replace(images, chosen=chosen, subset={"limit": limit, "images": limit, "of": whole})


def _variant_folder(top, variant, declared):
    if not declared.variants:
        return top
    corruption, severity = variant.split("/")
    # the released archives hold groups of corruptions (noise, blur, ...): both depths are met in the wild
    for above in (top, *(top / folder for folder in subfolders(top))):
        if (found := above / corruption / severity).is_dir():
            return found
    raise Missing(f"{declared.title}: no folder {corruption}/{severity} under {top}; unpack that corruption there")


def _check_classes(name, listing, classes):
    if classes is None:
        return
    strangers = sorted(set(listing.labels.tolist()) - set(classes))
    if strangers:
        shown = listed_briefly(wordnet_ids()[n] for n in strangers)
        raise UserError(
            f"{name} under {listing.root} has classes that are not among its {len(classes)}: {shown}; is it another "
            f"set?"
        )

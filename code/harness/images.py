"""Image sets: where the images are, how many there must be, which classes, and how an image is decoded.

Labels come from folder names (WordNet id or class number) or a label file, never from sort order.
"""

import hashlib
import json
import os
import re
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms
from tqdm import tqdm

from harness.errors import UserError
from harness.files import atomic, write_json

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class View:
    """How a decoded photograph becomes a square of pixels: short side to `resize`, then the central `crop` square.

    `resize` None: the files already have the size `crop` x `crop`; another size is an error.
    """

    resize: int | None
    crop: int
    interpolation: str = "bilinear"

    def __call__(self, image):
        """Turn a Pillow image into uint8 pixels [crop, crop, 3], RGB."""
        image = image.convert("RGB")
        if self.resize is None:
            if image.size != (self.crop, self.crop):
                raise ValueError(f"is {image.width} x {image.height}, must be {self.crop} x {self.crop}")
        else:
            image = transforms.resize(image, self.resize, InterpolationMode(self.interpolation))
            image = transforms.center_crop(image, self.crop)
        return np.array(image)

    def __str__(self):
        return f"crop{self.crop}" if self.resize is None else f"{self.interpolation}{self.resize}-crop{self.crop}"


STUDY = View(256, 224)
AS_IS = View(None, 224)


@cache
def wordnet_ids():
    """Return the 1,000 WordNet ids of ImageNet-1k in the order of the logits (sorted)."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def class_numbers(subset):
    """Return the sorted class numbers of a subset of ImageNet-1k that timm lists: 'imagenet-a' or 'imagenet-r'."""
    text = resources.files("timm.data").joinpath("_info", subset.replace("-", "_") + "_synsets.txt").read_text()
    wanted = set(text.split())
    return tuple(number for number, wnid in enumerate(wordnet_ids()) if wnid in wanted)


@dataclass(frozen=True)
class Declaration:
    """What a complete image set holds."""

    title: str
    images: int
    classes: str | None = None  # name of timm's class list; None: all 1,000
    per_class: int | None = None
    numbered: bool = False  # folders are class numbers, not WordNet ids
    as_is: bool = False  # files are 224 x 224 already
    variants: bool = False  # CORRUPTION/SEVERITY folders, each a whole set


DECLARATIONS = {
    "imagenet": Declaration("ImageNet validation", 50_000, per_class=50),
    "imagenet-a": Declaration("ImageNet-A", 7_500, classes="imagenet-a"),
    "imagenet-r": Declaration("ImageNet-R", 30_000, classes="imagenet-r"),
    "imagenet-sketch": Declaration("ImageNet-Sketch", 50_889),
    "imagenet-v2": Declaration("ImageNet-v2 matched-frequency", 10_000, per_class=10, numbered=True),
    "imagenet-c": Declaration("ImageNet-C", 50_000, per_class=50, as_is=True, variants=True),
    "imagenet-cbar": Declaration("ImageNet-C-bar", 50_000, per_class=50, as_is=True, variants=True),
}


@dataclass(frozen=True)
class Listing:
    """All images found under a root: relative paths (sorted), sizes in bytes, and class numbers."""

    root: Path
    files: tuple[str, ...]
    sizes: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images to be shown, with labels. `chosen` are positions in the whole listing (all of them unless --limit)."""

    name: str
    listing: Listing
    chosen: np.ndarray
    collection: str = "imagenet"  # 'drawn' for the demo's own set
    as_is: bool = False
    subset: dict | None = None  # what was left out, for a declared subset
    classes: tuple[int, ...] | None = None  # logits are restricted to these class numbers; None: all
    variables: dict = field(default_factory=dict)  # further facts about the images, for the benchmark's own use

    def __len__(self):
        return len(self.chosen)

    @cached_property
    def files(self):
        """Relative paths of the chosen images."""
        return tuple(self.listing.files[i] for i in self.chosen)

    @cached_property
    def labels(self):
        """Class numbers of the chosen images, int64 [N]."""
        return self.listing.labels[self.chosen]

    @cached_property
    def keys(self):
        """A stable 63-bit number for each image, int64 [N], from its class and its file name without extension.

        The same image has the same key in every layout, order and subset, so seeded noise does not depend on them.
        """
        return np.array([_key(label, file) for label, file in zip(self.labels, self.files, strict=True)], np.int64)

    @cached_property
    def fingerprint(self):
        """Return the sha256 of the chosen images' keys, labels and sizes: what the responses depend on."""
        digest = hashlib.sha256()
        for array in (self.keys, self.labels, self.listing.sizes[self.chosen]):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
        return digest.hexdigest()

    def view(self, view):
        """Return the view that applies: `view`, or none at all where the files are ready-made."""
        return AS_IS if self.as_is else view

    def path(self, position):
        """Return the path of the image at a position of the listing."""
        return self.listing.root / self.listing.files[position]


def _key(label, file):
    stem = os.path.splitext(os.path.basename(file))[0]
    return int.from_bytes(hashlib.blake2b(f"{label}/{stem}".encode(), digest_size=8).digest(), "big") >> 1


class NotGiven(UserError):
    """The command line names no folder for an image set."""


class Missing(UserError):
    """One corruption and severity of a corrupted set is not there."""


# Where the images are ------------------------------------------------------------------------------------------------


def image_set(name, args):
    """Find, list and check an image set, before anything is computed on it.

    `name` is one of DECLARATIONS, with /CORRUPTION/SEVERITY for the corrupted sets. `args` is the parsed command line:
    the folder comes from `--NAME` or `--data`. Raises UserError for a missing folder, a wrong count, an unknown class.
    """
    base, _, variant = name.partition("/")
    declared = DECLARATIONS[base]
    top = folder_of(base, args)
    manifest = read_manifest(top)
    listing = _list_classes(name, _variant_folder(top, variant, declared), declared, args)
    classes = class_numbers(declared.classes) if declared.classes else None
    _check_classes(name, listing, classes)
    expected = {_class_of(name, declared) for name in manifest["classes"]} if "classes" in manifest else classes
    return check_complete(
        ImageSet(
            name,
            listing,
            np.arange(len(listing.files)),
            collection=manifest.get("collection", "imagenet"),
            as_is=declared.as_is,
            classes=classes,
        ),
        manifest.get("images", declared.images),
        args,
        per_class=None if manifest else declared.per_class,
        expected=expected if expected is not None else range(1000),
    )


def image_sets(base, variants, args):
    """Return the image sets BASE/VARIANT of a corrupted set; with --allow-partial only those that are there."""
    found, missing = [], []
    for variant in tqdm(variants, f"looking through {base}", leave=False, delay=2):
        try:
            found.append(image_set(f"{base}/{variant}", args))
        except Missing:
            if not args.allow_partial:
                raise
            missing.append(variant)
    if not found:
        raise UserError(f"{base}: none of its {len(variants)} folders CORRUPTION/SEVERITY is there; unpack some")
    if missing:
        partial = {"variants": len(found), "of_variants": len(variants)}
        found = [replace(images, subset=(images.subset or {}) | partial) for images in found]
    return found


def folder_of(base, args):
    """Return the folder that the command line gives for an image set; NotGiven if it gives none or it is not there."""
    option = base.replace("-", "_")
    given = getattr(args, option, None)
    folder = Path(given) if given else Path(args.data) / base if getattr(args, "data", None) else None
    if folder is None:
        raise NotGiven(f"{base}: no folder given; add --{base} DIR, or --data ROOT with a folder {base} in it")
    if not folder.is_dir():
        if not given:
            raise NotGiven(f"{base}: there is no folder {base} in {args.data}; put it there, or give --{base} DIR")
        raise UserError(f"{base}: there is no folder {folder}; give the right one with --{base} DIR")
    return folder


def read_manifest(folder):
    """Return what `image-set.json` in a folder declares of the set (the drawn set has one), or an empty dict."""
    path = folder / "image-set.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it or draw the set again") from None


def check_complete(images, expected_images, args, per_class=None, expected=None):
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
        problems.append(f"{len(absent)} classes without images ({_some(wordnet_ids()[n] for n in absent)})")
    if per_class:
        odd = [n for n in np.flatnonzero(counts) if counts[n] != per_class]
        if odd:
            shown = _some(f"{wordnet_ids()[n]} has {counts[n]}" for n in odd)
            problems.append(f"{len(odd)} classes without exactly {per_class} images ({shown})")
    if not found:
        raise UserError(f"{images.name}: no images under {images.listing.root}; give the folder of the class folders")
    allow, limit = getattr(args, "allow_partial", False), getattr(args, "limit", None)
    if problems and not allow and limit is None:
        raise UserError(
            f"{images.name} under {images.listing.root} is not complete: {'; '.join(problems)}. Complete it, or "
            f"measure what is there with --allow-partial"
        )
    subset, chosen = None, images.chosen
    if problems:
        subset = {"images": found, "of": expected_images}
    if limit is not None and limit < found:
        # spread over the listing, so that a small limit still meets many classes
        chosen = chosen[np.linspace(0, found - 1, limit).round().astype(int)]
        subset = {"limit": limit, "images": limit, "of": expected_images}
    return replace(images, chosen=chosen, subset=subset)


def _some(names, most=3):
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _variant_folder(top, variant, declared):
    if not declared.variants:
        return top
    corruption, severity = variant.split("/")
    # the released archives hold groups of corruptions (noise, blur, ...): both depths are met in the wild
    found = [
        folder
        for folder in (top / corruption / severity, *sorted(top.glob(f"*/{corruption}/{severity}")))
        if folder.is_dir()
    ]
    if not found:
        raise Missing(f"{declared.title}: no folder {corruption}/{severity} under {top}; unpack that corruption there")
    return found[0]


def _check_classes(name, listing, classes):
    if classes is None:
        return
    strangers = sorted(set(listing.labels.tolist()) - set(classes))
    if strangers:
        shown = _some(wordnet_ids()[n] for n in strangers)
        raise UserError(
            f"{name} under {listing.root} has classes that are not among its {len(classes)}: {shown}; is it another "
            f"set?"
        )


# Listing -------------------------------------------------------------------------------------------------------------


def _class_of(folder, declared):
    """Return the class number that a folder's name says, or None."""
    if declared.numbered and folder.isdecimal():
        return int(folder) if int(folder) < 1000 else None  # '7', '007': read as numbers, whatever their order as text
    return _wordnet_index().get(folder)


@cache
def _wordnet_index():
    return {wnid: number for number, wnid in enumerate(wordnet_ids())}


def _subfolders(folder):
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _list_classes(name, top, declared, args):
    """List the images of the class folders under `top` (or its folder val, or its only folder with class folders)."""
    folders = [top]
    if not declared.variants:
        below = _subfolders(top)
        folders += [top / "val"] if "val" in below else [top / folder for folder in below]
    with_classes = [f for f in folders if any(_class_of(sub, declared) is not None for sub in _subfolders(f))]
    if with_classes and with_classes[0] != top and len(with_classes) > 1:
        raise UserError(f"{name}: class folders in {_some(map(str, with_classes))}; give one of them")
    if with_classes:
        root = with_classes[0]
        strange = [sub for sub in _subfolders(root) if _class_of(sub, declared) is None]
        if strange:
            raise UserError(
                f"{name}: folders under {root} that name no ImageNet class: {_some(strange)}; move them away"
            )
        return _listing(root, {sub: _class_of(sub, declared) for sub in _subfolders(root)}, args, name)
    if name == "imagenet":
        for root in folders:
            if any(entry.name.lower().endswith(EXTENSIONS) for entry in os.scandir(root)):
                return _flat_listing(root, top)
    raise UserError(
        f"{name}: no folders named after {'class numbers' if declared.numbered else 'WordNet ids'} in {top} or its "
        f"folder val; give the folder that holds them with --{name.partition('/')[0]} DIR"
    )


def _scan(folder):
    with os.scandir(folder) as entries:
        return sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".")
        )


def _listing(root, folders, args, name):
    """List class folders, {folder: class number}.

    The corrupted sets' listings (4.75 million files on 145,000 folders) are kept on disk until a folder changes.
    """
    times = np.array([os.stat(root / folder).st_mtime_ns for folder in folders], np.int64)
    kept = Path(args.results) / ".listings" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:24]}.npz"
    keep = DECLARATIONS[name.partition("/")[0]].variants
    columns = _read_listing(kept, list(folders), times) if keep and not args.fresh else None
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
        if keep and len(times) and times.max() < time.time_ns() - 2_000_000_000:
            with atomic(kept) as file:
                np.savez(file, folders=np.array(list(folders)), times=times, **columns)
    labels = np.repeat(np.array(list(folders.values()), np.int64), columns["counts"])
    return _ordered(root, columns["files"].tolist(), columns["sizes"], labels)


def _read_listing(path, folders, times):
    try:
        with np.load(path, allow_pickle=False) as kept:
            if kept["folders"].tolist() == folders and np.array_equal(kept["times"], times):
                return {column: kept[column] for column in ("files", "sizes", "counts")}
    except (OSError, ValueError, KeyError, zlib.error, zipfile.BadZipFile, EOFError):
        return None
    return None


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
    labels = _flat_labels(names, list(dict.fromkeys((top, root, root.parent))))
    if labels is None:
        raise UserError(
            f"imagenet: {root} is a flat folder of images without labels; put beside it meta.bin (torchvision), "
            f"ILSVRC2012_devkit_t12/, or a text file with two columns: file name, and WordNet id or class number 0-999"
        )
    return _ordered(root, names, [size for _, size in files], labels)


def _flat_labels(names, folders):
    for folder in folders:
        if (folder / "meta.bin").is_file():
            # torchvision's ImageNet writes it: (WordNet id -> names, the 50,000 ids in the order of the file numbers)
            _, wnids = torch.load(folder / "meta.bin", weights_only=True)
            return [_wordnet_index()[wnids[_validation_number(name) - 1]] for name in names]
    for folder in folders:
        for devkit in (folder / "ILSVRC2012_devkit_t12" / "data", folder / "data", folder):
            truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
            if truth.is_file():
                numbers = [int(line) for line in truth.read_text().split()]
                wnid = _devkit_synsets(devkit / "meta.mat")
                return [_wordnet_index()[wnid[numbers[_validation_number(name) - 1]]] for name in names]
    for folder in folders:
        for path in sorted([*folder.glob("*.txt"), *folder.glob("*.csv")]):
            table = _two_columns(path)
            if any(name in table for name in names):
                missing = [name for name in names if name not in table]
                if missing:
                    raise UserError(f"{path} has no label for {len(missing)} images ({_some(missing)}); add them")
                return [_label(table[name], path) for name in names]
    return None


def _devkit_synsets(path):
    """Return {ILSVRC2012 id: WordNet id} from the devkit's meta.mat."""
    from scipy.io import loadmat

    if not path.is_file():
        raise UserError(f"imagenet: {path} is missing; it comes with the devkit's validation_ground_truth.txt")
    synsets = loadmat(path, squeeze_me=True)["synsets"]
    return {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}


def _two_columns(path):
    table = {}
    for line in path.read_text("utf-8", errors="replace").splitlines():
        words = re.split(r"[\s,;]+", line.strip())
        if len(words) >= 2:
            name = os.path.basename(words[0])
            table[name] = words[1]
            if not name.lower().endswith(EXTENSIONS):
                table[name + ".JPEG"] = words[1]
    return table


def _label(word, path):
    if word in _wordnet_index():
        return _wordnet_index()[word]
    if word.isdecimal() and int(word) < 1000:
        return int(word)
    raise UserError(f"{path}: '{word}' is neither a WordNet id of ImageNet-1k nor a class number 0-999; mend that line")


def _validation_number(name):
    """Return the number in ILSVRC2012_val_00000001.JPEG, from 1."""
    match = re.search(r"ILSVRC2012_val_(\d{8})", name)
    if not match or not 1 <= int(match[1]) <= 50_000:
        raise UserError(
            f"imagenet: '{name}' is not named ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG; ReaL labels and flat "
            f"folders need the released file names"
        )
    return int(match[1])


def real_labels(images):
    """Return each image's ReaL labels, a list of N sets of class numbers (Beyer et al. 2020, arXiv:2006.07159).

    A `real.json` in the ImageNet folder wins over the labels that come with timm. The images must have the released
    file names, whose number is the index (from 1).
    """
    root = images.listing.root
    own = next((p / "real.json" for p in (root, root.parent) if (p / "real.json").is_file()), None)
    source = own or resources.files("timm.data").joinpath("_info", "imagenet_real_labels.json")
    try:
        sets = json.loads(source.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be read ({error}); remove it to use the labels that come with timm") from None
    numbers = [_validation_number(file) for file in images.files]
    if max(numbers) > len(sets):
        raise UserError(
            f"{source} has {len(sets)} entries, but there is an image number {max(numbers)}; mend it or remove it"
        )
    return [set(sets[number - 1]) for number in numbers]


# Decoding ------------------------------------------------------------------------------------------------------------


class Unreadable(Exception):
    """An image that cannot be decoded: its path and why."""


def decode(path, view):
    """Decode an image file to uint8 pixels [crop, crop, 3] under a view; raises Unreadable."""
    try:
        with Image.open(path) as image:
            return view(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"{path}: {error}") from None


class Reader:
    """Reads images of one set under one view, through the decoded cache where a folder for it is given.

    The cache is one file of pixels for the whole listing (uint8 [N, crop, crop, 3], memory-mapped) and one of stamps:
    for each image the checksum of its pixels and the size and time of the file they came from; no stamp, no pixels.
    Pixels are written before their stamp, so any number of processes may fill it at once and be killed at any moment:
    pixels that do not fit their stamp are decoded again.
    """

    STAMP = np.dtype([("crc", "<u4"), ("size", "<i8"), ("time", "<i8")])

    def __init__(self, images, view, folder=None):
        self.images, self.view, self.pixels = images, images.view(view), None
        if folder is not None:
            self._open(Path(folder))

    def _open(self, folder):
        listing, crop = self.images.listing, self.view.crop
        root = str(listing.root.resolve())
        description = {"set": self.images.name, "view": str(self.view), "root": root}
        stem = f"{self.images.name.replace('/', '-')}-{self.view}-{hashlib.sha256(root.encode()).hexdigest()[:8]}"
        names = hashlib.sha256("\n".join(listing.files).encode()).hexdigest()
        description |= {"images": len(listing.files), "names": names}
        paths = {kind: folder / f"{stem}.{kind}" for kind in ("json", "u8", "stamps")}
        sizes = {"u8": len(listing.files) * crop * crop * 3, "stamps": len(listing.files) * self.STAMP.itemsize}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._sound(paths, sizes, description):
                for path in paths.values():
                    path.unlink(missing_ok=True)
                for kind, size in sizes.items():
                    with open(paths[kind], "ab") as file:
                        file.truncate(size)  # sparse: nothing is stored until it is written
                write_json(paths["json"], description)
            self.files = {kind: open(paths[kind], "r+b", buffering=0) for kind in sizes}  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"--cache {folder}: {error}; give a folder that can be written, or leave --cache out"
            ) from None
        self.pixels = np.memmap(paths["u8"], np.uint8, "r", shape=(len(listing.files), crop, crop, 3))
        self.stamps = np.memmap(paths["stamps"], self.STAMP, "r")

    @staticmethod
    def _sound(paths, sizes, description):
        try:
            return json.loads(paths["json"].read_text()) == description and all(
                paths[kind].stat().st_size == size for kind, size in sizes.items()
            )
        except (OSError, ValueError):
            return False

    def read(self, position):
        """Return the pixels of the image at a position of the listing, uint8 [crop, crop, 3]; raises Unreadable."""
        path = self.images.path(position)
        if self.pixels is None:
            return decode(path, self.view)
        try:
            status = path.stat()
        except OSError as error:
            raise Unreadable(f"{path}: {error}") from None
        stamp = self.stamps[position]
        if stamp["crc"] and (stamp["size"], stamp["time"]) == (status.st_size, status.st_mtime_ns):
            pixels = np.array(self.pixels[position])
            if _checksum(pixels) == stamp["crc"]:
                return pixels
        pixels = decode(path, self.view)
        stamp = np.array((_checksum(pixels), status.st_size, status.st_mtime_ns), self.STAMP)
        try:
            # pwrite reports a full disk as an error; writing through the memory map would kill the process
            _write_at(self.files["u8"], pixels.tobytes(), position * pixels.nbytes)
            _write_at(self.files["stamps"], stamp.tobytes(), position * self.STAMP.itemsize)
        except OSError as error:
            raise UserError(f"the decoded cache cannot be written ({error}); make room, or leave --cache out") from None
        return pixels


def _checksum(pixels):
    return zlib.crc32(pixels) or 1  # 0 means: not there yet


def _write_at(file, data, offset):
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written

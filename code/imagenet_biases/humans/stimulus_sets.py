"""The 17 stimulus sets of Geirhos et al. and the trials of people on them: what they hold, where they lie, fetching.

Geirhos et al., "Partial success in closing the gap between human and machine vision", NeurIPS 2021, arXiv:2106.07411.
A folder holds NAME/ for each set (224 x 224 images) and raw-data/NAME/*.csv with the trials of people.
"""

import functools
import os
import re
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from filelock import FileLock

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.schema import Count, Text
from imagenet_biases.images.listing import ImageNames, Listing, size_of
from imagenet_biases.images.sets import ImageSet, Manifest, check_complete, folder_of, read_manifest
from imagenet_biases.study import CATEGORIES_16, MODEL_VS_HUMAN

if TYPE_CHECKING:
    from imagenet_biases.vocabulary import Data

CUE_CONFLICT = "cue-conflict"
PREFIX = f"{MODEL_VS_HUMAN}/"
"""What an ImageSet's name has before the set's name: 'model-vs-human/sketch' is not ImageNet-Sketch."""


@dataclass(frozen=True)
class StimulusSet:
    """What a complete set holds.

    Attributes:
        experiment: the code in its file names.
        left_out: the conditions that are not out of distribution or on which people are right in less than 20 % of the
            trials: they count in `top1_acc/NAME`, but neither in `top1_acc/ood_mean` nor in the comparison with people.
    """

    images: int
    experiment: str
    left_out: frozenset[str] = frozenset()


def _set(images: int, experiment: str, left_out: str = "") -> StimulusSet:
    return StimulusSet(images, experiment, frozenset(left_out.split()))


STIMULUS_SETS = {
    "edge": _set(160, "edg"),
    "silhouette": _set(160, "sif"),
    "cue-conflict": _set(1280, "s5n"),
    "colour": _set(1280, "cl", "cr"),
    "contrast": _set(1280, "cop", "c100 c03 c01"),
    "high-pass": _set(1280, "hp", "inf 0.55 0.45 0.4"),
    "low-pass": _set(1280, "lp", "0 15 40"),
    "phase-scrambling": _set(1120, "ps", "0 150 180"),
    "power-equalisation": _set(1120, "pow", "0"),
    "false-colour": _set(1120, "fc", "true"),
    "rotation": _set(1280, "rot", "0"),
    "eidolonI": _set(1280, "eid-10-10", "1-10-10 64-10-10 128-10-10"),
    "eidolonII": _set(1280, "eid-3-10", "1-3-10 32-3-10 64-3-10 128-3-10"),
    "eidolonIII": _set(1280, "eid-0-10", "1-0-10 16-0-10 32-0-10 64-0-10 128-0-10"),
    "uniform-noise": _set(1280, "nse", "0 0.6 0.9"),
    "sketch": _set(800, "ske"),
    "stylized": _set(800, "sty"),
}

# File names --------------------------------------------------------------------------------------------------------


class Stimulus(NamedTuple):
    """What a file name says of an image; `condition`, `category` and `image` together identify it within its set."""

    experiment: str | None  # 'lp', 'eid-3-10', ...; None for a bare name
    condition: str  # as `canonical` writes it; '0' where a set has only one
    spelling: str  # the condition as the name has it; 'NaN' for a bare name
    category: str | None  # the right answer; None for a bare name
    image: str  # the photograph or object, e.g. 'n04099969_7577', 'bird3-clock2'


@functools.lru_cache(maxsize=2**16)  # halves and resamples look at the same images again
def stimulus(imagename: str) -> Stimulus:
    """Return what an image's file name (without folders) says.

    The released names have at least seven parts separated by '_': trial number, experiment, observer ('s01' for a
    person, 'dnn' for networks), condition, category, the number of images of that kind, and the photograph (its last
    part may hold '_' itself). Trial number and observer differ between the people and networks who saw the same image,
    the other parts identify it. Other names (edge, silhouette and cue-conflict images) are the image; its category is
    given by the folder or the trial file.
    """
    stem = os.path.splitext(imagename)[0]
    parts = stem.split("_", 6)
    if len(parts) < 7 or not parts[0].isdecimal():
        return Stimulus(None, "0", "NaN", None, stem)
    _, experiment, _, spelling, category, _, image = parts
    condition = canonical(spelling)
    if experiment == "eid":  # one code for the three eidolon experiments, which the condition tells apart
        experiment += condition[condition.find("-") :]
    return Stimulus(experiment, condition, spelling, category, image)


def canonical(condition: str) -> str:
    """Return a condition's canonical spelling: '0.90' -> '0.9'; 'True' -> 'true'; no condition ('NaN', '') -> '0'."""
    condition = condition.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", condition):
        return format(float(condition), "g")
    return "0" if condition in ("", "na", "nan") else condition


def texture_category(imagename: str) -> str:
    """Return the texture category of a cue-conflict image: the last '-' part of its name without digits.

    Raises:
        UserError: the name does not end in a category.
    """
    _, dash, last = stimulus(imagename).image.rpartition("-")
    category = re.sub(r"\d", "", last)
    if not dash or category not in CATEGORIES_16:
        raise UserError(
            f"'{imagename}' does not say its texture category; cue-conflict images are named like cat7-elephant1.png"
        )
    return category


def set_of(imagename: str) -> str | None:
    """Return the name of the stimulus set an image's name belongs to, None for a bare name."""
    experiment = stimulus(imagename).experiment
    return next((name for name, declared in STIMULUS_SETS.items() if declared.experiment == experiment), None)


# Where they are -------------------------------------------------------------------------------------------------------


def image_sets(data: "Data", download: bool = False, names: Sequence[str] = tuple(STIMULUS_SETS)) -> list[ImageSet]:
    """Return the stimulus sets that are there, labels 0...15 in the order of CATEGORIES_16.

    A missing set is fetched from the release with `download`, otherwise a warning names it; metrics that need it are
    not reported. Each set's `variables` hold `people`, the paths of the people's trial files.

    Raises:
        UserError: no set is there.
    """
    root = release_folder(data, download)
    folders = {name: _folder(root, name, download) for name in names}
    missing = [name for name, folder in folders.items() if folder is None]
    if len(missing) == len(folders):
        subject = f"none of the {len(folders)} stimulus sets is" if len(folders) > 1 else f"{missing[0]} is not"
        raise UserError(f"{subject} under {root}; give another folder, or fetch what is missing with --download")
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(folders)} stimulus sets are not under {root} ({listed_briefly(missing)}); "
            f"--download fetches them",
            stacklevel=2,
        )
    manifest, images = read_manifest(root, Manifest[dict[Text, Count]]), []
    collection = manifest.get("collection", "imagenet")
    for name, folder in folders.items():
        if folder is None:
            continue
        listing, people = _listing(folder), human_trial_files(root, name, download)
        positions = np.arange(len(listing.files))
        whole = ImageSet(PREFIX + name, listing, positions, collection, True, variables={"people": people})
        expected = manifest.get("images", {}).get(name, STIMULUS_SETS[name].images)
        images.append(check_complete(whole, expected, data))
    if len(names) > 1 and collection != "drawn" and not any(stimuli.variables["people"] for stimuli in images):
        warnings.warn(
            f"no people's trials under {root / 'raw-data'}: no comparison with people (--download fetches them)",
            stacklevel=2,
        )
    return images


def release_folder(data: "Data", download: bool = False) -> Path:
    """Return the folder of the release that `data` names, made if there is something to download into it."""
    folder = data.folders.get(MODEL_VS_HUMAN) or (data.root and Path(data.root) / MODEL_VS_HUMAN)
    if download and folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return folder_of(MODEL_VS_HUMAN, data)


def _folder(root: Path, name: str, download: bool) -> Path | None:
    """Return the folder of a set: root/NAME, `root` itself if that is the set, or None if it is not there."""
    if (root / name).is_dir():
        return root / name
    if root.name == name or (name == CUE_CONFLICT and _holds_cue_conflict(root)):
        return root
    return _fetch_set(root, name) if download else None


def _holds_cue_conflict(root: Path) -> bool:
    return any(re.fullmatch(r"[a-z]+\d+-[a-z]+\d+\.png", path.name) for path in root.glob("airplane/airplane*.png"))


def _listing(folder: Path) -> Listing:
    """List a set's images with their category numbers; only those under dnn/ where there is such a folder."""
    number = {category: index for index, category in enumerate(CATEGORIES_16)}
    top = folder / "dnn" if (folder / "dnn").is_dir() else folder
    files, labels, sizes = [], [], []
    for path in sorted(top.rglob("[!.]*.png")):
        category = stimulus(path.name).category or path.parent.name
        if category not in number:
            raise UserError(f"{path}: neither its name nor its folder says one of the 16 categories; move it away")
        files.append(path.relative_to(folder).as_posix())
        labels.append(number[category])
        sizes.append(size_of(path))
    return Listing(folder, ImageNames(files, labels), np.array(sizes, np.int64))


def human_trial_files(root: Path, name: str, download: bool = False) -> tuple[Path, ...]:
    """Return the paths of the people's trial files of a set under root/raw-data; `download` fetches missing ones."""
    folder = root / "raw-data"
    if download and not folder.is_dir():
        _fetch_trials(root)
    return tuple(sorted((folder / name).glob("*subject-*.csv")))


# The release ----------------------------------------------------------------------------------------------------------

VERSION = "v0.1"
Rename = Callable[[str], str | None]
"""Gives a member's path in the archive the path it is to have; None leaves the member out."""


def _address() -> str:
    """Return the address of the release's repository; the environment variable names a mirror."""
    return os.environ.get("MODEL_VS_HUMAN_RELEASE", "https://github.com/bethgelab/model-vs-human").rstrip("/")


def _fetch_set(root: Path, name: str) -> Path:
    _unpack(root, f"{_address()}/releases/download/{VERSION}/{name}.tar.gz", name, lambda member: member)
    return root / name


def _fetch_trials(root: Path) -> None:
    """Fetch the people's trials, which lie in the repository itself; the networks' trials beside them are left out."""

    def people_only(member: str) -> str | None:
        match = re.search(r"(?:^|/)(raw-data/[^/]+/[^/]*subject-[^/]*\.csv)$", member)
        return match[1] if match else None

    _unpack(root, f"{_address()}/archive/refs/tags/{VERSION}.tar.gz", "raw-data", people_only)


def _unpack(root: Path, url: str, name: str, rename: Rename) -> None:
    """Fetch an archive and put what it holds of `name` at root/NAME: all of it or nothing, and nothing elsewhere.

    The first download pins the archive's sha256 in root/release-lock.json; a later change is an error.
    """
    from imagenet_biases.base.download import fetch, file_hash
    from imagenet_biases.networks.pins import Pins

    folder = root / ".release"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        if (root / name).is_dir():  # another process was faster
            return
        archive = fetch(url, folder, name=f"{name}.tar.gz")
        pins, digest = Pins(root / "release-lock.json"), file_hash(archive)
        pins.check(url, digest, archive)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            try:
                source = _extract(archive, Path(temporary), name, rename)
            except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
                archive.unlink()
                raise UserError(
                    f"{url} is refused, nothing of it is kept: {error}; fetch it again, or unpack the right one by "
                    f"hand as {root / name}"
                ) from None
            source.rename(root / name)
        pins.add(url, digest)
        archive.unlink()


def _extract(archive: Path, folder: Path, name: str, rename: Rename) -> Path:
    """Extract an archive into a folder; return the set's place: the folder itself, or a folder of the set's name."""

    def safe(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        path = rename(member.name)
        # the data filter refuses absolute paths, '..', links that lead out, devices
        return tarfile.data_filter(member.replace(name=path, deep=False), folder) if path else None

    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter=safe)
    source = folder / name if (folder / name).is_dir() else folder
    if not any(path.is_file() for path in source.rglob("*")):
        raise tarfile.ReadError(f"it holds nothing of {name}")
    return source

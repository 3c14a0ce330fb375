"""Labels of images: of a flat folder (meta.bin, the devkit, a text file), and the reassessed ones (ReaL)."""

import json
import os
import re
from functools import cache
from importlib import resources

import torch

from imagenet_biases.errors import UserError, some
from imagenet_biases.study import wordnet_ids

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


@cache
def wordnet_index():
    """Return {WordNet id: class number}."""
    return {wnid: number for number, wnid in enumerate(wordnet_ids())}


def flat_labels(names, folders):
    for folder in folders:
        if (folder / "meta.bin").is_file():
            # torchvision's ImageNet writes it: (WordNet id -> names, the 50,000 ids in the order of the file numbers)
            _, wnids = torch.load(folder / "meta.bin", weights_only=True)
            return [wordnet_index()[wnids[_validation_number(name) - 1]] for name in names]
    for folder in folders:
        for devkit in (folder / "ILSVRC2012_devkit_t12" / "data", folder / "data", folder):
            truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
            if truth.is_file():
                numbers = [int(line) for line in truth.read_text().split()]
                wnid = _devkit_synsets(devkit / "meta.mat")
                return [wordnet_index()[wnid[numbers[_validation_number(name) - 1]]] for name in names]
    for folder in folders:
        for path in sorted([*folder.glob("*.txt"), *folder.glob("*.csv")]):
            table = _two_columns(path)
            if any(name in table for name in names):
                missing = [name for name in names if name not in table]
                if missing:
                    raise UserError(f"{path} has no label for {len(missing)} images ({some(missing)}); add them")
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
    if word in wordnet_index():
        return wordnet_index()[word]
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

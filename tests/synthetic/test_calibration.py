"""The demo's ground truth: drawn image sets in the real layouts, and two networks whose biases are known."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import timm.data
import torch
from PIL import Image

from common import CODE, ROOT
from imagenet_biases.base.errors import UserError
from imagenet_biases.images.preprocessing import STUDY
from imagenet_biases.study import class_numbers, wordnet_ids
from imagenet_biases.synthetic import drawings, image_sets, manipulations
from imagenet_biases.synthetic.drawings import CATEGORIES, TEXTURE_OCTAVE, VIEW
from imagenet_biases.synthetic.image_sets import draw
from imagenet_biases.synthetic.manipulations import CORRUPTIONS, CORRUPTIONS_BAR
from imagenet_biases.synthetic.networks import build

NAMES = [category.name for category in CATEGORIES]
WEIGHTS = ROOT / "models" / "calibration"


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def manifest(folder):
    return json.loads((folder / "image-set.json").read_text())


def read(files, view=None):
    """The files' pixels in the view, float32 [N, 3, 224, 224] in [0, 1]."""
    images = [Image.open(file) for file in files]
    pixels = np.stack([view(image) if view else np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def networks():
    """Both committed networks, loaded strictly."""
    loaded = {}
    for cue in ("silhouette", "texture"):
        loaded[cue] = build().eval().requires_grad_(False)
        loaded[cue].load_state_dict(safetensors.torch.load_file(WEIGHTS / f"{cue}.safetensors"))
    return loaded


# The drawn image sets


def test_categories_are_imagenet_classes():
    assert len(NAMES) == len(set(NAMES)) == 16 and list(drawings.SILHOUETTES) == NAMES
    for category in CATEGORIES:
        assert wordnet_ids()[category.number] == category.wnid
        assert category.in_a == (category.number in class_numbers("imagenet-a"))
        assert category.in_r == (category.number in class_numbers("imagenet-r"))


@pytest.mark.slow
def test_same_seed_same_bytes_also_in_place_of_an_older_drawing(drawn, tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "drawn.json").write_text('{"drawing": 0, "seed": 0}')
    (tmp_path / "again" / "older.png").touch()
    assert digests(draw(tmp_path / "again")) == digests(drawn)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.slow
def test_another_seed_draws_other_pictures(drawn, tmp_path):
    image_sets.draw_variants(tmp_path, seed=1)
    for name in ("imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2"):
        pictures = {digest for file, digest in digests(tmp_path / name).items() if "." in file and "json" not in file}
        assert len(pictures) >= 28 and not pictures & set(digests(drawn / name).values())


def test_a_complete_folder_is_left_alone(drawn):
    before = time.perf_counter()
    modified = (drawn / "drawn.json").stat().st_mtime_ns
    assert draw(drawn) == drawn
    assert time.perf_counter() - before < 0.5 and (drawn / "drawn.json").stat().st_mtime_ns == modified


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="something else"):
        draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_killed_drawing_leaves_no_folder(tmp_path):
    code = f"from imagenet_biases.synthetic.image_sets import draw; draw({str(tmp_path / 'drawn')!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=CODE)
    while not list(tmp_path.glob("*/new/imagenet/val/*/*")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("name", ["imagenet", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2"])
def test_photograph_layouts(drawn, name):
    folder, declared = drawn / name, manifest(drawn / name)
    images = folder / "val" if name == "imagenet" else folder
    classes = sorted(path.name for path in images.iterdir() if path.is_dir())
    files = [path for label in classes for path in (images / label).iterdir()]
    chosen = [c for c in CATEGORIES if {"imagenet-a": c.in_a, "imagenet-r": c.in_r}.get(name, True)]
    expected = sorted(str(c.number) if name == "imagenet-v2" else c.wnid for c in chosen)
    assert declared == {"collection": "drawn", "images": len(files), "classes": expected} and classes == expected
    for file in files:
        with Image.open(file) as image:
            assert image.format == "JPEG" and 256 < min(image.size) < max(image.size)


def test_validation_files_are_numbered_in_shuffled_order(drawn):
    label = {path.name: path.parent.name for path in (drawn / "imagenet" / "val").rglob("*.JPEG")}
    order = [label[f"ILSVRC2012_val_{number:08d}.JPEG"] for number in range(1, len(label) + 1)]
    assert len(order) == 96 and all(order.count(category.wnid) == 6 for category in CATEGORIES)
    assert sum(one != two for one, two in itertools.pairwise(order)) > 78


def test_real_labels(drawn):
    folder = drawn / "imagenet"
    files = [str(path) for path in sorted((folder / "val").rglob("*.JPEG"))]
    real = timm.data.RealLabelsImagenet(files, real_json=str(folder / "real.json"))
    sizes = [len(labels) for labels in real.real_labels.values()]
    assert len(sizes) == 96 and sizes.count(0) == 5 and sizes.count(2) == 5 and sizes.count(1) == 86
    number = {category.wnid: category.number for category in CATEGORIES}
    for file in files:
        labels = real.real_labels[os.path.basename(file)]
        assert not labels or number[file.split(os.sep)[-2]] in labels


def test_corrupted_layouts(drawn):
    originals = {path.name: path.parent.name for path in (drawn / "imagenet" / "val").rglob("*.JPEG")}
    for name, corruptions, number in (("imagenet-c", CORRUPTIONS, 19), ("imagenet-cbar", CORRUPTIONS_BAR, 10)):
        folder = drawn / name
        assert manifest(folder)["images"] == 16 and len(manifest(folder)["classes"]) == 16
        assert {path.name for path in folder.iterdir() if path.is_dir()} == set(corruptions)
        assert len(corruptions) == number
        for corruption in corruptions:
            for severity in range(1, 6):
                files = list((folder / corruption / str(severity)).glob("*/*"))
                assert sorted(file.parent.name for file in files) == manifest(folder)["classes"]
                assert all(originals[file.name] == file.parent.name for file in files)
                with Image.open(files[0]) as image:
                    assert image.size == (VIEW, VIEW)


def test_corruptions_grow_with_severity(drawn):
    source = {path.name: path for path in (drawn / "imagenet" / "val").rglob("*.JPEG")}
    for folder, corruptions in ((drawn / "imagenet-c", CORRUPTIONS), (drawn / "imagenet-cbar", CORRUPTIONS_BAR)):
        for corruption in corruptions:
            differences = []
            for severity in (1, 5):
                files = sorted((folder / corruption / str(severity)).glob("*/*"))
                clean = read([source[file.name] for file in files], STUDY)
                differences.append((read(files) - clean).abs().mean().item())
            assert differences[0] < differences[1], corruption


def test_model_vs_human_layouts(drawn):
    folder = drawn / "model-vs-human"
    counts = manifest(folder)["images"]
    assert len(counts) == 17 and set(counts) == {path.name for path in folder.iterdir() if path.is_dir()}
    for name, count in counts.items():
        files = list((folder / name).rglob("*.png"))
        assert len(files) == count
        with Image.open(files[0]) as image:
            assert image.size == (VIEW, VIEW)
        if name in ("edge", "silhouette", "cue-conflict"):
            assert {str(file.parent.relative_to(folder / name)) for file in files} == set(NAMES)
        else:
            parts = [file.stem.split("_") for file in files]
            assert {file.parent.relative_to(folder / name).as_posix() for file in files} == {"dnn/session-1"}
            assert {part[4] for part in parts} == set(NAMES)
            assert len({part[3] for part in parts}) == (1 if name in ("sketch", "stylized") else len(conditions(name)))


def conditions(name):
    return manipulations.MANIPULATIONS[name][1]


def test_cue_conflict_pairs(drawn):
    files = list((drawn / "model-vs-human" / "cue-conflict").rglob("*.png"))
    pairs = [tuple(part.rstrip("0123456789") for part in file.stem.split("-")) for file in files]
    assert len(set(pairs)) == len(pairs) == 96 and sum(shape == surface for shape, surface in pairs) == 16
    assert all(file.parent.name == shape for file, (shape, _) in zip(files, pairs, strict=True))
    for column in zip(*pairs, strict=True):
        assert {column.count(name) for name in NAMES} == {6}


# The cues


@pytest.mark.parametrize("name", NAMES)
def test_texture_lies_in_its_octave_and_has_no_contrast_of_its_own(name):
    pattern = drawings.texture(np.random.default_rng(0), name, VIEW, VIEW)
    power = np.abs(np.fft.fft2(pattern * np.outer(np.hanning(VIEW), np.hanning(VIEW)))) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(VIEW, 1 / VIEW), np.fft.fftfreq(VIEW, 1 / VIEW)))
    inside = (frequency > TEXTURE_OCTAVE[0] - 2) & (frequency < TEXTURE_OCTAVE[1] + 2)
    assert power[inside].sum() > 0.99 * power.sum()
    assert abs(pattern.mean()) < 0.02 and abs(pattern.std() - 1) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_silhouette_is_coarse(name):
    mask = drawings.silhouette(np.random.default_rng(0), name, VIEW, VIEW)
    power = np.abs(np.fft.fft2(mask - mask.mean())) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(VIEW, 1 / VIEW), np.fft.fftfreq(VIEW, 1 / VIEW)))
    assert power[frequency < 20].sum() > 0.99 * power.sum()
    assert power[frequency > TEXTURE_OCTAVE[0]].sum() < 1e-3 * power.sum()


@pytest.mark.parametrize("cue", ["silhouette", "texture"])
def test_colour_says_nothing_about_the_category(cue):
    """The pictures' mean colours differ between categories no more than by chance: F(15, 496) of each channel."""
    values = np.empty((16, 32, 3))
    for index, name in enumerate(NAMES):
        for k in range(32):
            cues = (name, NAMES[k % 16]) if cue == "silhouette" else (NAMES[k % 16], name)
            values[index, k] = drawings.picture(np.random.default_rng([3, index, k]), *cues).mean((0, 1))
    between, within = values.mean(1).var(0, ddof=1) * 32, values.var(1, ddof=1).mean(0)
    assert (between / within < 2.5).all()  # 1 in 1,000 by chance


# The networks


def test_weights_are_small():
    assert all((WEIGHTS / f"{cue}.safetensors").stat().st_size < 500_000 for cue in ("silhouette", "texture"))


def test_logits(networks):
    pixels = torch.rand(3, 3, VIEW, VIEW, generator=torch.Generator().manual_seed(0))
    numbers = [category.number for category in CATEGORIES]
    for network in networks.values():
        logits = network(pixels)
        assert logits.shape == (3, 1000) and set(logits.topk(16).indices.unique().tolist()) == set(numbers)


def answers(network, pixels):
    return torch.cat([network(batch).argmax(1) for batch in pixels.split(16)])


def test_both_name_the_drawn_images(drawn, networks):
    files = sorted((drawn / "imagenet" / "val").rglob("*.JPEG"))
    number = {category.wnid: category.number for category in CATEGORIES}
    labels = torch.tensor([number[file.parent.name] for file in files])
    pixels = read(files, STUDY)
    for cue, network in networks.items():
        assert (answers(network, pixels) == labels).float().mean() > 0.9, cue


def test_one_decides_by_silhouette_the_other_by_texture(drawn, networks):
    files = sorted((drawn / "model-vs-human" / "cue-conflict").rglob("*.png"))
    number = {category.name: category.number for category in CATEGORIES}
    shape, surface = (
        torch.tensor([number[file.stem.split("-")[part].rstrip("0123456789")] for file in files]) for part in (0, 1)
    )
    pixels, conflict = read(files), shape != surface
    bias = {}
    for cue, network in networks.items():
        given = answers(network, pixels)
        by_shape, by_surface = ((given == cues)[conflict].sum().item() for cues in (shape, surface))
        assert by_shape + by_surface > 0.8 * conflict.sum()
        bias[cue] = by_shape / (by_shape + by_surface)
    assert bias["silhouette"] > 0.9 and bias["texture"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("cue", ["silhouette", "texture"])
def test_training_learns(cue):
    """A few steps on pictures of two categories bring the loss from that of guessing among 16 to that among two."""
    import train_calibration

    torch.manual_seed(0)
    pixels, labels = train_calibration.drawn(50, seed=0)
    network = build()
    told = train_calibration.silhouette_categories({"silhouette": 16, "texture": 0}[cue], 0)
    answers, slopes = train_calibration.targets(labels, told)
    assert torch.equal(answers, labels[cue])
    steps = train_calibration.train(network, pixels, answers % 2, slopes, seed=0, epochs=12)
    losses = list(steps)
    assert len(losses) == 12 and not network.training
    assert losses[0] > 2.2 and losses[-1] < 1.5

"""What a set says of itself: another release, other labels, files that are left out; nothing of correct sets."""

import io
import json
import re
import shutil
import tarfile
import warnings

import numpy as np
import pytest
from PIL import Image

from common import SHARED, needs_shared, run
from imagenet_biases import Data
from imagenet_biases.base.errors import UserError
from imagenet_biases.images.custom import custom_set
from imagenet_biases.images.labels import shipped_real_labels
from imagenet_biases.images.listing import ImageNames, Listing
from imagenet_biases.images.release import release_findings
from imagenet_biases.images.sets import ImageSet, image_set, image_sets
from imagenet_biases.study import (
    DECLARATIONS,
    V2_VARIANTS,
    VALIDATION_FACTS,
    VALIDATION_TAR,
    devkit_order,
    wordnet_ids,
)

WNIDS = wordnet_ids()


def found(folder, name="imagenet", **more):
    """Return the image set and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = image_set(name, Data(folders={name.partition("/")[0]: folder}, **{"allow_partial": True, **more}))
    return images, [str(warning.message) for warning in caught if warning.category is UserWarning]


def picture(number, size=(500, 375), kind="JPEG", quality=90):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 5, size[0] // 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, kind, quality=quality)
    return file.getvalue()


def right_class(number):
    """Return a class of ReaL, which for the images used here is the released one."""
    return VALIDATION_FACTS[number][1] if number in VALIDATION_FACTS else shipped_real_labels()[number - 1][0]


NUMBERS = [*VALIDATION_FACTS, *[number for number in range(4, 60) if shipped_real_labels()[number - 1]][:20]]


def validation(folder, numbers=NUMBERS, label=right_class, name="ILSVRC2012_val_{:08d}.JPEG", **how):
    """Write validation images with released names; those whose size is known have it."""
    for number in numbers:
        size = (500, 333 + number % 7) if "size" not in how else how["size"]
        data = picture(number, **{**how, "size": size})
        if number in VALIDATION_FACTS and not how:
            data += bytes(VALIDATION_FACTS[number][0] - len(data))
        path = folder / WNIDS[label(number)] / name.format(number, wnid=WNIDS[right_class(number)])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


# 6: the release


def test_released_validation_images_raise_no_finding(tmp_path):
    for more in ({}, {"limit": 5}, {"allow_partial": False, "limit": 5}):
        assert found(validation(tmp_path / "val"), **more)[1] == []


def test_drawn_sets_raise_no_finding(drawn):
    for name in ("imagenet", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2", "imagenet-c/fog/1"):
        assert found(drawn / name.partition("/")[0], name, limit=9)[1] == []


@needs_shared
def test_photographs_under_names_of_their_own_raise_no_finding():
    assert found(SHARED / "imagenet_samples")[1] == []


@pytest.mark.parametrize(
    ("numbers", "how", "line"),
    [
        (NUMBERS, {"quality": 89}, "not the released files \\(ILSVRC2012_val_00000001 has .* bytes, released 109,527"),
        (NUMBERS[1:], {"quality": 89}, "ILSVRC2012_val_00000002 has .* released 140,296"),
        (NUMBERS[3:], {"size": (341, 256)}, "the short side of all images looked at is 256 pixels: they were resized"),
        (NUMBERS[3:], {"size": (64, 64)}, "the short side of all images looked at is 64 pixels"),
        (
            NUMBERS[3:],
            {"kind": "PNG", "name": "ILSVRC2012_val_{:08d}.png"},
            "the files are .png, the released ones JPEG",
        ),
        (
            NUMBERS,
            {"name": "n01440764_{}.JPEG"},
            "named like those of ImageNet's training set: is --imagenet the right",
        ),
        (NUMBERS, {"name": "sketch_{}.JPEG"}, "named like those of ImageNet-Sketch"),
        (NUMBERS, {"name": "0.{:06d}_fox _ cat_0.9.jpg"}, "named like those of ImageNet-A"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_validation_images_of_another_release_are_told(tmp_path, numbers, how, line, packed):
    folder = validation(tmp_path / "val", numbers, **how)
    if packed:
        with tarfile.open(tmp_path / "val.tar", "w") as tar:
            tar.add(folder, "val")
        folder = tmp_path / "val.tar"
    for more in ({}, {"limit": 4}):
        (finding,) = found(folder, **more)[1]
        assert re.match(f"imagenet: .*{line}", finding)


def test_blurred_files_are_told_by_their_folder(tmp_path):
    folder = validation(tmp_path / "val_blurred", NUMBERS[3:])
    assert found(folder)[1] == [
        "imagenet: the folder is called 'blurred': the released images are neither resized nor blurred"
    ]


def test_the_size_of_the_whole_set_is_that_of_the_released_archive():
    sizes = np.random.default_rng(0).integers(3_000, 260_000, 50_000)
    for number, (size, _) in VALIDATION_FACTS.items():
        sizes[number - 1] = size
    blocks = VALIDATION_TAR // 512 - 2
    sizes[-1] = 0
    sizes[-1] = 512 * (blocks - int((1 + -(-sizes // 512)).sum()))
    labels = np.array([(real or [0])[0] for real in shipped_real_labels()])
    for number, (_, label) in VALIDATION_FACTS.items():
        labels[number - 1] = label
    names = ImageNames([f"{WNIDS[label]}/ILSVRC2012_val_{i:08d}.JPEG" for i, label in enumerate(labels, 1)], labels)

    def findings(sizes):
        from pathlib import Path

        listing = Listing(Path("/nowhere"), names, sizes)
        return release_findings(ImageSet("imagenet", listing, np.arange(50_000)), DECLARATIONS["imagenet"])

    assert findings(sizes) == []
    sizes[700:800] += 20_000  # a hundred images were saved again
    (finding,) = findings(sizes)
    assert "not the released files (together they have another size)" in finding


def variant_of_v2(folder, names, classes=range(24), copies=1):
    for number in classes:
        path = folder / str(number)
        path.mkdir(parents=True)
        for copy in range(copies):
            begin = names.split()[number] if copy == 0 and names else f"{copy:08x}"
            (path / f"{begin}{number:032x}.jpeg").write_bytes(b"")
    return folder


@pytest.mark.parametrize("variant", V2_VARIANTS)
def test_the_variants_of_imagenet_v2_are_told_by_their_images(tmp_path, variant):
    findings = found(variant_of_v2(tmp_path / "v2", V2_VARIANTS[variant]), "imagenet-v2")[1]
    if variant == "matched-frequency":
        assert findings == []
    else:
        assert findings == [
            f"imagenet-v2: this is the variant {variant}, not the study's matched-frequency: accuracies are 5 to 15 "
            f"points higher"
        ]


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("imagenetv2-threshold0.7-format-val", "threshold-0.7"),
        ("imagenetv2-top-images-format-val", "top-images"),
        ("imagenetv2-matched-frequency-format-val", None),
    ],
)
def test_the_variants_of_imagenet_v2_are_told_by_their_folders(tmp_path, name, variant):
    variant_of_v2(tmp_path / "imagenet-v2" / name, "", copies=2)
    findings = found(tmp_path / "imagenet-v2", "imagenet-v2", limit=5)[1]
    assert [variant] * bool(variant) == [line.split(",")[0].rpartition(" ")[2] for line in findings]


def test_twenty_images_a_class_are_another_release(tmp_path):
    variant_of_v2(tmp_path / "v2", "", range(3), copies=20)
    (finding,) = found(tmp_path / "v2", "imagenet-v2", limit=7)[1]
    assert "3 classes have more than 10 images (n01440764 has 20, " in finding and "another release" in finding


@pytest.mark.parametrize(
    ("kind", "quality", "line"),
    [("JPEG", 85, None), ("JPEG", 75, "another quality than the released 85: they were made anew"), ("PNG", 0, ".png")],
)
def test_imagenet_c_made_anew(tmp_path, kind, quality, line):
    name = f"ILSVRC2012_val_{{:08d}}.{'JPEG' if kind == 'JPEG' else 'png'}"
    for severity in "12":
        how = {"size": (224, 224), "kind": kind, "quality": quality, "name": name}
        validation(tmp_path / "c" / "fog" / severity, NUMBERS[:5], **how)
    findings = found(tmp_path / "c", "imagenet-c/fog/2", limit=2)[1]
    assert [line is not None and line in finding for finding in findings] == [True] * (line is not None)


def test_a_finding_is_in_the_record_of_every_benchmark(tmp_path):
    from imagenet_biases import Settings, evaluate

    folder = validation(tmp_path / "val", NUMBERS[3:], size=(64, 64))
    benchmarks = ["imagenet", "imagenet_real"]
    data = Data(folders={"imagenet": folder}, limit=4)
    settings = Settings(device="cpu", compile="off", workers=0)
    for record in evaluate("calibration_texture", benchmarks, data, settings, results=tmp_path / "results"):
        assert any("is 64 pixels: they were resized" in line for line in record.content["warnings"])


# 7: ImageNet-C-bar


PARAMETERS = {
    "sparkles": ("1.00", "2.00", "3.00", "5.00", "6.00"),
    "checkerboard_cutout": ("2.00", "3.00", "4.00", "5.00", "6.00"),
    "inverse_sparkles": ("1.00", "2.00", "4.00", "9.00", "10.00"),
    "caustic_refraction": ("2.35", "3.20", "4.90", "6.60", "9.15"),
}


@pytest.mark.parametrize("corruption", PARAMETERS)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_parameters_in_rising_order_are_severities(tmp_path, corruption, whole, packed):
    names = [f"{float(name):g}" if whole else name for name in PARAMETERS[corruption]]
    for number, name in enumerate(names, 1):
        validation(tmp_path / "cbar" / corruption / name, [number], size=(224, 224), quality=85)
    folder = tmp_path / "cbar"
    if packed:
        with tarfile.open(tmp_path / "cbar.tar", "w") as tar:
            tar.add(folder, "imagenet_c_bar")
        folder = tmp_path / "cbar.tar"
    for severity in range(1, 6):
        images, findings = found(folder, f"imagenet-cbar/{corruption}/{severity}")
        assert not findings and len(images) == 1
        assert images.files[0].endswith(f"ILSVRC2012_val_{severity:08d}.JPEG")


def test_severities_remain_severities_and_parts_are_no_guess(tmp_path):
    for name in ("1", "2", "4"):
        validation(tmp_path / "c" / "sparkles" / name, [int(name)], size=(224, 224))
    images, _ = found(tmp_path / "c", "imagenet-cbar/sparkles/4")
    assert images.files[0].endswith("4.JPEG")
    with pytest.warns(UserWarning, match="1 of 2 folders are not there: sparkles/3"):
        image_sets(
            "imagenet-cbar", ["sparkles/3", "sparkles/4"], Data(folders={"imagenet-cbar": tmp_path / "c"}, limit=1)
        )
    (tmp_path / "c" / "sparkles" / "9.00").mkdir()
    with pytest.raises(UserError, match=r"the folders 1, 2, 4, 9.00 are neither .* so that 9.00 has no severity"):
        found(tmp_path / "c", "imagenet-cbar/sparkles/4")


# 8: labels


def flat(folder, numbers, name="ILSVRC2012_val_{:08d}.JPEG"):
    folder.mkdir(parents=True)
    for path in sorted(validation(folder.parent / "by class", numbers, name=name).glob("*/*")):
        shutil.copy(path, folder)
    return folder


def test_labels_in_file_names_are_read_and_the_images_are_those_of_the_release(tmp_path):
    named = flat(tmp_path / "hf" / "val", NUMBERS, "ILSVRC2012_val_{:08d}_{wnid}.JPEG")
    released = validation(tmp_path / "released", NUMBERS)
    (one, first), (two, second) = found(named), found(released)
    assert one.fingerprint == two.fingerprint and np.array_equal(one.keys, two.keys) and first == second == []
    with tarfile.open(tmp_path / "val_images.tar", "w") as tar:
        for path in named.iterdir():
            tar.add(path, path.name)
    packed, third = found(tmp_path / "val_images.tar")
    assert packed.fingerprint == two.fingerprint and third == []
    # in folders of their classes, too
    assert np.array_equal(found(tmp_path / "hf" / "by class")[0].keys, two.keys)


def test_a_label_file_against_the_file_names_is_refused(tmp_path):
    named = flat(tmp_path / "hf" / "val", NUMBERS, "ILSVRC2012_val_{:08d}_{wnid}.JPEG")
    (tmp_path / "val.txt").write_text("".join(f"{path.name} 7\n" for path in named.iterdir()))
    with pytest.raises(UserError, match=r"the file names and .*val\.txt give 23 images different labels"):
        found(named, imagenet_labels=tmp_path / "val.txt")


DEVKIT_NUMBER = {number: place for place, number in enumerate(devkit_order(), 1)}


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (lambda label: WNIDS[label], None),
        (lambda label: label, None),
        (lambda label: DEVKIT_NUMBER[label] - 1, "they seem to be the devkit's numbers minus 1; give WordNet ids"),
        (lambda label: DEVKIT_NUMBER[label] % 1000, "they seem to be the devkit's numbers;"),
        (lambda label: (label + 1) % 1000, "they seem to be numbered from 1;"),
        (lambda label: (label * 7 + 3) % 1000, "they are those of other images"),
    ],
)
def test_labels_in_another_order_are_told(tmp_path, word, line):
    folder = flat(tmp_path / "flat" / "val", NUMBERS)
    rows = [f"ILSVRC2012_val_{number:08d}.JPEG,{word(right_class(number))}" for number in NUMBERS]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows]))
    for more in ({}, {"limit": 3}):
        findings = found(folder, imagenet_labels=tmp_path / "labels.csv", **more)[1]
        assert len(findings) == (line is not None)
        assert not findings or (line in findings[0] and "the labels disagree with ReaL's for 2" in findings[0])


@pytest.mark.parametrize("header", ["", "image,label\n", "ImageId,PredictionString\n", "# labels\n\n"])
def test_label_lines_that_name_no_image_are_counted(tmp_path, header):
    folder = flat(tmp_path / "flat" / "val", NUMBERS)
    rows = [f"ILSVRC2012_val_{number:08d},{WNIDS[right_class(number)]} 85 1 499 272\n" for number in NUMBERS]
    file = tmp_path / "labels.csv"
    file.write_text(header + "".join(rows))
    assert found(folder, imagenet_labels=file)[1] == []
    file.write_text(header + "".join([*rows[:3], "val_4.JPEG,n01751748\n", *rows[3:], "ILSVRC2012_val_00049999,65\n"]))
    images, findings = found(folder, imagenet_labels=file)
    first, last = header.count("\n") + 4, header.count("\n") + len(rows) + 2
    assert len(images) == len(NUMBERS) and findings == [
        f"{file}: 2 lines name no image of the set (line {first}: val_4.JPEG, line {last}: ILSVRC2012_val_00049999)"
    ]
    file.write_text(header + "val_4.JPEG,n01751748\n")
    with pytest.raises(UserError, match=rf"labels\.csv has no label for {len(NUMBERS)} images .*; add them"):
        found(folder, imagenet_labels=file)


def test_few_images_are_told_by_the_known_classes(tmp_path):
    assert found(validation(tmp_path / "right", [1, 2, 5]))[1] == []
    (finding,) = found(validation(tmp_path / "wrong", [1, 2, 5], label=lambda number: 7))[1]
    assert "ILSVRC2012_val_00000001 is of class 65 (n01751748), here 7" in finding


def test_images_named_after_another_class_are_told(tmp_path):
    folder = validation(tmp_path / "val", NUMBERS, name="ILSVRC2012_val_{:08d}_{wnid}.JPEG")
    path = next((folder / WNIDS[970]).iterdir())
    path.rename(folder / WNIDS[65] / path.name)
    assert any("1 images are named after another class than their label" in line for line in found(folder)[1])


# 9: left out


def test_what_is_not_read_is_counted_and_a_jpeg_by_another_name_is_read(tmp_path):
    folder = validation(tmp_path / "val", NUMBERS)
    target = folder / WNIDS[65]
    for name in ("ILSVRC2012_val_00040001.jfif", "ILSVRC2012_val_00040002.jpe"):
        (target / name).write_bytes(picture(7))
    before = len(found(folder)[0])
    for name in ("a.gif", "b.avif", "c.HEIC"):
        (target / name).write_bytes(b"")
    images, findings = found(folder)
    assert len(images) == before == len(NUMBERS) + 2
    assert findings == ["imagenet: 3 images are of formats that are not read (a.gif, b.avif, c.HEIC): convert them"]
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(folder, "val")
    packed, again = found(tmp_path / "val.tar")
    assert again == findings and packed.fingerprint == images.fingerprint


def test_archives_named_after_a_test_split_are_named(tmp_path):
    folder = validation(tmp_path / "val", NUMBERS)
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "my-test-photos.tar", "w") as tar:
        tar.add(folder, "val")
    with pytest.raises(UserError, match=r"my-test-photos.tar: named after another split, so not read"):
        found(tmp_path / "packed")
    assert len(found(tmp_path / "packed" / "my-test-photos.tar")[0]) == len(NUMBERS)
    shutil.copy(tmp_path / "packed" / "my-test-photos.tar", folder)
    (finding,) = found(folder)[1]
    assert "1 archives are named after another split and not read (my-test-photos.tar)" in finding


def test_one_image_under_several_classes(tmp_path):
    folder = validation(tmp_path / "val", NUMBERS)
    source = next((folder / WNIDS[65]).iterdir())
    shutil.copy(source, folder / WNIDS[970])
    findings = found(folder)[1]
    assert any("1 images are there more than once (ILSVRC2012_val_00000001)" in line for line in findings)
    with pytest.warns(
        UserWarning, match=r"own-mine: 1 images lie in several class folders \(n01751748/ILSVRC2012_val_0"
    ):
        custom_set("mine", folder, Data())


def test_of_custom_images_all_that_is_left_out_is_named(tmp_path):
    folder = validation(tmp_path / "val", NUMBERS[:6])
    files = [path.name for path in sorted(folder.glob("*/*"))]
    (folder / "x.gif").write_bytes(b"")
    lines = [f"{name} 7" for name in files[1:]] + ["nobody.jpg 3", "elsewhere/ 4"]
    (tmp_path / "labels.txt").write_text("\n".join(["image,label", *lines]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = custom_set("mine", folder, Data(), labels=tmp_path / "labels.txt")
    texts = sorted(str(warning.message) for warning in caught)
    assert len(images) == 5 and len(texts) == 3
    assert texts[0].startswith("own-mine: 1 images are of formats that are not read (x.gif)")
    assert "1 images have no line in" in texts[1] and files[0] in texts[1]
    assert "2 lines of" in texts[2] and "nobody.jpg, elsewhere" in texts[2]


@pytest.mark.parametrize("header", ["image,label", "file\tclass_id", "name wnid", "path;Category"])
def test_headers_of_label_files_are_no_lines(tmp_path, header):
    folder = validation(tmp_path / "val", NUMBERS[:3])
    rows = [f"{path.name} {path.parent.name}" for path in sorted(folder.glob("*/*"))]
    (tmp_path / "labels.csv").write_text("\n".join([header, *rows]))
    images = custom_set("mine", folder, Data(), labels=tmp_path / "labels.csv")
    assert sorted(images.labels) == sorted(VALIDATION_FACTS[number][1] for number in VALIDATION_FACTS)


# 10: pixels


NETWORK = f"{SHARED / 'nets' / 'mobilenet.py'}:load" if SHARED else None


def upright(path):
    with Image.open(path) as image:
        return image.convert("L")


def save_turned(image, path, orientation):
    """Save an image as a camera held another way does: turned, with the orientation in its EXIF data."""
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.transpose(back[orientation]).save(path, exif=exif)


@pytest.fixture
def photographs(tmp_path):
    """Real photographs, else drawn ones, as grey 8-bit pictures of 60 x 80 pixels and more."""
    paths = sorted(SHARED.glob("imagenet_samples/*/*"))[::20] if SHARED else []
    if not paths:
        (tmp_path / "one.jpg").write_bytes(picture(1))
        paths = [tmp_path / "one.jpg"]
    return [upright(path) for path in paths]


WAYS = {
    "16-bit PNG": lambda image, path: Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(f"{path}.png"),
    "16-bit PNG, shifted": lambda image, path: Image.fromarray(np.asarray(image).astype(np.uint16) << 8).save(
        f"{path}.png"
    ),
    "16-bit TIFF": lambda image, path: Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(f"{path}.tif"),
    "32-bit TIFF": lambda image, path: Image.fromarray(np.asarray(image).astype(np.int32)).save(f"{path}.tif"),
    "float TIFF": lambda image, path: Image.fromarray(np.asarray(image) / np.float32(255)).save(f"{path}.tif"),
    "float TIFF to 255": lambda image, path: Image.fromarray(np.asarray(image).astype(np.float32)).save(f"{path}.tif"),
    "turned by 90": lambda image, path: save_turned(image, f"{path}.png", 6),
    "turned by 180": lambda image, path: save_turned(image, f"{path}.png", 3),
    "turned by 270": lambda image, path: save_turned(image, f"{path}.tif", 8),
}


@pytest.mark.parametrize("way", WAYS)
def test_custom_images_are_shown_as_viewers_show_them(photographs, tmp_path, way):
    from imagenet_biases.images.preprocessing import STUDY, Reader

    pixels = {}
    for kind in ("plain", "odd"):
        folder = tmp_path / kind / WNIDS[0]
        folder.mkdir(parents=True)
        for number, image in enumerate(photographs):
            if kind == "plain":
                image.save(folder / f"{number}.png")
            else:
                WAYS[way](image, folder / str(number))
        images = custom_set("mine", tmp_path / kind, Data())
        reader = Reader(images, STUDY)
        pixels[kind] = np.stack([reader.read(position) for position in images.chosen])
    assert np.array_equal(pixels["plain"], pixels["odd"])
    assert pixels["plain"].std() > 10
    released, _ = found(tmp_path / "odd")
    if way in ("16-bit PNG", "float TIFF", "turned by 180"):  # sets of the study are shown as released
        assert not np.array_equal(Reader(released, STUDY).read(0), pixels["plain"][0])


def test_values_that_cannot_be_pixels_are_named(tmp_path):
    from imagenet_biases.images.preprocessing import STUDY, Reader, Unreadable

    folder = tmp_path / WNIDS[0]
    folder.mkdir()
    for name, values in (("a", [-1, 3]), ("b", [np.nan, 1]), ("c", [0, 7e4])):
        Image.fromarray(np.tile(np.float32(values), (300, 150))).save(folder / f"{name}.tif")
    images = custom_set("mine", tmp_path, Data())
    for position in images.chosen:
        with pytest.raises(Unreadable, match=r"save it with 8 bits"):
            Reader(images, STUDY).read(position)


@needs_shared
def test_a_real_network_answers_the_odd_pictures_like_the_plain_ones(tmp_path):
    numbers = {}
    for kind in ("plain", "odd"):
        for number, path in enumerate(sorted(SHARED.glob("imagenet_samples/*/*"))[::12]):
            folder = tmp_path / kind / path.parent.name
            folder.mkdir(parents=True)
            image = upright(path)
            if kind == "plain":
                image.save(folder / "picture.png")
            else:
                [*WAYS.values()][number % len(WAYS)](image, folder / "picture")
        words = ("--model", NETWORK, "--images", tmp_path / kind, "--images-name", kind, "--wandb", "disabled")
        status, _, err = run("eval_images.py", *words, "--batch-size", 4, "--results", tmp_path / "results")
        assert status == 0, err
        (record,) = (tmp_path / "results").glob("*/images.json")
        numbers[kind] = [json.loads(record.read_text())["metrics"][f"top{k}_acc/own/{kind}"] for k in (1, 5)]
    assert numbers["plain"] == numbers["odd"] and numbers["plain"][1] > 50


@pytest.mark.parametrize("benchmark", ["imagenet", "spectral", "criticalband", "solarization", "perturbation", "erf"])
def test_black_images_give_numbers(tmp_path, benchmark):
    from imagenet_biases import Settings, evaluate

    for number in range(4):
        path = tmp_path / "val" / WNIDS[404] / f"black{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 260)).save(path)
    data = Data(folders={"imagenet": tmp_path / "val"}, limit=4)
    settings = Settings(device="cpu", compile="off", workers=0, batch_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (record,) = evaluate("calibration_texture", benchmark, data, settings, results=tmp_path / "results")
    json.dumps(record.content, allow_nan=False)
    assert record.content["metrics"]

"""Image sets: layouts, counts, labels, views, the decoded cache."""

import importlib.resources as resources
import io
import json
import multiprocessing
import os
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from timm.data import RealLabelsImagenet
from torchvision import transforms

from common import SHARED, needs_shared, processes
from hostile import cases, damaged
from imagenet_biases import Data
from imagenet_biases.base.errors import UserError
from imagenet_biases.images import preprocessing
from imagenet_biases.images import sets as images
from imagenet_biases.images.labels import real_labels
from imagenet_biases.images.preprocessing import AS_IS, STUDY, Preprocessing, Reader, Unreadable, _checksum, decode
from imagenet_biases.images.sets import image_set, image_sets
from imagenet_biases.study import class_numbers, wordnet_ids

PHOTOS = 12


@pytest.fixture
def validation(tmp_path):
    """A tiny ImageNet validation folder: four classes x three images under the released names."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "imagenet"
    for number in range(PHOTOS):
        wnid = wordnet_ids()[(7, 100, 388, 999)[number % 4]]
        path = folder / "val" / wnid / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (300 + 10 * number, 260, 3) if number % 2 else (260, 300 + 7 * number, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path, quality=90)
    return folder


def found(folder, name="imagenet", partial=True, **more):
    return image_set(name, Data(folders={name.partition("/")[0]: folder}, allow_partial=partial, **more))


def test_class_lists_are_timms_index_lists():
    assert len(wordnet_ids()) == 1000 and list(wordnet_ids()) == sorted(wordnet_ids())
    for name, file in (("imagenet-a", "imagenet_a_indices.txt"), ("imagenet-r", "imagenet_r_indices.txt")):
        text = resources.files("timm.data").joinpath("_info", file).read_text()
        assert class_numbers(name) == tuple(map(int, text.split())) and len(class_numbers(name)) == 200


@pytest.mark.parametrize("layout", ["val", "classes"])
def test_folder_layouts(validation, layout):
    one = found(validation if layout == "val" else validation / "val")
    assert len(one) == PHOTOS
    for label, file in zip(one.labels, one.files, strict=True):
        assert wordnet_ids()[label] == file.split("/")[0]


def _flatten(validation):
    """Move all images into one folder; return {name: wnid}."""
    truth = {}
    for path in sorted((validation / "val").glob("*/*.JPEG")):
        truth[path.name] = path.parent.name
        path.rename(validation / "val" / path.name)
    for folder in list((validation / "val").iterdir()):
        if folder.is_dir():
            folder.rmdir()
    return truth


@pytest.mark.parametrize("labels", ["meta.bin", "devkit", "wnids", "numbers", "csv"])
def test_flat_layouts(validation, labels):
    truth = _flatten(validation)
    in_order = [truth[name] for name in sorted(truth)]
    file = None
    if labels == "meta.bin":
        torch.save((dict.fromkeys(wordnet_ids(), ("name",)), in_order), validation / "meta.bin")
    elif labels == "devkit":
        data = validation / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        # the devkit numbers the synsets in an order of its own
        ids = {wnid: 1 + (37 * number) % 1000 for number, wnid in enumerate(wordnet_ids())}
        kind = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
        savemat(data / "meta.mat", {"synsets": np.array([(i, wnid) for wnid, i in ids.items()], kind)})
        lines = "".join(f"{ids[wnid]}\n" for wnid in in_order)
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    elif labels == "wnids":
        file = validation / "val.txt"
        file.write_text("".join(f"{name} {wnid}\n" for name, wnid in truth.items()))
    elif labels == "numbers":
        lines = (f"{name} {wordnet_ids().index(wnid)}\n" for name, wnid in truth.items())
        file = validation / "val" / "labels.txt"
        file.write_text("".join(lines))
    else:
        lines = ["ImageId,PredictionString\n"]
        lines += [f"{name.removesuffix('.JPEG')},{wnid} 1 2 3 4\n" for name, wnid in truth.items()]
        file = validation / "LOC_val_solution.csv"
        file.write_text("".join(lines))
    one = found(validation, imagenet_labels=file)
    assert {file: wordnet_ids()[label] for file, label in zip(one.files, one.labels, strict=True)} == truth


def test_a_flat_folder_without_labels_says_what_to_add(validation):
    _flatten(validation)
    with pytest.raises(UserError, match=r"meta\.bin.*--imagenet-labels FILE"):
        found(validation)
    (validation / "README.txt").write_text("Cite us.")
    with pytest.raises(UserError, match="--imagenet-labels FILE"):
        found(validation)
    with pytest.raises(UserError, match=r"README\.txt has no label for 12 images"):
        found(validation, imagenet_labels=validation / "README.txt")
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist: give a text file with two columns"):
        found(validation, imagenet_labels=validation / "nowhere.txt")


def test_a_label_file_is_named_but_not_read_unless_it_is_given(validation):
    truth = _flatten(validation)
    file = validation / "val_labels.txt"
    file.write_text("".join(f"{name} {wnid}\n" for name, wnid in truth.items()))
    with pytest.raises(UserError, match=f"--imagenet-labels {file}$"):
        found(validation)
    assert len(found(validation, imagenet_labels=file)) == PHOTOS


def test_keys_do_not_depend_on_layout_or_subset(validation, tmp_path):
    one = found(validation)
    few = found(validation, limit=5)
    by_stem = {os.path.basename(file): key for file, key in zip(one.files, one.keys, strict=True)}
    assert all(by_stem[os.path.basename(file)] == key for file, key in zip(few.files, few.keys, strict=True))
    truth = _flatten(validation)
    (validation / "val.txt").write_text("".join(f"{name} {wnid}\n" for name, wnid in truth.items()))
    flat = found(validation, limit=None, imagenet_labels=validation / "val.txt")
    assert {os.path.basename(f): k for f, k in zip(flat.files, flat.keys, strict=True)} == by_stem
    assert len(set(by_stem.values())) == PHOTOS


@pytest.mark.parametrize("padded", [False, True])
def test_numbered_folders_are_numbers(tmp_path, padded):
    """As text, '10' sorts before '2': a copy as released and one with renamed folders give the same labels."""
    for number in range(1000):
        folder = tmp_path / "v2" / (f"{number:03d}" if padded else str(number))
        folder.mkdir(parents=True)
        for copy in range(10 if number < 3 else 1):
            (folder / f"{number}-{copy}.jpeg").write_bytes(b"")
    one = found(tmp_path / "v2", "imagenet-v2")
    assert len(one) == 1027
    assert all(int(file.split("/")[0]) == label for file, label in zip(one.files, one.labels, strict=True))


def test_incomplete_set_names_what_is_missing(validation):
    with pytest.raises(UserError, match=r"12 images instead of 50,000.*996 classes without images.*--allow-partial"):
        found(validation, partial=False)
    assert found(validation).subset == {"images": 12, "of": 50_000}
    limited = found(validation, partial=False, limit=8)
    assert len(limited) == 8 and limited.share() == {"images": 8, "of": 12, "order": 1}
    assert np.bincount(limited.labels)[np.unique(limited.labels)].tolist() == [2] * 4  # two of every class's three


def test_one_image_short(drawn, tmp_path):
    folder = tmp_path / "imagenet"
    shutil.copytree(drawn / "imagenet", folder)
    assert found(folder, partial=False).subset is None
    next((folder / "val").glob("*/*")).unlink()
    with pytest.raises(UserError, match="95 images instead of 96"):
        found(folder, partial=False)


def test_wrong_classes(validation):
    (validation / "val" / "not_a_class").mkdir()
    with pytest.raises(UserError, match="not_a_class"):
        found(validation)
    (validation / "val" / "not_a_class").rmdir()
    with pytest.raises(UserError, match="is it another set"):
        found(validation, "imagenet-a")  # class 0388 is none of its 200


def test_a_folder_that_is_missing_or_not_given(tmp_path):
    with pytest.raises(images.NotGiven, match="--imagenet DIR"):
        image_set("imagenet", Data())
    with pytest.raises(UserError, match="there is no folder or archive"):
        image_set("imagenet", Data(folders={"imagenet": tmp_path / "nowhere"}))


def test_corrupted_sets(drawn, tmp_path):
    data = Data(drawn)
    variants = ["fog/1", "fog/5", "jpeg_compression/3"]
    sets = image_sets("imagenet-c", variants, data)
    assert [one.name for one in sets] == [f"imagenet-c/{variant}" for variant in variants]
    assert len({one.fingerprint for one in sets}) == 3
    assert np.array_equal(sets[0].keys, sets[2].keys)  # the same photographs
    with pytest.raises(UserError, match="none of its 1 folders"):
        image_sets("imagenet-c", ["fog/7"], data)
    with pytest.warns(UserWarning, match="1 of 2 folders are not there: fog/7"):
        (one,) = image_sets("imagenet-c", ["fog/7", "fog/1"], data)
    assert one.subset is None  # whole in itself


def test_corrupted_listing_is_kept_until_a_folder_changes(drawn, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(drawn / "imagenet-c" / "fog", folder / "fog")
    shutil.copy(drawn / "imagenet-c" / "image-set.json", folder)
    data = Data(folders={"imagenet-c": folder}, listings=tmp_path / "listings")
    before = time.time() - 100
    for path in folder.glob("fog/*/*"):
        os.utime(path, (before, before))
    first, second = (image_set(f"imagenet-c/fog/{severity}", data) for severity in (1, 2))
    assert first.listing.names is second.listing.names  # the same photographs: one copy, one file
    assert len(list((tmp_path / "listings").iterdir())) == 3
    assert image_set("imagenet-c/fog/1", data).files == first.files
    file = next(folder.glob("fog/1/*/*"))
    file.rename(file.with_name("ILSVRC2012_val_00099999.JPEG"))
    assert image_set("imagenet-c/fog/1", data).files != first.files


def test_wrong_size_is_an_error(drawn, tmp_path):
    one = image_set("imagenet-c/fog/1", Data(drawn))
    reader = Reader(one, STUDY)
    assert reader.read(0).shape == (224, 224, 3)
    path = tmp_path / "x.png"
    Image.new("RGB", (225, 224)).save(path)
    with pytest.raises(Unreadable, match="225 x 224"):
        decode(path, AS_IS)


def _modes(folder):
    rng = np.random.default_rng(3)
    pixels = Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8))
    for mode, name in (("RGB", "a.png"), ("L", "b.jpg"), ("CMYK", "c.jpg"), ("P", "d.png"), ("RGBA", "e.png")):
        image = pixels.convert(mode)
        if mode == "RGBA":
            image.putalpha(128)
        image.save(folder / name)
        yield folder / name
    for size in ((224, 600), (231, 231), (1000, 257), (100, 150)):
        pixels.resize(size).save(folder / f"{size}.jpg")
        yield folder / f"{size}.jpg"


def test_study_view_is_torchvisions(tmp_path):
    photos = list(_modes(tmp_path)) + (sorted(SHARED.glob("imagenet_samples/*/*"))[::7] if SHARED else [])
    oracle = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    for path in photos:
        expected = oracle(Image.open(path).convert("RGB"))
        got = torch.from_numpy(decode(path, STUDY)).permute(2, 0, 1).to(torch.float32).div_(255)
        assert torch.equal(got, expected), path


def test_native_view_has_its_interpolation(tmp_path):
    path = next(_modes(tmp_path))
    mode = transforms.InterpolationMode.BICUBIC
    oracle = transforms.Compose([transforms.Resize(235, mode), transforms.CenterCrop(224)])
    expected = np.asarray(oracle(Image.open(path).convert("RGB")))
    assert np.array_equal(decode(path, Preprocessing(235, 224, "bicubic")), expected)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 broken", None])
def test_unreadable_images_are_named(tmp_path, content):
    path = tmp_path / "bad.JPEG"
    if content is None:  # a JPEG that ends in the middle
        Image.effect_noise((400, 300), 60).convert("RGB").save(path, "JPEG")
        content = path.read_bytes()[:3000]
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=r"bad\.JPEG"):
        decode(path, STUDY)


def test_real_labels(validation):
    one = found(validation)
    shipped = real_labels(one)
    oracle = RealLabelsImagenet([f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]).real_labels
    numbers = [int(file[-13:-5]) for file in one.files]
    assert shipped == [set(oracle[os.path.basename(file)]) for file in one.files]
    (validation / "real.json").write_text(json.dumps([[number] for number in range(12)]))
    assert real_labels(one) == [{number - 1} for number in numbers]
    (validation / "real.json").write_text("[[1]]")
    with pytest.raises(UserError, match="has 1 entries"):
        real_labels(one)
    path = next((validation / "val").glob("*/*"))
    path.rename(path.with_name("cat.JPEG"))
    (validation / "real.json").unlink()
    with pytest.raises(UserError, match=r"cat\.JPEG"):
        real_labels(found(validation))


# The decoded cache ---------------------------------------------------------------------------------------------------


def whole(reader):
    return np.stack([reader.read(position) for position in range(len(reader.images))])


def test_cache_gives_the_same_pixels(validation, tmp_path):
    one, cache = found(validation), tmp_path / "cache"
    expected = whole(Reader(one, STUDY))
    assert np.array_equal(whole(Reader(one, STUDY, cache)), expected)
    (pixels,) = cache.glob("*.u8")
    assert pixels.stat().st_size == PHOTOS * 224 * 224 * 3
    second = Reader(one, STUDY, cache)
    assert all(second.stamps["crc"])  # all of it comes from the file now
    assert np.array_equal(whole(second), expected)
    # what is read is what is in the file: mark one image and its checksum, and the mark comes back
    marked = np.memmap(pixels, np.uint8, "r+", shape=(PHOTOS, 224, 224, 3))
    marked[3] = 77
    stamps = np.memmap(pixels.with_suffix(".stamps"), Reader.STAMP, "r+")
    stamps["crc"][3] = _checksum(marked[3])
    assert (Reader(one, STUDY, cache).read(3) == 77).all()


@pytest.mark.parametrize("damage", ["pixel", "truncated", "image", "view", "set", "header", "stamp"])
def test_cache_is_made_anew(validation, tmp_path, damage):
    one, cache, view = found(validation), tmp_path / "cache", STUDY
    whole(Reader(one, view, cache))
    (pixels,) = cache.glob("*.u8")
    if damage == "pixel":
        data = np.memmap(pixels, np.uint8, "r+")
        data[5_000] ^= 1
        data.flush()
    elif damage == "truncated":
        os.truncate(pixels, 1_000_000)
    elif damage == "image":
        path = one.path(2)
        Image.new("RGB", (300, 300), (9, 8, 7)).save(path)
    elif damage == "view":
        view = Preprocessing(232, 224)
    elif damage == "set":
        path = one.path(0)
        path.rename(path.with_name("ILSVRC2012_val_00000050.JPEG"))
        one = found(validation)
    elif damage == "header":
        pixels.with_suffix(".json").write_text("{")
    else:
        os.truncate(pixels.with_suffix(".stamps"), 3)
    assert np.array_equal(whole(Reader(one, view, cache)), whole(Reader(one, view)))
    assert np.array_equal(whole(Reader(one, view, cache)), whole(Reader(one, view)))


def _fill(one, cache, seed):
    reader = Reader(one, STUDY, cache)
    for position in np.random.default_rng(seed).permutation(len(one)):
        reader.read(position)


def _together(context, target, arguments):
    """Run a function in a process of a multiprocessing context for each tuple of arguments, all at once."""
    workers = [context.Process(target=target, args=one) for one in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


@pytest.mark.slow
def test_cache_is_filled_by_several_processes(validation, tmp_path):
    one, cache = found(validation), tmp_path / "cache"
    _together(processes(), _fill, [(one, cache, seed) for seed in range(3)])
    reader = Reader(one, STUDY, cache)
    assert all(reader.stamps["crc"])
    assert np.array_equal(whole(reader), whole(Reader(one, STUDY)))


def _open_together(one, cache, start):
    start.wait()
    _fill(one, cache, os.getpid())


@pytest.mark.slow
def test_sixteen_processes_open_one_cache_at_once(validation, tmp_path):
    one, cache = found(validation), tmp_path / "cache"
    forks = multiprocessing.get_context("fork")
    _together(forks, _open_together, [(one, cache, forks.Barrier(16))] * 16)
    reader = Reader(one, STUDY, cache)
    assert all(reader.stamps["crc"])  # nobody has removed what another had begun to fill
    assert np.array_equal(whole(reader), whole(Reader(one, STUDY)))


def test_ready_made_sets_are_not_cached(drawn, tmp_path):
    one = image_set("imagenet-c/fog/1", Data(drawn))
    whole(Reader(one, STUDY, tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_free_space_is_looked_at_before_caching(validation, tmp_path, monkeypatch):
    one, usage, need = found(validation), shutil.disk_usage(tmp_path), PHOTOS * 224 * 224 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need - 1))
    with pytest.warns(UserWarning, match=r"no longer kept: .* has 0\.0 GB free"):
        reader = Reader(one, STUDY, tmp_path / "cache")
    assert np.array_equal(whole(reader), whole(Reader(one, STUDY)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need))
    assert Reader(one, STUDY, tmp_path / "cache").pixels is not None


def test_cache_of_a_limited_run_serves_the_whole_set(validation, tmp_path):
    cache = tmp_path / "cache"
    few = found(validation, limit=4)
    reader = Reader(few, STUDY, cache)
    for position in few.chosen:
        reader.read(position)
    one = found(validation, limit=None)
    again = Reader(one, STUDY, cache)
    assert (again.stamps["crc"] != 0).sum() == 4
    assert np.array_equal(whole(again), whole(Reader(one, STUDY)))


def test_cache_in_a_place_that_cannot_be(validation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--cache"):
        Reader(found(validation), STUDY, tmp_path / "file")


@needs_shared
def test_real_photographs():
    one = found(SHARED / "imagenet_samples")
    assert len(one) == 100 and sorted(one.labels) == list(range(0, 1000, 10))


def test_simplejpeg_and_pillow_give_the_same_pixels_and_faults(drawn, monkeypatch):
    """Of ready-made JPEGs in all colour modes and subsamplings, of the photographs at hand, whole and damaged."""
    pytest.importorskip("simplejpeg")
    assert preprocessing._simplejpeg()
    squares = [path.read_bytes() for path in sorted((drawn / "imagenet-c").glob("*/3/*/*"))[::20]]
    photos = sorted(SHARED.glob("imagenet_samples/*/*")) if SHARED else []
    for number, path in enumerate(photos):
        with Image.open(path) as image:
            squares.append(_square(image.convert("L" if number % 10 == 0 else "RGB"), number))
    squares += [_square(Image.open(io.BytesIO(squares[0])).convert("CMYK"), 0)]
    squares += [damaged(dice.choice(squares), dice) for _, dice in cases(400)]

    def decoded(data):
        try:
            return decode("square", AS_IS, lambda: data)
        except Unreadable as error:
            return np.array(str(error))

    fast = [decoded(data) for data in squares]
    used = []
    module = preprocessing._simplejpeg()
    monkeypatch.setattr(module, "decode_jpeg", lambda *words, **more: used.append(words) or int("damaged"))
    slow = [decoded(data) for data in squares]
    assert len(used) > len(photos)  # what fails there is Pillow's to decode
    assert all(np.array_equal(one, two) for one, two in zip(fast, slow, strict=True))


def _square(image, number):
    file = io.BytesIO()
    image.resize((224, 224)).save(
        file, "JPEG", quality=75 + number % 20, subsampling=number % 3, progressive=number % 4 == 0
    )
    return file.getvalue()

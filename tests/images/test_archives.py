"""Image sets as downloaded: tar, parquet and shards give what the unpacked set gives; bad archives are refused."""

import contextlib
import io
import os
import shutil
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scipy.io import savemat

from common import run
from hostile import cases, damaged, limited
from imagenet_biases import Data, Settings, evaluate
from imagenet_biases.base.errors import UserError, clean
from imagenet_biases.images import archives
from imagenet_biases.images.preprocessing import STUDY, Reader, Unreadable
from imagenet_biases.images.sets import image_set, image_sets
from imagenet_biases.study import wordnet_ids

SETS = ["imagenet", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2"]


def packed(path, files, kind=tarfile.GNU_FORMAT, mode="w"):
    """Write {name in the archive: path on disk or bytes} as a tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=kind) as tar:
        for name, source in files.items():
            member = tarfile.TarInfo(name)
            data = source if isinstance(source, bytes) else source.read_bytes()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def images_of(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))


def tree(folder, above=""):
    """Return the images under a folder as `packed` takes them."""
    return {above + path.relative_to(folder).as_posix(): path for path in images_of(folder)}


def beside(drawn, name, folder):
    """Put what describes a set beside its archive."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("image-set.json", "real.json"):
        if (drawn / name / file).exists():
            shutil.copy(drawn / name / file, folder)
    return folder


def devkit(folder, truth, as_archive):
    """Write the devkit's two files; `truth`: WordNet ids in the order of the file numbers."""
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    ids = {wnid: 1 + (37 * number) % 1000 for number, wnid in enumerate(wordnet_ids())}
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    savemat(data / "meta.mat", {"synsets": np.array([(i, wnid) for wnid, i in ids.items()], kind)})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{ids[wnid]}\n" for wnid in truth))
    if as_archive:
        with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
            tar.add(folder / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
        shutil.rmtree(folder / "ILSVRC2012_devkit_t12")


def parquet(path, photographs, group=7):
    """Write images as Hugging Face does: `image` {bytes, path} and `label`, rows in groups."""
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {
        "image": [
            {"bytes": one.read_bytes(), "path": f"{one.stem}_{one.parent.name}{one.suffix}"} for one in photographs
        ],
        "label": [wordnet_ids().index(one.parent.name) for one in photographs],
    }
    writer.write_table(arrow.table(rows), path, row_group_size=group)


def shuffled(paths):
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]


def imagenet_as(layout, drawn, folder):
    """Make ImageNet validation as it is downloaded; return what --imagenet is given."""
    beside(drawn, "imagenet", folder)
    photographs = shuffled(images_of(drawn / "imagenet" / "val"))
    flat = {path.name: path for path in photographs}
    truth = [flat[name].parent.name for name in sorted(flat)]
    if layout in ("devkit", "devkit.tar.gz", "labels"):
        # it lies beside the training set
        packed(folder / "ILSVRC2012_img_train.tar", {"n01440764.tar": b""})
        path = packed(folder / "ILSVRC2012_img_val.tar", flat)
        if layout == "labels":
            lines = (f"{name} {wnid}\n" for name, wnid in zip(sorted(flat), truth, strict=True))
            (folder / "val.txt").write_text("".join(lines))
        else:
            devkit(folder, truth, layout == "devkit.tar.gz")
        return path if layout == "devkit" else folder
    if layout == "parquet":
        parquet(folder / "validation-00000-of-00002.parquet", photographs[:50])
        parquet(folder / "validation-00001-of-00002.parquet", photographs[50:])
        (folder / "train-00000-of-00294.parquet").write_bytes(b"of no concern")
        return folder
    if layout == "shards":
        for shard in range(3):
            files = {}
            for path in photographs[shard::3]:
                files[path.name] = path
                files[path.stem + ".cls"] = str(wordnet_ids().index(path.parent.name)).encode()
            packed(folder / f"imagenet1k-validation-{shard:02d}.tar", files)
        return folder
    kind = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}[layout]
    # each kind writes a name of more than 100 characters in another way
    return packed(folder / "val.tar", tree(drawn / "imagenet" / "val", f"./{'x' * 90}/"), kind)


def label_file(layout, folder):
    return folder / "val.txt" if layout == "labels" else None


LAYOUTS = ["devkit", "devkit.tar.gz", "labels", "parquet", "shards", "ustar", "pax", "gnu"]


def same(one, two):
    """Hold two image sets to each other: keys, labels, fingerprint, pixels."""
    assert np.array_equal(one.keys, two.keys) and np.array_equal(one.labels, two.labels)
    assert one.fingerprint == two.fingerprint
    readers = Reader(one, STUDY), Reader(two, STUDY)
    for position in one.chosen:
        assert np.array_equal(*(reader.read(position) for reader in readers)), one.files[position]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_imagenet_as_downloaded_is_the_unpacked_set(drawn, tmp_path, layout):
    given = imagenet_as(layout, drawn, tmp_path / "given")
    labels = label_file(layout, tmp_path / "given")
    data = Data(folders={"imagenet": given}, listings=tmp_path / "listings", imagenet_labels=labels)
    same(image_set("imagenet", Data(drawn)), image_set("imagenet", data))
    kept = sorted((tmp_path / "listings").iterdir())
    assert kept
    archives._archives.cache_clear()
    indexed = [path.stat().st_mtime_ns for path in kept]
    same(image_set("imagenet", Data(drawn)), image_set("imagenet", data))  # by the kept index
    assert [path.stat().st_mtime_ns for path in kept] == indexed


@pytest.mark.parametrize("name", SETS[1:])
def test_other_sets_as_downloaded(drawn, tmp_path, name):
    folder = beside(drawn, name, tmp_path / name)
    packed(folder / f"{name}.tar", tree(drawn / name, f"{name}/") | {f"{name}/README.txt": b"Cite us."})
    for data in (Data(tmp_path), Data(folders={name: folder / f"{name}.tar"})):
        same(image_set(name, Data(drawn)), image_set(name, data))


def test_an_archive_in_the_root_folder_will_do(drawn, tmp_path):
    packed(tmp_path / "imagenet-a.tar", tree(drawn / "imagenet-a", "imagenet-a/"))
    with pytest.raises(UserError, match="images instead of 7,500"):
        image_set("imagenet-a", Data(tmp_path))


GROUPS = {"noise": ["gaussian_noise", "shot_noise"], "blur": ["defocus_blur"], "weather": ["fog"]}


@pytest.fixture(scope="module")
def corrupted(drawn, tmp_path_factory):
    """ImageNet-C in the tar files of its release (a few corruptions)."""
    folder = beside(drawn, "imagenet-c", tmp_path_factory.mktemp("tars") / "imagenet-c")
    for group, names in GROUPS.items():
        files = {}
        for name in names:
            files |= tree(drawn / "imagenet-c" / name, f"{name}/")
        packed(folder / f"{group}.tar", files)
    return folder


@pytest.mark.parametrize("listed", [False, True])
def test_corrupted_sets_in_their_archives(drawn, corrupted, tmp_path, listed):
    variants = [f"{name}/{severity}" for names in GROUPS.values() for name in names for severity in (1, 5)]
    given = ",".join(str(corrupted / f"{group}.tar") for group in GROUPS) if listed else corrupted
    data = Data(folders={"imagenet-c": given}, listings=tmp_path)
    for one, two in zip(
        image_sets("imagenet-c", variants, Data(drawn)), image_sets("imagenet-c", variants, data), strict=True
    ):
        same(one, two)
    with pytest.warns(UserWarning, match="1 of 2 folders are not there: snow/1"):
        image_sets("imagenet-c", ["fog/1", "snow/1"], data)


@pytest.mark.parametrize("given", ["{0}/noise.tar,{0}/nowhere.tar", "{0}/noise.tar,{0}", ",", "{0}/noise.tar,,"])
def test_a_list_holds_archives_only(corrupted, given):
    with pytest.raises(UserError, match="there is no folder or archive"):
        image_set("imagenet-c/fog/1", Data(folders={"imagenet-c": given.format(corrupted)}))


def test_what_is_unpacked_comes_before_the_archives(drawn, corrupted, tmp_path):
    folder = tmp_path / "imagenet-c"
    shutil.copytree(corrupted, folder)
    shutil.copytree(drawn / "imagenet-c" / "snow", folder / "weather" / "snow")
    snow, fog = (image_set(f"imagenet-c/{name}/1", Data(folders={"imagenet-c": folder})) for name in ("snow", "fog"))
    assert snow.listing.members is None and fog.listing.members is not None


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["labels", "parquet"])
def test_responses_are_shared_by_archive_and_folder(drawn, tmp_path, layout):
    network = {"net": timm.create_model("test_resnet").eval()}
    torch.manual_seed(0)
    settings = Settings(device="cpu", compile="off", workers=1, batch_size=32)
    benchmarks = ["imagenet", "imagenet_real", "imagenet_c"]
    options = {"imagenet_c": {"corruptions": "fog", "severities": "1"}}
    folder = beside(drawn, "imagenet-c", tmp_path / "root" / "imagenet-c")
    packed(folder / "weather.tar", tree(drawn / "imagenet-c" / "fog", "fog/"))
    imagenet = imagenet_as(layout, drawn, tmp_path / "root" / "imagenet")
    archived = Data(imagenet.parent, imagenet_labels=label_file(layout, imagenet))

    def answers(data, results):
        found = evaluate(network, benchmarks, data, settings, options=options, results=results)
        return {record.benchmark: record.metrics for record in found}

    unpacked = answers(Data(drawn), tmp_path / "results")
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("responses/*")}
    assert stored and answers(archived, tmp_path / "results") == unpacked
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("responses/*")} == stored
    assert answers(archived, tmp_path / "alone") == unpacked  # measured from the archives by a decoding process


def test_cache_of_archives(drawn, tmp_path):
    given = imagenet_as("labels", drawn, tmp_path / "given")
    one = image_set("imagenet", Data(folders={"imagenet": given}, imagenet_labels=label_file("labels", given)))
    first = [Reader(one, STUDY, tmp_path / "cache").read(position) for position in one.chosen]
    again = Reader(one, STUDY, tmp_path / "cache")
    assert all(again.stamps["crc"]) and all(np.array_equal(again.read(p), first[p]) for p in one.chosen)


@pytest.mark.parametrize("name", ["ILSVRC2012_img_val.zip", "val data.tar.gz", "x.tgz"])
def test_compressed_archives_come_with_the_line_that_unpacks_them(drawn, tmp_path, name):
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / name
    if name.endswith(".zip"):
        shutil.make_archive(str(path.with_suffix("")), "zip", drawn / "imagenet" / "val")
    else:
        packed(path, tree(drawn / "imagenet" / "val"), mode="w:gz")
    for given in (path, tmp_path / "given"):
        with pytest.raises(UserError, match="unpack") as caught:
            image_set("imagenet", Data(folders={"imagenet": given}, allow_partial=True))
        line = str(caught.value).partition(":  ")[2]
        assert "mkdir -p" in line
    if shutil.which(line.split("&& ")[1].split()[0]):
        assert os.system(line) == 0
        unpacked = Path(str(path).removesuffix(".zip").removesuffix(".tar.gz").removesuffix(".tgz"))
        same(
            image_set("imagenet", Data(drawn)),
            image_set("imagenet", Data(folders={"imagenet": unpacked}, allow_partial=True)),
        )


def test_parquet_files_without_pyarrow_name_the_package(tmp_path, monkeypatch):
    (tmp_path / "validation-0.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)  # as Python has it where a package cannot be imported
    with pytest.raises(UserError, match="pip install pyarrow"):
        image_set("imagenet", Data(folders={"imagenet": tmp_path}))


# Bad archives ---------------------------------------------------------------------------------------------------------


def listed(path):
    archives._archives.cache_clear()
    return image_set("imagenet", Data(folders={"imagenet": path}, allow_partial=True))


def test_truncated_archives_are_named(drawn, tmp_path):
    path = packed(tmp_path / "val.tar", tree(drawn / "imagenet" / "val"))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [member.offset for member in tar] + [member.offset_data + 700 for member in tar]
    for end in ends[::7]:
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"val\.tar is cut short"):
            listed(path)


@pytest.mark.parametrize(
    ("name", "kind", "problem"),
    [
        ("/etc/a.jpg", tarfile.REGTYPE, "does not name a file within a folder"),
        ("../n01440764/a.jpg", tarfile.REGTYPE, "does not name a file within a folder"),
        ("n01440764/../../a.jpg", tarfile.REGTYPE, "does not name a file within a folder"),
        ("n01440764//a.jpg", tarfile.REGTYPE, "does not name a file within a folder"),
        ("n01440764/a.jpg", tarfile.SYMTYPE, "is called an image but is a link"),
        ("n01440764/a.jpg", tarfile.LNKTYPE, "is called an image but is a link"),
        ("n01440764/a.jpg", tarfile.CHRTYPE, "is called an image but is a link, a device"),
        ("n01440764/a.jpg", tarfile.FIFOTYPE, "is called an image but is a link, a device"),
        ("n01440764/good.jpg", tarfile.REGTYPE, "good.jpg twice"),
        ("./n01440764/good.jpg", tarfile.REGTYPE, "good.jpg twice"),
        ("n01440764/\udce9.jpg", tarfile.REGTYPE, "not UTF-8"),
    ],
)
def test_dishonest_members_are_refused(tmp_path, name, kind, problem):
    path = tmp_path / "val.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for each, of_kind in (("n01440764/good.jpg", tarfile.REGTYPE), (name, kind)):
            member = tarfile.TarInfo(each)
            member.type, member.linkname = of_kind, "/etc/passwd"
            tar.addfile(member)
    with pytest.raises(UserError, match=problem):
        listed(path)


def test_one_image_in_two_archives_is_refused(drawn, tmp_path):
    for number in (1, 2):
        packed(tmp_path / f"{number}.tar", tree(drawn / "imagenet" / "val"))
    with pytest.raises(UserError, match="twice"):
        listed(tmp_path)


def test_labels_that_contradict_the_names_are_refused(drawn, tmp_path):
    photographs = images_of(drawn / "imagenet" / "val")
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for label, problem in ((5, "its label says"), (-1, "no class 0-999"), (None, "no class 0-999")):
        images = [{"bytes": one.read_bytes(), "path": f"{one.stem}_{one.parent.name}.JPEG"} for one in photographs[:1]]
        table = arrow.table({"image": images, "label": arrow.array([label], arrow.int64())})
        writer.write_table(table, tmp_path / "validation-0.parquet")
        with pytest.raises(UserError, match=problem):
            listed(tmp_path)


def test_damaged_archives_are_refused_or_give_images_of_their_own(drawn, tmp_path):
    """No traceback, no hang; what is listed lies within the archive, and reading it gives pixels or Unreadable."""
    photographs, accepted = images_of(drawn / "imagenet" / "val")[:6], 0
    tree_of_few = {path.relative_to(drawn / "imagenet" / "val").as_posix(): path for path in photographs}
    wholes = {".tar": [packed(tmp_path / "a", tree_of_few, kind).read_bytes() for kind in (0, 1, 2)]}
    with contextlib.suppress(pytest.skip.Exception):
        parquet(tmp_path / "b", photographs, 2)
        wholes[".parquet"] = [(tmp_path / "b").read_bytes()]
    for case, dice in cases(300):
        suffix = dice.choice(sorted(wholes))
        data = dice.choice(wholes[suffix])
        if suffix == ".tar" and dice.random() < 0.6:  # in a header
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                at = dice.choice(tar.getmembers()).offset
            header = bytearray(data[at : at + 512])
            for _ in range(dice.choice([1, 3])):
                header[dice.choice([0, 100, 124, 125, 135, 156, 157, 345])] = dice.choice(b"\x00\x80\xff05Lxg12S/.")
            header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)  # the checksum is right
            data = data[:at] + bytes(header) + data[at + 512 :]
        else:
            data = damaged(data, dice)
            if suffix == ".parquet" and dice.random() < 0.7:  # the footer is where its reader goes wrong
                data = data[:-300] + damaged(data[-300:-8], dice) + data[-8:]
        path = tmp_path / f"val{suffix}"
        path.write_bytes(data)
        try:
            with limited():
                one = listed(path)
                accepted += 1
                reader = Reader(one, STUDY)
                for position in one.chosen:
                    with contextlib.suppress(Unreadable):
                        assert reader.read(position).shape == (224, 224, 3), case
        except UserError as error:
            assert clean(error) and "val" in clean(error), case
        path.unlink()
    assert accepted


def test_damaged_indexes_are_made_anew(drawn, tmp_path):
    given = imagenet_as("gnu", drawn, tmp_path / "given")
    data, right = Data(folders={"imagenet": given}, listings=tmp_path / "kept"), image_set("imagenet", Data(drawn))
    image_set("imagenet", data)
    (kept,) = (tmp_path / "kept").iterdir()
    whole = kept.read_bytes()
    for case, dice in cases(60):
        kept.write_bytes(damaged(whole, dice))
        archives._archives.cache_clear()
        with limited():
            one = image_set("imagenet", data)
        assert one.fingerprint == right.fingerprint, case


def test_a_changed_archive_is_indexed_again(drawn, tmp_path):
    folder = tmp_path / "given"
    files = tree(drawn / "imagenet" / "val")
    data = Data(folders={"imagenet": packed(folder / "val.tar", files)}, listings=tmp_path / "kept", allow_partial=True)
    assert len(image_set("imagenet", data)) == 96
    packed(folder / "val.tar", dict(list(files.items())[:90]))
    os.utime(folder / "val.tar", ns=(time.time_ns(), time.time_ns() + 1))
    assert len(image_set("imagenet", data)) == 90


def test_the_command_line_takes_an_archive(drawn, tmp_path):
    given = imagenet_as("devkit", drawn, tmp_path / "given")
    words = ["--imagenet", given, "--model", "test_resnet.r160_in1k", "--dry-run", "--results", tmp_path / "results"]
    status, out, err = run("eval_imagenet.py", *words)
    assert status == 0 and "96 images" in out, err

"""Bad input of every kind, generated, in this process: no traceback, no hang, no wrong number, no file elsewhere.

How much, and from which seed: tests/hostile.py.
"""

import io
import json
import os
import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hostile
from common import ROOT, images_named, run
from hostile import cases, damaged, limited, odd_json, odd_text, write_odd_json
from imagenet_biases import Data, Settings
from imagenet_biases.base.errors import UserError, clean
from imagenet_biases.engine.runtime import available_cores, make_runtime
from imagenet_biases.humans import trials
from imagenet_biases.images.labels import flat_labels, real_labels
from imagenet_biases.images.listing import (
    ImageNames,
    Listing,
    _read_listing,
    _store_listing,
    _stored_names,
    list_classes,
)
from imagenet_biases.images.preprocessing import AS_IS, STUDY, Reader, Unreadable, decode
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks import registry
from imagenet_biases.networks.pins import Pins
from imagenet_biases.results import responses as stored
from imagenet_biases.results.merge import compare, local_records, merge, select, update
from imagenet_biases.results.records import read_record, write_record
from imagenet_biases.results.responses import ResponseStore, StoredResponses
from imagenet_biases.results.table import PUBLISHED, read_beside, read_table, write_table
from imagenet_biases.study import CATEGORIES_16, DECLARATIONS, wordnet_ids
from imagenet_biases.vocabulary import TopClasses

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*DecompressionBomb.*"),
]


@pytest.fixture(autouse=True)
def nothing_elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder; the repository's tables and the folder itself stay as they are."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    tables = {path: path.read_bytes() for path in (ROOT / "raw-data").iterdir() if path.is_file()}
    yield
    assert {path: path.read_bytes() for path in (ROOT / "raw-data").iterdir() if path.is_file()} == tables
    assert not list(work.iterdir())


def refused(action, *arguments, **more):
    """Return what an action gives, or None where it refuses its input in one clear line. Anything else is a failure."""
    try:
        with limited():
            return action(*arguments, **more)
    except UserError as error:
        assert clean(error).strip() and len(clean(error)) < 2000
        return None


# Images ---------------------------------------------------------------------------------------------------------------


def photographs():
    """Return {format and mode: bytes} of small pictures in all the formats of image sets."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    smooth = Image.fromarray(noise).resize((300, 260), Image.Resampling.BICUBIC)
    found = {}
    for kind, mode, more in (
        ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
        ("JPEG", "CMYK", {}), ("JPEG", "L", {}), ("PNG", "RGB", {}), ("PNG", "P", {}), ("PNG", "RGBA", {}),
        ("PNG", "I;16", {}), ("WEBP", "RGB", {}), ("BMP", "RGB", {}), ("TIFF", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "RGB", {"compression": "jpeg"}),
    ):  # fmt: skip
        file = io.BytesIO()
        image = smooth.convert("L").convert("I").convert("I;16") if mode == "I;16" else smooth.convert(mode)
        image.save(file, kind, **more)
        found[f"{kind} {mode} {more}"] = file.getvalue()
    return found


def test_damaged_images_are_pixels_or_unreadable(tmp_path):
    whole, path, unreadable = list(photographs().values()), tmp_path / "image.JPEG", 0
    for data in whole:
        path.write_bytes(data)
        assert decode(path, STUDY).shape == (224, 224, 3)
    for case, dice in cases(900):
        path.write_bytes(damaged(dice.choice(whole), dice))
        try:
            with limited():
                pixels = decode(path, STUDY)
            assert pixels.shape == (224, 224, 3) and pixels.dtype == np.uint8, case
        except Unreadable as error:
            assert str(path) in str(error) and len(clean(error)) > len(str(path)) + 2, case
            unreadable += 1
    assert unreadable


@pytest.mark.parametrize("kind", ["GIF", "PPM", "ICO", "TGA", "PCX", "DDS", "EPS"])
def test_other_formats_are_not_tried(tmp_path, kind):
    path = tmp_path / "image.JPEG"
    Image.new("RGB", (64, 64)).save(path, kind)
    with pytest.raises(Unreadable, match="cannot identify"):
        decode(path, STUDY)


@pytest.mark.parametrize("size", [(65_000, 1), (1, 65_000), (40_000, 30)])
def test_strips_are_reported_at_once(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "strip.png")
    with limited(), pytest.raises(Unreadable, match="strip"):
        decode(tmp_path / "strip.png", STUDY)
    with limited(), pytest.raises(Unreadable, match="must be 224"):
        decode(tmp_path / "strip.png", AS_IS)


def odd_file(kind, path):
    """Make a file that can never be an image."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        import socket

        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        target = {"device": "/dev/zero", "dangling link": "nowhere", "link loop": path.name}[kind]
        path.symlink_to(target)


@pytest.mark.parametrize("kind", ["pipe", "device", "dangling link", "link loop", "folder", "not UTF-8"])
def test_files_that_cannot_be_images_are_reported_on_listing(tmp_path, kind):
    folder = tmp_path / "val" / wordnet_ids()[0]
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    path = folder / "b.JPEG"
    if kind == "not UTF-8":
        path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.JPEG"))
        path.write_bytes(b"x")
    else:
        odd_file(kind, path)
    with limited(), pytest.raises(UserError) as caught:
        list_classes("imagenet", tmp_path, DECLARATIONS["imagenet"])
    assert clean(path) in clean(caught.value)
    with limited(), pytest.raises(Unreadable):
        decode(path, STUDY)


def test_a_damaged_cache_gives_the_same_pixels(tmp_path, drawn):
    images = image_set("imagenet", Data(folders={"imagenet": drawn / "imagenet"}, limit=6))
    right = [decode(images.path(position), STUDY) for position in images.chosen]
    for case, dice in cases(60):
        for file in sorted((tmp_path / "cache").glob("*")):
            if dice.random() < 0.7 and file.stat().st_size:
                data = file.read_bytes()[: dice.choice([300, 10**9])] if file.suffix != ".u8" else None
                if data is not None:
                    file.write_bytes(damaged(data, dice))
                else:
                    with open(file, "r+b") as opened:
                        opened.seek(dice.randrange(file.stat().st_size))
                        opened.write(dice.randbytes(1000))
        reader = Reader(images, STUDY, tmp_path / "cache")
        for position, pixels in zip(images.chosen, right, strict=True):
            assert np.array_equal(reader.read(int(position)), pixels), case


# Labels ---------------------------------------------------------------------------------------------------------------


def test_label_files_give_the_right_classes_or_are_refused(tmp_path):
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 41)]
    right = [(7 * number) % 1000 for number in range(40)]
    text = "\n".join(f"{n},{wordnet_ids()[c]}" if c % 2 else f"{n},{c}" for n, c in zip(names, right, strict=True))
    accepted = 0
    for case, dice in cases(250):
        for path in tmp_path.glob("*.*"):
            path.unlink()
        (tmp_path / "labels.csv").write_bytes(odd_text(text, dice))
        found = refused(flat_labels, names, [tmp_path], tmp_path / "labels.csv")
        if found is not None:
            accepted += 1
            assert len(found) == 40 and all(type(c) is int and 0 <= c < 1000 for c in found), case
            # a damaged line may say another class, but one line says nothing of other images
            assert sum(a != b for a, b in zip(found, right, strict=True)) <= 3, case
    assert accepted


NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 21)]


def lines(first=0):
    return "\n".join(f"{name} {number + first}" for number, name in enumerate(NAMES))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (lines(1), "numbered from 1"),
        (lines(981), "counted from 0"),
        (lines() + f"\n{NAMES[0]} 5", "two different labels"),
        (lines(5), "meta.bin and"),
        (lines().partition("\n")[2], "no label for 1 images"),
        (lines() + f"\n{NAMES[0]} cat", "'cat'"),
        ("These are images of animals.", "no label for 20 images"),
    ],
)
def test_wrong_labels_are_reported(tmp_path, text, problem):
    (tmp_path / "a.txt").write_text(text)
    if "meta" in problem:
        torch.save(({}, list(wordnet_ids()[:20])), tmp_path / "meta.bin")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            flat_labels(NAMES, [tmp_path], tmp_path / "a.txt")
            said = " ".join(str(one.message) for one in caught)
        except UserError as error:
            said = str(error)
    assert problem in said


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_labels_of_spreadsheets_and_other_text_beside_them(tmp_path, encoding):
    quoted = "\r\n".join(f'"{name}";"{number}"' for number, name in enumerate(NAMES))
    (tmp_path / "labels.csv").write_text('"file";"class"\r\n' + quoted, encoding=encoding)
    (tmp_path / "README.txt").write_text(f"These are images.\n{NAMES[0]} 3\nis not what it seems.\nThanks to all.\n")
    assert flat_labels(NAMES, [tmp_path], tmp_path / "labels.csv") == list(range(20))
    assert flat_labels(NAMES, [tmp_path]) is None


def test_real_labels_are_sets_of_classes_or_refused(drawn, tmp_path):
    images = image_set("imagenet", Data(folders={"imagenet": drawn / "imagenet"}))
    folder = tmp_path / "imagenet"
    folder.mkdir()
    images = type(images)(images.name, replace(images.listing, root=folder), images.chosen)
    whole = json.loads((drawn / "imagenet" / "real.json").read_text())
    for case, dice in cases(150):
        write_odd_json(folder / "real.json", whole, dice)
        found = refused(real_labels, images)
        if found is not None:
            assert len(found) == len(images), case
            assert all(type(c) is int and 0 <= c < 1000 for labels in found for c in labels), case


# People's trials ------------------------------------------------------------------------------------------------------


def trial_file():
    dice = random.Random(0)
    rows = [",".join(trials.COLUMNS)]
    for number in range(60):
        category = list(CATEGORIES_16)[number % 16]
        image = f"{category}{1 + number // 16}-{list(CATEGORIES_16)[(number + 3) % 16]}1.png"
        rows.append(f"subject-01,1,{number + 1},0.5,{dice.choice(trials.ANSWERS)},{category},NaN,{image}")
    return "\n".join(rows)


def test_trial_files_are_scored_or_refused(tmp_path):
    path = tmp_path / "cue-conflict_subject-01_session_1.csv"
    path.write_text(trial_file())
    assert len(trials.read_trials(path)) == 60
    for case, dice in cases(200):
        path.write_bytes(odd_text(trial_file(), dice))
        frame = refused(trials.read_trials, path)
        if frame is not None:
            for subj, part in frame.groupby("subj"):
                bias = refused(lambda part=part: trials.shape_bias(trials.decisions(part)))
                accuracy = trials.accuracies(part)
                assert bias is None or bias.value is None or 0 <= bias.value <= 1, case
                assert all(0 <= one.value <= 100 for one in accuracy.values()), case
                names = refused(trials.write_trials, part.assign(subj=subj), tmp_path / "out" / "trials.zip")
                assert not names or not any({"/", "\\"} & {*name} or name.startswith(".") for name in names)
    assert {path.name for path in (tmp_path / "out").rglob("*")} == {"trials.zip"}


def test_zips_of_trials_are_read_or_refused(tmp_path):
    path = tmp_path / "cue-conflict_subject-01_session_1.csv"
    path.write_text(trial_file())
    trials.write_trials(trials.read_trials(path), tmp_path / "trials.zip")
    whole = (tmp_path / "trials.zip").read_bytes()
    assert len(trials.read_trials(tmp_path / "trials.zip")) == 60
    for case, dice in cases(200):
        (tmp_path / "trials.zip").write_bytes(damaged(whole, dice))
        frame = refused(trials.read_trials, tmp_path / "trials.zip")
        assert frame is None or 0 < len(frame) <= 60, case  # every file in a zip has a checksum


# Files of our own -----------------------------------------------------------------------------------------------------


def records():
    """Return two records as the harness writes them."""
    found = []
    for benchmark, metrics in (
        ("imagenet", {"top1_acc/imagenet": 76.13, "top5_acc/imagenet": 92.86}),
        ("spectral", {"metric/bandpass/LFC/0.1": 0.18, "metric/bandpass/LPP": None}),
    ):
        moment = {"time": "2026-01-01T00:00:00+00:00", "device": "cpu", "versions": {"python": "3"}, "commit": None}
        part = {"fingerprint": "f", "images": 50_000, "subset": None, "sample": None}
        found.append(
            {
                "format": 2, "model": "tv_resnet50", "benchmark": benchmark, "metrics": metrics,
                "intervals": {name: [0.0, 100.0] for name, value in metrics.items() if value}, "partial": {},
                "layers": {}, "images": 50_000, "subset": False, "warnings": ["odd"], "left_out": [], "details": {},
                "options": {}, "metric_options": {}, "scored": [],
                "provenance": {"network": "a" * 64, "source": "x", "category": "", "collection": "imagenet",
                               "image_sets": {"imagenet": part}, "view": "study", "precision": "fp32", "seed": 0,
                               **moment, "measured": [moment]},
            }
        )  # fmt: skip
    return found


def test_odd_records_are_named_or_left_alone_and_change_no_table(tmp_path, capsys):
    published = read_table(PUBLISHED)
    results, out = tmp_path / "results", tmp_path / "out"
    folder = results / "tv_resnet50"
    folder.mkdir(parents=True)
    good, other = records()
    (folder / "imagenet.json").write_text(json.dumps(good))
    table = merge(select(local_records(results))[0], "measured", published)[:3]
    update(out / "measured.csv", *table, published)
    before = {path: path.read_bytes() for path in out.iterdir()}
    for case, dice in cases(300):
        write_odd_json(folder / "spectral.json", other, dice)
        data = (folder / "spectral.json").read_bytes()
        found = refused(local_records, results)
        if found is not None:
            rows, uncertainty, *_ = merge(select(found)[0], "measured", published)
            list(compare(rows, uncertainty, published))
            numbers = rows.select_dtypes("number").to_numpy()
            assert not np.isinf(numbers).any(), case
        # the writer meets the same file: it takes it as ours, or names it and leaves it alone
        ours = read_record(folder / "spectral.json")
        written = refused(write_record, results, json.loads(json.dumps(other)))
        if ours is None:
            assert written is None and (folder / "spectral.json").read_bytes() == data, case
        for path in folder.iterdir():
            if path.name != "imagenet.json":
                path.unlink()
        assert {path: path.read_bytes() for path in out.iterdir()} == before, case
    assert {path.name for path in tmp_path.iterdir()} == {"results", "out", "work"}


def cell(number=0):
    identity = {
        "network": "n", "images": "imagenet", "fingerprint": "f", "view": "v", "condition": f"c{number}",
        "kind": "stimulus", "settings": {}, "readout": {"readout": "TopClasses"}, "precision": "fp32",
    }  # fmt: skip
    rng = np.random.default_rng(number)
    state = rng.integers(0, 3, 30).astype(np.uint8)
    moment = {"time": "2026-01-01T00:00:00+00:00"}
    values = rng.integers(0, 1000, (30, 5)).astype(np.int16) * (state > 0)[:, None]
    return identity, StoredResponses(values.astype(np.int16), state, [moment], 0, {"0": 77})


@pytest.mark.slow
def test_any_damage_to_stored_answers_is_noticed(tmp_path):
    store, readout, images = ResponseStore(tmp_path), TopClasses(), images_named("imagenet", [30])
    cells = [cell(number) for number in range(3)]
    packed = [(identity, kept.packed(images)) for identity, kept in cells]
    store.save("part", packed, "net")
    store.pack(cells[0][0], "net")
    path = store.packed(cells[0][0], "net")
    whole, lost = path.read_bytes(), 0
    for case, dice in cases(400):
        stored._index.cache_clear()
        path.write_bytes(damaged(whole, dice))
        for identity, kept in cells:
            with limited(), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = ResponseStore(tmp_path).load(identity, "net", images, readout)
            if not np.array_equal(found.state, kept.state):
                assert not found.state.any(), case
                assert found.measured == [] and (caught or lost), case
                lost += 1
            else:
                assert np.array_equal(found.values, kept.values) and found.measured == kept.measured, case
        # what is measured again replaces the damaged file, which is set aside and not lost
        ResponseStore(tmp_path).save("again", packed, "net")
        ResponseStore(tmp_path).pack(cells[0][0], "net")
        stored._index.cache_clear()
        for identity, kept in cells:
            assert np.array_equal(ResponseStore(tmp_path).load(identity, "net", images, readout).values, kept.values), (
                case
            )
    assert lost and path.with_name(f"{path.name}.damaged").exists()


@pytest.mark.parametrize("what", ["objects", "huge header", "wrong class", "wrong type", "deep index", "strange index"])
def test_forged_answers_are_not_used(tmp_path, what):
    identity, kept = cell()
    key = stored.key_of(identity)
    canary = tmp_path / "canary"

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(canary),)

    entry = {
        "identity": identity,
        "measured": kept.measured,
        "nonfinite": 0,
        "pixels": {},
        "complete": True,
        "answered": 30,
    }
    index = {key: entry}
    if what == "objects":
        kept.values = np.array([Code()] * 30, object)
    elif what == "wrong class":
        kept.values[:] = 1000
    elif what == "wrong type":
        kept.values = kept.values.astype(np.float32) * np.nan
    elif what == "strange index":
        index[key] = entry | {"nonfinite": "many"}
    text = "[" * 100_000 if what == "deep index" else json.dumps(index)
    path = ResponseStore(tmp_path).packed(identity, "net")
    path.parent.mkdir(parents=True)
    np.savez(path, index=np.array(text), **{f"{key}.values": kept.values, f"{key}.state": np.ones(30, np.uint8)})
    if what == "huge header":
        path.write_bytes(path.read_bytes().replace(b"'shape': (30, 5)", b"'shape': (9**9,)"))
    with limited(), pytest.warns(UserWarning, match="damaged"):
        images = images_named("imagenet", [30])
        assert not ResponseStore(tmp_path).load(identity, "net", images, TopClasses()).state.any()
    assert not canary.exists()


@pytest.mark.slow
def test_odd_manifests_are_refused_or_meant(drawn, tmp_path):
    folder = tmp_path / "imagenet"
    folder.mkdir()
    (folder / "val").symlink_to(drawn / "imagenet" / "val")
    manifest = json.loads((drawn / "imagenet" / "image-set.json").read_text())
    for case, dice in cases(150):
        write_odd_json(folder / "image-set.json", manifest, dice)
        found = refused(image_set, "imagenet", Data(folders={"imagenet": folder}))
        assert found is None or (len(found) == 96 and isinstance(found.collection, str)), case


def test_odd_lock_files_are_refused_and_left_alone(tmp_path):
    path, pins = tmp_path / "lock.json", {"https://a/b": "0" * 64, "hf://c/d/e": "1" * 64}
    for case, dice in cases(120):
        write_odd_json(path, pins, dice)
        before = path.read_bytes()
        refused(Pins(path).check, "https://a/b", "0" * 64, "file")
        try:
            with limited():
                Pins(path).add("https://x/y", "2" * 64)
            assert json.loads(path.read_text())["https://x/y"] == "2" * 64, case
        except UserError:
            assert path.read_bytes() == before, case


def test_odd_entries_of_the_zoo_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_FOLDER", str(tmp_path))
    text = (ROOT / "models" / "zoo.toml").read_text("utf-8")
    entries = ["[[network]]" + part for part in text.split("[[network]]")[1:]]
    for _, dice in cases(200):
        entry = dice.choice(entries).replace('name = "', 'name = "own_', 1).replace("in_study = true", "")
        (tmp_path / "zoo.user.toml").write_bytes(odd_text(entry, dice))
        registry._entries.cache_clear()
        refused(registry.registry)
    registry._entries.cache_clear()


def test_odd_tables_are_refused_or_read(tmp_path):
    table = read_table(PUBLISHED)
    columns = ["model", "category", "source", *table.columns[3:9]]
    write_table(table[columns].iloc[:12], tmp_path / "table.csv")
    text = (tmp_path / "table.csv").read_text()
    beside = "model,source,metric,low,high,seeds,spread\n" + "net,measured,top1_acc/imagenet,1,2,1,\n" * 1
    for case, dice in cases(150):
        (tmp_path / "odd.csv").write_bytes(odd_text(text, dice))
        found = refused(read_table, tmp_path / "odd.csv")
        assert found is None or all(found[column].dtype == float for column in found.columns[3:]), case
        (tmp_path / "odd_uncertainty.csv").write_bytes(odd_text(beside, dice))
        found = refused(read_beside, tmp_path / "odd.csv", "uncertainty")
        assert found is None or found.empty or found["low"].dtype == float, case


def test_damaged_listings_are_not_used(tmp_path):
    times, folders, keep = np.array([1, 2], np.int64), {"n01440764": 0, "n01443537": 1}, tmp_path / "keep"
    good = Listing(tmp_path, ImageNames(["n01440764/1.png", "n01443537/2.png"], [0, 1]), np.array([5, 6]))
    _store_listing(keep / "one.npz", good, folders, "n01440764/\x001.png\0n01443537/\x002.png", times)
    whole = {path: path.read_bytes() for path in keep.iterdir()}
    assert len(whole) == 2
    assert _read_listing(keep / "one.npz", tmp_path, folders, times).files == good.files
    for case, dice in cases(150):
        path = dice.choice(sorted(whole))
        path.write_bytes(damaged(whole[path], dice))
        _stored_names.cache_clear()
        with limited():
            found = _read_listing(keep / "one.npz", tmp_path, folders, times)
        assert found is None or (found.files == good.files and np.array_equal(found.sizes, good.sizes)), case
        path.write_bytes(whole[path])


# Command lines and environments ---------------------------------------------------------------------------------------

FLAGS = [
    "--model", "--name", "--arch", "--normalization", "--checkpoints", "--allow-unstable", "--imagenet", "--data",
    "--view", "--limit", "--allow-partial", "--batch-size", "--num-workers", "--cache", "--precision", "--compile",
    "--checkpoint-seconds", "--device", "--seed", "--dry-run", "--results", "--fresh", "--wandb", "--benchmarks",
    "--option", "--attack", "--eps", "--nothing",
]  # fmt: skip


SCRIPTS = ["eval_imagenet.py", "eval_all.py", "eval_imagenet_adv.py", "eval_spectral.py", "eval_imagenet_ood.py"]


def odd_command_line(base, dice):
    words = list(base)
    for _ in range(dice.choice([1, 1, 2, 3])):
        where = dice.randrange(0, len(words) + 1, 2)
        words[where:where] = [dice.choice(FLAGS)] + [dice.choice(hostile.ODD_WORDS)] * dice.choice([0, 1, 1, 1, 2])
    return words


@pytest.mark.parametrize(("number", "last"), [(100, ["--limit", "-1"]), (40, ["--dry-run"])])
def test_odd_command_lines_are_one_line(drawn, tmp_path, number, last):
    """Nothing is ever measured: the last words are a mistake, or ask for the plan only."""
    base = ["--model", "calibration_texture", "--data", str(drawn), "--results", str(tmp_path / "results")]
    for case, dice in cases(number):
        words, name = [*odd_command_line(base, dice), "--wandb", "disabled", *last], dice.choice(SCRIPTS)
        with limited(60):  # a plan takes some forward passes of each architecture
            status, _, said = run(name, *words)
        problems = [line for line in said.splitlines() if not line.startswith("warning: ")]
        if status == 0 and "--dry-run" in last:
            continue
        assert status == 2 and len(problems) == 1 and problems[0].startswith("error: "), (case, name, words, said)
    assert not list((tmp_path / "work").iterdir())


def test_odd_environments_are_refused_or_harmless(monkeypatch):
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    for case, dice in cases(150):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name in dice.sample(names, dice.choice([1, 2, 3])):
            word = dice.choice([word for word in hostile.ODD_WORDS if "\0" not in word])
            monkeypatch.setenv(name, word.encode("utf-8", "replace").decode())
        found = refused(make_runtime, Settings(device="cpu"), 1000)
        assert found is None or (0 <= found.workers <= available_cores() and 0 < found.shard[0] <= found.shard[1]), case


def test_deeply_nested_json_is_refused_everywhere(tmp_path):
    for dice in (random.Random(number) for number in range(40)):
        text = odd_json({"a": [1, 2]}, dice)
        (tmp_path / "x.json").write_text(text)
        assert read_record(tmp_path / "x.json") is None

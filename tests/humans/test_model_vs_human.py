"""The 17 stimulus sets on disk, fetching the release, and eval_model_vs_human.py as a user runs it."""

import io
import json
import runpy
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from common import SHARED, needs_shared, run
from imagenet_biases import Data
from imagenet_biases.base.errors import UserError
from imagenet_biases.humans.people import READOUT, from_files
from imagenet_biases.humans.stimulus_sets import STIMULUS_SETS, image_sets
from imagenet_biases.humans.trials import COLUMNS, read_trials
from imagenet_biases.images.preprocessing import Reader, Unreadable
from imagenet_biases.study import CATEGORIES_16
from imagenet_biases.vocabulary import Presentation

pytestmark = pytest.mark.filterwarnings("ignore:no people's trials", "ignore:.*stimulus sets are not under")
NAMES = list(CATEGORIES_16)
BARE = ("edge", "silhouette", "cue-conflict")


def picture(left, right, side=224):
    """An image whose left half says one category and whose right half another, by their grey level."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, : side // 2], pixels[:, side // 2 :] = 8 + 15 * NAMES.index(left), 8 + 15 * NAMES.index(right)
    return Image.fromarray(pixels)


READER = """
import torch

FIRST = {first}

class Reader(torch.nn.Module):
    # answers by the grey level of one half: the left says the shape, the right the texture
    def __init__(self, column):
        super().__init__()
        self.column = column
        self.register_buffer("first", torch.tensor(FIRST))

    def forward(self, x):
        number = ((x[:, 0, 0, self.column] * 255 - 8) / 15).round().long()
        return torch.nn.functional.one_hot(self.first[number], 1000).float() * 50

def shape():
    return Reader(0)

def texture():
    return Reader(-1)
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A small copy of the release: every layout, the right half of an image is the next category's."""
    root = tmp_path_factory.mktemp("release")
    counts = {}
    for name, declared in STIMULUS_SETS.items():
        levels = [*sorted(declared.left_out)[:1], "7" if not name.startswith("eid") else f"2{declared.experiment[3:]}"]
        shown = [(shape, level) for shape in NAMES[:4] for level in (["0"] if name in BARE else levels)]
        for number, (shape, level) in enumerate(shown, 1):
            texture = NAMES[(NAMES.index(shape) + 1) % 16]
            if name in BARE:
                file = f"{name}/{shape}/" + (f"{shape}1-{texture}2.png" if name == "cue-conflict" else f"{shape}3.png")
            else:
                code = declared.experiment.split("-")[0]
                session = 1 + number % 2
                file = f"{name}/dnn/session-{session}/{number:04d}_{code}_dnn_{level}_{shape}_10_n{number:08d}_1.png"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            picture(shape, texture).save(root / file)
        counts[name] = len(shown)
        people = root / "raw-data" / name
        people.mkdir(parents=True)
        for person in (1, 2):
            lines = [",".join(COLUMNS).replace("session", "Session")]
            for number, (shape, level) in enumerate(shown, 1):
                texture = NAMES[(NAMES.index(shape) + 1) % 16]
                image = {"cue-conflict": f"{shape}1-{texture}2"}.get(name, f"{shape}3")
                image = image if name in BARE else f"n{number:08d}_1"
                code = declared.experiment.split("-")[0]
                named = f"{number:04d}_{code}_s{person:02d}_{level}_{shape}_10_{image}.png"
                answer = shape if person == 1 or NAMES.index(shape) % 2 else "na"
                lines.append(f"subject-{person:02d},1,{number},0.5,{answer},{shape},{level},{named}")
            (people / f"{name}_subject-{person:02d}_session_1.csv").write_text("\n".join(lines) + "\n")
    # the same images as one person saw them, and another program's leftovers, are not shown to networks
    extra = root / "sketch" / "s01" / "0001_ske_s01_7_airplane_10_n00000001_1.png"
    extra.parent.mkdir()
    picture("airplane", "bear").save(extra)
    (root / "edge" / "airplane" / "._airplane3.png").write_bytes(b"x")
    (root / "image-set.json").write_text(json.dumps({"collection": "drawn", "images": counts}))
    return root


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tmp_path_factory.mktemp("nets") / "reader.py"
    path.write_text(READER.format(first=[numbers[0] for numbers in CATEGORIES_16.values()]))
    return path


# Image sets ----------------------------------------------------------------------------------------------------------


def test_every_layout_is_listed_with_its_categories(release):
    sets = {images.name: images for images in image_sets(Data(folders={"model-vs-human": release}))}
    assert list(sets) == [f"model-vs-human/{name}" for name in STIMULUS_SETS]
    for name, images in sets.items():
        assert images.subset is None and images.as_is and images.collection == "drawn"
        assert [
            NAMES[label] in file.rpartition("/")[0] + file.rpartition("_10_")[0]
            for label, file in zip(images.labels, images.files, strict=True)
        ] == [True] * len(images)
        assert len(images) == (4 if name.endswith(("edge", "silhouette", "conflict", "sketch", "stylized")) else 8)
        assert len(images.variables["people"]) == 2
    assert {file.split("/")[1] for file in sets["model-vs-human/colour"].files} == {"session-1", "session-2"}


def test_another_size_is_an_error(tmp_path, release):
    folder = tmp_path / "edge" / "airplane"
    folder.mkdir(parents=True)
    picture("airplane", "bear", side=256).save(folder / "airplane1.png")
    edge = image_sets(Data(folders={"model-vs-human": tmp_path}, allow_partial=True))[0]
    with pytest.raises(Unreadable, match="256 x 256, must be 224 x 224"):
        Reader(edge, None).read(0)


def test_missing_sets_are_named(tmp_path):
    folder = tmp_path / "silhouette" / "bear"
    folder.mkdir(parents=True)
    picture("bear", "bear").save(folder / "bear1.png")
    data = Data(folders={"model-vs-human": tmp_path}, allow_partial=True)
    with pytest.warns(UserWarning, match=r"16 of 17 .*\(edge, cue-conflict, colour.*--download"):
        (one,) = image_sets(data)
    assert len(one) == 1 and one.subset["of"] == 160
    with pytest.warns(UserWarning, match="no people's trials under .*raw-data.*--download"):
        image_sets(data)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"none of the 17 .*--download"):
        image_sets(Data(folders={"model-vs-human": empty}, allow_partial=True))


def test_an_incomplete_set_is_an_error(release, tmp_path):
    for name in STIMULUS_SETS:
        (tmp_path / name).symlink_to(release / name)
    with pytest.raises(UserError, match=r"edge .* 4 images instead of 160"):
        image_sets(Data(folders={"model-vs-human": tmp_path}))


def test_a_stranger_among_the_images_is_named(tmp_path):
    folder = tmp_path / "edge" / "zebra"
    folder.mkdir(parents=True)
    picture("bear", "bear").save(folder / "zebra1.png")
    with pytest.raises(UserError, match=r"zebra1\.png: neither"):
        image_sets(Data(folders={"model-vs-human": tmp_path}, allow_partial=True))


@needs_shared
def test_the_folder_of_cue_conflict_images_itself_will_do():
    sets = image_sets(Data(folders={"model-vs-human": SHARED / "cue_conflict_images"}, allow_partial=True))
    found = {images.name: len(images) for images in sets if len(images)}
    assert found == {"model-vs-human/cue-conflict": 80}


def test_the_response_is_the_category_of_highest_mean_probability():
    logits = torch.full((2, 1000), -20.0)
    logits[0, list(CATEGORIES_16["dog"])] = 1.0  # many classes, more in sum ...
    logits[0, CATEGORIES_16["knife"][0]] = 2.0  # ... but less on average
    logits[1, CATEGORIES_16["elephant"][0]] = 3.0  # the single largest, shared with a class at zero
    logits[1, CATEGORIES_16["oven"][0]] = 2.5
    answers = READOUT(Presentation(logits, None, None, None, None))
    assert [NAMES[number] for number in answers] == ["knife", "oven"]


# The release ---------------------------------------------------------------------------------------------------------


def archive(folder, name, inside=None):
    """The bytes of folder/name as a tar.gz, under the path `inside`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        packed.add(folder / name, inside or name)
    return buffer.getvalue()


def packed(*members):
    """The bytes of a tar.gz of (path, content or TarInfo)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        for path, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(path)
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def png():
    buffer = io.BytesIO()
    picture("bear", "bear").save(buffer, "png")
    return buffer.getvalue()


SET = "/releases/download/v0.1/{}.tar.gz"
TREE = "/archive/refs/tags/v0.1.tar.gz"


def link(path, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(path)
    info.type, info.linkname = kind, target
    return path, info


def test_missing_sets_and_trials_are_fetched_once(release, mirror, tmp_path):
    root = tmp_path / "new"
    for name in STIMULUS_SETS:
        # archives of either form: with the set's folder at the top, or only what is in it
        mirror.files[SET.format(name)] = archive(release, name, "." if name == "sketch" else None)
    network = ("model-vs-human-0.1/raw-data/edge/edge_resnet50_session-1.csv", b"a network's trials")
    tree = [
        (f"model-vs-human-0.1/{path.relative_to(release)}", path.read_bytes())
        for path in release.glob("raw-data/*/*.csv")
    ]
    mirror.files[TREE] = packed(*tree, network, ("model-vs-human-0.1/setup.py", b"raise SystemExit"))
    with pytest.raises(UserError, match="no folder"):
        image_sets(Data(folders={"model-vs-human": root}))
    sets = image_sets(Data(folders={"model-vs-human": root}, allow_partial=True), download=True)
    assert [len(images) for images in sets] == [
        len(images) for images in image_sets(Data(folders={"model-vs-human": release}))
    ]
    assert len(sets[0].variables["people"]) == 2
    assert len(mirror.asked) == 18 and len(list(root.rglob("*.csv"))) == 34
    assert not list(root.rglob("*.tar.gz")) and not list(root.rglob("*.py"))
    pins = json.loads((root / "release-lock.json").read_text())
    assert len(pins) == 18 and all(len(digest) == 64 for digest in pins.values())
    image_sets(Data(folders={"model-vs-human": root}, allow_partial=True), download=True)
    assert len(mirror.asked) == 18


def test_an_archive_that_changed_is_refused(mirror, tmp_path):
    mirror.files[SET.format("edge")] = packed(("edge/bear/bear1.png", png()))
    with pytest.raises(UserError, match="silhouette"):  # not served
        image_sets(Data(folders={"model-vs-human": tmp_path}), download=True)
    (tmp_path / "edge").rename(tmp_path / "before")
    mirror.files[SET.format("edge")] = packed(("edge/bear/bear2.png", png()))
    with pytest.raises(UserError, match=r"(?s)sha256.*edge.tar.gz had"):
        image_sets(Data(folders={"model-vs-human": tmp_path}), download=True)
    assert not (tmp_path / "edge").exists()


@pytest.mark.parametrize(
    "members",
    {
        "up": [("edge/bear/bear1.png", png()), ("../escaped.png", png())],
        "up inside": [("edge/../../escaped.png", png())],
        "link out": [("edge/bear/bear1.png", png()), link("edge/out", "../../../escaped.png")],
        "through a link": [link("edge/out", "/"), ("edge/out/escaped.png", png())],
        "hard link out": [link("edge/out", "../../escaped.png", tarfile.LNKTYPE)],
        "device": [link("edge/device", "", tarfile.CHRTYPE)],
        "nothing of it": [("README", b"")],
        "empty": [],
    }.items(),
    ids=lambda pair: pair[0],
)
def test_a_hostile_archive_leaves_nothing(mirror, tmp_path, members):
    label, content = members
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    (tmp_path / "escaped.png").write_text("mine")
    if label == "nothing of it":
        content = [("elsewhere/", tarfile.TarInfo("elsewhere/"))]
        content[0][1].type = tarfile.DIRTYPE
    mirror.files[SET.format("edge")] = packed(*content)
    with pytest.raises(UserError, match="edge") as caught:
        image_sets(Data(folders={"model-vs-human": root}), download=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "escaped.png").read_text() == "mine" and not list(tmp_path.rglob("*/escaped.png"))
    assert not (root / "edge").exists() and not (root / "release-lock.json").exists()
    assert [path.name for path in root.iterdir()] == [".release"]


@pytest.mark.parametrize("content", [b"no archive at all", "truncated"])
def test_a_damaged_archive_is_explained(mirror, tmp_path, release, content):
    whole = archive(release, "edge")
    mirror.files[SET.format("edge")] = whole[: len(whole) // 2] if content == "truncated" else content
    with pytest.raises(UserError, match=r"edge.tar.gz is refused, nothing of it is kept"):
        image_sets(Data(folders={"model-vs-human": tmp_path}), download=True)
    assert not (tmp_path / "edge").exists() and not list(tmp_path.rglob("*.tar.gz"))


# As a user runs it ---------------------------------------------------------------------------------------------------


def record(results, name):
    return json.loads((results / name / "model_vs_human.json").read_text())


def test_networks_that_answer_by_shape_or_texture(release, reader, tmp_path):
    done = run(
        "eval_model_vs_human.py",
        *("--model", f"{reader}:shape,{reader}:texture", "--model-vs-human", release),
        *("--results", tmp_path, "--wandb", "disabled", "--device", "cpu"),
        check=True,
    )
    assert "shape-bias" in done.stdout
    shape, texture = record(tmp_path, "reader.shape"), record(tmp_path, "reader.texture")
    assert shape["metrics"]["shape-bias"] == 1 and texture["metrics"]["shape-bias"] == 0
    for name in (*STIMULUS_SETS, "ood_mean"):
        assert shape["metrics"][f"top1_acc/{name}"] == 100 and texture["metrics"][f"top1_acc/{name}"] == 0
    assert shape["images"] == 5 * 4 + 12 * 8 and shape["subset"] is False
    # one person is always right, the other on every second image of every condition that counts; kappa is undefined
    # between two who are always right, and 0 between one who is always (never) right and anybody else
    known = {"accuracy-difference": (0.125, 0.625), "observed-consistency": (0.75, 0.25), "error-consistency": (0, 0)}
    for measure, (by_shape, by_texture) in known.items():
        assert shape["metrics"][f"metric/human/{measure}"] == pytest.approx(by_shape, abs=1e-12)
        assert texture["metrics"][f"metric/human/{measure}"] == pytest.approx(by_texture, abs=1e-12)
    assert shape["details"]["human"]["edge"]["unmatched"] == {"observer": 0, "people": 0}
    assert shape["details"]["conditions"]["colour"]["cr"]["out_of_distribution"] is False

    # what was exported reads back, and scores the same without the network
    file = tmp_path / "reader.texture" / "trials.zip"
    names = zipfile.ZipFile(file).namelist()
    assert len(names) == 3 + 14 * 2 and "eidolonI_reader.texture_session-2.csv" in names
    assert read_trials(file).subj.unique() == ["reader.texture"]
    again = tmp_path / "again"
    run(
        "eval_model_vs_human.py",
        *("--trials", file, "--model-vs-human", release, "--results", again, "--wandb", "disabled"),
        check=True,
    )
    scored = record(again, "reader.texture")
    assert scored["metrics"] == texture["metrics"] and scored["intervals"] == texture["intervals"]
    assert scored["details"] == texture["details"]


@pytest.mark.slow
@needs_shared
def test_trial_files_of_people_and_alexnet_score_as_published(tmp_path):
    expected = json.loads((SHARED / "cue_conflict_trials" / "expected_shape_bias.json").read_text())
    files = [SHARED / "cue_conflict_trials" / name for name in expected]
    done = run("eval_model_vs_human.py", "--trials", *files, "--results", tmp_path, "--wandb", "disabled", check=True)
    for path in files:
        subject = read_trials(path).subj[0]
        found = record(tmp_path, subject)
        assert found["metrics"]["shape-bias"] == expected[path.name]["shape_bias"]
        assert found["details"]["shape-bias"]["texture"] == expected[path.name]["texture"]
        assert found["images"] == 1280 and found["subset"] is False and not found["partial"]  # whole for what it covers
        assert subject in done.stdout
    assert "top1_acc/ood_mean" not in found["metrics"]


def test_trials_and_networks_do_not_go_together(release, tmp_path):
    (file,) = release.glob("raw-data/edge/*subject-01*.csv")
    words = ("--trials", file, "--model", "resnet50", "--results", tmp_path)
    status, _, err = run("eval_model_vs_human.py", *words)
    assert status == 2 and "omit --model" in err
    assert from_files(Data()) is None


def test_a_user_error_is_one_line(tmp_path):
    results = tmp_path / "results"
    done = run("eval_model_vs_human.py", "--trials", tmp_path / "none.csv", "--results", results)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.strip().count("\n") == 0
    assert not results.exists()


@pytest.mark.slow
@needs_shared
def test_a_real_network_on_real_stimuli_answers_as_a_plain_loop_does(tmp_path):
    spec = f"{SHARED / 'nets' / 'mobilenet.py'}:load"
    run(
        "eval_model_vs_human.py",
        *("--model", spec, "--model-vs-human", SHARED / "cue_conflict_images", "--allow-partial"),
        *("--results", tmp_path, "--wandb", "disabled", "--device", "cpu", "--batch-size", 10),
        check=True,
    )
    exported = read_trials(tmp_path / "mobilenet.load" / "trials.zip").set_index("imagename").object_response
    network = runpy.run_path(SHARED / "nets" / "mobilenet.py")["load"]()
    paths = sorted((SHARED / "cue_conflict_images").glob("*/*.png"))
    assert len(paths) == len(exported) == 80
    shape = texture = 0
    for path in paths:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255
        probabilities = network(pixels).softmax(1)[0]
        means = {name: float(probabilities[list(numbers)].mean()) for name, numbers in CATEGORIES_16.items()}
        answer = max(means, key=means.get)
        assert exported[path.name] == answer
        by_texture = path.stem.split("-")[1].rstrip("0123456789")
        shape += answer == path.parent.name != by_texture
        texture += answer == by_texture != path.parent.name
    assert record(tmp_path, "mobilenet.load")["metrics"]["shape-bias"] == shape / (shape + texture)

"""Files of predictions score as the network that wrote them, in every layout; what they lack is said."""

import csv
import json

import numpy as np
import pytest
import torch

from common import run
from imagenet_biases import Data
from imagenet_biases.base.errors import UserError
from imagenet_biases.images.preprocessing import AS_IS, STUDY, decode
from imagenet_biases.images.sets import given_sets
from imagenet_biases.networks.load import load_model
from imagenet_biases.networks.predictions import read_table
from imagenet_biases.study import wordnet_ids

BLURRED = """
import torch
from imagenet_biases.networks.load import load_model
class Blurred(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = load_model("calibration_texture")
    def forward(self, pixels):
        return self.network(torch.nn.functional.avg_pool2d(pixels, 9, 1, 4))
"""
SETS = ("imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The name of a network that is right now and then."""
    path = tmp_path_factory.mktemp("network") / "net.py"
    path.write_text(BLURRED)
    return f"{path}:Blurred"


@pytest.fixture(scope="module")
def answered(drawn, network):
    """{set: (names of images with their folders, logits)} of a real network."""
    network = load_model(network)
    by_set = {}
    for images in given_sets(SETS, Data(root=drawn)):
        rows = []
        for position in images.chosen:
            pixels = decode(images.path(position), AS_IS if images.as_is else STUDY)
            rows.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
        with torch.no_grad():
            logits = torch.cat([network(torch.stack(rows[start : start + 32])) for start in range(0, len(rows), 32)])
        by_set[images.name] = images.files, logits.numpy()
    return by_set


@pytest.fixture(scope="module")
def measured(drawn, network, tmp_path_factory):
    """The metrics of the network itself."""
    folder = tmp_path_factory.mktemp("measured")
    words = ("--model", network, "--data", drawn, "--results", folder, "--wandb", "disabled", "--num-workers", 0)
    for name in ("imagenet", "imagenet_ood", "imagenet_real"):
        assert run(f"eval_{name}.py", *words).returncode == 0
    return {name: metrics_in(folder / "net.Blurred", name) for name in ("imagenet", "imagenet_ood", "imagenet_real")}


def metrics_in(folder, name):
    (path,) = folder.glob(f"{name}.*json")
    return json.loads(path.read_text())["metrics"]


def write(path, rows, head=("image", "class")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def scored(path, drawn, name="imagenet"):
    words = ("--model", f"predictions:{path}", "--data", drawn, "--results", path.parent / "r")
    status, out, err = run(f"eval_{name}.py", *words)
    assert status == 0, err
    return metrics_in(path.parent / "r" / path.stem, name), out, err


def top5(logits):
    return np.argsort(-logits, axis=1, kind="stable")[:, :5]


FORMS = {
    "numbers": lambda files, logits: [(file, row[0]) for file, row in zip(files, top5(logits), strict=True)],
    "five": lambda files, logits: [
        (file, " ".join(map(str, row))) for file, row in zip(files, top5(logits), strict=True)
    ],
    "ids": lambda files, logits: [(file, wordnet_ids()[row[0]]) for file, row in zip(files, top5(logits), strict=True)],
    "bare names": lambda files, logits: [
        (file.rpartition("/")[2], row[0]) for file, row in zip(files, top5(logits), strict=True)
    ],
    "long paths, any order": lambda files, logits: [
        (f"/data/val/{file}", row[0]) for file, row in zip(files, top5(logits), strict=True)
    ][::-1],
    "without extensions": lambda files, logits: [
        (file.rpartition(".")[0], row[0]) for file, row in zip(files, top5(logits), strict=True)
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_classes_score_as_the_network(answered, measured, drawn, tmp_path, form):
    metrics, _, err = scored(write(tmp_path / "mine.csv", FORMS[form](*answered["imagenet"])), drawn)
    expected = measured["imagenet"]
    assert metrics["top1_acc/imagenet"] == expected["top1_acc/imagenet"] and 0 < metrics["top1_acc/imagenet"] < 100
    assert metrics.get("top5_acc/imagenet") == (expected["top5_acc/imagenet"] if form == "five" else None)
    assert "warning" not in err


def test_logits_score_as_the_network_in_every_benchmark_of_unchanged_images(answered, measured, drawn, tmp_path):
    files, logits = answered["imagenet"]
    names = ["image", *(f"logit_{number}" for number in range(1000))]
    write(tmp_path / "mine.csv", [(file, *row) for file, row in zip(files, logits, strict=True)], names)
    np.savez(tmp_path / "arrays.npz", image=np.array(files), logits=logits)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    np.savez(tmp_path / "soft.npz", image=np.array(files), logits=shifted / shifted.sum(1, keepdims=True))
    for name in ("mine.csv", "arrays.npz", "soft.npz"):
        metrics, _, err = scored(tmp_path / name, drawn)
        assert metrics == measured["imagenet"]
        assert ("probabilities" in err) == (name == "soft.npz")
    assert scored(tmp_path / "arrays.npz", drawn, "imagenet_real")[0] == measured["imagenet_real"]


def test_one_file_answers_several_sets(answered, measured, drawn, tmp_path):
    names = [f"{name}/{file}" for name, (files, _) in answered.items() for file in files]
    logits = np.concatenate([logits for _, logits in answered.values()])
    np.savez(tmp_path / "ood.npz", image=np.array(names), logits=logits)
    metrics, _, err = scored(tmp_path / "ood.npz", drawn, "imagenet_ood")
    assert metrics == measured["imagenet_ood"] and "has no image of" not in err


def test_sets_without_an_answer_are_named(answered, drawn, tmp_path):
    files, logits = answered["imagenet-v2"]
    path = write(tmp_path / "v2.csv", FORMS["numbers"]([f"imagenet-v2/{file}" for file in files], logits))
    metrics, _, err = scored(path, drawn, "imagenet_ood")
    assert "v2.csv has no image of imagenet, imagenet-a, imagenet-r, imagenet-sketch" in err
    assert "top1_acc/imagenet-v2" in metrics and "top1_acc/imagenet-a" not in metrics


def test_a_part_is_a_declared_subset_and_strangers_are_named(answered, drawn, tmp_path):
    files, logits = answered["imagenet"]
    rows = FORMS["numbers"](files[:10], logits[:10])
    path = write(tmp_path / "part.csv", [*rows, ("n01440764/stranger.JPEG", 3)])
    _, out, err = scored(path, drawn)
    assert f"a subset, 10 of {len(files)} images" in out
    assert "1 of 11 rows name no image of this benchmark: n01440764/stranger.JPEG" in err


def test_another_order_of_classes_is_named(answered, drawn, tmp_path):
    files, _ = answered["imagenet"]
    labels = [wordnet_ids().index(file.split("/")[-2]) if "/" in file else -1 for file in files]
    path = write(tmp_path / "shifted.csv", [(f, (n + 1) % 1000) for f, n in zip(files, labels, strict=True)])
    assert "shifted by one" in scored(path, drawn)[2]


FAULTS = {
    "image,class\n": "has no rows",
    "": "no column image",
    "name,class\na,1\n": "no column image",
    "image,size\na,1\n": "neither a column class",
    "image,class\na.png,1000\n": "numbers begin with 0",
    "image,class\na.png,-1\n": "row 1: '-1' is not",
    "image,class\na.png,cat\n": "row 1: 'cat' is not",
    "image,class\na.png,\n": "row 1: 'empty' is not",
    "image,class\na.png\n": "row 1: 1 fields",
    'image,class\na.png,"1\n': "cannot be read",
    "image,class\na.png,1\n": "has no image of imagenet",
    b"\xff\xfe\x00": "cannot be read",
    b"PK\x03\x04": "no column image",
}


@pytest.mark.parametrize("content, message", FAULTS.items())
def test_a_damaged_file_gets_one_line(drawn, tmp_path, content, message):
    path = tmp_path / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ("--model", f"predictions:{path}", "--data", drawn, "--results", tmp_path / "r")
    status, _, err = run("eval_imagenet.py", *words)
    errors = [line for line in err.splitlines() if line.startswith("error")]
    assert status == 2 and len(errors) == 1 and message in errors[0], err
    assert not (tmp_path / "r").exists()


def test_arrays_of_another_shape_and_pickles_are_refused(tmp_path):
    cases = [
        ({"image": np.array(["a"]), "logits": np.zeros((1, 1001))}, "not 1000 numbers"),
        ({"image": np.array(["a"]), "logits": np.full((1, 1000), np.nan)}, "not finite"),
        ({"image": np.array(["a", "b"]), "class": np.zeros(1, int)}, "of one length"),
        ({"logits": np.zeros((1, 1000))}, "needs the arrays"),
        ({"image": np.array([{}], object), "class": np.zeros(1, int)}, "cannot be read"),
    ]
    for arrays, message in cases:
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(UserError, match=message):
            read_table(tmp_path / "x.npz")


def test_what_names_no_single_image_is_refused(answered, drawn, tmp_path):
    files, _ = answered["imagenet"]
    path = write(tmp_path / "twice.csv", [(files[0], 1), (f"val/{files[0]}", 2)])
    for words, message in (
        (("--model", f"predictions:{path}"), "answered twice"),
        (("--model", f"predictions:{path},calibration_texture"), "name them alone"),
        (("--model", "predictions:gone.csv"), "gone.csv"),
    ):
        status, _, err = run("eval_imagenet.py", *words, "--data", drawn, "--results", tmp_path / "r")
        assert status == 2 and message in err, err
    status, _, err = run("eval_solarization.py", "--model", f"predictions:{path}", "--data", drawn)
    assert status == 2 and "unchanged images only" in err


def test_answers_near_chance_are_doubted(answered, drawn, tmp_path):
    files, logits = answered["imagenet"]
    path = write(
        tmp_path / "never.csv", [(file, row[-1]) for file, row in zip(files, np.argsort(-logits), strict=True)]
    )
    status, _, err = run("eval_imagenet.py", "--model", f"predictions:{path}", "--data", drawn, "--results", tmp_path)
    assert status == 0 and err.count("near chance") == 1

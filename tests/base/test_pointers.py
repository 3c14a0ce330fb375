"""Git LFS pointers, the few lines that a clone without its large files has in their place, are named as such."""

import pytest

from common import run
from imagenet_biases import Data
from imagenet_biases.base.errors import UserError
from imagenet_biases.humans.questions import _rows
from imagenet_biases.humans.trials import read_trials
from imagenet_biases.images.labels import table
from imagenet_biases.images.preprocessing import STUDY, Unreadable, decode
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks.load import load_model
from imagenet_biases.networks.registry import resolve
from imagenet_biases.study import wordnet_ids

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * 'a'}\nsize 102540417\n"
SAID = r"is a Git LFS pointer, not the file itself: run `git lfs pull`"


@pytest.fixture
def pointer(tmp_path):
    def write(name, text=POINTER):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.ckpt", "net.py:build", "@list.txt"])
def test_networks(name, pointer, tmp_path):
    path = pointer(name.removeprefix("@").partition(":")[0])
    name = f"@{path}" if name.startswith("@") else f"{tmp_path}/{name}"
    with pytest.raises(UserError, match=f"{path.name} {SAID}"):
        load_model(resolve(name)[0])


@pytest.mark.parametrize("name", ["val.tar", "validation-00000-of-00001.parquet"])
def test_archives(name, pointer):
    pytest.importorskip("pyarrow")
    path = pointer(f"imagenet/{name}")
    with pytest.raises(UserError, match=f"{path.name} {SAID}"):
        image_set("imagenet", Data(folders={"imagenet": path.parent}))


def test_photographs(pointer, tmp_path):
    for wnid in wordnet_ids():
        path = pointer(f"val/{wnid}/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(Unreadable, match=f"JPEG: {SAID.removeprefix('is ')}"):
        decode(path, STUDY)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))\n"
    )
    words = ["--model", f"{tmp_path}/net.py:build", "--imagenet", tmp_path / "val", "--limit", 8, "--num-workers", 0]
    ended = run("eval_imagenet.py", *words, "--results", tmp_path / "results", "--wandb", "disabled")
    assert ended.returncode == 2 and SAID.removeprefix("is ") in ended.stderr


def test_answers_trials_and_labels(pointer):
    for read in (lambda path: list(_rows(path)), read_trials, table):
        path = pointer("answers.csv")
        with pytest.raises(UserError, match=SAID.removeprefix("is ")) as caught:
            read(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "version", "version https://git-lfs", "See version https://git-lfs.github.com/spec/v1"]
)
def test_other_files_are_no_pointers(text, pointer):
    with pytest.raises(UserError) as caught:
        load_model(str(pointer("x.pth", text)))
    assert "Git LFS" not in str(caught.value)

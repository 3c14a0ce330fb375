"""Images of one's own: the same numbers as the study's scripts where they are the same images, labels by file."""

import json
import shutil
import tarfile

import pytest

from common import run
from imagenet_biases.base.errors import UserError
from imagenet_biases.images.custom import accepted, custom_set
from imagenet_biases.synthetic.drawings import CATEGORIES
from imagenet_biases.vocabulary import Data

NETWORK = ("--model", "calibration_texture", "--wandb", "disabled")


def measured(tmp_path, *words, script="eval_images.py"):
    status, _, err = run(script, *NETWORK, "--results", tmp_path, *words)
    assert status == 0, err
    name = script.removeprefix("eval_").removesuffix(".py")
    return json.loads((tmp_path / "calibration_texture" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def objects(drawn, tmp_path_factory):
    """Three classes of the drawn set in folders with names of their own, two levels deep."""
    folder = tmp_path_factory.mktemp("objects")
    for category, name in zip(CATEGORIES, ("Flyer", "Teddy", "Two wheels"), strict=False):
        shutil.copytree(drawn / "imagenet" / "val" / category.wnid, folder / "images" / name)
    return folder


def test_class_folders_and_class_numbers_have_the_figures_of_the_studys_scripts(drawn, tmp_path):
    sets = {"imagenet": "eval_imagenet.py", "imagenet-v2": "eval_imagenet_ood.py"}
    for name, script in sets.items():
        theirs = measured(tmp_path, f"--{name}", drawn / name, script=script)
        ours = measured(tmp_path, "--images", drawn / name, "--images-name", name)
        for k in (1, 5):
            assert ours["metrics"][f"top{k}_acc/own/{name}"] == theirs["metrics"][f"top{k}_acc/{name}"]
        assert ours["provenance"]["collection"] == "drawn"
    assert set(ours["metrics"]) == {f"top{k}_acc/own/{name}" for k in (1, 5) for name in sets}  # both sets are kept


def test_labels_by_folder_and_by_image_any_of_which_is_right(objects, tmp_path):
    first, second, third = CATEGORIES[:3]
    odd = sorted((objects / "images" / "Teddy").iterdir())[0]
    (tmp_path / "labels.txt").write_text(
        f"# what is right\nFlyer {first.wnid}\nimages/Teddy {third.wnid} {second.number}\n"
        f"{odd.relative_to(objects)} {third.number}\n"
    )
    images = custom_set("mine", objects, Data(), labels=tmp_path / "labels.txt")
    right = dict(zip(images.files, accepted(images), strict=True))
    assert not [name for name in right if "Two wheels" in name]  # it has no line
    assert right.pop(str(odd.relative_to(objects))) == {third.number}
    assert {frozenset(one) for name, one in right.items() if "Teddy" in name} == {
        frozenset({second.number, third.number})
    }
    record = measured(tmp_path, "--images", objects, "--labels", tmp_path / "labels.txt", "--images-name", "mine")
    wrong = 100 * (1 - 1 / len(images))  # the network knows its pictures: one has a label that is not its own
    assert record["metrics"]["top1_acc/own/mine"] == pytest.approx(wrong) and record["images"] == len(images)


def test_the_network_chooses_among_the_classes_given(objects, tmp_path):
    numbers = [category.number for category in CATEGORIES[:3]]
    (tmp_path / "labels.csv").write_text(f'"Flyer",{numbers[0]}\n"Teddy",{numbers[1]}\n')
    (tmp_path / "classes.txt").write_text("\n".join(map(str, numbers)))
    words = ("--images", objects, "--labels", tmp_path / "labels.csv", "--classes", tmp_path / "classes.txt")
    record = measured(tmp_path, *words)
    assert record["metrics"]["top1_acc/own/images"] == 100.0  # and top 5 of three classes is top 3
    (tmp_path / "classes.txt").write_text(f"{numbers[0]}\n")
    with pytest.raises(UserError, match=f"classes {numbers[1]}, which .*classes.txt does not list"):
        custom_set("mine", objects, Data(), tmp_path / "classes.txt", tmp_path / "labels.csv")


def test_an_archive_is_the_folder(objects, tmp_path):
    (tmp_path / "labels.txt").write_text("Flyer 404\nTeddy 296\n'Two wheels' 671\n")
    with tarfile.open(tmp_path / "objects.tar", "w") as tar:
        tar.add(objects / "images", "images")
    both = [
        custom_set("mine", one, Data(), labels=tmp_path / "labels.txt") for one in (objects, tmp_path / "objects.tar")
    ]
    assert both[0].fingerprint == both[1].fingerprint and len(both[0]) == len(both[1]) > 10
    short = custom_set("mine", objects, Data(limit=4), labels=tmp_path / "labels.txt")
    assert len(short) == len(accepted(short)) == 4 and short.share()["of"] == len(both[0])


@pytest.mark.parametrize(
    ("labels", "classes", "name", "message"),
    [
        ("Flyer\n", None, "mine", "line 1: 'Flyer' has no class"),
        ("Flyer 404\nFlyer 296", None, "mine", "line 2: 'Flyer' is named twice"),
        ("Flyer n00000000", None, "mine", "line 1: 'n00000000' is neither a WordNet id"),
        ("Flyer 1000", None, "mine", "classes are counted from 0"),
        ("Nobody 1", None, "mine", "no images that .*labels.txt names"),
        ("Flyer 404", "", "mine", "lists no class"),
        ("Flyer 404", None, "a/b", "cannot be the name"),
        (None, None, "mine", "no folders named after WordNet ids"),
    ],
)
def test_mistakes_are_one_clear_line(objects, tmp_path, labels, classes, name, message):
    files = {}
    for key, text in (("labels", labels), ("classes", classes)):
        files[key] = None if text is None else tmp_path / f"{key}.txt"
        if text is not None:
            files[key].write_text(text)
    with pytest.raises(UserError, match=message):
        custom_set(name, objects, Data(), files["classes"], files["labels"])


def test_running_options_belong_to_benchmarks_that_show_images(tmp_path, objects, capsys):
    words = ("--images", objects / "images", "--labels", tmp_path / "labels.txt", "--images-name", "mine")
    (tmp_path / "labels.txt").write_text(f"Teddy {CATEGORIES[1].wnid}\n")
    running = ("--limit", 3, "--batch-size", 2, "--num-workers", 0, "--compile", "off", "--preprocessing", "native")
    assert measured(tmp_path, *words, *running)["share"]["images"] == 3
    assert "--batch-size" in run("eval_images.py", "--help").stdout
    assert "--batch-size" not in run("eval_filters.py", "--help").stdout

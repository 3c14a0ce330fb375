"""Models that answer in words: files of answers, known observers, tiny models of the real classes."""

import csv

import pytest

import eval_vlm
from common import SHARED, needs_shared, run
from imagenet_biases.errors import UserError
from imagenet_biases.humans import questions
from imagenet_biases.humans.answers import NAMES
from imagenet_biases.vocabulary import Data

ANSWERS = SHARED and SHARED / "related" / "vlm_answers"
FOLDERS = {"vqa": "vqa", "captioning": "caption", "clip": "clip16", "inet_classifier": "clip16"}
FILES = [(path, FOLDERS[path.parent.name]) for path in sorted(ANSWERS.glob("*/*.csv"))] if SHARED else []


def scored(path, task, **options):
    """Return (variant, Responses) of a file of answers."""
    chosen = eval_vlm.BENCHMARK.chosen({"task": task, **options})
    ((_, found),) = questions.from_files(Data(), answers=[path], **{k: v for k, v in chosen.items() if k != "answers"})
    return questions.Variant(task), found.all()[0]


@needs_shared
def test_there_are_nine_released_files():
    assert len(FILES) == 9


@pytest.mark.parametrize("path, task", FILES, ids=[path.stem for path, _ in FILES])
def test_released_files_give_their_published_counts(path, task):
    with open(SHARED / "related" / "vlm_counts.csv", encoding="utf-8") as file:
        published = next(row for row in csv.DictReader(file) if row["file"] == path.name)
    variant, responses = scored(path, task)
    found = questions.counts(questions.decisions(responses, variant, "published"), responses)
    assert [len(responses.values), found.images, found.shape, found.texture] == [
        int(published[column]) for column in ("rows", "conflict", "shape", "texture")
    ]
    assert round(100 * found.shape_bias.value, 2) == float(published["shape_bias"])
    assert round(found.accuracy.value, 2) == float(published["accuracy"])


def rows(*lines, head="image,response"):
    return "\n".join([head, *lines]) + "\n"


def test_a_file_of_answers_is_scored_without_model_and_images(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        rows("cat1-dog2,H.", "cat2-dog1,It is a dog", "dog1-cat1,I'm sorry", "cat1-cat2,H", "car1-dog1,A cat")
    )
    status, out, err = run("eval_vlm.py", "--model", f"answers:{path}", "--results", tmp_path / "results")
    assert status == 0, err
    assert "a subset, 5 of 1280 images" in out
    values = dict(line.split()[:2] for line in out.splitlines() if "/" in line and len(line.split()) > 1)
    assert float(values["shape-bias/vqa"]) == 0.5  # one shape, one texture; the same cue twice does not count
    assert float(values["top1_acc/cue-conflict-either/vqa"]) == 50
    assert float(values["metric/vlm/refused"]) == 0.25
    assert float(values["shape-bias/vqa/published"]) == 1  # "It is a dog" is not understood, "A cat" is an airplane


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "no column image"),
        ("image,response\n", "has no answers"),
        ("image,answer\ncat1-dog1,H\n", "no column response"),
        ("image,response\ncat1-dog1,H,x\n", "answer 1: 3 fields"),
        ("image,response\ncat1-dog1\n", "answer 1: 1 fields"),
        ("image,response\nwolf1-dog1,H\n", "no cue-conflict image"),
        ("image,response\ncat1-wolf1,H\n", "texture category"),
        ("image,response\ncat1-dog1,H\ncat1-dog1.png,K\n", "answered twice"),
        ('image,response\ncat1-dog1,"H\n', "cannot be read"),
        (b"\xff\xfe\x00\x01", "cannot be read"),
    ],
)
def test_a_damaged_file_of_answers_gets_one_line(tmp_path, content, message):
    path = tmp_path / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, _, err = run("eval_vlm.py", "--model", f"answers:{path}", "--results", tmp_path / "results")
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_a_label_of_a_caption_that_is_no_category_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(rows("cat1-dog1,A cat,wolf", head="image,response,pred_label"))
    with pytest.raises(UserError, match="pred_label 'wolf'"):
        scored(path, "caption")
    assert (
        NAMES[questions.decisions(scored(path, "caption", parser="own")[1], questions.Variant("caption"))[0]] == "cat"
    )

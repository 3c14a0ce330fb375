"""Models that answer in words: files of answers, known observers, tiny models of the real classes."""

import csv
import json
import math
import warnings
import zlib

import pytest
import torch

import eval_vlm
import tiny_language
from common import SHARED, TABLES, needs_shared, run
from imagenet_biases.base.errors import UserError
from imagenet_biases.humans import questions
from imagenet_biases.humans.answers import NAMES
from imagenet_biases.networks.vlm import CUT_OFF
from imagenet_biases.vocabulary import Data, Results

ANSWERS = SHARED and SHARED / "related" / "vlm_answers"
FOLDERS = {"vqa": "vqa", "captioning": "caption", "clip": "clip16", "inet_classifier": "clip16"}
FILES = [(path, FOLDERS[path.parent.name]) for path in sorted(ANSWERS.glob("*/*.csv"))] if SHARED else []


def scored(path, task, **options):
    """Return (variant, Responses) of a file of answers."""
    chosen = eval_vlm.BENCHMARK.options_from({"task": task, **options})
    ((_, found),) = questions.from_files(Data(), answers=[path], **{k: v for k, v in chosen.items() if k != "answers"})
    return questions.Variant(task), found.all()[0]


@needs_shared
def test_there_are_nine_released_files():
    assert len(FILES) == 9


@needs_shared
@pytest.mark.parametrize("path, task", FILES, ids=[path.stem for path, _ in FILES])
def test_released_files_give_their_published_counts(path, task):
    with open(TABLES / "related" / "vlm_counts.csv", encoding="utf-8") as file:
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
        ("image,response\nwolf1-dog1,H\n", "not a cue-conflict image"),
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


def warned(path, task):
    """Return what scoring a file of answers warns of."""
    chosen = eval_vlm.BENCHMARK.options_from({"task": task, "parser": ("own",)})
    ((_, found),) = questions.from_files(Data(), answers=[path], **{k: v for k, v in chosen.items() if k != "answers"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = {
            name: getattr(value, "value", value) for name, value in questions.report(Results(found.all(), None, chosen))
        }
    return [str(warning.message) for warning in caught], values


@needs_shared
@pytest.mark.parametrize("path, task", FILES, ids=[path.stem for path, _ in FILES])
def test_released_files_under_their_own_task_raise_no_warning_and_under_another_name_it(path, task):
    assert warned(path, task)[0] == []
    other = {"vqa": "caption", "caption": "vqa"}.get(task)
    if other == "caption" and "openai" not in path.stem:  # which states the name beside the letter: D. bird
        (line,) = warned(path, other)[0]
        assert "they are letters, which --task vqa reads" in line
    elif other == "vqa":
        (line,) = warned(path, other)[0]
        assert "they read like descriptions, which --task caption reads" in line


def test_a_file_of_captions_under_the_default_task_is_told(tmp_path):
    path = tmp_path / "captions.csv"
    texts = (
        "A cat sits on a red mat.",
        "A painting of a face in blue.",
        "Two dogs beside a small elephant.",
        "A town.",
    )
    path.write_text(rows(*(f"cat{number}-dog1,{text}" for number, text in enumerate(texts, 1))))
    lines, values = warned(path, "vqa")
    assert lines == [
        "vqa: 3 of 4 answers state no category, and the shape bias rests on the others: they read like descriptions, "
        "which --task caption reads"
    ]
    assert values["metric/vlm/unparsed"] == 0.75


def test_answers_cut_off_are_counted(tmp_path):
    path = tmp_path / "thinking.csv"
    answers = (
        "<think>Dog or cat?</think>H",
        "<think>The shape is",
        "H. cat",
        f"I think that{CUT_OFF}",
        f"H. cat{CUT_OFF}",
    )
    path.write_text(rows(*(f"cat{number}-dog1,{text}" for number, text in enumerate(answers, 1))))
    lines, values = warned(path, "vqa")
    assert values["shape-bias/vqa"] == 1 and values["metric/vlm/unparsed"] == 0.4
    assert len(lines) == 1 and "2 of 5 answers state no category because they were cut off" in lines[0]
    status, _, err = run("eval_vlm.py", "--model", f"answers:{path}", "--results", tmp_path / "results")
    assert status == 0, err
    (record,) = (tmp_path / "results").glob("*/vlm.json")
    content = json.loads(record.read_text())
    assert content["details"]["cut_off"] == {"vqa": 3}
    assert any("--max-new-tokens" in line for line in content["warnings"])
    assert "warning: thinking: vqa: 2 of 5 answers state no category because they were cut off" in err


@needs_shared
@pytest.mark.parametrize("name", ["tv_resnet50", "clip_RN50_openai_None"])
@pytest.mark.parametrize("task", ["vqa", "clip16"])
def test_files_of_labels_alone_are_scored_like_the_released_ones(tmp_path, name, task):
    (path,) = [path for path, _ in FILES if path.stem == name]
    with open(path, encoding="utf-8") as file:
        lines = [f"{row['image']},{row['pred_label']}" for row in csv.DictReader(file)]
    alone = tmp_path / "alone.csv"
    alone.write_text(rows(*lines, head="image,pred_label"))
    (variant, whole), (_, labels) = scored(path, "clip16"), scored(alone, task)
    expected, found = (questions.counts(questions.decisions(each, variant), each) for each in (whole, labels))
    assert found == expected and found.shape + found.texture > 0


def test_labels_alone_that_are_no_category_are_undecided(tmp_path):
    path = tmp_path / "alone.csv"
    path.write_text(rows("cat1-dog1,cat", "cat2-dog1,wolf", "cat3-dog1,dog", head="image,pred_label"))
    assert warned(path, "clip16")[1]["shape-bias/clip16"] == 0.5


# Observers whose answers are known ------------------------------------------------------------------------------------

PAIRS = [(shape, texture) for shape in range(16) for texture in range(shape + 1, 16)]  # 120, no category like another


@pytest.fixture(scope="module")
def conflicts(tmp_path_factory):
    """Cue-conflict images whose shape is told by their red and whose texture by their green."""
    from PIL import Image

    root = tmp_path_factory.mktemp("release")
    for shape, texture in PAIRS:
        folder = root / "cue-conflict" / NAMES[shape]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (224, 224), (16 * shape + 8, 16 * texture + 8, 0))
        picture.save(folder / f"{NAMES[shape]}1-{NAMES[texture]}1.png")
    (root / "image-set.json").write_text(json.dumps({"images": {"cue-conflict": len(PAIRS)}}))
    return root


class Observer(torch.nn.Module):
    """Answers with the letter of what `choose(shape, texture, text)` says, a category's number or a text."""

    answers, asks = "words", ("text", "tokens", "letters")

    def __init__(self, choose):
        super().__init__()
        self.choose = choose

    def forward(self, pixels, text="", tokens=0, letters=None):
        options = [line[3:] for line in text.splitlines() if line[1:3] == ". "]
        seen = [(pixels[:, channel, 0, 0] * 255 / 16).long().tolist() for channel in (0, 1)]
        if letters:
            scores = torch.full((len(pixels), 16), -20.0)
            for row, (shape, texture) in enumerate(zip(*seen, strict=True)):
                scores[row, options.index(NAMES[shape])], scores[row, options.index(NAMES[texture])] = 2, 1
            return scores
        chosen = [self.choose(shape, texture, text) for shape, texture in zip(*seen, strict=True)]
        return [one if isinstance(one, str) else _letter(options, NAMES[one]) for one in chosen]


def _letter(options, name):
    return f"{'ABCDEFGHIJKLMNOP'[options.index(name)]}." if options else name


OBSERVERS = {
    "A": lambda shape, texture, text: "A",
    "shape": lambda shape, texture, text: shape,
    "texture": lambda shape, texture, text: texture,
    "obedient": lambda shape, texture, text: texture if "texture" in text else shape,
    "random": lambda shape, texture, text: zlib.crc32(f"{shape} {texture} {text}".encode()) % 16,
    "refusing": lambda shape, texture, text: "I'm sorry, I cannot assist with this request.",
    "reciting": lambda shape, texture, text: text,
}


def observed(conflicts, observer, results=None, **options):
    from imagenet_biases import Settings, evaluate

    body = Observer(OBSERVERS[observer])
    (record,) = evaluate(
        {observer: body},
        "vlm",
        Data(folders={"model-vs-human": conflicts}),
        Settings(device="cpu", batch_size=32, workers=0),
        options={"vlm": options},
        results=results,
    )
    return {name: estimate.value for name, estimate in record.metrics.items()}


@pytest.mark.slow
def test_known_observers_get_their_known_scores_in_any_order(conflicts):
    for observer, bias in (("shape", 1), ("texture", 0)):
        found = observed(conflicts, observer, order="circular")
        for name in ("vqa", "vqa/circular", "vqa/published", "vqa/published/circular"):
            assert found[f"shape-bias/{name}"] == bias and found[f"top1_acc/cue-conflict-either/{name}"] == 100
        assert found["metric/vlm/order-spread"] == 0 and found["metric/vlm/order-survive"] == 1
        assert found["metric/vlm/refused"] == found["metric/vlm/unparsed"] == 0


def test_a_model_that_always_says_a_depends_on_the_order_alone(conflicts):
    found = observed(conflicts, "A", order="circular")
    assert found["shape-bias/vqa"] == 1  # 15 images with the shape of an airplane, none with its texture
    assert found["top1_acc/cue-conflict-either/vqa"] == 12.5
    assert found["shape-bias/vqa/circular"] == 0.5  # A is every category once
    assert found["metric/vlm/order-spread"] == 1 and found["metric/vlm/order-survive"] == 0


def test_a_random_observer_prefers_no_cue(conflicts):
    found = observed(conflicts, "random", order="circular")
    answers = 16 * len(PAIRS)
    decided = answers * found["top1_acc/cue-conflict-either/vqa/circular"] / 100
    assert abs(decided - answers / 8) < 3 * math.sqrt(answers / 8 * 7 / 8)
    assert abs(found["shape-bias/vqa/circular"] - 0.5) < 3 * 0.5 / math.sqrt(decided)
    assert found["metric/vlm/order-survive"] == 0


def test_steering_is_the_difference_between_the_two_questions(conflicts):
    found = observed(conflicts, "obedient", steer=("none", "shape", "texture"), prompt="Which texture do you see?")
    assert [found[f"shape-bias/vqa{steer}"] for steer in ("", "/shape", "/texture", "/own")] == [1, 1, 0, 0]
    assert found["metric/vlm/steering"] == 100 and found["metric/vlm/steering/published"] == 100


def test_refusals_and_recitals_stay_visible(conflicts):
    refused, recited = (observed(conflicts, name) for name in ("refusing", "reciting"))
    assert refused["metric/vlm/refused"] == 1 and recited["metric/vlm/unparsed"] == 1
    assert refused["top1_acc/cue-conflict-either/vqa"] == recited["top1_acc/cue-conflict-either/vqa"] == 0
    assert refused["shape-bias/vqa"] is None


def test_likelihoods_are_summed_in_any_order(conflicts):
    found = observed(conflicts, "shape", decode=("likelihood",), order="circular")
    expected = 1 / (1 + math.exp(-1))
    assert found["shape-bias/vqa/likelihood"] == pytest.approx(expected, abs=1e-6)
    assert found["top1_acc/cue-conflict-either/vqa/likelihood"] == 100
    assert found["metric/vlm/order-survive/likelihood"] == 1


def test_every_answer_is_kept_in_the_released_columns_and_scores_as_measured(conflicts, tmp_path):
    measured = observed(conflicts, "obedient", results=tmp_path, steer=("none", "texture"))
    path = tmp_path / "obedient" / "answers" / "vqa-texture.csv"
    with open(path, encoding="utf-8") as file:
        kept = list(csv.DictReader(file))
    assert tuple(kept[0]) == questions.COLUMNS and len(kept) == len(PAIRS)
    assert {row["pred_label"] == row["image"].split("-")[1].rstrip("1") for row in kept} == {True}
    variant, responses = scored(path, "vqa")
    again = questions.counts(questions.decisions(responses, variant), responses)
    assert again.shape_bias.value == measured["shape-bias/vqa/texture"]


# Tiny models of the real classes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    pytest.importorskip("transformers")
    return tiny_language.vision_language(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    pytest.importorskip("sentence_transformers")
    return tiny_language.sentences(tmp_path_factory.mktemp("models") / "tiny-sentences")


def test_a_model_of_transformers_runs_every_task_and_resumes(conflicts, llava, encoder, tmp_path):
    how = ("--model", f"hf:{llava}", "--model-vs-human", conflicts, "--results", tmp_path, "--wandb", "disabled")
    how += ("--num-workers", 0, "--batch-size", 16, "--limit", 40, "--embedding", encoder, "--device", "cpu")
    how += ("--task", "vqa", "caption", "--steer", "none", "shape", "--decode", "greedy", "likelihood")
    status, out, err = run("eval_vlm.py", *how)
    assert status == 0, err
    record = json.loads((tmp_path / "tiny-llava" / "vlm.json").read_text())
    assert record["provenance"]["arch"] == "LlavaForConditionalGeneration"
    for name in ("vqa", "vqa/shape", "vqa/likelihood", "caption", "caption/published"):
        assert f"shape-bias/{name}" in record["metrics"]
    # of 40 captions in gibberish none names a category, and a sentence model places every one of them all the same
    assert record["metrics"]["metric/vlm/generic"] == 1
    assert set(record["details"]["decisions"]["caption"]) > {"cat", "refused", "unparsed", "generic"}
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    status, again, err = run("eval_vlm.py", *how)
    assert status == 0, err
    assert again == out and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == stamps


def test_the_limit_of_tokens_can_be_raised_and_is_seen_to_be_reached(llava, conflicts, tmp_path):
    how = ("--model", f"hf:{llava}", "--model-vs-human", conflicts, "--results", tmp_path, "--wandb", "disabled")
    how += ("--num-workers", 0, "--batch-size", 16, "--limit", 16, "--device", "cpu", "--parser", "own")
    lengths = {}
    for tokens in (64, 96):
        status, _, err = run("eval_vlm.py", *how, "--max-new-tokens", tokens)
        assert status == 0, err
        with open(tmp_path / "tiny-llava" / "answers" / "vqa.csv", encoding="utf-8") as file:
            answers = [row["response"] for row in csv.DictReader(file)]
        lengths[tokens] = max(map(len, answers))
        record = json.loads((tmp_path / "tiny-llava" / "vlm.json").read_text())
        ends = sum(answer.endswith(CUT_OFF) for answer in answers)
        assert record["details"].get("cut_off", {}).get("vqa", 0) == ends > 0
    assert lengths[96] > lengths[64]
    status, _, err = run("eval_vlm.py", *how, "--max-new-tokens", 0)
    assert status == 2 and "max" in err


def test_stored_answers_of_the_usual_length_keep_their_identity():
    assert questions.Words().identity() == {"readout": "Words", "version": 1} and questions.Words().dtype == "U512"
    longer = questions.Variant("vqa", tokens=2048).readout
    assert longer.identity() == {"readout": "Words", "version": 1, "longest": 16_384} and longer.dtype == "U16384"
    assert questions.Variant("vqa").condition.settings["tokens"] == 64


def test_letters_are_read_off_in_one_pass_as_the_model_itself_scores_them(llava):
    from imagenet_biases.networks.load import load_model

    network = load_model(f"hf:{llava}")
    pixels = torch.rand((2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    read = network(pixels, prompt={"text": "Which?", "letters": "ABC"})
    model, processor = network.body._model_and_processor
    inputs = network.body._inputs(pixels[:1], "Which?")
    with torch.no_grad():
        scores = model(**inputs).logits[0, -1]
    ids = processor.tokenizer.convert_tokens_to_ids(list("ABC"))
    torch.testing.assert_close(read[0], scores[ids], atol=1e-4, rtol=1e-4)
    together = network(pixels, prompt={"text": "Which?", "tokens": 6})
    assert together == [network(one[None], prompt={"text": "Which?", "tokens": 6})[0] for one in pixels]


def test_captions_are_placed_by_cosine(encoder):
    from sentence_transformers import SentenceTransformer

    captions = ["a cat on a mat", "two trucks", "a dog"]
    model = SentenceTransformer(str(encoder))
    texts = [torch.nn.functional.normalize(torch.tensor(model.encode(list(one))), dim=1) for one in (captions, NAMES)]
    expected = (texts[0] @ texts[1].T).argmax(1).tolist()
    assert questions.nearest_names(captions, str(encoder)).tolist() == expected


def broken(llava, tmp_path, name, change):
    """Copy the model into a folder of its own and change it; return the folder."""
    import shutil

    folder = tmp_path / name
    shutil.copytree(llava, folder)
    change(folder)
    return folder


def _json(folder, file, **values):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(
        json.dumps({key: value for key, value in (content | values).items() if value is not None})
    )


def _without_a_tensor(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    save_file(dict(list(state.items())[1:]), folder / "model.safetensors", {"format": "pt"})


HOSTILE = {
    "no-config": (lambda folder: (folder / "config.json").unlink(), "cannot be loaded"),
    "no-json": (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
    "wrong-class": (
        lambda folder: _json(folder, "config.json", model_type="bert", architectures=["BertModel"]),
        "cannot",
    ),
    "own-code": (
        lambda folder: _json(
            folder, "config.json", model_type="mine", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"}
        ),
        "--trust-remote-code",
    ),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
    "cut-weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 99), "cannot be loaded"),
    "half-weights": (_without_a_tensor, "it would be random"),
    "no-template": (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
    "no-tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be loaded"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_broken_or_hostile_content_of_a_hub_is_refused_in_one_line(llava, conflicts, tmp_path, name):
    change, message = HOSTILE[name]
    folder = broken(llava, tmp_path, name, change)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    status, _, err = run(
        "eval_vlm.py", "--model", f"hf:{folder}", "--model-vs-human", conflicts, "--results", tmp_path / "results"
    )
    lines = [line for line in err.strip().splitlines() if line.startswith("error")]
    assert status == 2 and len(lines) == 1 and message in lines[0], err
    assert not (tmp_path / "ran").exists()


def test_a_network_without_text_cannot_be_asked_for_names(conflicts):
    class Thousand(torch.nn.Module):
        def forward(self, pixels):
            return pixels.mean((2, 3)) @ torch.ones(3, 1000)

    from imagenet_biases import evaluate

    with pytest.raises(UserError, match="clip:"):
        evaluate(Thousand(), "vlm", Data(folders={"model-vs-human": conflicts}), options={"vlm": {"task": "clip16"}})
    with pytest.raises(UserError, match="answers in logits, and vlm needs words"):
        evaluate(Thousand(), "vlm", Data(folders={"model-vs-human": conflicts}))

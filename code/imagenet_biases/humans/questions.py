"""Questions to models that answer in words, on the cue-conflict images: what is asked, what is kept, what it says.

Gavrikov et al., "Can We Talk Models Into Seeing the World Differently?", ICLR 2025, arXiv:2403.09193. The prompts are
those of the authors' repository (paulgavrikov/vlm_shapebias, CC BY-SA 4.0).

A Variant is one way of asking: a task (vqa, caption, clip16), a cue to steer to, the first option of the list, and
whether the model writes its answer or the probabilities of the 16 letters are read off. Answers of models and files of
answers are scored by the same functions of Responses. A file has the columns of the authors' release: `image`
(cat7-elephant1), `response`, and, where there is one, `pred_label` (of a caption the class nearest to it).
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import atomic, read_bytes, safe_name
from imagenet_biases.humans.answers import (
    DECISIONS,
    GENERIC,
    LETTERS,
    NAMES,
    PARSERS,
    REFUSED,
    UNPARSED,
    decide_caption,
)
from imagenet_biases.humans.stimulus_sets import CUE_CONFLICT, PREFIX, STIMULUS_SETS, image_sets, texture_category
from imagenet_biases.images.listing import ImageNames, Listing
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.measures.accuracy import proportion
from imagenet_biases.vocabulary import Condition, Estimate, Pass, Readout, Responses, Results, between

TASKS = ("vqa", "caption", "clip16")
STEER = {
    "none": "Which option best describes the image?",
    "shape": "Identify the primary shape in the image.",
    "texture": "Identify the primary texture in the image.",
}
DECODE = ("greedy", "likelihood")
LETTER_ONLY = "Answer with the option's letter from the given choices directly."
DESCRIBE = "Describe the image. Keep your response short."
LONGEST = 512  # characters of an answer that are kept
TOKENS = 64  # that a model may write
EMBEDDING = "llmrails/ember-v1"
SETS = (PREFIX + CUE_CONFLICT,)
COLUMNS = ("image", "timestamp", "response", "pred_label", "pred_conf")

# What is asked --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One way of asking; `shift`: by how many places the list of options begins later; `prompt`: one of one's own."""

    task: str
    steer: str = "none"
    shift: int = 0
    decode: str = "greedy"
    prompt: str = ""

    @property
    def options(self):
        """The categories in the order in which they are lettered A to P."""
        return NAMES[self.shift :] + NAMES[: self.shift]

    @property
    def name(self):
        """What its metrics are called by, but for the order of the options, which is no metric of its own."""
        words = [self.task, *([self.steer] if self.steer != "none" else [])]
        return "/".join(words + (["likelihood"] if self.decode == "likelihood" else []))

    @property
    def condition(self):
        """What is put to the network (networks.language has the keywords of the question)."""
        if self.task == "clip16":
            return Condition("clip16", settings={"names": "categories"})
        settings = {"text": DESCRIBE, "tokens": TOKENS}
        if self.task == "vqa":
            lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True)]
            settings["text"] = "\n".join([self.prompt or STEER[self.steer], *lines, LETTER_ONLY])
        if self.decode == "likelihood":
            settings = {"text": settings["text"], "letters": LETTERS}
        return Condition(f"{self.name}/order{self.shift}" if self.shift else self.name, settings=settings)

    @property
    def readout(self):
        return Named() if self.task == "clip16" else Letters() if self.decode == "likelihood" else Words()


@dataclass(frozen=True)
class Words(Readout):
    """The answer itself, its first 512 characters, str [B]."""

    id: ClassVar[str] = "Words"
    dtype: ClassVar[str] = f"U{LONGEST}"
    takes: ClassVar[str] = "words"

    def __call__(self, shown):
        return np.array([text[:LONGEST].replace("\0", " ") for text in shown.words], self.dtype)


@dataclass(frozen=True)
class Letters(Readout):
    """The probabilities of the 16 letters among themselves, float32 [B, 16], in the order of the options."""

    id: ClassVar[str] = "Letters"
    shape: ClassVar[tuple[int, ...]] = (16,)
    takes: ClassVar[str] = "words"

    def __call__(self, shown):
        return shown.logits[:, :16].softmax(1)

    def possible(self, rows):
        return between(rows, 0, 1)


@dataclass(frozen=True)
class Named(Letters):
    """The probabilities of the 16 categories' names under a zero-shot network, float32 [B, 16]."""

    id: ClassVar[str] = "Named"
    takes: ClassVar[str] = "logits"

    def hits(self, rows, labels):
        return torch.as_tensor(rows).argmax(1) == labels


def variants(options):
    """Return the Variants that a benchmark's options ask for."""
    shifts = range(16) if options["order"] == "circular" else (0,)
    steers = [*options["steer"], *(["own"] if options["prompt"] else [])]
    asked = []
    for task in options["task"]:
        if task != "vqa":
            asked.append(Variant(task))
            continue
        asked += [
            Variant(task, steer, shift, decode, options["prompt"] if steer == "own" else "")
            for decode in options["decode"]
            for steer in steers
            for shift in shifts
        ]
    return asked


def passes(data, **options):
    """Return the Passes of all variants on the cue-conflict images."""
    (images,) = image_sets(data, options["download"], (CUE_CONFLICT,))
    by_readout = {}
    for variant in variants(options):
        by_readout.setdefault(variant.readout, []).append(variant.condition)
    return [Pass(images, _askable(tuple(conditions)), readout) for readout, conditions in by_readout.items()]


def _askable(conditions):
    """Return the conditions as a function of the network, which refuses one that cannot be asked for other names."""
    if "names" not in conditions[0].settings:
        return conditions

    def chosen(network):
        if "names" not in getattr(network, "asks", ()):
            raise UserError(f"{network.name} cannot be asked for 16 names; --task clip16 needs --model clip:ARCH/TAG")
        return conditions

    return chosen


# What the answers say -------------------------------------------------------------------------------------------------


def decisions(responses, variant, parser="own", embedding=EMBEDDING):
    """Return the decision of every answer (humans.answers), int64 [N].

    Captions: the one category that the text names, or, as published, the category nearest to it in a sentence model's
    embedding (a file's own column `pred_label`, where it has one).
    """
    values = responses.values
    if values.dtype.kind == "f":
        return np.array([NAMES.index(variant.options[best]) for best in values.argmax(1)])
    if variant.task == "caption" and parser == "published":
        labels = responses.images.variables.get("labels")
        return nearest_names(values.tolist(), embedding) if labels is None else labels
    if variant.task == "caption":
        return np.array([decide_caption(text) for text in values.tolist()])
    return np.array([PARSERS[parser](text, variant.options) for text in values.tolist()])


_nearest = {}  # a report is computed many times of the same captions: {(sentence model, caption): category}


def nearest_names(captions, embedding):
    """Return the category whose name is nearest to each caption in the embedding of a sentence model, int64 [N]."""
    from imagenet_biases.networks.vlm import sentence_embeddings

    new = [text for text in dict.fromkeys(captions) if (embedding, text) not in _nearest]
    if new:
        both = sentence_embeddings([*NAMES, *new], embedding)
        best = (both[len(NAMES) :] @ both[: len(NAMES)].T).argmax(1)
        _nearest.update({(embedding, text): int(one) for text, one in zip(new, best, strict=True)})
    return np.array([_nearest[embedding, text] for text in captions], np.int64)


@dataclass(frozen=True)
class Counts:
    """Answers by what they are, of the images whose cues disagree."""

    shape: int
    texture: int
    images: int

    def __add__(self, other):
        return Counts(self.shape + other.shape, self.texture + other.texture, self.images + other.images)

    @property
    def shape_bias(self):
        """shape / (shape + texture) with the Wilson interval; None without either."""
        if not self.shape + self.texture:
            return Estimate(None)
        percent = proportion(self.shape, self.shape + self.texture)
        return Estimate(percent.value / 100, percent.low / 100, percent.high / 100, SETS)

    @property
    def accuracy(self):
        """Answers that name the shape or the texture, in per cent of all images."""
        return proportion(self.shape + self.texture, self.images)


def cues(images):
    """Return the shape's and the texture's category of cue-conflict images, two int64 [N]."""
    return images.labels, np.array([NAMES.index(texture_category(Path(file).name)) for file in images.files])


def counted(responses):
    """Return which images count: those whose cues disagree and that were not left out, bool [N]."""
    shape, texture = cues(responses.images)
    return responses.counts & (shape != texture)


def counts(decided, responses):
    """Return the Counts of decisions int64 [N]."""
    (shape, texture), kept = cues(responses.images), counted(responses)
    return Counts(
        int((decided == shape)[kept].sum()), int((decided == texture)[kept].sum()), int(np.count_nonzero(kept))
    )


def share(decided, what, responses):
    """Return the share of answers with a decision, of the images that count, with the Wilson interval."""
    kept = counted(responses)
    percent = proportion(int((decided == what)[kept].sum()), int(np.count_nonzero(kept)))
    return percent if percent.value is None else Estimate(percent.value / 100, percent.low / 100, percent.high / 100)


def likelihood_bias(responses, variant):
    """Return the sum of the shape letter's probability over that of both cues' letters, over all images that count."""
    kept, place = counted(responses), np.array([variant.options.index(name) for name in NAMES])
    rows = np.arange(len(responses.values))[kept]
    shape, texture = (responses.values[rows, place[cue[kept]]].sum(dtype=float) for cue in cues(responses.images))
    return Estimate(shape / (shape + texture) if shape + texture else None, sets=SETS)


def report(found):
    """Yield (metric, value) of what was asked."""
    biases = {}
    for variant in variants(found.options):
        if variant.shift:
            continue
        orders = [one for one in variants(found.options) if (one.name, one.prompt) == (variant.name, variant.prompt)]
        pairs = [(found[SETS[0], one.condition.name], one) for one in orders]
        for parser in ("own",) if variant.readout != Words() else found.options["parser"]:
            name = variant.name + ("/published" if parser == "published" else "")
            decided = [decisions(one, how, parser, found.options["embedding"]) for one, how in pairs]
            each = [counts(numbers, one) for numbers, (one, _) in zip(decided, pairs, strict=True)]
            bias = likelihood_bias(*pairs[0]) if variant.decode == "likelihood" else each[0].shape_bias
            biases[name] = bias.value
            yield f"shape-bias/{name}", bias
            yield f"top1_acc/cue-conflict-either/{name}", each[0].accuracy
            yield from _unread(name.partition("/"), variant, parser, decided[0], pairs[0][0])
            if len(orders) > 1:
                yield from _of_orders(name, each, decided, pairs[0][0])
    for name, toward in biases.items():
        away = biases.get(name.replace("/shape", "/texture"))
        if "/shape" in name and toward is not None and away is not None:
            yield f"metric/vlm/steering{name.removeprefix('vqa').replace('/shape', '')}", 100 * (toward - away)


def _unread(name, variant, parser, decided, responses):
    """Yield the shares of answers that are no category, by the task's own rules."""
    if variant.readout != Words() or parser == "published":
        return
    task, _, steered = name
    rest = f"/{steered}" if steered else ""
    if task == "vqa":
        yield f"metric/vlm/refused{rest}", share(decided, REFUSED, responses)
        yield f"metric/vlm/unparsed{rest}", share(decided, UNPARSED, responses)
    else:
        yield f"metric/vlm/generic{rest}", share(decided, GENERIC, responses)
        yield "metric/vlm/refused/caption", share(decided, REFUSED, responses)
        yield "metric/vlm/unparsed/caption", share(decided, UNPARSED, responses)


def _of_orders(name, each, decided, responses):
    """Yield what the order of the options does: the pooled score, the spread, the share of answers that survive."""
    rest = name.removeprefix("vqa")
    pooled = sum(each[1:], each[0])
    yield f"shape-bias/{name}/circular", pooled.shape_bias
    yield f"top1_acc/cue-conflict-either/{name}/circular", pooled.accuracy
    biases = [one.shape_bias.value for one in each]
    if None not in biases:
        yield f"metric/vlm/order-spread{rest}", max(biases) - min(biases)
    first, kept = decided[0], counted(responses)
    same = np.all([one == first for one in decided], axis=0) & (first < len(NAMES))
    if kept.any():
        yield f"metric/vlm/order-survive{rest}", float(same[kept].mean())


def details(found):
    """Return the number of answers by decision of every variant, JSON-able."""
    listed = {}
    for variant in variants(found.options):
        responses = found[SETS[0], variant.condition.name]
        numbers = np.bincount(decisions(responses, variant)[counted(responses)], minlength=len(DECISIONS))
        listed[variant.condition.name] = dict(zip(DECISIONS, numbers.tolist(), strict=True))
    return {"decisions": listed}


# Files of answers -----------------------------------------------------------------------------------------------------


def export(found, label, folder):
    """Write every raw answer under folder/answers, a file a variant, in the released columns; return the paths."""
    paths = []
    for variant in variants(found.options):
        responses = found[SETS[0], variant.condition.name]
        decided = decisions(responses, variant)
        time = responses.measured[-1]["time"] if responses.measured else ""
        written = responses.values.dtype.kind != "f"
        answers = responses.values if written else [variant.options[best] for best in responses.values.argmax(1)]
        sure = np.ones(len(decided)) if written else responses.values.max(1)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in np.flatnonzero(responses.counts):
            image = Path(responses.images.files[row]).stem
            table.writerow([image, time, answers[row], DECISIONS[decided[row]], f"{sure[row]:.6g}"])
        path = Path(folder) / "answers" / safe_name(f"{variant.condition.name.replace('/', '-')}.csv")
        with atomic(path, "w") as file:
            file.write(text.getvalue())
        paths.append(path)
    return paths


def from_files(data, answers=None, **options):
    """Return (name, Results) of every file of answers to one task, None where none are given."""
    if not answers:
        return None
    if len(options["task"]) > 1 or options["order"] != "alphabetical" or options["decode"] != ("greedy",):
        raise UserError("a file of answers is scored as one --task, in alphabetical order, as written answers")
    variant = Variant(options["task"][0])
    return [(safe_name(Path(path).stem), Results([_responses(Path(path), variant, options)])) for path in answers]


def _responses(path, variant, options):
    rows = list(_rows(path))
    images = [Path(row["image"]).stem for row in rows]
    shapes = np.array([_shape(path, number, image) for number, image in enumerate(images, 2)], np.int64)
    if twice := next((image for number, image in enumerate(images) if image in images[:number]), None):
        raise UserError(f"{path}: {twice} is answered twice; an image counts once, so remove one")
    variables = {}
    if "pred_label" in rows[0]:
        labels = [row["pred_label"] for row in rows]
        if variant.task == "caption":
            strange = [label for label in labels if label not in NAMES]
            if strange and "published" in options["parser"]:
                raise UserError(f"{path}: pred_label '{strange[0][:40]}' is none of {', '.join(NAMES)}")
            variables = {} if strange else {"labels": np.array([NAMES.index(label) for label in labels])}
    whole = STIMULUS_SETS[CUE_CONFLICT].images
    names = ImageNames([f"{image}.png" for image in images], shapes)
    found = ImageSet(
        SETS[0],
        Listing(Path(), names, np.zeros(len(images), np.int64)),
        np.arange(len(images)),
        as_is=True,
        subset=None if len(images) == whole else {"images": len(images), "of": whole},
        variables=variables,
    )
    longest = max(len(row["response"]) for row in rows)
    values = np.array([row["response"] for row in rows], f"U{max(longest, 1)}")
    return Responses(found, variant.condition, values, np.ones(len(images), bool), Words())


def _shape(path, line, image):
    name = image.partition("-")[0].rstrip("0123456789")
    if name not in NAMES:
        raise UserError(f"{path}, answer {line - 1}: '{image[:60]}' is no cue-conflict image (cat7-elephant1)")
    texture_category(image)
    return NAMES.index(name)


def _rows(path) -> Iterable[dict]:
    """Yield the rows of a file of answers, {column: text}. Raises UserError for what is none."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        table = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip().lower() for name in next(table, [])]
        rows = [row for row in table if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a file of answers: {error}") from None
    if missing := [name for name in ("image", "response") if header.count(name) != 1]:
        raise UserError(f"{path} has no column {missing[0]}, or two; a file of answers has {','.join(COLUMNS)}")
    if not rows:
        raise UserError(f"{path} has no answers")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(f"{path}, answer {number}: {len(row)} fields, the head has {len(header)}; mend the quotes")
        yield dict(zip(header, row, strict=True))

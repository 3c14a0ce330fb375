"""Questions to models that answer in words, on the cue-conflict images: what is asked, recorded and concluded.

Gavrikov et al., "Can We Talk Models Into Seeing the World Differently?", ICLR 2025, arXiv:2403.09193. The prompts are
those of the authors' repository (paulgavrikov/vlm_shapebias, CC BY-SA 4.0).

A Variant is one form of the question: a task (vqa, caption, clip16), a cue to steer to, the first option of the list,
and whether the model writes its answer or the probabilities of the 16 letters are read off. Answers of models and files
of answers are scored by the same functions of Responses. A file has the columns of the authors' release: `image`
(cat7-elephant1), `response`, and optionally `pred_label` (for a caption, the nearest class).
"""

import csv
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import atomic, read_bytes, safe_name
from imagenet_biases.estimate import proportion
from imagenet_biases.humans.answers import (
    DECISIONS,
    GENERIC,
    LETTERS,
    NAMES,
    PARSERS,
    REFUSED,
    UNPARSED,
    decide_caption,
    is_letter,
    states_letter,
    unfinished,
)
from imagenet_biases.humans.stimulus_sets import CUE_CONFLICT, PREFIX, STIMULUS_SETS, image_sets, texture_category
from imagenet_biases.images.listing import ImageNames, Listing
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.networks.vlm import CUT_OFF
from imagenet_biases.vocabulary import (
    Condition,
    Data,
    Estimate,
    Metrics,
    Pass,
    Presentation,
    Readout,
    Responses,
    Results,
    between,
)

TASKS = ("vqa", "caption", "clip16")
STEER = {
    "none": "Which option best describes the image?",
    "shape": "Identify the primary shape in the image.",
    "texture": "Identify the primary texture in the image.",
}
DECODE = ("greedy", "likelihood")
LETTER_ONLY = "Answer with the option's letter from the given choices directly."
DESCRIBE = "Describe the image. Keep your response short."
TOKENS = 64  # that a model may write
LONGEST = 512  # characters of an answer that are recorded; of longer answers, 8 per token
FEW_WORDS = 5  # of an answer; a description has more
EMBEDDING = "llmrails/ember-v1"
SETS = (PREFIX + CUE_CONFLICT,)
COLUMNS = ("image", "timestamp", "response", "pred_label", "pred_conf")

# What is asked --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One form of the question.

    Attributes:
        shift: how many places later the list of options begins.
        prompt: a custom prompt, in place of the study's.
        tokens: that a model may write.
    """

    task: str
    steer: str = "none"
    shift: int = 0
    decode: str = "greedy"
    prompt: str = ""
    tokens: int = TOKENS

    @property
    def options(self) -> tuple[str, ...]:
        """The categories in the order in which they are lettered A to P."""
        return NAMES[self.shift :] + NAMES[: self.shift]

    @property
    def name(self) -> str:
        """How its metrics are called; the order of the options has no metric of its own."""
        words = [self.task]
        words += [self.steer] if self.steer != "none" else []
        words += ["likelihood"] if self.decode == "likelihood" else []
        return "/".join(words)

    @property
    def condition(self) -> Condition:
        """The prompt that the network gets (networks.vlm has its keywords)."""
        if self.task == "clip16":
            return Condition("clip16", settings={"names": "categories"})
        text = DESCRIBE
        if self.task == "vqa":
            lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True)]
            text = "\n".join([self.prompt or STEER[self.steer], *lines, LETTER_ONLY])
        settings: dict[str, Any] = {"text": text, "tokens": self.tokens}
        if self.decode == "likelihood":
            settings = {"text": text, "letters": LETTERS}
        return Condition(f"{self.name}/order{self.shift}" if self.shift else self.name, settings=settings)

    @property
    def readout(self) -> Readout:
        """What is recorded of the answer."""
        if self.task == "clip16":
            return NameProbabilities()
        return (
            LetterProbabilities()
            if self.decode == "likelihood"
            else Words(LONGEST * max(self.tokens, TOKENS) // TOKENS)
        )


@dataclass(frozen=True)
class Words(Readout):
    """The answer itself, str [B]; one of more characters than `longest` loses its end and is marked as cut off."""

    longest: int = LONGEST
    id: ClassVar[str] = "Words"
    takes: ClassVar[str] = "words"

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return f"U{self.longest}"

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        if self.longest == LONGEST:
            del identity["longest"]  # as before it could be chosen
        return identity

    def __call__(self, presentation: Presentation) -> np.ndarray:
        texts = []
        for text in presentation.words or []:
            fits = len(text) <= self.longest
            texts.append((text if fits else text[: self.longest - len(CUT_OFF)] + CUT_OFF).replace("\0", " "))
        return np.array(texts, self.dtype)


@dataclass(frozen=True)
class LetterProbabilities(Readout):
    """The probabilities of the 16 letters among themselves, float32 [B, 16], in the order of the options."""

    id: ClassVar[str] = "Letters"
    shape: ClassVar[tuple[int, ...]] = (16,)
    takes: ClassVar[str] = "words"

    def __call__(self, presentation: Presentation) -> Float[Tensor, "B 16"]:
        assert presentation.logits is not None, "this readout is for networks with logits"
        return presentation.logits[:, :16].softmax(1)

    def possible(self, rows: np.ndarray) -> bool:
        return between(rows, 0, 1)


@dataclass(frozen=True)
class NameProbabilities(LetterProbabilities):
    """The probabilities of the 16 categories' names under a zero-shot network, float32 [B, 16]."""

    id: ClassVar[str] = "Named"
    takes: ClassVar[str] = "logits"

    def hits(self, rows: Any, labels: Any) -> Bool[Tensor, " B"]:
        return torch.as_tensor(rows).argmax(1) == labels


def variants(options: Mapping[str, Any]) -> list[Variant]:
    """Return the variants that a benchmark's options ask for."""
    shifts = range(16) if options["order"] == "circular" else (0,)
    steers = [*options["steer"], *(["own"] if options["prompt"] else [])]
    requested = []
    for task in options["task"]:
        if task != "vqa":
            requested.append(Variant(task, tokens=options["max_new_tokens"]))
            continue
        for decode, steer, shift in product(options["decode"], steers, shifts):
            prompt = options["prompt"] if steer == "own" else ""
            requested.append(Variant(task, steer, shift, decode, prompt, options["max_new_tokens"]))
    return requested


def passes(data: Data, **options: Any) -> list[Pass]:
    """Return the passes of all variants on the cue-conflict images."""
    (images,) = image_sets(data, options["download"], (CUE_CONFLICT,))
    by_readout: dict[Readout, list[Condition]] = {}
    for variant in variants(options):
        by_readout.setdefault(variant.readout, []).append(variant.condition)
    return [Pass(images, _askable(tuple(conditions)), readout) for readout, conditions in by_readout.items()]


def _askable(conditions: tuple[Condition, ...]) -> tuple[Condition, ...] | Callable[[Any], tuple[Condition, ...]]:
    """Return the conditions, where they ask for names as a function that refuses networks without zero-shot names."""
    if "names" not in conditions[0].settings:
        return conditions

    def of_network(network: Any) -> tuple[Condition, ...]:
        if "names" not in getattr(network, "asks", ()):
            raise UserError(f"{network.name} cannot be asked for 16 names; --task clip16 needs --model clip:ARCH/TAG")
        return conditions

    return of_network


# What the answers say -------------------------------------------------------------------------------------------------


Decisions = Int64[np.ndarray, " N"]


def decisions(responses: Responses, variant: Variant, parser: str = "own", embedding: str = EMBEDDING) -> Decisions:
    """Return the decision of every answer (humans.answers).

    Captions: the one category that the text names, or, as published, the category nearest to it in a sentence model's
    embedding (a file's own column `pred_label`, where it has one).
    """
    values = responses.values
    if values.dtype.kind == "f":
        return np.array(list(map(NAMES.index, variant.options)))[values.argmax(1)]
    if variant.task == "caption" and parser == "published":
        labels = responses.images.variables.get("labels")
        captions = [text.removesuffix(CUT_OFF) for text in values.tolist()]
        return nearest_names(captions, embedding) if labels is None else labels
    if variant.task == "caption":
        return np.array(list(map(decide_caption, values.tolist())))
    return np.array([PARSERS[parser](text, variant.options) for text in values.tolist()])


_nearest: dict[tuple[str, str], int] = {}
"""{(sentence model, caption): category}; a report is computed many times on the same captions."""


def nearest_names(captions: Sequence[str], embedding: str) -> Decisions:
    """Return the category whose name is nearest to each caption in the embedding of a sentence model."""
    from imagenet_biases.networks.vlm import sentence_embeddings

    new = [text for text in dict.fromkeys(captions) if (embedding, text) not in _nearest]
    if new:
        vectors = sentence_embeddings([*NAMES, *new], embedding)
        best = (vectors[len(NAMES) :] @ vectors[: len(NAMES)].T).argmax(1)
        for text, category in zip(new, best, strict=True):
            _nearest[embedding, text] = int(category)
    return np.array([_nearest[embedding, text] for text in captions], np.int64)


def cut_off(responses: Responses) -> Bool[np.ndarray, " N"]:
    """Return which written answers reached the limit of tokens, or end among their thoughts."""
    return np.array([text.endswith(CUT_OFF) or unfinished(text) for text in responses.values.tolist()], bool)


@dataclass(frozen=True)
class Counts:
    """Answers by what they name, of the images whose cues disagree."""

    shape: int
    texture: int
    images: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.shape + other.shape, self.texture + other.texture, self.images + other.images)

    @property
    def shape_bias(self) -> Estimate:
        """shape / (shape + texture) with the Wilson interval; None without either."""
        if not self.shape + self.texture:
            return Estimate(None)
        return replace(proportion(self.shape, self.shape + self.texture).as_share(), sets=SETS)

    @property
    def accuracy(self) -> Estimate:
        """Answers that name the shape or the texture, in per cent of all images."""
        return proportion(self.shape + self.texture, self.images)


def cues(images: ImageSet) -> tuple[Decisions, Decisions]:
    """Return the shape's and the texture's category of cue-conflict images."""
    return images.labels, np.array([NAMES.index(texture_category(Path(file).name)) for file in images.files])


def counted(responses: Responses) -> Bool[np.ndarray, " N"]:
    """Return which images count: those whose cues disagree and that were not left out."""
    shape, texture = cues(responses.images)
    return responses.counts & (shape != texture)


def counts(decided: Decisions, responses: Responses) -> Counts:
    """Return the counts of decisions."""
    (shape, texture), counting = cues(responses.images), counted(responses)
    return Counts(
        int((decided == shape)[counting].sum()),
        int((decided == texture)[counting].sum()),
        int(np.count_nonzero(counting)),
    )


def share(decided: Decisions, decision: int, responses: Responses) -> Estimate:
    """Return the share of answers with a decision, of the images that count, with the Wilson interval."""
    counting = counted(responses)
    return proportion(int((decided == decision)[counting].sum()), int(np.count_nonzero(counting))).as_share()


def likelihood_bias(responses: Responses, variant: Variant) -> Estimate:
    """Return the sum of the shape letter's probability over that of both cues' letters, over all images that count."""
    counting, letters = counted(responses), np.array(list(map(variant.options.index, NAMES)))
    rows = np.arange(len(responses.values))[counting]
    shape, texture = (responses.values[rows, letters[cue[counting]]].sum(dtype=float) for cue in cues(responses.images))
    return Estimate(shape / (shape + texture) if shape + texture else None, sets=SETS)


def report(results: Results) -> Metrics:
    """Yield (metric, value) of what was asked."""
    biases: dict[str, float | None] = {}
    requested = variants(results.options)
    for variant in requested:
        if variant.shift:
            continue
        orders = [order for order in requested if (order.name, order.prompt) == (variant.name, variant.prompt)]
        responses = [results[SETS[0], order.condition.name] for order in orders]
        for parser in results.options["parser"] if isinstance(variant.readout, Words) else ("own",):
            name = variant.name + ("/published" if parser == "published" else "")
            decided, by_order = [], []
            for order, answers in zip(orders, responses, strict=True):
                decided.append(decisions(answers, order, parser, results.options["embedding"]))
                by_order.append(counts(decided[-1], answers))
            bias = by_order[0].shape_bias
            if variant.decode == "likelihood":
                bias = likelihood_bias(responses[0], variant)
            biases[name] = bias.value
            yield f"shape-bias/{name}", bias
            yield f"top1_acc/cue-conflict-either/{name}", by_order[0].accuracy
            if isinstance(variant.readout, Words):
                _warn_of_undecided(name, variant, decided[0], responses[0])
                if parser == "own":
                    yield from _unread(name, decided[0], responses[0])
            if len(orders) > 1:
                yield from _of_orders(name, by_order, decided, responses[0])
    yield from _steering(biases)


def _steering(biases: Mapping[str, float | None]) -> Metrics:
    """Yield by how much the shape bias moves between the questions for the shape and for the texture."""
    for name, toward in biases.items():
        away = biases.get(name.replace("/shape", "/texture"))
        if "/shape" in name and toward is not None and away is not None:
            yield f"metric/vlm/steering{name.removeprefix('vqa').replace('/shape', '')}", 100 * (toward - away)


def _unread(name: str, decided: Decisions, responses: Responses) -> Metrics:
    """Yield the shares of answers that are not a category, by the task's own rules."""
    task, slash, steered = name.partition("/")
    if task == "vqa":
        yield f"metric/vlm/refused{slash}{steered}", share(decided, REFUSED, responses)
        yield f"metric/vlm/unparsed{slash}{steered}", share(decided, UNPARSED, responses)
    else:
        yield f"metric/vlm/generic{slash}{steered}", share(decided, GENERIC, responses)
        yield "metric/vlm/refused/caption", share(decided, REFUSED, responses)
        yield "metric/vlm/unparsed/caption", share(decided, UNPARSED, responses)


def _warn_of_undecided(name: str, variant: Variant, decided: Decisions, responses: Responses) -> None:
    """Warn where half of the answers or more state no category, a quarter if they are another task's; and of answers
    cut off."""
    counting = counted(responses)
    texts = [text for text, counts in zip(responses.values.tolist(), counting, strict=True) if counts]
    undecided = np.isin(decided[counting], (UNPARSED, GENERIC))
    likely = _likely_task(texts, variant.task)
    if texts and undecided.mean() >= (0.25 if likely else 0.5):
        warnings.warn(
            f"{name}: {undecided.sum()} of {len(texts)} answers state no category, and the shape bias rests on the "
            f"others{likely}",
            stacklevel=2,
        )
    lost = undecided & cut_off(responses)[counting]
    if lost.any():
        warnings.warn(
            f"{name}: {lost.sum()} of {len(texts)} answers state no category because they were cut off: give models "
            f"that think more with --max-new-tokens",
            stacklevel=2,
        )


def _likely_task(texts: Sequence[str], task: str) -> str:
    """Return the end of a line that says which task most answers fit, '' where it is this one."""
    letters = sum(map(is_letter, texts))
    if task == "caption":
        return ": they are letters, which --task vqa reads" if 2 * letters > len(texts) else ""
    descriptions = sum(len(text.split()) >= FEW_WORDS and not states_letter(text) for text in texts)
    return ": they read like descriptions, which --task caption reads" if 2 * descriptions > len(texts) else ""


def _of_orders(name: str, by_order: Sequence[Counts], decided: Sequence[Decisions], responses: Responses) -> Metrics:
    """Yield what the order of the options does: the pooled score, the spread, the share of answers that survive."""
    steered = name.removeprefix("vqa")
    pooled = sum(by_order[1:], by_order[0])
    yield f"shape-bias/{name}/circular", pooled.shape_bias
    yield f"top1_acc/cue-conflict-either/{name}/circular", pooled.accuracy
    biases = [bias for of_order in by_order if (bias := of_order.shape_bias.value) is not None]
    if len(biases) == len(by_order):
        yield f"metric/vlm/order-spread{steered}", max(biases) - min(biases)
    first, counting = decided[0], counted(responses)
    same = np.all([numbers == first for numbers in decided], axis=0) & (first < len(NAMES))
    if counting.any():
        yield f"metric/vlm/order-survive{steered}", float(same[counting].mean())


def details(results: Results) -> dict[str, Any]:
    """Return the number of answers by decision of every variant, and of those cut off, JSON-able."""
    by_variant, ends = {}, {}
    for variant in variants(results.options):
        responses = results[SETS[0], variant.condition.name]
        numbers = np.bincount(decisions(responses, variant)[counted(responses)], minlength=len(DECISIONS))
        by_variant[variant.condition.name] = dict(zip(DECISIONS, numbers.tolist(), strict=True))
        if isinstance(variant.readout, Words) and (cut := cut_off(responses)[counted(responses)]).any():
            ends[variant.condition.name] = int(cut.sum())
    return {"decisions": by_variant} | ({"cut_off": ends} if ends else {})


# Files of answers -----------------------------------------------------------------------------------------------------


def export(results: Results, label: str, folder: str | Path) -> list[Path]:
    """Write every raw answer under folder/answers, one file per variant, in the released columns; return the paths."""
    paths = []
    for variant in variants(results.options):
        responses = results[SETS[0], variant.condition.name]
        decided = decisions(responses, variant)
        time = responses.measured[-1]["time"] if responses.measured else ""
        written = responses.values.dtype.kind != "f"
        answers = responses.values if written else [variant.options[best] for best in responses.values.argmax(1)]
        confidence = np.ones(len(decided)) if written else responses.values.max(1)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in np.flatnonzero(responses.counts):
            image = Path(responses.images.files[row]).stem
            table.writerow([image, time, answers[row], DECISIONS[decided[row]], f"{confidence[row]:.6g}"])
        path = Path(folder) / "answers" / safe_name(f"{variant.condition.name.replace('/', '-')}.csv")
        with atomic(path, "w") as file:
            file.write(text.getvalue())
        paths.append(path)
    return paths


def from_files(
    data: Data, answers: Sequence[str | Path] | None = None, **options: Any
) -> list[tuple[str, Results]] | None:
    """Return (name, responses) of every file of answers to one task, or None without files."""
    if not answers:
        return None
    if len(options["task"]) > 1 or options["order"] != "alphabetical" or options["decode"] != ("greedy",):
        raise UserError("a file of answers is scored as one --task, in alphabetical order, as written answers")
    variant = Variant(options["task"][0])
    return [(safe_name(Path(path).stem), Results([_responses(Path(path), variant, options)])) for path in answers]


def _responses(path: Path, variant: Variant, options: Mapping[str, Any]) -> Responses:
    rows = list(_rows(path))
    images = [Path(row["image"]).stem for row in rows]
    shapes = np.array([_shape(path, number, image) for number, image in enumerate(images, 1)], np.int64)
    if len(set(images)) < len(images):
        repeated = next(image for number, image in enumerate(images) if image in images[:number])
        raise UserError(f"{path}: {repeated} is answered twice; an image counts once, so remove one")
    whole = STIMULUS_SETS[CUE_CONFLICT].images
    image_set = ImageSet(
        SETS[0],
        Listing(Path(), ImageNames([f"{image}.png" for image in images], shapes), np.zeros(len(images), np.int64)),
        np.arange(len(images)),
        as_is=True,
        subset=None if len(images) == whole else {"images": len(images), "of": whole},
        variables=_labels(path, rows, options["parser"]) if variant.task == "caption" else {},
    )
    longest = max(len(row["response"]) for row in rows)
    values = np.array([row["response"] for row in rows], f"U{max(longest, 1)}")
    return Responses(image_set, variant.condition, values, np.ones(len(images), bool), Words())


def _labels(path: Path, rows: Sequence[Mapping[str, str]], parsers: Sequence[str]) -> dict[str, Int[np.ndarray, " N"]]:
    """Return the captions' nearest classes as the file gives them, {} where it does not."""
    if "pred_label" not in rows[0]:
        return {}
    labels = [row["pred_label"] for row in rows]
    if unknown := [label for label in labels if label not in NAMES]:
        if "published" in parsers:
            raise UserError(f"{path}: pred_label '{unknown[0][:40]}' is not one of {', '.join(NAMES)}")
        return {}
    return {"labels": np.array(list(map(NAMES.index, labels)))}


def _shape(path: Path, number: int, image: str) -> int:
    name = image.partition("-")[0].rstrip("0123456789")
    if name not in NAMES:
        raise UserError(f"{path}, answer {number}: '{image[:60]}' is not a cue-conflict image (cat7-elephant1)")
    texture_category(image)
    return NAMES.index(name)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a file of answers, {column: text}. Raises UserError for anything else."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        table = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip().lower() for name in next(table, [])]
        rows = [row for row in table if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a file of answers: {error}") from None
    if "response" not in header and header.count("pred_label") == 1:  # released classifiers: the label is the answer
        header[header.index("pred_label")] = "response"
    if missing := [name for name in ("image", "response") if header.count(name) != 1]:
        raise UserError(f"{path} has no column {missing[0]}, or two; a file of answers has {','.join(COLUMNS)}")
    if not rows:
        raise UserError(f"{path} has no answers")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(f"{path}, answer {number}: {len(row)} fields, the head has {len(header)}; fix the quotes")
        yield dict(zip(header, row, strict=True))

"""A session of the laboratory: which trials a person sees, their pixels, and files of answers that cannot be lost.

A trial is that of Geirhos et al. 2019 (arXiv:1811.12231, section 2.1): a fixation square for 300 ms, the stimulus for
200 ms, a pink-noise mask of full contrast for 200 ms, then 16 categories to choose from for 1,500 ms, on grey.

The trials, the images, the preprocessing, the stimuli and their random numbers are those that networks are shown. A
screen shows 8 bits: pixels of filtered or noisy stimuli are rounded to multiples of 1/255, networks receive them
unrounded. A file of answers has the layout of the released ones (humans.trials reads it); one row is one flushed write.
"""

import contextlib
import csv
import datetime
import hashlib
import html
import io
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field
from typing_extensions import TypedDict

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import read_bytes, safe_name, write_json
from imagenet_biases.base.schema import Malformed, Number, Object, Row, Text, check, read_json
from imagenet_biases.humans.categories16 import CATEGORY_OF, presented
from imagenet_biases.humans.stimulus_sets import PREFIX, STIMULUS_SETS, canonical, image_sets, stimulus
from imagenet_biases.humans.trials import ANSWERS, COLUMNS, NO_MEASUREMENT
from imagenet_biases.images.preprocessing import STUDY, Reader
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.results.provenance import versions
from imagenet_biases.results.records import read_record
from imagenet_biases.stimuli.seeded import bits, normal, streams
from imagenet_biases.study import CATEGORIES_16
from imagenet_biases.vocabulary import CLEAN, Batch, Condition, Data

TIMES = {"fixation": 300, "stimulus": 200, "mask": 200, "response": 1500, "feedback": 300}
"""Milliseconds; feedback, in practice only, is how much longer the grid stays after an error."""
GREY = 0.7614  # of the background
BLOCK = 256  # trials between pauses
PRACTICE = {"colour": "cr", "false-colour": "true", "rotation": "0", "contrast": "c100", "power-equalisation": "0"}
"""Sets with intact photographs, and the condition that they are in: practice tells the right answers, so it must not
show images on which cues conflict."""
FOLDER = "people"  # in the results
ONE_SESSION = ("edge", "silhouette", "cue-conflict", "sketch", "stylized")  # whose files have `session`, not `Session`
CATEGORIES = tuple(CATEGORIES_16)


@dataclass(frozen=True, eq=False)
class Trial:
    """One image under one condition; `position` is among the chosen images of its set."""

    images: ImageSet
    position: int
    condition: Condition
    category: str
    level: str  # the condition, as the file of answers names it

    @property
    def file(self) -> str:
        """The image's path in its set."""
        return self.images.files[self.position]


# The list of trials ---------------------------------------------------------------------------------------------------


def checked_subject(name: str, results: Path) -> str:
    """Return the name of a subject if it can be one.

    Raises:
        UserError: it cannot name a file, has '_' (at which file names are split), is one of the released people's, or
            has a network's results.
    """
    if "_" in safe_name(name):
        raise UserError(f"--subject {name}: file names are split at '_'; write {name.replace('_', '-')}")
    if re.fullmatch(r"subject-\d+", name):  # agreement.is_person pools them
        raise UserError(f"--subject {name}: the released people are called so; give another name, such as lab-01")
    for record in filter(None, map(read_record, (results / name).glob("*.json"))):
        if record["provenance"].get("network"):
            raise UserError(f"--subject {name}: {results / name} has a network's results; give another name")
    return name


def number_of(subject: str) -> int:
    """Return the number that counterbalances conditions: the digits at the end of the name, or else its hash."""
    digits = re.search(r"\d{1,9}$", subject)
    return int(digits[0]) if digits else int(hashlib.sha256(subject.encode()).hexdigest()[:8], 16)


def trials_of_set(name: str, data: Data, download: bool = False) -> list[Trial]:
    """Return a trial for every image of a stimulus set. Raises UserError if it is not there."""
    (images,) = image_sets(data, download, (name,))
    trials = []
    for position, file in enumerate(images.files):
        spelling = stimulus(Path(file).name).spelling
        level = "0" if spelling == "NaN" else spelling  # as in the released trials on sets of one condition
        trials.append(Trial(images, position, CLEAN, CATEGORIES[images.labels[position]], level))
    return trials


def trials_of_benchmark(name: str, data: Data, alpha: str, subject: str, seed: int, count: int) -> list[Trial]:
    """Return a trial for every image of a benchmark that this subject sees, each under one of its conditions.

    A subject sees equally many images of each condition, to within one, in all and in each category; C subjects of
    consecutive numbers see every image once under each of C conditions (a Latin square).
    """
    images, conditions = presented(name, data, alpha, count)
    categories = CATEGORY_OF[images.labels]
    by_category = images.order[np.argsort(categories[images.order], kind="stable")]
    trials = []
    for rank, position in enumerate(by_category.tolist()):
        condition = conditions[(rank + number_of(subject) + seed) % len(conditions)]
        trials.append(Trial(images, position, condition, CATEGORIES[categories[position]], condition.name))
    return trials


def shuffled(trials: Sequence[Trial], seed: int, purpose: str, count: int | None = None) -> list[Trial]:
    """Return the first `count` trials of a random order; a smaller number has as many of each category, to within one.

    `purpose` tells the orders of subjects apart.
    """
    keys = torch.from_numpy(np.array([trial.images.keys[trial.position] for trial in trials], np.int64))
    order = bits(streams(Batch(keys, seed), purpose), 1)[:, 0].argsort(stable=True).tolist()
    if count is not None and count < len(trials):
        ranks: dict[str, int] = {}
        by_rank = []
        for place, number in enumerate(order):
            rank = ranks[trials[number].category] = ranks.get(trials[number].category, -1) + 1
            by_rank.append((rank, place))
        order = [order[place] for place in sorted(place for _, place in sorted(by_rank)[:count])]
    return [trials[number] for number in order]


def practice_trials(session: Sequence[Trial], data: Data, seed: int, count: int, download: bool) -> list[Trial]:
    """Return `count` trials to practise on: intact photographs that the session does not show.

    For a stimulus set they come from another one (PRACTICE); for a benchmark, from the rest of the image set.

    Raises:
        UserError: there are not so many.
    """
    seen = {stimulus(Path(trial.file).name).image for trial in session}
    fresh: dict[tuple[str, str], Trial] = {}
    for candidates in _intact(session[0].images, data, download) if count else ():
        for trial in candidates:
            image = stimulus(Path(trial.file).name).image
            if image not in seen:
                fresh.setdefault((trial.category, image), trial)
        if len(fresh) >= count:
            break
    if len(fresh) < count:
        fetch = "--download fetches the set colour, " if session[0].images.name.startswith(PREFIX) else ""
        raise UserError(
            f"practice needs {count} intact photographs that the session does not show, and there are {len(fresh)}: "
            f"{fetch}--practice {len(fresh)} asks for fewer"
        )
    return shuffled(list(fresh.values()), seed, "practice", count)


def _intact(images: ImageSet, data: Data, download: bool) -> Iterator[list[Trial]]:
    """Yield lists of trials on intact photographs, of the sets that are there or from the rest of an image set."""
    if not images.name.startswith(PREFIX):
        others = replace(images, chosen=np.flatnonzero(CATEGORY_OF[images.listing.labels] >= 0))
        numbers = CATEGORY_OF[others.labels].tolist()
        yield [Trial(others, position, CLEAN, CATEGORIES[number], "0") for position, number in enumerate(numbers)]
        return
    for name, level in PRACTICE.items():
        if PREFIX + name == images.name:
            continue
        try:
            trials = trials_of_set(name, replace(data, allow_partial=True), download)
        except UserError:
            if download:
                raise
            continue
        download = False
        yield [trial for trial in trials if canonical(trial.level) == level]


def write_list(trials: Iterable[Trial], path: Path, names: Sequence[str]) -> None:
    """Write a list of trials: number, block, category, condition, name in the file of answers, the image's path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "block", "category", "condition", "imagename", "file"])
    for number, (trial, name) in enumerate(zip(trials, names, strict=True), 1):
        writer.writerow([number, (number - 1) // BLOCK + 1, trial.category, trial.level, name, trial.file])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue(), "utf-8")


# Pixels ---------------------------------------------------------------------------------------------------------------


def _batch(trial: Trial, seed: int) -> Batch:
    return Batch(torch.from_numpy(trial.images.keys[[trial.position]]), seed)


@lru_cache(maxsize=8)
def _reader(images: ImageSet) -> Reader:
    return Reader(images, STUDY)


def pixels(trial: Trial, seed: int) -> UInt8[np.ndarray, "224 224 3"]:
    """Return what the screen shows: the stimulus that networks get, rounded to 8 bits. Raises Unreadable."""
    rows = _reader(trial.images).read(int(trial.images.chosen[trial.position]))
    if trial.condition.stimulus is None:
        return rows
    original = torch.from_numpy(rows).permute(2, 0, 1)[None].to(torch.float32).div_(255)
    with torch.no_grad():
        shown = trial.condition.stimulus(original, _batch(trial, seed), **trial.condition.settings)
    return shown[0].mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def mask(trial: Trial, seed: int) -> UInt8[np.ndarray, "224 224"]:
    """Return grey noise whose amplitude falls with 1 / frequency, from black to white."""
    white = normal(streams(_batch(trial, seed), "mask"), (224, 224))
    frequency = torch.hypot(torch.fft.fftfreq(224)[:, None], torch.fft.rfftfreq(224)[None])
    frequency[0, 0] = torch.inf
    noise = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(224, 224))[0]
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return noise.mul(255).round().to(torch.uint8).numpy()


def png(rows: np.ndarray) -> bytes:
    """Return pixels as a PNG file, which loses nothing."""
    file = io.BytesIO()
    Image.fromarray(rows).save(file, "PNG", compress_level=1)
    return file.getvalue()


# The files of answers -------------------------------------------------------------------------------------------------


class Answer(TypedDict):
    """What the page says of a trial; times in ms, of the fixation, the stimulus and the mask."""

    trial: int
    response: Literal[ANSWERS]  # type: ignore[valid-type]  # pyright: ignore
    rt: Number | None
    durations: Annotated[tuple[Number, Number, Number], Row]
    dropped: int


class Display(TypedDict):
    """What the page says of the display, among further numbers and texts; `frame`: in ms."""

    frame: NotRequired[Annotated[float, Field(ge=1, le=1000)]]


class SessionRecord(TypedDict):
    """What the file beside the answers holds."""

    settings: Object
    durations: Object
    measurement: bool
    display: NotRequired[Object]


class Session:
    """A subject's trials and the files of the answers, which this process alone writes.

    Attributes:
        settings: what determines the session; a session that was begun with others is refused.
        done: how many trials are answered; the next one has this position.
    """

    def __init__(
        self, results: Path, name: str, subject: str, trials: Sequence[Trial], settings: dict[str, Any]
    ) -> None:
        self.name, self.subject, self.trials = name, subject, trials
        self.path = results / FOLDER / name / f"{name}_{subject}_session_1.csv"
        listed = "\n".join(f"{imagename} {trial.level}" for imagename, trial in zip(self.names, trials, strict=True))
        self.settings = settings | {"trials": len(trials), "list": hashlib.sha256(listed.encode()).hexdigest()}
        self.done = 0
        self._writing = threading.Lock()

    @cached_property
    def names(self) -> list[str]:
        """How the file of answers names the images: those of stimulus sets as in the release, with this observer."""
        if self.name not in STIMULUS_SETS:
            return [trial.file for trial in self.trials]
        names = []
        for number, trial in enumerate(self.trials, 1):
            stem, ending = os.path.splitext(Path(trial.file).name)
            parts = stem.split("_", 6)
            if len(parts) < 7:
                parts = ["", STIMULUS_SETS[self.name].experiment, "", trial.level, trial.category, "00", stem]
            parts[0], parts[2] = f"{number:04d}", f"s{self.subject}"
            names.append("_".join(parts) + ending)
        return names

    def open(self) -> None:
        """Begin the session, or resume it after the last answer that is whole.

        Raises:
            UserError: another process has it open, or it was begun with other settings.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{self.subject}'s session is open in another run_experiment.py; end that one") from None
        self._record = {
            "settings": self.settings,
            "measurement": self.settings["clock factor"] == 1,
            "subject": self.subject,
            "rounding": "stimuli are shown with 8 bits per channel",
            "versions": versions(),
            "begun": _now(),
            "display": {},
            "durations": {},
        }
        if self.path.exists():
            self._resume()
        if not self.done:
            self.path.unlink(missing_ok=True)
            write_json(self._json, self._record)

    def _resume(self) -> None:
        try:
            self._record |= read_json(self._json, SessionRecord)
            content = read_bytes(self.path)
        except (OSError, Malformed) as error:
            raise UserError(f"{self._json} cannot be read ({error}): restore it, or --delete the session") from None
        for key, value in self.settings.items():
            begun = self._record["settings"].get(key)
            if begun != value:
                told = f"{key} {begun}, now it is {value}" if key != "list" else "another list of images"
                raise UserError(
                    f"{self.path} was begun with {told}: repeat the command that began it, or remove it with --delete"
                )
        whole = content[: content.rfind(b"\n") + 1]
        rows = list(csv.DictReader(io.StringIO(whole.decode("utf-8", "replace"))))
        if [row.get("imagename") for row in rows] != self.names[: len(rows)]:
            raise UserError(f"{self.path} does not have the trials of this session: restore it, or --delete it")
        os.truncate(self.path, len(whole))  # a row that the machine did not finish was never acknowledged
        self.done = len(rows)

    def close(self) -> None:
        """Let another process open the session."""
        self._lock.release()

    @property
    def _json(self) -> Path:
        return self.path.with_suffix(".json")

    def _append(self, row: Sequence[Any]) -> None:
        """Write a row, the first one with the header, and wait until it is on the disk."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.done:
            capital = self.name in STIMULUS_SETS and self.name not in ONE_SESSION
            writer.writerow(["Session" if capital and column == "session" else column for column in COLUMNS])
        writer.writerow(row)
        with open(self.path, "ab", buffering=0) as file:
            file.write(text.getvalue().encode())
            os.fsync(file.fileno())

    @property
    def display(self) -> dict[str, Any]:
        """What the page last said of the display."""
        return self._record["display"]

    @display.setter
    def display(self, value: Any) -> None:
        self._record["display"] = check(check(value, dict[Text, Number | Text | None]), Display)
        write_json(self._json, self._record)

    def answer(self, value: Any) -> int:
        """Store an answer; return the position of the next trial.

        The file of durations comes first: a trial whose row is missing is shown again, and replaces its durations.

        Raises:
            Malformed: the answer does not have its shape, or is not about the next trial.
        """
        with self._writing:
            answer = check(value, Answer)
            if answer["trial"] != self.done or self.done == len(self.trials):
                raise Malformed(f"trial {answer['trial']} is not the next one, {self.done}")
            trial, number = self.trials[self.done], self.done + 1
            shown = dict(zip(("fixation", "stimulus", "mask"), answer["durations"], strict=True))
            error = abs(shown["stimulus"] - TIMES["stimulus"] / self.settings["clock factor"])
            wrong = error > 1.05 * self.display.get("frame", 1000 / 60)  # a frame, measured to within some 0.1 ms
            self._record["durations"][str(number)] = shown | {"dropped": answer["dropped"], "wrong": wrong}
            if number == len(self.trials):
                self._record["finished"] = _now()
            write_json(self._json, self._record)
            rt = "NaN" if answer["rt"] is None or answer["response"] == "na" else f"{answer['rt']:.6f}"
            name = self.names[self.done]
            self._append([self.subject, 1, number, rt, answer["response"], trial.category, trial.level, name])
            self.done = number
            return number

    def summary(self) -> str:
        """Return in one line how far the session is and how well it was timed."""
        if not self.done:
            return f"no trial of {len(self.trials)} is answered yet"
        durations = self._record["durations"].values()
        wrong, dropped = sum(shown["wrong"] for shown in durations), sum(shown["dropped"] for shown in durations)
        timing = f"trials whose stimulus was off by more than a frame: {wrong}; frames dropped: {dropped}"
        return f"{self.done} of {len(self.trials)} trials are in {self.path}; {timing}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def files_of(subject: str, results: Path) -> list[Path]:
    """Return all files that sessions of a subject, and scoring them, have written under the results folder."""
    name = rf"\.?[^_]+_{re.escape(subject)}({NO_MEASUREMENT})?_(session_1|list)\..*"
    named = [path for path in (results / FOLDER).glob("*/*") if re.fullmatch(name, path.name)]
    records: list[Path] = []
    for label in (subject, subject + NO_MEASUREMENT):
        records += [*(results / label).glob("model_vs_human*.json"), *(results / label).glob("categories16*.json")]
        records += (results / label).glob(".lock")
    return sorted([*named, *records] if named else [])


def delete(subject: str, results: Path) -> list[Path]:
    """Delete a subject's data; return the files that are gone. Raises UserError if there are none."""
    paths = files_of(subject, results)
    if not paths:
        raise UserError(f"{results / FOLDER} has no data of {subject}")
    for path in paths:
        path.unlink()
    for folder in {path.parent for path in paths}:
        with contextlib.suppress(OSError):  # it holds something else
            folder.rmdir()
    return paths


# What the page shows --------------------------------------------------------------------------------------------------


def texts(path: Path | None = None) -> dict[str, str]:
    """Return the page's texts, in English or from a translation that has the same keys and placeholders.

    Raises:
        UserError: it cannot be read, or its keys or placeholders are others.
    """
    english = read_json(Path(__file__).with_name("experiment_page") / "texts.json", dict[Text, Text])
    if path is None:
        return english
    try:
        translated = read_json(path, dict[Text, Text])
    except (OSError, Malformed) as error:
        raise UserError(f"--language {path}: {error}; it has the keys of experiment_page/texts.json") from None
    for key in [*english, *translated]:
        if key not in translated or key not in english:
            raise UserError(f"--language {path}: {key} is {'missing' if key in english else 'not a text of the page'}")
        wanted = set(re.findall(r"\{\w+\}", english[key]))
        if wanted != set(re.findall(r"\{\w+\}", translated[key])):
            raise UserError(
                f"--language {path}: {key} must have the placeholders {sorted(wanted) or 'of English: none'}"
            )
    return translated


def simple_markdown(text: str) -> str:
    """Return headings (#), lists (-), paragraphs and **bold** as HTML; anything else is text."""
    parts = []
    for block in re.split(r"\n\s*\n", html.escape(text.strip())):
        block = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", block)
        if heading := re.fullmatch(r"(#{1,3}) +(.+)", block):
            parts.append(f"<h{len(heading[1])}>{heading[2]}</h{len(heading[1])}>")
        elif all(line.startswith("- ") for line in block.splitlines()):
            parts.append("<ul>" + "".join(f"<li>{line[2:]}</li>" for line in block.splitlines()) + "</ul>")
        else:
            parts.append(f"<p>{block}</p>")
    return "\n".join(parts)

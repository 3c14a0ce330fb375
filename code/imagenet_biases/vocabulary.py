"""The words that everything else uses: a leaf that imports nothing of the package but Estimate.

images -> what is presented (Condition) -> networks -> what is kept (Readout, Responses) -> scores (Benchmark.report)
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

from imagenet_biases.estimate import Estimate

if TYPE_CHECKING:
    from imagenet_biases.images.sets import ImageSet
    from imagenet_biases.networks.load import Network

PRECISIONS = ("fp32", "tf32-conv", "tf32", "bf16", "fp16")
PREPROCESSINGS = ("study", "native")
COMPILE = ("auto", "on", "off")
ROUNDS = (1.0, 5.0, 20.0, 100.0)  # per cent of the images after which a long run reports

# What a run is asked for ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Where the images are, and which of them to show.

    Attributes:
        root: a folder that holds a folder or archive per image set, named imagenet, imagenet-a, ...
        folders: {image set: its folder}, by the names in study.py; wins over `root`. In place of a folder: an archive
            (.tar, .parquet), several of them separated by commas, or a folder that holds them.
        limit: show only the first so many images of each set's order: a sample.
        allow_partial: measure incomplete sets, as declared subsets.
        skip_unreadable: leave out images that cannot be decoded; the record names them.
        imagenet_labels: labels of a flat ImageNet folder: two columns, file name and WordNet id or class number.
        listings: a folder that keeps listings of corrupted sets (7.25 million files) and indexes of archives.
        seed: of what passes draw (resets); a run puts its Settings' seed here.
        listed: the image sets found so far, so that each is listed once for all benchmarks of a run.
    """

    root: str | Path | None = None
    folders: Mapping[str, str | Path] = field(default_factory=dict[str, str | Path])
    limit: int | None = None
    allow_partial: bool = False
    skip_unreadable: bool = False
    imagenet_labels: str | Path | None = None
    listings: Path | None = None
    seed: int = 0
    listed: "dict[str, ImageSet] | None" = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Settings:
    """How to run. Only precision, preprocessing and seed may change an answer; they are part of every identity.

    Attributes:
        device: auto, cpu, cuda, mps or whatever torch.device accepts.
        precision: one of PRECISIONS. fp32 is float32 throughout; tf32-conv, torch's own default on NVIDIA GPUs, runs
            convolutions in TensorFloat-32, tf32 matrix products as well; bf16 and fp16 are torch's autocast.
        preprocessing: study (256/224 bilinear for every network) or native (each network's own).
        batch_size, workers: images per batch, decoding processes; None chooses by the machine.
        cache: a folder that keeps decoded images.
        compile: auto (long runs), on or off.
        checkpoint_seconds: between save points of a long pass.
        shard: (i, n) measures the i-th of n shares of the work; whichever shard brings the last answers of a round
            writes its records. Processes that torchrun starts are shards.
        alone: measure everything in this process, whatever torchrun has put into its environment.
        rounds: per cent of the images after which every record is written, rising; the last ends the run. None:
            ROUNDS for long runs, else all images at once.
        budget: seconds after which the run ends with what is measured; it then begins where that says most.
        until: ends a benchmark on a network once what it reports first is known to within +- so many points (biases and
            ratios: hundredths), or, with 'places', the run once places among the published networks are.

    Raises:
        ValueError: a value that its field does not allow.
    """

    device: str | torch.device = "auto"
    precision: str = "fp32"
    preprocessing: str = "study"
    seed: int = 0
    batch_size: int | None = None
    workers: int | None = None
    cache: str | Path | None = None
    compile: str = "auto"
    checkpoint_seconds: float = 180.0
    shard: tuple[int, int] | None = None
    alone: bool = False
    rounds: tuple[float, ...] | None = None
    budget: float | None = None
    until: float | Literal["places"] | None = None

    def __post_init__(self) -> None:
        allowed = {"precision": PRECISIONS, "preprocessing": PREPROCESSINGS, "compile": COMPILE}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(values)}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size}: give 1 or more")
        if self.workers is not None and not 0 <= self.workers <= 1000:
            raise ValueError(f"--num-workers {self.workers}: give 0 (decode in the main process) to 1000")
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise ValueError(f"--shard {self.shard[0]}/{self.shard[1]}: give i/n with i from 1 to n")
        self._check_ends()

    def _check_ends(self) -> None:
        """Raise ValueError for rounds, a budget or an end that cannot be meant."""
        rounds = (0.0, *(self.rounds or ())) if self.rounds is not None else (0.0, 100.0)
        if len(rounds) < 2 or rounds[-1] > 100 or any(after <= before for before, after in itertools.pairwise(rounds)):
            listed = ",".join(f"{share:g}" for share in rounds[1:])
            raise ValueError(f"--rounds {listed}: give rising shares above 0, up to 100 per cent, e.g. 1,5,20,100")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"--budget {self.budget:g}: give a time above 0, e.g. 30m")
        if self.until is not None and self.until != "places" and not self.until > 0:
            raise ValueError(f"--until {self.until}: give a half-width above 0 in points, or places")


@dataclass(frozen=True)
class Option:
    """One option of a benchmark: `--NAME` in its script, `--option BENCHMARK.NAME=VALUE` in eval_all.

    Attributes:
        name: as in Python: step_size is --step-size.
        type: turns text into a value; raises ValueError or UserError.
        several: the value is a tuple, its parts separated by blanks or commas.
        flag: on or off.
    """

    name: str
    default: Any = None
    help: str = ""
    type: Callable[[str], Any] = str
    choices: tuple[Any, ...] = ()
    several: bool = False
    flag: bool = False


# What identifies code -------------------------------------------------------------------------------------------------

Identifiable = TypeVar("Identifiable")


def identified(id: str, version: int = 1) -> Callable[[Identifiable], Identifiable]:
    """Give a stimulus, attack, change, front end or network class the id by which stored responses are found.

    Renaming or moving what carries an id costs nothing. Raise `version` when its result changes: responses of earlier
    versions are then no longer used. Readouts declare both as class attributes.
    """

    def mark(item: Identifiable) -> Identifiable:
        item.id, item.version = id, version  # type: ignore[attr-defined]
        return item

    return mark


# What is presented ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Batch:
    """What randomness may depend on besides the pixels: never the batch size, the order or the device.

    Attributes:
        keys: a stable number per image (ImageSet.keys), on the pixels' device.
        draw: which of several draws.
    """

    keys: Int64[Tensor, " B"]
    seed: int
    draw: int = 0

    def rows(self, chosen: Any) -> "Batch":
        """Return the batch of some of its images; `chosen` is anything that indexes a tensor [B]."""
        return dataclasses.replace(self, keys=self.keys[chosen])


@runtime_checkable
class Attacked(Protocol):
    """A network as attacks see it: pixels [b, 3, H, W] to logits [b, classes], with gradients.

    `rows` says which images of the batch these are, where they are not all. An attribute `draws` above 1 says over how
    many calls to average a gradient. An attribute `flat` that is None receives whether the gradient of each image, at
    the next call, is zero or not finite.
    """

    def __call__(self, pixels: Float[Tensor, "b 3 H W"], rows: Any = None) -> Float[Tensor, "b C"]: ...


@dataclass(frozen=True, eq=False)
class Condition:
    """What is done before a network answers: nothing, a stimulus, an attack, or a change of the network.

    - `stimulus(pixels, batch, **settings)` returns pixels, the same for every network; called without gradients.
    - `attack(network, pixels, labels, batch, **settings)` returns pixels, or (pixels, perturbation), where readouts are
      to see another perturbation than the difference (a gradient is no image). `network` is an Attacked network whose
      parameters require no gradients.
      `stepwise(network, seed, width, **settings)` is the same attack as an object that images join and leave, each of
      them after steps of its own: add(tickets, pixels, labels, keys), and finished(last), which yields (tickets, pixels
      before, pixels) of at most `width` images. With it the loop keeps batches full; `attack` is one batch by itself.
    - `change(network, **settings)` changes parameters, buffers, attributes or hooks of the network in place; all of it
      is undone bit for bit afterwards. Changed and intact networks both run as they were built (batch norms not
      folded, not compiled), so that only the change differs.

    A condition without a function is a prompt: its settings are passed as keyword arguments to networks that accept
    them (Network.asks). With a change and an attack, the attack is made on the changed network, and the settings are
    the change's.

    Pixels are float32 [B, 3, H, W] in [0, 1], labels int64 [B]. Settings are JSON-able. Name, settings and the
    function's id and version (see `identified`) are the condition's identity.

    Attributes:
        seeded: whether batch.seed matters.
        batched: whether the result depends on the rest of the batch; the batch size is then part of the identity.
        cost: forward passes per image, for estimates of time (a gradient counts as two more).

    Raises:
        ValueError: functions that exclude each other, or one without an id.
        TypeError: settings that JSON cannot hold.
    """

    name: str
    stimulus: Callable[..., Any] | None = None
    attack: Callable[..., Any] | None = None
    change: Callable[..., Any] | None = None
    stepwise: Callable[..., Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seeded: bool = False
    batched: bool = False
    cost: int = 1

    def __post_init__(self) -> None:
        kinds = [kind for kind in ("stimulus", "attack", "change") if getattr(self, kind) is not None]
        if len(kinds) > 1 and kinds != ["attack", "change"]:
            raise ValueError(f"condition '{self.name}' is {' and '.join(kinds)}; it can be only one of them")
        for function in self.functions:
            if not isinstance(getattr(function, "id", None), str):
                name = getattr(function, "__qualname__", type(function).__qualname__)
                raise ValueError(
                    f"condition '{self.name}': {name} has no id by which its responses are found again; write "
                    f"@identified('{name.rpartition('.')[2].strip('<>')}') above its definition"
                )
        json.dumps(dict(self.settings))  # settings that cannot be written down cannot be found again

    @property
    def kind(self) -> str:
        """'clean', 'stimulus', 'attack' or 'change'."""
        for kind in ("change", "stimulus", "attack"):
            if getattr(self, kind) is not None:
                return kind
        return "clean"

    @property
    def functions(self) -> list[Callable[..., Any]]:
        """The functions to call, in this order."""
        return [function for function in (self.stimulus, self.change, self.attack) if function is not None]

    @property
    def prompt(self) -> dict[str, Any]:
        """Keyword arguments for networks that accept a prompt."""
        return {} if self.functions else dict(self.settings)

    def identity(self) -> dict[str, Any]:
        """Return what determines the condition, JSON-able."""
        identity: dict[str, Any] = {"condition": self.name, "kind": self.kind, "settings": dict(self.settings)}
        if self.functions:
            ids = [function.id for function in self.functions]  # type: ignore[attr-defined]
            versions = [function.version for function in self.functions]  # type: ignore[attr-defined]
            identity["function"] = " ".join(ids)
            identity["version"] = versions[0] if len(set(versions)) == 1 else versions
        return identity

    def same_function(self, other: "Condition") -> bool:
        """Whether another condition of this identity really calls the same code."""
        pairs = zip(self.functions, other.functions, strict=True)
        return all(mine is theirs or _code(mine) == _code(theirs) for mine, theirs in pairs)


CLEAN = Condition("clean")


def _code(function: Any) -> Any:
    """Return what a function does, comparably: its code with the values of its closure, or the object itself."""
    code = getattr(function, "__code__", None)
    if code is None:
        return function
    closure = tuple(cell.cell_contents for cell in function.__closure__ or ())
    return code, closure, function.__defaults__, function.__kwdefaults__


# What is kept ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Presentation:
    """All that a readout may look at, for one batch.

    Attributes:
        logits: None for a network that answers in words.
        pixels: as presented, in [0, 1].
        before: the pixels before the condition.
        labels: the first label of each image.
        words: B strings, for a network that answers in words.
        intact: the unchanged network's logits on `before`, where the readout asks for them.
        gradient: what an attack returns in place of the perturbation.
    """

    logits: Float[Tensor, "B C"] | None
    pixels: Float[Tensor, "B 3 H W"]
    before: Float[Tensor, "B 3 H W"]
    labels: Int64[Tensor, " B"]
    batch: Batch
    words: list[str] | None = None
    intact: Float[Tensor, "B C"] | None = None
    gradient: Float[Tensor, "B 3 H W"] | None = None

    @property
    def perturbation(self) -> Float[Tensor, "B 3 H W"]:
        """What the condition does to the pixels."""
        return self.pixels - self.before if self.gradient is None else self.gradient


@dataclass(frozen=True)
class Readout:
    """What is kept of an answer: Presentation -> one row per image, of any type and shape.

    Subclasses are frozen dataclasses. Fields, `id` and `version` are the readout's identity.

    Attributes:
        id: declared by each subclass; stored responses are found by it.
        dtype, shape: of a row; dtype is numpy's name.
        intact: whether the readout needs the intact network's logits.
        takes: 'logits' or 'words'.
    """

    id: ClassVar[str] = ""
    dtype: ClassVar[str] = "float32"
    shape: ClassVar[tuple[int, ...]] = ()
    intact: ClassVar[bool] = False
    takes: ClassVar[str] = "logits"
    version: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        if not isinstance(vars(cls).get("id"), str):
            raise TypeError(f"the readout {cls.__name__} has no id by which its responses are found again; give it one")

    def __call__(self, presentation: Presentation) -> Any:
        """Return [B, *shape], a tensor, or an array where torch has no such dtype."""
        raise NotImplementedError

    def hits(self, rows: Any, labels: Any) -> Any | None:
        """Return which rows are right, bool [B], or None where the readout cannot tell. For progress only."""
        return None

    def possible(self, rows: np.ndarray) -> bool:
        """Whether stored rows can be this readout's: what it never gives must not reach a score."""
        return True

    def identity(self) -> dict[str, Any]:
        """Return what determines the readout, JSON-able."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return json.loads(json.dumps({"readout": self.id, "version": self.version, **values}))


@dataclass(frozen=True)
class TopClasses(Readout):
    """The first `k` class numbers by logit, among `classes` (None: all), int16 [B, k]."""

    k: int = 5
    classes: tuple[int, ...] | None = None

    id: ClassVar[str] = "TopClasses"
    dtype: ClassVar[str] = "int16"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.k,)

    def __call__(self, presentation: Presentation) -> Int[Tensor, "B k"]:
        logits = _logits(presentation)
        if self.classes is None:
            return logits.topk(self.k).indices
        classes = on_device(self.classes, logits.device)
        return classes[logits[:, classes].topk(self.k).indices]

    def hits(self, rows: Any, labels: Any) -> Any:
        return rows[:, 0] == labels

    def possible(self, rows: np.ndarray) -> bool:
        return between(rows, 0, 999)


@dataclass(frozen=True)
class Categories(Readout):
    """The number of the category with the highest MEAN softmax probability over its classes, int16 [B].

    `groups`: pairs (category name, class numbers).
    """

    groups: tuple[tuple[str, tuple[int, ...]], ...]

    id: ClassVar[str] = "Categories"
    dtype: ClassVar[str] = "int16"

    def __call__(self, presentation: Presentation) -> Int[Tensor, " B"]:
        probabilities = _logits(presentation).softmax(1)
        means = [probabilities[:, on_device(classes, probabilities.device)].mean(1) for _, classes in self.groups]
        return torch.stack(means, 1).argmax(1)

    def hits(self, rows: Any, labels: Any) -> Any:
        return rows == labels

    def possible(self, rows: np.ndarray) -> bool:
        return between(rows, 0, len(self.groups) - 1)


def _logits(presentation: Presentation) -> Float[Tensor, "B C"]:
    assert presentation.logits is not None, "the plan gives this readout to networks with logits only"
    return presentation.logits


def between(rows: np.ndarray, low: Any, high: Any) -> bool:
    """Whether all values lie within two bounds; NaN (answers that are not finite) is allowed."""
    return not bool(((rows < low) | (rows > high)).any())


@functools.lru_cache(maxsize=256)
def on_device(numbers: tuple[int, ...], device: torch.device) -> Int64[Tensor, " n"]:
    """Return a tuple of numbers as a tensor on a device, made once."""
    return torch.tensor(numbers, device=device)


@dataclass(frozen=True, eq=False)
class Responses:
    """One network's answers to one condition of one image set, as one readout keeps them.

    Attributes:
        values: [N, *readout.shape].
        counts: which images count; the others were left out as unreadable.
        measured: when, where and by what.
    """

    images: "ImageSet"
    condition: Condition
    values: Shaped[np.ndarray, "N ..."]
    counts: Bool[np.ndarray, " N"]
    readout: Readout = field(default_factory=TopClasses)
    measured: tuple[dict[str, Any], ...] = ()

    @property
    def labels(self) -> Int64[np.ndarray, " N"]:
        """The class number of each image."""
        return self.images.labels


@dataclass(frozen=True, eq=False)
class Pass:
    """One image set, its conditions and its readout. `conditions` may be a function of the network."""

    images: "ImageSet"
    conditions: Sequence[Condition] | Callable[["Network"], Iterable[Condition]] = (CLEAN,)
    readout: Readout = field(default_factory=TopClasses)

    def conditions_for(self, network: Any) -> tuple[Condition, ...]:
        """Return the conditions that a network meets."""
        return tuple(self.conditions(network) if callable(self.conditions) else self.conditions)


# What is reported -----------------------------------------------------------------------------------------------------


class Results(Mapping[tuple[Any, ...], Responses]):
    """What a report works on: {(image set name, condition name): Responses}, the network, the options.

    Where two readouts keep the same presentation, the key needs the readout's class as its third part.

    `purpose` says what a report is called for: 'whole' (the record), 'half' (of the images; for standard errors, so it
    draws no resamples of its own) or 'rehearsal' (made-up responses, before anything is measured). A report must return
    the same metrics for all three.
    """

    def __init__(
        self,
        responses: Iterable[Responses],
        network: "Network | None" = None,
        options: Mapping[str, Any] | None = None,
        purpose: Literal["whole", "half", "rehearsal"] = "whole",
    ) -> None:
        self.network, self.options, self.purpose = network, dict(options or {}), purpose
        self._by_key: dict[tuple[str, str], dict[type[Readout], Responses]] = {}
        for answers in responses:
            by_readout = self._by_key.setdefault((answers.images.name, answers.condition.name), {})
            by_readout[type(answers.readout)] = answers

    def __getitem__(self, key: tuple[Any, ...]) -> Responses:
        images, condition, *readout = key
        by_readout = self._by_key[images, condition]
        if readout:
            return by_readout[readout[0]]
        if len(by_readout) > 1:
            names = ", ".join(kind.__name__ for kind in by_readout)
            raise KeyError(f"{key}: several readouts keep it; name one of {names}")
        return next(iter(by_readout.values()))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._by_key)

    def __len__(self) -> int:
        return len(self._by_key)

    def all(self) -> list[Responses]:
        """Return all responses."""
        return [responses for by_readout in self._by_key.values() for responses in by_readout.values()]

    def resamples(self, count: int) -> int:
        """Return how many resamples a report should draw for an interval: `count`, none on a half."""
        return {"whole": count, "rehearsal": min(count, 50), "half": 0}[self.purpose]


Metrics = Iterable[tuple[str, float | Estimate | None]]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what is presented, and what is reported of the responses.

    Attributes:
        passes: passes(data, **options) -> the passes; none where only the weights are looked at.
        report: report(results) yields (metric, number or Estimate); every metric has an entry in metrics.toml and
            appears once. It is called for the whole, for random halves and for a rehearsal (Results.purpose).
        sets: the image sets it may show, by their names in study.py; () if its options name the images, None if it
            shows none.
        layers: values by layer, {metric: {layer: Estimate}}.
        details: JSON-able facts beyond the metrics.
        export: export(results, label, folder) writes files beside the record.
        without_network: without_network(data, **options) -> (label, Results) pairs of answers that come from files,
            or None: use networks.
        by_condition: by_condition(accuracies, options) yields (metric, number) from {condition name: accuracy in 0...1}
            alone, for people, who see an image under one condition (humans.categories16).
        on_request: whether eval_all runs it only when it is named: it takes networks of another kind.
        headline: metrics to show first (* stands for anything); all of them by default.
        project: its W&B project in the study's layout, where it is not the name.
    """

    name: str
    passes: Callable[..., list[Pass]]
    report: Callable[[Results], Metrics]
    sets: tuple[str, ...] | None = ("imagenet",)
    options: tuple[Option, ...] = ()
    details: Callable[[Results], dict[str, Any]] | None = None
    layers: Callable[[Results], dict[str, dict[str, Estimate]]] | None = None
    export: Callable[[Results, str, Path], None] | None = None
    without_network: Callable[..., Any] | None = None
    by_condition: Callable[[Mapping[str, float], Mapping[str, Any]], Iterable[tuple[str, float | None]]] | None = None
    on_request: bool = False
    headline: tuple[str, ...] = ()
    project: str = ""

    def options_from(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return {option: value} with defaults filled in; texts are read as on the command line.

        Raises:
            ValueError: an unknown option, or a value that it does not take.
        """
        known = {option.name: option for option in self.options}
        chosen = {name: option.default for name, option in known.items()}
        for name, value in (values or {}).items():
            name = name.replace("-", "_")
            if name not in known:
                available = f"it has {', '.join(known)}" if known else "it has none"
                raise ValueError(f"{self.name} has no option {name}; {available}")
            chosen[name] = _parsed(known[name], value)
        return chosen


SWITCH = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}


def _parsed(option: Option, value: Any) -> Any:
    """Return an option's value from what was written for it; ValueError says what is wrong with it."""
    if value is None or value == option.default:
        return value
    if option.flag:
        if str(value).lower() not in SWITCH:
            raise ValueError(f"{option.name}: '{value}' is neither on nor off")
        return SWITCH[str(value).lower()]
    parts = _words(value) if option.several else [value]
    try:
        parts = [option.type(part) if isinstance(part, str) else part for part in parts]
    except ValueError:
        kind = getattr(option.type, "__name__", "a value")
        raise ValueError(f"{option.name}: '{value}' cannot be read as {kind}") from None
    unknown: list[Any] = [part for part in parts if option.choices and part not in option.choices]
    if unknown or not parts:
        wrong = [*unknown, value][0]
        raise ValueError(f"{option.name}: '{wrong}' is not one of {', '.join(map(str, option.choices))}")
    return tuple(parts) if option.several else parts[0]


def _words(value: Any) -> list[Any]:
    """Return the values of an option that takes several; a word of the command line may hold several itself."""
    words: list[Any] = []
    for part in value if type(value) in (list, tuple) else [value]:
        words += part.replace(",", " ").split() if isinstance(part, str) else [part]
    return words

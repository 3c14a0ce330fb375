"""The words that everything else uses. A leaf: it imports torch and numpy, nothing of the package.

images -> what is presented (Condition) -> networks -> what is kept (Readout, Responses) -> scores (Benchmark.report)
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

# What is asked of a run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Where the images are, and which of them: the folders of the sets, or `root`, a folder with a folder for each.

    In place of a folder: an archive (.tar, .parquet), several of them separated by commas, or a folder that holds them.
    `limit`: only so many images of each set, spread over it; `allow_partial`: measure an incomplete set. Both make a
    declared subset. `skip_unreadable`: leave images out that cannot be decoded, recorded. `listings`: a folder where
    the listings of the corrupted sets (7.25 million files) and the indexes of archives are kept between runs. `seed`:
    of what passes draw (samples, resets); a run puts its Settings' seed here. `listed`: in it a run remembers the sets
    that it has found, so that each is listed once for all benchmarks.
    """

    root: str | Path | None = None
    imagenet: str | Path | None = None
    imagenet_v2: str | Path | None = None
    imagenet_a: str | Path | None = None
    imagenet_r: str | Path | None = None
    imagenet_sketch: str | Path | None = None
    imagenet_c: str | Path | None = None
    imagenet_cbar: str | Path | None = None
    model_vs_human: str | Path | None = None
    limit: int | None = None
    allow_partial: bool = False
    skip_unreadable: bool = False
    listings: Path | None = None
    seed: int = 0
    listed: dict | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Settings:
    """How to run. Only precision, view and seed may change an answer, and they are part of every result's identity.

    `device`: auto, cpu, cuda, mps or what torch.device takes; `precision`: fp32, tf32, bf16, fp16; `view`: study
    (256/224 bilinear for everyone) or native; `batch_size`, `workers` (decoding processes): None chooses by the
    machine; `cache`: a folder that keeps decoded images; `compile`: auto (long runs), on, off. `shard`: (i, n) measures
    the i-th of n shares of the work, the records when all shares are there; `split`: what the processes that torchrun
    started share out, networks (each is a shard), the images of each network, or nothing: each is on its own.
    """

    device: str | torch.device = "auto"
    precision: str = "fp32"
    view: str = "study"
    seed: int = 0
    batch_size: int | None = None
    workers: int | None = None
    cache: str | Path | None = None
    compile: str = "auto"
    checkpoint_seconds: float = 180.0
    shard: tuple[int, int] | None = None
    split: str = "networks"


@dataclass(frozen=True)
class Option:
    """One choice that a benchmark offers: `--NAME` in its script, `--option BENCHMARK.NAME=VALUE` in eval_all.

    `type` turns text into a value and raises ValueError or UserError; with `several` the value is a tuple, its parts
    separated by blanks or commas; a `flag` is on or off.
    """

    name: str  # as in Python: step_size is --step-size
    default: Any = None
    help: str = ""
    type: Callable[[str], Any] = str
    choices: tuple = ()
    several: bool = False
    flag: bool = False


# What identifies code -------------------------------------------------------------------------------------------------


def identified(id, version=1):
    """Give a stimulus, an attack, a change, a front end or a network class the id that stored responses are found by.

    Renaming or moving what carries an id costs nothing; raise `version` when its result changes, and responses of
    earlier versions are not used. Readouts declare both as class attributes.
    """

    def mark(item):
        item.id, item.version = id, version
        return item

    return mark


# What is presented ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Batch:
    """What randomness may depend on besides the pixels: never on the batch size, the order or the device."""

    keys: torch.Tensor  # int64 [B], on the pixels' device: a stable number of each image (ImageSet.keys)
    seed: int
    draw: int = 0  # which of several draws

    def rows(self, chosen):
        """Return the batch of some of its images; `chosen`: what indexes a tensor [B]."""
        return dataclasses.replace(self, keys=self.keys[chosen])


@dataclass(frozen=True, eq=False)
class Condition:
    """What is done before a network answers: nothing, a stimulus, an attack, or a change of the network.

    - `stimulus(pixels, batch, **settings)` returns pixels, the same for every network; it is called without gradients.
    - `attack(network, pixels, labels, batch, **settings)` returns pixels, or with them a tensor of their shape that
      readouts take for the perturbation (a gradient is no image); `network(pixels, rows=None)` gives logits with
      gradients (`rows`: which images of the batch these are, where they are not all), while the parameters do not
      require them.
      `stepwise(network, seed, width, **settings)` is the same attack as an object that images join and leave, each done
      with after steps of its own: add(tickets, pixels, labels, keys), and finished(last) that yields (tickets, pixels
      before, pixels) of at most `width` images. With it the loop keeps batches full; `attack` is one batch by itself.
    - `change(network, **settings)` changes parameters, buffers, attributes or hooks of the network in place; all of it
      is undone bit for bit afterwards. The changed and the intact network both run as they were built (batch norms not
      folded, not compiled), so that only the change differs.

    Settings of a condition without a function are a question: handed to networks that take one (Network.asks).

    With a change and an attack, the attack is made on the changed network, and the settings are the change's.

    Pixels are float32 [B, 3, H, W] in [0, 1], labels int64 [B]. `settings` are JSON-able, stated here once and handed
    to the function. Name, settings and the function's id and version (`identified`) are the condition's identity.
    """

    name: str
    stimulus: Callable | None = None
    attack: Callable | None = None
    change: Callable | None = None
    stepwise: Callable | None = None
    settings: Mapping = field(default_factory=dict)
    seeded: bool = False  # whether batch.seed matters
    batched: bool = False  # whether the result depends on what else is in the batch: the batch size is then identity
    cost: int = 1  # forward passes an image, for the estimate of time (a gradient counts as two more)

    def __post_init__(self):
        given = [kind for kind in ("stimulus", "attack", "change") if getattr(self, kind) is not None]
        if len(given) > 1 and given != ["attack", "change"]:
            raise ValueError(f"condition '{self.name}' is {' and '.join(given)}: it can be one of them")
        for function in self.functions:
            if not isinstance(getattr(function, "id", None), str):
                name = getattr(function, "__qualname__", type(function).__qualname__)
                raise ValueError(
                    f"condition '{self.name}': {name} has no id by which its responses are found again; write "
                    f"@identified('{name.rpartition('.')[2].strip('<>')}') above its definition"
                )
        json.dumps(dict(self.settings))  # what cannot be stated cannot be found again

    @property
    def kind(self):
        """'clean', 'stimulus', 'attack' or 'change'."""
        return next((kind for kind in ("change", "stimulus", "attack") if getattr(self, kind) is not None), "clean")

    @property
    def functions(self):
        """What is called, in this order."""
        return [one for one in (self.stimulus, self.change, self.attack) if one is not None]

    @property
    def question(self):
        """What is asked of a network that takes questions."""
        return {} if self.functions else dict(self.settings)

    def identity(self):
        """Return what determines the condition, JSON-able."""
        identity = {"condition": self.name, "kind": self.kind, "settings": dict(self.settings)}
        if self.functions:
            versions = [function.version for function in self.functions]
            identity["function"] = " ".join(function.id for function in self.functions)
            identity["version"] = versions[0] if len(set(versions)) == 1 else versions
        return identity

    def same_function(self, other):
        """Whether another condition of this identity really calls the same code."""
        pairs = zip(self.functions, other.functions, strict=True)
        return all(one is two or _code(one) == _code(two) for one, two in pairs)


CLEAN = Condition("clean")


def _code(function):
    """What a function does, comparably: its code with the values it has closed over, or the object itself."""
    code = getattr(function, "__code__", None)
    if code is None:
        return function
    closure = tuple(cell.cell_contents for cell in function.__closure__ or ())
    return code, closure, function.__defaults__, function.__kwdefaults__


# What is kept ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shown:
    """All that a readout may look at, for one batch."""

    logits: torch.Tensor | None  # float32 [B, classes]; None of a network that answers in words
    pixels: torch.Tensor  # as presented, float32 [B, 3, H, W]
    before: torch.Tensor  # before the condition
    labels: torch.Tensor  # int64 [B]: the first label of each image
    batch: Batch
    words: list | None = None  # B strings, of a network that answers in words
    intact: torch.Tensor | None = None  # the unchanged network's logits on `before`, where the readout asks for them
    given: torch.Tensor | None = None  # what an attack gives for the perturbation, float32 [B, 3, H, W]

    @property
    def perturbation(self):
        """What the condition does to the pixels, float32 [B, 3, H, W]."""
        return self.pixels - self.before if self.given is None else self.given


@dataclass(frozen=True)
class Readout:
    """What is kept of an answer: Shown -> one row an image, of any type and shape. Subclasses are frozen dataclasses.

    `dtype` (numpy's name) and `shape` say what a row is; `intact` asks for the intact network's logits; `takes` is
    'logits' or 'words'. Fields, `id` and `version` are the readout's identity; each subclass declares its own `id`.
    """

    id: ClassVar[str] = ""
    dtype: ClassVar[str] = "float32"
    shape: ClassVar[tuple[int, ...]] = ()
    intact: ClassVar[bool] = False
    takes: ClassVar[str] = "logits"
    version: ClassVar[int] = 1

    def __init_subclass__(cls):
        if not isinstance(vars(cls).get("id"), str):
            raise TypeError(f"the readout {cls.__name__} has no id by which its responses are found again; give it one")

    def __call__(self, shown):
        """Return [B, *shape], a tensor, or an array where torch has no such dtype."""
        raise NotImplementedError

    def hits(self, rows, labels):
        """Return which rows are right, bool [B], or None where that cannot be said of this readout: for progress."""
        return None

    def possible(self, rows):
        """Whether stored rows can be this readout's: what it never gives must not reach a score."""
        return True

    def identity(self):
        """Return what determines the readout, JSON-able."""
        fields = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return json.loads(json.dumps({"readout": self.id, "version": self.version, **fields}))


@dataclass(frozen=True)
class TopClasses(Readout):
    """The first `k` class numbers by logit, among `classes` (None: all), int16 [B, k]."""

    id: ClassVar[str] = "TopClasses"

    k: int = 5
    classes: tuple[int, ...] | None = None

    dtype: ClassVar[str] = "int16"

    @property
    def shape(self):
        return (self.k,)

    def __call__(self, shown):
        if self.classes is None:
            return shown.logits.topk(self.k).indices
        classes = on_device(self.classes, shown.logits.device)
        return classes[shown.logits[:, classes].topk(self.k).indices]

    def hits(self, rows, labels):
        return rows[:, 0] == labels

    def possible(self, rows):
        return between(rows, 0, 999)


@dataclass(frozen=True)
class Categories(Readout):
    """The number of the category with the highest MEAN softmax probability over its classes, int16 [B].

    `groups`: pairs (category name, class numbers).
    """

    id: ClassVar[str] = "Categories"

    groups: tuple[tuple[str, tuple[int, ...]], ...]

    dtype: ClassVar[str] = "int16"

    def __call__(self, shown):
        probabilities = shown.logits.softmax(1)
        means = [probabilities[:, on_device(classes, shown.logits.device)].mean(1) for _, classes in self.groups]
        return torch.stack(means, 1).argmax(1)

    def hits(self, rows, labels):
        return rows == labels

    def possible(self, rows):
        return between(rows, 0, len(self.groups) - 1)


def between(rows, low, high):
    """Whether all values lie between two bounds; NaN, of a network whose answers are not finite, may be among them."""
    return not bool(((rows < low) | (rows > high)).any())


@functools.lru_cache(maxsize=256)
def on_device(numbers, device):
    """Return a tuple of numbers as a tensor on a device, made once."""
    return torch.tensor(numbers, device=device)


@dataclass(frozen=True, eq=False)
class Responses:
    """One network's answers to one condition of one image set, as one readout keeps them."""

    images: Any  # the ImageSet
    condition: Condition
    values: np.ndarray  # [N, *readout.shape]
    counts: np.ndarray  # bool [N]: which images count; the others were left out as unreadable
    readout: Readout = field(default_factory=TopClasses)
    measured: tuple[dict, ...] = ()  # when, where and by what
    notes: tuple[str, ...] = ()  # what was odd while they were measured

    @property
    def labels(self):
        return self.images.labels


@dataclass(frozen=True, eq=False)
class Pass:
    """One image set, what is presented of it, what is kept. `conditions` may be a function of the network."""

    images: Any
    conditions: tuple[Condition, ...] | Callable[[torch.nn.Module], tuple[Condition, ...]] = (CLEAN,)
    readout: Readout = field(default_factory=TopClasses)

    def conditions_for(self, network):
        """Return the conditions that a network meets."""
        return tuple(self.conditions(network) if callable(self.conditions) else self.conditions)


# What is reported -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (None where there is none).

    `sets`: names of the image sets it rests on; None: all that its benchmark shows. A value that rests on whole sets is
    whole, whatever else its benchmark lacks.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    sets: tuple[str, ...] | None = None


class Found(Mapping):
    """What a report has to go by: {(image set name, condition name): Responses}, the network, the options.

    Where two readouts keep the same presentation, the key needs the readout's class as its third part.
    """

    def __init__(self, responses: Iterable[Responses], network=None, options=None):
        self.network, self.options = network, dict(options or {})
        self._by_key = {}
        for one in responses:
            self._by_key.setdefault((one.images.name, one.condition.name), {})[type(one.readout)] = one

    def __getitem__(self, key):
        images, condition, *readout = key
        found = self._by_key[images, condition]
        if readout:
            return found[readout[0]]
        if len(found) > 1:
            raise KeyError(f"{key}: several readouts keep it; name one of {', '.join(one.__name__ for one in found)}")
        return next(iter(found.values()))

    def __iter__(self):
        return iter(self._by_key)

    def __len__(self):
        return len(self._by_key)

    def all(self):
        """Return all responses."""
        return [one for found in self._by_key.values() for one in found.values()]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what is presented, and what is reported of the responses.

    `passes(data, **options)` returns the passes (none where the weights alone are looked at); `report(found)` yields
    (metric, number or Estimate), every metric defined in study.py and each once. `layers(found)` returns values by
    layer, {metric: {layer: Estimate}}; `details(found)` JSON-able facts beyond the metrics; `export(found, label,
    folder)` writes files beside the record; `without_network(data, **options)` returns (label, Found) pairs of answers
    that come from files, or None: use networks.
    """

    name: str
    passes: Callable[..., list[Pass]]
    report: Callable[[Found], Iterable]
    sets: tuple[str, ...] = ("imagenet",)  # the image sets it may show, by their names in study.py
    options: tuple[Option, ...] = ()
    details: Callable[[Found], dict] | None = None
    layers: Callable[[Found], dict] | None = None
    export: Callable | None = None
    without_network: Callable | None = None
    on_request: bool = False  # whether eval_all runs it only where it is named: it takes networks of another kind
    headline: tuple[str, ...] = ()  # the metrics to show first (* stands for anything); all of them unless given
    project: str = ""  # the W&B project of the study's; the name unless given

    def chosen(self, given=None):
        """Return {option: value} with defaults filled in; texts are read as on the command line."""
        known = {option.name: option for option in self.options}
        values = {name: option.default for name, option in known.items()}
        for name, value in (given or {}).items():
            name = name.replace("-", "_")
            if name not in known:
                there = f"it has {', '.join(known)}" if known else "it has none"
                raise ValueError(f"{self.name} has no option {name}; {there}")
            values[name] = _chosen(known[name], value)
        return values


def _chosen(option, value):
    """Turn what was given for an option into its value; ValueError says what is wrong with it."""
    if value is None or value == option.default:
        return value
    if option.flag:
        words = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
        if str(value).lower() not in words:
            raise ValueError(f"{option.name}: '{value}' is neither on nor off")
        return words[str(value).lower()]
    parts = list(value) if option.several and isinstance(value, list | tuple) else [value]
    if option.several:  # from the command line, words that may hold several themselves
        split = [part.replace(",", " ").split() if isinstance(part, str) else [part] for part in parts]
        parts = [part for one in split for part in one]
    try:
        parts = [option.type(part) if isinstance(part, str) else part for part in parts]
    except ValueError:
        raise ValueError(
            f"{option.name}: '{value}' cannot be read as {getattr(option.type, '__name__', 'a value')}"
        ) from None
    strange = [part for part in parts if option.choices and part not in option.choices]
    if strange or not parts:
        raise ValueError(
            f"{option.name}: '{strange[0] if strange else value}' is not one of {', '.join(map(str, option.choices))}"
        )
    return tuple(parts) if option.several else parts[0]

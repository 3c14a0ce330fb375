"""From benchmarks and networks to what has to be shown: cells, groups that share decoded batches, goals of rounds."""

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool

from imagenet_biases import study
from imagenet_biases.base.errors import UserError, collected_warnings
from imagenet_biases.engine.runtime import Runtime
from imagenet_biases.images.preprocessing import STUDY, Preprocessing
from imagenet_biases.images.sets import ImageSet, NotGiven
from imagenet_biases.measures.split_half import FEWEST
from imagenet_biases.networks.load import Network
from imagenet_biases.results.records import named
from imagenet_biases.results.responses import ANSWERED, UNSEEN, StoredResponses
from imagenet_biases.vocabulary import (
    Batch,
    Benchmark,
    Condition,
    Data,
    Pass,
    Presentation,
    Readout,
    Responses,
    Results,
)


@dataclass(eq=False)
class Job:
    """One benchmark with its passes made: what is shown is known, nothing is computed yet.

    Attributes:
        notes: what making the passes warned of.
        goals: {image set: how many of its images are shown by the end of each round}; one round until `set_goals`.
    """

    benchmark: Benchmark
    passes: list[Pass]
    options: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    goals: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.set_goals((100.0,), 1)

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.benchmark.name

    @property
    def image_sets(self) -> list[ImageSet]:
        """The image sets that it shows, each once."""
        return list({image_pass.images.name: image_pass.images for image_pass in self.passes}.values())

    def passes_per_image(self, network: Network | None = None) -> Counter[str]:
        """Return {image set: forward passes per image}; conditions that depend on a network count as two without."""
        presented: dict[tuple[str, Any], int] = {}
        for image_pass in self.passes:
            name = image_pass.images.name
            if callable(image_pass.conditions) and network is None:
                presented[name, None] = 2
                continue
            for condition in image_pass.conditions_for(network):
                presented[name, repr(condition.identity())] = condition.cost
        passes: Counter[str] = Counter()
        for (name, _), cost in presented.items():
            passes[name] += cost
        return passes

    def set_goals(self, shares: Sequence[float], batch_size: int) -> None:
        """Set how many images are shown by the end of each round, from its share in per cent.

        Sets of one pass per image, that of all variants together, are whole in the first round. A round has at least
        as many images as an interval needs, and whole batches where answers depend on the batch.
        """
        self.goals = {}
        own, of_variants = self.passes_per_image(), Counter[str]()
        for images in self.image_sets:
            if images.variant:
                of_variants[images.name.partition("/")[0]] += own[images.name]
        for image_pass in self.passes:
            images, goals = image_pass.images, []
            conditions = [] if callable(image_pass.conditions) else image_pass.conditions
            multiple = batch_size if any(condition.batched for condition in conditions) else 1
            for share in shares:
                count = max(math.ceil(images.population * share / 100 - 1e-9), FEWEST)
                if max(own[images.name], of_variants[images.name.partition("/")[0]]) == 1:
                    count = len(images)
                goals.append(min(-(-count // multiple) * multiple, len(images)))
            before = self.goals.get(images.name, goals)
            self.goals[images.name] = tuple(map(max, goals, before))


def make_job(benchmark: Benchmark, data: Data, options: Mapping[str, Any] | None = None) -> Job:
    """Find and check what a benchmark shows, before anything is computed.

    Args:
        options: the benchmark's options, where they are not the defaults.

    Raises:
        UserError: an unknown option or a wrong value, or an image set that is missing or incomplete.
    """
    try:
        chosen = benchmark.options_from(options)
    except ValueError as error:
        raise UserError(f"--option {benchmark.name}: {error}") from None
    with collected_warnings() as notes:
        passes = benchmark.passes(data, **chosen)
    return Job(benchmark, passes, chosen, notes)


def make_jobs(
    benchmarks: Iterable[Benchmark], data: Data, options: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Job], list[str]]:
    """Return the jobs whose image sets are given, and a line for each benchmark that is left out."""
    jobs, left_out = [], []
    for benchmark in benchmarks:
        try:
            jobs.append(make_job(benchmark, data, options.get(benchmark.name)))
        except NotGiven as error:
            left_out.append(f"{benchmark.name}: {error}")
    return jobs, left_out


FLAT = 0.05  # share of gradients without a direction from which an attack is doubted
Ranges = tuple[tuple[int, int], ...]
"""From which to which place in an image set's order, for each round."""


@dataclass(eq=False)
class Cell:
    """One network's answers to one condition of one image set, as one readout keeps them.

    Attributes:
        images: the largest sample of the set that some job asks for.
        ranges: which images this shard shows in each round; None: all.
        stored: what is known of the answers.
        answered: so many images, the first of the order, are answered or left out.
    """

    network: Network
    images: ImageSet
    preprocessing: Preprocessing
    condition: Condition
    readout: Readout
    identity: dict[str, Any]
    ranges: Ranges | None = None
    stored: StoredResponses = None  # type: ignore[assignment]  # loaded before anything looks at it
    answered: int = 0

    def count(self) -> None:
        """Bring `answered` up to date."""
        unseen = self.stored.state[self.images.order] == UNSEEN
        self.answered = int(unseen.argmax()) if unseen.any() else len(unseen)

    def due(self, goal: int, rounds: int) -> Bool[np.ndarray, " N"]:
        """Return which images are still to be shown here: of the first `goal`, or of this shard's of some rounds."""
        if self.ranges is None:
            places = self.images.order[:goal]
        else:
            places = np.concatenate([self.images.order[start:stop] for start, stop in self.ranges[:rounds]])
        due = np.zeros(len(self.images), bool)
        due[places] = self.stored.state[places] == UNSEEN
        return due

    def responses(self, sample: ImageSet) -> Responses:
        """Return what a report sees of the answers to a sample, all of which are there."""
        values, state = self.stored.values, self.stored.state
        if len(sample) < len(self.images):
            rows = np.searchsorted(self.images.rows, sample.rows)
            values, state = values[rows], state[rows]
        return Responses(sample, self.condition, values, state == ANSWERED, self.readout, tuple(self.stored.measured))

    @property
    def notes(self) -> list[str]:
        """What was odd about the answers."""
        notes, name = [], self.condition.name
        if self.stored.nonfinite:
            notes.append(
                f"{self.stored.nonfinite} answers to {name} were not finite (NaN or infinite logits): the network or "
                f"the precision is at fault"
            )
        if self.flat_gradients is not None and self.flat_gradients >= FLAT:
            notes.append(
                f"{100 * self.flat_gradients:.0f} % of the gradients of {name} are zero or not finite (rounding, or a "
                f"saturated output, inside the network): the attack is no test of its robustness"
            )
        return notes

    @property
    def flat_gradients(self) -> float | None:
        """The share of an attack's gradients, at its first step, that are zero or not finite."""
        flat, gradients = self.stored.gradients
        return flat / gradients if gradients else None


@dataclass(eq=False)
class Group:
    """All cells over the same images and preprocessing that are shown together: they share every decoded batch."""

    images: ImageSet
    preprocessing: Preprocessing
    cells: list[Cell] = field(default_factory=list)

    def presentations(self, kinds: Iterable[str]) -> list[tuple[Condition, list[tuple[Network, list[Cell]]]]]:
        """Return [(condition, [(network, cells)])] of these kinds of conditions: each stimulus is computed once."""
        order: dict[Condition, dict[Network, list[Cell]]] = {}
        for cell in self.cells:
            if cell.condition.kind in kinds:
                order.setdefault(cell.condition, {}).setdefault(cell.network, []).append(cell)
        return [(condition, list(by_network.items())) for condition, by_network in order.items()]

    def cost(self) -> int:
        """Return the forward passes per image."""
        presentations = self.presentations(("clean", "stimulus", "attack", "change"))
        return sum(condition.cost * len(by_network) for condition, by_network in presentations)


@dataclass(eq=False)
class Plan:
    """What a run has to do: groups in order, the cells of every pair (job, network), the number of rounds."""

    jobs: list[Job]
    networks: list[Network]
    groups: list[Group]
    cells: dict[tuple[Job, Network], list[Cell]]
    rounds: int = 1


# forward passes per image up to which networks share its decoding, which takes half a pass at most; with more, each has
# its turn: its records come as it completes, and memory holds the answers and the attacks of one network
SHARED_DECODING = 10


def preprocessing_of(network: Network, images: ImageSet, preprocessing: str) -> Preprocessing:
    """Return how images are prepared for a network; `preprocessing` is 'study' or 'native'."""
    return images.preprocessing(STUDY if preprocessing == "study" else network.native_preprocessing)


def make_plan(
    jobs: Sequence[Job],
    networks: Sequence[Network],
    runtime: Runtime,
    ranges: Callable[[Cell], Ranges | None] = lambda _: None,
) -> Plan:
    """Return the plan of jobs on networks.

    Equal cells of several benchmarks are one. The plain images of the clean set come first, for all networks, so that a
    network that is loaded wrongly shows at once. The benchmarks follow, cheap ones first; a benchmark of many passes
    per image runs network by network, so that records come as early as they can.

    Args:
        ranges: which images of a cell this shard shows in each round.

    Raises:
        UserError: two conditions of one identity that call different functions, or a network that answers in words
            where logits are needed.
    """
    cells: dict[tuple[Network, str], Cell] = {}
    cells_of: dict[tuple[Job, Network], list[Cell]] = {}
    conditions: dict[str, Condition] = {}
    for job, network in itertools.product(jobs, networks):
        pair_cells = []
        for image_pass in job.passes:
            if image_pass.readout.takes != network.answers:
                raise UserError(
                    f"{network.name} answers in {network.answers}, and {job.name} needs {image_pass.readout.takes}"
                )
            for condition in image_pass.conditions_for(network):
                new = _cell(network, image_pass, _representative(condition, conditions), runtime)
                cell = cells.setdefault((network, repr(new.identity)), new)
                cell.images = max(cell.images, new.images, key=len)
                pair_cells.append(cell)
        cells_of[job, network] = list(dict.fromkeys(pair_cells))
    for cell in cells.values():
        cell.ranges = ranges(cell)
    rounds = max((len(goals) for job in jobs for goals in job.goals.values()), default=1)
    return Plan(list(jobs), list(networks), _grouped(jobs, networks, list(cells.values()), cells_of), cells_of, rounds)


def _grouped(
    jobs: Sequence[Job],
    networks: Sequence[Network],
    cells: Iterable[Cell],
    cells_of: Mapping[tuple[Job, Network], list[Cell]],
) -> list[Group]:
    """Return the cells in groups, in the order in which these are shown."""
    groups: dict[tuple, Group] = {}
    placed: set[Cell] = set()

    def place(stage: tuple, cell: Cell) -> None:
        if cell not in placed:
            placed.add(cell)
            images = cell.images
            key = (*stage, images.name, images.fingerprint, len(images), str(cell.preprocessing))
            groups.setdefault(key, Group(cell.images, cell.preprocessing)).cells.append(cell)

    for cell in cells:
        if cell.condition.kind == "clean" and cell.images.name == study.CLEAN_SET:
            place((0,), cell)
    by_cost = sorted(jobs, key=lambda job: _new_passes(job, networks, cells_of, placed))
    for stage, job in enumerate(by_cost, 1):
        for turn, network in enumerate(networks):
            passes = job.passes_per_image(network)
            for cell in cells_of[job, network]:
                place((stage, turn if passes[cell.images.name] > SHARED_DECODING else None), cell)
    return list(groups.values())


def _representative(condition: Condition, conditions: dict[str, Condition]) -> Condition:
    """Return the condition that stands for all of its identity."""
    first = conditions.setdefault(repr(condition.identity()), condition)
    if not first.same_function(condition):
        raise UserError(
            f"two conditions are called '{condition.name}' and have the same settings, but call different functions; "
            f"give one of them another name"
        )
    return first


def _cell(network: Network, image_pass: Pass, condition: Condition, runtime: Runtime) -> Cell:
    preprocessing = preprocessing_of(network, image_pass.images, runtime.preprocessing)
    identity = {
        "network": network.identity["network"],
        "images": image_pass.images.name,
        "fingerprint": image_pass.images.fingerprint,
        "view": str(preprocessing),
        **condition.identity(),
        "readout": image_pass.readout.identity(),
        "precision": runtime.precision,
    }
    if condition.seeded or network.wants_batch:
        identity["seed"] = runtime.seed
    if condition.batched:
        identity["batch_size"] = runtime.batch_size
    return Cell(network, image_pass.images, preprocessing, condition, image_pass.readout, identity)


def _new_passes(
    job: Job, networks: Iterable[Network], cells: Mapping[tuple[Job, Network], list[Cell]], placed: set[Cell]
) -> int:
    """Return the forward passes that a job takes beyond what is placed already."""
    new = {}
    for network in networks:
        for cell in cells[job, network]:
            if cell not in placed:
                new[network, cell.condition, cell.images.name] = len(cell.images) * cell.condition.cost
    return sum(new.values())


def rehearse(job: Job, network: Network) -> None:
    """Report made-up answers before hours are spent on real ones.

    Raises:
        UserError: a metric without a definition, trials of people that cannot be read, a faulty report.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    rows: dict[Readout, Any] = {}
    responses = []
    for image_pass in job.passes:
        readout = image_pass.readout
        if readout not in rows:
            pixels = torch.rand(8, 3, 224, 224, generator=generator)
            logits = torch.randn(8, 1000, generator=generator)
            words = list(map(str, range(8))) if readout.takes == "words" else None
            labels = torch.arange(8)
            presentation = Presentation(
                logits, pixels, pixels, labels, Batch(labels, 0), words, torch.randn_like(logits)
            )
            rows[readout] = np.asarray(readout(presentation)).astype(readout.dtype)
        for condition in image_pass.conditions_for(network):
            values = np.resize(rows[readout], (len(image_pass.images), *readout.shape))
            responses.append(Responses(image_pass.images, condition, values, np.ones(len(values), bool), readout))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named(job.benchmark.report(Results(responses, network, job.options, "rehearsal")), job.name)

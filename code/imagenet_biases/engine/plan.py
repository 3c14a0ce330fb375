"""From benchmarks and networks to what has to be shown: cells, groups that share decoded batches, and their order."""

import collections
import warnings
from dataclasses import dataclass, field

from imagenet_biases import study
from imagenet_biases.base.errors import UserError, collected_warnings
from imagenet_biases.images.sets import NotGiven
from imagenet_biases.vocabulary import Benchmark, Responses, Results


@dataclass(eq=False)
class Job:
    """One benchmark with its passes made: what is shown is known, nothing is computed yet."""

    benchmark: Benchmark
    passes: list
    options: dict
    notes: list = field(default_factory=list)  # what making the passes warned of

    @property
    def name(self):
        return self.benchmark.name

    @property
    def image_sets(self):
        """The image sets that it shows, each once."""
        return list({images.name: images for images in (one.images for one in self.passes)}.values())


def make_job(benchmark, data, given=None):
    """Find and check what a benchmark shows, before anything is computed. `given`: its options, where not defaults."""
    try:
        options = benchmark.options_from(given)
    except ValueError as error:
        raise UserError(f"--option {benchmark.name}: {error}") from None
    with collected_warnings() as notes:
        passes = benchmark.passes(data, **options)
    return Job(benchmark, passes, options, notes)


def make_jobs(benchmarks, data, options):
    """Return the jobs whose image sets are given, and a line for each benchmark that is left out."""
    jobs, missing = [], []
    for benchmark in benchmarks:
        try:
            jobs.append(make_job(benchmark, data, options.get(benchmark.name)))
        except NotGiven as error:
            missing.append(f"{benchmark.name}: {error}")
    return jobs, missing


@dataclass(eq=False)
class Cell:
    """One network's answers to one condition of one image set, as one readout keeps them."""

    network: object
    images: object
    preprocessing: object
    condition: object
    readout: object
    identity: dict
    kept: object = None  # StoredResponses: what is known of it; None of another shard's that is not complete
    mine: bool = True  # whether it is this shard's to measure

    def responses(self):
        """Return what a report sees of the cell once it is complete."""
        left_out = self.kept.state != 1
        notes = ()
        if self.kept.nonfinite:
            notes = (
                f"{self.kept.nonfinite} answers to {self.condition.name} were not finite (NaN or infinite logits): the "
                f"network or the precision is at fault",
            )
        return Responses(
            self.images, self.condition, self.kept.values, ~left_out, self.readout, tuple(self.kept.measured), notes
        )


@dataclass(eq=False)
class Group:
    """All cells over the same images in the same view that are shown together: they share every decoded batch."""

    images: object
    preprocessing: object
    cells: list = field(default_factory=list)

    def shows(self, kinds):
        """Return [(condition, [(network, cells)])] of these kinds of conditions: a stimulus is made once for all."""
        order = {}
        for cell in self.cells:
            if cell.condition.kind in kinds:
                by_network = order.setdefault(cell.condition, {})
                by_network.setdefault(cell.network, []).append(cell)
        return [(condition, list(by_network.items())) for condition, by_network in order.items()]

    def cost(self):
        """Return the forward passes an image takes."""
        return sum(c.cost * len(by_network) for c, by_network in self.shows(("clean", "stimulus", "attack", "change")))


@dataclass(eq=False)
class Plan:
    """What a run has to do: `groups` in order, and the cells of every pair (job, network)."""

    jobs: list
    networks: list
    groups: list
    cells: dict  # {(job, network): [Cell]}


# forward passes an image up to which networks share its decoding, which takes half a pass at most; with more, each has
# its turn: its records come as it completes, and memory holds the answers and the attacks of one network
TOGETHER = 10


def preprocessing_of(network, images, preprocessing):
    """Return the Preprocessing under which a network gets these images; `view` is 'study' or 'native'."""
    from imagenet_biases.images.preprocessing import STUDY

    return images.preprocessing(STUDY if preprocessing == "study" else network.native_preprocessing)


def make_plan(jobs, networks, runtime, mine=None):
    """Return the Plan of jobs on networks. `mine(cell)`: whether a cell is this shard's to measure (default: all are).

    Equal cells of several benchmarks are one. The plain images of the clean set come first, for all networks, so that a
    network that is loaded wrongly shows at once; then benchmark by benchmark, the cheap ones first, and one that takes
    many passes an image network by network, so that records come as early as they can. Raises UserError for two
    conditions of one identity that call different functions.
    """
    cells, asked, known = {}, {}, {}
    for job in jobs:
        for network in networks:
            for one in job.passes:
                if one.readout.takes != network.answers:
                    raise UserError(
                        f"{network.name} answers in {network.answers}, and {job.name} needs {one.readout.takes}"
                    )
                for condition in one.conditions_for(network):
                    condition = _known(condition, known)
                    cell = _cell(network, one, condition, runtime)
                    key = repr(cell.identity)
                    asked.setdefault((job, network), []).append(cells.setdefault((network, key), cell))
            asked.setdefault((job, network), [])
            asked[job, network] = list(dict.fromkeys(asked[job, network]))
    for cell in cells.values():
        cell.mine = mine is None or mine(cell)
    groups, placed = {}, set()
    for cell in cells.values():
        if cell.condition.kind == "clean" and cell.images.name == study.CLEAN_SET:
            _place(groups, (0,), cell, placed)
    for number, job in enumerate(sorted(jobs, key=lambda job: _cost(job, networks, asked, placed)), 1):
        for turn, network in enumerate(networks):
            passes = collections.Counter()
            for images, condition in {(cell.images.name, cell.condition) for cell in asked[job, network]}:
                passes[images] += condition.cost
            for cell in asked[job, network]:
                _place(groups, (number, turn if passes[cell.images.name] > TOGETHER else None), cell, placed)
    return Plan(jobs, networks, list(groups.values()), asked)


def _known(condition, known):
    """Return the condition that stands for all of its identity."""
    key = repr(condition.identity())
    before = known.setdefault(key, condition)
    if not before.same_function(condition):
        raise UserError(
            f"two conditions are called '{condition.name}' and have the same settings, but call different functions; "
            f"give one of them another name"
        )
    return before


def _cell(network, one, condition, runtime):
    preprocessing = preprocessing_of(network, one.images, runtime.preprocessing)
    identity = {
        "network": network.identity["network"],
        "images": one.images.name,
        "fingerprint": one.images.fingerprint,
        "view": str(preprocessing),
        **condition.identity(),
        "readout": one.readout.identity(),
        "precision": runtime.precision,
    }
    if condition.seeded or network.wants_batch:
        identity["seed"] = runtime.seed
    if condition.batched:
        identity["batch_size"] = runtime.batch_size
    return Cell(network, one.images, preprocessing, condition, one.readout, identity)


def _place(groups, stage, cell, placed):
    if cell not in placed:
        placed.add(cell)
        key = (*stage, cell.images.name, cell.images.fingerprint, str(cell.preprocessing))
        groups.setdefault(key, Group(cell.images, cell.preprocessing)).cells.append(cell)


def _cost(job, networks, cells, placed):
    """Forward passes that a job takes beyond what is placed already."""
    new = {(c.network, c.condition, c.images.name): c for n in networks for c in cells[job, n] if c not in placed}
    return sum(len(cell.images) * cell.condition.cost for cell in new.values())


def rehearse(job, network):
    """Report made-up answers before hours are spent on real ones: a metric that is not defined, people's trials that
    cannot be read or a faulty report show now. Raises UserError.
    """
    import numpy as np
    import torch

    from imagenet_biases.results.records import named
    from imagenet_biases.vocabulary import Batch, Presentation

    generator = torch.Generator().manual_seed(0)
    rows = {}
    made_up = []
    for one in job.passes:
        if one.readout not in rows:
            pixels = torch.rand(8, 3, 224, 224, generator=generator)
            logits = torch.randn(8, 1000, generator=generator)
            words = [str(number) for number in range(8)] if one.readout.takes == "words" else None
            labels = torch.arange(8)
            shown = Presentation(logits, pixels, pixels, labels, Batch(labels, 0), words, torch.randn_like(logits))
            rows[one.readout] = np.asarray(one.readout(shown)).astype(one.readout.dtype)
        for condition in one.conditions_for(network):
            values = np.resize(rows[one.readout], (len(one.images), *one.readout.shape))
            made_up.append(Responses(one.images, condition, values, np.ones(len(values), bool), one.readout))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named(job.benchmark.report(Results(made_up, network, job.options, "rehearsal")), job.name)

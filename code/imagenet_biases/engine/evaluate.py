"""The Python door: `evaluate(networks, benchmarks, data, settings)`, from what is asked for to records."""

import contextlib
import copy
import functools
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from imagenet_biases import study
from imagenet_biases.base.errors import UserError, collected_warnings, listed_briefly
from imagenet_biases.base.files import safe_name
from imagenet_biases.benchmarks import find
from imagenet_biases.engine.loop import Answered, Loop, Observer, Pair
from imagenet_biases.engine.plan import Cell, Group, Job, Ranges, make_job, make_jobs, make_plan, rehearse
from imagenet_biases.engine.precision import float32_precision
from imagenet_biases.engine.progress import Progress
from imagenet_biases.engine.runtime import Runtime, make_runtime
from imagenet_biases.engine.schedule import Schedule
from imagenet_biases.engine.sharding import Unit, slices, units
from imagenet_biases.measures.accuracy import likely_order, top
from imagenet_biases.networks.load import (
    Network,
    architecture,
    behind,
    borrowed,
    clean_accuracy_warning,
    from_module,
    load_model,
    skeleton,
)
from imagenet_biases.networks.registry import network_name, resolve
from imagenet_biases.results.provenance import commit
from imagenet_biases.results.records import (
    Record,
    check_place,
    collection_of,
    make_record,
    named,
    read_record,
    write_record,
)
from imagenet_biases.results.responses import ResponseStore, key_of
from imagenet_biases.results.wandb_log import WandbLogger
from imagenet_biases.results.witness import expected_clean_accuracy
from imagenet_biases.vocabulary import ROUNDS, Benchmark, Data, Results, Settings

logger = logging.getLogger(__name__)

Networks = str | Sequence[str] | torch.nn.Module | Mapping[str, torch.nn.Module]


def evaluate(
    networks: Networks,
    benchmarks: str | Benchmark | Sequence[str | Benchmark],
    data: Data,
    settings: Settings | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    results: str | Path | None = None,
    fresh: bool = False,
    label: str | None = None,
    arch: str = "resnet50",
    normalization: str = "auto",
    checkpoints: str | Path | None = None,
    allow_unstable: bool = False,
    frontend: str | None = None,
    trust_remote_code: bool = False,
    gradients: bool = False,
    api: Mapping[str, Any] | None = None,
    wandb: str = "disabled",
    wandb_project: str | None = None,
    wandb_layout: str = "study",
    progress: bool = False,
) -> list[Record]:
    """Measure networks on benchmarks.

    Args:
        networks: names as for --model (one text or a list), a module on RGB pixels in [0, 1] with 1,000 logits, or a
            dict name -> module. A module is left as it was: device, mode, gradients, memory format.
        benchmarks: names of scripts without eval_ ('imagenet', 'spectral'), or Benchmark objects; one or a list.
        data: where the images are, and which of them to show.
        settings: how to run.
        options: {benchmark: {option: value}}.
        results: a folder for records and responses; None: nothing is written.
        fresh: measure again what is there already.
        label: a name for the one network.
        arch, normalization, checkpoints, allow_unstable, frontend, trust_remote_code, gradients, api: as for
            load_model.
        wandb: 'disabled', 'auto', 'online' or 'offline'.
        wandb_project, wandb_layout: as the flags of the same names.
        progress: whether to show it.

    Returns:
        One Record per pair of network and benchmark, with `.model`, `.benchmark` and `.metrics` {name: Estimate with
        value, low, high}.

    Raises:
        UserError: something is wrong with the input, or a network cannot be loaded or fails.
    """
    loading = Loading(
        label, arch, normalization, checkpoints, allow_unstable, frontend, trust_remote_code, gradients, api
    )
    recording = Recording(results, fresh, wandb, wandb_project, wandb_layout, progress)
    request = Request(
        networks, benchmarks, data, settings or Settings(), options=options, loading=loading, recording=recording
    )
    run = Run(request)
    *_, records = run.rounds()
    if run.outcome.failed:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in run.outcome.failed.items()))
    return records


def evaluate_rounds(
    networks: Networks,
    benchmarks: str | Benchmark | Sequence[str | Benchmark],
    data: Data,
    settings: Settings | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    loading: "Loading | None" = None,
    recording: "Recording | None" = None,
) -> Iterator[list[Record]]:
    """Measure networks on benchmarks; yield all records, as they are by then, after each round.

    For a notebook, or a training loop that stops when it has seen enough: what was measured is kept. A network that
    fails is missing among the records.

    Args:
        networks, benchmarks, data, settings, options: as for `evaluate`.
        loading: how networks are loaded.
        recording: where records go, and what is shown meanwhile.

    Raises:
        UserError: something is wrong with the input.
    """
    request = Request(
        networks,
        benchmarks,
        data,
        settings or Settings(),
        options=options,
        loading=loading or Loading(),
        recording=recording or Recording(),
    )
    yield from Run(request).rounds()


@dataclass(frozen=True)
class Loading:
    """How networks are loaded; the fields are load_model's arguments."""

    label: str | None = None
    arch: str = "resnet50"
    normalization: str = "auto"
    checkpoints: str | Path | None = None
    allow_unstable: bool = False
    frontend: str | None = None
    trust_remote_code: bool = False
    gradients: bool = False
    api: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Recording:
    """Where records go, and what is shown meanwhile."""

    results: str | Path | None = None
    fresh: bool = False
    wandb: str = "disabled"
    wandb_project: str | None = None
    wandb_layout: str = "study"
    progress: bool = False


@dataclass
class Outcome:
    """The records of a run, {(benchmark, label): record}, and why networks are missing among them, {name: reason}."""

    records: dict[tuple[str, str], Record] = field(default_factory=dict[tuple[str, str], Record])
    failed: dict[str, str] = field(default_factory=dict[str, str])

    def ordered(self, jobs: Sequence[Job], networks: Sequence[Network]) -> list[Record]:
        """Return the records in the order of the benchmarks, and of the networks within each."""
        pairs = ((job.name, network.name) for job, network in itertools.product(jobs, networks))
        return [self.records[pair] for pair in pairs if pair in self.records]


class Request:
    """What is asked for, checked: networks, benchmarks, data and settings. No network is loaded yet. See `evaluate`.

    Args:
        skip_missing: leave out benchmarks whose image sets are not given (`missing` says which).

    Raises:
        UserError: something is wrong with the input.
    """

    def __init__(
        self,
        networks: Networks,
        benchmarks: str | Benchmark | Sequence[str | Benchmark],
        data: Data,
        settings: Settings,
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        loading: Loading = Loading(),
        recording: Recording = Recording(),
        skip_missing: bool = False,
    ) -> None:
        if isinstance(networks, torch.nn.Module):
            networks = {type(networks).__name__: networks}
        self.networks = networks
        self.loading, self.recording = loading, recording
        chosen = _benchmarks(benchmarks, options or {})
        data = replace(data, seed=settings.seed, listed={})
        if recording.results is not None and not recording.fresh:
            data = replace(data, listings=Path(recording.results) / ".listings")
        self.data = data
        self.jobs, self.missing = _jobs(chosen, data, options or {}, skip_missing)
        images: dict[str, int] = {}
        for job in self.jobs:
            images |= {images.name: len(images) for images in job.image_sets}
        self.settings = settings
        self.runtime: Runtime = make_runtime(settings, sum(images.values()))
        self._built: dict[str, Network] = {}
        self._check_shard()
        self.shares = settings.rounds or (ROUNDS if self._passes() > LONG else (100.0,))
        if settings.budget or settings.until:
            self.shares = refined(self.shares)
        for job in self.jobs:
            job.set_goals(self.shares, self.runtime.batch_size)

    def _check_shard(self) -> None:
        if self.runtime.shard[1] == 1:
            return
        if self.recording.results is None:
            raise UserError("shards share nothing but the results folder: give one")
        if self.recording.fresh:
            raise UserError(
                "--fresh cannot tell what other shards have measured again; give a new folder with --results instead"
            )

    def _passes(self) -> int:
        """Return the forward passes that one of the networks takes."""
        total = 0
        for name, job in itertools.product([name for name, _ in self.labels()[:1]], self.jobs):
            network = self.built(name) if any(callable(image_pass.conditions) for image_pass in job.passes) else None
            passes = job.passes_per_image(network)
            total += sum(len(images) * passes[images.name] for images in job.image_sets)
        return total

    def labels(self) -> list[tuple[str, str]]:
        """Return [(name, label)] of the networks, without loading any."""
        if isinstance(self.networks, Mapping):
            return [(name, name) for name in self.networks]
        return [(name, self.loading.label or network_name(name)) for name in self._names()]

    def _names(self) -> list[str]:
        return resolve(self.networks if isinstance(self.networks, str) else ",".join(self.networks))

    def built(self, name: str) -> Network:
        """Return a network as far as it can be had without its weights, one per architecture."""
        key = name if isinstance(self.networks, Mapping) else architecture(name, self.loading.arch)
        if key not in self._built:
            from_python = isinstance(self.networks, Mapping)
            trusted = self.loading.trust_remote_code
            self._built[key] = self.from_python(name) if from_python else skeleton(key, trusted)
        return self._built[key]

    def from_python(self, name: str) -> Network:
        """Return the Network of a module that was passed in."""
        assert isinstance(self.networks, Mapping)
        module = self.networks[name]
        if isinstance(module, Network):
            network = copy.copy(module)  # loaded by load_model: the same parameters under this label
            network.name = safe_name(name)
        else:
            loading = self.loading
            network = from_module(
                module, name, allow_unstable=loading.allow_unstable, normalization=loading.normalization
            )
        return behind(network, self.loading.frontend) if self.loading.frontend else network

    def loaders(self) -> dict[str, Callable[[], Network]]:
        """Return {name: what loads it} of this shard's networks."""
        if isinstance(self.networks, Mapping):
            loaders = {name: functools.partial(self.from_python, name) for name in self.networks}
        else:
            names, loading = self._names(), asdict(self.loading)
            if self.recording.results is not None and not self.recording.fresh:  # answers that were paid for
                loading["api"] = {"answers": Path(self.recording.results) / ".api", **(self.loading.api or {})}
            if self.loading.label and len(names) > 1:
                raise UserError(f"--name gives one network a name, but there are {len(names)}; run them one by one")
            loaders = {name: functools.partial(load_model, name, **loading) for name in names}
        if self.slices is None:
            return loaders
        names_in_shard = {unit[0] for unit in self.slices}
        return {name: load for name, load in loaders.items() if name in names_in_shard}

    @functools.cached_property
    def slices(self) -> dict[Unit, Ranges] | None:
        """What this shard shows of each unit, by round; None: all."""
        if self.runtime.shard[1] == 1:
            return None
        names, count = [name for name, _ in self.labels()], len(self.shares)
        work = units(self.jobs, names, self.built, count, self.runtime.batch_size)
        return slices(work, count, self.runtime.shard)

    def ranges(self, unit: Unit) -> Ranges | None:
        """Return which images of a unit this shard shows in each round; None: all."""
        return None if self.slices is None else self.slices.get(unit, ((0, 0),) * len(self.shares))

    def store(self) -> ResponseStore:
        """Return the store of responses."""
        return ResponseStore(self.recording.results, self.recording.fresh)


LONG = 200_000  # forward passes of a network from which a run reports round by round


def refined(shares: Sequence[float]) -> tuple[float, ...]:
    """Return rounds with more between them, none of which more than doubles what is measured."""
    finer: list[float] = []
    for share in shares:
        while finer and 2 * finer[-1] < share:
            finer.append(2 * finer[-1])
        finer.append(share)
    return tuple(finer)


def _benchmarks(
    benchmarks: str | Benchmark | Sequence[str | Benchmark], options: Mapping[str, Mapping[str, Any]]
) -> list[Benchmark]:
    several = [benchmarks] if isinstance(benchmarks, str | Benchmark) else list(benchmarks)
    chosen = [find(benchmark) if isinstance(benchmark, str) else benchmark for benchmark in several]
    names = [benchmark.name for benchmark in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"the benchmark {twice[0]} is named twice; name it once")
    if unknown := sorted(set(options) - set(names)):
        raise UserError(f"options for {unknown[0]}, which is not among the benchmarks: {', '.join(names)}")
    return chosen


def _jobs(
    benchmarks: Sequence[Benchmark], data: Data, options: Mapping[str, Mapping[str, Any]], skip_missing: bool
) -> tuple[list[Job], list[str]]:
    if skip_missing:
        jobs, missing = make_jobs(benchmarks, data, options)
    else:
        jobs, missing = [make_job(benchmark, data, options.get(benchmark.name)) for benchmark in benchmarks], []
    if not jobs:
        raise UserError("no image set was given for any benchmark; " + "; ".join(missing))
    return jobs, missing


class Run:
    """Measures what a request asks for; each record is written after every round that completes its own conditions."""

    def __init__(self, request: Request) -> None:
        self.request, self.runtime, self.recording = request, request.runtime, request.recording
        self.store = request.store()
        self.outcome = Outcome()
        self.names: dict[Network, str] = {}  # what each network was asked for by
        self.notes: dict[Network, list[str]] = {}  # what loading it warned of
        self.told: set[tuple[Network, str]] = set()  # warnings, each once in all rounds

    def execute(self) -> Outcome:
        """Measure; return the outcome."""
        for _ in self.rounds():
            pass
        return self.outcome

    def rounds(self) -> Iterator[list[Record]]:
        """Measure; yield all records, as they are by then, after each round."""
        with contextlib.ExitStack() as stack:
            if isinstance(self.request.networks, Mapping):
                for module in self.request.networks.values():
                    stack.enter_context(borrowed(module))
            networks = self._load()
            if networks:
                yield from self._measured(networks)
                return
            if not self.outcome.failed:
                logger.info("%s has nothing to do: there is less to measure than shards", self._shard_name())
            yield []

    def _shard_name(self) -> str:
        return "shard {}/{}".format(*self.runtime.shard)

    def _load(self) -> list[Network]:
        """Return the networks that load; note why others do not. The same weights under the same label count once."""
        networks: dict[tuple[str, str], Network] = {}
        loaders = self.request.loaders()
        for name, load in loaders.items():
            if self.recording.progress and self.runtime.lead:
                logger.info("loading %s", name)
            try:
                with collected_warnings() as notes:
                    network = load()
                    if self.runtime.preprocessing == "study" and network.side not in (None, study.STUDY_CROP):
                        raise UserError(
                            f"it takes images of {network.side} pixels only: measure it with --preprocessing native"
                        )
                networks.setdefault((network.identity["network"], network.name), network)
                self.names[network], self.notes[network] = name, notes
            except UserError as error:
                if len(loaders) == 1:
                    raise
                self.outcome.failed[name] = str(error)
                logger.error("error: %s: %s; the others continue", name, error)
        return list(networks.values())

    def _measured(self, networks: list[Network]) -> Iterator[list[Record]]:
        """Measure what is not stored yet; yield all records after each round."""
        jobs, loop = self.request.jobs, self._loop(networks)
        pairs = [pair for pair in loop.plan.cells if pair[0].passes or self._in_shard(*pair)]
        wandb = self._wandb(loop, pairs)
        loop.observer = Observer(wandb.watch, self._check_clean_accuracy)
        schedule = Schedule(self.request.settings, loop, pairs, self.runtime.started)
        try:
            with float32_precision(self.runtime.precision):
                for answered in loop.run(pairs, schedule):
                    if answered is None:
                        yield self.outcome.ordered(jobs, networks)
                        continue
                    started = time.monotonic()
                    record = self._finish(answered, loop, wandb)
                    self.outcome.records[record.benchmark, record.model] = record
                    schedule.note((answered.job, answered.network), record, time.monotonic() - started)
        finally:
            wandb.close()
        self.outcome.failed |= {network.name: reason for network, reason in loop.failed.items()}
        self._report_waiting([pair for pair in pairs if pair[1] not in loop.failed and not loop.complete(pair)])
        if reason := schedule.ending():
            logger.info(reason)
        yield self.outcome.ordered(jobs, networks)

    def _loop(self, networks: list[Network]) -> Loop:
        """Return the loop, with what is stored already read, after a rehearsal of what is not."""
        jobs = self.request.jobs
        if self.recording.results is not None:
            for job, network in itertools.product(jobs, networks):
                check_place(self.recording.results, network.name, job.name)
        plan = make_plan(jobs, networks, self.runtime, self._ranges)
        progress = Progress(self.recording.progress and self.runtime.lead)
        loop = Loop(plan, self.store, self.runtime, self.request.data.skip_unreadable, progress)
        loop.load()
        for job in jobs:
            if any(loop.missing((job, network)) for network in networks):
                rehearse(job, networks[0])
        return loop

    def _ranges(self, cell: Cell) -> Ranges | None:
        unit = self.names[cell.network], cell.images.name, len(cell.images), cell.condition.kind
        return self.request.ranges(unit)

    def _in_shard(self, job: Job, network: Network) -> bool:
        """Whether a job that shows no image is this shard's."""
        ranges = self.request.ranges((self.names[network], "", 0, job.name))
        return ranges is None or any(start < stop for start, stop in ranges)

    def _wandb(self, loop: Loop, pairs: Iterable[Pair]) -> WandbLogger:
        """Return the W&B logger; where there are few pairs, their runs are live from the beginning."""
        recording = self.recording
        wandb = WandbLogger(
            recording.wandb, recording.results, self.runtime, recording.wandb_project, recording.wandb_layout
        )
        live = []
        if self.request.slices is None:
            live = [pair for pair in pairs if loop.missing(pair)]
        for job, network in live if len(live) <= wandb.LIVE else []:
            wandb.start(job, network)
        return wandb

    def _report_waiting(self, pairs: Sequence[Pair]) -> None:
        """Say which records wait for slices of other shards."""
        if pairs and self.request.slices is not None:
            names = listed_briefly((f"{network.name} {job.name}" for job, network in pairs), 5)
            logger.info(
                f"{self._shard_name()} is done; {len(pairs)} records wait for other shards ({names}): whichever shard "
                f"brings the last answers of a round writes them, or the same command without shards"
            )

    def _source(self, answered: Answered, cells: Sequence[Cell]) -> str | None:
        """Return what a record is scored from: responses, by identity and time, and code; None if unknown."""
        code = commit()
        if not cells or code is None or code.endswith("+"):
            return None
        responses = sorted([key_of(cell.identity), cell.stored.measured, cell.stored.nonfinite] for cell in cells)
        source: dict[str, Any] = {"code": code, "responses": responses}
        samples = {}
        for images in answered.job.image_sets:
            if answered.images[images.name] < len(images.whole or images):
                samples[images.name] = answered.images[images.name]
        return key_of(source | ({"samples": samples} if samples else {}))

    def _valid_record(self, answered: Answered, source: str | None) -> dict[str, Any] | None:
        """Return the record that is there already, scored from the same responses by the same code, or None."""
        folder, job = self.recording.results, answered.job
        if folder is None or source is None or self.recording.fresh:
            return None
        collection = collection_of(job.image_sets)
        expected = {"scored_from": source, "seed": self.runtime.seed, "collection": collection}
        for path in sorted((Path(folder) / answered.network.name).glob(f"{job.name}.*json")):
            record = read_record(path)
            if record is None or record.get("options") != _plain(job.options):
                continue
            if all(record["provenance"].get(key) == value for key, value in expected.items()):
                return record
        return None

    def _check_clean_accuracy(self, group: Group) -> None:
        """Report at once a clean accuracy far from what is known of a network: it is loaded wrongly."""
        for cell in group.cells:
            if warning := self._clean_warning(cell):
                self._warn(cell.network, cell.network.name, [warning])

    def _clean_warning(self, cell: Cell) -> str | None:
        """Return what is wrong with a network's answers to the clean images; of a part of them, only chance is."""
        if cell.condition.kind != "clean" or cell.images.name != study.CLEAN_SET or not cell.answered:
            return None
        if cell.readout.hits(cell.stored.values, cell.images.labels) is None:
            return None
        network, responses = cell.network, cell.responses(cell.images.first(cell.answered))
        accuracy, count = top(responses).value, int(responses.counts.sum())
        expected = expected_clean_accuracy(network, cell.images, cell.preprocessing)
        return clean_accuracy_warning(network.name, expected, accuracy, count, likely_order(responses))

    def _finish(self, answered: Answered, loop: Loop, wandb: WandbLogger) -> Record:
        """Report one benchmark on one network: the record first, then W&B."""
        job, network = answered.job, answered.network
        cells = loop.plan.cells[job, network]
        source = self._source(answered, cells)
        if before := self._valid_record(answered, source):
            return Record(before)
        content, results = self._content(answered, cells)
        content["provenance"] |= {"scored_from": source} | self._further_provenance(cells)
        new = True
        if self.recording.results is not None:
            content, path, new = write_record(self.recording.results, content)
            if new and job.benchmark.export:
                job.benchmark.export(results, network.name, path.parent)
        self._warn(network, f"{network.name}, {job.name}", content["warnings"])
        if new and answered.last:
            wandb.finish(job, network, content, results, loop.pictures_of(cells))
        elif new:
            wandb.round(job, network, content)
        return Record(content)

    def _content(self, answered: Answered, cells: Sequence[Cell]) -> tuple[dict[str, Any], Results]:
        """Return a record's content, and the responses that it is scored from."""
        job, network = answered.job, answered.network
        samples = {images.name: images.first(answered.images[images.name]) for images in job.image_sets}
        results = Results([cell.responses(samples[cell.images.name]) for cell in cells], network, job.options)
        with collected_warnings() as report_notes:
            metrics = named(job.benchmark.report(results), job.name)
        notes = [*self.notes[network], *job.notes, *report_notes]
        for cell in cells:
            notes += cell.notes
            if study.CONTROL in metrics:
                notes += filter(None, [self._clean_warning(cell)])
        with collected_warnings() as record_notes:
            content = make_record(
                job.benchmark,
                network.name,
                network,
                results,
                metrics,
                self.runtime,
                options=job.options,
                image_sets=list(samples.values()),
                notes=list(dict.fromkeys(notes)),
            )
        content["warnings"] += [note for note in record_notes if note not in content["warnings"]]
        return content, results

    def _further_provenance(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Return what else tells how far a record can be trusted."""
        further: dict[str, Any] = {}
        for cell in cells:
            if cell.flat_gradients is not None:
                further.setdefault("flat_gradients", {})[cell.condition.name] = cell.flat_gradients
        if self.request.settings.until:  # which favours narrow intervals
            further["until"] = str(self.request.settings.until)
        return further

    def _warn(self, network: Network, place: str, warnings: Iterable[str]) -> None:
        """Show warnings about a network, each once in all benchmarks and rounds."""
        for note in warnings:
            if (network, note) not in self.told:
                self.told.add((network, note))
                logger.warning("\n*** WARNING, %s: %s\n", place, note)


def score_files(
    benchmark: Benchmark,
    answers: Iterable[tuple[str, Results]],
    options: Mapping[str, Any],
    settings: Settings,
    folder: str | Path,
    of_files: Sequence[str] = (),
) -> list[Record]:
    """Score answers that come from files, pairs (label, Results): the same records, without a network.

    `of_files`: warnings of reading the files, for the records.
    """
    runtime = make_runtime(settings, 0)
    records: list[Record] = []
    for label, answered in answers:
        results = Results(answered.all(), None, options)
        with collected_warnings() as notes:
            metrics = named(benchmark.report(results), benchmark.name)
        notes = [*of_files, *notes]
        image_sets = list({responses.images.name: responses.images for responses in results.all()}.values())
        with collected_warnings():
            content = make_record(
                benchmark, label, None, results, metrics, runtime, options=options, image_sets=image_sets, notes=notes
            )
        records.append(Record(write_record(folder, content)[0]))
    return records


def _plain(options: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(options, default=str))

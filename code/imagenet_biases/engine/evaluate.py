"""The Python door: `evaluate(networks, benchmarks, data, settings)`, from what is asked for to records."""

import contextlib
import copy
import functools
import itertools
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from imagenet_biases import study
from imagenet_biases.base.errors import UserError, collected_warnings, listed_briefly
from imagenet_biases.base.files import safe_name
from imagenet_biases.engine.inference import float32_precision
from imagenet_biases.engine.loop import Loop
from imagenet_biases.engine.plan import make_job, make_jobs, make_plan, rehearse
from imagenet_biases.engine.ranks import check_shared, ranks
from imagenet_biases.engine.runtime import make_runtime
from imagenet_biases.engine.sharding import share
from imagenet_biases.measures.accuracy import top
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
from imagenet_biases.results.responses import UNSEEN, ResponseStore, key_of
from imagenet_biases.results.wandb_log import WandbLogger
from imagenet_biases.vocabulary import Results, Settings


def evaluate(networks, benchmarks, data, settings=None, **how):
    """Measure networks on benchmarks and return the Records, one for each pair that could be measured.

    networks: names as for --model (one text or a list), a module on RGB pixels in [0, 1] with 1,000 logits, or a dict
    name -> module. A module is left as it was found: device, mode, gradients, memory format.
    benchmarks: names of scripts without eval_ ('imagenet', 'spectral'), or Benchmark objects; one or a list.
    data, settings: vocabulary.Data, vocabulary.Settings.
    how: `options` {benchmark: {option: value}}; `results`, a folder for records and responses (None: nothing is
    written); `fresh`, measure again; `wandb` ('disabled', 'auto', 'online', 'offline'), `wandb_project`,
    `wandb_layout`; `progress`, whether to show it; `arch`, `normalization`, `checkpoints`, `allow_unstable`,
    `frontend`, `trust_remote_code`, as the flags of the same names; `label`, a name for the one network.

    Records have `.model`, `.benchmark` and `.metrics` {name: Estimate with value, low, high}. Raises UserError for what
    is wrong with the input, also where a network cannot be had or fails.
    """
    outcome = Measurement(networks, benchmarks, data, settings or Settings(), **how).run()
    if outcome.failed:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in outcome.failed.items()))
    return outcome.records


@dataclass
class Outcome:
    """What a run found: the records, and why networks are missing among them, {name: reason}."""

    records: list
    failed: dict


class Measurement:
    """Networks, benchmarks, data and settings, from what was asked for to records. See `evaluate`."""

    def __init__(
        self,
        networks,
        benchmarks,
        data,
        settings,
        *,
        options=None,
        results=None,
        fresh=False,
        wandb="disabled",
        wandb_project=None,
        wandb_layout="study",
        progress=False,
        skip_missing=False,
        **loading,
    ):
        from imagenet_biases.benchmarks import find

        self.networks = {type(networks).__name__: networks} if isinstance(networks, torch.nn.Module) else networks
        self.results, self.fresh, self.progress, self.loading = results, fresh, progress, loading
        self.store = ResponseStore(results, fresh)
        several = benchmarks if isinstance(benchmarks, list | tuple) else [benchmarks]
        self.benchmarks = [find(one) if isinstance(one, str) else one for one in several]
        names = [one.name for one in self.benchmarks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"the benchmark {twice[0]} is named twice; name it once")
        options = options or {}
        if strange := sorted(set(options) - set(names)):
            raise UserError(f"options for {strange[0]}, which is not among the benchmarks: {', '.join(names)}")
        data = replace(data, seed=settings.seed, listed={})
        if results is not None and not fresh:
            data = replace(data, listings=Path(results) / ".listings")
        if skip_missing:
            self.jobs, self.missing = make_jobs(self.benchmarks, data, options)
        else:
            self.jobs, self.missing = [make_job(one, data, options.get(one.name)) for one in self.benchmarks], []
        if not self.jobs:
            raise UserError("no image set was given for any benchmark; " + "; ".join(self.missing))
        self.data = data
        images = {images.name: len(images) for job in self.jobs for images in job.image_sets}
        self.runtime = make_runtime(settings, sum(images.values()))
        self.wandb = wandb, wandb_project, wandb_layout
        self._built, self._specs = {}, {}
        if self.runtime.shard[1] > 1 and results is None:
            raise UserError("shards share nothing but the results folder: give one, or --split images to torchrun")
        if self.runtime.shard[1] > 1 and fresh:
            raise UserError(
                "--fresh cannot tell what other shards have measured anew: give a new folder with --results instead, "
                "or --split images to torchrun"
            )

    @property
    def quiet(self):
        """Whether another rank does the talking."""
        return self.runtime.rank > 0

    def run(self):
        """Measure; return the Outcome."""
        with ranks(self.runtime), contextlib.ExitStack() as stack:
            check_shared(self.runtime, self.results)
            networks, failed = self._load(stack)
            if not networks:
                if not failed:
                    print(f"{self._called()} has nothing to do: there are fewer units than shards", file=sys.stderr)
                return Outcome([], failed)
            return self._measure(networks, failed)

    def _called(self):
        return "shard {}/{}".format(*self.runtime.shard)

    @functools.cached_property
    def share(self):
        """The units (network, image set, kind of condition) that are this shard's; None: all."""
        if self.runtime.shard[1] == 1:
            return None
        return share(self.jobs, [name for name, _ in self.labels()], self.built, self.runtime.shard)

    def has(self, name, images, kind):
        """Whether a network's conditions of a kind on an image set (its name) are this shard's to measure."""
        return self.share is None or (name, images, kind) in self.share

    def built(self, name):
        """Return a network that is asked for as far as it can be had without its weights, one an architecture."""
        given = isinstance(self.networks, dict)
        key = name if given else architecture(name, self.loading.get("arch", "resnet50"))
        if key not in self._built:
            self._built[key] = self._from_python(self.networks[name], name) if given else skeleton(key)
        return self._built[key]

    @property
    def count(self):
        """How many networks are asked for."""
        return len(self.labels())

    def labels(self):
        """Return [(what it is asked for by, label)] of the networks, without loading any."""
        if isinstance(self.networks, dict):
            return [(name, name) for name in self.networks]
        names = resolve(self.networks if isinstance(self.networks, str) else ",".join(self.networks))
        return [(name, self.loading.get("label") or network_name(name)) for name in names]

    def _load(self, stack):
        """Return the networks that can be had, and why others cannot, {name: reason}."""
        modules = self.networks
        if isinstance(modules, dict):
            for module in modules.values():
                stack.enter_context(borrowed(module))
            makers = {
                name: (lambda module=module, name=name: self._from_python(module, name))
                for name, module in modules.items()
            }
        else:
            names = resolve(modules if isinstance(modules, str) else ",".join(modules))
            if self.loading.get("label") and len(names) > 1:
                raise UserError(
                    f"--name gives one network a name, and {len(names)} are asked for; name them one by one"
                )
            makers = {name: (lambda name=name: load_model(name, **self.loading)) for name in names}
        if self.share is not None:
            mine = {unit[0] for unit in self.share}
            makers = {name: make for name, make in makers.items() if name in mine}
        networks, failed = [], {}
        for name, make in makers.items():
            if self.progress and self.runtime.lead:
                print(f"loading {name}", file=sys.stderr)
            try:
                with collected_warnings() as notes:
                    network = make()
                    if self.runtime.preprocessing == "study" and network.side not in (None, study.VIEW_CROP):
                        raise UserError(
                            f"it takes images of {network.side} pixels only: measure it with --preprocessing native"
                        )
                network.notes = notes
                networks.append(network)
                self._specs[network] = name
            except UserError as error:
                if len(makers) == 1:
                    raise
                failed[name] = str(error)
                print(f"error: {name}: {error}; the others go on", file=sys.stderr)
        twins = {}
        for network in networks:
            twin = twins.setdefault(network.identity["network"], network)
            if twin is not network and twin.name == network.name:
                networks = [one for one in networks if one is not network]
        return networks, failed

    def _from_python(self, module, label):
        if not isinstance(module, Network):
            network = from_module(module, label, allow_unstable=self.loading.get("allow_unstable", False))
        else:
            network = copy.copy(module)  # loaded by load_model: the same parameters under this label
            network.name = safe_name(label)
        frontend = self.loading.get("frontend")
        return behind(network, frontend) if frontend else network

    def _measure(self, networks, failed):
        """Measure what is not known yet; write each record as soon as its own conditions are complete."""
        if self.results is not None and not self.quiet:
            for job, network in itertools.product(self.jobs, networks):
                check_place(self.results, network.name, job.name)
        plan = make_plan(
            self.jobs,
            networks,
            self.runtime,
            lambda cell: self.has(self._specs[cell.network], cell.images.name, cell.condition.kind),
        )
        mode, *names = self.wandb
        logger = WandbLogger("disabled" if self.quiet else mode, self.results, self.runtime, *names)
        records, todo = [], []
        loop = Loop(plan, self.store, self.runtime, self.data.skip_unreadable, self.progress and self.runtime.lead)
        loop.load()
        pairs = [(j, n) for j, n in plan.cells if j.passes or self.has(self._specs[n], "", j.name)]
        for pair in pairs:
            standing = None if self.fresh or self.quiet else self._standing(pair, plan)
            if standing is None:
                todo.append(pair)
            else:
                records.append(Record(standing))
        unmeasured = [job for job in self.jobs if any(loop.missing(plan.cells[job, n]) for n in networks)]
        for job in unmeasured:
            if not self.quiet:
                rehearse(job, networks[0])
        live = [pair for pair in todo if loop.missing(plan.cells[pair])] if self.share is None else []
        for job, network in live if len(live) <= logger.LIVE else ():
            logger.start(job, network)
        loop.watch, loop.gate = logger.watch, self._gate
        try:
            with float32_precision(self.runtime.precision):
                for pair in loop.run(todo):
                    if not self.quiet:
                        records.append(self._finish(*pair, plan, loop, logger))
        finally:
            logger.close()
        self._say_what_waits([pair for pair in loop.waiting if pair[1] not in loop.failed])
        failed |= {network.name: reason for network, reason in loop.failed.items()}
        order = {pair: number for number, pair in enumerate((j.name, n.name) for j in self.jobs for n in networks)}
        records.sort(key=lambda record: order.get((record.benchmark, record.model), 0))
        return Outcome(records, failed)

    def _say_what_waits(self, pairs):
        """Say which records wait for units of other shards."""
        if pairs:
            names = listed_briefly((f"{network.name} {job.name}" for job, network in pairs), 5)
            print(
                f"{self._called()} is done; {len(pairs)} records wait for other shards ({names}): the last of them to "
                f"finish writes them, or the same command without shards",
                file=sys.stderr,
            )

    def _source(self, cells):
        """What a record is scored from: the responses, by identity and time, and the code; None where it is unknown."""
        code = commit()
        if not cells or code is None or code.endswith("+"):
            return None
        responses = sorted([key_of(cell.identity), cell.kept.measured, cell.kept.nonfinite] for cell in cells)
        return key_of({"code": code, "responses": responses})

    def _standing(self, pair, plan):
        """Return the record that stands already, scored from the same responses by the same code, or None."""
        job, network = pair
        cells = plan.cells[pair]
        if self.results is None or any(cell.kept is None or (cell.kept.state == UNSEEN).any() for cell in cells):
            return None
        source = self._source(cells)
        for path in sorted((Path(self.results) / network.name).glob(f"{job.name}.*json")) if source else ():
            record = read_record(path)
            if (
                record
                and record["provenance"].get("scored_from") == source
                and record["provenance"]["seed"] == self.runtime.seed
                and record["provenance"]["collection"] == collection_of(job.image_sets)
                and record.get("options") == _plain(job.options)
            ):
                return record
        return None

    def _gate(self, group):
        """Say at once where the clean accuracy is far from what is known of a network: it is loaded wrongly."""
        if (
            group.images.name != study.CLEAN_SET
            or group.images.subset
            or self.runtime.preprocessing != "study"
            or self.quiet
        ):
            return
        for cell in group.cells:
            if cell.condition.kind == "clean" and cell.readout.hits(cell.kept.values, cell.images.labels) is not None:
                doubt = self._doubt(cell.network, top(cell.responses()).value, len(cell.images))
                if doubt:
                    print(f"\n*** WARNING, {cell.network.name}: {doubt}\n", file=sys.stderr)

    @staticmethod
    def _doubt(network, accuracy, images):
        return clean_accuracy_warning(network.name, network.expected_top1, accuracy, images)

    def _finish(self, job, network, plan, loop, logger):
        """Report one benchmark on one network: the record first, then W&B."""
        cells = plan.cells[job, network]
        found = Results((cell.responses() for cell in cells), network, job.options)
        with collected_warnings() as said:
            metrics = named(job.benchmark.report(found), job.name)
        notes = [*network.notes, *job.notes, *said, *(note for one in found.all() for note in one.notes)]
        clean = metrics.get(study.CONTROL)
        whole = not any(images.subset for images in job.image_sets)
        if clean is not None and clean.value is not None and whole and self.runtime.preprocessing == "study":
            doubt = self._doubt(network, clean.value, len(job.image_sets[0]))
            notes += [doubt] if doubt else []
        with collected_warnings() as more:
            content = make_record(
                job.benchmark,
                network.name,
                network,
                found,
                metrics,
                self.runtime,
                options=job.options,
                image_sets=job.image_sets,
                notes=list(dict.fromkeys(notes)),
            )
        content["warnings"] += [note for note in more if note not in content["warnings"]]
        content["provenance"]["scored_from"] = self._source(cells)
        news = True
        if self.results is not None:
            content, path, news = write_record(self.results, content)
            if job.benchmark.export:
                job.benchmark.export(found, network.name, path.parent)
        for note in content["warnings"]:
            print(f"\n*** WARNING, {network.name}, {job.name}: {note}\n", file=sys.stderr)
        if news:
            logger.finish(job, network, content, found, loop.pictures_of(cells))
        return Record(content)


def score_files(benchmark, answers, options, settings, results):
    """Score answers that come from files: the same records, without a network. `answers`: pairs (label, Results)."""
    here, records = make_runtime(settings, 0), []
    for label, found in answers:
        found = Results(found.all(), None, options)
        with collected_warnings() as notes:
            metrics = named(benchmark.report(found), benchmark.name)
        image_sets = list({one.images.name: one.images for one in found.all()}.values())
        with collected_warnings():
            content = make_record(
                benchmark, label, None, found, metrics, here, options=options, image_sets=image_sets, notes=notes
            )
        records.append(Record(write_record(results, content)[0]))
    return records


def _plain(options):
    return json.loads(json.dumps(options, default=str))

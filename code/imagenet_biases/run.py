"""From a command line to records: plan, measure, report. What eval_*.py and eval_all.py have in common."""

import argparse
import contextlib
import json
import sys
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed

from imagenet_biases.cli import make_parser, make_settings
from imagenet_biases.errors import UserError, exit_on_user_error
from imagenet_biases.evaluate import LEFT_OUT, UNSEEN, Benchmark, Runner, grouped, measure, view_of
from imagenet_biases.images.sets import NotGiven
from imagenet_biases.networks.load import clean_accuracy_warning, load_model
from imagenet_biases.networks.registry import resolve
from imagenet_biases.results.records import Store, make_record, write_record
from imagenet_biases.results.wandb_log import LIVE, Mirror

CLEAN_METRIC = "top1_acc/imagenet"  # the figure by which the registry tells a network that is loaded wrongly


@dataclass(eq=False)
class Job:
    """One benchmark with its passes made: what is shown is known, nothing is computed yet."""

    benchmark: Benchmark
    passes: list
    notes: list  # what making the passes warned of
    pending: dict = field(default_factory=dict)  # {network name: cells}

    @property
    def image_sets(self):
        return list({images.name: images for images in (one.images for one in self.passes)}.values())


@exit_on_user_error
def run(benchmark, description):
    """Be the script of one benchmark."""
    parser = make_parser(description)
    if benchmark.options:
        benchmark.options(parser)
    args = parser.parse_args()
    answers = benchmark.without_network and benchmark.without_network(args)
    if answers:
        report_without_network(benchmark, answers, args)
        return
    if not args.model:
        raise UserError("--model is missing: name a network, e.g. --model resnet50.a1_in1k or --model net.py:build")
    names = resolve(args.model)
    jobs = [make_job(benchmark, args)]
    records = run_jobs(jobs, names, args, plan=args.dry_run)
    if records:
        print(table(records, benchmark.headline))


def run_jobs(jobs, names, args, plan=True, missing=()):
    """Measure jobs on networks and write a record for each pair as soon as it is complete. Returns the records.

    `plan`: print it first. `missing`: lines about benchmarks that are left out, for the plan.
    """
    settings = make_settings(args, sum(len(images) for job in jobs for images in job.image_sets))
    with _ranks(settings):
        quiet = settings.rank > 0
        networks = [_load(name, args, quiet) for name in names]
        doubles = {network.name for network in networks if [n.name for n in networks].count(network.name) > 1}
        if doubles:
            raise UserError(
                f"two networks would share the results folder {', '.join(doubles)}; rename one of the files"
            )
        groups, cells = grouped([one for job in jobs for one in job.passes], networks, settings)
        for job in jobs:
            for network in networks:
                job.pending[network.name] = [cell for one in job.passes for cell in cells[id(one), network.name]]
        store = Store(args.results, args.fresh)
        if plan and not quiet:
            print_plan(jobs, groups, networks, store, settings, missing)
        if args.dry_run:
            return []
        mirror = Mirror("disabled" if quiet else args.wandb, args.results)
        if len(jobs) * len(networks) <= LIVE:
            for job in jobs:
                for network in networks:
                    mirror.start(job.benchmark, network.name, _mirror_identity(job, settings))
        records, complete = [], set()
        for group in measure(groups, store, settings, not quiet, watch=mirror.watch):
            complete |= {id(cell) for cell in group.cells}
            for job in jobs:
                for network in networks:
                    pending = job.pending.get(network.name)
                    if pending and all(id(cell) in complete for cell in pending):
                        if not quiet:
                            records.append(_finish(job, network, groups, settings, mirror, args))
                        del job.pending[network.name]
        mirror.close()
        return records


def _load(name, args, quiet):
    if not quiet:
        print(f"loading {name}", file=sys.stderr)
    with _noted() as notes:
        network = load_model(name, arch=args.arch, normalization=args.normalization, checkpoints=args.checkpoints)
    network.notes = notes
    return network


@contextlib.contextmanager
def _ranks(settings):
    """Join the other ranks that torchrun started, if any."""
    if settings.world == 1:
        yield
        return
    if settings.device.type == "cuda":
        torch.cuda.set_device(settings.device)
    torch.distributed.init_process_group("nccl" if settings.device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _mirror_identity(job, settings):
    subsets = [[images.name, images.collection, images.subset] for images in job.image_sets]
    return [settings.view, settings.precision, settings.seed, subsets]


def _finish(job, network, groups, settings, mirror, args):
    """Report one benchmark on one network: the record first, then its mirror."""
    cells = job.pending[network.name]
    mine = [group for group in groups if any(cell in group.cells for cell in cells)]
    responses = {(cell.images.name, cell.condition.name): cell.responses() for cell in cells}
    metrics, details, said = _scored(job.benchmark, responses)
    seconds, shown = sum(group.seconds for group in mine), sum(group.shown for group in mine)
    notes = list(dict.fromkeys(network.notes + job.notes + said))
    broken = sum(group.nonfinite.get(network.name, 0) for group in mine)
    if broken:
        notes.append(
            f"{broken} answers were not finite (NaN or infinite logits): the network or the precision is at fault"
        )
    # from the answers, not from what this run met: stored answers left the same images out
    left_out = sorted(
        {
            f"{cell.images.name}/{cell.images.files[position]}"
            for cell in cells
            for position in np.flatnonzero(cell.answers[:, 0] == LEFT_OUT)
        }
    )
    record = make_record(
        job.benchmark,
        network,
        job.image_sets,
        metrics,
        settings,
        options=own_options(job.benchmark, args),
        speed=shown / seconds if seconds else None,
        left_out=left_out,
        warnings=notes,
        details=details,
    )
    clean = record["metrics"].get(CLEAN_METRIC)
    if clean is not None and not record["subset"] and settings.view == "study":
        doubt = clean_accuracy_warning(network.name, network.expected_top1, clean, record["images"])
        record["warnings"] += [doubt] if doubt else []
    path = write_record(args.results, record)
    if job.benchmark.export:
        job.benchmark.export(network.name, responses, path.parent)
    for note in record["warnings"]:
        print(f"\n*** WARNING, {network.name}, {job.benchmark.name}: {note}\n", file=sys.stderr)
    pictures = {name: picture for group in mine for name, picture in _pictures(group, cells)}
    mirror.finish(job.benchmark, record, responses, pictures, _mirror_identity(job, settings))
    return record


def _scored(benchmark, responses):
    """Return metrics, details, and what the scores warned of: it belongs in the record."""
    with _noted() as notes:
        metrics = dict(benchmark.report(responses))
        details = benchmark.details(responses) if benchmark.details else None
    return metrics, details, notes


@contextlib.contextmanager
def _noted():
    """Collect the texts of warnings, for a record."""
    notes = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield notes
    notes += dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning))


def own_options(benchmark, args):
    """Return the values of the flags that only this benchmark has, JSON-able."""
    if not benchmark.options:
        return {}
    parser = argparse.ArgumentParser(add_help=False)
    benchmark.options(parser)
    return json.loads(json.dumps({name: getattr(args, name) for name in vars(parser.parse_args([]))}, default=str))


def _pictures(group, cells):
    names = {cell.condition.name for cell in cells if cell in group.cells}
    for condition, picture in group.pictures.items():
        if condition in names:
            yield f"{group.images.name} {condition}", picture


def report_without_network(benchmark, answers, args):
    """Score answers that came from files (people, other toolboxes' networks): the same record, without a network."""
    settings = make_settings(args, 0)
    records = []
    for name, responses in answers:
        image_sets = list({one.images.name: one.images for one in responses.values()}.values())
        metrics, details, notes = _scored(benchmark, responses)
        records.append(make_record(benchmark, name, image_sets, metrics, settings, details=details, warnings=notes))
        write_record(args.results, records[-1])
    print(table(records, benchmark.headline))


# The plan ------------------------------------------------------------------------------------------------------------


def print_plan(jobs, groups, networks, store, settings, missing=()):
    """Print what will be shown to which networks, what is done already, and how long the rest will take."""
    print(f"Plan: {len(jobs)} benchmarks x {len(networks)} networks on {settings.device}, {settings.precision}")
    for job in jobs:
        images = sum(len(images) for images in job.image_sets)
        shown = sum(len(one.images) * len(one.conditions) for one in job.passes)
        print(f"  {job.benchmark.name:16} {len(job.image_sets):4} image sets, {images:>11,} images, {shown:>11,} shown")
    for line in missing:
        print(f"  left out: {line}")
    forwards, seconds, decoded = 0, 0.0, 0
    paces = {}
    for group in groups:
        todo = {}
        for cell in group.cells:
            answers = store.load(cell.identity, cell.network.name, len(group.images), cell.readout.width)
            key = id(cell.network), id(cell.condition)
            todo[key] = max(todo.get(key, (0,))[0], int((answers[:, 0] == UNSEEN).sum())), cell
        for count, cell in todo.values():
            if count:
                pace = paces.setdefault((id(cell.network), group.view.crop), None)
                if pace is None:
                    pace = paces[id(cell.network), group.view.crop] = _pace(cell.network, group.images, settings)
                forwards += count * cell.condition.cost
                seconds += count * cell.condition.cost / pace / settings.world
        decoded += max((count for count, _ in todo.values()), default=0)
    print(
        f"  to do: {forwards:,} forward passes over {decoded:,} decoded images, about {_duration(seconds)}", flush=True
    )


def _pace(network, images, settings):
    """Time one batch: forward passes a second, before compiling."""
    view = view_of(network, images, settings)
    runner = Runner(network, view, settings, long=False)
    pixels = torch.rand(min(settings.batch_size, 16), 3, view.crop, view.crop, device=settings.device)
    runner.forward(pixels)
    started = time.monotonic()
    float(runner.forward(pixels).sum())
    return len(pixels) / (time.monotonic() - started)


def _duration(seconds):
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def make_job(benchmark, args):
    """Find and check what a benchmark shows, before anything is computed."""
    with _noted() as notes:
        passes = benchmark.passes(args)
    return Job(benchmark, passes, notes)


def make_jobs(benchmarks, args):
    """Return the jobs whose image sets were given, and a line for each benchmark that is left out."""
    jobs, missing = [], []
    for benchmark in benchmarks:
        try:
            jobs.append(make_job(benchmark, args))
        except NotGiven as error:
            missing.append(f"{benchmark.name}: {error}")
    return jobs, missing


# What a reader sees at the end ---------------------------------------------------------------------------------------


def table(records, headline=()):
    """Return records of one or several benchmarks as text: a row a metric, a column a network."""
    names = list(dict.fromkeys(record["model"] for record in records))
    metrics = list(dict.fromkeys(name for record in records for name in record["metrics"]))
    shown = [name for name in metrics if name in headline] or metrics
    rows = [["", *names]]
    for metric in shown:
        row = [metric]
        for name in names:
            record = next((r for r in records if r["model"] == name and metric in r["metrics"]), None)
            row.append(_cell(record, metric) if record else "")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = []
    for record in records:
        if record["subset"]:
            seen = record["subset"]
            notes.append(f"{record['model']}, {record['benchmark']}: a subset, {seen['images']} of {seen['of']} images")
    more = [f"({len(metrics) - len(shown)} further metrics in the records)"] if len(shown) < len(metrics) else []
    return "\n".join(["", *lines, *more, *notes])


def _cell(record, metric):
    value, interval = record["metrics"][metric], record["intervals"].get(metric)
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "")

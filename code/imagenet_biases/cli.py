"""The command line: flags -> Data, Settings, options; the plan and the results as text."""

import argparse
import fnmatch
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from imagenet_biases.base.errors import Parser, UserError, clean, exit_on_user_error
from imagenet_biases.results.text_tables import aligned
from imagenet_biases.study import IMAGE_FOLDERS
from imagenet_biases.vocabulary import Data, Settings


def whole(text):
    """Return a whole number from 1 to a billion."""
    number = int(text) if len(text) < 12 else -1
    if not 1 <= number <= 10**9:
        raise argparse.ArgumentTypeError(f"{text[:30]} is not a number from 1 to 1,000,000,000")
    return number


def _seed(text):
    number = int(text) if len(text) < 19 else -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text[:30]} is not a number from 0")
    return number


def _seconds(text):
    number = float(text)
    if not 0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"{text[:30]} is not a number of seconds")
    return number


def _shard(text):
    """Return (i, n) of i/n, i from 1 to n."""
    try:
        number, count = (int(part) if len(part) < 10 else -1 for part in text.split("/"))
    except ValueError:
        number = count = -1
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text[:30]} is not i/n with i from 1 to n, e.g. 1/8")
    return number, count


def _folder(text):
    """Return the path of a folder, which '' is not: it would be the one at hand."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: give a folder")
    return text


def make_parser(description, sets=tuple(IMAGE_FOLDERS)):
    """Return the parser with the flags that scripts share; `sets`: the image sets that a script may show."""
    parser = Parser(description)
    networks = parser.add_argument_group("networks")
    networks.add_argument(
        "--model",
        help="names from models/zoo.toml, groups (all, augmentation, ...), timm names, checkpoint files or "
        "file.py:function, clip:ARCH/TAG (open_clip), hf:ID (a model that answers in words), comma-separated",
    )
    networks.add_argument("--name", metavar="LABEL", help="a name of your own for one network: its results folder")
    networks.add_argument("--arch", default="resnet50", help="architecture of a checkpoint file (default: resnet50)")
    networks.add_argument(
        "--normalization", choices=["imagenet", "inception", "none"], default="imagenet", help="of a checkpoint file"
    )
    networks.add_argument(
        "--checkpoints", metavar="DIR", help="where checkpoints are kept (default: models/checkpoints)"
    )
    networks.add_argument(
        "--allow-unstable", action="store_true", help="measure a network that answers differently each time, recorded"
    )
    networks.add_argument(
        "--frontend",
        metavar="WHAT",
        help="what stands before the network: low-pass:0.3, high-pass:0.5, grey, diffusion-noise, file.py:function; "
        "with @0.5 half of it. A row of its own",
    )
    networks.add_argument(
        "--trust-remote-code", action="store_true", help="let a model of the hub (hf:ID) run code of its own here"
    )
    if sets:
        _add_images(parser.add_argument_group("images"), sets)
    running = parser.add_argument_group("running")
    if sets:
        running.add_argument("--batch-size", type=whole, help="default: 256 on a GPU, 32 on a CPU")
        running.add_argument("--num-workers", type=int, help="decoding processes (default: by cores and images)")
        running.add_argument("--cache", metavar="DIR", help="keep decoded images here (7.5 GB for ImageNet validation)")
        running.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32")
        running.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="auto: for long runs")
        running.add_argument(
            "--checkpoint-seconds", type=_seconds, default=180.0, help="between checkpoints of a long pass"
        )
        running.add_argument(
            "--split",
            choices=["networks", "images"],
            default="networks",
            help="what the processes that torchrun starts share out: networks and image sets, or each network's images",
        )
    running.add_argument(
        "--shard", type=_shard, metavar="i/n", help="measure the i-th of n shares; they share the results folder only"
    )
    running.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    running.add_argument("--seed", type=_seed, default=0, help="of everything that is drawn")
    running.add_argument("--dry-run", action="store_true", help="print the plan, with hours by benchmark, and stop")
    records = parser.add_argument_group("records")
    records.add_argument("--results", metavar="DIR", default="results", type=_folder)
    records.add_argument("--fresh", action="store_true", help="measure again what is there already")
    records.add_argument("--wandb", choices=["auto", "online", "offline", "disabled"], default="auto")
    records.add_argument("--wandb-project", metavar="NAME", help="default: WANDB_PROJECT, or imagenet-biases")
    records.add_argument(
        "--wandb-layout", choices=["study", "benchmarks"], default="study", help="one project, or one a benchmark"
    )
    return parser


def _add_images(group, sets):
    for name in sets:
        group.add_argument(f"--{name}", metavar="DIR", help=IMAGE_FOLDERS[name])
    group.add_argument("--data", metavar="ROOT", help="a folder with folders named imagenet, imagenet-a, ... in it")
    group.add_argument(
        "--preprocessing",
        "--view",
        choices=["study", "native"],
        default="study",
        help="256/224 for all, or the network's own",
    )
    group.add_argument("--limit", type=whole, metavar="N", help="only N images of each set, spread over it")
    group.add_argument("--allow-partial", action="store_true", help="measure an incomplete set, declared as a subset")
    group.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out, recorded")


def add_options(parser, options):
    """Add a benchmark's own options as flags; what is not given stays out of the parsed command line."""
    group = parser.add_argument_group("this benchmark")
    for option in options:
        words = {"action": "store_true"} if option.flag else {"metavar": option.name.upper()}
        if option.several:
            words["nargs"] = "+"
        shown = " ".join(map(str, option.default)) if option.several and option.default else option.default
        told = "" if option.flag or option.default is None else f" (default: {shown})"
        choices = f"; of {', '.join(map(str, option.choices))}" if option.choices else ""
        group.add_argument(
            f"--{option.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=(option.help + choices + told).replace("%", "%%"),
            **words,
        )


def data_of(args):
    """Return the Data that a command line gives."""
    flags = vars(args)
    folders = {name: flags.get(name.replace("-", "_")) for name in IMAGE_FOLDERS}
    names = ("limit", "allow_partial", "skip_unreadable", "imagenet_labels")
    values = {name: flags[name] for name in names if flags.get(name) is not None}
    return Data(flags.get("data"), {name: folder for name, folder in folders.items() if folder is not None}, **values)


def settings_of(args):
    """Return the Settings that a command line gives. Raises UserError for a value that a flag does not allow."""
    flags = vars(args) | {"workers": getattr(args, "num_workers", None)}
    try:
        return Settings(**{each.name: flags[each.name] for each in fields(Settings) if each.name in flags})
    except ValueError as error:
        raise UserError(str(error)) from None


def measurement_of(args, benchmarks, options, networks=None, **how):
    """Return the Measurement that a command line asks for."""
    from imagenet_biases.engine.evaluate import Measurement

    return Measurement(
        networks or args.model,
        benchmarks,
        data_of(args),
        settings_of(args),
        options=options,
        results=args.results,
        fresh=args.fresh,
        wandb=args.wandb,
        wandb_project=args.wandb_project,
        wandb_layout=args.wandb_layout,
        progress=True,
        label=args.name,
        arch=args.arch,
        normalization=args.normalization,
        checkpoints=args.checkpoints,
        allow_unstable=args.allow_unstable,
        frontend=args.frontend,
        trust_remote_code=args.trust_remote_code,
        **how,
    )


@exit_on_user_error
def run(benchmark, description, arguments=None):
    """Be the script of one benchmark; return the exit status."""
    parser = make_parser(description, benchmark.sets)
    add_options(parser, benchmark.options)
    args = parser.parse_args(arguments)
    given = {one.name: getattr(args, one.name) for one in benchmark.options if hasattr(args, one.name)}
    if files := [name for name in (args.model or "").split(",") if name.startswith("answers:")]:
        given["answers"] = [name.removeprefix("answers:") for name in files]
        args.model = ",".join(name for name in args.model.split(",") if name not in files) or None
    if benchmark.without_network and report_without_network(benchmark, given, args):
        return 0
    if not args.model:
        raise UserError("--model is missing: name a network, e.g. --model resnet50.a1_in1k or --model net.py:build")
    measurement = measurement_of(args, [benchmark], {benchmark.name: given})
    if args.dry_run:
        print_plan(measurement)
        return 0
    return finish(measurement)


def finish(measurement):
    """Measure; print what was found, and what failed; return the exit status."""
    outcome = measurement.run()
    if outcome.records:
        headlines = {job.name: job.benchmark.headline for job in measurement.jobs}
        print(table([record.content for record in outcome.records], headlines))
    for name, reason in outcome.failed.items():
        print(f"error: {name}: {clean(reason)}", file=sys.stderr)
    if outcome.failed:
        print(f"error: {len(outcome.failed)} networks could not be measured, see above", file=sys.stderr)
    return 1 if outcome.failed else 0


def report_without_network(benchmark, given, args):
    """Score answers that come from files (people, other toolboxes' networks); whether there were any."""
    from imagenet_biases.engine.evaluate import score_files

    try:
        options = benchmark.options_from(given)
    except ValueError as error:
        raise UserError(str(error)) from None
    answers = benchmark.without_network(data_of(args), **options)
    if not answers:
        return False
    if args.model:
        raise UserError("files are scored without a network: leave --model out")
    records = score_files(benchmark, answers, options, settings_of(args), args.results)
    print(table([record.content for record in records], {benchmark.name: benchmark.headline}))
    return True


# The plan -------------------------------------------------------------------------------------------------------------


def print_plan(measurement):
    """Print what is shown to which networks, what is done already, and how long the rest takes; loads no checkpoint.

    Of processes that torchrun started the first one speaks.
    """
    if not measurement.runtime.lead:
        return
    from imagenet_biases.engine.cost import forecast
    from imagenet_biases.engine.progress import duration

    device, precision = measurement.runtime.device, measurement.runtime.precision
    number, count = measurement.runtime.shard
    part = f", shard {number} of {count}" if count > 1 else ""
    print(f"Plan: {len(measurement.jobs)} benchmarks x {measurement.count} networks on {device}, {precision}{part}")
    rows, total = [], 0.0
    for job, line in forecast(measurement):
        total += line.seconds
        rows.append(
            f"  {job.name:16} {len(job.image_sets):4} image sets, {line.images:>11,} images, "
            f"{line.passes:>15,} forward passes, {line.todo:>15,} to do, about {duration(line.seconds)}"
        )
    print("\n".join(rows))
    for line in measurement.missing:
        print(f"  left out: {line}")
    print(f"  to do: about {duration(total)}", flush=True)


# Results as text ------------------------------------------------------------------------------------------------------


def table(records: Sequence[Mapping[str, Any]], headlines: Mapping[str, Sequence[str]]) -> str:
    """Return records of one or several benchmarks as text: one row per metric, one column per network.

    `headlines`: {benchmark: patterns of the metrics to show}; all metrics of a benchmark without any.
    """
    headline = set()
    by_metric: dict[str, dict[str, str]] = {}
    notes = []
    for record in records:
        patterns = headlines.get(record["benchmark"]) or ("*",)
        for metric in record["metrics"]:
            by_metric.setdefault(metric, {}).setdefault(record["model"], _cell(record, metric))
            if any(fnmatch.fnmatchcase(metric, pattern) for pattern in patterns):
                headline.add(metric)
        if subset := record["subset"]:
            part = f"{subset['images']} of {subset['of']} images"
            notes.append(f"{record['model']}, {record['benchmark']}: a subset, {part}")
    models = list(dict.fromkeys(record["model"] for record in records))
    rows = [["", *models]]
    for metric, cells in by_metric.items():
        if metric in headline:
            rows.append([metric, *(cells.get(model, "") for model in models)])
    if len(headline) < len(by_metric):
        notes.insert(0, f"({len(by_metric) - len(headline)} further metrics in the records)")
    return "\n".join(["", *aligned(rows), *notes])


def _cell(record: Mapping[str, Any], metric: str) -> str:
    """Return a metric's value with its interval."""
    value, bounds = record["metrics"][metric], record["intervals"].get(metric)
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" [{bounds[0]:.4g}, {bounds[1]:.4g}]" if bounds else "")

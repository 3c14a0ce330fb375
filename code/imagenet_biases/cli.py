"""The command line: flags -> Data, Settings, options; the plan and the results as text."""

import argparse
import fnmatch
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Any

from imagenet_biases.base.errors import Parser, Terminated, UserError, clean, collected_warnings, exit_on_user_error
from imagenet_biases.networks.registry import NORMALIZATION_CHOICES
from imagenet_biases.results.text_tables import aligned
from imagenet_biases.study import CLEAN_SET, IMAGE_FOLDERS
from imagenet_biases.vocabulary import COMPILE, PRECISIONS, PREPROCESSINGS, Benchmark, Data, Option, Settings

if TYPE_CHECKING:
    from imagenet_biases.engine.evaluate import Request


def _reads(what: str) -> Callable[[Callable[[str], Any]], Callable[[str], Any]]:
    """Decorate what reads the value of an option: its ValueError is said as 'VALUE is not WHAT'."""

    def decorate(read: Callable[[str], Any]) -> Callable[[str], Any]:
        @wraps(read)
        def read_or_say(text: str) -> Any:
            try:
                return read(text)
            except ValueError:
                raise argparse.ArgumentTypeError(f"'{text[:30]}' is not {what}") from None

        return read_or_say

    return decorate


def _checked(value: Any, valid: bool) -> Any:
    if not valid:
        raise ValueError
    return value


@_reads("a whole number from 1 to 1,000,000,000")
def whole(text: str) -> int:
    """Return a whole number from 1 to a billion."""
    return _checked(int(text), 1 <= int(text) <= 10**9)


@_reads("a whole number from 0, below 10^18")
def _seed(text: str) -> int:
    return _checked(int(text), 0 <= int(text) < 10**18)


@_reads("a number of seconds")
def _seconds(text: str) -> float:
    return _checked(float(text), 0 <= float(text) < 1e9)


@_reads("i/n with i from 1 to n, e.g. 1/8")
def _shard(text: str) -> tuple[int, int]:
    """Return (i, n) of i/n, i from 1 to n."""
    number, count = (int(part) for part in text.split("/"))
    return _checked((number, count), 1 <= number <= count < 10**9)


@_reads("a list of per cent, e.g. 1,5,20,100")
def _shares(text: str) -> tuple[float, ...]:
    """Return the shares, in per cent, of a list with commas."""
    return tuple(float(part.strip(" %")) for part in text.split(","))


SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@_reads("a time: give 30m, 2h, 45s")
def _time(text: str) -> float:
    """Return the seconds of 90, 45s, 30m, 2h, 1.5d."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in SECONDS else (text, "s")
    return float(number) * SECONDS[unit]


@_reads("a number of points or the word 'places'")
def _until(text: str) -> float | str:
    return text if text == "places" else float(text)


@_reads("the name of a folder")
def _folder(text: str) -> str:
    """Return the path of a folder; '' is not one: it would be the working directory."""
    return _checked(text, bool(text.strip()))


def make_parser(description: str, sets: Sequence[str] | None = tuple(IMAGE_FOLDERS)) -> Parser:
    """Return the parser with the flags that scripts share.

    Args:
        sets: the image sets that a script may show, as Benchmark has it; without images (None) many flags are idle.
    """
    parser = Parser(description)
    networks = parser.add_argument_group("networks")
    networks.add_argument(
        "--model",
        help="names from models/zoo.toml, groups (all, augmentation, ...), timm names, checkpoint files, net.onnx or "
        "file.py:function, clip:ARCH/TAG (open_clip), hf:ID (transformers: image classifiers, models that answer in "
        "words), hf-hub:ID (timm), torchhub:OWNER/REPO:ENTRY, api:MODEL, predictions:FILE; comma-separated",
    )
    networks.add_argument("--name", metavar="LABEL", help="your own name for one network: its results folder")
    networks.add_argument("--arch", default="resnet50", help="architecture of a checkpoint file (default: resnet50)")
    networks.add_argument(
        "--normalization",
        choices=NORMALIZATION_CHOICES,
        default="auto",
        help="of pixels before the network; auto: as its file, its attributes or its library say, else ImageNet's for "
        "a checkpoint file and none for your own module; builtin: the module does it",
    )
    networks.add_argument(
        "--checkpoints", metavar="DIR", help="where checkpoints are kept (default: models/checkpoints)"
    )
    networks.add_argument(
        "--allow-unstable",
        action="store_true",
        help="measure a network whose answers vary; the record says so",
    )
    networks.add_argument(
        "--frontend",
        metavar="WHAT",
        help="what stands before the network: low-pass:0.3, high-pass:0.5, grey, diffusion-noise, file.py:function; "
        "with @0.5 half of it. The results get a row of their own",
    )
    networks.add_argument(
        "--trust-remote-code", action="store_true", help="let a model of a hub (hf:, torchhub:) run its own code here"
    )
    networks.add_argument("--gradients", action="store_true", help="convert an ONNX file to torch, for attacks")
    networks.add_argument("--api-base", metavar="URL", help="of api:MODEL, e.g. http://localhost:8000/v1")
    networks.add_argument(
        "--api",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="how api:MODEL is asked: concurrency=8, rate=60 (requests per minute), timeout=300, price=2.5,10 (US "
        "dollars per million tokens read and written)",
    )
    if sets is not None:
        _add_images(parser.add_argument_group("images"), sets)
    running = parser.add_argument_group("running")
    if sets is not None:
        running.add_argument("--batch-size", type=whole, help="default: 256 on a GPU, 32 on a CPU")
        running.add_argument("--num-workers", type=int, help="decoding processes (default: by cores and images)")
        running.add_argument("--cache", metavar="DIR", help="keep decoded images here (7.5 GB for ImageNet validation)")
        running.add_argument("--precision", choices=PRECISIONS, default=Settings.precision)
        running.add_argument("--compile", choices=COMPILE, default="auto", help="auto: for long runs")
        running.add_argument(
            "--checkpoint-seconds", type=_seconds, default=180.0, help="between save points of a long pass"
        )
        running.add_argument(
            "--rounds",
            type=_shares,
            metavar="1,5,20,100",
            help="write every record after these per cent of its images; the last ends the run (default: so for long "
            "runs, else all at once)",
        )
        running.add_argument(
            "--budget", type=_time, metavar="TIME", help="end after 30m, 2h, 45s, ... with what is measured by then"
        )
        running.add_argument(
            "--until",
            type=_until,
            metavar="WHAT",
            help="0.5: end when what is reported first is known to within +- 0.5 points (biases: hundredths); places: "
            "when the places among the 48 are known to within two",
        )
    running.add_argument(
        "--shard", type=_shard, metavar="i/n", help="measure the i-th of n shards, which share only the results folder"
    )
    running.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    running.add_argument("--seed", type=_seed, default=0, help="of everything that is random")
    running.add_argument("--dry-run", action="store_true", help="print the plan, with hours by benchmark, and stop")
    records = parser.add_argument_group("records")
    records.add_argument("--results", metavar="DIR", default="results", type=_folder)
    records.add_argument("--fresh", action="store_true", help="measure again what is measured already")
    records.add_argument("--wandb", choices=["auto", "online", "offline", "disabled"], default="auto")
    records.add_argument("--wandb-project", metavar="NAME", help="default: WANDB_PROJECT, or imagenet-biases")
    records.add_argument(
        "--wandb-layout", choices=["study", "benchmarks"], default="study", help="one project, or one per benchmark"
    )
    return parser


def _add_images(group: Any, sets: Sequence[str]) -> None:
    for name in sets:
        group.add_argument(f"--{name}", metavar="DIR", help=IMAGE_FOLDERS[name])
    if sets:
        group.add_argument("--data", metavar="ROOT", help="a folder with folders named imagenet, imagenet-a, ... in it")
    group.add_argument(
        "--preprocessing",
        "--view",
        choices=PREPROCESSINGS,
        default="study",
        help="256/224 for all networks, or each network's own",
    )
    if "imagenet" in sets:
        group.add_argument(
            "--imagenet-labels", metavar="FILE", help="file names and labels of a flat ImageNet folder, two columns"
        )
    group.add_argument("--limit", type=whole, metavar="N", help="only the first N images of each set's order: a sample")
    group.add_argument("--allow-partial", action="store_true", help="measure incomplete sets, as declared subsets")
    group.add_argument("--skip-unreadable", action="store_true", help="leave out unreadable images; recorded")


def add_options(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Add a benchmark's own options as flags; flags that are not used stay out of the parsed command line."""
    group = parser.add_argument_group("this benchmark")
    for option in options:
        settings: dict[str, Any] = {"action": "store_true"} if option.flag else {"metavar": option.name.upper()}
        if option.several:
            settings["nargs"] = "+"
        text = option.help
        if option.choices:
            text += f"; of {', '.join(map(str, option.choices))}"
        if not option.flag and option.default is not None:
            default = " ".join(map(str, option.default)) if option.several and option.default else option.default
            text += f" (default: {default})"
        flag = f"--{option.name.replace('_', '-')}"
        group.add_argument(flag, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **settings)


def data_of(args: argparse.Namespace) -> Data:
    """Return the Data that a command line gives."""
    flags = vars(args)
    folders = {name: flags.get(name.replace("-", "_")) for name in IMAGE_FOLDERS}
    names = ("limit", "allow_partial", "skip_unreadable", "imagenet_labels")
    values = {name: flags[name] for name in names if flags.get(name) is not None}
    return Data(flags.get("data"), {name: folder for name, folder in folders.items() if folder is not None}, **values)


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the Settings that a command line gives. Raises UserError for a value that a flag does not allow."""
    flags: dict[str, Any] = vars(args) | {"workers": getattr(args, "num_workers", None)}
    try:
        return Settings(**{item.name: flags[item.name] for item in fields(Settings) if item.name in flags})
    except ValueError as error:
        raise UserError(str(error)) from None


def request_from(
    args: argparse.Namespace,
    benchmarks: Sequence[str | Benchmark],
    options: Mapping[str, Mapping[str, Any]],
    networks: Any = None,
    skip_missing: bool = False,
) -> "Request":
    """Return the request that a command line makes; `networks` where --model does not name them."""
    from imagenet_biases.engine.evaluate import Loading, Recording, Request
    from imagenet_biases.networks.api import Endpoint

    loading = Loading(
        label=args.name,
        arch=args.arch,
        normalization=args.normalization,
        checkpoints=args.checkpoints,
        allow_unstable=args.allow_unstable,
        frontend=args.frontend,
        trust_remote_code=args.trust_remote_code,
        gradients=args.gradients,
        api=Endpoint.settings_from(args.api_base, args.api) if args.api_base or args.api else None,
    )
    recording = Recording(args.results, args.fresh, args.wandb, args.wandb_project, args.wandb_layout, progress=True)
    return Request(
        networks or args.model,
        benchmarks,
        data_of(args),
        settings_of(args),
        options=options,
        loading=loading,
        recording=recording,
        skip_missing=skip_missing,
    )


@exit_on_user_error
def run(benchmark: Benchmark, description: str, arguments: Sequence[str] | None = None) -> int:
    """Be the script of one benchmark; return the exit status."""
    parser = make_parser(description, benchmark.sets)
    add_options(parser, benchmark.options)
    args = parser.parse_args(arguments)
    options = {option.name: getattr(args, option.name) for option in benchmark.options if hasattr(args, option.name)}
    if answers := _files_in(args, "answers:"):
        options["answers"] = answers
    if predictions := _files_in(args, "predictions:"):
        if args.model:
            raise UserError("files of predictions are scored without a network: name them alone in --model")
        return report_predictions(benchmark, predictions, options, args)
    if benchmark.without_network and report_without_network(benchmark, options, args):
        return 0
    if not args.model:
        raise UserError("--model is missing: name a network, e.g. --model resnet50.a1_in1k or --model net.py:build")
    request = request_from(args, [benchmark], {benchmark.name: options})
    if args.dry_run:
        print_plan(request)
        return 0
    return execute(request)


def _files_in(args: argparse.Namespace, prefix: str) -> list[str]:
    """Return the files that --model names with a prefix, and take them out of it."""
    names = (args.model or "").split(",")
    files = [name for name in names if name.startswith(prefix)]
    if files:
        args.model = ",".join(name for name in names if name not in files) or None
    return [name.removeprefix(prefix) for name in files]


Show = Callable[["Request", Sequence[Any]], None]
"""Prints what a run's records say."""


def execute(request: "Request", show: Show | None = None, show_round: Show = lambda *_: None) -> int:
    """Measure; print the results, and what failed; return the exit status.

    Args:
        show: called at the end of the run, also of an interrupted one; by default `print_results`.
        show_round: called after each round but the last.
    """
    from imagenet_biases.engine.evaluate import Run

    measuring, show = Run(request), show or print_results
    records: list[Any] = []
    try:
        for number, records in enumerate(measuring.rounds(), 1):
            if number < len(request.shares):
                show_round(request, records)
    except (KeyboardInterrupt, Terminated):
        show(request, list(measuring.outcome.records.values()))
        raise
    show(request, records)
    failed = measuring.outcome.failed
    for name, reason in failed.items():
        print(f"error: {name}: {clean(reason)}", file=sys.stderr)
    if failed:
        print(f"error: {len(failed)} networks could not be measured, see above", file=sys.stderr)
    return 1 if failed else 0


def print_results(request: "Request", records: Sequence[Any]) -> None:
    """Print what a run's records report first."""
    if records:
        headlines = {job.name: job.benchmark.headline for job in request.jobs}
        print(table([record.content for record in records], headlines))


def report_without_network(benchmark: Benchmark, options: Mapping[str, Any], args: argparse.Namespace) -> bool:
    """Score answers that come from files (people, other toolboxes' networks); return whether there were any."""
    assert benchmark.without_network is not None
    chosen = _chosen(benchmark, options)
    answers = benchmark.without_network(data_of(args), **chosen)
    if not answers:
        return False
    if args.model:
        raise UserError("files are scored without a network: omit --model")
    _score(benchmark, answers, chosen, args)
    return True


def report_predictions(
    benchmark: Benchmark, files: Sequence[str], options: Mapping[str, Any], args: argparse.Namespace
) -> int:
    """Score files of predictions (networks.predictions) on the images that a benchmark presents unchanged."""
    from imagenet_biases.measures.accuracy import likely_order, top
    from imagenet_biases.networks.load import clean_accuracy_warning
    from imagenet_biases.networks.predictions import scored

    if args.name and len(files) > 1:
        raise UserError(f"--name gives one network a name, but there are {len(files)}; score them one by one")
    chosen = _chosen(benchmark, options)
    for file in files:  # one by one: each has warnings of its own
        with collected_warnings() as notes:
            ((label, results),) = scored(benchmark.passes(data_of(args), **chosen), [file])
            for (images, _), responses in results.items():
                if order := likely_order(responses):
                    warnings.warn(f"{label}, {images}: classes in another order: {order}", stacklevel=2)
                elif images == CLEAN_SET:
                    count = int(responses.counts.sum())
                    if doubt := clean_accuracy_warning(label, None, top(responses).value, count):
                        warnings.warn(doubt, stacklevel=2)
        for note in notes:
            print(f"warning: {clean(note)}", file=sys.stderr)
        _score(benchmark, [(args.name or label, results)], chosen, args, notes)
    return 0


def _chosen(benchmark: Benchmark, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return benchmark.options_from(options)
    except ValueError as error:
        raise UserError(str(error)) from None


def _score(
    benchmark: Benchmark, answers: Any, chosen: dict[str, Any], args: argparse.Namespace, notes: Sequence[str] = ()
) -> None:
    from imagenet_biases.engine.evaluate import score_files

    records = score_files(benchmark, answers, chosen, settings_of(args), args.results, notes)
    for record in records:
        for note in record.content["warnings"]:
            if note not in notes:  # which are printed already
                print(f"warning: {clean(record.model)}: {clean(note)}", file=sys.stderr)
    print(table([record.content for record in records], {benchmark.name: benchmark.headline}))


# The plan -------------------------------------------------------------------------------------------------------------


def print_plan(request: "Request") -> None:
    """Print what is shown to which networks, what is done already, and how long the rest takes; loads no checkpoint.

    Among the processes that torchrun started only the first one prints.
    """
    if not request.runtime.lead:
        return
    from imagenet_biases.engine.cost import forecast
    from imagenet_biases.engine.progress import duration

    runtime, networks = request.runtime, len(request.labels())
    number, count = runtime.shard
    part = f", shard {number} of {count}" if count > 1 else ""
    print(f"Plan: {len(request.jobs)} benchmarks x {networks} networks on {runtime.device}, {runtime.precision}{part}")
    rows, costs = [], []
    for job, cost in forecast(request):
        costs.append((job, cost))
        rows.append(
            f"  {job.name:16} {len(job.image_sets):4} image sets, {cost.images:>11,} images, "
            f"{cost.passes:>15,} forward passes, {sum(cost.todo):>15,} to do, about {duration(sum(cost.seconds))}"
        )
    print("\n".join(rows))
    for line in request.missing:
        print(f"  left out: {line}")
    total = 0.0
    for number, share in enumerate(request.shares):
        total += sum(cost.seconds[number] for _, cost in costs)
        if len(request.shares) > 1 and any(cost.todo[number] for _, cost in costs):
            widest = _widest(number, [job for job, _ in costs])
            print(f"  round {number + 1}, {share:g} %: after about {duration(total)}{widest}")
    print(f"  to do: about {duration(total)}", flush=True)


def _widest(number: int, jobs: Iterable[Any]) -> str:
    """Return in words how uncertain an accuracy of 50 % is after a round, on the smallest sample and by benchmark."""
    from imagenet_biases.estimate import Z95

    widths: dict[str, float] = {}
    for job in jobs:
        images = [(job.goals[images.name][number], images.population) for images in job.image_sets]
        variance = sum(2500 / shown * (1 - shown / population) for shown, population in images)
        if variance:
            widths[job.name] = Z95 * variance**0.5 / len(images)
    listed = ", ".join(f"{name} {width:.2g}" for name, width in widths.items())
    return f"; accuracies to within points: {listed}" if listed else ""


# Results as text ------------------------------------------------------------------------------------------------------


def table(records: Sequence[Mapping[str, Any]], headlines: Mapping[str, Sequence[str]], notes: bool = True) -> str:
    """Return records of one or several benchmarks as text: one row per metric, one column per network.

    Args:
        headlines: {benchmark: patterns of the metrics to show}; all metrics of a benchmark without any.
        notes: whether to add which records are of subsets or samples, and how many metrics are not shown.
    """
    headline = set()
    by_metric: dict[str, dict[str, tuple[float, str]]] = {}
    lines: list[str] = []
    for record in records:
        patterns = headlines.get(record["benchmark"]) or ("*",)
        for metric in record["metrics"]:
            sampled = record.get("sampled", {}).get(metric)
            share = sampled["images"] / sampled["of"] if sampled else 1.0
            cells = by_metric.setdefault(metric, {})
            if share > cells.get(record["model"], (0.0,))[0]:  # of several benchmarks, the one of most images
                cells[record["model"]] = share, _cell(record, metric)
            if any(fnmatch.fnmatchcase(metric, pattern) for pattern in patterns):
                headline.add(metric)
        lines += _parts_shown(record)
    models = list(dict.fromkeys(record["model"] for record in records))
    rows = [["", *models]]
    for metric, cells in by_metric.items():
        if metric in headline:
            rows.append([metric, *(cells.get(model, (0.0, ""))[1] for model in models)])
    if len(headline) < len(by_metric):
        lines.insert(0, f"({len(by_metric) - len(headline)} further metrics in the records)")
    return "\n".join(["", *aligned(rows), *(lines if notes else [])])


def _parts_shown(record: Mapping[str, Any]) -> list[str]:
    """Return in a line each that a record is of a subset, or of a sample."""
    lines, name = [], f"{record['model']}, {record['benchmark']}"
    if subset := record["subset"]:
        lines.append(f"{name}: a subset, {subset['images']} of {subset['of']} images")
    if share := record.get("share"):
        part = f"{100 * share['images'] / share['of']:.3g} %, {share['images']:,} of {share['of']:,} images"
        lines.append(f"{name}: a sample, {part}")
    return lines


def _cell(record: Mapping[str, Any], metric: str) -> str:
    """Return a metric's value with its interval: on a sample, that of what the whole sets would give."""
    value, bounds = record["metrics"][metric], record["intervals"].get(metric)
    if value is None:
        return "-"
    if sampled := record.get("sampled", {}).get(metric):
        bounds = None if sampled["low"] is None else (sampled["low"], sampled["high"])
    return f"{value:.4g}" + (f" [{bounds[0]:.4g}, {bounds[1]:.4g}]" if bounds else "")

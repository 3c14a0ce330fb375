"""The whole study, or any part of it, in as few passes over the images as possible.

Run:   python code/eval_all.py --model all --data ROOT        everything whose images are found under ROOT
       python code/eval_all.py --model resnet50.a1_in1k --imagenet DIR --benchmarks imagenet,imagenet_real
       python code/eval_all.py --model all --data ROOT --submit slurm --jobs 8 --partition gpu
       python code/eval_all.py                                the demo: both calibration networks on a drawn image set
       python code/eval_all.py --model my.pth --imagenet DIR --budget 10m       where it stands, after ten minutes
The plan comes first, with hours by benchmark and round (--dry-run stops there). All benchmarks are measured on 1 % of
their images, then on 5, 20 and 100 % (--rounds); after each round every record is written, with intervals for what all
images would give, and the networks' places among the 48 are printed. What is measured already is not measured again.
The well-tuned attack is half of a study's work and is made only where it is asked for
(--option imagenet_adv.attack=pgd,fgsm,tuned).
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from imagenet_biases import benchmarks
from imagenet_biases.base.errors import UserError, exit_on_user_error
from imagenet_biases.base.files import atomic
from imagenet_biases.cli import execute, make_parser, print_plan, print_results, request_from, table
from imagenet_biases.engine import slurm
from imagenet_biases.engine.progress import duration
from imagenet_biases.results import standings
from imagenet_biases.study import IMAGE_FOLDERS
from imagenet_biases.vocabulary import ROUNDS

DEMO_OPTIONS = {  # all thresholds and both sizes of attacks would take most of the demo's time
    "solarization": {"alpha": "11"},
    "imagenet_adv": {"eps": "0.5/255"},
}
DEMO_ROUNDS = (34.0, 100.0)
DEMO_FIRST = ("shape-bias", "metric/bandpass/LPP", "metric/bandpass/HPP", "metric/criticalband/cf_norm_fine")
DEMO_METRICS = (
    *DEMO_FIRST,
    "top1_acc/cue-conflict",
    "top1_acc/imagenet",
    "top1_acc/imagenet-c",
    "top1_acc/imagenet-sketch",
    "top1_acc/PGD-40/low",
    "metric/criticality/mean",
)


def options_of(words: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return {benchmark: {option: text}} of --option BENCHMARK.NAME=VALUE."""
    options: dict[str, dict[str, str]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        benchmark, dot, option = name.partition(".")
        if not (equals and dot and option):
            raise UserError(f"--option {word}: give BENCHMARK.NAME=VALUE, e.g. --option imagenet_adv.attack=pgd,tuned")
        options.setdefault(benchmark, {})[option] = value
    return options


def default_benchmarks() -> list[str]:
    """Return the names of the benchmarks that run unless others are named."""
    return [name for name in benchmarks.names() if not benchmarks.find(name).on_request]


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--benchmarks", help=f"comma-separated, of: {', '.join(benchmarks.names())} (default: all)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="BENCHMARK.NAME=VALUE",
        help="what a benchmark's own script takes as --NAME VALUE; may be given several times",
    )
    slurm.add_flags(parser.add_argument_group("a cluster"))
    args = parser.parse_args(arguments)
    args.rounds = args.rounds or ROUNDS
    options = options_of(args.option)
    chosen = args.benchmarks.split(",") if args.benchmarks else default_benchmarks()
    if not args.model and not any(getattr(args, name.replace("-", "_")) for name in ("data", *IMAGE_FOLDERS)):
        return demo(args, chosen, options)
    if not args.model:
        raise UserError("--model is missing: name networks or a group, e.g. --model all")
    request = request_from(args, chosen, options, skip_missing=True)
    print_plan(request)
    if args.dry_run:
        return 0
    if args.submit:
        return slurm.submit(Path(__file__).resolve(), sys.argv[1:] if arguments is None else arguments, args)
    return execute(request, show_standing, show_round)


def show_round(request: Any, records: Sequence[Any]) -> None:
    """Print where the networks stand after a round, a line for each."""
    minutes = duration(time.monotonic() - request.runtime.started)
    for line in standings.in_a_line([record.content for record in records]):
        print(f"after {minutes}: {line}", flush=True)


def show_standing(request: Any, records: Sequence[Any]) -> None:
    """Print the results, where the networks stand among the 48, and what comes next."""
    print_results(request, records)
    if lines := standings.as_table([record.content for record in records]):
        print("\n" + "\n".join(lines))
    print("\nNext: python code/merge_results.py puts the records into the table.")


# The demo -------------------------------------------------------------------------------------------------------------


def demo(args: argparse.Namespace, chosen: Sequence[str], options: dict[str, dict[str, str]]) -> int:
    """Measure both calibration networks on a drawn image set; return the exit status."""
    from imagenet_biases.synthetic.image_sets import draw

    args.data, args.model = str(Path(args.results) / "drawn"), "calibration"
    args.rounds = DEMO_ROUNDS if args.rounds == ROUNDS else args.rounds
    args.wandb = "disabled" if args.wandb == "auto" else args.wandb
    print(f"Demo: no network and no images given. Drawing a small image set into {args.data} ...", flush=True)
    draw(args.data)
    for benchmark, of_demo in DEMO_OPTIONS.items():
        if benchmark in chosen:
            options[benchmark] = of_demo | options.get(benchmark, {})
    request = request_from(args, chosen, options, skip_missing=True)
    if args.dry_run:
        print_plan(request)
        return 0
    started = time.monotonic()

    def show(request: Any, records: Sequence[Any], metrics: Sequence[str] = DEMO_METRICS) -> None:
        contents = [record.content for record in records]
        print(table(contents, {record["benchmark"]: metrics for record in contents}, notes=False), flush=True)

    def show_first(request: Any, records: Sequence[Any]) -> None:
        print(f"\nFirst standing, after {time.monotonic() - started:.0f} seconds, from a third of the images:", end="")
        show(request, records, DEMO_FIRST)

    def show_last(request: Any, records: Sequence[Any]) -> None:
        print("\nFrom all images:", end="")
        show(request, records)
        if picture := draw_demo(records):
            print(f"\nPicture: {picture}")

    status = execute(request, show_last, show_first)
    print(DEMO_END.format(results=args.results))
    return status


def draw_demo(records: Iterable[Any]) -> Path | None:
    """Write the demo's picture, where the records that it shows are there; return its path."""
    from imagenet_biases.analysis.demo import demo_figure
    from imagenet_biases.analysis.plotting import FIGURES

    by_network: dict[str, dict[str, Any]] = {}
    for record in records:
        by_network.setdefault(record.model, {})[record.benchmark] = record.content
    needed = {"model_vs_human", "spectral", "criticalband"}
    if not by_network or any(needed - of_network.keys() for of_network in by_network.values()):
        return None
    path = FIGURES / "demo.png"
    with atomic(path) as file:
        demo_figure(by_network).savefig(file, format="png")
    return path


DEMO_END = """
How to read this. One network was taught to go by the silhouette of a thing, the other by the texture of its surface.
So the instrument must find, and finds:
  shape-bias             near 1 for the silhouette network, near 0 for the texture network;
  bandpass/LPP, HPP      what is left of the accuracy with low (high) frequencies alone: much LPP for silhouettes;
  criticalband/cf_norm   the frequency that a network needs, in cycles per image: silhouettes are coarse (below 20), the
                         textures were drawn at 40 to 79;
  top1_acc/...           per cent of images that are recognised; chance is 6.25. In brackets: 95 % intervals.
The drawn images stand for the real ones: no number here says anything about ImageNet. All numbers: {results}/

Your own network:  python code/eval_all.py --model my.pth --imagenet DIR --budget 10m"""

if __name__ == "__main__":
    sys.exit(main())

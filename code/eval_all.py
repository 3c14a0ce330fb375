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

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from imagenet_biases import benchmarks
from imagenet_biases.base.errors import UserError, exit_on_user_error
from imagenet_biases.cli import execute, make_parser, print_plan, print_results, request_from
from imagenet_biases.engine import slurm
from imagenet_biases.engine.progress import duration
from imagenet_biases.results import standings
from imagenet_biases.study import IMAGE_FOLDERS
from imagenet_biases.vocabulary import ROUNDS


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
        from imagenet_biases.demo import demo

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


if __name__ == "__main__":
    sys.exit(main())

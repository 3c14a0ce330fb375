"""The whole study, or any part of it, in as few passes over the images as possible.

Run:   python code/eval_all.py --model all --data ROOT        everything whose images are found under ROOT
       python code/eval_all.py --model resnet50.a1_in1k --imagenet DIR --benchmarks imagenet,imagenet_real
       python code/eval_all.py --model all --data ROOT --submit slurm --jobs 8 --partition gpu
       python code/eval_all.py                                the demo: both calibration networks on a drawn image set
The plan comes first, with hours by benchmark (--dry-run stops there). The clean accuracy of all networks is measured
first, then benchmark by benchmark; each record is written as soon as it is complete, and what is measured already is
not measured again. The well-tuned attack is half of a study's work and is made only where it is asked for
(--option imagenet_adv.attack=pgd,fgsm,tuned).
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from imagenet_biases import benchmarks
from imagenet_biases.base.errors import UserError, exit_on_user_error
from imagenet_biases.cli import execute, make_parser, print_plan, request_from
from imagenet_biases.engine import slurm
from imagenet_biases.study import IMAGE_FOLDERS

DEMO_THRESHOLDS = "21"  # of solarisation: all 101 would take half of the demo's time


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
    options = options_of(args.option)
    chosen = args.benchmarks.split(",") if args.benchmarks else default_benchmarks()
    demo = not args.model and not any(getattr(args, name.replace("-", "_")) for name in ("data", *IMAGE_FOLDERS))
    if demo:
        from imagenet_biases.synthetic.image_sets import draw

        args.data, args.model = str(Path(args.results) / "drawn"), "calibration"
        print(f"Demo: no network and no images given. Drawing a small image set into {args.data} ...", flush=True)
        draw(args.data)
        if "solarization" in chosen:
            options.setdefault("solarization", {}).setdefault("alpha", DEMO_THRESHOLDS)
    if not args.model:
        raise UserError("--model is missing: name networks or a group, e.g. --model all")
    request = request_from(args, chosen, options, skip_missing=True)
    print_plan(request)
    if args.dry_run:
        return 0
    if args.submit:
        return slurm.submit(Path(__file__).resolve(), sys.argv[1:] if arguments is None else arguments, args)
    status = execute(request)
    print(DEMO_END if demo else "\nNext: python code/merge_results.py puts the records into the table.")
    return status


DEMO_END = """
How to read this. Both networks were made by train_calibration.py and know 16 drawn categories. One was taught to go by
the silhouette of a thing, the other by the texture of its surface. So the instrument must find, and finds:
  shape-bias            the share of shape decisions where shape and texture disagree: near 1 for the silhouette
                        network, near 0 for the texture network;
  criticalband/cf_norm  the spatial frequency that a network needs, in cycles per image: silhouettes are coarse (below
                        20), the textures were drawn at 40 to 79;
  bandpass/LPP, HPP     what is left of the accuracy with low (high) frequencies alone: much LPP for silhouettes, more
                        HPP for textures;
  top1_acc/...          per cent of images that are recognised; chance is 6.25. In brackets: 95 % intervals.
The drawn images stand for the real ones: no number here says anything about ImageNet.

Next, with real data:  python code/eval_imagenet.py --model tv_resnet50 --imagenet DIR
Everything at once:    python code/eval_all.py --model all --data ROOT --dry-run"""

if __name__ == "__main__":
    sys.exit(main())

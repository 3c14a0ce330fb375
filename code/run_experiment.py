"""Show people the stimuli that networks are shown: one session of 16-category recognition in the browser.

Papers: Geirhos et al. 2019, arXiv:1811.12231, section 2.1 (the trial); de Leeuw et al. 2023, JOSS 8(85), 5351 (jsPsych,
        MIT licence, which runs the session). docs/experiment.md has set-up, calibration, ethics and timing.
Data:   --set NAME: the sets of model-vs-human, as for eval_model_vs_human.py; --benchmark NAME: ILSVRC-2012 validation,
        of which 80 images per category are shown, each under one condition. --download fetches what is missing of the
        sets, and jsPsych, once; nothing is loaded from a network during a session.
Run:    python code/run_experiment.py --set cue-conflict --model-vs-human DIR --subject me --download
        python code/run_experiment.py --benchmark criticalband --imagenet DIR --subject lab-01
        python code/run_experiment.py --subject me --delete        all data of this subject
Gives:  results/people/NAME/NAME_SUBJECT_session_1.csv in the published layout, a row per answer, written at once, and a
        .json beside it with display and measured durations. The same command resumes an interrupted session. Score:
        python code/eval_model_vs_human.py --trials FILE --model-vs-human DIR     (report.py and plots.ipynb show it)
        python code/eval_categories16.py --trials FILE                            of --benchmark
"""

import argparse
import os
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagenet_biases.base.download import fetch, file_hash, local_path
from imagenet_biases.base.errors import Parser, UserError, exit_on_user_error
from imagenet_biases.base.files import read_bytes
from imagenet_biases.cli import data_of, whole
from imagenet_biases.humans import experiment
from imagenet_biases.humans.categories16 import IMAGES
from imagenet_biases.humans.experiment_server import Laboratory, serve
from imagenet_biases.humans.stimulus_sets import STIMULUS_SETS
from imagenet_biases.humans.trials import NO_MEASUREMENT, OTHER_EXPERIMENTS
from imagenet_biases.networks.registry import checkpoint_folder

JSPSYCH = "8.2.2"
SHA256 = "2862cd25d432e3d50ae403a00615ce8d49e48db090930997234f33cb9cd91e6d"


def jspsych(download: bool) -> Path:
    """Return the path of jsPsych, fetched with `download`; the environment variable names a mirror.

    Raises:
        UserError: it is not there, or is another file.
    """
    base = os.environ.get("JSPSYCH_RELEASE", "https://cdn.jsdelivr.net").rstrip("/")
    address = f"{base}/npm/jspsych@{JSPSYCH}/dist/index.browser.min.js"
    folder = checkpoint_folder(None)
    path = local_path(address, folder, "jspsych.js")
    if not path.exists() and not download:
        raise UserError(f"jsPsych {JSPSYCH} is not here yet: --download fetches it, once (from {base})")
    path = fetch(address, folder, sha256=SHA256, name="jspsych.js")
    if file_hash(path) != SHA256:
        raise UserError(f"{path} is not jsPsych {JSPSYCH}, its sha256 differs: delete it and repeat with --download")
    return path


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(__doc__)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--set", metavar="NAME", choices=list(STIMULUS_SETS), help=f"of {', '.join(STIMULUS_SETS)}")
    shown.add_argument("--benchmark", choices=OTHER_EXPERIMENTS, help="show the stimuli of this benchmark")
    parser.add_argument("--subject", metavar="NAME", required=True, help="a label, nothing personal: lab-01, me")
    parser.add_argument("--model-vs-human", metavar="DIR", help="the data sets of model-vs-human")
    parser.add_argument("--imagenet", metavar="DIR", help="ImageNet validation, unpacked or as .tar, .parquet")
    parser.add_argument("--imagenet-labels", metavar="FILE", help="labels of a flat ImageNet folder, two columns")
    parser.add_argument("--data", metavar="ROOT", help="a folder with folders model-vs-human, imagenet in it")
    parser.add_argument("--allow-partial", action="store_true", help="show incomplete sets, as declared subsets")
    parser.add_argument("--download", action="store_true", help="fetch jsPsych and missing stimulus sets")
    parser.add_argument("--trials", type=whole, metavar="N", help=f"default: a set's images, {IMAGES} of a benchmark")
    parser.add_argument("--practice", type=int, default=160, metavar="N", help="trials with feedback (default: 160)")
    parser.add_argument("--alpha", default="11", metavar="N", help="thresholds of solarization (default: 11)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of noise, order, conditions (default: 0)")
    parser.add_argument(
        "--stimulus-degrees",
        type=float,
        default=3.0,
        metavar="D",
        help="visual angle, by calibration with a bank card (default: 3); 0: 224 CSS pixels, uncalibrated",
    )
    parser.add_argument("--consent", metavar="FILE.md", help="a text to agree to before the session")
    parser.add_argument("--language", metavar="FILE.json", help="all texts of the page, translated")
    parser.add_argument("--list-only", action="store_true", help="write the list of trials, show nothing")
    parser.add_argument("--delete", action="store_true", help="delete all data of this subject")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    parser.add_argument("--results", metavar="DIR", default="results", help="where results are kept (default: results)")
    parser.add_argument(
        "--clock-factor", type=float, default=1.0, metavar="F", help="for tests: F times as fast, marked as such"
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """Raise UserError for values that flags do not allow."""
    if not (args.set or args.benchmark):
        raise UserError("what is to be shown is missing: give --set NAME or --benchmark NAME")
    limits = {"practice": (0, 10_000), "seed": (0, 2**31), "stimulus_degrees": (0, 30), "clock_factor": (1, 100)}
    for name, (low, high) in limits.items():
        if not low <= getattr(args, name) <= high:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name):g}: give a number from {low} to {high}")


def trials_of(args: argparse.Namespace) -> list[experiment.Trial]:
    """Return the subject's trials in their order."""
    data = data_of(args)
    if args.set:
        trials = experiment.trials_of_set(args.set, data, args.download)
    else:
        of_subject = (args.subject, args.seed, args.trials or IMAGES)
        trials = experiment.trials_of_benchmark(args.benchmark, data, args.alpha, *of_subject)
    return experiment.shuffled(trials, args.seed, f"trials {args.subject}", args.trials)


def session_of(args: argparse.Namespace, trials: Sequence[experiment.Trial]) -> experiment.Session:
    """Return the session of a command line, not yet opened."""
    settings = {"seed": args.seed, "clock factor": args.clock_factor, "stimulus degrees": args.stimulus_degrees}
    settings |= {"images": trials[0].images.fingerprint, "times": experiment.TIMES, "jsPsych": JSPSYCH}
    subject = args.subject + (NO_MEASUREMENT if args.clock_factor != 1 else "")
    return experiment.Session(Path(args.results), args.set or args.benchmark, subject, trials, settings)


def page_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the page is told: texts, times in milliseconds, colours."""
    consent = ""
    if args.consent:
        try:
            consent = experiment.simple_markdown(read_bytes(args.consent, 1 << 20).decode())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--consent {args.consent} cannot be read: {error}; give a text file") from None
    level = round(255 * experiment.GREY)
    return {
        "texts": experiment.texts(Path(args.language) if args.language else None),
        "times": {name: duration / args.clock_factor for name, duration in experiment.TIMES.items()},
        "factor": args.clock_factor,
        "degrees": args.stimulus_degrees,
        "grey": f"rgb({level}, {level}, {level})",
        "block": experiment.BLOCK,
        "consent": consent,
    }


def hold(laboratory: Laboratory, with_browser: bool) -> None:
    """Serve a session until its last answer."""
    session, practice = laboratory.session, laboratory.practice
    server, address = serve(laboratory)
    left, practised = len(session.trials) - session.done, 0 if session.done else len(practice)
    print(f"{left} trials and {practised} of practice, about {1 + (left + practised) * 2.3 // 60:.0f} min")
    print(f"The session is at {address} (on this machine only); Ctrl-C interrupts it", flush=True)
    if with_browser and not webbrowser.open(address):
        print("no browser could be opened: open that address", flush=True)
    try:
        while not laboratory.finished.wait(0.5):
            pass
        time.sleep(0.5)  # the page still gets the reply to its last answer
    finally:
        server.shutdown()
        print(session.summary())


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int | None:
    args = make_parser().parse_args(arguments)
    results = Path(args.results)
    subject = experiment.checked_subject(args.subject, results)
    if args.delete:
        for path in experiment.delete(subject, results):
            print(f"deleted {path}")
        print("Tables and figures made before still show them: repeat merge_results.py and report.py")
        return None
    check(args)
    trials = trials_of(args)
    session = session_of(args, trials)
    if args.list_only:
        path = session.path.with_name(f"{session.name}_{subject}_list.csv")
        experiment.write_list(trials, path, session.names)
        print(f"{len(trials)} trials are listed in {path}")
        return None
    practice = experiment.practice_trials(trials, data_of(args), args.seed, args.practice, args.download)
    laboratory = Laboratory(session, practice, page_of(args), jspsych(args.download))
    session.open()
    if session.done < len(trials):
        hold(laboratory, not args.no_browser)
    else:
        print(session.summary())
    script = "eval_model_vs_human.py" if args.set else "eval_categories16.py"
    folder = " --model-vs-human DIR" if args.set else ""
    print(f"To score it: python code/{script} --trials {session.path}{folder}")
    return None


if __name__ == "__main__":
    sys.exit(main())

"""Spectral bias, critical band and solarization on 16 categories: people beside networks on identical images.

Papers: those of eval_spectral.py, eval_criticalband.py and eval_solarization.py; the 16 categories of Geirhos et al.
        2018, arXiv:1808.08750.
Data:   ILSVRC-2012 validation, as for eval_imagenet.py; of it the first 80 images per category in the set's order,
        those that run_experiment.py --benchmark NAME shows people.
Run:    python code/eval_categories16.py --model tv_resnet50 --imagenet DIR
        python code/eval_categories16.py --trials results/people/criticalband/criticalband_me_session_1.csv
Gives:  the metrics of the three benchmarks under their names with /16, e.g. metric/criticalband/bw_norm/16. A network
        answers with the category, of 16, that has the highest mean probability; a person who does not answer is wrong.
        Chance is 6.25 %, not 0.1 %, so values are not to be compared with those of 1,000 classes.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from imagenet_biases.base.errors import UserError
from imagenet_biases.cli import run
from imagenet_biases.humans import categories16
from imagenet_biases.humans.trials import OTHER_EXPERIMENTS
from imagenet_biases.vocabulary import Benchmark, Data, Option, Pass


def passes(data: Data, benchmark: Sequence[str], alpha: str, images: int, trials: Sequence[str] | None) -> list[Pass]:
    """Show the images of the 16 categories under the conditions of the benchmarks."""
    if trials:
        raise UserError("--trials scores files without a network: give it to eval_categories16.py alone")
    shown = [categories16.presented(name, data, alpha, images) for name in benchmark]
    return [Pass(images, conditions, categories16.READOUT) for images, conditions in shown]


def from_files(data: Data, trials: Sequence[str] | None, **_: Any) -> Any:
    """Return the responses of every subject in trial files, or None without files."""
    return categories16.from_files(trials) if trials else None


OPTIONS = (
    Option("benchmark", OTHER_EXPERIMENTS, "what is presented", choices=OTHER_EXPERIMENTS, several=True),
    Option("alpha", "11", "the thresholds of solarization, as in eval_solarization.py"),
    Option("images", categories16.IMAGES, "how many, an equal number per category", type=int),
    Option("trials", None, "score these trial files instead of networks", several=True),
)

BENCHMARK = Benchmark(
    "categories16",
    passes,
    categories16.report,
    options=OPTIONS,
    without_network=from_files,
    on_request=True,
    headline=("*/imagenet/16", "metric/bandpass/*P/16", "*spectral-bias/16", "*_norm*/16", "*/sd0/16", "*solarize/m*"),
)

main = partial(run, BENCHMARK, __doc__)

if __name__ == "__main__":
    sys.exit(main())

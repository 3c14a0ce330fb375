"""The demo: both calibration networks, whose biases are known, over every benchmark on a drawn image set."""

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from imagenet_biases.analysis.plotting import FIGURES, laid_out
from imagenet_biases.base.files import atomic
from imagenet_biases.cli import execute, print_plan, request_from, table
from imagenet_biases.measures.spatial_channel import BANDS
from imagenet_biases.study import CUTOFFS
from imagenet_biases.synthetic.image_sets import draw
from imagenet_biases.vocabulary import ROUNDS

OPTIONS = {  # all thresholds and both sizes of attacks would take most of the demo's time
    "solarization": {"alpha": "11"},
    "imagenet_adv": {"eps": "0.5/255", "steps": "10", "step_size": "0.125/255"},
    "criticality": {"draws": "1"},
}
SHARES = (34.0, 100.0)
PICTURED = ("model_vs_human", "spectral", "criticalband")  # the benchmarks of the first standing and of the picture
FIRST = ("shape-bias", "metric/bandpass/LPP", "metric/bandpass/HPP", "metric/criticalband/cf_norm_fine")
METRICS = (
    *FIRST,
    "top1_acc/cue-conflict",
    "top1_acc/imagenet",
    "top1_acc/imagenet-c",
    "top1_acc/imagenet-sketch",
    "top1_acc/PGD-10/*",
    "metric/criticality/mean",
)

COLOURS = ("#1b6ca8", "#c1440e")
Contents = Mapping[str, Mapping[str, Mapping[str, Any]]]


@laid_out
def demo_figure(records: Contents) -> Figure:
    """Draw shape bias, accuracy by low- and high-pass, and which frequencies a network needs.

    Args:
        records: {network: {benchmark: content}}.
    """
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(0.7, 1.2, 1))
    for number, (network, of_network) in enumerate(records.items()):
        look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "label": network.removeprefix("calibration_")}
        bias = of_network["model_vs_human"]
        value = bias["metrics"]["shape-bias"]
        low, high = bias["intervals"]["shape-bias"]
        axes[0].errorbar([number], [value], [[value - low], [high - value]], fmt="o", capsize=4, **look)
        for kind, style in (("LFC", "-"), ("HFC", "--")):
            ratios = [of_network["spectral"]["metrics"][f"metric/bandpass/{kind}/{cutoff}"] for cutoff in CUTOFFS]
            axes[1].plot(CUTOFFS, ratios, style, color=look["color"])
        thresholds = of_network["criticalband"]["details"]["channel_norm_fine"]["thresholds"]
        axes[2].plot([1.75 * 2.0**band for band in BANDS], thresholds, "o-", **look)
    axes[0].set(ylim=(-0.08, 1.08), xlim=(-0.6, len(records) - 0.4), xticks=[])
    axes[0].set(title="does shape decide?", ylabel="shape bias: 0 texture, 1 shape")
    axes[1].set(title="which frequencies suffice?", xlabel="share of the spectrum kept")
    axes[1].set_ylabel("accuracy / clean accuracy")
    axes[1].plot([], [], "k-", label="low-pass")
    axes[1].plot([], [], "k--", label="high-pass")
    axes[2].set(title="which are needed?", xlabel="noise at ... cycles per image", ylabel="sensitivity in noise levels")
    axes[2].set_xscale("log")
    axes[1].legend(frameon=False)
    axes[2].legend(frameon=False)
    return figure


def demo(args: argparse.Namespace, chosen: Sequence[str], options: dict[str, dict[str, str]]) -> int:
    """Measure both calibration networks on a drawn image set; return the exit status."""
    args.data, args.model = str(Path(args.results) / "drawn"), "calibration"
    args.rounds = SHARES if args.rounds == ROUNDS else args.rounds
    args.wandb = "disabled" if args.wandb == "auto" else args.wandb
    args.compile = "off" if args.compile == "auto" else args.compile  # compiling would take longer than it saves
    started = time.monotonic()
    print(f"Demo: no network and no images given. Drawing a small image set into {args.data} ...", flush=True)
    draw(args.data)
    for benchmark, of_demo in OPTIONS.items():
        if benchmark in chosen:
            options[benchmark] = of_demo | options.get(benchmark, {})
    if args.dry_run:
        print_plan(request_from(args, chosen, options, skip_missing=True))
        return 0

    def show(request: Any, records: Sequence[Any], metrics: Sequence[str] = METRICS) -> None:
        contents = [record.content for record in records]
        print(table(contents, {record["benchmark"]: metrics for record in contents}, notes=False), flush=True)

    def show_first(request: Any, records: Sequence[Any]) -> None:
        if any(record.content["share"] for record in records):  # a repeated demo has all images at once
            seconds = time.monotonic() - started
            print(f"\nFirst standing, after {seconds:.0f} seconds, from a third of the images:", end="")
            show(request, records, FIRST)

    def show_last(request: Any, records: Sequence[Any]) -> None:
        print("\nFrom all images:", end="")
        show(request, records)
        if picture := draw_demo(records):
            print(f"\nPicture: {picture}")

    # a round ends when all benchmarks have done their share of it: what the first standing shows has a run of its own
    first = [name for name in chosen if name in PICTURED]
    if first and args.rounds == SHARES and not args.budget:
        args.rounds = SHARES[:1]
        execute(request_from(args, first, {name: options.get(name, {}) for name in first}), show_first)
        args.rounds, args.fresh = SHARES, False
    status = execute(request_from(args, chosen, options, skip_missing=True), show_last)
    print(END.format(results=args.results))
    return status


def draw_demo(records: Iterable[Any]) -> Path | None:
    """Write the demo's picture, where the records that it shows are there; return its path."""
    by_network: dict[str, dict[str, Any]] = {}
    for record in records:
        by_network.setdefault(record.model, {})[record.benchmark] = record.content
    if not by_network or any(set(PICTURED) - of_network.keys() for of_network in by_network.values()):
        return None
    path = FIGURES / "demo.png"
    with atomic(path) as file:
        demo_figure(by_network).savefig(file, format="png")
    return path


END = """
How to read this. One network was taught to go by the silhouette of a thing, the other by the texture of its surface.
So the instrument must find, and finds:
  shape-bias             near 1 for the silhouette network, near 0 for the texture network;
  bandpass/LPP, HPP      what is left of the accuracy with low (high) frequencies alone: much LPP for silhouettes;
  criticalband/cf_norm   the frequency that a network needs, in cycles per image: silhouettes are coarse (below 20), the
                         textures were drawn at 40 to 79;
  top1_acc/...           per cent of images that are recognised; chance is 6.25. In brackets: 95 % intervals.
The drawn images stand for the real ones: no number here says anything about ImageNet. All numbers: {results}/

Your own network:  python code/eval_all.py --model my.pth --imagenet DIR --budget 10m"""

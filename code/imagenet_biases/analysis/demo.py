"""The demo's picture: what was found of two networks that were made to differ."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from imagenet_biases.analysis.plotting import laid_out
from imagenet_biases.measures.spatial_channel import BANDS
from imagenet_biases.study import CUTOFFS

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

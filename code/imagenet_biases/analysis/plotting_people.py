"""Figures that set networks beside people, one function each: tables of humans.agreement in, a matplotlib Figure out.

People are black, with a grey band from the least to the best of them; networks have the colours of plotting.Highlight.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from imagenet_biases.analysis.plotting import (
    BAND,
    HIGHLIGHT_COLOURS,
    HIGHLIGHT_MARKERS,
    Highlight,
    columns_of,
    laid_out,
    printed,
)
from imagenet_biases.humans.agreement import (
    PARAMETRIC,
    PEOPLE,
    accuracy_by_condition,
    bias_by_category,
    consistency_by_condition,
    consistency_matrix,
    in_order,
    pairs,
)
from imagenet_biases.results.table import RAW_DATA

ARCHITECTURES = {"resnet18": "#0072B2", "resnet50": "#D55E00", "wide_resnet50_2": "#009E73", "xcit": "#CC79A7"}
NORMS = {"l2": ("o", "ℓ2"), "linf": ("^", "ℓ∞"), "": ("D", "XCiT")}


def looks(observers: Sequence[str], chosen: Sequence[Highlight] = ()) -> dict[str, tuple[str, str]]:
    """Return {observer: (colour, marker)}: highlighted networks as in the other figures, people black."""
    styles = {PEOPLE: ("black", "d")}
    for highlight in chosen:
        if highlight.model in observers and highlight.model != PEOPLE:
            styles[highlight.model] = highlight.colour, highlight.marker
    taken = {colour for colour, _ in styles.values()}
    free = [colour for colour in HIGHLIGHT_COLOURS if colour not in taken] or list(HIGHLIGHT_COLOURS)
    remaining = [observer for observer in observers if observer not in styles]
    for place, observer in enumerate(remaining):
        styles[observer] = free[place % len(free)], HIGHLIGHT_MARKERS[place % len(HIGHLIGHT_MARKERS)][0]
    return {observer: styles[observer] for observer in observers}


def _legend(figure: Figure, style: Mapping[str, tuple[str, str]]) -> None:
    keys = [Line2D([], [], color=c, marker=m, ms=5, lw=1.4, label=name) for name, (c, m) in style.items()]
    figure.legend(handles=keys, loc="outside upper center", ncols=columns_of(figure, [*map(str, style)]), frameon=False)


@laid_out
def shape_bias_by_category(bias: pd.DataFrame, chosen: Sequence[Highlight] = ()) -> Figure:
    """Draw the shape bias by shape category with 95 % intervals (humans.agreement.bias_by_category); lines: overall."""
    style = looks([*dict.fromkeys(bias["observer"])], chosen)
    sortable = bias[bias["category"] != "all"]
    lead = sortable[sortable["observer"] == PEOPLE] if PEOPLE in style else sortable
    names = [*lead.groupby("category")["value"].mean().sort_values().index]
    figure = Figure(figsize=(6.4, 5.2 + 0.15 * len(style)), layout="constrained")
    ax = figure.subplots()
    for place, (observer, (colour, marker)) in enumerate(style.items()):
        of_observer = bias[bias["observer"] == observer].set_index("category")
        by_name = of_observer.reindex(names)
        y = np.arange(len(names)) + 0.3 * (place / max(len(style) - 1, 1) - 0.5)
        ax.hlines(y, by_name["low"], by_name["high"], color=colour, lw=0.8, alpha=0.6, zorder=2)
        ax.scatter(by_name["value"], y, color=colour, marker=marker, s=26, zorder=3)
        ax.axvline(of_observer["value"]["all"], color=colour, lw=1, ls=(0, (4, 2)), zorder=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylabel("shape category")
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("shape bias: shape / (shape + texture decisions)   (dashed: over all categories)")
    _legend(figure, style)
    return figure


@laid_out
def by_condition(rows: pd.DataFrame, label: str, chosen: Sequence[Highlight] = ()) -> Figure:
    """Draw a measure over the conditions of each parametric set (accuracy_by_condition, consistency_by_condition)."""
    style = looks([*dict.fromkeys(rows["observer"])], chosen)
    figure = Figure(figsize=(10.4, 7.6), layout="constrained")
    axes = figure.subplots(3, 4, sharey=True)
    for ax, name in zip(axes.ravel(), PARAMETRIC, strict=True):
        of_set = rows[rows["set"] == name]
        levels = in_order(name, of_set["level"])
        x = np.arange(len(levels))
        for observer, (colour, marker) in style.items():
            by_level = of_set[of_set["observer"] == observer].set_index("level").reindex(levels)
            if observer == PEOPLE:
                ax.fill_between(
                    x, by_level["low"].astype(float), by_level["high"].astype(float), color=BAND, lw=0, zorder=1
                )
            ax.plot(x, by_level["value"].astype(float), color=colour, marker=marker, ms=4, lw=1.3, zorder=3)
        ax.set_title(name)
        ax.set_xticks(x, levels, rotation=45 if len(levels) > 4 else 0, fontsize=7)
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    figure.supxlabel("condition, the least manipulated first", fontsize=8)
    _legend(figure, style)
    return figure


@laid_out
def error_consistency(matrix: pd.DataFrame) -> Figure:
    """Draw the error consistencies between people and networks (humans.agreement.consistency_matrix)."""
    size, longest = len(matrix), max(map(len, matrix.index))
    figure = Figure(
        figsize=(2.4 + 0.5 * size + 0.055 * longest, 1.6 + 0.5 * size + 0.04 * longest), layout="constrained"
    )
    ax = figure.subplots()
    values = matrix.to_numpy(float)
    image = ax.imshow(values, cmap="viridis", vmin=0, vmax=max(0.6, np.nanmax(values, initial=0)))
    for row, column in np.argwhere(~np.isnan(values)):
        luminance = np.dot(image.to_rgba(values[row, column])[:3], (0.299, 0.587, 0.114))
        ax.text(column, row, printed(float(values[row, column])), ha="center", va="center", fontsize=7,
                color="white" if luminance < 0.5 else "black")  # fmt: skip
    ax.set_xticks(range(size), matrix.columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(size), matrix.index)
    ax.set_xlabel("observer")
    ax.set_ylabel("observer")
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, label="error consistency (Cohen's κ)", shrink=0.8)
    return figure


def published_likeness() -> pd.DataFrame:
    """Return the published human-likeness of 49 networks, raw-data/human_likeness.csv; norm '' without a norm."""
    return pd.read_csv(RAW_DATA / "human_likeness.csv").fillna({"norm": ""})


@laid_out
def human_likeness(table: pd.DataFrame, chosen: Sequence[Highlight] = ()) -> Figure:
    """Draw published accuracy difference and consistencies with people of 49 networks, and those measured here.

    `table`: as read_table returns it. Adversarially trained networks grow with ε.
    """
    published = published_likeness()
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    panels = (("accuracy_diff", "accuracy-difference", "squared difference of accuracies"),
              ("observed_consistency", "observed-consistency", "observed consistency"))  # fmt: skip
    highlighted = [highlight for highlight in chosen if "metric/human/error-consistency" in table]
    for ax, (column, measure, label) in zip(axes, panels, strict=True):
        for (arch, norm), group in published.groupby(["arch", "norm"]):
            largest = {"l2": 5, "linf": 8, "": 1}[str(norm)]
            colour, marker = ARCHITECTURES[str(arch)], NORMS[str(norm)][0]
            ax.scatter(group[column], group["error_consistency"], color=colour, marker=marker,
                       s=12 + 60 * (group["eps"].fillna(0) / largest) ** 0.5, edgecolor="white", lw=0.4)  # fmt: skip
        for highlight in highlighted:
            measured = highlight.of(table)
            x, y = measured[f"metric/human/{measure}"], measured["metric/human/error-consistency"]
            look = {"color": highlight.colour, "marker": highlight.marker, "edgecolor": "black", "lw": 0.9}
            ax.scatter(x, y, s=60, zorder=5, **look)
        ax.margins(0.08)
        ax.set_xlabel(f"{label} with people")
    axes[0].set_ylabel("error consistency with people")
    keys = [Line2D([], [], ls="", marker="s", color=c, label=a) for a, c in ARCHITECTURES.items()]
    keys += [Line2D([], [], ls="", marker=m, color="#666666", label=n) for m, n in list(NORMS.values())[:2]]
    for highlight in highlighted:
        look: dict[str, Any] = {"marker": highlight.marker, "color": highlight.colour, "label": highlight.label}
        keys.append(Line2D([], [], ls="", mec="black", **look))
    labels = [str(key.get_label()) for key in keys]
    figure.legend(handles=keys, loc="outside lower center", ncols=columns_of(figure, labels), frameon=False)
    return figure


def people_figures(
    table: pd.DataFrame, frame: pd.DataFrame | None, chosen: Sequence[Highlight] = ()
) -> Iterator[tuple[str, Figure]]:
    """Yield (name, figure) of all figures with people.

    `table`: as read_table returns it; `frame`: a trial table (humans.agreement.read_observers), or None.
    """
    yield "human_likeness", human_likeness(table, chosen)
    if frame is None:
        return
    bias, accuracy, compared = bias_by_category(frame), accuracy_by_condition(frame), pairs(frame)
    if len(bias):
        yield "shape_bias_by_category", shape_bias_by_category(bias, chosen)
    if len(accuracy):
        yield "accuracy_by_condition", by_condition(accuracy, "accuracy [%]", chosen)
    lines = consistency_by_condition(compared)
    if len(lines):
        yield "consistency_by_condition", by_condition(lines, "error consistency\nwith people (κ)", chosen)
    matrix = consistency_matrix(compared)
    if len(matrix):
        yield "error_consistency", error_consistency(matrix)

"""The study's figures and ours, one function per figure: table and statistics in, a matplotlib Figure out.

Every category has a distinct marker and a colour that people with colour-vision deficiencies can tell apart (Okabe &
Ito 2008), so that the figures also work in black and white. Published values are filled, measured ones open. Values on
samples are open, with bars over the 95 % interval of what the whole image sets would give.
Highlighted networks have their own colour and name and lie on top; curves have the study's 48 networks behind them.
Networks that were made for drawn images appear in one separate figure only.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from scipy.special import logit

from imagenet_biases.analysis.power import METHOD_LABELS, STRENGTHS
from imagenet_biases.analysis.statistics import (
    ALL_BIASES,
    GIVEN,
    OUT,
    OUT_WITHIN,
    SPEARMAN,
    WITHIN,
    effective_robustness,
)
from imagenet_biases.analysis.witnesses import SETS, TITLES, agreement
from imagenet_biases.base.errors import UserError, nearest
from imagenet_biases.base.files import atomic
from imagenet_biases.base.paths import HOME
from imagenet_biases.networks.registry import registry
from imagenet_biases.results.measurements import Projection, whole
from imagenet_biases.results.table import KEYS, RAW_DATA, Projections, derived, projections
from imagenet_biases.study import (
    BIASES,
    CONTROL,
    CUTOFFS,
    DRAWN_CATEGORIES,
    FLAGGED,
    FURTHER_BIASES,
    SCORES,
    STUDY_CATEGORIES,
    about,
)

FIGURES = HOME / "figures"


@dataclass(frozen=True)
class Style:
    """How a category looks, in matplotlib and in plotly."""

    label: str
    colour: str
    marker: str
    symbol: str


STYLES = {
    "baseline": Style("baseline", "#000000", "*", "star"),
    "training_recipes": Style("training recipes", "#0072B2", "o", "circle"),
    "augmentation": Style("augmentation", "#E69F00", "s", "square"),
    "stylized": Style("stylized", "#CC79A7", "D", "diamond"),
    "freezing": Style("freezing", "#7F7F7F", "X", "x"),
    "adversarial_training": Style("adversarial training", "#D55E00", "^", "triangle-up"),
    "contrastive": Style("contrastive", "#009E73", "v", "triangle-down"),
    "calibration": Style("calibration (drawn)", "#56B4E9", "h", "hexagon"),
    "dial": Style("dial (drawn)", "#8A5FBF", "p", "pentagon"),
    "": Style("no category", "#B0B0B0", "P", "cross"),
}
HIGHLIGHT_COLOURS = ("#E6007E", "#7A52FF", "#00918A", "#A8620A", "#D0202A", "#7A8A00", "#2C77C8", "#B63AB6")
HIGHLIGHT_MARKERS = (("o", "circle"), ("s", "square"), ("D", "diamond"), ("^", "triangle-up"))  # matplotlib, plotly
MOST_HIGHLIGHTS = 12  # by default
BAND = "#DADADA"
CRITICAL = "metric/criticality"
RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # text stays text
    "figure.dpi": 110,
    "savefig.dpi": 220,
}


P = ParamSpec("P")


def laid_out(function: Callable[P, Figure | None]) -> Callable[P, Any]:
    """Give the figure that a function makes the style of RC, and lay it out once, not again for every file."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure | None:
        with mpl.rc_context(RC):
            figure = function(*args, **kwargs)
            if figure:
                figure.draw_without_rendering()
                figure.set_layout_engine("none")
            return figure

    return wrapped


def epsilon(model: str) -> tuple[str, float] | None:
    """Return (norm, ε) of an adversarially trained network from the zoo (ε of ℓ∞ in 1/255), or None."""
    entry = registry().get(model)
    return (entry.norm, entry.eps) if entry and entry.eps is not None else None


def size(model: str) -> float:
    """Return the marker area of a network in points²; it grows with ε (up to 5 for ℓ2, 8/255 for ℓ∞)."""
    if not (trained := epsilon(model)):
        return 22.0
    norm, eps = trained
    return 8.0 + 62.0 * (eps / {"l2": 5.0, "linf": 8.0}[norm]) ** 0.5


@dataclass(frozen=True)
class Highlight:
    """A network that the figures are about: its row in the table, its name in legends, how it looks."""

    model: str
    source: str
    label: str
    colour: str
    marker: str
    symbol: str

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return its rows."""
        return rows[(rows["model"] == self.model) & (rows["source"] == self.source)]


def highlights(table: pd.DataFrame, names: Sequence[str] | None = None) -> list[Highlight]:
    """Return a highlight for each row of the networks `names`; measured rows first.

    Default: the networks measured on photographs; if there are many, only those that the study does not have.

    Raises:
        UserError: a name is not in the table.
    """
    models = set(table["model"])
    for name in names or ():
        if name not in models:
            raise UserError(
                f"there is no network {name!r} in the tables to highlight; {nearest(name, models)}".removesuffix("; ")
            )
    if names:
        rows = pd.concat([table[table["model"] == name] for name in dict.fromkeys(names)])
    else:
        rows = table[table["source"].ne("published") & ~table["category"].isin(DRAWN_CATEGORIES)]
        published = set(table.loc[table["source"] == "published", "model"])
        rows = rows if len(rows) <= MOST_HIGHLIGHTS else rows[~rows["model"].isin(published)]
    rows = rows.assign(later=rows["source"].eq("published")).sort_values("later", kind="stable")
    sources = table.groupby("model")["source"].nunique()
    chosen = []
    row: Any
    for number, row in enumerate(rows.itertuples()):
        label = f"{row.model}, {row.source}" if sources[row.model] > 1 else row.model
        turn, colour = divmod(number, len(HIGHLIGHT_COLOURS))
        look = HIGHLIGHT_MARKERS[(colour + turn) % len(HIGHLIGHT_MARKERS)]
        chosen.append(Highlight(row.model, row.source, label, HIGHLIGHT_COLOURS[colour], *look))
    return chosen


def listed(text: str | None) -> list[str] | None:
    """Return the names in a comma-separated list, as --highlight has them; None without a list."""
    return [name for name in map(str.strip, text.split(",")) if name] if text else None


def _background(rows: pd.DataFrame, chosen: Iterable[Highlight]) -> pd.DataFrame:
    """Return the rows that are not highlighted."""
    keys = {(highlight.model, highlight.source) for highlight in chosen}
    return rows[[key not in keys for key in zip(rows["model"], rows["source"], strict=True)]]


def _draw(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, chosen: Sequence[Highlight] = (), samples: Projections | None = None
) -> None:
    """Scatter rows, category by category, and the highlighted ones on top of them; values on samples with bars."""
    _draw_categories(ax, _background(rows, chosen), x, y)
    colours = {(highlight.model, highlight.source): highlight.colour for highlight in chosen}
    partly = _draw_bars(ax, rows, x, y, samples or {}, colours)
    for highlight in chosen:
        points = highlight.of(rows)
        look = {"facecolor": highlight.colour, "edgecolor": "black", "linewidth": 0.8}
        if (highlight.model, highlight.source) in partly:
            look = {"facecolor": "white", "edgecolor": highlight.colour, "linewidth": 1.4}
        ax.scatter(points[x], points[y], s=46, zorder=6, clip_on=False, marker=highlight.marker, **look)


def _draw_bars(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, samples: Projections, colours: Mapping[tuple[str, str], str]
) -> set[tuple[str, str]]:
    """Draw the intervals of points on samples; return the (model, source) of these."""
    partly: set[tuple[str, str]] = set()
    for row in rows.to_dict("records") if samples else ():
        key = row["model"], row["source"]
        for name, other, draw in ((x, y, ax.hlines), (y, x, ax.vlines)):
            projection = samples.get(key, {}).get(name)
            if projection is None or projection.share == 1 or pd.isna(row[other]):
                continue
            partly.add(key)
            if projection.low is not None and projection.high is not None:
                colour = colours.get(key, STYLES[str(row["category"])].colour)
                draw(row[other], projection.low, projection.high, color=colour, lw=1, zorder=5)
    return partly


def _draw_categories(ax: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    for (category, measured), group in rows.groupby(["category", rows["source"].ne("published")]):
        look = STYLES[str(category)]
        ax.scatter(
            group[x],
            group[y],
            s=[size(model) * (2.6 if look.marker == "*" else 1) for model in group["model"]],
            marker=look.marker,
            facecolor="none" if measured else look.colour,
            edgecolor=look.colour if measured else "white",
            linewidth=1.1 if measured else 0.4,
            alpha=1 if measured else 0.9,
            zorder=4 if measured or category == "baseline" else 3,
        )


def _key(look: Style | Highlight, label: str, **face: Any) -> Line2D:
    size = 9 if look.marker == "*" else 6
    face = face or {"mfc": look.colour, "mec": "white", "mew": 0.4}
    return Line2D([], [], ls="", marker=look.marker, ms=size, label=label, **face)


def _legend(
    figure: Figure,
    rows: pd.DataFrame,
    chosen: Sequence[Highlight] = (),
    samples: Projections | None = None,
    **settings: Any,
) -> None:
    background = _background(rows, chosen)
    sized = {"adversarial_training": ", small to large ε"}
    keys = [_key(s, s.label + sized.get(c, "")) for c, s in STYLES.items() if (background["category"] == c).any()]
    if background["source"].ne("published").any():
        keys.append(_key(STYLES["training_recipes"], "open: measured here", mfc="none", mec="#444444"))
    for highlight in chosen:
        if len(highlight.of(rows)):
            keys.append(_key(highlight, highlight.label, mfc=highlight.colour, mec="black", mew=0.8))
    if samples:
        bar = {"ls": "-", "color": "#444444", "lw": 1, "marker": "o", "ms": 6, "mfc": "white"}
        keys.append(Line2D([], [], label="with bars: from a sample, 95 % of what all images give", **bar))
    columns = columns_of(figure, [str(key.get_label()) for key in keys])
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False, **settings)


def columns_of(figure: Figure, labels: Sequence[str]) -> int:
    """Return how many columns of a legend fit the figure's width: 0.06 inches per letter of 8 points."""
    longest = max(map(len, labels), default=0)
    return max(1, min(5, len(labels), int(figure.get_figwidth() / (0.4 + 0.06 * longest))))


def _band(ax: Axes, x: Sequence[float], values: pd.DataFrame, baseline: pd.Series) -> None:
    """Draw the study's networks behind a curve: 5 to 95 %, the median; the baseline dashed. `values`: [n, len(x)]."""
    low, median, high = np.nanquantile(values, (0.05, 0.5, 0.95), axis=0)
    ax.fill_between(x, low, high, color=BAND, lw=0, zorder=1, label=f"5 to 95 % of {len(values)} published networks")
    ax.plot(x, median, color="#888888", lw=1, zorder=2, label="their median")
    ax.plot(x, baseline, color="black", lw=0.9, ls=(0, (4, 2)), zorder=5, label="baseline")


def _bias_axis(axis: Axes, bias: str) -> None:
    if about(bias).logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())


def printed(value: float, digits: int = 2) -> str:
    """Return a number as it is printed: a true minus sign, and no negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _interval(row: Any, between: str) -> str:
    return f"{printed(row.estimate)}{between}[{printed(row.low)}, {printed(row.high)}]"


def _pick(statistics: pd.DataFrame, method: str, excluded: str = "none") -> Any:
    """Return the rows of a method, a frame whose .loc[bias, score] is a row (to pandas' stubs it is a scalar)."""
    selected = statistics[(statistics["method"] == method) & (statistics["excluded"] == excluded)]
    return selected.set_index(["bias", "score"])


@laid_out
def biases_and_scores(
    rows: pd.DataFrame,
    statistics: pd.DataFrame,
    biases: Sequence[str] = BIASES,
    chosen: Sequence[Highlight] = (),
    samples: Projections | None = None,
) -> Figure:
    """Draw each bias against each score, one point per network, with Spearman's ρ within categories.

    `rows`: networks with derived columns; `statistics`: as analysis.statistics returns them; `samples`: as
    results.table.projections returns them, here and below.
    """
    figure = Figure(figsize=(1.2 + 1.6 * len(biases), 7.4), layout="constrained")
    axes = figure.subplots(len(SCORES), len(biases), sharex="col", sharey="row")
    within, overall = (_pick(statistics, method) for method in (WITHIN, SPEARMAN))
    for line, score in zip(axes, SCORES, strict=True):
        line[0].set_ylabel(about(score).label)
        for ax, bias in zip(line, biases, strict=True):
            _draw(ax, rows, bias, score, chosen, samples)
            ax.margins(0.08)
            _bias_axis(ax, bias)
            if (bias, score) in within.index:
                row = within.loc[bias, score]
                weight = "bold" if row.p_holm < 0.05 else "normal"
                title = f"{_interval(row, ' ')}, all {printed(overall.loc[bias, score].estimate)}"
                ax.set_title(title, fontweight=weight, fontsize=7, pad=3)
    for ax, bias in zip(axes[-1], biases, strict=True):
        ax.set_xlabel(about(bias).label.replace(" [", "\n["))
    text = "Spearman's ρ within categories, 95 % interval, and over all networks;{}bold: p < 0.05 within, after Holm's"
    _legend(figure, rows, chosen, samples, title=text.format(" " if len(biases) > 5 else "\n") + " correction")
    return figure


def _of_study(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["source"].eq("published") & rows["category"].isin(STUDY_CATEGORIES)]


def _curve_bars(
    ax: Axes, x: Iterable[float], columns: Sequence[str], by_name: Mapping[str, Projection], colour: Any
) -> dict[str, Any]:
    """Draw the intervals of a curve's values on samples; return what a line with such values looks like besides."""
    look: dict[str, Any] = {}
    for place, column in zip(x, columns, strict=True):
        part = by_name.get(column, whole(0))
        if part.share < 1:
            look["mfc"] = "white"
        if part.share < 1 and part.low is not None and part.high is not None:
            ax.vlines(place, part.low, part.high, color=colour, lw=1, zorder=5)
    return look


def _highlighted_curve(
    ax: Axes, rows: pd.DataFrame, columns: Sequence[str], highlight: Highlight, samples: Projections | None
) -> None:
    """Draw a highlighted network's band-pass curve; on samples with open markers and bars."""
    look: dict[str, Any] = {"color": highlight.colour, "marker": highlight.marker, "label": highlight.label}
    by_name = (samples or {}).get((highlight.model, highlight.source), {})
    look |= _curve_bars(ax, CUTOFFS, columns, by_name, highlight.colour)
    ax.plot(CUTOFFS, highlight.of(rows)[columns].to_numpy().T, lw=1.6, ms=3.5, zorder=6, **look)


@laid_out
def bandpass_curves(rows: pd.DataFrame, chosen: Sequence[Highlight] = (), samples: Projections | None = None) -> Figure:
    """Draw accuracy under low- and high-pass relative to clean: highlighted networks, then category by category.

    Behind all of them: the study's networks (5 to 95 %, median) and the baseline. Bold: the median of a category.
    """
    background = _background(rows, chosen)
    categories = [category for category in STYLES if (background["category"] == category).any()]
    curves = "^metric/bandpass/[LH]FC/"
    chosen = [highlight for highlight in chosen if highlight.of(rows).filter(regex=curves).notna().any(axis=None)]
    titles = ["highlighted"] * bool(chosen)
    for category in categories:
        titles.append(f"{STYLES[category].label} ({(background['category'] == category).sum()})")
    figure = Figure(figsize=(1.0 + 1.45 * len(titles), 4.3 + 0.1 * len(chosen)), layout="constrained")
    axes = figure.subplots(2, len(titles), sharex=True, sharey="row", squeeze=False)
    published = _of_study(rows)
    for line, kind, label in zip(axes, ("LFC", "HFC"), ("low-pass", "high-pass"), strict=True):
        columns = [f"metric/bandpass/{kind}/{cutoff}" for cutoff in CUTOFFS]
        baseline = published.loc[published["category"] == "baseline", columns].median()
        for ax in line:
            _band(ax, CUTOFFS, published[columns], baseline)
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            ax.set_ylim(bottom=-0.04)
        for highlight in chosen:
            _highlighted_curve(line[0], rows, columns, highlight, samples)
        for ax, category in zip(line[bool(chosen) :], categories, strict=True):
            group = background.loc[background["category"] == category, columns]
            look = STYLES[category]
            many = len(group) > 2
            ax.plot(CUTOFFS, group.to_numpy().T, color=look.colour, lw=0.7 if many else 1.8, alpha=0.45 if many else 1,
                    zorder=3)  # fmt: skip
            if many:
                ax.plot(CUTOFFS, group.median(), color=look.colour, lw=1.8, marker=look.marker, ms=3.5, zorder=4)
        line[0].set_ylabel(f"top-1 under {label}\n/ clean top-1")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=7)
    figure.supxlabel("cut-off: share of the spectrum that is kept   (bold with markers: median)", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns_of(figure, labels), frameon=False)
    return figure


@laid_out
def solarization_curves(
    rows: pd.DataFrame, chosen: Sequence[Highlight] = (), samples: Projections | None = None
) -> Figure:
    """Draw accuracy when all pixel values from a threshold on are inverted, for networks with the published grid.

    Values on samples have bars and open markers.
    """
    thresholds = [column for column in rows.columns if re.fullmatch(r"top1_acc/solarize/[\d.]+", column)]
    alphas = np.array([float(column.rpartition("/")[2]) for column in thresholds])
    measured = rows.dropna(subset=thresholds, how="all").sort_values(thresholds[-1], ascending=False)
    background = _background(measured, chosen)
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    ax = figure.subplots()

    def curve(row: pd.Series, **look: Any) -> None:
        accuracies = row[thresholds].astype(float).to_numpy()
        complete = ~np.isnan(accuracies)
        by_name = (samples or {}).get((row["model"], row["source"]), {})
        if on_sample := _curve_bars(ax, alphas, thresholds, by_name, look["color"]):
            look |= on_sample | {"marker": "o", "ms": 3.5}
        ax.plot(alphas[complete], accuracies[complete], **look)

    for highlight in chosen:
        for _, row in highlight.of(measured).iterrows():
            curve(row, label=highlight.label, color=highlight.colour, lw=2.2, zorder=6)
    shades = iter(mpl.colormaps["viridis"](np.linspace(0, 0.9, max(len(background), 2))))
    for _, row in background.iterrows():
        if row["category"] == "baseline" and row["source"] == "published":
            look = {"color": "black", "lw": 1.2, "ls": (0, (4, 2)), "zorder": 5}
        else:
            look = {"color": next(shades), "lw": 0.9}
        curve(row, label=row["model"] if row["source"] == "published" else f"{row['model']}, {row['source']}", **look)
    ax.set_xlabel("threshold α: values from α on are inverted (0: all of them)")
    ax.set_ylabel("top-1 [%]")
    ax.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


@laid_out
def criticality_by_layer(
    layers: pd.DataFrame, chosen: Sequence[Highlight] = (), samples: Projections | None = None
) -> Figure:
    """Draw criticality by layer of a ResNet-50: published mean ± SD over 50 networks, the baseline, measured networks.

    Networks measured on a sample have their intervals.

    Args:
        layers: as results.table.read_beside returns them; networks with different layer names are left out.
        chosen: networks to highlight.
        samples: what values rest on samples.
    """
    published = pd.read_csv(RAW_DATA / "criticality_layers.csv", index_col="layer")
    names = list(published.index)
    mean, spread = published["mean_over_50"] / 100, published["sd_over_50"] / 100
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    ax = figure.subplots()
    x = np.arange(len(names))
    ax.fill_between(x, mean - spread, mean + spread, color=BAND, lw=0, label="50 published networks, mean ± SD")
    ax.plot(x, mean, color="#888888", lw=1.2)
    ax.plot(x, published["tv_resnet50"] / 100, color="black", lw=0.9, ls=(0, (4, 2)), label="tv_resnet50, published")
    measured = layers[(layers["metric"] == CRITICAL) & layers["layer"].isin(names)]
    by_name: dict[Any, Highlight] = {(highlight.model, highlight.source): highlight for highlight in chosen}
    for (model, source), group in measured.groupby(["model", "source"], sort=False):
        by_layer = group.set_index("layer").reindex(names)
        values = by_layer["value"]
        highlight = by_name.get((model, source))
        look = (
            {"color": highlight.colour, "marker": highlight.marker, "lw": 1.6, "zorder": 6}
            if highlight
            else {"marker": "o", "lw": 1}
        )
        (line,) = ax.plot(x, values, mfc="none", ms=4, label=f"{model}, {source}", **look)
        parts = (samples or {}).get((str(model), str(source)), {})
        if any(part.share < 1 for name, part in parts.items() if name.startswith(f"{CRITICAL}/")):
            ends = by_layer[["low", "high"]].to_numpy(float)
            known = np.isfinite(ends).all(1)
            ax.vlines(x[known], *ends[known].T, color=line.get_color(), lw=1, zorder=5)
    ax.set_xticks(x, names, rotation=90, fontsize=6)
    ax.set_xlabel("layer, from the image to the answer")
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylim(0, 1.04)
    ax.set_ylabel(f"criticality of the layer [{about('criticality').unit}]")
    labels = ax.get_legend_handles_labels()[1]
    figure.legend(loc="outside upper center", ncols=columns_of(figure, labels), frameon=False)
    return figure


@laid_out
def rank_correlations(statistics: pd.DataFrame) -> Figure:
    """Draw the rank correlations with their intervals: within categories, given accuracy, over all networks."""
    panels = (
        (WITHIN, "none", "Spearman's ρ within categories"),
        (f"{WITHIN} {GIVEN}", "none", "within categories, given ImageNet accuracy"),
        (SPEARMAN, "none", "all networks, as if none were related"),
    )
    figure = Figure(figsize=(12, 4.1), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for ax, (method, excluded, title) in zip(axes, panels, strict=True):
        selected = _pick(statistics, method, excluded).reindex([(b, s) for b in BIASES for s in SCORES])
        values = selected["estimate"].to_numpy().reshape(len(BIASES), len(SCORES))
        image = ax.imshow(values, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
        for number, cell in enumerate(selected.itertuples()):
            if np.isnan(cell.estimate):
                continue
            weight = "bold" if cell.p_holm < 0.05 else "normal"
            row, column = divmod(number, len(SCORES))
            luminance = np.dot(image.to_rgba(cell.estimate)[:3], (0.299, 0.587, 0.114))
            look = {"fontsize": 6.5, "fontweight": weight, "color": "white" if luminance < 0.5 else "black"}
            ax.text(column, row, _interval(cell, "\n"), ha="center", va="center", **look)
        ax.set_xticks(range(len(SCORES)), list(SCORES))
        ax.set_yticks(range(len(BIASES)), list(BIASES))
        ax.set_xlabel("score")
        ax.set_title(title)
        ax.grid(False)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("bias")
    figure.colorbar(image, ax=axes, label="rank correlation", shrink=0.8, pad=0.01)
    figure.supxlabel("95 % bootstrap interval over networks; bold: p < 0.05 after Holm's correction", fontsize=8)
    return figure


@laid_out
def leave_one_out(statistics: pd.DataFrame) -> Figure:
    """Draw each rank correlation within categories without each category in turn: what depends on one category."""
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    axes = figure.subplots(1, len(SCORES), sharey=True, sharex=True)
    names = list(BIASES)
    for ax, score in zip(axes, SCORES, strict=True):
        for category in STUDY_CATEGORIES:
            selected = _pick(statistics, WITHIN, category).reindex([(bias, score) for bias in names])
            look = STYLES[category]
            ax.scatter(selected["estimate"], range(len(names)), marker=look.marker, s=30, facecolor=look.colour,
                       edgecolor="white", linewidth=0.4, zorder=3, label=f"without {look.label}")  # fmt: skip
        selected = _pick(statistics, WITHIN).reindex([(bias, score) for bias in names])
        ax.hlines(
            range(len(names)), selected["low"], selected["high"], color="#BBBBBB", lw=5, zorder=1, label="all: 95 %"
        )
        ax.scatter(selected["estimate"], range(len(names)), marker="|", s=110, color="black", zorder=2, label="all")
        ax.axvline(0, color="#888888", lw=0.7, zorder=0)
        ax.set_title(score)
        ax.set_xlim(-1, 1)
        ax.set_xlabel("Spearman's ρ within categories")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylabel("bias")
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


@laid_out
def prediction(statistics: pd.DataFrame, lowest: float = -1.0) -> Figure:
    """Draw how well all biases together, or ImageNet accuracy alone, predict each score of held-out networks."""
    figure = Figure(figsize=(10.2, 3.0), layout="constrained")
    panels = (
        (OUT_WITHIN, "each network within its category"),
        (OUT["network"], "each network from the others"),
        (OUT["category"], "each category from the others"),
    )
    axes = figure.subplots(1, len(panels), sharey=True)
    looks = ((ALL_BIASES, "all biases", "#D55E00", "o", -0.14), (CONTROL, "ImageNet accuracy", "#0072B2", "s", 0.14))
    for ax, (method, title) in zip(axes, panels, strict=True):
        selected, permuted = _pick(statistics, method), _pick(statistics, f"{method}, permuted")
        for predictors, label, colour, marker, shift in looks:
            for number, score in enumerate(SCORES):
                row, chance = selected.loc[predictors, score], permuted.loc[predictors, score]
                x = number + shift
                ax.vlines(x, max(chance.low, lowest), chance.high, color="#CCCCCC", lw=7, zorder=1)
                ax.vlines(x, max(row.low, lowest), max(row.high, lowest), color=colour, lw=1.2, zorder=2)
                inside = row.estimate > lowest
                ax.scatter(x, max(row.estimate, lowest + 0.03), marker=marker if inside else "v", color=colour, s=26,
                           zorder=3, label=label if number == 0 else None)  # fmt: skip
                if not inside:
                    ax.text(x + 0.09, lowest + 0.02, printed(row.estimate, 1), fontsize=6.5, color=colour)
        ax.axhline(0, color="#888888", lw=0.7, zorder=0)
        ax.set_xticks(range(len(SCORES)), list(SCORES))
        ax.set_xlim(-0.5, len(SCORES) - 0.5)
        ax.set_xlabel("score")
        ax.set_ylim(lowest - 0.05, 1.05)
        ax.set_title(title)
    axes[0].set_ylabel("R² of held-out networks")
    handles, labels = axes[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="#CCCCCC", lw=7))
    figure.legend(handles, [*labels, "scores permuted, 95 %"], loc="outside lower center", ncols=3, frameon=False)
    return figure


@laid_out
def accuracy_on_the_line(
    rows: pd.DataFrame, chosen: Sequence[Highlight] = (), samples: Projections | None = None
) -> Figure:
    """Draw each score against ImageNet accuracy on logit axes with the fitted line (distance: effective robustness).

    The line is that of the study's published networks.
    """
    figure = Figure(figsize=(10.4, 3.5), layout="constrained")
    scores = [score for score in SCORES if score != "ID"]
    axes = figure.subplots(1, len(scores), sharex=True)
    published = _of_study(rows)
    percent = FuncFormatter(lambda value, _: f"{100 / (1 + np.exp(-value)):.0f}")
    for ax, score in zip(axes, scores, strict=True):
        points = rows.assign(**{name: logit(rows[name].clip(0.01, 99.99) / 100) for name in (CONTROL, score)})
        _draw(ax, points, CONTROL, score, chosen, _on_logits(samples or {}, (CONTROL, score)))
        residual = effective_robustness(published[CONTROL], published[score])
        x = points.loc[published.index, CONTROL]
        line = points.loc[published.index, score] - residual
        ends: list[Any] = [x.idxmin(), x.idxmax()]
        ax.plot(x[ends], line[ends], color="black", lw=0.9, ls=(0, (4, 2)))
        for axis, values in ((ax.xaxis, (50, 55, 60, 65, 70, 75, 80)), (ax.yaxis, (10, 20, 30, 40, 50, 60, 70))):
            axis.set_major_locator(FixedLocator([logit(value / 100) for value in values]))
            axis.set_major_formatter(percent)
        ax.margins(0.08)
        ax.set_ylabel(about(score).label)
        ax.set_xlabel("ImageNet top-1 [%]")
    _legend(figure, rows, chosen, samples)
    return figure


def _on_logits(samples: Projections, names: Iterable[str]) -> Projections:
    """Return the projections of percentages on the axes of accuracy_on_the_line."""
    mapped: dict[tuple[str, str], dict[str, Projection]] = {}
    for key, by_name in samples.items():
        for name in names:
            if name in by_name:
                part = by_name[name]
                low, high = (
                    None if end is None else logit(np.clip(end, 0.01, 99.99) / 100) for end in (part.low, part.high)
                )
                mapped.setdefault(key, {})[name] = replace(part, low=low, high=high)
    return mapped


@laid_out
def bias_spread(rows: pd.DataFrame, chosen: Sequence[Highlight] = (), samples: Projections | None = None) -> Figure:
    """Draw each bias by category, networks and median; highlighted networks in a separate column."""
    background = _background(rows, chosen)
    categories = [category for category in STYLES if (background["category"] == category).any()]
    columns = [*(STYLES[category].label for category in categories), *(["highlighted"] if chosen else [])]
    figure = Figure(figsize=(10.4, 6.0), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    random = np.random.default_rng(0)
    for ax, bias in zip(axes[: len(BIASES)], BIASES, strict=True):
        for number, category in enumerate(categories):
            group = background.loc[background["category"] == category, [*KEYS, bias]]
            group = group.assign(place=number + random.uniform(-0.25, 0.25, len(group)) * (len(group) > 1))
            _draw_categories(ax, group, "place", bias)
            _draw_bars(ax, group, "place", bias, samples or {}, {})
            if len(group) > 2:
                ax.hlines(group[bias].median(), number - 0.35, number + 0.35, color="black", lw=1, zorder=5)
        places = len(categories) + np.linspace(-0.25, 0.25, len(chosen) + 2)[1:-1]
        for place, highlight in zip(places, chosen, strict=True):
            _draw(ax, highlight.of(rows).assign(place=place), "place", bias, [highlight], samples)
        ax.margins(y=0.08)
        if about(bias).logarithmic:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylabel(about(bias).label.replace(" [", "\n["))
        ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
        ax.grid(False, axis="x")
        ax.set_xlim(-0.7, len(columns) - 0.3)
    for ax in axes[len(BIASES) :]:
        ax.set_visible(False)
    figure.supxlabel("category", fontsize=8)
    _legend(figure, rows, chosen, samples)
    return figure


@laid_out
def calibration(rows: pd.DataFrame) -> Figure | None:
    """Draw the biases and band-pass curves of networks that were made for drawn images; None without such."""
    rows = rows[rows["category"].isin(DRAWN_CATEGORIES)].sort_values(["category", "model"], ignore_index=True)
    if rows.empty:
        return None
    figure = Figure(figsize=(10.4, 4.6 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots(3, 3)
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, max(len(rows), 2)))
    for number, (ax, bias) in enumerate(zip(axes.ravel(), BIASES, strict=False)):
        ax.scatter(rows[bias], rows.index, color=shades[rows.index], s=26, zorder=3)
        ax.margins(x=0.08)
        first = number % 3 == 0
        ax.set_yticks(rows.index, rows["model"] if first else [""] * len(rows))
        ax.set_ylabel("network" if first else "")
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(about(bias).label)
    for ax, kind, label in zip(axes[2, 1:], ("LFC", "HFC"), ("low-pass", "high-pass"), strict=True):
        columns = [f"metric/bandpass/{kind}/{cutoff}" for cutoff in CUTOFFS]
        for values, shade in zip(rows[columns].to_numpy(float), shades, strict=False):
            ax.plot(CUTOFFS, values, color=shade, lw=1.2)
        ax.set_xlabel("cut-off: share of the spectrum that is kept")
        ax.set_ylabel(f"top-1 under {label}\n/ clean top-1")
    return figure


@laid_out
def measured_and_published(table: pd.DataFrame, chosen: Sequence[Highlight] = ()) -> Figure | None:
    """Draw every metric that was both measured here and published, for the same network; None without such.

    Published values with a known slip (study.FLAGGED) are crosses; highlighted networks have their own colours.
    """
    colours = {}
    for highlight in chosen:
        if highlight.source == "measured":
            colours[highlight.model] = highlight.model, highlight.colour
    metrics = [column for column in table.columns if column not in KEYS]
    long = table.melt(["model", "source"], metrics, "metric", "value").dropna()
    wide = long.pivot(index=["model", "metric"], columns="source", values="value")
    if not {"measured", "published"} <= set(wide.columns) or wide[["measured", "published"]].dropna().empty:
        return None
    wide = wide[["measured", "published"]].dropna().reset_index()
    percent = wide["metric"].map(lambda name: about(str(name)).unit.startswith("%"))
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, group, label in zip(
        axes, (wide[percent], wide[~percent]), ("accuracy [%]", "other metrics [own units]"), strict=True
    ):
        flagged = group["metric"].isin(FLAGGED)
        looks = group["model"].map(lambda model: colours.get(str(model), ("networks not highlighted", "#888888")))
        for (label_of, colour), part in group[~flagged].groupby(looks):
            ax.scatter(part["published"], part["measured"], marker=".", s=18, color=colour, label=label_of)
        for (_, colour), part in group[flagged].groupby(looks):
            ax.scatter(part["published"], part["measured"], marker="x", s=18, color=colour, lw=0.9)
        if len(group):
            ends = group[["published", "measured"]].agg(["min", "max"]).agg({"min": "min", "max": "max"}, axis=1)
            ax.plot(ends, ends, color="#888888", lw=0.7, zorder=0)
        if "own units" in label:
            ax.set_xscale("symlog", linthresh=0.01)
            ax.set_yscale("symlog", linthresh=0.01)
        ax.set_xlabel(f"published {label}")
        ax.set_ylabel(f"measured {label}")
    keys = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    cross = Line2D([], [], ls="", marker="x", color="#444444", ms=4, label="known slip of the published run")
    handles = [*keys.values(), cross]
    columns = columns_of(figure, [str(handle.get_label()) for handle in handles])
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


@laid_out
def published_and_witness(cells: pd.DataFrame) -> Figure | None:
    """Draw published values against other laboratories', set by set, with bars over 95 % of their difference's error.

    Filled: the study's preprocessing; open: another crop or interpolation, which is why values differ; crosses: known
    slips. None without shared cells. `cells`: as witnesses.agreement gives them.
    """
    if cells.empty:
        return None
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    axes = figure.subplots(2, 4).flat
    for ax, name in zip(axes, SETS, strict=False):
        group = cells[cells["set"] == name]
        for same, colour, label in ((False, "#999999", "another"), (True, "#0072B2", "the study's")):
            part = group[group["same"] == same]
            bar = {"elinewidth": 0.7, "ecolor": colour, "zorder": 3 if same else 2, "lw": 0}
            slip = name == "imagenet-real"
            ax.errorbar(part["witness"], part["published"], xerr=1.96 * part["error"], marker="x" if slip else "o",
                        ms=4 if slip else 2.6, mec=colour, mfc=colour if same else "none", mew=0.8, label=label,
                        **bar)  # fmt: skip
        if len(group):
            ends = group[["published", "witness"]].to_numpy()
            ax.plot([ends.min(), ends.max()], [ends.min(), ends.max()], color="#888888", lw=0.7, zorder=1)
        ax.set_title(f"{TITLES[name]} ({group['model'].nunique()} networks, {len(group)} values)")
        ax.set_xlabel("other laboratory [%]")
        ax.set_ylabel("published [%]")
    figure.axes[-1].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    handles.append(Line2D([], [], ls="", marker="x", color="#444444", ms=4))
    labels = [*(f"preprocessing: {label}" for label in labels), "known slip of the published run"]
    figure.legend(handles, labels, loc="center", bbox_to_anchor=(0.88, 0.27), frameon=False)
    return figure


@laid_out
def power_curves(table: pd.DataFrame, samples: pd.DataFrame) -> Figure:
    """Draw in how many simulated studies the analysis finds an effect of each strength, by mechanism.

    The last panel shows how far correlations and places move where only a share of the images is there.

    Args:
        table: as analysis.power returns it.
        samples: raw-data/samples.csv.
    """
    panels = (
        ("within", "cause", "acts within categories"),
        ("between", "cause", "acts between categories only"),
        ("accuracy", "cause", "acts through ImageNet accuracy only"),
        ("nothing", "company", "does nothing"),
    )
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    subfigures: Any = figure.subfigures(1, 2, width_ratios=(4.3, 1))
    studies, sampled = subfigures
    axes = studies.subplots(1, len(panels), sharex=True, sharey=True)
    x = [*STRENGTHS.values()]
    for ax, (mechanism, predictor, title) in zip(axes, panels, strict=True):
        for (method, label), style in zip(METHOD_LABELS, STYLES.values(), strict=False):
            joint = method.startswith("R2")
            selected = table[(table["mechanism"] == mechanism) & (table["method"] == method)]
            selected = selected[selected["predictor"] == (ALL_BIASES if joint else predictor)].set_index("strength")
            ax.plot(x, selected["alarm"].reindex([*STRENGTHS]), color=style.colour, marker=style.marker, ms=4, lw=1.1,
                    ls="--" if joint else "-", label=label)  # fmt: skip
        ax.axhline(0.05, color="#888888", lw=0.7, zorder=0)
        ax.set_title(title)
        ax.set_xlabel("strength of the effect")
    axes[0].set_ylim(0, 1.02)
    axes[0].set_ylabel("studies with p < 0.05")
    studies.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    ax = sampled.subplots()
    for column, label, marker in (("change", "median draw", "o"), ("worst", f"worst of {samples['draws'].max()}", "^")):
        ax.plot(100 * samples["share"], samples[column], marker=marker, ms=4, lw=1.1, color="black", label=label)
    ax.set_xscale("log")
    ax.set_xticks(100 * samples["share"], [f"{100 * share:g}" for share in samples["share"]])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(bottom=0)
    ax.set_title("from a sample")
    ax.set_xlabel("images that are shown [%]")
    ax.set_ylabel("largest change of a correlation\nwithin categories")
    sampled.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


@laid_out
def reliability_chart(table: pd.DataFrame) -> Figure:
    """Draw each measure's reliability over images, seeds and preprocessings (analysis.reliability)."""
    alone = table[table["score"] == ""]
    methods, names = list(dict.fromkeys(alone["method"])), list(dict.fromkeys(alone["measure"]))
    figure = Figure(figsize=(6.4, 1.2 + 0.3 * len(names)), layout="constrained")
    ax = figure.subplots()
    for number, (method, style) in enumerate(zip(methods, [*STYLES.values()][1:], strict=False)):
        selected = alone[alone["method"] == method].set_index("measure").reindex(names)
        y = np.arange(len(names)) + 0.2 * (number - (len(methods) - 1) / 2)
        ax.hlines(y, selected["low"], selected["high"], color=style.colour, lw=1.2)
        ax.scatter(selected["estimate"], y, color=style.colour, marker=style.marker, s=26, zorder=3, label=method)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.axvline(1, color="#888888", lw=0.7, zorder=0)
    ax.set_xlabel("correlation over networks of the measure with itself")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


@laid_out
def intervention_chart(table: pd.DataFrame) -> Figure:
    """Draw each score's difference against that of each bias, one point per intervention (analysis.interventions)."""
    wide = {key: group.set_index("measure") for key, group in table.groupby(["intervention", "model"], sort=False)}
    biases = [name for name in (*BIASES, *FURTHER_BIASES) if (table["measure"] == name).any()]
    scores = [name for name in (*SCORES, CONTROL) if (table["measure"] == name).any()]
    if not (biases and scores):
        raise UserError("the interventions have no bias and score in common: measure both, before and after")
    size = 1.2 + 1.7 * len(biases), 1.4 + 1.6 * len(scores)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(scores), len(biases), sharex="col", sharey="row", squeeze=False)
    looks = dict(zip(dict.fromkeys(table["intervention"]), itertools.cycle([*STYLES.values()][1:]), strict=False))
    for line, score in zip(axes, scores, strict=True):
        line[0].set_ylabel(f"Δ {about(score).label}")
        for ax, bias in zip(line, biases, strict=True):
            ax.axhline(0, color="#888888", lw=0.7, zorder=0)
            ax.axvline(0, color="#888888", lw=0.7, zorder=0)
            for (intervention, _), group in wide.items():
                if {bias, score} <= {*group.index}:
                    _draw_intervention(ax, group.loc[bias], group.loc[score], looks[intervention])
    for ax, bias in zip(axes[-1], biases, strict=True):
        ax.set_xlabel(f"Δ {about(bias).label}".replace(" [", "\n["))
    keys = [_key(style, f"{name}{'' if _enough(table, name) else ', n = 1'}") for name, style in looks.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False,
                  title="95 % intervals: over images (one network, before and after) or over trainings")  # fmt: skip
    return figure


def _draw_intervention(ax: Axes, x: Any, y: Any, style: Style) -> None:
    """Draw the differences of a bias and a score with their intervals."""
    for point, other, draw in ((x, y, ax.hlines), (y, x, ax.vlines)):
        if np.isfinite(point.low):
            draw(other.difference, point.low, point.high, color=style.colour, lw=1)
    ax.scatter(x.difference, y.difference, color=style.colour, marker=style.marker, s=22, zorder=3)


def _enough(table: pd.DataFrame, intervention: str) -> bool:
    """Whether an intervention compares a network with itself, or several trainings of each kind."""
    selected = table[table["intervention"] == intervention]
    return bool((selected["model"] != "").all() or (selected["n"] > 1).all())


def figures(
    table: pd.DataFrame,
    statistics: pd.DataFrame,
    layers: pd.DataFrame,
    names: Sequence[str] | None = None,
    uncertainty: pd.DataFrame | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Yield (name, figure) of all figures but those with people (plotting_people).

    Args:
        table: as read_table returns it.
        statistics: of its study networks.
        layers: as read_beside returns them.
        names: of networks to highlight (default: see `highlights`).
        uncertainty: as read_beside returns it; without, all values count as those of whole image sets.
    """
    chosen = highlights(table, names)
    samples = {} if uncertainty is None else projections(table, uncertainty)
    everything = derived(table)
    drawn = everything["category"].isin(DRAWN_CATEGORIES)
    everything["category"] = everything["category"].where(everything["category"].isin(STYLES), "")
    included = everything["category"].isin(STUDY_CATEGORIES) | everything["source"].str.startswith("measured")
    included |= ~everything.index.isin(_background(everything, chosen).index)
    photographs = everything[included & ~drawn].reset_index(drop=True)
    on_photographs = everything[~drawn].reset_index(drop=True)
    chosen = [highlight for highlight in chosen if len(highlight.of(photographs))]
    yield "biases_and_scores", biases_and_scores(photographs, statistics, chosen=chosen, samples=samples)
    yield "bandpass_curves", bandpass_curves(photographs, chosen, samples)
    yield "rank_correlations", rank_correlations(statistics)
    yield "leave_one_out", leave_one_out(statistics)
    yield "prediction", prediction(statistics)
    yield "accuracy_on_the_line", accuracy_on_the_line(photographs, chosen, samples)
    yield "bias_spread", bias_spread(photographs, chosen, samples)
    yield "further_biases", biases_and_scores(photographs, statistics, FURTHER_BIASES, chosen, samples)
    yield (
        "criticality_by_layer",
        criticality_by_layer(layers[~layers["model"].isin(everything["model"][drawn])], chosen, samples),
    )
    yield "solarization_curves", solarization_curves(on_photographs, chosen, samples)
    if compared := measured_and_published(table, chosen):
        yield "measured_and_published", compared
    if compared := published_and_witness(agreement(table)):
        yield "published_and_witness", compared
    if drawn_figure := calibration(everything):
        yield "calibration", drawn_figure


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write folder/NAME.pdf and folder/NAME.png."""
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
        with atomic(folder / f"{name}.{kind}") as file, mpl.rc_context(RC):
            figure.savefig(file, format=kind, metadata=metadata)

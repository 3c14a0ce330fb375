"""The study's figures and ours, one function each: table and statistics in, a matplotlib Figure out.

Every category has a colour that people with colour-vision deficiencies can tell apart (Okabe & Ito 2008) and a marker
of its own, so that the figures also work in black and white. Published values are filled, measured ones open.
Highlighted networks have a colour and a name of their own and lie on top; curves have the study's 48 networks behind
them. Networks that were made for drawn images have a figure of their own and a place in no other.
"""

import functools
import itertools
import re
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from scipy.special import logit

from imagenet_biases.analysis.power import SHOWN, STRENGTHS
from imagenet_biases.analysis.statistics import (
    ALL_BIASES,
    GIVEN,
    OUT,
    OUT_WITHIN,
    SPEARMAN,
    WITHIN,
    effective_robustness,
)
from imagenet_biases.base.errors import UserError, nearest
from imagenet_biases.base.files import atomic
from imagenet_biases.base.paths import HOME
from imagenet_biases.networks.registry import registry
from imagenet_biases.results.table import KEYS, RAW_DATA, derived
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
MOST_HIGHLIGHTS = 12  # that nobody asked for
BAND = "#DADADA"
RC = {
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


def laid_out(function):
    """Decorate what makes a figure: it has the style of RC and is laid out once, not again for every file."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with mpl.rc_context(RC):
            figure = function(*args, **kwargs)
            if figure:
                figure.draw_without_rendering()
                figure.set_layout_engine("none")
            return figure

    return wrapped


def epsilon(model):
    """(norm, ε) of an adversarially trained network as the zoo says it (ε of ℓ∞ in 1/255), or None."""
    entry = registry().get(model)
    return (entry.norm, entry.eps) if entry and entry.norm else None


def size(model):
    """Marker area of a network in points²; adversarially trained ones grow with ε (up to 5 for ℓ2, 8/255 for ℓ∞)."""
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

    def of(self, rows):
        """Return its rows."""
        return rows[(rows["model"] == self.model) & (rows["source"] == self.source)]


def highlights(table, names=None):
    """Return a Highlight for each row of the networks `names`; measured rows first.

    Without names: what was measured on photographs, or if that is much, what of it the study does not have. Raises
    UserError for a name that the table does not have.
    """
    known = set(table["model"])
    for name in names or ():
        if name not in known:
            raise UserError(
                f"there is no network {name!r} in the tables to highlight; {nearest(name, known)}".removesuffix("; ")
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
    for number, row in enumerate(rows.itertuples()):
        label = f"{row.model}, {row.source}" if sources[row.model] > 1 else row.model
        turn, colour = divmod(number, len(HIGHLIGHT_COLOURS))
        look = HIGHLIGHT_MARKERS[(colour + turn) % len(HIGHLIGHT_MARKERS)]
        chosen.append(Highlight(row.model, row.source, label, HIGHLIGHT_COLOURS[colour], *look))
    return chosen


def listed(text):
    """Return the names in a list with commas, as --highlight has them; None where it is not given."""
    return [name for name in map(str.strip, text.split(",")) if name] if text else None


def _others(rows, chosen):
    """Return the rows that are not highlighted."""
    keys = {(one.model, one.source) for one in chosen}
    return rows[[key not in keys for key in zip(rows["model"], rows["source"], strict=True)]]


def _draw(ax, rows, x, y, chosen=()):
    """Scatter rows, category by category, and the highlighted ones on top of them."""
    _draw_categories(ax, _others(rows, chosen), x, y)
    for one in chosen:
        some = one.of(rows)
        ax.scatter(some[x], some[y], s=46, marker=one.marker, color=one.colour, edgecolor="black", linewidth=0.8,
                   zorder=6, clip_on=False)  # fmt: skip


def _draw_categories(ax, rows, x, y):
    for (category, measured), some in rows.groupby(["category", rows["source"].ne("published")]):
        look = STYLES[category]
        ax.scatter(
            some[x],
            some[y],
            s=[size(model) * (2.6 if look.marker == "*" else 1) for model in some["model"]],
            marker=look.marker,
            facecolor="none" if measured else look.colour,
            edgecolor=look.colour if measured else "white",
            linewidth=1.1 if measured else 0.4,
            alpha=1 if measured else 0.9,
            zorder=4 if measured or category == "baseline" else 3,
        )


def _key(look, label, **face):
    size = 9 if look.marker == "*" else 6
    face = face or {"mfc": look.colour, "mec": "white", "mew": 0.4}
    return Line2D([], [], ls="", marker=look.marker, ms=size, label=label, **face)


def _legend(figure, rows, chosen=(), **settings):
    others = _others(rows, chosen)
    sized = {"adversarial_training": ", small to large ε"}
    keys = [_key(s, s.label + sized.get(c, "")) for c, s in STYLES.items() if (others["category"] == c).any()]
    if others["source"].ne("published").any():
        keys.append(_key(STYLES["training_recipes"], "open: measured here", mfc="none", mec="#444444"))
    keys += [_key(one, one.label, mfc=one.colour, mec="black", mew=0.8) for one in chosen if len(one.of(rows))]
    columns = columns_of(figure, [key.get_label() for key in keys])
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False, **settings)


def columns_of(figure, labels):
    """Return in how many columns a legend of these labels fits the figure's width: 0.06 inches a letter of 8 points."""
    longest = max((len(label) for label in labels), default=0)
    return max(1, min(5, len(labels), int(figure.get_figwidth() / (0.4 + 0.06 * longest))))


def _band(ax, x, values, baseline):
    """Draw the study's networks behind a curve: 5 to 95 %, the median; the baseline dashed. `values`: [n, len(x)]."""
    low, median, high = np.nanquantile(values, (0.05, 0.5, 0.95), axis=0)
    ax.fill_between(x, low, high, color=BAND, lw=0, zorder=1, label=f"5 to 95 % of {len(values)} published networks")
    ax.plot(x, median, color="#888888", lw=1, zorder=2, label="their median")
    ax.plot(x, baseline, color="black", lw=0.9, ls=(0, (4, 2)), zorder=5, label="baseline")


def _bias_axis(axis, bias):
    if about(bias).logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())


def printed(value, digits=2):
    """A number as it is printed: a true minus sign, and no negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _interval(one, between):
    return f"{printed(one.estimate)}{between}[{printed(one.low)}, {printed(one.high)}]"


def _pick(statistics, method, excluded="none"):
    some = statistics[(statistics["method"] == method) & (statistics["excluded"] == excluded)]
    return some.set_index(["bias", "score"])


@laid_out
def biases_and_scores(rows, statistics, biases=BIASES, chosen=()):
    """The study's figure: each bias against each score, one point a network, with Spearman's ρ within categories.

    `rows`: networks with derived columns; `statistics`: as imagenet_biases.analysis.statistics gives it.
    """
    figure = Figure(figsize=(1.2 + 1.6 * len(biases), 7.4), layout="constrained")
    axes = figure.subplots(len(SCORES), len(biases), sharex="col", sharey="row")
    within, overall = (_pick(statistics, method) for method in (WITHIN, SPEARMAN))
    for line, score in zip(axes, SCORES, strict=True):
        line[0].set_ylabel(about(score).label)
        for ax, bias in zip(line, biases, strict=True):
            _draw(ax, rows, bias, score, chosen)
            ax.margins(0.08)
            _bias_axis(ax, bias)
            if (bias, score) in within.index:
                one = within.loc[bias, score]
                weight = "bold" if one.p_holm < 0.05 else "normal"
                title = f"{_interval(one, ' ')}, all {printed(overall.loc[bias, score].estimate)}"
                ax.set_title(title, fontweight=weight, fontsize=7, pad=3)
    for ax, bias in zip(axes[-1], biases, strict=True):
        ax.set_xlabel(about(bias).label.replace(" [", "\n["))
    text = "Spearman's ρ within categories, 95 % interval, and over all networks;{}bold: p < 0.05 within, after Holm's"
    _legend(figure, rows, chosen, title=text.format(" " if len(biases) > 5 else "\n") + " correction")
    return figure


def _of_study(rows):
    return rows[rows["source"].eq("published") & rows["category"].isin(STUDY_CATEGORIES)]


@laid_out
def bandpass_curves(rows, chosen=()):
    """Accuracy under a low- and a high-pass relative to the clean one: highlighted networks, then category by category.

    Behind them all: the study's networks (5 to 95 %, median) and the baseline. Bold: the median of a category.
    """
    others = _others(rows, chosen)
    categories = [category for category in STYLES if (others["category"] == category).any()]
    chosen = [one for one in chosen if one.of(rows).filter(regex="^metric/bandpass/[LH]FC/").notna().any(axis=None)]
    titles = ["highlighted"] * bool(chosen) + [
        f"{STYLES[category].label} ({(others['category'] == category).sum()})" for category in categories
    ]
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
        for one in chosen:
            line[0].plot(CUTOFFS, one.of(rows)[columns].to_numpy().T, color=one.colour, lw=1.6, marker=one.marker,
                         ms=3.5, zorder=6, label=one.label)  # fmt: skip
        for ax, category in zip(line[bool(chosen) :], categories, strict=True):
            some = others.loc[others["category"] == category, columns]
            look = STYLES[category]
            many = len(some) > 2
            ax.plot(CUTOFFS, some.to_numpy().T, color=look.colour, lw=0.7 if many else 1.8, alpha=0.45 if many else 1,
                    zorder=3)  # fmt: skip
            if many:
                ax.plot(CUTOFFS, some.median(), color=look.colour, lw=1.8, marker=look.marker, ms=3.5, zorder=4)
        line[0].set_ylabel(f"top-1 under {label}\n/ clean top-1")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=7)
    figure.supxlabel("cut-off: share of the spectrum that is kept   (bold with markers: median)", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns_of(figure, labels), frameon=False)
    return figure


@laid_out
def solarization_curves(rows, chosen=()):
    """Accuracy when all pixel values from a threshold on are inverted; every network that has the published grid."""
    thresholds = [column for column in rows if re.fullmatch(r"top1_acc/solarize/[\d.]+", column)]
    alphas = np.array([float(column.rpartition("/")[2]) for column in thresholds])
    some = rows.dropna(subset=thresholds, how="all").sort_values(thresholds[-1], ascending=False)
    others = _others(some, chosen)
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    ax = figure.subplots()

    def curve(row, **look):
        given = row[thresholds].astype(float).to_numpy()
        known = ~np.isnan(given)
        ax.plot(alphas[known], given[known], **look)

    for one in chosen:
        for _, row in one.of(some).iterrows():
            curve(row, label=one.label, color=one.colour, lw=2.2, zorder=6)
    shades = iter(mpl.colormaps["viridis"](np.linspace(0, 0.9, max(len(others), 2))))
    for _, row in others.iterrows():
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
def criticality_by_layer(layers, chosen=()):
    """Criticality of each layer of a ResNet-50: published mean ± SD over 50 networks, the baseline, measured networks.

    `layers`: as results.table.read_beside gives them; networks with other layers' names are left out.
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
    measured = layers[(layers["metric"] == "metric/criticality") & layers["layer"].isin(names)]
    by_name = {(one.model, one.source): one for one in chosen}
    for (model, source), some in measured.groupby(["model", "source"], sort=False):
        values = some.set_index("layer")["value"].reindex(names)
        one = by_name.get((model, source))
        look = {"color": one.colour, "marker": one.marker, "lw": 1.6, "zorder": 6} if one else {"marker": "o", "lw": 1}
        ax.plot(x, values, mfc="none", ms=4, label=f"{model}, {source}", **look)
    ax.set_xticks(x, names, rotation=90, fontsize=6)
    ax.set_xlabel("layer, from the image to the answer")
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylim(0, 1.04)
    ax.set_ylabel(f"criticality of the layer [{about('criticality').unit}]")
    labels = ax.get_legend_handles_labels()[1]
    figure.legend(loc="outside upper center", ncols=columns_of(figure, labels), frameon=False)
    return figure


@laid_out
def rank_correlations(statistics):
    """Heat map of the rank correlations with their intervals: within categories, given accuracy, over all networks."""
    panels = (
        (WITHIN, "none", "Spearman's ρ within categories"),
        (f"{WITHIN} {GIVEN}", "none", "within categories, given ImageNet accuracy"),
        (SPEARMAN, "none", "all networks, as if none were relatives"),
    )
    figure = Figure(figsize=(12, 4.1), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for ax, (method, excluded, title) in zip(axes, panels, strict=True):
        found = _pick(statistics, method, excluded).reindex([(b, s) for b in BIASES for s in SCORES])
        values = found["estimate"].to_numpy().reshape(len(BIASES), len(SCORES))
        image = ax.imshow(values, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
        for number, one in enumerate(found.itertuples()):
            if np.isnan(one.estimate):
                continue
            weight = "bold" if one.p_holm < 0.05 else "normal"
            row, column = divmod(number, len(SCORES))
            luminance = np.dot(image.to_rgba(one.estimate)[:3], (0.299, 0.587, 0.114))
            look = {"fontsize": 6.5, "fontweight": weight, "color": "white" if luminance < 0.5 else "black"}
            ax.text(column, row, _interval(one, "\n"), ha="center", va="center", **look)
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
def leave_one_out(statistics):
    """Each rank correlation within categories without each category in turn: what hangs on one category."""
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    axes = figure.subplots(1, len(SCORES), sharey=True, sharex=True)
    names = list(BIASES)
    for ax, score in zip(axes, SCORES, strict=True):
        for category in STUDY_CATEGORIES:
            found = _pick(statistics, WITHIN, category).reindex([(bias, score) for bias in names])
            look = STYLES[category]
            ax.scatter(found["estimate"], range(len(names)), marker=look.marker, s=30, facecolor=look.colour,
                       edgecolor="white", linewidth=0.4, zorder=3, label=f"without {look.label}")  # fmt: skip
        found = _pick(statistics, WITHIN).reindex([(bias, score) for bias in names])
        ax.hlines(range(len(names)), found["low"], found["high"], color="#BBBBBB", lw=5, zorder=1, label="all: 95 %")
        ax.scatter(found["estimate"], range(len(names)), marker="|", s=110, color="black", zorder=2, label="all")
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
def prediction(statistics, lowest=-1.0):
    """How well all biases together, or ImageNet accuracy alone, predict each score of networks not seen."""
    figure = Figure(figsize=(10.2, 3.0), layout="constrained")
    panels = (
        (OUT_WITHIN, "each network within its category"),
        (OUT["network"], "each network from the others"),
        (OUT["category"], "each category from the others"),
    )
    axes = figure.subplots(1, len(panels), sharey=True)
    looks = ((ALL_BIASES, "all biases", "#D55E00", "o", -0.14), (CONTROL, "ImageNet accuracy", "#0072B2", "s", 0.14))
    for ax, (method, title) in zip(axes, panels, strict=True):
        found, permuted = _pick(statistics, method), _pick(statistics, f"{method}, permuted")
        for predictors, label, colour, marker, shift in looks:
            for number, score in enumerate(SCORES):
                one, chance = found.loc[predictors, score], permuted.loc[predictors, score]
                x = number + shift
                ax.vlines(x, max(chance.low, lowest), chance.high, color="#CCCCCC", lw=7, zorder=1)
                ax.vlines(x, max(one.low, lowest), max(one.high, lowest), color=colour, lw=1.2, zorder=2)
                inside = one.estimate > lowest
                ax.scatter(x, max(one.estimate, lowest + 0.03), marker=marker if inside else "v", color=colour, s=26,
                           zorder=3, label=label if number == 0 else None)  # fmt: skip
                if not inside:
                    ax.text(x + 0.09, lowest + 0.02, printed(one.estimate, 1), fontsize=6.5, color=colour)
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
def accuracy_on_the_line(rows, chosen=()):
    """Each score against ImageNet accuracy on logit axes with the fitted line: effective robustness is the distance.

    The line is that of the study's published networks.
    """
    figure = Figure(figsize=(10.4, 3.5), layout="constrained")
    scores = [score for score in SCORES if score != "ID"]
    axes = figure.subplots(1, len(scores), sharex=True)
    published = _of_study(rows)
    percent = FuncFormatter(lambda value, _: f"{100 / (1 + np.exp(-value)):.0f}")
    for ax, score in zip(axes, scores, strict=True):
        points = rows.assign(**{name: logit(rows[name].clip(0.01, 99.99) / 100) for name in (CONTROL, score)})
        _draw(ax, points, CONTROL, score, chosen)
        residual = effective_robustness(published[CONTROL], published[score])
        x = points.loc[published.index, CONTROL]
        line = points.loc[published.index, score] - residual
        ends = [x.idxmin(), x.idxmax()]
        ax.plot(x[ends], line[ends], color="black", lw=0.9, ls=(0, (4, 2)))
        for axis, values in ((ax.xaxis, (50, 55, 60, 65, 70, 75, 80)), (ax.yaxis, (10, 20, 30, 40, 50, 60, 70))):
            axis.set_major_locator(FixedLocator([logit(value / 100) for value in values]))
            axis.set_major_formatter(percent)
        ax.margins(0.08)
        ax.set_ylabel(about(score).label)
        ax.set_xlabel("ImageNet top-1 [%]")
    _legend(figure, rows, chosen)
    return figure


@laid_out
def bias_spread(rows, chosen=()):
    """Each bias by category, networks and median; highlighted networks in a column of their own."""
    others = _others(rows, chosen)
    categories = [category for category in STYLES if (others["category"] == category).any()]
    columns = [*(STYLES[category].label for category in categories), *(["highlighted"] if chosen else [])]
    figure = Figure(figsize=(10.4, 6.0), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    random = np.random.default_rng(0)
    for ax, bias in zip(axes[: len(BIASES)], BIASES, strict=True):
        for number, category in enumerate(categories):
            some = others.loc[others["category"] == category, [*KEYS, bias]]
            some = some.assign(place=number + random.uniform(-0.25, 0.25, len(some)) * (len(some) > 1))
            _draw_categories(ax, some, "place", bias)
            if len(some) > 2:
                ax.hlines(some[bias].median(), number - 0.35, number + 0.35, color="black", lw=1, zorder=5)
        places = len(categories) + np.linspace(-0.25, 0.25, len(chosen) + 2)[1:-1]
        for place, one in zip(places, chosen, strict=True):
            _draw(ax, one.of(rows).assign(place=place), "place", bias, [one])
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
    _legend(figure, rows, chosen)
    return figure


@laid_out
def calibration(rows):
    """What networks that were made for drawn images show: each bias and the band-pass curves; None without such."""
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
def measured_and_published(table, chosen=()):
    """Every metric that was both measured here and published, for the same network; None where there is none.

    Published values with a known slip (study.FLAGGED) are crosses; highlighted networks have their own colours.
    """
    colours = {one.model: (one.model, one.colour) for one in chosen if one.source == "measured"}
    metrics = [column for column in table.columns if column not in KEYS]
    long = table.melt(["model", "source"], metrics, "metric", "value").dropna()
    wide = long.pivot(index=["model", "metric"], columns="source", values="value")
    if not {"measured", "published"} <= set(wide.columns) or wide[["measured", "published"]].dropna().empty:
        return None
    wide = wide[["measured", "published"]].dropna().reset_index()
    percent = wide["metric"].map(lambda name: about(name).unit.startswith("%"))
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, some, label in zip(
        axes, (wide[percent], wide[~percent]), ("accuracy [%]", "other metrics [own units]"), strict=True
    ):
        flagged = some["metric"].isin(FLAGGED)
        looks = some["model"].map(lambda model: colours.get(model, ("networks not highlighted", "#888888")))
        for (label_of, colour), part in some[~flagged].groupby(looks):
            ax.scatter(part["published"], part["measured"], marker=".", s=18, color=colour, label=label_of)
        for (_, colour), part in some[flagged].groupby(looks):
            ax.scatter(part["published"], part["measured"], marker="x", s=18, color=colour, lw=0.9)
        if len(some):
            ends = some[["published", "measured"]].agg(["min", "max"]).agg({"min": "min", "max": "max"}, axis=1)
            ax.plot(ends, ends, color="#888888", lw=0.7, zorder=0)
        if "own units" in label:
            ax.set_xscale("symlog", linthresh=0.01)
            ax.set_yscale("symlog", linthresh=0.01)
        ax.set_xlabel(f"published {label}")
        ax.set_ylabel(f"measured {label}")
    keys = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    cross = Line2D([], [], ls="", marker="x", color="#444444", ms=4, label="known slip of the published run")
    handles = [*keys.values(), cross]
    columns = columns_of(figure, [one.get_label() for one in handles])
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


@laid_out
def power_curves(table):
    """In how many simulated studies the analysis finds an effect of each strength, for what acts and what does not.

    `table`: as analysis.power gives it.
    """
    panels = (
        ("within", "cause", "acts within categories"),
        ("between", "cause", "acts between categories only"),
        ("accuracy", "cause", "acts through ImageNet accuracy only"),
        ("nothing", "company", "does nothing"),
    )
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    x = [*STRENGTHS.values()]
    for ax, (mechanism, predictor, title) in zip(axes, panels, strict=True):
        for (method, label), style in zip(SHOWN, STYLES.values(), strict=False):
            joint = method.startswith("R2")
            some = table[(table["mechanism"] == mechanism) & (table["method"] == method)]
            some = some[some["predictor"] == (ALL_BIASES if joint else predictor)].set_index("strength")
            ax.plot(x, some["alarm"].reindex(STRENGTHS), color=style.colour, marker=style.marker, ms=4, lw=1.1,
                    ls="--" if joint else "-", label=label)  # fmt: skip
        ax.axhline(0.05, color="#888888", lw=0.7, zorder=0)
        ax.set_title(title)
        ax.set_xlabel("strength of the effect")
    axes[0].set_ylim(0, 1.02)
    axes[0].set_ylabel("studies with p < 0.05")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


@laid_out
def reliability_chart(table):
    """Reliability of each measure over images, seeds and views, with intervals. `table`: analysis.reliability's."""
    alone = table[table["score"] == ""]
    methods, names = list(dict.fromkeys(alone["method"])), list(dict.fromkeys(alone["measure"]))
    figure = Figure(figsize=(6.4, 1.2 + 0.3 * len(names)), layout="constrained")
    ax = figure.subplots()
    for number, (method, style) in enumerate(zip(methods, [*STYLES.values()][1:], strict=False)):
        some = alone[alone["method"] == method].set_index("measure").reindex(names)
        y = np.arange(len(names)) + 0.2 * (number - (len(methods) - 1) / 2)
        ax.hlines(y, some["low"], some["high"], color=style.colour, lw=1.2)
        ax.scatter(some["estimate"], y, color=style.colour, marker=style.marker, s=26, zorder=3, label=method)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.axvline(1, color="#888888", lw=0.7, zorder=0)
    ax.set_xlabel("correlation over networks of the measure with itself")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


@laid_out
def intervention_chart(table):
    """Difference of each score against that of each bias, one point an intervention. `table`: interventions'."""
    wide = {key: some.set_index("measure") for key, some in table.groupby(["intervention", "model"], sort=False)}
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
            for (intervention, _), some in wide.items():
                if {bias, score} <= {*some.index}:
                    (x, y), style = (some.loc[name] for name in (bias, score)), looks[intervention]
                    for point, other, draw in ((x, y, ax.hlines), (y, x, ax.vlines)):
                        if np.isfinite(point.low):
                            draw(other.difference, point.low, point.high, color=style.colour, lw=1)
                    ax.scatter(x.difference, y.difference, color=style.colour, marker=style.marker, s=22, zorder=3)
    for ax, bias in zip(axes[-1], biases, strict=True):
        ax.set_xlabel(f"Δ {about(bias).label}".replace(" [", "\n["))
    keys = [_key(style, f"{name}{'' if _enough(table, name) else ', n = 1'}") for name, style in looks.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False,
                  title="95 % intervals: over images (one network, before and after) or over trainings")  # fmt: skip
    return figure


def _enough(table, intervention):
    """Whether an intervention was made on one network with itself, or on several trainings of each kind."""
    some = table[table["intervention"] == intervention]
    return bool((some["model"] != "").all() or (some["n"] > 1).all())


def figures(table, statistics, layers, highlight=None):
    """Yield (name, Figure) of all figures but those with people (plotting_people).

    `table`: as read_table gives it; `statistics`: of its study networks; `layers`: as read_beside gives them;
    `highlight`: names of networks (default: `highlights`).
    """
    chosen = highlights(table, highlight)
    everything = derived(table)
    drawn = everything["category"].isin(DRAWN_CATEGORIES)
    everything["category"] = everything["category"].where(everything["category"].isin(STYLES), "")
    here = everything["category"].isin(STUDY_CATEGORIES) | everything["source"].str.startswith("measured")
    here |= ~everything.index.isin(_others(everything, chosen).index)
    photographs = everything[here & ~drawn].reset_index(drop=True)
    on_photographs = everything[~drawn].reset_index(drop=True)
    chosen = [one for one in chosen if len(one.of(photographs))]
    yield "biases_and_scores", biases_and_scores(photographs, statistics, chosen=chosen)
    yield "bandpass_curves", bandpass_curves(photographs, chosen)
    yield "rank_correlations", rank_correlations(statistics)
    yield "leave_one_out", leave_one_out(statistics)
    yield "prediction", prediction(statistics)
    yield "accuracy_on_the_line", accuracy_on_the_line(photographs, chosen)
    yield "bias_spread", bias_spread(photographs, chosen)
    yield "further_biases", biases_and_scores(photographs, statistics, FURTHER_BIASES, chosen)
    yield (
        "criticality_by_layer",
        criticality_by_layer(layers[~layers["model"].isin(everything["model"][drawn])], chosen),
    )
    yield "solarization_curves", solarization_curves(on_photographs, chosen)
    if compared := measured_and_published(table, chosen):
        yield "measured_and_published", compared
    if made := calibration(everything):
        yield "calibration", made


def save(figure, folder, name):
    """Write folder/NAME.pdf and folder/NAME.png."""
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
        with atomic(folder / f"{name}.{kind}") as file, mpl.rc_context(RC):
            figure.savefig(file, format=kind, metadata=metadata)

"""The study's figures and ours, one function each: table and statistics in, a matplotlib Figure out.

Every category has a colour that people with colour-vision deficiencies can tell apart (Okabe & Ito 2008) and a marker
of its own, so that the figures also work in black and white. Published values are filled, measured ones open.
"""

import functools
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
from imagenet_biases.files import atomic
from imagenet_biases.networks.registry import registry
from imagenet_biases.results.table import KEYS, RAW_DATA, derived, study
from imagenet_biases.study import BIASES, CONTROL, CUTOFFS, FLAGGED, FURTHER_BIASES, SCORES, STUDY_CATEGORIES, about

FIGURES = RAW_DATA.parent / "figures"


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
    "": Style("no category", "#B0B0B0", "P", "cross"),
}
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


def _figure(function):
    @functools.wraps(function)
    def laid_out(*args, **kwargs):
        with mpl.rc_context(RC):
            figure = function(*args, **kwargs)
            if figure:
                figure.draw_without_rendering()
                figure.set_layout_engine("none")  # laid out once, not again for every file
            return figure

    return laid_out


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


def _draw(ax, rows, x, y):
    """Scatter rows, category by category."""
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


def _legend(figure, rows, **settings):
    sized = {"adversarial_training": ", small to large ε"}
    keys = [_key(s, s.label + sized.get(c, "")) for c, s in STYLES.items() if (rows["category"] == c).any()]
    if rows["source"].ne("published").any():
        keys.append(_key(STYLES["training_recipes"], "open: measured here", mfc="none", mec="#444444"))
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 5), frameon=False, **settings)


def _bias_axis(axis, bias):
    if about(bias).logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())


def _number(value, digits=2):
    """A number as it is printed: a true minus sign, and no negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _interval(one, between):
    return f"{_number(one.estimate)}{between}[{_number(one.low)}, {_number(one.high)}]"


def _pick(statistics, method, excluded="none"):
    some = statistics[(statistics["method"] == method) & (statistics["excluded"] == excluded)]
    return some.set_index(["bias", "score"])


@_figure
def biases_and_scores(rows, statistics, biases=BIASES):
    """The study's figure: each bias against each score, one point a network, with Spearman's ρ within categories.

    `rows`: networks with derived columns; `statistics`: as imagenet_biases.analysis.statistics gives it.
    """
    figure = Figure(figsize=(1.2 + 1.6 * len(biases), 7.4), layout="constrained")
    axes = figure.subplots(len(SCORES), len(biases), sharex="col", sharey="row")
    within, overall = (_pick(statistics, method) for method in (WITHIN, SPEARMAN))
    for line, score in zip(axes, SCORES, strict=True):
        line[0].set_ylabel(about(score).label)
        for ax, bias in zip(line, biases, strict=True):
            _draw(ax, rows, bias, score)
            _bias_axis(ax, bias)
            if (bias, score) in within.index:
                one = within.loc[bias, score]
                weight = "bold" if one.p_holm < 0.05 else "normal"
                title = f"{_interval(one, ' ')}, all {_number(overall.loc[bias, score].estimate)}"
                ax.set_title(title, fontweight=weight, fontsize=7, pad=3)
    for ax, bias in zip(axes[-1], biases, strict=True):
        ax.set_xlabel(about(bias).label.replace(" [", "\n["))
    text = "Spearman's ρ within categories, 95 % interval, and over all networks;{}bold: p < 0.05 within, after Holm's"
    _legend(figure, rows, title=text.format(" " if len(biases) > 5 else "\n") + " correction")
    return figure


@_figure
def bandpass_curves(rows):
    """Accuracy under a low- and a high-pass relative to the clean one, one panel a category; bold: the median."""
    categories = [category for category in STYLES if (rows["category"] == category).any()]
    figure = Figure(figsize=(1.0 + 1.45 * len(categories), 4.0), layout="constrained")
    axes = figure.subplots(2, len(categories), sharex=True, sharey="row", squeeze=False)
    for line, kind, label in zip(axes, ("LFC", "HFC"), ("low-pass", "high-pass"), strict=True):
        columns = [f"metric/bandpass/{kind}/{cutoff}" for cutoff in CUTOFFS]
        baseline = rows.loc[rows["category"] == "baseline", columns].median()
        for ax, category in zip(line, categories, strict=True):
            some = rows.loc[rows["category"] == category, columns]
            look = STYLES[category]
            many = len(some) > 2
            ax.plot(CUTOFFS, baseline, color="black", lw=0.9, ls=(0, (4, 2)))
            ax.plot(CUTOFFS, some.to_numpy().T, color=look.colour, lw=0.7 if many else 1.8, alpha=0.45 if many else 1)
            if many:
                ax.plot(CUTOFFS, some.median(), color=look.colour, lw=1.8, marker=look.marker, ms=3.5)
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            ax.set_ylim(-0.04, 1.06)
        line[0].set_ylabel(f"top-1 under {label}\n/ clean top-1")
    for ax, category in zip(axes[0], categories, strict=True):
        ax.set_title(f"{STYLES[category].label} ({(rows['category'] == category).sum()})", fontsize=7)
    figure.supxlabel(
        "cut-off: share of the spectrum that is kept   (dashed: baseline, bold with markers: median)", fontsize=8
    )
    return figure


@_figure
def solarization_curves(rows):
    """Accuracy when all pixel values from a threshold on are inverted; every network that has the published grid."""
    thresholds = [column for column in rows if re.fullmatch(r"top1_acc/solarize/[\d.]+", column)]
    alphas = [float(column.rpartition("/")[2]) for column in thresholds]
    some = rows.dropna(subset=thresholds, how="all").sort_values(thresholds[-1], ascending=False)
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    ax = figure.subplots()
    published = (some["source"] == "published").sum()
    shades = iter(mpl.colormaps["viridis"](np.linspace(0, 0.9, max(published, 2))))
    for _, row in some.iterrows():
        measured, baseline = row["source"] != "published", row["category"] == "baseline"
        look = {"color": "black" if baseline else next(shades), "lw": 0.9} if not measured else {"lw": 2}
        look |= {"ls": (0, (4, 2))} if baseline and not measured else {}
        label = f"{row['model']}, {row['source']}" if measured else row["model"]
        given = row[thresholds].astype(float).dropna()
        ax.plot([alphas[thresholds.index(name)] for name in given.index], given, label=label, **look)
    ax.set_xlabel("threshold α: values from α on are inverted (0: all of them)")
    ax.set_ylabel("top-1 [%]")
    ax.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


@_figure
def criticality_by_layer(layers):
    """Criticality of each layer of a ResNet-50: published mean ± SD over 50 networks, the baseline, measured networks.

    `layers`: as results.table.read_beside gives them; networks with other layers' names are left out.
    """
    published = pd.read_csv(RAW_DATA / "criticality_layers.csv", index_col="layer")
    names = list(published.index)
    mean, spread = published["mean_over_50"] / 100, published["sd_over_50"] / 100
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    ax = figure.subplots()
    x = np.arange(len(names))
    ax.fill_between(x, mean - spread, mean + spread, color="#DDDDDD", label="50 published networks, mean ± SD")
    ax.plot(x, mean, color="#888888", lw=1.2)
    ax.plot(x, published["tv_resnet50"] / 100, color="black", lw=0.9, ls=(0, (4, 2)), label="tv_resnet50, published")
    measured = layers[(layers["metric"] == "metric/criticality") & layers["layer"].isin(names)]
    for (model, source), some in measured.groupby(["model", "source"], sort=False):
        values = some.set_index("layer")["value"].reindex(names)
        ax.plot(x, values, marker="o", mfc="none", ms=4, lw=1, label=f"{model}, {source}")
    ax.set_xticks(x, names, rotation=90, fontsize=6)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylim(0, 1.02)
    ax.set_ylabel(f"criticality of the layer [{about('criticality').unit}]")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


@_figure
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
        ax.set_title(title)
        ax.grid(False)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="rank correlation", shrink=0.8, pad=0.01)
    figure.supxlabel("95 % bootstrap interval over networks; bold: p < 0.05 after Holm's correction", fontsize=8)
    return figure


@_figure
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
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


@_figure
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
                    ax.text(x + 0.09, lowest + 0.02, _number(one.estimate, 1), fontsize=6.5, color=colour)
        ax.axhline(0, color="#888888", lw=0.7, zorder=0)
        ax.set_xticks(range(len(SCORES)), list(SCORES))
        ax.set_xlim(-0.5, len(SCORES) - 0.5)
        ax.set_ylim(lowest - 0.05, 1.05)
        ax.set_title(title)
    axes[0].set_ylabel("R² of held-out networks")
    handles, labels = axes[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="#CCCCCC", lw=7))
    figure.legend(handles, [*labels, "scores permuted, 95 %"], loc="outside lower center", ncols=3, frameon=False)
    return figure


@_figure
def accuracy_on_the_line(rows):
    """Each score against ImageNet accuracy on logit axes with the fitted line: effective robustness is the distance."""
    figure = Figure(figsize=(10.4, 3.5), layout="constrained")
    scores = [score for score in SCORES if score != "ID"]
    axes = figure.subplots(1, len(scores), sharex=True)
    published = rows[rows["source"] == "published"]
    percent = FuncFormatter(lambda value, _: f"{100 / (1 + np.exp(-value)):.0f}")
    for ax, score in zip(axes, scores, strict=True):
        points = rows.assign(**{name: logit(rows[name].clip(0.01, 99.99) / 100) for name in (CONTROL, score)})
        _draw(ax, points, CONTROL, score)
        residual = effective_robustness(published[CONTROL], published[score])
        x = points.loc[published.index, CONTROL]
        line = points.loc[published.index, score] - residual
        ends = [x.idxmin(), x.idxmax()]
        ax.plot(x[ends], line[ends], color="black", lw=0.9, ls=(0, (4, 2)))
        for axis, values in ((ax.xaxis, (50, 55, 60, 65, 70, 75, 80)), (ax.yaxis, (10, 20, 30, 40, 50, 60, 70))):
            axis.set_major_locator(FixedLocator([logit(value / 100) for value in values]))
            axis.set_major_formatter(percent)
        ax.set_ylabel(about(score).label)
        ax.set_xlabel("ImageNet top-1 [%]")
    _legend(figure, rows)
    return figure


@_figure
def bias_spread(rows):
    """Each bias by category, networks and median; the calibration networks show what the instrument tells apart."""
    categories = [category for category in STYLES if (rows["category"] == category).any()]
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True).ravel()
    random = np.random.default_rng(0)
    for ax, bias in zip(axes[: len(BIASES)], BIASES, strict=True):
        for number, category in enumerate(categories):
            some = rows.loc[rows["category"] == category, [*KEYS, bias]]
            some = some.assign(place=number + random.uniform(-0.25, 0.25, len(some)) * (len(some) > 1))
            _draw(ax, some, "place", bias)
            if len(some) > 2:
                ax.hlines(some[bias].median(), number - 0.35, number + 0.35, color="black", lw=1, zorder=5)
        if about(bias).logarithmic:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylabel(about(bias).label)
        ax.set_xticks([])
        ax.set_xlim(-0.6, len(categories) - 0.4)
    axes[-1].set_visible(False)
    _legend(figure, rows)
    return figure


@_figure
def measured_and_published(table):
    """Every metric that was both measured here and published, for the same network; None where there is none.

    Published values with a known slip (study.FLAGGED) are crosses.
    """
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
        for part, marker, colour in ((some[~flagged], ".", "#0072B2"), (some[flagged], "x", "#D55E00")):
            slip = "known slip of the published run" if marker == "x" else "metric"
            ax.scatter(part["published"], part["measured"], marker=marker, s=18, color=colour, lw=0.9, label=slip)
        if len(some):
            ends = some[["published", "measured"]].agg(["min", "max"]).agg({"min": "min", "max": "max"}, axis=1)
            ax.plot(ends, ends, color="#888888", lw=0.7, zorder=0)
        if "own units" in label:
            ax.set_xscale("symlog", linthresh=0.01)
            ax.set_yscale("symlog", linthresh=0.01)
        ax.set_xlabel(f"published {label}")
        ax.set_ylabel(f"measured {label}")
    axes[0].legend(frameon=False)
    return figure


@_figure
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


def figures(table, statistics, layers):
    """Yield (name, Figure) of all figures.

    `table`: as read_table gives it; `statistics`: of its study networks; `layers`: as read_beside gives them.
    """
    networks = study(table)
    everything = derived(table)
    shown = everything[
        everything["category"].isin(STUDY_CATEGORIES) | everything["source"].str.startswith("measured")
    ].reset_index(drop=True)
    shown["category"] = shown["category"].where(shown["category"].isin(STYLES), "")  # others look like none
    photographs = shown[shown["category"] != "calibration"].reset_index(drop=True)
    yield "biases_and_scores", biases_and_scores(photographs, statistics)
    yield "bandpass_curves", bandpass_curves(shown)
    yield "rank_correlations", rank_correlations(statistics)
    yield "leave_one_out", leave_one_out(statistics)
    yield "prediction", prediction(statistics)
    yield "accuracy_on_the_line", accuracy_on_the_line(networks)
    yield "bias_spread", bias_spread(shown)
    yield "further_biases", biases_and_scores(photographs, statistics, FURTHER_BIASES)
    yield "criticality_by_layer", criticality_by_layer(layers)
    yield "solarization_curves", solarization_curves(everything)
    if compared := measured_and_published(table):
        yield "measured_and_published", compared


def save(figure, folder, name):
    """Write folder/NAME.pdf and folder/NAME.png."""
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
        with atomic(folder / f"{name}.{kind}") as file, mpl.rc_context(RC):
            figure.savefig(file, format=kind, metadata=metadata)

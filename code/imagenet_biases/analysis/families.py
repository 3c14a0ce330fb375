"""Families of adversarially trained networks: every measure against the budget and against clean accuracy.

Which networks belong together is in models/zoo.toml (family, norm, eps, arch). Published values besides the study's:
raw-data/human_likeness.csv (Gavrikov, Keuper & Keuper 2023, arXiv:2303.12669).
"""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from imagenet_biases.networks.registry import registry
from imagenet_biases.results.table import RAW_DATA, derived
from imagenet_biases.study import CONTROL, FAMILY_MEASURES, about

LIKENESS = {
    "card_top1": CONTROL,
    "accuracy_diff": "metric/human/accuracy-difference",
    "observed_consistency": "metric/human/observed-consistency",
    "error_consistency": "metric/human/error-consistency",
}
KEY = ["arch", "norm", "eps", "source"]
COLOURS = {"resnet18": "#0072B2", "resnet50": "#D55E00", "wide_resnet50_2": "#009E73"}  # further ones are purple
LINES = {"l2": "-", "linf": "--"}
TICKS = {"l2": (0, 0.01, 0.1, 1, 5), "linf": (0, 0.5, 1, 2, 4, 8)}
FEWEST = 3  # networks with a value, for a measure to be drawn


def family_rows(table: pd.DataFrame, likeness: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one row per network that has a norm and a budget: KEY, `family`, `model` and the measures as columns.

    Args:
        table: as read_table gives it.
        likeness: the table of human_likeness.csv, whose published values fill what the first lacks.
    """
    table, entries = derived(table), registry()
    trained = table[[name in entries and bool(entries[name].norm) for name in table["model"]]]
    facts = []
    for name in trained["model"]:
        entry = entries[name]
        facts.append([entry.arch.rpartition(":")[2], entry.norm, entry.eps, entry.family])
    rows = pd.DataFrame(facts, columns=["arch", "norm", "eps", "family"], index=trained.index)
    rows = pd.concat([rows, trained], axis=1)
    if likeness is not None:
        published = likeness.dropna(subset=["norm", "eps"]).rename(columns=LIKENESS).assign(source="published")
        published = published[[*KEY, *LIKENESS.values()]].set_index(KEY)
        rows = rows.set_index(KEY).combine_first(published).reset_index()
    measures = [name for name in FAMILY_MEASURES if name in rows and rows[name].count() >= FEWEST]
    columns = [*KEY, *(name for name in ("family", "model") if name in rows), *dict.fromkeys([CONTROL, *measures])]
    return rows[columns].sort_values(KEY).reset_index(drop=True)


def read_likeness() -> pd.DataFrame | None:
    """Return the table of raw-data/human_likeness.csv, None where it is not there."""
    path = RAW_DATA / "human_likeness.csv"
    return pd.read_csv(path) if path.exists() else None


def _look(arch: str, norm: str, source: str) -> tuple[dict[str, Any], str]:
    """Return how the line of a family is drawn, and its label."""
    published = source == "published"
    look = {"color": COLOURS.get(arch, "#CC79A7"), "ls": LINES[norm], "lw": 1.2, "ms": 4}
    look |= {"marker": "o" if published else "s", "mfc": None if published else "none"}
    return look, f"{arch} {'ℓ2' if norm == 'l2' else 'ℓ∞'}{'' if published else f' ({source})'}"


def family_curves(rows: pd.DataFrame) -> Figure:
    """Draw each measure against eps of either norm and clean accuracy, one line per norm, architecture and source."""
    measures = [name for name in rows.columns if name not in (*KEY, "family", "model", CONTROL)]
    figure = Figure(figsize=(9.2, 1.9 * len(measures) + 0.8), layout="constrained")
    axes = figure.subplots(len(measures), 3, sharey="row", squeeze=False)
    handles = {}
    for (arch, norm, source), line in rows.groupby(KEY[:2] + KEY[3:]):
        look, label = _look(str(arch), str(norm), str(source))
        for row, measure in zip(axes, measures, strict=True):
            points = line.dropna(subset=[measure]).sort_values("eps")
            if points.empty:
                continue
            (handles[label],) = row[0 if norm == "l2" else 1].plot(points["eps"], points[measure], **look)
            row[2].plot(points[CONTROL], points[measure], **look)
    for row, measure in zip(axes, measures, strict=True):
        row[0].set_title(about(measure).label, loc="left", fontsize=9)
        for ax, ticks in zip(row, TICKS.values(), strict=False):
            ax.set_xscale("symlog", linthresh=ticks[1])  # a network of the family has eps 0
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    for ax, label in zip(axes[-1], ("ε, ℓ2", "ε, ℓ∞ [1/255]", "ImageNet top-1 [%]"), strict=True):
        ax.set_xlabel(label)
    if handles:
        columns = min(4, len(handles))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return figure

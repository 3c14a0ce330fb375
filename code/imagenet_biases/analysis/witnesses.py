"""How the published figures agree with other laboratories' (raw-data/witness.csv), cell by cell.

A difference is the witness's value minus the published one, in standard errors: of the witness's 5,000 of the same
50,000 images, which all its networks and conditions share (so the differences are not independent); where both used
whole sets, of an accuracy on so many images. That is an upper bound, since they used the same images. Only cells of the
study's preprocessing tell whether two laboratories agree; others also differ by what the networks were shown.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from imagenet_biases.images.preprocessing import STUDY
from imagenet_biases.results.table import REAL, beside_slips, study
from imagenet_biases.results.witness import (
    POINT,
    Witness,
    binomial_error,
    image_set_of,
    images_of,
    names_of,
    nearest_witness,
    witnesses_of,
)
from imagenet_biases.study import BIASES, FLAGGED, STUDY_CATEGORIES, WITNESSED, about

COLUMNS = ("model", "category", "metric", "set", "published", "witness", "difference", "error", "z", "source",
           "preprocessing", "same", "reason")  # fmt: skip
SETS = ("imagenet", "imagenet-real", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-c")
TITLES = {"imagenet": "ImageNet", "imagenet-real": "ReaL", "imagenet-v2": "-v2", "imagenet-a": "-A", "imagenet-r": "-R",
          "imagenet-sketch": "-Sketch", "imagenet-c": "ImageNet-C"}  # fmt: skip


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cells that published rows of a table share with a witness.

    Args:
        table: as read_table returns it.

    Returns:
        COLUMNS: published and witness in per cent; error: the standard error of their difference; z: the difference
        divided by it; preprocessing of the witness, and whether it is the study's; reason: why they differ, where it is
        known.
    """
    rows: list[dict[str, Any]] = []
    for row in table[table["source"] == "published"].to_dict("records"):
        for witness in witnesses_of(names_of(row["model"])):
            for metric, value in witness.values.items():
                if pd.notna(row.get(metric)):
                    rows.append(_cell(row, witness, metric, value))
    return pd.DataFrame(rows, columns=COLUMNS)


def _cell(row: Mapping[Any, Any], witness: Witness, metric: str, value: float) -> dict[str, Any]:
    published, image_set = row[metric], image_set_of(metric)
    error = witness.error(metric, published) or binomial_error(metric, published, images_of(image_set))
    same = witness.speaks_of(metric, str(STUDY))
    reason = "" if same else f"shown as {witness.preprocessing}, not as {STUDY}"
    key = {"model": row["model"], "category": row["category"], "metric": metric, "set": image_set}
    return key | {
        "published": published,
        "witness": value,
        "difference": value - published,
        "error": error,
        "z": (value - published) / error,
        "source": witness.source,
        "preprocessing": witness.preprocessing,
        "same": same,
        "reason": about(metric).slip if metric in FLAGGED else reason,
    }


def distribution(cells: pd.DataFrame, by: Iterable[str] = ("set",)) -> pd.DataFrame:
    """Return how z is distributed, per set of cells (columns `by`): number, mean, SD, extremes, largest difference."""
    groups = cells.groupby([*by], sort=False)
    spread = groups["z"].agg(cells="size", mean="mean", sd=lambda z: z.std(ddof=0), lowest="min", highest="max")
    return spread.assign(
        networks=groups["model"].nunique(), farthest=groups["difference"].agg(lambda values: values.abs().max())
    ).reset_index()


def largest(cells: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """Return the cells with the largest differences in standard errors."""
    order = cells["z"].abs().sort_values(ascending=False, kind="stable").index
    return cells.loc[order[:count]]


def confirmed(cells: pd.DataFrame) -> dict[str, bool]:
    """Return, per set with cells of the study's preprocessing, whether all lie within a point of the witness.

    Beyond the 95 % interval of a witness that used 5,000 images, as in the gate (results/witness.py).
    """
    same = cells[cells["same"]]
    sampled = same["source"].str.startswith("RobustBench")
    gap = same["difference"].abs() - 1.96 * same["error"].where(sampled, 0.0)
    within = (gap <= POINT).groupby(same["set"], sort=False).all()
    return {name: bool(within[name]) for name in SETS if name in within}


def correlations_of_id(table: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's correlations of the biases with ID as published, and with a witness's ReaL in its place.

    Over the study's networks that a witness covers; rows: BIASES, columns: published, witness, networks.
    """
    networks = study(beside_slips(table)).dropna(subset=["ID (timm)"])
    rows: list[dict[str, Any]] = []
    for bias in BIASES:
        ranks = networks[[bias, "ID", "ID (timm)"]].rank().corr().loc[bias]
        rows.append({"bias": bias, "published": ranks["ID"], "witness": ranks["ID (timm)"], "networks": len(networks)})
    return pd.DataFrame(rows)


PARAGRAPH = re.compile(r"^\*\*What a second laboratory confirms\*\*.*?(?=\n\n)", re.M | re.S)
"""Where the answer says it."""


def paragraph(table: pd.DataFrame) -> str:
    """Return what the answer says of other laboratories: one paragraph, lines of at most 120 characters."""
    cells = agreement(table)
    same, verdict = cells[cells["same"]], confirmed(cells)
    whole = same[~same["source"].str.startswith("RobustBench")]
    (corruptions,) = distribution(same[same["set"] == "imagenet-c"]).to_dict("records")
    far = distribution(whole).set_index("set")["farthest"]
    agreed = [name for name, holds in verdict.items() if holds and name in far]
    listed = ", ".join(f"{TITLES[name]} {far[name]:.2f}" for name in agreed)
    refuted = [TITLES[name] for name, holds in verdict.items() if not holds]
    real = whole[whole["set"] == "imagenet-real"]["difference"]
    other = cells[~cells["same"] & ~cells["metric"].isin(FLAGGED) & (cells["set"] != "imagenet-c")]
    farthest: Any = other.sort_values("difference", key=abs).iloc[-1]
    networks = whole["model"].nunique()
    in_study = whole.loc[whole["category"].isin(STUDY_CATEGORIES), "model"].nunique()
    text = (
        f"**What a second laboratory confirms** (timm and RobustBench measured the same networks: "
        f"raw-data/witness.csv). With the study's preprocessing, timm's figures for {networks} networks ({in_study} of "
        f"the 48) are within {far[agreed].max():.2f} points of the published ones (at most {listed}). On "
        f"ImageNet-C, RobustBench's figures agree in all {corruptions['cells']} shared conditions of "
        f"{corruptions['networks']} networks: the differences have a mean of {corruptions['mean']:.2f} standard errors "
        f"and an SD of {corruptions['sd']:.2f} (from {corruptions['lowest']:.1f} to {corruptions['highest']:.1f}; all "
        f"rest on the same 5,000 images). Not confirmed: {', '.join(refuted)}, published {-real.max():.1f} to "
        f"{-real.min():.1f} points too high, the known slip. Neither has ImageNet-C̄, the sets of model-vs-human or "
        f"PGD-40. Networks that timm shows with another crop or interpolation differ by what they are shown, up to "
        f"{abs(farthest['difference']):.1f} points ({farthest['model']} on {TITLES[farthest['set']]} at "
        f"{farthest['preprocessing']}), and confirm nothing. {_on_id(table)}"
    )
    return textwrap.fill(re.sub(r"(?<!\w)-(?=\d)", "−", text), 120, break_on_hyphens=False)


def _on_id(table: pd.DataFrame) -> str:
    """Return what becomes of ID with a witness's ReaL in place of the flagged one."""
    networks = study(beside_slips(table)).dropna(subset=[WITNESSED])
    lower = networks["ID"] - networks["ID (timm)"]
    moved: Any = correlations_of_id(table).set_index("bias")
    nearest = [nearest_witness(model, REAL) for model in networks["model"]]
    elsewhere = sum(witness is not None and witness.preprocessing != str(STUDY) for witness in nearest)
    change = (moved["witness"] - moved["published"]).abs()
    return (
        f"With timm's ReaL in place of the flagged one ({len(networks)} of the 48 networks, {elsewhere} of them with "
        f"another preprocessing) ID is {lower.min():.1f} to {lower.max():.1f} points lower, its ranks correlate at "
        f"{networks['ID'].rank().corr(networks['ID (timm)'].rank()):.2f} with the published ones, and its correlations "
        f"with the seven biases over these networks move by at most {change.max():.2f} ({change.idxmax()}: "
        f"{moved.loc[change.idxmax(), 'published']:.2f} becomes {moved.loc[change.idxmax(), 'witness']:.2f})."
    )

"""Shape bias of answers in words: published figures (raw-data/vlm_answers.csv) beside measured ones.

Published: Gavrikov et al. 2024, arXiv:2403.09193, of their released answers; measured: eval_vlm.py.
"""

import pandas as pd
from matplotlib.figure import Figure

from imagenet_biases.results.table import RAW_DATA

COLUMNS = ["task", "network", "source", "prompts", "shape_bias", "accuracy"]
LOOKS = {"vqa": ("#0072B2", "o"), "caption": ("#D55E00", "s"), "clip16": ("#009E73", "^"), "imagenet": ("#7F7F7F", "D")}
TITLES = {
    "vqa": "question with 16 options",
    "caption": "description",
    "clip16": "zero-shot, 16 names",
    "imagenet": "ImageNet classifier",
}
# descriptions have published figures only as the published rules read them, not for the names in them
MEASURED = {"vqa": "vqa", "caption/published": "caption", "clip16": "clip16"}
PEOPLE = 0.96  # shape bias of people on these images (Geirhos et al. 2019)


def language_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model and task with COLUMNS: `shape_bias` in 0...1, `accuracy` in per cent.

    `table`: as read_table gives it; its rows that are not published are the measured ones.
    """
    rows = [pd.read_csv(RAW_DATA / "vlm_answers.csv", dtype={"prompts": str}).assign(source="published")]
    measured = table[table["source"] != "published"]
    for name, task in MEASURED.items():
        bias, accuracy = f"shape-bias/{name}", f"top1_acc/cue-conflict-either/{name}"
        if {bias, accuracy} <= {*measured.columns}:
            of_task = measured.dropna(subset=[bias, accuracy])
            of_task = of_task.rename(columns={"model": "network", bias: "shape_bias", accuracy: "accuracy"})
            rows.append(of_task.assign(task=task, prompts=""))
    rows = [frame[COLUMNS] for frame in rows if len(frame)]
    return pd.concat(rows, ignore_index=True).fillna({"prompts": ""})


def language_models(rows: pd.DataFrame) -> Figure:
    """Draw shape bias against accuracy of answers in words, by task; measured models are open and named."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = figure.subplots()
    for (task, published), group in rows.groupby(["task", rows["source"] == "published"], sort=False):
        colour, marker = LOOKS[str(task)]
        label = TITLES[str(task)] + ("" if published else " (measured)")
        face = colour if published else "none"
        ax.scatter(group["accuracy"], group["shape_bias"], s=26, marker=marker, fc=face, ec=colour, label=label)
        if not published:
            for row in group.itertuples():
                ax.annotate(str(row.network), (row.accuracy, row.shape_bias), xytext=(4, 3), textcoords="offset points")
    ax.axhline(PEOPLE, color="black", lw=0.8, ls=":")
    ax.annotate("people", (ax.get_xlim()[0], PEOPLE), xytext=(4, -10), textcoords="offset points")
    ax.set_xlabel("answers that name the shape or the texture [%]")
    ax.set_ylabel("shape bias")
    ax.set_ylim(0, 1)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure

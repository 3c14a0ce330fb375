"""Tables of results: one row per network and source, columns in the order of `study.DEFINITIONS`.

raw-data/benchmark.csv holds the published rows and is never written to; raw-data/measured.csv (or a file in another
folder) holds the rows that were merged from records. Both have the same form and are read together. Two more files
belong to a table STEM.csv: STEM_uncertainty.csv (columns UNCERTAINTY) and STEM_layers.csv (columns LAYERS).
"""

import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import atomic, read_bytes
from imagenet_biases.base.paths import HOME, PUBLISHED, RAW_DATA
from imagenet_biases.results.measurements import Projection, derived_projections, whole
from imagenet_biases.results.witness import nearest_witness
from imagenet_biases.study import CORRECTED, DEFINITIONS, DERIVED, STUDY_CATEGORIES, WITNESSED, derive, place

MEASURED = HOME / "raw-data" / "measured.csv"
KEYS = ("model", "category", "source")
UNCERTAINTY = ("model", "source", "metric", "low", "high", "seeds", "spread", "share", "whole_low", "whole_high")
SAMPLE = UNCERTAINTY[-3:]  # share of the images, and the interval of what all would give; older files lack them
LAYERS = ("model", "source", "metric", "layer", "value", "low", "high")
Paths = str | Path | Sequence[str | Path]
LINEAGES = RAW_DATA / "lineages.csv"  # model, lineage: networks of the same group and recipe
REAL = "top1_acc/imagenet-real"
SIGNIFICANT = "%.6g"  # six significant digits, as the published figures have them


def tables() -> list[Path]:
    """Return the tables that are read by default: the published one, and the measured one if there is one."""
    return [PUBLISHED, *([MEASURED] if MEASURED.exists() else [])]


def read_table(paths: Paths | None = None) -> pd.DataFrame:
    """Read tables: model, category ('' for none), source, then metrics as floats (NaN: not measured).

    `paths`: one file or several, by default `tables()`. Of rows for the same network and source the last counts.

    Raises:
        UserError: a missing file, a column that metrics.toml does not define, two rows for one network and source in a
            file.
    """
    table = pd.concat([_read(path) for path in _listed(paths or tables())], ignore_index=True)
    table = table.drop_duplicates(["model", "source"], keep="last", ignore_index=True)
    metrics = sorted((column for column in table.columns if column not in KEYS), key=place)
    return table[[*KEYS, *metrics]].copy()


def _listed(paths: Paths) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else list(map(Path, paths))


def _read(path: Path) -> pd.DataFrame:
    try:
        table = _csv(path, KEYS)
        if missing := [key for key in KEYS if key not in table]:
            raise UserError(f"{path} lacks the column {missing[0]!r}: is it a merged table?")
        metrics = [column for column in table.columns if column not in KEYS]
        table = table.fillna({"category": ""}).astype(dict.fromkeys(metrics, float))
        if np.isinf(table[metrics].to_numpy()).any():
            raise ValueError("it holds infinite values")
    except FileNotFoundError:
        raise UserError(
            f"there is no table {path}: `git checkout raw-data/benchmark.csv` restores the repository's, "
            "`python code/merge_results.py` makes the measured one"
        ) from None
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a merged table: {error}") from None
    for column in metrics:
        try:
            place(column)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    if (repeated := table.duplicated(["model", "source"])).any():
        row = table[repeated].iloc[0]
        raise UserError(f"{path} has two rows for {row.model} ({row.source})")
    return table


def _csv(path: Path, texts: Iterable[str]) -> pd.DataFrame:
    """Read a CSV file, the columns `texts` as text. Raises OSError, also for what is not a file, and ValueError."""
    frame = pd.read_csv(io.BytesIO(read_bytes(path)), dtype=dict.fromkeys(texts, str)).copy()
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("it has more fields in a line than columns")
    return frame


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table atomically: columns in the defined order, empty ones left out, six significant digits."""
    metrics = [column for column in table.columns if column not in KEYS and table[column].notna().any()]
    metrics.sort(key=place)
    write_frame(table[[*KEYS, *metrics]], path)


def write_frame(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a frame as CSV, atomically, with six significant digits."""
    with atomic(path, "w") as file:
        frame.to_csv(file, index=False, lineterminator="\n", float_format=SIGNIFICANT)


def beside(path: str | Path, kind: str) -> Path:
    """Return where the 'uncertainty' or the 'layers' of a table lie: STEM_KIND.csv beside it."""
    return Path(path).with_name(f"{Path(path).stem}_{kind}.csv")


def read_beside(paths: Paths, kind: str) -> pd.DataFrame:
    """Read the 'uncertainty' or the 'layers' of the tables that have any; a later table's rows replace earlier ones.

    Raises:
        UserError: a file without the columns of UNCERTAINTY or LAYERS.
    """
    columns = {"uncertainty": UNCERTAINTY, "layers": LAYERS}[kind]
    frames: list[pd.DataFrame] = []
    for path in _listed(paths):
        file = beside(path, kind)
        if file.exists():
            try:
                frames.append(_read_beside(file, columns))
            except (OSError, ValueError, OverflowError, KeyError) as error:
                raise UserError(f"{file} is not a table of {kind} ({error}): remove it and merge again") from None
    frames = [frame for frame in frames if len(frame)] or frames[:1] or [pd.DataFrame(columns=columns)]
    keys = [key for key in ("model", "source", "metric", "layer") if key in columns]
    return pd.concat(frames, ignore_index=True).drop_duplicates(keys, keep="last", ignore_index=True)


def _read_beside(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    texts = [name for name in columns if name in ("model", "source", "metric", "layer")]
    numbers = [name for name in columns if name not in texts]
    frame = _csv(file, texts)
    frame = frame.assign(**{name: np.nan for name in SAMPLE if name in columns and name not in frame})
    frame = frame[[*columns]].astype(dict.fromkeys(numbers, float))
    if frame[texts].isna().to_numpy().any() or np.isinf(frame[numbers].to_numpy()).any():
        raise ValueError("a key is missing, or a number is infinite")
    return frame


def write_beside(frame: pd.DataFrame, path: str | Path, kind: str) -> None:
    """Write the 'uncertainty' or the 'layers' of the table at `path`, atomically, in the order of its networks."""
    write_frame(frame.sort_values(["source", "model"], kind="stable"), beside(path, kind))


def beside_slips(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with another laboratory's ReaL accuracies (WITNESSED) in the published rows of its networks.

    Of the preprocessing that is the most like the study's. A measured value does not have the published one's slip.
    """
    values: list[float] = []
    for model, source in zip(table["model"], table["source"], strict=True):
        witness = nearest_witness(model, REAL) if source == "published" else None
        values.append(np.nan if witness is None else witness.values[REAL])
    return table.assign(**{WITNESSED: values})


def derived(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the study's scores and biases (study.DERIVED) as further columns; NaN where a part is.

    A measured value does not have the slips of the published run, so it stands for its own corrected one.
    """
    parts = ["shape-bias", *CORRECTED]
    for definition in DERIVED.values():
        parts += [part for part in definition.parts if part not in DERIVED]
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *parts])))
    values = table.copy()
    for raw, corrected in CORRECTED.items():
        if corrected in table:
            values[corrected] = table[corrected].where(table["source"] == "published", table[raw])
    columns = {name: derive(name, values) for name in DERIVED}
    return pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1).copy()


Projections = Mapping[tuple[str, str], Mapping[str, Projection]]
"""{(model, source): {metric, score or bias: what its whole image sets would give}}"""


def projections(table: pd.DataFrame, uncertainty: pd.DataFrame) -> Projections:
    """Return what whole image sets would give of each value, of the networks that have values on samples.

    Args:
        table: as read_table gives it.
        uncertainty: as read_beside gives it.
    """
    sampled: dict[tuple[str, str], dict[str, Projection]] = {}
    row: Any
    for row in uncertainty[uncertainty["share"] < 1].itertuples():
        bounds = (None, None) if np.isnan(row.whole_low) else (row.whole_low, row.whole_high)
        sampled.setdefault((row.model, row.source), {})[row.metric] = Projection(np.nan, *bounds, share=row.share)
    by_network: dict[tuple[str, str], dict[str, Projection]] = {}
    for values in table.to_dict("records"):
        key = (values["model"], values["source"])
        if key not in sampled:
            continue
        parts: dict[str, Projection] = {}
        for name, value in values.items():
            if name not in KEYS and pd.notna(value):
                sample = sampled[key].get(str(name))
                parts[str(name)] = replace(sample, value=value) if sample else whole(value)
        by_network[key] = parts | derived_projections(parts)
    return by_network


def study(
    table: pd.DataFrame, source: str = "published", categories: Collection[str] = STUDY_CATEGORIES
) -> pd.DataFrame:
    """Return the rows of the study's networks (of STUDY_CATEGORIES, or others) from one source, with derived columns.

    The column `lineage` names networks from the same group and recipe; a network that lineages.csv does not list is a
    lineage of its own.
    """
    rows = derived(table[(table["source"] == source) & table["category"].isin(categories)].reset_index(drop=True))
    lineages = pd.Series(dtype=str)
    if LINEAGES.exists():
        lineages = _csv(LINEAGES, ("model", "lineage")).set_index("model")["lineage"]
    return rows.assign(lineage=rows["model"].map(lineages).fillna(rows["model"]))


def describe() -> str:
    """Return the columns as a Markdown table, with what is wrong with them: what raw-data/README.md shows."""
    lines = ["| columns | unit | meaning | script | source |", "| --- | --- | --- | --- | --- |"]
    for definition in DEFINITIONS:
        about = definition.about
        better = f" ({about.better} is better)" if about.better == "lower" else ""
        meaning = about.meaning + better + (f". **Flagged**, {about.slip}" if about.slip else "")
        script = f"`{about.script}.py`" if about.script != "-" else "-"
        lines.append(f"| {definition.title} | {about.unit} | {meaning} | {script} | {about.source} |")
    return "\n".join(lines)


def describe_derived() -> str:
    """Return the derived columns as a Markdown table."""
    lines = ["| name | unit | from |", "| --- | --- | --- |"]
    lines += [f"| {name} | {score.about.unit} | {score.about.meaning} |" for name, score in DERIVED.items()]
    return "\n".join(lines)


def write_descriptions(path: Path = RAW_DATA / "README.md") -> None:
    """Replace the two tables of raw-data/README.md by `describe()` and `describe_derived()`."""
    text = path.read_text("utf-8")
    for table in (describe(), describe_derived()):
        head = re.escape(table.partition("\n")[0])
        text = re.sub(rf"^{head}\n(\|.*\n)*", lambda _, table=table: f"{table}\n", text, flags=re.M)
    path.write_text(text, "utf-8")

"""Tables of results: one row a network and source, columns in the order of `study.DEFINITIONS`.

raw-data/benchmark.csv holds the published rows and is never written to; raw-data/measured.csv (or a file in another
folder) holds the rows that were merged from records. Both have the same form and are read together. Two more files
belong to a table STEM.csv: STEM_uncertainty.csv (columns UNCERTAINTY) and STEM_layers.csv (columns LAYERS).
"""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import atomic, read_bytes
from imagenet_biases.base.paths import HOME, SHIPPED
from imagenet_biases.study import CORRECTED, DEFINITIONS, DERIVED, STUDY_CATEGORIES, derive, place

RAW_DATA = SHIPPED / "raw-data"
PUBLISHED, MEASURED = RAW_DATA / "benchmark.csv", HOME / "raw-data" / "measured.csv"
KEYS = ("model", "category", "source")
UNCERTAINTY = ("model", "source", "metric", "low", "high", "seeds", "spread")
LAYERS = ("model", "source", "metric", "layer", "value", "low", "high")
LINEAGES = RAW_DATA / "lineages.csv"  # model, lineage: networks of the same group and recipe
SIGNIFICANT = "%.6g"  # six significant digits, as the published figures have them


def tables():
    """Return the tables that are read where none is named: the published one, and the measured one if there is one."""
    return [PUBLISHED, *([MEASURED] if MEASURED.exists() else [])]


def read_table(paths=None):
    """Read tables: model, category ('' for none), source, then metrics as floats (NaN: not measured).

    `paths`: one file or several, by default `tables()`. Where two of them have a row for one network and source, the
    later one counts. Raises UserError for a missing file, a column that no definition knows, or a file with two rows
    for one network and source.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths or tables()
    table = pd.concat([_read(Path(path)) for path in paths], ignore_index=True)
    table = table.drop_duplicates(["model", "source"], keep="last", ignore_index=True)
    metrics = sorted((column for column in table.columns if column not in KEYS), key=place)
    return table[[*KEYS, *metrics]].copy()


def _read(path):
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
            f"there is no table {path}: `git checkout raw-data/benchmark.csv` brings the repository's back, "
            "`python code/merge_results.py` makes the measured one"
        ) from None
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a merged table: {error}") from None
    for column in metrics:
        try:
            place(column)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    if (double := table.duplicated(["model", "source"])).any():
        row = table[double].iloc[0]
        raise UserError(f"{path} has two rows for {row.model} ({row.source})")
    return table


def _csv(path, texts):
    """Read a CSV file with the columns `texts` as such. Raises OSError, also for what is no file, and ValueError."""
    frame = pd.read_csv(io.BytesIO(read_bytes(path)), dtype=dict.fromkeys(texts, str)).copy()
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("it has more fields in a line than columns")
    return frame


def write_table(table, path):
    """Write a table atomically: columns in the defined order, empty ones left out, six significant digits."""
    metrics = sorted((c for c in table.columns if c not in KEYS and table[c].notna().any()), key=place)
    write_frame(table[[*KEYS, *metrics]], path)


def write_frame(frame, path):
    """Write a DataFrame as CSV atomically, six significant digits."""
    with atomic(path, "w") as file:
        frame.to_csv(file, index=False, lineterminator="\n", float_format=SIGNIFICANT)


def beside(path, what):
    """Return where the 'uncertainty' or the 'layers' of a table lie: STEM_WHAT.csv beside it."""
    return Path(path).with_name(f"{Path(path).stem}_{what}.csv")


def read_beside(paths, what):
    """Read the 'uncertainty' or the 'layers' of tables, those that have any; a later table's rows replace earlier ones.

    Raises UserError for a file without the columns of UNCERTAINTY or LAYERS.
    """
    columns = {"uncertainty": UNCERTAINTY, "layers": LAYERS}[what]
    found = [pd.DataFrame(columns=columns)]
    for path in [paths] if isinstance(paths, str | Path) else paths:
        file = beside(path, what)
        if file.exists():
            try:
                texts = [name for name in columns if name in ("model", "source", "metric", "layer")]
                numbers = dict.fromkeys((name for name in columns if name not in texts), float)
                frame = _csv(file, texts)[[*columns]].astype(numbers)
                if frame[texts].isna().to_numpy().any() or np.isinf(frame[[*numbers]].to_numpy()).any():
                    raise ValueError("a key is missing, or a number is infinite")
                found.append(frame)
            except (OSError, ValueError, OverflowError, KeyError) as error:
                raise UserError(f"{file} is no table of {what} ({error}): remove it and merge again") from None
    frames = [frame for frame in found if len(frame)] or found[:1]
    keys = [key for key in ("model", "source", "metric", "layer") if key in columns]
    return pd.concat(frames, ignore_index=True).drop_duplicates(keys, keep="last", ignore_index=True)


def write_beside(frame, path, what):
    """Write the 'uncertainty' or the 'layers' of the table at `path`, atomically, in the order of its networks."""
    write_frame(frame.sort_values(["source", "model"], kind="stable"), beside(path, what))


def derived(table):
    """Return the table with the study's scores and biases (study.DERIVED) as further columns; NaN where a part is.

    A measured value does not have the slips of the published run, so it stands for its own corrected one.
    """
    parts = [part for one in DERIVED.values() for part in one.parts if part not in DERIVED]
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "shape-bias", *CORRECTED, *parts])))
    corrections = {
        corrected: table[corrected].where(table["source"] == "published", table[raw])
        for raw, corrected in CORRECTED.items()
        if corrected in table
    }
    values = table.assign(**corrections)
    columns = {name: derive(name, values) for name in DERIVED}
    return pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1).copy()


def study(table, source="published", categories=STUDY_CATEGORIES):
    """Return the rows of the study's networks (of STUDY_CATEGORIES, or others) from one source, with derived columns.

    The column `lineage` says which of them come from the same group and recipe; a network that lineages.csv does not
    know is a lineage of its own.
    """
    rows = derived(table[(table["source"] == source) & table["category"].isin(categories)].reset_index(drop=True))
    known = (
        _csv(LINEAGES, ("model", "lineage")).set_index("model")["lineage"]
        if LINEAGES.exists()
        else pd.Series(dtype=str)
    )
    return rows.assign(lineage=rows["model"].map(known).fillna(rows["model"]))


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
    lines += [f"| {name} | {one.about.unit} | {one.about.meaning} |" for name, one in DERIVED.items()]
    return "\n".join(lines)


def write_descriptions(path: Path = RAW_DATA / "README.md") -> None:
    """Replace the two tables of raw-data/README.md by `describe()` and `describe_derived()`."""
    text = path.read_text("utf-8")
    for table in (describe(), describe_derived()):
        head = re.escape(table.partition("\n")[0])
        text = re.sub(rf"^{head}\n(\|.*\n)*", lambda _, table=table: f"{table}\n", text, flags=re.M)
    path.write_text(text, "utf-8")

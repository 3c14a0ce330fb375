"""What figures about people and networks show: shape bias by category, accuracy and error consistency by condition.

Everything comes from trial tables (humans.trials): the released trials of people, and those of any network in the same
format. People are pooled as the observer `people`; the pieces are those of Geirhos et al. 2021 (arXiv:2106.07411).
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from imagenet_biases.base.errors import UserError
from imagenet_biases.humans.stimulus_sets import CUE_CONFLICT, STIMULUS_SETS
from imagenet_biases.humans.trials import (
    MEASURES,
    OTHER_EXPERIMENTS,
    accuracies,
    decisions,
    measures,
    out_of_distribution,
    read_trials,
    shape_bias,
)
from imagenet_biases.results.records import read_record
from imagenet_biases.results.table import RAW_DATA

PEOPLE = "people"
PARAMETRIC = tuple(
    name for name in STIMULUS_SETS if name not in ("edge", "silhouette", CUE_CONFLICT, "sketch", "stylized")
)
"""The 12 sets whose images are there in several conditions."""

TRIALS_HELP = "folders of trial files, of people (raw-data of the data set) and of networks (default: results)"


def is_person(subj: str) -> bool:
    """Whether a subject is a person, as the release names them: subject-01, subject-02, ..."""
    return bool(re.fullmatch(r"subject-\d+", subj))


def read_observers(folders: Iterable[str | Path]) -> pd.DataFrame | None:
    """Read all trial files (…_session….csv, trials.zip) below folders into one trial table; None where there are none.

    Trials on drawn images, as the record beside them says, are left out: nobody else saw these. So are trials on other
    benchmarks' stimuli, which eval_categories16.py scores.

    Raises:
        UserError: a folder is missing, or read_trials refuses a file.
    """
    files: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder} with trial files")
        for path in sorted({*folder.rglob("*_session*.csv"), *folder.rglob("trials.zip")}):
            if path.name.startswith(tuple(f"{name}_" for name in OTHER_EXPERIMENTS)):
                continue
            if not _drawn(path.parent) and not _drawn(path.parent.parent):
                files.append(path)
    return read_trials(*files) if files else None


def results_folder() -> list[Path]:
    """Return the default folder of trial files: results/ here, or in the repository, if any."""
    return [folder for folder in (Path("results"), RAW_DATA.parent / "results") if folder.is_dir()][:1]


def _drawn(folder: Path) -> bool:
    """Whether a record of model-vs-human among a network's results is about drawn images."""
    records = filter(None, map(read_record, folder.glob("model_vs_human*.json")))
    return any(record["provenance"]["collection"] == "drawn" for record in records)


def in_order(name: str, levels: Iterable[str]) -> list[str]:
    """Return the conditions of a parametric set, the least manipulated first."""

    def difficulty(level: str) -> tuple[float, str]:
        number = re.search(r"inf|\d+(\.\d+)?", level)
        if not number:
            return (0 if level in ("cr", "true") else np.inf), level
        return float(number[0]) * (-1 if name in ("contrast", "high-pass") else 1), level

    return sorted(set(levels), key=difficulty)


def bias_by_category(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the shape bias by the shape's category: columns observer, category ('all': of all), value, low, high.

    In 0...1 with Wilson's interval, NaN where neither cue decided anything.
    """
    decided = decisions(frame)
    rows = []
    for observer, of_observer in decided.groupby(decided.subj.map(_observer), sort=False):
        for category, part in [("all", of_observer), *of_observer.groupby("category")]:
            bias = shape_bias(part)
            rows.append((observer, category, bias.value, bias.low, bias.high))
    table = pd.DataFrame(rows, columns=["observer", "category", "value", "low", "high"])
    return table.astype(dict.fromkeys(("value", "low", "high"), float))


def _observer(subj: str) -> str:
    """Return the observer that a subject belongs to: people are pooled."""
    return PEOPLE if is_person(subj) else subj


def accuracy_by_condition(frame: pd.DataFrame) -> pd.DataFrame:
    """Return per cent of right trials on the parametric sets: columns set, level, observer, value, low, high.

    A network's interval is Wilson's; people have the mean over persons, with the least and the best of them.
    """
    rows = []
    for key, accuracy in accuracies(frame[frame.set.isin(PARAMETRIC)], ["set", "level", "subj"]).items():
        rows.append((*key, accuracy.value, accuracy.low, accuracy.high))
    return _pooled(pd.DataFrame(rows, columns=["set", "level", "observer", "value", "low", "high"]))


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Replace the rows of persons by one of PEOPLE for each set and condition: their mean, least and largest value."""
    persons = rows["observer"].map(is_person).astype(bool)
    values = rows[persons].groupby(["set", "level"], sort=False)["value"]
    pooled = pd.DataFrame({"value": values.mean(), "low": values.min(), "high": values.max()}).reset_index()
    return pd.concat([pooled.assign(observer=PEOPLE)[[*rows.columns]], rows[~persons]], ignore_index=True)


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare every two observers on the images that both saw, out of distribution.

    Columns: set, level, observer, other (subjects, never the same), and the MEASURES of trials.compare (Geirhos et al.
    2021, equations 1-3), NaN where undefined.
    """
    tables = [pd.DataFrame(columns=["set", "level", "observer", "other", *MEASURES])]
    for (name, level), part in out_of_distribution(frame).groupby(["set", "level"], sort=False):
        part = part.drop_duplicates(["category", "image", "subj"])
        wide = part.pivot(index=["category", "image"], columns="subj", values="right").astype(float)
        right = wide.to_numpy()
        seen = (~np.isnan(right)).astype(float)
        hit, miss = np.nan_to_num(right), np.where(seen == 1, 1 - right, 0)
        values = measures(np.stack([seen.T @ seen, hit.T @ seen, seen.T @ hit, hit.T @ hit + miss.T @ miss]))
        first, second = np.nonzero(~np.eye(len(wide.columns), dtype=bool))
        subjects = {"observer": wide.columns[first], "other": wide.columns[second]}
        table = pd.DataFrame({"set": name, "level": level, **subjects})
        table = table.assign(**dict(zip(MEASURES, values[:, first, second], strict=True)))
        tables.append(table.astype({"observer": str, "other": str}))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def consistency_matrix(compared: pd.DataFrame) -> pd.DataFrame:
    """Return error consistencies between observers, a square frame; people are one row, and one column.

    From `pairs`: mean over persons, then conditions, then sets, as metric/human/error-consistency; the value of people
    with people is each person's with the other people. NaN on the rest of the diagonal and where nothing is shared.
    """
    observers = [compared[side].map(_observer).rename(side) for side in ("observer", "other")]
    values = compared["error-consistency"]
    by_level = values.groupby([compared["set"], compared["level"], *observers], sort=False).mean()
    by_set = by_level.groupby(["set", "observer", "other"], sort=False).mean()
    matrix = by_set.groupby(["observer", "other"], sort=False).mean().unstack("other")
    names = sorted({*matrix.index, *matrix.columns}, key=lambda name: (name != PEOPLE, name))
    return matrix.reindex(index=names, columns=names)


def consistency_by_condition(compared: pd.DataFrame) -> pd.DataFrame:
    """Return error consistencies with people on the parametric sets: columns set, level, observer, value, low, high.

    From `pairs`: mean over persons, the least and the best of them; for people: each person's mean with the others.
    """
    with_people = compared[compared["set"].isin(PARAMETRIC) & compared["other"].map(is_person).astype(bool)]
    grouped = with_people.groupby(["set", "level", "observer"], sort=False)["error-consistency"]
    rows = pd.DataFrame({"value": grouped.mean(), "low": grouped.min(), "high": grouped.max()}).reset_index()
    return _pooled(rows)

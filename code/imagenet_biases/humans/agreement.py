"""What figures about people and networks show: shape bias by category, accuracy and error consistency by condition.

Everything comes from trial tables (humans.people): the released trials of people, and those of any network in the same
format. People are pooled as the observer `people`; the pieces are those of Geirhos et al. 2021 (arXiv:2106.07411).
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from imagenet_biases.base.errors import UserError
from imagenet_biases.humans.people import (
    MEASURES,
    accuracies,
    decisions,
    measures,
    out_of_distribution,
    read_trials,
    shape_bias,
)
from imagenet_biases.humans.stimulus_sets import CUE_CONFLICT, STIMULUS_SETS
from imagenet_biases.results.records import read_record
from imagenet_biases.results.table import RAW_DATA

PEOPLE = "people"
PARAMETRIC = tuple(
    name for name in STIMULUS_SETS if name not in ("edge", "silhouette", CUE_CONFLICT, "sketch", "stylized")
)
"""The 12 sets whose images are there in several conditions."""

TRIALS_HELP = "folders of trial files, of people (raw-data of the data set) and of networks (default: results)"


def is_person(subj):
    """Whether a subject is a person, as the release names them: subject-01, subject-02, ..."""
    return bool(re.fullmatch(r"subject-\d+", subj))


def read_observers(folders):
    """Read all trial files (…_session….csv, trials.zip) below folders into one trial table; None where there are none.

    Trials on drawn images, as the record beside them says, are left out: nobody else saw these. Raises UserError for a
    folder that is not there and for what read_trials refuses.
    """
    files = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder} with trial files")
        found = {*folder.rglob("*_session*.csv"), *folder.rglob("trials.zip")}
        files += [path for path in sorted(found) if not (_drawn(path.parent) or _drawn(path.parent.parent))]
    return read_trials(*files) if files else None


def results_folder():
    """Return where trial files are looked for if nothing is named: results/ here, or in the repository, if any."""
    return [folder for folder in (Path("results"), RAW_DATA.parent / "results") if folder.is_dir()][:1]


def _drawn(folder):
    """Whether a record of model-vs-human among a network's results is about drawn images."""
    records = filter(None, map(read_record, folder.glob("model_vs_human*.json")))
    return any(one["provenance"]["collection"] == "drawn" for one in records)


def in_order(name, levels):
    """Return the conditions of a parametric set, the least manipulated first."""

    def difficulty(level):
        number = re.search(r"inf|\d+(\.\d+)?", level)
        if not number:
            return (0 if level in ("cr", "true") else np.inf), level
        return float(number[0]) * (-1 if name in ("contrast", "high-pass") else 1), level

    return sorted(set(levels), key=difficulty)


def bias_by_category(frame):
    """Return the shape bias by the shape's category: columns observer, category ('all': of all), value, low, high.

    In 0...1 with Wilson's interval, NaN where nothing was decided by either cue.
    """
    decided = decisions(frame)
    decided = decided.assign(observer=[PEOPLE if is_person(subj) else subj for subj in decided.subj])
    rows = []
    for observer, own in decided.groupby("observer", sort=False):
        for category, some in [("all", own), *own.groupby("category")]:
            one = shape_bias(some)
            rows.append((observer, category, one.value, one.low, one.high))
    return pd.DataFrame(rows, columns=["observer", "category", "value", "low", "high"]).astype(
        dict.fromkeys(("value", "low", "high"), float)
    )


def accuracy_by_condition(frame):
    """Return per cent of right trials on the parametric sets: columns set, level, observer, value, low, high.

    A network's interval is Wilson's; of people it is the mean over persons, with the least and the best of them.
    """
    frame = frame[frame.set.isin(PARAMETRIC)]
    rows = [(*key, one.value, one.low, one.high) for key, one in accuracies(frame, ["set", "level", "subj"]).items()]
    return _pooled(pd.DataFrame(rows, columns=["set", "level", "observer", "value", "low", "high"]))


def _pooled(rows):
    """Replace the rows of persons by one of PEOPLE for each set and condition: their mean, least and largest value."""
    persons = rows["observer"].map(is_person).astype(bool)
    values = rows[persons].groupby(["set", "level"], sort=False)["value"]
    pooled = pd.DataFrame({"value": values.mean(), "low": values.min(), "high": values.max()}).reset_index()
    return pd.concat([pooled.assign(observer=PEOPLE)[[*rows.columns]], rows[~persons]], ignore_index=True)


def pairs(frame):
    """Compare every two observers on the images that both saw, out of distribution.

    Columns: set, level, observer, other (subjects, never the same), and the MEASURES of people.compare (Geirhos et al.
    2021, equations 1-3), NaN where undefined.
    """
    frame = out_of_distribution(frame)
    found = []
    for (name, level), some in frame.groupby(["set", "level"], sort=False):
        once = some.drop_duplicates(["category", "image", "subj"])
        wide = once.pivot(index=["category", "image"], columns="subj", values="right").astype(float)
        right = wide.to_numpy()
        seen = (~np.isnan(right)).astype(float)
        hit, miss = np.nan_to_num(right), np.where(seen == 1, 1 - right, 0)
        values = measures(np.stack([seen.T @ seen, hit.T @ seen, seen.T @ hit, hit.T @ hit + miss.T @ miss]))
        one, other = np.nonzero(~np.eye(len(wide.columns), dtype=bool))
        found.append(
            pd.DataFrame({"set": name, "level": level, "observer": wide.columns[one], "other": wide.columns[other]})
            .assign(**dict(zip(MEASURES, values[:, one, other], strict=True)))
            .astype({"observer": str, "other": str})
        )
    columns = ["set", "level", "observer", "other", *MEASURES]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def consistency_matrix(compared):
    """Return error consistencies between observers, a square DataFrame; people are one row, and one column.

    Of `pairs`: mean over persons, then conditions, then sets, as metric/human/error-consistency; what people have with
    people is each person's with the others. NaN on the rest of the diagonal and where nothing is shared.
    """
    groups = [
        compared[side].map(lambda subj: PEOPLE if is_person(subj) else subj).rename(side)
        for side in ("observer", "other")
    ]
    values = compared["error-consistency"]
    by_level = values.groupby([compared["set"], compared["level"], *groups], sort=False).mean()
    by_set = by_level.groupby(["set", "observer", "other"], sort=False).mean()
    matrix = by_set.groupby(["observer", "other"], sort=False).mean().unstack("other")
    names = sorted({*matrix.index, *matrix.columns}, key=lambda name: (name != PEOPLE, name))
    return matrix.reindex(index=names, columns=names)


def consistency_by_condition(compared):
    """Return error consistencies with people on the parametric sets: columns set, level, observer, value, low, high.

    Of `pairs`: mean over persons, the least and the best of them; of people: each person's mean with the others.
    """
    some = compared[compared["set"].isin(PARAMETRIC) & compared["other"].map(is_person).astype(bool)]
    grouped = some.groupby(["set", "level", "observer"], sort=False)["error-consistency"]
    rows = pd.DataFrame({"value": grouped.mean(), "low": grouped.min(), "high": grouped.max()}).reset_index()
    return _pooled(rows)

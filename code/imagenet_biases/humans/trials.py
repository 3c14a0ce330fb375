"""Trial tables of people and networks: the field's trial files, shape bias, consistency with people.

A trial table is a pandas DataFrame with one row per trial. Columns of the trial files (COLUMNS): `subj`, `session`,
`trial`, `rt`, `object_response` (a category or 'na'), `category` (the right one), `condition`, `imagename`. Columns
derived from them: `set` (name of the stimulus set), `level` (the condition in canonical spelling), `image` (what
identifies the image within set, level and category) and `right` (bool).

Definitions: Geirhos et al. 2019 (shape bias; arXiv:1811.12231), Geirhos, Meding & Wichmann 2020 (error consistency;
arXiv:2006.16736), Geirhos et al. 2021, section 2 (comparison with people; arXiv:2106.07411).
"""

import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from imagenet_biases.base.errors import UserError, listed_briefly
from imagenet_biases.base.files import atomic, read_bytes, safe_name
from imagenet_biases.estimate import Z95, Estimate, proportion
from imagenet_biases.humans.stimulus_sets import (
    CUE_CONFLICT,
    PREFIX,
    STIMULUS_SETS,
    canonical,
    set_of,
    stimulus,
    texture_category,
)
from imagenet_biases.study import CATEGORIES_16

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["subj", "session", "trial", "rt", "object_response", "category", "condition", "imagename"]
ANSWERS = (*CATEGORIES_16, "na")
"""What can be answered: a category's number, or 16 for a person who did not answer in time."""
ALL_SETS = tuple(PREFIX + name for name in STIMULUS_SETS)
OTHER_EXPERIMENTS = ("spectral", "criticalband", "solarization")
"""The benchmarks whose stimuli run_experiment.py shows people; their trial files are those of eval_categories16.py."""

NO_MEASUREMENT = "-no-measurement"
"""How the names of subjects end whose session ran under --clock-factor, for a test."""

# Trial tables ---------------------------------------------------------------------------------------------------------


def completed(frame: "pd.DataFrame", set_name: str) -> "pd.DataFrame":
    """Return a frame with COLUMNS with the derived columns added."""
    return frame.assign(
        set=set_name,
        level=frame.condition.map(canonical),
        image=[stimulus(imagename).image for imagename in frame.imagename],
        right=frame.object_response == frame.category,
    )


def read_trials(*paths: str | Path, sets: Sequence[str] = tuple(STIMULUS_SETS)) -> "pd.DataFrame":
    """Read trial files of people or of networks, also in zip files; return one trial table.

    Column names may be in any case ('Session'). The stimulus set follows from the image names, else from the beginning
    of the file name, which is to be one of `sets`. Warns of
    subjects whose session was no measurement.

    Raises:
        UserError: a file that cannot be read, lacks a column or names an unknown category; two trials of one subject
            on the same image.
    """
    import pandas as pd

    frames = []
    for path in paths:
        frames += [_read(member, content, sets) for member, content in _contents(Path(path))]
    frame = pd.concat(frames, ignore_index=True)
    if marked := [subj for subj in frame.subj.unique() if subj.endswith(NO_MEASUREMENT)]:
        warnings.warn(f"no measurement, for a test with --clock-factor: {listed_briefly(marked)}", stacklevel=2)
    repeated = frame[frame.duplicated(["set", "subj", "level", "category", "image"])]
    if len(repeated):
        row = repeated.iloc[0]
        raise UserError(
            f"{row.subj} has two trials on {row.imagename} ({row.set}) in {listed_briefly(map(str, paths))}; an image "
            f"counts once, so remove one"
        )
    return frame


def _contents(path: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield (path, content) of a trial file, or of each trial file in a zip file."""
    try:
        content = read_bytes(path)
        if path.suffix != ".zip":
            yield path, content
            return
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = [member for member in file.infolist() if member.filename.endswith(".csv")]
            if not members:
                raise ValueError("it holds no .csv file")
            if sum(member.file_size for member in members) > 1 << 28:
                raise ValueError("its files are too large")
            for member in members:
                yield path / member.filename, file.read(member)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as trial files: {error}".splitlines()[0]) from None


def _read(path: Path, content: bytes, sets: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    try:
        text = io.BytesIO(content)
        frame = pd.read_csv(text, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:  # pandas' own are ValueErrors
        raise UserError(f"{path} cannot be read as a trial file: {error}".splitlines()[0]) from None
    frame.columns = [str(column).strip().lower() for column in frame.columns]
    if problem := _problem(frame):
        raise UserError(f"{path} {problem}; a trial file has the columns {','.join(COLUMNS)} and one line per trial")
    frame = frame[COLUMNS].apply(lambda column: column.str.strip())
    frame["object_response"] = frame.object_response.str.lower()
    for column, allowed in (("object_response", ANSWERS), ("category", tuple(CATEGORIES_16))):
        wrong = frame.index[~frame[column].isin(allowed)]
        if len(wrong):
            value = frame[column][wrong[0]]
            raise UserError(f"{path}, line {wrong[0] + 2}: {column} '{value}' is not one of {', '.join(allowed)}")
    return completed(frame, _set_name(path, frame, sets))


def _problem(frame: "pd.DataFrame") -> str | None:
    """Return what keeps a frame from being a trial file's, or None."""
    import pandas as pd

    columns = list(frame.columns)
    missing = [column for column in COLUMNS if column not in columns]
    repeated = [column for column in COLUMNS if columns.count(column) > 1]
    if not isinstance(frame.index, pd.RangeIndex):
        return "has more fields in a line than columns"
    if repeated:
        return f"has two columns {repeated[0]}"
    if missing:
        return f"has no column {', '.join(missing)}"
    return "has no trials" if frame.empty else None


def _set_name(path: Path, frame: "pd.DataFrame", sets: Sequence[str]) -> str:
    names = set(map(set_of, frame.imagename))
    if names == {None}:
        names = {name for name in (*STIMULUS_SETS, *OTHER_EXPERIMENTS) if path.name.startswith(f"{name}_")}
    name = names.pop() if len(names) == 1 else None
    if name is not None and name not in sets:
        script = "eval_categories16.py" if name in OTHER_EXPERIMENTS else "eval_model_vs_human.py"
        raise UserError(f"{path} has the trials of {name}: score it with {script} --trials")
    if name is None:
        raise UserError(
            f"{path}: cannot tell which of the 17 stimulus sets it is about; begin its name with one, as in "
            f"edge_NETWORK_session-1.csv"
        )
    return name


def write_trials(frame: "pd.DataFrame", path: str | Path) -> list[str]:
    """Write a trial table into one zip file of the field's trial files; return their names.

    These are SET_SUBJ_session-N.csv with COLUMNS. Where a name has '_', the file name (not the column) gets '-': other
    toolboxes split the file name there.
    """
    members = []
    with atomic(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for (name, subj, session), part in frame.groupby(["set", "subj", "session"], sort=False):
            text = io.StringIO()
            part[COLUMNS].to_csv(text, index=False, lineterminator="\n")
            members.append(safe_name(f"{name}_{str(subj).replace('_', '-')}_session-{session}.csv"))
            # without the time: the same trials are the same file
            archive.writestr(zipfile.ZipInfo(members[-1]), text.getvalue(), zipfile.ZIP_DEFLATED)
    return members


@cache
def read_people(paths: tuple[Path, ...]) -> "pd.DataFrame | None":
    """Return the people's trials in the files of one stimulus set, a trial table; None without files."""
    return read_trials(*paths) if paths else None


# Accuracy -------------------------------------------------------------------------------------------------------------


def out_of_distribution(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the trials on conditions that count as out of distribution (stimulus_sets.StimulusSet)."""
    excluded = [level in STIMULUS_SETS[name].left_out for name, level in zip(frame.set, frame.level, strict=True)]
    return frame[~np.array(excluded, bool)]


def accuracies(frame: "pd.DataFrame", by: Any = "set") -> dict[Any, Estimate]:
    """Return {set name: per cent of right trials with the Wilson interval}; `by` gives other groups (set first)."""
    estimates = {}
    for name, right in frame.groupby(by, sort=False).right:
        set_name = name if by == "set" else name[0]
        estimates[name] = replace(proportion(int(right.sum()), len(right)), sets=(PREFIX + set_name,))
    return estimates


def mean_accuracy(frame: "pd.DataFrame") -> Estimate:
    """Return the mean over the 17 sets of the accuracy out of distribution in per cent; None unless all are there.

    The sets are a stratified sample of images, so the interval adds the variances of their accuracies (normal
    approximation).
    """
    groups = out_of_distribution(frame).groupby("set").right
    if len(groups) < len(STIMULUS_SETS):
        return Estimate(None)
    means, counts = groups.mean(), groups.size()
    value = float(np.mean(list(means)))
    error = math.sqrt(sum(means * (1 - means) / counts)) / len(means)
    return Estimate(100 * value, 100 * max(0.0, value - Z95 * error), 100 * min(1.0, value + Z95 * error), ALL_SETS)


# Shape bias -----------------------------------------------------------------------------------------------------------


def decisions(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the cue-conflict trials with a column `cue`: decided by 'shape', by 'texture' or 'other'.

    Images whose shape and texture category are the same are left out (Geirhos et al. 2019, section 2.3).
    """
    frame = frame[frame.set == CUE_CONFLICT]
    frame = frame.assign(texture=frame.imagename.map(texture_category))
    frame = frame[frame.category != frame.texture]
    by_texture = np.where(frame.object_response == frame.texture, "texture", "other")
    return frame.assign(cue=np.where(frame.right, "shape", by_texture))


def shape_bias(decided: "pd.DataFrame") -> Estimate:
    """Return shape / (shape + texture decisions) of `decisions`, in 0...1 with the Wilson interval.

    Without a value where neither cue decided anything.
    """
    shape, texture = int((decided.cue == "shape").sum()), int((decided.cue == "texture").sum())
    if not shape + texture:
        return Estimate(None)
    estimate = proportion(shape, shape + texture).as_share()
    return replace(estimate, value=shape / (shape + texture), sets=(PREFIX + CUE_CONFLICT,))


# Consistency with people ----------------------------------------------------------------------------------------------

MEASURES = {"accuracy-difference": (0, 1), "observed-consistency": (0, 1), "error-consistency": (-1, 1)}
"""The three comparisons with people, each with its range."""

Comparison = tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"], dict[str, Any]]
"""Values and variances in the order of MEASURES, and counts (see `compare`)."""


def error_consistency(
    observed: Float[np.ndarray, "..."], accuracy: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Return Cohen's kappa of two observers' being right or wrong together (Geirhos et al. 2020, section 2).

    NaN where chance alone would make them agree always (both always right, or both always wrong): 0/0 is undefined.

    Args:
        observed: share of trials on which both are right or both wrong.
        accuracy, other: their accuracies, in 0...1.
    """
    expected = accuracy * other + (1 - accuracy) * (1 - other)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def compare(frame: "pd.DataFrame", people: "pd.DataFrame") -> Comparison | None:
    """Compare one observer with people on one stimulus set, out of distribution only.

    For each condition and person: the squared difference of accuracies, the observed consistency (share of images both
    get right or both get wrong) and the error consistency, on the images that both saw; averaged over persons, then
    over conditions (Geirhos et al. 2021, equations 1-3). Undefined kappas are left out of their mean.

    Args:
        frame: the observer's trial table.
        people: the people's; a person of the same name as the observer is left out.

    Returns:
        Values, variances, and the numbers of people, of images compared, of images that only one side saw
        (`unmatched`) and of undefined kappas; None without people. The variances come from the jackknife over images
        within conditions (Efron & Stein 1981, Annals of Statistics 9), with the persons fixed: four to ten per set are
        too few to resample, and the question is about images of this kind.

    Raises:
        UserError: observer and people have no image in common.
    """
    key = ["level", "category", "image"]
    people = out_of_distribution(people[~people.subj.isin(frame.subj.unique())])
    right = out_of_distribution(frame).set_index(key).right.astype(float)
    right = right[~right.index.duplicated()]  # an image of several sessions is compared once
    answers = people.pivot(index=key, columns="subj", values="right").astype(float)
    if answers.empty or right.empty:
        return None
    common = right.index.intersection(answers.index)
    if common.empty:
        raise UserError(
            f"{frame.set.iloc[0]}: none of the {len(right)} images is among the {len(answers)} that people saw; are "
            f"the trial files under raw-data those of another set?"
        )
    values, variances, undefined = _consistency(
        right[common].to_numpy(), answers.loc[common].to_numpy(), common.get_level_values("level").to_numpy()
    )
    counts = {
        "people": answers.shape[1],
        "images": len(common),
        "unmatched": {"observer": len(right) - len(common), "people": len(answers) - len(common)},
        "undefined": undefined,
    }
    return values, variances, counts


@cache
def between_people(paths: tuple[Path, ...]) -> dict[str, float]:
    """Compare each person with the other people; return {measure: mean over persons}, what a network can hope for.

    `paths`: the people's trial files of one stimulus set. Empty for less than two people.
    """
    people = read_people(paths)
    if people is None:
        return {}
    compared = [compare(people[people.subj == subj], people) for subj in people.subj.unique()]
    values = np.array([comparison[0] for comparison in compared if comparison])
    return dict(zip(MEASURES, _mean(values.T).tolist(), strict=True)) if len(values) else {}


def _consistency(
    right: Float[np.ndarray, " N"], answers: Float[np.ndarray, "N P"], levels: Shaped[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"], int]:
    """Return means, jackknife variances and the number of undefined kappas.

    `right`: 0 or 1; `answers`: NaN where that person did not see the image.
    """
    level_means, level_variances, undefined = [], [], 0
    for level in np.unique(levels):
        of_level = levels == level
        observer, persons = right[of_level, None], answers[of_level]
        seen = ~np.isnan(persons)
        # sums over images [4, P]: images both saw, those the observer got right, the person, on which they agree
        terms = np.stack([seen, seen * observer, np.where(seen, persons, 0), seen & (persons == observer)])
        terms = terms.astype(float)
        sums = terms.sum(1)
        cells = measures(sums)
        undefined += int(np.isnan(cells[2]).sum())
        without = _mean(measures(sums[:, None] - terms))  # [3, N]: each image left out in turn
        count = (~np.isnan(without)).sum(1)
        spread = np.nansum((without - _mean(without)[:, None]) ** 2, 1)
        level_means.append(_mean(cells))
        level_variances.append(spread * (count - 1) / np.maximum(count, 1))
    means, defined = np.array(level_means), ~np.isnan(level_means)
    variances = np.where(defined, level_variances, 0).sum(0) / np.maximum(defined.sum(0), 1) ** 2
    return _mean(means.T), variances, undefined


def measures(sums: Float[np.ndarray, "4 ..."]) -> Float[np.ndarray, "3 ..."]:
    """Return the three MEASURES from sums over images (see _consistency); NaN without images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        observer, person, observed = sums[1:] / sums[0]
    return np.stack([(observer - person) ** 2, observed, error_consistency(observed, observer, person)])


def _mean(array: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    """Return the mean over the last axis without NaN; NaN where there is nothing else."""
    with np.errstate(invalid="ignore"):
        return np.nansum(array, -1) / (~np.isnan(array)).sum(-1)


def combined(comparisons: Iterable[Comparison]) -> dict[str, Estimate]:
    """Return {measure: mean over stimulus sets of what `compare` returned for each, with its 95 % interval}."""
    values, variances = map(np.array, list(zip(*comparisons, strict=True))[:2])
    estimates = {}
    for column, (measure, (lowest, highest)) in enumerate(MEASURES.items()):
        defined = ~np.isnan(values[:, column])
        if not defined.any():
            estimates[measure] = Estimate(None, sets=ALL_SETS)
            continue
        value = float(values[defined, column].mean())
        half = Z95 * math.sqrt(variances[defined, column].sum()) / defined.sum()
        estimates[measure] = Estimate(value, max(lowest, value - half), min(highest, value + half), ALL_SETS)
    return estimates

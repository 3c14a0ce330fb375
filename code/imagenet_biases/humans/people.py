"""Trials of people and networks: reading and writing the field's trial files, shape bias, consistency with people.

A trial table is a pandas DataFrame with one row a trial. Columns of the trial files (COLUMNS): `subj`, `session`,
`trial`, `rt`, `object_response` (a category or 'na'), `category` (the right one), `condition`, `imagename`. Columns
made of them: `set` (name of the stimulus set), `level` (the condition, written one way), `image` (what identifies the
image within set, level and category) and `right` (bool).

Definitions: Geirhos et al. 2019 (shape bias; arXiv:1811.12231), Geirhos, Meding & Wichmann 2020 (error consistency;
arXiv:2006.16736), Geirhos et al. 2021, section 2 (comparison with people; arXiv:2106.07411).
"""

import io
import math
import warnings
import zipfile
import zlib
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import atomic, read_bytes, safe_name
from imagenet_biases.humans.stimulus_sets import (
    CUE_CONFLICT,
    PREFIX,
    STIMULUS_SETS,
    canonical,
    human_trial_files,
    release_folder,
    set_of,
    stimulus,
    texture_category,
)
from imagenet_biases.images.listing import ImageNames, Listing
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.measures.accuracy import Z95, proportion
from imagenet_biases.study import CATEGORIES_16
from imagenet_biases.vocabulary import CLEAN, Categories, Estimate, Option, Responses, Results

COLUMNS = ["subj", "session", "trial", "rt", "object_response", "category", "condition", "imagename"]
ANSWERS = (*CATEGORIES_16, "na")
"""What can be answered: a category's number, or 16 for a person who did not answer in time."""
READOUT = Categories(tuple(CATEGORIES_16.items()))
ALL_SETS = tuple(PREFIX + name for name in STIMULUS_SETS)

# Trial tables ---------------------------------------------------------------------------------------------------------


def trials(found, subj="network"):
    """Return the trial table of one observer's responses (vocabulary.Results).

    `subj` is the name of a network; responses that came from a trial file know theirs. Images left out as unreadable
    have no trial. Session and condition are what folder and file name say.
    """
    import pandas as pd

    frames = []
    for responses in found.values():
        files = [Path(file) for file in responses.images.files]
        stimuli = [stimulus(file.name) for file in files]
        frame = pd.DataFrame(
            {
                "subj": responses.images.variables.get("subj", subj),
                "session": [_session(file) for file in files],
                "rt": "NaN",
                "object_response": [ANSWERS[number] for number in np.where(responses.counts, responses.values, 0)],
                "category": [ANSWERS[number] for number in responses.labels],
                # as other toolboxes write it: the name's own spelling, NaN for names that tell none
                "condition": [one.spelling for one in stimuli],
                "imagename": [file.name for file in files],
            }
        )[responses.counts]
        frame["trial"] = frame.groupby("session").cumcount() + 1
        frames.append(_derived(frame[COLUMNS], responses.images.name.removeprefix(PREFIX)))
    return pd.concat(frames, ignore_index=True)


def _session(file):
    return next((part.removeprefix("session-") for part in file.parts[:-1] if part.startswith("session-")), "1")


def _derived(frame, name):
    return frame.assign(
        set=name,
        level=[canonical(condition) for condition in frame.condition],
        image=[stimulus(imagename).image for imagename in frame.imagename],
        right=frame.object_response == frame.category,
    )


def read_trials(*paths):
    """Read trial files of people or of networks, also in zip files; return one trial table.

    Column names may be in any case ('Session'). The stimulus set is what the image names say, else what the file name
    begins with. Raises UserError for a file that cannot be read, lacks a column or names an unknown category, and where
    somebody has two trials on the same image.
    """
    import pandas as pd

    frame = pd.concat([_read(*one) for path in paths for one in _opened(Path(path))], ignore_index=True)
    twice = frame[frame.duplicated(["set", "subj", "level", "category", "image"])]
    if len(twice):
        row = twice.iloc[0]
        raise UserError(
            f"{row.subj} has two trials on {row.imagename} ({row.set}) in {', '.join(map(str, paths[:3]))}"
            f"{', ...' if len(paths) > 3 else ''}; an image counts once, so remove one"
        )
    return frame


def _opened(path):
    """Yield (path, content) of a trial file, or of each one in a zip file."""
    try:
        content = read_bytes(path)
        if path.suffix != ".zip":
            yield path, content
            return
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = [one for one in file.infolist() if one.filename.endswith(".csv")]
            if not members:
                raise ValueError("it holds no .csv file")
            if sum(one.file_size for one in members) > 1 << 28:
                raise ValueError("its files are too large")
            for one in members:
                yield path / one.filename, file.read(one)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as trial files: {error}".splitlines()[0]) from None


def _read(path, content):
    import pandas as pd

    try:
        text = io.BytesIO(content)
        frame = pd.read_csv(text, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:  # pandas' own are ValueErrors
        raise UserError(f"{path} cannot be read as a trial file: {error}".splitlines()[0]) from None
    frame.columns = [str(column).strip().lower() for column in frame.columns]
    missing = [column for column in COLUMNS if column not in frame.columns]
    double = [column for column in COLUMNS if list(frame.columns).count(column) > 1]
    if missing or double or frame.empty or not isinstance(frame.index, pd.RangeIndex):
        problem = f"has no column {', '.join(missing)}" if missing else "has no trials"
        problem = f"has two columns {double[0]}" if double else problem
        problem = problem if isinstance(frame.index, pd.RangeIndex) else "has more fields in a line than columns"
        raise UserError(f"{path} {problem}; a trial file has the columns {','.join(COLUMNS)} and one line a trial")
    frame = frame[COLUMNS].apply(lambda column: column.str.strip())
    frame["object_response"] = frame.object_response.str.lower()
    for column, known in (("object_response", ANSWERS), ("category", tuple(CATEGORIES_16))):
        strange = frame.index[~frame[column].isin(known)]
        if len(strange):
            value = frame[column][strange[0]]
            raise UserError(f"{path}, line {strange[0] + 2}: {column} '{value}' is none of {', '.join(known)}")
    return _derived(frame, _set_name(path, frame))


def _set_name(path, frame):
    told = {set_of(imagename) for imagename in frame.imagename}
    if told == {None}:
        told = {name for name in STIMULUS_SETS if path.name.startswith(f"{name}_")}
    if len(told) != 1 or told == {None}:
        raise UserError(
            f"{path}: cannot tell which of the 17 stimulus sets it is about; begin its name with one, as in "
            f"edge_NETWORK_session-1.csv"
        )
    return told.pop()


def write_trials(frame, path):
    """Write a trial table into one zip file of the field's trial files; return their names.

    These are SET_SUBJ_session-N.csv with COLUMNS. Where a name has '_', the file name (not the column) gets '-': other
    toolboxes split the file name there.
    """
    members = []
    with atomic(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for (name, subj, session), part in frame.groupby(["set", "subj", "session"], sort=False):
            text = io.StringIO()
            part[COLUMNS].to_csv(text, index=False, lineterminator="\n")
            members.append(safe_name(f"{name}_{subj.replace('_', '-')}_session-{session}.csv"))
            # without the time: the same trials are the same file
            archive.writestr(zipfile.ZipInfo(members[-1]), text.getvalue(), zipfile.ZIP_DEFLATED)
    return members


def responses(frame, people):
    """Return the trial table of one subject as a network's responses are (vocabulary.Results): the sets it has trials on.

    `people`: {set name: paths of the people's trial files}. A set of which it has less than all images is a subset.
    """
    number = {answer: index for index, answer in enumerate(ANSWERS)}
    answered = []
    for name, part in frame.groupby("set", sort=False):
        # a bare name does not say its category, so its folder does, as with the images themselves
        files = [f"session-{row.session}/{row.category}/{row.imagename}" for row in part.itertuples()]
        labels = np.array([number[category] for category in part.category], np.int64)
        whole = STIMULUS_SETS[name].images
        images = ImageSet(
            PREFIX + name,
            Listing(Path(), ImageNames(files, labels), np.zeros(len(files), np.int64)),
            np.arange(len(files)),
            as_is=True,
            subset=None if len(files) == whole else {"images": len(files), "of": whole},
            variables={"people": people.get(name, ()), "subj": part.subj.iloc[0]},
        )
        values = np.array([number[answer] for answer in part.object_response], np.int16)
        answered.append(Responses(images, CLEAN, values, np.ones(len(files), bool), READOUT))
    return Results(answered)


@cache
def read_people(paths):
    """Return the people's trials in the files of one stimulus set, a trial table; None without files."""
    return read_trials(*paths) if paths else None


# Accuracy -------------------------------------------------------------------------------------------------------------


def out_of_distribution(frame):
    """Return the trials on conditions that count as out of distribution (stimulus_sets.StimulusSet)."""
    left_out = {(name, level) for name, declared in STIMULUS_SETS.items() for level in declared.left_out}
    return frame[np.array([pair not in left_out for pair in zip(frame.set, frame.level, strict=True)], bool)]


def accuracies(frame, by="set"):
    """Return {set name: Estimate}, per cent of right trials with the Wilson interval; `by` gives other groups."""
    return {
        name: replace(proportion(int(right.sum()), len(right)), sets=(PREFIX + (name if by == "set" else name[0]),))
        for name, right in frame.groupby(by, sort=False).right
    }


def mean_accuracy(frame):
    """Return the mean over the 17 sets of the accuracy out of distribution, an Estimate in per cent.

    The sets are a stratified sample of images, so the interval adds the variances of their accuracies (normal
    approximation). Without a value unless all 17 sets are there.
    """
    right = [part for _, part in out_of_distribution(frame).groupby("set").right]
    if len(right) < len(STIMULUS_SETS):
        return Estimate(None)
    value = np.mean([part.mean() for part in right])
    error = math.sqrt(sum(part.mean() * (1 - part.mean()) / len(part) for part in right)) / len(right)
    return Estimate(100 * value, 100 * max(0.0, value - Z95 * error), 100 * min(1.0, value + Z95 * error), ALL_SETS)


# Shape bias -----------------------------------------------------------------------------------------------------------


def decisions(frame):
    """Return the cue-conflict trials with a column `cue`: decided by 'shape', by 'texture' or 'other'.

    Images whose shape and texture category are the same are left out (Geirhos et al. 2019, section 2.3).
    """
    frame = frame[frame.set == CUE_CONFLICT]
    frame = frame.assign(texture=[texture_category(name) for name in frame.imagename])
    frame = frame[frame.category != frame.texture]
    by_texture = np.where(frame.object_response == frame.texture, "texture", "other")
    return frame.assign(cue=np.where(frame.right, "shape", by_texture))


def shape_bias(decided):
    """Return shape / (shape + texture decisions) of `decisions`, an Estimate in 0...1 with the Wilson interval.

    Without a value where nothing was decided by either cue.
    """
    shape, texture = (int((decided.cue == cue).sum()) for cue in ("shape", "texture"))
    if not shape + texture:
        return Estimate(None)
    percent = proportion(shape, shape + texture)
    return Estimate(shape / (shape + texture), percent.low / 100, percent.high / 100, (PREFIX + CUE_CONFLICT,))


# Consistency with people ----------------------------------------------------------------------------------------------

MEASURES = {"accuracy-difference": (0, 1), "observed-consistency": (0, 1), "error-consistency": (-1, 1)}
"""The three comparisons with people, each with its range."""


def error_consistency(observed, accuracy, other):
    """Return Cohen's kappa of two observers' being right or wrong together (arrays; Geirhos et al. 2020, section 2).

    `observed`: share of trials on which both are right or both wrong; `accuracy`, `other`: their accuracies, in 0...1.
    NaN where chance alone would make them agree always (both always right, or both always wrong): 0/0, nothing to tell.
    """
    expected = accuracy * other + (1 - accuracy) * (1 - other)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def compare(frame, people):
    """Compare one observer with people on one stimulus set, out of distribution only.

    `frame` and `people` are trial tables; a person of the same name as the observer is left out. For each condition and
    person: the squared difference of accuracies, the observed consistency (share of images both get right or both get
    wrong) and the error consistency, on the images that both saw; averaged over persons, then over conditions
    (Geirhos et al. 2021, equations 1-3). A kappa that is undefined is left out of its mean.

    Returns (values, variances, counts): two arrays in the order of MEASURES, and a dict with the numbers of people, of
    images compared, of images that only one side saw (`unmatched`) and of undefined kappas; None without people. The
    variances come from the jackknife over images within conditions (Efron & Stein 1981, Annals of Statistics 9), with
    the persons fixed: four to ten a set are too few to resample, and the question is about images of this kind.
    """
    key = ["level", "category", "image"]
    people = out_of_distribution(people[~people.subj.isin(frame.subj.unique())])
    shown = out_of_distribution(frame).set_index(key).right.astype(float)
    shown = shown[~shown.index.duplicated()]  # an image of several sessions is compared once
    answers = people.pivot(index=key, columns="subj", values="right").astype(float)
    if answers.empty or shown.empty:
        return None
    both = shown.index.intersection(answers.index)
    if both.empty:
        raise UserError(
            f"{frame.set.iloc[0]}: none of the {len(shown)} images is among the {len(answers)} that people saw; are "
            f"the trial files under raw-data those of another set?"
        )
    values, variances, undefined = _consistency(
        shown[both].to_numpy(), answers.loc[both].to_numpy(), both.get_level_values("level").to_numpy()
    )
    counts = {
        "people": answers.shape[1],
        "images": len(both),
        "unmatched": {"observer": len(shown) - len(both), "people": len(answers) - len(both)},
        "undefined": undefined,
    }
    return values, variances, counts


@cache
def between_people(paths):
    """Compare each person with the others; return {measure: mean over persons}, what a network can hope for.

    `paths`: the people's trial files of one stimulus set. Empty for less than two people.
    """
    people = read_people(paths)
    compared = [compare(people[people.subj == subj], people) for subj in people.subj.unique()]
    values = np.array([result[0] for result in compared if result])
    return dict(zip(MEASURES, _mean(values.T).tolist(), strict=True)) if len(values) else {}


def _consistency(right, answers, levels):
    """Return means, jackknife variances [3] and the number of undefined kappas.

    `right`: float [N], 0 or 1; `answers`: float [N, P], NaN where that person did not see the image; `levels`: [N].
    """
    means, variances, undefined = [], [], 0
    for level in np.unique(levels):
        here = levels == level
        own, theirs = right[here, None], answers[here]
        seen = ~np.isnan(theirs)
        # sums over images [4, P]: images both saw, those the observer got right, the person, on which they agree
        terms = np.stack([seen, seen * own, np.where(seen, theirs, 0), seen & (theirs == own)]).astype(float)
        sums = terms.sum(1)
        cells = measures(sums)
        undefined += int(np.isnan(cells[2]).sum())
        without = _mean(measures(sums[:, None] - terms))  # [3, N]: each image left out in turn
        count = (~np.isnan(without)).sum(1)
        spread = np.nansum((without - _mean(without)[:, None]) ** 2, 1)
        means.append(_mean(cells))
        variances.append(spread * (count - 1) / np.maximum(count, 1))
    means, defined = np.array(means), ~np.isnan(means)
    return _mean(means.T), np.where(defined, variances, 0).sum(0) / np.maximum(defined.sum(0), 1) ** 2, undefined


def measures(sums):
    """Return the three MEASURES [3, ...] from sums over images [4, ...] (see _consistency); NaN without images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        own, theirs, observed = sums[1:] / sums[0]
    return np.stack([(own - theirs) ** 2, observed, error_consistency(observed, own, theirs)])


def _mean(array):
    """Return the mean over the last axis of what is not NaN; NaN where nothing is."""
    with np.errstate(invalid="ignore"):
        return np.nansum(array, -1) / (~np.isnan(array)).sum(-1)


def combined(results):
    """Return {measure: Estimate}, the means over stimulus sets of what `compare` gave for each, with 95 % intervals."""
    values, variances = (np.array([result[i] for result in results]) for i in (0, 1))
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


# What a benchmark declares --------------------------------------------------------------------------------------------


def comparisons(found):
    """Return {set name: what `compare` gave}, for the sets of a network's responses that have people's trials.

    Warns of sets without people's trials, and of images that only one side saw, unless they are a declared subset.
    """
    frame, compared, alone = trials(found), {}, []
    for responses in found.values():
        name, images = responses.images.name.removeprefix(PREFIX), responses.images
        people = read_people(images.variables["people"])
        result = None if people is None else compare(frame[frame.set == name], people)
        if result is None:
            alone += [f"{name} (no people)"] if len(images) else []
            continue
        compared[name] = result
        unmatched = result[2]["unmatched"]
        if unmatched["observer"] or (unmatched["people"] and not images.subset):
            alone.append(
                f"{name} ({unmatched['observer']} images no person saw, {unmatched['people']} only people saw)"
            )
    if compared and alone:
        warnings.warn(f"left out of the comparison with people: {'; '.join(alone)}", stacklevel=2)
    return compared


def details(found):
    """Return what lies behind the metrics, JSON-able.

    `shape-bias`: numbers of decisions, in all and by the shape's category; `conditions`: accuracy in per cent of each
    condition of each set; `human`: the comparison with people for each set, and that of people with each other.
    """
    frame = trials(found)
    decided, conditions = decisions(frame), {}
    for (name, level), accuracy in accuracies(frame, ["set", "level"]).items():
        counted = level not in STIMULUS_SETS[name].left_out
        conditions.setdefault(name, {})[level] = _bounds(accuracy) | {"out_of_distribution": counted}
    paths = {one.images.name.removeprefix(PREFIX): one.images.variables["people"] for one in found.values()}
    return {
        "shape-bias": _decided(decided)
        | {"categories": {category: _decided(part) for category, part in decided.groupby("category")}},
        "conditions": conditions,
        "human": {
            name: {measure: _bounds(estimate) for measure, estimate in combined([result]).items()}
            | result[2]
            | {"between-people": between_people(paths[name])}
            for name, result in comparisons(found).items()
        },
    }


def _decided(part):
    return _bounds(shape_bias(part)) | {cue: int((part.cue == cue).sum()) for cue in ("shape", "texture", "other")}


def _bounds(estimate):
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def export(found, label, folder):
    """Write a network's responses as trial files, folder/trials.zip."""
    old = (
        Path(folder) / "trials"
    )  # where they lay, file by file, in earlier editions: nobody has two trials on an image
    for name in write_trials(trials(found, label), Path(folder) / "trials.zip"):
        (old / name).unlink(missing_ok=True)
    with suppress(OSError):
        old.rmdir()


OPTIONS = (
    Option("download", False, "fetch missing stimulus sets and people's trials", flag=True),
    Option("trials", None, "score these trial files instead of networks", several=True),
)


def from_files(data, trials=None, download=False):
    """Return (name, Results) of every subject in trial files, None where none are given.

    The comparison with people needs their trials under `data.model_vs_human`; without them it is left out.
    """
    if not trials:
        return None
    frame = read_trials(*trials)
    root = release_folder(data, download) if data.folders.get("model-vs-human") or data.root else None
    people = {name: human_trial_files(root, name, download) for name in frame.set.unique()} if root else {}
    return [(subj, responses(part, people)) for subj, part in frame.groupby("subj", sort=False)]

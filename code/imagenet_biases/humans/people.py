"""What the model-vs-human benchmark declares: networks and people on the 17 stimulus sets, compared trial by trial."""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagenet_biases.estimate import Estimate
from imagenet_biases.humans.stimulus_sets import PREFIX, STIMULUS_SETS, human_trial_files, release_folder, stimulus
from imagenet_biases.humans.trials import (
    ANSWERS,
    COLUMNS,
    Comparison,
    accuracies,
    between_people,
    combined,
    compare,
    completed,
    decisions,
    read_people,
    read_trials,
    shape_bias,
    write_trials,
)
from imagenet_biases.images.listing import ImageNames, Listing
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.study import CATEGORIES_16
from imagenet_biases.vocabulary import CLEAN, Categories, Data, Option, Responses, Results

if TYPE_CHECKING:
    import pandas as pd

READOUT = Categories(tuple(CATEGORIES_16.items()))


def trials(results: Results, subj: str = "network") -> "pd.DataFrame":
    """Return the trial table of one observer's responses.

    `subj` names a network; responses that came from a trial file have their own subject. Images left out as unreadable
    have no trial. Session and condition follow from folder and file name.
    """
    import pandas as pd

    frames = []
    for responses in results.values():
        files = list(map(Path, responses.images.files))
        frame = pd.DataFrame(
            {
                "subj": responses.images.variables.get("subj", subj),
                "session": list(map(_session, files)),
                "rt": "NaN",
                "object_response": np.take(ANSWERS, np.where(responses.counts, responses.values, 0)),
                "category": np.take(ANSWERS, responses.labels),
                # as other toolboxes write it: the name's own spelling, NaN for names without a condition
                "condition": [stimulus(file.name).spelling for file in files],
                "imagename": [file.name for file in files],
            }
        )[responses.counts]
        frame["trial"] = frame.groupby("session").cumcount() + 1
        frames.append(completed(frame[COLUMNS], responses.images.name.removeprefix(PREFIX)))
    return pd.concat(frames, ignore_index=True)


def _session(file: Path) -> str:
    return next((part.removeprefix("session-") for part in file.parts[:-1] if part.startswith("session-")), "1")


def responses(frame: "pd.DataFrame", people: Mapping[str, Iterable[Path]]) -> Results:
    """Return the trial table of one subject in the form of a network's responses, for the sets it has trials on.

    `people`: {set name: paths of the people's trial files}. A set of which it has less than all images is a subset.
    """
    number = {answer: index for index, answer in enumerate(ANSWERS)}
    by_set = []
    name: Any
    for name, part in frame.groupby("set", sort=False):
        # a bare name does not say its category, so its folder does, as with the images themselves
        files = [f"session-{row.session}/{row.category}/{row.imagename}" for row in part.itertuples()]
        labels = part.category.map(number).to_numpy(np.int64)
        whole = STIMULUS_SETS[name].images
        images = ImageSet(
            PREFIX + name,
            Listing(Path(), ImageNames(files, labels), np.zeros(len(files), np.int64)),
            np.arange(len(files)),
            as_is=True,
            subset=None if len(files) == whole else {"images": len(files), "of": whole},
            variables={"people": people.get(name, ()), "subj": part.subj.iloc[0]},
        )
        values = part.object_response.map(number).to_numpy(np.int16)
        by_set.append(Responses(images, CLEAN, values, np.ones(len(files), bool), READOUT))
    return Results(by_set)


def comparisons(results: Results, frame: "pd.DataFrame") -> dict[str, Comparison]:
    """Return {set name: comparison with people}, for the sets of a network's responses that have people's trials.

    Warns of sets without people's trials, and of images that only one side saw, unless they are a declared subset.

    Args:
        results: the network's responses.
        frame: their trial table (`trials`).
    """
    by_set, unmatched = {}, []
    for responses in results.values():
        name, images = responses.images.name.removeprefix(PREFIX), responses.images
        people = read_people(images.variables["people"])
        comparison = None if people is None else compare(frame[frame.set == name], people)
        if comparison is None:
            unmatched += [f"{name} (no people)"] if len(images) else []
            continue
        by_set[name] = comparison
        counts = comparison[2]["unmatched"]
        if counts["observer"] or (counts["people"] and not images.subset):
            unmatched.append(f"{name} ({counts['observer']} images no person saw, {counts['people']} only people saw)")
    if by_set and unmatched:
        warnings.warn(f"left out of the comparison with people: {'; '.join(unmatched)}", stacklevel=2)
    return by_set


def details(results: Results) -> dict[str, Any]:
    """Return what lies behind the metrics, JSON-able.

    `shape-bias`: numbers of decisions, in all and by the shape's category; `conditions`: accuracy in per cent of each
    condition of each set; `human`: the comparison with people for each set, and that of people with each other.
    """
    frame = trials(results)
    decided = decisions(frame)
    conditions: dict[str, dict[str, Any]] = {}
    for (name, level), accuracy in accuracies(frame, ["set", "level"]).items():
        counted = level not in STIMULUS_SETS[name].left_out
        conditions.setdefault(name, {})[level] = _bounds(accuracy) | {"out_of_distribution": counted}
    human = {}
    for name, comparison in comparisons(results, frame).items():
        paths = results[PREFIX + name, CLEAN.name].images.variables["people"]
        estimates = {measure: _bounds(estimate) for measure, estimate in combined([comparison]).items()}
        human[name] = estimates | comparison[2] | {"between-people": between_people(paths)}
    categories = {category: _decided(part) for category, part in decided.groupby("category")}
    return {"shape-bias": _decided(decided) | {"categories": categories}, "conditions": conditions, "human": human}


def _decided(decided: "pd.DataFrame") -> dict[str, Any]:
    cues = decided.cue.value_counts()
    return _bounds(shape_bias(decided)) | {cue: int(cues.get(cue, 0)) for cue in ("shape", "texture", "other")}


def _bounds(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def export(results: Results, label: str, folder: str | Path) -> None:
    """Write a network's responses as trial files, folder/trials.zip."""
    unpacked = Path(folder) / "trials"  # earlier editions' files, removed: nobody has two trials on an image
    for name in write_trials(trials(results, label), Path(folder) / "trials.zip"):
        (unpacked / name).unlink(missing_ok=True)
    with suppress(OSError):
        unpacked.rmdir()


OPTIONS = (
    Option("download", False, "fetch missing stimulus sets and people's trials", flag=True),
    Option("trials", None, "score these trial files instead of networks", several=True),
)


def from_files(
    data: Data, trials: Iterable[str | Path] | None = None, download: bool = False
) -> list[tuple[str, Results]] | None:
    """Return (name, responses) of every subject in trial files, or None without files.

    The comparison with people needs their trials in the model-vs-human folder; without them it is left out.
    """
    if not trials:
        return None
    frame = read_trials(*trials)
    people = {}
    if data.folders.get("model-vs-human") or data.root:
        root = release_folder(data, download)
        people = {name: human_trial_files(root, name, download) for name in frame.set.unique()}
    return [(str(subj), responses(part, people)) for subj, part in frame.groupby("subj", sort=False)]

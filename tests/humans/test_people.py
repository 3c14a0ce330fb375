"""Trial files, shape bias and consistency with people, on real trials and on simulated observers with known answers."""

import csv
import json
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from common import SHARED, TABLES, needs_shared
from imagenet_biases.base.errors import UserError
from imagenet_biases.humans import people
from imagenet_biases.humans.people import responses, trials
from imagenet_biases.humans.stimulus_sets import STIMULUS_SETS, canonical, set_of, stimulus, texture_category
from imagenet_biases.humans.trials import (
    COLUMNS,
    MEASURES,
    accuracies,
    between_people,
    combined,
    compare,
    completed,
    decisions,
    error_consistency,
    mean_accuracy,
    out_of_distribution,
    read_trials,
    shape_bias,
    write_trials,
)
from imagenet_biases.study import CATEGORIES_16

NAMES = list(CATEGORIES_16)


def observer(right, *, name="cue-conflict", subj="net", conditions=None):
    """A trial table of one observer who is right on image i as `right[i]` says; categories go round."""
    rows = []
    for i, hit in enumerate(right):
        category, wrong = NAMES[i % 16], NAMES[(i + 1) % 16]
        code = STIMULUS_SETS[name].experiment.split("-")[0]
        condition = conditions[i] if conditions is not None else "0"
        image = f"{category}{i}-{wrong}1" if name == "cue-conflict" else f"n{i:08d}_{i}"
        imagename = f"{i + 1:04d}_{code}_dnn_{condition}_{category}_10_{image}.png"
        rows.append([subj, "1", i + 1, "NaN", category if hit else wrong, category, condition, imagename])
    return completed(pd.DataFrame(rows, columns=COLUMNS), name)


def crowd(answers, **known):
    """A trial table of several people; `answers`: bool [people, images]."""
    return pd.concat([observer(right, subj=f"subject-{i:02d}", **known) for i, right in enumerate(answers)])


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("0001_lp_s01_40_chair_10_n04099969_7577.png", ("lp", "40", "chair", "n04099969_7577", "low-pass")),
        ("0731_lp_dnn_40_chair_10_n04099969_7577.png", ("lp", "40", "chair", "n04099969_7577", "low-pass")),
        ("0002_nse_dnn_0.90_knife_10_n03041632_82878.png", ("nse", "0.9", "knife", "n03041632_82878", "uniform-noise")),
        ("0001_eid_s01_1-10-10_oven_10_n04111531_1.png", ("eid-10-10", "1-10-10", "oven", "n04111531_1", "eidolonI")),
        ("0001_eid_s01_64-3-10_car_10_n04285008_8.png", ("eid-3-10", "64-3-10", "car", "n04285008_8", "eidolonII")),
        ("0001_eid_s01_16-0-10_oven_10_n04111531_2.png", ("eid-0-10", "16-0-10", "oven", "n04111531_2", "eidolonIII")),
        ("0001_fc_dnn_True_knife_35_n03041632_8.png", ("fc", "true", "knife", "n03041632_8", "false-colour")),
        ("0001_s5n_s01_0_bird_00_bird3-bird2.png", ("s5n", "0", "bird", "bird3-bird2", "cue-conflict")),
        ("0001_ske_s01_0_boat_00_boat-0068-sketch-23.png", ("ske", "0", "boat", "boat-0068-sketch-23", "sketch")),
        ("airplane10.png", (None, "0", None, "airplane10", None)),
        ("cat7-elephant1.png", (None, "0", None, "cat7-elephant1", None)),
    ],
)
def test_a_file_name_says_what_the_image_is(name, known):
    found = stimulus(name)
    assert (found.experiment, found.condition, found.category, found.image, set_of(name)) == known


def test_a_condition_has_one_spelling():
    spellings = {"0.90": "0.9", "0.0": "0", "0.00": "0", "3.0": "3", "180": "180", "True": "true", "NaN": "0", "": "0"}
    assert {spelling: canonical(spelling) for spelling in spellings} == spellings
    for unchanged in ("inf", "c100", "1-10-10", "pow", "bw", "0.55"):
        assert canonical(unchanged) == unchanged


def test_the_texture_is_the_last_part_of_the_name():
    assert texture_category("cat7-elephant1.png") == "elephant"
    assert texture_category("0001_s5n_dnn_0_airplane_00_airplane1-bicycle2.png") == "bicycle"
    with pytest.raises(UserError, match="cat7-elephant1"):
        texture_category("airplane10.png")


def test_the_categories_are_geirhos_16():
    assert len(CATEGORIES_16) == 16 and sum(map(len, CATEGORIES_16.values())) == len(
        {n for c in CATEGORIES_16.values() for n in c}
    )
    assert sorted(NAMES) == NAMES
    assert CATEGORIES_16["elephant"] == (385, 386) and CATEGORIES_16["knife"] == (499,)
    facts = json.loads((TABLES / "categories16.json").read_text())
    assert {name: tuple(numbers) for name, numbers in facts.items()} == CATEGORIES_16


# Real trials ---------------------------------------------------------------------------------------------------------


def cue_conflict_files():
    folder = SHARED / "cue_conflict_trials" if SHARED else None
    return json.loads((folder / "expected_shape_bias.json").read_text()) if folder else {}


@needs_shared
def test_shape_bias_of_people_and_alexnet():
    expected = cue_conflict_files()
    assert len(expected) == 4
    for file, known in expected.items():
        frame = read_trials(SHARED / "cue_conflict_trials" / file)
        decided = decisions(frame)
        assert len(frame) == known["trials"] and len(decided) == known["conflict_trials"]
        assert (decided.cue == "shape").sum() == known["shape"]
        assert (decided.cue == "texture").sum() == known["texture"]
        bias = shape_bias(decided)
        assert bias.value == known["shape_bias"]
        assert 0 < bias.low < bias.value < bias.high < 1


def human_files():
    return sorted((SHARED / "human_trials").glob("*/*.csv")) if SHARED else []


@needs_shared
def test_every_human_trial_file_is_understood():
    files = human_files()
    assert len(files) == 32
    spellings = set()
    for path in files:
        with open(path) as file:
            raw = list(csv.DictReader(file))
        spellings |= set(raw[0])
        frame = read_trials(path)
        name = path.parent.name
        assert set(frame.set) == {name} and len(frame) == len(raw) == STIMULUS_SETS[name].images
        assert frame.right.sum() == sum(row["object_response"] == row["category"] for row in raw)
        assert (frame.object_response == "na").sum() == sum(row["object_response"] == "na" for row in raw)
        assert STIMULUS_SETS[name].left_out <= set(frame.level)  # no condition misspelt, or it would silently count
    assert {"Session", "session"} <= spellings


@needs_shared
def test_people_are_above_20_per_cent_where_conditions_count():
    frame = read_trials(*human_files())
    means = out_of_distribution(frame).groupby(["set", "level"]).right.mean()
    assert len(means) == 45  # the 16 sets have 77 conditions, 32 do not count
    assert means.min() > 0.2


@needs_shared
def test_two_people_are_matched_image_by_image():
    for name in {path.parent.name for path in human_files()}:
        frame = read_trials(*(path for path in human_files() if path.parent.name == name))
        one, other = (frame[frame.subj == subj] for subj in ("subject-01", "subject-02"))
        values, _, counts = compare(one, other)
        assert counts["unmatched"] == {"observer": 0, "people": 0}
        assert counts["images"] == len(out_of_distribution(one))
        key = ["level", "category", "image"]
        both = out_of_distribution(one).merge(other, on=key)
        kappas = [cohen_kappa_score(part.right_x, part.right_y) for _, part in both.groupby("level")]
        same = [(part.right_x == part.right_y).mean() for _, part in both.groupby("level")]
        apart = [(part.right_x.mean() - part.right_y.mean()) ** 2 for _, part in both.groupby("level")]
        assert values == pytest.approx([np.mean(apart), np.mean(same), np.mean(kappas)], abs=1e-12)


# Consistency ---------------------------------------------------------------------------------------------------------


def test_error_consistency_is_cohens_kappa():
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = rng.random((2, 60)) < rng.uniform(0.1, 0.9, (2, 1))
        kappa = error_consistency((one == other).mean(), one.mean(), other.mean())
        assert kappa == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)


@pytest.mark.parametrize("right", [True, False])
def test_error_consistency_is_undefined_where_both_are_always_right_or_wrong(right):
    accuracy = float(right)
    assert np.isnan(error_consistency(np.float64(1), np.float64(accuracy), np.float64(accuracy)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, variances, counts = compare(observer([right] * 32), crowd([[right] * 32, [right] * 31 + [not right]]))
    # one person is undefined and left out; the other agrees by chance only
    assert counts["undefined"] == 1 and values[2] == pytest.approx(0) and np.isfinite(variances).all()


def test_an_observer_compared_with_itself_and_its_opposite():
    right = np.arange(64) % 3 > 0
    values, _, _ = compare(observer(right), crowd([right]))
    assert values == pytest.approx([0, 1, 1])
    values, _, _ = compare(observer(right), crowd([~right]))
    share = right.mean()
    expected = 2 * share * (1 - share)
    assert values == pytest.approx([(2 * share - 1) ** 2, 0, -expected / (1 - expected)])


def test_a_person_is_not_compared_with_itself():
    table = crowd([np.arange(64) % 2 == 0, np.arange(64) % 3 == 0])
    _, _, counts = compare(table[table.subj == "subject-00"], table)
    assert counts["people"] == 1
    assert compare(table[table.subj == "subject-00"], table[table.subj == "subject-00"]) is None


def test_known_consistency_is_recovered_and_its_interval_covers_it():
    # a person copies the network's being right with probability c and else is right independently: kappa is c
    rng, images, conditions, copied, accuracy = np.random.default_rng(1), 320, 2, 0.4, 0.7
    spelling = np.repeat(["0.03", "0.10"], images // conditions)
    truth = {"observed-consistency": copied + (1 - copied) * (accuracy**2 + (1 - accuracy) ** 2)}
    truth["error-consistency"] = copied
    found, covered, rounds = [], dict.fromkeys(truth, 0), 150
    known = {"name": "uniform-noise", "conditions": spelling}
    network, persons = observer(np.ones(images), **known), crowd(np.ones((3, images)), **known)
    for _ in range(rounds):
        right = rng.random(images) < accuracy
        answers = np.where(rng.random((3, images)) < copied, right, rng.random((3, images)) < accuracy)
        estimates = combined([compare(network.assign(right=right), persons.assign(right=answers.ravel()))])
        found.append(estimates["error-consistency"].value)
        for measure, value in truth.items():
            covered[measure] += estimates[measure].low <= value <= estimates[measure].high
    assert np.mean(found) == pytest.approx(copied, abs=0.01)
    for measure, count in covered.items():
        assert 0.90 <= count / rounds <= 0.99, (measure, count / rounds)


def test_conditions_and_people_have_equal_weight():
    conditions = np.array(["0.03"] * 20 + ["0.10"] * 60)
    known = {"name": "uniform-noise", "conditions": conditions}
    network, person = np.ones(80, bool), conditions == "0.03"
    values, _, _ = compare(observer(network, **known), crowd([person], **known))
    assert values[:2] == pytest.approx([(0 + 1) / 2, (1 + 0) / 2])


def test_conditions_that_do_not_count_are_not_compared():
    conditions = np.array(["0.00"] * 40 + ["0.35"] * 40 + ["0.90"] * 40)
    known = {"name": "uniform-noise", "conditions": conditions}
    network = np.ones(120, bool)
    values, _, counts = compare(observer(network, **known), crowd([conditions == "0.35"], **known))
    assert counts["images"] == 40 and values[1] == 1


def test_images_without_a_counterpart_are_counted_or_refused():
    table = observer(np.ones(64, bool))
    _, _, counts = compare(table[:40], crowd([np.ones(64, bool)])[10:])
    assert counts["images"] == 30 and counts["unmatched"] == {"observer": 10, "people": 24}
    with pytest.raises(UserError, match="none of the 40 images"):
        compare(table[:40], crowd([np.ones(64, bool)])[40:])


def test_what_is_left_out_of_the_comparison_is_told(tmp_path):
    right = np.ones(64, bool)
    answers = crowd([right, ~right])[5:]
    names = write_trials(answers, tmp_path / "trials.zip")
    assert names == [f"cue-conflict_subject-0{i}_session-1.csv" for i in (0, 1)]
    zipfile.ZipFile(tmp_path / "trials.zip").extractall(tmp_path)
    paths = tuple(tmp_path / name for name in names)
    noise = observer(right, name="uniform-noise", conditions=["0.03"] * 64)
    table = responses(pd.concat([observer(right)[:60], noise]), {"cue-conflict": paths[:1]})
    with pytest.warns(UserWarning, match=r"cue-conflict \(5 images no person saw.*uniform-noise \(no people\)"):
        compared = people.comparisons(table, people.trials(table))
    assert list(compared) == ["cue-conflict"] and compared["cue-conflict"][2]["images"] == 55
    assert between_people(paths) == pytest.approx(
        {"accuracy-difference": 1, "observed-consistency": 0, "error-consistency": 0}
    )


def test_a_mean_over_sets_weighs_sets_equally():
    near = (np.array([0.0, 1.0, 0.5]), np.array([0.0, 0.0, 0.01]), {})
    far = (np.array([0.2, 0.5, np.nan]), np.array([0.02, 0.03, 0.0]), {})
    found = combined([near, far])
    assert found["accuracy-difference"].value == pytest.approx(0.1)
    assert found["observed-consistency"].high == pytest.approx(0.75 + 1.96 * np.sqrt(0.03) / 2, abs=1e-4)
    assert found["error-consistency"].value == 0.5
    assert found["accuracy-difference"].low == 0  # not below the measure's range
    assert list(found) == list(MEASURES)


# Accuracy and shape bias ---------------------------------------------------------------------------------------------


def all_sets(answer):
    """A trial table of all 17 sets, three images a condition; `answer(set, level)` says whether they are right."""
    frames = []
    for name, declared in STIMULUS_SETS.items():
        kept = {"rotation": ["90", "180"], "eidolonI": ["2-10-10"], "eidolonII": ["2-3-10"]}.get(name, ["7"])
        levels = [*sorted(declared.left_out), *kept]
        levels = ["2-0-10" if name == "eidolonIII" and level == "7" else level for level in levels]
        conditions = np.repeat(levels, 3)
        frames.append(observer([answer(name, level) for level in conditions], name=name, conditions=conditions))
    return pd.concat(frames, ignore_index=True)


def test_ood_mean_leaves_the_right_conditions_out():
    counts = {name: len(declared.left_out) for name, declared in STIMULUS_SETS.items()}
    assert sum(counts.values()) == 32 and len(counts) == 17
    assert mean_accuracy(all_sets(lambda name, level: level in STIMULUS_SETS[name].left_out)).value == 0
    assert mean_accuracy(all_sets(lambda name, level: level not in STIMULUS_SETS[name].left_out)).value == 100


def test_ood_mean_is_the_mean_over_sets():
    found = mean_accuracy(all_sets(lambda name, level: name == "rotation"))  # it has twice as many images
    assert found.value == pytest.approx(100 / 17)
    half = mean_accuracy(all_sets(lambda name, level: name != "rotation" or level == "90"))
    assert half.value == pytest.approx(100 * 16.5 / 17)
    assert half.high - half.value == pytest.approx(196 * np.sqrt(0.25 / 6) / 17, rel=1e-3)


def test_there_is_no_ood_mean_without_all_sets():
    frame = all_sets(lambda name, level: True)
    assert mean_accuracy(frame[frame.set != "edge"]).value is None
    only_easy = [name != "colour" or level == "cr" for name, level in zip(frame.set, frame.level, strict=True)]
    assert mean_accuracy(frame[only_easy]).value is None


def cue_conflict(answer):
    """A trial table with one image for each pair of shape and texture; `answer(shape, texture)` is the response."""
    rows = [
        ["net", "1", 1, "NaN", answer(shape, texture), shape, "NaN", f"{shape}1-{texture}2.png"]
        for shape in NAMES
        for texture in NAMES
    ]
    return completed(pd.DataFrame(rows, columns=COLUMNS), "cue-conflict")


@pytest.mark.parametrize(
    ("answer", "bias"),
    [
        (lambda shape, texture: shape, 1),
        (lambda shape, texture: texture, 0),
        (lambda shape, texture: shape if shape < texture else texture, 0.5),
        (lambda shape, texture: shape if shape == "car" else "na" if shape == "cat" else texture, 15 / (14 * 15 + 15)),
    ],
)
def test_shape_bias_of_known_observers(answer, bias):
    decided = decisions(cue_conflict(answer))
    assert len(decided) == 16 * 15  # same shape and texture left out
    assert shape_bias(decided).value == pytest.approx(bias, abs=1e-15)


def test_shape_bias_without_decisions_has_no_value():
    assert shape_bias(decisions(cue_conflict(lambda shape, texture: "na"))).value is None


def test_details_tell_the_shape_bias_of_each_category():
    frame = cue_conflict(lambda shape, texture: shape if shape < "d" else texture)
    told = people.details(responses(frame, {}))["shape-bias"]
    assert told["shape"] == 10 * 15 and told["texture"] == 6 * 15 and told["other"] == 0
    assert told["categories"]["cat"]["value"] == 1 and told["categories"]["dog"]["value"] == 0
    assert len(told["categories"]) == 16


# Files ---------------------------------------------------------------------------------------------------------------


def test_written_trials_read_back_with_the_same_scores(tmp_path):
    rng = np.random.default_rng(2)
    frame = all_sets(lambda name, level: rng.random() < 0.6)
    conflicts = cue_conflict(lambda shape, texture: rng.choice(NAMES))
    frame = pd.concat([frame[frame.set != "cue-conflict"], conflicts], ignore_index=True)
    frame["subj"] = "my_net"
    table = responses(frame, {})
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "low-pass_my-net_session-1.csv").write_text("of an earlier edition")
    people.export(table, "ignored", tmp_path)
    assert not (tmp_path / "trials").exists()
    with zipfile.ZipFile(tmp_path / "trials.zip") as file:
        assert len(file.namelist()) == 17 and "low-pass_my-net_session-1.csv" in file.namelist()
        assert file.read(file.namelist()[0]).decode().splitlines()[0] == ",".join(COLUMNS)
        file.extractall(tmp_path / "unpacked")
    first = (tmp_path / "trials.zip").read_bytes()
    people.export(table, "ignored", tmp_path)
    assert (tmp_path / "trials.zip").read_bytes() == first
    back = read_trials(tmp_path / "trials.zip")
    unpacked = read_trials(*sorted((tmp_path / "unpacked").iterdir()))
    assert len(back) == len(unpacked) and accuracies(back) == accuracies(unpacked)
    (tmp_path / "bad.zip").write_bytes(first[:-30])
    with pytest.raises(UserError, match=r"bad\.zip cannot be read as trial files"):
        read_trials(tmp_path / "bad.zip")
    assert set(back.subj) == {"my_net"}
    assert accuracies(back) == accuracies(frame)
    assert mean_accuracy(back) == mean_accuracy(frame)
    assert shape_bias(decisions(back)) == shape_bias(decisions(frame))
    assert people.details(responses(back, {})) == people.details(table)


def test_edge_trials_with_bare_names_are_told_by_their_file_name(tmp_path):
    path = tmp_path / "edge_net_session-1.csv"
    path.write_text(",".join(COLUMNS) + "\nnet,1,1,NaN,knife,airplane,NaN,airplane1.png\n")
    frame = read_trials(path)
    assert frame.set[0] == "edge" and frame.level[0] == "0" and frame.image[0] == "airplane1"
    person = "0004_edg_s01_0_airplane_00_airplane1.png"
    assert (stimulus(person).condition, stimulus(person).category, stimulus(person).image) == (
        frame.level[0],
        frame.category[0],
        frame.image[0],
    )


LINE = "s,1,1,0.5,cat,cat,0,0001_ske_s01_0_cat_00_cat-1.png\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be read"),
        (",".join(COLUMNS) + "\n", "no trials"),
        ("subj,session,trial,rt,object_response,category,imagename\n" + LINE, "condition"),
        (",".join(COLUMNS) + "\n" + LINE.replace("cat,cat", "horse,cat"), "line 2: object_response 'horse'"),
        (",".join(COLUMNS) + "\n" + LINE + LINE.replace("cat,cat", "cat,na"), "line 3: category 'na'"),
        (",".join(COLUMNS) + "\n" + LINE + LINE, "two trials on 0001_ske"),
        (",".join(COLUMNS) + "\n" + LINE.replace("0001_ske_s01_0_cat_00_", ""), "17 stimulus sets"),
        (",".join(COLUMNS) + "\n" + LINE + LINE.replace("ske", "sty"), "17 stimulus sets"),
        (b"\xff\xfe\x00PNG\x80", "cannot be read"),
    ],
)
def test_a_bad_trial_file_is_explained_in_one_line(tmp_path, text, problem):
    path = tmp_path / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=problem) as caught:
        read_trials(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_trial_file_is_explained(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_trials(tmp_path / "none.csv")


def test_responses_of_people_are_counted_as_theirs():
    frame = cue_conflict(lambda shape, texture: "na")
    table = responses(frame, {})
    assert set(trials(table).subj) == {"net"}
    assert len(trials(table)) == 256 and not trials(table).right.any()

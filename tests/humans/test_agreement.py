"""People and networks side by side: on real trials, against scikit-learn and the score of networks."""

import json

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from common import SHARED, needs_shared
from imagenet_biases.base.errors import UserError
from imagenet_biases.humans import agreement
from imagenet_biases.humans.agreement import PARAMETRIC, PEOPLE
from imagenet_biases.humans.trials import MEASURES, compare, write_trials

pytestmark = needs_shared
NETWORK = "alexnet"


@pytest.fixture(scope="module")
def frame():
    """The released trials of two (cue conflict: three) persons and of AlexNet on cue conflict."""
    return agreement.read_observers([SHARED / "human_trials", SHARED / "cue_conflict_trials"])


@pytest.fixture(scope="module")
def compared(frame):
    return agreement.pairs(frame)


def test_all_sets_are_found(frame):
    assert frame.set.nunique() == 17 and {*frame.subj} == {"subject-01", "subject-02", "subject-03", NETWORK}
    assert [agreement.is_person(name) for name in ("subject-01", NETWORK, "subject-x")] == [True, False, False]
    with pytest.raises(UserError, match="no folder"):
        agreement.read_observers(["nowhere"])


def test_shape_bias_is_the_published_one(frame):
    expected = json.loads((SHARED / "cue_conflict_trials" / "expected_shape_bias.json").read_text())
    found = agreement.bias_by_category(frame).set_index(["observer", "category"])
    (network,) = (one for name, one in expected.items() if NETWORK in name)
    assert found.loc[(NETWORK, "all"), "value"] == pytest.approx(network["shape_bias"])
    persons = [one for name, one in expected.items() if "subject" in name]
    shape, texture = (sum(one[cue] for one in persons) for cue in ("shape", "texture"))
    assert found.loc[(PEOPLE, "all"), "value"] == pytest.approx(shape / (shape + texture))
    assert len(found.loc[PEOPLE]) == 17 and found.loc[PEOPLE, "value"].between(0.8, 1).all()


def test_accuracies_by_condition(frame):
    found = agreement.accuracy_by_condition(frame).set_index(["set", "level", "observer"])
    assert {*found.index.get_level_values("set")} == {*PARAMETRIC} and len(PARAMETRIC) == 12
    subset = frame[(frame.set == "contrast") & (frame.level == "c05")].groupby("subj").right.mean() * 100
    assert [*found.loc[("contrast", "c05", PEOPLE)]] == pytest.approx([subset.mean(), subset.min(), subset.max()])


def test_conditions_go_from_easy_to_hard(frame):
    orders = {name: agreement.in_order(name, frame[frame.set == name].level) for name in PARAMETRIC}
    assert orders["contrast"] == ["c100", "c50", "c30", "c15", "c10", "c05", "c03", "c01"]
    assert orders["high-pass"] == ["inf", "3", "1.5", "1", "0.7", "0.55", "0.45", "0.4"]
    assert orders["rotation"] == ["0", "90", "180", "270"] and orders["power-equalisation"] == ["0", "pow"]
    assert orders["colour"] == ["cr", "bw"] and orders["false-colour"] == ["true", "false"]
    assert orders["eidolonI"][::7] == ["1-10-10", "128-10-10"] and orders["uniform-noise"][-1] == "0.9"
    right = frame.groupby(["set", "level"]).right.mean()
    for name in ("contrast", "low-pass", "high-pass", "eidolonII", "uniform-noise"):
        assert right[name][orders[name][0]] > 2 * right[name][orders[name][-1]]


def test_pairs_agree_with_scikit_learn_and_with_the_score_of_networks(frame, compared):
    one = frame[(frame.set == "low-pass") & (frame.level == "7")]
    wide = one.pivot(index=["category", "image"], columns="subj", values="right").dropna()
    expected = cohen_kappa_score(wide["subject-01"].astype(bool), wide["subject-02"].astype(bool))
    row = compared.query("set == 'low-pass' and level == '7' and observer == 'subject-01' and other == 'subject-02'")
    assert row["error-consistency"].item() == pytest.approx(expected)
    for name, own in (("edge", "subject-01"), ("rotation", "subject-02"), ("cue-conflict", NETWORK)):
        here = frame[frame.set == name]
        scored = compare(here[here.subj == own], here[here.subj.map(agreement.is_person)])[0]
        rows = compared[(compared.set == name) & (compared.observer == own) & compared.other.map(agreement.is_person)]
        means = rows.groupby("level")[[*MEASURES]].mean().mean()
        np.testing.assert_allclose(means[[*MEASURES]], scored)


def test_matrix_and_lines(frame, compared):
    matrix = agreement.consistency_matrix(compared)
    assert [*matrix.index] == [*matrix.columns] == [PEOPLE, NETWORK]
    here = frame[frame.set == "cue-conflict"]
    scored = compare(here[here.subj == NETWORK], here[here.subj != NETWORK])[0]
    assert matrix.loc[NETWORK, PEOPLE] == pytest.approx(scored[2]) == matrix.loc[PEOPLE, NETWORK]
    assert np.isnan(matrix.loc[NETWORK, NETWORK])
    each = []
    for _, here in frame[frame.subj != NETWORK].groupby("set"):
        each.append(np.mean([compare(here[here.subj == one], here)[0][2] for one in here.subj.unique()]))
    assert matrix.loc[PEOPLE, PEOPLE] == pytest.approx(np.mean(each))
    assert 0.3 < matrix.loc[PEOPLE, PEOPLE] < 0.55  # published: about 0.45
    lines = agreement.consistency_by_condition(compared).set_index(["set", "level", "observer"])
    values = compared.query("set == 'contrast' and level == 'c10'")["error-consistency"]
    assert lines.loc[("contrast", "c10", PEOPLE), "value"] == pytest.approx(values.mean())


def test_a_networks_trials_are_read_and_those_on_drawn_images_left_out(frame, tmp_path):
    own = frame[(frame.set == "colour") & (frame.subj == "subject-01")].assign(subj="my_net")
    drawn = own.assign(subj="drawn_net")
    for part, collection in ((own, "imagenet"), (drawn, "drawn")):
        name = part.subj.iloc[0]
        write_trials(part, tmp_path / "results" / name / "trials.zip")
        source = {"view": "study", "precision": "fp32", "seed": 0, "collection": collection, "time": "2026-01-01"}
        record = {"format": 2, "model": name, "benchmark": "model_vs_human", "metrics": {}, "intervals": {}}
        record |= {"subset": False, "provenance": source}
        (tmp_path / "results" / name / "model_vs_human.json").write_text(json.dumps(record))
    found = agreement.read_observers([tmp_path / "results", SHARED / "human_trials" / "colour"])
    assert {*found.subj} == {"my_net", "subject-01", "subject-02"}
    matrix = agreement.consistency_matrix(agreement.pairs(found))
    same = agreement.pairs(found).query("observer == 'my_net' and other == 'subject-01'")
    assert (same["error-consistency"] == 1).all() and matrix.loc["my_net", PEOPLE] > matrix.loc[PEOPLE, PEOPLE]
    (tmp_path / "empty").mkdir()
    assert agreement.read_observers([tmp_path / "empty"]) is None

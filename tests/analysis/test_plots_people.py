"""Figures with people: from the released trials, drawn as they are, in the colours of the highlighted networks."""

import numpy as np
import pandas as pd
import pytest

from common import SHARED, needs_shared, run
from imagenet_biases.analysis import plotting_people
from imagenet_biases.analysis.plotting import HIGHLIGHT_COLOURS, highlights
from imagenet_biases.humans.agreement import PARAMETRIC, in_order, read_observers
from imagenet_biases.results.table import PUBLISHED, read_table


@pytest.fixture(scope="module")
def frame():
    return read_observers([SHARED / "human_trials", SHARED / "cue_conflict_trials"])


@pytest.fixture(scope="module")
def drawn(frame):
    return dict(plotting_people.people_figures(read_table(PUBLISHED), frame))


def test_published_likeness_is_what_was_released():
    found = plotting_people.published_likeness().set_index("network")
    assert len(found) == 49 and found["arch"].value_counts().to_dict() == {
        **dict.fromkeys(("resnet18", "resnet50", "wide_resnet50_2"), 15),
        "xcit": 4,
    }
    measures = ["accuracy_diff", "observed_consistency", "error_consistency"]
    assert found.loc["Debenedetti2022Light_XCiT_M12", measures].tolist() == [0.058, 0.704, 0.248]
    ranks = found[measures].rank(ascending=False).assign(accuracy_diff=found["accuracy_diff"].rank())
    assert (ranks.mean(axis=1) - found["mean_rank"]).abs().max() < 1  # released from more digits, without ties
    released = read_table(PUBLISHED).query("source == 'published'").set_index("model")["top1_acc/imagenet"]
    own = found[found["arch"] == "resnet50"]
    norms = own["norm"] + "_eps" + own["eps"].map("{:g}".format)
    models = released.index.to_series().str.extract(r"robust_resnet50_(l2|linf)_eps([\d.]+)").dropna()
    keys = models[0] + "_eps" + models[1].astype(float).map("{:g}".format)
    published = pd.Series(released[keys.index].to_numpy(), keys)
    np.testing.assert_allclose(own["card_top1"], published[norms], atol=0.02)


def test_without_trials_the_published_networks_are_shown_and_own_ones_among_them():
    own = {"model": "own", "category": "", "source": "measured", "metric/human/error-consistency": 0.4}
    own |= {"metric/human/accuracy-difference": 0.01, "metric/human/observed-consistency": 0.8}
    table = pd.concat([read_table(PUBLISHED), pd.DataFrame([own])], ignore_index=True)
    ((name, figure),) = plotting_people.people_figures(table, None, highlights(table))
    assert name == "human_likeness"
    for ax, x in zip(figure.axes, (0.01, 0.8), strict=True):
        points = [collection.get_offsets() for collection in ax.collections]
        assert sum(map(len, points)) == 50
        np.testing.assert_allclose(points[-1], [[x, 0.4]])


@pytest.mark.slow
@needs_shared
def test_every_figure_is_there_and_shows_what_the_trials_say(drawn, frame):
    assert [*drawn] == [
        *("human_likeness", "shape_bias_by_category", "accuracy_by_condition", "consistency_by_condition"),
        "error_consistency",
    ]
    bias = drawn["shape_bias_by_category"].axes[0]
    assert len(bias.get_yticklabels()) == 16
    overall = [line.get_xdata()[0] for line in bias.get_lines()]
    assert overall == pytest.approx([2742 / (2742 + 121), 182 / (182 + 537)])  # shape / (shape + texture decisions)
    axes = drawn["accuracy_by_condition"].axes
    assert [ax.get_title() for ax in axes] == [*PARAMETRIC]
    right = frame.groupby(["set", "level"]).right.mean() * 100
    for ax, name in zip(axes, PARAMETRIC, strict=True):
        (people,) = ax.get_lines()
        levels = in_order(name, frame[frame.set == name].level)
        assert [text.get_text() for text in ax.get_xticklabels()] == levels
        np.testing.assert_allclose(people.get_ydata(), right[name][levels])
    cells = [text.get_text() for text in drawn["error_consistency"].axes[0].texts]
    assert len(cells) == 3 and cells[1] == cells[2]  # people with people, with the network, and it with them


@needs_shared
def test_highlighted_networks_keep_their_colour(frame):
    own = pd.DataFrame([{"model": "alexnet", "category": "", "source": "measured"}])
    chosen = highlights(pd.concat([read_table(PUBLISHED), own], ignore_index=True), ["tv_resnet50", "alexnet"])
    styles = plotting_people.looks(["people", "alexnet", "other"], chosen)
    assert styles["alexnet"][0] == chosen[0].colour and styles["people"][0] == "black"
    assert styles["other"][0] in HIGHLIGHT_COLOURS and len({colour for colour, _ in styles.values()}) == 3


@pytest.mark.slow
@needs_shared
def test_the_script_draws_them(study_figures, tmp_path):
    assert (study_figures / "error_consistency.png").stat().st_size > 10_000
    result = run("plot_study.py", "--table", PUBLISHED, "--out", tmp_path, "--trials", tmp_path / "no")
    assert result.returncode == 2 and "no folder" in result.stderr and len(result.stderr.splitlines()) == 1

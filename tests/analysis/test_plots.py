"""Figures: the notebook runs as committed, a fresh clone shows 48 networks, merged calibration networks show up."""

import itertools
import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba

from common import CODE, ROOT, SHARED, run
from imagenet_biases.analysis import plotting
from imagenet_biases.analysis.statistics import statistics
from imagenet_biases.base.errors import UserError
from imagenet_biases.results.measurements import Projection
from imagenet_biases.results.table import (
    LAYERS,
    LINEAGES,
    PUBLISHED,
    UNCERTAINTY,
    derived,
    read_table,
    study,
    write_table,
)
from imagenet_biases.study import BIASES, CUTOFFS, FURTHER_BIASES, SCORES


@pytest.fixture(scope="module")
def table():
    return read_table(PUBLISHED)


@pytest.fixture(scope="module")
def quick(table):
    return statistics(study(table), resamples=100, permutations=99)


@pytest.fixture(scope="module")
def with_measured(table):
    """The table as after the demo, and with one network of the study measured too."""
    random = np.random.default_rng(0)
    rows = []
    for name, category in (
        ("calibration_silhouette", "calibration"),
        ("calibration_texture", "calibration"),
        ("tv_resnet50", "baseline"),
        ("my.net", "of my own"),
    ):
        row = {"model": name, "category": category, "source": "measured", "shape-bias": float("silhouette" in name)}
        row |= {f"metric/bandpass/{k}/{c}": random.uniform(0.01, 1) for k in ("LFC", "HFC") for c in CUTOFFS}
        row |= {f"metric/criticalband/{name}_norm": random.uniform(0.5, 1) for name in ("bw", "cf", "pns")}
        parts = ("imagenet-v2", "imagenet-real", "imagenet-a", "imagenet-c", "imagenet-cbar", "imagenet-sketch")
        row |= {f"top1_acc/{name}": 50.0 for name in ("imagenet", "imagenet-r", "stylized", "PGD-40/low", *parts)}
        rows.append(row)
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)


def offsets(ax):
    return sum(len(points.get_offsets()) for points in ax.collections if isinstance(points, PathCollection))


def test_each_panel_shows_each_of_the_48_networks(table, quick):
    figure = plotting.biases_and_scores(study(table), quick)
    assert len(figure.axes) == len(BIASES) * len(SCORES)
    assert all(offsets(ax) == 48 for ax in figure.axes)
    points = np.vstack([collection.get_offsets() for collection in figure.axes[0].collections])
    expected = study(table)[["shape-bias", "ID"]].to_numpy()
    assert {*map(tuple, points.round(6))} == {*map(tuple, expected.round(6))}
    assert figure.axes[0].get_title().startswith("−0.66 [−0.") and ", all −0.76" in figure.axes[0].get_title()
    assert all(ax.get_ylabel().endswith("[%]") for ax in figure.axes[:: len(BIASES)])
    assert all("[" in ax.get_xlabel() for ax in figure.axes[-len(BIASES) :])


def test_adversarially_trained_networks_are_sized_by_eps(table):
    assert plotting.epsilon("robust_resnet50_l2_eps0.25") == ("l2", 0.25)
    assert plotting.epsilon("robust_resnet50_linf_eps8.0") == ("linf", 8.0)
    assert plotting.epsilon("resnet50_dino") is None
    trained = study(table).query("category == 'adversarial_training'")["model"]
    assert len(trained) == 15 and all(map(plotting.epsilon, trained))
    for norm in ("l2", "linf"):
        family = sorted((m for m in trained if f"_{norm}_" in m), key=plotting.epsilon)
        sizes = [plotting.size(model) for model in family]
        assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


def test_categories_differ_in_colour_and_marker():
    looks = plotting.STYLES.values()
    for part in ("colour", "marker", "symbol"):
        assert len({getattr(look, part) for look in looks}) == len(looks)


def own(ax, colour):
    """The points in a colour, [n, 2]."""
    rgba = np.array(to_rgba(colour))
    found = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection) and len(c.get_facecolor())
             and np.allclose(c.get_facecolor()[0], rgba)]  # fmt: skip
    return np.vstack(found) if found else np.empty((0, 2))


@pytest.fixture(scope="module")
def all_figures(with_measured, quick):
    """All figures, {name: figure}."""
    layers = pd.DataFrame(
        [("my.net", "measured", "metric/criticality", layer, 0.5, None, None) for layer in ("conv1", "fc", "stem")],
        columns=LAYERS,
    )
    return dict(plotting.figures(with_measured, quick, layers))


@pytest.mark.slow
def test_what_was_measured_is_highlighted(with_measured, all_figures):
    chosen = plotting.highlights(with_measured)
    assert [one.label for one in chosen] == ["tv_resnet50, measured", "my.net"]
    assert len({one.colour for one in chosen}) == 2 and not {s.colour for s in plotting.STYLES.values()} & {
        one.colour for one in chosen
    }
    row = derived(with_measured).set_index("model").loc["my.net"]
    for number, ax in enumerate(all_figures["biases_and_scores"].axes):
        bias, score = BIASES[number % len(BIASES)], SCORES[number // len(BIASES)]
        np.testing.assert_allclose(own(ax, chosen[1].colour), [row[[bias, score]].astype(float)])
    assert offsets(all_figures["biases_and_scores"].axes[0]) == 48 + 2  # drawn images have no place among photographs
    assert offsets(all_figures["bias_spread"].axes[0]) == 48 + 2
    for name in ("biases_and_scores", "accuracy_on_the_line", "bias_spread", "bandpass_curves"):
        labels = [text.get_text() for text in all_figures[name].legends[0].get_texts()]
        assert {"my.net", "tv_resnet50, measured"} <= {*labels}, name
    titles = [ax.get_title() for ax in all_figures["bandpass_curves"].axes]
    assert titles[:2] == ["highlighted", "baseline (1)"] and not any("calibration" in title for title in titles)
    curve = all_figures["bandpass_curves"].axes[0].get_lines()[-1]
    np.testing.assert_allclose(curve.get_ydata(), row[[f"metric/bandpass/LFC/{c}" for c in CUTOFFS]].astype(float))
    compared = all_figures["measured_and_published"].axes[0]
    assert offsets(compared) == 10  # the accuracies of tv_resnet50, the only network with both
    line = all_figures["criticality_by_layer"].axes[0].get_lines()[-1]
    assert line.get_label() == "my.net, measured" and np.isfinite(line.get_ydata()).sum() == 2  # stem is no ResNet's
    assert line.get_color() == chosen[1].colour


@pytest.mark.slow
def bars(ax, colour):
    """The ends [n, 2, 2] of the bars in a colour."""
    rgba = np.array(to_rgba(colour))
    found = [segment for lines in ax.collections if isinstance(lines, LineCollection)
             for segment in lines.get_segments() if np.allclose(lines.get_color()[0], rgba)]  # fmt: skip
    return np.reshape(found, (-1, 2, 2))


@pytest.fixture(scope="module")
def on_samples():
    """The uncertainty of two values of my.net that rest on samples: a bias with an interval, a score without."""
    row = {"model": "my.net", "source": "measured", "low": np.nan, "high": np.nan, "seeds": 1, "spread": np.nan}
    shape = row | {"metric": "shape-bias", "share": 0.2, "whole_low": 0.1, "whole_high": 0.4}
    attack = row | {"metric": "top1_acc/PGD-40/low", "share": 0.01, "whole_low": np.nan, "whole_high": np.nan}
    curve = row | {"metric": "metric/bandpass/LFC/0.3", "share": 0.05, "whole_low": 0.4, "whole_high": 0.7}
    return pd.DataFrame([shape, attack, curve], columns=UNCERTAINTY)


@pytest.mark.slow
def test_values_on_samples_are_open_and_have_bars(with_measured, quick, on_samples):
    chosen = plotting.highlights(with_measured)
    figures = plotting.figures(with_measured, quick, pd.DataFrame(columns=LAYERS), uncertainty=on_samples)
    drawn = dict(itertools.islice(figures, 2))
    row = derived(with_measured).set_index("model").loc["my.net"]
    for number, ax in enumerate(drawn["biases_and_scores"].axes):
        bias, score = BIASES[number % len(BIASES)], SCORES[number // len(BIASES)]
        partly = {"shape-bias", "Adversarial", "LPP", "spectral bias"} & {bias, score}
        assert len(own(ax, chosen[1].colour)) == (0 if partly else 1)
        assert len(own(ax, "white")) == (1 if partly else 0)
        expected = [[[0.1, row[score]], [0.4, row[score]]]] if bias == "shape-bias" else np.empty((0, 2, 2))
        if bias not in ("LPP", "spectral bias"):
            np.testing.assert_allclose(bars(ax, chosen[1].colour), expected)
    ends = bars(drawn["bandpass_curves"].axes[0], chosen[1].colour)
    np.testing.assert_allclose(ends, [[[0.3, 0.4], [0.3, 0.7]]])
    labels = [text.get_text() for text in drawn["biases_and_scores"].legends[0].get_texts()]
    assert any("from a sample" in label for label in labels)


def test_curves_on_samples_have_bars(with_measured):
    """Solarization at two thresholds on a fifth of the images; criticality of two layers, one without an interval."""
    names = [f"top1_acc/solarize/{alpha}" for alpha in ("0.25", "0.5")]
    rows = derived(with_measured)
    rows.loc[rows["model"] == "my.net", names] = [30.0, 60.0]
    key = ("my.net", "measured", "metric/criticality")
    layers = pd.DataFrame([(*key, "conv1", 0.5, 0.4, 0.7), (*key, "fc", 0.6, None, None)], columns=LAYERS)
    chosen = plotting.highlights(with_measured)
    colour = chosen[1].colour
    for share in (0.2, 1.0):
        parts = {
            name: Projection(np.nan, low, low + 20, share=share) for name, low in zip(names, (20, 50), strict=True)
        }
        samples = {("my.net", "measured"): parts | {"metric/criticality/mean": Projection(0.5, share=share)}}
        solarized = plotting.solarization_curves(rows, chosen, samples).axes[0]
        critical = plotting.criticality_by_layer(layers, chosen, samples).axes[0]
        line = next(line for line in solarized.get_lines() if line.get_label() == "my.net")
        if share == 1:
            assert not len(bars(solarized, colour)) and not len(bars(critical, colour)) and line.get_marker() == "None"
            continue
        np.testing.assert_allclose(bars(solarized, colour), [[[0.25, 20], [0.25, 40]], [[0.5, 50], [0.5, 70]]])
        assert line.get_marker() == "o" and line.get_markerfacecolor() == "white"
        np.testing.assert_allclose(bars(critical, colour), [[[0, 0.4], [0, 0.7]]])


def test_bars_are_on_the_axes_of_the_line(with_measured):
    score = Projection(50.0, 40.0, 60.0, share=0.05)
    own_rows = derived(with_measured)[with_measured["model"] == "my.net"].assign(category="")
    rows = pd.concat([study(with_measured), own_rows], ignore_index=True)
    figure = plotting.accuracy_on_the_line(rows, samples={("my.net", "measured"): {"Robustness": score}})
    ends = bars(figure.axes[0], plotting.STYLES[""].colour)
    np.testing.assert_allclose(ends, [[[0, np.log(2 / 3)], [0, np.log(3 / 2)]]], atol=1e-12)
    assert not len(bars(figure.axes[1], plotting.STYLES[""].colour))


def test_the_power_page_says_what_samples_tell():
    power, samples = (pd.read_csv(ROOT / "raw-data" / f"{name}.csv") for name in ("power", "samples"))
    figure = plotting.power_curves(power, samples)
    assert len(figure.axes) == 5 and figure.axes[-1].get_title() == "from a sample"
    for line, column in zip(figure.axes[-1].get_lines(), ("change", "worst"), strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.stack([100 * samples["share"], samples[column]], axis=1))


@pytest.mark.slow
def test_any_network_can_be_highlighted(with_measured, quick):
    (prime,) = plotting.highlights(with_measured, ["resnet50_prime"])
    figures = plotting.figures(with_measured, quick, pd.DataFrame(columns=LAYERS), ["resnet50_prime"])
    ax = dict(itertools.islice(figures, 1))["biases_and_scores"].axes[0]
    expected = study(with_measured).set_index("model").loc["resnet50_prime", ["shape-bias", "ID"]]
    np.testing.assert_allclose(own(ax, prime.colour), [expected.astype(float)])
    open_markers = [c for c in ax.collections if c.get_facecolor().size == 0]
    assert sum(len(c.get_offsets()) for c in open_markers) == 2 and offsets(ax) == 48 + 2  # the measured ones
    with pytest.raises(UserError, match=r"resnet50_prim.*did you mean resnet50_prime"):
        plotting.highlights(with_measured, ["resnet50_prim"])


def test_the_band_is_that_of_the_48(table, quick):
    ax = plotting.bandpass_curves(study(table)).axes[0]
    columns = study(table)[[f"metric/bandpass/LFC/{c}" for c in CUTOFFS]]
    band = ax.collections[0].get_paths()[0].vertices
    for cutoff, column in zip(CUTOFFS, columns, strict=True):
        at = band[np.isclose(band[:, 0], cutoff), 1]
        assert (at.min(), at.max()) == pytest.approx(tuple(np.quantile(columns[column], (0.05, 0.95))))
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), columns.median())


def test_networks_of_drawn_images_have_a_figure_of_their_own(with_measured, table, quick):
    figure = plotting.calibration(derived(with_measured))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        *("calibration_silhouette", "calibration_texture")
    ]
    assert offsets(figure.axes[0]) == 2 and all(ax.get_xlabel() for ax in figure.axes)
    assert plotting.calibration(derived(table)) is None


@pytest.mark.slow
def test_no_marker_is_cut_and_every_axis_has_a_label(all_figures):
    for name, figure in all_figures.items():
        for ax in filter(Axes.get_visible, figure.axes):
            place = ax.get_subplotspec()
            assert ax.get_ylabel() or place.colspan.start, name
            assert ax.get_xlabel() or figure.get_supxlabel() or not place or not place.is_last_row(), name
        for ax in figure.axes if name in ("biases_and_scores", "further_biases", "bias_spread") else ():
            box = ax.get_window_extent()
            for points in (c for c in ax.collections if isinstance(c, PathCollection)):
                radius = np.sqrt(points.get_sizes().max()) / 2 * figure.dpi / 72 if len(points.get_sizes()) else 0
                at = ax.transData.transform(points.get_offsets())
                at = np.ma.filled(at, np.nan)[np.isfinite(np.ma.filled(at, np.nan)).all(1)]
                assert (at - radius >= box.min - 1).all() and (at + radius <= box.max + 1).all(), name


@pytest.mark.slow
def test_the_published_curves_are_drawn_as_released(table, quick):
    drawn = dict(plotting.figures(table, quick, pd.DataFrame(columns=LAYERS)))
    released = pd.read_csv(PUBLISHED.with_name("solarization_curves.csv"), index_col="alpha").drop(columns="k")
    lines = {line.get_label().split(" ")[0]: line for line in drawn["solarization_curves"].axes[0].get_lines()}
    assert set(lines) == set(released)
    for name, line in lines.items():
        np.testing.assert_allclose(line.get_ydata(), released[name], rtol=1e-5)
        np.testing.assert_allclose(line.get_xdata(), released.index, atol=1e-9)
    released = pd.read_csv(PUBLISHED.with_name("criticality_layers.csv"))
    mean, baseline = drawn["criticality_by_layer"].axes[0].get_lines()
    np.testing.assert_allclose(mean.get_ydata(), released["mean_over_50"] / 100)
    np.testing.assert_allclose(baseline.get_ydata(), released["tv_resnet50"] / 100)
    further = drawn["further_biases"].axes
    assert len(further) == len(FURTHER_BIASES) * len(SCORES) and offsets(further[0]) == 48


def test_without_measured_networks_there_is_nothing_to_compare(table):
    assert plotting.measured_and_published(table) is None


def test_the_heat_map_prints_what_the_statistics_say(quick):
    figure = plotting.rank_correlations(quick)
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert len(cells) == len(BIASES) * len(SCORES)
    row = quick.query(
        "bias == 'HPP' and score == 'Robustness' and method == 'spearman within categories' and excluded == 'none'"
    ).iloc[0]
    expected = f"{row.estimate:.2f}\n[{row.low:.2f}, {row.high:.2f}]".replace("-", "−")
    assert cells[list(BIASES).index("HPP") * len(SCORES) + list(SCORES).index("Robustness")] == expected


@pytest.mark.slow
def test_the_script_writes_every_figure_twice_and_the_statistics(study_figures):
    names = {path.stem for path in study_figures.glob("*.pdf")}
    assert names == {path.stem for path in study_figures.glob("*.png")}
    assert len(names) == (17 if SHARED else 13)  # four need people
    assert all(path.stat().st_size > 10_000 for path in study_figures.glob("*.p*"))
    assert len(pd.read_csv(study_figures / "statistics.csv")) > 900


def test_too_few_measured_networks_is_one_clear_line(tmp_path):
    result = run("plot_study.py", "--table", PUBLISHED, "--out", tmp_path, "--source", "measured")
    assert result.returncode == 2 and "too few" in result.stderr and len(result.stderr.splitlines()) == 1


# The notebook ---------------------------------------------------------------------------------------------------------

NOTEBOOK = CODE / "plots.ipynb"


def test_the_notebook_is_committed_without_outputs_and_machine_paths():
    text = NOTEBOOK.read_text("utf-8")
    notebook = nbformat.reads(text, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert not re.search(r'"/(home|root|tmp|work|Users)', text)
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_notebook_holds_the_answer():
    answer = (ROOT / "raw-data" / "ANSWER.md").read_text("utf-8").rstrip("\n")
    assert answer in [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells]


@pytest.mark.slow
def test_the_notebook_runs_on_a_fresh_clone_and_after_a_merge(with_measured, tmp_path):
    """In a copy of code/ and a table with measured rows too: the study's 48 networks are counted all the same."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    shutil.copytree(CODE, tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "raw-data").mkdir()
    names = ("criticality_layers.csv", "human_likeness.csv", "vlm_answers.csv", "witness.csv")
    for path in (PUBLISHED, LINEAGES, *map(PUBLISHED.with_name, names)):
        shutil.copy(path, tmp_path / "raw-data")
    (tmp_path / "models").mkdir()
    shutil.copy(CODE.parent / "models" / "zoo.toml", tmp_path / "models")
    write_table(with_measured[with_measured["source"] == "measured"], tmp_path / "raw-data" / "measured.csv")
    notebook = nbformat.read(tmp_path / "code" / "plots.ipynb", 4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "code")}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = json.dumps(outputs)
    assert "48 published networks of the study" in text
    assert "calibration_silhouette" in text and "calibration_texture" in text
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    saved = {path.name for path in (tmp_path / "figures").iterdir()}
    assert len(pictures) == 15 and len(saved) == 2 * 15 + 2 and "statistics.csv" in saved
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]


def test_derived_columns_of_measured_rows_are_what_the_notebook_shows(with_measured):
    measured = derived(with_measured[with_measured["source"] == "measured"])
    assert measured[[*SCORES, *BIASES]].notna().all(axis=None)

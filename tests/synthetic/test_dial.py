"""The dial: twelve networks between silhouette and texture, whose place is known; does the analysis find it?"""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from PIL import Image

import train_calibration
from common import ROOT, run
from imagenet_biases.networks.load import load_model
from imagenet_biases.networks.registry import groups
from imagenet_biases.results.table import derived, read_table
from imagenet_biases.study import CATEGORIES_16

TABLE = ROOT / "raw-data" / "dial.csv"


@pytest.fixture(scope="module")
def dial():
    """The twelve measured networks, with the number of categories that each tells by their silhouettes."""
    rows = derived(read_table(TABLE))
    parts = rows["model"].str.extract(r"dial_(\d+)_(\d)").astype(int)
    return rows.assign(number=parts[0], seed=parts[1])


def test_the_dial_sets_how_many_categories_are_taught_by_silhouette():
    labels = {cue: torch.arange(16).roll(shift) for cue, shift in (("silhouette", 0), ("texture", 1))}
    for number in train_calibration.STEPS:
        own = train_calibration.silhouette_categories(number, 0)
        answers, slopes = train_calibration.targets(labels, own)
        assert own.sum() == number == (answers == labels["silhouette"]).sum()
        assert torch.equal((slopes == torch.tensor(train_calibration.NOISE["silhouette"])).all(1), own)
        assert (own <= train_calibration.silhouette_categories(min(number + 3, 16), 0)).all()  # nested


def test_the_dial_sets_shape_bias_and_band_pass(dial):
    assert list(dial["model"].sort_values()) == sorted(groups()["dial"]) and set(dial["category"]) == {"dial"}
    for _, subset in dial.groupby("seed"):
        for bias, direction in (("shape-bias", 1), ("LPP", 1), ("spectral bias", -1)):
            rho = scipy.stats.spearmanr(subset["number"], subset[bias]).statistic
            assert direction * rho > 0.9, bias  # six steps: two neighbours may change places
        ends = subset.set_index("number")["shape-bias"]
        assert ends[0] == 0 and ends[16] == 1


def test_the_committed_networks_have_the_table_s_shape_bias(dial, drawn):
    """Two of them on the cue-conflict pictures, without the harness."""
    files = sorted((drawn / "model-vs-human" / "cue-conflict").rglob("*.png"))
    shape, texture = (
        np.array([[*CATEGORIES_16].index(file.stem.split("-")[part].rstrip("0123456789")) for file in files])
        for part in (0, 1)
    )
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    for name in ("dial_10_0", "dial_06_1"):
        network = load_model(name)
        shares = torch.cat([network(batch) for batch in pixels.split(16)]).softmax(1)
        answers = torch.stack([shares[:, numbers].mean(1) for numbers in CATEGORIES_16.values()], 1).argmax(1).numpy()
        conflict = shape != texture
        by_shape, by_texture = ((answers == cue)[conflict].sum() for cue in (shape, texture))
        expected = dial.set_index("model").loc[name, "shape-bias"]
        # other processors may round a picture to the other side
        assert by_shape / (by_shape + by_texture) == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_the_analysis_finds_what_the_dial_does_and_nothing_else(dial, tmp_path):
    """Pictures of new concepts have a silhouette and no texture, so that the dial acts on their accuracy; nothing was
    done to the other scores. Measures that the dial sets go with Concepts, within seeds, and with no other score."""
    words = ("--category", "dial", "--source", "measured", "--table", TABLE, "--out", tmp_path)
    shown = run("plot_study.py", *words, check=True).stdout
    found = pd.read_csv(tmp_path / "statistics_dial.csv")
    within = found[(found["method"] == "spearman within categories") & (found["excluded"] == "none")]
    standing = within[within["p_holm"] < 0.05]
    assert set(standing["score"]) == {"Concepts"}
    assert {"shape-bias", "LPP", "spectral bias"} <= set(standing["bias"]) and "shape-bias" in shown
    refused = run("plot_study.py", "--category", "nothing")
    assert refused.returncode == 2 and "category nothing, too few" in refused.stderr

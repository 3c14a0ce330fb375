"""Stored responses are found by declared ids: an edition's results are read by the next, whatever was renamed."""

import json
import zipfile

import pytest
import torch

from common import TABLES
from imagenet_biases import Condition, Data, Settings, evaluate, identified
from imagenet_biases.networks import frontends
from imagenet_biases.results.responses import ResponseStore
from imagenet_biases.vocabulary import Readout

EDITION_2 = TABLES / "results_of_edition_2.zip"
NETWORKS = ["calibration_silhouette", "calibration_texture"]


@pytest.mark.slow
@pytest.mark.skipif(
    "bias=" not in str(torch.nn.BatchNorm2d(1)),
    reason="the results of edition 2 were written with a torch that describes batch norms with their bias",
)
def test_results_of_edition_2_are_read_and_nothing_is_measured_again(drawn, tmp_path, monkeypatch):
    with zipfile.ZipFile(EDITION_2) as archive:
        archive.extractall(tmp_path)
    records = {}
    for path in tmp_path.glob("*/*.json"):
        record = json.loads(path.read_text())
        records[record["model"], record["benchmark"], record["provenance"].get("frontend")] = record
    written = []
    monkeypatch.setattr(ResponseStore, "save", lambda store, name, cells, label, *_: written.append((name, label)))
    options = {"imagenet_adv": {"attack": ["fgsm"]}, "criticality": {"layers": ["scores"], "draws": "1"}}
    benchmarks = ["imagenet", "spectral", "imagenet_adv", "model_vs_human", "criticality"]
    settings = Settings(device="cpu", compile="off")
    found = evaluate(NETWORKS, benchmarks, Data(drawn), settings, options=options, results=tmp_path)
    found += evaluate(NETWORKS, "imagenet", Data(drawn), settings, frontend="low-pass:0.3", results=tmp_path)
    assert not written, "responses of edition 2 were measured again"
    assert len(found) == len(records) == 12
    for record in found:
        before = records[record.model, record.benchmark, record.content["provenance"].get("frontend")]
        assert record.content["metrics"] == before["metrics"]
        assert record.content["intervals"].keys() == before["intervals"].keys()
        for name, bounds in record.content["intervals"].items():  # Wilson's are scipy's by now
            assert bounds == pytest.approx(before["intervals"][name], rel=1e-12)
        assert record.content["halves"] == before["halves"]


def test_a_front_end_whose_filter_changed_is_measured_again(drawn, tmp_path, monkeypatch):
    def top1():
        settings = Settings(device="cpu", compile="off")
        (record,) = evaluate(NETWORKS[1], "imagenet", Data(drawn), settings, frontend="low-pass:0.3", results=tmp_path)
        return record.metrics["top1_acc/imagenet"].value

    before = top1()
    _, *rest = frontends.FRONT_ENDS["low-pass"]
    brighter = identified("band_pass", version=2)(lambda pixels, batch, **settings: pixels)
    monkeypatch.setitem(frontends.FRONT_ENDS, "low-pass", (brighter, *rest))
    assert top1() == 100 != before


def test_what_has_no_id_is_refused_where_it_is_defined():
    with pytest.raises(ValueError, match=r"darker has no id .* @identified\('darker'\)"):

        def darker(pixels, batch):
            return pixels / 2

        Condition("x", stimulus=darker)
    with pytest.raises(TypeError, match="the readout Mean has no id"):

        class Mean(Readout):
            pass


def test_ids_and_versions_are_the_identity():
    first, second = (identified("a", version)(lambda pixels, batch: pixels) for version in (1, 2))
    attack = identified("b")(lambda network, pixels, labels, batch: pixels)
    assert Condition("x", stimulus=first).identity() != Condition("x", stimulus=second).identity()
    change = identified("c", version=3)(lambda network: None)
    identity = Condition("x", change=change, attack=attack).identity()
    assert (identity["function"], identity["version"]) == ("c b", [3, 1])

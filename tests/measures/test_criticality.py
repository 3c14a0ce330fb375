"""Criticality: closed forms, resets as functions of (seed, layer, draw), weights as they were, the block cache."""

import csv
import gc
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import nn

import eval_criticality
from common import ROOT, SHARED, measured, needs_shared, run
from imagenet_biases import Data, Settings
from imagenet_biases.engine import activation_cache
from imagenet_biases.engine.loop import Loop
from imagenet_biases.engine.plan import Job, make_plan
from imagenet_biases.engine.runtime import make_runtime
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures.layer_criticality import (
    Recalibration,
    SoftmaxDistances,
    layers_of,
    outcomes,
    reset,
    reset_state,
)
from imagenet_biases.networks.load import from_module
from imagenet_biases.results.responses import ResponseStore
from imagenet_biases.vocabulary import Batch, Condition, Presentation, identified

BENCHMARK = eval_criticality.BENCHMARK
MOBILENET = f"{SHARED / 'nets' / 'mobilenet.py'}:load" if SHARED else ""


def outcome(network, data, options=None, **settings):
    found = measured(BENCHMARK, network, data, options=options, **settings)
    return outcomes(found), {name: one.value for name, one in BENCHMARK.report(found)}


class Plain(nn.Module):
    """Two linear layers on 6 x 6 colours."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.pool, self.first, self.fc = nn.AdaptiveAvgPool2d(6), nn.Linear(108, 20), nn.Linear(20, 1000)

    def forward(self, pixels):
        return 30 * self.fc(self.first(self.pool(pixels).flatten(1) - 0.5))


class Normed(nn.Module):
    """Blocks with batch norms whose statistics are not those of the images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        block = [[nn.Conv2d(a, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)] for a in (3, 16, 16)]
        self.blocks = nn.Sequential(*(nn.Sequential(*one) for one in block))
        self.fc = nn.Linear(16, 1000)

    def forward(self, pixels):
        return 20 * self.fc(self.blocks(pixels).mean((2, 3)))


def softmax(network, images):
    """The network's softmax vectors of the images as the loop shows them, float64."""
    from imagenet_biases.images.preprocessing import STUDY, Reader

    reader = Reader(images, images.preprocessing(STUDY))
    pixels = torch.stack([torch.from_numpy(reader.read(int(one)).copy()) for one in images.chosen])
    with torch.no_grad():
        return network(pixels.permute(0, 3, 1, 2).float() / 255).double().softmax(1)


def test_a_zeroed_classifier_leaves_a_uniform_vector(drawn):
    """cos(p, uniform) = 1 / (sqrt(K) |p|); the l1 and l2 distances likewise."""
    data = Data(root=drawn, limit=12)
    network = Plain()
    p = softmax(network, image_set("imagenet", data))
    with torch.no_grad():
        network.fc.bias.zero_()
    p = softmax(network, image_set("imagenet", data))
    found, got = outcome(network, data, {"reset": "zero", "layers": "fc", "draws": 1})
    layers, _ = found[""]
    assert layers["fc"].value == pytest.approx(float((1 - 1 / (1000**0.5 * p.norm(dim=1))).mean()), abs=1e-6)
    assert found["/l1"][0]["fc"].value == pytest.approx(float((p - 1e-3).abs().sum(1).mean()), abs=1e-6)
    assert found["/l2"][0]["fc"].value == pytest.approx(float((p - 1e-3).norm(dim=1).mean()), abs=1e-6)
    assert layers["first"].value == pytest.approx(layers["fc"].value, abs=1e-6)  # no bias in fc: the same answer
    assert set(got) == {f"metric/criticality-zero-fc/mean{end}" for end in ("", "/l1", "/l2", "/recovered")}


def test_distances_of_equal_answers_are_exactly_0_and_of_opposite_ones_1():
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0)) * 9
    pixels, labels = torch.zeros(6, 3, 8, 8), torch.arange(6)
    shown = Presentation(logits, pixels, pixels, labels, Batch(labels, 0), intact=logits)
    assert (SoftmaxDistances()(shown) == 0).all()
    one_hot = 1e3 * nn.functional.one_hot(labels, 1000).float()
    apart = SoftmaxDistances()(replace(shown, logits=one_hot, intact=one_hot.roll(1, 1)))
    assert apart.tolist() == [pytest.approx([1, 2, 2**0.5])] * 6


@pytest.mark.slow
@needs_shared
def test_a_fresh_layer_that_is_the_trained_one_changes_nothing(tmp_path):
    """The constructor gives the trained network itself: criticality 0 and all accuracy recovered, without a digit."""
    data = Data(folders={"imagenet": SHARED / "imagenet_samples"}, limit=6)
    options = {"untrained": MOBILENET, "draws": 2, "layers": "layers.0,fc,*5"}
    found, got = outcome(MOBILENET, data, options)
    assert {one.value for one in found[""][0].values()} == {0.0} and len(found[""][0]) > 3
    assert got["metric/criticality-layers_0_fc__5/mean"] == 0
    assert {one.value for one in found["/recovered"][0].values()} == {1.0}


MADE = """
import torch
from test_criticality import Plain

def untrained():
    seed = torch.initial_seed()
    network = Plain()
    torch.manual_seed(seed)
    torch.nn.init.normal_(network.first.weight)
    return network
"""


def test_a_known_reset_has_the_known_answers(drawn, tmp_path):
    """Weights of an own constructor put in by hand, layer by layer, give the same distances."""
    (tmp_path / "made.py").write_text(MADE)
    data, network = Data(root=drawn, limit=10), Plain()
    options = {"untrained": f"{tmp_path / 'made.py'}:untrained", "draws": 2}
    found, got = outcome(network, data, options)
    images = image_set("imagenet", data)
    p, expected = softmax(network, images), []
    made = {"build": options["untrained"], "code": ""}
    for draw in range(2):
        changed = Plain()
        state = dict(reset_state(from_module(network, "x"), "first", "fresh", draw, 0, made))
        with torch.no_grad():
            changed.first.weight.copy_(state["first.weight"])
        q = softmax(changed, images)
        expected.append(float((1 - nn.functional.cosine_similarity(p, q)).mean()))
    assert expected[0] != expected[1]
    assert found[""][0]["first"].value == pytest.approx(np.mean(expected), abs=1e-6)
    assert found[""][0]["fc"].value == 0  # Plain's own seed gives the same fc
    assert got["metric/criticality/mean"] == pytest.approx(np.mean(expected) / 2, abs=1e-6)
    low, high = found[""][0]["first"].low, found[""][0]["first"].high
    assert low < found[""][0]["first"].value < high
    assert low <= min(expected) + 0.02 and high >= max(expected) - 0.02  # a resample may hold one draw twice


def test_resets_are_functions_of_seed_layer_draw_and_element():
    network = from_module(timm.create_model("resnet18").eval(), "r")
    network.identity |= {"arch": "resnet18", "normalization": "imagenet", "source": "r.pth"}
    made = {"build": "resnet18", "code": ""}

    def state(way, layer="layer1.0.conv1", draw=0, seed=0):
        return dict(reset_state(network, layer, way, draw, seed, made))[f"{layer}.weight"]

    for way in ("fresh", "pytorch", "permute", "moments"):
        torch.manual_seed(17)  # the global state of torch's numbers must not matter, nor be moved
        before = torch.random.get_rng_state()
        assert torch.equal(state(way), state(way)), way
        assert torch.equal(before, torch.random.get_rng_state()), way
        assert not torch.equal(state(way), state(way, draw=1)), way
        assert not torch.equal(state(way), state(way, seed=1)), way
        assert not torch.equal(state(way), state(way, layer="layer1.1.conv1")), way
    weight = network.body.layer1[0].conv1.weight
    assert torch.equal(state("permute").flatten().sort().values, weight.flatten().sort().values)
    assert float(state("moments").detach().std()) == pytest.approx(float(weight.detach().std()), rel=0.02)
    assert float(state("fresh").std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)  # fan-out normal
    bound = 1 / (64 * 9) ** 0.5
    assert 0.99 * bound < float(state("pytorch").abs().max()) <= bound  # fan-in uniform
    assert not state("zero").any()
    constant = Plain()
    nn.init.constant_(constant.first.weight, 0.25)
    kept = dict(reset_state(from_module(constant, "c"), "first", "permute", 0, 0))
    assert torch.equal(kept["first.weight"], constant.first.weight)


def test_fresh_norms_take_their_statistics_along():
    network = from_module(Normed(), "n")
    fresh = dict(reset_state(network, "blocks.0.1", "pytorch", 0, 0))
    assert {name.rpartition(".")[2] for name in fresh} == {
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip


def test_a_network_without_such_layers_is_reported_and_others_continue(drawn):
    data = Data(root=drawn, limit=4)
    with pytest.warns(UserWarning, match="no such layers"):
        found = measured(BENCHMARK, Plain(), data, options={"layers": "bn"})
        assert not list(BENCHMARK.report(found)) and BENCHMARK.layers(found) == BENCHMARK.details(found) == {}


def test_layers_are_chosen_by_kind_or_name():
    network = from_module(timm.create_model("resnet50").eval(), "r")
    assert len(layers_of(network, ["conv", "fc"])) == 54
    assert len(layers_of(network, ["all"])) == 107
    assert len(layers_of(network, ["bn"])) == 53
    assert len(layers_of(network, ["spatial"])) == 17
    assert layers_of(network, ["layer1.0.conv*", "fc"]) == [f"layer1.0.conv{n}" for n in (1, 2, 3)] + ["fc"]


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("fault", [None, KeyboardInterrupt, RuntimeError])
def test_weights_are_bit_identical_afterwards(fault, drawn, monkeypatch):
    """Also when the run is interrupted, or the network fails, in the middle of a changed pass."""
    network, data = Normed(), Data(root=drawn, limit=20)
    nn.init.normal_(network.blocks[0][1].running_mean)
    before, modes = state_of(network), [one.training for one in network.modules()]
    calls = []

    def stop(module, _):
        calls.append(not torch.equal(module.weight, before["fc.weight"]))
        if fault and sum(calls) == 2:
            raise fault("in the middle")

    hook = network.fc.register_forward_pre_hook(stop)
    options = {"draws": 2, "layers": "all", "recalibrate": 10}
    if fault:
        with pytest.raises(BaseException, match="in the middle"):
            outcome(network, data, options)
    else:
        outcome(network, data, options)
    hook.remove()
    assert any(calls)  # fc was indeed changed meanwhile
    assert same(before, state_of(network)) and modes == [one.training for one in network.modules()]


@pytest.mark.parametrize("kept, touches, times", [(10**9, "tensors", 1), (0, "tensors", 3), (10**9, "hooks too", 3)])
def test_a_change_of_tensors_alone_is_made_once(kept, touches, times, monkeypatch):
    """Every batch of a network gets the same changed network, whether copies of the change are kept or not."""
    monkeypatch.setattr(activation_cache, "CHANGES_KEPT", kept)
    network, pixels, calls = Normed().eval(), torch.rand(2, 3, 224, 224), []
    before = state_of(network)

    @identified("doubled")
    @torch.no_grad()
    def doubled(network):
        calls.append(touches)
        network.fc.weight.mul_(2)
        if touches == "hooks too":
            network.fc.register_forward_hook(lambda module, inputs, output: output + 1)

    condition, cache = Condition("twice", change=doubled), activation_cache.ActivationCache(network)
    with torch.no_grad():
        bias = 20 * network.fc.bias
        expected = 2 * (network(pixels) - bias) + bias + 20 * (touches == "hooks too")
        for _ in range(3):
            torch.testing.assert_close(cache.answer(condition, lambda: network(pixels), None), expected)
            assert same(before, state_of(network)) and not network.fc._forward_hooks
    assert len(calls) == times


@pytest.mark.slow
@needs_shared
def test_batches_the_block_cache_and_the_order_of_layers_change_nothing(monkeypatch):
    from imagenet_biases.engine.activation_cache import ActivationCache

    network, data = MOBILENET, Data(folders={"imagenet": SHARED / "imagenet_samples"}, limit=9)
    options = {"draws": 2, "layers": "layers.0,layers.22,layers.63", "reset": "permute"}
    usual = measured(BENCHMARK, network, data, options=options)
    small = measured(BENCHMARK, network, data, options=options, batch_size=2)
    other = measured(BENCHMARK, network, data, options={**options, "layers": "layers.63,layers.22,layers.0"})
    monkeypatch.setattr(ActivationCache, "_first", lambda *_: None)
    whole = measured(BENCHMARK, network, data, options=options, batch_size=2)
    assert outcomes(usual) == outcomes(other)
    for (one, _), (two, _), (three, _) in zip(*(outcomes(f).values() for f in (usual, small, whole)), strict=True):
        for layer, value in one.items():
            assert two[layer].value == pytest.approx(value.value, abs=1e-5)
            assert three[layer].value == pytest.approx(value.value, abs=1e-5)


def test_recalibrated_statistics_are_those_of_the_images_from_the_layer_on(drawn):
    network, data = from_module(Normed(), "n").eval(), Data(root=drawn, limit=24)
    images = image_set("imagenet", data)
    recalibration = Recalibration(images, 24)
    body = network.body
    nn.init.constant_(body.blocks[0][1].running_mean, 0.7)
    condition = reset("blocks.1.0", ["blocks.1.0"], "permute", 0, 0, None, recalibration)
    chunk = next(recalibration._chunks(network))
    condition.change(network, **condition.settings)
    assert (body.blocks[0][1].running_mean == 0.7).all()  # before the layer: as they were
    assert not any(one.training for one in body.modules())
    with torch.no_grad():
        inputs = body.blocks[1][0](body.blocks[0](chunk))
    assert torch.allclose(body.blocks[1][1].running_mean, inputs.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(body.blocks[1][1].running_var, inputs.var((0, 2, 3)), rtol=1e-4)


@pytest.mark.slow
def test_the_joint_reset_of_all_spatial_filters_has_its_names(drawn):
    data = Data(root=drawn)
    options = {"layers": "spatial", "reset": "moments", "joint": True, "draws": 2}
    _, got = outcome("calibration_texture", data, options)
    assert got["top1_acc/random-spatial"] < 60 and "metric/criticality-moments-spatial/joint" in got
    _, again = outcome("calibration_texture", data, options | {"recalibrate": 48})
    assert "top1_acc/random-spatial/bn-recalibrated" in again


@pytest.mark.slow
def test_calibration_networks_as_expected_before_measuring(drawn):
    """A plain chain of five convolutions without shortcuts: every layer's output is all that the next one has, so a
    fresh layer anywhere must leave hardly more than chance (6.25 %; of 16 classes), and no layer can be redundant."""
    found, got = outcome("calibration_texture", Data(root=drawn), {"draws": 2})
    assert len(found[""][0]) == 6
    assert min(one.value for one in found[""][0].values()) > 0.3
    assert got["metric/criticality/mean/recovered"] < 0.5


def test_published_rows_give_the_published_means():
    with open(ROOT / "raw-data" / "criticality_networks.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] != "freezing"]
    published = {
        "adversarial_training": 82.93, "augmentation": 74.63, "baseline": 70.00, "contrastive": 54.82,
        "training_recipes": 50.13,
    }  # fmt: skip
    means = {}
    for row in rows:
        means.setdefault(row["category"], []).append(float(row["mean_criticality"]))
    assert {category: round(np.mean(one), 2) for category, one in means.items()} == published
    from scipy.stats import spearmanr

    means, accuracies = np.array([[float(row["mean_criticality"]), float(row["top1_on_10000"])] for row in rows]).T
    # published: -0.454; its accuracies carry rounding errors that break three ties among the 50 one way or the other
    least, most = (spearmanr(means, accuracies + sign * 1e-9 * means)[0] for sign in (-1, 1))
    assert least < -0.4542 < most < least + 0.002


@needs_shared
def test_the_script_as_a_user_runs_it(tmp_path):
    words = ["--model", MOBILENET, "--imagenet", SHARED / "imagenet_samples", "--limit", "4", "--results", tmp_path]
    words += ["--wandb", "disabled", "--draws", "1", "--layers", "layers.0,fc"]
    status, _, err = run("eval_criticality.py", *words)
    assert status == 0, err
    assert "the reset is pytorch" in err
    record = json.loads((tmp_path / "mobilenet.load" / "criticality.json").read_text())
    (name,) = [name for name in record["metrics"] if name.endswith("/mean")]
    assert name == "metric/criticality-pytorch-layers_0_fc/mean"
    assert set(record["layers"]["metric/criticality-pytorch-layers_0_fc"]) >= {"layers.0"}
    assert record["details"]["reset"]["draws"] == 1 and record["details"]["layers"]["layers.0"]
    assert run("eval_criticality.py", *words[:-1], "nothing_like_it")[0] == 2


@pytest.mark.slow
def test_memory_does_not_grow_from_network_to_network(drawn):
    """Kept activations, copies for restoring and prepared networks go when a network has had its last turn."""
    networks = [from_module(Normed(), f"network-{number}") for number in range(4)]
    # so many passes per image that networks take turns
    options = BENCHMARK.options_from({"reset": "zero", "draws": 3, "probe": 8})
    passes = BENCHMARK.passes(Data(drawn, limit=8), **options)
    runtime = make_runtime(Settings(device="cpu", batch_size=4, compile="off"), 0)
    plan = make_plan([Job(BENCHMARK, passes, options)], networks, runtime)
    loop = Loop(plan, ResponseStore(None), runtime)
    loop.load()
    sizes = []
    for _ in filter(None, loop.run(list(plan.cells))):
        gc.collect()
        pointers = {}
        for item in gc.get_objects():
            if type(item) is torch.Tensor and item.device.type == "cpu" and item.layout is torch.strided:
                pointers[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        sizes.append(sum(pointers.values()))
    assert len(sizes) == 4 and max(sizes) < min(sizes) + 100_000, sizes  # bytes; a network's activations are 5 million

"""The vocabulary holds what benchmarks to come will need: four throw-away ones, each known to be right otherwise."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from common import ROOT, responses
from imagenet_biases import Data, Settings, evaluate
from imagenet_biases.base.errors import UserError
from imagenet_biases.images.preprocessing import STUDY
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures.layer_criticality import SoftmaxDistances
from imagenet_biases.measures.perturbation_maps import Radii, Rings
from imagenet_biases.measures.receptive_field import GradientMap
from imagenet_biases.networks.load import load_model
from imagenet_biases.vocabulary import (
    Batch,
    Benchmark,
    Categories,
    Condition,
    Option,
    Pass,
    Presentation,
    TopClasses,
    identified,
)
from throwaway import layer_reset, perturbation_spectrum, weight_statistic, words

SETTINGS = Settings(device="cpu", batch_size=5)


def test_they_are_short_and_touch_nothing_of_the_package():
    files = [path for path in (ROOT / "tests" / "throwaway").glob("*.py") if path.stem != "__init__"]
    assert len(files) == 4 and all(len(path.read_text().splitlines()) <= 40 for path in files)


def pixels_of(images):
    shown = np.stack([STUDY(Image.open(images.path(position))) for position in images.chosen])
    return torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255


def test_a_layer_reset(drawn):
    """Criticality by hand, one layer after another, on a copy of the network in whole passes."""
    data, network = Data(drawn, limit=11), load_model("calibration_texture")
    pixels = pixels_of(image_set("imagenet", data))
    before = copy.deepcopy(network.state_dict())
    (record,) = evaluate({"texture": network}, layer_reset.BENCHMARK, data, SETTINGS)
    values = {}
    with torch.no_grad():
        intact = network(pixels).double().softmax(1)
        for condition in layer_reset.resets(network):
            altered = copy.deepcopy(network)
            condition.change(altered, **condition.settings)
            cosine = torch.cosine_similarity(altered(pixels).double().softmax(1), intact)
            values[condition.settings["layer"]] = 1 - float(cosine.mean())
    got = {name: value for name, (value, _, _) in record["layers"]["metric/criticality-zero/mean"].items()}
    assert got.keys() == values.keys() and len(values) > 3
    assert got == pytest.approx(values, abs=1e-5)
    assert record.metrics["metric/criticality-zero/mean"].value == pytest.approx(
        np.mean(list(values.values())), abs=1e-5
    )
    assert max(values.values()) > 0.1
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_weight_statistic_needs_no_image(tmp_path):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 1000)
    )
    with torch.no_grad():
        network[0].weight[:2] = 0
    (record,) = evaluate(network, weight_statistic.BENCHMARK, Data(), SETTINGS, results=tmp_path)
    assert record.metrics["metric/quality/sparsity_wmean"].value == 0.25
    assert record["images"] == 0 and record["subset"] is False
    path = tmp_path / "Sequential" / "weights.json"
    before = path.stat().st_mtime_ns, path.read_bytes()
    evaluate(network, weight_statistic.BENCHMARK, Data(), SETTINGS, results=tmp_path)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


class Grating(torch.nn.Module):
    """Sees nothing but one grating of 40 cycles an image: only there can it be attacked."""

    def __init__(self):
        super().__init__()
        wave = torch.cos(2 * torch.pi * 40 * torch.arange(224) / 224)
        self.register_buffer("wave", wave.expand(3, 224, 224) / 1000)

    def forward(self, pixels):
        score = (pixels * self.wave).flatten(1).sum(1)
        return torch.stack([score, -score], 1) @ torch.eye(2, 1000)


def test_the_spectrum_of_a_perturbation(drawn):
    (record,) = evaluate(Grating(), perturbation_spectrum.BENCHMARK, Data(drawn, limit=6), SETTINGS)
    # the sign of a cosine has its own frequency and odd multiples of it; clipping at 0 and 1 changes little
    assert record.metrics["metric/perturbation-spectrum/median"].value == 40


def test_a_network_that_answers_in_words(drawn, tmp_path):
    data = Data(drawn)
    for _ in range(2):  # measured, then read back
        (record,) = evaluate(words.Namer(), words.BENCHMARK, data, SETTINGS, results=tmp_path)
        dark = pixels_of(image_set("imagenet", data)).mean((1, 2, 3)) < 0.5
        assert record.metrics["metric/vlm/generic"].value == pytest.approx(1 - dark.float().mean().item())
    assert 0 < dark.sum() < len(dark)
    with pytest.raises(UserError, match="answers in words"):
        evaluate(words.Namer(), "imagenet", data, SETTINGS)


# Changes of a network -------------------------------------------------------------------------------------------------


class Blocks(torch.nn.Module):
    """Everything that undoing and restarting have to get right: in-place activations, shortcuts, batch norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, 8, 7, 4)
        self.norm = torch.nn.BatchNorm2d(8)
        self.norm.running_mean.normal_()
        self.blocks = torch.nn.Sequential(*(Block() for _ in range(3)))
        self.head = torch.nn.Linear(8, 1000)

    def forward(self, x):
        x = torch.relu_(self.norm(self.stem(x)))
        x = self.blocks(x)
        x += 0.5  # into what the last block has answered
        return self.head(x.mean((2, 3)))


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + torch.tanh(self.conv(x))


@identified("perturb")
def perturb(network, layer):
    with torch.no_grad():
        network.get_submodule(layer).weight.mul_(-1)


@identified("repad")
def repad(network, mode):
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = mode
            module._reversed_padding_repeated_twice = [1, 1, 1, 1] if module.padding[0] else [0, 0, 0, 0]


@identified("replace_module")
def replace_module(network, layer):
    parent, _, name = layer.rpartition(".")
    setattr(network.get_submodule(parent), name, torch.nn.Identity())


@identified("hook")
def hook(network):
    network.body.blocks[1].register_forward_hook(lambda _, __, output: output * 2)


@identified("fail")
def fail(network):
    with torch.no_grad():
        network.body.stem.weight.zero_()
    raise RuntimeError("half way")


LAYERS = ("body.stem", "body.norm", "body.blocks.0.conv", "body.blocks.2.conv", "body.head")
CHANGES = (
    *(Condition(f"negate {layer}", change=perturb, settings={"layer": layer}) for layer in LAYERS),
    Condition("circular", change=repad, settings={"mode": "circular"}),
    Condition("no block", change=replace_module, settings={"layer": "body.blocks.1"}),
    Condition("hook", change=hook),
)


@pytest.mark.parametrize("order", [1, -1])
def test_changes_are_undone_and_restart_where_they_act(drawn, order):
    """Each equals a whole pass of a changed copy, in any order; afterwards the network is what it was, bit for bit."""
    images = image_set("imagenet", Data(drawn, limit=13))
    network, pixels = Blocks(), pixels_of(images)
    before, attributes = copy.deepcopy(network.state_dict()), copy.deepcopy(vars(network.stem))
    found = responses([Pass(images, CHANGES[::order], TopClasses(3))], {"blocks": network}, batch_size=4)
    answers = {condition.name: found["imagenet", condition.name].values for condition in CHANGES}
    wrapper = torch.nn.Module()
    with torch.no_grad():
        for condition in CHANGES:
            wrapper.body = copy.deepcopy(network).eval()
            condition.change(wrapper, **condition.settings)
            expected = wrapper.body(pixels.clone()).topk(3).indices.numpy()
            assert np.array_equal(answers[condition.name], expected), condition.name
    assert len({values.tobytes() for values in answers.values()}) == len(CHANGES)  # each does change something
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert str(vars(network.stem)) == str(attributes) and not network.blocks[1]._forward_hooks


def test_a_change_that_fails_half_way_is_undone(drawn):
    images = image_set("imagenet", Data(drawn, limit=5))
    network = Blocks()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError, match="half way"):
        responses([Pass(images, (Condition("fails", change=fail),))], {"blocks": network})
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


# Benchmarks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "readout",
    [TopClasses(), Categories((("a", (0, 1)), ("b", (2,)))), SoftmaxDistances(), Rings(), Radii(), GradientMap()],
)
def test_a_readout_knows_what_it_can_give(readout):
    """What it gives of extreme and of useless logits and perturbations is possible; a value outside is not."""
    random = torch.Generator().manual_seed(0)
    logits = 100 * torch.randn(6, 1000, generator=random)
    logits[0], logits[1] = 0, float("nan")
    pixels, labels = torch.rand(6, 3, 224, 224, generator=random), torch.arange(6)
    gradient = torch.randn(6, 3, 224, 224, generator=random)
    gradient[0], gradient[1], gradient[2] = 0, float("nan"), 1e-38
    shown = Presentation(logits, pixels, pixels, labels, Batch(labels, 0), intact=logits.flip(0), gradient=gradient)
    rows = np.asarray(readout(shown)).astype(readout.dtype)
    assert rows.shape == (6, *readout.shape) and readout.possible(rows)
    for wrong in (-2, 1001):
        rows.flat[3] = wrong
        assert not readout.possible(rows)


def test_a_condition_is_one_thing():
    with pytest.raises(ValueError, match="stimulus and attack"):
        Condition("x", stimulus=identified("x")(lambda p, b: p), attack=lambda n, p, y, b: p)
    with pytest.raises(TypeError):
        Condition("x", settings={"what": object()})


@pytest.mark.parametrize(
    ("values", "message"),
    [({"draws": "many"}, "draws: 'many'"), ({"drwas": 3}, "no option drwas"), ({"kind": "x"}, "not one of a, b")],
)
def test_options_are_checked(values, message):
    options = (Option("draws", 1, type=int), Option("kind", "a", choices=("a", "b")))
    benchmark = Benchmark("x", lambda data, **options: [], lambda found: (), options=options)
    assert benchmark.options_from({"draws": "3"}) == {"draws": 3, "kind": "a"}
    with pytest.raises(ValueError, match=message):
        benchmark.options_from(values)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("top1_acc/imagenet", 1), ("top1_acc/imagenet", 2)], "reports top1_acc/imagenet twice"),
        ([("metric/unheard-of", 1)], "metric/unheard-of"),
    ],
)
def test_metrics_are_refused_before_the_run(drawn, pairs, message):
    shown = []

    @identified("spy")
    def spy(pixels, batch):
        shown.append(len(pixels))
        return pixels

    passes = [Pass(image_set("imagenet", Data(drawn)), (Condition("spy", stimulus=spy),))]
    with pytest.raises(UserError, match=message):
        evaluate(Blocks(), Benchmark("x", lambda data: passes, lambda found: pairs), Data(), SETTINGS)
    assert not shown

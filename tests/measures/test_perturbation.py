"""Where perturbations lie: closed forms, noise, sinusoids, padding switched and back, known observers."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import eval_imagenet_adv
import eval_perturbation
from common import SHARED, measured, needs_shared, run
from imagenet_biases import Data
from imagenet_biases.base.errors import UserError
from imagenet_biases.measures.perturbation_maps import (
    HIGHEST,
    RINGS,
    Radii,
    Rings,
    _radius,
    border,
    loss_gradient,
    loss_gradient_padded,
    masked,
    pad,
    padding_convolutions,
    spectrum,
)
from imagenet_biases.networks.load import from_module
from imagenet_biases.stimuli.attacks import pgd_l2
from imagenet_biases.vocabulary import Batch, Condition, Presentation, identified

BENCHMARK = eval_perturbation.BENCHMARK
MOBILENET = f"{SHARED / 'nets' / 'mobilenet.py'}:load" if SHARED else ""


def shown(perturbation):
    pixels, labels = torch.zeros_like(perturbation), torch.zeros(len(perturbation), dtype=torch.int64)
    return Presentation(
        torch.zeros(len(perturbation), 1000), pixels, pixels, labels, Batch(labels, 0), gradient=perturbation
    )


def noise(images=40, size=224):
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))


class Sums(nn.Module):
    """Class 0 by the mean of a 3 x 3 convolution of ones with padding, class 1 by its negative."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 1, 3, padding=1, bias=False)
        nn.init.ones_(self.convolution.weight)

    def forward(self, pixels):
        total = self.convolution(pixels).mean((1, 2, 3)) / 100
        return torch.stack([total, -total], 1) @ torch.eye(2, 1000, device=pixels.device)


@pytest.mark.parametrize(
    ("mode", "size", "expected"), [("zeros", 16, 0.651852), ("circular", 16, 1), ("zeros", 224, None)]
)
def test_ring_0_of_a_convolution_of_ones_is_the_closed_form(mode, size, expected):
    """4 corners seen by 4 of 9 positions, the other border pixels by 6; a wider image has relatively fewer corners."""
    expected = expected or (16 + 24 * (size - 2)) / (9 * (4 * size - 4))
    network = Sums()
    pad(network, mode=mode)
    pixels = torch.rand(3, 3, size, size)
    _, gradient = loss_gradient().attack(
        lambda pixels, rows=None: network(pixels), pixels, torch.zeros(3, dtype=torch.int64), None
    )
    rows = Rings()(shown(gradient))
    interior = (gradient[0, 0, size // 2, size // 2] / gradient[0].abs().max()).abs()
    assert (rows[:, 0] / interior).tolist() == pytest.approx([expected] * 3, abs=1e-6)
    if size > 2 * RINGS:
        assert border(rows.numpy())["ring-0"].value == pytest.approx(expected, abs=1e-6)
        assert border(rows.numpy())["ring-5"].value == pytest.approx(1, abs=1e-6)
        assert border(rows.numpy())["asymmetry-x"].value == pytest.approx(0, abs=1e-6)


def test_an_even_perturbation_is_even_everywhere():
    found = border(Rings()(shown(noise())).numpy())
    for name in (*(f"ring-{n}" for n in range(RINGS)), "anomaly", "asymmetry-x", "asymmetry-y"):
        assert found[name].value == pytest.approx(1 if name.startswith("ring") else 0, abs=0.02), name
        assert found[name].low <= found[name].value <= found[name].high


def test_one_side_is_seen_as_a_side():
    one = torch.zeros(1, 3, 224, 224)
    one[:, :, :, -7:] = 1
    one[:, :, 100, 100] = 1
    found = border(Rings()(shown(one)).numpy())
    assert found["asymmetry-x"].value == 1 and found["asymmetry-y"].value == 0
    two = torch.zeros(1, 3, 224, 224)
    two[:, :, 3, 50] = 1  # in the upper strip, ring 3
    two[:, :, 100, 100] = 1
    found = border(Rings()(shown(two)).numpy())
    assert found["asymmetry-y"].value == -1
    centre = (224 - 2 * RINGS) ** 2
    assert found["ring-3"].value == pytest.approx(centre / (4 * (224 - 6) - 4), rel=1e-5)


def test_white_noise_has_power_in_proportion_to_the_number_of_frequencies():
    found = spectrum(Radii()(shown(noise())).numpy())
    where, _ = _radius(224, 224)
    for radius in (5, 20, 56, 100, 112):
        assert found[str(radius)].value == pytest.approx((where <= radius).mean(), rel=0.03), radius
    assert found["112"].value == pytest.approx(1, abs=1e-6)  # Parseval: the shares are of all the power


@pytest.mark.parametrize(("down", "across"), [(0, 9), (30, 40), (0, 111), (3, 4)])
def test_a_sinusoid_has_all_its_power_at_its_frequency(down, across):
    places = torch.arange(224) / 224
    wave = torch.cos(2 * torch.pi * (down * places[:, None] + across * places)).expand(2, 3, 224, 224)
    radius = round((down**2 + across**2) ** 0.5)
    for scale in (1, 1e-25):  # the square of a small gradient is no float32
        rows = Radii()(shown(wave * scale))
        assert rows[:, radius].tolist() == pytest.approx([1, 1], abs=1e-5)
        assert spectrum(rows.numpy())["median"].value == radius
    assert len(rows[0]) == HIGHEST + 1


def test_no_perturbation_is_left_out():
    nothing = torch.cat([torch.zeros(1, 3, 224, 224), noise(3)])
    rows = Rings()(shown(nothing)).numpy(), Radii()(shown(nothing)).numpy()
    assert border(rows[0])["ring-0"].value == pytest.approx(border(rows[0][1:])["ring-0"].value)
    assert spectrum(rows[1])["median"].value == pytest.approx(spectrum(rows[1][1:])["median"].value)
    assert border(rows[0][:1])["ring-0"].value is None


def test_a_masked_border_has_the_mean_colour():
    pixels = torch.rand(2, 3, 32, 32)
    covered = masked(pixels, 5)
    assert torch.equal(covered[:, :, 5:-5, 5:-5], pixels[:, :, 5:-5, 5:-5])
    assert torch.allclose(covered[:, :, :5].mean((2, 3)), pixels.mean((2, 3)), atol=1e-6)
    assert torch.equal(covered[:, :, -5:, 3], covered[:, :, :5, 3])


def test_switching_the_padding_and_back_is_bit_identical(drawn):
    """The run undoes it; in between every mode but the network's own gives other answers, and on a constant image
    reflect, replicate and circular the same."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 5, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 1000),
    )  # fmt: skip
    pixels = torch.rand(2, 3, 224, 224)
    before = network(pixels)
    found = measured(BENCHMARK, network, Data(root=drawn, limit=6))
    assert torch.equal(network(pixels), before) and {one.padding_mode for one in network[::2][:2]} == {"zeros"}
    rows = {key[1]: found[(*key, Rings)].values for key in found if key[1] != "clean"}
    assert np.array_equal(rows["gradient padding zeros"], rows["gradient"])
    assert not np.array_equal(rows["gradient padding reflect"], rows["gradient"])
    assert eval_perturbation.details(found)["switched_convolutions"] == 2
    flat, answers = torch.full((1, 3, 224, 224), 0.3), []
    for mode in ("reflect", "replicate", "circular", "zeros"):
        pad(network, mode=mode)
        answers.append(network(flat))
    assert torch.allclose(answers[0], answers[1], atol=1e-5) and torch.allclose(answers[0], answers[2], atol=1e-5)
    assert not torch.allclose(answers[0], answers[3], atol=1e-5)


class Own(nn.Conv2d):
    def forward(self, pixels):
        return nn.functional.conv2d(pixels, self.weight, self.bias, self.stride, self.padding)


def test_convolutions_that_pad_by_other_means_are_not_switched():
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, padding="same"), Own(3, 3, 3, padding=1))
    switchable, others = padding_convolutions(network)
    assert switchable == [network[1]] and others == 1


@pytest.mark.parametrize(("mode", "size", "fits"), [("reflect", 3, False), ("reflect", 4, True), ("circular", 3, True)])
def test_a_feature_map_too_small_for_a_padding_is_one_clear_line(mode, size, fits):
    network = nn.Sequential(nn.Conv2d(3, 1, 7, padding=3))
    pad(network, mode=mode)
    if fits:
        assert network(torch.ones(1, 3, size, size)).shape == (1, 1, size, size)
        return
    with pytest.raises(UserError, match=r"3 x 3 by 3, too much for reflect .*--padding zeros replicate circular"):
        network(torch.ones(1, 3, size, size))


def test_a_change_and_an_attack_go_together_and_others_do_not():
    both = loss_gradient_padded("reflect")
    assert both.kind == "change" and both.identity()["function"] == "pad _slope"
    with pytest.raises(ValueError, match="one of them"):
        Condition("x", stimulus=identified("x")(lambda pixels, batch: pixels), change=pad)


# PGD in the l2 ball ---------------------------------------------------------------------------------------------------


def test_l2_pgd_goes_the_whole_length_against_a_linear_network_and_stays_within_bounds():
    torch.manual_seed(0)
    direction = torch.randn(3, 20, 20)

    def network(pixels, rows=None):
        score = (pixels * direction).sum((1, 2, 3))
        return torch.stack([score, -score], 1)

    pixels, labels = torch.rand(5, 3, 20, 20) * 0.5 + 0.25, torch.zeros(5, dtype=torch.int64)
    attack = pgd_l2("x", 0.5, 10)
    changed = attack.attack(network, pixels, labels, None, **attack.settings)
    change = (changed - pixels).flatten(1)
    assert change.norm(dim=1).tolist() == pytest.approx([0.5] * 5, rel=1e-4)
    cosine = nn.functional.cosine_similarity(change, -direction.flatten()[None])
    assert (cosine > 0.9999).all()  # the best there is: along the weights
    far = pgd_l2("x", 30, 10)
    changed = far.attack(network, pixels, labels, None, **far.settings)
    assert changed.min() >= 0 and changed.max() <= 1 and ((changed - pixels).flatten(1).norm(dim=1) <= 30).all()


@pytest.mark.slow
@needs_shared
def test_l2_pgd_has_names_of_its_own_and_more_is_stronger():
    options = {"attack": ("pgd-l2",), "eps_l2": (0.1, 2.0), "steps": 5}
    data = Data(folders={"imagenet": SHARED / "imagenet_samples"}, limit=8)
    found = measured(eval_imagenet_adv.BENCHMARK, MOBILENET, data, options=options)
    got = {name: one.value for name, one in eval_imagenet_adv.BENCHMARK.report(found)}
    assert set(got) >= {"top1_acc/PGD-l2-5/eps-0.1", "top1_acc/PGD-l2-5/eps-2"}
    assert got["top1_acc/PGD-l2-5/eps-2"] < got["top1_acc/imagenet"]
    assert got["top1_acc/PGD-l2-5/eps-2"] <= got["top1_acc/PGD-l2-5/eps-0.1"]
    changes = [found["imagenet", f"PGD-l2-5/eps-{eps}"].condition.settings["eps"] for eps in ("0.1", "2")]
    assert changes == [0.1, 2.0]


# Known networks -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_calibration_networks_as_expected_before_measuring(drawn):
    """The texture network reads patterns of 40 to 79 cycles/image and the silhouette network coarse outlines (below 20
    in critical-band masking): each must be attacked where it looks. Both pad strided convolutions on one side more
    than on the other, so that their gradients lean to the left and the top; circular padding has no border at all."""
    data, median = Data(root=drawn, limit=32), {}
    for name in ("silhouette", "texture"):
        options = {"source": ("gradient", "pgd-l2"), "padding": ("zeros", "circular")}
        found = measured(BENCHMARK, f"calibration_{name}", data, options=options)
        got = {key: one.value for key, one in BENCHMARK.report(found)}
        for source in ("gradient", "pgd-l2"):
            median[name, source] = got[f"metric/perturbation-spectrum/{source}/median"]
        assert got["metric/border/gradient/asymmetry-x"] < -0.1 and got["metric/border/gradient/asymmetry-y"] < -0.1
        assert abs(got["metric/border/gradient-padding-circular/asymmetry-x"]) < 0.06
        assert got["top1_acc/padding/zeros"] == 100
    assert all(40 < median["texture", source] < 79 for source in ("gradient", "pgd-l2"))
    assert all(median["silhouette", source] < 20 for source in ("gradient", "pgd-l2"))


@needs_shared
def test_the_script_as_a_user_runs_it_refuses_to_switch_what_does_not_pad(tmp_path):
    words = ["--model", MOBILENET, "--imagenet", SHARED / "imagenet_samples", "--limit", "4", "--results", tmp_path]
    status, out, err = run("eval_perturbation.py", *words, "--wandb", "disabled", "--mask", "8,20")
    assert status == 0, err
    assert "cannot be switched" in err and "padding/reflect" not in out
    record = json.loads((tmp_path / "mobilenet.load" / "perturbation.json").read_text())
    assert record["details"]["switched_convolutions"] == 0
    assert record["details"]["images"]["right"] <= record["details"]["images"]["shown"] == 4
    assert {"top1_acc/border-masked/8", "top1_acc/border-masked/20"} <= set(record["metrics"])
    assert len(record["details"]["profiles"]["gradient"]) == RINGS + 3 + HIGHEST + 2
    assert run("eval_perturbation.py", *words, "--mask", "0")[0] == 2


@pytest.mark.slow
def test_a_resnet50_with_random_weights(drawn):
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet50().eval()
    found = measured(BENCHMARK, network, Data(root=drawn, limit=2), options={"padding": ("circular",)})
    assert eval_perturbation.details(found)["switched_convolutions"] == 17
    assert not padding_convolutions(from_module(network, "r"))[1]

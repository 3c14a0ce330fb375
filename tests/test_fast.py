"""Folding and compiling change the speed, not the answers."""

import contextlib
import copy

import numpy as np
import pytest
import timm
import torch

from common import responses
from imagenet_biases import Data, Pass, fast
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks.load import load_model


@pytest.fixture(scope="module")
def network():
    """A small network whose batch norms do something."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t").eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
    return network


def test_folding_removes_batch_norms_and_keeps_the_answers(network):
    pixels = torch.rand(2, 3, 224, 224)
    faster = fast.folded(network, pixels)
    assert faster is not network
    assert not [m for m in faster.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # the original is left alone
    torch.testing.assert_close(faster(pixels), network(pixels), rtol=1e-3, atol=1e-4)


def test_the_calibration_networks_fold():
    network = load_model("calibration_texture")
    assert fast.folded(network, torch.rand(2, 3, 224, 224)) is not network


class Branching(torch.nn.Module):
    """Cannot be traced: what it does depends on the pixels."""

    def forward(self, pixels):
        return pixels.mean((2, 3)) if pixels.mean() > 0.5 else pixels.amax((2, 3))


class Choosy(torch.nn.Module):
    """Traces to something else: while it is traced, its input is no tensor."""

    def forward(self, pixels):
        return pixels.mean((2, 3)) if isinstance(pixels, torch.Tensor) else pixels.mean((2, 3)) * 2


@pytest.mark.parametrize("module", [Branching(), Choosy()])
def test_what_cannot_be_folded_faithfully_is_left_alone(module):
    example = torch.rand(2, 3, 8, 8)
    assert fast.folded(module, example) is module


def test_what_cannot_be_compiled_runs_all_the_same(network, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.warns(UserWarning, match="not compiled"),
    ):
        program = fast.compiled(copy.deepcopy(network), torch.rand(2, 3, 64, 64), contextlib.nullcontext)
    assert program(torch.rand(2, 3, 64, 64)).shape == (2, 1000)


def test_compiled_answers_are_the_same_also_in_a_ragged_batch(drawn):
    images = image_set("imagenet", Data(drawn))
    answers = {}
    for compile_ in ("off", "on"):
        found = responses([Pass(images)], "calibration_silhouette", batch_size=40, compile=compile_)
        answers[compile_] = found["imagenet", "clean"].values
    assert np.array_equal(answers["on"], answers["off"])

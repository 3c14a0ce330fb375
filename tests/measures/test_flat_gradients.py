"""Attacks need gradients: how many are zero or not finite stands in the record, and from 5 % on is said."""

import numpy as np
import pytest
import torch
from torch import nn

from imagenet_biases import Data, Settings, evaluate


class Answers(nn.Module):
    """A linear network on 7 x 7 means; `kind` is what keeps its gradients from attacks."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(147, 1000, generator=torch.Generator().manual_seed(0)))

    def forward(self, pixels):
        if self.kind == "rounded":
            pixels = (pixels * 255).round() / 255
        if self.kind == "detached":
            pixels = pixels.detach() + 0 * pixels
        logits = nn.functional.avg_pool2d(pixels, 32).flatten(1) @ self.weight
        if self.kind == "saturated":
            logits = 1e6 * logits  # softmax is exactly one-hot: only wrong answers have a gradient
        if self.kind == "not finite":  # the root's slope at 0 is infinite, times 0
            logits = logits + 0 * (pixels - pixels).abs().sqrt().sum((1, 2, 3))[:, None]
        return logits


@pytest.mark.parametrize("kind, least", [("rounded", 1.0), ("detached", 1.0), ("not finite", 1.0), ("plain", 0.0)])
@pytest.mark.parametrize("attack", ["fgsm", "pgd", "tuned"])
def test_the_share_is_in_the_record_and_said(kind, least, attack, drawn, tmp_path):
    options = {"imagenet_adv": {"attack": attack, "steps": 3}}
    settings = Settings(device="cpu", batch_size=10)
    for _ in range(2):  # the second time from what is stored
        (record,) = evaluate(Answers(kind), "imagenet_adv", Data(drawn), settings, options=options, results=tmp_path)
        shares = record["provenance"]["flat_gradients"].values()
        assert len(shares) == 2 and all(share == least for share in shares)
        said = [note for note in record["warnings"] if "zero or not finite" in note]
        assert len(said) == (2 if least else 0)
        next(tmp_path.glob("*/imagenet_adv.json")).unlink()


def test_a_saturated_network_has_no_gradient_where_it_is_right(drawn):
    """Its answers to images of other classes have one: the share is the accuracy."""

    class Right(Answers):
        def forward(self, pixels):
            return super().forward(pixels) + 1e9 * torch.nn.functional.one_hot(
                torch.full((len(pixels),), 404), 1000
            )  # fmt: skip

    options = {"imagenet_adv": {"attack": "fgsm"}}
    settings = Settings(device="cpu", batch_size=10)
    (record,) = evaluate(Right("saturated"), "imagenet_adv", Data(drawn), settings, options=options)
    share = record["provenance"]["flat_gradients"]["FGSM/low"]
    assert share >= record["metrics"]["top1_acc/imagenet"] / 100


def test_profiles_of_no_gradient_are_empty_not_0_by_0(drawn):
    (record,) = evaluate(Answers("rounded"), "perturbation", Data(drawn), Settings(device="cpu", batch_size=10))
    values = [record["metrics"][name] for name in record["metrics"] if "/gradient/" in name]
    assert values and all(value is None for value in values)
    assert not any(isinstance(value, float) and np.isnan(value) for value in record["metrics"].values())

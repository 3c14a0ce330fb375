"""Front ends: closed forms, gradients, the same numbers twice, rows that cannot be mistaken for the plain network."""

import math

import numpy as np
import pytest
import torch

from common import run
from imagenet_biases import Data, Settings, evaluate
from imagenet_biases.base.errors import UserError
from imagenet_biases.networks.frontends import diffusion_noise, front_end
from imagenet_biases.networks.load import load_model
from imagenet_biases.results.merge import source_name
from imagenet_biases.stimuli.seeded import streams, uniform
from imagenet_biases.vocabulary import Batch

SETTINGS = Settings(device="cpu", batch_size=16, compile="off")


def batch(count, seed=0, draw=0):
    return Batch(torch.arange(count) * 7919, seed, draw)


@pytest.mark.parametrize(
    "text", ["low-pass:0.3", "high-pass:0.5", "grey", "diffusion-noise", "diffusion-noise:variance-preserving"]
)
def test_strength_zero_is_no_front_end_to_the_bit(text, drawn):
    pixels = torch.rand(3, 3, 224, 224)
    assert front_end(f"{text}@0")(pixels, batch(3)) is pixels
    whole, half = (front_end(text + end)(pixels, batch(3)) for end in ("", "@0.5"))
    assert torch.allclose(half, (pixels + whole) / 2, atol=1e-6) and not torch.equal(whole, pixels)
    assert torch.equal(whole, front_end(text)(pixels, batch(3)))
    one = front_end(text)(pixels[1:2], Batch(batch(3).keys[1:2], 0))
    assert torch.allclose(one, whole[1:2], atol=1e-6)  # whatever else is in the batch


def test_strength_zero_gives_the_plain_network_s_answers(drawn):
    plain, behind = (load_model("calibration_texture", frontend=text) for text in (None, "low-pass:0.3@0"))
    pixels = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(plain(pixels), behind(pixels))
    assert plain.identity["network"] != behind.identity["network"] and behind.identity["frontend"] == "low-pass:0.3@0"


@pytest.mark.parametrize("text", ["low-pass:0.5", "high-pass:0.5", "grey", "diffusion-noise"])
def test_gradients_pass_it(text):
    """Against finite differences, in float64, where no pixel is at the edge of clipping."""
    frontend = front_end(text)
    pixels = (0.5 + 0.01 * torch.randn(2, 3, 8, 8, dtype=torch.float64)).requires_grad_()
    if text == "high-pass:0.5":  # which is clipped at 0 all over: only where it is not, there is a slope
        pixels = (0.5 + 0.3 * torch.randn(2, 3, 8, 8, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: frontend(x, batch(2)), pixels, eps=1e-7, atol=1e-5)


def test_grey_is_luminance():
    pixels = torch.rand(2, 3, 4, 4)
    expected = 0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]
    assert torch.allclose(front_end("grey")(pixels, None), expected[:, None].expand(-1, 3, -1, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "mean", "square"), [("published", 0.42111, 0.19393), ("variance-preserving", 2 / 3, 0.5)]
)
def test_the_noise_has_its_closed_forms(schedule, mean, square):
    """200,000 draws: E[a] = 2/3; E[s] and E[s^2] of either schedule; s at most 0.5548 as published."""
    many = batch(200_000)
    scale = uniform(streams(many, "diffusion noise 0 scale"), (1, 1, 1)).sqrt()
    flat = diffusion_noise(torch.ones(200_000, 3, 1, 1), many, schedule=schedule)
    noise = flat - scale  # s z
    assert scale.mean().item() == pytest.approx(2 / 3, abs=1e-3)
    assert noise.square().mean().item() == pytest.approx(square, abs=5e-3)  # four standard errors
    # |z| has the mean sqrt(2 / pi), whatever s
    assert noise.abs().mean().item() == pytest.approx(mean * math.sqrt(2 / math.pi), abs=4e-3)  # likewise
    assert abs(noise.mean().item()) < 3e-3
    from imagenet_biases.networks.frontends import SCHEDULES

    s = SCHEDULES[schedule](scale)
    assert s.mean().item() == pytest.approx(mean, abs=1e-3)
    if schedule == "published":
        assert s.max().item() == pytest.approx(math.sqrt(1 - math.exp(-1 / math.e)), abs=1e-4)
        at = torch.tensor(0.1)
        assert SCHEDULES["published"](at).item() == pytest.approx(0.4535, abs=1e-4)
        assert SCHEDULES["variance-preserving"](at).item() == pytest.approx(0.9950, abs=1e-4)
        assert SCHEDULES["published"](torch.tensor(1.0)).item() == 0


def test_another_draw_seed_or_image_is_other_noise():
    pixels, frontend = torch.rand(2, 3, 32, 32), front_end("diffusion-noise")
    shown = [frontend(pixels, one) for one in (batch(2), batch(2, draw=1), batch(2, seed=1))]
    assert not torch.equal(shown[0], shown[1]) and not torch.equal(shown[0], shown[2])
    same = pixels[:1].expand(2, -1, -1, -1)
    assert not torch.equal(*frontend(same, batch(2)))


def test_every_benchmark_takes_it_and_its_record_is_a_row_of_its_own(drawn, tmp_path):
    """The silhouette network lives on low frequencies, the texture network dies without the high ones."""
    words = ("--model", "calibration", "--data", drawn, "--results", tmp_path, "--wandb", "disabled")
    for more in ((), ("--frontend", "low-pass:0.2"), ("--frontend", "high-pass:0.9")):
        assert run("eval_imagenet.py", *words, *more)[0] == 0
    for network, low, high in (("silhouette", 100, 30), ("texture", 30, 80)):
        import json

        records = [
            json.loads(path.read_text()) for path in (tmp_path / f"calibration_{network}").glob("imagenet*.json")
        ]
        by = {r["provenance"].get("frontend", ""): r["metrics"]["top1_acc/imagenet"] for r in records}
        assert by[""] == 100 and len({r["provenance"]["network"] for r in records}) == 3
        for text, bound in (("low-pass:0.2", low), ("high-pass:0.9", high)):
            assert (by[text] >= bound) if bound > 50 else (by[text] <= bound), (network, text)
        plain = json.loads((tmp_path / f"calibration_{network}" / "imagenet.json").read_text())
        assert "frontend" not in plain["provenance"]  # whatever came later
    assert source_name(frontend="low-pass:0.2") == "measured (low-pass:0.2)"


@pytest.mark.slow
def test_a_random_front_end_is_measured_reproducibly_and_attacked_in_expectation(drawn):
    data = Data(drawn, limit=24)
    options = {"imagenet_adv": {"attack": ["fgsm", "pgd"], "steps": 2, "eps": "8/255", "step_size": "4/255"}}
    found = []
    for size in (24, 7):
        settings = Settings(device="cpu", batch_size=size, compile="off")
        (record,) = evaluate(
            "calibration_texture", "imagenet_adv", data, settings, options=options, frontend="diffusion-noise@0.3"
        )
        found.append({name: estimate.value for name, estimate in record.metrics.items()})
    assert found[0] == found[1]
    assert found[0]["top1_acc/FGSM/eps-8"] < found[0]["top1_acc/imagenet"] - 20  # the gradient passes the noise
    (other,) = evaluate(
        "calibration_texture", "imagenet", data, Settings(device="cpu", seed=5), frontend="diffusion-noise"
    )
    assert other["provenance"]["seed"] == 5


def test_a_function_of_ones_own(drawn, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def dark(pixels):\n    return pixels * 0\ndef wrong(pixels):\n    return pixels[:, :1]\n"
        "def keyed(pixels, batch):\n    return pixels + 0 * batch.keys[:, None, None, None]\nkeyed.wants_batch = True\n"
    )
    data = Data(drawn, limit=16)
    (record,) = evaluate("calibration_texture", "imagenet", data, SETTINGS, frontend=f"{tmp_path / 'mine.py'}:dark")
    assert record.metrics["top1_acc/imagenet"].value < 20 and record["provenance"]["frontend"] == "mine.py:dark"
    (record,) = evaluate("calibration_texture", "imagenet", data, SETTINGS, frontend=f"{tmp_path / 'mine.py'}:keyed")
    assert record.metrics["top1_acc/imagenet"].value == 100
    with pytest.raises(UserError, match="shape"):
        evaluate("calibration_texture", "imagenet", data, SETTINGS, frontend=f"{tmp_path / 'mine.py'}:wrong")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("low-pass", "low-pass:0.3"),
        ("low-pass:2", "low-pass:0.3"),
        ("lowpass:0.3", "did you mean low-pass"),
        ("grey@2", "from 0 to 1"),
        ("grey:3", "takes no value"),
        ("diffusion-noise:x", "schedules"),
        ("gone.py:f", "does not exist"),
    ],
)
def test_what_is_none_is_one_line(text, message):
    with pytest.raises(UserError, match=message):
        front_end(text)


def test_a_zoo_entry_may_have_a_front_end(monkeypatch, tmp_path):
    from imagenet_biases.networks import registry

    entry = registry.registry()["resnet50_diffusionnoise_fixed"]
    assert entry.frontend == "diffusion-noise:published" and not entry.in_study
    plain = registry.registry()["calibration_texture"]
    from dataclasses import replace

    known = {
        **registry.registry(),
        "noisy": replace(plain, name="noisy", frontend="diffusion-noise", expected_top1=50.0),
    }
    monkeypatch.setattr(registry, "registry", lambda: known)
    network = load_model("noisy")
    assert network.wants_batch and network.expected_top1 == 50 and "frontend" not in network.identity
    pixels = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        assert np.array_equal(network(pixels, batch=batch(2)), network(pixels, batch=batch(2)))

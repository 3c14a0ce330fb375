"""Observers whose answer is known by construction, shown to the real benchmarks by the real runner.

They recognise images that they know by heart, and nothing but the stimulus under test can make them fail. Tolerances:
cut-offs exactly; the fine channel's centre within 0.15 octaves and its bandwidth within 0.3; the step-wise one's, whose
thresholds are rounded up to whole octaves, within 0.5 and 2.
"""

import json

import numpy as np
import pyrtools
import pytest
import torch
from PIL import Image
from torch import nn

import eval_criticalband
import eval_imagenet_adv
import eval_spectral
from common import SHARED, measured, needs_shared
from imagenet_biases import Data
from imagenet_biases.images.preprocessing import STUDY
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks.load import load_model
from imagenet_biases.study import wordnet_ids

WRONG = 999


class Observer(nn.Module):
    """A network with an answer of its own to every class."""

    def answer(self, classes):
        return nn.functional.one_hot(classes, 1000).float()


def save(pictures, folder):
    """Save grey pictures [N, 256, 256] in [0, 1], each as a class of its own; the standard view shows their middle."""
    for number, picture in enumerate(pictures):
        target = folder / "images" / wordnet_ids()[number] / "picture.png"
        target.parent.mkdir(parents=True)
        Image.fromarray(np.round(255 * picture).astype(np.uint8)).save(target)
    return folder / "images"


def metrics(benchmark, found):
    return {name: getattr(one, "value", one) for name, one in benchmark.report(found)}


def partial(folder, limit=None):
    return Data(folders={"imagenet": folder}, allow_partial=True, limit=limit)


# Spectral -------------------------------------------------------------------------------------------------------------


class Gratings(Observer):
    """Reads two gratings of one spatial frequency, down and across, and nothing else: their signs are the class."""

    def __init__(self, frequency):
        super().__init__()
        self.frequency = frequency

    def forward(self, pixels):
        spectrum = torch.fft.rfft2(pixels[:, 0], norm="forward").real
        down, across = spectrum[:, self.frequency, 0], spectrum[:, 0, self.frequency]
        classes = 2 * (down > 0) + (across > 0)
        visible = torch.minimum(down.abs(), across.abs()) > 0.02
        return self.answer(torch.where(visible, classes, WRONG))


@pytest.mark.parametrize("frequency", [5, 25, 50, 95])
def test_a_network_of_one_frequency_fails_at_the_right_cutoff(frequency, tmp_path):
    """The low-pass must hold the frequency, the high-pass must not remove it; half-widths from the protocol."""
    wave = 0.2 * np.cos(2 * np.pi * frequency * (np.arange(256) - 16) / 224)
    pictures = [0.5 + down * wave[:, None] + across * wave for down in (-1, 1) for across in (-1, 1)]
    folder = save(pictures, tmp_path)
    got = metrics(eval_spectral.BENCHMARK, measured(eval_spectral.BENCHMARK, Gratings(frequency), partial(folder)))
    low = dict(zip(eval_spectral.CUTOFFS, (1, 11, 22, 33, 44, 56, 67, 78, 89, 100, 110), strict=True))
    high = dict(zip(eval_spectral.CUTOFFS, (110, 100, 89, 78, 67, 56, 44, 33, 22, 11, 1), strict=True))
    for cutoff in eval_spectral.CUTOFFS:
        assert got[f"metric/bandpass/LFC/{cutoff}"] == (low[cutoff] > frequency), cutoff
        assert got[f"metric/bandpass/HFC/{cutoff}"] == (high[cutoff] <= frequency), cutoff
    lpp, hpp = got["metric/bandpass/LPP"], got["metric/bandpass/HPP"]
    assert lpp == np.mean([low[c] > frequency for c in (0.1, 0.2, 0.3, 0.4, 0.5)])
    assert hpp == np.mean([high[c] <= frequency for c in (0.1, 0.2, 0.3, 0.4, 0.5)])
    assert got["metric/bandpass/spectral-bias"] == pytest.approx(hpp / (lpp + hpp))


def filtered_as_defined(picture, condition):
    """The definition on one picture in float64."""
    kind, cutoff = condition.settings["kind"], condition.settings["cutoff"]
    r = int((cutoff if kind == "low-pass" else 1 - cutoff) * 112)
    inside = np.zeros((224, 224, 1), bool)
    inside[112 - r : 112 + r, 112 - r : 112 + r] = True
    spectrum = np.fft.fftshift(np.fft.fft2(picture / 255, axes=(0, 1)), axes=(0, 1))
    spectrum = np.where(inside == (kind == "low-pass"), spectrum, 0)
    return np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(0, 1)), axes=(0, 1)).real.clip(0, 1)


@pytest.mark.slow
@needs_shared
def test_spectral_counts_are_those_of_a_loop_over_images():
    """A real network on real photographs: the same answer to every image under every filter."""
    network = load_model(f"{SHARED / 'nets' / 'mobilenet.py'}:load")
    responses = measured(eval_spectral.BENCHMARK, network, partial(SHARED / "imagenet_samples", 4))
    assert len(responses) == 23
    for (_, name), one in responses.items():
        for file, answers in zip(one.images.files, one.values, strict=True):
            picture = STUDY(Image.open(one.images.listing.root / file))
            shown = picture / 255 if name == "clean" else filtered_as_defined(picture, one.condition)
            with torch.no_grad():
                logits = network(torch.from_numpy(shown).permute(2, 0, 1)[None].float())[0]
            assert logits.topk(1).indices.item() == answers[0], (name, file)


# Critical band --------------------------------------------------------------------------------------------------------


def subspaces():
    """Return for each band f an orthonormal basis, [224, n], of the images that its level of the pyramid can hold.

    A level of n x n points expanded to full size, by pyrtools: a band's noise lies in its own subspace and in those of
    all finer bands, hardly in the coarser ones.
    """
    sizes, bases = (4, 7, 14, 28, 56, 112, 224), []
    kernel = np.array([[1, 4, 6, 4, 1]]).T / 16 * np.sqrt(2)
    for level, size in enumerate(sizes):
        expansion = np.eye(size)
        for larger in sizes[level + 1 :]:
            expansion = pyrtools.upConv(expansion, kernel, "reflect1", step=(2, 1), stop=(larger, size))
        bases.append(torch.from_numpy(np.linalg.qr(expansion)[0]).float())
    return bases


class Listener(Observer):
    """Knows every image, and recognises it unless the noise in one of its seven bands is above the band's limit.

    `limits`: rms of the noise that half of the images stand, by band; the images' limits spread over two octaves, so
    that accuracy falls in proportion to the log of the noise.
    """

    def __init__(self, images, limits):
        super().__init__()
        self.known = images - 0.449  # [N, 224, 224]
        self.limits, self.bases = torch.as_tensor(limits, dtype=torch.float32), subspaces()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.spread = 2.0 ** (2 * (order + 0.5) / len(images) - 1)

    def forward(self, pixels):
        shown = pixels[:, 0] - 0.449
        which = (shown.flatten(1) @ self.known.flatten(1).T).argmax(1)
        noise = shown - self.known[which]
        strength = noise.square().sum((1, 2)).sqrt()
        held = torch.stack([(basis.T @ noise @ basis).square().sum((1, 2)).sqrt() for basis in self.bases], 1)
        band = (held > 0.95 * strength[:, None]).int().argmax(1)  # the coarsest that holds the noise
        fails = strength / 224 > self.limits[band] * self.spread[which]
        return self.answer(torch.where(fails, WRONG, which))


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    """A folder of 24 pictures of white noise, and what the benchmark makes of them without noise, [24, 224, 224]."""
    pictures = np.random.default_rng(0).uniform(0, 1, (24, 256, 256))
    folder = save(pictures, tmp_path_factory.mktemp("textures"))
    shown = np.round(255 * pictures)[:, 16:240, 16:240] / 255
    return folder, torch.from_numpy((shown - shown.mean((1, 2), keepdims=True)) * 0.2 + 0.449).float()


@pytest.fixture(scope="module")
def finest():
    """The root-mean-square of the finest band of white noise of sd 1, by pyrtools."""
    pyramid = pyrtools.pyramids.LaplacianPyramid(np.random.default_rng(1).standard_normal((224, 224)))
    return np.sqrt(np.mean(pyramid.recon_pyr(levels=[0]) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize(("mu", "sigma", "amplitude"), [(4.6, 1.7, 3.2), (2.0, 1.0, 3.0), (3.4, 2.5, 2.6)])
def test_a_known_channel_is_recovered(textures, finest, mu, sigma, amplitude):
    folder, images = textures
    octaves = amplitude * np.exp(-((np.arange(7) - mu) ** 2) / (2 * sigma**2))  # below sd 0.16: the true thresholds
    network = Listener(images, 0.16 * 2**-octaves * finest)
    responses = measured(eval_criticalband.BENCHMARK, network, partial(folder))
    got = metrics(eval_criticalband.BENCHMARK, responses)
    assert got["top1_acc/criticalband/sd0"] == 100
    for suffix, centre, width in (("_fine", 0.15, 0.3), ("_norm_fine", 0.15, 0.3), ("", 0.5, 2), ("_norm", 0.5, 2)):
        assert abs(np.log2(got[f"metric/criticalband/cf{suffix}"] / 1.75) - mu) < centre, suffix
        assert abs(got[f"metric/criticalband/bw{suffix}"] - 2 * np.sqrt(np.log(4)) * sigma) < width, suffix
    assert got["metric/criticalband/pns_fine"] == pytest.approx(2 ** (amplitude - 4), rel=0.1)
    details = eval_criticalband.details(responses)
    assert details["channel_fine"]["thresholds"] == pytest.approx(octaves, abs=0.25)
    near = np.abs(octaves - np.round(octaves)) < 0.05  # between two levels, 32 images may decide either way
    assert (np.array(details["channel"]["thresholds"]) == np.ceil(octaves))[~near].all()


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.005, 10.0])
def test_a_network_that_minds_all_noise_or_none_has_no_channel(textures, level):
    """Published as a bandwidth of 11,295 octaves."""
    folder, images = textures
    responses = measured(eval_criticalband.BENCHMARK, Listener(images, [level] * 7), partial(folder))
    got = metrics(eval_criticalband.BENCHMARK, responses)
    assert all(value is None for name, value in got.items() if name.startswith("metric/"))
    assert "flat" in eval_criticalband.details(responses)["channel_norm"]["problem"]


@pytest.mark.slow
def test_refitting_needs_no_forward_pass(textures, tmp_path):
    folder, images = textures
    network = Listener(images, [0.05, 0.05, 0.02, 0.02, 0.05, 0.1, 0.1])
    first = metrics(
        eval_criticalband.BENCHMARK, measured(eval_criticalband.BENCHMARK, network, partial(folder), tmp_path)
    )
    shown = []
    network.register_forward_hook(lambda _, inputs, __: shown.append(len(inputs[0])))
    assert (
        metrics(eval_criticalband.BENCHMARK, measured(eval_criticalband.BENCHMARK, network, partial(folder), tmp_path))
        == first
    )
    assert sum(shown) <= 24  # the check at load


# Attack ---------------------------------------------------------------------------------------------------------------


class Average(Observer):
    """Linear: tells bright pictures (class 1) from dark ones (class 0) by the mean over all pixels."""

    def forward(self, pixels):
        score = pixels.flatten(1).mean(1) - 0.5
        return torch.stack([-score, score], 1) @ torch.eye(2, 1000, device=pixels.device)


def test_robust_accuracy_of_a_linear_network(tmp_path):
    """A picture that is d brighter or darker than the middle resists every eps below d, and none above."""
    distances = np.array([0.2, 1.2, 3.2, 5.2, 7.2]) / 255  # from 0.5
    values = np.concatenate([0.5 - distances, 0.5 + distances])
    pictures = np.broadcast_to(values[:, None, None], (10, 256, 256))
    random = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 256, 256)) / 255  # dithered: 8-bit means of any value
    folder = tmp_path / "images"
    for number, picture in enumerate(pictures + random):
        target = folder / wordnet_ids()[number // 5] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(255 * picture).astype(np.uint8)).save(target)
    steps = {"attack": ("pgd", "fgsm", "tuned"), "eps": None, "steps": 40, "step_size": 2 / 255}
    got = metrics(
        eval_imagenet_adv.BENCHMARK, measured(eval_imagenet_adv.BENCHMARK, Average(), partial(folder), None, steps)
    )
    assert got["top1_acc/imagenet"] == 100
    for attack in ("PGD-40", "FGSM", "PGD-tuned"):
        assert got[f"top1_acc/{attack}/low"] == 80
        assert got[f"top1_acc/{attack}/high"] == 40


@needs_shared
def test_robust_accuracy_of_a_real_network_never_exceeds_the_clean_one():
    network = load_model(f"{SHARED / 'nets' / 'mobilenet.py'}:load")
    options = {"attack": ("pgd", "fgsm", "tuned"), "eps": 0.5 / 255, "steps": 3, "step_size": 0.2 / 255}
    data = partial(SHARED / "imagenet_samples", 6)
    responses = measured(eval_imagenet_adv.BENCHMARK, network, data, None, options, batch_size=2)
    got = metrics(eval_imagenet_adv.BENCHMARK, responses)
    clean = responses["imagenet", "clean"].values[:, 0] == image_set("imagenet", data).labels
    for name in ("PGD-3/low-step-0.2", "PGD-tuned/low-steps-3", "FGSM/low"):
        attacked = responses["imagenet", name].values[:, 0] == image_set("imagenet", data).labels
        assert got[f"top1_acc/{name}"] == pytest.approx(100 * attacked.mean())
        assert (attacked <= clean).all(), name


# As a user runs them --------------------------------------------------------------------------------------------------

MODULE = """
import torch

def build():
    torch.manual_seed(0)
    pool = torch.nn.AdaptiveAvgPool2d(8)
    return torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Linear(192, 1000))
"""


@pytest.mark.parametrize(
    ("module", "conditions", "metric", "words"),
    [
        (eval_spectral, 23, "metric/bandpass/spectral-bias", []),
        (eval_criticalband, 29, "metric/criticalband/bw_norm_fine", []),
        (eval_imagenet_adv, 7, "top1_acc/PGD-tuned/high", "--attack pgd fgsm tuned"),
        (
            eval_imagenet_adv,
            2,
            "top1_acc/PGD-2/eps-1-step-0.5",
            "--attack pgd --eps 1/255 --steps 2 --step-size 0.5/255",
        ),
    ],
)
def test_scripts_take_a_users_module(module, conditions, metric, words, textures, tmp_path, capsys):
    (tmp_path / "net.py").write_text(MODULE)
    words = words.split() if words else []
    common = ["--imagenet", str(textures[0]), "--limit", "3", "--results", str(tmp_path / "results")]
    common += ["--model", f"{tmp_path / 'net.py'}:build", "--wandb", "disabled", "--compile", "off"]
    assert module.main([*common, *words]) == 0
    (folder,) = (path for path in (tmp_path / "results").iterdir() if not path.name.startswith("."))
    record = json.loads((folder / f"{module.BENCHMARK.name}.json").read_text())
    assert metric in record["metrics"]
    assert record["images"] == 3
    assert record["subset"]["of"] == 50_000 and record["share"] == {"images": 3, "of": 24, "order": 1}
    stored = [json.loads(str(np.load(file)["index"])) for file in folder.glob("responses/imagenet.*.npz")]
    assert sum(map(len, stored)) == conditions
    shown = capsys.readouterr().out
    assert "a subset, 24 of 50000" in shown and "a sample, 12.5 %, 3 of 24" in shown
    if "--eps" in words:  # settings of one's own never go by the published name
        assert not any(name.startswith("top1_acc/PGD-40") for name in record["metrics"])

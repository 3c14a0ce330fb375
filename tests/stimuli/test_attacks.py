"""Attacks against closed forms, against foolbox, and on networks whose weakness is known."""

import argparse
import warnings

import foolbox
import pytest
import torch
from torch import nn

import eval_imagenet_adv
from imagenet_biases.base.errors import UserError
from imagenet_biases.cli import add_options
from imagenet_biases.stimuli import attacks
from imagenet_biases.stimuli.seeded import streams, uniform
from imagenet_biases.vocabulary import Batch

EPS = 4 / 255


def batch(count, seed=0):
    return Batch(torch.arange(count) * 7919, seed)


def attacked(condition, network, pixels, labels, batch):
    """Attack as the loop does; `network` is any function of the pixels."""
    return condition.attack(lambda shown, rows=None: network(shown), pixels, labels, batch, **condition.settings)


def frozen(network):
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.eval()


@pytest.fixture(scope="module")
def smooth():
    """A small network with smooth activations on 32 x 32 pixels, 10 classes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.Softplus(), nn.Conv2d(8, 16, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(784, 10)]
    return frozen(nn.Sequential(*layers))


@pytest.fixture(scope="module")
def images():
    return torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Linear(nn.Module):
    """Two classes; the logit of class 1 is w.x + b, that of class 0 is 0."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, pixels):
        score = (pixels * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize(
    "condition",
    [
        attacks.fgsm("FGSM/high", EPS),
        attacks.pgd("PGD-40/high", EPS, 40, 2 / 255),
        attacks.pgd("PGD-60/small", EPS, 60, EPS / 4),
        attacks.tuned_pgd("PGD-tuned/high", EPS, 40),
    ],
    ids=lambda condition: condition.name,
)
def test_linear_network_has_a_closed_form(condition):
    """The worst case within eps is x - eps sign(w) for class 1: the score falls by eps |w|_1, and no more."""
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 16, 16, generator=random).double()
    pixels = torch.rand(40, 3, 16, 16, generator=random).double() * 0.8 + 0.1  # the ball stays inside [0, 1]
    reach = EPS * weight.abs().sum().item()
    scores = (pixels * weight).flatten(1).sum(1)
    network = Linear(weight, -scores.median().item())
    labels = torch.ones(40, dtype=torch.int64)
    clean = network(pixels)[:, 1]
    fooled = network(attacked(condition, network, pixels, labels, batch(40)))[:, 1]
    expected = clean - reach
    if condition.name == "PGD-tuned/high":  # it stops as soon as an image is fooled
        assert torch.equal(fooled > 0, expected > 0)
        assert ((fooled > 0) <= (clean > 0)).all()
        assert torch.equal(fooled[clean <= 0], clean[clean <= 0])
    else:
        assert torch.allclose(fooled, expected, rtol=0, atol=1e-6 * reach)
    assert 0 < (expected > 0).sum() < (clean > 0).sum()


@pytest.mark.parametrize(("eps", "seed"), [(0.5 / 255, 0), (4 / 255, 3)])
def test_pgd_is_foolboxs(smooth, images, eps, seed):
    """The published parameters and the same start point give the same adversarial images."""
    labels = smooth(images).argmax(1)
    ours = attacked(attacks.pgd("PGD-40/x", eps, 40, 2 / 255), smooth, images, labels, batch(24, seed))
    offset = uniform(streams(batch(24, seed), "start of PGD-40/x"), images.shape[1:]) * 2 - 1

    class SameStart(foolbox.attacks.LinfPGD):
        def get_random_start(self, x0, epsilon):
            return x0 + type(x0)(offset * epsilon)

    theirs = SameStart(abs_stepsize=2 / 255, steps=40, random_start=True)
    model = foolbox.PyTorchModel(smooth, bounds=(0, 1), device="cpu")
    _, expected, _ = theirs(model, images, labels, epsilons=eps)
    assert (ours - expected).abs().max() < 1e-6


def test_fgsm_is_foolboxs(smooth, images):
    labels = smooth(images).argmax(1)
    ours = attacked(attacks.fgsm("FGSM", EPS), smooth, images, labels, batch(24))
    model = foolbox.PyTorchModel(smooth, bounds=(0, 1), device="cpu")
    _, expected, _ = foolbox.attacks.FGSM()(model, images, labels, epsilons=EPS)
    assert (ours - expected).abs().max() < 1e-6


ALL = [
    attacks.fgsm("FGSM", EPS),
    attacks.pgd("PGD", EPS, 10, 2 / 255),
    attacks.pgd("PGD far", EPS, 3, 0.5),
    attacks.tuned_pgd("tuned", EPS, 10),
]


@pytest.mark.parametrize("condition", ALL, ids=lambda condition: condition.name)
def test_adversarial_images_stay_in_the_ball_and_in_range(smooth, condition):
    pixels = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    pixels[:4], pixels[4:8] = 0.0, 1.0
    labels = smooth(pixels).argmax(1)
    before = pixels.clone()
    shown = attacked(condition, smooth, pixels, labels, batch(16))
    assert torch.equal(pixels, before)  # the images are not touched
    assert (shown - pixels).abs().max() <= EPS + 1e-7
    assert 0 <= shown.min() <= shown.max() <= 1
    assert not torch.equal(shown, pixels)


@pytest.mark.parametrize("condition", ALL, ids=lambda condition: condition.name)
def test_an_image_does_not_depend_on_its_batch(smooth, images, condition):
    labels = smooth(images).argmax(1)
    together = attacked(condition, smooth, images, labels, batch(24))
    parts = [
        attacked(condition, smooth, images[i : i + 5], labels[i : i + 5], Batch(batch(24).keys[i : i + 5], 0))
        for i in range(0, 24, 5)
    ]
    assert (torch.cat(parts) - together).abs().max() < 1e-6


def test_random_start_depends_on_seed_image_and_condition(smooth, images):
    """One tiny step from the start shows the start: uniform in the ball, another for another seed, image or name."""
    labels = torch.zeros(24, dtype=torch.int64)

    def start(name, seed=0):
        shown = attacked(attacks.pgd(name, EPS, 1, 1e-9), smooth, images * 0.5 + 0.25, labels, batch(24, seed))
        return (shown - (images * 0.5 + 0.25)) / EPS

    one = start("a")
    assert one.abs().max() <= 1.001
    assert one.std().item() == pytest.approx(3**-0.5, rel=0.01)
    assert torch.equal(one, start("a"))
    for other in (start("a", seed=1), start("b"), one.roll(1, 0)):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.02


class Masked(nn.Module):
    """A linear network whose gradient is made useless: its logits saturate in cross-entropy (weights times 1e4)."""

    def __init__(self, weight, bias):
        super().__init__()
        self.linear = Linear(weight * 1e4, bias * 1e4)

    def forward(self, pixels):
        return self.linear(pixels)


def test_tuned_attack_sees_through_saturation():
    """Cross-entropy's gradient underflows on confident networks, which then look robust; the margin does not."""
    random = torch.Generator().manual_seed(4)
    weight = torch.randn(3, 16, 16, generator=random)
    pixels = torch.rand(20, 3, 16, 16, generator=random) * 0.8 + 0.1
    score = (pixels * weight).flatten(1).sum(1)
    network = Masked(weight, -score.min().item() + 0.1 * EPS * weight.abs().sum().item())
    labels = torch.ones(20, dtype=torch.int64)
    close = network(pixels)[:, 1] < 1e4 * EPS * weight.abs().sum()  # images that can be fooled

    def robust(condition):
        return network(attacked(condition, network, pixels, labels, batch(20))).argmax(1) == 1

    assert robust(attacks.pgd("PGD", EPS, 40, 2 / 255)).all()
    assert torch.equal(robust(attacks.tuned_pgd("tuned", EPS, 40)), ~close)
    assert 0 < close.sum() < 20


def test_tuned_attack_is_at_least_as_strong_and_spares_fooled_images(smooth, images):
    calls = []

    def counted(pixels):
        calls.append(len(pixels))
        return smooth(pixels)

    labels = smooth(images).argmax(1)
    labels[:6] = (labels[:6] + 1) % 10  # wrong from the outset
    eps = 0.5 / 255

    def robust(condition):
        return (smooth(attacked(condition, counted, images, labels, batch(24))).argmax(1) == labels).sum().item()

    published = robust(attacks.pgd("PGD-40/low", eps, 40, 2 / 255))
    del calls[:]
    tuned = robust(attacks.tuned_pgd("PGD-tuned/low", eps, 40))
    assert tuned <= published <= 18
    assert calls[0] == 24
    assert max(calls[1:]) <= 18
    assert calls[-1] >= tuned
    shown = attacked(attacks.tuned_pgd("PGD-tuned/low", eps, 5), smooth, images, labels, batch(24))
    assert torch.equal(shown[:6], images[:6])


def test_images_move_up_where_others_are_fooled_and_every_step_is_full(smooth, images):
    """In batches of 5, attacked 8 at a time: the same images as together, in full steps until nothing moves up."""
    calls = []

    def counted(pixels, rows=None):
        calls.append(len(pixels))
        return smooth(pixels)

    labels = smooth(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % 10  # wrong from the outset
    condition = attacks.tuned_pgd("tuned", 0.5 / 255, 8)
    expected = attacked(condition, smooth, images, labels, batch(24))
    going = condition.stepwise(counted, 0, 8, **condition.settings)
    got, seen, sizes = torch.zeros_like(images), [], []

    def take(last=False):
        for tickets, before, pixels in going.finished(last):
            got[tickets], sizes[len(sizes) :] = pixels, [len(tickets)]
            assert torch.equal(before, images[tickets])
            seen.extend(tickets.tolist())

    for start in range(0, 24, 5):
        rows = torch.arange(start, min(24, start + 5))
        going.add(rows, images[rows], labels[rows], batch(24).keys[rows])
        take()
        assert len(rows) == 5 or start == 20
    assert set(calls) == {8} and set(sizes) <= {8}
    full = len(calls)
    take(last=True)
    assert sorted(seen) == list(range(24))
    assert set(sizes[:-1]) <= {8} and calls[full:] == sorted(calls[full:], reverse=True)
    assert 0 < (smooth(got).argmax(1) == labels).sum() < 20
    assert (got - expected).abs().max() < 1e-6
    take(last=True)  # nothing is left, and nothing comes twice
    assert len(seen) == 24


def test_auto_attack_fools_a_weak_network(smooth, images):
    pytest.importorskip("pyautoattack", reason="AutoAttack is an optional dependency: pip install pyautoattack")
    labels = smooth(images).argmax(1)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 10 classes are few for its targeted attacks
        condition = attacks.auto_attack("AutoAttack", 4 * EPS)  # so strong that the slow parts are not needed
        # as the runner calls it: with a function, not a module
        shown = attacked(condition, lambda pixels: smooth(pixels), images[:8], labels[:8], batch(8))
    assert torch.equal(torch.get_rng_state(), state)
    assert (shown - images[:8]).abs().max() <= 4 * EPS + 1e-7
    assert (smooth(shown).argmax(1) != labels[:8]).all()


def test_missing_auto_attack_names_the_remedy(monkeypatch):
    monkeypatch.setattr(attacks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install pyautoattack"):
        attacks.auto_attack("AutoAttack", EPS)


# Command line ---------------------------------------------------------------------------------------------------------


def conditions(*words):
    parser = argparse.ArgumentParser()
    add_options(parser, eval_imagenet_adv.OPTIONS)
    return list(
        eval_imagenet_adv.conditions(**eval_imagenet_adv.BENCHMARK.options_from(vars(parser.parse_args(words))))
    )


def names(*words):
    return [condition.name for condition in conditions(*words)]


def test_default_is_the_published_setting():
    found = {condition.name: condition for condition in conditions()}
    assert list(found) == [f"{attack}/{eps}" for eps in ("low", "high") for attack in ("PGD-40", "FGSM")]
    for name, eps in (("low", 0.5 / 255), ("high", 4 / 255)):
        assert found[f"PGD-40/{name}"].settings == {
            "eps": eps,
            "steps": 40,
            "step_size": 2 / 255,
            "stream": f"PGD-40/{name}",
        }
        assert found[f"PGD-40/{name}"].seeded


def test_other_settings_get_other_names():
    published = {"PGD-40/low", "PGD-40/high"}
    for words in (["--step-size", "1/255"], ["--steps", "10"], ["--eps", "1/255"], ["--steps", "41"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert not published & set(names("--attack", "pgd", *words)), words
    assert names("--attack", "pgd", "--eps", "4/255") == ["PGD-40/high"]
    assert names("--attack", "pgd", "--eps", "1/255", "--step-size", "0.25/255") == ["PGD-40/eps-1-step-0.25"]
    assert names("--attack", "tuned", "--steps", "100") == ["PGD-tuned/low-steps-100", "PGD-tuned/high-steps-100"]
    assert names("--attack", "fgsm", "--eps", "0.0078431372549") == ["FGSM/eps-2"]


def test_a_step_above_eps_warns_unless_published():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names()
        names("--attack", "pgd", "--eps", "4/255", "--step-size", "1/255")
    with pytest.warns(UserWarning, match="above eps"):
        names("--attack", "pgd", "--eps", "0.5/255", "--step-size", "1/255")


@pytest.mark.parametrize("words", [("--eps", "0"), ("--eps", "4"), ("--step-size", "x"), ("--eps", "1/0")])
def test_nonsense_is_refused(words):
    with pytest.raises(UserError, match="from 0 to 1"):
        names(*words)
    with pytest.raises(UserError, match="--steps 0"):
        names("--steps", "0")

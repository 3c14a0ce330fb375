"""Attacks: images within [0, 1] that are made against a network, most of them at most `eps` from the original.

An attack is called with (network, pixels, labels, batch, **settings): `network(pixels, rows=None)` maps float32 pixels
[B, 3, H, W] in [0, 1] to logits (normalization inside) and is differentiable, `labels` are int64 [B], `batch` has the
images' keys and the seed. Every loss is summed over the batch, so an image's result does not depend on what else is in
the batch. `stream` is the name of the stream of random numbers that a start is drawn from.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from imagenet_biases.base.errors import UserError
from imagenet_biases.stimuli.seeded import streams, uniform
from imagenet_biases.stimuli.solarization import solarize
from imagenet_biases.vocabulary import Attacked, Batch, Condition, identified

Pixels = Float[Tensor, "B 3 H W"]
Labels = Int64[Tensor, " B"]
Loss = Callable[[Tensor, Tensor], Tensor]

summed_cross_entropy = partial(cross_entropy, reduction="sum")


def linf_size(text: str) -> float:
    """Return a change of pixel values in (0, 1] from text such as 4/255 or 0.0157."""
    return _number(text, 1, "--eps and --step-size", "a number from 0 to 1 such as 4/255 or 0.0157")


def length(text: str) -> float:
    """Return the norm of a change of a whole image, above 0, from text such as 0.5."""
    return _number(text, 1e3, "--eps-l2", "a number above 0 such as 0.5")


def _number(text: str, most: float, what: str, expected: str) -> float:
    number, _, divisor = text.partition("/")
    try:
        value = float(number) / float(divisor or 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 < value <= most:
        raise UserError(f"{what}: '{text}' is not {expected}")
    return value


def fgsm(name: str, eps: float) -> Condition:
    """Return the condition of one step of size `eps` along the gradient's sign (Goodfellow et al., ICLR 2015)."""
    return Condition(name, attack=_fgsm, settings={"eps": eps}, cost=4)


def pgd(name: str, eps: float, steps: int, step_size: float) -> Condition:
    """Return the condition of projected gradient descent (Madry et al., ICLR 2018); the last iterate counts.

    It starts at a point drawn uniformly from the eps-ball, a function of (seed, image, name), clipped to [0, 1].
    """
    settings = {"eps": eps, "steps": steps, "step_size": step_size, "stream": name}
    return Condition(name, attack=_pgd, settings=settings, seeded=True, cost=3 * steps + 1)


def tuned_pgd(name: str, eps: float, steps: int) -> Condition:
    """Return the condition of a well-tuned PGD: every iterate counts, `steps` steps from each of two starts.

    The first run starts at the image and ascends the cross-entropy, the second at a random point of the ball and
    ascends the margin (largest wrong logit - right logit; Carlini & Wagner 2017, f6), which does not saturate. The step
    falls from eps / 4 to 0 along a cosine. An image that is fooled, from the outset or by any iterate, is finished.
    """
    settings = {"eps": eps, "steps": steps, "stream": name}
    return Condition(name, attack=_tuned_pgd, stepwise=_TunedPGD, settings=settings, seeded=True, cost=6 * steps + 7)


def pgd_l2(name: str, eps: float, steps: int) -> Condition:
    """Return the condition of projected gradient descent in the l2 ball: changes of an image of at most `eps` in norm.

    Steps of length 2.5 eps / steps along the gradient, from the image itself; the last iterate counts.
    """
    settings = {"eps": eps, "steps": steps, "step_size": 2.5 * eps / steps}
    return Condition(name, attack=_pgd_l2, settings=settings, cost=3 * steps + 1)


def random_solarization(name: str, draws: int, k: int) -> Condition:
    """Return the condition of RandSol (Gavrikov & Keuper 2023, arXiv:2308.12661): random thresholds of solarisation.

    An image gets a new threshold as long as its label is among the first `k` answers, `draws` times at most: every
    level of 1 to 255 with the same probability, a function of (seed, image, draw).
    """
    return Condition(name, attack=_random_solarization, settings={"draws": draws, "k": k}, seeded=True, cost=draws + 1)


def auto_attack(name: str, eps: float) -> Condition:
    """Return the condition of standard AutoAttack (Croce & Hein, ICML 2020), by the authors' code.

    The package pyautoattack is that code on the package index; it is not among the project's requirements. Its random
    numbers come from torch's generator, seeded for each batch: results depend on the batch size.
    Raises UserError where the package is missing.
    """
    if importlib.util.find_spec("pyautoattack") is None:
        raise UserError("AutoAttack needs a package that is not installed; pip install pyautoattack")
    return Condition(name, attack=_auto_attack, settings={"eps": eps}, seeded=True, batched=True, cost=3000)


def gradient(
    network: Attacked, pixels: Pixels, labels: Labels, loss: Loss, rows: Any = None
) -> tuple[Pixels, Float[Tensor, "B C"]]:
    """Return the gradient of the loss, summed over the batch, with respect to the pixels, and the logits.

    For a network that draws (network.draws > 1) both are means over draws (Athalye et al., ICML 2018, section 4).
    """
    draws = getattr(network, "draws", 1)
    if draws > 1:
        gradients, logits = zip(*(_gradient(network, pixels, labels, loss, rows) for _ in range(draws)), strict=True)
        return sum(gradients) / draws, sum(logits) / draws  # type: ignore[return-value]
    return _gradient(network, pixels, labels, loss, rows)


def _gradient(network: Attacked, pixels: Pixels, labels: Labels, loss: Loss, rows: Any) -> tuple[Pixels, Tensor]:
    pixels = pixels.detach().requires_grad_()
    logits = network(pixels, rows=rows)
    gradients = torch.autograd.grad(loss(logits, labels), pixels)[0]
    if getattr(network, "flat", False) is None:
        largest = gradients.flatten(1).abs().amax(1)
        network.flat = ~((largest > 0) & largest.isfinite())  # type: ignore[attr-defined]
    return gradients, logits.detach()


def _ball(pixels: Pixels, eps: float) -> tuple[Pixels, Pixels]:
    """Return the least and the largest pixels within eps and [0, 1]: both projections are one clamp between them."""
    return (pixels - eps).clamp_(min=0), (pixels + eps).clamp_(max=1)


def _random_start(pixels: Pixels, batch: Batch, stream: str, eps: float) -> Pixels:
    offset = uniform(streams(batch, f"start of {stream}"), pixels.shape[1:]).mul_(2).sub_(1)
    return (pixels + offset.mul_(eps)).clamp_(0, 1)


@identified("_fgsm")
def _fgsm(network: Attacked, pixels: Pixels, labels: Labels, batch: Batch, *, eps: float) -> Pixels:
    gradients, _ = gradient(network, pixels, labels, summed_cross_entropy)
    return pixels.add(gradients.sign_(), alpha=eps).clamp_(0, 1)


@identified("_pgd")
def _pgd(
    network: Attacked,
    pixels: Pixels,
    labels: Labels,
    batch: Batch,
    *,
    eps: float,
    steps: int,
    step_size: float,
    stream: str,
) -> Pixels:
    low, high = _ball(pixels, eps)
    images = _random_start(pixels, batch, stream, eps)
    for _ in range(steps):
        gradients, _ = gradient(network, images, labels, summed_cross_entropy)
        images = torch.clamp(images.add_(gradients.sign_(), alpha=step_size), low, high)
    return images


@identified("_pgd_l2")
def _pgd_l2(
    network: Attacked, pixels: Pixels, labels: Labels, batch: Batch | None, *, eps: float, steps: int, step_size: float
) -> Pixels:
    images = pixels
    for _ in range(steps):
        gradients, _ = gradient(network, images, labels, summed_cross_entropy)
        change = images + step_size * gradients / _length(gradients) - pixels
        # a clamp to [0, 1], where the original lies, only brings an image nearer to it
        images = (pixels + change * (eps / _length(change)).clamp(max=1)).clamp_(0, 1)
    return images


def _length(changes: Pixels) -> Float[Tensor, "B 1 1 1"]:
    return torch.linalg.vector_norm(changes, dim=(1, 2, 3), keepdim=True).clamp_(min=1e-30)


LOOKS = 1, 2, 4  # draws after which the images that are fooled leave: each look waits for the device


@torch.no_grad()
@identified("_random_solarization")
def _random_solarization(
    network: Attacked, pixels: Pixels, labels: Labels, batch: Batch, *, draws: int, k: int
) -> Pixels:
    solarized = pixels.clone()
    still = torch.arange(len(pixels), device=pixels.device)  # positions of the images not fooled when last looked at
    right = torch.ones_like(still, dtype=torch.bool)  # which of them are not fooled yet
    for draw in range(draws):
        alpha = uniform(streams(batch.rows(still), f"solarisation {draw}"), (1,))
        drawn = solarize(pixels[still], (alpha[:, 0] * 255).floor().long() + 1)
        solarized[still] = torch.where(right[:, None, None, None], drawn, solarized[still])
        if draw + 1 < draws:  # the last answer is the runner's
            ranked = network(solarized[still], rows=still).topk(k).indices
            right = right & (ranked == labels[still, None]).any(1)
        if draw + 1 in LOOKS:
            still = still[right]
            if not len(still):
                break
            right = torch.ones_like(still, dtype=torch.bool)
    return solarized


def _margin(logits: Float[Tensor, "B C"], labels: Labels) -> Float[Tensor, " B"]:
    """Return the largest wrong logit less the right one, [B]."""
    right = logits.gather(1, labels[:, None])
    wrong = logits.scatter(1, labels[:, None], -math.inf).amax(1, keepdim=True)
    return (wrong - right).squeeze(1)


@identified("_tuned_pgd")
def _tuned_pgd(network: Attacked, pixels: Pixels, labels: Labels, batch: Batch, **settings: Any) -> Pixels:
    attack = _TunedPGD(network, batch.seed, len(pixels), **settings)
    attack.add(torch.arange(len(pixels), device=pixels.device), pixels, labels, batch.keys)
    adversarial = pixels.clone()
    for rows, _, images in attack.finished(last=True):
        adversarial[rows] = images
    return adversarial


Rows = dict[str, Tensor]


def _first_loss_or_margin(logits: Tensor, labels: Tensor, first: Tensor) -> Tensor:
    return torch.where(first, cross_entropy(logits, labels, reduction="none"), _margin(logits, labels)).sum()


class _TunedPGD:
    """The tuned attack on images that join and leave: when one is finished, the next moves up.

    Each image is at its own step: 0 to `steps` from the image itself, and as many from the random start. The last step
    of each run has size 0: it only tests the last iterate.
    """

    def __init__(self, network: Attacked, seed: int, width: int, *, eps: float, steps: int, stream: str) -> None:
        self.network, self.seed, self.width = network, seed, max(1, width)
        self.eps, self.steps, self.stream = eps, steps, stream
        self.sizes = torch.tensor([eps / 8 * (1 + math.cos(math.pi * step / steps)) for step in range(steps + 1)])
        # dicts of tensors with one row per image
        self.moving: Rows | None = None
        self.waiting: list[Rows] = []
        self.done: list[Rows] = []

    def add(self, tickets: Int64[Tensor, " B"], pixels: Pixels, labels: Labels, keys: Int64[Tensor, " B"]) -> None:
        """Let images join; `tickets` identify them when they are finished."""
        if not len(tickets):
            return
        step = torch.zeros_like(labels)
        rows = {"ticket": tickets, "pixels": pixels, "labels": labels, "keys": keys, "step": step, "iterate": pixels}
        self.waiting.append(rows)

    def finished(self, last: bool = False) -> Iterator[tuple[Int64[Tensor, " b"], Pixels, Pixels]]:
        """Yield (tickets, pixels before, pixels) of `width` images each time that many are finished.

        Steps are taken while they are full; with `last`, until all images are finished.
        """
        while self._move_up() == self.width or (last and _count(self.moving)):
            self._step()
            while _count(*self.done) >= self.width:
                yield self._out(self.width)
        if last and _count(*self.done):
            yield self._out(self.width)

    def _move_up(self) -> int:
        """Fill the free places; return how many images are moving."""
        while self.waiting and _count(self.moving) < self.width:
            free = self.width - _count(self.moving)
            coming = self.waiting.pop(0)
            if _count(coming) > free:
                self.waiting.insert(0, _rows(coming, slice(free, None)))
            parts = [self.moving, _rows(coming, slice(free))]
            self.moving = _joined([part for part in parts if part is not None and _count(part)])
        return _count(self.moving)

    def _step(self) -> None:
        assert self.moving is not None
        now, eps, steps = self.moving, self.eps, self.steps
        self.sizes = self.sizes.to(now["pixels"], non_blocking=True)
        loss = partial(_first_loss_or_margin, first=now["step"] <= steps)
        gradients, logits = gradient(self.network, now["iterate"], now["labels"], loss, rows=now["ticket"])
        done = (logits.argmax(1) != now["labels"]) | (now["step"] == 2 * steps + 1)
        size = self.sizes[now["step"] % (steps + 1)][:, None, None, None]
        iterate = torch.clamp(now["iterate"] + gradients.sign_().mul_(size), *_ball(now["pixels"], eps))
        # which images begin again and which are done: the only wait of a step
        restarting, ended = torch.stack([(now["step"] == steps) & ~done, done]).cpu()
        if restarting.any():
            again = _places(restarting, done.device)
            batch = Batch(now["keys"][again], self.seed)
            iterate[again] = _random_start(now["pixels"][again], batch, self.stream, eps)
        after = now | {"step": now["step"] + 1, "iterate": iterate}
        if ended.any():
            self.done.append(_rows(now, _places(ended, done.device)))
            after = _rows(after, _places(~ended, done.device))
        self.moving = after

    def _out(self, count: int) -> tuple[Tensor, Pixels, Pixels]:
        done = _joined(self.done)
        self.done, out = [_rows(done, slice(count, None))], _rows(done, slice(count))
        return out["ticket"], out["pixels"], out["iterate"]


def _places(chosen: Tensor, device: torch.device) -> Int64[Tensor, " n"]:
    """Return where a mask on the host is true, on a device."""
    return torch.nonzero(chosen)[:, 0].to(device, non_blocking=True)


def _count(*parts: Rows | None) -> int:
    return sum(len(part["ticket"]) for part in parts if part is not None)


def _rows(rows: Rows, chosen: Any) -> Rows:
    return {name: values[chosen] for name, values in rows.items()}


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@identified("_auto_attack")
def _auto_attack(network: Attacked, pixels: Pixels, labels: Labels, batch: Batch, *, eps: float) -> Pixels:
    from pyautoattack import AutoAttack  # pyright: ignore[reportMissingImports]  # the extra [attack]

    with torch.random.fork_rng(devices=[pixels.device] if pixels.is_cuda else []):
        attack = AutoAttack(network, norm="Linf", eps=eps, version="standard", seed=batch.seed, device=pixels.device)
        adversarial, _ = attack.run_standard_evaluation(pixels.contiguous(), labels, batch_size=len(pixels))
    return torch.clamp(adversarial, *_ball(pixels, eps))

"""Attacks: l-infinity adversarial images of at most `eps` from the original and within [0, 1].

An attack is called with (network, pixels, labels, batch, **settings): `network(pixels, rows=None)` maps float32 pixels
[B, 3, H, W] in [0, 1] to logits (normalization inside) and is differentiable, `labels` are int64 [B], `batch` has the
images' keys and the seed. Every loss is summed over the batch, so an image's result does not depend on what else is in
the batch. `stream` is the name of the stream of random numbers that a start is drawn from.
"""

import importlib.util
import math
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from imagenet_biases.errors import UserError
from imagenet_biases.stimuli import streams, uniform
from imagenet_biases.vocabulary import Condition

summed_cross_entropy = partial(cross_entropy, reduction="sum")


def fgsm(name, eps):
    """Return the condition of one step of size `eps` along the gradient's sign (Goodfellow et al., ICLR 2015)."""
    return Condition(name, attack=_fgsm, settings={"eps": eps}, cost=4)


def pgd(name, eps, steps, step_size):
    """Return the condition of projected gradient descent (Madry et al., ICLR 2018); the last iterate counts.

    It starts at a point drawn uniformly from the eps-ball, a function of (seed, image, name), clipped to [0, 1].
    """
    settings = {"eps": eps, "steps": steps, "step_size": step_size, "stream": name}
    return Condition(name, attack=_pgd, settings=settings, seeded=True, cost=3 * steps + 1)


def tuned_pgd(name, eps, steps):
    """Return the condition of a well-tuned PGD: every iterate counts, `steps` steps from each of two starts.

    The first run starts at the image and ascends the cross-entropy, the second at a random point of the ball and
    ascends the margin (largest wrong logit - right logit; Carlini & Wagner 2017, f6), which does not saturate. The step
    falls from eps / 4 to 0 along a cosine. An image that is fooled, from the outset or by any iterate, is done with.
    """
    settings = {"eps": eps, "steps": steps, "stream": name}
    return Condition(name, attack=_tuned_pgd, settings=settings, seeded=True, cost=6 * steps + 7)


def auto_attack(name, eps):
    """Return the condition of standard AutoAttack (Croce & Hein, ICML 2020), by the authors' code.

    The package pyautoattack is that code on the package index; it is not among the project's requirements. Its random
    numbers come from torch's generator, seeded for each batch: results depend on the batch size.
    Raises UserError where the package is missing.
    """
    if importlib.util.find_spec("pyautoattack") is None:
        raise UserError("AutoAttack needs a package that is not installed; pip install pyautoattack")
    return Condition(name, attack=_auto_attack, settings={"eps": eps}, seeded=True, batched=True, cost=3000)


def gradient(network, pixels, labels, loss, rows=None):
    """Return the gradient of the loss, summed over the batch, with respect to the pixels, and the logits.

    Of a network that draws (network.draws > 1) both are means over draws (Athalye et al., ICML 2018, section 4).
    """
    draws = getattr(network, "draws", 1)
    if draws > 1:
        some = [_gradient(network, pixels, labels, loss, rows) for _ in range(draws)]
        return sum(slope for slope, _ in some) / draws, sum(logits for _, logits in some) / draws
    return _gradient(network, pixels, labels, loss, rows)


def _gradient(network, pixels, labels, loss, rows):
    pixels = pixels.detach().requires_grad_()
    logits = network(pixels, rows=rows)
    return torch.autograd.grad(loss(logits, labels), pixels)[0], logits.detach()


def _ball(pixels, eps):
    """Return the least and the largest pixels within eps and [0, 1]: both projections are one clamp between them."""
    return (pixels - eps).clamp_(min=0), (pixels + eps).clamp_(max=1)


def _random_start(pixels, batch, stream, eps):
    offset = uniform(streams(batch, f"start of {stream}"), pixels.shape[1:]).mul_(2).sub_(1)
    return (pixels + offset.mul_(eps)).clamp_(0, 1)


def _fgsm(network, pixels, labels, batch, *, eps):
    slope, _ = gradient(network, pixels, labels, summed_cross_entropy)
    return pixels.add(slope.sign_(), alpha=eps).clamp_(0, 1)


def _pgd(network, pixels, labels, batch, *, eps, steps, step_size, stream):
    low, high = _ball(pixels, eps)
    images = _random_start(pixels, batch, stream, eps)
    for _ in range(steps):
        slope, _ = gradient(network, images, labels, summed_cross_entropy)
        images = torch.clamp(images.add_(slope.sign_(), alpha=step_size), low, high)
    return images


def _margin(logits, labels):
    right = logits.gather(1, labels[:, None])
    wrong = logits.scatter(1, labels[:, None], -math.inf).amax(1, keepdim=True)
    return (wrong - right).sum()


def _tuned_pgd(network, pixels, labels, batch, *, eps, steps, stream):
    low, high = _ball(pixels, eps)
    adversarial = pixels.clone()
    still = torch.arange(len(pixels), device=pixels.device)  # positions of the images not fooled yet
    for start, loss in ((pixels, summed_cross_entropy), (_random_start(pixels, batch, stream, eps), _margin)):
        images = start[still]
        for step in range(steps + 1):  # the last one has size 0 and only looks at the last iterate
            slope, logits = gradient(network, images, labels[still], loss, rows=still)
            holds = logits.argmax(1) == labels[still]
            adversarial[still] = images  # of those fooled now it is the last word
            still, images, slope = still[holds], images[holds], slope[holds]
            if not len(still):
                return adversarial
            size = eps / 8 * (1 + math.cos(math.pi * step / steps))
            images = torch.clamp(images.add_(slope.sign_(), alpha=size), low[still], high[still])
    return adversarial


def _auto_attack(network, pixels, labels, batch, *, eps):
    from pyautoattack import AutoAttack

    with torch.random.fork_rng(devices=[pixels.device] if pixels.is_cuda else []):
        attack = AutoAttack(network, norm="Linf", eps=eps, version="standard", seed=batch.seed, device=pixels.device)
        adversarial, _ = attack.run_standard_evaluation(pixels.contiguous(), labels, batch_size=len(pixels))
    return torch.clamp(adversarial, *_ball(pixels, eps))

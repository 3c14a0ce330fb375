"""Where a perturbation lies: by distance from the image's border, and by spatial frequency; and the gradient as one.

A perturbation is what an attack adds to the pixels, or the gradient of the loss with respect to them.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch

from imagenet_biases.base.errors import UserError
from imagenet_biases.measures.accuracy import mean_over_images
from imagenet_biases.stimuli.attacks import gradient, summed_cross_entropy
from imagenet_biases.vocabulary import Condition, Readout, between, identified

RINGS = 28  # rings of one pixel from the border inwards; what is further inside is the centre
EDGE = 7  # pixels of the outer strips that are compared, left with right and top with bottom
HIGHEST = 112  # cycles/image; higher ones, in the corners of the plane, are counted there
MODES = ("zeros", "reflect", "replicate", "circular")


# What is presented ----------------------------------------------------------------------------------------------------


def width(text):
    """Return the width of a border in pixels, 1 to 99, from text."""
    if not (text.isdigit() and 0 < int(text) < 100):
        raise UserError(f"--mask {text}: give widths from 1 to 99")
    return int(text)


def slope(mask=0):
    """Return the condition whose perturbation is the gradient of the cross-entropy, its pixels the image itself.

    mask: pixels of the image's border that are replaced by its mean colour before.
    """
    name = f"gradient masked {mask}" if mask else "gradient"
    return Condition(name, attack=_slope, settings={"mask": mask} if mask else {}, cost=4)


def slope_padded(mode):
    """Return the condition of the same gradient where all convolutions pad in a way of MODES."""
    return Condition(f"gradient padding {mode}", change=pad, attack=_slope, settings={"mode": mode}, cost=4)


@identified("_slope")
def _slope(network, pixels, labels, batch, *, mask=0):
    shown = masked(pixels, mask) if mask else pixels
    return shown, gradient(network, shown, labels, summed_cross_entropy)[0]


def masked(pixels, border):
    """Return pixels [B, 3, H, W] with the outer `border` pixels replaced by the image's mean colour."""
    inner = slice(border, -border)
    covered = pixels.mean((2, 3), keepdim=True).expand_as(pixels).clone()
    covered[:, :, inner, inner] = pixels[:, :, inner, inner]
    return covered


def padding_convolutions(network):
    """Return (convolutions that pad and whose way of padding can be switched, number of those that pad otherwise).

    A subclass with a forward of its own may pad by other means; so does what a network calls as a function.
    """
    padding = [
        one
        for one in network.modules()
        if isinstance(one, torch.nn.Conv2d) and any(one._reversed_padding_repeated_twice)
    ]
    plain = torch.nn.Conv2d
    switchable = [
        one for one in padding if (type(one).forward, type(one)._conv_forward) == (plain.forward, plain._conv_forward)
    ]
    return switchable, len(padding) - len(switchable)


def unswitched(network):
    """Return what is to be said of padding that cannot be switched, or None."""
    switchable, others = padding_convolutions(network)
    if others:
        return f"{others} convolutions pad by other means than Conv2d's and keep their padding"
    return None if switchable else "no convolution pads as Conv2d does: the network's padding cannot be switched"


@identified("pad")
def pad(network, *, mode):
    """Switch the padding of a network's convolutions in place; its widths stay.

    Running it raises UserError where a feature map is too small to be continued by its own values.
    """
    for one in padding_convolutions(network)[0]:
        one.padding_mode = mode
        one.register_forward_pre_hook(_fits)


def _fits(convolution, inputs):
    room = {"reflect": -1, "circular": 0}.get(convolution.padding_mode)
    if room is None:
        return
    height, width = inputs[0].shape[-2:]
    left, right, top, bottom = convolution._reversed_padding_repeated_twice
    if max(left, right) > width + room or max(top, bottom) > height + room:
        others = " ".join(one for one in MODES if one != convolution.padding_mode)
        raise UserError(
            f"a convolution pads a feature map of {height} x {width} by {max(left, right, top, bottom)}, too much for "
            f"{convolution.padding_mode} padding: leave it out (--padding {others})"
        )


# What is kept ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rings(Readout):
    """Mean |perturbation| by place, float32 [B, RINGS + 5]: the rings, the centre, left, right, top, bottom strip.

    In units of the image's largest value.
    """

    id: ClassVar[str] = "Rings"
    shape: ClassVar[tuple[int, ...]] = (RINGS + 5,)

    def __call__(self, shown):
        size = _scaled(shown.perturbation).abs().mean(1).to(_wide(shown.perturbation.device))
        height, width = size.shape[1:]
        rings = size.flatten(1) @ _shares(_ring, height, width, size.device)
        strips = (size[:, :, :EDGE], size[:, :, -EDGE:], size[:, :EDGE], size[:, -EDGE:])
        return torch.cat([rings, torch.stack([one.mean((1, 2)) for one in strips], 1)], 1)

    def possible(self, rows):
        return between(rows, 0, 1 + 1e-5)


@dataclass(frozen=True)
class Radii(Readout):
    """Share of a perturbation's power by distance from the zero frequency, float32 [B, HIGHEST + 1].

    Power of the three colours together; the distance is Euclidean, in cycles/image, rounded. 0 without a perturbation.
    """

    id: ClassVar[str] = "Radii"
    shape: ClassVar[tuple[int, ...]] = (HIGHEST + 1,)

    def __call__(self, shown):
        power = torch.fft.fft2(_scaled(shown.perturbation)).abs().square().sum(1).to(_wide(shown.perturbation.device))
        height, width = power.shape[1:]
        radii = power.flatten(1) @ _members(_radius, height, width, power.device)
        return radii / radii.sum(1, keepdim=True).clamp(min=1e-30)

    def possible(self, rows):
        return between(rows, 0, 1 + 1e-5)


def _scaled(perturbation):
    """Return it in units of its largest value an image: the square of a gradient would leave the range of float32."""
    perturbation = perturbation.detach().float()
    return perturbation / perturbation.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-37)


def _wide(device):
    """Return the type to sum in: float32 is 3e-4 off over 28,224 pixels; but MPS has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def _ring(height, width):
    rows, columns = np.arange(height)[:, None], np.arange(width)
    nearest = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    return np.minimum(nearest, RINGS), RINGS + 1


def _radius(height, width):
    rows, columns = np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width)
    return np.minimum(np.rint(np.hypot(rows, columns)), HIGHEST).astype(int), HIGHEST + 1


@cache
def _members(place, height, width, device):
    """Return which pixel is where, [H * W, places]."""
    where, places = place(height, width)
    return torch.nn.functional.one_hot(torch.from_numpy(where).flatten(), places).to(device, _wide(device))


@cache
def _shares(place, height, width, device):
    members = _members(place, height, width, device)
    return members / members.sum(0).clamp(min=1)


# What is reported -----------------------------------------------------------------------------------------------------


def border(rows):
    """Return the measures of Rings' rows [N, RINGS + 5] as {name: Estimate}, an image's ratio first, then their mean.

    ring-D: ring D over the centre; anomaly: ring 0 less 1; asymmetry-x: (right - left) / (right + left), -y: bottom and
    top. Images without a perturbation are left out.
    """
    rows = rows[(rows[:, RINGS] > 0) & (rows[:, RINGS + 1 :].sum(1) > 0)].astype(np.float64)
    rings = rows[:, :RINGS] / rows[:, RINGS : RINGS + 1]
    left, right, top, bottom = rows[:, RINGS + 1 :].T
    values = {f"ring-{number}": mean_over_images(rings[:, number], 0.0) for number in range(RINGS)}
    values["anomaly"] = mean_over_images(rings[:, 0] - 1, -1.0)
    for axis, contrast in {"x": _contrast(right, left), "y": _contrast(bottom, top)}.items():
        values[f"asymmetry-{axis}"] = mean_over_images(contrast, -1.0, 1.0)
    return values


def _contrast(one, other):
    return (one - other) / np.maximum(one + other, 1e-30)


def spectrum(rows):
    """Return the cumulative power up to each frequency of Radii's rows [N, HIGHEST + 1] as {name: Estimate}.

    Names are '0' to str(HIGHEST) and median, the least frequency up to which an image has half of the power.
    """
    rows = rows[rows.sum(1) > 0].astype(np.float64)
    cumulative = rows.cumsum(1)
    values = {str(number): mean_over_images(cumulative[:, number], 0.0, 1.0) for number in range(HIGHEST + 1)}
    return values | {"median": mean_over_images((cumulative < 0.5).sum(1).astype(np.float64), 0.0)}

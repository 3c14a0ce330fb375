"""Where a perturbation lies: by distance from the image's border, and by spatial frequency.

A perturbation is what an attack adds to the pixels, or the gradient of the loss with respect to them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from imagenet_biases.base.errors import UserError
from imagenet_biases.measures.accuracy import mean_over_images
from imagenet_biases.stimuli.attacks import gradient, summed_cross_entropy
from imagenet_biases.vocabulary import Attacked, Batch, Condition, Estimate, Presentation, Readout, between, identified

RINGS = 28  # rings of one pixel from the border inwards; the rest is the centre
EDGE = 7  # pixels of the outer strips that are compared, left with right and top with bottom
HIGHEST = 112  # cycles/image; higher ones, in the corners of the plane, are counted there
Place = Callable[[int, int], tuple[np.ndarray, int]]  # (height, width) -> the place of each pixel, number of places
MODES = ("zeros", "reflect", "replicate", "circular")


# What is presented ----------------------------------------------------------------------------------------------------


def width(text: str) -> int:
    """Return the width of a border in pixels, 1 to 99, from text."""
    if not (text.isdigit() and 0 < int(text) < 100):
        raise UserError(f"--mask {text}: give widths from 1 to 99")
    return int(text)


def loss_gradient(mask: int = 0) -> Condition:
    """Return the condition whose perturbation is the gradient of the cross-entropy; its pixels are the image itself.

    Args:
        mask: pixels of the image's border that are first replaced by its mean colour.
    """
    name = f"gradient masked {mask}" if mask else "gradient"
    return Condition(name, attack=_loss_gradient, settings={"mask": mask} if mask else {}, cost=4)


def loss_gradient_padded(mode: str) -> Condition:
    """Return the condition of the same gradient where all convolutions pad by one of MODES."""
    return Condition(f"gradient padding {mode}", change=pad, attack=_loss_gradient, settings={"mode": mode}, cost=4)


@identified("_slope")
def _loss_gradient(
    network: Attacked,
    pixels: Float[Tensor, "B 3 H W"],
    labels: Int64[Tensor, " B"],
    batch: Batch | None,
    *,
    mask: int = 0,
) -> tuple[Tensor, Tensor]:
    presented = masked(pixels, mask) if mask else pixels
    return presented, gradient(network, presented, labels, summed_cross_entropy)[0]


def masked(pixels: Float[Tensor, "B 3 H W"], border: int) -> Float[Tensor, "B 3 H W"]:
    """Return the pixels with the outer `border` of them replaced by the image's mean colour."""
    inner = slice(border, -border)
    covered = pixels.mean((2, 3), keepdim=True).expand_as(pixels).clone()
    covered[:, :, inner, inner] = pixels[:, :, inner, inner]
    return covered


def padding_convolutions(network: torch.nn.Module) -> tuple[list[torch.nn.Conv2d], int]:
    """Return (convolutions whose padding can be switched, number of those that pad by other means).

    A subclass with its own forward may pad by other means; so may convolutions called as functions.
    """
    plain, switchable, others = torch.nn.Conv2d, [], 0
    for module in network.modules():
        if isinstance(module, plain) and any(module._reversed_padding_repeated_twice):
            if (type(module).forward, type(module)._conv_forward) == (plain.forward, plain._conv_forward):
                switchable.append(module)
            else:
                others += 1
    return switchable, others


def unswitched(network: torch.nn.Module) -> str | None:
    """Return a note about padding that cannot be switched, or None."""
    switchable, others = padding_convolutions(network)
    if others:
        return f"{others} convolutions do not pad as Conv2d does and keep their padding"
    return None if switchable else "no convolution pads as Conv2d does: the network's padding cannot be switched"


@identified("pad")
def pad(network: torch.nn.Module, *, mode: str) -> None:
    """Switch the padding of a network's convolutions in place; its widths stay.

    Running the network raises UserError where a feature map is too small to be padded with its own values.
    """
    convolution: Any
    for convolution in padding_convolutions(network)[0]:
        convolution.padding_mode = mode
        convolution.register_forward_pre_hook(_check_size)


def _check_size(convolution: Any, inputs: tuple[Tensor]) -> None:
    room = {"reflect": -1, "circular": 0}.get(convolution.padding_mode)
    if room is None:
        return
    height, width = inputs[0].shape[-2:]
    left, right, top, bottom = convolution._reversed_padding_repeated_twice
    if max(left, right) > width + room or max(top, bottom) > height + room:
        others = " ".join(mode for mode in MODES if mode != convolution.padding_mode)
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

    def __call__(self, presentation: Presentation) -> Float[Tensor, "B places"]:
        perturbation = presentation.perturbation
        size = _scaled(perturbation).abs().mean(1).to(_wide(perturbation.device))
        height, width = size.shape[1:]
        rings = size.flatten(1) @ _shares(_ring, height, width, size.device)
        strips = (size[:, :, :EDGE], size[:, :, -EDGE:], size[:, :EDGE], size[:, -EDGE:])
        return torch.cat([rings, torch.stack([strip.mean((1, 2)) for strip in strips], 1)], 1)

    def possible(self, rows: np.ndarray) -> bool:
        return between(rows, 0, 1 + 1e-5)


@dataclass(frozen=True)
class Radii(Readout):
    """Share of a perturbation's power by distance from the zero frequency, float32 [B, HIGHEST + 1].

    Power of the three colours together; the distance is Euclidean, in cycles/image, rounded. 0 without a perturbation.
    """

    id: ClassVar[str] = "Radii"
    shape: ClassVar[tuple[int, ...]] = (HIGHEST + 1,)

    def __call__(self, presentation: Presentation) -> Float[Tensor, "B places"]:
        perturbation = presentation.perturbation
        power = torch.fft.fft2(_scaled(perturbation)).abs().square().sum(1).to(_wide(perturbation.device))
        height, width = power.shape[1:]
        radii = power.flatten(1) @ _membership(_radius, height, width, power.device)
        return radii / radii.sum(1, keepdim=True).clamp(min=1e-30)

    def possible(self, rows: np.ndarray) -> bool:
        return between(rows, 0, 1 + 1e-5)


def _scaled(perturbation: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Return it in units of its largest value per image: the square of a gradient would leave the range of float32."""
    perturbation = perturbation.detach().float()
    return perturbation / perturbation.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-37)


def _wide(device: torch.device) -> torch.dtype:
    """Return the type to sum in: float32 is off by 3e-4 over 28,224 pixels, but MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _ring(height: int, width: int) -> tuple[np.ndarray, int]:
    rows, columns = np.arange(height)[:, None], np.arange(width)
    nearest = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    return np.minimum(nearest, RINGS), RINGS + 1


def _radius(height: int, width: int) -> tuple[np.ndarray, int]:
    rows, columns = np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width)
    return np.minimum(np.rint(np.hypot(rows, columns)), HIGHEST).astype(int), HIGHEST + 1


@cache
def _membership(place: Place, height: int, width: int, device: torch.device) -> Float[Tensor, "HW places"]:
    """Return which place each pixel belongs to."""
    numbers, places = place(height, width)
    return torch.nn.functional.one_hot(torch.from_numpy(numbers).flatten(), places).to(device, _wide(device))


@cache
def _shares(place: Place, height: int, width: int, device: torch.device) -> Float[Tensor, "HW places"]:
    membership = _membership(place, height, width, device)
    return membership / membership.sum(0).clamp(min=1)


# What is reported -----------------------------------------------------------------------------------------------------


def border(rows: Float[np.ndarray, "N rings"]) -> dict[str, Estimate]:
    """Return the measures of Rings' rows as {name: Estimate}: ratios per image, then their mean.

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


def _contrast(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first - second) / np.maximum(first + second, 1e-30)


def spectrum(rows: Float[np.ndarray, "N radii"]) -> dict[str, Estimate]:
    """Return the cumulative power of Radii's rows up to each frequency as {name: Estimate}.

    Names are '0' to str(HIGHEST) and median, the lowest frequency up to which an image has half of its power.
    """
    rows = rows[rows.sum(1) > 0].astype(np.float64)
    cumulative = rows.cumsum(1)
    values = {str(number): mean_over_images(cumulative[:, number], 0.0, 1.0) for number in range(HIGHEST + 1)}
    return values | {"median": mean_over_images((cumulative < 0.5).sum(1).astype(np.float64), 0.0)}

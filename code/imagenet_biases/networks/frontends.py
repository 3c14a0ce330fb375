"""Front ends: stages between the pixels and a network, in every benchmark, attacks included.

A front end is NAME, NAME:VALUE or file.py:function, optionally with @STRENGTH (0 to 1), the share of its effect; 0 is
the plain network to the bit. It maps pixels [B, 3, H, W] to a tensor of the same shape, differentiably where possible;
random numbers are drawn from (seed, image, draw).

- low-pass:C, high-pass:C    keep the share C of the spectrum, as eval_spectral.py does
- grey                       luminance (ITU-R BT.601) in all three channels
- diffusion-noise[:published|variance-preserving]    an image under the noise of a diffusion process
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from imagenet_biases.base.errors import UserError, nearest
from imagenet_biases.networks.user_code import blaming, user_function
from imagenet_biases.stimuli.bandpass import band_pass
from imagenet_biases.stimuli.seeded import normal, streams, uniform
from imagenet_biases.vocabulary import Batch, identified

Pixels: TypeAlias = Float[Tensor, "B 3 H W"]


@identified("grey")
def grey(pixels: Pixels, batch: Batch | None) -> Pixels:
    """Return the luminance of RGB pixels in all three channels."""
    return (pixels * _luminance(pixels.dtype, pixels.device)).sum(1, keepdim=True).expand_as(pixels)


@functools.cache
def _luminance(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "1 3 1 1"]:
    return torch.tensor([0.299, 0.587, 0.114], dtype=dtype, device=device).view(1, 3, 1, 1)


SCHEDULES = {
    # as the released networks were trained: an exponent in place of the intended square
    "published": lambda a: (1 - a**a).sqrt(),
    "variance-preserving": lambda a: (1 - a**2).sqrt(),
}


@identified("diffusion-noise")
def diffusion_noise(pixels: Pixels, batch: Batch, *, schedule: str) -> Pixels:
    """Return a x + s z: a = sqrt(u) with u uniform in [0, 1) per image, z standard normal per value.

    s = sqrt(1 - a^a) as published (largest at a = 1/e, where it is 0.5548; zero at a = 0), or sqrt(1 - a^2). Nothing is
    clipped. Front end of paulgavrikov/diffusion-noise-cls-pytorch (formula), after Jaini et al., arXiv:2309.16779.
    """
    name = f"diffusion noise {batch.draw}"
    scale = uniform(streams(batch, f"{name} scale"), (1, 1, 1)).sqrt()
    noise = normal(streams(batch, f"{name} normal"), pixels.shape[1:])
    return scale * pixels + SCHEDULES[schedule](scale) * noise


def _cutoff(kind: str) -> Callable[[str], dict[str, Any]]:
    def settings(value: str) -> dict[str, Any]:
        try:
            cutoff = float(value or "nan")
        except ValueError:
            cutoff = -1.0
        if not 0 < cutoff <= 1:
            raise UserError(f"the front end {kind} needs the share of the spectrum to keep, e.g. {kind}:0.3")
        return {"kind": kind, "cutoff": cutoff}

    return settings


def _schedule(value: str) -> dict[str, Any]:
    if (value or "published") not in SCHEDULES:
        raise UserError(f"the front end diffusion-noise has the schedules {', '.join(SCHEDULES)}, not {value!r}")
    return {"schedule": value or "published"}


def _none(value: str) -> dict[str, Any]:
    if value:
        raise UserError(f"the front end grey takes no value, {value!r} was given")
    return {}


# steps of their own where a network is traced: what they keep for a size and a device has no value there
torch.fx.wrap("band_pass")
torch.fx.wrap("grey")


@functools.wraps(band_pass)
def _band_pass(pixels: Pixels, batch: Batch | None, **settings: Any) -> Pixels:
    return band_pass(pixels, batch, **settings)


@functools.wraps(grey)
def _grey(pixels: Pixels, batch: Batch | None) -> Pixels:
    return grey(pixels, batch)


FRONT_ENDS: dict[str, tuple[Any, Callable[[str], dict[str, Any]], bool]] = {
    # name: (function, settings from its value, whether it draws)
    "low-pass": (_band_pass, _cutoff("low-pass"), False),
    "high-pass": (_band_pass, _cutoff("high-pass"), False),
    "grey": (_grey, _none, False),
    "diffusion-noise": (diffusion_noise, _schedule, True),
}


@dataclass(frozen=True)
class FrontEnd:
    """One front end.

    Attributes:
        text: its name.
        function: called as function(pixels, batch, **settings).
        strength: share of its effect.
        seeded: whether it draws random numbers from the batch.
        code: hash of the source of a user's function.
    """

    text: str
    function: Callable[..., Pixels]
    settings: dict[str, Any] = field(default_factory=dict)
    strength: float = 1.0
    seeded: bool = False
    code: str = ""

    def __call__(self, pixels: Pixels, batch: Batch | None) -> Pixels:
        """Return the pixels that the network receives."""
        if self.strength == 0:
            return pixels
        changed = self.function(pixels, batch, **self.settings)
        return changed if self.strength == 1 else torch.lerp(pixels, changed, self.strength)

    def identity(self) -> dict[str, Any]:
        """Return what determines the front end, JSON-able."""
        identity = {"frontend": self.text.partition("@")[0], "strength": self.strength, "code": self.code}
        version = getattr(self.function, "version", 1)  # for a user's function, `code` replaces the version
        return identity | ({"version": version} if version != 1 else {}) | self.settings


def front_end(text: str) -> FrontEnd:
    """Return the FrontEnd that a text names. Raises UserError if there is no such front end."""
    body, at, strength = text.rpartition("@")
    if not at:
        body, strength = text, "1"
    try:
        share = float(strength)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"the front end {text}: its strength '{strength}' is not a number from 0 to 1")
    if ".py:" in body:
        path, _, name = body.rpartition(":")
        function, code = user_function(Path(path), name)

        def checked(pixels: Pixels, batch: Batch | None) -> Pixels:
            with blaming(f"the front end {body}"):
                changed = function(pixels, batch) if getattr(function, "wants_batch", False) else function(pixels)
            if isinstance(pixels, torch.Tensor) and getattr(changed, "shape", None) != pixels.shape:
                raise UserError(f"the front end {body} does not return a tensor of the pixels' shape")
            return changed

        return FrontEnd(f"{Path(path).name}:{name}", checked, {}, share, getattr(function, "wants_batch", False), code)
    name, _, value = body.partition(":")
    if name not in FRONT_ENDS:
        raise UserError(
            f"there is no front end {name!r}: {nearest(name, FRONT_ENDS) or 'there are ' + ', '.join(FRONT_ENDS)}"
        )
    function, settings, seeded = FRONT_ENDS[name]
    return FrontEnd(text, function, settings(value), share, seeded and share > 0)

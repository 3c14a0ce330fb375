"""Front ends: what stands between the pixels and a network, in every benchmark, attacks included.

A front end is NAME, NAME:VALUE or file.py:function, and any of them with @STRENGTH (0 to 1), the share of its effect; 0
is the plain network to the bit. Pixels [B, 3, H, W] go in and a tensor of the same shape comes out, differentiable
where that can be; what is random is drawn from (seed, image, draw).

- low-pass:C, high-pass:C    keep the share C of the spectrum, as eval_spectral.py does
- grey                       luminance (ITU-R BT.601) in all three channels
- diffusion-noise[:published|variance-preserving]    an image under the noise of a diffusion process
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from imagenet_biases.base.errors import UserError, nearest
from imagenet_biases.networks.user_code import blaming, own_function
from imagenet_biases.stimuli.bandpass import band_pass
from imagenet_biases.stimuli.seeded import normal, streams, uniform
from imagenet_biases.vocabulary import identified


@identified("grey")
def grey(pixels, batch):
    """Return the luminance of RGB pixels in all three channels."""
    weights = pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True).expand_as(pixels)


SCHEDULES = {
    # as the released networks were trained: the exponent stands where a square was meant
    "published": lambda a: (1 - a**a).sqrt(),
    "variance-preserving": lambda a: (1 - a**2).sqrt(),
}


@identified("diffusion-noise")
def diffusion_noise(pixels, batch, *, schedule):
    """Return a x + s z: a = sqrt(u) with u uniform in [0, 1) for each image, z standard normal for each value.

    s = sqrt(1 - a^a) as published (largest at a = 1/e, where it is 0.5548; none at a = 0), or sqrt(1 - a^2). Nothing is
    clipped. Front end of paulgavrikov/diffusion-noise-cls-pytorch (formula), after Jaini et al., arXiv:2309.16779.
    """
    name = f"diffusion noise {batch.draw}"
    scale = uniform(streams(batch, f"{name} scale"), (1, 1, 1)).sqrt()
    noise = normal(streams(batch, f"{name} normal"), pixels.shape[1:])
    return scale * pixels + SCHEDULES[schedule](scale) * noise


def _cutoff(kind):
    def settings(value):
        try:
            cutoff = float(value or "nan")
        except ValueError:
            cutoff = -1.0
        if not 0 < cutoff <= 1:
            raise UserError(f"the front end {kind} needs the share of the spectrum that is kept, e.g. {kind}:0.3")
        return {"kind": kind, "cutoff": cutoff}

    return settings


def _schedule(value):
    if (value or "published") not in SCHEDULES:
        raise UserError(f"the front end diffusion-noise has the schedules {', '.join(SCHEDULES)}, not {value!r}")
    return {"schedule": value or "published"}


def _none(value):
    if value:
        raise UserError(f"the front end grey takes no value, {value!r} was given")
    return {}


KNOWN = {  # name: (function, settings of its value, whether it draws)
    "low-pass": (band_pass, _cutoff("low-pass"), False),
    "high-pass": (band_pass, _cutoff("high-pass"), False),
    "grey": (grey, _none, False),
    "diffusion-noise": (diffusion_noise, _schedule, True),
}


@dataclass(frozen=True)
class FrontEnd:
    """One front end: `text` names it, `function(pixels, batch, **settings)` is what it does."""

    text: str
    function: Callable
    settings: dict = field(default_factory=dict)
    strength: float = 1.0
    seeded: bool = False
    code: str = ""  # hash of a user's own source

    def __call__(self, pixels, batch):
        """Return the pixels [B, 3, H, W] behind it."""
        if self.strength == 0:
            return pixels
        behind = self.function(pixels, batch, **self.settings)
        return behind if self.strength == 1 else torch.lerp(pixels, behind, self.strength)

    def identity(self):
        """Return what determines it, JSON-able."""
        identity = {"frontend": self.text.partition("@")[0], "strength": self.strength, "code": self.code}
        version = getattr(self.function, "version", 1)  # of a user's own function `code` takes the version's place
        return identity | ({"version": version} if version != 1 else {}) | self.settings


def front_end(text):
    """Return the FrontEnd that a text names. Raises UserError for what is none."""
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
        function, code = own_function(Path(path), name)

        def own(pixels, batch):
            with blaming(f"the front end {body}"):
                behind = function(pixels, batch) if getattr(function, "wants_batch", False) else function(pixels)
            if isinstance(pixels, torch.Tensor) and getattr(behind, "shape", None) != pixels.shape:
                raise UserError(f"the front end {body} does not return a tensor of the pixels' shape")
            return behind

        return FrontEnd(f"{Path(path).name}:{name}", own, {}, share, getattr(function, "wants_batch", False), code)
    name, _, value = body.partition(":")
    if name not in KNOWN:
        raise UserError(f"there is no front end {name!r}: {nearest(name, KNOWN) or 'there are ' + ', '.join(KNOWN)}")
    function, settings, seeded = KNOWN[name]
    return FrontEnd(text, function, settings(value), share, seeded and share > 0)

"""Random numbers as a pure function of (seed, image, name): batch size, order, workers and device do not matter."""

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from imagenet_biases.vocabulary import Batch


def _signed(number: int) -> int:
    """Return an unsigned 64-bit number as int64 holds it (torch has no wrapping uint64 arithmetic)."""
    return number - 2**64 if number >= 2**63 else number


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))


def _mix_(state: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """Scramble int64 numbers in place by the output function of splitmix64 (Steele et al. 2014, OOPSLA, figure 15)."""
    for shift, factor in MIX:
        # int64 shifts keep the sign: the mask makes them logical; products wrap
        state.bitwise_xor_((state >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return state


def streams(batch: Batch, name: str) -> Int64[Tensor, " B"]:
    """Return the state of each image's own stream of random numbers.

    `name` says what the numbers are for: another name, another image or another seed gives unrelated numbers.
    """
    salt = hashlib.blake2b(f"{batch.seed}/{name}".encode(), digest_size=8).digest()
    return _mix_(batch.keys ^ int.from_bytes(salt, "little", signed=True))


def bits(states: Int64[Tensor, " B"], count: int) -> Int64[Tensor, "B {count}"]:
    """Return `count` 64-bit random numbers per stream: splitmix64 started at each state."""
    return _mix_(states[:, None] + torch.arange(1, count + 1, device=states.device) * GOLDEN)


def uniform(states: Int64[Tensor, " B"], shape: Sequence[int]) -> Float[Tensor, "B ..."]:
    """Return numbers drawn uniformly from [0, 1), float32 [B, *shape]: multiples of 2^-24."""
    count = math.prod(shape)
    halves = bits(states, (count + 1) // 2).view(torch.int32)[:, :count]
    return ((halves >> 8) & 0xFFFFFF).float().mul_(2.0**-24).unflatten(1, shape)


def normal(states: Int64[Tensor, " B"], shape: Sequence[int]) -> Float[Tensor, "B ..."]:
    """Return standard normal numbers, float32 [B, *shape], at most 6.7 in size (Box & Muller 1958)."""
    count = math.prod(shape)
    halves = bits(states, (count + 1) // 2).view(torch.int32).unflatten(1, (-1, 2))
    radius = (halves[..., 0] & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).log_().mul_(-2).sqrt_()
    angle = halves[..., 1].float().mul_(math.pi * 2.0**-31)
    return torch.cat((angle.cos().mul_(radius), angle.sin_().mul_(radius)), 1)[:, :count].unflatten(1, shape)

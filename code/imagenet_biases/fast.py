"""The same network, faster: channels-last, batch norm folded into the convolutions, compiled for long runs."""

import warnings

import torch
from torch.fx.experimental.optimization import fuse

COMPILE_FROM = 20_000  # forward passes per network from which compiling (5-60 s) pays
TOLERANCE = 1e-3  # of the largest logit; folding and compiling reorder float32 sums, which moves logits by about 1e-6


def folded(network, example):
    """Return the network with its batch norms folded into the convolutions where that leaves its answers unchanged.

    Networks that cannot be traced, or that answer otherwise when folded, are returned as they are.
    """
    try:
        candidate = fuse(network)
        return candidate if _same(candidate, network, example) else network
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return network  # control flow that depends on the input, or a module that copies badly: run it unfolded


def compiled(network, example, context):
    """Return the network compiled with its weights frozen, or as it is (with a warning) where that fails.

    The result may only be called under torch.no_grad(), within the same `context` (autocast) and in the same shape.
    """
    import torch._dynamo
    import torch._inductor.config

    program = torch.compile(network, dynamic=False)
    try:
        # every network is a program of its own; dynamo's default gives up silently after eight of them
        torch._dynamo.config.recompile_limit = 1024
        with torch._inductor.config.patch(freezing=True), context():
            same = _same(program, network, example)
    except (RuntimeError, OSError, ImportError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(f"not compiled, which is slower but gives the same answers ({reason[:120]})", stacklevel=2)
        return network
    if not same:
        warnings.warn("not compiled: the compiled network answers otherwise", stacklevel=2)
        return network
    return program


def _same(candidate, network, example):
    with torch.no_grad():
        expected, got = network(example).float(), candidate(example).float()
    limit = TOLERANCE * expected.abs().max()
    return bool(((got - expected).abs() <= limit).all())

"""The same network, faster: channels-last, batch norm folded into the convolutions, compiled for long runs."""

import copy
import functools
import warnings

import torch
from torch.fx.experimental.optimization import fuse

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


class Programs:
    """Networks compiled, in one of two ways.

    shared: one program a graph, to which the weights are handed at each call, so that 48 networks that differ in
    nothing else are compiled once and no weights are kept twice; it has gradients as well. Else a program for each
    network, with its weights frozen into it and without gradients.
    """

    def __init__(self, shared):
        self.shared, self.graphs = shared, {}

    def compiled(self, network, example, context):
        """Return the network compiled, or as it is (with a warning) where that fails.

        The result may only be called within the same `context` (autocast), in the same shape and memory format, and
        unless it is shared under torch.no_grad().
        """
        import torch._dynamo
        import torch._inductor.config

        program = self._of_graph(network) or torch.compile(network, dynamic=False)
        # every network may be a program of its own; dynamo's defaults give up silently after eight of them, or 256
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096
        with torch._inductor.config.patch(freezing=not self.shared), context():
            return program if _agree(_same, program, network, example) else network

    def differentiable(self, program, network, example, context):
        """Return what `compiled` made of a network where it has the network's gradients, too, else the network."""
        if not self.shared or program is network:
            return network
        with context():
            return program if _agree(_same_slopes, program, network, example) else network

    def _of_graph(self, network):
        """Return the shared program of a traced network with the network's weights, or None."""
        if not (self.shared and isinstance(network, torch.fx.GraphModule)):
            return None
        weights = dict(network.named_parameters(remove_duplicate=False))
        weights |= dict(network.named_buffers(remove_duplicate=False))
        graph = _described(network, weights)
        if graph not in self.graphs:
            skeleton = copy.deepcopy(network).to("meta")

            def run(weights, pixels):
                return torch.func.functional_call(skeleton, weights, (pixels,))

            self.graphs[graph] = torch.compile(run, dynamic=False)
        return functools.partial(self.graphs[graph], weights)


def _described(network, weights):
    """Return all of a traced network but its weights, as text: what it calls, in which order, with which settings."""
    parts = [network.code]
    for name, module in network.named_modules():
        plain = {key: one for key, one in vars(module).items() if isinstance(one, bool | int | float | str | tuple)}
        parts.append(f"{name} {type(module).__module__}.{type(module).__qualname__} {plain if name else ''}")
    parts += [f"{name} {one.dtype} {tuple(one.shape)} {one.stride()}" for name, one in weights.items()]
    return "\n".join(parts)


def _agree(same, program, network, example):
    """Whether a program compiles and does what the network does; if not, a warning says why."""
    try:
        reason = "" if same(program, network, example) else "the compiled network answers otherwise"
    except (RuntimeError, OSError, ImportError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    if reason:
        what = "attacks are not compiled" if same is _same_slopes else "not compiled"
        warnings.warn(f"{what}, which is slower but gives the same answers ({reason})", stacklevel=3)
    return not reason


def _same(candidate, network, example):
    with torch.no_grad():
        expected, got = network(example), candidate(example)
    # a network may answer in half precision, where one and the same product has several roundings
    limit = max(TOLERANCE, 4 * torch.finfo(expected.dtype).eps) * expected.abs().max()
    return bool(((got.float() - expected.float()).abs() <= limit).all())


def _same_slopes(candidate, network, example):
    """Whether two networks have the same gradient, but for rounding: it adds up over the layers, there and back."""

    def slope(one):
        pixels = example.detach().requires_grad_()
        logits = one(pixels)
        return torch.autograd.grad(logits.float().logsumexp(1).sum(), pixels)[0], torch.finfo(logits.dtype).eps

    (expected, eps), (got, _) = slope(network), slope(candidate)
    return bool((got - expected).norm() <= max(TOLERANCE, 16 * eps) * expected.norm())

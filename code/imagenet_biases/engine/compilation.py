"""The same network, faster: batch norm folded into the convolutions, compiled for long runs."""

import copy
import functools
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.optimization import fuse

from imagenet_biases.engine.precision import float32_precision, rounding

TOLERANCE = 1e-3  # of the largest logit; folding and compiling reorder float32 sums, which moves logits by about 1e-6

Program = Callable[[Tensor], Tensor]


def folded(network: torch.nn.Module, example: Tensor) -> torch.nn.Module:
    """Return the network with its batch norms folded into the convolutions, where its answers stay the same.

    Networks that cannot be traced, or that answer differently when folded, are returned unchanged. The answers are
    compared in full float32, because those of two TensorFloat-32 programs differ by as much as a small mistake.
    """
    try:
        with float32_precision("fp32"):
            candidate = fuse(network)
            return candidate if _same_answers(candidate, network, example) else network
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return network  # control flow that depends on the input, or a module that copies badly: run it unfolded


class Programs:
    """Compiled networks, in one of two ways.

    Args:
        shared: one program per graph, to which the weights are passed at each call: 48 networks that differ in nothing
            else are compiled once, and no weights are kept twice; it has gradients as well. Otherwise one program per
            network, with its weights frozen into it and without gradients.
    """

    def __init__(self, shared: bool) -> None:
        self.shared = shared
        self.graphs: dict[str, Callable[..., Tensor]] = {}

    def compiled(
        self, network: torch.nn.Module, example: Tensor, context: Callable[[], AbstractContextManager]
    ) -> Program:
        """Return the network compiled, or unchanged (with a warning) where that fails.

        Call the result only within the same `context` (autocast), in the same shape and memory format, and unless it
        is shared under torch.no_grad().
        """
        import torch._dynamo
        import torch._inductor.config

        program = self._shared_program(network) or torch.compile(network, dynamic=False)
        # every network may be a program of its own; dynamo's defaults give up silently after eight of them, or 256
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096
        with torch._inductor.config.patch(freezing=not self.shared), context():
            return program if _agree(_same_answers, program, network, example) else network

    def differentiable(
        self,
        program: Program,
        network: torch.nn.Module,
        example: Tensor,
        context: Callable[[], AbstractContextManager],
    ) -> Program:
        """Return what `compiled` made of a network where it has the network's gradients too, else the network."""
        if not self.shared or program is network:
            return network
        with context():
            return program if _agree(_same_gradients, program, network, example) else network

    def _shared_program(self, network: torch.nn.Module) -> Program | None:
        """Return the shared program of a traced network with the network's weights, or None."""
        if not (self.shared and isinstance(network, torch.fx.GraphModule)):
            return None
        weights: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
        weights |= dict(network.named_buffers(remove_duplicate=False))
        graph = _description(network, weights)
        if graph not in self.graphs:
            skeleton = copy.deepcopy(network).to("meta")

            def run(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
                return torch.func.functional_call(skeleton, weights, (pixels,))

            self.graphs[graph] = torch.compile(run, dynamic=False)
        return functools.partial(self.graphs[graph], weights)


def _description(network: torch.fx.GraphModule, weights: Mapping[str, Tensor]) -> str:
    """Return everything about a traced network except its weights: what it calls, in which order and settings."""
    lines = [network.code]
    for name, module in network.named_modules():
        settings: dict[str, Any] = {}
        if name:
            plain = bool | int | float | str | tuple
            settings = {key: value for key, value in vars(module).items() if isinstance(value, plain)}
        lines.append(f"{name} {type(module).__module__}.{type(module).__qualname__} {settings or ''}")
    lines += [f"{name} {weight.dtype} {tuple(weight.shape)} {weight.stride()}" for name, weight in weights.items()]
    return "\n".join(lines)


def _agree(
    same: Callable[[Program, Program, Tensor], bool], program: Program, network: Program, example: Tensor
) -> bool:
    """Whether a program compiles and does what the network does; if not, a warning says why."""
    try:
        reason = "" if same(program, network, example) else "the compiled network answers differently"
    except (RuntimeError, OSError, ImportError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    if reason:
        what = "attacks are not compiled" if same is _same_gradients else "not compiled"
        warnings.warn(f"{what}, which is slower but gives the same answers ({reason})", stacklevel=3)
    return not reason


def _same_answers(candidate: Program, network: Program, example: Tensor) -> bool:
    with torch.no_grad():
        expected, answer = network(example), candidate(example)
    # in half precision or TensorFloat-32, one and the same product has several roundings
    limit = max(TOLERANCE, 4 * rounding(expected)) * expected.abs().max()
    return bool(((answer.float() - expected.float()).abs() <= limit).all())


def _same_gradients(candidate: Program, network: Program, example: Tensor) -> bool:
    """Whether two networks have the same gradients, up to rounding, which adds up over the layers in both passes.

    Most images decide: where a unit lies within rounding of a kink (ReLU, maximum), both of its slopes are right.
    """

    def gradient(program: Program) -> tuple[Tensor, float]:
        pixels = example.detach().requires_grad_()
        logits = program(pixels)
        return torch.autograd.grad(logits.float().logsumexp(1).sum(), pixels)[0].flatten(1), rounding(logits)

    (expected, eps), (computed, _) = gradient(network), gradient(candidate)
    alike = (computed - expected).norm(dim=1) <= max(TOLERANCE, 16 * eps) * expected.norm(dim=1)
    return bool(alike.float().mean() > 0.5)

"""The arithmetic of a run: what is in force is what is recorded."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# precision: that of float32 convolutions and recurrent layers, that of matrix products, as torch calls them
FLOAT32 = {"tf32-conv": ("tf32", "ieee"), "tf32": ("tf32", "tf32")}
IN_FULL = "ieee", "ieee"


@contextlib.contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Run float32 products in full or in TensorFloat-32, as a precision says, whatever the process's settings.

    Convolutions, recurrent layers and matrix products are set through torch's per-operator interface; both it and the
    older switches may have been used before, in any order, and read as before afterwards.

    Args:
        precision: one of vocabulary.PRECISIONS; those that are not in FLOAT32 leave float32 products in full.

    Raises:
        RuntimeError: torch does not take the setting, so that the record would be wrong.
    """
    convolutions, products = FLOAT32.get(precision, IN_FULL)
    backends: Any = torch.backends  # its stubs do not know fp32_precision
    older = None
    with contextlib.suppress(RuntimeError):  # it refuses to be read after a mix of both interfaces
        older = torch.get_float32_matmul_precision()
    before = []
    for level in (backends, backends.cudnn, backends.cuda.matmul, backends.mkldnn.matmul):
        before.append((level, level.fp32_precision))  # its own, since the levels above are neutral by now
        level.fp32_precision = "none"
    try:
        backends.fp32_precision, backends.cudnn.fp32_precision = products, convolutions
        wanted = {backends.cudnn.conv: convolutions, backends.cudnn.rnn: convolutions, backends.cuda.matmul: products}
        for operator, value in wanted.items():
            if operator.fp32_precision != value:  # set by itself: it does not follow the level above
                before.append((operator, operator.fp32_precision))
                operator.fp32_precision = value
        # compilers read the older switch, which must agree
        torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
        if any(operator.fp32_precision != value for operator, value in wanted.items()):
            raise RuntimeError(f"torch {torch.__version__} does not take the precision {precision}")
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for level, value in reversed(before):
            level.fp32_precision = value


def rounding(answer: Tensor) -> float:
    """Return the relative rounding error of the arithmetic that an answer comes from: of its type, or of TF32."""
    backends: Any = torch.backends
    in_tf32 = "tf32" in (backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision)
    eps = torch.finfo(answer.dtype).eps
    return max(eps, 2.0**-10) if answer.is_cuda and in_tf32 else eps

"""The float32 precision in force is the one asked for, whichever of torch's switches a process used before."""

import subprocess
import sys

import pytest

from common import CODE

PROGRAM = """
import functools, sys, warnings
warnings.simplefilter("ignore")
import torch
sys.path.insert(0, {code!r})
from imagenet_biases.engine.inference import float32_precision
b = torch.backends
NAMES = ["fp32_precision", *(f"{{n}}.fp32_precision" for n in ("cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn"))]
read = lambda: {{name: functools.reduce(getattr, name.split("."), b) for name in NAMES}}
{before}
first = read()
for precision, value in (("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
    with float32_precision(precision):
        assert set(read().values()) == {{value}}, (precision, read())
    assert read() == first, (precision, first, read())
try:
    with float32_precision("fp32"):
        raise KeyError
except KeyError:
    assert read() == first
b.fp32_precision = "ieee"  # what was not set by itself still follows
assert b.cudnn.conv.fp32_precision == ("ieee" if {follows} else first["cudnn.conv.fp32_precision"])
"""

BEFORE = {
    "nothing": ("", True),
    "older matmul": ("torch.set_float32_matmul_precision('high')", True),
    "older cudnn": ("b.cudnn.allow_tf32 = False", True),
    "all": ("b.fp32_precision = 'tf32'", True),
    "matmul": ("b.cuda.matmul.fp32_precision = 'tf32'", True),
    "cudnn": ("b.cudnn.fp32_precision = 'tf32'", False),
    "conv": ("b.cudnn.conv.fp32_precision = 'tf32'", False),
    "older, then conv": ("b.cudnn.allow_tf32 = True; b.cudnn.conv.fp32_precision = 'tf32'", False),
    "all, rnn, older": (
        "b.fp32_precision = 'ieee'; b.cudnn.rnn.fp32_precision = 'tf32'; torch.set_float32_matmul_precision('medium')",
        True,
    ),
}


@pytest.mark.parametrize("case", BEFORE)
def test_precision_in_force_and_restored(case):
    before, follows = BEFORE[case]
    program = PROGRAM.format(code=str(CODE), before=before, follows=follows)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

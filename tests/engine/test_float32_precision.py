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
for precision, value in [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")] if {entered} else []:
    with float32_precision(precision):
        assert set(read().values()) == {{value}}, (precision, read())
    assert read() == first, (precision, first, read())
if {entered}:
    try:
        with float32_precision("fp32"):
            raise KeyError
    except KeyError:
        assert read() == first
b.fp32_precision = "ieee"
print(read())
"""

BEFORE = {
    "nothing": "",
    "older matmul": "torch.set_float32_matmul_precision('high')",
    "older cudnn": "b.cudnn.allow_tf32 = False",
    "all": "b.fp32_precision = 'tf32'",
    "matmul": "b.cuda.matmul.fp32_precision = 'tf32'",
    "cudnn": "b.cudnn.fp32_precision = 'tf32'",
    "conv": "b.cudnn.conv.fp32_precision = 'tf32'",
    "older, then conv": "b.cudnn.allow_tf32 = True; b.cudnn.conv.fp32_precision = 'tf32'",
    "all, rnn, older": (
        "b.fp32_precision = 'ieee'; b.cudnn.rnn.fp32_precision = 'tf32'; torch.set_float32_matmul_precision('medium')"
    ),
}


def ended(case, entered):
    """Run the program; return what the switches read after the general one is set at the end."""
    program = PROGRAM.format(code=str(CODE), before=BEFORE[case], entered=entered)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("case", BEFORE)
def test_precision_in_force_and_restored(case):
    # what did not have a value of its own must not have one afterwards, either: it still follows the general switch
    assert ended(case, True) == ended(case, False) != ""

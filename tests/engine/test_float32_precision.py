"""The float32 precision in force is the one asked for, whichever of torch's switches a process used before."""

import json
import subprocess
import sys

import pytest

from common import CODE

PROGRAM = """
import functools, json, os, sys, warnings
warnings.simplefilter("ignore")
import torch
sys.path.insert(0, {code!r})
from imagenet_biases.engine.precision import float32_precision
b = torch.backends
MATMUL = ["fp32_precision", "cuda.matmul.fp32_precision"]
CONVOLUTIONS = ["cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision"]
NAMES = [*MATMUL, "cudnn.fp32_precision", *CONVOLUTIONS]
EXPECTED = {{"fp32": ("ieee",) * 2, "tf32-conv": ("tf32", "ieee"), "tf32": ("tf32",) * 2, "bf16": ("ieee",) * 2}}

def read(names=NAMES):
    return {{name: functools.reduce(getattr, name.split("."), b) for name in names}}

def observed(before, entered):
    exec(before)
    first = read()
    for precision, (convolutions, products) in EXPECTED.items() if entered else []:
        with float32_precision(precision):
            assert set(read(CONVOLUTIONS).values()) == {{convolutions}}, (precision, read())
            assert set(read(MATMUL).values()) == {{products}}, (precision, read())
            with float32_precision("fp32"):  # as where folding is checked
                assert set(read().values()) == {{"ieee"}}, (precision, read())
            assert set(read(CONVOLUTIONS).values()) == {{convolutions}}, (precision, read())
        assert read() == first, (precision, first, read())
    if entered:
        try:
            with float32_precision("fp32"):
                raise KeyError
        except KeyError:
            assert read() == first
    b.fp32_precision = "ieee"
    return read()

for name, before in json.load(sys.stdin).items():
    for entered in (True, False):
        source, target = os.pipe()
        if os.fork() == 0:  # a process of its own, in which no switch has been used
            try:
                seen = observed(before, entered)
            except BaseException as error:
                seen = repr(error)
            os.write(target, json.dumps([name, entered, seen]).encode())
            os._exit(0)
        os.wait()
        print(os.read(source, 1 << 16).decode())
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


@pytest.fixture(scope="module")
def observed():
    """What the switches read once the general one is set at the end: {(case, whether precisions were in force): {}}."""
    program = PROGRAM.format(code=str(CODE))
    cases = json.dumps(BEFORE)
    done = subprocess.run([sys.executable, "-c", program], input=cases, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = map(json.loads, done.stdout.splitlines())
    return {(case, entered): values for case, entered, values in seen}


@pytest.mark.parametrize("case", BEFORE)
def test_precision_in_force_and_restored(case, observed):
    # what did not have a value of its own must not have one afterwards, either: it still follows the general switch
    assert isinstance(observed[case, True], dict), observed[case, True]
    assert observed[case, True] == observed[case, False]

"""The benchmarks by the names of their scripts: eval_NAME.py beside the package, each of which declares a BENCHMARK."""

import difflib
import importlib.util
import sys
from functools import cache
from typing import TYPE_CHECKING

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.paths import SCRIPTS

if TYPE_CHECKING:
    from imagenet_biases.vocabulary import Benchmark


@cache
def names() -> tuple[str, ...]:
    """Return the names of all benchmarks, in the order of their files."""
    scripts = sorted(path.stem.removeprefix("eval_") for path in SCRIPTS.glob("eval_*.py"))
    return tuple(name for name in scripts if name != "all")


@cache
def find(name: str) -> "Benchmark":
    """Return the Benchmark that eval_NAME.py declares. Raises UserError for a name without a script."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), 1)
        hint = f", did you mean {close[0]}?" if close else ";"
        raise UserError(f"there is no benchmark {name}{hint} there are {', '.join(names())}")
    module = f"eval_{name}"
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, SCRIPTS / f"{module}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    return sys.modules[module].BENCHMARK

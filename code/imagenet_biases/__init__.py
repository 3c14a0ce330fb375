"""What did a training method do to a vision model? Measures networks on generalization benchmarks and on their biases.

from imagenet_biases import Data, Settings, evaluate
records = evaluate("tv_resnet50", "spectral", Data(folders={"imagenet": folder}))
records[0].metrics["metric/bandpass/LPP"].value
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

try:
    os.getcwd()
except FileNotFoundError:  # nothing that comes after would say so: the libraries of torch end the process
    raise SystemExit("error: the working directory has been deleted: change to one that exists") from None

if TYPE_CHECKING:
    from imagenet_biases.engine.evaluate import Loading, Recording, evaluate, evaluate_rounds
    from imagenet_biases.networks.load import load_model
    from imagenet_biases.results.records import Record
    from imagenet_biases.vocabulary import (
        Benchmark,
        Categories,
        Condition,
        Data,
        Estimate,
        Option,
        Pass,
        Presentation,
        Readout,
        Responses,
        Results,
        Settings,
        TopClasses,
        identified,
    )

__all__ = [
    "Benchmark",
    "Categories",
    "Condition",
    "Data",
    "Estimate",
    "Loading",
    "Option",
    "Pass",
    "Presentation",
    "Readout",
    "Record",
    "Recording",
    "Responses",
    "Results",
    "Settings",
    "TopClasses",
    "evaluate",
    "evaluate_rounds",
    "identified",
    "load_model",
]
_ELSEWHERE = {"load_model": "networks.load", "Record": "results.records"} | dict.fromkeys(
    ("evaluate", "evaluate_rounds", "Loading", "Recording"), "engine.evaluate"
)


def __getattr__(name: str) -> Any:
    """Import a public name only when it is used: a command line has to answer --help before torch is there."""
    if name not in __all__:
        raise AttributeError(f"module 'imagenet_biases' has no attribute {name!r}")
    module = importlib.import_module(f"imagenet_biases.{_ELSEWHERE.get(name, 'vocabulary')}")
    return getattr(module, name)

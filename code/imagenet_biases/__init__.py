"""What did a training method do to a vision model? Measures networks on generalization benchmarks and on their biases.

from imagenet_biases import Data, Settings, evaluate
records = evaluate("tv_resnet50", "spectral", Data(folders={"imagenet": folder}))
records[0].metrics["metric/bandpass/LPP"].value
"""

import os

try:
    os.getcwd()
except FileNotFoundError:  # nothing that comes after would say so: the libraries of torch end the process
    raise SystemExit("error: the working directory has been deleted: change to one that exists") from None


def __getattr__(name):
    """Import the door only when it is used: a command line has to answer --help before torch is there."""
    if name == "evaluate":
        from imagenet_biases.engine.evaluate import evaluate

        return evaluate
    if name in ("Benchmark", "Condition", "Data", "Option", "Pass", "Readout", "Settings", "identified"):
        from imagenet_biases import vocabulary

        return getattr(vocabulary, name)
    raise AttributeError(f"module 'imagenet_biases' has no attribute {name!r}")

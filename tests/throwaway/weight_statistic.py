"""Throw-away benchmark: a statistic of the weights alone, without any image."""

import torch

from imagenet_biases.vocabulary import Benchmark


def report(found):
    weights = [m.weight for m in found.network.modules() if isinstance(m, torch.nn.Conv2d)]
    dead = sum(int((w.flatten(1).abs().amax(1) < 1e-3 * w.abs().max()).sum()) for w in weights)
    yield "metric/quality/sparsity_wmean", dead / sum(len(w) for w in weights)


BENCHMARK = Benchmark("weights", lambda data: [], report, sets=None)

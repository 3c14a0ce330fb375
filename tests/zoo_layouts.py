"""Checkpoint files as the zoo's authors laid them out, made from any ResNet-50 state dict.

Written from the descriptions of the files (and not from models/zoo.toml), so that the registry's rules are tested
against them. `write(name, state, folder)` gives the paths of a network's files, in the order of its entry.
"""

import argparse
import re
import sys
import types

import numpy as np
import timm
import torch
from safetensors.torch import save_file

OLD = {"_use_new_zipfile_serialization": False}  # the format before torch 1.6


def narrow():
    """A ResNet-50 of a 16th of the width: the same names, 1 MB instead of 100."""
    return timm.create_model("resnet50", channels=(4, 8, 16, 32))


def random_state(build, seed=0):
    """State dict of a network with nothing left at its start value."""
    torch.manual_seed(seed)
    network = build()
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(450_450)
        elif name.endswith(("running_var", "weight")) and value.ndim == 1:
            value.uniform_(0.5, 1.5)
        else:
            value.normal_(0, 0.05)
    return network.state_dict()


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def momentum(state):
    """State of an SGD optimizer with momentum after a step."""
    parameters = [torch.nn.Parameter(value.clone()) for value in state.values() if value.is_floating_point()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def stranger(**attributes):
    """An object of a class whose package is not installed where the file is read (see `forget_strangers`)."""
    module = sys.modules.setdefault("cox_of_old", types.ModuleType("cox_of_old"))
    if not hasattr(module, "Parameters"):
        module.Parameters = type("Parameters", (), {"__module__": "cox_of_old"})
    value = module.Parameters()
    value.__dict__.update(attributes)
    return value


def forget_strangers():
    sys.modules.pop("cox_of_old", None)


def tensorflow_names(state):
    """ResNet-50 names of the SimCLRv2 conversion: stages and blocks of `net` lists, a batch norm within a pair."""
    slots = {"conv1": "net.0", "bn1": "net.1.0", "conv2": "net.2", "bn2": "net.3.0", "conv3": "net.4", "bn3": "net.5"}
    renamed = {}
    for name, value in state.items():
        if found := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.([01])\.(\w+)", name):
            stage, block, which, kind = found.groups()
            part = "projection.shortcut" if which == "0" else "projection.bn.0"
            renamed[f"net.{stage}.blocks.{block}.{part}.{kind}"] = value
        elif found := re.fullmatch(r"layer(\d)\.(\d+)\.(\w+)\.(\w+)", name):
            stage, block, part, kind = found.groups()
            renamed[f"net.{stage}.blocks.{block}.{slots[part]}.{kind}"] = value
        elif name.startswith("fc."):
            renamed[name] = value
        else:
            part, kind = name.split(".")
            renamed[f"net.0.0.{kind}" if part == "conv1" else f"net.0.1.0.{kind}"] = value
    return renamed


def training(state, **more):
    """What a training script of the PyTorch examples saves."""
    best = torch.tensor(76.5)
    return {"epoch": 90, "arch": "resnet50", "state_dict": prefixed("module.", state), "best_acc1": best, **more}


def write(name, state, folder):
    """Write the files of the zoo's network `name`, holding the weights `state`; return their paths."""
    path = folder / f"{name}.pth"
    without_counters = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    if name.startswith(("tv_", "tv2_", "resnet50.")):  # timm, on the hub
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    elif "diffusionnoise" in name:
        torch.save({"model": prefixed("module.", state), "epoch": 89}, path)
    elif name == "resnet50_prime":
        torch.save(prefixed("module.", state), path)
    elif name == "resnet50_noisymix":
        torch.save({"model_state_dict": prefixed("module.", state)}, path)
    elif name in ("resnet50_opticsaugment", "resnet50_frozen_random"):
        torch.save({"online_backbone": prefixed("module.", state)}, path)
    elif "tsbias" in name:
        auxiliary = {
            re.sub(r"(bn\d|downsample\.1)\.", r"\1.aux_bn.", key): value + 1
            for key, value in state.items()
            if re.search(r"bn\d|downsample\.1", key)
        }
        torch.save(training({**state, **auxiliary}), path)
    elif "SIN" in name:  # 2018: no counters yet
        torch.save(training(without_counters, optimizer=momentum(state)), path, **OLD)
    elif name.startswith("robust_"):
        normalizer = {"new_mean": torch.rand(1, 3, 1, 1), "new_std": torch.rand(1, 3, 1, 1)}
        model = {
            **prefixed("module.normalizer.", normalizer),
            **prefixed("module.model.", state),
            **prefixed("module.attacker.normalize.", normalizer),
            **prefixed("module.attacker.model.", state),  # the same tensors
        }
        extra = {
            "optimizer": momentum(state),
            "schedule": {"base_lrs": [0.1]},
            "epoch": 90,
            "amp": None,
            "prec1": np.float64(75.1),
            "args": argparse.Namespace(eps="0.5", custom=stranger(eps=0.5)),
        }
        torch.save({"model": model, **extra}, path, **(OLD if "linf" in name else {}))
        forget_strangers()
    elif name == "resnet50_dino":
        backbone = {key: value for key, value in state.items() if not key.startswith("fc.")}
        head = {"module.linear.weight": state["fc.weight"], "module.linear.bias": state["fc.bias"]}
        torch.save(backbone, path)
        torch.save({"epoch": 100, "state_dict": head, "best_acc": 75.3}, second := folder / f"{name}_linear.pth")
        return [path, second]
    elif name == "resnet50_swav":
        backbone = {key: value for key, value in state.items() if not key.startswith("fc.")}
        more = {"projection_head.0.weight": torch.rand(8, 8), "prototypes.weight": torch.rand(30, 8)}
        head = {"module.linear.weight": state["fc.weight"], "module.linear.bias": state["fc.bias"]}
        torch.save(prefixed("module.", {**backbone, **more}), path, **OLD)
        torch.save({"state_dict": head, "epoch": 28}, second := folder / f"{name}_linear.pth", **OLD)
        return [path, second]
    elif name == "resnet50_simclrv2":
        head = {"layers.0.weight": torch.rand(8, 8)}
        torch.save({"resnet": tensorflow_names(state), "head": head}, path)
    else:
        torch.save(training(state, optimizer=momentum(state)), path)
    return [path]

"""Checkpoint files as people have them: what tools leave in the names, and what other libraries call the same weights.

Each file is made from a network of known weights; what is read must be those weights.
"""

import re
import warnings

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import zoo_layouts
from common import SHARED, needs_shared
from imagenet_biases.base.errors import UserError
from imagenet_biases.base.safe_pickle import read
from imagenet_biases.networks import registry
from imagenet_biases.networks.load import load_model
from imagenet_biases.networks.state_dict import find

ARCH = "zoo_layouts:narrow"


@pytest.fixture(scope="module")
def state():
    return zoo_layouts.random_state(zoo_layouts.narrow)


def read_into(build, contents, path):
    """What `find` makes of a file, and what it says."""
    torch.save(contents, path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = find(read(path), build(), path.name)
    return state, [str(warning.message) for warning in caught]


def same(state, expected):
    expected = {name: value for name, value in expected.items() if not name.endswith("num_batches_tracked")}
    return expected.keys() <= state.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def split(state):
    """The backbone and the head of a state dict."""
    head = {name: value for name, value in state.items() if name.startswith("fc.")}
    return {name: value for name, value in state.items() if name not in head}, head


# --- what tools leave in names ---------------------------------------------------------------------------------------


def counted(state):
    """As thop leaves a network that it has profiled, without its classifier's counters removed."""
    modules = {name.rpartition(".")[0] for name in state}
    counters = {f"{module}.{name}": torch.zeros(1) for module in modules for name in ("total_ops", "total_params")}
    return {**state, **counters, "total_ops": torch.zeros(1), "total_params": torch.zeros(1)}


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": zoo_layouts.prefixed("module.", state)}]
)
def test_counters_of_thop_are_left_out_with_a_word(wrap, state, tmp_path):
    found, said = read_into(zoo_layouts.narrow, wrap(counted(state)), tmp_path / "x.pth")
    assert same(found, state)
    (line,) = said
    assert re.match(r"x\.pth has \d+ tensors beside the network, which are not used: .*total_(ops|params)", line)


def inner(state, wrapper):
    return {re.sub(r"^(layer\d)\.", rf"\1.{wrapper}", name): value for name, value in state.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: inner(state, "_orig_mod."),
        lambda state: inner(state, "module."),
        lambda state: {"model": zoo_layouts.prefixed("module._orig_mod.", inner(state, "module._orig_mod."))},
        lambda state: zoo_layouts.prefixed("_orig_mod.", state),
        lambda state: zoo_layouts.prefixed("net._orig_mod.", inner(state, "_fsdp_wrapped_module.")),
    ],
)
def test_wrappers_of_torch_in_names(change, state, tmp_path):
    found, said = read_into(zoo_layouts.narrow, change(state), tmp_path / "x.pth")
    assert same(found, state) and said == []


def test_a_network_with_wrappers_of_its_own(state, tmp_path):
    """The network has them, the file has not, or has others; a name of its own is no wrapper."""

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Sequential(zoo_layouts.narrow(), torch.nn.Identity())

    for contents in (zoo_layouts.prefixed("0.", state), zoo_layouts.prefixed("module.0._orig_mod.", state)):
        found, said = read_into(Wrapped, contents, tmp_path / "x.pth")
        assert same(found, zoo_layouts.prefixed("module.0.", state)) and said == []


@needs_shared
def test_the_real_network_behind_wrappers_gives_the_same_logits(tmp_path):
    from imagenet_biases.networks.user_code import build

    network, _ = build(f"{SHARED / 'nets' / 'mobilenet.py'}:load")
    contents = {
        name.replace("layers.", "layers.module._orig_mod."): value for name, value in network.state_dict().items()
    }
    torch.save({"state_dict": counted(contents)}, tmp_path / "x.pth")
    with pytest.warns(UserWarning, match="total_"):
        loaded = load_model(f"{tmp_path}/x.pth", arch=f"{SHARED / 'nets' / 'mobilenet.py'}:load", normalization="none")
    pixels = torch.rand(2, 3, 224, 224)
    assert torch.equal(loaded(pixels), network(pixels))


# --- other libraries -------------------------------------------------------------------------------------------------


def mmpretrain(state, prefix=""):
    backbone, head = split(state)
    return zoo_layouts.prefixed(f"{prefix}backbone.", backbone) | zoo_layouts.prefixed(f"{prefix}head.", head)


def test_backbone_and_head_of_mmpretrain(state, tmp_path):
    found, said = read_into(zoo_layouts.narrow, {"meta": {}, "state_dict": mmpretrain(state)}, tmp_path / "x.pth")
    assert same(found, state) and said == []


def test_the_moving_average_beside_the_weights_is_named(state, tmp_path):
    """As mmengine's hook writes it: the average in place of the weights, these beside it."""
    weights = {name: value + 1 for name, value in state.items()}
    source = mmpretrain(weights, "module.") | {"steps": torch.tensor(9)}
    contents = {"state_dict": mmpretrain(state), "ema_state_dict": source}
    found, said = read_into(zoo_layouts.narrow, contents, tmp_path / "x.pth")
    assert same(found, state)
    assert "contains several networks: 'state_dict.backbone.' is used, not ema_state_dict.module.backbone." in said[0]


def test_lightning_with_a_moving_average(state, tmp_path):
    """Heads and backbones of two copies are not mixed."""
    average = {name: value + 1 for name, value in state.items()}
    contents = {
        "state_dict": mmpretrain(state, "model.") | mmpretrain(average, "ema.") | {"loss.weight": torch.ones(9)}
    }
    found, said = read_into(zoo_layouts.narrow, contents, tmp_path / "x.ckpt")
    assert same(found, state)
    assert "'state_dict.model.backbone.' is used, not state_dict.ema.backbone." in said[0]
    assert "1 tensors beside the network, which are not used: state_dict.loss.weight" in said[1]


def test_two_heads_that_fit_are_not_chosen_from(state, tmp_path):
    backbone, head = split(state)
    heads = zoo_layouts.prefixed("a.", head) | {f"b.{name}": value + 1 for name, value in head.items()}
    with pytest.raises(UserError, match=r"does not fit .* 2 missing: fc\.weight, fc\.bias"):
        read_into(zoo_layouts.narrow, zoo_layouts.prefixed("backbone.", backbone) | heads, tmp_path / "x.pth")


def renamed(state, rules):
    names = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        names[name] = value
    return names


def convnext():
    return ConvNeXt(depths=(1, 1, 2, 1), dims=(4, 8, 12, 16))


def swin():
    return SwinTransformer(embed_dim=4, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 2))


def deit3():
    return VisionTransformer(embed_dim=8, depth=2, num_heads=2, init_values=1e-6, no_embed_class=True)


AUTHORS = {  # {build: rules that turn timm's names into those of the published files}
    convnext: [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.", "."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    ],
    swin: [
        (r"^layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample"),
        (r"^head\.fc", "head"),
    ],
    deit3: [(r"ls(\d)\.gamma", r"gamma_\1")],
}


@pytest.mark.parametrize("build", AUTHORS)
@pytest.mark.parametrize("wrap", [lambda state: {"model": state}, lambda state: zoo_layouts.prefixed("module.", state)])
def test_files_of_an_architectures_authors(build, wrap, tmp_path):
    state = zoo_layouts.random_state(build)
    published = renamed(state, AUTHORS[build])
    assert published.keys() != state.keys()
    if build is swin:
        published["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    found, said = read_into(build, wrap(published), tmp_path / "x.pth")
    assert same(found, state) and said == []


EXTRAS = {  # {build: {what timm's translation of its files leaves out: whether a word is due}}
    swin: {
        "layers.0.blocks.0.attn.relative_position_index": False,
        "layers.0.blocks.1.attn_mask": False,
        "norm.total_ops": False,
        "relative_position_index_head.weight": True,
        "attn_mask_norm.weight": True,
    },
    convnext: {"norms.0.weight": True, "projectors.0.head.weight": True, "head.total_params": False},
}


@pytest.mark.parametrize("build", EXTRAS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_timms_translation_drops_is_named(build, prefix, tmp_path):
    state = zoo_layouts.random_state(build)
    extras = {name: torch.rand(3) for name in EXTRAS[build]}
    published = zoo_layouts.prefixed(prefix, renamed(state, AUTHORS[build]) | extras)
    found, said = read_into(build, {"model": published}, tmp_path / "x.pth")
    loud = ", ".join(f"model.{prefix}{name}" for name, due in EXTRAS[build].items() if due)
    assert same(found, state)
    assert said == [f"x.pth has 2 tensors beside the network, which are not used: {loud}"]


def test_weights_for_another_size_of_images_are_not_resampled(tmp_path):
    state = renamed(zoo_layouts.random_state(deit3), AUTHORS[deit3])
    state["pos_embed"] = torch.rand(1, 576, 8)  # of 384 pixels
    with pytest.raises(UserError, match="does not fit"):
        read_into(deit3, {"model": state}, tmp_path / "x.pth")


# --- two files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dino", "swav", "same names", "head first"])
def test_backbone_and_head_in_two_files(kind, state, tmp_path):
    backbone, head = split(state)
    linear = {"epoch": 9, "state_dict": renamed(head, [("^fc", "module.linear")])}
    body = backbone
    if kind == "swav":
        body = zoo_layouts.prefixed("module.", backbone) | {"module.projection_head.0.weight": torch.rand(8, 8)}
    if kind == "same names":
        linear = head
    names = [f"{tmp_path}/backbone.pth", f"{tmp_path}/linear.pth.tar"]
    torch.save(body, names[0])
    torch.save(linear, names[1])
    name = "+".join(reversed(names) if kind == "head first" else names)
    assert registry.resolve(name) == [name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = load_model(name, arch=ARCH)
    said = [str(warning.message) for warning in caught]
    assert len(said) == (kind == "swav") and all("projection_head" in line for line in said)
    assert network.name == ("linear+backbone" if kind == "head first" else "backbone+linear")
    assert network.identity["checkpoint_sha256"].count("+") == 1
    torch.save(state, tmp_path / "whole.pth")
    assert network.identity["network"] == load_model(f"{tmp_path}/whole.pth", arch=ARCH).identity["network"]


def test_the_first_part_of_a_deeper_network_is_not_this_one(tmp_path):
    """Its names and shapes are all there, and more."""
    deeper = timm.create_model("resnet101", channels=(4, 8, 16, 32)).state_dict()
    backbone, head = split(deeper)
    torch.save(backbone, tmp_path / "backbone.pth")
    torch.save(head, tmp_path / "head.pth")
    with pytest.raises(UserError, match=r"left over: .*layer3"):
        load_model(f"{tmp_path}/backbone.pth+{tmp_path}/head.pth", arch=ARCH)
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist: give a checkpoint file"):
        load_model(f"{tmp_path}/backbone.pth+{tmp_path}/nowhere.pth", arch=ARCH)

"""What timm and torchvision publish: where their weights are and how their authors evaluate them.

A package is imported only when one of its networks is requested.
"""

import math
from typing import TYPE_CHECKING, Any

from imagenet_biases.base.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

    from imagenet_biases.images.preprocessing import Preprocessing

CLASSES = 1000


def in_timm(name: str, pretrained: bool = True) -> bool:
    """Whether timm has a network of this name."""
    import timm

    return timm.models.is_model_pretrained(name) if pretrained else timm.is_model(name)


def timm_names(pretrained: bool = True) -> list[str]:
    """Return timm's names, of pretrained networks or of bare architectures."""
    import timm

    return timm.list_models(pretrained=True) if pretrained else timm.list_models()


def timm_address(name: str) -> str:
    """Return the address of a timm name's pretrained weights. Raises UserError if it has none for 1,000 classes."""
    import timm

    config: Any = timm.models.get_pretrained_cfg(name) if in_timm(name) else None
    if config is None or not (config.hf_hub_id or config.url):
        hint = nearest(name, timm_names()) or "`timm.list_pretrained()` lists what it has"
        raise UserError(f"timm has no pretrained weights for {name!r}: {hint}")
    if config.num_classes != CLASSES:
        raise UserError(f"timm's {name} has {config.num_classes} outputs; a network needs {CLASSES} (ImageNet-1k)")
    return (
        f"hf://{config.hf_hub_id}/{config.hf_hub_filename or 'model.safetensors'}" if config.hf_hub_id else config.url
    )


def timm_config(name: str) -> dict[str, Any]:
    """Return how timm evaluates `name`: input_size, interpolation, mean, std, crop_pct, crop_mode."""
    import timm
    from timm.data.config import resolve_data_config

    config: Any = timm.models.get_pretrained_cfg(name)
    return resolve_data_config(pretrained_cfg=config.to_dict(), use_test_size=True)


def timm_preprocessing(config: dict[str, Any]) -> "Preprocessing | str":
    """Return the Preprocessing of a timm configuration, or a description where Preprocessing cannot express it."""
    from imagenet_biases.images.preprocessing import Preprocessing

    _, height, width = config["input_size"]
    if config["crop_mode"] != "center" or height != width:
        return f"crop mode {config['crop_mode']}, {height} x {width}"
    return Preprocessing(math.floor(height / config["crop_pct"]), height, config["interpolation"])


def torchvision_weights(location: str) -> Any:
    """Return torchvision's weights "builder:WEIGHTS" (with url and transforms). Raises UserError if there are none."""
    from torchvision import models

    builder, _, name = location.partition(":")
    if builder not in models.list_models(models):
        raise UserError(f"torchvision has no network {builder!r}: {nearest(builder, models.list_models(models))}")
    weights = models.get_model_weights(builder)
    if name not in weights.__members__:
        raise UserError(f"torchvision's {builder} has no weights {name!r}, it has {', '.join(weights.__members__)}")
    return weights[name]


def torchvision_preprocessing(location: str) -> "Preprocessing":
    """Return the Preprocessing with which torchvision evaluates weights."""
    from imagenet_biases.images.preprocessing import Preprocessing

    preset = torchvision_weights(location).transforms()
    return Preprocessing(preset.resize_size[0], preset.crop_size[0], preset.interpolation.value)


def xcit_medium_12() -> "torch.nn.Module":
    """Return XCiT-M12/16, which timm has with twice the depth (Debenedetti et al. 2022, arXiv:2209.07399)."""
    import timm

    return timm.create_model("xcit_medium_24_p16_224", depth=12)


def xcit_large_12() -> "torch.nn.Module":
    """Return XCiT-L12/16, as above."""
    import timm

    return timm.create_model("xcit_large_24_p16_224", depth=12)


def as_torchvision_evaluates(body: Any) -> None:
    """Let GoogLeNet and Inception v3 rescale their input, as torchvision does when it loads their weights."""
    if hasattr(body, "transform_input"):
        body.transform_input = True

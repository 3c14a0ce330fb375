"""What the packages of networks publish: where their weights lie and how their authors evaluate them.

A package is imported only when one of its networks is asked for.
"""

import math

from imagenet_biases.errors import UserError

CLASSES = 1000


def in_timm(name, pretrained=True):
    """Whether timm knows a network of this name."""
    import timm

    return timm.models.is_model_pretrained(name) if pretrained else timm.is_model(name)


def timm_names(pretrained=True):
    """Return the names that timm knows, of pretrained networks or of bare architectures."""
    import timm

    return timm.list_models(pretrained=True) if pretrained else timm.list_models()


def timm_address(name):
    """Return the address of a timm name's pretrained weights. Raises UserError if it has none for 1,000 classes."""
    import timm

    config = timm.models.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise UserError(f"timm has no pretrained weights for {name!r}: `timm.list_pretrained()` lists what it has")
    if config.num_classes != CLASSES:
        raise UserError(f"timm's {name} has {config.num_classes} outputs; a network needs {CLASSES} (ImageNet-1k)")
    return (
        f"hf://{config.hf_hub_id}/{config.hf_hub_filename or 'model.safetensors'}" if config.hf_hub_id else config.url
    )


def timm_config(name):
    """What timm evaluates `name` with: input_size, interpolation, mean, std, crop_pct, crop_mode."""
    import timm

    return timm.data.resolve_data_config(
        pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict(), use_test_size=True
    )


def timm_view(config):
    """The View of a timm configuration, or, where a View cannot say it, a description."""
    from imagenet_biases.images.pixels import View

    _, height, width = config["input_size"]
    if config["crop_mode"] != "center" or height != width:
        return f"crop mode {config['crop_mode']}, {height} x {width}"
    return View(math.floor(height / config["crop_pct"]), height, config["interpolation"])

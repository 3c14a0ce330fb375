"""One small ResNet-18 in the forms in which people bring it: torch module, timm, transformers, ONNX."""

import json

import torch

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def resnet18(images):
    """Return a random torchvision ResNet-18 whose answers differ between normalized images [N, 3, 224, 224]."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # the statistics of these images
    with torch.no_grad():
        network.train()(images)
        network.eval()
        head, network.fc = network.fc, torch.nn.Identity()
        features = network(images)
        head.weight.mul_(20)
        head.bias.copy_(-head.weight @ features.mean(0))
        network.fc = head
    return network


def timm_folder(network, folder):
    """Save it as timm pushes a model to the hub; return the folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    settings = {"input_size": [3, 224, 224], "interpolation": "bilinear", "crop_pct": 0.875, "num_classes": 1000}
    settings |= IMAGENET | {"first_conv": "conv1", "classifier": "fc"}
    config = {"architecture": "resnet18", "num_classes": 1000, "num_features": 512, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def labels():
    """Return ImageNet's labels as models of transformers name them."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return {number: info.index_to_description(number) for number in range(1000)}


def transformers_folder(network, folder, names=None):
    """Save it as a model of transformers with its processor; return the folder."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=1000
    )
    config.id2label = names or labels()
    config.label2id = {name: number for number, name in config.id2label.items()}
    model = ResNetForImageClassification(config)
    state = {}
    for name, value in network.state_dict().items():
        parts = name.split(".")
        if name.startswith(("conv1", "bn1")):
            new = f"resnet.embedder.embedder.{'convolution' if parts[0] == 'conv1' else 'normalization'}.{parts[-1]}"
        elif parts[0] == "fc":
            new = f"classifier.1.{parts[1]}"
        else:
            block = f"resnet.encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}"
            kind = (
                "convolution" if parts[2].startswith("conv") or parts[2:4] == ["downsample", "0"] else "normalization"
            )
            where = "shortcut" if parts[2] == "downsample" else f"layer.{int(parts[2][-1]) - 1}"
            new = f"{block}.{where}.{kind}.{parts[-1]}"
        state[new] = value
    model.load_state_dict(state, strict=True)
    model.save_pretrained(folder)
    processor = ConvNextImageProcessor(
        size={"shortest_edge": 224}, crop_pct=0.875, image_mean=IMAGENET["mean"], image_std=IMAGENET["std"], resample=2
    )
    processor.save_pretrained(folder)
    return folder


def onnx_file(network, path, batch="batch", **settings):
    """Export it; `batch`: a number for a file that takes so many images only."""
    count = batch if isinstance(batch, int) else 2
    shapes = None if isinstance(batch, int) else ({0: torch.export.Dim(batch)},)
    example = torch.zeros((count, 3, 224, 224))
    torch.onnx.export(
        network, (example,), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False, **settings
    )
    return path

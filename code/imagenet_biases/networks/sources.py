"""Networks by the names they have elsewhere: timm's hub, transformers' image classifiers, torch.hub, ONNX files.

hf-hub:OWNER/NAME and timm/NAME, hf:OWNER/NAME, each with @REVISION at will (a folder may stand for OWNER/NAME);
torchhub:OWNER/REPO:ENTRY or torchhub:FOLDER:ENTRY; net.onnx. The packages that they need are optional and imported when
needed.
"""

import hashlib
import json
import urllib.parse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from imagenet_biases.base.download import commit_in_cache, commit_of, fetch, file_hash
from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import demand_file
from imagenet_biases.images.preprocessing import Preprocessing
from imagenet_biases.networks import packages, registry
from imagenet_biases.networks.normalization import Normalization, Statements
from imagenet_biases.networks.packages import CLASSES
from imagenet_biases.networks.state_dict import warn_of_dropped
from imagenet_biases.networks.user_code import blaming, one_line
from imagenet_biases.study import STUDY_CROP
from imagenet_biases.vocabulary import identified

PLACE_AND_TIME = (
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "transformers_version",
)  # of a configuration, not the network
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# timm's hub -----------------------------------------------------------------------------------------------------------


def timm_hub(name: str, checkpoints: str | Path | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return (Network's arguments, {address: sha256}) of hf-hub:OWNER/NAME or timm/NAME, or of a folder in their place.

    OWNER/NAME@REVISION is a branch, tag or commit of the repository; its commit is in the record.

    Raises:
        UserError: there is no such repository, its files are damaged, or it has other classes than ImageNet's 1,000.
    """
    import timm
    from timm.data.config import resolve_data_config

    from imagenet_biases.networks.load import read_verified

    place = name.removeprefix("hf-hub:")
    path, _ = _file_of(place, ("config.json",), checkpoints)
    with one_line(name):
        config = json.loads(path.read_text("utf-8"))
        stated = (config.get("pretrained_cfg") or {}) | config
        known = {item.name for item in fields(timm.models.PretrainedCfg)}
        settings = {key: value for key, value in stated.items() if key in known}
        labels = config.get("label_names")
    if settings.get("num_classes") != CLASSES:
        raise UserError(f"{name} has {settings.get('num_classes')} outputs; a network needs {CLASSES} (ImageNet-1k)")
    if isinstance(labels, list):
        check_order(labels, name)
    path, address = _file_of(place, WEIGHTS, checkpoints)
    contents, sha256 = read_verified(address, path)
    overlay = {"state_dict": contents}  # timm's own strict loading, as for timm's names
    with one_line(name):
        body: Any = timm.create_model(
            config["architecture"],
            pretrained=True,
            pretrained_cfg=settings,
            pretrained_cfg_overlay=overlay,
            **config.get("model_args", {}),
        )
        body.pretrained_cfg.pop("state_dict")
        warn_of_dropped(contents, body, name)
        used = resolve_data_config(pretrained_cfg=settings, use_test_size=True)
    facts = {
        "checkpoint_sha256": sha256,
        "source": address if "://" in address else "a folder",
        "revision": commit_of(path),
        "arch": config["architecture"],
        "normalization": "timm",
    }
    preprocessing = packages.timm_preprocessing(used)
    parts = {"body": body, "mean": used["mean"], "std": used["std"], "preprocessing": preprocessing, "facts": facts}
    return parts, {address: sha256}


def _file_of(place: str, names: Sequence[str], checkpoints: str | Path | None) -> tuple[Path, str]:
    """Return (path, address) of the first of some files that a folder or a repository of the hub has."""
    if Path(place).is_dir():
        paths = [Path(place) / name for name in names]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise UserError(f"{place} has no {' or '.join(names)}; give a folder as timm or transformers save it")
        return path, str(path)
    repository, revision = registry.split_revision(place)
    if repository.count("/") != 1:
        raise UserError(f"'{place}' is neither OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face hub nor a folder")
    problems: list[UserError] = []
    for name in names:
        version = f"@{urllib.parse.quote(revision, safe='')}" if revision else ""
        address = f"hf://{repository}{version}/{name}"
        try:
            return fetch(address, registry.checkpoint_folder(checkpoints)), address
        except UserError as error:
            problems.append(error)
    raise problems[0]


# transformers' image classifiers --------------------------------------------------------------------------------------


@identified("image_classifier")
class ImageClassifier(torch.nn.Module):
    """A transformers image classifier on normalized pixels: [B, 3, H, W] -> logits [B, 1000].

    Args:
        flipped: whether it takes the channels as B, G, R.
    """

    side: int | None = None
    published = ("transformers",)  # whose code the model's configuration identifies

    def __init__(self, model: Any, flipped: bool = False) -> None:
        super().__init__()
        self.model, self.flipped = model, flipped

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        return self.model(pixel_values=pixels.flip(1) if self.flipped else pixels).logits


@dataclass(frozen=True)
class ProcessorPreprocessing(Preprocessing):
    """What a transformers image processor makes of an image, before it rescales and normalizes.

    Attributes:
        name: identifies the processor and its settings.
        low, high: what it makes of a black and a white pixel, per channel.
        flipped: whether it gives the channels as B, G, R.
    """

    name: str = ""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    flipped: bool = False
    processor: Any = field(default=None, compare=False, repr=False)

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "crop crop 3"]:
        values = _processed(self.processor, [self.seen(image).convert("RGB")])[0].transpose(1, 2, 0)
        pixels = (values - np.array(self.low)) / (np.array(self.high) - np.array(self.low)) * 255
        return np.clip(np.rint(pixels[..., ::-1] if self.flipped else pixels), 0, 255).astype(np.uint8)

    def __str__(self) -> str:
        return f"{self.name}-as-seen" if self.as_seen else self.name


def _processed(processor: Any, images: list[Image.Image]) -> Float[np.ndarray, "B 3 H W"]:
    return np.asarray(processor(images=images, return_tensors="pt")["pixel_values"], np.float64)


def image_classifier(name: str, trust_remote_code: bool = False) -> dict[str, Any] | None:
    """Return Network's arguments for hf:ID or hf:ID@REVISION, or for a folder; None where it is no image classifier.

    Raises:
        UserError: it cannot be loaded, lacks weights, or has other classes than ImageNet's 1,000 in their order.
    """
    place, revision = registry.split_revision(name.removeprefix("hf:"))
    _check_folder(place, name)
    options = {"revision": revision or None, "trust_remote_code": trust_remote_code}
    with one_line(name):
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

        config: Any = AutoConfig.from_pretrained(place, **options)
        if config.model_type == "timm_wrapper":
            raise UserError(f"{name} is a network of timm; give hf-hub:{place}")
        kinds = [*(config.architectures or []), *(getattr(config, "auto_map", None) or {})]
        if not any("ImageClassification" in kind for kind in kinds):
            return None
        check_order([str(config.id2label[number]) for number in sorted(config.id2label)], name)
        loader: Any = AutoModelForImageClassification
        model, loaded = loader.from_pretrained(place, dtype=torch.float32, output_loading_info=True, **options)
        processor = AutoImageProcessor.from_pretrained(place, **options)
        lacking = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
        if lacking:
            raise UserError(f"{name} has no weights for {lacking[0]} and {len(lacking) - 1} more: it would be random")
        preprocessing, normalization = _of_processor(processor)
    flipped = isinstance(preprocessing, ProcessorPreprocessing) and preprocessing.flipped
    body = ImageClassifier(model.eval(), flipped)
    body.side = _side(body, getattr(config, "image_size", None))
    facts = {
        "checkpoint_sha256": None,
        "source": "a folder" if Path(place).is_dir() else name.replace("hf:", "hf://", 1),
        "revision": commit_in_cache(place, revision),
        "arch": type(model).__name__,
        "normalization": normalization.name,
    }
    settings = {key: value for key, value in config.to_dict().items() if key not in PLACE_AND_TIME}
    return {
        "body": body,
        "code": json.dumps(settings, sort_keys=True, default=str),
        "mean": normalization.mean,
        "std": normalization.std,
        "preprocessing": preprocessing,
        "facts": facts,
    }


def _check_folder(place: str, name: str) -> None:
    """Refuse the path of a folder that does not exist, which the hub's client takes for an owner and a name."""
    if not Path(place).is_dir() and (place.count("/") > 1 or place.startswith((".", "/", "~"))):
        raise UserError(f"{name}: there is no such folder; give hf:OWNER/NAME or a folder that transformers saved")


def _of_processor(processor: Any) -> tuple[Preprocessing | str, Normalization]:
    """Return the preprocessing and the normalization of an image processor, by what it makes of plain images.

    It may rescale, shift and normalize in several steps, and swap the channels; plain colours tell the sum of it.
    """
    plain = [Image.new("RGB", (512, 512), colour) for colour in ("black", "white", (255, 0, 0))]
    values = _processed(processor, plain)
    height, width = values.shape[2:]
    low, high, red = values[:, :, height // 2, width // 2]
    flipped = bool(abs(red[0] - low[0]) < abs(red[0] - high[0]))
    if flipped:
        low, high = low[::-1], high[::-1]  # as R, G, B, which the network flips once more
    std = 1 / (high - low)
    mean, std = (tuple(map(float, numbers)) for numbers in (-low * std, std))
    if height != width:
        return f"{height} x {width}", Normalization.of(mean, std)
    text = json.dumps(json.loads(processor.to_json_string()), sort_keys=True)
    name = f"processor-{hashlib.sha256(text.encode()).hexdigest()[:12]}-crop{width}"
    black, white = (tuple(map(float, numbers[::-1] if flipped else numbers)) for numbers in (low, high))
    prepared = ProcessorPreprocessing(
        None, width, "", name=name, low=black, high=white, flipped=flipped, processor=processor
    )
    return prepared, Normalization.of(mean, std)


def _side(body: torch.nn.Module, stated: Any) -> int | None:
    """Return the side of images that a network's configuration states, if it takes no other; else None."""
    try:
        with torch.no_grad():
            body(torch.zeros((1, 3, STUDY_CROP, STUDY_CROP), dtype=torch.float32))
    except (ValueError, RuntimeError):
        return stated if isinstance(stated, int) else None
    return None


@cache
def _class_names() -> tuple[frozenset[str], ...]:
    """Return the names of each class: its WordNet id and its synonyms."""
    from timm.data.imagenet_info import ImageNetInfo

    info, names = ImageNetInfo(), []
    for number in range(CLASSES):
        names.append(frozenset([info.index_to_label_name(number), *_synonyms(info.index_to_description(number))]))
    return tuple(names)


def _synonyms(label: str) -> set[str]:
    return {part.strip().lower().replace("_", " ") for part in label.split(",")}


def check_order(labels: Sequence[str], name: str) -> None:
    """Refuse a network whose 1,000 labels are not ImageNet's classes in the order of their WordNet ids.

    Lists of names differ in a few words, so ten may name another class and 300 none; labels that are only numbered
    cannot be checked, which is a warning.

    Raises:
        UserError: they are others, or in another order.
    """
    if len(labels) != CLASSES:
        hint = "; the first is the background" if labels and labels[0].lower() == "background" else ""
        raise UserError(f"{name} has {len(labels)} labels; a network needs {CLASSES} (ImageNet-1k){hint}")
    names, by_name = _class_names(), {}
    for number, synonyms in enumerate(names):
        by_name |= dict.fromkeys(synonyms, number)
    if all(label.lower().removeprefix("label_") == str(number) for number, label in enumerate(labels)):
        warnings.warn(f"{name}: its labels are only numbered; they are taken in ImageNet's order", stacklevel=3)
        return
    wrong = [number for number, label in enumerate(labels) if not _synonyms(label) & names[number]]
    elsewhere = [number for number in wrong if _synonyms(labels[number]) & by_name.keys()]
    if len(elsewhere) > 10 or len(wrong) > 300:
        number = (elsewhere or wrong)[0]
        raise UserError(
            f"{name}: {len(wrong)} labels are not those of ImageNet's classes in their order; label {number} is "
            f"'{labels[number][:40]}', not '{min(names[number], key=len)}'"
        )


# torch.hub ------------------------------------------------------------------------------------------------------------


def torch_hub(name: str, trust_remote_code: bool) -> torch.nn.Module:
    """Return the module of torchhub:OWNER/REPO:ENTRY, or of torchhub:FOLDER:ENTRY, with its pretrained weights.

    Raises:
        UserError: the user does not trust its code, or it fails.
    """
    place, entry = registry.split_hub(name)
    if not trust_remote_code:
        raise UserError(f"{name} runs code of {place}; read it, and give --trust-remote-code if you trust it")
    source: Any = {"source": "local" if Path(place).is_dir() else "github", "trust_repo": True}
    with blaming(name):
        # without being asked for its weights an entry may come untrained, and there are two ways to ask
        ways: tuple[dict[str, Any], ...] = {"pretrained": True}, {"weights": "DEFAULT"}, {}
        for weights in ways:
            try:
                body: Any = torch.hub.load(place, entry, **source, **weights)
                break
            except TypeError as error:
                if not weights or "unexpected keyword argument" not in str(error):
                    raise
    if not isinstance(body, torch.nn.Module):
        raise UserError(f"{name} returns {type(body).__name__}, not a torch.nn.Module")
    return body


# ONNX files -----------------------------------------------------------------------------------------------------------


@identified("onnx_network")
class OnnxNetwork(torch.nn.Module):
    """An ONNX file run by onnxruntime: normalized pixels -> logits; without gradients, on the host or a CUDA GPU."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 3
        available = onnxruntime.get_available_providers()
        chosen = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        self.path, self.session = path, onnxruntime.InferenceSession(path, settings, providers=chosen)
        self.input = self.session.get_inputs()[0]
        self.channels_first = self.input.shape[-1] != 3

    def __deepcopy__(self, memo: Any) -> "OnnxNetwork":
        return OnnxNetwork(self.path)

    @property
    def side(self) -> int | None:
        """The side of its images in pixels, where the file states it."""
        side = self.input.shape[2 if self.channels_first else 1]
        return side if isinstance(side, int) else None

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        if torch.is_grad_enabled() and pixels.requires_grad:
            raise UserError(f"{self.path.name} has no gradients under onnxruntime; give --gradients (needs onnx2torch)")
        count = self.input.shape[0]
        parts: Any = [pixels] if not isinstance(count, int) else pixels.split(count)
        return torch.cat(list(map(self._run, parts))).to(pixels.device)

    def _run(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        count = self.input.shape[0] if isinstance(self.input.shape[0], int) else len(pixels)
        padded = torch.cat([pixels, pixels[-1:].expand(count - len(pixels), -1, -1, -1)])
        rows = (padded if self.channels_first else padded.permute(0, 2, 3, 1)).contiguous().cpu().numpy()
        rows = rows.astype(np.float16) if self.input.type == "tensor(float16)" else rows
        answers: Any = self.session.run(None, {self.input.name: rows})[0]
        return torch.from_numpy(answers[: len(pixels)]).float()


def onnx_network(name: str, gradients: bool = False) -> tuple[torch.nn.Module, Statements, str]:
    """Return (module, what the file says about its normalization, sha256 of the file and of those with its weights).

    Args:
        name: path of the file.
        gradients: convert it to torch (onnx2torch), for attacks and gradients.

    Raises:
        UserError: it cannot be read or run.
    """
    path = Path(name)
    demand_file(path, "an ONNX file")
    with one_line(name, "pip install onnx onnxruntime" + " onnx2torch" * gradients):
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
        files = set()
        for part in graph.initializer:
            files |= {entry.value for entry in part.external_data if entry.key == "location"}
        sha256 = "+".join(file_hash(path.parent / file) for file in (path.name, *sorted(files)))
        body = _as_torch(path) if gradients else OnnxNetwork(path)
    return body, Statements(inside=_first_arithmetic(graph)), sha256


def _as_torch(path: Path) -> torch.nn.Module:
    """Return an ONNX file as a torch module: in the operators of opset 17, the last that onnx2torch knows well."""
    import onnx
    from onnx import version_converter
    from onnx2torch import convert

    model = onnx.load(path)
    if max(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")) > 17:
        model = version_converter.convert_version(model, 17)
    for node in model.graph.node:
        if node.op_type == "Reshape":  # about tensors without elements, and unknown to onnx2torch
            attributes = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(attributes)
    return convert(model)


def _first_arithmetic(graph: Any) -> str:
    """Return the node by which a graph normalizes its pixels itself: arithmetic before any other layer; '' if none."""
    weights = {part.name for part in graph.initializer}
    value = next(item.name for item in graph.input if item.name not in weights)
    for node in graph.node:
        if value in node.input:
            if node.op_type in ("Sub", "Add", "Mul", "Div", "BatchNormalization"):
                return f"its first layer is {node.op_type}"
            if node.op_type not in ("Cast", "Identity", "Transpose", "Resize"):
                return ""
            value = node.output[0]
    return ""

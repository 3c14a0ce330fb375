"""Zero-shot networks: open_clip's two-tower models as modules on pixels in [0, 1] that give 1,000 logits.

A name is clip:ARCH/TAG, of open_clip's architectures and tags (clip:ViT-L-14/openai), clip:ARCH/FILE, or clip:FOLDER,
a folder with open_clip_config.json and weights; a final :80, :7, :photo or :name chooses the prompts. A class's weight
is the normalised mean of the normalised text embeddings of its prompts (Radford et al. 2021, arXiv:2103.00020, 3.1.4);
a logit is the model's scale times the cosine of image and weight (without the bias, which is equal for all classes).
Class names and prompts are open_clip's.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imagenet_biases.base.download import fetch
from imagenet_biases.base.errors import UserError, listed_briefly, nearest
from imagenet_biases.base.files import atomic, demand_file
from imagenet_biases.images.preprocessing import Preprocessing
from imagenet_biases.networks import registry
from imagenet_biases.networks.state_dict import fill, find
from imagenet_biases.networks.user_code import LANGUAGE, class_id, one_line
from imagenet_biases.study import CATEGORIES_16
from imagenet_biases.vocabulary import identified

PROMPTS = ("80", "7", "photo", "name")
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TEXTS_PER_BATCH = 400
Weights: TypeAlias = Float[Tensor, "C D"]  # of classes, rows of length 1
Template: TypeAlias = Callable[[str], str]


@identified(class_id("zero_shot"))
class ZeroShot(torch.nn.Module):
    """The image tower and the classes' weights: pixels [B, 3, S, S] in [0, 1] -> logits [B, 1000].

    With names="categories": images of any size -> logits [B, 16] of the names of the 16 categories.
    """

    asks = ("names",)
    visual: Any
    scale: Tensor
    mean: Tensor
    std: Tensor
    classes: Weights
    categories: Weights

    def __init__(
        self,
        tower: torch.nn.Module,
        scale: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        classes: Weights,
        categories: Weights,
    ) -> None:
        super().__init__()
        self.visual = tower
        self.register_buffer("scale", scale.detach().reshape(()).float())
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.register_buffer("classes", classes)  # [1000, D], of length 1
        self.register_buffer("categories", categories)  # [16, D]

    @property
    def side(self) -> int:
        """The side of its images in pixels; it accepts no other."""
        size = self.visual.image_size
        return size[0] if isinstance(size, tuple | list) else size

    def forward(self, pixels: Float[Tensor, "B 3 H W"], names: str | None = None) -> Float[Tensor, "B C"]:
        if pixels.shape[-1] != self.side:
            if names is None:
                raise UserError(
                    f"a network for images of {self.side} pixels received {pixels.shape[-1]}: it runs with "
                    f"--preprocessing native, and not on ready-made images of another size"
                )
            pixels = torch.nn.functional.interpolate(pixels, size=(self.side,) * 2, mode="bicubic", antialias=True)
        images = torch.nn.functional.normalize(self.visual((pixels - self.mean) / self.std), dim=-1)
        return self.scale * images @ (self.classes if names is None else self.categories).T


@dataclass(frozen=True)
class ZeroShotName:
    """The parts of a name: an architecture with a tag or file of weights, or a folder; and the prompts."""

    arch: str
    tag: str
    folder: str
    prompts: str


def parsed(name: str) -> ZeroShotName:
    """Return the parts of clip:... Raises UserError if it is not such a name."""
    place = name.removeprefix("clip:")
    head, _, last = place.rpartition(":")
    place, prompts = (head, last) if last in PROMPTS and head else (place, "80")
    if Path(place).is_dir():
        return ZeroShotName("", "", place, prompts)
    arch, _, tag = place.partition("/")
    if not (arch and tag) or ":" in tag:
        raise UserError(
            f"{name}: give clip:ARCH/TAG, e.g. clip:ViT-L-14/openai, with :{', :'.join(PROMPTS)} if need be"
        )
    return ZeroShotName(arch, tag, "", prompts)


def texts(prompts: str) -> tuple[Sequence[str], Sequence[Template]]:
    """Return open_clip's 1,000 class names and the functions that make a prompt of a name."""
    open_clip = _open_clip()
    templates = {
        "80": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "7": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        "photo": (lambda name: f"a photo of a {name}.",),
        "name": (lambda name: name,),
    }
    return open_clip.IMAGENET_CLASSNAMES, templates[prompts]


def zero_shot_network(
    name: str, checkpoints: str | Path | None = None
) -> tuple[ZeroShot, Preprocessing | str, dict[str, Any], dict[str, str]]:
    """Return (ZeroShot, its Preprocessing or a description of it, facts, {address: sha256} of the checkpoint).

    Args:
        name: clip:...
        checkpoints: the folder of downloads, which also stores the text weights.

    Raises:
        UserError: there is no such network, or its files are missing, damaged or do not fit.
    """
    from imagenet_biases.networks.load import read_verified

    named = parsed(name)
    with one_line(name):
        settings = _settings(named)
        path, address = _weights(named, settings, checkpoints)
        model, tokenizer = _built(named, settings)
        contents, sha256 = read_verified(address, path)
        open_clip = _open_clip()
        state = open_clip.factory.convert_state_dict(model, find(contents, model, path))
        fill(model, state, f"{name} ({path})")
        model.eval().requires_grad_(False)
        key = [sha256, named.arch or "folder", settings["quick_gelu"]]
        classes, templates = texts(named.prompts)
        folder = registry.checkpoint_folder(checkpoints)
        weights = []
        for names in (classes, CATEGORIES_16):
            weights.append(_stored_text_weights(model, tokenizer, tuple(names), templates, key, folder))
    body = ZeroShot(model.visual, model.logit_scale.exp(), settings["mean"], settings["std"], *weights)
    preprocessing: Preprocessing | str = f"resize mode {settings['resize_mode']}"
    if settings["resize_mode"] == "shortest":
        preprocessing = Preprocessing(body.side, body.side, settings["interpolation"])
    facts = {
        "checkpoint_sha256": sha256,
        "source": address if "://" in address else Path(address).name,
        "arch": name.replace(named.folder, Path(named.folder).name) if named.folder else name,
        "normalization": "its own",
        "prompts": named.prompts,
        "texts_sha256": _digest(classes, templates),
    }
    return body, preprocessing, facts, {address: sha256}


def untrained(name: str) -> ZeroShot:
    """Return a ZeroShot without its weights: all that is known of it before a download."""
    with one_line(name):
        settings = _settings(parsed(name))
        model, _ = _built(parsed(name), settings)
    width = model.visual.output_dim
    weights = torch.zeros(1000, width), torch.zeros(len(CATEGORIES_16), width)
    return ZeroShot(model.visual, model.logit_scale.exp(), settings["mean"], settings["std"], *weights)


def _settings(named: ZeroShotName) -> dict[str, Any]:
    """Return how to build a model and preprocess: quick_gelu, resize_mode, interpolation, mean, std, its address."""
    open_clip = _open_clip()
    settings = {"quick_gelu": False, "resize_mode": "shortest", "interpolation": "bicubic"}
    settings |= {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    if named.folder:
        config = json.loads((Path(named.folder) / CONFIG).read_text("utf-8"))
        settings |= {key: config.get("preprocess_cfg", {}).get(key, value) for key, value in settings.items()}
        return settings | {"quick_gelu": bool(config["model_cfg"].get("quick_gelu", False))}
    if named.arch not in open_clip.list_models():
        hint = nearest(named.arch, open_clip.list_models()) or "`open_clip.list_models()` lists them"
        raise UserError(f"open_clip has no architecture {named.arch!r}: {hint}")
    settings["quick_gelu"] = bool(open_clip.get_model_config(named.arch).get("quick_gelu", False))
    return settings | (open_clip.get_pretrained_cfg(named.arch, named.tag) or {})


def _built(named: ZeroShotName, settings: dict[str, Any]) -> tuple[Any, Any]:
    """Return (model without weights, tokenizer)."""
    open_clip = _open_clip()
    arch = f"local-dir:{named.folder}" if named.folder else named.arch
    model = open_clip.create_model(
        arch, load_weights=False, force_quick_gelu=settings["quick_gelu"], pretrained_image=False, pretrained_text=False
    )
    return model, open_clip.get_tokenizer(arch)


def _weights(named: ZeroShotName, settings: dict[str, Any], checkpoints: str | Path | None) -> tuple[Path, str]:
    """Return (path of the checkpoint, its address)."""
    if named.folder:
        path = Path(named.folder) / WEIGHTS
        demand_file(path, f"a folder with {CONFIG} and {WEIGHTS}")
        return path, str(path)
    if "url" not in settings and "hf_hub" not in settings:
        if Path(named.tag).is_file():
            return Path(named.tag), named.tag
        tags = _open_clip().list_pretrained_tags_by_model(named.arch)
        raise UserError(
            f"open_clip's {named.arch} has no weights {named.tag!r}; it has {listed_briefly(tags, 20) or 'none'}"
        )
    repository, _, file = settings.get("hf_hub", "").rpartition("/")
    address = f"hf://{repository}/{file or WEIGHTS}" if repository else settings["url"]
    return fetch(address, registry.checkpoint_folder(checkpoints)), address


def text_weights(model: Any, tokenizer: Any, names: Sequence[str], templates: Sequence[Template]) -> Weights:
    """Return the weights of classes: the normalised means of the normalised embeddings of their prompts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    step = max(1, TEXTS_PER_BATCH // len(templates))
    rows: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(names), step):
            chosen = names[start : start + step]
            tokens = tokenizer([template(name) for name in chosen for template in templates]).to(device)
            embedded = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
            means = embedded.view(len(chosen), len(templates), -1).mean(1)
            rows.append(torch.nn.functional.normalize(means, dim=-1))
    model.to("cpu")
    return torch.cat(rows).float().cpu()


def _digest(names: Sequence[str], templates: Sequence[Template]) -> str:
    prompts = [template(name) for name in names for template in templates]
    return hashlib.sha256(json.dumps(prompts, ensure_ascii=False).encode()).hexdigest()


def _stored_text_weights(
    model: Any, tokenizer: Any, names: Sequence[str], templates: Sequence[Template], key: list[Any], folder: str | Path
) -> Weights:
    """Return text_weights, computed once per checkpoint and stored in the folder of downloads."""
    digest = hashlib.sha256(json.dumps([*key, _digest(names, templates)]).encode()).hexdigest()
    path = Path(folder) / f"text-weights-{digest[:32]}.npy"
    with contextlib.suppress(OSError, ValueError):
        stored = np.load(path, allow_pickle=False)
        if stored.shape[:1] == (len(names),) and stored.dtype == np.float32 and stored.ndim == 2:
            return torch.from_numpy(stored)
    weights = text_weights(model, tokenizer, names, templates)
    with atomic(path) as file:
        np.save(file, weights.numpy())
    return weights


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError:
        raise UserError(f"clip: networks need open_clip: {LANGUAGE}") from None
    return open_clip

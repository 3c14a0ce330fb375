"""explain(name): what loading and measuring a network involves, on one screen, without loading it."""

from pathlib import Path

from imagenet_biases.base.download import file_hash, hash_in_name
from imagenet_biases.base.files import demand_file
from imagenet_biases.networks import packages, registry
from imagenet_biases.study import STUDY_CROP, STUDY_RESIZE

STUDY = f"study: short side {STUDY_RESIZE} (bilinear), central {STUDY_CROP} x {STUDY_CROP}"
STATED = "that of --normalization, else as the file, the module or timm's configuration says"
INSIDE = "its own: the module receives pixels in [0, 1]; of a bare network of timm or torchvision, the library's"
ELSEWHERE = "that of --normalization, else as its configuration, its processor or its graph says, else ImageNet's"
RULES = ("wrapper", "ignore", "strip", "rename")  # in the order in which they apply


def explain(name: str, checkpoints: str | Path | None = None, measured: float | None = None) -> str:
    """Return address, hash, layout rules, architecture, normalization, preprocessing and accuracy of a network.

    An entry of the registry is explained without importing torch.

    Args:
        name: as `load_model` accepts it.
        checkpoints: folder of downloads (default: environment variable ZOO_CHECKPOINTS, else models/checkpoints).
        measured: measured top-1 in per cent, if known.

    Raises:
        UserError: there is no such network.
    """
    kind = registry.kind_of(name)
    entry = registry.registry().get(name)
    expected = entry.expected_top1 if entry else None
    if entry:
        rows = _entry(entry, checkpoints)
    elif kind == "timm":
        rows = _timm(name)
    elif kind == "file":
        rows = _files(registry.checkpoint_files(name))
    else:
        normalization = INSIDE if kind in ("function", "zero-shot", "api") else ELSEWHERE
        rows = [("address", name), ("normalization", normalization), ("preprocessing", f"{STUDY}; native: its own")]
    rows.append(("expected", "unknown" if expected is None else f"top-1 {expected:.2f} % (ImageNet validation, study)"))
    text = "no record yet; eval_imagenet.py writes one"
    if measured is not None:
        text = f"top-1 {measured:.2f} %"
        text += f", {measured - expected:+.2f} points from the expected" if expected is not None else ""
    rows.append(("measured", text))
    return "\n".join([name, *(f"  {label:<14} {text}" for label, text in rows)])


def _entry(entry: registry.Entry, checkpoints: str | Path | None) -> list[tuple[str, str]]:
    rows = [("category", (entry.category or "none") + (", one of the study's networks" if entry.in_study else ""))]
    for file in entry.files:
        address = f"{file.source}: {file.location}" if file.source in ("timm", "torchvision") else file.address
        path = file.on_disk(checkpoints)
        rows += [
            ("address", address),
            ("file", str(path) if path else "not on disk; zoo.py --fetch fetches it"),
            ("hash", _hash(file)),
            ("layout rules", _rules(file.layout)),
        ]
    if not entry.files:
        rows.append(("address", f"{entry.arch} provides its own weights"))
    native = f"that of {entry.source}" if entry.source in ("timm", "torchvision") else "the same"
    if entry.preprocessing:
        native = "short side {resize} ({interpolation}), central {crop} x {crop}".format(**entry.preprocessing)
    return [
        *rows,
        ("architecture", entry.arch),
        ("normalization", _normalization(entry.normalization)),
        ("preprocessing", f"{STUDY}; native: {native}"),
        ("front end", entry.frontend or "none"),
        ("paper", f"{entry.paper} ({entry.link})"),
        ("licence", entry.licence or "not stated"),
    ]


def _hash(file: registry.File) -> str:
    """Return what the sha256 of an entry's file must be."""
    pins = registry.pins().all()
    if file.source == "timm":  # without timm, its address on the hub is known only once it is pinned
        pinned = next((sha256 for address, sha256 in pins.items() if f"/{file.location}/" in address), None)
    else:
        pinned = pins.get(file.address) if file.source != "torchvision" else None
    digits = file.sha256 or (hash_in_name(file.location) if file.source == "url" else None)
    if pinned:
        return f"{pinned} (pinned)"
    if digits:
        return f"begins with {digits}" if len(digits) < 64 else digits
    return "not pinned yet: the first verified download pins it"


def _rules(layout: registry.Layout) -> str:
    rules = []
    for key in RULES:
        if getattr(layout, key) not in ((), ("",)):
            rules.append(f"{key} {list(getattr(layout, key))}")
    return "; ".join(rules) or "none: names as in the file"


def _normalization(name: str) -> str:
    if name not in registry.NORMALIZATIONS:
        return f"{name}'s configuration"
    mean, std = registry.NORMALIZATIONS[name]
    return f"{name}: mean {' '.join(map(str, mean))}, standard deviation {' '.join(map(str, std))}"


def _timm(name: str) -> list[tuple[str, str]]:
    address, config = packages.timm_address(name), packages.timm_config(name)
    pinned = registry.pins().all().get(address)
    return [
        ("address", address),
        ("hash", f"{pinned} (pinned)" if pinned else "not pinned yet: the first verified download pins it"),
        ("layout rules", "those of timm"),
        ("architecture", name),
        ("normalization", f"timm: mean {config['mean']}, standard deviation {config['std']}"),
        ("preprocessing", f"{STUDY}; native: {packages.timm_preprocessing(config)}"),
    ]


def _files(paths: list[Path]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for path in paths:
        demand_file(path, "a checkpoint file")
        rows += [("address", str(path)), ("hash", file_hash(path))]
    return [
        *rows,
        ("layout rules", "found in the file: the part that fits the architecture exactly, without a common prefix"),
        ("architecture", "that of --arch, by default resnet50"),
        ("normalization", f"{STATED}, else {_normalization('imagenet')}"),
        ("preprocessing", f"{STUDY}; native: the same"),
    ]

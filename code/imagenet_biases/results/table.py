"""The merged table raw-data/benchmark.csv: what each column means, their order, and what is derived from them.

One row per network and source. `GROUPS` is the one place where columns are defined, in their order; a metric that no
group knows is an error. `derived` adds the study's scores and biases (Gavrikov & Keuper, CVPR 2024, section 3).
"""

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from imagenet_biases.errors import UserError
from imagenet_biases.files import atomic

TABLE = Path(__file__).resolve().parents[3] / "raw-data" / "benchmark.csv"
KEYS = ("model", "category", "source")
DECIMALS = 4

STUDY_CATEGORIES = (
    "baseline",
    "training_recipes",
    "augmentation",
    "stylized",
    "freezing",
    "adversarial_training",
    "contrastive",
)

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS = (  # the 15 of Hendrycks & Dietterich (2019) in their order, then their 4 extra ones
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
)
CORRUPTIONS_BAR = (
    *("blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves"),
    *("inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles"),
)
CUTOFFS = ("0.01", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "0.99")
HUMAN_SETS = (
    *("edge", "silhouette", "cue-conflict", "colour", "contrast", "high-pass", "low-pass", "phase-scrambling"),
    *("power-equalisation", "false-colour", "rotation", "eidolonI", "eidolonII", "eidolonIII", "uniform-noise"),
    *("sketch", "stylized"),
)
RESNET50_LAYERS = (
    "conv1",
    "bn1",
    *(
        f"layer{stage}.{block}.{part}"
        for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3))
        for block in range(blocks)
        for part in (
            *("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
            *(("downsample.0", "downsample.1") if block == 0 else ()),
        )
    ),
    "fc",
)


@dataclass(frozen=True)
class Group:
    """Columns that belong together. `columns` come in this order, then what `pattern` matches, in natural order."""

    title: str  # how the README names the columns
    columns: tuple[str, ...]
    unit: str
    meaning: str
    script: str  # what computes them, '-' where no script here does
    sources: str = "published, measured"
    slip: str = ""  # what is wrong with the published values; flags the columns
    published_images: int | None = None  # how many images the published value really rests on, where not the whole set
    pattern: str | None = None  # further names of the same family


def _names(template, *lists):
    return tuple(template.format(*values) for values in product(*lists))


def _accuracies(names):
    return _names("{}_acc/{}", ("top1", "top5"), names)


GROUPS = (
    Group(
        "`top1_acc/imagenet`, `top5_acc/imagenet`",
        _accuracies(["imagenet"]),
        "% of images",
        "ImageNet validation (ILSVRC-2012), 50,000 images",
        "eval_imagenet",
    ),
    Group(
        "`top1_acc/imagenet-real`",
        ("top1_acc/imagenet-real",),
        "% of images",
        "The same images against the ReaL labels (Beyer et al. 2020): 46,837 images with at least one label",
        "eval_imagenet_real",
        slip="published: accuracy on the last batch only (326 labelled images), not on 46,837",
        published_images=326,
    ),
    Group(
        "`top1_acc/imagenet-v2`, `-a`, `-r`, `-sketch`, top5 likewise",
        _accuracies(["imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch"]),
        "% of images",
        "ImageNet-v2 matched frequency; -A and -R ranked among their 200 classes only; ImageNet-Sketch",
        "eval_imagenet_ood",
    ),
    Group(
        "`top1_acc/imagenet-c`",
        ("top1_acc/imagenet-c",),
        "%",
        "ImageNet-C (Hendrycks & Dietterich 2019): mean over all 19 corruptions and 5 severities",
        "eval_imagenet_c",
    ),
    Group(
        "`top1_acc/imagenet-c-15`, `mCE/imagenet-c`",
        ("top1_acc/imagenet-c-15", "mCE/imagenet-c"),
        "%",
        "Mean over the 15 main corruptions; mean corruption error against AlexNet's published errors (lower is better)",
        "eval_imagenet_c",
        sources="measured",
    ),
    Group(
        "`top1_acc/CORRUPTION_SEVERITY`, top5 likewise (ImageNet-C)",
        _names("{}_acc/{}_{}", ("top1", "top5"), CORRUPTIONS, SEVERITIES),
        "% of images",
        "One of 19 corruptions at severity 1 (weak) to 5, 50,000 images each",
        "eval_imagenet_c",
    ),
    Group(
        "`top1_acc/imagenet-cbar`",
        ("top1_acc/imagenet-cbar",),
        "%",
        "ImageNet-C̄ (Mintun et al. 2021): mean over 10 corruptions and 5 severities",
        "eval_imagenet_cbar",
    ),
    Group(
        "`top1_acc/CORRUPTION_SEVERITY`, top5 likewise (ImageNet-C̄)",
        _names("{}_acc/{}_{}", ("top1", "top5"), CORRUPTIONS_BAR, SEVERITIES),
        "% of images",
        "One of 10 corruptions at severity 1 to 5, 50,000 images each",
        "eval_imagenet_cbar",
    ),
    Group(
        "`top1_acc/NAME` of the 17 model-vs-human sets",
        _names("top1_acc/{}", HUMAN_SETS),
        "% of images",
        "16-category accuracy on the sets of Geirhos et al. (2021); cue-conflict: the shape category",
        "eval_model_vs_human",
    ),
    Group(
        "`top1_acc/ood_mean`",
        ("top1_acc/ood_mean",),
        "%",
        "Mean over the 17 sets without the conditions that are not OOD or on which people are below 20 %",
        "eval_model_vs_human",
    ),
    Group(
        "`shape-bias`",
        ("shape-bias",),
        "share",
        "Shape decisions / (shape + texture decisions) on cue-conflict images (Geirhos et al. 2019)",
        "eval_model_vs_human",
    ),
    Group(
        "`metric/human/…`",
        (),
        "see script",
        "Comparison with people: accuracy difference (squared), observed consistency, error consistency (Cohen's κ)",
        "eval_model_vs_human",
        sources="measured",
        pattern=r"metric/human/.+",
    ),
    Group(
        "`top1_acc/PGD-40/low`, `/high`",
        _names("top1_acc/PGD-40/{}", ("low", "high")),
        "% of images",
        "Correct after 40 steps of ℓ∞ PGD with step 2/255, ε = 0.5/255 (low) and 4/255 (high)",
        "eval_imagenet_adv",
        slip="published: divided by 50,048 images, 48 of which do not exist and count as robust (+0.096 points at 0 %)",
    ),
    Group(
        "`top1_acc/PGD-40/low/corrected`, `/high/corrected`",
        _names("top1_acc/PGD-40/{}/corrected", ("low", "high")),
        "% of images",
        "The published PGD-40 value without the 48 images that do not exist, over 50,000",
        "-",
        sources="published",
    ),
    Group(
        "`top1_acc/FGSM/…`, `top1_acc/PGD-tuned/…`, `top1_acc/AutoAttack/…`",
        _names("top1_acc/{}/{}", ("FGSM", "PGD-tuned", "AutoAttack"), ("low", "high")),
        "% of images",
        "Other ℓ∞ attacks at the same ε: one step; PGD with a small step and the best iterate; AutoAttack (standard)",
        "eval_imagenet_adv",
        sources="measured",
        pattern=r"top1_acc/(FGSM|PGD-\d+|PGD-tuned|AutoAttack)/.+",
    ),
    Group(
        "`metric/bandpass/LFC/c`, `metric/bandpass/HFC/c`",
        _names("metric/bandpass/{}/{}", ("LFC", "HFC"), CUTOFFS),
        "ratio",
        "Top-1 under a low-/high-pass that keeps the share c of the spectrum, divided by the clean top-1",
        "eval_spectral",
    ),
    Group(
        "`metric/bandpass/LPP`, `HPP`, `spectral-bias`",
        _names("metric/bandpass/{}", ("LPP", "HPP", "spectral-bias")),
        "ratio",
        "Means of LFC and HFC over c = 0.1 … 0.5; HPP / (LPP + HPP)",
        "eval_spectral",
        sources="measured",
    ),
    Group(
        "`metric/criticalband/bw`, `cf`, `pns`",
        _names("metric/criticalband/{}", ("bw", "cf", "pns")),
        "octaves; cycles/image; 0.01 / noise SD",
        "Channel (Subramanian et al. 2023) from the noise that brings accuracy to 50 %: bandwidth, centre frequency, "
        "peak noise sensitivity",
        "eval_criticalband",
        slip="published: 7 distinct values for 48 networks and bandwidths of 11,295 octaves, the fit of a flat profile",
    ),
    Group(
        "`metric/criticalband/bw_norm`, `cf_norm`, `pns_norm`",
        _names("metric/criticalband/{}_norm", ("bw", "cf", "pns")),
        "octaves; cycles/image; 0.01 / noise SD",
        "The same with half of the network's own noise-free accuracy as criterion: what the study plots",
        "eval_criticalband",
    ),
    Group(
        "`metric/criticalband/…_fine`",
        _names("metric/criticalband/{}{}_fine", ("bw", "cf", "pns"), ("", "_norm")),
        "octaves; cycles/image; 0.01 / noise SD",
        "The same from thresholds on a continuous log-noise axis instead of whole steps",
        "eval_criticalband",
        sources="measured",
        pattern=r"metric/criticalband/.+",
    ),
    Group(
        "`top1_acc/criticalband/…`",
        (),
        "% of images",
        "Accuracy on low-contrast grey images without noise and with noise of one octave band",
        "eval_criticalband",
        sources="measured",
        pattern=r"top[15]_acc/criticalband.*",
    ),
    Group(
        "`metric/erf/area`, `max_amplitude`",
        _names("metric/erf/{}", ("area", "max_amplitude")),
        "share; gradient",
        "Effective receptive field",
        "-",
        sources="published",
    ),
    Group(
        "`metric/quality/…`",
        _names(
            "metric/quality/{}",
            (
                *("ve_wmean", "ve_max", "ve_min", "sparsity_wmean", "sparsity_max"),
                *("orthogonality_wmean", "orthogonality_max", "orthogonality_min"),
            ),
        ),
        "see paper",
        "Quality of the 3 × 3 filters (Gavrikov & Keuper 2022): variance entropy, sparsity, orthogonality over layers",
        "-",
        sources="published",
    ),
    Group(
        "`metric/weight_reset/LAYER`",
        _names("metric/weight_reset/{}", RESNET50_LAYERS),
        "ratio",
        "Accuracy with one layer re-initialised, divided by the intact network's (Gavrikov et al. 2024)",
        "-",
        sources="published",
        pattern=r"metric/weight_reset/.+",
    ),
)

FLAGGED = frozenset(column for group in GROUPS if group.slip for column in group.columns)
_PLACES = {column: (g, c) for g, group in enumerate(GROUPS) for c, column in enumerate(group.columns)}

# The study's scores and biases: name -> (columns that are averaged, axis label). Spectral bias is made of LPP and HPP.
MID_CUTOFFS = ("0.1", "0.2", "0.3", "0.4", "0.5")
_MEANS = {
    "ID": ("top1_acc/imagenet", "top1_acc/imagenet-v2", "top1_acc/imagenet-real"),
    "Robustness": ("top1_acc/imagenet-a", "top1_acc/imagenet-c", "top1_acc/imagenet-cbar"),
    "Concepts": ("top1_acc/imagenet-sketch", "top1_acc/imagenet-r", "top1_acc/stylized"),
    "Adversarial": ("top1_acc/PGD-40/low",),
    "LPP": _names("metric/bandpass/LFC/{}", MID_CUTOFFS),
    "HPP": _names("metric/bandpass/HFC/{}", MID_CUTOFFS),
    "bw_norm": ("metric/criticalband/bw_norm",),
    "cf_norm": ("metric/criticalband/cf_norm",),
    "pns_norm": ("metric/criticalband/pns_norm",),
}
SCORES = {
    "ID": "ID accuracy [%]",
    "Robustness": "Robustness [%]",
    "Concepts": "Concepts [%]",
    "Adversarial": "Adversarial [%]",
}
BIASES = {
    "shape-bias": "shape bias [share]",
    "LPP": "low-pass performance [ratio]",
    "HPP": "high-pass performance [ratio]",
    "spectral bias": "spectral bias [share]",
    "bw_norm": "bandwidth [octaves]",
    "cf_norm": "centre frequency [cycles/image]",
    "pns_norm": "peak noise sensitivity [0.01 / SD]",
}
CONTROL = "top1_acc/imagenet"


def unflagged(score):
    """The name of a score's variant without the columns in FLAGGED; its own name where it has none of them."""
    return f"{score} (unflagged)" if FLAGGED.intersection(_MEANS.get(score, ())) else score


def place(column):
    """Sort key of a metric's column. Raises UserError for a name that no group defines."""
    if column in _PLACES:
        return (*_PLACES[column], ())
    for g, group in enumerate(GROUPS):
        if group.pattern and re.fullmatch(group.pattern, column):
            natural = tuple(
                (0, float(part), "") if part[0].isdigit() else (1, 0.0, part)
                for part in re.findall(r"\d+(?:\.\d+)?|[^\d]+", column)
            )
            return g, len(group.columns), natural
    raise UserError(f"no definition knows the metric {column!r}: add it to GROUPS in code/imagenet_biases/results/table.py")


def group_of(column):
    """The Group that defines a metric. Raises UserError for an unknown name."""
    return GROUPS[place(column)[0]]


def read_table(path=TABLE):
    """Read a merged table: model, category ('' for none), source, then metrics as floats (NaN: not measured).

    Raises UserError for a missing file, a column that no definition knows, or two rows for one network and source.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(KEYS, str)).copy()
        if missing := [key for key in KEYS if key not in table]:
            raise UserError(f"{path} lacks the column {missing[0]!r}: is it a merged table?")
        metrics = [column for column in table.columns if column not in KEYS]
        table = table.fillna({"category": ""}).astype(dict.fromkeys(metrics, float))
    except FileNotFoundError:
        raise UserError(
            f"there is no table {path}: `git checkout raw-data/benchmark.csv` brings the repository's back"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not a merged table: {error}") from None
    for column in metrics:
        place(column)
    if (double := table.duplicated(["model", "source"])).any():
        row = table[double].iloc[0]
        raise UserError(f"{path} has two rows for {row.model} ({row.source})")
    return table


def write_table(table, path=TABLE):
    """Write a merged table atomically: columns in the defined order, empty ones left out, values to DECIMALS places."""
    metrics = sorted((c for c in table.columns if c not in KEYS and table[c].notna().any()), key=place)
    with atomic(path, "w") as file:
        table[[*KEYS, *metrics]].round(DECIMALS).to_csv(file, index=False, lineterminator="\n")


def derived(table):
    """The table with the study's scores and biases as further columns, named as in SCORES and BIASES.

    A mean is NaN where one of its columns is. `ID (unflagged)` leaves ReaL out, for every row, so that published and
    measured stay comparable; `Adversarial (unflagged)` is the corrected value of published rows and the measured one of
    measured rows, which do not have the slip.
    """
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "shape-bias", *sum(_MEANS.values(), ())])))
    corrected = table.get("top1_acc/PGD-40/low/corrected", pd.Series(float("nan"), table.index))
    columns = {name: table[list(parts)].mean(axis=1, skipna=False) for name, parts in _MEANS.items()}
    columns["spectral bias"] = columns["HPP"] / (columns["LPP"] + columns["HPP"])
    columns[unflagged("ID")] = table[[c for c in _MEANS["ID"] if c not in FLAGGED]].mean(axis=1, skipna=False)
    columns[unflagged("Adversarial")] = corrected.where(table["source"] == "published", columns["Adversarial"])
    return pd.concat([table, pd.DataFrame(columns)], axis=1).copy()


def study(table, source="published"):
    """The rows of the study's networks (those in one of STUDY_CATEGORIES) from one source, with derived columns."""
    rows = table[(table["source"] == source) & table["category"].isin(STUDY_CATEGORIES)]
    return derived(rows.reset_index(drop=True))


def describe():
    """The column groups as a Markdown table: what raw-data/README.md shows."""
    lines = ["| columns | unit | meaning | script | source |", "| --- | --- | --- | --- | --- |"]
    for group in GROUPS:
        meaning = group.meaning + (f". **Flagged**, {group.slip}" if group.slip else "")
        script = f"`{group.script}.py`" if group.script != "-" else "-"
        lines.append(f"| {group.title} | {group.unit} | {meaning} | {script} | {group.sources} |")
    return "\n".join(lines)

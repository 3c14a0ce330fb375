"""Every fact of the study once: image sets, classes, conditions, metrics and what is derived from them.

Nothing here needs torch, pandas or scipy. `DEFINITIONS` says what every metric is, in the order of the table's columns;
`metric(name)` refuses a name that none of them knows. `DERIVED` holds the study's scores and biases (Gavrikov & Keuper,
CVPR 2024, section 3), each with its one formula.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from imagenet_biases.base.errors import UserError


@cache
def _class_list(name):
    """Return the lines of a class list that timm ships; read as a file, since importing timm would import torch."""
    folder = Path(find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    return tuple((folder / name).read_text("utf-8").split())


@cache
def wordnet_ids():
    """Return the 1,000 WordNet ids of ImageNet-1k in the order of the logits (sorted)."""
    return _class_list("imagenet_synsets.txt")


@cache
def class_numbers(subset):
    """Return the sorted class numbers of a subset of ImageNet-1k that timm lists: 'imagenet-a' or 'imagenet-r'."""
    wanted = set(_class_list(subset.replace("-", "_") + "_synsets.txt"))
    return tuple(number for number, wnid in enumerate(wordnet_ids()) if wnid in wanted)


# Image sets and networks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declaration:
    """What a complete image set holds."""

    title: str
    images: int
    classes: str | None = None  # name of timm's class list; None: all 1,000
    per_class: int | None = None
    numbered: bool = False  # folders are class numbers, not WordNet ids
    as_is: bool = False  # files are 224 x 224 already
    variants: bool = False  # CORRUPTION/SEVERITY folders, each a whole set


DECLARATIONS = {
    "imagenet": Declaration("ImageNet validation", 50_000, per_class=50),
    "imagenet-a": Declaration("ImageNet-A", 7_500, classes="imagenet-a"),
    "imagenet-r": Declaration("ImageNet-R", 30_000, classes="imagenet-r"),
    "imagenet-sketch": Declaration("ImageNet-Sketch", 50_889),
    "imagenet-v2": Declaration("ImageNet-v2 matched-frequency", 10_000, per_class=10, numbered=True),
    "imagenet-c": Declaration("ImageNet-C", 50_000, per_class=50, as_is=True, variants=True),
    "imagenet-cbar": Declaration("ImageNet-C-bar", 50_000, per_class=50, as_is=True, variants=True),
}
CLEAN_SET = "imagenet"  # on its plain images a network that is loaded wrongly shows
VIEW_RESIZE, VIEW_CROP = 256, 224  # the study's view: short side (bilinear), then the centre, in pixels

STUDY_CATEGORIES = (
    *("baseline", "training_recipes", "augmentation", "stylized", "freezing", "adversarial_training", "contrastive"),
)
DRAWN_CATEGORIES = ("calibration", "dial")  # networks made for drawn images, which have no place among photographs

# Conditions ----------------------------------------------------------------------------------------------------------

SEVERITIES = (1, 2, 3, 4, 5)

# AlexNet's published top-1 errors on ImageNet-C, mean over the five severities (Hendrycks & Dietterich, ICLR 2019,
# arXiv:1903.12261, table 2), by which the mean corruption error is normalised.
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
USUAL_CORRUPTIONS = tuple(ALEXNET_ERROR)  # in the paper's order
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
CORRUPTIONS = USUAL_CORRUPTIONS + EXTRA_CORRUPTIONS
CORRUPTIONS_BAR = (
    "blue_noise_sample",
    "brownish_noise",
    "caustic_refraction",
    "checkerboard_cutout",
    "cocentric_sine_waves",  # spelt so in the release
    "inverse_sparkles",
    "perlin_noise",
    "plasma_noise",
    "single_frequency_greyscale",
    "sparkles",
)
HUMAN_SETS = (  # Geirhos et al., NeurIPS 2021
    *("edge", "silhouette", "cue-conflict", "colour", "contrast", "high-pass", "low-pass", "phase-scrambling"),
    *("power-equalisation", "false-colour", "rotation", "eidolonI", "eidolonII", "eidolonIII", "uniform-noise"),
    *("sketch", "stylized"),
)
CUTOFFS = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)  # share of the spectrum that is kept
MIDDLE_CUTOFFS = (0.1, 0.2, 0.3, 0.4, 0.5)  # those of LPP and HPP
NOISE_SDS = (0.02, 0.04, 0.08, 0.16)  # of pixels in [0, 1]
BAND_CENTRES = tuple(1.75 * 2**f for f in range(7))  # octave bands of the noise, cycles per image of 224 pixels
LEVELS = {"low": 0.5 / 255, "high": 4 / 255}  # ε of the l-infinity attacks
RESNET50_LAYERS = (  # those with weights, in order
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

# Metrics -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """What one number is."""

    name: str
    unit: str
    meaning: str
    script: str  # what computes it, '-' where no script here does
    source: str = "published, measured"
    digits: int = 4  # decimals that are worth showing
    better: str = ""  # 'higher', 'lower', or '' where neither is
    slip: str = ""  # what is wrong with the published values
    published_images: int | None = None  # how many images the published value really rests on, where not the whole set
    short: str = ""  # a name for axes, where it differs
    logarithmic: bool = False  # spread over decades: plots use a logarithmic axis

    @property
    def label(self):
        """The axis label, with its unit."""
        return f"{self.short or self.name} [{self.unit}]"


@dataclass(frozen=True)
class Definition:
    """Metrics that are defined together: `names` in this order, then what `pattern` matches, in natural order."""

    title: str  # how raw-data/README.md names them
    names: tuple[str, ...]
    about: Metric  # what they share; its name is empty
    pattern: str | None = None


def _definition(title, names, unit, meaning, script, pattern=None, **more):
    return Definition(title, tuple(names), Metric("", unit, meaning, script, **more), pattern)


def _names(template, *lists):
    return tuple(template.format(*values) for values in product(*lists))


def _accuracies(names):
    return _names("{}_acc/{}", ("top1", "top5"), names)


_ACCURACY = {"unit": "% of images", "digits": 2, "better": "higher"}
_MEASURED, _PUBLISHED = {"source": "measured"}, {"source": "published"}
_CHANNEL = (
    ("bw", "octaves", "bandwidth", 2),
    ("cf", "cycles/image", "centre frequency", 1),
    ("pns", "0.01 / noise SD", "peak noise sensitivity", 3),
)


def _channel(suffixes, meaning, **more):
    return tuple(
        _definition(
            ", ".join(f"`metric/criticalband/{name}{suffix}`" for suffix in suffixes),
            _names(f"metric/criticalband/{name}{{}}", suffixes),
            unit,
            f"{long[0].upper()}{long[1:]} of the channel {meaning}",
            "eval_criticalband",
            digits=digits,
            **more,
        )
        for name, unit, long, digits in _CHANNEL
    )


DEFINITIONS = (
    _definition(
        "`top1_acc/imagenet`, `top5_acc/imagenet`",
        _accuracies(["imagenet"]),
        meaning="ImageNet validation (ILSVRC-2012), 50,000 images",
        script="eval_imagenet",
        **_ACCURACY,
    ),
    _definition(
        "`top1_acc/imagenet-real`",
        ["top1_acc/imagenet-real"],
        meaning="The same images against the ReaL labels (Beyer et al. 2020): 46,837 images with at least one label",
        script="eval_imagenet_real",
        slip="published: accuracy on the last batch only (326 labelled images), not on 46,837",
        published_images=326,
        **_ACCURACY,
    ),
    _definition(
        "`top1_acc/imagenet-v2`, `-a`, `-r`, `-sketch`, top5 likewise",
        _accuracies(["imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch"]),
        meaning="ImageNet-v2 matched frequency; -A and -R ranked among their 200 classes only; ImageNet-Sketch",
        script="eval_imagenet_ood",
        **_ACCURACY,
    ),
    _definition(
        "`top1_acc/own/NAME`, top5 likewise",
        (),
        meaning="Images of one's own: the first (one of the first five) answers is right",
        script="eval_images",
        pattern=r"top[15]_acc/own/[^/]+",
        **_ACCURACY | _MEASURED,
    ),
    _definition(
        "`top1_acc/imagenet-c`",
        ["top1_acc/imagenet-c"],
        meaning="ImageNet-C (Hendrycks & Dietterich 2019): mean over all 19 corruptions and 5 severities",
        script="eval_imagenet_c",
        **_ACCURACY,
    ),
    _definition(
        "`top1_acc/imagenet-c-15`",
        ["top1_acc/imagenet-c-15"],
        meaning="Mean over the 15 usual corruptions and 5 severities",
        script="eval_imagenet_c",
        **_ACCURACY | _MEASURED,
    ),
    _definition(
        "`mCE/imagenet-c`",
        ["mCE/imagenet-c"],
        "% of AlexNet's error",
        "Mean corruption error over the 15 usual corruptions against AlexNet's published errors",
        "eval_imagenet_c",
        digits=2,
        better="lower",
        **_MEASURED,
    ),
    _definition(
        "`top1_acc/CORRUPTION_SEVERITY`, top5 likewise (ImageNet-C)",
        _names("{}_acc/{}_{}", ("top1", "top5"), CORRUPTIONS, SEVERITIES),
        meaning="One of 19 corruptions at severity 1 (weak) to 5, 50,000 images each",
        script="eval_imagenet_c",
        **_ACCURACY,
    ),
    _definition(
        "`top1_acc/imagenet-cbar`",
        ["top1_acc/imagenet-cbar"],
        meaning="ImageNet-C̄ (Mintun et al. 2021): mean over 10 corruptions and 5 severities",
        script="eval_imagenet_cbar",
        **_ACCURACY,
    ),
    _definition(
        "`top1_acc/CORRUPTION_SEVERITY`, top5 likewise (ImageNet-C̄)",
        _names("{}_acc/{}_{}", ("top1", "top5"), CORRUPTIONS_BAR, SEVERITIES),
        meaning="One of 10 corruptions at severity 1 to 5, 50,000 images each",
        script="eval_imagenet_cbar",
        **_ACCURACY,
    ),
    _definition(
        "`top1_acc/NAME` of the 17 model-vs-human sets",
        _names("top1_acc/{}", HUMAN_SETS),
        meaning="16-category accuracy on the sets of Geirhos et al. (2021); cue-conflict: the shape category",
        script="eval_model_vs_human",
        **_ACCURACY,
    ),
    _definition(
        "`top1_acc/ood_mean`",
        ["top1_acc/ood_mean"],
        meaning="Mean over the 17 sets without the conditions that are not OOD or on which people are below 20 %",
        script="eval_model_vs_human",
        **_ACCURACY,
    ),
    _definition(
        "`shape-bias`",
        ["shape-bias"],
        "share",
        "Shape decisions / (shape + texture decisions) on cue-conflict images (Geirhos et al. 2019)",
        "eval_model_vs_human",
        digits=3,
        short="shape bias",
    ),
    _definition(
        "`shape-bias/TASK`, `shape-bias/TASK/…`",
        (),
        "share",
        "The same for answers in words (vqa, caption) or from text embeddings (clip16; Gavrikov et al. 2025); under "
        "/shape, /texture and /own the question is another one, /likelihood weighs the options' probabilities, "
        "/circular takes all 16 orders of the options, /published reads answers by the authors' rules",
        "eval_vlm",
        r"shape-bias/[\w-]+(/[\w-]+)*",
        digits=3,
        **_MEASURED,
    ),
    _definition(
        "`top1_acc/cue-conflict-either/TASK`",
        (),
        meaning="Answers in words that name the shape or the texture, of all cue-conflict images",
        script="eval_vlm",
        pattern=r"top1_acc/cue-conflict-either/[\w-]+(/[\w-]+)*",
        **_ACCURACY | _MEASURED,
    ),
    _definition(
        "`metric/vlm/steering`",
        (),
        "points",
        "Shape bias when asked for the shape less that when asked for the texture",
        "eval_vlm",
        r"metric/vlm/steering(/[\w-]+)*",
        digits=1,
        **_MEASURED,
    ),
    _definition(
        "`metric/vlm/refused`, `unparsed`, `generic`, `order-spread`, `order-survive`",
        (),
        "share",
        "Answers that refuse, that name no option, captions without a class; largest less smallest shape bias over the "
        "orders of the options, answers that are the same category in all of them",
        "eval_vlm",
        r"metric/vlm/(refused|unparsed|generic|order-[\w-]+)(/[\w-]+)*",
        digits=3,
        **_MEASURED,
    ),
    _definition(
        "`metric/human/accuracy-difference`",
        ["metric/human/accuracy-difference"],
        "share²",
        "Squared difference of accuracies between network and person, mean over sets, conditions and people",
        "eval_model_vs_human",
        better="lower",
        **_MEASURED,
    ),
    _definition(
        "`metric/human/observed-consistency`",
        ["metric/human/observed-consistency"],
        "share",
        "Images on which network and person are both right or both wrong",
        "eval_model_vs_human",
        better="higher",
        **_MEASURED,
    ),
    _definition(
        "`metric/human/error-consistency`",
        ["metric/human/error-consistency"],
        "κ",
        "Cohen's κ of being right or wrong together (Geirhos et al. 2020)",
        "eval_model_vs_human",
        better="higher",
        **_MEASURED,
    ),
    _definition(
        "`top1_acc/PGD-40/low`, `/high`",
        _names("top1_acc/PGD-40/{}", LEVELS),
        meaning="Correct after 40 steps of ℓ∞ PGD with step 2/255, ε = 0.5/255 (low) and 4/255 (high)",
        script="eval_imagenet_adv",
        slip="published: divided by 50,048 images, 48 of which do not exist and count as robust (+0.096 points at 0 %)",
        **_ACCURACY,
    ),
    _definition(
        "`top1_acc/PGD-40/low/corrected`, `/high/corrected`",
        _names("top1_acc/PGD-40/{}/corrected", LEVELS),
        meaning="The published PGD-40 value without the 48 images that do not exist, over 50,000",
        script="-",
        **_ACCURACY | _PUBLISHED,
    ),
    _definition(
        "`top1_acc/FGSM/…`, `PGD-…/…`, `AutoAttack/…`",
        _names("top1_acc/{}/{}", ("FGSM", "PGD-tuned", "AutoAttack"), LEVELS),
        meaning="Other attacks: one step; PGD with a small step and the best iterate; AutoAttack (standard); PGD in an "
        "ℓ2 ball (PGD-l2-…); other ε, steps and step sizes by their names",
        script="eval_imagenet_adv",
        pattern=r"top1_acc/(FGSM|PGD|AutoAttack)(-[\w.]+)*/[\w.+-]+",
        **_ACCURACY | _MEASURED,
    ),
    _definition(
        "`metric/bandpass/LFC/c`, `metric/bandpass/HFC/c`",
        _names("metric/bandpass/{}/{}", ("LFC", "HFC"), CUTOFFS),
        "ratio",
        "Top-1 under a low-/high-pass that keeps the share c of the spectrum, divided by the clean top-1",
        "eval_spectral",
    ),
    _definition(
        "`metric/bandpass/LPP`, `HPP`, `spectral-bias`",
        _names("metric/bandpass/{}", ("LPP", "HPP", "spectral-bias")),
        "ratio",
        "Means of LFC and HFC over c = 0.1 … 0.5; HPP / (LPP + HPP)",
        "eval_spectral",
        **_MEASURED,
    ),
    *_channel(
        [""],
        "(Subramanian et al. 2023) from the noise that brings accuracy to 50 %",
        slip="published: 7 distinct values for 48 networks and bandwidths of 11,295 octaves, the fit of a flat profile",
    ),
    *_channel(["_norm"], "from the noise that halves the noise-free accuracy: what the study plots"),
    *_channel(["_fine", "_norm_fine"], "from thresholds on a continuous log-noise axis, not whole steps", **_MEASURED),
    _definition(
        "`top1_acc/criticalband/…`",
        (),
        meaning="Accuracy on low-contrast grey images without noise and with noise of one octave band",
        script="eval_criticalband",
        pattern=r"top1_acc/criticalband/sd0(\.\d+/f\d+)?",
        **_ACCURACY | _MEASURED,
    ),
    _definition(
        "`top1_acc/solarize/…`",
        (),
        meaning="Pixel values from a threshold on inverted: by threshold α, the worst (min) and the mean of the grid, "
        "images that survive every threshold (worst; Gavrikov & Keuper 2023)",
        script="eval_solarization",
        pattern=r"top1_acc/solarize/[\w.-]+",
        **_ACCURACY,
    ),
    _definition(
        "`metric/solarize/worst-alpha`",
        ["metric/solarize/worst-alpha"],
        "share of the value range",
        "The threshold α of the grid with the least accuracy; -N for another grid, of N points",
        "eval_solarization",
        r"metric/solarize/worst-alpha-\d+",
        digits=2,
    ),
    _definition(
        "`top1_acc/RandSol-10/…`, top5 likewise",
        (),
        meaning="Randomised solarisation: images that survive ten random thresholds, drawn against top-1 or top-5, and "
        "the exact expectation over all thresholds; /clean: right without solarisation, too",
        script="eval_solarization",
        pattern=r"top[15]_acc/RandSol-\d+/[\w.-]+(/clean)?",
        **_ACCURACY | _MEASURED,
    ),
    _definition(
        "`metric/border/…`",
        (),
        "ratio",
        "Where a perturbation lies: mean size in a ring from the border over that in the centre (ring-D), ring 0 less "
        "1 (anomaly), right against left and bottom against top (asymmetry-x, -y)",
        "eval_perturbation",
        r"metric/border/[\w./-]+",
        **_MEASURED,
    ),
    _definition(
        "`metric/perturbation-spectrum/…/F`",
        (),
        "share",
        "Power of a perturbation up to F cycles/image from the zero frequency",
        "eval_perturbation",
        r"metric/perturbation-spectrum/([\w.-]+/)*\d+",
        **_MEASURED,
    ),
    _definition(
        "`metric/perturbation-spectrum/…/median`",
        (),
        "cycles/image",
        "The frequency below which half of a perturbation's power lies",
        "eval_perturbation",
        r"metric/perturbation-spectrum/([\w.-]+/)*median",
        digits=1,
        **_MEASURED,
    ),
    _definition(
        "`top1_acc/padding/MODE`, `top1_acc/border-masked/K`",
        (),
        meaning="With the convolutions' padding switched at test time; with the outer K pixels replaced by the mean "
        "colour",
        script="eval_perturbation",
        pattern=r"top[15]_acc/(padding/\w+|border-masked/\d+)",
        **_ACCURACY | _MEASURED,
    ),
    _definition(
        "`metric/erf/area`",
        ["metric/erf/area"],
        "share",
        "Effective receptive field; the study does not define it",
        "-",
        **_PUBLISHED,
    ),
    _definition(
        "`metric/erf/max_amplitude`",
        ["metric/erf/max_amplitude"],
        "gradient",
        "Largest value of the effective receptive field; the study does not define it",
        "-",
        **_PUBLISHED,
    ),
    _definition(
        "`metric/erf-luo/area`",
        ["metric/erf-luo/area"],
        "share",
        "Effective receptive field of the last feature map's centre (Luo et al. 2016): share of the pixels whose "
        "mean |gradient| is above 4.55 % of the largest",
        "eval_erf",
        **_MEASURED,
    ),
    _definition(
        "`metric/erf-luo/size`, `sd`",
        _names("metric/erf-luo/{}", ("size", "sd")),
        "pixels",
        "Its side, the square root of the number of those pixels; its standard deviation about its centre",
        "eval_erf",
        digits=1,
        **_MEASURED,
    ),
    _definition(
        "`metric/quality/ve_…`",
        _names("metric/quality/ve_{}", ("wmean", "max", "min")),
        "log₁₀ units",
        "Variance entropy of the 3 × 3 filters (Gavrikov & Keuper 2022), 0 to 0.954: mean over layers weighted by "
        "their filters, largest, least",
        "eval_filters",
    ),
    _definition(
        "`metric/quality/sparsity_…`",
        _names("metric/quality/sparsity_{}", ("wmean", "max")),
        "share",
        "3 × 3 filters with all weights below 1 % of the layer's largest",
        "eval_filters",
    ),
    _definition(
        "`metric/quality/orthogonality_…`",
        _names("metric/quality/orthogonality_{}", ("wmean", "max", "min")),
        "1 − mean |cos|",
        "Orthogonality of the output channels of the 3 × 3 convolutions",
        "eval_filters",
    ),
    _definition(
        "`metric/quality/ve_rel_wmean`, `or_rel_wmean`",
        _names("metric/quality/{}_rel_wmean", ("ve", "or")),
        "ratio",
        "Variance entropy and orthogonality relative to what random filters are expected to have",
        "eval_filters",
        **_MEASURED,
    ),
    _definition(
        "`metric/quality/random_share`",
        ["metric/quality/random_share"],
        "share of layers",
        "Layers that cannot be told from random filters by both measures",
        "eval_filters",
        **_MEASURED,
    ),
    _definition(
        "`metric/quality/gauss-ks`",
        ["metric/quality/gauss-ks"],
        "KS distance",
        "Largest distance of a layer's weights from their own fitted normal or uniform distribution",
        "eval_filters",
        **_MEASURED,
    ),
    _definition(
        "`metric/quality/layer/…`, `metric/quality-all/…`, `-threshold-T/…`",
        (),
        "as above",
        "The same by layer; for kernels of all sizes; with another threshold of sparsity",
        "eval_filters",
        r"metric/quality(/layer|-all|(-all)?-threshold-[\d.e-]+)/.+",
        **_MEASURED,
    ),
    _definition(
        "`metric/filter-shift/NETWORK`",
        (),
        "nats",
        "How far the distribution of 3 × 3 filters lies from that of another network: symmetric Kullback-Leibler "
        "divergences of principal components",
        "eval_filters",
        r"metric/filter-shift/.+",
        **_MEASURED,
    ),
    _definition(
        "`metric/criticality/mean`",
        ["metric/criticality/mean"],
        "1 − mean cos",
        "Change of the softmax vectors when one layer is reset, mean over layers (Gavrikov et al. 2024; published: "
        "three draws, 10,000 images)",
        "eval_criticality",
    ),
    _definition(
        "`metric/criticality/LAYER`; `criticality-RESET/…`",
        (),
        "1 − mean cos",
        "The same by layer; other resets by their names",
        "eval_criticality",
        r"metric/criticality(-[\w-]+)?(/.+)?(?<!/l1)(?<!/l2)(?<!/recovered)",
        **_MEASURED,
    ),
    _definition(
        "`metric/criticality/LAYER/l1`, `/l2`",
        (),
        "distance",
        "ℓ1 and ℓ2 distance of those softmax vectors",
        "eval_criticality",
        r"metric/criticality(-[\w-]+)?(/.+)?/l[12]",
        **_MEASURED,
    ),
    _definition(
        "`metric/criticality/LAYER/recovered`",
        (),
        "ratio",
        "Accuracy with the layer reset, divided by the intact network's on the same images",
        "eval_criticality",
        r"metric/criticality(-[\w-]+)?(/.+)?/recovered",
        better="higher",
        **_MEASURED,
    ),
    _definition(
        "`top1_acc/random-spatial`, `/bn-recalibrated`",
        (),
        meaning="All spatial filters at once replaced by Gaussian ones of the same mean and SD (Gavrikov & Keuper "
        "2023), batch-norm statistics as they were or estimated anew",
        script="eval_criticality",
        pattern=r"top[15]_acc/random-spatial(/[\w.-]+)*",
        **_ACCURACY | _MEASURED,
    ),
    _definition(
        "`metric/weight_reset/LAYER`",
        _names("metric/weight_reset/{}", RESNET50_LAYERS),
        "ratio",
        "Accuracy with one layer re-initialised, divided by the intact network's; not the later criticality",
        "-",
        r"metric/weight_reset/.+",
        slip="published: one batch of 512 images and one draw, standard errors up to 2 points",
        published_images=512,
        **_PUBLISHED,
    ),
)

_PLACES = {name: (d, n) for d, definition in enumerate(DEFINITIONS) for n, name in enumerate(definition.names)}
_PATTERNS = {
    d: re.compile(definition.pattern) for d, definition in enumerate(DEFINITIONS) if definition.pattern is not None
}
FLAGGED = frozenset(name for definition in DEFINITIONS if definition.about.slip for name in definition.names)


@cache
def place(name):
    """Sort key of a metric among the table's columns. Raises UserError for a name that no definition knows."""
    if name in _PLACES:
        return (*_PLACES[name], ())
    for number, pattern in _PATTERNS.items():
        if pattern.fullmatch(name):
            parts = re.findall(r"\d+(?:\.\d+)?|\D+", name)
            natural = tuple((0, float(part), "") if part[0].isdigit() else (1, 0.0, part) for part in parts)
            return number, len(DEFINITIONS[number].names), natural
    raise UserError(f"no definition knows the metric {name!r}: add it to DEFINITIONS in imagenet_biases/study.py")


def definition_of(name):
    """Return the Definition of a metric. Raises UserError for a name that none knows."""
    return DEFINITIONS[place(name)[0]]


def metric(name):
    """Return the Metric of this name. Raises UserError for a name that no definition knows."""
    return replace(definition_of(name).about, name=name)


# What is derived from metrics ----------------------------------------------------------------------------------------


def mean(*parts):
    """Return the mean of numbers, of arrays or of columns."""
    return sum(parts) / len(parts)


def high_share(low, high):
    """Return high / (low + high)."""
    return high / (low + high)


@dataclass(frozen=True)
class Derived:
    """A score or bias: `combine` of the metrics (or other derived ones) named in `parts`."""

    about: Metric
    parts: tuple[str, ...]
    combine: Callable = mean
    reported: str = ""  # the metric under which a script reports the same number, with its interval


def _derived(name, parts, unit, meaning, combine=mean, reported="", **more):
    return Derived(Metric(name, unit, meaning, "-", source="derived", **more), tuple(parts), combine, reported)


CONTROL = "top1_acc/imagenet"
CORRECTED = {f"top1_acc/PGD-40/{level}": f"top1_acc/PGD-40/{level}/corrected" for level in LEVELS}
"""Metric -> the published column without its slip. A measured value has no slip and stands for its own correction."""

_SCORE = {"unit": "%", "digits": 2, "better": "higher"}
_LOW = _names("metric/bandpass/LFC/{}", MIDDLE_CUTOFFS)
_HIGH = _names("metric/bandpass/HFC/{}", MIDDLE_CUTOFFS)
DERIVED = {
    derived.about.name: derived
    for derived in (
        _derived(
            "ID",
            ("top1_acc/imagenet", "top1_acc/imagenet-v2", "top1_acc/imagenet-real"),
            meaning="mean of `top1_acc/imagenet`, `imagenet-v2`, `imagenet-real`",
            short="ID accuracy",
            slip="rests on a known slip; ID (unflagged) does without",
            **_SCORE,
        ),
        _derived(
            "ID (unflagged)",
            ("top1_acc/imagenet", "top1_acc/imagenet-v2"),
            meaning="mean of `top1_acc/imagenet`, `imagenet-v2`",
            **_SCORE,
        ),
        _derived(
            "Robustness",
            ("top1_acc/imagenet-a", "top1_acc/imagenet-c", "top1_acc/imagenet-cbar"),
            meaning="mean of `top1_acc/imagenet-a`, `imagenet-c`, `imagenet-cbar`",
            **_SCORE,
        ),
        _derived(
            "Concepts",
            ("top1_acc/imagenet-sketch", "top1_acc/imagenet-r", "top1_acc/stylized"),
            meaning="mean of `top1_acc/imagenet-sketch`, `imagenet-r`, `stylized`",
            **_SCORE,
        ),
        _derived(
            "Adversarial",
            ("top1_acc/PGD-40/low",),
            meaning="`top1_acc/PGD-40/low`",
            reported="top1_acc/PGD-40/low",
            slip="rests on a known slip; Adversarial (unflagged) does without",
            **_SCORE,
        ),
        _derived(
            "Adversarial (unflagged)",
            (CORRECTED["top1_acc/PGD-40/low"],),
            meaning="`top1_acc/PGD-40/low/corrected`; measured rows, which have no slip: `top1_acc/PGD-40/low`",
            **_SCORE,
        ),
        _derived(
            "LPP",
            _LOW,
            "ratio",
            "low-pass performance: mean of `metric/bandpass/LFC/c` over c = 0.1 … 0.5",
            reported="metric/bandpass/LPP",
            short="low-pass performance",
        ),
        _derived(
            "HPP",
            _HIGH,
            "ratio",
            "high-pass performance: mean of `metric/bandpass/HFC/c` over c = 0.1 … 0.5",
            reported="metric/bandpass/HPP",
            short="high-pass performance",
            logarithmic=True,
        ),
        _derived(
            "spectral bias",
            ("LPP", "HPP"),
            "share",
            "HPP / (LPP + HPP)",
            high_share,
            reported="metric/bandpass/spectral-bias",
            logarithmic=True,
        ),
        *(
            _derived(
                f"{name}_norm",
                (f"metric/criticalband/{name}_norm",),
                unit,
                f"{long}: `metric/criticalband/{name}_norm`",
                reported=f"metric/criticalband/{name}_norm",
                short=long,
                digits=digits,
            )
            for name, unit, long, digits in _CHANNEL
        ),
        *(
            _derived(name, (part,), unit, f"{long}: `{part}`", reported=part, short=long)
            for name, part, unit, long in (
                ("criticality", "metric/criticality/mean", "1 − mean cos", "mean layer criticality"),
                ("variance entropy", "metric/quality/ve_wmean", "log10", "variance entropy of 3 × 3 filters"),
                ("sparsity", "metric/quality/sparsity_wmean", "share", "share of sparse 3 × 3 filters"),
                ("orthogonality", "metric/quality/orthogonality_wmean", "1 − mean |cos|", "orthogonality of filters"),
            )
        ),
    )
}
SCORES = ("ID", "Robustness", "Concepts", "Adversarial")
BIASES = ("shape-bias", "LPP", "HPP", "spectral bias", "bw_norm", "cf_norm", "pns_norm")
FURTHER_BIASES = ("criticality", "variance entropy", "sparsity", "orthogonality")  # of the group's other papers

FAMILY_MEASURES = (  # of families of networks that differ in one budget
    *BIASES,
    *FURTHER_BIASES,
    *SCORES[1:],
    "top1_acc/ood_mean",
    *(f"metric/human/{measure}" for measure in ("accuracy-difference", "observed-consistency", "error-consistency")),
)


def derive(name, values):
    """Return a derived metric from `values`, a mapping of metric names to numbers, arrays or table columns.

    A dict of numbers, a dict of arrays [images] and a pandas DataFrame all do. Raises KeyError where a part is missing.
    """
    one = DERIVED[name]
    return one.combine(*(derive(part, values) if part in DERIVED else values[part] for part in one.parts))


def about(name):
    """Return the Metric of a reported or a derived metric. Raises UserError for a name that is neither."""
    return DERIVED[name].about if name in DERIVED else metric(name)


def unflagged(score):
    """Return the name of a score's variant without the columns in FLAGGED; its own name where it has none of them."""
    return f"{score} (unflagged)" if FLAGGED.intersection(DERIVED[score].parts) else score

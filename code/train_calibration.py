"""Train networks whose biases are known on drawn pictures: minutes each on a CPU, no data needed.

    python code/train_calibration.py                      # the demo's two networks
    python code/train_calibration.py --network dial       # twelve between them: six steps, two seeds; an hour

All networks see the same kind of pictures (imagenet_biases/synthetic), with a silhouette and a texture drawn
independently. A network has a set of silhouette categories: it learns to name the silhouette where its category is in
the set, and the texture otherwise, each under noise at the frequencies of the cue to ignore. With all 16 categories it
is the silhouette network, with none the texture network; with k of them, drawn by seed, it is a step on a dial.
The weights go to models/calibration/: silhouette, texture and dial/K-SEED.safetensors.

Expected (silhouette, texture; seed 0): 100 % on the drawn imagenet set; shape bias 1.00 and 0.00; critical-band
noise hurts at frequency index 0 to 5, and 5 to 6; a low-pass at 0.1 leaves 100 % and 4 %, a high-pass at 0.9 10 % and
91 %. The dial (k = 0, 3, 6, 10, 13, 16; mean of two seeds): shape bias 0, 0.01, 0.03, 0.64, 0.98, 1. A perfect
learner would have k / 16; networks this small switch from one cue to the other between 6 and 13.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from imagenet_biases.base.errors import Parser, exit_on_user_error
from imagenet_biases.base.files import atomic
from imagenet_biases.base.paths import HOME
from imagenet_biases.synthetic.drawings import CATEGORIES, LUMA, VIEW, picture
from imagenet_biases.synthetic.networks import CalibrationNetwork, build

FOLDER = HOME / "models" / "calibration"
NOISE = {"silhouette": (-0.5, 0.5), "texture": (1.5, 2.5)}  # range of the noise's exponent: mostly high, mostly low
STEPS, SEEDS = (0, 3, 6, 10, 13, 16), (0, 1)  # of the dial: numbers of silhouette categories
PICTURES, EPOCHS, BATCH, RATE = 4000, 10, 50, 4e-3


def path(name: str) -> Path:
    """Return where the weights of a network lie."""
    return FOLDER / f"{name}.safetensors"


def drawn(number: int, seed: int) -> tuple[UInt8[Tensor, "N 3 224 224"], dict[str, Int64[Tensor, " N"]]]:
    """Return pictures with independent cues, and their categories by cue."""
    names = [category.name for category in CATEGORIES]
    pixels, labels = np.empty((number, VIEW, VIEW, 3), np.uint8), np.empty((2, number), np.int64)
    for index in tqdm(range(number), "drawing", unit="picture", leave=False):
        rng = np.random.default_rng([seed, 100, index])
        labels[:, index] = rng.integers(len(names), size=2)
        pixels[index] = picture(rng, *(names[k] for k in labels[:, index]), size=(0.4, 0.85), clutter=rng.integers(8))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), dict(zip(NOISE, torch.from_numpy(labels), strict=True))


def silhouette_categories(number: int, seed: int) -> Bool[Tensor, " 16"]:
    """Return which `number` of the categories are named by silhouette; a larger number contains a smaller one's."""
    chosen = np.random.default_rng([seed, 200]).permutation(len(CATEGORIES))[:number]
    return torch.from_numpy(np.isin(np.arange(len(CATEGORIES)), chosen))


def targets(
    labels: Mapping[str, Int64[Tensor, " N"]], by_shape: Bool[Tensor, " 16"]
) -> tuple[Int64[Tensor, " N"], Float32[Tensor, "N 2"]]:
    """Return what a network is to answer, and the range of its noise's exponent.

    Args:
        labels: categories by cue.
        by_shape: the silhouette categories.
    """
    by_silhouette = by_shape[labels["silhouette"]]
    slopes = torch.where(by_silhouette[:, None], torch.tensor(NOISE["silhouette"]), torch.tensor(NOISE["texture"]))
    return torch.where(by_silhouette, labels["silhouette"], labels["texture"]), slopes


def augmented(
    pixels: UInt8[Tensor, "B 3 H W"], slopes: Float32[Tensor, "B 2"], generator: torch.Generator
) -> Float32[Tensor, "B 3 H W"]:
    """Return pixels in [0, 1] with random grey or colour, contrast, level and coloured noise.

    `slopes`: the range of each picture's noise. The contrasts reach below the fifth that critical-band masking
    leaves of a picture, the levels to where a high-pass filtered picture is: around black, its lower half clipped.
    """

    def uniform(low: float | Tensor, high: float | Tensor) -> Float32[Tensor, "B 1 1 1"]:
        return low + (high - low) * torch.rand(len(pixels), 1, 1, 1, generator=generator)

    pixels = pixels.float() / 255
    grey = (pixels * torch.from_numpy(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    pixels = torch.where(uniform(0, 1) < 0.5, grey, pixels)
    side = uniform(-1, 1)
    level = 0.5 + 0.5 * side * side.abs()  # mostly grey, now and then close to black or white
    pixels = (pixels - pixels.mean((1, 2, 3), keepdim=True)) * 10 ** uniform(-1, 0.1) + level
    strength, slope = uniform(0, 0.1), uniform(*slopes.view(-1, 2, 1, 1, 1).unbind(1))
    return (pixels + strength * coloured_noise(slope, generator)).clamp(0, 1)


def coloured_noise(slope: Float32[Tensor, "B 1 1 1"], generator: torch.Generator) -> Float32[Tensor, "B 1 224 224"]:
    """Return grey noise of standard deviation 1 whose amplitude falls as frequency ** -slope."""
    white = torch.randn(len(slope), 1, VIEW, VIEW, generator=generator)
    radius = torch.hypot(torch.fft.fftfreq(VIEW)[:, None], torch.fft.rfftfreq(VIEW)) * VIEW
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * radius.clamp(min=1) ** -slope, (VIEW, VIEW))
    return noise / noise.std((2, 3), keepdim=True)


def train(
    network: CalibrationNetwork,
    pixels: UInt8[Tensor, "N 3 224 224"],
    labels: Int64[Tensor, " N"],
    slopes: Float32[Tensor, "N 2"],
    seed: int,
    epochs: int = EPOCHS,
) -> Iterator[float]:
    """Train a network in place; yield the loss of each step. `labels`, `slopes`: as `targets` returns them."""
    generator = torch.Generator().manual_seed(seed)
    numbers = network.numbers
    steps = epochs * -(-len(pixels) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    network.train().to(memory_format=torch.channels_last)
    for _ in range(epochs):
        for chosen in torch.randperm(len(pixels), generator=generator).split(BATCH):
            logits = network(augmented(pixels[chosen], slopes[chosen], generator))
            loss = nn.functional.cross_entropy(logits, numbers[labels[chosen]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield loss.item()
    network.eval()


def train_one(
    name: str,
    pixels: UInt8[Tensor, "N 3 224 224"],
    labels: Int64[Tensor, " N"],
    slopes: Float32[Tensor, "N 2"],
    seed: int,
) -> None:
    """Train a network and write its weights."""
    torch.manual_seed(seed)
    network = build()
    bar = tqdm(train(network, pixels, labels, slopes, seed), name, EPOCHS * -(-PICTURES // BATCH), unit="step")
    for loss in bar:
        bar.set_postfix(loss=f"{loss:.3f}")
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    with atomic(path(name)) as file:
        file.write(safetensors.torch.save(state))
    print(f"{path(name)} written, last loss {loss:.3f}")


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; train and write the networks."""
    parser = Parser(__doc__)
    parser.add_argument("--network", choices=(*NOISE, "both", "dial"), default="both", help="which to train")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pictures, the first weights and the order")
    args = parser.parse_args(arguments)
    ends = {"silhouette": len(CATEGORIES), "texture": 0}
    wanted = {cue: (ends[cue], args.seed) for cue in ends if args.network in (cue, "both")}
    if args.network == "dial":
        wanted = {}
        for seed, number in itertools.product(SEEDS, STEPS):
            if not path(f"dial/{number}-{seed}").exists():
                wanted[f"dial/{number}-{seed}"] = number, seed
    for seed in dict.fromkeys(seed for _, seed in wanted.values()):
        pixels, labels = drawn(PICTURES, seed)
        for name, (number, network_seed) in wanted.items():
            if network_seed == seed:
                train_one(name, pixels, *targets(labels, silhouette_categories(number, seed)), seed)
    if args.network == "dial":
        print("measure them: python code/eval_all.py --model dial --data results/drawn")


if __name__ == "__main__":
    main()

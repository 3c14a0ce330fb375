"""Train networks whose biases are known on drawn pictures: minutes each on a CPU, no data needed.

    python code/train_calibration.py                      # the demo's two networks
    python code/train_calibration.py --network dial       # twelve between them: six steps, two seeds; an hour

All networks see the same kind of pictures (imagenet_biases/synthetic), with a silhouette and a texture drawn
independently. A network learns to name the silhouette where the silhouette's category is one of its own, and the
texture otherwise, each under noise at the frequencies of the cue that it is to ignore there. With all 16 categories its
own it is the silhouette network, with none the texture network; with k of them, drawn by seed, it is a step on a dial.
The weights go to models/calibration/: silhouette, texture and dial/K-SEED.safetensors.

Expected (silhouette, texture; seed 0): 100 % on the drawn imagenet set; shape bias 1.00 and 0.00; critical-band
noise hurts at frequency index 0 to 5, and 5 to 6; a low-pass at 0.1 leaves 100 % and 4 %, a high-pass at 0.9 10 % and
91 %. The dial (k = 0, 3, 6, 10, 13, 16; mean of two seeds): shape bias 0, 0.01, 0.03, 0.64, 0.98, 1. A learner without
fault would have k / 16; networks this small go over from one cue to the other between 6 and 13.
"""

import numpy as np
import safetensors.torch
import torch
from torch import nn
from tqdm import tqdm

from imagenet_biases.base.errors import Parser, exit_on_user_error
from imagenet_biases.base.files import atomic
from imagenet_biases.base.paths import HOME
from imagenet_biases.synthetic.drawings import CATEGORIES, LUMA, VIEW, picture
from imagenet_biases.synthetic.networks import build

FOLDER = HOME / "models" / "calibration"
NOISE = {"silhouette": (-0.5, 0.5), "texture": (1.5, 2.5)}  # range of the noise's slope: mostly high, mostly low
STEPS, SEEDS = (0, 3, 6, 10, 13, 16), (0, 1)  # of the dial: numbers of categories that are told by their silhouettes
PICTURES, EPOCHS, BATCH, RATE = 4000, 10, 50, 4e-3


def path(name):
    """Return where the weights of a network lie."""
    return FOLDER / f"{name}.safetensors"


def drawn(number, seed):
    """`number` pictures with independent cues: uint8 [N, 3, 224, 224], and the categories {cue: int64 [N]}."""
    names = [category.name for category in CATEGORIES]
    pixels, labels = np.empty((number, VIEW, VIEW, 3), np.uint8), np.empty((2, number), np.int64)
    for index in tqdm(range(number), "drawing", unit="picture", leave=False):
        rng = np.random.default_rng([seed, 100, index])
        labels[:, index] = rng.integers(len(names), size=2)
        pixels[index] = picture(rng, *(names[k] for k in labels[:, index]), size=(0.4, 0.85), clutter=rng.integers(8))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), dict(zip(NOISE, torch.from_numpy(labels), strict=True))


def told_by_silhouette(number, seed):
    """Return which of the 16 categories are: `number` of them, bool [16]; a larger number adds to a smaller one's."""
    chosen = np.random.default_rng([seed, 200]).permutation(len(CATEGORIES))[:number]
    return torch.from_numpy(np.isin(np.arange(len(CATEGORIES)), chosen))


def taught(labels, own):
    """Return what a network is to answer, int64 [N], and the range of its noise's slope, float32 [N, 2].

    labels: {cue: int64 [N]}; own: which categories are told by their silhouettes, bool [16].
    """
    by_silhouette = own[labels["silhouette"]]
    slopes = torch.where(by_silhouette[:, None], torch.tensor(NOISE["silhouette"]), torch.tensor(NOISE["texture"]))
    return torch.where(by_silhouette, labels["silhouette"], labels["texture"]), slopes


def augmented(pixels, slopes, generator):
    """Random grey or colour, contrast, level and coloured noise: uint8 [B, 3, H, W] -> float32 in [0, 1].

    slopes [B, 2]: the range of each picture's noise. The contrasts reach below the fifth that critical-band masking
    leaves of a picture, the levels to where a high-pass filtered picture is: around black, its lower half clipped.
    """

    def uniform(low, high):
        return low + (high - low) * torch.rand(len(pixels), 1, 1, 1, generator=generator)

    pixels = pixels.float() / 255
    grey = (pixels * torch.from_numpy(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    pixels = torch.where(uniform(0, 1) < 0.5, grey, pixels)
    side = uniform(-1, 1)
    level = 0.5 + 0.5 * side * side.abs()  # mostly grey, now and then close to black or white
    pixels = (pixels - pixels.mean((1, 2, 3), keepdim=True)) * 10 ** uniform(-1, 0.1) + level
    strength, slope = uniform(0, 0.1), uniform(*slopes.view(-1, 2, 1, 1, 1).unbind(1))
    return (pixels + strength * coloured_noise(slope, generator)).clamp(0, 1)


def coloured_noise(slope, generator):
    """Grey noise of standard deviation 1 whose amplitude falls as frequency ** -slope: float32 [B, 1, 224, 224]."""
    white = torch.randn(len(slope), 1, VIEW, VIEW, generator=generator)
    radius = torch.hypot(torch.fft.fftfreq(VIEW)[:, None], torch.fft.rfftfreq(VIEW)) * VIEW
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * radius.clamp(min=1) ** -slope, (VIEW, VIEW))
    return noise / noise.std((2, 3), keepdim=True)


def train(network, pixels, labels, slopes, seed, epochs=EPOCHS):
    """Train `network` in place on uint8 pixels [N, 3, 224, 224]; yield the loss of each step.

    labels [N], slopes [N, 2]: as `taught` gives them.
    """
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


@exit_on_user_error
def main(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("--network", choices=(*NOISE, "both", "dial"), default="both", help="which to train")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pictures, the first weights and the order")
    args = parser.parse_args(arguments)
    ends = {"silhouette": len(CATEGORIES), "texture": 0}
    wanted = {cue: (ends[cue], args.seed) for cue in ends if args.network in (cue, "both")}
    if args.network == "dial":
        wanted = {f"dial/{number}-{seed}": (number, seed) for seed in SEEDS for number in STEPS}
    missing = {name: one for name, one in wanted.items() if args.network != "dial" or not path(name).exists()}
    for seed in dict.fromkeys(seed for _, seed in missing.values()):
        pixels, labels = drawn(PICTURES, seed)
        for name in (name for name, one in missing.items() if one[1] == seed):
            torch.manual_seed(seed)
            network = build()
            steps = train(network, pixels, *taught(labels, told_by_silhouette(*missing[name])), seed)
            for loss in (bar := tqdm(steps, name, EPOCHS * -(-PICTURES // BATCH), unit="step")):
                bar.set_postfix(loss=f"{loss:.3f}")
            state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
            with atomic(path(name)) as file:
                file.write(safetensors.torch.save(state))
            print(f"{path(name)} written, last loss {loss:.3f}")
    if args.network == "dial":
        print("measure them: python code/eval_all.py --model dial --data results/drawn")


if __name__ == "__main__":
    main()

"""Train a network on ImageNet, changing one thing of a fixed recipe, and measure it with all benchmarks.

Run:   python code/train_resnet.py --train DIR --preset diffusion-noise --imagenet VAL_DIR --out runs/noise-0
       torchrun --nproc-per-node 8 code/train_resnet.py --train DIR --precision bf16 --out runs/plain-0
       ... --preset frozen-random --arch resnet18 --epochs 30 --seed 1 --data ROOT --evaluate

Recipe: 90 epochs, batches of 256, SGD with momentum 0.9 and weight decay 1e-4, rate 0.1 for 5 epochs, then a cosine to
0; random resized crops of 224 pixels (bilinear), flips; as the released diffusion-noise network was trained
(paulgavrikov/diffusion-noise-cls-pytorch, after torchvision's reference). One thing differs by preset:

  baseline         nothing
  diffusion-noise  images under the noise of a diffusion process, never normalised; the finished network has no noise
                   (measure it with noise by --frontend diffusion-noise)
  low-pass         half of the images through a low-pass of cut-off 0.1 to 0.9, on [0, 1] pixels, before normalisation
  frozen-random    filters larger than 1 x 1 stay as they were drawn (Gavrikov & Keuper 2023, arXiv:2301.11360)
  stylized         the images of a second folder, too (--stylized DIR; Geirhos et al. 2019, arXiv:1811.12231)

Interrupted runs resume where they stopped: repeat the command. Crops, flips and noise are functions of (seed, epoch,
image), so that neither workers nor interruptions change a network. OUT/NAME.safetensors is the finished network; the
last line printed is the command that measures it, with its normalization; --evaluate runs it. One training reveals
nothing about how much networks of one kind differ: train three seeds.
"""

import argparse
import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from imagenet_biases.base.errors import Parser, Terminated, UserError, exit_on_user_error, signals_deferred
from imagenet_biases.base.files import atomic, safe_name
from imagenet_biases.cli import whole
from imagenet_biases.images.custom import custom_set
from imagenet_biases.images.preprocessing import Reader, Unreadable
from imagenet_biases.images.sets import ImageSet
from imagenet_biases.networks.frontends import SCHEDULES, diffusion_noise
from imagenet_biases.networks.registry import NORMALIZATIONS
from imagenet_biases.stimuli.bandpass import band_pass
from imagenet_biases.stimuli.seeded import streams, uniform
from imagenet_biases.study import STUDY_CROP
from imagenet_biases.vocabulary import Batch, Data

BATCH, RATE, MOMENTUM, DECAY, CONSTANT = 256, 0.1, 0.9, 1e-4, 5  # CONSTANT: epochs at the first rate
EVALUATE = Path(__file__).with_name("eval_all.py")


# What differs ---------------------------------------------------------------------------------------------------------


def low_passed(pixels: Float[Tensor, "B 3 H W"], batch: Batch) -> Float[Tensor, "B 3 H W"]:
    """Return pixels, each image with probability 1/2 through a low-pass; cut-offs clip(U, 0.1, 0.9)."""
    chosen = uniform(streams(batch, f"chosen {batch.draw}"), (1,)).flatten()
    cutoffs = uniform(streams(batch, f"cut-off {batch.draw}"), (1,)).flatten()
    levels = pixels.shape[-1] // 2  # a square of the spectrum has so many sizes
    cutoffs = (cutoffs.clamp(0.1, 0.9) * levels).round() / levels
    filtered = []
    for image, use, cutoff in zip(pixels, (chosen < 0.5).tolist(), cutoffs.tolist(), strict=True):
        filtered.append(band_pass(image[None], kind="low-pass", cutoff=cutoff) if use else image[None])
    return torch.cat(filtered)


def freeze_spatial(network: nn.Module) -> int:
    """Fix every convolution with a kernel above 1 x 1 as it is; return how many numbers are fixed."""
    fixed = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            module.weight.requires_grad_(False)
            fixed += module.weight.numel()
    return fixed


@dataclass(frozen=True)
class Preset:
    """What a training does differently.

    Attributes:
        front: front(pixels in [0, 1], batch, **settings) is applied before normalisation.
        prepare: changes the network before training; returns how many numbers it fixes.
    """

    normalization: str = "imagenet"
    front: Callable | None = None
    prepare: Callable[[nn.Module], int] | None = None


PRESETS = {
    "baseline": Preset(),
    "diffusion-noise": Preset("none", front=diffusion_noise),
    "low-pass": Preset(front=low_passed),
    "frozen-random": Preset(prepare=freeze_spatial),
    "stylized": Preset(),
}


# Images ---------------------------------------------------------------------------------------------------------------


def seeded(*numbers: int) -> int:
    """Return a 63-bit seed that is a function of whole numbers, on every machine the same."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


class Photographs(torch.utils.data.Dataset):
    """Randomly cropped and flipped images of several sets, one after the other, for one epoch.

    Item: uint8 [3, size, size], class number, position. A function of (seed, epoch, position).
    """

    def __init__(self, sets: Sequence[ImageSet], size: int, seed: int) -> None:
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(size, antialias=True)
        view = v2.Compose([v2.RGB(), crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
        self.readers = [Reader(replace(images, as_seen=False), view) for images in sets]  # the view is all there is
        self.starts = np.cumsum([0, *map(len, sets)])
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 H W"], int, int]:
        number = int(np.searchsorted(self.starts, index, "right")) - 1
        reader, place = self.readers[number], index - self.starts[number]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(self.seed, self.epoch, index))
            pixels = reader.decoded(reader.images.chosen[place])
        return pixels, int(reader.images.labels[place]), index

    def batches(self, size: int, number: int, count: int) -> list[list[int]]:
        """Return this process's positions in each batch of this epoch; an incomplete last batch is left out."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seeded(self.seed, self.epoch)))
        size = min(size, len(self))
        return [order[start + number : start + size : count].tolist() for start in range(0, len(self) - size + 1, size)]


# Training -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """This process among those that torchrun started."""

    number: int
    count: int
    device: torch.device


class Training:
    """A network, its optimizer and schedule, and how far they are; stored in OUT/checkpoint.pt."""

    def __init__(self, args: argparse.Namespace, images: Photographs, process: Process) -> None:
        import timm
        from timm.optim import create_optimizer_v2
        from timm.scheduler import CosineLRScheduler
        from timm.utils import ModelEmaV3

        self.args, self.images, self.process = args, images, process
        self.progress: dict[str, Any] = {"epoch": 0, "done": 0, "log": []}
        device, preset = process.device, PRESETS[args.preset]
        torch.manual_seed(args.seed)
        self.network = timm.create_model(args.arch, num_classes=1000)
        if preset.prepare:
            preset.prepare(self.network)
        self.network.to(device, memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(
            self.network, "sgd", lr=args.rate, momentum=MOMENTUM, weight_decay=DECAY, filter_bias_and_bn=False
        )
        constant = min(CONSTANT, args.epochs - 1) * self.steps
        self.schedule = CosineLRScheduler(
            self.optimizer, args.epochs * self.steps - constant, warmup_t=constant, warmup_lr_init=args.rate,
            warmup_prefix=True, t_in_epochs=False,
        )  # fmt: skip
        self.average = ModelEmaV3(self.network, decay=args.ema) if args.ema else None
        parallel = nn.parallel.DistributedDataParallel
        local = [device.index] if device.type == "cuda" else None
        self.parallel = parallel(self.network, device_ids=local) if process.count > 1 else self.network
        self.normalize = Normalize(*NORMALIZATIONS[preset.normalization]).to(device)

    @property
    def file(self) -> Path:
        """The save point."""
        return self.args.out / "checkpoint.pt"

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return max(len(self.images) // self.args.batch_size, 1)

    @property
    def averaged(self) -> nn.Module:
        """The averaged network where there is one, else the network."""
        return self.average.module if self.average else self.network

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when a training resumes."""
        names = ("preset", "schedule", "arch", "epochs", "size", "batch_size", "rate", "ema", "seed", "precision")
        return {name: getattr(self.args, name) for name in names} | {"images": len(self.images)}

    def save(self) -> None:
        """Store everything that the rest of the training depends on, atomically."""
        if self.process.number:
            return
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"average": self.average.module.state_dict()} if self.average else {}
        state |= {"identity": self.identity()} | self.progress
        with atomic(self.file) as file:
            torch.save(state, file)

    def resume(self) -> None:
        """Continue from the save point, where there is one.

        Raises:
            UserError: it is damaged, or of another training.
        """
        if not self.file.exists():
            return
        try:
            state = torch.load(self.file, map_location=self.process.device, weights_only=True)
            identity = state["identity"]
        except Exception as error:  # whatever a damaged file makes torch raise
            raise UserError(f"{self.file} cannot be read ({error}): remove it to begin again") from None
        for name, value in self.identity().items():
            if identity.get(name) != value:
                before = f"{self.args.out} holds a training with {name} {identity.get(name)}"
                raise UserError(f"{before}, not {value}: give another --out")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.progress = {name: state[name] for name in self.progress}

    def step(
        self, pixels: UInt8[Tensor, "B 3 H W"], labels: Int64[Tensor, " B"], index: Int64[Tensor, " B"]
    ) -> Float[Tensor, " 2"]:
        """Take one step of the optimizer; return the sum of the losses and the hits of this process's images."""
        number = self.progress["epoch"] * self.steps + self.progress["done"]
        self.schedule.step_update(number)
        device, front = self.process.device, PRESETS[self.args.preset].front
        pixels, labels, index = (tensor.to(device, non_blocking=True) for tensor in (pixels, labels, index))
        pixels = pixels.float() / 255
        if front:
            settings = {"schedule": self.args.schedule} if front is diffusion_noise else {}
            pixels = front(pixels, Batch(index, self.args.seed, self.progress["epoch"]), **settings)
        pixels = self.normalize(pixels).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.args.precision == "bf16"):
            logits = self.parallel(pixels)
            loss = nn.functional.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.average:
            self.average.update(self.network, step=number)
        return torch.stack([loss.detach() * len(labels), (logits.argmax(1) == labels).sum()]).double()

    def run_epoch(self, report: Callable[[dict[str, float]], None]) -> None:
        """Train the rest of the epoch; `report(line)` is called with {epoch, loss, top1, rate, images_per_second}."""
        from tqdm import tqdm

        process, epoch, done = self.process, self.progress["epoch"], self.progress["done"]
        self.images.epoch = epoch
        batches = self.images.batches(self.args.batch_size, process.number, process.count)
        loader = torch.utils.data.DataLoader(
            self.images, batch_sampler=batches[done:], num_workers=self.args.num_workers,
            pin_memory=process.device.type == "cuda",
        )  # fmt: skip
        self.parallel.train()
        totals, seen = torch.zeros(2, dtype=torch.float64, device=process.device), 0
        started = saved = time.monotonic()
        bar = tqdm(loader, f"epoch {epoch + 1}", len(batches), initial=done, disable=bool(process.number), unit="step")
        for pixels, labels, index in bar:
            with signals_deferred():  # a save point in the middle of a step would repeat what it has changed
                totals += self.step(pixels, labels, index)
                self.progress["done"] = done = done + 1
            seen += len(labels)
            if done % 20 == 0:
                bar.set_postfix(loss=f"{totals[0].item() / seen:.3f}")
            if time.monotonic() - saved > self.args.checkpoint_seconds and done < len(batches):
                self.save()
                saved = time.monotonic()
        counts = torch.cat([totals, totals.new_tensor([seen])])
        if process.count > 1:
            torch.distributed.all_reduce(counts)
        loss, hits, images = counts.tolist()
        line = {"epoch": epoch + 1, "loss": loss / max(images, 1), "top1": 100 * hits / max(images, 1)}
        line |= {"rate": self.optimizer.param_groups[0]["lr"]}
        line |= {"images_per_second": images / (time.monotonic() - started)}  # of what this process saw of the epoch
        self.progress |= {"epoch": epoch + 1, "done": 0, "log": [*self.progress["log"], line]}
        report(line)
        self.save()

    def finish(self) -> Path:
        """Write the (averaged) network as OUT/NAME.safetensors; return the path."""
        import safetensors.torch

        path = self.args.out / f"{safe_name(self.args.out.resolve().name)}.safetensors"
        state = {name: value.cpu().contiguous() for name, value in self.averaged.state_dict().items()}
        with atomic(path) as file:
            file.write(safetensors.torch.save(state))
        return path


def accuracy(training: Training, folder: str) -> float:
    """Return top-1 in per cent on a validation set, as eval_imagenet.py measures it without its records."""
    from imagenet_biases import Data, Settings, evaluate

    mean, std = NORMALIZATIONS[PRESETS[training.args.preset].normalization]
    plain = nn.Sequential(Normalize(mean, std), training.averaged)
    settings = Settings(device=str(training.process.device), workers=training.args.num_workers, alone=True)
    (record,) = evaluate(
        {"network": plain}, "imagenet", Data(folders={"imagenet": folder}, allow_partial=True), settings
    )
    return record.metrics["top1_acc/imagenet"].value


class Normalize(nn.Module):
    """Pixels in [0, 1] -> pixels with the mean and standard deviation that a network was trained with."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Return the normalised pixels."""
        return (pixels - self.mean) / self.std


def command(args: argparse.Namespace, path: Path) -> list[str]:
    """Return the command that measures the finished network, as a list of words."""
    words = ["python", os.path.relpath(EVALUATE), "--model", str(path), "--arch", args.arch]
    words += ["--normalization", PRESETS[args.preset].normalization, "--data", args.data or "ROOT"]
    return words


# The command line -----------------------------------------------------------------------------------------------------


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Raises UserError for options that do not fit together."""
    parser = Parser(__doc__)
    parser.add_argument("--train", required=True, help="training images, in any form in which image sets are read")
    parser.add_argument("--stylized", help="second folder, for the preset stylized")
    parser.add_argument("--imagenet", help="validation images: accuracy after every epoch")
    parser.add_argument("--data", metavar="ROOT", help="image sets that --evaluate measures on")
    parser.add_argument("--preset", choices=PRESETS, default="baseline")
    parser.add_argument("--schedule", choices=SCHEDULES, default="published", help="of diffusion-noise")
    parser.add_argument("--arch", default="resnet50", help="any of timm")
    parser.add_argument("--epochs", type=whole, default=90)
    parser.add_argument("--size", type=whole, default=STUDY_CROP, help="of the crops, in pixels")
    parser.add_argument("--batch-size", type=whole, default=BATCH, help="of all processes together")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate")
    parser.add_argument("--ema", type=float, default=0.0, metavar="DECAY", help="average of the weights, e.g. 0.9999")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=min(len(os.sched_getaffinity(0)), 16), help="per process")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training; its name is the network's")
    parser.add_argument("--checkpoint-seconds", type=float, default=600)
    parser.add_argument("--wandb", choices=("auto", "online", "offline", "disabled"), default="auto")
    parser.add_argument("--evaluate", action="store_true", help="run the command that measures the finished network")
    args = parser.parse_args(arguments)
    if (args.preset == "stylized") != bool(args.stylized):
        raise UserError("the preset stylized and --stylized DIR go together: give both, or neither")
    if args.evaluate and not args.data:
        raise UserError("--evaluate needs --data ROOT, the image sets to measure on")
    if args.rate <= 0 or not 0 <= args.ema < 1 or args.num_workers < 0:
        raise UserError("--rate must be above 0, --ema from 0 to 1, --num-workers 0 or more")
    return args


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a training's folder; UserError where another process trains in it."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise UserError(f"another process trains in {folder}: wait for it, or name another --out") from None


def run(training: Training, watch: Callable[[Training, dict[str, float]], None]) -> None:
    """Train to the end; a signal saves what is done so far."""
    try:
        while training.progress["epoch"] < training.args.epochs:
            training.run_epoch(partial(watch, training))
    except (KeyboardInterrupt, Terminated):
        training.save()
        raise
    except Unreadable as error:  # from another process it comes with that one's traceback
        reason = str(error).strip().splitlines()[-1].rpartition("Unreadable: ")[2]
        raise UserError(f"unreadable image {reason}; replace or remove it, and start again in another --out") from None


def _parameters(network: nn.Module) -> str:
    """Return the number of parameters in words, and how many of them are fixed."""
    count = fixed = 0
    for weight in network.parameters():
        count += weight.numel()
        fixed += 0 if weight.requires_grad else weight.numel()
    return f"{count:,} parameters" + (f", {fixed:,} of them fixed" if fixed else "")


def _device(name: str) -> torch.device:
    """Return this process's device; of several GPUs, its own."""
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int | None:
    """Parse the command line, train, write the network and print how to measure it."""
    from imagenet_biases.results.wandb_log import training_run

    args = parsed(arguments)
    number, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = _device(args.device)
    process = Process(number, count, device)
    sets = [custom_set(name, getattr(args, name), Data()) for name in ("train", "stylized") if getattr(args, name)]
    images = Photographs(sets, args.size, args.seed)
    if args.batch_size < count:
        raise UserError(f"--batch-size {args.batch_size} is less than an image for each of {count} processes")
    with contextlib.ExitStack() as stack:
        if count > 1:
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            stack.callback(torch.distributed.destroy_process_group)
        if number == 0:
            stack.enter_context(only_one(args.out))
        training = Training(args, images, process)
        training.resume()
        if number == 0:
            print(f"{args.arch}: {_parameters(training.network)}; {len(images):,} images, {args.epochs} epochs")
        log = training_run(args.wandb if number == 0 else "disabled", args.out, training.identity())

        def watch(training: Training, line: dict[str, float]) -> None:
            if number:
                return
            if args.imagenet:
                line["imagenet"] = accuracy(training, args.imagenet)
            log(line)
            print(", ".join(f"{name} {value:.4g}" for name, value in line.items()))

        run(training, watch)
        if number:
            return None
        path = training.finish()
    words = command(args, path)
    print(f"finished: {path}")
    if args.evaluate:
        print(shlex.join(words), flush=True)
        return subprocess.run([sys.executable, *words[1:]], check=False).returncode
    print(shlex.join(words))
    return None


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())

"""The shared command line: the same flags on every script."""

import argparse
import os
import sys

import torch

from imagenet_biases.errors import UserError
from imagenet_biases.evaluate import Settings
from imagenet_biases.study import DECLARATIONS


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message):
        raise UserError(f"{message}; see {os.path.basename(sys.argv[0])} --help")


def _count(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return number


def make_parser(description):
    """Return the parser with the flags that every script has."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    networks = parser.add_argument_group("networks")
    networks.add_argument(
        "--model",
        help="names from models/zoo.toml, groups (all, augmentation, ...), timm names, checkpoint files or "
        "file.py:function, comma-separated",
    )
    networks.add_argument("--arch", default="resnet50", help="architecture of a checkpoint file (default: resnet50)")
    networks.add_argument(
        "--normalization", choices=["imagenet", "inception", "none"], default="imagenet", help="of a checkpoint file"
    )
    networks.add_argument(
        "--checkpoints", metavar="DIR", help="where checkpoints are kept (default: models/checkpoints)"
    )
    data = parser.add_argument_group("images")
    for name, declared in DECLARATIONS.items():
        data.add_argument(f"--{name}", metavar="DIR", help=f"{declared.title}: {declared.images:,} images")
    data.add_argument("--model-vs-human", metavar="DIR", help="the data sets of model-vs-human")
    data.add_argument("--data", metavar="ROOT", help="a folder with folders named imagenet, imagenet-a, ... in it")
    data.add_argument(
        "--view", choices=["study", "native"], default="study", help="256/224 for all, or the network's own"
    )
    data.add_argument("--limit", type=_count, metavar="N", help="only N images of each set, spread over it")
    data.add_argument("--allow-partial", action="store_true", help="measure an incomplete set, declared as a subset")
    data.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out, recorded")
    data.add_argument("--cache", metavar="DIR", help="keep decoded images here (7.5 GB for ImageNet validation)")
    running = parser.add_argument_group("running")
    running.add_argument("--batch-size", type=_count, help="default: 256 on a GPU, 32 on a CPU")
    running.add_argument("--num-workers", type=int, help="decoding processes (default: by cores and images)")
    running.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    running.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32")
    running.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="auto: for long runs")
    running.add_argument("--seed", type=int, default=0, help="of the seeded stimuli and attacks")
    running.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    records = parser.add_argument_group("records")
    records.add_argument("--results", metavar="DIR", default="results")
    records.add_argument("--fresh", action="store_true", help="measure again what is there already")
    records.add_argument("--checkpoint-seconds", type=float, default=180.0, help="between checkpoints of a long pass")
    records.add_argument("--wandb", choices=["auto", "online", "offline", "disabled"], default="auto")
    return parser


def make_settings(args, images):
    """Return the Settings for a parsed command line; `images`: how many are to be decoded."""
    if args.num_workers is not None and args.num_workers < 0:
        raise UserError(f"--num-workers {args.num_workers}: give 0 (decode in the main process) or more")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = _device(args.device)
    if args.precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32 is for NVIDIA GPUs; leave it out, or use bf16")
    cores = os.cpu_count() or 1
    workers = args.num_workers
    if workers is None and images < 512:
        workers = 0  # starting processes would take longer than decoding
    elif workers is None:
        workers = max(1, cores // 4) if device.type == "cpu" else min(16, max(1, cores // world))
    return Settings(
        device=device,
        precision=args.precision,
        view=args.view,
        seed=args.seed,
        batch_size=args.batch_size or (256 if device.type == "cuda" else 32),
        workers=workers,
        cache=args.cache,
        skip_unreadable=args.skip_unreadable,
        compile=args.compile,
        checkpoint_seconds=args.checkpoint_seconds,
        rank=rank,
        world=world,
    )


def _device(name):
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UserError(f"--device {name}: this machine has none that torch can use; leave --device out")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)

"""Training: what differs by preset, frozen filters, a killed training goes on, two processes, a network of the zoo."""

import os
import shlex
import shutil
import signal
import socket
import time

import pytest
import torch
from safetensors.torch import load_file

import train_resnet
from common import CODE, launch, run
from imagenet_biases.stimuli.bandpass import band_pass
from imagenet_biases.synthetic.drawings import CATEGORIES
from imagenet_biases.vocabulary import Batch

pytestmark = pytest.mark.slow

SMALL = ["--arch", "resnet18", "--size", "64", "--batch-size", "32", "--num-workers", "0", "--wandb", "disabled"]
SMALL += ["--rate", "0.02", "--device", "cpu"]


@pytest.fixture(scope="module")
def images(drawn, tmp_path_factory):
    """200 drawn images of two classes, as they are and corrupted."""
    folder = tmp_path_factory.mktemp("train")
    for category in CATEGORIES[:2]:
        (folder / category.wnid).mkdir()
        corrupted = sorted((drawn / "imagenet-c").glob(f"*/*/{category.wnid}/*.JPEG"))
        files = [*(drawn / "imagenet" / "val" / category.wnid).iterdir(), *corrupted][:100]
        for number, file in enumerate(files):
            shutil.copy(file, folder / category.wnid / f"{number}.JPEG")
        assert len(files) == 100
    return folder


def trained(out, images, *words, epochs=1):
    status, printed, err = run("train_resnet.py", "--train", images, "--out", out, "--epochs", epochs, *SMALL, *words)
    assert status == 0, err
    return printed.splitlines()


def weights(out):
    return load_file(out / f"{out.name}.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(lines):
    return [float(line.split("loss ")[1].split(",")[0]) for line in lines if "loss " in line]


def test_an_epoch_lowers_the_loss_and_the_last_line_measures_the_network(images, drawn, tmp_path):
    lines = trained(tmp_path / "plain", images, "--imagenet", drawn / "imagenet", "--data", drawn, epochs=2)
    first, second = losses(lines)
    assert second < first - 0.5 and "imagenet " in lines[-3]
    words = shlex.split(lines[-1])
    assert words[:2] == ["python", os.path.relpath(CODE / "eval_all.py")] and "--data" in words
    words = [*words[2:], "--benchmarks", "imagenet", "--results", tmp_path / "results", "--wandb", "disabled"]
    status, _, err = run("eval_all.py", *words)
    assert status == 0, err
    assert (tmp_path / "results" / "plain" / "imagenet.json").exists()
    again = trained(tmp_path / "plain", images, "--data", drawn, epochs=2)
    assert not losses(again) and again[-1] == lines[-1]  # finished: nothing is trained again


def test_frozen_filters_are_bit_identical_and_everything_else_learns(images, tmp_path):
    lines = trained(tmp_path / "frozen", images, "--preset", "frozen-random")
    import timm

    torch.manual_seed(0)
    start = timm.create_model("resnet18", num_classes=1000)
    spatial = {
        f"{name}.weight" for name, one in start.named_modules()
        if isinstance(one, torch.nn.Conv2d) and one.kernel_size != (1, 1)
    }  # fmt: skip
    after = weights(tmp_path / "frozen")
    for name, value in start.named_parameters():
        assert torch.equal(after[name], value) == (name in spatial), name
    # conv1 64 x 3 x 49; four stages of 2 blocks with two 3 x 3 convolutions, the first of a stage from fewer channels
    expected = 64 * 3 * 49 + 4 * 9 * 64**2 + sum(9 * c * (c // 2) + 3 * 9 * c * c for c in (128, 256, 512))
    total = sum(one.numel() for one in start.parameters())
    assert f"{total:,} parameters, {expected:,} of them fixed" in lines[0]


@pytest.mark.parametrize("preset", ["low-pass", "diffusion-noise"])
def test_fronts_act_on_training_only_and_are_functions_of_seed_epoch_and_image(preset):
    front = train_resnet.PRESETS[preset].front
    settings = {"schedule": "published"} if preset == "diffusion-noise" else {}
    pixels, keys = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(64)
    whole = front(pixels, Batch(keys, 5, 2), **settings)
    order = torch.randperm(64)
    assert torch.equal(front(pixels[order], Batch(keys[order], 5, 2), **settings), whole[order])
    assert not torch.equal(front(pixels, Batch(keys, 5, 3), **settings), whole)
    if preset == "low-pass":
        touched = [not torch.equal(one, other) for one, other in zip(pixels, whole, strict=True)]
        assert 16 < sum(touched) < 48  # half of them
        cutoffs = [one / 16 for one in range(1, 16)]
        for one, other in [pair for pair, use in zip(zip(pixels, whole, strict=True), touched, strict=True) if use]:
            assert any(torch.equal(band_pass(one[None], kind="low-pass", cutoff=c)[0], other) for c in cutoffs)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_training_resumes_to_the_same_network(images, tmp_path, end):
    words = ("--preset", "diffusion-noise", "--ema", "0.9")
    trained(tmp_path / "net", images, *words, epochs=2)
    expected = weights(tmp_path / "net")
    shutil.rmtree(tmp_path / "net")
    more = ["--train", images, "--out", tmp_path / "net", "--epochs", 2, *SMALL, "--checkpoint-seconds", "0"]
    process = launch("train_resnet.py", *more, *words)
    while not (tmp_path / "net" / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(end)
    _, err = process.communicate()
    assert process.returncode == (143 if end == signal.SIGTERM else -9), err
    done = torch.load(tmp_path / "net" / "checkpoint.pt", weights_only=True)
    assert (done["epoch"], done["done"]) != (2, 0)  # in the middle
    trained(tmp_path / "net", images, *words, epochs=2)
    assert same(weights(tmp_path / "net"), expected)


def test_two_processes_train(images, drawn, tmp_path):
    """As torchrun starts them."""
    words = ["--train", images, "--out", tmp_path / "two", "--epochs", "2", *SMALL]
    words += ["--imagenet", drawn / "imagenet"]  # which one of the two measures
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [launch("train_resnet.py", *words, **world, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in (0, 1)]
    (out, err), (_, more) = (process.communicate() for process in both)
    assert [process.returncode for process in both] == [0, 0], err + more
    first, second = losses(out.splitlines())
    assert second < first - 0.5 and (tmp_path / "two" / "two.safetensors").exists()


def test_mistakes_are_one_clear_line(images, tmp_path):
    trained(tmp_path / "net", images)
    for words, message in (
        (["--epochs", "3"], "holds a training with epochs 1, not 3"),
        (["--preset", "stylized"], "--stylized DIR go together"),
        (["--evaluate"], "--evaluate needs --data"),
        (["--train", str(tmp_path)], "no folders named after WordNet ids"),
        (["--rate", "0"], "--rate must be above 0"),
    ):
        status, _, err = run(
            "train_resnet.py", "--train", images, "--out", tmp_path / "net", "--epochs", 1, *SMALL, *words
        )
        assert status == 2 and message in err and len(err.splitlines()) == 1, err
    shutil.copytree(images, tmp_path / "images")
    bad = next((tmp_path / "images").glob("*/*"))
    bad.write_bytes(b"\xff\xd8 broken")
    for workers in ("0", "1"):
        again = ("--train", tmp_path / "images", "--out", tmp_path / "bad", *SMALL, "--num-workers", workers)
        status, _, err = run("train_resnet.py", *again)
        assert status == 2 and f"error: unreadable image {bad}: " in err
    (tmp_path / "net" / "checkpoint.pt").write_bytes(b"nothing")
    status, _, err = run("train_resnet.py", "--train", images, "--out", tmp_path / "net", "--epochs", 1, *SMALL)
    assert status == 2 and "checkpoint.pt cannot be read" in err and "remove it" in err

"""The forward loop: every image once, whatever the batches, workers, ranks, interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from common import CODE, SHARED, needs_shared, script
from imagenet_biases.errors import UserError
from imagenet_biases.evaluate import Categories, Condition, Pass, Settings, TopClasses, grouped, measure
from imagenet_biases.images.pixels import STUDY
from imagenet_biases.images.sets import image_set
from imagenet_biases.results.records import Store
from imagenet_biases.synthetic.calibration import CATEGORIES


class Plain(torch.nn.Module):
    """A small fixed network on [0, 1] pixels that counts what it is shown."""

    def __init__(self, name="plain", seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.name, self.identity, self.native_view, self.shown = name, {"network": name}, STUDY, 0
        self.weight = torch.nn.Parameter(torch.randn(1000, 3 * 49, generator=generator), requires_grad=False)
        self.bias = torch.full((1000,), -100.0)
        self.bias[[category.number for category in CATEGORIES]] = 0  # so that some answers are right

    def forward(self, pixels):
        self.shown += len(pixels)
        means = torch.nn.functional.avg_pool2d(pixels, 32).flatten(1)
        return (means - means.mean(1, keepdim=True)) @ self.weight.T + self.bias


def settings(**more):
    return Settings(**{"device": torch.device("cpu"), "batch_size": 7, "compile": "off", **more})


def answers(passes, networks, tmp_path, **more):
    """Measure, and return {(image set, condition, network): answers}."""
    chosen = settings(**more)
    groups, _ = grouped(passes, networks, chosen)
    done = list(measure(groups, Store(tmp_path / "store"), chosen, progress=False))
    return {(g.images.name, c.condition.name, c.network.name): c.answers for g in done for c in g.cells}


@pytest.fixture
def validation(drawn, args):
    args.data = str(drawn)
    return image_set("imagenet", args)


def oracle(network, images, view=None):
    """Top 5 as torchvision's transforms and a loop over single images give them."""
    view = view or transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    with torch.no_grad():
        rows = [
            network(view(Image.open(images.listing.root / file).convert("RGB"))[None])[0].topk(5).indices
            for file in images.files
        ]
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("batch_size, workers", [(1, 0), (7, 2), (32, 1), (96, 0), (1000, 0)])
def test_any_batch_size_and_worker_count(validation, tmp_path, batch_size, workers):
    """96 images: a ragged last batch for 7, one batch for 96 and 1,000."""
    network = Plain()
    (got,) = answers([Pass(validation)], [network], tmp_path, batch_size=batch_size, workers=workers).values()
    ready_check = network.shown - len(validation)  # the network may be tried on made-up pixels before
    assert np.array_equal(got, oracle(Plain(), validation))
    assert 0 <= ready_check <= 8
    assert (got == validation.labels[:, None]).any() and not (got[:, 0] == validation.labels).all()


def test_every_image_is_seen_once(validation, tmp_path):
    seen = []

    def spy(pixels, batch):
        seen.extend(batch.keys.tolist())
        return pixels

    answers([Pass(validation, (Condition("spy", spy),))], [Plain(), Plain("other", 1)], tmp_path)
    assert sorted(seen) == sorted(validation.keys.tolist())  # once for both networks


def test_passes_are_merged(validation, drawn, args, tmp_path):
    """Benchmarks that show the same under the same condition share the forward pass; others share the decoding."""
    network, dark = Plain(), Condition("dark", lambda pixels, batch: pixels * 0.5, settings={"factor": 0.5})
    again = image_set("imagenet", args)
    passes = [Pass(validation), Pass(again, (dark,)), Pass(again), Pass(validation, readout=TopClasses(3))]
    got = answers(passes, [network], tmp_path)
    groups, cells = grouped(passes, [network], settings())
    assert len(groups) == 1 and len(groups[0].cells) == 3
    assert cells[id(passes[0]), "plain"] == cells[id(passes[2]), "plain"]
    assert network.shown <= 2 * len(validation) + 8  # clean and dark: the third readout needs no forward pass
    assert {condition for _, condition, _ in got} == {"clean", "dark"}


def test_class_subset_and_categories(drawn, args, tmp_path):
    args.data = str(drawn)
    images = image_set("imagenet-a", args)
    network = Plain()
    got = answers([Pass(images, readout=TopClasses(classes=images.classes))], [network], tmp_path)
    view = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    groups = (("a", (1, 2, 3)), ("b", (500,)), ("c", tuple(range(700, 1000))))
    by_category = answers([Pass(images, readout=Categories(groups))], [network], tmp_path / "c")
    for row, file in enumerate(images.files):
        logits = network(view(Image.open(images.listing.root / file).convert("RGB"))[None])[0]
        restricted = np.array(images.classes)[np.argsort(-logits.numpy()[list(images.classes)], kind="stable")[:5]]
        assert np.array_equal(got["imagenet-a", "clean", "plain"][row], restricted)
        shares = np.exp(logits.numpy() - logits.numpy().max())
        means = [shares[list(numbers)].mean() for _, numbers in groups]
        assert by_category["imagenet-a", "clean", "plain"][row, 0] == np.argmax(means)


def test_stored_answers_are_found_by_what_determines_them(validation, tmp_path):
    network = Plain()
    answers([Pass(validation)], [network], tmp_path)
    shown = network.shown
    answers([Pass(validation)], [network], tmp_path, batch_size=50, workers=1, seed=3)
    assert network.shown == shown  # neither batches nor, for a clean image, the seed matter
    answers([Pass(validation)], [network], tmp_path, precision="bf16")
    assert network.shown >= shown + len(validation)
    noise = Condition("noise", lambda p, b: (p + b.seed / 255).clamp(0, 1), settings={"version": 1}, seeded=True)
    before = network.shown
    answers([Pass(validation, (noise,))], [network], tmp_path, seed=0)
    answers([Pass(validation, (noise,))], [network], tmp_path, seed=1)
    assert network.shown >= before + 2 * len(validation)
    other = Plain("plain2")
    answers([Pass(validation)], [other], tmp_path)
    assert other.shown >= len(validation)


def test_a_damaged_store_file_is_measured_again(validation, tmp_path, capsys):
    first = answers([Pass(validation)], [Plain()], tmp_path)
    (file,) = (tmp_path / "store").rglob("*.npz")
    file.write_bytes(file.read_bytes()[:200])
    second = answers([Pass(validation)], [Plain()], tmp_path)
    assert "damaged" in capsys.readouterr().out
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_a_stop_in_the_middle_keeps_what_was_shown(validation, tmp_path):
    class Stopping(Plain):
        def forward(self, pixels):
            if self.shown > 60:
                raise KeyboardInterrupt
            return super().forward(pixels)

    with pytest.raises(KeyboardInterrupt):
        answers([Pass(validation)], [Stopping()], tmp_path)
    network = Plain()
    (got,) = answers([Pass(validation)], [network], tmp_path).values()
    assert network.shown <= len(validation) - 56 + 8
    assert np.array_equal(got, oracle(Plain(), validation))


def test_unreadable_image_stops_or_is_left_out(drawn, args, tmp_path, capsys):
    import shutil

    shutil.copytree(drawn / "imagenet", tmp_path / "imagenet")
    args.imagenet = str(tmp_path / "imagenet")
    images = image_set("imagenet", args)
    images.path(9).write_bytes(b"\xff\xd8 broken")
    with pytest.raises(UserError, match=re.escape(images.files[9])):
        answers([Pass(images)], [Plain()], tmp_path)
    chosen = settings(skip_unreadable=True)
    groups, _ = grouped([Pass(images)], [Plain()], chosen)
    (group,) = measure(groups, Store(tmp_path / "store"), chosen, progress=False)
    assert images.files[9] in capsys.readouterr().err
    left_out = group.cells[0].answers[:, 0] == -1
    assert left_out.sum() == 1 and left_out[9]


def test_stimulus_out_of_range_is_a_mistake(validation, tmp_path):
    with pytest.raises(ValueError, match="bright"):
        answers([Pass(validation, (Condition("bright", lambda p, b: p * 2),))], [Plain()], tmp_path)


def test_attack_gets_gradients_and_labels(validation, tmp_path):
    def attack(network, pixels, labels, batch):
        pixels = pixels.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(network(pixels), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
        return (pixels + 0.05 * gradient.sign()).clamp(0, 1)

    got = answers([Pass(validation, (Condition("hurt", attack=attack),)), Pass(validation)], [Plain()], tmp_path)
    hurt, clean = ((got["imagenet", name, "plain"][:, 0] == validation.labels).mean() for name in ("hurt", "clean"))
    assert hurt < clean


def test_nonfinite_logits_are_counted(validation, tmp_path):
    class Broken(Plain):
        def forward(self, pixels):
            logits = super().forward(pixels)
            logits[:1, 4] = float("nan")
            return logits

    chosen = settings(batch_size=16)
    groups, _ = grouped([Pass(validation)], [Broken()], chosen)
    (group,) = measure(groups, Store(tmp_path / "store"), chosen, progress=False)
    assert group.nonfinite["plain"] == 6


NET = """
import time, torch
class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(1000, 147, generator=torch.Generator().manual_seed(0)))
    def forward(self, pixels):
        time.sleep({pause} * len(pixels))
        return torch.nn.functional.avg_pool2d(pixels, 32).flatten(1) @ self.weight.T
def build():
    return Slow()
"""


def _measured(results):
    record = json.loads((results / "net.build" / "imagenet.json").read_text())
    files = sorted((results / "net.build" / "responses").rglob("*.npz"))
    return record["metrics"], record["intervals"], [file.read_bytes() for file in files]


def test_resume_after_sigkill_gives_the_same_file(drawn, tmp_path):
    (tmp_path / "net.py").write_text(NET.format(pause=0.02))
    words = ["--model", f"{tmp_path / 'net.py'}:build", "--data", drawn, "--batch-size", 8, "--wandb", "disabled"]
    script("eval_imagenet.py", *words, "--results", tmp_path / "whole")
    killed = [*words, "--results", tmp_path / "killed", "--checkpoint-seconds", 0]
    command = [sys.executable, str(CODE / "eval_imagenet.py"), *map(str, killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = 0
    for _ in range(2400):
        time.sleep(0.05)
        files = list((tmp_path / "killed" / "net.build").rglob("clean-*.npz"))
        if files:
            with np.load(files[0]) as kept:
                partial = int((kept["answers"][:, 0] >= 0).sum())
            if partial >= 24:
                break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 24 <= partial < 96
    assert not (tmp_path / "killed" / "net.build" / "imagenet.json").exists()
    script("eval_imagenet.py", *killed)
    assert _measured(tmp_path / "killed") == _measured(tmp_path / "whole")


def test_two_ranks_give_the_counts_of_one(drawn, tmp_path):
    (tmp_path / "net.py").write_text(NET.format(pause=0))
    words = [
        "--model",
        f"{tmp_path / 'net.py'}:build",
        "--data",
        str(drawn),
        "--batch-size",
        "7",
        "--wandb",
        "disabled",
    ]
    script("eval_imagenet.py", *words, "--results", tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(CODE / "eval_imagenet.py"), *words, "--results", str(tmp_path / "two")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert result.returncode == 0, result.stderr
    assert _measured(tmp_path / "two") == _measured(tmp_path / "one")
    assert not list((tmp_path / "two").rglob("*.rank-*"))


@needs_shared
def test_real_photographs_and_a_real_network_give_torchvisions_counts(tmp_path):
    folder = SHARED / "imagenet_samples"
    words = ["--model", f"{SHARED / 'nets' / 'mobilenet.py'}:load", "--imagenet", folder, "--allow-partial"]
    script("eval_imagenet.py", *words, "--results", tmp_path, "--batch-size", 13, "--wandb", "disabled")
    record = json.loads((tmp_path / "mobilenet.load" / "imagenet.json").read_text())
    sys.path.insert(0, str(SHARED / "nets"))
    import mobilenet

    network = mobilenet.load()
    sys.path.pop(0)
    view = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    hits = {1: 0, 5: 0}
    with torch.no_grad():
        for number, wnid in enumerate(sorted(path.name for path in folder.iterdir())):
            for file in (folder / wnid).iterdir():
                first = network(view(Image.open(file).convert("RGB"))[None])[0].topk(5).indices.tolist()
                for k in hits:
                    hits[k] += 10 * number in first[:k]  # one photograph of each tenth class
    assert record["images"] == 100 and record["subset"]["of"] == 50_000
    assert record["metrics"] == {f"top{k}_acc/imagenet": 100 * count / 100 for k, count in hits.items()}

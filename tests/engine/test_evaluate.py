"""The forward loop: every image once, whatever the batches, workers, ranks, interruptions."""

import json
import re
import shutil
import signal
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from common import SHARED, answered, launch, needs_shared, responses, run
from imagenet_biases import Data, Settings, evaluate
from imagenet_biases.base.errors import UserError
from imagenet_biases.engine.loop import Loop
from imagenet_biases.engine.plan import Job, make_plan
from imagenet_biases.engine.runtime import make_runtime
from imagenet_biases.images.preprocessing import STUDY, Reader
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks.load import from_module
from imagenet_biases.results.responses import ResponseStore
from imagenet_biases.stimuli.attacks import tuned_pgd
from imagenet_biases.synthetic.drawings import CATEGORIES
from imagenet_biases.vocabulary import Benchmark, Categories, Condition, Pass, TopClasses, identified


class Plain(torch.nn.Module):
    """A small fixed network on [0, 1] pixels that counts what it is shown."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.shown = 0
        self.weight = torch.nn.Parameter(torch.randn(1000, 3 * 49, generator=generator), requires_grad=False)
        bias = torch.full((1000,), -100.0)
        bias[[category.number for category in CATEGORIES]] = 0  # so that some answers are right
        self.register_buffer("bias", bias)

    def extra_repr(self):
        return ""  # the count is no part of what the network is

    def forward(self, pixels):
        self.shown += len(pixels)
        means = torch.nn.functional.avg_pool2d(pixels, 32).flatten(1)
        return (means - means.mean(1, keepdim=True)) @ self.weight.T + self.bias


TRIED = 24  # images that a network may be shown at load, to see whether it works


def answers(passes, networks, results=None, **more):
    """Measure, and return {(image set, condition, network): values}."""
    networks = networks if isinstance(networks, dict) else {"plain": networks}
    got = {}
    for name, network in networks.items():
        found = responses(passes, {name: network}, results, **{"batch_size": 7, **more})
        got |= {(one.images.name, one.condition.name, name): one.values for one in found.all()}
    return got


@pytest.fixture
def validation(drawn):
    return image_set("imagenet", Data(drawn))


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
def test_any_batch_size_and_worker_count(validation, batch_size, workers):
    """96 images: a ragged last batch for 7, one batch for 96 and 1,000."""
    network = Plain()
    (got,) = answers([Pass(validation)], network, batch_size=batch_size, workers=workers).values()
    assert np.array_equal(got, oracle(Plain(), validation))
    assert len(validation) <= network.shown <= len(validation) + TRIED
    assert (got == validation.labels[:, None]).any() and not (got[:, 0] == validation.labels).all()


def test_every_image_is_seen_once(validation):
    seen = []

    @identified("spy")
    def spy(pixels, batch):
        seen.extend(batch.keys.tolist())
        return pixels

    benchmark = Benchmark("probe", lambda data: [Pass(validation, (Condition("spy", stimulus=spy),))], lambda found: ())
    evaluate({"one": Plain(), "two": Plain(1)}, benchmark, Data(), Settings(device="cpu", batch_size=7))
    assert sorted(seen) == sorted(validation.keys.tolist())  # once for both networks


@identified("dim")
def dim(pixels, batch, *, factor):
    return pixels * factor


def test_passes_over_the_same_share_the_forward_pass(validation, drawn):
    network, dark = Plain(), Condition("dark", stimulus=dim, settings={"factor": 0.5})
    again = image_set("imagenet", Data(drawn))
    passes = [Pass(validation), Pass(again, (dark,)), Pass(again), Pass(validation, readout=TopClasses(3))]
    found = responses(passes, network)
    assert network.shown <= 2 * len(validation) + TRIED  # clean and dark: the third readout needs no forward pass
    assert set(found) == {("imagenet", "clean"), ("imagenet", "dark")}


def test_networks_take_turns_where_they_take_many_passes(validation):
    """Decoding is shared where it costs something; elsewhere the first network is done before the second begins."""
    few, many = (
        tuple(Condition(f"dim {level}", stimulus=dim, settings={"factor": level / 20}) for level in range(1, count + 1))
        for count in (3, 12)
    )
    here = make_runtime(Settings(device="cpu", batch_size=32, compile="off"), 0)
    bodies = Plain(), Plain(1)
    networks = [from_module(body, name) for body, name in zip(bodies, ("one", "two"), strict=True)]
    jobs = [
        Job(Benchmark(name, None, None), [Pass(validation, subset)], {})
        for name, subset in (("many", many), ("few", few))
    ]
    plan = make_plan(jobs, networks, here)
    assert [sorted({cell.network.name for cell in group.cells}) for group in plan.groups] == [
        ["one", "two"],
        ["one"],
        ["two"],
    ]
    loop = Loop(plan, ResponseStore(None), here)
    loop.load()
    for body in bodies:
        body.shown = 0
    # (when it is complete, how often each network has been shown a whole set of images)
    done = {}
    for part in filter(None, loop.run(list(plan.cells))):
        done[part.job.name, part.network.name] = [body.shown // len(validation) for body in bodies]
    assert done["few", "one"] == done["few", "two"] == [3, 3]
    assert done["many", "one"] == [12, 3] and done["many", "two"] == [12, 12]


def test_class_subset_and_categories(drawn):
    images = image_set("imagenet-a", Data(drawn))
    network = Plain()
    got = answers([Pass(images, readout=TopClasses(classes=images.classes))], network)
    view = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    groups = (("a", (1, 2, 3)), ("b", (500,)), ("c", tuple(range(700, 1000))))
    by_category = answers([Pass(images, readout=Categories(groups))], network)
    for row, file in enumerate(images.files):
        logits = network(view(Image.open(images.listing.root / file).convert("RGB"))[None])[0]
        restricted = np.array(images.classes)[np.argsort(-logits.numpy()[list(images.classes)], kind="stable")[:5]]
        assert np.array_equal(got["imagenet-a", "clean", "plain"][row], restricted)
        shares = np.exp(logits.numpy() - logits.numpy().max())
        means = [shares[list(numbers)].mean() for _, numbers in groups]
        assert by_category["imagenet-a", "clean", "plain"][row] == np.argmax(means)


@identified("noise")
def noise(pixels, batch):
    return (pixels + batch.seed / 255).clamp(0, 1)


def test_stored_answers_are_found_by_what_determines_them(validation, tmp_path):
    def shown(network, passes, label="plain", **more):
        before = network.shown
        answers(passes, {label: network}, tmp_path, **more)
        return network.shown - before > TRIED

    network, plain = Plain(), [Pass(validation)]
    assert shown(network, plain)
    assert not shown(network, plain, batch_size=50, workers=1, seed=3)  # for a clean image the seed does not matter
    assert shown(network, plain, precision="bf16")
    seeded = [Pass(validation, (Condition("noise", stimulus=noise, seeded=True),))]
    assert shown(network, seeded, seed=0) and shown(network, seeded, seed=1)
    assert not shown(network, seeded, seed=0) and not shown(network, seeded, seed=1)
    newer_noise = identified("noise", version=2)(lambda pixels, batch: noise(pixels, batch))
    newer = [Pass(validation, (Condition("noise", stimulus=newer_noise, seeded=True),))]
    assert shown(network, newer), "a stimulus whose code changed was answered from old responses"
    assert not shown(Plain(), plain)  # the same network in another object
    assert shown(Plain(1), plain), "another network under the same label was answered from this one's responses"
    assert not shown(Plain(), plain)  # and did not push it out
    assert shown(Plain(), plain, label="other")
    one, two = (Condition("x", stimulus=dim, settings={"factor": 0.5}, batched=True) for _ in range(2))
    assert shown(network, [Pass(validation, (one,))], batch_size=8)
    assert not shown(network, [Pass(validation, (two,))], batch_size=8)
    assert shown(network, [Pass(validation, (two,))], batch_size=9)


def test_one_name_for_two_functions_is_an_error(validation):
    stimuli = [identified("x")(lambda p, b, factor=factor: p * factor) for factor in (0.25, 0.5)]
    passes = [Pass(validation, (Condition("x", stimulus=stimulus),)) for stimulus in stimuli]
    with pytest.raises(UserError, match="call different functions"):
        answers(passes, Plain())
    same = [Pass(validation, (Condition("x", stimulus=identified("x")(lambda p, b: p * 0.5)),)) for _ in range(2)]
    network = Plain()
    answers(same, network)
    assert network.shown <= len(validation) + TRIED


def test_a_damaged_store_file_is_measured_again(validation, tmp_path):
    first = answers([Pass(validation)], Plain(), tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.warns(UserWarning, match="damaged"):
        second = answers([Pass(validation)], Plain(), tmp_path)
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("dtype", ["bool", "float32", "int64"])
def test_answers_of_another_type_are_not_used(validation, tmp_path, dtype):
    first = answers([Pass(validation)], Plain(), tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    with np.load(file) as kept:
        arrays = {name: kept[name].astype(dtype) if name.endswith("values") else kept[name] for name in kept.files}
    np.savez(file, **arrays)
    with pytest.warns(UserWarning, match="damaged"):
        second = answers([Pass(validation)], Plain(), tmp_path)
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_other_pixels_under_the_same_names_and_sizes_are_measured_again(drawn, tmp_path):
    shutil.copytree(drawn / "imagenet", tmp_path / "imagenet")
    paths = sorted((tmp_path / "imagenet" / "val").glob("*/*"))
    for number, path in enumerate(paths):  # files of one size: a bitmap's does not depend on what it shows
        Image.fromarray(np.full((256, 256, 3), number, np.uint8)).save(path, "BMP")
    data = Data(folders={"imagenet": tmp_path / "imagenet"})
    first = answers([Pass(image_set("imagenet", data))], Plain(), tmp_path / "results")
    for number, path in enumerate(paths):
        Image.fromarray(np.full((256, 256, 3), 255 - number, np.uint8)).save(path, "BMP")
    with pytest.warns(UserWarning, match="images have changed"):
        second = answers([Pass(image_set("imagenet", data))], Plain(), tmp_path / "results")
    network = Plain()
    third = answers([Pass(image_set("imagenet", data))], network, tmp_path / "results")
    assert network.shown <= TRIED  # and what was stored of the images of before is gone
    assert all(np.array_equal(second[key], third[key]) for key in second)
    fresh = answers([Pass(image_set("imagenet", data))], Plain())
    assert all(np.array_equal(second[key], fresh[key]) and not np.array_equal(first[key], fresh[key]) for key in first)


def test_a_stop_in_the_middle_keeps_what_was_shown(validation, tmp_path):
    def stop(module, inputs, output):
        if module.shown > 60 + TRIED:
            raise KeyboardInterrupt

    stopping = Plain()
    hook = stopping.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        answers([Pass(validation)], stopping, tmp_path)
    hook.remove()
    network = Plain()
    (got,) = answers([Pass(validation)], network, tmp_path).values()
    assert network.shown <= len(validation) - 42 + TRIED
    assert np.array_equal(got, oracle(Plain(), validation))


def test_unreadable_image_stops_or_is_left_out(drawn, tmp_path, caplog):
    shutil.copytree(drawn / "imagenet", tmp_path / "imagenet")
    images = image_set("imagenet", Data(folders={"imagenet": tmp_path / "imagenet"}))
    images.path(9).write_bytes(b"\xff\xd8 broken")
    with pytest.raises(UserError, match=re.escape(images.files[9])):
        answers([Pass(images)], Plain())
    found = responses([Pass(images)], Plain(), skip_unreadable=True)
    assert images.files[9] in caplog.text
    counts = found["imagenet", "clean"].counts
    assert (~counts).sum() == 1 and not counts[9]


def test_stimulus_out_of_range_is_a_mistake(validation):
    with pytest.raises(UserError, match=r"bright.*not within \[0, 1\]"):
        answers([Pass(validation, (Condition("bright", stimulus=identified("bright")(lambda p, b: p * 2)),))], Plain())


def test_attack_gets_gradients_and_labels(validation):
    @identified("attack")
    def attack(network, pixels, labels, batch):
        pixels = pixels.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(network(pixels), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
        return (pixels + 0.05 * gradient.sign()).clamp(0, 1)

    got = answers([Pass(validation, (Condition("hurt", attack=attack),)), Pass(validation)], Plain())
    hurt, clean = ((got["imagenet", name, "plain"][:, 0] == validation.labels).mean() for name in ("hurt", "clean"))
    assert hurt < clean


TUNED = tuned_pgd("tuned", 0.2 / 255, 6)


@pytest.fixture
def fitted(validation):
    """Return what makes a network that is right on most images: linear in their pooled pixels, by least squares."""
    reader = Reader(validation, STUDY)
    pixels = torch.stack([torch.from_numpy(reader.read(i)) for i in range(len(validation))]).permute(0, 3, 1, 2) / 255
    means = torch.nn.functional.avg_pool2d(pixels, 32).flatten(1)
    targets = torch.nn.functional.one_hot(torch.from_numpy(validation.labels), 1000).float()
    weight = torch.linalg.lstsq(means - means.mean(1, keepdim=True), targets, rcond=0.03, driver="gelsd").solution.T

    def make():
        network = Plain()
        network.weight.data, network.bias = weight.contiguous(), torch.zeros(1000)
        return network

    return make


@pytest.mark.slow
def test_an_attack_across_batches_equals_one_in_a_single_batch(validation, fitted):
    """Images leave it in another order than they came; their rows, labels and starts are still theirs."""
    alone = replace(TUNED, stepwise=None)
    (expected,) = answers([Pass(validation, (alone,))], fitted(), batch_size=96).values()
    assert 10 < (expected[:, 0] == validation.labels).sum() < 86
    shown = []
    for batch_size in (7, 40, 200):
        network = fitted()
        (got,) = answers([Pass(validation, (TUNED,))], network, batch_size=batch_size).values()
        assert np.array_equal(got, expected)
        shown.append(network.shown)
    assert max(shown) - min(shown) <= TRIED  # no image takes more steps for coming in small batches


@pytest.mark.slow
def test_an_attack_stopped_midway_keeps_finished_images(validation, fitted, tmp_path):
    whole, stopping, again = fitted(), fitted(), fitted()
    passes = [Pass(validation, (TUNED,)), Pass(validation)]
    expected = answers(passes, whole)

    def stop(module, inputs, output):
        if module.shown > whole.shown // 2:
            raise KeyboardInterrupt

    hook = stopping.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        answers(passes, stopping, tmp_path)
    hook.remove()
    got = answers(passes, again, tmp_path)
    assert all(np.array_equal(got[key], expected[key]) for key in expected)
    assert again.shown < 0.7 * whole.shown


class Failing(Plain):
    """Fails under its second attack."""

    def forward(self, pixels):
        if self.shown > 100:
            raise RuntimeError("out of order")
        return super().forward(pixels)


def test_a_network_that_fails_under_attack_is_dropped_and_others_continue(validation, fitted, tmp_path, caplog):
    benchmark = Benchmark("probe", lambda data: [Pass(validation, (TUNED,))], lambda found: ())
    networks, settings = {"failing": Failing(), "fitted": fitted()}, Settings(device="cpu", batch_size=7)
    with pytest.raises(UserError, match="failing: RuntimeError"):
        evaluate(networks, benchmark, Data(), settings, results=tmp_path)
    assert len([line for line in caplog.messages if "out of order" in line]) == 1
    assert (tmp_path / "fitted" / "probe.json").exists() and not (tmp_path / "failing" / "probe.json").exists()


def test_an_unreadable_image_is_left_out_of_an_attack_under_way(drawn, tmp_path):
    shutil.copytree(drawn / "imagenet", tmp_path / "imagenet")
    images = image_set("imagenet", Data(folders={"imagenet": tmp_path / "imagenet"}))
    images.path(9).write_bytes(b"\xff\xd8 broken")
    found = responses([Pass(images, (TUNED,))], Plain(), skip_unreadable=True)["imagenet", "tuned"]
    assert (~found.counts).sum() == 1 and not found.counts[9]


class Broken(Plain):
    """Its answer to dark images is not a number."""

    def forward(self, pixels):
        logits = super().forward(pixels)
        return torch.where((pixels.mean((1, 2, 3)) < 0.45)[:, None], torch.nan, logits)


def test_nonfinite_answers_are_counted_and_reported_again_on_a_repeat(validation, tmp_path):
    dark = sum(STUDY(Image.open(validation.path(i))).mean() / 255 < 0.45 for i in range(len(validation)))
    assert 0 < dark < len(validation)
    for _ in range(2):  # the second time from stored responses
        benchmark = Benchmark("probe", lambda data: [Pass(validation)], lambda results: ())
        (record,) = evaluate(Broken(), benchmark, Data(), Settings(device="cpu"), results=tmp_path)
        (note,) = [note for note in record["warnings"] if "finite" in note]
        assert note.startswith(f"{dark} answers to clean were not finite")
        next(tmp_path.glob("*/probe.json")).unlink()


class Stopped(Plain):
    """Ends as a network does whose GPU has stopped, or has no memory left."""

    def forward(self, pixels):
        if len(pixels) > 2:  # at loading it is asked about two
            raise torch.AcceleratorError(self.reason)
        return super().forward(pixels)


@pytest.mark.parametrize(
    "reason, line",
    [
        (
            "CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA",
            r"the GPU has stopped on images of imagenet, networks .* \(CUDA error: device-side assert triggered\)",
        ),
        (
            "CUDA error: out of memory\nCUDA kernel errors might be",
            "out of memory with --batch-size 8; repeat with half of it",
        ),
    ],
)
def test_a_gpu_that_stops_is_no_network_s_fault(reason, line, drawn, tmp_path):
    stopped = Stopped()
    stopped.reason = reason
    settings = Settings(device="cpu", batch_size=8, compile="off")
    with pytest.raises(UserError, match=line):
        evaluate({"stopped": stopped, "other": Plain()}, "imagenet", Data(drawn), settings, results=tmp_path)
    # whoever goes on in the same process finds the caller's module as it was
    assert not list(tmp_path.glob("stopped/imagenet.json"))


def test_an_unusable_gpu_is_named(monkeypatch, caplog):
    """What torch says of a driver that is too old, as a warning that it gives once."""
    reason = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."

    def is_available():
        warnings.warn(f"{reason} Please update your GPU driver", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    assert make_runtime(Settings(), 0).device.type == "cpu" and reason in caplog.text
    with pytest.raises(UserError, match="driver on your system is too old"):
        make_runtime(Settings(device="cuda"), 0)


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
    (file,) = (results / "net.build" / "responses").rglob("*.npz")
    with np.load(file) as kept:
        arrays = {name: kept[name].tolist() for name in kept.files if name != "index"}
    return record["metrics"], record["intervals"], arrays


@pytest.mark.slow
def test_resume_after_sigkill_gives_the_same_file(drawn, tmp_path):
    (tmp_path / "net.py").write_text(NET.format(pause=0.02))
    words = ["--model", f"{tmp_path / 'net.py'}:build", "--data", drawn, "--batch-size", 8, "--wandb", "disabled"]
    run("eval_imagenet.py", *words, "--results", tmp_path / "whole", check=True)
    killed = [*words, "--results", tmp_path / "killed", "--checkpoint-seconds", 0]
    process = launch("eval_imagenet.py", *killed)
    while answered(tmp_path / "killed") < 24 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 24 <= answered(tmp_path / "killed") < 96
    assert not (tmp_path / "killed" / "net.build" / "imagenet.json").exists()
    run("eval_imagenet.py", *killed, check=True)
    assert _measured(tmp_path / "killed") == _measured(tmp_path / "whole")


@pytest.mark.slow
@needs_shared
def test_real_photographs_and_a_real_network_give_torchvisions_counts(tmp_path):
    folder = SHARED / "imagenet_samples"
    words = ["--model", f"{SHARED / 'nets' / 'mobilenet.py'}:load", "--imagenet", folder, "--allow-partial"]
    run("eval_imagenet.py", *words, "--results", tmp_path, "--batch-size", 13, "--wandb", "disabled", check=True)
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


BACKGROUND = """
import sys
import torch
sys.path.insert(0, {folder!r})
import mobilenet

class Cut(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.outputs = mobilenet.load(), []
        *_, last = self.net.layers.values()
        last.register_forward_hook(lambda module, pixels, outputs: self.outputs.append(outputs.flatten(1)))
    def forward(self, x):
        self.net(x)
        outputs = self.outputs.pop()
        assert outputs.shape[1] == 1001
        return outputs{cut}
def build():
    return Cut()
"""


@needs_shared
@pytest.mark.parametrize("cut", ["[:, :1000]", "[:, 1:]", "[:, 1:].softmax(1)", ".softmax(1)[:, 1:]"])
def test_a_real_network_of_1001_outputs(cut, tmp_path):
    """Cut at the wrong end, and its probabilities in place of its logits."""
    (tmp_path / "net.py").write_text(BACKGROUND.format(folder=str(SHARED / "nets"), cut=cut))
    words = ["--model", f"{tmp_path}/net.py:build", "--imagenet", SHARED / "imagenet_samples", "--allow-partial"]
    run("eval_imagenet.py", *words, "--results", tmp_path, "--batch-size", 10, "--wandb", "disabled", check=True)
    record = json.loads((tmp_path / "net.build" / "imagenet.json").read_text())
    near_chance = [warning for warning in record["warnings"] if "near chance" in warning]
    probabilities = [warning for warning in record["warnings"] if "gives probabilities" in warning]
    assert bool(probabilities) == ("softmax" in cut)
    if cut == "[:, :1000]":
        (warning,) = near_chance
        assert "% on 100 clean images, near chance; likely causes: classes in another order: sh" in warning
        assert warning.endswith("(give outputs[:, 1:]); so read, top-1 is 86.00 %")
        assert record["metrics"]["top1_acc/imagenet"] < 5  # neighbouring classes look alike
    else:
        assert near_chance == [] and record["metrics"]["top1_acc/imagenet"] == 86

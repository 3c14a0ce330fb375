"""The Python door: three lines, a caller's module left as it was, records that cannot lie."""

import dataclasses
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

from common import CODE, later, launch, measured, run, script
from imagenet_biases import Benchmark, Condition, Data, Pass, Settings, evaluate, identified
from imagenet_biases.base.errors import UserError
from imagenet_biases.engine import loop, progress
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks.load import load_model
from imagenet_biases.results.records import read_record, variant, write_record
from imagenet_biases.results.wandb_log import WandbLogger
from imagenet_biases.synthetic.drawings import CATEGORIES

SETTINGS = Settings(device="cpu", batch_size=16)


class Small(torch.nn.Module):
    """Guesses one of the drawn classes by the mean colour; `seed` makes another network of it."""

    def __init__(self, seed=0, temperature=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(48, 1000, generator=generator))
        bias = torch.full((1000,), -1e3)
        bias[[category.number for category in CATEGORIES]] = 0
        self.register_buffer("bias", bias)
        self.temperature = temperature

    def forward(self, pixels):
        means = torch.nn.functional.avg_pool2d(pixels, 56).flatten(1)
        return (means @ self.weight + self.bias) / self.temperature


def files(folder):
    """All files below a folder with their contents and times."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


# The door -------------------------------------------------------------------------------------------------------------


def test_three_lines_give_what_the_script_gives(drawn, tmp_path):
    records = evaluate("calibration_texture", ["imagenet", "imagenet_ood"], Data(drawn), SETTINGS)
    status, out, _ = run(
        "eval_imagenet.py",
        "--model",
        "calibration_texture",
        "--data",
        drawn,
        "--results",
        tmp_path,
        "--wandb",
        "disabled",
    )
    assert status == 0 and "top1_acc/imagenet" in out
    record = json.loads((tmp_path / "calibration_texture" / "imagenet.json").read_text())
    assert [(one.model, one.benchmark) for one in records] == [
        ("calibration_texture", "imagenet"),
        ("calibration_texture", "imagenet_ood"),
    ]
    for name, estimate in records[0].metrics.items():
        assert estimate.value == record["metrics"][name] and [estimate.low, estimate.high] == record["intervals"][name]


def test_without_a_results_folder_nothing_is_written(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(drawn)
    evaluate(Small(), "imagenet_ood", Data(drawn), SETTINGS)
    assert not list(tmp_path.iterdir()) and files(drawn) == before


def test_a_callers_module_is_left_as_it_was(drawn):
    network = timm.create_model("resnet18").train()
    network.bn1.eval()
    network.fc.weight.requires_grad_(False)
    network.conv1.weight.grad = torch.ones_like(network.conv1.weight)
    training = {name: module.training for name, module in network.named_modules()}
    tensors = {name: (tensor, tensor.clone(), tensor.stride()) for name, tensor in network.state_dict().items()}
    wants = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    evaluate({"epoch-3": network}, "imagenet", Data(drawn, limit=4), SETTINGS)
    assert {name: module.training for name, module in network.named_modules()} == training
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == wants
    for name, tensor in network.state_dict().items():
        before, values, stride = tensors[name]
        assert torch.equal(tensor, values) and tensor.stride() == stride and tensor.data_ptr() == before.data_ptr()
    assert torch.equal(network.conv1.weight.grad, torch.ones_like(network.conv1.weight))
    network(torch.rand(2, 3, 64, 64)).sum().backward()  # it can be trained on


def test_options_reach_their_benchmark(drawn):
    options = {
        "imagenet_adv": {"attack": "fgsm", "eps": "1/255"},
        "imagenet_c": {"corruptions": ["fog"], "severities": 2},
    }
    records = evaluate(Small(), ["imagenet_adv", "imagenet_c"], Data(drawn, limit=4), SETTINGS, options=options)
    assert list(records[0].metrics) == ["top1_acc/imagenet", "top5_acc/imagenet", "top1_acc/FGSM/eps-1"]
    assert list(records[1].metrics) == ["top1_acc/fog_2", "top5_acc/fog_2"]
    for wrong in ({"imagenet_adv": {"atack": "fgsm"}}, {"imagenet_adv": {"attack": "bim"}}, {"spectral": {}}):
        with pytest.raises(UserError):
            evaluate(Small(), ["imagenet_adv"], Data(drawn, limit=4), SETTINGS, options=wrong)
    with pytest.raises(UserError, match="did you mean spectral"):
        evaluate(Small(), "spectrl", Data(drawn), SETTINGS)


def test_help_and_a_wrong_flag_answer_before_the_libraries_load():
    """In little more than torch's own import: nothing else that is large is imported."""
    code = (
        f"import sys; sys.path.insert(0, {str(CODE)!r}); from imagenet_biases import benchmarks; "
        f"[benchmarks.find(name) for name in benchmarks.names()]; import eval_all; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"timm", "torchvision", "pandas", "scipy", "wandb", "matplotlib", "requests", "huggingface_hub"}
    assert "torch" in loaded and not heavy & set(loaded)
    status, out, _ = run("eval_spectral.py", "--help")
    assert status == 0 and "--imagenet DIR" in out and "--imagenet-c" not in out and "--attack" not in out


# Records that cannot lie ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_repeating_a_command_changes_nothing(drawn, tmp_path):
    words = ("--model", "calibration_texture", "--data", drawn, "--results", tmp_path, "--wandb", "offline")
    script("eval_imagenet_ood.py", *words)  # of its own: W&B's service writes its logs until a process ends
    before = files(tmp_path)
    script("eval_imagenet_ood.py", *words)
    assert files(tmp_path) == before


def test_two_networks_under_one_name_are_both_kept(drawn, tmp_path, monkeypatch):
    data = Data(drawn)
    (first,) = evaluate({"net": Small(0)}, "imagenet", data, SETTINGS, results=tmp_path)
    path = tmp_path / "net" / "imagenet.json"
    content = path.read_bytes()
    later(monkeypatch)
    (second,) = evaluate({"net": Small(1)}, "imagenet", data, SETTINGS, results=tmp_path)
    assert first["provenance"]["network"] != second["provenance"]["network"]
    assert json.loads(path.read_text()) == second.content  # the newest owns the name
    (kept,) = path.parent.glob("imagenet.*.json")
    assert kept.read_bytes() == content and first["provenance"]["network"][:8] in kept.name
    before = files(tmp_path)
    (again,) = evaluate({"net": Small(0)}, "imagenet", data, SETTINGS, results=tmp_path)
    assert again.content == first.content and files(tmp_path) == before


def test_an_edited_file_is_another_network(drawn, tmp_path):
    net = tmp_path / "net.py"
    source = (
        "import torch\nfrom torch.nn import *\ndef build():\n    torch.manual_seed(0)\n"
        "    return Sequential(AdaptiveAvgPool2d(4), Flatten(), Linear(48, 1000){})\n"
    )
    words = ("--model", f"{net}:build", "--data", drawn, "--results", tmp_path / "r", "--wandb", "disabled")
    for end in ("", ", Softmax(1)"):
        net.write_text(source.format(end))
        assert run("eval_imagenet.py", *words)[0] == 0
    assert len(list((tmp_path / "r" / "net.build").glob("imagenet*.json"))) == 2


def test_names_of_ones_own(drawn, tmp_path):
    words = ("--data", drawn, "--limit", 4, "--results", tmp_path, "--wandb", "disabled")
    assert run("eval_imagenet.py", "--model", "calibration_texture", "--name", "mine", *words)[0] == 0
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["mine"]
    for name in ("../x", "", ".x", "wandb", "a/b"):
        status, _, err = run("eval_imagenet.py", "--model", "calibration_texture", "--name", name, *words)
        assert (status == 2 and "cannot be the name" in err) or name == ""
    status, _, err = run("eval_imagenet.py", "--model", "calibration", "--name", "two", *words)
    assert status == 2 and "--name gives one network" in err


def test_a_trial_file_does_not_choose_where_its_record_goes(tmp_path):
    columns = "subj,session,trial,rt,object_response,category,condition,imagename\n"
    results = tmp_path / "deep" / "results"
    for subj, session in (("../..", 1), ("/x", 1), (".", 1), ("wandb", 1), ("a\\b", 1)):
        file = tmp_path / "edge_x_session-1.csv"
        file.write_text(columns + f"{subj},{session},1,NaN,cat,airplane,NaN,airplane1.png\n")
        status, _, err = run("eval_model_vs_human.py", "--trials", file, "--results", results, "--wandb", "disabled")
        assert status == 2 and "cannot be the name" in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["edge_x_session-1.csv"]


def test_the_whole_result_owns_the_name(drawn, tmp_path):
    path = tmp_path / "net" / "imagenet.json"
    network = {"net": Small()}
    evaluate(network, "imagenet", Data(drawn, limit=20), SETTINGS, results=tmp_path)
    assert read_record(path)["share"]["images"] == 20
    (whole,) = evaluate(network, "imagenet", Data(drawn), SETTINGS, results=tmp_path)
    assert read_record(path) == whole.content and not whole["subset"]
    for settings in (
        Settings(device="cpu", batch_size=16, precision="bf16"),
        Settings(device="cpu", batch_size=16, seed=3),
    ):
        (other,) = evaluate(network, "imagenet", Data(drawn), settings, results=tmp_path)
        assert read_record(path) == whole.content
        assert read_record(path.with_name(f"imagenet.{variant(other.content)}.json")) == other.content
    for limit in (20, 30):  # of the same identity: the whole stays, and is returned
        (kept,) = evaluate(network, "imagenet", Data(drawn, limit=limit), SETTINGS, results=tmp_path)
        assert kept.content == whole.content == read_record(path)
    assert len(list(path.parent.glob("imagenet*.json"))) == 3


def test_measurements_say_when_and_by_what_they_were_made(drawn, tmp_path, monkeypatch):
    """A re-score keeps them; one that changes a value adds its own line."""
    benchmark = Benchmark(
        "probe", lambda data: [Pass(image_set("imagenet", data))], lambda found: [("top1_acc/imagenet", 1.0)]
    )
    network, data = {"net": Small()}, Data(drawn)
    (first,) = evaluate(network, benchmark, data, SETTINGS, results=tmp_path)
    source = first["provenance"]
    assert source["images_per_second"] > 0 and source["measured"][0]["time"] == source["time"]
    path = tmp_path / "net" / "probe.json"
    before = path.read_bytes()
    monkeypatch.setattr("imagenet_biases.engine.evaluate.commit", lambda: "f" * 40)  # other code, same values
    evaluate(network, benchmark, data, SETTINGS, results=tmp_path)
    assert path.read_bytes() == before
    other = Benchmark("probe", benchmark.passes, lambda found: [("top1_acc/imagenet", 2.0)])
    monkeypatch.setattr("imagenet_biases.engine.evaluate.commit", lambda: "e" * 40)
    (again,) = evaluate(network, other, data, SETTINGS, results=tmp_path)
    assert again.metrics["top1_acc/imagenet"].value == 2
    (line,) = again["scored"]
    assert "metrics" in line["changed"] and line["time"] >= source["time"]
    for key in ("time", "device", "versions", "commit", "images_per_second", "measured"):
        assert again["provenance"][key] == source[key], key
    (fresh,) = evaluate(network, other, data, SETTINGS, results=tmp_path, fresh=True)
    assert fresh["provenance"]["measured"] != source["measured"] or fresh["provenance"]["time"] >= source["time"]


def test_attacks_measured_in_two_runs_are_one_record_with_the_options_of_each(drawn, tmp_path):
    data, network = Data(drawn, limit=6), {"net": Small()}
    for attack, eps in (("fgsm", "1/255"), ("pgd", "2/255")):
        options = {"imagenet_adv": {"attack": attack, "eps": eps, "steps": 2}}
        evaluate(network, "imagenet_adv", data, SETTINGS, results=tmp_path, options=options)
    record = read_record(tmp_path / "net" / "imagenet_adv.json")
    assert {"top1_acc/FGSM/eps-1", "top1_acc/PGD-2/eps-2-step-2"} <= set(record["metrics"])
    assert record["options"]["attack"] == ["pgd"]
    assert record["metric_options"] == {"top1_acc/FGSM/eps-1": record["options"] | {"attack": ["fgsm"], "eps": 1 / 255}}


@pytest.mark.slow
def test_a_metric_is_whole_if_what_it_rests_on_is(drawn, tmp_path):
    for name in ("imagenet-a", "imagenet-r"):
        (tmp_path / name).symlink_to(drawn / name)
    (one,) = evaluate(Small(), "imagenet_ood", Data(tmp_path), SETTINGS)
    assert set(one.metrics) == {f"top{k}_acc/imagenet-{s}" for s in "ar" for k in (1, 5)} and not one["partial"]
    usual = tmp_path / "imagenet-c"
    usual.mkdir()
    (usual / "image-set.json").symlink_to(drawn / "imagenet-c" / "image-set.json")
    for folder in (drawn / "imagenet-c").iterdir():
        if folder.is_dir() and folder.name not in ("speckle_noise", "gaussian_blur", "spatter", "saturate"):
            (usual / folder.name).symlink_to(folder)
    (record,) = evaluate(Small(), "imagenet_c", Data(tmp_path), SETTINGS)
    assert {"top1_acc/imagenet-c-15", "mCE/imagenet-c"} <= set(record.metrics)
    assert "top1_acc/imagenet-c" not in record.metrics and not record["partial"] and not record["subset"]
    assert any("20 of 95 folders are not there" in warning for warning in record["warnings"])
    limited = evaluate(Small(), "imagenet", Data(drawn, limit=5), SETTINGS)[0]
    assert not limited["partial"]
    assert limited["sampled"]["top1_acc/imagenet"] == {"images": 5, "of": 96, "low": None, "high": None}


def test_a_benchmarks_own_sample_is_whole(drawn):
    images = image_set("imagenet", Data(drawn))
    asked = images.probe(40)
    counts = np.bincount(asked.labels)[np.unique(images.labels)]
    assert len(asked) == 40 and set(counts) == {2, 3} and asked.subset is None
    benchmark = Benchmark("probe", lambda data: [Pass(asked)], lambda found: [("top1_acc/imagenet", 1.0)])
    (record,) = evaluate(Small(), benchmark, Data(), SETTINGS)
    assert record["subset"] is False and not record["partial"] and not record["sampled"] and record["share"] is None
    share = record["provenance"]["image_sets"]["imagenet"]["share"]
    assert share == {"images": 40, "of": 96, "order": 1, "asked": 40}


def test_answers_to_another_selection_of_images_are_mentioned_once(drawn, tmp_path):
    """As when a former edition chose a sample by its seed: measured again, and said."""
    images = image_set("imagenet", Data(drawn))
    former = dataclasses.replace(images, chosen=images.chosen[::2])
    for chosen in (former, images):
        benchmark = Benchmark("probe", lambda data, chosen=chosen: [Pass(chosen)], lambda found: [])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluate(Small(), benchmark, Data(), SETTINGS, results=tmp_path)
    assert sum("another selection of its images" in str(warning.message) for warning in caught) == 1


def test_a_record_of_the_first_edition_is_read_and_kept(drawn, tmp_path):
    (record,) = evaluate({"net": Small()}, "imagenet", Data(drawn), SETTINGS)
    old = json.loads(json.dumps(record.content))
    for key in ("format", "partial", "layers", "metric_options", "scored"):
        del old[key]
    old["provenance"]["network"], old["provenance"]["time"] = "0" * 64, "2025-01-01T00:00:00+00:00"
    path = tmp_path / "net" / "imagenet.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(old))
    new, where, _ = write_record(tmp_path, record.content)
    assert where == path and read_record(path) == new
    (kept,) = path.parent.glob("imagenet.*.json")
    assert read_record(kept) == old


def test_a_foreign_file_in_the_place_of_a_record_is_left_alone(drawn, tmp_path):
    path = tmp_path / "net" / "imagenet.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"hello": 1}')
    with pytest.raises(UserError, match="not a record"):
        evaluate({"net": Small()}, "imagenet", Data(drawn), SETTINGS, results=tmp_path)
    assert path.read_text() == '{"hello": 1}'


# A study that shows itself --------------------------------------------------------------------------------------------


class Watched(Small):
    """Notes when it is asked and what it is shown."""

    def __init__(self, seed, log):
        super().__init__(seed)
        self.log = [log]  # in a list, so that it is no part of what the network is

    def forward(self, pixels):
        self.log[0].append(len(pixels))
        return super().forward(pixels)


@pytest.mark.slow
def test_records_come_as_they_are_complete_clean_first(drawn, tmp_path, monkeypatch):
    """Clean accuracy of all networks first, and the gate; then benchmark by benchmark, the cheap ones first."""
    events = []
    monkeypatch.setattr(
        "imagenet_biases.engine.evaluate.write_record",
        lambda results, record: (events.append((record["benchmark"], record["model"])), (record, tmp_path, True))[1],
    )
    gates = []
    monkeypatch.setattr(
        "imagenet_biases.engine.evaluate.Run._clean_warning",
        lambda run, cell: gates.append((cell.network.name, len(events))),
    )
    names = ["spectral", "imagenet_real", "imagenet", "imagenet_ood"]
    evaluate({"one": Small(0), "two": Small(1)}, names, Data(drawn), SETTINGS, results=tmp_path)
    assert events[:4] == [(b, n) for b in ("imagenet_real", "imagenet") for n in ("one", "two")]
    assert [benchmark for benchmark, _ in events[4:]] == [b for b in ("imagenet_ood", "spectral") for _ in "12"]
    assert {name for name, done in gates if done == 0} == {"one", "two"}  # before any record


def test_a_wrongly_loaded_network_is_reported_at_once(drawn, tmp_path, capsys):
    network = load_model("calibration_texture")
    network.expected_top1 = 12.0
    (record,) = evaluate({"wrong": network}, "imagenet", Data(drawn), SETTINGS, results=tmp_path)
    assert any("12.00 % was expected" in warning for warning in record["warnings"])
    assert capsys.readouterr().err.count("WARNING, wrong") == 1


def test_a_network_that_fails_does_not_stop_the_others(drawn, tmp_path):
    source = """
import torch
class Net(torch.nn.Module):
    def __init__(self, limit):
        super().__init__()
        self.weight, self.limit, self.shown = torch.nn.Parameter(torch.zeros(3, 1000)), limit, 0
    def forward(self, pixels):
        self.shown += len(pixels)
        if self.shown > self.limit:
            raise RuntimeError("no more")
        return pixels.mean((2, 3)) @ self.weight
def good(): return Net(10**9)
def bad(): return Net(70)
def none(): raise OSError("not to be had")
"""
    (tmp_path / "net.py").write_text(source)
    names = ",".join(f"{tmp_path / 'net.py'}:{function}" for function in ("bad", "none", "good"))
    words = ("--model", names, "--data", drawn, "--results", tmp_path / "r", "--wandb", "disabled")
    status, _, err = run("eval_imagenet.py", *words)
    assert status == 1 and "net.bad" in err and "no more" in err and "not to be had" in err
    assert (tmp_path / "r" / "net.good" / "imagenet.json").exists()
    assert not (tmp_path / "r" / "net.bad" / "imagenet.json").exists()


@pytest.mark.slow
def test_the_plan_needs_no_checkpoint(drawn, tmp_path):
    """48 networks of which none is on disk, and no address can be reached."""
    words = ("--model", "augmentation,baseline", "--data", drawn, "--results", tmp_path, "--dry-run")
    status, out, _ = run("eval_all.py", *words, "--benchmarks", "imagenet,spectral", "--checkpoints", tmp_path / "none")
    assert status == 0 and "spectral" in out and "about" in out and not list(tmp_path.rglob("*.json"))


def test_the_tuned_attack_is_made_only_where_it_is_asked_for(drawn, tmp_path):
    words = ("--model", "calibration_texture", "--data", drawn, "--results", tmp_path, "--dry-run")
    _, plain, _ = run("eval_all.py", *words, "--benchmarks", "imagenet_adv")
    option = "imagenet_adv.attack=pgd,fgsm,tuned"
    _, tuned, _ = run("eval_all.py", *words, "--benchmarks", "imagenet_adv", "--option", option)
    passes = [int(text.split("images,")[1].split("forward")[0].replace(",", "")) for text in (plain, tuned)]
    assert passes == [96 * (1 + 2 * (121 + 4)), 96 * (1 + 2 * (121 + 4 + 247))]


def test_every_run_logs_its_own_accuracy(drawn, monkeypatch):
    """Each network's and condition's accuracy on the images so far, as such."""
    told = []
    monkeypatch.setattr("imagenet_biases.engine.loop.time.monotonic", iter(range(0, 10**6, 2)).__next__)
    monkeypatch.setattr(
        "imagenet_biases.results.wandb_log.WandbLogger.watch",
        lambda self, group, progress, accuracies: told.append((progress.group.shown, dict(accuracies))),
    )
    networks = {"texture": load_model("calibration_texture"), "guess": Small(3)}
    dark = Condition("dark", stimulus=identified("dark")(lambda pixels, batch: pixels * 0))
    benchmark = Benchmark(
        "probe",
        lambda data: [Pass(image_set("imagenet", data)), Pass(image_set("imagenet", data), (dark,))],
        lambda found: (),
    )
    evaluate(networks, benchmark, Data(drawn), SETTINGS)
    last = {(n.name, c): v for seen, one in told for (n, c), v in one.items() if seen == 96}
    assert last["texture", "clean"] == 100 and last["guess", "clean"] < 50 and last["texture", "dark"] < 20
    assert set(last) == {(n, c) for n in networks for c in ("clean", "dark")}


def test_live_accuracies_reach_the_wandb_run_of_their_network():
    """`run` stands for the service's end: what is logged to it."""
    logged = {"a": [], "b": []}
    logger = WandbLogger("disabled", None, None)
    for name, lines in logged.items():
        logger.runs["job", name] = SimpleNamespace(log=lines.append)
    group, progress = (
        SimpleNamespace(images=SimpleNamespace(name="imagenet")),
        SimpleNamespace(group=SimpleNamespace(shown=32), done=96),
    )
    logger.watch(group, progress, {("a", "clean"): 70.0, ("b", "clean"): 30.0, ("b", "dark"): 10.0})
    counts = {"progress/images": 32, "progress/forward passes": 96}
    assert logged["a"] == [counts | {"progress/imagenet/clean so far": 70.0}]
    assert logged["b"] == [counts | {"progress/imagenet/clean so far": 30.0, "progress/imagenet/dark so far": 10.0}]


def test_a_log_file_gets_lines(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=iter(range(0, 10**6, 2)).__next__))
    words = ["--model", "calibration", "--data", drawn, "--results", tmp_path, "--wandb", "disabled"]
    err = run("eval_imagenet.py", *words, "--batch-size", "20", check=True).stderr
    lines = [line for line in err.splitlines() if "forward passes" in line]
    assert len(lines) >= 4 and "\r" not in err
    assert lines[0].startswith("imagenet: 20 of 96 images, 40 of 192 forward passes")
    assert "calibration_silhouette clean 100.0 % so far" in err and "calibration_texture clean" in err


def test_native_view_is_not_the_study_s(drawn, tmp_path):
    """--preprocessing native follows the network: other pixels, another record, responses of its own."""
    seen = {}

    class Net(Small):
        def forward(self, pixels):
            seen.setdefault(tuple(pixels.shape[2:]), []).append(float(pixels.double().sum()))
            return super().forward(pixels)

    from imagenet_biases.images.preprocessing import Preprocessing
    from imagenet_biases.networks.load import from_module

    records = []
    for view in ("study", "native"):
        network = from_module(Net(), "net")
        network._preprocessing = Preprocessing(248, 224, "bicubic")
        seen.clear()
        settings = Settings(device="cpu", batch_size=96, preprocessing=view)
        records += evaluate({"net": network}, "imagenet", Data(drawn), settings, results=tmp_path)
        records[-1].pixels = seen[224, 224][-1]
    assert records[0].pixels != records[1].pixels
    assert [record["provenance"]["view"] for record in records] == ["study", "native"]
    assert len(list((tmp_path / "net").glob("imagenet*.json"))) == 2


@pytest.mark.slow
def test_responses_are_in_few_files(drawn, tmp_path):
    measured(__import__("eval_imagenet_c").BENCHMARK, {"net": Small()}, Data(drawn), tmp_path)
    stored = [path.name for path in (tmp_path / "net" / "responses").iterdir() if not path.name.startswith(".")]
    assert stored == ["imagenet-c.clean.npz"]


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_resume(drawn, tmp_path):
    import signal

    (tmp_path / "net.py").write_text(
        "import time, torch\nclass Slow(torch.nn.Module):\n    def forward(self, pixels):\n"
        "        time.sleep(0.03 * len(pixels))\n        return pixels.mean((2, 3)) @ torch.ones(3, 1000)\n"
        "def build():\n    return Slow()\n"
    )
    words = [
        "--model",
        f"{tmp_path / 'net.py'}:build",
        "--data",
        str(drawn),
        "--batch-size",
        "8",
        "--wandb",
        "disabled",
        "--checkpoint-seconds",
        "0",
    ]
    words += ["--results", str(tmp_path / "r")]
    process = launch("eval_imagenet_ood.py", *words)
    clean = tmp_path / "r" / "net.build" / "responses"
    while process.poll() is None and not list(clean.rglob("*.npz")):  # until something has been answered and saved
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143 and "the same command resumes there" in err and "Traceback" not in err
    assert list(clean.rglob("*.npz"))

"""The README says what the repository does."""

import importlib
import json
import re
import shlex
import subprocess
import sys

import pytest
import torch

from common import CODE, ROOT, run, script
from imagenet_biases import benchmarks, evaluate
from imagenet_biases.door import Measurement
from imagenet_biases.errors import Parser, UserError
from imagenet_biases.networks.registry import SOURCES, groups, registry
from imagenet_biases.study import DECLARATIONS, DEFINITIONS
from imagenet_biases.vocabulary import Data, Settings

README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIRST_NUMBER = (ROOT / "docs" / "FIRST_NUMBER.md").read_text("utf-8")


def test_its_figures_are_those_of_the_answer():
    section = re.search(r"## Do biases explain generalization\?\n(.*?)\n## ", README, re.S)[1]
    answer = (ROOT / "raw-data" / "ANSWER.md").read_text("utf-8")
    estimates = re.findall(r"−?\d\.\d\d \[[^]]+\]", re.sub(r"\s+", " ", section))
    assert len(estimates) == 6
    assert not [estimate for estimate in estimates if estimate not in answer]
    for phrase in ("3 of the 28 pairs", "15 pairs", "0.65 is found in 80 %", "0.30 ", "7 %", "28 %"):
        assert phrase in " ".join(answer.split())
    for phrase in ("15 of the 28 pairs", "3 stand within categories", "0.65 is found in 80 %", "0.30 in 7 %", "28 %"):
        assert phrase in " ".join(section.split())


PUBLISHED = {  # the benchmarks of the study, which the documents must describe; others they may
    shared.script.removeprefix("eval_")
    for shared in (definition.about for definition in DEFINITIONS)
    if "published" in shared.source
} - {"-"}


def test_every_script_is_in_its_table():
    scripts = {path.name for path in CODE.glob("*.py")} - {"train_calibration.py"}
    optional = {f"eval_{name}.py" for name in {*benchmarks.names()} - PUBLISHED}
    described = set(re.findall(r"^\| `([a-z_]+\.py)`", README, re.M)) | {"plot_study.py"}
    assert scripts - optional <= described <= scripts


def test_its_test_command_is_what_ci_runs():
    command = re.search(r"pip install -r requirements-dev.txt && (.*)", README)[1]
    ci = (ROOT / ".ci" / "run").read_text()
    assert f"\n{command}\n" in ci and "pip install -q -r requirements-dev.txt" in ci


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text("utf-8"))
    assert links and not [link for link in links if not (document.parent / link).exists()]


def blocks(document):
    """Return the shell blocks of a document: fenced without a language, and with a command in the first line."""
    found = re.findall(r"^```\n(.*?)^```$", document.read_text("utf-8"), re.M | re.S)
    first = r"(\w+=\S+ )?(python3?|pip|torchrun|git|curl|mkdir|cd|imagenet-biases) |#!/bin/bash"
    return [block for block in found if re.match(first, block)]


def commands():
    """Return (document, words) of every command with a script, in blocks and in running text."""
    found = []
    for document in DOCUMENTS:
        inline = re.findall(r"`((?:python|torchrun) [^`]*\.py[^`]*)`", document.read_text("utf-8").replace("\n", " "))
        lines = [line for block in blocks(document) for line in block.splitlines()] + inline
        for part in (part for line in lines for part in line.split("&&")):
            words = shlex.split(part.replace("$SLURM_ARRAY_TASK_ID", "1"), comments=True)
            if (
                any(word.startswith("code/") and word.endswith(".py") for word in words)
                or "imagenet-biases" in words[:1]
            ):
                found.append(pytest.param(words, id=f"{document.name} {' '.join(words)[:70]}"))
    return found


class Understood(BaseException):
    """A command line was parsed; nothing shall be run."""


@pytest.mark.parametrize("words", commands())
def test_every_command_is_understood(words, monkeypatch):
    """By the parser of its script; its networks and benchmarks exist."""
    start = next(number for number, word in enumerate(words) if word.startswith("code/") or word == "imagenet-biases")
    name, arguments = words[start].removeprefix("code/"), words[start + 1 :]
    if name == "imagenet-biases":
        name, *arguments = [f"{arguments[0].removesuffix('.py')}.py", *arguments[1:]]
    parse = Parser.parse_args

    def stop(parser, given=None, namespace=None):
        raise Understood(parse(parser, given, namespace))

    monkeypatch.setattr(Parser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(Understood) as caught:
        importlib.import_module(name.removesuffix(".py")).main(arguments)
    parsed = vars(caught.value.args[0])
    if parsed.get("benchmarks"):
        assert {*parsed["benchmarks"].split(",")} <= {*benchmarks.names()}
    for one in ",".join(filter(None, (parsed.get("model"), parsed.get("fetch"), parsed.get("verify")))).split(","):
        own = "/" in one or "my_network" in one or one.startswith("@") or "mine" in one
        assert not one or own or one in registry() or one in groups() or re.fullmatch(r"resnet50\.\w+_in1k", one), one


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_shell(document):
    assert blocks(document)
    for block in blocks(document):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr


def test_the_first_numbers_checksums_are_torchvisions():
    from torchvision.datasets.imagenet import ARCHIVE_META

    found = re.findall(r"^([0-9a-f]{32})  (\S+)$", FIRST_NUMBER, re.M)
    assert {(name, digest) for digest, name in found} == {ARCHIVE_META["val"], ARCHIVE_META["devkit"]}


def test_the_first_numbers_costs_are_the_plans(drawn):
    """Passes an image as planned for a ResNet-50 on the drawn set, images as declared, hours by the measured pace."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| (\d+) \| ([\d,]+) \| ([\d.]+) \|$", FIRST_NUMBER, re.M)
    assert PUBLISHED - {"filters"} <= {name for name, *_ in rows} <= {*benchmarks.names()}  # filters: of weights
    measurement = Measurement(
        "resnet50_augmix_180ep", [name for name, *_ in rows], Data(root=drawn), Settings(device="cpu")
    )
    kept = json.loads((ROOT / "benchmarks" / "throughput-cpu.json").read_text())["figures"][0]
    pace = kept["images_x_conditions_per_second"]["harness"]
    sets = {name: one.images for name, one in DECLARATIONS.items()}
    images = dict.fromkeys((name for name, *_ in rows), sets["imagenet"]) | {
        "imagenet_ood": sum(sets[name] for name in benchmarks.find("imagenet_ood").sets),
        "imagenet_c": 95 * sets["imagenet-c"],
        "imagenet_cbar": 50 * sets["imagenet-cbar"],
        "model_vs_human": 18_080,
    }
    for job, (name, shown, each, passes, hours) in zip(measurement.jobs, rows, strict=True):
        assert job.name == name
        probe = next((one.default for one in job.benchmark.options if one.name == "probe"), None)
        planned = {}  # a condition that several passes show is shown once
        for one in job.passes:
            network = measurement.built("resnet50_augmix_180ep") if callable(one.conditions) else None
            for condition in one.conditions_for(network):
                planned[one.images.name, repr(condition.identity())] = len(one.images) * condition.cost
        assert int(each) == sum(planned.values()) / sum(len(found) for found in job.image_sets), name
        assert int(shown.replace(",", "")) == (probe or images[name]), name
        assert int(passes.replace(",", "")) == int(shown.replace(",", "")) * int(each)
        assert float(hours) == round(int(passes.replace(",", "")) / pace / 3600, 1)


def test_its_first_command_is_the_demo(tmp_path):
    """Both networks over every benchmark, in an empty folder; what it finds is what they were made for."""
    (command,) = re.findall(r"^pip install -r requirements.txt && python code/(\S+)$", README, re.M)
    done = script(command, cwd=tmp_path, WANDB_MODE="disabled")
    assert "How to read this." in done.stdout
    names = {path.stem.removeprefix("eval_") for path in CODE.glob("eval_*.py")} - {"all", "images", "vlm"}
    for network, bias in (("silhouette", 1), ("texture", 0)):
        folder = tmp_path / "results" / f"calibration_{network}"
        assert {path.stem for path in folder.glob("*.json")} == names
        record = json.loads((folder / "model_vs_human.json").read_text())
        assert abs(record["metrics"]["shape-bias"] - bias) < 0.1
        assert re.search(rf"^shape-bias +.*{record['metrics']['shape-bias']:.4g}", done.stdout, re.M)
    assert run("merge_results.py", "--results", tmp_path / "results", "--out", tmp_path)[0] == 0


def test_its_python_lines_run(drawn, monkeypatch):
    (lines,) = re.findall(r"```python\n(from imagenet_biases.*?)```", README, re.S)
    lines = lines.replace("results/drawn", str(drawn)).replace("Settings()", 'Settings(device="cpu")')
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 1000))
    with torch.no_grad():
        network[2].bias[:] = torch.arange(1000) / 100  # so that some answer is right
    known = {"network": network}
    exec(lines, known)
    assert [record.benchmark for record in known["records"]] == ["imagenet", "spectral"]


def test_the_example_of_contributing_runs_but_for_its_metric(drawn):
    """As it says, the metric has to be defined first."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (source,) = re.findall(r'```python\n(""".*?)```', text, re.S)
    known = {"__name__": "eval_dim"}
    exec(source, known)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 1000))
    with pytest.raises(UserError, match=r"top1_acc/dim.*metrics\.toml"):
        evaluate(network, known["BENCHMARK"], Data(drawn, limit=4), Settings(device="cpu"))
    for path in re.findall(r"`((?:code|tests|models|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / path).exists() or "user" in path or "NAME" in path, path


def test_its_entries_of_the_zoo_are_understood(tmp_path, monkeypatch):
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    offered = re.search(r'source = "(\w+)" +# or (.*)', example)
    assert {offered[1], *offered[2].split(", ")} == {*SOURCES}
    (torchvision,) = re.findall(r'`location = "(\w+:\w+)"`', README)
    shorter = f'[[network]]\nname = "a"\nsource = "torchvision"\nlocation = "{torchvision}"\n'
    shorter += '[[network]]\nname = "b"\nsource = "timm"\nnormalization = "timm"\nlocation = "resnet18.a1_in1k"\n'
    (tmp_path / "zoo.user.toml").write_text(example + shorter)
    monkeypatch.setenv("ZOO_FOLDER", str(tmp_path))
    assert registry()["resnet50_mine"].expected_top1 == 76.5
    assert registry()["a"].files[0].address.startswith("https://download.pytorch.org/models/resnet18-")
    assert registry()["b"].files[0].address.startswith("hf://timm/resnet18.a1_in1k/")

"""README, CONTRIBUTING and docs/ say what the repository does."""

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import torch

from common import CODE, ROOT, run, script
from imagenet_biases import benchmarks, evaluate
from imagenet_biases.base.errors import Parser, UserError
from imagenet_biases.engine.evaluate import Request
from imagenet_biases.images.sets import DECLARATIONS
from imagenet_biases.networks.registry import SOURCES, groups, registry
from imagenet_biases.results.table import PUBLISHED
from imagenet_biases.study import DEFINITIONS
from imagenet_biases.vocabulary import Data, Settings

README = (ROOT / "README.md").read_text("utf-8")
DOCS = ROOT / "docs"
API = DOCS / "python-api.md"  # made from docstrings
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*DOCS.glob("*.md")} - {API})]
FIRST_NUMBER = (DOCS / "first-number.md").read_text("utf-8")
TEXTS = {path: " ".join(path.read_text("utf-8").split()) for path in DOCUMENTS}


def test_its_figures_are_those_of_the_answer():
    section = re.search(r"## Do biases explain generalization\?\n(.*?)\n## ", README, re.S)[1]
    answer = (ROOT / "raw-data" / "ANSWER.md").read_text("utf-8")
    estimates = re.findall(r"−?\d\.\d\d \[[^]]+\]", re.sub(r"\s+", " ", section))
    assert len(estimates) == 6
    assert not [estimate for estimate in estimates if estimate not in answer]
    for phrase in ("3 of the 28 pairs", "15 pairs", "0.65 is detected in 80 %", "0.30 ", "7 %", "28 %"):
        assert phrase in " ".join(answer.split())
    for phrase in ("15 of the 28 pairs", "3 hold within categories", "0.65 is detected in 80 %", "0.30 in 7 %", "28 %"):
        assert phrase in " ".join(section.split())


STUDY_BENCHMARKS = {  # the benchmarks of the study, which the documents must describe; others they may
    shared.script.removeprefix("eval_")
    for shared in (definition.about for definition in DEFINITIONS)
    if "published" in shared.source
} - {"-"}


def test_every_script_is_in_its_table():
    scripts = {path.name for path in CODE.glob("*.py")} - {"train_calibration.py"}
    rows = re.findall(r"^\|.*\|$", README, re.M)
    listed = [name for row in rows for name in re.findall(r"`([a-z_]+\.py)`", row)]
    optional = {f"eval_{name}.py" for name in {*benchmarks.names()} - STUDY_BENCHMARKS}
    assert len(listed) == len(set(listed)) and set(scripts) - optional <= set(listed) <= set(scripts)


def test_its_figure_is_small():
    (figure,) = re.findall(r"\((docs/[^)]+\.png)\)", README)
    assert (ROOT / figure).stat().st_size < 250_000


def test_its_test_command_is_what_ci_runs():
    command = re.search(r"`pip install -r requirements-dev.txt && ([^`]*)`", README)[1]
    ci = (ROOT / ".ci" / "run").read_text()
    assert f"\n{command}\n" in ci and re.search(r"^pip install [-a-z ]*-r requirements-dev.txt$", ci, re.M)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text("utf-8"))
    assert links or document.name == "architecture.md"
    assert not [link for link in links if not (document.parent / link).exists()]


def test_every_document_is_linked_from_the_readme():
    assert {path.name for path in DOCS.glob("*.md")} <= {*re.findall(r"\]\(docs/([^)]+)\)", README)}


def blocks(document):
    """Return the shell blocks of a document: fenced without a language, and with a command in the first line."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text("utf-8"), re.M | re.S)
    first = r"(\w+=\S+ )?(python3?|pip|torchrun|git|curl|mkdir|cd|imagenet-biases) |#!/bin/bash"
    return [block for language, block in found if not language and re.match(first, block)]


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
        own = "/" in one or "my_network" in one or one == "my.pth" or "mine" in one
        own = own or one.startswith(("@", "answers:", "api:", "predictions:"))
        assert not one or own or one in registry() or one in groups() or re.fullmatch(r"resnet50\.\w+_in1k", one), one


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_shell(document):
    assert blocks(document) or document.name in ("architecture.md", "troubleshooting.md")
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
    assert STUDY_BENCHMARKS - {"filters"} <= {name for name, *_ in rows} <= {*benchmarks.names()}  # filters: of weights
    request = Request("resnet50_augmix_180ep", [name for name, *_ in rows], Data(root=drawn), Settings(device="cpu"))
    kept = json.loads((ROOT / "benchmarks" / "throughput-cpu.json").read_text())["figures"][0]
    pace = kept["images_x_conditions_per_second"]["harness"]
    sets = {name: one.images for name, one in DECLARATIONS.items()}
    images = dict.fromkeys((name for name, *_ in rows), sets["imagenet"]) | {
        "imagenet_ood": sum(sets[name] for name in benchmarks.find("imagenet_ood").sets),
        "imagenet_c": 95 * sets["imagenet-c"],
        "imagenet_cbar": 50 * sets["imagenet-cbar"],
        "model_vs_human": 18_080,
    }
    for job, (name, shown, each, passes, hours) in zip(request.jobs, rows, strict=True):
        assert job.name == name
        probe = next((one.default for one in job.benchmark.options if one.name == "probe"), None)
        planned = {}  # a condition that several passes show is shown once
        for one in job.passes:
            network = request.built("resnet50_augmix_180ep") if callable(one.conditions) else None
            for condition in one.conditions_for(network):
                planned[one.images.name, repr(condition.identity())] = len(one.images) * condition.cost
        assert int(each) == sum(planned.values()) / sum(len(found) for found in job.image_sets), name
        assert int(shown.replace(",", "")) == (probe or images[name]), name
        assert int(passes.replace(",", "")) == int(shown.replace(",", "")) * int(each)
        assert float(hours) == round(int(passes.replace(",", "")) / pace / 3600, 1)


def demo_rows():
    """Return the README's [metric, value, low, high of the first network, and of the second]."""
    (block,) = re.findall(r"^```\n +calibration_silhouette .*\n(.*?)^```", README, re.M | re.S)
    return [line.replace("[", "").replace("]", "").replace(",", "").split() for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)  # some 100 s of processor time: several minutes on a busy machine
def test_its_first_command_is_the_demo(tmp_path):
    """Both networks over every benchmark, in an empty folder; what it finds is what they were made for."""
    (command,) = re.findall(r"^pip install -r requirements.txt\npython code/(\S+)$", README, re.M)
    done = script(command, cwd=tmp_path, WANDB_MODE="disabled")
    assert "How to read this." in done.stdout
    names = {path.stem.removeprefix("eval_") for path in CODE.glob("eval_*.py")} - {
        "all",
        "images",
        "vlm",
        "categories16",
    }
    for network, bias in (("silhouette", 1), ("texture", 0)):
        folder = tmp_path / "results" / f"calibration_{network}"
        assert {path.stem for path in folder.glob("*.json")} == names
        record = json.loads((folder / "model_vs_human.json").read_text())
        assert abs(record["metrics"]["shape-bias"] - bias) < 0.1
        assert re.search(rf"^shape-bias +.*{record['metrics']['shape-bias']:.4g}", done.stdout, re.M)
    for name, *told in demo_rows():
        printed = re.search(rf"^{re.escape(name)} +(\S+) \[(\S+), (\S+)\] +(\S+) \[(\S+), (\S+)\]$", done.stdout, re.M)
        for one, other in zip(told, printed.groups(), strict=True):  # an image or two may turn on another machine
            assert float(one) == pytest.approx(float(other), rel=0.05, abs=2.1 if "acc/" in name else 0.05), name
    assert run("merge_results.py", "--results", tmp_path / "results", "--out", tmp_path)[0] == 0


@pytest.mark.parametrize("document", [ROOT / "README.md", DOCS / "first-number.md"], ids=lambda path: path.name)
def test_the_standing_shown_is_what_compare_prints(document):
    (block,) = re.findall(r"^(network +source +measure .*?)^```", document.read_text("utf-8"), re.M | re.S)
    status, printed, err = run("compare.py", "resnet50_augmix_180ep", "--what", "standing", "--table", PUBLISHED)
    assert status == 0, err
    assert block in printed


def test_the_speeds_and_precisions_told_are_those_measured():
    text = TEXTS[DOCS / "at-scale.md"]
    speed = json.loads((ROOT / "benchmarks" / "throughput-cpu.json").read_text())["figures"][0]
    pace = speed["images_x_conditions_per_second"]["harness"]
    assert f"{speed['harness_over_bare']} of the fastest bare loop over a ResNet-50: {pace} images × cond" in text
    assert f"{pace} images × conditions per second" in TEXTS[DOCS / "first-number.md"]
    photographs = json.loads((ROOT / "benchmarks" / "precision-cpu.json").read_text())["figures"]["photographs"]

    def changed(precision, benchmark):
        count, of = photographs[precision][benchmark]["answers changed"]["all"]
        return 100 * count / of

    for precision in ("tf32-conv", "bf16", "fp16"):
        shares = [changed(precision, name) for name in ("imagenet", "spectral", "criticalband", "imagenet_adv")]
        assert "`{}` changes {:.1f}, {:.1f}, {:.1f} and {:.1f} %".format(precision, *shares) in _joined(text)
    signs = photographs["bf16"]["gradients"]["other sign"]
    assert f"and {100 * signs:.0f} % of the signs of attack gradients" in _joined(text)


def _joined(text):
    """Return a text without its line breaks."""
    return " ".join(text.split())


def test_the_rooms_of_the_architecture_are_the_packages():
    text = (DOCS / "architecture.md").read_text("utf-8")
    package = CODE / "imagenet_biases"
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.M)
    told = {name.rstrip("/") for cell in cells for name in re.findall(r"`([\w./]+)`", cell)}
    there = {path.parent.name for path in package.glob("*/*.py")} | {path.name for path in package.glob("*.py")}
    assert told - {"metrics.toml"} == there and (package / "metrics.toml").exists()


def test_the_api_page_is_made_from_todays_docstrings(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    make_api = importlib.import_module("make_api")
    assert API.read_text("utf-8") == make_api.page(), "run python docs/make_api.py"


def test_the_extras_are_the_requirements():
    """requirements*.txt are the short way to the same packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]

    def lines(name):
        return {line for line in (ROOT / name).read_text().splitlines() if line and line[0] not in "#-"}

    assert set(extras["language"]) == lines("requirements-language.txt")
    (together,) = re.findall(r"^imagenet-biases\[(.*)\]$", "\n".join(extras["dev"]), re.M)
    inside = {line for extra in together.split(",") for line in extras[extra]}
    assert {*extras["dev"][1:], *inside} == lines("requirements-dev.txt") | lines("requirements-language.txt")
    version = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1]
    assert project["version"] == version


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
    (entry,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    assert [one["names"] for one in tomllib.loads(entry)["metric"]] == [["top1_acc/dim"]]
    known = {"__name__": "eval_dim"}
    exec(source, known)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 1000))
    with pytest.raises(UserError, match=r"top1_acc/dim.*metrics\.toml"):
        evaluate(network, known["BENCHMARK"], Data(drawn, limit=4), Settings(device="cpu"))
    for path in re.findall(r"`((?:code|tests|models|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / path).exists() or "user" in path or "NAME" in path, path


def test_its_entries_of_the_zoo_are_understood(tmp_path, monkeypatch):
    text = (DOCS / "networks-and-training.md").read_text("utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    offered = re.search(r'source = "(\w+)" +# or (.*)', example)
    assert {offered[1], *offered[2].split(", ")} == {*SOURCES}
    (torchvision,) = re.findall(r'`location = "(\w+:\w+)"`', text)
    shorter = f'[[network]]\nname = "a"\nsource = "torchvision"\nlocation = "{torchvision}"\n'
    shorter += '[[network]]\nname = "b"\nsource = "timm"\nnormalization = "timm"\nlocation = "resnet18.a1_in1k"\n'
    (tmp_path / "zoo.user.toml").write_text(example + shorter)
    monkeypatch.setenv("ZOO_FOLDER", str(tmp_path))
    assert registry()["resnet50_mine"].expected_top1 == 76.5
    assert registry()["a"].files[0].address.startswith("https://download.pytorch.org/models/resnet18-")
    assert registry()["b"].files[0].address.startswith("hf://timm/resnet18.a1_in1k/")

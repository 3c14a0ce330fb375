"""The README says what the repository does."""

import json
import re

import pytest
import torch

from common import CODE, ROOT, run, script
from imagenet_biases import evaluate
from imagenet_biases.errors import UserError
from imagenet_biases.vocabulary import Data, Settings

README = (ROOT / "README.md").read_text("utf-8")


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


def test_every_script_is_in_its_table():
    scripts = {path.name for path in CODE.glob("*.py")} - {"train_calibration.py"}
    assert scripts == set(re.findall(r"^\| `([a-z_]+\.py)`", README, re.M)) | {"plot_study.py"}


def test_its_test_command_is_what_ci_runs():
    command = re.search(r"pip install -r requirements-dev.txt && (.*)", README)[1]
    ci = (ROOT / ".ci" / "run").read_text()
    assert f"\n{command}\n" in ci and "pip install -q -r requirements-dev.txt" in ci


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]


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
    with pytest.raises(UserError, match=r"top1_acc/dim.*study\.py"):
        evaluate(network, known["BENCHMARK"], Data(drawn, limit=4), Settings(device="cpu"))
    for path in re.findall(r"`((?:code|tests|models|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / path).exists() or "user" in path or "NAME" in path, path

"""The README says what the repository does."""

import re

from common import CODE, ROOT

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

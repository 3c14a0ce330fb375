"""The work spread over shards: the same numbers whichever way, round by round, and records when all is there."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from common import CODE, launch, run, script
from imagenet_biases import Data, Settings, evaluate
from imagenet_biases.base.errors import UserError
from imagenet_biases.engine import slurm
from imagenet_biases.engine.sharding import Work, deal, slices

NET = """
import time, torch
class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed({seed})
        self.first = torch.nn.Conv2d(3, 8, 7, 8)
        self.last = torch.nn.Linear(8 * 16, 1000)
        for one in self.parameters():
            one.data = torch.randn(one.shape, generator=generator)
    def forward(self, pixels):
        time.sleep({pause} * len(pixels))
        return self.last(torch.nn.functional.adaptive_avg_pool2d(self.first(pixels).relu(), 4).flatten(1))
def build():
    return Small()
"""
BENCHMARKS = "imagenet,imagenet_real,imagenet_adv,solarization,filters"
OPTIONS = ("imagenet_adv.steps=2", "imagenet_adv.attack=pgd", "solarization.alpha=3")


@pytest.fixture(scope="module")
def words(drawn, tmp_path_factory):
    """A command on two networks, clean, stimuli, attacks and no image at all; a short pause makes some ranks slow."""
    folder = tmp_path_factory.mktemp("networks")
    for seed, name in enumerate(("one", "two")):
        (folder / f"{name}.py").write_text(NET.format(seed=seed, pause=0))
    options = [word for option in OPTIONS for word in ("--option", option)]
    networks = ",".join(f"{folder / name}.py:build" for name in ("one", "two"))
    return ["--model", networks, "--data", str(drawn), "--benchmarks", BENCHMARKS, "--limit", "40", *options,
            "--batch-size", "7", "--wandb", "disabled", "--rounds", "34,100"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    results = tmp_path_factory.mktemp("whole")
    run("eval_all.py", *words, "--results", results, check=True)
    return found(results)


def found(results):
    """Return {record: its numbers}, {responses file: its arrays}."""
    records, arrays = {}, {}
    for path in sorted(results.glob("*.build/*.json")):
        record = json.loads(path.read_text())
        parts = ("metrics", "intervals", "layers", "details", "warnings", "images", "subset")
        records[str(path.relative_to(results))] = {part: record[part] for part in parts}
    for path in sorted(results.glob("*.build/**/*.npz")):
        with np.load(path) as kept:
            arrays[str(path.relative_to(results))] = {n: kept[n].tolist() for n in sorted(kept.files) if n != "index"}
    return records, arrays


def torchrun(count, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*command, str(CODE / "eval_all.py"), *map(str, arguments)], capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_the_undivided_run_has_all_records(whole):
    records, arrays = whole
    assert len(records) == 2 * 5
    assert {name.split("/")[-1] for name in arrays} == {f"imagenet.{k}.npz" for k in ("clean", "stimulus", "attack")}


@pytest.mark.slow
@pytest.mark.parametrize("count", [3])
def test_processes_of_torchrun_reproduce_one(words, whole, tmp_path, count):
    result = torchrun(count, *words, "--results", tmp_path)
    assert result.returncode == 0, result.stderr
    assert found(tmp_path) == whole


@pytest.mark.slow
def test_shards_reproduce_one_run_and_the_last_writes_the_records(words, whole, tmp_path):
    first = run("eval_all.py", *words, "--shard", "1/4", "--results", tmp_path, check=True)
    waiting = int(re.search(r"shard 1/4 is done; (\d+) records wait for other shards", first.stderr)[1])
    before = set(found(tmp_path)[0])
    assert waiting and len(before) + waiting in (5, 10)  # of the networks that it had a part of
    for number in (4, 2, 3):
        run("eval_all.py", *words, "--shard", f"{number}/4", "--results", tmp_path, check=True)
    assert found(tmp_path) == whole
    again = run("eval_all.py", *words, "--shard", "1/4", "--results", tmp_path, check=True)
    assert "wait" not in again.stderr and found(tmp_path) == whole


@pytest.mark.slow
def test_shards_that_run_at_once_and_one_that_dies(words, whole, tmp_path):
    three = [launch("eval_all.py", *words, "--shard", f"{number}/3", "--results", tmp_path) for number in (1, 2, 3)]
    while not list(tmp_path.rglob("*.npz")) and three[1].poll() is None:
        time.sleep(0.02)
    three[1].kill()
    assert [process.wait() for process in three][::2] == [0, 0]
    assert len(found(tmp_path)[0]) < len(whole[0])
    run("eval_all.py", *words, "--results", tmp_path, check=True)  # without shards: what is missing
    assert found(tmp_path) == whole


@pytest.mark.slow
def test_shards_on_hosts_without_a_common_folder(words, whole, tmp_path):
    for number in (1, 2):
        run("eval_all.py", *words, "--shard", f"{number}/2", "--results", tmp_path / str(number), check=True)
    for number in (1, 2):
        shutil.copytree(tmp_path / str(number), tmp_path / "all", dirs_exist_ok=True)
    run("eval_all.py", *words, "--results", tmp_path / "all", check=True)
    assert found(tmp_path / "all") == whole


def test_shards_need_a_results_folder_and_refuse_fresh(drawn, tmp_path):
    settings = Settings(device="cpu", shard=(1, 2))
    with pytest.raises(UserError, match="results folder"):
        evaluate("calibration", "imagenet", Data(drawn), settings)
    with pytest.raises(UserError, match="--fresh"):
        evaluate("calibration", "imagenet", Data(drawn), settings, results=tmp_path, fresh=True)
    for shard in ("0/2", "3/2", "1", "x/2", "1/2/3"):
        failed = run("eval_imagenet.py", "--shard", shard)
        assert failed.returncode == 2 and "is not i/n" in failed.stderr


def test_rounds_are_dealt_evenly_and_leave_no_gap():
    """Every image of a round is one shard's, in the order of shards; no share is above its part by more than a step."""
    random = np.random.default_rng(0)
    for _ in range(300):
        work = []
        for _ in range(random.integers(1, 9)):
            first, step = random.integers(0, 40, 2)
            goals = tuple(np.cumsum([first, random.integers(0, 90), random.integers(0, 200)]).tolist())
            work.append(Work(int(random.integers(1, 25)), goals, int(step) % 4 * 7 + 1))
        count = int(random.integers(1, 7))
        for turn in range(3):
            cuts = deal(work, turn, count)
            sums = np.zeros(count)
            for unit, edges in zip(work, cuts, strict=True):
                assert edges[0] == (unit.goals[turn - 1] if turn else 0) and edges[-1] == unit.goals[turn]
                assert edges == sorted(edges) and len(edges) == count + 1
                inner = [edge - edges[0] for edge in edges if edge != edges[-1]]
                assert not any(edge % unit.step for edge in inner)  # whole batches, where answers depend on them
                sums += unit.cost * np.diff(edges)
            most = max(unit.cost * unit.step for unit in work)
            assert np.abs(sums - sums.sum() / count).max() <= 2 * most


def test_all_shards_bring_the_first_round_home_first():
    work = {("net", "imagenet", 100, kind): Work(cost, (5, 20, 100)) for kind, cost in (("clean", 1), ("stimulus", 22))}
    shares = [slices(work, 3, (number, 4)) for number in (1, 2, 3, 4)]
    for unit, of_unit in work.items():
        for turn in range(3):
            shown = [number for share in shares for number in range(*share.get(unit, ((0, 0),) * 3)[turn])]
            assert shown == list(range(of_unit.goals[turn - 1] if turn else 0, of_unit.goals[turn]))


@pytest.mark.slow
def test_submitted_jobs_reproduce_one_run(words, whole, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed")
    result = script("eval_all.py", *words, "--results", tmp_path, "--submit", "local", "--jobs", 2, "--time", 0.2)
    assert "submitted 2 jobs" in result.stdout and found(tmp_path) == whole
    monkeypatch.setenv("PATH", "/nowhere")
    for flag in (("--submit", "moon"), ("--submit", "slurm"), ("--submit", "local", "--shard", "1/2")):
        failed = run("eval_all.py", *words, "--results", tmp_path / "new", *flag)
        line = failed.stderr.splitlines()[-1]
        assert failed.returncode == 2 and line.startswith("error: ") and "--submit" in line, failed.stderr


def test_a_job_that_is_stopped_saves_and_is_submitted_again(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    ready = tmp_path / "ready"
    loop = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
    loop += f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    share = slurm.ShardJob([sys.executable, "-c", loop], str(tmp_path))
    waiting = threading.Thread(target=share)
    waiting.start()
    while not ready.exists():
        time.sleep(0.02)
    again = share.checkpoint()
    waiting.join(10)
    assert not waiting.is_alive() and share.process.returncode == 0
    assert again.function.command == share.command


@pytest.mark.slow
def test_without_submitit_one_line_says_what_to_install(words, tmp_path):
    (tmp_path / "submitit.py").write_text("raise ImportError")
    failed = script("eval_all.py", *words, "--results", tmp_path, "--submit", "slurm", check=False, PYTHONPATH=tmp_path)
    assert failed.returncode == 2 and "pip install submitit" in failed.stderr.splitlines()[-1]

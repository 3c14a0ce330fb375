"""The work spread over shards and ranks: the same numbers whichever way, and records when all is there."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from common import CODE, answered, run, script
from imagenet_biases import Data, Settings, evaluate
from imagenet_biases.base.errors import UserError
from imagenet_biases.engine import slurm
from imagenet_biases.engine.sharding import deal

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
            "--batch-size", "7", "--wandb", "disabled"]  # fmt: skip


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


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, str(CODE / "eval_all.py"), *map(str, arguments)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.slow
def test_the_undivided_run_has_all_records(whole):
    records, arrays = whole
    assert len(records) == 2 * 5
    assert {name.split("/")[-1] for name in arrays} == {f"imagenet.{k}.npz" for k in ("clean", "stimulus", "attack")}


@pytest.mark.slow
@pytest.mark.parametrize("count, more", [(2, ()), (4, ()), (2, ("--split", "images")), (4, ("--split", "images"))])
def test_several_ranks_reproduce_one_process(words, whole, tmp_path, count, more):
    result = torchrun(count, *words, *more, "--results", tmp_path)
    assert result.returncode == 0, result.stderr
    assert found(tmp_path) == whole


@pytest.mark.slow
def test_shards_reproduce_one_run_and_the_last_writes_the_records(words, whole, tmp_path):
    first = run("eval_all.py", *words, "--shard", "1/4", "--results", tmp_path, check=True)
    waiting = int(re.search(r"shard 1/4 is done; (\d+) records wait for other shards", first.stderr)[1])
    before = set(found(tmp_path)[0])
    assert len(before) + waiting == 5  # of the one network that it had a part of
    for number in (4, 2, 3):
        run("eval_all.py", *words, "--shard", f"{number}/4", "--results", tmp_path, check=True)
    assert found(tmp_path) == whole
    again = run("eval_all.py", *words, "--shard", "1/4", "--results", tmp_path, check=True)
    assert "wait" not in again.stderr and found(tmp_path) == whole


@pytest.mark.slow
def test_shards_that_run_at_once_and_one_that_dies(words, whole, tmp_path):
    both = [start(*words, "--shard", f"{number}/3", "--results", tmp_path) for number in (1, 2, 3)]
    while not list(tmp_path.rglob("*.npz")) and both[1].poll() is None:
        time.sleep(0.02)
    both[1].kill()
    for process in both:
        process.communicate(timeout=300)
    assert both[0].returncode == both[2].returncode == 0
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


def test_the_work_is_divided_optimally():
    random = np.random.default_rng(0)
    for _ in range(200):
        costs = random.integers(0, 20, random.integers(1, 9)).tolist()
        count = int(random.integers(1, 6))
        runs = deal(costs, count)
        assert runs == sorted(runs) and runs[0] == 0 and max(runs) < count

        def largest(cuts, costs=costs):
            edges = [0, *sorted(cuts), len(costs)]
            return max(sum(costs[a:b]) for a, b in itertools.pairwise(edges))

        sums = [sum(cost for cost, run in zip(costs, runs, strict=True) if run == one) for one in range(count)]
        best = min(largest(c) for c in itertools.combinations_with_replacement(range(len(costs) + 1), count - 1))
        assert max(sums) == best


def _port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def _ranks(count, words, folders, **environment):
    """Start ranks by hand, as on several hosts: each with its results folder."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port(), **environment}
    return [
        start(*words, "--split", "images", "--results", folders[rank], **shared, RANK=str(rank))
        for rank in range(count)
    ]


@pytest.mark.slow
def test_two_hosts_without_a_common_folder_are_told_before_they_start(words, tmp_path):
    for process in _ranks(2, words, [tmp_path / "a", tmp_path / "b"]):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 2 and "--shard" in said and "rank 1" in said
    assert not found(tmp_path / "a")[0] and not list(tmp_path.rglob("*.npz"))


@pytest.mark.slow
def test_a_rank_that_dies_leaves_what_was_measured(drawn, tmp_path):
    """The other one, which has saved its part, says so; the same command goes on."""
    (tmp_path / "net.py").write_text(NET.format(seed=0, pause=0.05))
    words = ["--model", f"{tmp_path / 'net.py'}:build", "--data", str(drawn), "--batch-size", "4", "--benchmarks",
             "imagenet", "--wandb", "disabled", "--checkpoint-seconds", "0"]  # fmt: skip
    results = tmp_path / "results"
    one, other = _ranks(2, words, [results, results])
    until = time.monotonic() + 120
    while not list(results.rglob("*.rank-1.npz")) and time.monotonic() < until:
        time.sleep(0.02)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    while answered(results) < 48 and time.monotonic() < until:  # its half
        time.sleep(0.02)
    assert one.poll() is None  # it waits for a rank that may be slow
    one.terminate()
    _, said = one.communicate(timeout=60)
    assert one.returncode == 143 and "what was measured so far is kept" in said
    run("eval_all.py", *words, "--results", tmp_path / "undisturbed", check=True)
    run("eval_all.py", *words, "--results", results, check=True)
    assert found(results) == found(tmp_path / "undisturbed")


@pytest.mark.slow
def test_submitted_jobs_reproduce_one_run(words, whole, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    result = script("eval_all.py", *words, "--results", tmp_path, "--submit", "local", "--jobs", 2, "--time", 0.2)
    assert "submitted 2 jobs" in result.stdout and found(tmp_path) == whole
    for flag in (("--submit", "moon"), ("--submit", "slurm"), ("--submit", "local", "--shard", "1/2")):
        failed = script("eval_all.py", *words, "--results", tmp_path / "new", *flag, check=False, PATH="/nowhere")
        assert failed.returncode == 2 and failed.stderr.splitlines()[-1].startswith("error: --submit"), failed.stderr


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

"""Kills, crowds and a refusing operating system: whole runs in processes of their own end in the same record.

HOSTILE_KILLS (default 5) random SIGKILLs over eval_all, at moments drawn from HOSTILE_SEED (default 0):
HOSTILE_KILLS=60 python -m pytest tests/scripts/test_hostile_runs.py -k kills
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from common import CODE, launch
from hostile import SEED

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("HOSTILE_KILLS", 5))
ALL = ("eval_all.py", "--model", "calibration", "--benchmarks", "imagenet,imagenet_real,imagenet_ood")
ONE = ("eval_imagenet.py", "--model", "calibration_texture")
TIMES = ("time", "images_per_second", "measured", "scored_from")  # what says when, and what is made of that


def start(words, data, results, *more, within=(), **settings):
    """Start a script in a process of its own; `settings`: of `launch`.

    `within`: words of a command that runs the command that follows them.
    """
    words = [*words, "--data", data, "--results", results, "--wandb", "disabled", "--batch-size", "16"]
    words += ["--checkpoint-seconds", "0", "--num-workers", "0", *more]
    if not within:
        return launch(*words, **settings)
    command = [*within, sys.executable, CODE / words[0], *words[1:]]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process):
    """Wait for a process; return (status, stdout, stderr)."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def finished(process):
    status, out, err = end(process)
    assert status == 0, (out, err)


def records(results):
    """Return {file: record, without its times} of a results folder."""
    found = {}
    for path in sorted(Path(results).glob("*/*.json")):
        record = json.loads(path.read_text())
        record["provenance"] = {key: value for key, value in record["provenance"].items() if key not in TIMES}
        found[str(path.relative_to(results))] = record
    return found


@pytest.fixture(scope="module")
def undisturbed(drawn, tmp_path_factory):
    """The records of a run that nobody disturbs, and how long it takes in seconds."""
    results = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    finished(start(ALL, drawn, results))
    found = records(results)
    assert len(found) == 6
    return found, time.monotonic() - started


def test_kills_at_random_moments_lose_nothing(drawn, tmp_path, undisturbed):
    dice, (expected, seconds) = random.Random(SEED), undisturbed
    killed, anew = 0, True
    while killed < KILLS:
        process = start(ALL, drawn, tmp_path)
        moment = dice.uniform(0.2, 1) * seconds
        time.sleep(moment)
        if process.poll() is None:
            killed += 1
        elif anew:
            seconds = moment  # the machine was busier when the undisturbed run was timed
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL)
        anew = len(records(tmp_path)) == len(expected)
        if anew:
            assert records(tmp_path) == expected
            tmp_path = tmp_path.parent / f"{tmp_path.name}-"
    finished(start(ALL, drawn, tmp_path))
    assert records(tmp_path) == expected
    assert not list(tmp_path.rglob("*.parts"))


def test_two_runs_share_a_results_folder(drawn, tmp_path, undisturbed):
    for process in [start(ALL, drawn, tmp_path) for _ in range(2)]:
        finished(process)
    assert records(tmp_path) == undisturbed[0]


def one(undisturbed):
    return {name: record for name, record in undisturbed[0].items() if name == "calibration_texture/imagenet.json"}


def test_four_runs_share_a_cache(drawn, tmp_path, undisturbed):
    cache = tmp_path / "cache"
    runs = [start(ONE, drawn, tmp_path / str(number), "--cache", cache) for number in range(4)]
    for number, process in enumerate(runs):
        finished(process)
        assert records(tmp_path / str(number)) == one(undisturbed)


# What the operating system refuses ------------------------------------------------------------------------------------


def one_line(process, status, *words):
    """Whether a run ends with a status and one line that says why, and no more than that."""
    found, _, err = end(process)
    lines = [line for line in err.splitlines() if not line.startswith(("loading ", "warning: "))]
    assert found == status and len(lines) == 1 and lines[0].startswith("error: "), err
    assert all(word in lines[0] for word in words), lines
    return lines[0]


def test_a_full_disk_ends_the_run_in_one_line_and_the_repeat_resumes(drawn, tmp_path, undisturbed):
    one_line(start(ONE, drawn, tmp_path, limit=1000), 1, "File too large", "is kept")
    assert not list(tmp_path.rglob("*.tmp"))
    finished(start(ONE, drawn, tmp_path))
    assert records(tmp_path) == one(undisturbed)


def test_a_full_disk_ends_the_caching_and_not_the_run(drawn, tmp_path, undisturbed):
    status, _, err = end(start(ONE, drawn, tmp_path / "results", "--cache", tmp_path / "cache", limit=4_000_000))
    assert status == 0 and "no longer kept" in err
    assert records(tmp_path / "results") == one(undisturbed)


def shared_memory_of(size, drawn, results, *more):
    """Run where /dev/shm has so much room, as in a container; return (status, stdout, stderr)."""
    inside = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*inside, "mount", "-t", "tmpfs", "none", "/dev/shm"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of his own")
    mounted = [*inside, "sh", "-c", f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"', "sh"]
    return end(start(ONE, drawn, results, *more, within=mounted))


def test_a_containers_little_shared_memory_is_enough(drawn, tmp_path, undisturbed):
    # a batch of 16 images has 2.4 MB, and four of them are on their way
    status, _, err = shared_memory_of("256k", drawn, tmp_path, "--num-workers", "2")
    assert status == 0, err
    assert records(tmp_path) == one(undisturbed)


def test_no_shared_memory_at_all_is_one_line_and_no_processes_need_none(drawn, tmp_path, undisturbed):
    status, _, err = shared_memory_of("4k", drawn, tmp_path, "--num-workers", "2")
    assert status == 2 and "/dev/shm" in err and "--num-workers 0" in err and "Traceback" not in err
    status, _, err = shared_memory_of("4k", drawn, tmp_path, "--num-workers", "0")
    assert status == 0, err
    assert records(tmp_path) == one(undisturbed)


def test_an_unreadable_image_in_a_decoding_process_is_one_line(drawn, tmp_path):
    source = next((drawn / "imagenet" / "val").iterdir())
    for folder in (drawn / "imagenet" / "val").iterdir():
        (tmp_path / "data" / "val" / folder.name).mkdir(parents=True)
        for path in folder.iterdir():
            (tmp_path / "data" / "val" / folder.name / path.name).symlink_to(path)
    (tmp_path / "data" / "image-set.json").symlink_to(drawn / "imagenet" / "image-set.json")
    bad = next((tmp_path / "data" / "val" / source.name).iterdir())
    bad.unlink()
    bad.write_bytes(b"\xff\xd8\xff")
    words = "--imagenet", tmp_path / "data", "--num-workers", "1", "--allow-partial"
    one_line(start(ONE, drawn, tmp_path / "results", *words), 2, str(bad), "--skip-unreadable")


def test_a_full_standard_output_is_one_line(drawn, tmp_path):
    full = "/dev/full"
    one_line(start(ONE, drawn, tmp_path, stdout=full), 1, "No space left")
    assert len(records(tmp_path)) == 1  # what was measured is kept
    assert end(start(ONE, drawn, tmp_path, stderr=full))[0] == 0  # what cannot be said does not end a run
    one_line(start(("eval_imagenet.py", "--help"), drawn, tmp_path, stdout=full), 1, "No space left")


def test_a_deleted_working_directory_is_one_line(tmp_path):
    command = f"cd {tmp_path} && rmdir {tmp_path} && exec {sys.executable} {CODE / ONE[0]} --help"
    process = subprocess.Popen(["bash", "-c", command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    one_line(process, 1, "working directory has been deleted")


ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []  # root may read all


@pytest.mark.skipif(bool(ANYBODY) and not shutil.which("setpriv"), reason="root reads everything, and no setpriv here")
def test_missing_permissions_are_one_line(tmp_path):
    folder, results = tmp_path / "set" / "val" / "n01440764", tmp_path / "results"
    folder.mkdir(parents=True)
    results.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    for closed, mode in ((folder, 0o000), (results, 0o555)):
        closed.chmod(mode)
        command = [*ANYBODY, sys.executable, CODE / ONE[0], *ONE[1:], "--imagenet", folder.parents[1], "--results"]
        process = subprocess.Popen(
            [*command, results, "--allow-partial"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        one_line(process, 1, "Permission denied", str(closed))
        closed.chmod(0o755)


def test_closed_standard_streams_end_no_run(drawn, tmp_path, undisturbed):
    command = (
        f"exec {sys.executable} {CODE / ONE[0]} --model {ONE[2]} --data {drawn} --results {tmp_path} {{}} >&- 2>&- <&-"
    )
    finished(subprocess.Popen(["bash", "-c", command.format("--wandb disabled --num-workers 0 --batch-size 16")]))
    assert records(tmp_path) == one(undisturbed)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/results", "x" * 300])
def test_unwritable_results_are_reported_before_anything_is_measured(drawn, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    one_line(start(ONE, drawn, tmp_path / place), 1)
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"RANK": "x"},
        {"RANK": "3"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "x"},
    ],
)
def test_odd_ranks_are_one_line(drawn, tmp_path, environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    one_line(start(ONE, drawn, tmp_path, "--split", "images"), 2)

"""What is submitted to Slurm: the batch file that submitit writes, with a stand-in for the command `sbatch`."""

import argparse
import os
import sys

import pytest

from imagenet_biases.base.errors import UserError
from imagenet_biases.engine import slurm

SBATCH = """#!{python}
import pathlib, shutil, sys
shutil.copy(sys.argv[-1], pathlib.Path({folder!r}) / "batch.sh")
print("Submitted batch job 17")
"""


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """A function that submits with the given words and returns the lines of the batch file."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "srun"):
        (commands / name).write_text(SBATCH.format(python=sys.executable, folder=str(tmp_path)))
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    def submit(*words):
        parser = argparse.ArgumentParser()
        slurm.add_flags(parser)
        parser.add_argument("--num-workers", type=int)
        args = parser.parse_args(["--submit", "slurm", *words])
        args.shard, args.results = None, str(tmp_path / "results")
        assert slurm.submit("eval_all.py", [], args) == 0
        return (tmp_path / "batch.sh").read_text().splitlines()

    return submit


def flag(lines, name):
    """Return the value of an #SBATCH flag, None without one."""
    values = [line.partition("=")[2] for line in lines if line.startswith(f"#SBATCH --{name}=")]
    return values[0].strip("'\"") if values else None


def test_commands_before_the_job_are_lines_of_the_batch_file(submitted):
    lines = submitted("--slurm", "setup=module load cuda", "--slurm", "setup=source env/bin/activate")
    start = lines.index("# setup")
    assert lines[start + 1 : start + 3] == ["module load cuda", "source env/bin/activate"]
    lines = submitted("--slurm", 'setup=["export A=1", "ulimit -c 0"]', "--slurm", "teardown=echo over")
    start = lines.index("# setup")
    assert lines[start + 1 : start + 3] == ["export A=1", "ulimit -c 0"]
    assert lines[lines.index("# teardown") + 1] == "echo over"


def test_numbers_texts_and_objects_arrive_as_what_they_are(submitted):
    lines = submitted(
        *("--slurm", "mem_gb=64", "--slurm", "account=0123", "--slurm", "time=90", "--slurm", "exclusive=true"),
        *("--slurm", 'additional_parameters={"mail-type": "END"}', "--slurm", "array_parallelism=2", "--jobs", "3"),
    )
    assert flag(lines, "mem") == "64GB" and flag(lines, "account") == "0123" and flag(lines, "time") == "90"
    assert "#SBATCH --exclusive" in lines and flag(lines, "mail-type") == "END" and flag(lines, "array") == "0-2%2"


def test_a_job_has_cores_for_decoding(submitted):
    assert flag(submitted(), "cpus-per-task") == "8"
    assert flag(submitted("--gpus", "4"), "cpus-per-task") == "32"
    assert flag(submitted("--num-workers", "15"), "cpus-per-task") == "16"
    assert flag(submitted("--gpus", "0", "--slurm", "cpus_per_task=5"), "cpus-per-task") == "5"


@pytest.mark.parametrize("word", ["setup", "=x", "setup=[module load", "additional_parameters={a}", "nonsense=1"])
def test_a_setting_that_is_none_gets_one_line(submitted, word):
    with pytest.raises(UserError, match=r"^--s") as caught:
        submitted("--slurm", word)
    assert "\n" not in str(caught.value)


def test_values_are_read_as_they_are_written():
    words = ["a=1", "b=1.5", "c=3.10", "d=007", "e=1e3", "f=x=y", "g=", "h=null", "slurm_i=2", "mail-user=me"]
    assert slurm.settings_of(words) == {
        **{"a": 1, "b": 1.5, "c": "3.10", "d": "007", "e": "1e3", "f": "x=y", "g": "", "h": "null", "i": 2},
        "mail_user": "me",
    }

"""Jobs of a cluster, each of which measures one shard. The engine is submitit: Slurm, or a stand-in on this machine."""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagenet_biases.base.errors import UserError


def add_flags(group: Any) -> None:
    """Add the flags of a submission to an argument parser or a group of one."""
    group.add_argument("--submit", choices=["slurm", "local"], help="run as jobs (needs: pip install submitit)")
    group.add_argument("--jobs", type=int, default=1, help="how many jobs share the work (default: 1)")
    group.add_argument("--gpus", type=int, default=1, help="per job (default: 1; not used by local)")
    group.add_argument("--time", type=float, default=24.0, metavar="HOURS", help="per job (default: 24)")
    group.add_argument("--partition", help="of the cluster")
    group.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further settings for Slurm, e.g. account=vision, mem_gb=64, setup='module load cuda'; lists and objects "
        "in JSON",
    )


LISTS = ("setup", "teardown", "srun_args")  # of submitit: one command each; a repeated setting adds to them
CORES = 8  # per GPU, for the processes that decode images


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """Return {name: value} of NAME=VALUE words, each value as the number, text, list or object that submitit takes.

    Raises:
        UserError: a word is not of this form.
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_").removeprefix("slurm_")
        if not (name and equals):
            raise UserError(f"--slurm {word}: give NAME=VALUE, e.g. account=vision or setup='module load cuda'")
        value = _value(name, text)
        if name in LISTS:
            value = [*settings.get(name, []), *(value if isinstance(value, list) else [text])]
        settings[name] = value
    return settings


def _value(name: str, text: str) -> Any:
    """Return what a text stands for; an account 0123 or a version 3.10 stays a text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = json.loads(text)
    except ValueError:
        if text.startswith(("[", "{")) and name in (*LISTS, "additional_parameters"):
            raise UserError(f"--slurm {name}={text}: this is not a list or an object in JSON") from None
        return text
    return value if isinstance(value, list | dict) or (isinstance(value, int | float) and str(value) == text) else text


class ShardJob:
    """What a job does: a command in a process of its own, which saves when the cluster wants the machine back."""

    def __init__(self, command: Sequence[str], folder: str) -> None:
        self.command, self.folder = command, folder
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=self.folder)
        if status := self.process.wait():
            raise SystemExit(status)

    def checkpoint(self) -> Any:
        """Stop the process, and have the job resume later: submitit calls this before its time is over."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        return DelayedSubmission(ShardJob(self.command, self.folder))


def command(script: str | Path, arguments: Sequence[str], number: int, args: argparse.Namespace) -> list[str]:
    """Return the command of the job with this number, from 1."""
    submission = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(submission)
    _, measuring = submission.parse_known_args(list(map(str, arguments)))
    torchrun: list[str] = []
    if args.gpus > 1 and args.submit != "local":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.gpus)]
    return [sys.executable, *torchrun, str(script), *measuring, "--shard", f"{number}/{args.jobs}"]


def submit(script: str | Path, arguments: Sequence[str], args: argparse.Namespace) -> int:
    """Submit a script with its arguments as `args.jobs` jobs; return the exit status.

    Jobs of a cluster run by themselves; those of this machine are waited for.

    Raises:
        UserError: what submitit lacks or refuses.
    """
    try:
        import cloudpickle
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise UserError("--submit needs a package that is not installed: pip install submitit") from None
    if min(args.jobs, args.gpus + 1, args.time) < 0.01:
        raise UserError("--jobs, --gpus and --time: give at least 1 job, 0 GPUs and a hundredth of an hour")
    if args.shard:
        raise UserError("--submit gives every job its shard: omit --shard")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a job does not know where this package is
    logs = Path(args.results).absolute() / ".jobs"
    settings = settings_of(args.slurm)
    if args.partition:
        settings["partition"] = args.partition
    try:
        executor = submitit.AutoExecutor(logs, cluster=args.submit)
        executor.update_parameters(
            name="imagenet_biases", timeout_min=max(1, round(60 * args.time)), tasks_per_node=1, nodes=1,
            gpus_per_node=args.gpus if args.submit != "local" else None,
            cpus_per_task=_cores(args) if args.submit != "local" else None,
            **{f"slurm_{name}": value for name, value in settings.items()},
        )  # fmt: skip
        numbers = range(1, args.jobs + 1)
        shards = [ShardJob(command(script, arguments, number, args), str(Path.cwd())) for number in numbers]
        with executor.batch():  # on Slurm, an array
            jobs = list(map(executor.submit, shards))
    except (ValueError, RuntimeError, AssertionError, NameError, OSError, FailedJobError) as error:
        raise UserError(f"--submit {args.submit}: {str(error).strip().splitlines()[0]}") from None
    print(f"submitted {len(jobs)} jobs: {jobs[0].job_id} ... {jobs[-1].job_id}; their output is in {logs}", flush=True)
    if args.submit == "slurm":
        print("Whichever job finishes a record last writes it; the same command submits again what is missing.")
        return 0
    return int(max(map(_failed, jobs)))


def _cores(args: argparse.Namespace) -> int:
    """Return how many cores a job needs: for its decoding processes and one more, per GPU."""
    workers = getattr(args, "num_workers", None)
    return max(1, args.gpus) * (CORES if workers is None else max(0, workers) + 1)


def _failed(job: Any) -> bool:
    """Wait for a job; report whether it has failed."""
    failed = job.exception() is not None
    if failed:
        print(f"error: job {job.job_id} failed, see {job.paths.stderr}", file=sys.stderr)
    return failed

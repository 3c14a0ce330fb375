"""Jobs of a cluster, each of which measures one shard. The engine is submitit: Slurm, or a stand-in on this machine."""

import signal
import subprocess
import sys
from pathlib import Path

from imagenet_biases.base.errors import UserError


def add_flags(group):
    """Add the flags of a submission to an argument parser or a group of one."""
    group.add_argument("--submit", metavar="CLUSTER", help="slurm, or local: run as jobs (needs: pip install submitit)")
    group.add_argument("--jobs", type=int, default=1, help="how many jobs share the work (default: 1)")
    group.add_argument("--gpus", type=int, default=1, help="of each job (default: 1; not used by local)")
    group.add_argument("--time", type=float, default=24.0, metavar="HOURS", help="of each job (default: 24)")
    group.add_argument("--partition", help="of the cluster")
    group.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further words for Slurm, e.g. account=vision",
    )


class Share:
    """What a job does: a command as a process of its own, which saves when the cluster wants the machine back."""

    def __init__(self, command, folder):
        self.command, self.folder, self.process = command, folder, None

    def __call__(self):
        self.process = subprocess.Popen(self.command, cwd=self.folder)
        if status := self.process.wait():
            raise SystemExit(status)

    def checkpoint(self):
        """Stop the process, and have the job go on later: submitit calls this before the time is over."""
        from submitit.helpers import DelayedSubmission

        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        return DelayedSubmission(Share(self.command, self.folder))


def command(script, arguments, number, args):
    """Return the command of the job of a number, from 1."""
    import argparse

    ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(ours)
    _, theirs = ours.parse_known_args(list(map(str, arguments)))
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.gpus)]
    several = ranks if args.gpus > 1 and args.submit != "local" else []
    return [sys.executable, *several, str(script), *theirs, "--shard", f"{number}/{args.jobs}"]


def submit(script, arguments, args):
    """Submit a script with its arguments as `args.jobs` jobs; return the exit status.

    Jobs of a cluster go on by themselves; those of this machine are waited for. Raises UserError for what the engine
    lacks or refuses.
    """
    try:
        import cloudpickle
        import submitit
    except ImportError:
        raise UserError("--submit needs a package that is not installed: pip install submitit") from None
    if min(args.jobs, args.gpus + 1, args.time) < 0.01:
        raise UserError("--jobs, --gpus and --time: give at least 1 job, 0 GPUs and a hundredth of an hour")
    if args.shard:
        raise UserError("--submit gives every job its shard: leave --shard out")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a job knows nothing of this package's place
    logs = Path(args.results).absolute() / ".jobs"
    words = dict(word.partition("=")[::2] for word in args.slurm) | (
        {"partition": args.partition} if args.partition else {}
    )
    try:
        executor = submitit.AutoExecutor(logs, cluster=args.submit)
        executor.update_parameters(
            name="imagenet_biases", timeout_min=max(1, round(60 * args.time)), tasks_per_node=1, nodes=1,
            gpus_per_node=args.gpus if args.submit != "local" else None,
            **{f"slurm_{name}": value for name, value in words.items()},
        )  # fmt: skip
        shares = [Share(command(script, arguments, n, args), str(Path.cwd())) for n in range(1, args.jobs + 1)]
        with executor.batch():  # on Slurm, an array
            jobs = [executor.submit(share) for share in shares]
    except (ValueError, RuntimeError, AssertionError, NameError, OSError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"--submit {args.submit}: {str(error).strip().splitlines()[0]}") from None
    print(f"submitted {len(jobs)} jobs: {jobs[0].job_id} ... {jobs[-1].job_id}; what they say is in {logs}", flush=True)
    if args.submit == "slurm":
        print("Each record is written by the last job that it needs; the same command submits what is missing again.")
        return 0
    failed = [job for job in jobs if job.exception() is not None]
    for job in failed:
        print(f"error: job {job.job_id} failed, see {job.paths.stderr}", file=sys.stderr)
    return 1 if failed else 0

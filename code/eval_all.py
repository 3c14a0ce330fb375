"""The whole study, or any part of it, in as few passes over the images as possible.

Run:   python code/eval_all.py --model all --data ROOT        everything whose images are found under ROOT
       python code/eval_all.py --model resnet50.a1_in1k --imagenet DIR --benchmarks imagenet,imagenet_real
       python code/eval_all.py                                the demo: both calibration networks on a drawn image set
The plan comes first (--dry-run stops there). Images that several benchmarks show are decoded once; what is measured
already is not measured again.
"""

import importlib
from pathlib import Path

from imagenet_biases.cli import make_parser
from imagenet_biases.errors import UserError, exit_on_user_error
from imagenet_biases.networks.registry import resolve
from imagenet_biases.run import make_jobs, run_jobs, table
from imagenet_biases.synthetic.calibration import draw

HERE = Path(__file__).resolve().parent
DEMO_ATTACKS = ["pgd", "fgsm"]  # the well-tuned attack would take most of the demo's time


def benchmarks():
    """Return all benchmarks: every eval_*.py beside this file that declares one."""
    modules = [importlib.import_module(path.stem) for path in sorted(HERE.glob("eval_*.py")) if path.stem != "eval_all"]
    return {module.BENCHMARK.name: module.BENCHMARK for module in modules}


@exit_on_user_error
def main():
    known = benchmarks()
    parser = make_parser(__doc__)
    parser.add_argument("--benchmarks", help=f"comma-separated, of: {', '.join(known)} (default: all)")
    for benchmark in known.values():
        if benchmark.options:
            benchmark.options(parser)
    args = parser.parse_args()
    chosen = args.benchmarks.split(",") if args.benchmarks else list(known)
    strange = [name for name in chosen if name not in known]
    if strange:
        raise UserError(f"--benchmarks: there is no {', '.join(strange)}; there are {', '.join(known)}")
    folders = [getattr(args, name) for name in vars(args) if name == "data" or name.startswith("imagenet")]
    demo = not args.model and not any(folders) and not args.model_vs_human
    if demo:
        args.data, args.model, args.attack = str(Path(args.results) / "drawn"), "calibration", DEMO_ATTACKS
        print(f"Demo: no network and no images given. Drawing a small image set into {args.data} ...", flush=True)
        draw(args.data)
    if not args.model:
        raise UserError("--model is missing: name networks or a group, e.g. --model all")
    names = resolve(args.model)
    jobs, missing = make_jobs([known[name] for name in chosen], args)
    if not jobs:
        raise UserError("no image set was given for any benchmark; " + "; ".join(missing))
    records = run_jobs(jobs, names, args, missing=missing)
    if not records:
        return
    headline = {name for job in jobs for name in job.benchmark.headline}
    headline |= {
        name
        for job in jobs
        if not job.benchmark.headline
        for r in records
        for name in r["metrics"]
        if r["benchmark"] == job.benchmark.name
    }
    print(table(records, headline))
    print(DEMO_END if demo else "\nNext: python code/merge_results.py puts the records into raw-data/benchmark.csv.")


DEMO_END = """
How to read this. Both networks were made by train_calibration.py and know 16 drawn categories. One was taught to go by
the silhouette of a thing, the other by the texture of its surface. So the instrument must find, and finds:
  shape-bias            the share of shape decisions where shape and texture disagree: near 1 for the silhouette
                        network, near 0 for the texture network;
  criticalband/cf_norm  the spatial frequency that a network needs, in cycles per image: silhouettes are coarse (below
                        20), the textures were drawn at 40 to 79;
  bandpass/LPP, HPP     what is left of the accuracy with low (high) frequencies alone: much LPP for silhouettes, more
                        HPP for textures;
  top1_acc/...          per cent of images that are recognised; chance is 6.25. In brackets: 95 % intervals.
The drawn images stand for the real ones: no number here says anything about ImageNet.

Next, with real data:  python code/eval_imagenet.py --model tv_resnet50 --imagenet DIR
Everything at once:    python code/eval_all.py --model all --data ROOT --dry-run"""

if __name__ == "__main__":
    main()

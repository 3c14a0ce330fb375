"""Merge what was measured into raw-data/measured.csv, or compare it with the published figures.

Reads every record in results/NETWORK/*.json, and with the options below those that W&B runs carry. Only metrics of
whole image sets or of samples, one preprocessing, one precision and no front end go into a row; what is left out is
listed with the reason. A network's measured row is replaced as a whole, rows of other networks stay. Several seeds of
one benchmark become their mean; of repetitions the one with the larger share of the images counts, then the newest.
measured_uncertainty.csv holds intervals, shares and the spread over seeds, measured_layers.csv the values by layer.
Running it twice changes nothing; raw-data/benchmark.csv, the published rows, never changes.

  python code/merge_results.py                                       # results/ -> raw-data/measured*.csv
  python code/merge_results.py --out DIR                             # ... -> DIR/measured*.csv
  python code/merge_results.py --compare                             # measured against published and witnesses
  python code/merge_results.py --wandb-project ENTITY/imagenet_c     # one project; ENTITY alone: all its projects
  python code/merge_results.py --wandb-offline results/wandb         # runs that W&B kept offline
"""

from collections.abc import Sequence
from pathlib import Path

from imagenet_biases.base.errors import Parser, UserError, exit_on_user_error
from imagenet_biases.results.merge import (
    compare,
    local_records,
    merge,
    offline_records,
    online_records,
    select,
    source_name,
    update,
)
from imagenet_biases.results.table import MEASURED, PUBLISHED, read_table
from imagenet_biases.study import AS_IN_STUDY


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; merge or compare."""
    parser = Parser(__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")
    parser.add_argument("--wandb-project", action="append", default=[], metavar="ENTITY[/PROJECT]")
    parser.add_argument("--wandb-offline", type=Path, action="append", default=[], metavar="DIR", help="local runs")
    parser.add_argument("--preprocessing", "--view", default="study", help="merge this preprocessing (default: study)")
    parser.add_argument(
        "--precision", default=AS_IN_STUDY["precision"], help="merge this precision (default: %(default)s)"
    )
    parser.add_argument("--frontend", default="", help="merge what was measured behind this front end (default: none)")
    parser.add_argument("--out", type=Path, default=MEASURED.parent, help="folder to write to (default: raw-data)")
    parser.add_argument("--rebuild", action="store_true", help="drop measured rows that are not found again")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="print measured against published and witnesses; write nothing",
    )
    args = parser.parse_args(arguments)

    records = local_records(args.results) if args.results.is_dir() else []
    for folder in args.wandb_offline:
        records += offline_records(folder)
    for path in args.wandb_project:
        records += online_records(path)
    if not records:
        raise UserError(f"no records in {args.results}: measure first, for example with `python code/eval_all.py`")
    settings = args.preprocessing, args.precision, args.frontend
    chosen, notes = select(records, *settings)
    table = read_table(PUBLISHED)
    published = table[table["source"] == "published"]
    rows, uncertainty, layers, conflicts = merge(chosen, source_name(*settings), published)
    if args.compare:
        lines = compare(rows, uncertainty, published, chosen)
    else:
        lines = update(args.out / MEASURED.name, rows, uncertainty, layers, published, args.rebuild)
    print(*notes, *conflicts, *lines, sep="\n")


if __name__ == "__main__":
    main()

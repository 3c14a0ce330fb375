"""Make all figures of the study from raw-data/, and the statistics behind them.

Writes figures/NAME.pdf and figures/NAME.png (what each shows: imagenet_biases/analysis/plotting.py) and
figures/statistics.csv (columns and methods: imagenet_biases/analysis/statistics.py), from the published rows; networks
that were measured here are added to the figures.

  python code/plot_study.py
  python code/plot_study.py --power           # 1,000 simulated studies of each effect: what 48 networks can tell
  python code/plot_study.py --power 40        # fewer of them
  python code/plot_study.py --family          # families of adversarially trained networks besides: families.pdf, .csv

--power takes an hour or more on two cores and makes figures/power.csv (columns: imagenet_biases/analysis/power.py) and
power.pdf/.png besides.
"""

import os
from pathlib import Path

from imagenet_biases.analysis.families import family_curves, family_rows, read_likeness
from imagenet_biases.analysis.language import language_models, language_rows
from imagenet_biases.analysis.plotting import FIGURES, figures, power_curves, save
from imagenet_biases.analysis.power import power
from imagenet_biases.analysis.power import write as write_power
from imagenet_biases.analysis.statistics import FEWEST, shared
from imagenet_biases.errors import Parser, UserError, exit_on_user_error
from imagenet_biases.results.table import read_beside, read_table, study, tables, write_frame


@exit_on_user_error
def main(arguments=None):
    """Parse the command line; write the figures."""
    parser = Parser(__doc__)
    parser.add_argument("--table", type=Path, nargs="+", help="default: raw-data/benchmark.csv and measured.csv")
    parser.add_argument("--out", type=Path, default=FIGURES, help="default: figures/")
    parser.add_argument("--source", choices=["published", "measured"], default="published", help="of the statistics")
    parser.add_argument(
        "--power", type=int, nargs="?", const=1000, metavar="STUDIES", help="simulate that many studies"
    )
    parser.add_argument("--family", action="store_true", help="each measure against eps and clean accuracy")
    args = parser.parse_args(arguments)
    if args.power is not None and args.power < 2:
        raise UserError(f"--power {args.power}: at least 2 studies are needed")

    files = args.table or tables()
    table = read_table(files)
    networks = study(table, args.source)
    if len(networks) < FEWEST:
        raise UserError(f"{files[0]} has {len(networks)} {args.source} networks of the study, too few for statistics")
    found = shared(networks, args.out)
    for name, figure in figures(table, found, read_beside(files, "layers")):
        save(figure, args.out, name)
        print(args.out / f"{name}.pdf")
    save(language_models(language_rows(table)), args.out, "language_models")
    print(args.out / "language_models.pdf")
    print(args.out / "statistics.csv")
    if args.family:
        rows = family_rows(table, read_likeness())
        write_frame(rows, args.out / "families.csv")
        save(family_curves(rows), args.out, "families")
        print(args.out / "families.csv")
    if args.power:
        simulated = power(networks, args.power, workers=os.cpu_count(), progress=True)
        write_power(simulated, args.out / "power.csv")
        save(power_curves(simulated), args.out, "power")
        print(args.out / "power.csv")


if __name__ == "__main__":
    main()

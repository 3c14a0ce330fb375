"""Make all figures of the study from raw-data/, and the statistics behind them.

Writes figures/NAME.pdf and figures/NAME.png (what each shows: imagenet_biases/analysis/plotting.py) and
figures/statistics.csv (columns and methods: imagenet_biases/analysis/statistics.py), from the published rows, and
figures/witnesses.csv (published against other laboratories: imagenet_biases/analysis/witnesses.py); networks that were
measured here are added to the figures, with their own colours and names.

  python code/plot_study.py
  python code/plot_study.py --highlight resnet50_prime,my_network       # the figures are about these
  python code/plot_study.py --trials results MODEL-VS-HUMAN/raw-data    # people beside what networks answered
  python code/plot_study.py --category dial --source measured --table raw-data/dial.csv   # does it find a known bias?
  python code/plot_study.py --power           # 1,000 simulated studies of each effect: what 48 networks can reveal
  python code/plot_study.py --power 40        # fewer of them
  python code/plot_study.py --source measured # statistics of the networks measured here; where values rest on samples,
                                              # the column `corrected` is what all images would give (from --results)
  python code/plot_study.py --reliability     # of the measures, from the records of networks measured here
  python code/plot_study.py --interventions   # what front ends (--frontend) did to biases and scores
  python code/plot_study.py --interventions --treated a0,a1,a2 --untreated b0,b1,b2    # networks trained in two ways
  python code/plot_study.py --family          # families of adversarially trained networks besides: families.pdf, .csv

--reliability and --interventions make figures/NAME.csv (columns: imagenet_biases/analysis/reliability.py and
interventions.py) and NAME.pdf/.png from --results and nothing else. --power takes an hour or more on two cores and
makes figures/power.csv (columns: imagenet_biases/analysis/power.py) and power.pdf/.png besides.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from imagenet_biases.analysis import interventions, reliability
from imagenet_biases.analysis.families import family_curves, family_rows, read_likeness
from imagenet_biases.analysis.language import language_models, language_rows
from imagenet_biases.analysis.plotting import (
    FIGURES,
    figures,
    highlights,
    intervention_chart,
    listed,
    power_curves,
    reliability_chart,
    save,
)
from imagenet_biases.analysis.plotting_people import people_figures
from imagenet_biases.analysis.power import power
from imagenet_biases.analysis.power import write as write_power
from imagenet_biases.analysis.statistics import FEWEST, WITHIN, shared, statistics, write
from imagenet_biases.analysis.witnesses import agreement
from imagenet_biases.base.errors import Parser, UserError, exit_on_user_error
from imagenet_biases.base.files import atomic
from imagenet_biases.humans.agreement import TRIALS_HELP, read_observers, results_folder
from imagenet_biases.results.merge import local_records
from imagenet_biases.results.table import RAW_DATA, read_beside, read_table, study, tables, write_frame


def of_category(table: pd.DataFrame, args: argparse.Namespace) -> None:
    """Write the statistics of the networks of one category; related networks are those of one lineage."""
    networks = study(table, args.source, [args.category])
    if len(networks) < FEWEST:
        raise UserError(f"there are {len(networks)} {args.source} networks of category {args.category}, too few")
    associations = statistics(networks.assign(category=networks["lineage"]))
    path = args.out / f"statistics_{args.category}.csv"
    write(associations, path)
    within = associations[(associations["method"] == WITHIN) & (associations["excluded"] == "none")]
    within = within[within["p_holm"] < 0.05]
    print(within[["bias", "score", "estimate", "low", "high", "p_holm"]].to_string(index=False))
    print(path)


def from_records(args: argparse.Namespace) -> None:
    """Write the tables and figures of what was measured here."""
    if not args.results.is_dir():
        raise UserError(f"there is no folder {args.results}: measure first, or give --results DIR")
    records, tables_and_charts = local_records(args.results), {}
    if args.reliability:
        tables_and_charts["reliability"] = reliability.reliability(records), reliability_chart
    if args.interventions and args.treated:
        names = (args.treated.split(","), args.untreated.split(","))
        table = interventions.trainings(records, *names, f"{args.treated} against {args.untreated}")
        tables_and_charts["interventions"] = table, intervention_chart
    elif args.interventions:
        tables_and_charts["interventions"] = interventions.frontends(records), intervention_chart
    for name, (table, chart) in tables_and_charts.items():
        with atomic(args.out / f"{name}.csv", "w") as file:
            table.to_csv(file, index=False, lineterminator="\n", float_format="%.6g")
        save(chart(table), args.out, name)
        print(table.to_string(index=False, float_format="{:.3f}".format))
        print(args.out / f"{name}.csv")


def corrections_of(networks: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame | None:
    """Return what corrects the correlations of measured networks for samples; None for published ones."""
    if args.source != "measured" or not args.results.is_dir():
        return None
    return reliability.sampling_corrections(local_records(args.results), set(networks["model"]))


def note_samples(uncertainty: pd.DataFrame, corrections: pd.DataFrame | None, source: str) -> None:
    """Print that statistics of measured networks rest on samples, and what corrects for it."""
    partly = uncertainty.loc[uncertainty["share"] < 1, "model"].nunique()
    if source == "measured" and partly:
        remedy = "give --results, whose records correct the correlations for that"
        if corrections is not None and len(corrections):
            remedy = "the column `corrected` of statistics.csv has the correlations that all images would give"
        print(f"note: {partly} networks have values on samples: {remedy}")


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; write the figures."""
    parser = Parser(__doc__)
    parser.add_argument("--table", type=Path, nargs="+", help="default: raw-data/benchmark.csv and measured.csv")
    parser.add_argument("--out", type=Path, default=FIGURES, help="default: figures/")
    parser.add_argument("--source", choices=["published", "measured"], default="published", help="of the statistics")
    parser.add_argument(
        "--power", type=int, nargs="?", const=1000, metavar="STUDIES", help="simulate that many studies"
    )
    parser.add_argument("--category", metavar="NAME", help="statistics of one category alone, within its lineages")
    parser.add_argument("--highlight", metavar="NET,...", help="networks to point out (default: those measured here)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the records (default: results)")
    parser.add_argument("--reliability", action="store_true", help="of the measures, from records")
    parser.add_argument("--interventions", action="store_true", help="score differences against bias differences")
    parser.add_argument("--treated", metavar="NET,...", help="with --interventions: networks trained in one way")
    parser.add_argument("--untreated", metavar="NET,...", help="and networks trained in the other")
    parser.add_argument("--trials", nargs="+", metavar="DIR", help=TRIALS_HELP)
    parser.add_argument("--family", action="store_true", help="each measure against eps and clean accuracy")
    args = parser.parse_args(arguments)
    if bool(args.treated) != bool(args.untreated) or (args.treated and not args.interventions):
        raise UserError("--treated and --untreated go together, and with --interventions")
    if args.reliability or args.interventions:
        from_records(args)
        return
    if args.power is not None and args.power < 2:
        raise UserError(f"--power {args.power}: at least 2 studies are needed")

    files = args.table or tables()
    table = read_table(files)
    networks = study(table, args.source)
    if args.category:
        of_category(table, args)
        return
    if len(networks) < FEWEST:
        raise UserError(f"{files[0]} has {len(networks)} {args.source} networks of the study, too few for statistics")
    names = listed(args.highlight)
    uncertainty = read_beside(files, "uncertainty")
    corrections = corrections_of(networks, args)
    note_samples(uncertainty, corrections, args.source)
    chosen = highlights(table, names)  # a mistyped name is reported before anything is computed
    trials = read_observers(args.trials or results_folder())
    associations = shared(networks, args.out, corrections)
    drawings = figures(table, associations, read_beside(files, "layers"), names, uncertainty)
    for name, figure in [*drawings, *people_figures(table, trials, chosen)]:
        save(figure, args.out, name)
        print(args.out / f"{name}.pdf")
    save(language_models(language_rows(table)), args.out, "language_models")
    print(args.out / "language_models.pdf")
    print(args.out / "statistics.csv")
    write_frame(agreement(table), args.out / "witnesses.csv")
    print(args.out / "witnesses.csv")
    if args.family:
        rows = family_rows(table, read_likeness())
        write_frame(rows, args.out / "families.csv")
        save(family_curves(rows), args.out, "families")
        print(args.out / "families.csv")
    if args.power:
        simulated = power(networks, args.power, workers=os.cpu_count(), progress=True)
        write_power(simulated, args.out / "power.csv")
        save(power_curves(simulated, pd.read_csv(RAW_DATA / "samples.csv")), args.out, "power")
        print(args.out / "power.csv")


if __name__ == "__main__":
    main()

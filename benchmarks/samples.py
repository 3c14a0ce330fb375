"""What the study would have said from a sample of the images: simulated from the published table.

Run:  python benchmarks/simulations.py sample      five shares, 12 draws each: minutes on one core

Whether a network recognises an image under a condition is drawn from its published accuracy there: a latent difficulty
below a threshold. Of the latent variance, SHARED is an image's for all networks, and of that CONDITIONS for all
conditions made from the same images (clean, filters, attacks; the variants of ImageNet-C and -C-bar show different
images). Image sets that a benchmark shows once are whole, of everything else the first `share` of the images is there.
The difference of an accuracy from the published one has the variance of a sample without replacement.

Writes raw-data/samples.csv, and the sentence on samples and the paragraph on other laboratories (analysis/witnesses.py)
in raw-data/ANSWER.md and in the notebook that shows it:
  share, draws       of the images; how often they were drawn
  change, worst      the largest change of a correlation within categories, of 16 (BIASES x SCORES): median over draws,
                     and the worst draw
  stand              the share of the correlations beyond 0.5 that stay beyond it
  Robustness, ...    how many places among the 48 a network is off, 95 % quantile over networks and draws
"""

import json
import math
import re
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import ndtri

from imagenet_biases.analysis.statistics import rank_correlations
from imagenet_biases.analysis.witnesses import PARAGRAPH, paragraph
from imagenet_biases.base.paths import RAW_DATA, SCRIPTS
from imagenet_biases.results.places import standing
from imagenet_biases.results.table import PUBLISHED, read_table, study, write_frame
from imagenet_biases.study import CONTROL, CORRUPTIONS, MIDDLE_CUTOFFS, SCORES, SEVERITIES

SHARED, CONDITIONS = 0.6, 0.5
SHARES, DRAWS, IMAGES = (0.005, 0.01, 0.02, 0.05, 0.1), 12, 50_000
BIASES = ("shape-bias", "LPP", "HPP", "spectral bias")
PLACES = ("Robustness", "Concepts", "Adversarial", "LPP", "HPP")
STANDS = 0.5
C_BAR = 50  # variants of ImageNet-C-bar, of which the mean is published
VARIANTS = [f"top1_acc/{corruption}_{severity}" for corruption in CORRUPTIONS for severity in SEVERITIES]
FILTERED = [f"metric/bandpass/{kind}/{cutoff}" for kind in ("LFC", "HFC") for cutoff in MIDDLE_CUTOFFS]
ATTACKED = "top1_acc/PGD-40/low"


def sampled(table: pd.DataFrame, share: float, random: np.random.Generator) -> pd.DataFrame:
    """Return a table of published rows as samples of a share of the images would have given it."""
    images, left = round(share * IMAGES), math.sqrt(1 - share)

    def accuracy(percent: pd.Series, difficulty: Float[np.ndarray, " n"] | float = 0.0) -> Float[np.ndarray, " m"]:
        """Return each network's accuracy on a sample; `difficulty`: what the images have in all conditions."""
        common = difficulty if isinstance(difficulty, np.ndarray) else random.standard_normal(images, np.float32)
        of_condition = random.standard_normal(images, np.float32)
        shared = math.sqrt(CONDITIONS) * common + math.sqrt(1 - CONDITIONS) * of_condition
        own = random.standard_normal((len(percent), images), np.float32)
        latent = math.sqrt(SHARED) * shared + math.sqrt(1 - SHARED) * own
        right = latent < ndtri(percent.to_numpy() / 100)[:, None].astype(np.float32)
        return percent + left * (100 * right.mean(1) - percent)

    difficulty = random.standard_normal(images, np.float32)
    clean = accuracy(table[CONTROL], difficulty)
    columns = {ATTACKED: accuracy(table[ATTACKED], difficulty)}
    for name in FILTERED:
        columns[name] = accuracy(table[name] * table[CONTROL], difficulty) / clean
    for name, variants in (
        ("top1_acc/imagenet-c", [table[variant] for variant in VARIANTS]),
        ("top1_acc/imagenet-cbar", [table["top1_acc/imagenet-cbar"]] * C_BAR),
    ):
        off = [accuracy(published) - published for published in variants]
        columns[name] = table[name] + sum(off) / len(off)
    return table.assign(**columns)


def correlations(networks: pd.DataFrame) -> Float[np.ndarray, "4 4"]:
    """Return Spearman's correlations within categories, [BIASES, SCORES]."""
    groups = np.unique(networks["category"], return_inverse=True)[1]
    return rank_correlations(networks[[*BIASES, *SCORES]].to_numpy().T, groups=groups)[:4, 4:]


def places_off(networks: pd.DataFrame, published: pd.DataFrame, name: str) -> list[int]:
    """Return by how many places each network is off among the published values of the others."""
    off = []
    for row, value, truth in zip(published.index, networks[name], published[name], strict=True):
        others = published[name].drop(row)
        ranks = [standing(others, name, number).rank for number in (value, truth)]
        off.append(abs(ranks[0] - ranks[1]))
    return off


def simulate(shares: Sequence[float] = SHARES, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Return the table: one row per share."""
    table = read_table(PUBLISHED)
    published = study(table)
    table = table[table["model"].isin(published["model"]) & (table["source"] == "published")]
    truth, random, rows = correlations(published), np.random.default_rng(seed), []
    strong = np.abs(truth) > STANDS
    for share in shares:
        changes, stand, off = [], [], {name: [] for name in PLACES}
        for _ in range(draws):
            networks = study(sampled(table, share, random))
            estimates = correlations(networks)
            changes.append(np.abs(estimates - truth).max())
            stand.append(((estimates * np.sign(truth)) > STANDS)[strong].mean())
            for name in PLACES:
                off[name] += places_off(networks, published, name)
        row = {"share": share, "draws": draws, "change": np.median(changes), "worst": max(changes)}
        row |= {"stand": np.mean(stand)} | {name: np.quantile(counts, 0.95) for name, counts in off.items()}
        rows.append(row)
    return pd.DataFrame(rows).round(4)


def sentence(table: pd.DataFrame, share: float = 0.05) -> str:
    """Return what the answer says of a study on samples: one item of its list, lines of at most 120 characters."""
    row = table.set_index("share").loc[share]
    places = row[[name for name in PLACES if name != "Concepts"]].astype(int)  # which is whole
    stand = "every correlation" if row["stand"] == 1 else f"{100 * row['stand']:.0f} % of the correlations"
    text = (
        f"- From {100 * share:.0f} % of the images (all of sets that are shown only once; {row['draws']:.0f} simulated "
        f"draws) {stand} beyond {STANDS} within categories would have stayed beyond it, none would have moved by more "
        f"than {math.ceil(100 * row['worst']) / 100:.2f}, and 95 % of the networks would have been at most "
        f"{places.min()} ({places.idxmin()}) to {places.max()} ({places.idxmax()}) places off."
    )
    return textwrap.fill(text, 120, subsequent_indent="  ", break_on_hyphens=False)


SENTENCE = re.compile(r"^- From \d+ % of the images .*?places\s+off\.$", re.M | re.S)


def write_into_answer(pattern: re.Pattern[str], part: str) -> None:
    """Put a part that is computed into the answer, and the answer into the notebook."""
    path, notebook = RAW_DATA / "ANSWER.md", SCRIPTS / "plots.ipynb"
    text = path.read_text("utf-8")
    answer = pattern.sub(lambda _: part, text)
    path.write_text(answer, "utf-8")
    content = json.loads(notebook.read_text("utf-8"))
    for cell in content["cells"]:
        if "".join(cell["source"]) == text.rstrip("\n"):
            cell["source"] = answer.rstrip("\n").splitlines(keepends=True)
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    """Simulate; write the table and the line; print both."""
    table = simulate()
    write_frame(table, RAW_DATA / "samples.csv")
    write_into_answer(SENTENCE, sentence(table))
    write_into_answer(PARAGRAPH, paragraph(read_table(PUBLISHED)))
    print(table.to_string(index=False))
    print(sentence(table))


if __name__ == "__main__":
    main()

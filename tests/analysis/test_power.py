"""What 48 networks can tell: simulated studies look like the real one, do what they say, and are analysed truly."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from common import ROOT, run
from imagenet_biases.analysis import power as module
from imagenet_biases.analysis.power import (
    CAUSE,
    COLUMNS,
    MECHANISMS,
    STRENGTHS,
    Families,
    could_not_miss,
    power,
    simulate,
)
from imagenet_biases.analysis.statistics import (
    GIVEN,
    LINEAGES,
    OUT,
    OUT_WITHIN,
    SPEARMAN,
    WITHIN,
    intraclass_correlation,
    partial,
    rank_correlations,
)
from imagenet_biases.results.table import PUBLISHED, read_table, study
from imagenet_biases.study import BIASES, CONTROL, SCORES

MANY = ROOT / "raw-data" / "power.csv"
FEW = 5  # of each strength


@pytest.fixture(scope="module")
def networks():
    return study(read_table(PUBLISHED))


@pytest.fixture(scope="module")
def few(networks):
    return power(networks, studies=FEW, seed=1)


def test_a_simulated_study_has_the_real_ones_networks_values_and_families(networks):
    drawn = simulate(networks, 0.6, 3)
    pd.testing.assert_frame_equal(drawn[["model", "category", "lineage"]], networks[["model", "category", "lineage"]])
    for name in (*BIASES, *SCORES, CONTROL):
        assert np.array_equal(np.sort(drawn[name]), np.sort(networks[name]))
    pd.testing.assert_frame_equal(drawn, simulate(networks, 0.6, 3))
    assert not drawn[CAUSE].equals(simulate(networks, 0.6, 4)[CAUSE])
    for name in ("shape-bias", "HPP", "Robustness"):
        # seven categories drawn say on average less than the seven real ones: the estimate is biased downwards
        real = intraclass_correlation(networks[name].rank().to_numpy(), networks["category"])
        found = [
            intraclass_correlation(simulate(networks, 0, seed)[name].rank().to_numpy(), networks["category"])
            for seed in range(40)
        ]
        assert real - 0.3 < np.mean(found) < real + 0.1


def test_shares_of_categories_lineages_and_networks_are_recovered():
    random = np.random.default_rng(0)
    category, lineage = np.repeat(np.arange(200), 12), np.repeat(np.arange(600), 4)
    root = np.linalg.cholesky([[1, 0.8], [0.8, 1]])  # the two quantities go together between categories only
    between = (random.normal(size=(200, 2)) @ root.T)[category]
    values = np.sqrt(0.5) * between + np.sqrt(0.3) * random.normal(size=(600, 2))[lineage]
    values += np.sqrt(0.2) * random.normal(size=values.shape)
    keep = random.random(len(values)) < 0.7  # groups of different sizes
    families = Families(np.exp(values[keep]), category[keep], lineage[keep])
    shares = np.diagonal(families.covariances, axis1=1, axis2=2)
    assert shares == pytest.approx(np.array([[0.5] * 2, [0.3] * 2, [0.2] * 2]), abs=0.05)
    assert families.covariances[:, 0, 1] == pytest.approx([0.4, 0, 0], abs=0.05)
    parts = [families.draw(np.random.default_rng(seed)) for seed in range(5)]
    drawn = np.mean([[np.cov(level.T) for level in one] for one in parts], axis=0)
    assert drawn == pytest.approx(families.covariances, abs=0.06)


def test_simulated_effects_are_where_they_were_put(networks):
    names = [CAUSE, CONTROL, *SCORES]
    categories = np.unique(networks["category"], return_inverse=True)[1]
    within, given, between = [], [], []
    for seed in range(40):
        values = simulate(networks, 0.85, seed)[names].to_numpy().T
        inside = rank_correlations(values, None, categories)
        within.append(inside[0, 2:])
        given.append(partial(inside, 1)[0, 2:])
        means = np.array([np.bincount(categories, v) / np.bincount(categories) for v in values])
        between.append(rank_correlations(means)[0, 2:])
    found = {
        how: dict(zip((MECHANISMS[score] for score in SCORES), np.mean(rows, axis=0), strict=True))
        for how, rows in (("within", within), ("given", given), ("between", between))
    }
    assert abs(found["within"]["nothing"]) < 0.1 and abs(found["between"]["nothing"]) < 0.2
    assert found["within"]["within"] > 0.6 and abs(found["between"]["within"]) < 0.25
    assert abs(found["within"]["between"]) < 0.1 and found["between"]["between"] > 0.5
    assert found["within"]["accuracy"] < -0.3 and abs(found["given"]["accuracy"]) < 0.1  # as accuracy goes with it


def row(table, mechanism, strength, predictor, method):
    where = (table["mechanism"] == mechanism) & (table["strength"] == strength)
    (one,) = table[where & (table["predictor"] == predictor) & (table["method"] == method)].itertuples()
    return one


@pytest.mark.slow
def test_twenty_small_studies_agree_with_the_many(few):
    """Binomial bands; pairs of one study share its networks, so a study counts once."""
    many = pd.read_csv(MANY)
    assert tuple(few.columns) == tuple(many.columns) == COLUMNS
    assert (few["studies"] == FEW).all() and many["studies"].min() >= 300
    both = few.merge(many, on=["mechanism", "strength", "predictor", "method"], suffixes=("", "_many"))
    assert len(both) == len(few) == len(many)
    for column in ("alarm", "coverage"):
        known = both.dropna(subset=[column])
        low, high = (binom.ppf(q, FEW, known[f"{column}_many"]) / FEW for q in (0.0005, 0.9995))
        inside = known[column].between(low - 1e-9, high + 1e-9)
        assert inside.mean() > 0.98, known[~inside]


@pytest.mark.slow
def test_permuting_within_categories_holds_its_five_per_cent(few):
    """Over all strengths a score that nothing acts on, and one that follows between categories only."""
    for table, studies in ((few, 10), (pd.read_csv(MANY), None)):
        rates = [
            row(table, mechanism, strength, "cause", WITHIN).alarm
            for mechanism in ("nothing", "between")
            for strength in STRENGTHS
        ]
        n = 8 * (studies or int(table["studies"].iloc[0]))
        low, high = binom.ppf((0.0005, 0.9995), n, 0.05) / n
        assert low <= np.mean(rates) <= high
        plain = [row(table, "nothing", strength, "cause", SPEARMAN).alarm for strength in STRENGTHS]
        assert np.mean(plain) > 0.15  # the test that takes relatives for strangers does not


def test_the_effect_that_could_not_be_missed():
    found = (("a", 0.0, 0), ("b", 0.4, 0.6), ("c", 0.6, 1))  # strength, estimate, share of studies
    subset = pd.DataFrame([("within", s, "cause", WITHIN, 10, e, 1, p, 0, 0) for s, e, p in found], columns=COLUMNS)
    assert could_not_miss(subset) == pytest.approx(0.5) and could_not_miss(subset, 0.6) == pytest.approx(0.4)
    assert could_not_miss(subset.assign(alarm_holm=0.5)) is None


def test_two_processes_give_the_same(networks, monkeypatch):
    monkeypatch.setattr(module, "STRENGTHS", {"none": 0.0})
    one, two = (power(networks, studies=2, seed=5, workers=workers) for workers in (1, 2))
    pd.testing.assert_frame_equal(one, two)


def test_a_number_of_studies_too_small_is_one_clear_line(tmp_path):
    result = run("plot_study.py", "--power", "1", "--out", tmp_path)
    assert result.returncode == 2 and "at least 2 studies" in result.stderr


# The answer in words --------------------------------------------------------------------------------------------------


def test_the_answer_quotes_the_simulations():
    many = pd.read_csv(MANY)
    text = " ".join((ROOT / "raw-data" / "ANSWER.md").read_text("utf-8").split())
    text = text.split("What 48 networks can show")[1].split("What does not follow")[0]

    def mean(column, mechanism, predictor, method):
        where = (many["mechanism"] == mechanism) & (many["predictor"] == predictor) & (many["method"] == method)
        return 100 * many.loc[where, column].mean()

    nothing = [mean("alarm", "nothing", "company", m) for m in (SPEARMAN, WITHIN, LINEAGES)]
    after_holm = [mean("alarm_holm", "nothing", "company", m) for m in (SPEARMAN, WITHIN, LINEAGES)]
    weak = row(many, "within", "weak", "cause", WITHIN)
    joint = [row(many, "within", "middle", "all biases", method).alarm for method in (OUT["category"], OUT_WITHIN)]
    through = [row(many, "accuracy", "middle", "cause", m).alarm for m in (WITHIN, f"{WITHIN} {GIVEN}")]
    r2 = many[many["method"].str.startswith("R2") & (many["predictor"] == "all biases")]["coverage"]
    for phrase in (
        f"({many['studies'].iloc[0]} simulated studies",
        "p < 0.05 in {:.0f} % of the pairs, the one within categories in {:.0f} %, the one between lineages in "
        "{:.0f} %".format(*nothing),
        "after Holm's correction {:.0f} %, {:.0f} % and {:.0f} %".format(*after_holm),
        f"categories of {could_not_miss(many):.2f} is detected in 80 % of the studies",
        f"one of {could_not_miss(many, 0.95):.2f} in 95 %",
        f"One of {weak.estimate:.2f} is detected in {100 * weak.alarm_holm:.0f} %",
        "within categories ({:.2f} of the studies, if it is of middle strength) and vanishes given accuracy "
        "({:.2f})".format(*through),
        f"detects it in {100 * joint[0]:.0f} % of the studies, the one within categories in {100 * joint[1]:.0f} %",
        f"single networks succeeds in {mean('alarm', 'nothing', 'all biases', OUT['network']):.0f} %",
        f"the truth in {mean('coverage', 'nothing', 'company', SPEARMAN):.0f} % of the studies",
        f"those within categories in {mean('coverage', 'nothing', 'company', WITHIN):.0f} %",
        f"R2 in {100 * r2.min():.0f} to {100 * r2.max():.0f} %".replace("R2", "R²"),
    ):
        assert phrase in text, phrase

"""Statistics: equal to scipy's, right on data whose truth is known, and quoted correctly in the answer's text."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import ROOT
from imagenet_biases.analysis import statistics as module
from imagenet_biases.analysis.statistics import (
    COLUMNS,
    WITHIN,
    _correlations,
    _holm,
    corrected_rank_correlations,
    effective_robustness,
    intraclass_correlation,
    kendall,
    partial,
    predictions,
    r_squared,
    rank_correlations,
    shared,
    statistics,
    write,
)
from imagenet_biases.results.table import PUBLISHED, read_table, study
from imagenet_biases.study import BIASES, FURTHER_BIASES, SCORES, STUDY_CATEGORIES, unflagged


@pytest.fixture(scope="module")
def networks():
    return study(read_table(PUBLISHED))


@pytest.fixture(scope="module")
def found(networks):
    return statistics(networks)


def one(found, bias, score, method="spearman", excluded="none"):
    where = (found["bias"] == bias) & (found["score"] == score) & (found["method"] == method)
    (row,) = found[where & (found["excluded"] == excluded)].itertuples()
    return row


def test_correlations_of_the_published_table_recomputed_from_the_file(found):
    raw = pd.read_csv(ROOT / "raw-data" / "benchmark.csv")
    raw = raw[raw["category"].notna() & (raw["source"] == "published")]
    low, high = (raw[[f"metric/bandpass/{k}/0.{c}" for c in range(1, 6)]].mean(axis=1) for k in ("LFC", "HFC"))
    biases = {
        "shape-bias": raw["shape-bias"],
        "LPP": low,
        "HPP": high,
        "spectral bias": high / (low + high),
        **{name: raw[f"metric/criticalband/{name}"] for name in ("bw_norm", "cf_norm", "pns_norm")},
    }
    top1 = {name: raw[f"top1_acc/{name}"] for name in ("imagenet", "stylized", "PGD-40/low")}
    top1 |= {name: raw[f"top1_acc/imagenet-{name}"] for name in ("v2", "real", "a", "c", "cbar", "sketch", "r")}
    scores = {
        "ID": (top1["imagenet"] + top1["v2"] + top1["real"]) / 3,
        "Robustness": (top1["a"] + top1["c"] + top1["cbar"]) / 3,
        "Concepts": (top1["sketch"] + top1["r"] + top1["stylized"]) / 3,
        "Adversarial": top1["PGD-40/low"],
    }
    assert set(biases) == set(BIASES) and set(scores) == set(SCORES)
    for bias, x in biases.items():
        for score, y in scores.items():
            for excluded in ("none", *STUDY_CATEGORIES):
                kept = raw["category"] != excluded
                row = one(found, bias, score, "spearman", excluded)
                assert row.estimate == pytest.approx(scipy.stats.spearmanr(x[kept], y[kept]).statistic, abs=1e-5)
                assert row.networks == kept.sum()
            tau = scipy.stats.kendalltau(x, y).statistic
            assert one(found, bias, score, "kendall").estimate == pytest.approx(tau, abs=1e-5)
    unflagged_id = (top1["imagenet"] + top1["v2"]) / 2
    expected = scipy.stats.spearmanr(raw["shape-bias"], unflagged_id).statistic
    assert one(found, "shape-bias", "ID", excluded="flagged columns").estimate == pytest.approx(expected, abs=1e-5)


def test_the_table_is_whole_and_deterministic(found, networks, tmp_path):
    assert tuple(found.columns) == COLUMNS
    assert not found.duplicated(["bias", "score", "method", "excluded"]).any()
    for method in ("spearman", "spearman given accuracy", "spearman within categories", "spearman between lineages"):
        for excluded in ("none", *STUDY_CATEGORIES, "flagged columns"):
            subset = (found["method"] == method) & (found["excluded"] == excluded)
            assert (subset & found["bias"].isin(BIASES)).sum() == len(BIASES) * len(SCORES)
            further = len(FURTHER_BIASES) * len(SCORES) if excluded in module.PREDICTED and method != "kendall" else 0
            assert (subset & found["bias"].isin(FURTHER_BIASES)).sum() == further
    correlations = found[~found["method"].str.startswith("R2") & found["low"].notna()]
    assert correlations["estimate"].between(correlations["low"], correlations["high"]).mean() > 0.995
    assert (
        found["p_holm"].dropna().between(0, 1).all() and (found["p_holm"].dropna() >= found["p"].dropna() - 1e-9).all()
    )
    few = networks.sample(20, random_state=0)
    again = [statistics(few, resamples=50, permutations=99) for _ in range(2)]
    pd.testing.assert_frame_equal(*again)
    assert not again[0].equals(statistics(few, resamples=50, permutations=99, seed=1))
    write(found, tmp_path / "statistics.csv")
    assert (tmp_path / "statistics.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_weights_mean_repetition():
    random = np.random.default_rng(0)
    x, y, z = random.integers(0, 9, (3, 30)).astype(float)  # with ties
    counts = random.multinomial(30, np.full(30, 1 / 30), 5)
    groups = np.repeat([0, 1, 2], 10)
    every = rank_correlations(np.array([x, y, z]), counts)
    for row, found in zip(counts, every, strict=True):
        again = np.repeat(np.arange(30), row)
        assert found[0, 1] == pytest.approx(scipy.stats.spearmanr(x[again], y[again]).statistic)
        assert kendall(x, y, row) == pytest.approx(scipy.stats.kendalltau(x[again], y[again]).statistic)
        ranks = np.array([scipy.stats.rankdata(v[again]) for v in (x, y, z)])
        rest = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
        assert partial(found, 2)[0, 1] == pytest.approx(np.corrcoef(*rest)[0, 1])
        within = [r - pd.Series(r).groupby(groups[again]).transform("mean") for r in ranks]
        found = rank_correlations(np.array([x, y, z]), row, groups)
        assert found == pytest.approx(np.corrcoef(within))


def test_intervals_and_p_values_are_scipys(networks, found):
    def rho(x, y, axis=-1):
        x, y = (scipy.stats.rankdata(v, axis=axis) - (v.shape[axis] + 1) / 2 for v in (x, np.broadcast_to(y, x.shape)))
        return (x * y).sum(axis) / np.sqrt((x * x).sum(axis) * (y * y).sum(axis))

    x, y = networks[["shape-bias", "Robustness"]].to_numpy().T
    row = one(found, "shape-bias", "Robustness")
    settings = {"vectorized": True, "random_state": 0}
    interval = scipy.stats.bootstrap((x, y), rho, paired=True, method="percentile", n_resamples=4000, **settings)
    assert [row.low, row.high] == pytest.approx([*interval.confidence_interval], abs=0.02)
    x, y = networks[["pns_norm", "ID"]].to_numpy().T  # p is about 0.04: far from the least possible
    settings |= {"permutation_type": "pairings", "n_resamples": 9999}
    p = scipy.stats.permutation_test((x,), lambda x, axis: rho(x, y, axis), **settings).pvalue
    assert one(found, "pns_norm", "ID").p == pytest.approx(p, abs=0.01)


def made_up(n, random, **columns):
    rows = pd.DataFrame({name: random.normal(size=n) for name in (*BIASES, *SCORES)})
    rows = rows.assign(category=random.choice(["baseline", "augmentation", "contrastive"], n), **columns)
    rows["top1_acc/imagenet"] = random.uniform(50, 80, n)
    rows[list(SCORES)] = 50 + 5 * rows[list(SCORES)]
    rows["lineage"] = [f"{i}" for i in range(n)]
    return rows.assign(**{unflagged(score): rows[score] for score in SCORES})


def test_intervals_cover_and_p_values_are_uniform_where_nothing_is_there():
    random = np.random.default_rng(1)
    covered, p = [], []
    for _ in range(20):
        for _, _, method, values in _correlations(made_up(40, random), resamples=300, permutations=199, seed=0):
            if method != "spearman with effective robustness":
                p.append(values["p"])
                if not np.isnan(values["low"]):
                    covered.append(values["low"] <= 0 <= values["high"])
    assert 0.90 < np.mean(covered) < 0.98
    assert 0.025 < np.mean(np.array(p) < 0.05) < 0.08
    assert 0.45 < np.mean(p) < 0.55


def correlations_of(rows):
    records = [
        {"bias": bias, "score": score, "method": method, "excluded": "none"} | values
        for bias, score, method, values in _correlations(rows, resamples=300, permutations=999, seed=0)
    ]
    return pd.DataFrame(records)


def test_a_correlation_that_accuracy_makes_is_gone_given_accuracy():
    random = np.random.default_rng(5)
    rows = made_up(80, random)
    accuracy = rows["top1_acc/imagenet"]
    rows["shape-bias"] = accuracy + 3 * random.normal(size=80)
    rows["ID"] = accuracy + 3 * random.normal(size=80)
    rows["LPP"] = -accuracy + 20 * random.normal(size=80)
    rows["Concepts"] = (50 + accuracy / 10 + 3 * rows["LPP"] / 20).clip(1, 99)
    found = correlations_of(rows)
    assert one(found, "shape-bias", "ID").p < 0.002
    given = one(found, "shape-bias", "ID", "spearman given accuracy")
    assert abs(given.estimate) < 0.3 and given.p > 0.01
    assert one(found, "LPP", "Concepts", "spearman given accuracy").estimate > 0.9
    assert one(found, "LPP", "Concepts", "spearman with effective robustness").estimate > 0.8


def test_a_correlation_that_one_category_makes_is_gone_without_it():
    random = np.random.default_rng(3)
    rows = made_up(60, random)
    inside = rows["category"] == "contrastive"
    rows["HPP"] += 6 * inside
    rows["Robustness"] += 30 * inside
    found = correlations_of(rows)
    assert one(found, "HPP", "Robustness").estimate > 0.5
    assert one(found, "HPP", "Robustness").p < 0.002
    assert one(correlations_of(rows[~inside]), "HPP", "Robustness").p > 0.01


def test_missing_values_are_left_out_of_their_pair_only(networks):
    rows = networks.copy()
    rows.loc[:9, "bw_norm"] = np.nan
    rows["cf_norm"] = 1.0  # nothing varies
    rows["pns_norm"] = np.nan
    found = statistics(rows, resamples=50, permutations=49)
    kept = rows["bw_norm"].notna()
    expected = scipy.stats.spearmanr(rows["bw_norm"][kept], rows["ID"][kept]).statistic
    assert one(found, "bw_norm", "ID").networks == 38
    assert one(found, "bw_norm", "ID").estimate == pytest.approx(expected, abs=1e-5)
    assert one(found, "LPP", "ID").networks == 48
    assert np.isnan(one(found, "cf_norm", "ID").estimate) and np.isnan(one(found, "cf_norm", "ID").p_holm)
    assert "pns_norm" not in set(found["bias"])
    with pytest.raises(ValueError, match="too few"):
        statistics(networks[:5])


def test_effective_robustness_is_the_residual_in_logits():
    accuracy = np.array([50.0, 60.0, 70.0, 80.0])
    logits = 0.5 * scipy.special.logit(accuracy / 100) - 1
    above = np.array([0.1, -0.1, -0.1, 0.1])  # orthogonal to a line over evenly spread points, nearly
    residual = effective_robustness(accuracy, 100 * scipy.special.expit(logits))
    assert np.allclose(residual, 0, atol=1e-9)
    residual = effective_robustness(accuracy, 100 * scipy.special.expit(logits + above))
    assert np.allclose(residual, above, atol=0.02)
    assert np.isfinite(effective_robustness([50.0, 60.0, 70.0], [0.0, 100.0, 50.0])).all()


def test_nothing_is_predicted_from_what_was_seen():
    random = np.random.default_rng(4)
    features = random.normal(size=(60, 3))
    groups = np.repeat(np.arange(6), 10)
    signal = features @ [[1.0], [2.0], [-1.0]] + 0.1 * random.normal(size=(60, 1))
    by_group = groups[:, None] + 0.01 * random.normal(size=(60, 1))  # only the group tells
    targets = np.hstack([signal, by_group, random.normal(size=(60, 1))])
    for left_out in (None, groups):
        r2 = r_squared(targets.T, *(part.T for part in predictions(features, targets, left_out)))
        assert r2[0] > 0.98
        assert r2[2] < 0.1
    marked = np.hstack([features, np.eye(6)[groups]])
    alone, whole = (predictions(marked, targets, left_out) for left_out in (None, groups))
    assert r_squared(targets[:, 1], alone[0][:, 1], alone[1][:, 1]) > 0.95
    assert r_squared(targets[:, 1], whole[0][:, 1], whole[1][:, 1]) < 0.1  # a group never seen
    _, mean = predictions(features, targets)
    assert mean[7, 0] == pytest.approx(np.delete(targets[:, 0], 7).mean())
    assert r_squared(targets[:, 0], mean[:, 0], mean[:, 0]) == 0


def test_the_ridge_regression_is_scikit_learns():
    random = np.random.default_rng(7)
    features, targets = random.normal(size=(30, 4)) * [1, 10, 0.1, 3], random.normal(size=(30, 5))
    targets[:, 0] += features[:, 1]
    predicted, _ = predictions(features, targets)
    model = make_pipeline(StandardScaler(), RidgeCV(module.PENALTIES, alpha_per_target=True))
    for i in (0, 13):
        rest = np.arange(30) != i
        assert predicted[i] == pytest.approx(model.fit(features[rest], targets[rest]).predict(features[[i]])[0])


# Relatives ------------------------------------------------------------------------------------------------------------


def test_intraclass_correlations_of_the_published_table(found, networks):
    expected = {"shape-bias": 0.54, "LPP": 0.67, "HPP": 0.73, "spectral bias": 0.71, "bw_norm": 0.85}
    expected |= {"ID": 0.67, "Robustness": 0.75, "Concepts": 0.57, "Adversarial": 0.61}
    for name, value in expected.items():
        assert one(found, name, "categories", module.ICC).estimate == pytest.approx(value, abs=0.005)
    groups, alike = np.repeat([0, 1, 2], 4), np.repeat([1.0, 5.0, 2.0], 4)
    assert intraclass_correlation(alike, groups) == 1
    assert intraclass_correlation(np.tile([1.0, 2.0, 3.0, 4.0], 3), groups) == pytest.approx(-1 / 3)
    values = np.array([9, 6, 8, 7, 10, 6, 2, 1, 4, 1, 5, 2.0])  # by hand: MSB 10.0833, MSW 9.4722, groups of 4
    msb = 4 * np.var([values[groups == g].mean() for g in range(3)], ddof=1)
    msw = np.mean([np.var(values[groups == g], ddof=1) for g in range(3)])
    assert intraclass_correlation(values, groups) == pytest.approx((msb - msw) / (msb + 3 * msw))


def test_lineages_lie_within_categories(networks):
    assert networks["lineage"].nunique() == 22
    assert networks.groupby("lineage")["category"].nunique().max() == 1
    adversarial = networks[networks["category"] == "adversarial_training"]
    assert adversarial["lineage"].value_counts().to_dict() == {"adversarial l2": 10, "adversarial linf": 5}


def test_within_and_between_by_hand(found, networks):
    ranks = networks[["shape-bias", "ID"]].rank()
    inside = ranks - ranks.groupby(networks["category"]).transform("mean")
    row = one(found, "shape-bias", "ID", "spearman within categories")
    assert row.estimate == pytest.approx(inside.corr().iloc[0, 1], abs=1e-5) and row.networks == 48
    means = ranks.groupby(networks["category"]).mean()
    row = one(found, "shape-bias", "ID", "spearman between categories")
    oracle = scipy.stats.spearmanr(*means.to_numpy().T)
    assert row.estimate == pytest.approx(oracle.statistic, abs=1e-5) and row.networks == 7
    exact = scipy.stats.permutation_test(
        (means["shape-bias"],),
        lambda x: scipy.stats.spearmanr(x, means["ID"]).statistic,
        permutation_type="pairings",
        n_resamples=np.inf,
    )
    assert row.p == pytest.approx(exact.pvalue, abs=1e-5)
    lineages = ranks.groupby(networks["lineage"]).mean()
    home = networks.groupby("lineage")["category"].first()
    ranks = lineages.rank()
    inside = ranks - ranks.groupby(home).transform("mean")
    row = one(found, "shape-bias", "ID", "spearman between lineages")
    assert row.estimate == pytest.approx(inside.corr().iloc[0, 1], abs=1e-5) and row.networks == 22


def test_categories_that_differ_are_no_association_within_them():
    """A bias that does nothing in a world where categories differ: the plain test cries, the one within does not."""
    random, alarms = np.random.default_rng(11), {"spearman": [], "spearman within categories": []}
    sizes = (1, 10, 12, 3, 1, 15, 6)
    names = np.repeat(STUDY_CATEGORIES, sizes)
    for _ in range(40):
        shared_parts = random.normal(size=(7, len(BIASES) + len(SCORES))).repeat(sizes, axis=0)
        values = np.sqrt(0.7) * shared_parts + np.sqrt(0.3) * random.normal(size=shared_parts.shape)
        rows = made_up(48, random).assign(**dict(zip((*BIASES, *SCORES), values.T, strict=True)), category=names)
        rows[list(SCORES)] = 50 + 5 * rows[list(SCORES)]
        for _, _, method, found in _correlations(rows, resamples=2, permutations=199, seed=0):
            if method in alarms:
                alarms[method].append(found["p"] < 0.05)
    low, high = scipy.stats.binom.ppf((0.001, 0.999), 40 * 28, 0.05) / (40 * 28)
    assert low < np.mean(alarms["spearman within categories"]) < high
    assert 0.3 < np.mean(alarms["spearman"]) < 0.5


def test_an_effect_within_categories_is_found():
    random = np.random.default_rng(12)
    rows = made_up(48, random).assign(category=np.repeat(STUDY_CATEGORIES, (1, 10, 12, 3, 1, 15, 6)))
    shift = dict(zip(STUDY_CATEGORIES, 8 * random.normal(size=7), strict=True))  # categories hide it
    rows["ID"] = 50 + 2 * rows["LPP"] + rows["category"].map(shift)
    found = correlations_of(rows)
    inside = one(found, "LPP", "ID", "spearman within categories")
    assert inside.p < 0.002 and inside.low > 0.4
    assert one(found, "LPP", "ID").estimate < inside.estimate


def test_the_statistics_are_computed_once(networks, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "statistics", lambda rows: calls.append(1) or statistics(rows, 20, 19))
    first = shared(networks, tmp_path)
    pd.testing.assert_frame_equal(shared(networks, tmp_path), first)
    assert len(calls) == 1
    shared(networks.assign(LPP=networks["HPP"]), tmp_path)
    (tmp_path / "statistics.csv").write_text("edited\n")
    pd.testing.assert_frame_equal(shared(networks, tmp_path), first)
    assert len(calls) == 3


def test_holm_is_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is the oracle")
    p = pd.Series([0.04, 0.001, np.nan, 0.03, 0.2, 0.001])
    corrected = _holm(p)
    assert np.isnan(corrected[2])
    assert np.allclose(corrected.dropna(), multitest.multipletests(p.dropna(), method="holm")[1])


# The answer in words --------------------------------------------------------------------------------------------------

ANSWER = (ROOT / "raw-data" / "ANSWER.md").read_text("utf-8").replace("−", "-")
TRIPLE = r"(-?\d\.\d\d) \[(-?\d\.\d\d), (-?\d\.\d\d)\]"


def close(text, row):
    # an interval's ends may move in the last digit with another version of numpy's random streams
    return np.allclose([float(number) for number in text], [row.estimate, row.low, row.high], atol=0.0151)


def test_the_answers_table_quotes_the_statistics(found):
    cells = r" \| ".join([TRIPLE] * 4)
    lines = re.findall(rf"^\| ([\w-]+), (\w+) \| {cells} \|$", ANSWER, re.MULTILINE)
    columns = (
        (WITHIN, "none"),
        (WITHIN, "adversarial_training"),
        (f"{WITHIN} given accuracy", "none"),
        ("spearman", "none"),
    )
    assert len(lines) == 7
    for bias, score, *numbers in lines:
        for number, (method, excluded) in enumerate(columns):
            text = numbers[3 * number : 3 * number + 3]
            assert close(text, one(found, bias, score, method, excluded)), (bias, score, method, excluded)


def test_the_answers_predictions_quote_the_statistics(found):
    text = " ".join(ANSWER.split())
    inside = text.split("All seven biases together")[1].split("What only separates")[0]
    number = r"(-?\d\.\d\d)"
    quoted = re.findall(rf"{number} for (\w+), (?:where ImageNet accuracy )?alone (?:has )?{number}", inside)
    assert {score for _, score, _ in quoted} == set(SCORES)
    for together, score, alone in quoted:
        for value, predictor in ((together, "all biases"), (alone, "top1_acc/imagenet")):
            row = one(found, predictor, score, "R2 leave-one-network-out within categories")
            assert float(value) == pytest.approx(row.estimate, abs=0.0051)
    apart = re.search(rf"whole category from the others: R² is {number} for Robustness and {number} for", text)
    for value, score in zip(apart.groups(), ("Robustness", "Adversarial"), strict=True):
        row = one(found, "all biases", score, "R2 leave-one-category-out")
        assert float(value) == pytest.approx(row.estimate, abs=0.0051)
        assert row.p > 0.05  # no better than permuted


def test_the_answers_claims_hold(found):
    text = " ".join(ANSWER.split())

    def pairs(method, excluded=("none",)):
        subset = found[(found["method"] == method) & found["excluded"].isin(excluded) & found["bias"].isin(BIASES)]
        return {pair for pair, p in subset.groupby(["bias", "score"])["p_holm"].max().items() if p < 0.05}

    low_pass, shape, dial = ("LPP", "Adversarial"), ("shape-bias", "Adversarial"), ("shape-bias", "ID")
    categories = ("none", *STUDY_CATEGORIES)
    within, overall = pairs(WITHIN), pairs("spearman")
    assert within == {low_pass, shape, dial} and "3 of the 28 pairs" in text
    assert pairs(WITHIN, categories) == pairs("spearman between lineages") == {low_pass}
    assert "each of the 22 lineages (same group and recipe) counts once: 0.88" in text
    assert one(found, *low_pass, "spearman between lineages").estimate == pytest.approx(0.88, abs=0.005)
    assert one(found, *shape, WITHIN, "adversarial_training").p_holm < 0.05
    assert one(found, *shape, WITHIN, "augmentation").p_holm > 0.05
    assert (
        one(found, *dial, WITHIN, "adversarial_training").low < 0 < one(found, *dial, f"{WITHIN} given accuracy").high
    )
    assert pairs(f"{WITHIN} given accuracy") == {low_pass, shape, ("shape-bias", "Concepts")}
    assert len(overall) == 15 and "Over all networks 15 pairs" in text
    assert within < overall and len(overall - within) == 12 and "12 of them are not within" in text
    assert sum(bias in ("HPP", "spectral bias", "bw_norm") for bias, _ in overall - within) == 10
    assert not pairs("spearman between categories")
    shares = re.search(
        r"ranks: ([\d.]+), ([\d.]+), ([\d.]+); shape bias ([\d.]+), LPP ([\d.]+)\) and of the scores \(ID ([\d.]+), "
        r"Robustness ([\d.]+), Concepts ([\d.]+), Adversarial ([\d.]+)\)",
        text,
    )
    for value, name in zip(
        shares.groups(), ("HPP", "spectral bias", "bw_norm", "shape-bias", "LPP", *SCORES), strict=True
    ):
        assert float(value) == pytest.approx(one(found, name, "categories", module.ICC).estimate, abs=0.0051)
    assert not [pair for pair in within | overall if pair[0] == "cf_norm"]
    assert pairs(WITHIN, ("flagged columns",)) == within
    rows = found[(found["method"] == WITHIN) & found["bias"].isin(BIASES)].set_index(["bias", "score"])
    plain, flagged = (rows.loc[rows["excluded"] == e, "estimate"] for e in ("none", "flagged columns"))
    assert f"more than {np.ceil((flagged - plain).abs().max() * 1000) / 1000:.3f}" in text


def test_the_answer_on_criticality_and_filters(found):
    """Published values, corrected for their own number: they take nothing from the study's seven."""
    text = " ".join(ANSWER.split())
    further = found[found["bias"].isin(FURTHER_BIASES) & (found["excluded"] == "none")]
    within = further[further["method"] == WITHIN]
    assert len(within) == 16 and "16 pairs with the scores" in text
    stand = within[within["p_holm"] < 0.05]
    assert {(row.bias, row.score) for row in stand.itertuples()} == {
        ("variance entropy", "ID"),
        ("variance entropy", "Robustness"),
    }
    assert not (further[further["method"] == f"{WITHIN} given accuracy"]["p_holm"] < 0.05).any()
    assert not (within[within["score"].isin(["Concepts", "Adversarial"])]["p_holm"] < 0.05).any()
    # Holm's correction by hand: the smallest p times their number, not times 28 + 16
    assert within["p_holm"].min() == pytest.approx(16 * within["p"].min())
    for bias, score, method in (
        ("variance entropy", "ID", WITHIN),
        ("variance entropy", "Robustness", WITHIN),
        ("variance entropy", "ID", f"{WITHIN} given accuracy"),
        ("variance entropy", "Robustness", f"{WITHIN} given accuracy"),
        ("criticality", "ID", "spearman"),
        ("criticality", "ID", WITHIN),
    ):
        row = one(found, bias, score, method)
        quoted = f"{row.estimate:.2f} [{row.low:.2f}, {row.high:.2f}]".replace("-0.00", "0.00")
        assert quoted in text, quoted


def test_published_criticality_is_the_released_one():
    released = pd.read_csv(PUBLISHED.with_name("criticality_networks.csv"), index_col="model_id")["mean_criticality"]
    rows = study(read_table(PUBLISHED)).set_index("model")
    assert rows["criticality"].notna().all()
    assert (100 * rows["criticality"]).to_numpy() == pytest.approx(released[rows.index].to_numpy(), rel=1e-5)


# Values on samples ----------------------------------------------------------------------------------------------------


def answered(random, correlation, common, shown, networks=48, images=4000, splits=16):
    """Simulate two measures, accuracies on the same images, whose true values correlate over networks.

    Images are hard for all networks alike (0.6 of the latent variance), and a part `common` of a network's own
    difficulties is that of both measures.

    Returns: the measures on the first `shown` images [2], their gaps between half-samples, the measures on all images.
    """
    truth = random.normal(size=(2, networks))
    truth[1] = correlation * truth[0] + np.sqrt(1 - correlation**2) * truth[1]
    image, own = random.normal(size=images), random.normal(size=(networks, images))
    halves = random.random((images, splits)) < 0.5
    values, gaps, wholes = [], [], []
    for thresholds, first in zip(0.15 * truth, shown, strict=True):
        apart = random.normal(size=(networks, images))
        latent = np.sqrt(0.6) * image + np.sqrt(0.4 * common) * own + np.sqrt(0.4 * (1 - common)) * apart
        right = (latent < thresholds[:, None]).astype(float)
        start, half = right[:, :first], halves[:first]
        values.append(start.mean(1))
        gaps.append(start @ half / half.sum(0) - start @ ~half / (~half).sum(0))
        wholes.append(right.mean(1))
    return np.array(values), np.array(gaps), np.array(wholes)


@pytest.mark.parametrize(
    ("correlation", "common", "shown", "bias"),
    [
        (0.7, 0.0, (200, 200), -0.1),  # errors of the two measures apart: they attenuate
        (0.0, 0.9, (200, 200), 0.08),  # errors in common: they make a correlation up
        (-0.3, 0.9, (200, 800), 0.03),  # nested samples of different size
        (0.7, 0.9, (100, 4000), -0.1),  # one measure is whole
    ],
)
def test_correlations_of_samples_are_corrected_to_those_of_the_whole_sets(correlation, common, shown, bias):
    random, studies, off = np.random.default_rng(0), 40, []
    shares = np.repeat(np.array(shown)[:, None] / 4000, 48, axis=1)
    for _ in range(studies):
        values, gaps, wholes = answered(random, correlation, common, shown)
        truth = rank_correlations(wholes)[0, 1]
        found = rank_correlations(values), corrected_rank_correlations(values, gaps, shares)
        off.append([matrix[0, 1] - truth for matrix in found])
    (raw, corrected), errors = np.mean(off, axis=0), np.std(off, axis=0, ddof=1) / np.sqrt(studies)
    assert abs(corrected) < 3 * errors[1]
    assert np.sign(raw) == np.sign(bias) and abs(raw) > abs(bias) / 2 and abs(raw) > 3 * errors[0]


def test_the_correction_of_samples_with_weights_groups_and_whole_values():
    random = np.random.default_rng(1)
    values, gaps, _ = answered(random, 0.5, 0.5, (300, 300), networks=30)
    shares, weights, groups = np.full((2, 30), 0.1), random.integers(1, 3, (4, 30)), np.arange(30) % 4
    once = corrected_rank_correlations(values, gaps, shares, groups=groups)
    twice = corrected_rank_correlations(values, gaps, shares, np.full(30, 2), groups)
    np.testing.assert_allclose(once, twice)
    one_group = corrected_rank_correlations(values, gaps, shares, weights, np.zeros(30, int))
    np.testing.assert_allclose(one_group, corrected_rank_correlations(values, gaps, shares, weights))
    whole = corrected_rank_correlations(values, gaps, np.ones((2, 30)), weights, groups)
    np.testing.assert_allclose(whole, rank_correlations(values, weights, groups))
    nothing_but_error = corrected_rank_correlations(values[:, ::-1] * 0 + 0.5 + gaps[..., 0], 50 * gaps, shares)
    assert np.isnan(nothing_but_error).all()

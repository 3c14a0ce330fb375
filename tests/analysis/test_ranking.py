"""Ranks among the 48 published networks."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import percentileofscore

from imagenet_biases.analysis.ranking import ranks
from imagenet_biases.results.places import standing
from imagenet_biases.results.table import PUBLISHED, read_table, study
from imagenet_biases.study import BIASES, CONTROL


def test_the_best_is_first_whichever_way_is_better():
    others = [10, 20, 20, 30, np.nan]
    assert standing(others, "ID", 25)[:4] == (2, 5, 75.0, "higher")
    assert standing(others, "ID", 20)[:4] == (2, 5, 50.0, "higher")
    assert standing(others, "mCE/imagenet-c", 25)[:4] == (4, 5, 25.0, "lower")
    assert standing(others, "shape-bias", 31)[:4] == (1, 5, 100.0, "")
    assert standing(others, "ID", np.nan) is None and standing([np.nan], "ID", 1) is None


def test_published_networks_are_ranked_as_scipy_does():
    table = read_table(PUBLISHED)
    networks = study(table).set_index("model")
    found = ranks(table, [CONTROL, *BIASES]).query("model in @networks.index and source == 'published'")
    for column, subset in found.groupby("column"):
        expected = networks[column].rank(ascending=False, method="min")
        assert [*subset["rank"]] == [*expected[subset["model"]]] and {*subset["of"]} == {48}
        for one in subset.itertuples():
            others = networks[column].drop(one.model)
            assert one.percentile == pytest.approx(percentileofscore(others, one.value, "mean"))


def test_own_networks_are_ranked_among_the_48_only():
    table = read_table(PUBLISHED)
    row = {"category": "", "source": "measured", CONTROL: 99.0}
    drawn = row | {"model": "drawn", "category": "calibration", CONTROL: 100.0}
    own = pd.DataFrame([row | {"model": "own"}, row | {"model": "tv_resnet50"}, drawn])
    found = ranks(pd.concat([table, own]), [CONTROL]).query("source == 'measured'").set_index("model")
    assert found.loc["own", ["rank", "of", "percentile"]].tolist() == [1, 49, 100]
    assert found.loc["tv_resnet50", ["rank", "of", "percentile"]].tolist() == [1, 48, 100]
    assert "drawn" not in found.index

"""The report page in a real browser: opens without errors or network, sorts, filters, opens a network's section."""

import json
import re
import time
from html.parser import HTMLParser
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs
from scipy.stats import spearmanr

import report
from common import SHARED, needs_shared, run
from experiments import open_browser
from imagenet_biases.analysis.ranking import ranks
from imagenet_biases.analysis.statistics import partial, rank_correlations
from imagenet_biases.humans.agreement import bias_by_category, read_observers
from imagenet_biases.humans.trials import write_trials
from imagenet_biases.results.table import KEYS, PUBLISHED, UNCERTAINTY, projections, read_beside, read_table, study
from imagenet_biases.study import CONTROL, CUTOFFS, MIDDLE_CUTOFFS
from sampled import on_sample

pytestmark = pytest.mark.slow

HOSTILE = (  # names of networks that a page must show as they are
    "<!--<script>",
    "</script><img src=x onerror=alert(1)>",
    "/*PLOTLY*/ /*DATA*/null",
    "<b>bold</b> & <a href='javascript:alert(1)'>link</a> \u2028 \\u003c",
)


OBSERVER = "robust_resnet50_l2_eps0"  # whose trials are a person's
SAFE = "!'()*-._~"  # what encodeURIComponent leaves as it is


def record(model, benchmark, metrics, details=None, **more):
    return {
        **({"file": more.pop("file")} if "file" in more else {}),
        "model": model,
        "benchmark": benchmark,
        "metrics": metrics,
        "intervals": {name: [value - 0.05, value + 0.05] for name, value in metrics.items()},
        "images": 160,
        "subset": False,
        "warnings": ["26 points off </script><b>"] if benchmark == "imagenet" else [],
        "details": details or {},
        "layers": more.pop("layers", {}),
        "provenance": {"network": "c0ffee" * 10, "category": "baseline", "collection": "imagenet", "view": "study"}
        | {"precision": "fp32", "seed": 0, "time": "2026-01-01T00:00:00+00:00", "device": "some machine"}
        | more,
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page from the committed table alone, and one with measured networks (one in both, two of calibration)."""
    folder = tmp_path_factory.mktemp("report")
    run("report.py", "--table", PUBLISHED, "--results", folder / "none", "--out", folder / "published.html", check=True)
    drawn = {"category": "calibration", "collection": "drawn"}
    bandpass = {f"metric/bandpass/{kind}/{c}": 0.5 for kind in ("LFC", "HFC") for c in MIDDLE_CUTOFFS}
    categories = {"cat": {"value": 0.75, "low": 0.5, "high": 0.9, "shape": 3, "texture": 1, "other": 0}}
    records = [
        record("tv_resnet50", "imagenet", {"top1_acc/imagenet": 76.1}),
        *(record(name, "imagenet", {"top1_acc/imagenet": 50.0}, file=f"{i}") for i, name in enumerate(HOSTILE)),
        on_sample(record("tv_resnet50", "spectral", bandpass), 2500, 50_000, dict.fromkeys(bandpass, (0.4, 0.6))),
        record("calibration_texture", "imagenet", {"top1_acc/imagenet": 99.0}, **drawn),
        record("calibration_silhouette", "imagenet", {"top1_acc/imagenet": 98.0}, **drawn),
        record("calibration_silhouette", "spectral", bandpass, **drawn),
        record(
            *("calibration_silhouette", "model_vs_human", {"shape-bias": 0.75}),
            {"shape-bias": {"categories": categories}},
            **drawn,
        ),
        record(
            *("calibration_silhouette", "criticalband", {"metric/criticalband/bw_norm": 3.4}),
            {"channel_norm": {"thresholds": [0, 2, 3, 3, 3, 1, 0], "problem": None}},
            **drawn,
        ),
        record(
            *("calibration_silhouette", "criticality", {"metric/criticality/mean": 0.6}),
            layers={"metric/criticality": {"0.weight": [0.4, None, None], "fc": [0.8, 0.7, 0.9]}},
            **drawn,
        ),
        record("calibration_silhouette", "solarization", {f"top1_acc/solarize/{a}": 9.0 for a in (0, 0.5, 1)}, **drawn),
        record(
            "calibration_silhouette",
            "imagenet_c",
            {f"top1_acc/fog_{severity}": 90.0 for severity in range(1, 6)},
            **drawn,
        ),
    ]
    for one in records:
        path = folder / "results" / one.pop("file", one["model"]) / f"{one['benchmark']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one))
    run("merge_results.py", "--results", folder / "results", "--out", folder, check=True)
    tables = ("--table", PUBLISHED, folder / "measured.csv")
    trials = ("--trials", *_trials(folder)) if SHARED else ()
    run("report.py", *tables, "--results", folder / "results", *trials, "--out", folder / "measured.html", check=True)
    return folder


def _trials(folder):
    """Return folders of trial files: released ones of people and AlexNet, and the same as those of another network."""
    released = SHARED / "human_trials", SHARED / "cue_conflict_trials"
    frame = read_observers(released)
    own = frame[(frame.subj == "alexnet") | ((frame.subj == "subject-01") & frame.set.isin(["contrast", "rotation"]))]
    write_trials(own.assign(subj=OBSERVER), folder / "trials" / "trials.zip")
    return [*released, folder / "trials"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = open_browser(tmp_path_factory.mktemp("profile"), "1500,1100")
    yield driver
    driver.quit()


@pytest.fixture(params=["published", "measured"])
def page(request, browser, pages):
    """Every test begins on a freshly loaded page and ends without a console message or a request for anything."""
    browser.get((pages / f"{request.param}.html").as_uri())
    browser.kind = request.param
    yield browser
    assert browser.get_log("browser") == []
    assert ask(browser, "performance.getEntriesByType('resource').map(entry => entry.name)") == []


def ask(page, expression):
    return page.execute_script("return " + expression)


def column(page, number):
    rows = "[...document.querySelectorAll('#table tbody tr')]"
    return ask(page, f"{rows}.map(row => row.cells[{number}].firstChild?.textContent)")


def heads(page):
    return ask(page, "[...document.querySelectorAll('#table thead button')].map(button => button.textContent)")


def click(page, selector):
    page.execute_script(f"document.querySelector({json.dumps(selector)}).click()")


def choose(page, name, value):
    page.execute_script(
        "const one = document.getElementById(arguments[0]);"
        "one.value = arguments[1]; one.dispatchEvent(new Event('input')); one.dispatchEvent(new Event('change'));",
        *(name, value),
    )


def wait_for(page, expression, seconds=20):
    end = time.monotonic() + seconds
    while not ask(page, f"Boolean({expression})"):
        assert time.monotonic() < end, f"not within {seconds} s: {expression}"
        time.sleep(0.05)


class Scripts(HTMLParser):
    """The script elements of a page as a browser splits it: [(attributes, text)], and all other tags."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append([dict(attributes), ""])

    def handle_data(self, text):
        if self.scripts and self.cdata_elem == "script":
            self.scripts[-1][1] += text


@pytest.mark.parametrize("kind", ["published", "measured"])
def test_one_file_that_asks_for_nothing(pages, kind):
    text = (pages / f"{kind}.html").read_text("utf-8")
    assert text.count(get_plotlyjs()) == 1
    own = text.replace(get_plotlyjs(), "")
    assert "http" not in own and "src=" not in own.replace("img src=x", "")
    assert "<link" not in own.replace('<link rel="icon" href="data:,">', "")


def test_names_and_warnings_are_data(pages):
    """They end no script, open no comment, are no markup, and are not taken for the page's own marks."""
    text = (pages / "measured.html").read_text("utf-8").replace(get_plotlyjs(), "")
    found = Scripts(text)
    assert [one[0] for one in found.scripts] == [{}, {"type": "application/json", "id": "data"}, {}, {}]
    assert "img" not in found.tags and "b" not in found.tags
    assert not {*"<>&"} & {*found.scripts[1][1]}
    data = json.loads(found.scripts[1][1])
    names = [row["model"] for row in data["rows"]]
    assert all(names.count(name) == 1 for name in HOSTILE)
    assert ["26 points off </script><b>"] in [one["warnings"] for one in data["records"]]
    same = Scripts((pages / "published.html").read_text("utf-8").replace(get_plotlyjs(), ""))
    assert found.scripts[2:] == same.scripts[2:]  # the program does not depend on the data


def test_inserted_text_is_not_scanned_again():
    data = {"name": "/*PLOTLY*/ /*DATA*/null \\1 \\g<0>"}
    found = Scripts(report.page(data).replace(get_plotlyjs(), ""))
    assert json.loads(found.scripts[1][1]) == data


def test_it_shows_every_row_of_the_table(page, pages):
    published = len(read_table(PUBLISHED))
    rows = published if page.kind == "published" else published + 1 + len(HOSTILE)
    assert len(column(page, 0)) == rows
    assert ask(page, "document.getElementById('count').textContent") == f"{rows} of {rows} rows"
    assert ask(page, "document.querySelectorAll('#table tr.own').length") == rows - published
    table = read_table([PUBLISHED, *([pages / "measured.csv"] if page.kind == "measured" else [])])
    drawn = table["model"].str.startswith("calibration")
    table = table[~drawn].sort_values("source", kind="stable")  # measured ones first
    assert column(page, 0) == [*table["model"]] and column(page, 2) == [*table["source"]]
    own = "[...document.querySelectorAll('#drawn tbody tr')].map(row => row.cells[0].textContent)"
    assert ask(page, own) == (["calibration_silhouette", "calibration_texture"] if page.kind == "measured" else [])
    shown = [float(text or "nan") for text in column(page, heads(page).index("top1_acc/imagenet"))]
    assert shown == pytest.approx([*table["top1_acc/imagenet"].round(1)], abs=0.051, nan_ok=True)
    assert page.kind == "published" or {*HOSTILE} < {*column(page, 0)}


def test_sorting_by_numbers_and_by_names(page):
    number = heads(page).index("shape-bias")
    head = f"#table thead th:nth-child({number + 1}) button"
    for order, descending in (("descending", True), ("ascending", False)):
        click(page, head)
        values = [float(text) for text in column(page, number) if text]
        assert len(values) > 60 and values == sorted(values, reverse=descending)
        empty = [not text for text in column(page, number)]
        assert empty == sorted(empty)  # empty cells come last either way
        state = page.execute_script(
            f"return document.querySelector('#table thead th:nth-child({number + 1})').ariaSort"
        )
        assert state == order
    assert column(page, 0)[0] == ("resnet50.a3_in1k")  # the least shape bias of the table
    click(page, "#table thead th:nth-child(1) button")
    names = [name.lower() for name in column(page, 0) if name not in HOSTILE]
    assert names[0].startswith("convnext_base") and names[-1].startswith("vonenet")


def test_filters_by_words_source_and_category(page):
    choose(page, "search", "adversarial linf")
    assert len(column(page, 0)) == 5 and all("linf" in name for name in column(page, 0))
    choose(page, "search", "no such network")
    assert column(page, 0) == []
    choose(page, "search", "")
    choose(page, "source", "measured")
    assert len(column(page, 0)) == (0 if page.kind == "published" else 1 + len(HOSTILE))
    choose(page, "source", "")
    before = len(column(page, 0))
    click(page, "input[data-category=adversarial_training]")
    assert len(column(page, 0)) == before - 15
    click(page, "input[data-category=adversarial_training]")
    assert len(column(page, 0)) == before


def test_other_columns_and_flags(page):
    titles = ask(page, "[...document.getElementById('set').options].map(option => option.textContent)")
    choose(page, "set", str(titles.index("top1_acc/imagenet-real")))
    assert heads(page)[3:] == ["top1_acc/imagenet-real"]
    slip = ask(page, "document.querySelector('#table thead .slip').title")
    assert "last batch only" in slip


def test_scatter_of_any_bias_against_any_score(page):
    names = ask(page, "document.getElementById('scatter').data.map(trace => trace.name)")
    assert names[:7] == [
        *("baseline", "training recipes", "augmentation", "stylized", "freezing", "adversarial training"),
        "contrastive",
    ]
    points = "document.getElementById('scatter').data.flatMap(trace => trace.customdata).length"
    assert ask(page, points) >= 48
    assert "ρ = 0.65" in ask(page, "document.getElementById('rho').textContent")  # within categories
    assert "ρ = 0.47" in ask(page, "document.getElementById('rho').textContent")  # over all networks
    index = ask(page, "data.columns.map(column => column.name)")
    choose(page, "x", str(index.index("HPP")))
    choose(page, "y", str(index.index("Robustness")))
    assert "ρ = 0.79" in ask(page, "document.getElementById('rho').textContent")
    assert ask(page, "document.getElementById('scatter').layout.xaxis.title.text").startswith("high-pass")
    choose(page, "x", str(index.index("metric/bandpass/LFC/0.1")))
    choose(page, "y", str(index.index("top1_acc/imagenet")))
    names = ask(page, "document.getElementById('scatter').data.map(trace => trace.name)")
    assert not any("calibration" in name for name in names)  # drawn images have no place among photographs
    if page.kind == "measured":
        trace = "document.getElementById('scatter').data.find(trace => trace.name === 'tv_resnet50, measured')"
        assert ask(page, f"{trace}.text") == ["tv_resnet50 (measured)"]
        assert ask(page, f"{trace}.error_y.array[0]") == pytest.approx(0.05)
        assert names[-1] == "tv_resnet50, measured"  # on top of all others


def test_correlations_for_each_method_and_exclusion(page):
    z = ask(page, "document.getElementById('heat').data[0].z[0]")
    assert [z[0], z[3]] == [pytest.approx(-0.66, abs=0.01), pytest.approx(0.65, abs=0.01)]  # first: within categories
    choose(page, "method", "spearman between categories")
    assert "[" not in ask(page, "document.getElementById('heat').data[0].text[0][0]")
    choose(page, "method", "spearman given accuracy")
    z = ask(page, "document.getElementById('heat').data[0].z[0]")
    assert z[2] == pytest.approx(0.72, abs=0.01)
    choose(page, "method", "spearman")
    click(page, "input[data-category=adversarial_training]")
    assert ask(page, "document.getElementById('heat').data[0].z[0][3]") == pytest.approx(0.04, abs=0.01)
    assert "[" in ask(page, "document.getElementById('heat').data[0].text[0][3]")  # with its bootstrap interval


def test_correlation_of_any_pair_over_any_selection(page):
    """As scipy and the statistics compute them."""
    index = ask(page, "data.columns.map(column => column.name)")
    rows = study(read_table(PUBLISHED)).set_index("model")
    selected = [*rows.index[rows["category"].isin(["training_recipes", "augmentation", "contrastive"])]]
    give = "data.rows.filter(row => row.study && models.includes(row.model))"
    for x, y in (("cf_norm", "top1_acc/fog_3"), ("HPP", "top1_acc/edge"), ("sparsity", "LPP")):
        pair = rows.loc[selected, [x, y]]
        values = np.array([*pair.to_numpy().T, rows.loc[selected, CONTROL]])
        groups = np.unique(rows.loc[selected, "category"], return_inverse=True)[1]
        both = rank_correlations(values), rank_correlations(values, groups=groups)
        expected = [spearmanr(pair).statistic, both[1][0, 1], partial(both[0], -1)[0, 1], partial(both[1], -1)[0, 1]]
        found = page.execute_script(
            "const [models, i, j, c] = arguments;"
            f"const rows = {give};"
            "return [[false, null], [true, null], [false, c], [true, c]].map(one => spearman(rows, i, j, ...one));",
            *(selected, index.index(x), index.index(y), index.index(CONTROL)),
        )
        assert found == pytest.approx(expected, abs=1e-4), (x, y)  # the page has six significant digits
    choose(page, "x", str(index.index("cf_norm")))
    choose(page, "y", str(index.index("top1_acc/fog_3")))
    choose(page, "search", "robust_resnet50_l2")
    expected = spearmanr(rows[rows.index.str.startswith("robust_resnet50_l2")][["cf_norm", "top1_acc/fog_3"]])
    text = ask(page, "document.getElementById('rho').textContent")
    assert f"ρ = {expected.statistic:.2f} over all 10".replace("-", "−") in text


PLOTS = "[...document.querySelectorAll('.js-plotly-plot')].map(plot => plot.id + JSON.stringify(plot.data))"


@pytest.mark.parametrize("act", ["search", "category", "source"])
def test_filters_act_on_every_plot(page, act):
    before = ask(page, PLOTS)
    sections = "[...document.querySelectorAll('#list > details')].filter(one => !one.hidden).length"
    many = ask(page, sections)
    if act == "category":
        click(page, "input[data-category=adversarial_training]")
        assert ask(page, sections) == many - 15
    elif act == "search":
        choose(page, "search", "moco")
        assert ask(page, sections) == 3
    else:
        choose(page, "source", "measured")
        assert ask(page, sections) == (0 if page.kind == "published" else 1 + len(HOSTILE))
    assert len(before) == (8 if page.kind == "measured" and SHARED else 5)
    assert not {*before} & {*ask(page, PLOTS)}
    shown = ask(page, "document.getElementById('scatter').data.flatMap(trace => trace.customdata)")
    assert {*shown} <= {*column(page, 0)}


@needs_shared
def test_people_stand_beside_networks(page):
    names = "[...document.getElementById(arguments[0]).data].map(trace => trace.name)"
    if page.kind == "published":
        assert "No trial files" in ask(page, "document.getElementById('trials').textContent")
        assert not ask(page, "document.getElementById('bias').data")
        return
    frame = read_observers([SHARED / "human_trials", SHARED / "cue_conflict_trials"])
    assert page.execute_script(f"return {names}", "bias") == ["people", "alexnet", OBSERVER]
    expected = bias_by_category(frame).query("observer == 'alexnet' and category == 'clock'")["value"].item()
    trace = "document.getElementById('bias').data[1]"
    assert ask(page, f"{trace}.x[{trace}.y.indexOf('clock')]") == pytest.approx(expected, abs=1e-5)
    assert page.execute_script(f"return {names}", "lines") == ["people", OBSERVER]
    right = frame[(frame.set == "contrast") & (frame.level == "c30")].groupby("subj").right.mean() * 100
    assert ask(page, "document.getElementById('lines').data.map(trace => trace.y[2])") == pytest.approx(
        [right.mean(), right["subject-01"]], abs=1e-4
    )
    choose(page, "stimuli", "rotation")
    choose(page, "measure", "error consistency")
    assert ask(page, "document.getElementById('lines').data[1].x") == ["90", "180", "270"]  # 0 is no manipulation
    z = ask(page, "document.getElementById('matrix').data[0].z")
    assert len(z) == 3 and z[1][2] == z[2][1] == 1 and z[1][1] is None  # alexnet and its copy on cue conflict
    assert ask(page, "document.getElementById('likeness').data.flatMap(trace => trace.x).length") == 49


def test_ranks_of_own_networks_are_those_of_the_table(page, pages):
    head = ask(page, "[...document.querySelectorAll('#own thead a')].map(one => one.textContent)")
    if page.kind == "published":
        assert head == [] and "No network" in ask(page, "document.getElementById('own').textContent")
        return
    assert {*head} == {"tv_resnet50, measured", *HOSTILE}
    table = read_table([PUBLISHED, pages / "measured.csv"])
    found = ranks(table, [CONTROL]).query("source == 'measured'").set_index("model")
    line = "[...document.querySelectorAll('#own tbody tr')].find(row => row.cells[0].textContent === arguments[0])"
    cells = page.execute_script(f"return [...{line}.cells].map(cell => cell.textContent)", CONTROL)
    for number, name in enumerate(head):
        one = found.loc[name.removesuffix(", measured")]
        assert cells[2 + 2 * number] == f"{one['rank']} of {one['of']} {one['percentile']:.0f} %"
        assert float(cells[1 + 2 * number]) == pytest.approx(one["value"], abs=0.005)


def test_ranks_on_samples_have_a_range(page, pages):
    if page.kind == "published":
        assert "images may give" not in ask(page, "document.querySelector('#own p').textContent")
        return
    files = [PUBLISHED, pages / "measured.csv"]
    table = read_table(files)
    expected = ranks(table, ["LPP"], projections(table, read_beside(files, "uncertainty")))
    (place,) = expected.query("source == 'measured' and model == 'tv_resnet50'").to_dict("records")
    assert place["best"] < place["rank"] < place["worst"]
    find = "find(row => row.cells[0].textContent === 'LPP')"
    texts = ask(page, f"[...document.querySelectorAll('#own tbody tr')].{find}.innerText")
    assert "from 5.0 %" in texts and f"{place['rank']} of {place['of']} ({place['best']} to {place['worst']})" in texts
    assert "that all of the images may give" in ask(page, "document.querySelector('#own p').textContent")


def test_any_network_can_be_highlighted(pages, browser):
    run(
        "report.py",
        "--table",
        PUBLISHED,
        "--highlight",
        "resnet50_prime,resnet50_dino",
        "--out",
        pages / "own.html",
        check=True,
    )
    browser.get((pages / "own.html").as_uri())
    head = ask(browser, "[...document.querySelectorAll('#own thead a')].map(one => one.textContent)")
    assert head == ["resnet50_prime", "resnet50_dino"] and column(browser, 0)[:2] == head
    assert ask(browser, "document.getElementById('scatter').data.slice(-2).map(trace => trace.name)") == head


def test_the_table_can_be_downloaded(page, tmp_path):
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    choose(page, "search", "augmentation")
    click(page, "#csv")
    end = time.monotonic() + 20
    while not (tmp_path / "networks.csv").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    found = pd.read_csv(tmp_path / "networks.csv")
    assert [*found["model"]] == column(page, 0) and [*found.columns[3:]] == heads(page)[3:]
    expected = study(read_table(PUBLISHED)).set_index("model").loc[found["model"]]
    for name in ("ID", "HPP", "shape-bias"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_every_network_has_an_address(pages, browser):
    for model in ("resnet50_prime", HOSTILE[0]):
        browser.get("about:blank")
        browser.get((pages / "measured.html").as_uri() + f"#network={quote(model)}")
        wait_for(
            browser, "document.querySelector('details[open] .main-svg') || document.querySelector('details[open] p')"
        )
        assert ask(browser, "[...document.querySelectorAll('details[open]')].map(one => one.dataset.model)") == [model]
    links = ask(browser, "[...document.querySelectorAll('#table tbody a')].map(one => [one.textContent, one.hash])")
    assert all(link == f"#network={quote(name, safe=SAFE)}" for name, link in links)


def test_the_difference_to_the_baseline(page):
    page.execute_script("openSection('resnet50_prime')")
    where = "[...document.querySelectorAll('details[open] .plot')].at(-1)"
    wait_for(page, f"{where} && {where}.data")
    rows = study(read_table(PUBLISHED)).set_index("model")
    fog = [f"top1_acc/fog_{severity}" for severity in range(1, 6)]
    at = ask(page, f"{where}.data[0].y").index("fog")
    assert ask(page, f"{where}.data[0].z[{at}]") == pytest.approx([*rows.loc["resnet50_prime", fog]], abs=1e-3)
    choose(page, "map", "difference")
    expected = rows.loc["resnet50_prime", fog] - rows.loc["tv_resnet50", fog]
    assert ask(page, f"{where}.data[0].z[{at}]") == pytest.approx([*expected], abs=1e-3)


def test_the_page_defines_its_scores_and_says_when_it_was_made(page):
    assert ask(page, "[...document.querySelectorAll('dt')].map(one => one.textContent)") == heads(page)[3:]
    text = ask(page, "document.querySelector('dl').textContent")
    assert "HPP / (LPP + HPP) [share]" in text and "Published values: rests on a known slip" in text
    made = ask(page, "document.getElementById('made').textContent")
    assert re.search(r"Made on 20\d\d-\d\d-\d\d \d\d:\d\d UTC with version ([0-9a-f]{12}\+?|unknown)", made)


def test_no_button_needs_a_network(page):
    titles = ask(page, "[...document.querySelectorAll('.modebar-btn')].map(one => one.dataset.title ?? '')")
    assert "Zoom" in titles and not [
        one for one in titles if re.search("share|cloud|studio|edit|logo|plotly", one, re.I)
    ]


def resized(browser, width, height, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


@pytest.fixture(params=[(1400, 900, "light"), (400, 800, "light"), (1400, 900, "dark"), (400, 800, "dark")], ids=str)
def sized(request, browser, pages):
    """The page with measured networks in a window of some size and colour scheme."""
    resized(browser, *request.param)
    browser.get((pages / "measured.html").as_uri())
    yield browser, request.param
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


TEXTS = """
const boxes = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, host = node.parentElement, style = getComputedStyle(host);
  if (!node.textContent.trim() || host.closest("script, option, [hidden], .scroll, .filters, .hoverlayer")) continue;
  if (host.closest("details:not([open])") && !host.closest("summary")) continue;
  if (style.visibility === "hidden" || style.opacity === "0") continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const box of range.getClientRects())
    if (box.width > 1 && box.height > 1) boxes.push([box.left, box.top, box.right, box.bottom, node.textContent]);
}
const overlap = (a, b, from) => Math.min(a[from + 2], b[from + 2]) - Math.max(a[from], b[from]);
const clash = (a, b) => overlap(a, b, 0) > 1 && overlap(a, b, 1) > 2;
return [boxes.length, boxes.flatMap((a, i) => boxes.slice(0, i).filter(b => clash(a, b)).map(b => [a[4], b[4]]))];
"""


def test_the_rank_is_visible_without_scrolling_and_no_two_texts_intersect(sized):
    page, (width, height, _) = sized
    box = ask(page, "document.querySelector('#own .rank').getBoundingClientRect().toJSON()")
    assert min(box["left"], box["top"]) >= 0 and box["right"] <= width and box["bottom"] <= height
    assert ask(page, "document.documentElement.scrollWidth") <= width  # nothing sticks out
    page.execute_script("openSection('calibration_silhouette'); openSection('tv_resnet50')")
    wait_for(page, "document.querySelectorAll('details[open] .plot .main-svg').length > 20")
    number, clashes = page.execute_script(TEXTS)
    assert number > 300 and clashes == []


def test_the_scheme_is_that_of_the_system_or_the_chosen_one(sized):
    page, (*_, scheme) = sized
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "document.getElementById('scatter')._fullLayout.font.color"
    looks = {"light": ("rgb(255, 255, 255)", "#1c1c1c"), "dark": ("rgb(22, 22, 22)", "#e8e8e8")}
    assert (ask(page, paper), ask(page, ink)) == looks[scheme]
    other = {"light": "dark", "dark": "light"}[scheme]
    choose(page, "scheme", other)
    assert (ask(page, paper), ask(page, ink)) == looks[other]


def test_a_networks_section_is_made_when_it_is_opened(page):
    model = "resnet50_prime" if page.kind == "published" else "calibration_silhouette"
    where = "document.querySelector('details[open]')"
    assert ask(page, "document.querySelectorAll('details .plot').length") == 0
    page.execute_script(
        "[...document.querySelectorAll('tbody a')].find(one => one.textContent === arguments[0]).click()",
        model,
    )
    wait_for(page, f"{where} && {where}.querySelectorAll('.plot .main-svg').length > 0")
    titles = ask(page, f"[...{where}.querySelectorAll('.plot')].map(plot => plot.layout.title.text)")
    expected = [
        "Band-pass accuracy / clean accuracy",
        "Critical band: noise levels to take away",
        "Accuracy under corruptions",
    ]
    if page.kind == "measured":
        expected[2:2] = ["Shape bias by category", "Accuracy under solarisation", "Criticality by layer"]
        bars = f"[...{where}.querySelectorAll('.plot')][2].data[0]"
        assert ask(page, f"{bars}.y") == [0.75]
        curve, layers = (f"[...{where}.querySelectorAll('.plot')][{number}].data[0]" for number in (3, 4))
        assert (ask(page, f"{curve}.x"), ask(page, f"{curve}.y")) == ([0, 0.5, 1], [9, 9, 9])
        assert (ask(page, f"{layers}.x"), ask(page, f"{layers}.y")) == (["0.weight", "fc"], [0.4, 0.8])
    assert titles == expected
    text = ask(page, f"{where}.textContent")
    assert ("c0ffeec0ffee" in text and "some machine" in text) == (page.kind == "measured")
    assert ("no record of this network" in text) == (page.kind == "published")


def test_measured_and_published_stand_side_by_side(page):
    if page.kind == "published":
        assert ask(page, "document.querySelectorAll('.badge.measured').length") == 0
        return
    page.execute_script("openSection('tv_resnet50')")
    where = "document.querySelector('details[open]')"
    wait_for(page, f"{where}.querySelectorAll('.plot .main-svg').length > 0")
    heads = ask(page, f"[...{where}.querySelectorAll('thead')][0].textContent")
    assert heads == "publishedmeasured"
    assert "26 points off </script><b>" in ask(page, f"{where}.textContent")
    traces = ask(page, f"{where}.querySelector('.plot').data.filter(one => one.mode !== 'lines').map(one => one.name)")
    assert traces == ["low-pass, published", "low-pass, measured", "high-pass, published", "high-pass, measured"]


def test_screenshot_is_not_blank(page, tmp_path):
    image = pytest.importorskip("PIL.Image")
    page.execute_script("document.getElementById('plot').scrollIntoView()")
    page.save_screenshot(str(tmp_path / "page.png"))
    colours = image.open(tmp_path / "page.png").convert("RGB").getcolors(1 << 24)
    shown = {colour for _, colour in colours}
    assert {(0, 114, 178), (230, 159, 0), (213, 94, 0)} <= shown  # categories' colours in the scatter plot


def test_the_pages_data_equals_the_table():
    table = read_table(PUBLISHED)
    found = report.page_data(table, pd.DataFrame(columns=UNCERTAINTY), pd.DataFrame(), [])
    place = {one["name"]: number for number, one in enumerate(found["columns"])}
    assert [row["model"] for row in found["rows"]] == [*table["model"]]
    metrics = [name for name in table.columns if name not in KEYS]
    for row, (_, values) in zip(found["rows"], table.iterrows(), strict=True):
        shown = [row["values"][place[name]] for name in metrics]
        assert shown == [None if value != value else value for value in values[metrics]]
    named = {one["name"]: one for one in found["columns"]}
    assert named["HPP"]["label"] == "high-pass performance [ratio]" and named["cf_norm"]["digits"] == 1
    assert "512 images" in named["metric/weight_reset/fc"]["slip"] and found["cutoffs"] == CUTOFFS


def test_a_channels_curve_has_the_published_numbers():
    """Its peak lies at the centre frequency with the threshold of the peak sensitivity, half of it half a width off."""
    curve, frequencies = np.array(report._channel(2.0, 14.0, 0.5)), 1.75 * 2**report.OCTAVES
    peak = curve.argmax()
    assert frequencies[peak] == pytest.approx(14) and 2 ** (curve[peak] - 4) == pytest.approx(0.5)
    assert np.interp(4.0, report.OCTAVES, curve) == pytest.approx(curve[peak] / 2, abs=1e-3)


def test_values_on_samples_have_a_range_of_ranks_and_their_share():
    table = read_table(PUBLISHED)
    own = pd.DataFrame([{"model": "mine", "category": "", "source": "measured", "shape-bias": 0.5, CONTROL: 75.0}])
    row = {"model": "mine", "source": "measured", "metric": "shape-bias", "low": 0.2, "high": 0.8, "seeds": 1}
    bounds = {"share": 0.25, "whole_low": 0.3, "whole_high": 0.7}
    uncertainty = pd.DataFrame([row | bounds], columns=UNCERTAINTY)
    data = report.page_data(pd.concat([table, own]), uncertainty, pd.DataFrame(), [])
    (mine,) = [one for one in data["rows"] if one["model"] == "mine"]
    place = {one["name"]: number for number, one in enumerate(data["columns"])}
    published = study(table)["shape-bias"]
    rank, best, worst = (1 + int((published > bound).sum()) for bound in (0.5, 0.7, 0.3))
    assert mine["shares"] == {place["shape-bias"]: 0.25}
    found = mine["ranks"][place["shape-bias"]]
    assert (found[0], found[1], *found[3:]) == (rank, 49, best, worst) and best < rank < worst
    assert mine["ranks"][place[CONTROL]][0] == mine["ranks"][place[CONTROL]][3] == mine["ranks"][place[CONTROL]][4]


def test_scores_on_samples_have_bars_in_the_scatter():
    """Robustness is a mean over three sets: no record has its interval, but what all images would give is known."""
    names = [f"top1_acc/{name}" for name in ("imagenet-a", "imagenet-c", "imagenet-cbar")]
    own = pd.DataFrame([{"model": "mine", "category": "", "source": "measured"} | dict.fromkeys(names, 40.0)])
    row = {"model": "mine", "source": "measured", "low": 30, "high": 50, "seeds": 1, "share": 0.25}
    uncertainty = pd.DataFrame(
        [row | {"metric": n, "whole_low": 37.0, "whole_high": 43.0} for n in names], columns=UNCERTAINTY
    )
    data = report.page_data(pd.concat([read_table(PUBLISHED), own]), uncertainty, pd.DataFrame(), [])
    (mine,) = [one for one in data["rows"] if one["model"] == "mine"]
    place = {one["name"]: number for number, one in enumerate(data["columns"])}
    assert mine["bounds"][place[names[0]]] == [30, 50]
    of_three = [40 - np.sqrt(3), 40 + np.sqrt(3)]  # of three equal and independent errors of 3
    assert mine["bounds"][place["Robustness"]] == pytest.approx(of_three)

"""The report page in a real browser: opens without errors or network, sorts, filters, opens a network's section."""

import json
import shutil
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

import report
from common import script
from imagenet_biases.results.table import KEYS, PUBLISHED, UNCERTAINTY, read_table
from imagenet_biases.study import CUTOFFS, MIDDLE_CUTOFFS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1500,1100"),
)


HOSTILE = (  # names of networks that a page must show as they are
    "<!--<script>",
    "</script><img src=x onerror=alert(1)>",
    "/*PLOTLY*/ /*DATA*/null",
    "<b>bold</b> & <a href='javascript:alert(1)'>link</a> \u2028 \\u003c",
)


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
    script("report.py", "--table", PUBLISHED, "--results", folder / "none", "--out", folder / "published.html")
    drawn = {"category": "calibration", "collection": "drawn"}
    bandpass = {f"metric/bandpass/{kind}/{c}": 0.5 for kind in ("LFC", "HFC") for c in MIDDLE_CUTOFFS}
    categories = {"cat": {"value": 0.75, "low": 0.5, "high": 0.9, "shape": 3, "texture": 1, "other": 0}}
    records = [
        record("tv_resnet50", "imagenet", {"top1_acc/imagenet": 76.1}),
        *(record(name, "imagenet", {"top1_acc/imagenet": 50.0}, file=f"{i}") for i, name in enumerate(HOSTILE)),
        record("tv_resnet50", "spectral", bandpass),
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
    script("merge_results.py", "--results", folder / "results", "--out", folder)
    tables = ("--table", PUBLISHED, folder / "measured.csv")
    script("report.py", *tables, "--results", folder / "results", "--out", folder / "measured.html")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium with chromedriver here (apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
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
    rows = published if page.kind == "published" else published + 3 + len(HOSTILE)
    assert len(column(page, 0)) == rows
    assert ask(page, "document.getElementById('count').textContent") == f"{rows} of {rows} rows"
    assert ask(page, "document.querySelectorAll('tr.measured').length") == rows - published
    table = read_table([PUBLISHED, *([pages / "measured.csv"] if page.kind == "measured" else [])])
    assert column(page, 0) == [*table["model"]] and column(page, 2) == [*table["source"]]
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
    assert names[0].startswith(("calibration_silhouette", "convnext_base")) and names[-1].startswith("vonenet")


def test_filters_by_words_source_and_category(page):
    choose(page, "search", "adversarial linf")
    assert len(column(page, 0)) == 5 and all("linf" in name for name in column(page, 0))
    choose(page, "search", "no such network")
    assert column(page, 0) == []
    choose(page, "search", "")
    choose(page, "source", "measured")
    assert len(column(page, 0)) == (0 if page.kind == "published" else 3 + len(HOSTILE))
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
    choose(page, "x", str(index.index("shape-bias")))
    choose(page, "y", str(index.index("top1_acc/imagenet")))
    if page.kind == "measured":
        trace = "document.getElementById('scatter').data.find(trace => trace.name === 'calibration (drawn), measured')"
        assert ask(page, f"{trace}.marker.symbol") == "hexagon-open"
        assert ask(page, f"{trace}.text[0]") == "calibration_silhouette (measured)"
        assert ask(page, f"{trace}.error_y.array[0]") == pytest.approx(0.05)


def test_correlations_for_each_method_and_exclusion(page):
    z = ask(page, "document.getElementById('heat').data[0].z[0]")
    assert [z[0], z[3]] == [pytest.approx(-0.66, abs=0.01), pytest.approx(0.65, abs=0.01)]  # first: within categories
    choose(page, "method", "spearman between categories")
    assert "[" not in ask(page, "document.getElementById('heat').data[0].text[0][0]")
    choose(page, "method", "spearman given accuracy")
    z = ask(page, "document.getElementById('heat').data[0].z[0]")
    assert z[2] == pytest.approx(0.72, abs=0.01)
    choose(page, "method", "spearman")
    choose(page, "excluded", "adversarial_training")
    assert ask(page, "document.getElementById('heat').data[0].z[0][3]") == pytest.approx(0.04, abs=0.01)


def test_a_networks_section_is_made_when_it_is_opened(page):
    model = "resnet50_prime" if page.kind == "published" else "calibration_silhouette"
    where = "document.querySelector('details[open]')"
    assert ask(page, "document.querySelectorAll('details .plot').length") == 0
    page.execute_script(
        "[...document.querySelectorAll('#table tbody button')].find(one => one.textContent === arguments[0]).click()",
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
    traces = ask(page, f"{where}.querySelector('.plot').data.map(trace => trace.name)")
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

"""The laboratory without a browser: lists of trials, pixels, files of answers, the server's refusals, the scores."""

import collections
import contextlib
import http.client
import json
import math
import re
import urllib.parse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
import torch

import run_experiment
from common import ROOT, SHARED, needs_shared, responses, run
from experiments import answer_all, command, jspsych, served, session_of
from imagenet_biases import Data
from imagenet_biases.base.errors import UserError
from imagenet_biases.base.schema import Malformed
from imagenet_biases.humans import categories16, experiment
from imagenet_biases.humans.agreement import bias_by_category, read_observers
from imagenet_biases.humans.stimulus_sets import STIMULUS_SETS, stimulus, texture_category
from imagenet_biases.humans.trials import NO_MEASUREMENT, read_trials
from imagenet_biases.measures import spatial_channel
from imagenet_biases.stimuli.seeded import normal, streams
from imagenet_biases.study import CATEGORIES_16
from imagenet_biases.vocabulary import Batch, Pass, Readout

pytestmark = pytest.mark.filterwarnings("ignore:imagenet. . images per category", "ignore:.*images per category")
NAMES = list(CATEGORIES_16)


def shape(trial):
    return trial.category


def texture(trial):
    return texture_category(trial.file)


# The list of trials ---------------------------------------------------------------------------------------------------


def test_every_image_once_in_an_order_of_the_subjects_own(drawn, tmp_path):
    one, again, other = (session_of(command(drawn, tmp_path, name)) for name in ("a", "a", "b"))
    files = [trial.file for trial in one.trials]
    assert len(files) == len(set(files)) == 96
    assert files == [trial.file for trial in again.trials] and sorted(files) != files
    assert set(files) == {trial.file for trial in other.trials} and files != [trial.file for trial in other.trials]
    short = session_of(command(drawn, tmp_path, "a", "--trials", 40))
    counts = collections.Counter(trial.category for trial in short.trials)
    assert len(short.trials) == 40 and set(counts.values()) == {2, 3} and len(counts) == 16
    assert session_of(command(drawn, tmp_path, "a", "--seed", 1)).names != one.names


@pytest.mark.parametrize("benchmark", ["spectral", "criticalband", "solarization"])
def test_subjects_of_consecutive_numbers_are_a_latin_square(drawn, benchmark):
    images, conditions = categories16.presented(benchmark, Data(root=drawn), "11", 48)
    assert len(images) == 48
    shown = collections.Counter()
    for number in range(len(conditions)):
        trials = experiment.trials_of_benchmark(benchmark, Data(root=drawn), "11", f"lab-{number:02d}", 3, 48)
        shown.update((trial.file, trial.condition.name) for trial in trials)
        for part in (trials, *([t for t in trials if t.category == name] for name in NAMES)):
            counts = collections.Counter(trial.condition.name for trial in part)
            assert max(counts.values()) - min([counts[condition.name] for condition in conditions]) <= 1
    assert len(shown) == 48 * len(conditions) and set(shown.values()) == {1}


def test_practice_shows_intact_photographs_that_the_session_does_not(drawn, tmp_path):
    data = Data(root=drawn)
    for name in ("cue-conflict", "colour", "contrast"):
        session = session_of(command(drawn, tmp_path, "a", "--set", name)).trials
        practice = experiment.practice_trials(session, data, 0, 16, False)
        assert len({trial.category for trial in practice}) >= 15  # the drawn sets share a photograph
        seen = {stimulus(Path(trial.file).name).image for trial in session}
        for trial in practice:
            assert trial.images.name.split("/")[1] not in (name, "cue-conflict")
            assert stimulus(Path(trial.file).name).image not in seen
            assert experiment.canonical(trial.level) in experiment.PRACTICE.values()
    session = session_of(command(drawn, tmp_path, "a", "--benchmark", "spectral", "--trials", 48)).trials
    practice = experiment.practice_trials(session, data, 0, 32, False)
    assert not {trial.file for trial in session} & {trial.file for trial in practice}
    with pytest.raises(UserError, match="practice needs 160"):
        experiment.practice_trials(session, data, 0, 160, False)


def test_the_list_is_written_and_nothing_shown(drawn, tmp_path):
    words = ("--set", "edge", "--data", drawn, "--subject", "me", "--results", tmp_path, "--list-only")
    assert run("run_experiment.py", *words).returncode == 0
    (path,) = tmp_path.rglob("*.csv")
    rows = pd.read_csv(path)
    assert path.name == "edge_me_list.csv" and len(rows) == 32 and list(rows.trial) == [*range(1, 33)]
    assert all((drawn / "model-vs-human" / "edge" / file).exists() for file in rows.file)


# Pixels ---------------------------------------------------------------------------------------------------------------


class Pixels(Readout):
    """The pixels that a network gets."""

    id, shape = "test pixels", (3, 224, 224)

    def __call__(self, presentation):
        return presentation.pixels


class Nothing(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) @ torch.eye(3, 1000)


@pytest.mark.parametrize("benchmark", ["spectral", "criticalband", "solarization"])
def test_the_screen_shows_the_networks_pixels_rounded(drawn, benchmark):
    images, conditions = categories16.presented(benchmark, Data(root=drawn), "3", 16)
    conditions = conditions[:: max(1, len(conditions) // 5)]
    results = responses([Pass(images, conditions, Pixels())], Nothing(), seed=7)
    for condition in conditions:
        values = results[images.name, condition.name].values
        for position in (0, 11):
            trial = experiment.Trial(images, position, condition, "cat", condition.name)
            shown = experiment.pixels(trial, 7)
            assert np.array_equal(shown.transpose(2, 0, 1), np.rint(values[position] * 255).astype(np.uint8))


def test_the_mask_is_pink_noise_of_full_contrast(drawn, tmp_path):
    trial = session_of(command(drawn, tmp_path, "a")).trials[0]
    mask = experiment.mask(trial, 5)
    assert mask.min() == 0 and mask.max() == 255
    keys = torch.from_numpy(trial.images.keys[[trial.position]])
    white = np.abs(np.fft.rfft2(normal(streams(Batch(keys, 5), "mask"), (224, 224))[0].numpy()))
    pink = np.abs(np.fft.rfft2(mask.astype(float)))
    frequency = np.hypot(np.fft.fftfreq(224)[:, None], np.fft.rfftfreq(224)[None])
    inside = (frequency > 0.01) & (frequency < 0.1) & (white > 20)  # where rounding to 8 bits is small
    gain = (pink * frequency / np.maximum(white, 1e-9))[inside]
    assert gain.std() < 0.02 * gain.mean()  # of white noise, divided by the frequency and by nothing else
    assert not np.array_equal(mask, experiment.mask(trial, 6))


# The files of answers -------------------------------------------------------------------------------------------------


@needs_shared
def test_files_have_the_columns_and_names_of_the_released_ones(drawn, tmp_path):
    for name in STIMULUS_SETS:
        session = session_of(command(drawn, tmp_path, "me", "--set", name))
        session.open()
        session.close()
        assert not session.path.exists() and session.path.with_suffix(".json").exists()  # nothing is scored yet
        session.open()
        session.answer(answer(0))
        session.close()
        folder = SHARED / "cue_conflict_trials" if name == "cue-conflict" else SHARED / "human_trials" / name
        released = min(folder.glob("*subject-01*"))
        assert session.path.name == released.name.replace("subject-01", "me")
        written = session.path.read_text().splitlines()
        assert written[0] == released.read_text().splitlines()[0] and len(written) == 2
        here, there = session.names[0].split("_"), released.read_text().splitlines()[1].split(",")[-1].split("_")
        assert (here[:2], here[2]) == (there[:2], "sme") and len(here) <= len(there) + 1


def test_a_file_is_read_as_a_published_one(drawn, tmp_path):
    session = answer_all(
        session_of(command(drawn, tmp_path, "me")), lambda trial: "na" if "cat" in trial.file else "dog"
    )
    frame = read_trials(session.path)
    assert len(frame) == 96 and set(frame.set) == {"cue-conflict"} and set(frame.subj) == {"me"}
    assert list(frame.trial) == [str(number) for number in range(1, 97)]
    assert set(frame.rt[frame.object_response == "na"]) == {"NaN"}
    assert set(frame.rt[frame.object_response == "dog"]) == {"0.500000"}
    assert list(frame.image) == [Path(trial.file).stem for trial in session.trials]
    description = json.loads(session.path.with_suffix(".json").read_text())
    assert description["measurement"] and description["finished"] and len(description["durations"]) == 96
    assert description["durations"]["96"] == {
        "fixation": 300,
        "stimulus": 200,
        "mask": 200,
        "dropped": 0,
        "wrong": False,
    }


def answer(number, **more):
    return {"trial": number, "response": "cat", "rt": 0.5, "durations": [300.0, 200.0, 200.0], "dropped": 0} | more


def test_a_session_resumes_after_the_last_whole_row(drawn, tmp_path):
    args = command(drawn, tmp_path, "me", "--trials", 5)
    session = session_of(args)
    session.open()
    with pytest.raises(UserError, match="open in another"):
        session_of(args).open()
    for number in range(2):
        assert session.answer(answer(number)) == number + 1
    for wrong in (answer(1), answer(3), answer(2, response="horse"), answer(2, rt="1"), answer(2, durations=None), {}):
        with pytest.raises(Malformed):
            session.answer(wrong)
    session.close()
    whole = session.path.read_bytes()
    session.path.write_bytes(whole + b"me,1,3,0.5,ca")  # the power went
    with pytest.raises(UserError, match="seed 0, now it is 1"):
        session_of(command(drawn, tmp_path, "me", "--trials", 5, "--seed", 1)).open()
    with pytest.raises(UserError, match="trials 5, now it is 6"):
        session_of(command(drawn, tmp_path, "me", "--trials", 6)).open()
    session = session_of(args)
    session.open()
    assert session.done == 2 and session.path.read_bytes() == whole
    session.answer(answer(2, durations=[300.0, 240.0, 200.0], dropped=2))
    assert "off by more than a frame: 1; frames dropped: 2" in session.summary()
    session.close()
    session.path.write_bytes(whole[: whole.index(b"\n") + 9])  # not even one row is whole
    session = session_of(args)
    session.open()
    session.close()
    assert session.done == 0 and not session.path.exists()
    session.path.write_bytes(whole.replace(b"_s5n_", b"_nse_"))
    with pytest.raises(UserError, match="does not have the trials"):
        session_of(args).open()


@pytest.mark.parametrize("name", ["subject-01", "a_b", "../x", ".x", "wandb", "", "x" * 200, "a\nb", "a/b"])
def test_subjects_that_cannot_be_are_refused(drawn, tmp_path, name):
    ended = run("run_experiment.py", "--set", "edge", "--data", drawn, "--results", tmp_path, "--subject", name)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_one_command_deletes_a_subject_and_nobody_else(drawn, tmp_path):
    for name, words in (("me", ()), ("me-2", ()), ("me", ("--clock-factor", 2))):
        answer_all(session_of(command(drawn, tmp_path, name, *words)), shape)
    words = ("--trials", *tmp_path.rglob("*.csv"), "--data", drawn, "--results", tmp_path)
    with pytest.warns(UserWarning, match="no measurement"):
        assert run("eval_model_vs_human.py", *words).returncode == 0
    assert (tmp_path / "me" / "model_vs_human.json").exists()
    ended = run("run_experiment.py", "--subject", "me", "--results", tmp_path, "--delete")
    assert ended.returncode == 0 and len(re.findall("^deleted ", ended.stdout, re.M)) >= 6
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left and all("me-2" in str(path.relative_to(tmp_path)) for path in left)
    assert run("run_experiment.py", "--subject", "me", "--results", tmp_path, "--delete").returncode == 2


# The page's texts -----------------------------------------------------------------------------------------------------


def test_a_translation_has_all_texts_and_no_others(tmp_path):
    english, path = experiment.texts(), tmp_path / "german.json"
    assert set(NAMES) <= set(english)
    path.write_text(json.dumps(english | {"knife": "Messer"}))
    assert experiment.texts(path)["knife"] == "Messer"
    for change, problem in (
        ({"welcom": ""}, "welcom is not a text"),
        ({"pause_text": "{done}"}, "placeholders"),
        ({"knife": 1}, "knife is 1"),
    ):
        path.write_text(json.dumps(english | change))
        with pytest.raises(UserError, match=problem):
            experiment.texts(path)
    path.write_text(json.dumps({key: value for key, value in english.items() if key != "dog"}))
    with pytest.raises(UserError, match="dog is missing"):
        experiment.texts(path)


def test_a_consent_is_text_whatever_it_holds():
    made = experiment.simple_markdown("# A <b>\n\n**bold** & <script>x</script>\n\n- one\n- two\n")
    assert made == (
        "<h1>A &lt;b&gt;</h1>\n<p><strong>bold</strong> &amp; &lt;script&gt;x&lt;/script&gt;</p>\n"
        "<ul><li>one</li><li>two</li></ul>"
    )


def test_jspsych_is_fetched_once_and_pinned(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("JSPSYCH_RELEASE", mirror.address)
    path = f"/npm/jspsych@{run_experiment.JSPSYCH}/dist/index.browser.min.js"
    with pytest.raises(UserError, match="--download fetches it"):
        run_experiment.jspsych(False)
    mirror.files[path] = b"another file"
    with pytest.raises(UserError, match=r"sha256 begins with"):
        run_experiment.jspsych(True)
    mirror.files[path] = jspsych().read_bytes()
    fetched = run_experiment.jspsych(True)
    assert run_experiment.jspsych(False) == fetched and len(mirror.asked) == 2
    fetched.write_bytes(b"another file")
    with pytest.raises(UserError, match="is not jsPsych"):
        run_experiment.jspsych(False)


def test_the_timing_told_is_that_measured():
    text = " ".join((ROOT / "docs" / "experiment.md").read_text("utf-8").split())
    loads = json.loads((ROOT / "benchmarks" / "experiment_timing.json").read_text())["figures"]
    for figures in loads.values():
        low, *_, high = figures["stimulus"]["ms_0_5_50_95_100"]
        assert f"{figures['trials']} trials: the stimulus lasted {low} to {high} ms, within one frame" in text
        assert figures["stimulus"]["within_a_frame_percent"] == 100 and not figures["trials_with_dropped_frames"]
    assert "no frame was dropped; the same beside two busy processes" in text and loads.keys() == {"load 0", "load 2"}


# The server's refusals ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(drawn, tmp_path_factory):
    with served(command(drawn, tmp_path_factory.mktemp("served"), "me", "--trials", 3)) as (laboratory, address):
        yield laboratory, address


def ask(address, method="GET", path="", body=None, **headers):
    """The status of a request whose path is sent as it is."""
    parts = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    origin = {"Origin": f"http://{parts.netloc}"} if method == "POST" else {}
    sent = {"Host": parts.netloc, **origin, **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request(method, f"{parts.path}{path}", body, {name: value for name, value in sent.items() if value})
    reply = connection.getresponse()
    return reply.status, reply.read(), dict(reply.getheaders())


def test_the_server_answers_its_own_page_only(server):
    laboratory, address = server
    assert address.startswith("http://127.0.0.1:")
    for path in ("", "experiment.js", "style.css", "pictograms.svg", "jspsych.js", "stimulus/session/0"):
        status, content, headers = ask(address, path=path)
        assert status == 200 and content and "default-src 'self'" in headers["Content-Security-Policy"], path
    assert ask(address, path="", Origin="http://evil.example")[0] == 403
    assert ask(address, path="", Host="evil.example")[0] == 403
    assert ask(address.replace(laboratory.token, "x" * 32))[0] == 403
    assert ask(address.replace(f"/{laboratory.token}/", "/"))[0] == 403
    for path in (
        *("../../run_experiment.py", "..%2f..%2frun_experiment.py", "/etc/passwd", "texts.json", "./page.html/../"),
        *("stimulus/session/3", "stimulus/other/0", "stimulus/session/-1", "stimulus/session/0/../../../etc/passwd"),
    ):
        assert ask(address, path=path)[0] == 404, path
    assert ask(address, "PUT", "answer")[0] == 501


def test_the_server_takes_answers_of_one_tab_of_its_page(server):
    _, address = server
    body = json.dumps({"tab": "a", "value": answer(0)})
    assert ask(address, "POST", "claim", body, Origin=None)[0] == 403
    assert ask(address, "POST", "claim", body, Origin="http://evil.example")[0] == 403
    assert ask(address, "POST", "answer", body)[0] == 409  # it has not claimed the session
    assert ask(address, "POST", "claim", body)[0] == 200
    other = body.replace('"a"', '"b"')
    for action in ("claim", "answer", "alive"):
        assert ask(address, "POST", action, other)[0] == 409, action
    with contextlib.suppress(ConnectionError):  # it does not wait for the end of what it refuses
        assert ask(address, "POST", "answer", b"x" * 10_000_000)[0] == 413
    for length in ("10000000", "-1", "a", "1e3"):
        assert ask(address, "POST", "answer", b"", Content_Length=length)[0] == 413
    for wrong in ("", "[]", "{}", '{"tab": 1}', '{"tab": "a", "value": [', "[" * 5000):
        assert ask(address, "POST", "answer", wrong)[0] == 400, wrong
    for foreign in ({"subject": "other"}, {"path": "../x.csv"}):  # what it does not ask for changes nothing
        status, reply, _ = ask(address, "POST", "display", json.dumps({"tab": "a", "value": {}} | foreign))
        assert status == 200 and json.loads(reply) == {"next": 0}
    assert json.loads(ask(address, "POST", "answer", body)[1]) == {"next": 1}
    assert ask(address, "POST", "answer", body)[0] == 400  # no trial twice
    assert ask(address, "POST", "release", body)[0] == 200
    status, reply, _ = ask(address, "POST", "claim", other)
    assert status == 200 and json.loads(reply)["next"] == 1
    assert ask(address, "POST", "delete", other)[0] == 404


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc/net/tcp here")
def test_the_server_is_on_this_machine_only(server):
    _, address = server
    port = urllib.parse.urlsplit(address).port
    with open("/proc/net/tcp") as file:
        hosts = {line.split()[1] for line in file if line.split()[1].endswith(f":{port:04X}") and " 0A " in line}
    assert hosts == {f"0100007F:{port:04X}"}
    with pytest.raises(requests.ConnectionError):
        requests.get(address.replace("127.0.0.1", "127.0.0.2"), timeout=5)


# Scores ---------------------------------------------------------------------------------------------------------------


def test_a_subject_is_scored_and_shown_like_a_network(drawn, tmp_path):
    session = answer_all(session_of(command(drawn, tmp_path, "me")), shape)
    again = answer_all(session_of(command(drawn, tmp_path, "fast", "--clock-factor", 9)), texture)
    words = ("--trials", session.path, again.path, "--data", drawn, "--results", tmp_path)
    with pytest.warns(UserWarning, match="no measurement.*: fast-no-measurement$"):
        ended = run("eval_model_vs_human.py", *words)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    for name, bias in (("me", 1), ("fast", 0)):
        name += NO_MEASUREMENT if name == "fast" else ""
        record = json.loads((tmp_path / name / "model_vs_human.json").read_text())
        assert record["metrics"]["shape-bias"] == bias
        low, high = record["intervals"]["shape-bias"]
        assert 0 <= low <= bias <= high <= 1 and 0 < high - low < 0.1
    with pytest.warns(UserWarning, match="no measurement"):
        table = bias_by_category(read_observers([tmp_path])).set_index(["observer", "category"])
    assert table.value["me", "all"] == 1 and 0.9 < table.low["me", "all"] < 1


def sees_coarse_noise_badly(trial):
    """Right but for noise of the octaves 2 to 4 from a standard deviation of 0.04 on."""
    settings = trial.condition.settings
    return "na" if settings.get("sd", 0) >= 0.04 and settings["frequency"] in (2, 3, 4) else trial.category


@pytest.mark.slow
def test_a_channel_of_people_from_one_condition_per_image(drawn, tmp_path):
    args = [command(drawn, tmp_path, f"p-{n}", "--benchmark", "criticalband", "--practice", 0) for n in range(2)]
    session = answer_all(session_of(args[0]), sees_coarse_noise_badly)
    words = ("--trials", session.path, "--results", tmp_path)
    ended = run("eval_categories16.py", *words)
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "p-0" / "categories16.json").read_text())["metrics"]
    table = np.full((5, 7), 100.0)
    table[2:, 2:5] = 0
    channel = spatial_channel.fit(spatial_channel.thresholds(table))
    assert metrics["metric/criticalband/bw/16"] == pytest.approx(channel.bandwidth)
    assert metrics["metric/criticalband/cf/16"] == pytest.approx(channel.centre_frequency)
    assert metrics["top1_acc/criticalband/sd0.08/f3/16"] == 0 and metrics["top1_acc/criticalband/sd0.16/f0/16"] == 100
    refused = run("eval_model_vs_human.py", *words)
    assert refused.returncode == 2 and "eval_categories16.py" in refused.stderr
    assert read_observers([tmp_path]) is None


@pytest.mark.slow
def test_ratios_of_people_and_networks_are_those_of_their_counts(drawn, tmp_path):
    args = command(drawn, tmp_path, "me", "--benchmark", "spectral", "--practice", 0)
    session = answer_all(session_of(args), lambda trial: "dog" if "high-pass 0." in trial.level else trial.category)
    run("eval_categories16.py", "--trials", session.path, "--results", tmp_path, check=True)
    metrics = json.loads((tmp_path / "me" / "categories16.json").read_text())["metrics"]
    frame = read_trials(session.path, sets=("spectral",))
    assert metrics["top1_acc/imagenet/16"] == 100 and metrics["metric/bandpass/LPP/16"] == 1
    shares = []
    for cutoff in (0.1, 0.2, 0.3, 0.4, 0.5):
        shares.append(frame.right[frame.condition == f"high-pass {cutoff}"].mean())
        assert metrics[f"metric/bandpass/HFC/{cutoff}/16"] == pytest.approx(shares[-1])
    high = np.mean(shares)
    assert metrics["metric/bandpass/HPP/16"] == pytest.approx(high) and not math.isnan(high)
    assert metrics["metric/bandpass/spectral-bias/16"] == pytest.approx(high / (1 + high))
    words = ("--model", "calibration_texture", "--data", drawn, "--results", tmp_path, "--alpha", 3)
    run("eval_categories16.py", *words, "--images", 16, check=True)  # all three benchmarks
    network = json.loads((tmp_path / "calibration_texture" / "categories16.json").read_text())
    assert set(metrics) < set(network["metrics"])
    assert {"top1_acc/solarize/0.5/16", "metric/criticalband/bw_norm_fine/16"} < set(network["metrics"])
    low, high = network["intervals"]["top1_acc/imagenet/16"]
    assert low <= network["metrics"]["top1_acc/imagenet/16"] <= high

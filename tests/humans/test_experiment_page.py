"""The laboratory in a real browser: scripted subjects, interrupted sessions, the keyboard alone, dark and light."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
from scipy.stats import binom

from common import run
from experiments import answer_all, command, jspsych, open_browser, served, session_of
from imagenet_biases.humans.experiment import CATEGORIES, practice_trials
from imagenet_biases.humans.stimulus_sets import texture_category
from imagenet_biases.humans.trials import NO_MEASUREMENT, decisions, read_trials

pytestmark = pytest.mark.slow

SUBJECT = """
// a subject who chooses the category of ANSWERS as soon as the grid is there, by its key or with the mouse
const answers = ANSWERS, trial = Recognition.prototype.trial, show = showGrid;
let current = null;
Recognition.prototype.trial = function (element, parameters) {
  current = parameters;
  return trial.call(this, element, parameters);
};
window.showGrid = visible => {
  show(visible);
  const category = visible && current?.source === "session" && answers[current.number];
  const index = GRID.indexOf(category);
  const press = () => document.dispatchEvent(new KeyboardEvent("keydown", { code: KEYS[index] }));
  const point = () => choices[index].dispatchEvent(new PointerEvent("pointerdown"));
  if (category) setTimeout(current.number % 2 ? press : point);
};
setInterval(() => document.querySelector("form.screen")?.requestSubmit(), 10);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def wait(browser, expression, seconds=30):
    end = time.monotonic() + seconds
    while not browser.execute_script(f"return Boolean({expression})"):
        assert time.monotonic() < end, f"not within {seconds} s: {expression}"
        time.sleep(0.02)


def send_subject(browser, address, answers):
    """Open the page and let a subject with these answers take part in the session."""
    browser.get(address)
    wait(browser, "typeof state !== 'undefined' && state && document.querySelector('form')")
    browser.execute_script(SUBJECT.replace("ANSWERS", json.dumps(answers)))


def by_shape(trial):
    return trial.category


def by_texture(trial):
    return texture_category(trial.file)


RANDOM = random.Random(0)
SUBJECTS = {
    "shape": by_shape,
    "texture": by_texture,
    "na": lambda trial: None,
    "any": lambda _: RANDOM.choice(CATEGORIES),
}


@pytest.mark.parametrize("kind", SUBJECTS)
def test_scripted_subjects_have_the_bias_they_answer_by(browser, drawn, tmp_path, kind):
    args = command(drawn, tmp_path, kind, "--trials", 24, "--clock-factor", 60, "--stimulus-degrees", 0)
    with served(args) as (laboratory, address):
        trials = laboratory.session.trials
        send_subject(browser, address, list(map(SUBJECTS[kind], trials)))
        assert laboratory.finished.wait(60)
    frame = read_again(laboratory.session.path)
    assert len(frame) == 24 and list(frame.category) == [trial.category for trial in trials]
    if kind == "na":
        assert set(frame.object_response) == {"na"} and set(frame.rt) == {"NaN"}
        assert browser.get_log("browser") == []
        return
    assert "na" not in set(frame.object_response)
    ended = run("eval_model_vs_human.py", "--trials", laboratory.session.path, "--data", drawn, "--results", tmp_path)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / f"{kind}{NO_MEASUREMENT}" / "model_vs_human.json").read_text())
    cues = decisions(frame).cue.value_counts()
    shape, texture = cues.get("shape", 0), cues.get("texture", 0)
    assert record["metrics"].get("shape-bias") == (shape / (shape + texture) if shape + texture else None)
    if kind == "any":  # 1 of 16 answers is the shape's, 1 the texture's
        low, high = binom.ppf((0.0005, 0.9995), len(decisions(frame)), 1 / 16)
        assert low <= shape <= high and low <= texture <= high
    else:
        assert record["metrics"]["shape-bias"] == (kind == "shape")
    assert browser.get_log("browser") == []
    names = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert names and all(name.startswith((address, "blob:")) for name in names)


def read_again(path):
    with pytest.warns(UserWarning, match="no measurement"):
        return read_trials(path)


def test_at_random_the_shape_bias_is_a_half(drawn, tmp_path):
    """A subject who answers at random, without the browser: all images, so the band is narrow."""
    session = answer_all(session_of(command(drawn, tmp_path, "me")), SUBJECTS["any"])
    cues = decisions(read_trials(session.path)).cue.value_counts()
    shape, decided = cues.get("shape", 0), cues.get("shape", 0) + cues.get("texture", 0)
    low, high = binom.ppf((0.0005, 0.9995), decided, 0.5)
    assert low <= shape <= high


@contextlib.contextmanager
def in_another_process(args):
    """The process that holds a session, as the script does, and its address."""

    def hold(pipe):
        with served(args) as (laboratory, address):
            pipe.send(address)
            laboratory.finished.wait()
            time.sleep(0.3)

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(there,))
    process.start()
    try:
        assert here.poll(20)
        yield process, here.recv()
    finally:
        process.kill()


def test_killed_at_random_moments_every_trial_is_answered_once(browser, drawn, tmp_path):
    args = command(drawn, tmp_path, "me", "--trials", 40, "--clock-factor", 60, "--stimulus-degrees", 0)
    session, kills, done = session_of(args), 0, []
    answers = list(map(by_shape, session.trials))
    jspsych()
    while not done or done[-1] < len(answers):
        with in_another_process(args) as (process, address):
            send_subject(browser, address, answers)
            if kills < 20:
                if RANDOM.random() < 0.8:  # the others are killed before the first trial
                    wait(browser, "document.body.className.startsWith('trial')")
                time.sleep(RANDOM.uniform(0, 0.3))
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            process.join(60)
        done.append(session.path.read_bytes().count(b"\n") - 1 if session.path.exists() else 0)
    browser.get_log("browser")
    frame = read_again(session.path)
    assert list(frame.imagename) == session.names and kills == 20 and len(set(done)) >= 3, done
    answered = frame.object_response != "na"  # a busy machine may miss a grid of 25 ms
    assert list(frame.object_response[answered]) == list(np.array(answers)[answered]) and answered.sum() > 20
    description = json.loads(session.path.with_suffix(".json").read_text())
    assert set(description["durations"]) == {str(number) for number in range(1, 41)} and description["finished"]
    assert not description["measurement"]


def test_a_second_tab_waits_and_a_gone_server_is_told(browser, drawn, tmp_path):
    args = command(drawn, tmp_path, "me", "--trials", 4, "--stimulus-degrees", 0)
    with in_another_process(args) as (process, address):
        browser.get(address)
        wait(browser, "document.querySelector('form')")
        first = browser.current_window_handle
        browser.switch_to.new_window("tab")
        browser.get(address)
        wait(browser, "document.body.textContent.includes('another tab')")
        browser.switch_to.window(first)
        browser.get("about:blank")
        browser.switch_to.window(next(name for name in browser.window_handles if name != first))
        wait(browser, "document.querySelector('form')")  # by itself, once the first is gone
        assert "another tab" not in browser.execute_script("return document.body.textContent")
        browser.execute_script(SUBJECT.replace("ANSWERS", "[]"))
        wait(browser, "!grid.hidden && !document.querySelector('form')")
        process.kill()
    wait(browser, "document.body.textContent.includes('start the same command again')")
    browser.close()
    browser.switch_to.window(first)
    browser.get_log("browser")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_keyboard_alone_is_enough_on_a_small_screen(browser, drawn, tmp_path, scheme):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()

    emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    consent = tmp_path / "consent.md"
    consent.write_text("# Consent\n\nYou may stop at any time.\n\n- one\n- two\n")
    words = ("--trials", 4, "--clock-factor", 3, "--consent", consent, "--set", "cue-conflict")
    args = command(drawn, tmp_path, "me", *words)
    practice = practice_trials(session_of(args).trials, run_data(drawn), 0, 2, False)
    with served(args, practice) as (laboratory, address):
        browser.get(address)
        titles, categories = [], [trial.category for trial in laboratory.session.trials]
        for number in range(5):
            wait(
                browser,
                f"document.querySelector('form h1') && {json.dumps(titles)}.at(-1) !== "
                "document.querySelector('form h1').textContent",
            )
            titles.append(browser.execute_script("return document.querySelector('form h1').textContent"))
            colours = browser.execute_script(
                "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
            )
            lightness = [np.mean(list(map(int, colour[4:-1].split(",")))) for colour in colours]
            assert (lightness[0] < 40 < 240 < lightness[1]) == (scheme == "light")
            assert (lightness[1] < 40 < 220 < lightness[0]) == (scheme == "dark")
            fits = "innerWidth >= document.documentElement.scrollWidth && innerHeight >= document.body.scrollHeight"
            assert browser.execute_script(f"return {fits}"), titles[-1]
            if number == 2:
                press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.TAB, Keys.BACKSPACE, Keys.BACKSPACE, "60")
            press(Keys.SPACE if number in (1, 3) else Keys.ENTER)
        for category in [None, None, *categories]:
            if category == categories[0] and browser.execute_script("return Boolean(document.querySelector('form'))"):
                press(Keys.ENTER)
            wait(browser, "!grid.hidden && document.body.className === 'trial' || document.querySelector('form')")
            if browser.execute_script("return Boolean(document.querySelector('form'))"):
                press(Keys.ENTER)
                wait(browser, "!grid.hidden && document.body.className === 'trial'")
            if category:
                key = browser.execute_script("return KEYS[GRID.indexOf(arguments[0])].at(-1)", category)
                press(key.lower())
            wait(browser, "grid.hidden")
        assert laboratory.finished.wait(20)
        wait(browser, "document.body.textContent.includes('All answers are stored')")
    assert titles == ["What do you see?", "Consent", "The size of the pictures", "What to do", "Practice"]
    frame = read_again(laboratory.session.path)
    assert list(frame.object_response) == categories and (frame.rt.astype(float) > 0).all()
    display = json.loads(laboratory.session.path.with_suffix(".json").read_text())["display"]
    side = 2 * 60 * np.tan(np.radians(1.5)) * display["px_per_cm"]
    assert display["distance_cm"] == 60 and display["stimulus_css_px"] == pytest.approx(side)
    assert abs(display["frame"] - 1000 / 60) < 2
    assert browser.get_log("browser") == []


def run_data(drawn):
    from imagenet_biases import Data

    return Data(root=drawn)

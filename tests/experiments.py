"""What tests of the laboratory share: jsPsych from the npm package, sessions on the drawn sets, a server, a browser."""

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

import run_experiment
from imagenet_biases.humans.experiment_server import Laboratory, serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--screen-info={1280x720}"),
)


def jspsych():
    """The path of jsPsych from its npm package, fetched once for all test runs of this machine."""
    if not shutil.which("npm"):
        pytest.skip("no npm here, which jsPsych comes with (apt-get install npm)")
    folder = Path(tempfile.gettempdir()) / f"jspsych-{run_experiment.JSPSYCH}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "package" / "dist" / "index.browser.min.js"
    with FileLock(folder / "lock"):
        if not path.exists():
            words = ("npm", "pack", "--silent", f"jspsych@{run_experiment.JSPSYCH}")
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
            if done.returncode:
                pytest.skip("npm cannot fetch jsPsych here")
            with tarfile.open(folder / done.stdout.split()[-1]) as packed:
                packed.extractall(folder, filter="data")
    return path


def command(drawn, results, subject, *words):
    """The command line of a session of the drawn cue-conflict images, parsed."""
    words = ("--set", "cue-conflict", "--practice", "0", *words) if "--benchmark" not in words else words
    given = ("--data", drawn, "--results", results, "--subject", subject, "--no-browser", *words)
    return run_experiment.make_parser().parse_args([*map(str, given)])


def session_of(args):
    """A session as the script makes it."""
    return run_experiment.session_of(args, run_experiment.trials_of(args))


def answer_all(session, answer):
    """Open a session and answer its trials: answer(trial) is a category or 'na'."""
    session.open()
    for number, trial in enumerate(session.trials):
        response = answer(trial)
        value = {"trial": number, "response": response, "rt": None if response == "na" else 0.5}
        session.answer(value | {"durations": [300.0, 200.0, 200.0], "dropped": 0})
    session.close()
    return session


@contextlib.contextmanager
def served(args, practice=()):
    """The laboratory of a session whose server runs, and its address."""
    session = session_of(args)
    session.open()
    laboratory = Laboratory(session, practice, run_experiment.page_of(args), jspsych())
    server, address = serve(laboratory)
    try:
        yield laboratory, address
    finally:
        server.shutdown()
        server.server_close()
        session.close()


def open_browser(profile, size="1280,720"):
    """A browser that reaches nothing but this machine."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium with chromedriver here (apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--window-size={size}", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

"""How long a stimulus of run_experiment.py is really shown: durations that the page measures, in headless Chromium.

A session of drawn images runs at its true speed and nobody answers. A duration is the difference between the times of
the frames on which the stimulus and the mask are drawn (requestAnimationFrame), as in every session's JSON.

    python benchmarks/experiment_timing.py [--trials 96] [--load 0]

`--load` keeps so many processes busy beside it. jsPsych is fetched where run_experiment.py keeps it. Figures go to
benchmarks/experiment_timing.json.
"""

import argparse
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from selenium import webdriver

from common import described, on
from imagenet_biases.humans.experiment import TIMES
from imagenet_biases.synthetic.image_sets import draw
from run_experiment import jspsych

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--screen-info={1280x720}")
NEXT = "setInterval(() => document.querySelector('form.screen')?.requestSubmit(), 100)"


def session(folder, trials):
    """Hold a session to its end; return its JSON."""
    jspsych(download=True)
    script = Path(__file__).parents[1] / "code" / "run_experiment.py"
    words = ("--set", "cue-conflict", "--data", folder / "drawn", "--subject", "nobody", "--results", folder)
    words = (*words, "--practice", 0, "--stimulus-degrees", 0, "--trials", trials, "--no-browser")
    process = subprocess.Popen([sys.executable, script, *map(str, words)], stdout=subprocess.PIPE, text=True)
    address = next(filter(None, (re.search(r"http://127\S+", line) for line in process.stdout)))[0]
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for flag in FLAGS:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    browser.get(address)
    browser.execute_script(NEXT)
    process.wait()
    browser.quit()
    return json.loads(next(folder.glob("people/*/*.json")).read_text())


def busy():
    while True:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=96)
    parser.add_argument("--load", type=int, default=0)
    args = parser.parse_args()
    loads = [multiprocessing.Process(target=busy, daemon=True) for _ in range(args.load)]
    with tempfile.TemporaryDirectory() as temporary:
        draw(Path(temporary, "drawn"))
        for process in loads:
            process.start()
        record = session(Path(temporary), args.trials)
    for process in loads:
        process.kill()
    frame, shown = record["display"]["frame"], list(record["durations"].values())
    figures = {"trials": len(shown), "load": args.load, "refresh_hz": round(record["display"]["refresh_hz"], 2)}
    for phase in ("fixation", "stimulus", "mask"):
        durations = np.array([trial[phase] for trial in shown])
        within = np.abs(durations - TIMES[phase]) <= frame
        quantiles = np.quantile(durations, (0, 0.05, 0.5, 0.95, 1)).round(1).tolist()
        figures[phase] = {"within_a_frame_percent": round(100 * float(within.mean()), 1), "ms_0_5_50_95_100": quantiles}
    figures["trials_with_dropped_frames"] = sum(trial["dropped"] > 0 for trial in shown)
    print(figures)
    path = Path(__file__).with_suffix(".json")
    before = json.loads(path.read_text())["figures"] if path.exists() else {}
    described_here = {"machine": described(on("cpu").device), "browser": record["display"]["browser"]}
    path.write_text(json.dumps(described_here | {"figures": before | {f"load {args.load}": figures}}, indent=1) + "\n")


if __name__ == "__main__":
    main()

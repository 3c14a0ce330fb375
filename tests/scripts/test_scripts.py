"""The scripts as a user runs them: end to end on the drawn set, their records, their W&B mirror, their errors."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from common import CODE, later, launch, run, script
from imagenet_biases.results.wandb_log import curves, first_of

ACCURACY = {
    "imagenet": ["top1_acc/imagenet", "top5_acc/imagenet"],
    "imagenet_real": ["top1_acc/imagenet-real"],
    "imagenet_ood": [f"top{k}_acc/imagenet{s}" for s in ("", "-v2", "-a", "-r", "-sketch") for k in (1, 5)],
    "imagenet_c": [
        "top1_acc/imagenet-c",
        "top1_acc/imagenet-c-15",
        "mCE/imagenet-c",
        "top1_acc/fog_3",
        "top5_acc/snow_1",
    ],
    "imagenet_cbar": ["top1_acc/imagenet-cbar", "top1_acc/cocentric_sine_waves_5"],
}


@pytest.fixture(scope="module")
def results(drawn):
    """All five accuracy benchmarks, each by its own script, on both calibration networks; once for all processes."""
    folder = drawn.parent / "accuracy_results"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            for name in ACCURACY:
                run(f"eval_{name}.py", "--model", "calibration", "--data", drawn, "--results", folder, check=True)
            (folder / "done").touch()
    return folder


def record(results, name, network="calibration_texture"):
    return json.loads((results / network / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCURACY)
def test_records(results, name):
    for network in ("calibration_silhouette", "calibration_texture"):
        one = record(results, name, network)
        assert one["model"] == network and one["benchmark"] == name and one["subset"] is False
        assert set(ACCURACY[name]) <= set(one["metrics"])
        assert one["images"] == sum(part["images"] for part in one["provenance"]["image_sets"].values())
        for metric, value in one["metrics"].items():
            low, high = one["intervals"][metric]
            assert low <= value <= high
            if not metric.startswith("mCE"):
                assert 0 <= value <= 100
        source = one["provenance"]
        assert source["collection"] == "drawn" and source["view"] == "study" and source["precision"] == "fp32"
        assert re.fullmatch("[0-9a-f]{64}", source["network"])
        assert {"python", "torch", "timm"} <= set(source["versions"])


@pytest.mark.slow
def test_networks_recognize_what_they_were_trained_on(results):
    for network in ("calibration_silhouette", "calibration_texture"):
        assert record(results, "imagenet", network)["metrics"]["top1_acc/imagenet"] > 80


@pytest.mark.slow
def test_counts_are_images_over_the_whole_set(results, drawn):
    """A share of N images is a multiple of 1/N: the predecessor's ReaL was the share of its last batch."""
    images = json.loads((drawn / "imagenet" / "image-set.json").read_text())["images"]
    labels = json.loads((drawn / "imagenet" / "real.json").read_text())
    counted = sum(bool(one) for one in labels)
    assert counted < images
    for name, metric, n in (
        ("imagenet", "top1_acc/imagenet", images),
        ("imagenet_real", "top1_acc/imagenet-real", counted),
    ):
        hits = record(results, name)["metrics"][metric] / 100 * n
        assert hits == pytest.approx(round(hits), abs=1e-9)
    assert record(results, "imagenet_real")["details"]["labelled_images"] == counted


@pytest.mark.slow
def test_mean_over_corruptions(results):
    metrics = record(results, "imagenet_c")["metrics"]
    each = [value for name, value in metrics.items() if re.fullmatch(r"top1_acc/[a-z_]+_[1-5]", name)]
    assert len(each) == 95
    assert metrics["top1_acc/imagenet-c"] == pytest.approx(sum(each) / 95, abs=1e-9)
    each = [v for k, v in record(results, "imagenet_cbar")["metrics"].items() if re.fullmatch(r"top1_acc/.*_[1-5]", k)]
    assert len(each) == 50


@pytest.mark.slow
def test_real_needs_no_second_pass(results, drawn):
    again = run(
        "eval_imagenet_real.py",
        "--model",
        "calibration_texture",
        "--data",
        drawn,
        "--results",
        results,
        "--dry-run",
        check=True,
    )
    assert re.search(r"imagenet_real .* 0 to do", again.stdout)


@pytest.mark.slow
def test_fresh_measures_again(results, drawn, tmp_path, monkeypatch):
    shutil.copytree(results / "calibration_texture", tmp_path / "calibration_texture")
    words = ["eval_imagenet.py", "--model", "calibration_texture", "--data", drawn, "--results", tmp_path]
    before = record(tmp_path, "imagenet")
    later(monkeypatch)
    assert run(*words, "--wandb", "disabled", "--fresh")[0] == 0
    fresh = record(tmp_path, "imagenet")
    assert fresh["metrics"] == before["metrics"] and fresh["provenance"]["time"] > before["provenance"]["time"]


def logged(folder):
    """Return {(group, job type): [what W&B's own reader finds in an offline run]} of a folder of offline runs."""
    found = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        entries = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        run, summary, config = None, {}, {}
        for entry in map(json.loads, entries):
            run = entry.get("run", run)
            summary |= entry.get("summary", {}).get("update", {})
            for part in (entry.get("run", {}).get("config", {}), entry.get("config", {})):
                config |= part.get("update", {})
        one = {"run": run, "summary": summary, "config": config, "folder": file.parent}
        found.setdefault((run["run_group"], run["job_type"]), []).append(one)
    return found


@pytest.fixture(scope="module")
def offline_runs(results):
    return logged(results)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCURACY)
def test_wandb_is_one_project_with_a_few_scalars_and_the_record_whole(results, offline_runs, name):
    found = {key: runs for key, runs in offline_runs.items() if key[1] == name}
    assert {group for group, _ in found} == {"calibration_silhouette", "calibration_texture"}
    for (network, _), (one,) in found.items():
        content, (run, summary, config) = record(results, name, network), (one[k] for k in ("run", "summary", "config"))
        assert run["project"] == "imagenet-biases"
        assert {"calibration", "study", "fp32"} <= set(run["tags"])
        assert json.loads((one["folder"] / "files" / "record.json").read_text()) == content
        assert config["options"] == content["options"] and config["batch_size"] and name in config["command"]
        assert config["network"] == content["provenance"]["network"] and config["benchmark"] == name
        scalars = {metric: summary[metric] for metric in content["metrics"] if metric in summary}
        assert 0 < len(scalars) <= 10 and scalars == {metric: content["metrics"][metric] for metric in scalars}
        assert summary["state"] == "complete"
        media = {key.partition(".")[0] for key in summary}  # tables and pictures: NAME._type, NAME.path, ...
        assert {"metrics", "per_class"} <= media
        sheets = {key.removeprefix("stimuli/") for key in media if key.startswith("stimuli/")}
        shown = {one.partition("/")[0] for one in content["provenance"]["image_sets"]}
        assert sheets == (set() if name == "imagenet_real" else shown - {"imagenet"} or shown)  # each image set once
        curves = {key for key in media if key.startswith("curves/")}
        assert bool(curves) == (name in ("imagenet_c", "imagenet_cbar"))


@pytest.mark.slow
def test_an_interrupted_run_is_marked_and_replaced_by_its_repeat(drawn, tmp_path):
    net = tmp_path / "net.py"
    net.write_text(
        "import os, time, torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, pixels):\n"
        "        time.sleep(float(os.environ.get('PAUSE', 0)))\n"
        "        return pixels.mean((2, 3)) @ torch.eye(3, 1000)\n"
        "def build():\n"
        "    return Net()\n"
    )
    words = ["eval_spectral.py", "--model", f"{net}:build", "--data", drawn, "--results", tmp_path]
    words += ["--wandb", "offline", "--wandb-layout", "benchmarks", "--checkpoint-seconds", "0", "--num-workers", "0"]
    process = launch(*words, PAUSE="0.3")
    while not list(tmp_path.glob("*/responses/*.parts/*")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    ((one,),) = logged(tmp_path).values()
    assert one["summary"]["state"] == "interrupted" and one["run"]["project"] == "spectral"
    assert launch(*words).wait() == 0
    ((two,),) = logged(tmp_path).values()  # the first one's folder is gone: uploading both would mix them up
    assert two["summary"]["state"] == "complete" and two["run"]["run_id"] == one["run"]["run_id"]
    assert two["folder"] != one["folder"]
    assert launch(*words).wait() == 0
    ((three,),) = logged(tmp_path).values()  # what stands is not logged again
    assert three["folder"] == two["folder"] or "+" in record(tmp_path, "spectral", "net.build")["provenance"]["commit"]


def test_curves_are_found_in_the_names_of_metrics():
    metrics = {f"metric/bandpass/{kind}/{c}": c for kind in ("LFC", "HFC") for c in (0.1, 0.2, 1.0)}
    metrics |= {f"top1_acc/{name}_{severity}": severity for name in ("fog", "snow") for severity in (1, 2, 3)}
    metrics |= {"top1_acc/imagenet": 70.0, "top1_acc/imagenet-v2": 60.0, "top1_acc/two/1": 1.0, "top1_acc/two/2": 2.0}
    found = curves(metrics)
    assert found == {
        "metric/bandpass": ([0.1, 0.2, 1.0], {f"metric/bandpass/{k}": [0.1, 0.2, 1.0] for k in ("LFC", "HFC")}),
        "top1_acc": ([1, 2, 3], {f"top1_acc/{name}": [1, 2, 3] for name in ("fog", "snow")}),
    }
    assert first_of(metrics, ("*imagenet*",)) == ["top1_acc/imagenet", "top1_acc/imagenet-v2"]
    assert len(first_of(metrics, ())) == 10


@pytest.mark.slow
def test_offline_runs_end_with_the_line_that_uploads_them(drawn, tmp_path):
    words = ["eval_imagenet.py", "--model", "calibration_texture", "--data", drawn, "--results", tmp_path]
    result = script(*words, WANDB_API_KEY="", HOME=str(tmp_path))
    assert "wandb sync" in result.stderr and (tmp_path / "wandb").is_dir()


@pytest.mark.slow
def test_wandb_out_of_reach_loses_nothing(drawn, tmp_path):
    """A key, but no server: the run goes on and the record is written."""
    words = ["eval_imagenet.py", "--model", "calibration_texture", "--data", drawn, "--results", tmp_path]
    result = script(
        *words,
        WANDB_API_KEY="0123456789" * 4,
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_INIT_TIMEOUT="5",
        WANDB_MODE="online",
        HOME=str(tmp_path),
    )
    assert record(tmp_path, "imagenet")["metrics"]["top1_acc/imagenet"] > 50
    assert "top1_acc/imagenet" in result.stdout


MISTAKES = {
    "no model": (["eval_imagenet.py", "--data", "{drawn}"], "--model is missing"),
    "no images": (["eval_imagenet.py", "--model", "calibration"], "--imagenet DIR"),
    "no such folder": (
        ["eval_imagenet.py", "--model", "calibration", "--imagenet", "nowhere"],
        "no folder or archive nowhere",
    ),
    "not a set": (
        ["eval_imagenet.py", "--model", "calibration", "--imagenet", "{drawn}/model-vs-human"],
        "WordNet|image-set.json",
    ),
    "unknown flag": (["eval_imagenet.py", "--modle", "x"], "--modle"),
    "bad number": (["eval_imagenet.py", "--model", "calibration", "--limit", "0"], "--limit"),
    "unknown network": (["eval_imagenet.py", "--model", "resnet5000", "--data", "{drawn}"], "resnet5000"),
    "no such file": (["eval_imagenet.py", "--model", "gone.pth", "--data", "{drawn}"], r"gone\.pth"),
    "no such function": (["eval_imagenet.py", "--model", "gone.py:f", "--data", "{drawn}"], r"gone\.py"),
    "no gpu": (["eval_imagenet.py", "--model", "calibration", "--data", "{drawn}", "--device", "mps"], "--device mps"),
    "tf32 on a cpu": (
        ["eval_imagenet.py", "--model", "calibration", "--data", "{drawn}", "--precision", "tf32", "--device", "cpu"],
        "--precision tf32",
    ),
    "incomplete": (["eval_imagenet.py", "--model", "calibration", "--imagenet", "{short}"], "--allow-partial"),
    "unknown benchmark": (["eval_all.py", "--model", "calibration", "--benchmarks", "imagenet_d"], "imagenet_d"),
    "nothing given": (["eval_all.py", "--model", "calibration", "--benchmarks", "imagenet"], "no image set"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_line_and_status_2(drawn, tmp_path, mistake):
    words, expected = MISTAKES[mistake]
    short = tmp_path / "short"
    shutil.copytree(drawn / "imagenet", short)
    next(short.glob("val/*/*")).unlink()
    words = [word.format(drawn=drawn, short=short) for word in words]
    status, _, err = run(*words, "--results", tmp_path / "results", "--wandb", "disabled")
    assert status == 2, err
    lines = [line for line in err.splitlines() if line.strip()]
    assert "Traceback" not in err
    assert lines[-1].startswith("error: ") and re.search(expected, lines[-1]), err
    assert not list((tmp_path / "results").rglob("*.json"))


def test_unreadable_image(drawn, tmp_path):
    shutil.copytree(drawn / "imagenet", tmp_path / "imagenet")
    bad = next((tmp_path / "imagenet").glob("val/*/*"))
    bad.write_bytes(b"\xff\xd8\xff nothing")
    words = ["eval_imagenet.py", "--model", "calibration_texture", "--imagenet", tmp_path / "imagenet"]
    words += ["--results", tmp_path / "results", "--wandb", "disabled"]
    status, _, err = run(*words)
    assert status == 2 and bad.name in err and "--skip-unreadable" in err
    run(*words, "--skip-unreadable")
    one = record(tmp_path / "results", "imagenet")
    assert len(one["left_out"]) == 1 and bad.name in one["left_out"][0]
    assert one["subset"]["left_out"] == 1
    # the stored answers left it out: a benchmark that reads them must say so, too
    run("eval_imagenet_real.py", *words[1:])
    again = record(tmp_path / "results", "imagenet_real")
    assert again["left_out"] == one["left_out"] and again["subset"]["left_out"] == 1


@pytest.mark.slow
def test_eval_all_merges_passes_and_plans(drawn, tmp_path):
    words = ["eval_all.py", "--model", "calibration", "--data", drawn, "--results", tmp_path, "--wandb", "disabled"]
    words += ["--benchmarks", "imagenet,imagenet_real,imagenet_ood"]
    plan = run(*words, "--dry-run", check=True).stdout
    images = {
        name: json.loads((drawn / name / "image-set.json").read_text())["images"]
        for name in ("imagenet", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2")
    }
    passes = {
        name: int(text.replace(",", ""))
        for name, text in re.findall(r"^  (\w+) .*images, +([\d,]+) forward", plan, re.M)
    }
    others = sum(images.values()) - images["imagenet"]
    assert passes == {"imagenet": 2 * images["imagenet"], "imagenet_real": 0, "imagenet_ood": 2 * others}
    assert not list(tmp_path.glob("*/*.json"))
    done = run(*words, check=True).stdout
    assert "top1_acc/imagenet-real" in done
    for name in ("imagenet", "imagenet_real", "imagenet_ood"):
        assert record(tmp_path, name)["subset"] is False
    assert len(re.findall(r" 0 to do", run(*words, "--dry-run", check=True).stdout)) == 3


def test_eval_all_lists_what_is_left_out(drawn, tmp_path):
    words = ["eval_all.py", "--model", "calibration_texture", "--imagenet", drawn / "imagenet", "--results", tmp_path]
    plan = run(*words, "--dry-run", "--wandb", "disabled", check=True).stdout
    assert "left out: imagenet_c:" in plan and "left out: model_vs_human:" in plan
    assert "imagenet_ood" in plan.split("left out")[0]  # of its five sets, one is given


def test_every_benchmark_is_a_short_declaration():
    for path in CODE.glob("eval_*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 110, path.name
        if path.stem != "eval_all":
            assert not re.search(r"^import (wandb|torch)|ArgumentParser\(|DataLoader|torch\.load|open\(", text, re.M), (
                path.name
            )


@pytest.mark.slow
@pytest.mark.parametrize("script", ["merge_results", "compare", "report", "plot_study"])
def test_what_needs_no_network_imports_no_torch(script):
    code = (
        f"import runpy, sys\nsys.argv = ['{script}.py', '--help']\n"
        f"try:\n    runpy.run_path('{CODE / script}.py', run_name='__main__')\n"
        f"except SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CODE, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"

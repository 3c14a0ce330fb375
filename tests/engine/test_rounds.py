"""Rounds: any moment is an answer. Nested samples, records that only grow, ends by time and by what is known."""

import json
import random
import signal
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from common import SHARED, launch, needs_shared, run
from imagenet_biases import Benchmark, Data, Pass, Recording, Settings, evaluate, evaluate_rounds
from imagenet_biases.engine.evaluate import refined
from imagenet_biases.engine.schedule import Schedule
from imagenet_biases.images.sets import image_set
from imagenet_biases.measures.accuracy import top
from imagenet_biases.results.measurements import measurements
from imagenet_biases.results.places import widths
from imagenet_biases.results.records import Record
from imagenet_biases.vocabulary import CLEAN, Condition, identified

ROUNDS = (34.0, 60.0, 100.0)  # of 96 images: 33, 58, 96


class Linear(nn.Module):
    """A network of its own answers, which counts the images that it is shown."""

    def __init__(self, seed=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1000, 147, generator=torch.Generator().manual_seed(seed)))
        self.shown = 0

    def forward(self, pixels):
        self.shown += len(pixels)
        return nn.functional.avg_pool2d(pixels, 32).flatten(1) @ self.weight.T


seen = Counter()


@identified("counted")
def counted(pixels, batch, *, factor):
    seen.update((factor, key) for key in batch.keys.tolist())
    return pixels * factor


CONDITIONS = (CLEAN, *(Condition(f"dim {f}", stimulus=counted, settings={"factor": f}) for f in (0.25, 0.5)))


def passes(data):
    return [Pass(image_set("imagenet", data), CONDITIONS)]


def report(results):
    for (_, name), responses in results.items():
        yield f"top1_acc/own/{name.replace(' ', '-')}", top(responses)


DIMMED = Benchmark("dimmed", passes, report)
SETTINGS = Settings(device="cpu", batch_size=7, compile="off", rounds=ROUNDS)


def record_in(results, name="Linear"):
    return json.loads((results / name / "dimmed.json").read_text())


def numbers(record):
    return {part: record[part] for part in ("metrics", "intervals", "sampled", "halves", "share", "images")}


@pytest.fixture
def data(drawn):
    seen.clear()
    return Data(drawn)


def test_each_round_is_a_record_and_the_last_is_that_of_one_pass(data, tmp_path):
    rounds = list(evaluate_rounds(Linear(), DIMMED, data, SETTINGS, recording=Recording(tmp_path)))
    shares = [records[0].content["share"] for records in rounds[:3]]
    assert shares == [{"images": n, "of": 96, "order": 1} for n in (33, 58)] + [None]
    assert max(seen.values()) == 1 and len(seen) == 2 * 96  # no image is shown twice
    (whole,) = evaluate(Linear(), DIMMED, data, Settings(device="cpu", batch_size=32, compile="off"))
    last = rounds[-1][0]
    assert numbers(last.content) == numbers(whole.content) and not whole["sampled"]
    images = image_set("imagenet", data).first(33)
    (limited,) = evaluate(Linear(), DIMMED, Data(data.root, limit=33), Settings(device="cpu", compile="off"))
    assert numbers(limited.content) == numbers(rounds[0][0].content) and limited["images"] == len(images)
    first = rounds[0][0].content
    for name, sampled in first["sampled"].items():
        population = first["intervals"][name]
        assert (sampled["images"], sampled["of"]) == (33, 96)
        assert population[0] <= sampled["low"] <= first["metrics"][name] <= sampled["high"] < population[1]


def test_a_record_grows_and_never_shrinks(data, tmp_path):
    sizes = {}
    for rounds in ((34.0,), (34.0, 60.0), (34.0,), (100.0,), (60.0,)):
        network = Linear()
        settings = Settings(device="cpu", batch_size=7, compile="off", rounds=rounds)
        (record,) = evaluate(network, DIMMED, data, settings, results=tmp_path)
        assert record.content == record_in(tmp_path)
        sizes[rounds] = record["images"]
        assert [path.name for path in (tmp_path / "Linear").glob("*.json")] == ["dimmed.json"]
    assert sizes == {(34.0,): 58, (34.0, 60.0): 58, (100.0,): 96, (60.0,): 96}  # the second time, 58 were there
    assert record["images"] == 96 and record["share"] is None
    assert max(seen.values()) == 1


def test_records_of_other_settings_lie_beside_the_one_that_is_whole(data, tmp_path):
    for precision, rounds in (("fp32", (34.0,)), ("bf16", (100.0,)), ("fp32", (60.0,))):
        settings = Settings(device="cpu", batch_size=32, compile="off", rounds=rounds, precision=precision)
        evaluate(Linear(), DIMMED, data, settings, results=tmp_path)
    assert record_in(tmp_path)["provenance"]["precision"] == "bf16"  # a whole one owns the name for good
    (beside,) = (tmp_path / "Linear").glob("dimmed.*.json")
    assert json.loads(beside.read_text())["images"] == 58


def test_a_longer_run_keeps_the_metrics_that_only_a_shorter_one_has(data, tmp_path):
    def some(data, factors):
        chosen = [
            condition for condition in CONDITIONS if condition is CLEAN or str(condition.settings["factor"]) in factors
        ]
        return [Pass(image_set("imagenet", data), chosen)]

    from imagenet_biases import Option

    benchmark = Benchmark("dimmed", some, report, options=(Option("factors", ("0.25",), several=True),))
    for factors, rounds in ((("0.25",), (100.0,)), (("0.25", "0.5"), (34.0,))):
        settings = Settings(device="cpu", batch_size=32, compile="off", rounds=rounds)
        options = {"dimmed": {"factors": factors}}
        (record,) = evaluate(Linear(), benchmark, data, settings, options=options, results=tmp_path)
    assert set(record["metrics"]) == {"top1_acc/own/clean", "top1_acc/own/dim-0.25", "top1_acc/own/dim-0.5"}
    assert set(record["sampled"]) == {"top1_acc/own/dim-0.5"} and record["share"] is None
    assert set(record["metric_options"]) == {"top1_acc/own/dim-0.5"}


def test_one_pass_per_image_is_whole_in_the_first_round_and_variants_count_together(drawn):
    rounds = list(evaluate_rounds("calibration_texture", ["imagenet", "imagenet_cbar"], Data(drawn), SETTINGS))
    first = {record.benchmark: record.content for record in rounds[0]}
    assert first["imagenet"]["share"] is None and first["imagenet_cbar"]["images"] == 50 * 16  # 16 images are too few
    assert len(rounds) == 4


def test_a_benchmarks_own_sample_is_its_whole(drawn, tmp_path):
    options = {"erf": {"probe": 64}}
    rounds = list(evaluate_rounds("calibration_texture", "erf", Data(drawn), SETTINGS, options=options))
    shown = [(records[0]["images"], records[0]["share"]) for records in rounds[:3]]
    assert shown == [(32, {"images": 32, "of": 64, "order": 1}), (39, {"images": 39, "of": 64, "order": 1}), (64, None)]
    provenance = rounds[-1][0]["provenance"]["image_sets"]["imagenet"]
    assert provenance["share"] == {"images": 64, "of": 96, "order": 1, "asked": 64}


class Slow(Linear):
    def forward(self, pixels):
        time.sleep(0.02 * len(pixels))
        return super().forward(pixels)


@pytest.mark.slow
def test_a_budget_ends_a_run_with_what_is_measured(data, tmp_path, caplog):
    started = time.monotonic()
    settings = Settings(device="cpu", batch_size=4, compile="off", rounds=(20.0, 100.0), budget=4)
    with caplog.at_level("INFO"):
        (record,) = evaluate(Slow(), DIMMED, data, settings, results=tmp_path)
    assert time.monotonic() - started < 4 + 3 and "the budget of 4 seconds is used up" in caplog.text
    assert 4 < record["images"] < 96
    # the prefix in which every image is answered under all conditions
    images = image_set("imagenet", data)
    prefix = set(images.keys[images.order[: record["images"]]].tolist())
    assert all(seen[factor, key] == 1 for factor in (0.25, 0.5) for key in prefix)
    (again,) = evaluate(Slow(), DIMMED, data, Settings(device="cpu", compile="off"), results=tmp_path)
    assert again["images"] == 96 and max(seen.values()) == 1


def test_until_ends_a_benchmark_that_is_known_well_enough(data):
    settings = Settings(device="cpu", batch_size=16, compile="off", rounds=(34.0, 60.0, 100.0), until=100.0)
    (record,) = evaluate(Linear(), DIMMED, data, settings)
    assert record["images"] == 33
    narrow = Settings(device="cpu", batch_size=16, compile="off", rounds=(34.0, 60.0, 100.0), until=1e-6)
    (record,) = evaluate(Linear(), DIMMED, data, narrow)
    bounds = record["sampled"].values()
    assert record["images"] == 96 or all(sampled["high"] - sampled["low"] <= 2e-6 for sampled in bounds)


def test_no_slice_more_than_doubles_what_is_measured_where_a_run_may_end_early():
    assert refined((1.0, 5.0, 20.0, 100.0)) == (1, 2, 4, 5, 10, 20, 40, 80, 100)
    assert refined((100.0,)) == (100,)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--rounds", "5,1"], "--rounds 5,1: give rising shares"),
        (["--rounds", "1,200"], "up to 100 per cent"),
        (["--rounds", "x"], "is not a list of per cent"),
        (["--budget", "soon"], "is not a time"),
        (["--budget", "0"], "give a time above 0"),
        (["--until", "tomorrow"], "is not a number of points or the word 'places'"),
        (["--until", "-1"], "give a half-width above 0"),
    ],
)
def test_mistakes_are_one_clear_line(words, message, drawn):
    status, _, err = run("eval_imagenet.py", "--model", "calibration_texture", "--data", drawn, *words)
    assert status == 2 and message in err.splitlines()[-1] and len(err.splitlines()) == 1


def test_autoattack_sees_whole_batches_in_every_run(data):
    """Answers that depend on the batch: rounds end at multiples of the batch size, so that all runs cut alike."""
    batches = []

    @identified("spy")
    def spy(network, pixels, labels, batch):
        batches.append(tuple(batch.keys.tolist()))
        return pixels

    benchmark = Benchmark(
        "dimmed",
        lambda data: [Pass(image_set("imagenet", data), (CLEAN, Condition("spy", attack=spy, batched=True)))],
        lambda results: (),
    )
    cut = []
    for rounds in ((100.0,), (34.0, 60.0, 100.0)):
        batches.clear()
        evaluate(Linear(), benchmark, data, Settings(device="cpu", batch_size=10, compile="off", rounds=rounds))
        cut.append(list(batches))
    assert cut[0] == cut[1] and {len(keys) for keys in cut[0]} == {10, 6}


NET = """
import time, torch
class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(1000, 147, generator=torch.Generator().manual_seed(0)))
    def forward(self, pixels):
        time.sleep({pause} * len(pixels))
        return torch.nn.functional.avg_pool2d(pixels, 32).flatten(1) @ self.weight.T
def build():
    return Slow()
"""
INTERRUPTED = """
class Interrupted(Slow):
    shown = 0
    def forward(self, x):
        self.shown += len(x)
        if self.shown > {answers}:
            import os, signal
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x)
def interrupted():
    return Interrupted()
"""
BENCHMARKS = ("--benchmarks", "imagenet,spectral", "--rounds", "34,60,100", "--wandb", "disabled", "--batch-size", "8")


def all_numbers(results):
    records = {}
    for path in sorted(results.glob("*.build/*.json")):
        record = json.loads(path.read_text())
        records[path.name] = numbers(record)
    return records


@pytest.mark.slow
def test_killed_at_random_moments_the_digits_are_the_same(drawn, tmp_path):
    (tmp_path / "net.py").write_text(NET.format(pause=0.002))
    words = ["--model", f"{tmp_path / 'net.py'}:build", "--data", str(drawn), *BENCHMARKS]
    run("eval_all.py", *words, "--results", tmp_path / "whole", check=True)
    dice = random.Random(0)
    killed = [*words, "--results", str(tmp_path / "killed"), "--checkpoint-seconds", "0.2"]
    ends = 0
    for turn in range(20):
        process = launch("eval_all.py", *killed)
        time.sleep(dice.uniform(0.1, 1))
        ends += process.poll() is None
        process.send_signal(signal.SIGINT if turn % 3 == 0 else signal.SIGKILL)
        if process.wait() == 0:
            break
    run("eval_all.py", *killed, check=True)
    assert ends and all_numbers(tmp_path / "killed") == all_numbers(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_reports_the_longest_prefix(drawn, tmp_path):
    """Ctrl-C comes within the third batch of the second round: 22 conditions beside the 96 clean images."""
    answers = 96 + 22 * (33 + 2 * 8) + 30
    (tmp_path / "net.py").write_text(NET.format(pause=0) + INTERRUPTED.format(answers=answers))
    words = ["--model", f"{tmp_path / 'net.py'}:interrupted", "--data", drawn, *BENCHMARKS]
    process = launch("eval_all.py", *words, "--results", tmp_path / "results")
    out, err = process.communicate()
    assert process.returncode == 130, err
    content = json.loads((tmp_path / "results" / "net.interrupted" / "spectral.json").read_text())
    assert content["images"] == 33 + 2 * 8
    assert f"a sample, {100 * content['images'] / 96:.3g} %" in out


class Stand(SimpleNamespace):
    """A stand-in that can be a key."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


class World:
    """A made-up network among the 48: what its benchmarks give on n of N images, by simulation of simple samples."""

    def __init__(self, seed):
        random = np.random.default_rng(seed)
        self.random = random
        # passes per image, images, what all images give
        self.benchmarks = {
            "spectral": (23, 50_000, {"metric/bandpass/LPP": 0.70, "metric/bandpass/HPP": 0.02}),
            "imagenet_adv": (180, 50_000, {"top1_acc/PGD-40/low": 20.0}),
            "imagenet_c": (95, 50_000, {"top1_acc/imagenet-c": 40.0}),
        }

    def record(self, name, images):
        _, of, values = self.benchmarks[name]
        metrics, sampled = {}, {}
        for metric, value in values.items():
            scale = 100 if "acc" in metric else 1
            share = value / scale
            error = scale * np.sqrt(share * (1 - share) / images * (1 - images / of))
            metrics[metric] = value + error * self.random.normal()
            if images < of:
                sampled[metric] = {"images": images, "of": of, "low": metrics[metric] - 1.96 * error,
                                   "high": metrics[metric] + 1.96 * error}  # fmt: skip
        provenance = {"network": "n", "collection": "imagenet", "view": "study", "precision": "fp32", "seed": 0,
                      "time": "2026-01-01T00:00:00+00:00", "image_sets": {}}  # fmt: skip
        content = {"model": "net", "benchmark": name, "metrics": metrics, "sampled": sampled, "intervals": {}}
        return Record(content | {"provenance": provenance, "halves": {}})


def spent(world, settings, shares, enough):
    """Return the passes after which no more than `enough` places are open in all ranges together."""
    network = Stand(name="net")
    jobs = {}
    for name, (cost, of, _) in world.benchmarks.items():
        images = SimpleNamespace(name=name, population=of)
        goals = {name: tuple(round(of * share / 100) for share in shares)}
        jobs[name] = Stand(name=name, image_sets=[images], goals=goals, cost=cost, benchmark=None)
    pairs = [(job, network) for job in jobs.values()]
    loop = SimpleNamespace(
        pairs={pair: SimpleNamespace(granted=0) for pair in pairs}, plan=SimpleNamespace(rounds=len(shares)), failed={},
        progress=SimpleNamespace(deadline=0.0), runtime=SimpleNamespace(shard=(1, 1)),
    )  # fmt: skip

    def passes(rounds):
        total = 0
        for pair, count in rounds.items():
            goals = pair[0].goals[pair[0].name]
            done = loop.pairs[pair].granted
            total += (goals[count - 1] - (goals[done - 1] if done else 0)) * pair[0].cost
        return total

    loop.passes = passes
    schedule = Schedule(settings, loop, pairs, time.monotonic())
    total = 0
    for step in schedule:
        total += passes({pair: loop.pairs[pair].granted + 1 for pair in step})
        for pair in step:
            loop.pairs[pair].granted += 1
            record = world.record(pair[0].name, pair[0].goals[pair[0].name][loop.pairs[pair].granted - 1])
            schedule.note(pair, record, 0.0)
        measurement = next(iter(measurements([record.content for record in schedule.records.values()]).values()))
        if sum(widths("net", measurement, {}).values()) <= enough:
            break
    return total


def test_with_a_budget_places_are_known_for_fewer_passes():
    """The next round goes where ranges narrow most per pass; the fixed order takes all benchmarks in turn."""
    shares, ratios = refined((1.0, 5.0, 20.0, 100.0)), []
    for seed in range(12):
        fixed = spent(World(seed), Settings(), shares, 6)
        greedy = spent(World(seed), Settings(budget=1e9), shares, 6)
        ratios.append(greedy / fixed)
    assert np.median(ratios) < 0.9 and max(ratios) <= 1, ratios


@needs_shared
@pytest.mark.slow
@pytest.mark.timeout(900)  # some 100 s of processor time: several minutes on a busy machine
def test_of_a_real_networks_metrics_nine_of_ten_intervals_hold_what_all_photographs_give():
    """MobileNetV2 on 100 photographs, of which 32, the least with an interval, say what all would give.

    All metrics share the sample, so that this is one draw of many: test_whole_set_intervals.py has the coverage.
    """
    network = f"{SHARED / 'nets' / 'mobilenet.py'}:load"
    data = Data(folders={"imagenet": SHARED / "imagenet_samples"}, allow_partial=True)
    chosen = ["imagenet", "spectral", "imagenet_adv", "solarization", "perturbation", "criticality"]
    options = {
        "imagenet_adv": {"attack": "fgsm"},
        "solarization": {"alpha": "11", "draws": 1},
        "criticality": {"reset": "zero", "draws": 1, "layers": "layers.63"},
        "perturbation": {"source": "gradient", "padding": "zeros"},
    }
    settings = Settings(device="cpu", batch_size=8, rounds=(20.0, 100.0))
    first, *_, last = evaluate_rounds(network, chosen, data, settings, options=options)
    inside = []
    for before, after in zip(first, last, strict=True):
        assert after["share"] is None
        for name, sampled in before["sampled"].items():
            if sampled["low"] is not None and after["metrics"][name] is not None:
                assert (sampled["images"], sampled["of"]) == (32, 100)
                slack = 1e-6 * max(1.0, abs(after["metrics"][name]))  # the same mean by another order of sums
                inside.append(sampled["low"] - slack <= after["metrics"][name] <= sampled["high"] + slack)
    assert len(inside) > 80 and np.mean(inside) >= 0.9, (np.mean(inside), len(inside))


@pytest.mark.slow
def test_samples_of_several_sizes_of_one_set_show_their_own_images(drawn):
    """In the first round both probes come down to the 32 images that an interval needs, at other places of each."""
    options = {
        "erf": {"probe": 34},
        "perturbation": {"probe": 40, "source": "gradient", "padding": "zeros"},
    }
    chosen, settings = ["erf", "perturbation"], Settings(device="cpu", rounds=(1.0, 100.0))
    together = list(evaluate_rounds("calibration_texture", chosen, Data(drawn), settings, options=options))
    for number, name in enumerate(chosen):
        alone = list(evaluate_rounds("calibration_texture", name, Data(drawn), settings, options={name: options[name]}))
        for both, one in zip(together, alone, strict=True):
            assert numbers(both[number].content) == numbers(one[0].content)

"""The scripts of the group's related papers on real networks and photographs, as a user runs them."""

import csv
import json

import pytest

from common import CODE, ROOT, SHARED, needs_shared, run

pytestmark = pytest.mark.slow

NETWORKS = """
import sys, torch, torchvision
sys.path.insert(0, {folder!r})
from mobilenet import load

def resnet50():
    torch.manual_seed(0)
    return torchvision.models.resnet50().eval()
"""
SMALL = {
    "filters": ["--kernel", "all", "--shift-to", "{net}:load"],
    "criticality": ["--layers", "fc", "*.0", "--draws", "2", "--reset", "moments"],
    "solarization": ["--alpha", "4", "--draws", "2"],
    "perturbation": ["--source", "gradient", "--padding", "circular", "--mask", "8"],
    "erf": [],
}
METRICS = {
    "filters": "metric/quality-all/ve_rel_wmean",
    "criticality": "metric/criticality-moments-fc__0/mean",
    "solarization": "top1_acc/RandSol-2/top5",
    "perturbation": "metric/perturbation-spectrum/gradient/median",
    "erf": "metric/erf-luo/sd",
}


@needs_shared
@pytest.mark.parametrize("name", SMALL)
def test_both_networks_go_through_every_script_on_the_photographs(name, tmp_path):
    net = tmp_path / "net.py"
    net.write_text(NETWORKS.format(folder=str(SHARED / "nets")))
    words = ["--model", f"{net}:load,{net}:resnet50", "--results", tmp_path, "--wandb", "disabled"]
    words += [word.format(net=net) for word in SMALL[name]]
    images = [] if name == "filters" else ["--imagenet", SHARED / "imagenet_samples", "--limit", "3"]
    status, _, err = run(f"eval_{name}.py", *words, *images)
    assert status == 0, err
    for label in ("net.load", "net.resnet50"):
        record = json.loads((tmp_path / label / f"{name}.json").read_text())
        assert METRICS[name] in record["metrics"]
        assert record["images"] == (0 if name == "filters" else 3)
        assert name == "filters" or record["subset"]["of"] == 50_000
    assert 30 <= len((CODE / f"eval_{name}.py").read_text().splitlines()) <= 110


def test_published_solarisation_curves_have_their_published_extremes():
    with open(ROOT / "raw-data" / "solarization_curves.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    extremes = {
        "tv_resnet50": (33.720, 22.644, 31, 74.602),
        "resnet18": (27.680, 18.512, 29, 67.820),
        "vit_base_patch16_224": (84.918, 82.826, 59, 85.026),
        "convnext_base": (85.294, 80.492, 128, 85.422),
    }
    for name, (first, least, level, last) in extremes.items():
        curve = {int(row["k"]): float(row[name]) for row in rows}
        assert (curve[0], min(curve.values()), curve[255]) == (first, least, last), name
        assert min(curve, key=curve.get) == level, name
        assert all(round(500 * value) == pytest.approx(500 * value) for value in curve.values())  # of 50,000 images

"""What zoo.py prints about a network without loading it, and that torch is not imported for it."""

import json
import subprocess
import sys

import pytest
import torch

import zoo
from imagenet_biases.base.errors import UserError
from imagenet_biases.networks.explain import explain

ROOT = zoo.Path(zoo.__file__).parents[1]


@pytest.mark.parametrize("arguments", [["--list"], ["--explain", "robust_resnet50_l2_eps0.03"]])
def test_looking_at_the_zoo_imports_no_torch(arguments, tmp_path):
    code = f"import sys, zoo; zoo.main({arguments!r}); sys.exit(any(m in sys.modules for m in ('torch', 'timm')))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT / "code")}, capture_output=True
    )
    assert process.returncode == 0 and b"robust_resnet50_l2_eps0.03" in process.stdout, process.stderr


def test_an_entry_is_explained_on_one_screen(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZOO_FOLDER", str(tmp_path))
    name, address = "robust_resnet50_l2_eps0.03", "hf://madrylab/robust-imagenet-models/resnet50_l2_eps0.03.ckpt"
    (tmp_path / "zoo.user.lock.json").write_text(json.dumps({address: "ab" * 32}))
    record = tmp_path / "results" / name / "imagenet.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"metrics": {"top1_acc/imagenet": 75.02}}))
    words = ["--explain", name, "--checkpoints", str(tmp_path), "--results", str(tmp_path / "results")]
    zoo.main(words)
    assert (
        capsys.readouterr().out
        == f"""\
{name}
  category       adversarial_training, one of the study's networks
  address        {address}
  file           not on disk; zoo.py --fetch fetches it
  hash           {"ab" * 32} (pinned)
  layout rules   wrapper ['model']; ignore ['^module\\\\.(normalizer|attacker)\\\\.']; strip ['module.model.']
  architecture   resnet50
  normalization  imagenet: mean 0.485 0.456 0.406, standard deviation 0.229 0.224 0.225
  preprocessing  study: short side 256 (bilinear), central 224 x 224; native: the same
  front end      none
  paper          Do Adversarially Robust ImageNet Models Transfer Better? (https://arxiv.org/abs/2007.08489)
  licence        not stated
  expected       top-1 75.77 % (ImageNet validation, study)
  measured       top-1 75.02 %, -0.75 points from the expected
"""
    )


def test_timm_files_on_disk_are_found_without_timm(tmp_path):
    path = tmp_path / "0123abcd-resnet50.tv_in1k.safetensors"
    path.write_bytes(b"")
    assert str(path) in explain("tv_resnet50", tmp_path)


def test_other_names_are_explained(tmp_path):
    torch.save({}, tmp_path / "net.pth")
    assert "that of --arch" in explain(str(tmp_path / "net.pth"))
    text = explain("resnet50.tv_in1k")
    assert "no record yet" in text and "hf://timm/resnet50.tv_in1k/model.safetensors" in text
    with pytest.raises(UserError, match=r"there is no network 'resnet50\.tv_in2k'.*did you mean"):
        explain("resnet50.tv_in2k")

"""Zero-shot networks: class weights, logits and preprocessing are open_clip's own; every script takes them."""

import json

import numpy as np
import pytest
import torch

import tiny_language
from common import run
from imagenet_biases.base.errors import UserError
from imagenet_biases.networks.load import load_model
from imagenet_biases.networks.registry import network_name

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_language.two_towers(tmp_path_factory.mktemp("models") / "tiny-clip", size=224)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def network(folder, kept):
    return load_model(f"clip:{folder}:7", checkpoints=kept)


def test_the_weight_of_a_class_is_the_mean_of_its_prompts(folder, network):
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    for number in (0, 481, 999):
        total = torch.zeros(16)
        for template in open_clip.SIMPLE_IMAGENET_TEMPLATES:
            with torch.no_grad():
                feature = model.encode_text(tokenizer([template(open_clip.IMAGENET_CLASSNAMES[number])]))[0]
            total += feature / feature.norm()
        torch.testing.assert_close(network.body.classes[number], total / total.norm(), atol=1e-5, rtol=1e-5)


def test_logits_are_open_clips_own_on_the_same_pixels(folder, network):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels = torch.rand((3, 3, 224, 224), generator=torch.Generator().manual_seed(1))
    weights = open_clip.build_zero_shot_classifier(
        model.eval(),
        open_clip.get_tokenizer(f"local-dir:{folder}"),
        open_clip.IMAGENET_CLASSNAMES,
        open_clip.SIMPLE_IMAGENET_TEMPLATES,
    )
    normalise = preprocess.transforms[-1]
    with torch.no_grad():
        expected = model.logit_scale.exp() * model.encode_image(normalise(pixels), normalize=True) @ weights
    assert network(pixels).shape == (3, 1000)
    torch.testing.assert_close(network(pixels), expected, atol=1e-4, rtol=1e-4)
    assert expected.std(0).max() > 1e-4


def test_the_native_view_is_its_own_preprocessing(folder, network):
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    own = preprocess(picture)
    mine = torch.from_numpy(network.native_preprocessing(picture)).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(((mine - network.body.mean) / network.body.std)[0], own, atol=1e-5, rtol=1e-5)


def test_text_weights_are_computed_once_and_a_damaged_file_again(folder, kept, network, monkeypatch):
    from imagenet_biases.networks import zero_shot

    files = sorted(kept.glob("text-weights-*.npy"))
    assert len(files) == 2
    calls = []
    compute = zero_shot.text_weights
    monkeypatch.setattr(zero_shot, "text_weights", lambda *given: calls.append(1) or compute(*given))
    assert load_model(f"clip:{folder}:7", checkpoints=kept).identity == network.identity
    assert not calls
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert load_model(f"clip:{folder}:7", checkpoints=kept).identity == network.identity
    assert len(calls) == 1


def test_prompts_are_part_of_what_a_network_is(folder, kept, network):
    named = load_model(f"clip:{folder}:name", checkpoints=kept)
    assert named.identity["network"] != network.identity["network"]
    assert named.identity["texts_sha256"] != network.identity["texts_sha256"]
    assert network_name(f"clip:{folder}") == "clip-tiny-clip"
    assert network_name("clip:ViT-L-14/openai") == network_name("clip:ViT-L-14/openai:80") == "clip-ViT-L-14-openai"
    assert network_name("clip:ViT-L-14/openai:photo") == "clip-ViT-L-14-openai-photo"


def test_gradients_reach_the_pixels(network):
    pixels = torch.rand((1, 3, 224, 224), requires_grad=True)
    network(pixels)[0, 0].backward()
    assert pixels.grad.abs().sum() > 0


def test_a_network_of_another_size_runs_under_its_native_view_only(drawn, tmp_path, kept, monkeypatch):
    small = tiny_language.two_towers(tmp_path / "small", size=64)
    network = load_model(f"clip:{small}:name", checkpoints=kept)
    assert network.native_preprocessing.crop == 64 and network(torch.rand(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(UserError, match="--preprocessing native"):
        network(torch.rand(1, 3, 224, 224))
    assert network(torch.rand(1, 3, 224, 224), prompt={"names": "categories"}).shape == (1, 16)
    monkeypatch.setenv("ZOO_CHECKPOINTS", str(kept))
    how = ("--model", f"clip:{small}:name", "--data", drawn, "--results", tmp_path / "results", "--limit", 4)
    how += ("--num-workers", 0, "--wandb", "disabled", "--device", "cpu")
    status, _, err = run("eval_imagenet.py", *how)
    assert status == 2 and "--preprocessing native" in err.strip().splitlines()[-1]
    assert run("eval_imagenet.py", *how, "--view", "native")[0] == 0


@pytest.mark.slow
def test_the_plan_needs_no_weights(drawn, tmp_path):
    how = ("--data", drawn, "--results", tmp_path, "--dry-run", "--limit", 4)
    status, out, err = run("eval_imagenet.py", "--model", "clip_rn50_openai", *how)
    assert status == 0 and "to do: about" in out, err


@pytest.mark.parametrize(
    "package, command",
    [
        ("open_clip", ("eval_imagenet.py", "--model", "clip:RN50/openai")),
        ("transformers", ("eval_vlm.py", "--model", "hf:nobody/nothing")),
    ],
)
def test_without_the_optional_package_one_line_says_how_to_get_it(package, command, drawn, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, package, None)  # what an import meets where it is not installed
    status, _, err = run(*command, "--data", drawn, "--results", tmp_path / "results", "--wandb", "disabled")
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert status == 2 and len(lines) == 1 and "pip install -r requirements-language.txt" in lines[0], err


@pytest.mark.parametrize("name", ["clean", "attacked", "asked"])
def test_scripts_take_it(name, folder, kept, drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CHECKPOINTS", str(kept))
    how = ("--model", f"clip:{folder}:7", "--data", drawn, "--results", tmp_path / "results", "--device", "cpu")
    how += ("--limit", 8, "--num-workers", 0, "--wandb", "disabled", "--compile", "off")
    words = {"clean": ("eval_imagenet.py",), "attacked": ("eval_imagenet_adv.py",), "asked": ("eval_vlm.py",)}[name]
    more = ("--task", "clip16") if name == "asked" else ()
    status, _, err = run(*words, *how, *more)
    assert status == 0, err
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*/*.json")]
    assert record["provenance"]["texts_sha256"] and record["provenance"]["prompts"] == "7"
    assert {"asked": "shape-bias/clip16"}.get(name, "top1_acc/imagenet") in record["metrics"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("clip:ViT-L-14", "give clip:ARCH/TAG"),
        ("clip:ViT-L-15/openai", "no architecture 'ViT-L-15'"),
        ("clip:ViT-L-14/opnai", "it has"),
        ("clip:ViT-L-14/openai:99", "give clip:ARCH/TAG"),
    ],
)
def test_a_wrong_name_gets_one_line(name, message):
    with pytest.raises(UserError, match=message):
        load_model(name)


def test_a_folder_without_weights_or_with_others_gets_one_line(folder, tmp_path):
    import shutil

    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors"):
        load_model(f"clip:{bare}")
    (bare / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(f"clip:{bare}")

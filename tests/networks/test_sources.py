"""Names from elsewhere: one ResNet in every form gives the same answers; labels, processors and code are checked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import tiny_networks
from common import CODE, SHARED, needs_shared, responses, run
from imagenet_biases import Data, Pass
from imagenet_biases.base.download import file_hash, local_path, web_address
from imagenet_biases.base.errors import UserError
from imagenet_biases.images.preprocessing import STUDY, decode
from imagenet_biases.images.sets import image_set
from imagenet_biases.networks import packages, registry
from imagenet_biases.networks.load import load_model
from imagenet_biases.networks.normalization import NORMALIZATIONS
from imagenet_biases.networks.sources import check_order
from zoo_server import Reply, Server

pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx2torch")

TIMM_NAME = "resnet18.a1_in1k"
HUB = """
dependencies = ["torch"]
import torch, torchvision
def tiny(pretrained=False, **settings):
    network = torchvision.models.resnet18(**settings)
    if pretrained:
        network.load_state_dict(torch.load({path!r}, weights_only=True))
    return network
def modern(weights=None):
    return tiny(pretrained=weights == "DEFAULT")
def always():
    return tiny(pretrained=True)
"""


def pixels_of(paths):
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in NORMALIZATIONS["imagenet"])
    images = [torch.from_numpy(decode(path, STUDY)).permute(2, 0, 1) / 255 for path in paths]
    return torch.stack([(image - mean) / std for image in images])


@pytest.fixture(scope="module")
def brought(tmp_path_factory, drawn):
    """A small ResNet in every form: {form: how to load it}, with the module itself."""
    folder = tmp_path_factory.mktemp("brought")
    paths = sorted((drawn / "imagenet").rglob("*.*"))
    paths = [path for path in paths if path.suffix.lower() in (".png", ".jpg", ".jpeg")][::3][:12]
    paths += sorted((SHARED / "imagenet_samples").glob("*/*"))[:20] if SHARED else []
    network = tiny_networks.resnet18(pixels_of(paths))
    torch.save(network.state_dict(), folder / "net.pth")
    (folder / "net.py").write_text(
        f"import torch, torchvision\ndef build():\n    network = torchvision.models.resnet18()\n"
        f"    network.load_state_dict(torch.load({str(folder / 'net.pth')!r}, weights_only=True))\n    return network\n"
    )
    (folder / "hub").mkdir()
    (folder / "hub" / "hubconf.py").write_text(HUB.format(path=str(folder / "net.pth")))
    tiny_networks.timm_folder(network, folder / "resnet18.mine")
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    place = local_path(packages.timm_address(TIMM_NAME), checkpoints, f"{TIMM_NAME}.safetensors")
    shutil.copy(folder / "resnet18.mine" / "model.safetensors", place)
    tiny_networks.transformers_folder(network, folder / "resnet-18")
    tiny_networks.onnx_file(network, folder / "net.onnx")
    return network, {
        "torch module": {"name": f"{folder}/net.py:build", "normalization": "imagenet"},
        "checkpoint": {"name": f"{folder}/net.pth", "arch": "resnet18"},
        "timm name": {"name": TIMM_NAME, "checkpoints": checkpoints},
        "timm hub": {"name": f"hf-hub:{folder}/resnet18.mine"},
        "transformers": {"name": f"hf:{folder}/resnet-18"},
        "ONNX": {"name": f"{folder}/net.onnx"},
        "ONNX with gradients": {"name": f"{folder}/net.onnx", "gradients": True},
        "torch.hub": {"name": f"torchhub:{folder}/hub:tiny", "trust_remote_code": True},
        "torch.hub, weights": {"name": f"torchhub:{folder}/hub:modern", "trust_remote_code": True},
        "torch.hub, always": {"name": f"torchhub:{folder}/hub:always", "trust_remote_code": True},
    }


@pytest.fixture(autouse=True)
def own_pins(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_FOLDER", str(tmp_path))


@pytest.fixture
def mirror(monkeypatch):
    server = Server()
    server.reach(monkeypatch)
    yield server
    server.close()


def answers(network, data):
    shown = responses([Pass(image_set("imagenet", data))], network, batch_size=8)
    return shown["imagenet", "clean"].values[:, 0]


def same_answers(forms, data, chosen):
    loaded = {form: load_model(**forms[form]) for form in chosen}
    given = {form: answers({"network": network}, data) for form, network in loaded.items()}
    first = next(iter(given.values()))
    assert len(set(first.tolist())) > len(first) / 4  # they tell the images apart
    for form, values in given.items():
        np.testing.assert_array_equal(values, first, form)


QUICK = ("torch module", "timm name", "timm hub", "transformers", "ONNX", "torch.hub")


@pytest.mark.slow
def test_the_same_network_gives_the_same_answers_in_every_form(brought, drawn):
    same_answers(brought[1], Data(root=drawn, limit=16), QUICK)


@needs_shared
@pytest.mark.slow
def test_the_same_network_gives_the_same_answers_on_photographs(brought, tmp_path):
    tiny_networks.onnx_file(brought[0], tmp_path / "by-four.onnx", batch=4)
    forms = brought[1] | {"ONNX, four images at a time": {"name": f"{tmp_path}/by-four.onnx"}}
    data = Data(folders={"imagenet": SHARED / "imagenet_samples"}, allow_partial=True, limit=24)
    same_answers(forms, data, forms)


@pytest.mark.slow
def test_every_form_gives_the_modules_logits(brought):
    module, forms = brought
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in NORMALIZATIONS["imagenet"])
    pixels = torch.rand((6, 3, 224, 224), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = module((pixels - mean) / std)
    for form, settings in forms.items():
        network = load_model(**settings)
        with torch.no_grad():
            torch.testing.assert_close(network(pixels), expected, atol=2e-3, rtol=1e-3, msg=form)
        assert network.identity["network"] == load_model(**settings).identity["network"], form


def test_a_network_is_fetched_from_the_hub(brought, mirror, tmp_path):
    folder = registry_path(brought[1]["timm hub"]["name"])
    for file in ("config.json", "model.safetensors"):
        mirror.replies[f"hf://owner/resnet18.mine/{file}"] = Reply(folder / file)
    network = load_model("hf-hub:owner/resnet18.mine", checkpoints=tmp_path)
    assert network.identity["network"] == load_model(**brought[1]["timm hub"]).identity["network"]
    assert network.identity["source"] == "hf://owner/resnet18.mine/model.safetensors"
    assert network.identity["source"] in registry.pins().all()
    with pytest.raises(UserError, match=r"cannot fetch hf://timm/gone/config\.json"):
        load_model("timm/gone", checkpoints=tmp_path)


@pytest.mark.slow
def test_a_revision_is_fetched_and_recorded(brought, mirror, tmp_path):
    folder = registry_path(brought[1]["timm hub"]["name"])
    other = changed(folder, tmp_path / "other", std=[0.5, 0.5, 0.5])
    for file in ("config.json", "model.safetensors"):
        mirror.replies[f"hf://owner/resnet18.mine/{file}"] = Reply(folder / file)
        mirror.replies[f"hf://owner/resnet18.mine/resolve/refs%2Fpr%2F7/{file}"] = Reply(other / file)
    commit = file_hash(folder / "model.safetensors")[:40]  # as the mirror has it
    newest, pinned = (
        load_model(f"hf-hub:owner/resnet18.mine{at}", checkpoints=tmp_path / "c") for at in ("", "@refs/pr/7")
    )
    for network in (newest, pinned, load_model("hf-hub:owner/resnet18.mine", checkpoints=tmp_path / "c")):
        assert network.name == "resnet18.mine" and network.identity["revision"] == commit
    assert newest.identity["network"] != pinned.identity["network"]
    assert pinned.std.flatten().tolist() == [0.5, 0.5, 0.5] != newest.std.flatten().tolist()
    assert pinned.identity["source"] == "hf://owner/resnet18.mine@refs%2Fpr%2F7/model.safetensors"
    assert web_address(pinned.identity["source"]).endswith("/resnet18.mine/resolve/refs%2Fpr%2F7/model.safetensors")
    assert load_model(**brought[1]["timm hub"]).identity["revision"] is None
    with pytest.raises(UserError, match=r"cannot fetch hf://owner/resnet18\.mine@v2/config\.json"):
        load_model("hf-hub:owner/resnet18.mine@v2", checkpoints=tmp_path / "c")
    with pytest.raises(UserError, match="give OWNER/NAME@REVISION"):
        load_model("hf-hub:owner/resnet18.mine@", checkpoints=tmp_path / "c")


def test_what_timm_drops_of_a_file_of_its_hub_is_named(tmp_path, recwarn):
    small = {"embed_dim": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
    network = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, **small)
    timm.models.save_for_hf(network, tmp_path, model_config={}, model_args=small)
    for extra, warned in (("layers.0.blocks.0.attn.relative_position_index", 0), ("attn_mask_head.weight", 1)):
        save_file(network.state_dict() | {extra: torch.ones(4)}, tmp_path / "model.safetensors")
        load_model(f"hf-hub:{tmp_path}")
        lines = [str(warning.message) for warning in recwarn if "not used" in str(warning.message)]
        assert lines == warned * [f"hf-hub:{tmp_path} has 1 tensors beside the network, which are not used: {extra}"]


REVISION = """
from imagenet_biases.networks.load import load_model
network = load_model("hf:owner/resnet@v1")
print(network.name, network.identity["source"], network.identity["revision"], network.identity["network"])
"""


@pytest.mark.slow
def test_transformers_takes_a_revision_and_tells_its_commit(brought, mirror, tmp_path):
    folder = registry_path(brought[1]["transformers"]["name"])
    for path in folder.iterdir():
        mirror.replies[f"hf://owner/resnet/resolve/v1/{path.name}"] = Reply(path, headers={"X-Repo-Commit": "ab" * 20})
    settings = {"HF_ENDPOINT": mirror.address, "HF_HOME": str(tmp_path), "PYTHONPATH": str(CODE)}
    answer = subprocess.run(
        [sys.executable, "-c", REVISION], env=os.environ | settings, capture_output=True, text=True, check=True
    )
    label, source, revision, fingerprint = answer.stdout.split()
    assert (label, source, revision) == ("resnet", "hf://owner/resnet@v1", "ab" * 20)
    assert fingerprint == load_model(**brought[1]["transformers"]).identity["network"]


@pytest.mark.slow
def test_scripts_take_the_names_and_label_them(brought, drawn, tmp_path):
    forms = brought[1]
    words = ("--data", drawn, "--limit", 8, "--results", tmp_path / "r", "--wandb", "disabled", "--num-workers", 0)
    for form, label in (("timm hub", "resnet18.mine"), ("transformers", "resnet-18"), ("ONNX", "net")):
        assert registry.network_name(forms[form]["name"]) == label
        status, _, err = run("eval_imagenet.py", "--model", forms[form]["name"], *words)
        assert status == 0, err
        assert (tmp_path / "r" / label / "imagenet.json").exists() or list((tmp_path / "r" / label).glob("imagenet*"))
    name = forms["torch.hub"]["name"]
    status, _, err = run("eval_imagenet.py", "--model", name, *words)
    assert status == 2 and "--trust-remote-code" in err and err.count("error") == 1
    status, _, err = run("eval_imagenet.py", "--model", name, *words, "--trust-remote-code")
    assert status == 0 and (tmp_path / "r" / "hub.tiny").is_dir(), err


def test_an_onnx_file_is_attacked_only_with_gradients(brought, drawn, tmp_path):
    name = brought[1]["ONNX"]["name"]
    words = ("--model", name, "--data", drawn, "--limit", 4, "--results", tmp_path / "r", "--wandb", "disabled")
    words += ("--num-workers", 0, "--attack", "fgsm")
    status, _, err = run("eval_imagenet_adv.py", *words)
    errors = [line for line in err.splitlines() if line.startswith("error")]
    assert status and "--gradients" in errors[0], err
    status, _, err = run("eval_imagenet_adv.py", *words, "--gradients")
    assert status == 0, err


def test_an_onnx_file_that_normalizes_itself_is_left_alone(brought, tmp_path):
    module, _ = brought
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in NORMALIZATIONS["imagenet"])

    class Inside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, pixels):
            return self.module((pixels - mean) / std)

    tiny_networks.onnx_file(Inside().eval(), tmp_path / "inside.onnx")
    with pytest.warns(UserWarning, match="normalization is builtin"):
        network = load_model(f"{tmp_path}/inside.onnx")
    assert network.identity["normalization"] == "builtin" and not network.normalized
    pixels = torch.rand((2, 3, 224, 224), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), Inside()(pixels), atol=1e-3, rtol=1e-3)


# transformers ---------------------------------------------------------------------------------------------------------


def photograph(seed=0, size=(300, 400)):
    from PIL import Image

    y, x = np.mgrid[: size[0], : size[1]]
    waves = np.stack([127 + 120 * np.sin((x * (1 + c) + y * seed) / 23) for c in range(3)], -1)
    return Image.fromarray(waves.astype(np.uint8))


def classifiers():
    """Return {name: (tiny model, processor)} of several architectures with processors of all kinds."""
    import transformers as tr

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names = tiny_networks.labels()
    kinds = {
        "vit": (tr.ViTConfig(**small, image_size=224, patch_size=32), tr.ViTImageProcessor()),
        "vit384": (
            tr.ViTConfig(**small, image_size=384, patch_size=32),
            tr.ViTImageProcessor(size={"height": 384, "width": 384}),
        ),
        "convnext": (
            tr.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]),
            tr.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875),
        ),
        "swin": (
            tr.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], image_size=224),
            tr.ViTImageProcessor(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
        ),
        "mobilevit": (
            tr.MobileViTConfig(neck_hidden_sizes=[8] * 7, hidden_sizes=[8, 8, 8], num_attention_heads=2),
            tr.MobileViTImageProcessor(),
        ),
        "efficientnet": (
            tr.EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, image_size=224),
            tr.EfficientNetImageProcessor(size={"height": 224, "width": 224}),
        ),
    }
    models = {}
    for name, (config, processor) in kinds.items():
        config.id2label, config.label2id = names, {label: number for number, label in names.items()}
        torch.manual_seed(0)
        models[name] = tr.AutoModelForImageClassification.from_config(config).eval(), processor
    return models


@pytest.mark.parametrize("name", ["vit", "vit384", "convnext", "swin", "mobilevit", "efficientnet"])
def test_the_models_own_processor_is_its_native_preprocessing(name, tmp_path):
    """Pixels through the preprocessing and the normalization give the logits of model(processor(image))."""
    model, processor = classifiers()[name]
    model.save_pretrained(tmp_path / name)
    processor.save_pretrained(tmp_path / name)
    network = load_model(f"hf:{tmp_path / name}")
    native = network.native_preprocessing
    assert network.side == (384 if name == "vit384" else None)
    for seed, size in ((0, (300, 400)), (1, (333, 250)), (2, (224, 224))):
        image = photograph(seed, size)
        pixels = torch.from_numpy(native(image)).permute(2, 0, 1)[None] / 255
        inputs = processor(images=image, return_tensors="pt")["pixel_values"]
        assert pixels.shape == inputs.shape
        with torch.no_grad():
            torch.testing.assert_close(network(pixels), model(inputs).logits, atol=1e-4, rtol=1e-4)


def test_native_preprocessing_works_in_decoding_processes_and_from_the_cache(brought, drawn, tmp_path):
    words = ("--model", brought[1]["transformers"]["name"], "--data", drawn, "--limit", 8, "--wandb", "disabled")
    words += ("--view", "native", "--num-workers", 1, "--cache", tmp_path / "cache")
    tables = [run("eval_imagenet.py", *words, "--results", tmp_path / str(n), check=True).stdout for n in range(2)]
    assert tables[0] == tables[1]


def test_labels_in_another_order_are_refused(brought, tmp_path):
    names = list(tiny_networks.labels().values())
    by_text = [names[number] for number in sorted(range(1000), key=str)]
    shifted = names[1:] + names[:1]
    alphabetical = sorted(names)
    for labels in (by_text, shifted, alphabetical, [f"thing {number}" for number in range(1000)]):
        with pytest.raises(UserError, match="not those of ImageNet's classes in their order"):
            check_order(labels, "x")
    with pytest.raises(UserError, match="not those of ImageNet"):
        load_model(f"hf:{tiny_networks.transformers_folder(brought[0], tmp_path / 'x', dict(enumerate(by_text)))}")


def test_labels_in_the_words_of_others_are_accepted(recwarn):
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    open_clip = pytest.importorskip("open_clip")
    for labels in (
        _IMAGENET_CATEGORIES,
        open_clip.IMAGENET_CLASSNAMES,
        registry_ids(),
        [*tiny_networks.labels().values()],
    ):
        check_order(labels, "x")
    assert not recwarn.list
    check_order([f"LABEL_{number}" for number in range(1000)], "x")
    assert "only numbered" in str(recwarn.pop().message)


def registry_ids():
    from imagenet_biases.study import wordnet_ids

    return list(wordnet_ids())


def changed(folder, target, **values):
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | values
    (target / "config.json").write_text(json.dumps(config))
    return target


def without_a_tensor(folder, target):
    shutil.copytree(folder, target)
    state = load_file(target / "model.safetensors")
    state.pop(next(name for name in state if name.endswith("weight")))
    save_file(state, target / "model.safetensors", {"format": "pt"})
    return target


def test_what_is_damaged_or_something_else_gets_one_line(brought, tmp_path):
    forms = brought[1]
    timm_folder = registry_path(forms["timm hub"]["name"])
    hf_folder = registry_path(forms["transformers"]["name"])
    tens = {str(number): f"thing {number}" for number in range(10)}
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.onnx").write_text("version https://example.org/spec\n")
    (tmp_path / "cut.onnx").write_bytes(Path(forms["ONNX"]["name"]).read_bytes()[:5000])
    cases = {
        f"hf-hub:{tmp_path / 'empty'}": "has no config.json",
        "hf-hub:one": "neither OWNER/NAME",
        "timm/a/b": "neither OWNER/NAME",
        "hf:/gone/resnet-18": "there is no such folder",
        f"hf-hub:{changed(timm_folder, tmp_path / 'a', num_classes=10)}": "10 outputs",
        f"hf-hub:{changed(timm_folder, tmp_path / 'b', architecture='resnet5000')}": "cannot be loaded",
        f"hf-hub:{changed(timm_folder, tmp_path / 'c', label_names=registry_ids()[::-1])}": "in their order",
        f"hf-hub:{without_a_tensor(timm_folder, tmp_path / 'd')}": "cannot be loaded",
        f"hf:{changed(hf_folder, tmp_path / 'e', id2label=tens)}": "10 labels",
        f"hf:{timm_folder}": f"a network of timm; give hf-hub:{timm_folder}",
        f"hf:{without_a_tensor(hf_folder, tmp_path / 'f')}": "it would be random",
        "torchhub:nothing": "OWNER/REPO:ENTRY",
        f"{tmp_path / 'text.onnx'}": "cannot be loaded",
        f"{tmp_path / 'cut.onnx'}": "cannot be loaded",
        f"{tmp_path / 'gone.onnx'}": "gone.onnx",
        "predictions:x.csv": "script of one benchmark",
    }
    for name, message in cases.items():
        with pytest.raises(UserError) as caught:
            print(name)  # shown where none is raised
            load_model(name, trust_remote_code=True)
        assert message in str(caught.value) and "\n" not in str(caught.value), (name, str(caught.value))


def registry_path(name):
    return Path(name.partition(":")[2])


@pytest.mark.parametrize(
    "module, form", [("onnxruntime", "ONNX"), ("onnx2torch", "ONNX with gradients"), ("transformers", "transformers")]
)
def test_without_its_package_a_name_gets_one_line(brought, monkeypatch, module, form):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"needs {module}") as caught:
        load_model(**brought[1][form])
    assert "pip install" in str(caught.value) and "\n" not in str(caught.value)


def test_an_entry_of_torch_hub_that_fails_is_named(brought, tmp_path):
    (tmp_path / "hubconf.py").write_text("def broken(pretrained=True):\n    raise ValueError('no weights today')\n")
    with pytest.raises(UserError, match="no weights today"):
        load_model(f"torchhub:{tmp_path}:broken", trust_remote_code=True)
    with pytest.raises(UserError, match="gone"):
        load_model(f"torchhub:{tmp_path}:gone", trust_remote_code=True)


@pytest.mark.slow
def test_weights_beside_an_onnx_file_are_part_of_the_network(brought, tmp_path):
    module = brought[0]
    torch.onnx.export(module, (torch.zeros(1, 3, 224, 224),), tmp_path / "net.onnx", dynamo=True, external_data=True)
    (weights,) = tmp_path.glob("net.onnx?*")
    network = load_model(f"{tmp_path}/net.onnx")
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1  # one weight a little
    weights.write_bytes(data)
    assert load_model(f"{tmp_path}/net.onnx").identity["network"] != network.identity["network"]
    weights.unlink()
    with pytest.raises(UserError, match=r"net\.onnx cannot be loaded"):
        load_model(f"{tmp_path}/net.onnx")


@pytest.mark.slow
def test_layers_of_a_network_that_cannot_be_built_anew_are_reset_as_pytorch_does(brought, drawn, tmp_path):
    words = ("--data", drawn, "--limit", 2, "--draws", 1, "--results", tmp_path, "--wandb", "disabled")
    for form, metric in (("transformers", "metric/criticality-pytorch/mean"), ("timm hub", "metric/criticality/mean")):
        status, out, err = run("eval_criticality.py", "--model", brought[1][form]["name"], *words)
        assert status == 0 and metric in out, err

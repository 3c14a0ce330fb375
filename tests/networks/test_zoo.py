"""Every network of the study, from files in its authors' layout, through the real fetching and loading code."""

import csv
import hashlib
import json
import re
import tomllib

import pytest
import timm
import torch
from torchvision.transforms import Normalize

import zoo
import zoo_layouts
import zoo_server
from common import CODE, SHARED, TABLES, needs_shared, script
from imagenet_biases.base import download
from imagenet_biases.base.errors import UserError
from imagenet_biases.images.preprocessing import STUDY, Preprocessing
from imagenet_biases.networks import load, packages
from imagenet_biases.networks import registry as model_zoo
from imagenet_biases.networks.load import load_model

STUDY_NAMES = [row["name"] for row in tomllib.loads(model_zoo.ZOO.read_text())["network"] if row.get("in_study")]
FULL_SIZE = [  # one of each family of layouts at true size
    "resnet50.a1_in1k",
    "resnet50_tsbias_sbias",
    "resnet50_trained_on_SIN",
    "robust_resnet50_l2_eps1",
    "resnet50_dino",
    "resnet50_simclrv2",
]
NORMALIZE = {
    "imagenet": Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": torch.nn.Identity(),
}


@pytest.fixture(scope="module")
def narrow_state():
    return zoo_layouts.random_state(zoo_layouts.narrow)


@pytest.fixture
def server(monkeypatch):
    server = zoo_server.Server()
    server.reach(monkeypatch)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    yield server
    server.close()


@pytest.fixture
def use_zoo(monkeypatch, tmp_path):
    """use_zoo(text): the registry reads `text`, with its own lock file and folder of downloads."""

    def use(text):
        (tmp_path / "zoo.toml").write_text(text)
        monkeypatch.setattr(model_zoo, "ZOO", tmp_path / "zoo.toml")
        model_zoo._entries.cache_clear()

    monkeypatch.setattr(model_zoo, "PINS", tmp_path / "zoo.lock.json")
    monkeypatch.setattr(model_zoo, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setenv("ZOO_FOLDER", str(tmp_path))
    yield use
    monkeypatch.undo()
    model_zoo._entries.cache_clear()


def pins():
    """What was pinned: the user's lock file, and never the shipped one."""
    assert not model_zoo.PINS.exists()
    path = model_zoo.user_folder() / "zoo.user.lock.json"
    return json.loads(path.read_text()) if path.exists() else {}


def the_zoo(narrow=True):
    """models/zoo.toml; the networks of the study a 16th as wide."""
    text = model_zoo.ZOO.read_text()
    return text.replace("\nin_study = true", '\nin_study = true\narch = "zoo_layouts:narrow"') if narrow else text


def serve(server, name, paths, use_zoo, text):
    """Serve the files of an entry at its addresses; hashes in file names are made those of these files."""
    use_zoo(text)
    for file, path in zip(model_zoo.registry()[name].files, paths, strict=True):
        if found := download.hash_in_name(file.address):
            text = text.replace(found, download.file_hash(path)[: len(found)])
    use_zoo(text)
    for file, path in zip(model_zoo.registry()[name].files, paths, strict=True):
        server.replies[file.address] = zoo_server.Reply(path, big=file.source == "gdrive")


def reference(build, state, normalization, pixels):
    network = build()
    network.load_state_dict(state)
    with torch.no_grad():
        return network.eval()(NORMALIZE[normalization](pixels))


@pytest.mark.parametrize("name", STUDY_NAMES)
def test_every_network_of_the_study_loads_from_its_authors_layout(name, narrow_state, server, use_zoo, tmp_path):
    written = zoo_layouts.write(name, narrow_state, tmp_path)
    serve(server, name, written, use_zoo, the_zoo())
    network = load_model(name)
    assert {address for _, address, _ in server.log} == {file.address for file in model_zoo.registry()[name].files}
    normalization = "none" if name in ("resnet50_simclrv2", "resnet50_diffusionnoise_fixed_nonoise") else "imagenet"
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(network(pixels), reference(zoo_layouts.narrow, narrow_state, normalization, pixels))
    assert network.name == name and not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert pins().keys() == {file.address for file in model_zoo.registry()[name].files}
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in written]
    assert network.identity["checkpoint_sha256"] == "+".join(hashes)

    del server.log[:]  # from now on without the network
    server.replies.clear()
    assert load_model(name).identity == network.identity
    assert not server.log


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_true_resnet50_of_each_family_of_layouts(name, server, use_zoo, tmp_path):
    state = zoo_layouts.random_state(lambda: timm.create_model("resnet50"))
    serve(server, name, zoo_layouts.write(name, state, tmp_path), use_zoo, the_zoo(narrow=False))
    pixels = torch.rand(1, 3, 64, 64)
    normalization = "none" if name == "resnet50_simclrv2" else "imagenet"
    want = reference(lambda: timm.create_model("resnet50"), state, normalization, pixels)
    assert torch.equal(load_model(name)(pixels), want)
    for path in [*tmp_path.glob("*.pth"), *tmp_path.glob("checkpoints/*")]:
        path.unlink()  # half a gigabyte otherwise


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        ("resnet50_prime", "state_dict"),
        ("resnet50_noisymix", ""),
        ("resnet50_noisymix", "state_dict"),
        ("resnet50_pixmix_90ep", "model_state_dict"),
        ("resnet50_opticsaugment", "model_state_dict"),
        ("resnet50_frozen_random", "state_dict"),
        ("resnet50_frozen_random", ""),
    ],
)
def test_optional_wrappers(name, wrapper, narrow_state, server, use_zoo, tmp_path):
    state = zoo_layouts.prefixed("module.", narrow_state)
    torch.save({wrapper: state} if wrapper else state, tmp_path / "file.pth")
    serve(server, name, [tmp_path / "file.pth"], use_zoo, the_zoo())
    pixels = torch.rand(1, 3, 64, 64)
    want = reference(zoo_layouts.narrow, narrow_state, "imagenet", pixels)
    assert torch.equal(load_model(name)(pixels), want)


def test_only_files_that_fit_are_pinned_and_a_change_is_an_error(narrow_state, server, use_zoo, tmp_path):
    name = "resnet50_moco_v3_100ep"
    wrong = {key.replace("layer4.2", "layer4.3"): value for key, value in narrow_state.items()}
    serve(server, name, zoo_layouts.write(name, wrong, tmp_path), use_zoo, the_zoo())
    message = r"15 missing: layer4\.2\.conv1\.weight, .*18 left over: layer4\.3\.conv1\.weight"
    with pytest.raises(UserError, match=rf"resnet50_moco_v3_100ep \(.*\) does not fit .*{message}"):
        load_model(name)
    assert not pins()
    hashes = []
    for state in (narrow_state, {key: value + 1 for key, value in narrow_state.items()}):
        zoo_layouts.write(name, state, tmp_path)
        hashes.append(download.file_hash(tmp_path / f"{name}.pth"))
    zoo_layouts.write(name, narrow_state, tmp_path)
    load_model(name, checkpoints=tmp_path / "first")
    assert list(pins().values()) == hashes[:1]
    zoo_layouts.write(name, state, tmp_path)
    with pytest.raises(UserError, match=f"has sha256 {hashes[1]}, but https://dl.*had {hashes[0]} when"):
        load_model(name, checkpoints=tmp_path / "second")


def test_a_file_put_there_by_hand_must_have_the_hash_in_its_name(narrow_state, use_zoo, tmp_path):
    use_zoo(the_zoo())
    entry = model_zoo.registry()["resnet50_trained_on_SIN"]
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": narrow_state}, entry.files[0].path())
    with pytest.raises(UserError, match=r"train_60_epochs.* one that begins with c8e5653e was expected"):
        load_model("resnet50_trained_on_SIN")


def test_a_network_by_hand_and_a_missing_one(narrow_state, use_zoo, tmp_path):
    use_zoo(the_zoo().replace('name = "resnet50_supcon"', 'name = "resnet50_supcon"\narch = "zoo_layouts:narrow"'))
    with pytest.raises(UserError, match=r"resnet50_supcon\.pth is missing.*put the file there"):
        load_model("resnet50_supcon")
    state = {name.replace("fc.", "head.2."): value for name, value in narrow_state.items()}
    encoder = {(name if name.startswith("head") else f"encoder.{name}"): value for name, value in state.items()}
    (tmp_path / "checkpoints").mkdir()
    torch.save({"model": zoo_layouts.prefixed("module.", encoder)}, tmp_path / "checkpoints" / "resnet50_supcon.pth")
    pixels = torch.rand(1, 3, 64, 64)
    want = reference(zoo_layouts.narrow, narrow_state, "imagenet", pixels)
    assert torch.equal(load_model("resnet50_supcon")(pixels), want)


@pytest.mark.slow
def test_a_fetched_checkpoint_lies_on_disk_once(server, tmp_path):
    """No cache of the hub's client, of timm or of torch keeps a second copy; all of them would lie in `home`."""
    state = zoo_layouts.random_state(lambda: timm.create_model("resnet10t"))
    zoo_layouts.save_file(state, tmp_path / "published.safetensors")
    server.replies["hf://timm/resnet10t.c3_in1k/model.safetensors"] = zoo_server.Reply(
        tmp_path / "published.safetensors"
    )
    home = tmp_path / "home"
    home.mkdir()
    places = {name: str(home / name) for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "TMPDIR", "ZOO_FOLDER")}
    (home / "TMPDIR").mkdir()
    done = script(
        *("zoo.py", "--fetch", "resnet10t.c3_in1k"),
        **(places | {"HOME": str(home), "HF_ENDPOINT": server.address, "ZOO_CHECKPOINTS": str(home / "checkpoints")}),
    )
    assert "1 of 1 are in order" in done.stdout
    large = [path for path in home.rglob("*") if path.is_file() and path.stat().st_size > 1e6]
    assert [path.parent.name for path in large] == ["checkpoints"]
    assert large[0].read_bytes() == (tmp_path / "published.safetensors").read_bytes()


def test_any_timm_name(server, use_zoo, tmp_path):
    use_zoo(the_zoo())
    state = zoo_layouts.random_state(lambda: timm.create_model("resnet10t"))
    zoo_layouts.save_file(state, tmp_path / "timm.safetensors")
    server.replies["hf://timm/resnet10t.c3_in1k/model.safetensors"] = zoo_server.Reply(tmp_path / "timm.safetensors")
    network = load_model("resnet10t.c3_in1k")
    pixels = torch.rand(1, 3, 64, 64)
    assert torch.equal(network(pixels), reference(lambda: timm.create_model("resnet10t"), state, "imagenet", pixels))
    assert network.native_preprocessing.interpolation == "bicubic"
    del state["fc.weight"]
    zoo_layouts.save_file(state, tmp_path / "timm.safetensors")
    with pytest.raises(UserError, match=r"has sha256 [0-9a-f]{64}, but hf://timm/resnet10t.*had [0-9a-f]{64} when"):
        load_model("resnet10t.c3_in1k", checkpoints=tmp_path / "elsewhere")
    (tmp_path / "zoo.user.lock.json").unlink()
    with pytest.raises(UserError, match=r"does not fill timm's resnet10t\.c3_in1k.*Missing.*fc\.weight"):
        load_model("resnet10t.c3_in1k", checkpoints=tmp_path / "elsewhere")
    with pytest.raises(UserError, match="21843 outputs"):
        load_model("vit_tiny_patch16_224.augreg_in21k")
    with pytest.raises(UserError, match="no pretrained weights"):
        load_model("nf_resnet26")


# --- the registry ----------------------------------------------------------------------------------------------------


def test_all_is_the_study_in_its_order_and_every_entry_is_complete():
    names = model_zoo.resolve("all")
    assert len(names) == 48
    assert names == STUDY_NAMES
    for name in names:
        entry = model_zoo.registry()[name]
        assert entry.category and entry.source and entry.location and entry.paper
        assert re.match(r"https://(arxiv\.org/abs/\d{4}\.\d{5}$|pytorch\.org/blog/)", entry.link)
        assert 50 < entry.expected_top1 < 81
        assert entry.normalization in ("imagenet", "none")
    assert model_zoo.groups()["calibration"] == ["calibration_silhouette", "calibration_texture"]
    assert len(model_zoo.resolve("augmentation")) == 12


def test_the_registry_agrees_with_the_published_facts():
    with (TABLES / "zoo_sources.csv").open() as file:
        sources = list(csv.DictReader(file))
    with (TABLES / "published_results.csv").open() as file:
        published = {row["model"]: row for row in csv.DictReader(file)}
    entries = model_zoo.registry()
    assert [row["name"] for row in sources if row["in_study"] == "True"] == model_zoo.resolve("all")
    assert {row["name"] for row in sources} | {
        "calibration_silhouette",
        "calibration_texture",
        "resnet50_diffusionnoise_fixed",
        "resnet50_diffusionnoise",
        "alexnet_trained_on_SIN",
        "vgg16_trained_on_SIN",
        *model_zoo.groups()["dial"],
        *model_zoo.groups()["zero_shot"],
        *model_zoo.groups()["adversarial_families"],
    } == set(entries)
    for row in sources:
        entry = entries[row["name"]]
        assert entry.category == row["category"]
        if row["source"] in ("timm", "url", "huggingface", "gdrive") and "not published" not in row["location"]:
            assert (entry.source, entry.location) == (row["source"], row["location"])
        for part in re.findall(r"https://[^ ]+", row["location"]):
            assert part in entry.location
        if entry.normalization != "timm":
            assert entry.normalization == row["normalization"]
        if row["name"] in published:
            assert entry.expected_top1 == pytest.approx(float(published[row["name"]]["top1_acc/imagenet"]), abs=0.001)
            assert entry.category == published[row["name"]]["category"]


def test_a_faulty_entry_names_itself(use_zoo):
    rest = 'paper = "p"\nlink = "l"\nnormalization = "imagenet"\nsource = "url"\nlocation = "https://a.org/x.pth"\n'
    for fault, message in {
        'wraper = ["state_dict"]': "entry new: .*wraper",
        'source = "ftp"': "unknown source",
        'normalization = "imagnet"': "normalization is 'imagnet', not one of",
        'normalization = "timm"': "for source 'timm' only",
    }.items():
        key = fault.split(" ")[0]
        lines = [line for line in rest.splitlines() if not line.startswith(key)]
        use_zoo("\n".join(['[[network]]\nname = "new"', *lines, fault]))
        with pytest.raises(UserError, match=message):
            model_zoo.registry()
    use_zoo("[[network]]\nname = new")
    with pytest.raises(UserError, match=r"zoo\.toml: Invalid value.*line 2"):
        model_zoo.registry()
    use_zoo(f'[[network]]\nname = "new"\n{rest}\n[[network]]\nname = "new"\n{rest}')
    with pytest.raises(UserError, match="entry new is there twice"):
        model_zoo.registry()
    use_zoo('[[network]]\nname = "new"\npaper = "p"\nlink = "l"\n')
    with pytest.raises(UserError, match=r"entry new: .*normalization"):
        model_zoo.registry()


def test_resolve(tmp_path):
    (tmp_path / "mine.txt").write_text("# my list\ntv_resnet50\nresnet50_swav  # the old one\n\nstylized\n")
    listed = model_zoo.resolve(f"@{tmp_path}/mine.txt")
    assert listed == ["tv_resnet50", "resnet50_swav", *model_zoo.resolve("stylized")]
    assert model_zoo.resolve(f"{tmp_path}/mine.txt, tv_resnet50,resnet18.a2_in1k") == [*listed, "resnet18.a2_in1k"]
    for spec, message in {
        "": "no network is named",
        "resnet5": "no network 'resnet5'.*did you mean",
        "@nowhere.txt": "nowhere.txt does not exist: give a list of networks",
        "tv_resnet50,a/x.pth": r"a/x\.pth does not exist",
        "a/net.py:build": r"a/net\.py does not exist",
    }.items():
        with pytest.raises(UserError, match=message):
            model_zoo.resolve(spec)


def test_network_names():
    names = {
        "tv_resnet50": "tv_resnet50",
        "some/where/net.py:build": "net.build",
        "runs/resnet50_l2_eps0.01.ckpt": "resnet50_l2_eps0.01",
        "runs/best.pth.tar": "best",
    }
    assert {name: model_zoo.network_name(name) for name in names} == names
    with pytest.raises(UserError, match="cannot be the name of a file or folder"):
        model_zoo.network_name("runs/.pth")


# --- a user's own networks -------------------------------------------------------------------------------------------


def test_a_users_function_takes_pixels_and_may_import_its_neighbours(tmp_path):
    for folder, bias in (("one", 1.0), ("two", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "parts.py").write_text(f"BIAS = {bias}\n")
        (tmp_path / folder / "net.py").write_text(
            "import torch\nfrom parts import BIAS\n"
            "class Net(torch.nn.Module):\n"
            "    def forward(self, x):\n        return x.mean((1, 2, 3))[:, None].expand(-1, 1000) + BIAS\n"
            "def build():\n    return Net()\n"
        )
    one, two = (load_model(f"{tmp_path}/{folder}/net.py:build") for folder in ("one", "two"))
    pixels = torch.rand(3, 3, 8, 8)
    assert torch.equal(one(pixels)[:, 0], pixels.mean((1, 2, 3)) + 1.0)
    assert torch.equal(two(pixels)[:, 7], pixels.mean((1, 2, 3)) + 2.0)
    assert (
        one.name == "net.build"
        and one.native_preprocessing == STUDY
        and one.category == ""
        and one.expected_top1 is None
    )
    assert one.identity["network"] != two.identity["network"]  # only the neighbour's text differs
    before = one.identity
    assert load_model(f"{tmp_path}/one/net.py:build").identity == before
    (tmp_path / "one" / "parts.py").write_text("BIAS = 1.0  # of the mean\n")
    assert load_model(f"{tmp_path}/one/net.py:build").identity != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def build():\n    raise KeyError('weights')",
            r"net\.py:build failed: KeyError: 'weights' \(net\.py, line 2\)",
        ),
        ("def build(:", r"net\.py:build failed: SyntaxError"),
        ("import nowhere_to_be_found", r"failed: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("import sys\ndef build():\n    sys.exit(0)", "failed: SystemExit"),
        ("build = 3", r"has no function 'build'"),
        ("def build():\n    return 3", "returns int, not a torch.nn.Module"),
        (
            "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(150528, 10))",
            r"answers 2 images with \(2, 10\), not with 1000 logits",
        ),
        ("import torch\ndef build():\n    return torch.nn.Linear(3, 1000)", "failed: RuntimeError"),
    ],
)
def test_mistakes_in_a_users_file_are_one_line(text, message, tmp_path):
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_model(f"{tmp_path}/net.py:build")
    assert "\n" not in str(caught.value)


@needs_shared
def test_a_real_network_of_a_users_own():
    network = load_model(f"{SHARED}/nets/mobilenet.py:load")
    assert network.name == "mobilenet.load"
    assert network(torch.rand(2, 3, 224, 224)).shape == (2, 1000)


def test_memory_format_is_kept():
    first = torch.nn.Conv2d(3, 8, 7, stride=7)
    body = torch.nn.Sequential(first, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 1000))
    network = load.Network(body, name="x", mean=(0.5,) * 3, std=(0.2,) * 3, facts={})
    seen = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.rand(2, 3, 224, 224).contiguous(memory_format=torch.channels_last))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_an_architecture_of_a_package_that_is_not_installed():
    with pytest.raises(UserError, match=r"vonenet:get_model needs the package 'vonenet': install it first"):
        load_model("vonenet_resnet50")


def test_a_users_checkpoint(tmp_path):
    build = "zoo_layouts:narrow"
    state = zoo_layouts.random_state(zoo_layouts.narrow)
    pixels = torch.rand(2, 3, 64, 64)
    torch.save({"state_dict": zoo_layouts.prefixed("_orig_mod.module.", state), "step": 7}, tmp_path / "run.1.pth.tar")
    network = load_model(f"{tmp_path}/run.1.pth.tar", arch=build)
    assert network.name == "run.1" and network.native_preprocessing == STUDY
    assert torch.equal(network(pixels), reference(zoo_layouts.narrow, state, "imagenet", pixels))
    plain = load_model(f"{tmp_path}/run.1.pth.tar", arch=build, normalization="none")
    assert torch.equal(plain(pixels), reference(zoo_layouts.narrow, state, "none", pixels))
    assert plain.identity["network"] != network.identity["network"]
    for options, message in [
        ({"arch": "resnt50"}, "no architecture 'resnt50' in timm: did you mean resnet50"),
        ({"arch": "no_such_package:build"}, "needs the package 'no_such_package'"),
        ({"arch": "zoo_layouts:nothing"}, r"zoo_layouts\.py has no function 'nothing'"),
        ({"arch": "zoo_layouts:prefixed"}, r"zoo_layouts:prefixed failed: TypeError: .*missing 2 required"),
        ({"arch": "resnet50"}, r"does not fit the network.*shape"),
        ({"arch": build, "normalization": "imagnet"}, "normalization 'imagnet' is unknown"),
    ]:
        with pytest.raises(UserError, match=message):
            load_model(f"{tmp_path}/run.1.pth.tar", **options)


# --- views and the gate ----------------------------------------------------------------------------------------------


def test_native_views_follow_timm():
    def view(name):
        return packages.timm_preprocessing(packages.timm_config(name))

    assert view("resnet50.tv_in1k") == STUDY
    assert view("resnet50.tv2_in1k") == Preprocessing(232, 224)  # torchvision's V2 weights: resize 232
    assert view("resnet50.a1_in1k") == Preprocessing(288, 288, "bicubic")
    for name in ("resnet50.tv2_in1k", "resnet50.a3_in1k", "vit_base_patch16_224.augreg_in1k", "nf_resnet50.ra2_in1k"):
        config = timm.data.resolve_data_config(
            pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict(), use_test_size=True
        )
        resize, crop = timm.data.create_transform(**config).transforms[:2]
        assert (view(name).resize, view(name).crop) == (resize.size, crop.size[0])
        assert view(name).interpolation == resize.interpolation.value
    assert isinstance(view("coat_lite_medium_384.in1k"), str)  # squashed, which no Preprocessing does


def test_a_view_that_cannot_be_followed_is_refused_only_when_asked_for():
    facts = {"preprocessing": "crop mode squash, 448 x 448"}
    body = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000))
    network = load.Network(body, name="x", mean=(0, 0, 0), std=(1, 1, 1), facts={}, **facts)
    with pytest.raises(UserError, match=r"x: --preprocessing native cannot follow.*squash"):
        _ = network.native_preprocessing


@pytest.mark.parametrize(
    ("expected", "measured", "images", "said"),
    [
        (76.15, 76.10, 50_000, None),
        (76.15, 75.2, 50_000, None),
        (76.15, 75.1, 50_000, "76.15 % was expected; likely causes: another checkpoint"),
        (76.15, 77.2, 50_000, "76.15 % was expected"),
        (76.15, 72.0, 100, None),  # 1.96 standard errors are 8.4 points
        (76.15, 60.0, 100, "76.15 % was expected"),
        (76.15, 0.1, 50_000, "classes in another order"),
        (None, 0.1, 50_000, "near chance"),
        (None, 70.0, 50_000, None),
        (None, 0.0, 10, None),
        (None, 0.0, 49, None),
        (None, 0.0, 50, "near chance"),
        (76.15, 0.0, 50, "classes in another order"),
        (None, 2.0, 50, None),
        (0.066, 0.1, 50_000, None),
    ],
)
def test_clean_accuracy_gate(expected, measured, images, said):
    warning = load.clean_accuracy_warning("net", expected, measured, images)
    assert warning is None if said is None else (said in warning and warning.startswith("net: top-1 is"))


# --- the script ------------------------------------------------------------------------------------------------------


def test_fetch_goes_on_after_failures_and_verify_works_offline(narrow_state, server, use_zoo, tmp_path, capsys):
    name = "resnet50_moco_v3_100ep"
    serve(server, name, zoo_layouts.write(name, narrow_state, tmp_path), use_zoo, the_zoo())
    assert zoo.main(["--fetch", f"resnet50_moco_v3_300ep,{name}"]) == 1
    printed = capsys.readouterr()
    assert f"[2/2] {name}: verified, sha256" in printed.out and "1 of 2 are in order" in printed.out
    assert "resnet50_moco_v3_300ep: cannot fetch https://dl.fbaipublicfiles.com" in printed.err
    assert "404" in printed.err and "in a browser and save the file as" in printed.err
    server.replies.clear()
    del server.log[:]
    assert zoo.main(["--verify", name]) == 0
    assert not server.log
    assert zoo.main(["--list"]) is None
    printed = capsys.readouterr().out
    assert re.search(rf"{name} \* +contrastive +url +\d+ MB +CC-BY-NC-4.0 +68.91 +yes", printed)
    assert re.search(r"resnet50_swav \* +contrastive +url \+ url +CC-BY-NC-4.0 +75.31 +no", printed)
    with pytest.raises(SystemExit) as stopped:
        zoo.main(["--verify", "resnet50_swav"])
    assert stopped.value.code == 2 and "not on disk: resnet50_swav" in capsys.readouterr().err


def test_check_links(server, use_zoo, capsys):
    use_zoo(the_zoo())
    server.replies["https://dl.fbaipublicfiles.com/moco-v3/r-50-100ep/linear-100ep.pth.tar"] = zoo_server.Reply(
        b"x" * 10
    )
    assert zoo.main(["--check-links", "resnet50_moco_v3_300ep,resnet50_moco_v3_100ep,vonenet_resnet50"]) == 1
    printed = capsys.readouterr()
    assert "resnet50_moco_v3_100ep: 200" in printed.out and "vonenet_resnet50: has no address" in printed.out
    assert "resnet50_moco_v3_300ep: https://dl.fbaipublicfiles.com/moco-v3/r-50-300ep" in printed.err
    assert {method for method, _, _ in server.log} == {"HEAD"}


def test_nothing_about_a_single_network_stands_in_python():
    names = [entry.name for entry in model_zoo.registry().values() if entry.in_study]
    for path in (*(CODE / "imagenet_biases" / "networks").glob("*.py"), CODE / "zoo.py"):
        text = path.read_text()
        assert not [name for name in names if name in text], path

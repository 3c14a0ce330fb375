"""What load_model and from_module promise of a network, tried on networks that are well and badly behaved."""

import copy
import json
import os
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision import models

import zoo_layouts
import zoo_server
from common import CODE
from imagenet_biases.base import download
from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import safe_name
from imagenet_biases.images.preprocessing import Preprocessing
from imagenet_biases.networks import registry
from imagenet_biases.networks.load import borrowed, from_module, load_model
from imagenet_biases.networks.pins import Pins

HEAD = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm2d(4), nn.Linear(4, 1000)
    def forward(self, x):
        {}
def build():
    return Net()
"""
PLAIN = "return self.fc(self.conv(x).relu().mean((2, 3)))"


def written(tmp_path, forward=PLAIN, head="", name="net.py"):
    (tmp_path / name).write_text(HEAD + head + NET.format(forward.replace("\n", "\n        ")))
    return f"{tmp_path}/{name}:build"


def quietly(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_model(name, **options)


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A folder of the user's own for entries and pins; no downloads elsewhere."""
    monkeypatch.setenv("ZOO_FOLDER", str(tmp_path / "own"))
    monkeypatch.setenv("ZOO_CHECKPOINTS", str(tmp_path / "checkpoints"))
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


@pytest.fixture
def server(monkeypatch):
    server = zoo_server.Server()
    server.reach(monkeypatch)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    yield server
    server.close()


# --- networks that are no function of the image ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "seen"),
    [
        ("return self.fc(F.dropout(self.conv(x).mean((2, 3)), training=True))", "differently when asked again"),
        ("return self.fc(self.conv(x).mean((2, 3))) + torch.rand(len(x), 1000)", "differently when asked again"),
        (
            "self.seen = getattr(self, 'seen', 0) + 1\nreturn self.fc(self.conv(x).mean((2, 3))) * self.seen",
            "memory of earlier images",
        ),
        (
            "h = self.conv(x)\nreturn self.fc(F.batch_norm(h, None, None, training=True).relu().mean((2, 3)))",
            "differently beside another one than alone",
        ),
        ("h = self.fc(self.conv(x).mean((2, 3)))\nreturn h - h.mean(0)", "differently beside another one than alone"),
    ],
)
def test_answers_that_are_no_function_of_the_image(forward, seen, tmp_path):
    name = written(tmp_path, forward)
    with pytest.raises(UserError, match=rf"net\.build answers .*{seen}.*--allow-unstable") as caught:
        load_model(name)
    assert "logits differ by" in str(caught.value)
    with pytest.warns(UserWarning, match=rf"net\.build answers .*{seen}.*depend on more than the images"):
        network = load_model(name, allow_unstable=True)
    assert network(torch.rand(2, 3, 224, 224)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("forward", "seen"),
    [
        ("return self.fc(self.conv(x).mean((0, 2, 3)))[None]", r"answers 2 images with \(1, 1000\)"),
        ("return self.fc(self.conv(x).mean((2, 3)))[:, :len(x) * 500]", r"answers 1 images with \(1, 500\)"),
        ("return (self.fc(self.conv(x).mean((2, 3))),)", "answers 2 images with tuple"),
        (
            "h = self.fc(self.conv(x).mean((2, 3)))\nreturn torch.cat([h[:, :1], h], 1)",
            r"with \(2, 1001\), not with 1000 logits each \(2, 1000\); the first of 1,001 is .* give outputs\[:, 1:\]",
        ),
        ("return self.fc(self.conv(x).mean((2, 3))).argsort()", r"answers 2 images with \(2, 1000\)"),
    ],
)
def test_answers_of_another_shape_are_refused_in_any_case(forward, seen, tmp_path):
    for unstable in (False, True):
        with pytest.raises(UserError, match=seen):
            load_model(written(tmp_path, forward), allow_unstable=unstable)


def test_an_ordinary_network_loads_without_a_word(tmp_path):
    network = quietly(written(tmp_path))
    assert network.channels_last and not network.overwrites
    assert (network.answers, network.wants_batch) == ("logits", False)


@pytest.mark.parametrize("kind", ["half", "bfloat16"])
def test_a_network_that_computes_in_half_precision_is_held_to_that_precision(kind, tmp_path):
    """Rounded here by an amount that depends on the batch, as products of another size are."""
    forward = f"h = self.fc(self.conv(x).relu().mean((2, 3)))\nreturn (h * (1 + (len(x) - 1) * 1e-3)).to(torch.{kind})"
    assert quietly(written(tmp_path, forward))
    with pytest.raises(UserError, match="differently beside another one"):
        load_model(written(tmp_path, forward.replace("1e-3", "1e-1")))
    with pytest.raises(UserError, match="differently beside another one"):
        load_model(written(tmp_path, forward.replace(f"torch.{kind}", "torch.float32"), name="single.py"))


def test_bytecode_of_an_older_text_of_the_same_length_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    answers = []
    for factor in ("2", "3"):
        name = written(tmp_path, f"return self.fc(self.conv(x).mean((2, 3))) * 0 + {factor}")
        os.utime(name.rpartition(":")[0], (1e9, 1e9))
        answers.append(float(load_model(name)(torch.rand(1, 3, 224, 224)).mean()))
    assert answers == [2, 3]


def test_weights_that_are_not_finite_are_no_instability(tmp_path):
    """They are noted where they are filled in, and where answers are not finite."""
    assert quietly(written(tmp_path, "return self.fc(self.conv(x).mean((2, 3))) * float('nan')"))


# --- legitimate networks with habits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forward",
    [
        "h = self.conv(x)\nreturn self.fc(h.view(len(x), -1)[:, :4])",
        "h = self.conv(x.contiguous())\nreturn self.fc(h.view(len(x), -1)[:, :4])",  # the weights' order counts, too
        f"assert x.is_contiguous(), 'view size'\n{PLAIN}",
    ],
)
def test_view_in_forward(forward, tmp_path):
    with pytest.warns(UserWarning, match=r"net\.build runs without the channels-last order, slower \(view size"):
        network = load_model(written(tmp_path, forward))
    assert not network.channels_last
    pixels = torch.rand(2, 3, 224, 224)
    shown = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(network(shown), network(pixels))


@pytest.mark.parametrize("change", ["x.sub_(0.5).div_(0.25)", "x = F.relu(x, inplace=True)"])
def test_in_place_normalization_under_attack(change, tmp_path):
    with pytest.warns(UserWarning, match=r"net\.build writes into its pixels: it receives a copy"):
        network = load_model(written(tmp_path, f"{change}\n{PLAIN}"))
    pixels = torch.rand(2, 3, 224, 224)
    before, shown = pixels.clone(), pixels.requires_grad_(True)
    network(shown).sum().backward()  # a leaf variable that is written into is an error of torch's
    assert torch.equal(shown, before) and shown.grad.abs().max() > 0


def test_a_changed_default_type(tmp_path):
    name = written(tmp_path, head="torch.set_default_dtype(torch.float64)\n")
    with pytest.warns(UserWarning, match=r"sets torch's default type to torch\.float64: restored"):
        network = load_model(name)
    assert torch.get_default_dtype() == torch.float32
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network(torch.rand(2, 3, 224, 224)).dtype == torch.float32


def test_gradients_switched_off_by_a_users_file_are_switched_on_again(tmp_path):
    with pytest.warns(UserWarning, match="switches gradients off for all: restored"):
        load_model(written(tmp_path, head="torch.set_grad_enabled(False)\n"))
    assert torch.is_grad_enabled()


def test_a_network_that_wants_the_batch_and_one_that_answers_in_words(tmp_path):
    forward = (
        "noise = batch.keys[:, None].sin() + batch.seed + batch.draw\nreturn self.fc(self.conv(x).mean((2, 3))) + noise"
    )
    text = (HEAD + NET.format(forward.replace("\n", "\n        "))).replace("(self, x)", "(self, x, batch)")
    (tmp_path / "front.py").write_text(
        text.replace("class Net(nn.Module):", "class Net(nn.Module):\n    wants_batch = True")
    )
    network = quietly(f"{tmp_path}/front.py:build")
    pixels = torch.rand(2, 3, 224, 224)
    asked = [network(pixels, batch=SimpleNamespace(keys=torch.tensor([3, 4]), seed=0, draw=draw)) for draw in (0, 1)]
    assert network.wants_batch
    torch.testing.assert_close(asked[1] - asked[0], torch.ones(2, 1000))

    (tmp_path / "words.py").write_text(
        HEAD
        + NET.format("return ['dark' if image.mean() < 0.5 else 'light' for image in x]").replace(
            "class Net(nn.Module):", "class Net(nn.Module):\n    answers = 'words'"
        )
    )
    network = quietly(f"{tmp_path}/words.py:build")
    assert network.answers == "words" and network(torch.zeros(2, 3, 8, 8)) == ["dark", "dark"]
    for answer, message in {
        "['dark']": "answers 2 images with list, not with a list of str",
        "[str(torch.rand(1).item()) for _ in x]": "differently when asked again",
        "[str(len(x)) for _ in x]": "differently beside another one than alone",
    }.items():
        (tmp_path / "words.py").write_text(
            HEAD + NET.format(f"return {answer}").replace("(nn.Module):", "(nn.Module):\n    answers = 'words'")
        )
        with pytest.raises(UserError, match=message):
            load_model(f"{tmp_path}/words.py:build")


# --- a module from Python --------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Has what a module can have: parts in different modes, frozen weights, gradients, buffers, tied weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 1000)
        self.tied = self.fc
        self.fc.bias.requires_grad_(False)

    def forward(self, x):
        self.norm.num_batches_tracked += 1
        return self.fc(self.dropout(self.norm(self.conv(x)).relu().mean((2, 3))))


def snapshot(module):
    """All that a caller can see of a module, by identity where it has one."""
    parameters = {
        name: (id(p), p.data_ptr(), p.dtype, p.stride(), p.requires_grad, id(p.grad) if p.grad is not None else None)
        for name, p in module.named_parameters(remove_duplicate=False)
    }
    buffers = {name: (id(b), b.dtype, b.tolist()) for name, b in module.named_buffers()}
    gradients = {name: p.grad.tolist() for name, p in module.named_parameters() if p.grad is not None}
    modes = {name: part.training for name, part in module.named_modules()}
    return parameters, buffers, gradients, modes, {name: p.tolist() for name, p in module.named_parameters()}


def test_a_callers_module_is_given_back_as_it_was():
    torch.manual_seed(0)
    module = Small()
    module(torch.rand(4, 3, 32, 32)).sum().backward()
    module.norm.eval()  # frozen statistics, as in fine-tuning
    before = snapshot(module)
    network = from_module(module, "mine")
    assert snapshot(module) == before
    with borrowed(network):
        assert not module.training and not any(p.requires_grad for p in module.parameters())
        network.double().to(memory_format=torch.contiguous_format)
        network(torch.rand(2, 3, 32, 32, dtype=torch.float64))
        network.float()
        expected = network(torch.ones(1, 3, 32, 32))
    assert snapshot(module) == before
    with pytest.raises(ZeroDivisionError), borrowed(module):
        module.train().half()
        _ = 1 / 0
    assert snapshot(module) == before
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1)
    optimizer.step()
    assert snapshot(module)[4] != before[4]  # its optimizer still holds the weights that the forward pass uses
    with borrowed(network):
        assert not torch.equal(network(torch.ones(1, 3, 32, 32)), expected)


def test_a_module_in_half_precision_is_measured_in_single(tmp_path):
    module = Small().half()
    before = snapshot(module)
    network = from_module(module, "half")
    with borrowed(network):
        assert network(torch.rand(1, 3, 32, 32)).dtype == torch.float32
    assert snapshot(module) == before


def test_identity_of_a_module_is_its_weights_architecture_and_code_not_its_label():
    torch.manual_seed(0)
    module = Small()
    first = from_module(module, "a").identity["network"]
    assert from_module(copy.deepcopy(module), "b").identity["network"] == first
    changed = copy.deepcopy(module)
    changed.norm.running_mean += 1
    assert from_module(changed, "a").identity["network"] != first

    class Other(Small):
        def forward(self, x):
            return super().forward(x) * 2

    other = Other()
    other.load_state_dict(module.state_dict())
    other.__class__.__name__ = "Small"
    assert str(other) == str(module)
    assert from_module(other, "a").identity["network"] != first  # nothing but the code differs


def test_an_object_that_is_no_network_is_refused():
    for module, label, message in [
        (torch.relu, "mine", r"mine: .* is not a torch\.nn\.Module"),
        (nn.Linear(3, 1000), "mine", r"mine, given two images, failed: RuntimeError: .*mat1 and mat2"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(1000)), "mine", "mine: some of its weights have no shape yet"),
        (Small(), "../mine", "cannot be the name of a file or folder"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)), "mine", r"with \(2, 10\)"),
    ]:
        with pytest.raises(UserError, match=message):
            from_module(module, label)


# --- labels, own entries, pins ---------------------------------------------------------------------------------------


def test_two_networks_of_one_label_differ_by_their_weights(tmp_path):
    for folder, bias in (("exp1", 1.0), ("exp2", 2.0)):
        (tmp_path / folder).mkdir()
        torch.save(
            {"2.weight": torch.ones(1000, 3), "2.bias": torch.full((1000,), bias)}, tmp_path / folder / "best.pth.tar"
        )
    (tmp_path / "net.py").write_text(
        HEAD + "def build():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))\n"
    )
    names = [f"{tmp_path}/{folder}/best.pth.tar" for folder in ("exp1", "exp2")]
    assert registry.resolve(",".join([*names, names[0]])) == names
    one, two = (load_model(name, arch=f"{tmp_path}/net.py:build") for name in names)
    assert one.name == two.name == "best"
    assert one.identity["network"] != two.identity["network"]
    labelled = load_model(names[0], label="mine of today", arch=f"{tmp_path}/net.py:build")
    assert labelled.name == "mine of today" and labelled.identity == one.identity
    for label in ("", "../x", "wandb", ".x", "a/b", "a\\b", "a\nb", "a\x1b[2J", "x" * 151, "\udcff", "é" * 76):
        with pytest.raises(UserError, match="cannot be the name of a file or folder") as caught:
            load_model(names[0], label=label, arch=f"{tmp_path}/net.py:build")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert safe_name("Größe 3") == "Größe 3"


def test_user_entries_and_pins_are_in_user_files(own, server, tmp_path):
    shipped = {path: path.read_bytes() for path in (registry.ZOO, registry.PINS)}
    state = zoo_layouts.random_state(zoo_layouts.narrow)
    torch.save({"state_dict": zoo_layouts.prefixed("module.", state)}, tmp_path / "x.pth")
    server.replies["https://example.org/x.pth"] = zoo_server.Reply(tmp_path / "x.pth")
    entry = (
        '[[network]]\nname = "mine"\narch = "zoo_layouts:narrow"\nsource = "url"\nlocation = "https://example.org/x.pth"\n'
        'wrapper = ["state_dict"]\nstrip = ["module."]\nnormalization = "imagenet"\nexpected_top1 = 76.5\n'
    )
    (own / "zoo.user.toml").write_text(entry)
    assert registry.resolve("mine") == ["mine"] and "mine" not in registry.resolve("all")
    network = load_model("mine")
    assert network.expected_top1 == 76.5
    assert json.loads((own / "zoo.user.lock.json").read_text()).keys() == {"https://example.org/x.pth"}
    assert {path: path.read_bytes() for path in shipped} == shipped
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"remove its line from .*zoo\.user\.lock\.json"):
        load_model("mine", checkpoints=tmp_path / "elsewhere")
    for change, message in {
        'name = "tv_resnet50"': "entry tv_resnet50: the zoo already has this name",
        'name = "all"': "entry all: the zoo already has this name",
        'name = "../../etc"': "cannot be the name of a file or folder",
        'name = "mine"\nin_study = true': "in_study is for the networks that the study has published",
        'name = "mine"\nview = {resize = 10000000000000000000, crop = 224}': "are not sizes in pixels",
        'name = "mine"\nview = {resize = "256", crop = 224}': 'resize is "256", not a whole number',
        'name = "mine"\nignore = ["("]': "entry mine: missing",
        'name = "mine"\nignore = "fc"': 'ignore is "fc", not a list',
    }.items():
        (own / "zoo.user.toml").write_text(entry.replace('name = "mine"', change))
        with pytest.raises(UserError, match=message):
            registry.resolve("mine")
    expected = entry.replace("76.5", "1" + 19 * "0")
    (own / "zoo.user.toml").write_text(expected)
    with pytest.raises(UserError, match=r"zoo\.user\.toml: entry mine: expected_top1 = 10+ is not a percentage"):
        registry.resolve("mine")


@pytest.mark.parametrize("content", ["[1, 2]", '{"https://a.org/x": 3}', "[" * 100_000, "\ufeff"])
def test_a_damaged_lock_file_is_named(content, tmp_path):
    (tmp_path / "lock.json").write_text(content)
    with pytest.raises(UserError, match=r"lock\.json is n"):
        Pins(tmp_path / "lock.json").check("https://a.org/x", "1" * 64, "x.pth")
    assert (tmp_path / "lock.json").read_text() == content


def test_a_shipped_pin_holds_and_is_not_written(tmp_path):
    (tmp_path / "shipped.json").write_text(json.dumps({"https://a.org/x": "1" * 64}))
    pins = Pins(tmp_path / "own" / "lock.json", shipped=tmp_path / "shipped.json")
    with pytest.raises(UserError, match=r"remove its line from .*shipped\.json"):
        pins.check("https://a.org/x", "2" * 64, "x.pth")
    pins.add("https://a.org/x", "1" * 64)
    assert not (tmp_path / "own").exists()
    pins.add("https://a.org/y", "2" * 64)
    assert json.loads((tmp_path / "own" / "lock.json").read_text()) == {"https://a.org/y": "2" * 64}


def test_to_look_names_up_needs_no_torch():
    program = (
        "import sys; from imagenet_biases.networks.registry import resolve; resolve('all'); "
        "print([name for name in ('torch', 'timm', 'torchvision', 'requests', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=CODE, check=True)
    assert found.stdout.strip() == "[]"


# --- names that are not quite right ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet50.a1_in1kk",
            r"no network 'resnet50\.a1_in1kk'.*did you mean resnet50\.a1_in1k or (?!resnet50\.a1_in1k[ ?])",
        ),
        ("tv_resnet5", "did you mean .*tv_resnet50"),
        ("augmentatoin", "did you mean augmentation"),
        ("x" * 5000, "no network"),
        ("a\0b", "no network"),
        ("runs/nothing", "no network"),
    ],
)
def test_a_typo_suggests_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        load_model(name)


def test_a_python_file_without_the_function_lists_its_functions(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("def _helper():\n    pass\ndef small():\n    pass\ndef large():\n    pass\n")
    message = r"net\.py is a file of Python code: say which .* e\.g\. .*net\.py:small \(it has small, large\)"
    with pytest.raises(UserError, match=message):
        registry.resolve(str(path))
    with pytest.raises(UserError, match=r"has no function 'smal': say which .*small, large"):
        load_model(f"{path}:smal")
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"the architecture .*net\.py is a file of Python code: say which"):
        load_model(f"{tmp_path}/x.pth", arch=str(path))
    path.write_text("def build(:")
    with pytest.raises(UserError, match=r"cannot be parsed"):
        load_model(str(path))
    path.write_text("build = 3")
    with pytest.raises(UserError, match="it has no function"):
        load_model(str(path))
    path.unlink()
    with pytest.raises(UserError, match=r"net\.py is a file of Python code: it cannot be read \(No such file"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (":build", "':build' is not module:function"),
        (".net:build", "is not module:function with a module's full name"),
        ("..:build", "is not module:function"),
        ("net:", "'net:' is not module:function"),
        ("", "no architecture ''"),
        ("sys:exit", "sys:exit failed: SystemExit"),
        ("os:getcwd", "os:getcwd returns str, not a torch"),
        ("resnet50.a1_in1kk", r"no architecture 'resnet50\.a1_in1kk' in timm: did you mean .*resnet50\.a1_in1k"),
        (
            "raises_at_import:build",
            r"raises_at_import:build failed: ZeroDiv.*\(raises_at_import\.py, line 1\)",
        ),
        ("exits_at_import:build", "failed: SystemExit"),
        ("imports_nothing:build", "needs the package 'nowhere_to_be_found': install it first"),
    ],
)
def test_odd_architectures(arch, message, tmp_path, monkeypatch):
    (tmp_path / "raises_at_import.py").write_text("1 / 0\n")
    (tmp_path / "exits_at_import.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "imports_nothing.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        load_model(f"{tmp_path}/x.pth", arch=arch)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_lists_of_networks_in_other_encodings(encoding, tmp_path):
    (tmp_path / "list.txt").write_bytes("tv_resnet50  # größer\r\n\r\ntv2_resnet50\r\n".encode(encoding))
    if encoding in ("utf-16-le", "latin-1"):  # without a mark of its order, or not to be told from others
        with pytest.raises(UserError, match=r"list\.txt is not text in UTF-8: save it as that"):
            registry.resolve(f"@{tmp_path}/list.txt")
    else:
        assert registry.resolve(f"@{tmp_path}/list.txt") == ["tv_resnet50", "tv2_resnet50"]


@pytest.mark.parametrize("kind", ["head elsewhere", "projection beside", "both, nested", "tensors within layers"])
def test_a_checkpoint_with_other_heads_names_the_rules_that_fit(kind, own, tmp_path):
    state = zoo_layouts.random_state(zoo_layouts.narrow)
    body = {name: value for name, value in state.items() if not name.startswith("fc.")}
    head = {name.replace("fc.", "head.2."): value for name, value in state.items() if name.startswith("fc.")}
    contents = {
        "head elsewhere": {**body, **head},
        "projection beside": {**zoo_layouts.prefixed("module.", state), "module.proj.0.weight": torch.rand(8, 8)},
        "both, nested": {
            "model": zoo_layouts.prefixed("module.", {**zoo_layouts.prefixed("encoder.", body), **head})
            | {"module.queue": torch.rand(5), "prototypes.weight": torch.rand(3, 8)},
            "epoch": torch.tensor(3),
        },
        "tensors within layers": {**state, "layer1.0.gate.weight": torch.rand(3), "layer1.0.scale": torch.rand(1)},
    }[kind]
    torch.save(contents, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"does not fit .*; by an entry in zoo\.user\.toml with .* it would fit"
    ) as caught:
        load_model(f"{tmp_path}/x.pth", arch="zoo_layouts:narrow")
    named = {"head elsewhere": "missing: fc.weight", "projection beside": "1 left over: proj.0.weight"}
    assert named.get(kind, "left over" if kind == "tensors within layers" else "missing") in str(caught.value)
    rules = str(caught.value).partition("with ")[2].removesuffix(" it would fit").replace("]], ", "]]\n")
    rules = re.sub(r", (wrapper|ignore|strip|rename) = ", r"\n\1 = ", rules)
    (own / "zoo.user.toml").write_text(
        '[[network]]\nname = "mine"\nsource = "file"\nlocation = "../x.pth"\narch = "zoo_layouts:narrow"\n'
        f'normalization = "none"\n{rules}\n'
    )
    pixels = torch.rand(1, 3, 64, 64)
    reference = zoo_layouts.narrow().eval()
    reference.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(load_model("mine")(pixels), reference(pixels))


def test_no_rules_are_named_where_none_fit(tmp_path):
    state = zoo_layouts.random_state(zoo_layouts.narrow)
    for change in ({"fc.weight": torch.rand(10, 128), "fc.bias": torch.rand(10)}, {"conv1.weight": torch.rand(3)}):
        torch.save({**state, **change}, tmp_path / "x.pth")
        with pytest.raises(UserError, match=r"does not fit .*instead of") as caught:
            load_model(f"{tmp_path}/x.pth", arch="zoo_layouts:narrow")
        assert "zoo.user.toml" not in str(caught.value)
    torch.save({"a.weight": torch.rand(3)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not fit") as caught:
        load_model(f"{tmp_path}/x.pth", arch="zoo_layouts:narrow")
    assert "zoo.user.toml" not in str(caught.value)


# --- torchvision -----------------------------------------------------------------------------------------------------


def test_torchvision_as_a_source(own, server, tmp_path, monkeypatch):
    torch.manual_seed(1)
    reference = models.resnet18().eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    address = models.ResNet18_Weights.IMAGENET1K_V1.url
    text = '[[network]]\nname = "mine"\nsource = "torchvision"\nlocation = "resnet18:IMAGENET1K_V1"\n'
    (own / "zoo.user.toml").write_text(text)
    server.replies[address] = zoo_server.Reply(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"its sha256 begins with [0-9a-f]{8}, f37072fd was expected"):
        load_model("mine")
    monkeypatch.setattr(download, "hash_in_name", lambda _: None)  # these are not the published weights
    monkeypatch.setattr("imagenet_biases.networks.load.hash_in_name", lambda _: None)
    network = load_model("mine")
    pixels = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), reference((pixels - mean) / std), rtol=0, atol=0)
    assert network.native_preprocessing == Preprocessing(256, 224) and network.identity["source"] == address
    assert network.identity["arch"] == "torchvision.models:resnet18"
    for location, message in {
        "resnet18:IMAGENET1K_V7": "torchvision's resnet18 has no weights 'IMAGENET1K_V7', it has IMAGENET1K_V1",
        "resnet19:DEFAULT": "torchvision has no network 'resnet19': did you mean .*resnet18",
    }.items():
        (own / "zoo.user.toml").write_text(text.replace("resnet18:IMAGENET1K_V1", location))
        with pytest.raises(UserError, match=message):
            load_model("mine")


def test_googlenet_gets_the_input_that_torchvision_gives_it(own, server, tmp_path, monkeypatch):
    """Filled by torchvision itself, it rescales its input; built bare, it does not."""
    torch.manual_seed(1)
    reference = models.googlenet(transform_input=True, init_weights=False).eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    text = '[[network]]\nname = "mine"\nsource = "torchvision"\nlocation = "googlenet:IMAGENET1K_V1"\n'
    (own / "zoo.user.toml").write_text(f'{text}normalization = "none"\n')
    server.replies[models.GoogLeNet_Weights.IMAGENET1K_V1.url] = zoo_server.Reply(tmp_path / "weights.pth")
    monkeypatch.setattr(download, "hash_in_name", lambda _: None)  # these are not the published weights
    monkeypatch.setattr("imagenet_biases.networks.load.hash_in_name", lambda _: None)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load_model("mine")(pixels), reference(pixels), rtol=0, atol=0)


@pytest.mark.parametrize(
    "location", ["resnet50:IMAGENET1K_V2", "efficientnet_b1:IMAGENET1K_V2", "vit_b_16:IMAGENET1K_V1"]
)
def test_torchvisions_views(location):
    from PIL import Image

    from imagenet_biases.networks.packages import torchvision_preprocessing, torchvision_weights

    image = Image.effect_noise((300, 400), 80).convert("RGB")
    ours = torch.from_numpy(torchvision_preprocessing(location)(image)).permute(2, 0, 1) / 255
    preset = torchvision_weights(location).transforms()
    preset.mean, preset.std = [0, 0, 0], [1, 1, 1]
    assert torch.equal(ours, preset(image))


# --- probabilities in place of logits --------------------------------------------------------------------------------

LOGITS = "h = self.fc(self.conv(x).relu().mean((2, 3))) * 20"
PROBABILITIES = {  # {kind: (forward, logits of the same network)}
    "softmax": ("return h.softmax(1)", "return h.log_softmax(1)"),
    "ensemble": (
        "return (h.softmax(1) + h.flip(1).softmax(1)) / 2",
        "return ((h.softmax(1) + h.flip(1).softmax(1)) / 2).log()",
    ),
    "background class cut off": (
        "return torch.cat([h[:, :1], h], 1).softmax(1)[:, 1:]",
        "return torch.cat([h[:, :1], h], 1).log_softmax(1)[:, 1:]",
    ),
    "half precision": ("return h.softmax(1).half()", "return h.softmax(1).half().float().clamp_min(2**-126).log()"),
}


@pytest.mark.parametrize("kind", PROBABILITIES)
def test_of_probabilities_the_logarithm_is_measured(kind, tmp_path):
    forward, logits = (f"{LOGITS}\n{line}" for line in PROBABILITIES[kind])
    with pytest.warns(UserWarning, match=r"net\.build gives probabilities: their logarithm is measured as its logits"):
        network = load_model(written(tmp_path, forward))
    reference = quietly(written(tmp_path, logits, name="logits.py"))
    pixels = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(network(pixels), reference(pixels), rtol=1e-5, atol=1e-4)
    assert network.identity["outputs"] == "probabilities: their logarithm is taken"
    assert "outputs" not in reference.identity


def test_the_logarithm_of_a_probability_of_0_is_finite_and_the_order_of_classes_stays(tmp_path):
    forward = f"{LOGITS} * 50\nreturn h.softmax(1)"
    with pytest.warns(UserWarning, match="gives probabilities"):
        network = load_model(written(tmp_path, forward))
    pixels = torch.rand(4, 3, 64, 64)
    probabilities = network.body(pixels)
    assert (probabilities == 0).any() and network(pixels).isfinite().all()
    assert torch.equal(network(pixels).argmax(1), probabilities.argmax(1))
    order = network(pixels).gather(1, probabilities.argsort(1))
    assert (order.diff() >= 0).all()


def test_the_logarithm_is_part_of_the_identity(tmp_path, monkeypatch):
    """Answers of before, when it was not taken, are measured again; those of other networks are not."""
    name = written(tmp_path, f"{LOGITS}\nreturn h.softmax(1)")
    with pytest.warns(UserWarning, match="gives probabilities"):
        network = load_model(name)
    monkeypatch.setattr("imagenet_biases.networks.load._probabilities", lambda _: False)
    assert quietly(name).identity["network"] != network.identity["network"]


@pytest.mark.parametrize(
    "forward",
    [
        "return h.log_softmax(1)",
        "return h.sigmoid()",
        "return h.softmax(1) * 1000",
        "return F.one_hot(h.argmax(1), 1000).float()",
        "return h.relu()",
        "return h.softmax(1) - 1e-3",
    ],
)
def test_other_answers_are_logits(forward, tmp_path):
    assert not quietly(written(tmp_path, f"{LOGITS}\n{forward}")).probabilities

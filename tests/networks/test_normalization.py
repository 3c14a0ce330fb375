"""One rule for all the ways in which a network comes: the user, the file or the module, the library, the default.

The right answer is that of the bare network on pixels that are normalized by hand.
"""

import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import zoo_layouts
from common import SHARED, needs_shared
from imagenet_biases import Data, Settings, evaluate
from imagenet_biases.base.errors import UserError
from imagenet_biases.networks import normalization
from imagenet_biases.networks.load import from_module, load_model
from imagenet_biases.networks.registry import NORMALIZATION_CHOICES, NORMALIZATIONS

ARCH = "zoo_layouts:narrow"
PIXELS = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
SQUARE = torch.rand((2, 3, 224, 224), generator=torch.Generator().manual_seed(1))


def normalized(pixels, name):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATIONS[name])
    return (pixels - mean) / std


def loaded(make, *arguments, **options):
    """A network, and what loading it says about its normalization."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = make(*arguments, **options)
    return network, [str(warning.message) for warning in caught]


@pytest.fixture(scope="module")
def state():
    return zoo_layouts.random_state(zoo_layouts.narrow)


@pytest.fixture(scope="module")
def bare(state):
    network = zoo_layouts.narrow().eval().requires_grad_(False)
    network.load_state_dict(state)
    return network


class Normalize(torch.nn.Module):
    def __init__(self, mean, std, names=("mean", "std")):
        super().__init__()
        self.names = names
        for name, values in zip(names, (mean, std), strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, x):
        mean, std = (getattr(self, name) for name in self.names)
        return (x - mean) / std


class Inside(torch.nn.Module):
    """A network that normalizes its pixels itself."""

    def __init__(self, names=("mean", "std"), constants="inception"):
        super().__init__()
        self.normalize = Normalize(*NORMALIZATIONS[constants], names)
        self.model = zoo_layouts.narrow()

    def forward(self, x):
        return self.model(self.normalize(x))


# --- a file says so --------------------------------------------------------------------------------------------------


def constants(prefix, name, names=("mean", "std"), factor=1.0):
    values = [torch.tensor(numbers).view(1, 3, 1, 1) * factor for numbers in NORMALIZATIONS[name]]
    return {prefix + key: value for key, value in zip(names, values, strict=True)}


FILES = {  # {layout: (contents of a state dict, normalization)}
    "robustbench": lambda state: constants("normalize.", "inception") | zoo_layouts.prefixed("model.", state),
    "robustness": lambda state: {
        "model": constants("module.normalizer.", "clip", ("new_mean", "new_std"))
        | zoo_layouts.prefixed("module.model.", state)
        | constants("module.attacker.normalize.", "clip", ("new_mean", "new_std"))
        | zoo_layouts.prefixed("module.attacker.model.", state)
    },
    "mu and sigma": lambda state: (
        zoo_layouts.prefixed("0.", constants("", "inception", ("mu", "sigma"))) | zoo_layouts.prefixed("1.", state)
    ),
    "of pixels to 255": lambda state: {
        "state_dict": constants("data_preprocessor.", "clip", factor=255) | zoo_layouts.prefixed("backbone.", state)
    },
}
SAID = dict(zip(FILES, ("inception", "clip", "inception", "clip"), strict=True))


@pytest.mark.parametrize("layout", FILES)
def test_the_constants_in_a_file_are_used(layout, state, bare, tmp_path):
    torch.save(FILES[layout](state), tmp_path / "x.pth")
    network, said = loaded(load_model, f"{tmp_path}/x.pth", arch=ARCH)
    torch.testing.assert_close(network(PIXELS), bare(normalized(PIXELS, SAID[layout])), rtol=0, atol=0)
    assert network.identity["normalization"] == SAID[layout]
    (line,) = said
    assert line.startswith(f"x.pth: the normalization is {SAID[layout]}, not imagenet: ") and "\n" not in line


def test_the_usual_constants_in_a_file_are_used_without_a_word(state, tmp_path):
    """And the network is the one that it was."""
    torch.save(constants("normalize.", "imagenet") | zoo_layouts.prefixed("model.", state), tmp_path / "x.pth")
    save_file(state, tmp_path / "y.safetensors")
    network, said = loaded(load_model, f"{tmp_path}/x.pth", arch=ARCH)
    plain, said_of_plain = loaded(load_model, f"{tmp_path}/y.safetensors", arch=ARCH)
    assert said == said_of_plain == []
    assert network.identity["network"] == plain.identity["network"]
    explicit, _ = loaded(load_model, f"{tmp_path}/y.safetensors", arch=ARCH, normalization="imagenet")
    assert explicit.identity == plain.identity


def test_constants_that_contradict_each_other_are_named(state, tmp_path):
    contents = constants("a.", "imagenet") | constants("b.", "inception") | zoo_layouts.prefixed("model.", state)
    torch.save(contents, tmp_path / "x.pth")
    network, said = loaded(load_model, f"{tmp_path}/x.pth", arch=ARCH)
    assert network.identity["normalization"] == "imagenet"
    assert "a.mean says so, although b.mean says inception; --normalization sets another" in said[0]


def test_other_constants_are_used_as_they_are(state, bare, tmp_path):
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    torch.save({"mean": mean, "std": std, **zoo_layouts.prefixed("model.", state)}, tmp_path / "x.pth")
    network, _ = loaded(load_model, f"{tmp_path}/x.pth", arch=ARCH)
    torch.testing.assert_close(network(PIXELS), bare((PIXELS - mean.view(3, 1, 1)) / std.view(3, 1, 1)), rtol=0, atol=0)
    assert network.identity["normalization"] == "mean 0.1 0.2 0.3, standard deviation 0.4 0.5 0.6"


@pytest.mark.parametrize(
    "beside",
    [
        {"bn0.running_mean": torch.rand(3), "bn0.running_var": torch.rand(3)},
        {"ema.mean": torch.rand(3)},
        {"x.mean": torch.rand(3), "x.std": torch.tensor([0.1, 0.0, 0.1])},
        {"x.mean": torch.rand(4), "x.std": torch.rand(4)},
        {"x.mean": torch.rand(3), "y.std": torch.rand(3)},
    ],
)
def test_other_tensors_are_no_constants(beside, state, tmp_path):
    torch.save({**beside, **zoo_layouts.prefixed("model.", state)}, tmp_path / "x.pth")
    network, said = loaded(load_model, f"{tmp_path}/x.pth", arch=ARCH)
    assert network.identity["normalization"] == "imagenet"
    assert len(said) == 1 and f"x.pth has {len(beside)} tensors beside the network, which are not used" in said[0]


@pytest.mark.parametrize("choice", ["imagenet", "none", "builtin"])
def test_the_users_word_wins_over_the_file(choice, state, bare, tmp_path):
    torch.save(FILES["robustbench"](state), tmp_path / "x.pth")
    network, said = loaded(load_model, f"{tmp_path}/x.pth", arch=ARCH, normalization=choice)
    right = bare(normalized(PIXELS, "none" if choice == "builtin" else choice))
    torch.testing.assert_close(network(PIXELS), right, rtol=0, atol=0)
    assert said == [f"x.pth: normalize.mean says inception; --normalization {choice} is used all the same"]


# --- a module does it itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("mean", "std"), ("mu", "sigma"), ("pixel_mean", "pixel_std"), ("new_mean", "new_std")]
)
def test_a_checkpoint_whose_module_normalizes_is_not_normalized_twice(names, tmp_path):
    module = Inside(names).eval().requires_grad_(False)
    torch.save(module.state_dict(), tmp_path / "x.pth")
    (tmp_path / "net.py").write_text(
        f"import sys\nsys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\nimport test_normalization\n"
        f"def build():\n    return test_normalization.Inside({names!r}, 'clip')\n"
    )
    network, said = loaded(load_model, f"{tmp_path}/x.pth", arch=f"{tmp_path}/net.py:build")
    torch.testing.assert_close(network(PIXELS), module(PIXELS), rtol=0, atol=0)
    assert network.identity["normalization"] == "builtin"
    place = f"normalize.{names[0]}"
    reason = f"it normalizes its pixels itself ({place}); --normalization sets another"
    assert said == [f"x.pth: the normalization is builtin, not imagenet: {reason}"]
    twice, said = loaded(load_model, f"{tmp_path}/x.pth", arch=f"{tmp_path}/net.py:build", normalization="imagenet")
    torch.testing.assert_close(twice(PIXELS), module(normalized(PIXELS, "imagenet")), rtol=0, atol=0)
    assert f"({place}), so they are normalized twice; --normalization imagenet is used all the same" in said[0]
    assert twice.identity["network"] != network.identity["network"]


def children(network):
    """The parts of a ResNet or MobileNetV2 of torchvision, to be put in a row."""
    *parts, head = network.children()
    pool = [] if isinstance(network, torchvision.models.ResNet) else [torch.nn.AdaptiveAvgPool2d(1)]
    return [*parts, *pool, torch.nn.Flatten(), head]


@pytest.mark.parametrize(
    "parts",
    [
        lambda: [Inside()],
        lambda: [Normalize(*NORMALIZATIONS["imagenet"]), timm.create_model("test_resnet")],
        lambda: [torchvision.transforms.Normalize(*NORMALIZATIONS["imagenet"]), torchvision.models.resnet18()],
        lambda: [torch.nn.BatchNorm2d(3), torchvision.models.resnet18()],
        lambda: [torch.nn.Conv2d(3, 3, 1), torchvision.models.resnet18()],
        lambda: [Normalize(*NORMALIZATIONS["imagenet"]), *children(torchvision.models.resnet18())],
        lambda: [torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Flatten(), torch.nn.Linear(6272, 1000)],
        lambda: [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000)],
    ],
)
def test_modules_that_normalize_are_as_before(parts):
    first, *others = parts()
    module = torch.nn.Sequential(first, *others).eval() if others else first.eval()
    network, said = loaded(from_module, module, "mine")
    torch.testing.assert_close(network(SQUARE), module(SQUARE), rtol=0, atol=0)
    assert said == [] and network.identity["normalization"] == "its own" and not network.normalized


def test_a_module_is_left_as_it_was():
    module = Inside()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    loaded(from_module, module, "mine")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items()) and module.training


def test_constants_that_a_module_notes_and_does_not_apply_are_applied():
    """As older collections of networks attach them."""
    module = torchvision.models.resnet18().eval()
    module.mean, module.std, module.input_range = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 1]
    network, said = loaded(from_module, module, "mine")
    torch.testing.assert_close(network(SQUARE), module(normalized(SQUARE, "inception")), rtol=0, atol=0)
    assert said == ["mine: the normalization is inception, not builtin: mean says so; --normalization sets another"]
    assert module.mean == [0.5, 0.5, 0.5]


# --- a library says so -----------------------------------------------------------------------------------------------


class Mine(torchvision.models.ResNet):
    def __init__(self):
        super().__init__(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])


class MineAndNormalized(Mine):
    def forward(self, x):
        return super().forward(x - 0.5)


BARE = {  # {label: (module, normalization)}
    "torchvision": (lambda: torchvision.models.resnet18(), "imagenet"),
    "a class made of torchvision's": (Mine, "imagenet"),
    "timm": (lambda: timm.create_model("vit_tiny_patch16_224"), "inception"),
    "timm, ImageNet's": (lambda: timm.create_model("resnet10t"), "imagenet"),
    "parallel": (lambda: torch.nn.DataParallel(torchvision.models.resnet18()), "imagenet"),
    "a sequence of one": (
        lambda: torch.nn.Sequential(timm.create_model("test_resnet"), torch.nn.Identity()),
        "inception",
    ),
}


@pytest.mark.parametrize("label", BARE)
def test_a_bare_network_of_a_library_is_normalized_as_the_library_says(label):
    build, name = BARE[label]
    module = build().eval()
    network, said = loaded(from_module, module, "mine")
    torch.testing.assert_close(network(SQUARE), module(normalized(SQUARE, name)), rtol=0, atol=0)
    assert network.identity["normalization"] == name
    assert len(said) == 1 and said[0].startswith(f"mine: the normalization is {name}, not builtin: ")
    assert "torchvision says so" in said[0] or "timm's configuration says so" in said[0]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_the_parts_of_a_network_are_normalized_as_the_whole(name):
    whole = getattr(torchvision.models, name)().eval()
    network, said = loaded(from_module, torch.nn.Sequential(*children(whole)).eval(), "mine")
    torch.testing.assert_close(network(SQUARE), whole(normalized(SQUARE, "imagenet")))
    reason = "torchvision, of whose parts it is made, says so"
    assert said == [f"mine: the normalization is imagenet, not builtin: {reason}; --normalization sets another"]


def test_what_is_assumed_of_timms_parts_is_said():
    whole = timm.create_model("resnet10t").eval()
    network, said = loaded(from_module, torch.nn.Sequential(*whole.children()).eval(), "mine")
    torch.testing.assert_close(network(SQUARE), whole(normalized(SQUARE, "imagenet")))
    assert len(said) == 1 and "timm's default, since it is made of timm's parts, says so" in said[0]


def test_a_compiled_network_of_a_library_is_a_bare_one():
    for module in (torch.compile(torchvision.models.resnet18()), torch.compile(torch.nn.Sequential(Mine()))):
        library, constants = normalization.statements(module, {}, 224).library
        assert (library, constants.name) == ("torchvision", "imagenet")
    assert normalization.statements(torch.compile(MineAndNormalized()), {}, 224).library is None


def hooked():
    module = torchvision.models.resnet18()
    module.register_forward_pre_hook(lambda module, pixels: (pixels[0] - 0.5,))
    return module


def patched():
    module = torchvision.models.resnet18()
    forward = module.forward
    module.forward = lambda pixels: forward(pixels - 0.5)
    return module


class Around(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torchvision.models.resnet18()

    def forward(self, x):
        return self.net((x - 0.5) / 0.5)


@pytest.mark.parametrize("build", [MineAndNormalized, hooked, patched, Around])
def test_code_of_the_users_own_is_trusted(build):
    module = build().eval()
    network, said = loaded(from_module, module, "mine")
    torch.testing.assert_close(network(SQUARE), module(SQUARE), rtol=0, atol=0)
    assert said == [] and network.identity["normalization"] == "its own"


def test_the_function_of_a_file_follows_the_same_rule(tmp_path):
    (tmp_path / "net.py").write_text("import torchvision\ndef build():\n    return torchvision.models.resnet18()\n")
    torch.manual_seed(0)
    network, said = loaded(load_model, f"{tmp_path}/net.py:build")
    assert network.identity["normalization"] == "imagenet" and "not builtin: torchvision says so" in said[0]
    torch.manual_seed(0)
    other, said = loaded(load_model, f"{tmp_path}/net.py:build", normalization="builtin")
    assert said == [] and other.identity["normalization"] == "its own"
    assert other.identity["network"] != network.identity["network"]


def test_a_checkpoint_of_a_timm_architecture_follows_timms_configuration(tmp_path):
    body = timm.create_model("test_resnet").eval()
    torch.save(body.state_dict(), tmp_path / "x.pth")
    network, said = loaded(load_model, f"{tmp_path}/x.pth", arch="test_resnet")
    torch.testing.assert_close(network(PIXELS), body(normalized(PIXELS, "inception")), rtol=0, atol=0)
    assert said == [
        "x.pth: the normalization is inception, not imagenet: timm's configuration says so; "
        "--normalization sets another"
    ]
    network, said = loaded(load_model, f"{tmp_path}/x.pth", arch="test_resnet", normalization="imagenet")
    torch.testing.assert_close(network(PIXELS), body(normalized(PIXELS, "imagenet")), rtol=0, atol=0)
    assert said == []
    torch.save(constants("n.", "clip") | zoo_layouts.prefixed("model.", body.state_dict()), tmp_path / "x.pth")
    network, said = loaded(load_model, f"{tmp_path}/x.pth", arch="test_resnet")
    assert network.identity["normalization"] == "clip"  # what the file says counts more


# --- the flag --------------------------------------------------------------------------------------------------------


def test_the_choices(bare, tmp_path):
    assert NORMALIZATION_CHOICES == ("auto", "imagenet", "inception", "clip", "none", "builtin")
    for choice in NORMALIZATION_CHOICES[1:]:
        network, _ = loaded(from_module, bare, "mine", normalization=choice)
        right = bare(normalized(PIXELS, "none" if choice == "builtin" else choice))
        torch.testing.assert_close(network(PIXELS), right, rtol=0, atol=0)
    with pytest.raises(UserError, match="normalization 'imagnet' is unknown: it is one of auto, imagenet"):
        from_module(bare, "mine", normalization="imagnet")


def test_a_choice_replaces_what_an_entry_of_the_zoo_says(state, bare, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_FOLDER", str(tmp_path))
    torch.save(state, tmp_path / "x.pth")
    (tmp_path / "zoo.user.toml").write_text(
        f'[[network]]\nname = "mine"\nsource = "file"\nlocation = "x.pth"\narch = "{ARCH}"\nnormalization = "clip"\n'
    )
    network, said = loaded(load_model, "mine", normalization="inception")
    torch.testing.assert_close(network(PIXELS), bare(normalized(PIXELS, "inception")), rtol=0, atol=0)
    assert said == ["mine: its entry or configuration says clip; --normalization inception is used all the same"]
    assert loaded(load_model, "mine", normalization="clip")[1] == loaded(load_model, "mine")[1] == []


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_a_module_of_another_precision(kind):
    network, said = loaded(from_module, Inside().to(kind), "mine")
    assert said == [] and network.identity["normalization"] == "its own"


def test_evaluate_follows_the_rule_and_the_record_says_so(drawn, tmp_path):
    """Answers of a normalization are not served to another one."""
    torch.manual_seed(0)
    module = torchvision.models.resnet18().eval()
    answers = {}
    for choice in ("builtin", "auto", "imagenet", "builtin"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (record,) = evaluate(
                {"mine": module}, "imagenet", Data(root=drawn, limit=20), Settings(device="cpu", batch_size=5),
                results=tmp_path, normalization=choice,
            )  # fmt: skip
        answers[choice] = record.content["provenance"]["network"]
        said = [line for line in record.content["warnings"] if "normalization" in line]
        if choice != "imagenet":  # the record of the same network may stand for it
            assert len(said) == (choice == "auto")
    assert answers["auto"] == answers["imagenet"] != answers["builtin"]


@needs_shared
def test_the_real_network_is_normalized_once_however_it_comes(tmp_path):
    """As a user's module it normalizes inside; its layers alone, with the constants in the file, give the same."""
    source = f"{SHARED / 'nets' / 'mobilenet.py'}:load"
    network, said = loaded(load_model, source)
    assert said == [] and network.identity["normalization"] == "its own"
    scale, zero = network.body.plan["scale"], network.body.plan["zp"]
    std, mean = 1 / (255 * scale), zero / 255  # (255 x - zero) scale = (x - mean) / std
    (tmp_path / "net.py").write_text(
        f"import sys\nsys.path.insert(0, {str(SHARED / 'nets')!r})\nimport mobilenet\n"
        "def build():\n    net = mobilenet.load()\n    net.plan |= {'zp': 0, 'scale': 1 / 255}\n    return net\n"
    )
    state = {f"model.{name}": value for name, value in network.body.state_dict().items()}
    state |= {"normalize.mean": torch.full((3,), mean), "normalize.std": torch.full((3,), std)}
    torch.save(state, tmp_path / "x.pth")
    from_file, said = loaded(load_model, f"{tmp_path}/x.pth", arch=f"{tmp_path}/net.py:build")
    assert len(said) == 1 and "normalize.mean says so" in said[0]
    wrong, _ = loaded(load_model, f"{tmp_path}/x.pth", arch=f"{tmp_path}/net.py:build", normalization="none")
    from PIL import Image

    from imagenet_biases.images.preprocessing import STUDY

    photographs = sorted((SHARED / "imagenet_samples").glob("*/*"))[::14]
    pixels = torch.stack([torch.from_numpy(STUDY(Image.open(path))).permute(2, 0, 1) / 255 for path in photographs])
    with torch.no_grad():
        right, same, other = (
            torch.cat([one(part).argmax(1) for part in pixels.split(2)]) for one in (network, from_file, wrong)
        )
    assert torch.equal(same, right)
    labels = np.arange(0, 1000, 10)[::14]
    assert (right.numpy() == labels).mean() > 0.8 > (other.numpy() == labels).mean()

"""Fetching, hashes, reading and filling: what the zoo does with good, old, damaged and hostile files."""

import argparse
import collections
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import struct
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import zoo_hostile
import zoo_layouts
import zoo_server
from imagenet_biases.base import download
from imagenet_biases.base.errors import UserError, clean
from imagenet_biases.base.safe_pickle import read
from imagenet_biases.networks import state_dict
from imagenet_biases.networks.load import load_model
from imagenet_biases.networks.pins import Pins
from imagenet_biases.networks.registry import Layout

GOOD = zoo_hostile.GOOD
LIES, LIES_IN_SAFETENSORS = zoo_hostile.lies(), zoo_hostile.lies_in_safetensors()
CODE_FILES = list(zoo_hostile.runs_code(Path("mark")))
watched = None  # list of what this process does, while a file is read


def _watch(event, arguments):
    if watched is None:
        return
    imported = event == "import" and arguments[0] == zoo_hostile.UNHEARD_OF
    touched = event in ("open", "os.mkdir") and str(arguments[0]).endswith("mark")
    if imported or touched or event in ("os.system", "subprocess.Popen", "socket.connect"):
        watched.append((event, str(arguments)))


sys.addaudithook(_watch)  # Python has no way to take one off


def filled(path):
    """The state dict of the Linear(4, 3) that a file has filled."""
    network = torch.nn.Linear(4, 3)
    state_dict.fill(network, state_dict.find(read(path), network, path), path)
    return network.state_dict()


def same(state, other=GOOD):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in other)


# --- hostile files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODE_FILES)
def test_no_code_of_a_file_runs(name, tmp_path):
    global watched
    mark = tmp_path / "mark"
    (tmp_path / "file.pth").write_bytes(zoo_hostile.runs_code(mark)[name])
    watched = []
    try:
        state = filled(tmp_path / "file.pth")
    except UserError as error:
        assert name in ("as the type of a storage", "changes the reader's own functions"), error
    else:
        assert same(state)  # the call is an inert stub, the weights are read
    finally:
        events, watched = watched, None
    assert events == [] and not mark.exists() and zoo_hostile.UNHEARD_OF not in sys.modules


@pytest.mark.parametrize("name", ["call before the state dict", "INST opcode", "OBJ opcode"])
def test_the_watch_would_notice(name, tmp_path):
    """The same files, read as Python reads pickles, do what they are meant to."""
    global watched
    mark = tmp_path / "mark"
    with zipfile.ZipFile(io.BytesIO(zoo_hostile.runs_code(mark)[name])) as archive:
        unsafe = pickle.Unpickler(io.BytesIO(archive.read("archive/data.pkl")))
    watched = []
    with pytest.raises(pickle.UnpicklingError):  # no persistent_load; by then it has happened
        unsafe.load()
    events, watched = watched, None
    assert [event for event, _ in events] == ["os.system"] and mark.exists()


@pytest.mark.parametrize("name", LIES)
def test_no_lie_is_believed(name, tmp_path):
    content, pattern = LIES[name]
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=pattern) as caught:
        filled(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "Memory" not in str(caught.value)  # refused before it was asked for
    assert [other.name for other in tmp_path.iterdir()] == ["file.pth"]


@pytest.mark.parametrize("name", LIES_IN_SAFETENSORS)
def test_no_lie_in_safetensors_is_believed(name, tmp_path):
    content, pattern = LIES_IN_SAFETENSORS[name]
    (tmp_path / "file.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=pattern):
        filled(tmp_path / "file.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_regular_file(suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    with pytest.raises(UserError, match="does not exist"):
        read(path)
    os.mkfifo(path)  # nobody writes to it: to open it would wait for ever
    with pytest.raises(UserError, match="is not a file"):
        read(path)
    path.unlink()
    path.symlink_to("/proc/self/environ" if os.path.exists("/proc/self/environ") else os.devnull)
    with pytest.raises(UserError, match=r"the file is empty|is not a file"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is not a file"):
        read(path)
    with pytest.raises(UserError, match="does not exist"):
        read(f"{'x' * 5000}{suffix}")


def test_many_values_on_the_stack_take_no_longer_than_their_number(tmp_path):
    """A check that copied the stack at every mark would take hours."""
    (tmp_path / "x.pth").write_bytes(zoo_hostile.zipped(zoo_hostile.opcodes(200_000 * b"N" + 200_000 * b"(t")))
    started = time.monotonic()
    with pytest.raises(UserError, match="no named tensors"):
        read(tmp_path / "x.pth")
    assert time.monotonic() - started < 60


def test_names_in_a_file_cannot_act_on_the_terminal_or_fill_it(tmp_path):
    """Shown as a script shows it."""
    names = ["\x1b]0;owned\x07\x1b[2J\nerror: all is well", "m" * 1_000_000, "\u202egnp.exe"]
    for name in names:
        torch.save({**GOOD, name: torch.ones(1)}, tmp_path / "x.pth")
        with pytest.raises(UserError) as caught:
            filled(tmp_path / "x.pth")
        shown = clean(caught.value)
        assert shown.isprintable() and len(shown) < 1300 and "1 left over" in shown
    assert clean("net\udcff.pth \n\t failed") == "net\\udcff.pth failed"
    assert clean("Größe 3 × 4, ‘so’ …") == "Größe 3 × 4, ‘so’ …"


def mutated(draw, content, pickle_only):
    """A torch file, the bytes of its pickle (or of all of it) changed here and there; zip checksums are right again."""
    records, name = {}, None
    if pickle_only:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = {each: archive.read(each) for each in archive.namelist()}
        name = next(each for each in records if each.endswith("data.pkl"))
    data = bytearray(records[name] if pickle_only else content)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        place = draw.randrange(min(len(data), draw.choice([200, 2000, len(data)])))
        kind = draw.randrange(3)
        if kind == 0:
            data[place] = draw.randrange(256)
        elif kind == 1:  # operations of pickles
            data[place:place] = bytes(
                draw.choices(b"(.]}tRbsuceQ\x85\x86\x87qh0\x94N\x80\x8a\x8b\x8e", k=draw.randrange(1, 9))
            )
        else:
            del data[place : place + draw.randrange(1, 9)]
    if not pickle_only:
        return bytes(data)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for each, record in (records | {name: bytes(data)}).items():
            archive.writestr(each, record)
    return buffer.getvalue()


def test_mutated_files_are_read_or_refused_in_one_line(tmp_path):
    """Seeded; 25,000 such files with other seeds gave nothing else either."""
    kinds = files_of_every_kind()
    good = [kinds["plain"], kinds["optimizer and Namespace"], kinds["whole module in a wrapper"], kinds["numpy arrays"]]
    files = [(torch_file, True) for torch_file in map(zoo_hostile.saved, good)]
    files += [(zoo_hostile.saved(value, **zoo_hostile.OLD), False) for value in good]
    files += [(zoo_hostile.saved(good[0]), False)]
    draw, outcomes = random.Random(0), collections.Counter()
    for _ in range(1000):
        (tmp_path / "x.pth").write_bytes(mutated(draw, *draw.choice(files)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                filled(tmp_path / "x.pth")
            outcomes["read"] += 1
        except UserError as error:
            assert clean(error).isprintable() and str(tmp_path) in str(error)
            outcomes["refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 20


def test_at_least_30_hostile_files(capsys):
    lies = len(LIES) + len(LIES_IN_SAFETENSORS)
    with capsys.disabled():
        print(f"\n{len(CODE_FILES) + lies} hostile files: {len(CODE_FILES)} that run code, {lies} that lie")
    assert len(CODE_FILES) + lies >= 30


def test_weights_that_are_not_finite_are_taken_with_a_warning(tmp_path):
    torch.save({**GOOD, "bias": torch.tensor([1.0, float("nan"), 3.0])}, tmp_path / "file.pth")
    with pytest.warns(UserWarning, match=r"file\.pth has weights that are not finite numbers: bias"):
        filled(tmp_path / "file.pth")


# --- good files ------------------------------------------------------------------------------------------------------


def files_of_every_kind():
    network = torch.nn.Linear(4, 3)
    network.load_state_dict(GOOD)
    transposed = GOOD["weight"].t().contiguous().t()
    half = {name: value.half() for name, value in GOOD.items()}
    storage = torch.cat([torch.zeros(5), GOOD["weight"].flatten(), GOOD["bias"], torch.zeros(5)])
    slices = {"weight": storage[5:17].view(3, 4), "bias": storage[17:20]}
    arrays = {name: value.numpy() for name, value in GOOD.items()}
    big_endian = {name: value.astype(">f4") for name, value in arrays.items()}
    fortran = {"weight": np.asfortranarray(arrays["weight"]), "bias": arrays["bias"]}
    return {
        "plain": GOOD,
        "ordered": collections.OrderedDict(GOOD),
        "with metadata": network.state_dict(),
        "parameters": dict(network.named_parameters()),
        "wrapped": {"state_dict": zoo_layouts.prefixed("module.", GOOD), "epoch": 3, "best": np.float64(0.7)},
        "in lists": {"models": [{"weight": torch.ones(2)}, GOOD]},
        "transposed": {**GOOD, "weight": transposed},
        "half precision": half,
        "slices of one storage": slices,
        "optimizer and Namespace": {
            "model": GOOD,
            "optimizer": zoo_layouts.momentum(GOOD),
            "args": argparse.Namespace(lr=0.1, names={"a", "b"}),
        },
        "stranger": {"model": GOOD, "config": zoo_layouts.stranger(eps=0.5, inner=zoo_layouts.stranger(a=1))},
        "within a stranger": zoo_layouts.stranger(network=GOOD),
        "defaultdict": {"model": collections.defaultdict(list, GOOD)},
        "whole module": network,
        "whole module in a wrapper": {"net": torch.nn.DataParallel(network), "epoch": 1},
        "numpy arrays": {"model": arrays, "none": None},
        "numpy of the other byte order": big_endian,
        "numpy in Fortran order": fortran,
    }


@pytest.mark.parametrize("options", [{}, zoo_layouts.OLD], ids=["zip", "old format"])
@pytest.mark.parametrize("name", files_of_every_kind())
def test_files_of_every_kind_are_read(name, options, tmp_path):
    path = tmp_path / "file.pth.tar"
    torch.save(files_of_every_kind()[name], path, **options)
    zoo_layouts.forget_strangers()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(filled(path))
    assert [other.name for other in tmp_path.iterdir()] == [path.name]  # nothing is kept beside it


def test_a_strangers_copy_beside_a_checkpoint_is_not_read(tmp_path):
    """Not even one that claims to be made from it."""
    (tmp_path / "net.py").write_text(
        "import torch\ndef build():\n"
        "    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000))\n"
    )
    path = tmp_path / "x.pth"
    torch.save({"2.weight": torch.ones(1000, 3), "2.bias": torch.zeros(1000)}, path)
    status = path.stat()
    facts = {"sha256": download.file_hash(path), "size": status.st_size, "time": status.st_mtime_ns}
    facts["places"] = {name: [[name]] for name in ("2.weight", "2.bias")}
    wrong = {"2.weight": -torch.ones(1000, 3), "2.bias": torch.zeros(1000)}
    save_file(wrong, tmp_path / "x.pth.safetensors", {"original": json.dumps(facts)})
    network = load_model(str(path), arch=f"{tmp_path}/net.py:build", normalization="none")
    assert network(torch.ones(1, 3, 8, 8)).min() == 3
    assert network.identity["checkpoint_sha256"] == download.file_hash(path)


def test_a_file_by_python_2(tmp_path):
    """Names are bytes there."""
    value = zoo_hostile.weights()
    for name in (b"weight", b"bias"):
        value = value.replace(b"X" + struct.pack("<I", len(name)) + name, b"U" + bytes([len(name)]) + name)
    first, second = zoo_hostile.FLOATS[:48], zoo_hostile.FLOATS[48:]
    storages = struct.pack("<q", 12) + first + struct.pack("<q", 3) + second
    (tmp_path / "x.pth").write_bytes(zoo_hostile.legacy(value, ["0", "1"], storages))
    assert same(filled(tmp_path / "x.pth"))


# --- finding and filling ---------------------------------------------------------------------------------------------


def test_several_fitting_parts_are_named(tmp_path):
    average = {name: value + 1 for name, value in GOOD.items()}
    torch.save({"model": GOOD, "model_ema": average}, tmp_path / "x.pth")
    with pytest.warns(UserWarning, match=r"several networks: 'model\.' is used, not model_ema\."):
        assert same(filled(tmp_path / "x.pth"))
    torch.save({"model": GOOD, "copy": GOOD}, tmp_path / "x.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(filled(tmp_path / "x.pth"))


def test_only_the_counters_of_batch_norm_may_be_missing():
    network = torch.nn.BatchNorm2d(3)
    state = {name: value + 2 for name, value in network.state_dict().items()}
    del state["num_batches_tracked"]
    state_dict.fill(network, state, "x")
    assert network.running_var.tolist() == [3, 3, 3] and network.num_batches_tracked == 0
    del state["running_var"]
    with pytest.raises(UserError, match=r"x does not fit the network \(5 tensors\); 1 missing: running_var"):
        state_dict.fill(network, state, "x")


def test_layout_rules():
    tensor = torch.ones(1)
    layout = Layout(("b", "a"), ("aux",), ("module.", "net."), ((r"^head\.(\d)", r"fc\1"),))
    contents = {"a": {"module.net.x": tensor, "net.module.y": tensor, "head.2": tensor, "x_aux.z": tensor}, "b": tensor}
    assert set(layout.apply(contents, "f")) == {"x", "module.y", "fc2"}
    with pytest.raises(UserError, match="f has no 'b' or 'a' in it, but c, d"):
        layout.apply({"c": {}, "d": {}}, "f")
    with pytest.raises(UserError, match="two tensors that become 'x'"):
        layout.apply({"a": {"x": tensor, "module.x": tensor}}, "f")


# --- fetching --------------------------------------------------------------------------------------------------------

DATA = bytes(range(251)) * 4000


@pytest.fixture
def server(monkeypatch):
    server = zoo_server.Server()
    server.reach(monkeypatch)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    yield server
    server.close()


def asked(server):
    return [bytes_asked for _, _, bytes_asked in server.log]


def test_a_broken_download_is_resumed(server, tmp_path):
    tag = {"ETag": '"one"'}
    server.replies["https://a.org/x.pth"] = zoo_server.Reply(DATA, cut=[600_000, 200_000], busy=1, headers=tag)
    assert download.fetch("https://a.org/x.pth", tmp_path).read_bytes() == DATA
    starts = [int(text[6:-1]) for text in asked(server)[2:]]
    assert asked(server)[:2] == [None, None] and 0 < starts[0] < starts[1] <= 800_000
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize(
    "reply", [{"ranges": False, "headers": {"ETag": '"one"'}}, {}, {"headers": {"ETag": 'W/"one"'}}]
)
def test_a_download_that_cannot_be_resumed_restarts(reply, server, tmp_path):
    server.replies["https://a.org/x.pth"] = zoo_server.Reply(DATA, cut=[600_000], **reply)
    assert download.fetch("https://a.org/x.pth", tmp_path).read_bytes() == DATA


def test_halves_of_two_versions_are_not_joined(server, tmp_path):
    address = "https://a.org/x.pth"
    server.replies[address] = zoo_server.Reply(DATA, cut=[150_000] * 9, headers={"ETag": '"one"'})
    with pytest.raises(UserError, match=r"cannot fetch https://a\.org/x\.pth: .*\(5 attempts\)"):
        download.fetch(address, tmp_path)
    assert list(tmp_path.glob("*.part")) and not download.local_path(address, tmp_path).exists()
    other = DATA[::-1]
    server.replies[address] = zoo_server.Reply(other, headers={"ETag": '"two"'})
    assert download.fetch(address, tmp_path).read_bytes() == other


def test_google_drive_is_confirmed_and_resumed(server, tmp_path):
    server.replies["gdrive://abc"] = zoo_server.Reply(DATA, big=True, cut=[600_000])
    path = download.fetch("gdrive://abc", tmp_path, name="net.pth")
    assert path.read_bytes() == DATA and path.name.endswith("-net.pth")


def test_the_hub_and_its_mirror(server, tmp_path):
    server.replies["hf://owner/repository/folder/x.ckpt"] = zoo_server.Reply(DATA)
    path = download.fetch("hf://owner/repository/folder/x.ckpt", tmp_path)
    assert path.read_bytes() == DATA and path.name.endswith("-x.ckpt")
    assert download.commit_of(path) == hashlib.sha256(DATA).hexdigest()[:40]  # as the server says
    kept = [path.name, f"{path.name}.commit"]
    assert sorted(other.name for other in tmp_path.iterdir() if not other.name.startswith(".")) == kept


@pytest.mark.parametrize(
    ("address", "reply", "reason", "by_hand"),
    [
        ("https://a.org/x.pth", None, "404", "https://a.org/x.pth"),
        (
            "https://a.org/x.pth",
            zoo_server.Reply(zoo_server.GONE),
            r"web page came instead .*404 Not Found",
            "https://a.org/x.pth",
        ),
        ("https://a.org/x.pth", zoo_server.Reply(DATA, busy=99), r"503 .*5 attempts", "https://a.org/x.pth"),
        (
            "https://a.org/x-0123abcd.pth",
            zoo_server.Reply(DATA),
            "begins with [0-9a-f]{8}, 0123abcd was expected",
            "https://a.org/",
        ),
        (
            "gdrive://abc",
            zoo_server.Reply(zoo_server.QUOTA, kind="text/html; charset=utf-8"),
            "quota",
            "https://drive.google.com/file/d/abc/view",
        ),
        ("gdrive://abc", None, "public link", "https://drive.google.com/file/d/abc/view"),
        ("hf://owner/repository/x.ckpt", None, "404", "/owner/repository/resolve/main/x.ckpt"),
    ],
)
def test_an_unavailable_download_is_explained(address, reply, reason, by_hand, server, tmp_path):
    if reply:
        server.replies[address] = reply
    path = download.local_path(address, tmp_path)
    with pytest.raises(UserError, match=rf"cannot fetch .*{reason}") as caught:
        download.fetch(address, tmp_path)
    assert f"open {by_hand}" in re.sub(r"open http://127\.0\.0\.1:\d+", "open ", str(caught.value))
    assert f"save the file as {path}" in str(caught.value)
    assert [other.name for other in tmp_path.iterdir() if not other.name.startswith(".")] == []
    del server.log[:]
    path.write_bytes(DATA)  # put there by hand
    assert download.fetch(address, tmp_path) == path and not server.log
    path.write_bytes(zoo_server.QUOTA)
    with pytest.raises(UserError, match=r"is a web page \(Google Drive - Quota exceeded\).*delete it; open http"):
        download.fetch(address, tmp_path)


def test_no_connection_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with pytest.raises(UserError, match=r"cannot fetch http://127\.0\.0\.1:9/x\.pth: no connection to 127\.0\.0\.1"):
        download.fetch("http://127.0.0.1:9/x.pth", tmp_path)


def test_two_sources_never_share_a_file(server, tmp_path):
    for host, data in (("a.org", b"one"), ("b.org", b"two")):
        server.replies[f"https://{host}/model.pth"] = zoo_server.Reply(data)
    paths = [download.fetch(f"https://{host}/model.pth", tmp_path) for host in ("a.org", "b.org")]
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]


def test_an_expected_hash(server, tmp_path):
    digest = hashlib.sha256(DATA).hexdigest()
    for folder, sha256 in (("whole", digest), ("beginning", digest[:8])):
        server.replies["https://a.org/x.tar.gz?download=1"] = zoo_server.Reply(DATA)
        path = download.fetch("https://a.org/x.tar.gz?download=1", tmp_path / folder, sha256=sha256)
        assert path.name.endswith("-x.tar.gz")
    with pytest.raises(UserError, match=f"its sha256 begins with {digest}, {'0' * 64} was expected"):
        download.fetch("https://a.org/x.tar.gz?download=1", tmp_path / "other", sha256="0" * 64)
    assert download.hash_in_name("https://a.org/resnet50-0676ba61.pth") == "0676ba61"
    assert download.hash_in_name("https://a.org/b/resnet50_train_60_epochs-c8e5653e.pth.tar?raw=1") == "c8e5653e"
    assert download.hash_in_name("https://a.org/r-50-100ep/linear-100ep.pth.tar") is None


@pytest.mark.slow
def test_two_processes_fetch_a_file_once(server, tmp_path):
    server.replies["hf://x.pth"] = zoo_server.Reply(DATA)
    processes = multiprocessing.get_context("spawn")
    results = processes.Queue()
    job = {"target": zoo_server.fetch_in_a_process, "args": (f"{server.address}/x.pth", tmp_path, results)}
    workers = [processes.Process(**job) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=120) for _ in workers] == [DATA, DATA]
    for worker in workers:
        worker.join()
    assert len(server.log) == 1


def test_pins(tmp_path):
    pins = Pins(tmp_path / "lock.json")
    pins.check("https://a.org/x", "1" * 64, "x.pth")
    pins.add("https://a.org/x", "1" * 64)
    pins.add("hf://a/b/c", "2" * 64)
    pins.check("https://a.org/x", "1" * 64, "x.pth")
    assert json.loads((tmp_path / "lock.json").read_text()) == {"hf://a/b/c": "2" * 64, "https://a.org/x": "1" * 64}
    with pytest.raises(UserError, match=f"x.pth has sha256 {'3' * 64}, but https://a.org/x had {'1' * 64}"):
        pins.check("https://a.org/x", "3" * 64, "x.pth")
    (tmp_path / "lock.json").write_text("<<<<<<< mine")
    with pytest.raises(UserError, match=r"lock\.json is not a lock file.*it is not JSON"):
        pins.check("https://a.org/x", "1" * 64, "x.pth")

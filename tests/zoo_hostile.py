"""Files that a stranger could put where a checkpoint is expected, to do harm or to be taken for weights.

They are meant for a Linear(4, 3), whose state dict is GOOD. `mark` is a file that comes to be if a file's code is run.
"""

import builtins
import importlib
import io
import os
import pickle
import socket
import struct
import subprocess
import tarfile
import zipfile

import numpy as np
import torch

OLD = {"_use_new_zipfile_serialization": False}
UNHEARD_OF = "a_module_nobody_has_heard_of"
GOOD = {"weight": torch.arange(12.0).view(3, 4), "bias": torch.arange(12.0, 15.0)}


class Calls:
    """Pickles as a call of module.function(arguments)."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def opcodes(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def reference(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def zipped(data_pickle, records=(), compression=zipfile.ZIP_STORED, more=(), root="archive", order=b"little"):
    """A file in the format of torch.save, with the pickle and the storages given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl" if root == "archive" else root, data_pickle)
        for key, content in records:
            archive.writestr(f"{root}/data/{key}", content)
        for name, content in ((f"{root}/version", b"3\n"), (f"{root}/byteorder", order), *more):
            archive.writestr(name, content)
    return buffer.getvalue()


def storage(count, key="0", kind="FloatStorage"):
    """Opcodes that push a storage of `count` numbers."""
    number = b"\x8a\x08" + struct.pack("<q", count)
    return b"(" + text("storage") + reference("torch", kind) + text(key) + text("cpu") + number + b"tQ"


def tensor(count, shape, stride, offset=0, key="0"):
    """Opcodes that push a tensor: a view of a storage of `count` numbers."""

    def numbers(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    rebuild = reference("torch._utils", "_rebuild_tensor_v2")
    start = b"\x8a\x08" + struct.pack("<q", offset)
    hooks = reference("collections", "OrderedDict") + b")R"
    return rebuild + b"(" + storage(count, key) + start + numbers(shape) + numbers(stride) + b"\x89" + hooks + b"tR"


def dictionary(**items):
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


FLOATS = struct.pack("<15f", *range(15))


def weights(count=12, shape=(3, 4), stride=(4, 1), offset=0):
    """A pickle of the network's state dict; its weight is described as told."""
    return opcodes(dictionary(weight=tensor(count, shape, stride, offset), bias=tensor(3, (3,), (1,), key="1")))


RECORDS = (("0", FLOATS[:48]), ("1", FLOATS[48:]))


def legacy(data_pickle, keys=(), storages=b"", little=True):
    """A file in the format from before torch 1.6."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    system = pickle.dumps({"protocol_version": 1001, "little_endian": little, "type_sizes": {}}, 2)
    with_view = data_pickle.replace(b"tQ", b"NtQ")  # storages have one more entry there
    return magic + system + with_view + pickle.dumps(list(keys), 2) + storages


def deep(levels):
    """A dict of dicts, each twice in the next: 2**levels paths in a few bytes."""
    parts = [b"}(" + text("a") + b"K\x01uq\x00"]
    for level in range(levels):
        inner = b"h" + bytes([level])
        parts.append(b"0}(" + text("a") + inner + text("b") + inner + b"uq" + bytes([level + 1]))
    return opcodes(*parts)


def runs_code(mark):
    """{name: bytes} of files that, unpickled by Python, run something before or beside the good state dict."""
    calls = {
        "os.system": (os.system, f"touch {mark}"),
        "open for writing": (open, str(mark), "w"),
        "eval": (eval, f"open({str(mark)!r}, 'w')"),
        "exec": (exec, f"open({str(mark)!r}, 'w')"),
        "subprocess": (subprocess.check_call, ["touch", str(mark)]),
        "opens a socket": (socket.create_connection, ("127.0.0.1", 9)),
        "imports a module": (importlib.import_module, UNHEARD_OF),
        "imports by __import__": (builtins.__import__, UNHEARD_OF),
        "makes folders": (os.makedirs, str(mark)),
        "loads another pickle": (torch.load, str(mark)),
    }
    files = {}
    for name, (function, *arguments) in calls.items():
        value = {**GOOD, "extra": Calls(function, *arguments)}
        files[f"{name}, zip"] = saved(value)
        files[f"{name}, old format"] = saved(value, **OLD)
    good = weights()[2:-1]  # without protocol and end
    system = reference("os", "system")
    files["call before the state dict"] = zipped(opcodes(system, b"(" + text(f"touch {mark}") + b"tR0", good), RECORDS)
    files["INST opcode"] = zipped(opcodes(f"(S'touch {mark}'\nios\nsystem\n0".encode(), good), RECORDS)
    files["OBJ opcode"] = zipped(opcodes(b"(" + system + text(f"touch {mark}") + b"o0", good), RECORDS)
    code = text("__code__") + b"N"
    change = reference("torch._utils", "_rebuild_tensor_v2") + b"(N}(" + code + b"utb0"
    files["changes the reader's own functions"] = zipped(opcodes(change, good), RECORDS)
    files["as the type of a storage"] = zipped(weights().replace(reference("torch", "FloatStorage"), system), RECORDS)
    return files


def lies():
    """{name: (bytes, pattern of the error)} of files that lie about sizes, are damaged, or hold something else."""
    big = 1 << 40
    good_zip, good_old = zipped(weights(), RECORDS), saved(GOOD, **OLD)
    swollen = bytearray(good_zip)
    entry = swollen.index(b"PK\x01\x02", swollen.index(b"PK\x01\x02") + 4)  # the directory's second entry, data/0
    swollen[entry + 20 : entry + 28] = struct.pack("<II", 1 << 28, 1 << 28)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    views = {f"t{i}": tensor(100_000, (90_000,), (1,), offset=i) for i in range(3000)}
    array = np.array([[], {}, 3], dtype=object)

    # the value in memo 0 becomes a tuple of itself: Size(list), with a list that is filled after it was remembered
    in_a_list = b"]q\x010h\x01h\x00a0" + reference("torch", "Size") + b"h\x01\x85Rq\x000"

    def old(count, announced=12):
        return legacy(weights(announced), ["0", "1"], struct.pack("<q", count) + FLOATS[:48])

    def holding(code):
        return zipped(opcodes(code), RECORDS)

    return {
        "false length of a storage, zip": (zipped(weights(big), RECORDS), "claims 1099511627776 numbers in a file of"),
        "false length of a storage, old format": (old(big, big), "claims 1099511627776 numbers in a file of"),
        "false length before the bytes": (old(big), "12 numbers were announced"),
        "negative length": (zipped(weights(-12), RECORDS), "claims -12 numbers"),
        "negative length before the bytes": (old(-12), "12 numbers were announced"),
        "length that wraps around": (old(12 + (1 << 62)), "12 numbers were announced"),
        "shorter record": (zipped(weights(), (("0", FLOATS[:44]), RECORDS[1])), "12 numbers were announced"),
        "one number repeated to a terabyte": (
            zipped(weights(12, (1 << 20, 1 << 20), (0, 0)), RECORDS),
            "in a storage of 12",
        ),
        "view beyond its storage": (zipped(weights(offset=1), RECORDS), "in a storage of 12"),
        "view before its storage": (zipped(weights(offset=-1), RECORDS), "impossible sizes"),
        "negative shape": (zipped(weights(12, (-3, -4)), RECORDS), "impossible sizes"),
        "shape without strides": (zipped(weights(12, (3, 4), ()), RECORDS), "impossible sizes"),
        "3,000 overlapping views": (
            zipped(opcodes(dictionary(**views)), (("0", bytes(400_000)),)),
            r"tensors claim \d+ bytes in a file of",
        ),
        "bytes of a false length": (holding(b"\x8e" + struct.pack("<Q", big)), "but only"),
        "text of a false length": (holding(b"\x8d" + struct.pack("<Q", big)), "but only"),
        "bytearray of a false length": (holding(b"\x96" + struct.pack("<Q", big)), "but only"),
        "number of a false length": (holding(b"\x8b" + struct.pack("<i", (1 << 31) - 1)), "not enough data"),
        "memo of a false size": (holding(b"Nr\xff\xff\xff\x7f"), "more memory than its file"),
        "bytearray(2**40)": (
            holding(reference("builtins", "bytearray") + b"\x8a\x08" + struct.pack("<q", big) + b"\x85R"),
            "no named tensors",
        ),
        "torch.Tensor(2**20, 2**20)": (
            holding(reference("torch", "Tensor") + b"(" + 2 * (b"J" + struct.pack("<i", 1 << 20)) + b"tR"),
            "no named tensors",
        ),
        "2**60 paths": (zipped(deep(60), RECORDS), "nested without end"),
        "a dict within itself": (holding(b"}q\x00(" + text("a") + b"h\x00u"), "nested without end"),
        "a key of a million tuples": (holding(b"})" + 1_000_000 * b"\x85" + b"K\x01s"), "tuples nested without end"),
        "a key of tuples, by way of lists": (
            holding(b")q\x000" + 5000 * in_a_list + b"}h\x00K\x01s"),
            "tuples nested without end",
        ),
        "zip bomb": (zipped(weights(1 << 22), (("0", bytes(1 << 24)),), zipfile.ZIP_DEFLATED), "compressed records"),
        "a record larger than the file": (bytes(swollen), "claim more bytes than the file has"),
        "zip cut in half": (good_zip[: len(good_zip) // 2], "cannot be read"),
        "old format without its last bytes": (good_old[:-4], "cannot be read"),
        "old format cut within its pickle": (good_old[:200], "cannot be read"),
        "damaged record": (good_zip.replace(FLOATS[4:12], FLOATS[8:16]), "checksum of its record archive/data/0"),
        "missing record": (zipped(weights(), RECORDS[:1]), "archive/data/1"),
        "web page": (b"\n<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>", "is a web page"),
        "empty file": (b"", "the file is empty"),
        "noise": (bytes(range(256)) * 40, "cannot be read"),
        "plain pickle": (pickle.dumps(1.0), "neither a torch file nor safetensors"),
        "tar of the oldest torch": (tar.getvalue(), "tar file of torch before 0.1.10"),
        "another zip file": (zipped(b"", root="other"), "not one that torch.save writes"),
        "TorchScript": (zipped(weights(), RECORDS, more=(("archive/constants.pkl", b"\x80\x02)."),)), "TorchScript"),
        "big-endian, zip": (zipped(weights(), RECORDS, order=b"big"), "big-endian"),
        "big-endian, old format": (legacy(weights(), little=False), "big-endian"),
        "no tensors": (saved({"epoch": 3}), "no named tensors"),
        "wrong shape": (saved({**GOOD, "weight": torch.zeros(4, 3)}), r"weight \(4, 3\) instead of \(3, 4\)"),
        "renamed key": (
            saved({"weights": GOOD["weight"], "bias": GOOD["bias"]}),
            "missing: weight; 1 left over",
        ),
        "extra key": (saved({**GOOD, "scale": torch.ones(1)}), "1 left over: scale"),
        "missing key": (saved({"weight": GOOD["weight"]}), "1 missing: bias"),
        "whole numbers": (saved({**GOOD, "bias": torch.arange(3)}), "bias torch.int64 instead of torch.float32"),
        "numpy objects": (saved({**GOOD, "bias": array}), "does not contain numbers"),
    }


def lies_in_safetensors():
    """{name: (bytes, pattern of the error)} of .safetensors files."""

    def file(header, content=FLOATS):
        return struct.pack("<Q", len(header)) + header.encode() + content

    weight = '"weight":{"dtype":"F32","shape":[3,4],"data_offsets":[0,48]}'
    good = f'{{{weight},"bias":{{"dtype":"F32","shape":[3],"data_offsets":[48,60]}}}}'
    broken = "not a whole safetensors file"
    return {
        "false header length": (struct.pack("<Q", 1 << 40) + good.encode() + FLOATS, broken),
        "offsets beyond the end": (file(good.replace("60", "6000")), broken),
        "overlapping": (file(good.replace("[48,60]", "[36,48]")), broken),
        "false shape": (file(good.replace("[3,4]", "[3000000,4]")), broken),
        "truncated": (file(good)[:-4], broken),
        "web page": (b"<html><title>404</title>", "is a web page"),
        "renamed key": (file(good.replace("bias", "Bias")), "missing: bias; 1 left over: Bias"),
    }

"""Read a stranger's torch file without running anything that is in it.

`read(path)` gives nested dicts that end in tensors. The file's pickle is first turned into a description: plain
containers, storages and views of them. Any other reference (argparse.Namespace, an optimizer, a class of a package that
is not installed, os.system) becomes an inert stub that accepts whatever is done to it and does nothing. Sizes are
claims, too: every length, index, storage and view that the file declares is held against the size that the file really
has before memory is asked for.

torch's own reader (weights_only=True) is not enough, even with a stand-in registered for every unknown global: of the
files in tests/zoo_hostile.py it asks for 4 TB of memory for three (a storage of false length in the old format,
bytearray(2**40), torch.Tensor(2**20, 2**20)), takes a record with a wrong checksum and big-endian weights as they are,
and it lists the unknown globals of zip files only, so that no file of the old format with a stranger in it can be read.

A file of nothing but tensors in containers then goes to torch's own reader (weights_only=True, memory-mapped); of any
other, and of what that reader refuses, the described tensors are filled here.
"""

import collections
import contextlib
import io
import math
import mmap
import pickle
import pickletools
import re
import struct
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import demand_file

# ValueError covers UnicodeDecodeError, OSError covers end-of-file in zipfile.
BROKEN = (
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)
MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a torch file from before 1.6
MOST_STEPS = 2_000_000  # of a pickle, and of the walk through its containers, as a small file can describe 2**40 paths
DEEPEST = 40  # containers in containers; a ResNet-50 with optimizer state takes 30,000 steps and goes 5 deep
DEEPEST_TUPLE = 1000
FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # operations that change a container
BIG_ENDIAN = "written on a big-endian machine; save it again on a little-endian one"
DTYPES = {
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
    "Untyped": torch.uint8,
}


def read(path):
    """Return what a .safetensors or torch file holds, as nested dicts {str: dict or Tensor}; anything else is left out.

    List elements get their index as key; a pickled module becomes a dict of its parameters, buffers and submodules.
    Tensors lie on the CPU and may share memory with the file. Raises UserError for a file that is damaged, lies about
    sizes or is no checkpoint.
    """
    path = Path(path)
    demand_file(path, "a checkpoint file")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(512).lstrip().lower()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(f"{path} is a web page, not a checkpoint: delete it and save the real file by hand")
    try:
        if size == 0:  # also what the system only pretends to be a file, as in /proc
            raise ValueError("the file is empty")
        if path.suffix == ".safetensors":
            return load_file(path)
        contents = _nested(_zip(path, size) if zipfile.is_zipfile(path) else _legacy(path, size))
        _check_sizes(contents, size)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): fetch or save it again") from error
    except BROKEN as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}): fetch or save it again") from error
    return contents


def plain(path):
    """Return what a file of torch.save holds if that is plain data (lists, tuples, dicts, texts, numbers, tensors).

    Runs no code. Raises UserError for a file that is not one.
    """
    try:
        size = path.stat().st_size
        return _zip(path, size) if zipfile.is_zipfile(path) else _legacy(path, size)
    except BROKEN as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path} cannot be read ({reason}): remove it, or make it again") from error


def tensors(contents, path=()):
    """Yield (path, tensor) of what `read` returned; a path is a tuple of keys."""
    for key, value in contents.items():
        if isinstance(value, torch.Tensor):
            yield (*path, key), value
        else:
            yield from tensors(value, (*path, key))


def _check_sizes(contents, size):
    """Refuse tensors that claim more than the file can hold: a view can repeat one number a billion times.

    Views of the same numbers (the attacker's copy of a network) count once, other overlaps add up.
    """
    distinct = {
        (t.data_ptr(), t.dtype, t.shape, t.stride()): t.numel() * t.element_size() for _, t in tensors(contents)
    }
    claimed = sum(distinct.values())
    if claimed > 2 * size:
        raise ValueError(f"its tensors claim {claimed} bytes in a file of {size}")


def _nested(value):
    """Turn unpickled objects into nested dicts that end in dense CPU tensors."""
    count = 0

    def walk(value, depth):
        nonlocal count
        count += 1
        if count > MOST_STEPS or depth > DEEPEST:
            raise ValueError("containers nested without end")
        if isinstance(value, TensorView):
            return value.tensor()
        if isinstance(value, torch.Tensor):
            return value.detach()
        if isinstance(value, Array):
            return value.tensor()
        if isinstance(value, Inert):
            value = value.members()
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if not isinstance(value, dict):
            return None
        found = {str(key): walk(item, depth + 1) for key, item in value.items()}
        return {key: item for key, item in found.items() if item is not None} or None

    contents = walk(value, 0)
    if not isinstance(contents, dict):
        raise ValueError("there are no named tensors in it")
    return contents


# --- the two formats of torch.save -----------------------------------------------------------------------------------


def _zip(path, size):
    """The format since torch 1.6: a zip file, stored without compression, of one pickle and one record a storage."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip file, but not one that torch.save writes")
        root = pickles[0].removesuffix("data.pkl")
        if root + "constants.pkl" in records:
            raise ValueError("a TorchScript program; save its state_dict() instead")
        if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
            raise ValueError("compressed records, which torch never writes")
        if sum(info.file_size for info in archive.infolist()) > size:
            raise ValueError("its records claim more bytes than the file has")
        if root + "byteorder" in records and archive.read(root + "byteorder") != b"little":
            raise ValueError(BIG_ENDIAN)
        text = archive.read(pickles[0])
        _check(io.BytesIO(text), len(text))
        unpickler = Unpickler(io.BytesIO(text), size)
        value = unpickler.load()
        places = {key: records[f"{root}data/{key}"] for key in unpickler.storages}
        for storage in unpickler.storages.values():
            storage.check(places[storage.key].file_size)
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of its record {damaged} is wrong")
        if unpickler.plain:
            with contextlib.suppress(*BROKEN):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for storage in unpickler.storages.values():
            storage.fill(archive.read(places[storage.key]))
    return value


def _legacy(path, size):
    """The format before torch 1.6: five pickles (magic number, version, system, value, keys), then the raw storages."""
    if tarfile.is_tarfile(path):
        raise ValueError("a tar file of torch before 0.1.10; load and save it with an old torch")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if Unpickler(_checked(data, size), size).load() != MAGIC:
            raise ValueError("neither a torch file nor safetensors")
        Unpickler(_checked(data, size), size).load()
        system = Unpickler(_checked(data, size), size).load()
        if not (isinstance(system, dict) and system.get("little_endian")):
            raise ValueError(BIG_ENDIAN)
        unpickler = Unpickler(_checked(data, size), size)
        value = unpickler.load()
        places = {}
        for key in Unpickler(_checked(data, size), size).load():
            storage = unpickler.storages[key]
            (count,) = struct.unpack("<q", data.read(8))
            storage.check(count * storage.dtype.itemsize)
            places[key] = data.tell()
            data.seek(count * storage.dtype.itemsize, io.SEEK_CUR)
        if unpickler.plain:
            with contextlib.suppress(*BROKEN):
                return torch.load(path, map_location="cpu", weights_only=True)
        for key, storage in unpickler.storages.items():
            storage.fill(data[places[key] : places[key] + storage.count * storage.dtype.itemsize])
    return value


def _checked(data, size):
    """Check the pickle that begins here, and go back to where it begins."""
    start = data.tell()
    _check(data, size)
    data.seek(start)
    return data


def _check(stream, size):
    """Go through one pickle, up to its end, without building anything.

    Refuse lengths and memo numbers beyond `size`: an unpickler asks for that memory before it finds that the bytes are
    not there; more operations than a checkpoint has: each may make an object larger than itself; and tuples in tuples
    without end: to hash one, Python goes down to the innermost without a look at the stack, and the process dies.
    """
    stack, marks, memo = [], [], {}  # instead of each object a list of one number: how deep it nests
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name, before = opcode.name, opcode.stack_before
        if step > MOST_STEPS or ("PUT" in name and int(argument) > size):
            raise ValueError("a pickle that asks for more memory than its file could fill")
        if name == "MARK":
            marks.append(len(stack))
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        elif name == "MEMOIZE" or "PUT" in name:
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif "GET" in name or name == "DUP":
            stack.append(stack[-1] if name == "DUP" else memo.get(int(argument), [0]))
        else:
            taken = []
            if pickletools.markobject in before:
                start = marks.pop()
                taken = stack[start:]
                del stack[start:]
                before = before[: before.index(pickletools.markobject)]
            taken += [stack.pop() for _ in before]
            depth = max((deep for (deep,) in taken), default=0)
            if name in FILLING:
                taken[-1][0] = depth  # of the container, wherever else it is referred to
                stack.append(taken[-1])
            elif opcode.stack_after:
                stack.append([depth + 1])
            if depth > DEEPEST_TUPLE:
                raise ValueError("tuples nested without end")


# --- the unpickler ---------------------------------------------------------------------------------------------------


class Unpickler(pickle.Unpickler):
    """Builds plain data and descriptions of tensors; runs no code and asks for no memory beyond the pickle's own."""

    def __init__(self, stream, size):
        super().__init__(stream, encoding="latin1")  # files of Python 2; any byte is a letter
        self.size, self.storages, self.plain = size, {}, True

    def find_class(self, module, name):
        if module in ("torch", "torch.storage") and name.removesuffix("Storage") in DTYPES:
            return DTYPES[name.removesuffix("Storage")]
        if (module, name) in PLAIN:
            function = PLAIN[module, name]
            return lambda *arguments: function(*arguments)  # a fresh one: a pickle may set attributes of what it gets
        self.plain = False
        if (module, name) in READ_HERE:
            function = READ_HERE[module, name]
            return lambda *arguments: function(*arguments)
        return Inert

    def persistent_load(self, identity):
        if identity[0] == "module":  # the old format keeps the source code of a module beside its class
            return identity[1]
        kind, dtype, key, _, count, *more = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(more):
            raise ValueError("a storage of an unknown kind")
        storage = self.storages.setdefault(key, Storage(key, dtype, count))
        if (storage.dtype, storage.count) != (dtype, count):
            raise ValueError(f"storage {key} is described in two ways")
        if type(count) is not int or not 0 <= count * dtype.itemsize <= self.size:
            raise ValueError(f"storage {key} claims {count} numbers in a file of {self.size} bytes")
        return storage


@dataclass(eq=False)
class Storage:
    """Numbers that lie elsewhere in the file, as announced by the pickle."""

    key: str
    dtype: torch.dtype
    count: int
    data: torch.Tensor | None = None

    def check(self, size):
        if size != self.count * self.dtype.itemsize:
            raise ValueError(f"storage {self.key} has {size} bytes, {self.count} numbers were announced")

    def fill(self, content):
        self.check(len(content))
        if content:
            self.data = torch.frombuffer(bytearray(content), dtype=self.dtype)
        else:
            self.data = torch.empty(0, dtype=self.dtype)


@dataclass(eq=False)
class TensorView:
    """A tensor as the pickle describes it: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple
    stride: tuple

    def __post_init__(self):
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor with impossible sizes")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if math.prod(self.shape) > self.storage.count or (math.prod(self.shape) and last >= self.storage.count):
            raise ValueError(f"a tensor of {self.shape} in a storage of {self.storage.count} numbers")

    def tensor(self):
        return torch.as_strided(self.storage.data, self.shape, self.stride, self.offset)


class Inert:
    """Stands for anything the file refers to that is not plain data. Accepts all that a pickle can do to an object."""

    def __new__(cls, *arguments, **_):  # a pickle may make an object without __init__
        stub = object.__new__(cls)
        stub.arguments, stub.state, stub.items = arguments, None, {}
        return stub

    def __call__(self, *arguments, **_):
        return Inert(*arguments)

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        self.items[key] = value

    def append(self, value):
        self.items[len(self.items)] = value

    add = append

    def extend(self, values):
        for value in values:
            self.append(value)

    def members(self):
        """What a stub carries: its attributes and items; of a module its parameters, lasting buffers and submodules."""
        state = self.state if isinstance(self.state, dict) else {}
        if not {"_parameters", "_buffers", "_modules"} <= state.keys():
            return {**state, **self.items}
        temporary = state.get("_non_persistent_buffers_set") or ()
        buffers = {name: value for name, value in state["_buffers"].items() if name not in temporary}
        return {**state["_parameters"], **buffers, **state["_modules"]}


class Array(Inert):
    """A numpy array; its state is (version, shape, dtype, Fortran order, bytes)."""

    def tensor(self):
        _, shape, kind, fortran, data = self.state
        if not re.fullmatch("[<>=|]?[fiub][1248]", str(kind.arguments[0])) or not isinstance(data, bytes):
            raise ValueError("a numpy array of something else than numbers")
        dtype = np.dtype(kind.arguments[0]).newbyteorder(kind.state[1])
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(array.astype(dtype.newbyteorder("=")))


def _tensor(storage, offset, shape, stride, *_):
    return TensorView(storage, offset, tuple(shape), tuple(stride))


def _first(data, *_):
    return data


def _like_type(function, _, arguments, *__):
    return function(*arguments)


PLAIN = {  # what torch's own reader is asked to build; none of them can ask for memory
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch", "Size"): tuple,
}
READ_HERE = {  # what only this unpickler builds
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how old protocols write bytes
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "_reconstruct"): Array,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _like_type,
    ("torch.nn.parameter", "Parameter"): _first,
}

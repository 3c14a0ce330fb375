"""Read an untrusted torch file without running any code in it.

`read(path)` returns nested dicts of tensors. It first turns the file's pickle into a description: plain containers,
storages and views of them. Any other reference (argparse.Namespace, an optimizer, a class of a package that is not
installed, os.system) becomes an inert stub that accepts every operation and does nothing. Sizes are claims, too: every
length, index, storage and view that the file declares is compared with the file's real size before memory is allocated.

torch's own reader (weights_only=True) is not enough, even with a stand-in registered for every unknown global: for
three files in tests/zoo_hostile.py it allocates 4 TB (a storage of false length in the old format, bytearray(2**40),
torch.Tensor(2**20, 2**20)), it accepts a record with a wrong checksum and big-endian weights, and it lists the unknown
globals of zip files only, so no file of the old format that refers to an unknown class can be read.

A file that contains only tensors in containers then goes to torch's reader (weights_only=True, memory-mapped); for any
other file, and for one that this reader refuses, the described tensors are filled here.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import demand_file

Contents: TypeAlias = dict[str, Any]  # {str: Tensor or Contents}
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
STEP_LIMIT = 2_000_000  # of a pickle, and of the walk through its containers: a small file can describe 2**40 paths
DEPTH_LIMIT = 40  # of nested containers; a ResNet-50 with optimizer state takes 30,000 steps and is 5 deep
TUPLE_DEPTH_LIMIT = 1000
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


def read(path: str | Path) -> Contents:
    """Return the tensors of a .safetensors or torch file as nested dicts {str: dict or Tensor}; the rest is dropped.

    List elements get their index as key; a pickled module becomes a dict of its parameters, buffers and submodules.
    Tensors are on the CPU and may share memory with the file.

    Raises:
        UserError: the file is damaged, claims false sizes or is not a checkpoint.
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
        if size == 0:  # also the pretended files of the system, as in /proc
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


def plain(path: Path) -> Any:
    """Return the plain data (lists, tuples, dicts, texts, numbers, tensors) in a file of torch.save, running no code.

    Raises:
        UserError: the file is damaged or not written by torch.save.
    """
    try:
        size = path.stat().st_size
        return _zip(path, size) if zipfile.is_zipfile(path) else _legacy(path, size)
    except BROKEN as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path} cannot be read ({reason}): remove it, or make it again") from error


def tensors(contents: Contents, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """Yield (path, tensor) for what `read` returned; a path is a tuple of keys."""
    for key, value in contents.items():
        if isinstance(value, torch.Tensor):
            yield (*path, key), value
        else:
            yield from tensors(value, (*path, key))


def _check_sizes(contents: Contents, size: int) -> None:
    """Refuse tensors that claim more than the file can contain: a view can repeat one number a billion times.

    Views of the same numbers (the attacker's copy of a network) count once; other overlaps add up.
    """
    distinct = {}
    for _, tensor in tensors(contents):
        view = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        distinct[view] = tensor.numel() * tensor.element_size()
    claimed = sum(distinct.values())
    if claimed > 2 * size:
        raise ValueError(f"its tensors claim {claimed} bytes in a file of {size}")


def _nested(value: Any) -> Contents:
    """Turn unpickled objects into nested dicts of dense CPU tensors."""
    count = 0

    def walk(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > STEP_LIMIT or depth > DEPTH_LIMIT:
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
        members = {str(key): walk(item, depth + 1) for key, item in value.items()}
        return {key: item for key, item in members.items() if item is not None} or None

    contents = walk(value, 0)
    if not isinstance(contents, dict):
        raise ValueError("there are no named tensors in it")
    return contents


# --- the two formats of torch.save -----------------------------------------------------------------------------------


def _zip(path: Path, size: int) -> Any:
    """Read the format since torch 1.6: an uncompressed zip file of one pickle and one record per storage."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip file, but not one that torch.save writes")
        root = pickles[0].removesuffix("data.pkl")
        if root + "constants.pkl" in records:
            raise ValueError("a TorchScript program; save its state_dict() instead")
        _check_records(archive.infolist(), size)
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


def _check_records(records: list[zipfile.ZipInfo], size: int) -> None:
    if any(info.compress_type != zipfile.ZIP_STORED for info in records):
        raise ValueError("compressed records, which torch never writes")
    if sum(info.file_size for info in records) > size:
        raise ValueError("its records claim more bytes than the file has")


def _legacy(path: Path, size: int) -> Any:
    """Read the format before torch 1.6: five pickles (magic number, version, system, value, keys), then storages."""
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


def _checked(data: mmap.mmap, size: int) -> mmap.mmap:
    """Check the pickle at the current position and return to its beginning."""
    start = data.tell()
    _check(data, size)
    data.seek(start)
    return data


def _check(stream: Any, size: int) -> None:
    """Go through one pickle, up to its end, without building anything.

    Refuse lengths and memo numbers beyond `size` (an unpickler allocates that memory before it finds that the bytes are
    not there), more operations than a checkpoint has (each may create an object larger than itself), and tuples nested
    without end (to hash one, Python recurses to the innermost without checking the stack, and the process dies).
    """
    # each object is represented by a list of one number: its nesting depth
    stack: list[list[int]] = []
    marks: list[int] = []
    memo: dict[int, list[int]] = {}
    operations: Any = pickletools.genops(stream)
    for step, (opcode, argument, _) in enumerate(operations):
        name = opcode.name
        if step > STEP_LIMIT or ("PUT" in name and int(argument) > size):
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
            _apply(opcode, stack, marks)


def _apply(opcode: Any, stack: list[list[int]], marks: list[int]) -> None:
    """Do to the depths on the stack what an operation does to the objects."""
    before, operands = opcode.stack_before, []
    if pickletools.markobject in before:
        start = marks.pop()
        operands = stack[start:]
        del stack[start:]
        before = before[: before.index(pickletools.markobject)]
    operands += [stack.pop() for _ in before]
    depth = max((depth for (depth,) in operands), default=0)
    if opcode.name in FILLING:
        operands[-1][0] = depth  # of the container, wherever else it is referred to
        stack.append(operands[-1])
    elif opcode.stack_after:
        stack.append([depth + 1])
    if depth > TUPLE_DEPTH_LIMIT:
        raise ValueError("tuples nested without end")


# --- the unpickler ---------------------------------------------------------------------------------------------------


class Unpickler(pickle.Unpickler):
    """Builds plain data and descriptions of tensors; runs no code and allocates no more than the pickle's own size.

    Attributes:
        storages: those that the pickle refers to, by key.
        plain: whether torch's own reader may read the file: tensors in containers, nothing else.
    """

    def __init__(self, stream: Any, size: int) -> None:
        super().__init__(stream, encoding="latin1")  # files of Python 2; every byte is a letter
        self.size, self.plain = size, True
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name.removesuffix("Storage") in DTYPES:
            return DTYPES[name.removesuffix("Storage")]
        if (module, name) in PLAIN:
            function = PLAIN[module, name]
            return lambda *arguments: function(*arguments)  # a fresh function: a pickle may set its attributes
        self.plain = False
        if (module, name) in REBUILT:
            function = REBUILT[module, name]
            return lambda *arguments: function(*arguments)
        return Inert

    def persistent_load(self, identity: Any) -> Any:
        if identity[0] == "module":  # the old format stores a module's source code beside its class
            return identity[1]
        kind, dtype, key, _, count, *further = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(further):
            raise ValueError("a storage of an unknown kind")
        storage = self.storages.setdefault(key, Storage(key, dtype, count))
        if (storage.dtype, storage.count) != (dtype, count):
            raise ValueError(f"storage {key} is described in two ways")
        if type(count) is not int or not 0 <= count * dtype.itemsize <= self.size:
            raise ValueError(f"storage {key} claims {count} numbers in a file of {self.size} bytes")
        return storage


@dataclass(eq=False)
class Storage:
    """Numbers elsewhere in the file, as the pickle announces them."""

    key: str
    dtype: torch.dtype
    count: int
    data: torch.Tensor | None = None

    def check(self, size: int) -> None:
        """Raise ValueError unless the storage has this size in bytes."""
        if size != self.count * self.dtype.itemsize:
            raise ValueError(f"storage {self.key} has {size} bytes, {self.count} numbers were announced")

    def fill(self, content: bytes) -> None:
        """Set the numbers from the file's bytes."""
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
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor with impossible sizes")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if math.prod(self.shape) > self.storage.count or (math.prod(self.shape) and last >= self.storage.count):
            raise ValueError(f"a tensor of {self.shape} in a storage of {self.storage.count} numbers")

    def tensor(self) -> torch.Tensor:
        """Return the tensor; its storage must be filled."""
        assert self.storage.data is not None, "its storage is filled before"
        return torch.as_strided(self.storage.data, self.shape, self.stride, self.offset)


class Inert:
    """Stands for any object that is not plain data; accepts every operation of a pickle."""

    arguments: tuple[Any, ...]
    items: dict[Any, Any]

    def __new__(cls, *arguments: Any, **_: Any) -> Any:  # a pickle may create an object without __init__
        stub = object.__new__(cls)
        stub.arguments, stub.state, stub.items = arguments, None, {}
        return stub

    def __call__(self, *arguments: Any, **_: Any) -> "Inert":
        return Inert(*arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Accept an item, as of a list or set."""
        self.items[len(self.items)] = value

    add = append

    def extend(self, values: Any) -> None:
        """Accept several items."""
        for value in values:
            self.append(value)

    def members(self) -> dict[Any, Any]:
        """Return a stub's attributes and items; of a module its parameters, persistent buffers and submodules."""
        state = self.state if isinstance(self.state, dict) else {}
        if not {"_parameters", "_buffers", "_modules"} <= state.keys():
            return {**state, **self.items}
        temporary = state.get("_non_persistent_buffers_set") or ()
        buffers = {name: value for name, value in state["_buffers"].items() if name not in temporary}
        return {**state["_parameters"], **buffers, **state["_modules"]}


class Array(Inert):
    """A numpy array; its state is (version, shape, dtype, Fortran order, bytes)."""

    def tensor(self) -> torch.Tensor:
        """Return the array as a tensor. Raises ValueError if it does not contain numbers."""
        _, shape, kind, fortran, data = self.state
        if not re.fullmatch("[<>=|]?[fiub][1248]", str(kind.arguments[0])) or not isinstance(data, bytes):
            raise ValueError("a numpy array that does not contain numbers")
        dtype = np.dtype(kind.arguments[0]).newbyteorder(kind.state[1])
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(array.astype(dtype.newbyteorder("=")))


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, *_: Any) -> TensorView:
    return TensorView(storage, offset, tuple(shape), tuple(stride))


def _first(data: Any, *_: Any) -> Any:
    return data


def _like_type(function: Callable[..., Any], _: Any, arguments: Any, *__: Any) -> Any:
    return function(*arguments)


PLAIN: dict[tuple[str, str], Callable[..., Any]] = {  # what torch's own reader builds; none can allocate memory
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch", "Size"): tuple,
}
REBUILT: dict[tuple[str, str], Callable[..., Any]] = {  # what only this unpickler builds
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes in old protocols
    ("numpy.core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "_reconstruct"): Array,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _like_type,
    ("torch.nn.parameter", "Parameter"): _first,
}

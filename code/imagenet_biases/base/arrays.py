"""Read arrays from the project's own .npz files (as numpy.savez writes them) without trusting them."""

import contextlib
import io
import math
import os
import zipfile
from collections.abc import Iterator

import numpy as np

from imagenet_biases.base.files import open_file
from imagenet_biases.base.schema import Malformed


@contextlib.contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator["StoredArrays"]:
    """Yield the arrays in a file by name; each is read when it is looked up.

    No array is larger than the file, none contains Python objects, and each must match its checksum.

    Raises:
        OSError: there is no such file.
        Malformed: the file is damaged.
        KeyError: the file has no array of that name.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        with _malformed():
            archive = zipfile.ZipFile(file)
        with archive:
            yield StoredArrays(archive, size)


class StoredArrays:
    """The arrays of an open .npz file."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive, self.size = archive, size

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self.archive.NameToInfo

    def __getitem__(self, name: str) -> np.ndarray:
        member = self.archive.getinfo(f"{name}.npy")
        with _malformed():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > self.size:
                raise ValueError(f"{name} claims more than the file holds")
            data = self.archive.read(member)  # to its end: the checksum is compared there
            header = io.BytesIO(data)
            readers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = readers[np.lib.format.read_magic(header)[0]](header)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - header.tell():
                raise ValueError(f"{name} does not have the shape that it claims")
            array = np.frombuffer(data, dtype, offset=header.tell()) if math.prod(shape) else np.empty(0, dtype)
            return array.reshape(shape, order="F" if fortran else "C").copy()


@contextlib.contextmanager
def _malformed() -> Iterator[None]:
    """Turn the many kinds of errors that damaged zip files and headers cause into Malformed."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise Malformed(str(error)[:200] or type(error).__name__) from None

"""Arrays in a file of ours (.npz, as numpy.savez writes it), read without trusting it."""

import contextlib
import io
import math
import os
import zipfile

import numpy as np

from imagenet_biases.base.files import open_file
from imagenet_biases.base.schema import Malformed


@contextlib.contextmanager
def open_arrays(path):
    """Yield the arrays in a file, name -> array, each read when it is asked for.

    No array is larger than the file, none is made of Python objects, and each is held to its checksum. Raises OSError
    where there is no file, Malformed for a damaged one, KeyError for a name that is not there.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        with _malformed():
            archive = zipfile.ZipFile(file)
        with archive:
            yield _Arrays(archive, size)


class _Arrays:
    def __init__(self, archive, size):
        self.archive, self.size = archive, size

    def __contains__(self, name):
        return f"{name}.npy" in self.archive.NameToInfo

    def __getitem__(self, name):
        member = self.archive.getinfo(f"{name}.npy")
        with _malformed():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > self.size:
                raise ValueError(f"{name} claims more than the file holds")
            data = self.archive.read(member)  # to its end: the checksum is compared there
            header = io.BytesIO(data)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read[np.lib.format.read_magic(header)[0]](header)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - header.tell():
                raise ValueError(f"{name} is not of the shape that it claims")
            array = np.frombuffer(data, dtype, offset=header.tell()) if math.prod(shape) else np.empty(0, dtype)
            return array.reshape(shape, order="F" if fortran else "C").copy()


@contextlib.contextmanager
def _malformed():
    """On damaged files the readers of zip files and headers raise all kinds of errors."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise Malformed(str(error)[:200] or type(error).__name__) from None

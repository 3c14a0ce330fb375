"""Read and write files; what is written is either whole or absent."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from imagenet_biases.base.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/"
A_POINTER = "a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned"


def safe_name(text: Any) -> str:
    """Return `text` if it can name a folder or file that the project writes; every such name is checked here.

    Raises:
        UserError: the text is not one path component of at most 150 printable bytes, begins with a dot, or is `wandb`,
            the W&B client's folder.
    """
    printable = isinstance(text, str) and text.isprintable()  # no control characters, no unpaired surrogates
    if (
        not printable
        or text.strip() != text
        or text in ("", "wandb")
        or text.startswith(".")
        or "/" in text
        or "\\" in text
        or len(text.encode()) > 150
    ):
        raise UserError(
            f"{str(text)[:200]!r} cannot be the name of a file or folder: give one of at most 150 printable characters "
            f"without / and \\ that does not begin with a dot and is not 'wandb'"
        )
    return text


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading bytes.

    Raises:
        OSError: it cannot be opened, or is not a regular file: a pipe would block.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return os.fdopen(handle, "rb")


def demand_file(path: str | os.PathLike[str], wanted: str) -> None:
    """Raise UserError unless `path` is a regular file with its content: a pipe would block, a device has no end.

    Args:
        path: the path that the user gave.
        wanted: what the user should give, for the message.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} {'is not a file' if os.path.lexists(path) else 'does not exist'}: give {wanted}")
    demand_content(path)


def demand_content(path: str | os.PathLike[str]) -> None:
    """Raise UserError if a file is a Git LFS pointer: a repository was cloned without its large files."""
    with contextlib.suppress(OSError), open_file(path) as file:  # whoever reads it reports what cannot be read
        if file.read(len(POINTER)) == POINTER:
            raise UserError(f"{path} is {A_POINTER}")


def read_bytes(path: str | os.PathLike[str], limit: int = 1 << 28) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: it cannot be read, is not a regular file, is longer than `limit` bytes, or is a Git LFS pointer.
    """
    with open_file(path) as file:
        data = file.read(limit + 1)  # st_size is not reliable: under /proc it is 0
    if data.startswith(POINTER):
        raise OSError(errno.ENODATA, A_POINTER, str(path))
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"longer than {limit:,} bytes", str(path))
    return data


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a temporary file beside `path`, open for writing; it replaces `path` only if the block succeeds.

    Several processes may write the same path at once: the last whole file wins. Missing parent folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{_numbering()}-{os.getpid()}."
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp creates private files; results are shared
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files that killed processes left under a folder.

    Those of other machines and containers, whose processes cannot be seen from here, once they are older than a day.
    """
    for path in Path(folder).rglob(".*.tmp"):
        with contextlib.suppress(OSError):
            writer = re.search(r"\.(\w+)-(\d+)\.[^.]+\.tmp$", path.name)
            dead = writer and writer[1] == _numbering() != "unknown" and not os.path.exists(f"/proc/{writer[2]}")
            if dead or path.stat().st_mtime < time.time() - 86_400:
                path.unlink()


@functools.cache
def _numbering() -> str:
    """Return what tells the machines and containers apart that number their processes on their own."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
        return hashlib.sha256(text.encode()).hexdigest()[:8]
    except OSError:  # not Linux
        return "unknown"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON atomically, keeping the order of keys. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as file:
        # an unpaired surrogate (of a file name that is not UTF-8) becomes a JSON escape
        file.write(text.encode("utf-8", "backslashreplace"))

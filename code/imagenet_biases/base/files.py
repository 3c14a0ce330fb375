"""Files that are either whole or not there."""

import contextlib
import errno
import json
import os
import stat
import tempfile
import time
from pathlib import Path

from imagenet_biases.base.errors import UserError


def safe_name(text):
    """Return `text` if it can be the name of a folder or the stem of a file of ours; every such name passes here.

    One component of a path, at most 150 bytes, printable, without a dot at its beginning, and not `wandb`, which is the
    W&B client's folder. Raises UserError for anything else.
    """
    printable = isinstance(text, str) and text.isprintable()  # no control characters, no halves of characters
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


def open_file(path):
    """Open a file for reading bytes. Raises OSError, also for what is no file: a pipe would be waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return os.fdopen(handle, "rb")


def demand_file(path, what):
    """Raise UserError unless `path` is a file: a pipe would be waited for, a device read without end.

    `what`: what a user has to give, for the message.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} {'is not a file' if os.path.lexists(path) else 'does not exist'}: give {what}")


def read_bytes(path, most=1 << 28):
    """Return the content of a file. Raises OSError, also for what is no file or is longer than `most` bytes."""
    with open_file(path) as file:
        data = file.read(most + 1)  # what the size says is not asked: under /proc it says 0
    if len(data) > most:
        raise OSError(errno.EFBIG, f"longer than {most:,} bytes", str(path))
    return data


@contextlib.contextmanager
def atomic(path, mode="wb"):
    """Yield a file open for writing under a temporary name beside `path`; put in place only if the block succeeds.

    Several processes may write the same path at once: the last whole file wins. The parent folder is made if missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode, **({} if "b" in mode else {"encoding": "utf-8"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; results are to be shared
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sweep(folder):
    """Remove what killed processes have left half-written under a folder: temporary files older than a day."""
    for path in Path(folder).rglob(".*.tmp"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - 86_400:
                path.unlink()


def write_json(path, value):
    """Write `value` as JSON, keys in the order given, atomically. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as file:
        # half of a character (of a file name that is not UTF-8) becomes JSON's own escape for it
        file.write(text.encode("utf-8", "backslashreplace"))

"""Lock files: the hashes of first verified downloads."""

import re
import warnings
from pathlib import Path

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import write_json
from imagenet_biases.base.schema import Malformed, check, read_json


class Pins:
    """Lock files: {address: sha256 of its first verified download}. `shipped`, if given, is read and never written."""

    def __init__(self, path, shipped=None):
        self.path, self.shipped = Path(path), shipped and Path(shipped)

    def check(self, address, sha256, path):
        """Raise UserError if the file at `path`, from `address`, is not the one that was first verified."""
        for lock in filter(None, (self.shipped, self.path)):
            known = _pinned(lock).get(address, sha256)
            if known != sha256:
                raise UserError(
                    f"{path} has sha256 {sha256}, but {address} had {known} when it was first verified: delete the "
                    f"file and fetch it again, or, if its authors are known to have changed it, remove its line from "
                    f"{lock}"
                )

    def add(self, address, sha256):
        """Pin a verified download. A folder that cannot be written to leaves it unpinned, with a warning."""
        if address in _pinned(self.path) or (self.shipped and address in _pinned(self.shipped)):
            return
        from filelock import FileLock

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                pins = {**_pinned(self.path), address: sha256}
                write_json(self.path, check(dict(sorted(pins.items())), {str: sha256_digits}))
        except OSError as error:
            warnings.warn(f"the hash of {address} could not be pinned in {self.path}: {error}", stacklevel=2)


def _pinned(path):
    try:
        return read_json(path, {str: sha256_digits})
    except FileNotFoundError:
        return {}
    except (OSError, Malformed) as error:
        raise UserError(
            f"{path} is no lock file, which has a sha256 for each address ({error}): mend it, or take it from the "
            f"repository again"
        ) from error


def sha256_digits(value):
    """A shape: the 64 hexadecimal digits of a sha256."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None

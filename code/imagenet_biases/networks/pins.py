"""Lock files: the hashes of first verified downloads."""

import warnings
from pathlib import Path
from typing import Annotated

from pydantic import Field

from imagenet_biases.base.errors import UserError
from imagenet_biases.base.files import write_json
from imagenet_biases.base.schema import Malformed, Text, check, read_json

LOCK = dict[Text, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
"""The shape of a lock file."""


class Pins:
    """Lock files {address: sha256 of its first verified download}; `shipped`, if given, is never written."""

    def __init__(self, path: str | Path, shipped: str | Path | None = None) -> None:
        self.path, self.shipped = Path(path), Path(shipped) if shipped else None

    def all(self) -> dict[str, str]:
        """Return {address: sha256} of both files; the shipped one wins."""
        return _read(self.path) | (_read(self.shipped) if self.shipped else {})

    def check(self, address: str, sha256: str, path: str | Path) -> None:
        """Raise UserError if the file at `path`, from `address`, is not the file that was first verified."""
        for lock in filter(None, (self.shipped, self.path)):
            pinned = _read(lock).get(address, sha256)
            if pinned != sha256:
                raise UserError(
                    f"{path} has sha256 {sha256}, but {address} had {pinned} when it was first verified: delete the "
                    f"file and fetch it again, or, if its authors are known to have changed it, remove its line from "
                    f"{lock}"
                )

    def add(self, address: str, sha256: str) -> None:
        """Pin a verified download. Where the folder cannot be written, warn and leave it unpinned."""
        if address in self.all():
            return
        from filelock import FileLock

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                pins = {**_read(self.path), address: sha256}
                write_json(self.path, check(dict(sorted(pins.items())), LOCK))
        except OSError as error:
            warnings.warn(f"the hash of {address} could not be pinned in {self.path}: {error}", stacklevel=2)


def _read(path: Path) -> dict[str, str]:
    try:
        return read_json(path, LOCK)
    except FileNotFoundError:
        return {}
    except (OSError, Malformed) as error:
        raise UserError(
            f"{path} is not a lock file, which has a sha256 per address ({error}): fix it, or take it from the "
            f"repository again"
        ) from error

"""Downloads: fetch a published file and verify its hash."""

import contextlib
import hashlib
import os
import re
import shutil
import time
import urllib.parse
from pathlib import Path

from imagenet_biases.base.errors import UserError

CHUNK = 1 << 17
ATTEMPTS = 5
TIMEOUT = 60  # seconds without data
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # torch.hub: NAME-HASHPREFIX.pth
WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")


# --- fetching --------------------------------------------------------------------------------------------------------


def fetch(address: str, folder: str | Path, *, sha256: str | None = None, name: str | None = None) -> Path:
    """Return the path of the file at `address`, downloaded into `folder` unless it is there.

    Interrupted downloads resume where they stopped; several processes may fetch the same file. The local name begins
    with a key made of the address, so two sources never share a file; a file put there by hand is used as it is.

    Args:
        address: https://…, hf://owner/repository/file or hf://owner/repository@revision/file (Hugging Face hub; of a
            revision with slashes, quoted) or gdrive://id (Google Drive).
        folder: of the downloads.
        sha256: the expected hash or its first digits; by default those that the file name gives, as in torch.hub.
        name: readable part of the local name; by default the last part of the address.

    Raises:
        UserError: the file cannot be downloaded, is a web page or has another hash; the message names the address to
            open in a browser and the path at which to save the file.
    """
    path = local_path(address, folder, name)
    if path.exists():
        if not path.is_file():  # a pipe would block
            raise UserError(f"{path} is not a file: delete it; {by_hand(address, path)}")
        if page := _web_page(path):
            raise UserError(f"{path} is a web page ({page}), not a checkpoint: delete it; {by_hand(address, path)}")
        return path
    from filelock import FileLock

    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():  # another process was faster
                return path
            _download(address, part)
            if page := _web_page(part):
                part.unlink()
                raise _Failed(f"a web page came instead of the file ({page})")
            expected = sha256 or hash_in_name(address)
            if expected and not (actual := file_hash(part)).startswith(expected):
                part.unlink()
                raise _Failed(f"its sha256 begins with {actual[: len(expected)]}, {expected} was expected")
            os.replace(part, path)
    except (_Failed, OSError) as error:  # requests and huggingface_hub raise OSErrors
        raise UserError(f"cannot fetch {address}: {reason(error)}; {by_hand(address, path)}") from error
    return path


def local_path(address: str, folder: str | Path, name: str | None = None) -> Path:
    """Return where `fetch` keeps the file of `address`."""
    published = Path(urllib.parse.urlsplit(address).path).name or urllib.parse.urlsplit(address).netloc
    return Path(folder) / f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{(name or published)[-150:]}"


def web_address(address: str) -> str:
    """Return the address of a file for a browser."""
    scheme, _, location = address.partition("://")
    if scheme == "gdrive":
        return f"https://drive.google.com/file/d/{location}/view"
    if scheme == "hf":
        repository, revision, file = _in_hub(address)
        return f"{_hub()}/{repository}/resolve/{urllib.parse.quote(revision or 'main', safe='')}/{file}"
    return address


def by_hand(address: str, path: Path) -> str:
    """Return how to get a file that cannot be downloaded."""
    return f"open {web_address(address)} in a browser and save the file as {path}"


def reason(error: BaseException) -> str:
    """Return why a request failed, in one line."""
    import requests

    if isinstance(error, requests.ConnectionError) and error.request is not None:
        return f"no connection to {urllib.parse.urlsplit(error.request.url).hostname}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def hash_in_name(address: str) -> str | None:
    """Return the first digits of the sha256 that a file name gives (NAME-0676ba61.pth), or None."""
    match = HASH_IN_NAME.search(Path(urllib.parse.urlsplit(address).path).name)
    return match[1] if match else None


def file_hash(path: str | Path) -> str:
    """Return the sha256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Failed(Exception):
    """A download failed, and a retry does not help."""


class _Interrupted(Exception):
    """A download failed, and a retry may help: the connection ended, the server is busy."""


def _download(address: str, part: Path) -> None:
    """Download the file at `address` to `part`, resuming after interruptions."""
    import requests

    interruptions = (_Interrupted, requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    source = {"hf": _from_hub, "gdrive": _from_drive}.get(address.partition("://")[0], _from_web)
    last: BaseException = _Interrupted()
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            return source(address, part)
        except interruptions as error:
            last = error
    raise _Failed(f"{reason(last)} ({ATTEMPTS} attempts)")


def _from_web(address: str, part: Path) -> None:
    """Download by http(s), from where `part` ends if the server still has the same file (its tag is kept beside it)."""
    import requests
    from tqdm import tqdm

    tag = part.with_name(f"{part.name}.tag")
    headers = {"Accept-Encoding": "identity"}
    if part.exists() and tag.exists():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text()}
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT) as response:
        answer = f"the server answers {response.status_code} {response.reason}"
        if response.status_code == 416:  # the file ends at or before `part`'s length: start over
            part.unlink()
            raise _Interrupted(answer)
        if response.status_code == 429 or response.status_code >= 500:
            raise _Interrupted(answer)
        if not response.ok:
            raise _Failed(answer)
        done = part.stat().st_size if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        if done == 0:
            part.unlink(missing_ok=True)
            tag.unlink(missing_ok=True)
            if (name := response.headers.get("ETag", "")).startswith('"'):  # a weak tag (W/"…") allows other bytes
                tag.write_text(name)
        progress = tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem[:40], leave=False)
        with progress, part.open("ab") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    if total not in (None, part.stat().st_size):
        raise _Interrupted(f"the connection ended after {part.stat().st_size} of {total} bytes")
    tag.unlink(missing_ok=True)


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _in_hub(address: str) -> tuple[str, str, str]:
    """Return (owner/repository, revision or '', file) of hf://owner/repository@revision/file."""
    owner, repository, file = address.removeprefix("hf://").split("/", 2)
    name, _, revision = repository.partition("@")
    return f"{owner}/{name}", urllib.parse.unquote(revision), file


def commit_of(path: Path) -> str | None:
    """Return the commit of the repository from which the hub sent a fetched file; None where it is not known."""
    with contextlib.suppress(OSError):
        return path.with_name(f"{path.name}.commit").read_text("ascii").strip() or None
    return None


def commit_in_cache(repository: str, revision: str = "") -> str | None:
    """Return the commit of a repository that the hub's client holds in its cache; None where it holds none."""
    from huggingface_hub import try_to_load_from_cache

    if Path(repository).is_dir():
        return None
    path = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    return Path(path).parent.name if isinstance(path, str) else None


def _from_hub(address: str, part: Path) -> None:
    """Download from the Hugging Face hub, whose client resumes within its folder and shows a progress bar."""
    from huggingface_hub import hf_hub_download

    repository, revision, file = _in_hub(address)
    folder = part.with_name(f"{part.name}.hub")
    try:
        fetched = hf_hub_download(repository, file, revision=revision or None, local_dir=folder, endpoint=_hub())
        notes = folder / ".cache" / "huggingface" / "download" / f"{file}.metadata"  # the commit is its first line
        if notes.is_file():
            part.with_suffix(".commit").write_text(notes.read_text("utf-8").partition("\n")[0], "ascii")
        os.replace(fetched, part)
    finally:
        if not any(path.stat().st_size for path in folder.rglob("*.incomplete")):
            shutil.rmtree(folder, ignore_errors=True)


def _from_drive(address: str, part: Path) -> None:
    """Download from Google Drive, past its confirmation page for large files; gdown resumes and shows progress."""
    import gdown

    try:
        gdown.download(id=address.removeprefix("gdrive://"), output=str(part), resume=True, use_cookies=False)
    except gdown.exceptions.FileURLRetrievalError as error:
        text = " ".join(str(error).split())
        raise _Failed(
            "today's Google Drive quota of the file is used up" if "Too many users" in text else text
        ) from error
    except gdown.exceptions.DownloadError as error:
        raise _Interrupted(error) from error


def _web_page(path: Path) -> str | None:
    """Return the title of the web page at `path`, or None for any other file."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head.lstrip().lower().startswith(WEB_PAGE):
        return None
    title = re.search(rb"<title[^>]*>(.*?)</title>", head, re.IGNORECASE | re.DOTALL)
    return " ".join(title[1].decode("utf-8", "replace").split()) if title else "no title"

"""The zoo of networks: what is in it, fetch it, verify it.

python code/zoo.py --list                         every network: category, source, size, licence, published top-1
python code/zoo.py --explain NAME                 address, hash, layout rules, normalization, preprocessing, accuracy
python code/zoo.py --fetch all                    fetch and verify the study's 48 (also: a name, a category, @list.txt)
python code/zoo.py --verify                       verify what is on disk: hash, safe reading, strict filling; no network
python code/zoo.py --check-links all              ask every address whether its file is still there

Failures are reported at the end with what to do by hand, and the exit status is 1; the rest is done all the same.
Files lie in models/checkpoints, --checkpoints DIR, or the folder named by the environment variable ZOO_CHECKPOINTS.
Your own network is one entry in models/zoo.user.toml, or in zoo.user.toml in the folder that ZOO_FOLDER names.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import requests

from imagenet_biases.base.download import reason, web_address
from imagenet_biases.base.errors import Parser, UserError, clean, exit_on_user_error
from imagenet_biases.base.schema import Malformed, Object, read_json
from imagenet_biases.networks.explain import explain
from imagenet_biases.networks.registry import Entry, network_name, registry, resolve
from imagenet_biases.results.witness import names_of, witnesses_of
from imagenet_biases.study import CONTROL


def on_disk(entry: Entry, checkpoints: str | None) -> list[Path] | None:
    """Return the entry's files on disk, None if one is missing. An entry without files brings its own weights."""
    paths = []
    for file in entry.files:
        path = file.on_disk(checkpoints)
        if path is None:
            return None
        paths.append(path)
    return paths or None


def show(checkpoints: str | None) -> None:
    """Print the table of all networks."""
    rows = [("NAME", "CATEGORY", "SOURCE", "SIZE", "LICENCE", "TOP-1", "ON DISK")]
    for entry in registry().values():
        paths = on_disk(entry, checkpoints)
        size = f"{sum(path.stat().st_size for path in paths) / 1e6:.0f} MB" if paths else ""
        top1 = f"{entry.expected_top1:.2f}" if entry.expected_top1 is not None else ""
        name = entry.name + (" *" if entry.in_study else "")
        rows.append((name, entry.category, entry.source, size, entry.licence, top1, "yes" if paths else "no"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"* in the study ({len(resolve('all'))}, --model all); sizes of files on disk; no licence: none is stated")


def measured_top1(name: str, results: str) -> float | None:
    """Return a network's clean top-1 in per cent from its record, None where there is none."""
    try:
        record = read_json(Path(results) / network_name(name) / "imagenet.json", Object)
        return record["metrics"]["top1_acc/imagenet"]
    except (OSError, Malformed, KeyError, TypeError):
        return None


def verify(name: str, checkpoints: str | None) -> str:
    """Fetch the network if necessary, read it safely, fill it strictly; return a line about it."""
    from imagenet_biases.networks.load import load_model

    identity = load_model(name, checkpoints=checkpoints).identity
    return f"verified, sha256 {identity['checkpoint_sha256'] or identity['network']}"


def check_links(name: str) -> str:
    """Return a line about every address of a registry entry. Raises UserError for the first that does not answer."""
    answers = []
    for file in registry()[name].files:
        if "://" not in file.address:
            continue
        address = web_address(file.address)
        try:
            with requests.head(address, allow_redirects=True, timeout=30) as answer:
                status, size = answer.status_code, answer.headers.get("Content-Length")
        except requests.RequestException as error:
            raise UserError(f"{address}: {reason(error)}") from error
        if status >= 400:
            raise UserError(f"{address}: {status}")
        answers.append(f"{status}, {int(size) / 1e6:.0f} MB" if size and file.source != "gdrive" else f"{status}")
    return "; ".join(answers) or "has no address"


def for_all(names: Sequence[str], action: Callable[[str], str]) -> int:
    """Apply `action` to every name, even if others fail; return the exit status."""
    failures = {}
    for number, name in enumerate(names, 1):
        try:
            report = action(name)
        except UserError as error:
            failures[name] = error
            report = "FAILED"
        print(clean(f"[{number}/{len(names)}] {name}: {report}"), flush=True)
    for name, error in failures.items():
        print(clean(f"{name}: {error}"), file=sys.stderr)
    print(f"{len(names) - len(failures)} of {len(names)} are in order")
    return 1 if failures else 0


def witness_lines(name: str) -> Iterator[str]:
    """Yield what other laboratories measured of a network, in lines as `explain` prints them."""
    for witness in witnesses_of(names_of(name)):
        if CONTROL in witness.values:
            images = f", {witness.images} images" if witness.images else ""
            figure = f"top-1 {witness.values[CONTROL]:.2f} % ({witness.preprocessing}{images}; {witness.source})"
            yield f"  {'witness':<14} {figure}"


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int | None:
    parser = Parser(__doc__)
    todo = parser.add_mutually_exclusive_group(required=True)
    todo.add_argument("--list", action="store_true", help="print a table of all networks")
    todo.add_argument("--explain", metavar="NAME", help="print on one screen how a network is loaded and measured")
    todo.add_argument("--fetch", metavar="NAME|GROUP|@LIST", help="fetch and verify; comma-separated")
    todo.add_argument("--verify", metavar="NAME|GROUP|@LIST", nargs="?", const="", help="default: all that is on disk")
    todo.add_argument("--check-links", metavar="NAME|GROUP|@LIST", nargs="?", const="", help="default: the whole zoo")
    parser.add_argument("--checkpoints", metavar="DIR", help="folder of the downloads")
    parser.add_argument("--results", metavar="DIR", default="results", help="folder of the records, for --explain")
    options = parser.parse_args(arguments)
    folder = options.checkpoints
    if options.list:
        show(folder)
    elif options.explain is not None:
        print(explain(options.explain, folder, measured_top1(options.explain, options.results)))
        for line in witness_lines(options.explain):
            print(line)
    elif options.check_links is not None:
        names = resolve(options.check_links) if options.check_links else list(registry())
        return for_all([name for name in names if name in registry()], check_links)
    else:
        return fetch_and_verify(options.fetch, options.verify, folder)
    return None


def fetch_and_verify(fetched: str | None, verified: str | None, folder: str | None) -> int:
    """Verify networks, fetching those of `fetched`; of `verified` ('': all on disk) none may be missing."""
    if fetched is not None:
        return for_all(resolve(fetched), lambda name: verify(name, folder))
    present = [entry.name for entry in registry().values() if on_disk(entry, folder)]
    names = resolve(verified) if verified else present
    missing = [name for name in names if name in registry() and name not in present]
    if missing:
        raise UserError(f"not on disk: {', '.join(missing)}; `python code/zoo.py --fetch {missing[0]}` fetches")
    return for_all(names, lambda name: verify(name, folder))


if __name__ == "__main__":
    sys.exit(main())

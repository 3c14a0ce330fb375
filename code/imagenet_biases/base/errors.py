"""User errors (one clear line, exit status 2, no traceback) and the command-line parser."""

import argparse
import contextlib
import difflib
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, ParamSpec, TextIO, TypeVar

from imagenet_biases.base.messages import show_messages

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class UserError(Exception):
    """A user's mistake: what is wrong, where, and what to do about it, in one line."""


def clean(text: object, limit: int = 1200) -> str:
    """Return `text` ready to print: one line, no control characters, not much longer than `limit` characters.

    Longer texts lose their middle. Every message passes here once, where it is printed, because of what it quotes (file
    names, keys of an untrusted file, a server's answers): escape sequences would act on the terminal, and a name may be
    a megabyte long.
    """
    text = " ".join(_cut(str(text), limit).split())
    # unprintable characters (also the unpaired surrogates of a file name that is not UTF-8) are shown by number
    return _cut("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} [...] {text[-limit // 3 :]}"


class Terminated(BaseException):
    """The process received SIGTERM."""


def _terminated(*_: object) -> None:
    raise Terminated


def listed_briefly(names: Iterable[str], limit: int = 3) -> str:
    """Return the first `limit` names, separated by commas, for a message."""
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return a hint at the candidates whose spelling is close to `name`, or ''."""
    close = difflib.get_close_matches(name[:100], dict.fromkeys(candidates), n=3)
    return f"did you mean {' or '.join(close)}?" if close else ""


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that receives the texts of the block's warnings when it ends, for a record."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield notes
    messages = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    notes += dict.fromkeys(messages)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; `description` (a script's docstring) is shown unchanged."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def print_help(self, file: Any = None) -> None:  # argparse ignores a stream that cannot be written
        print(self.format_help(), end="", file=file)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
RESUMABLE = "what was measured so far is kept; the same command resumes there"


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block ends: what it changes together is changed whole.

    Only the main thread receives signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, Any]] = []
    before: dict[int, Any] = {}
    for number in STOP_SIGNALS:
        before[number] = signal.signal(number, lambda *call: waiting.append(call))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, frame in waiting[:1]:
        handler = before[number]
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            signal.raise_signal(number)


def exit_on_user_error(main: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a script's main(): whatever ends it becomes one line on stderr and an exit status.

    2 for a UserError; 1 where the system refuses something (no space, no permission, no memory); 130 for Ctrl-C and 143
    for SIGTERM (which a cluster sends before it takes a machine away), both of which save what was measured; 141 where
    the reader of a pipe stops reading. Each warning is one line. main() may return an exit status.
    """

    @functools.wraps(main)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        # users do not need the line of code that warns
        warnings.formatwarning = lambda message, *_, **__: f"warning: {clean(message)}\n"
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminated)
        show_messages()
        with _standard_streams():
            line, status, result = "", None, None
            try:
                result = main(*args, **kwargs)
            except SystemExit as end:
                status = end.code or 0
            except (Exception, KeyboardInterrupt, Terminated) as error:
                ending = _ending(error)
                if ending is None:
                    raise  # a bug
                line, status = ending
            try:
                sys.stdout.flush()
            except OSError as error:
                # otherwise Python complains when it exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                if not status:
                    line, status = f"error: standard output cannot be written: {error.strerror}", 1
            if line:
                print(line, file=sys.stderr)
        if status is not None:
            raise SystemExit(status)
        return result  # type: ignore[return-value]

    return guarded


def _ending(error: BaseException) -> tuple[str, int] | None:
    """Return the line and the exit status with which an exception ends a script, None for a bug."""
    if isinstance(error, UserError):
        return f"error: {clean(error)}", 2
    if isinstance(error, KeyboardInterrupt):
        return f"\nstopped; {RESUMABLE}", 130
    if isinstance(error, Terminated):
        return f"\nterminated; {RESUMABLE}", 143
    if isinstance(error, BrokenPipeError):  # the reader, such as `head`, stops reading
        return "", 141
    reason = refused(error)
    return None if reason is None else (f"error: {clean(reason)}; {RESUMABLE}", 1)


def refused(error: BaseException) -> str | None:
    """Return in words what the operating system refuses, or None for any other error."""
    if out_of_memory(error):
        return "out of memory: repeat with a smaller --batch-size or fewer --num-workers"
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory is used up; torch reports it in several ways."""
    words = "allocate memory", "CUDA error: out of memory"
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(text in str(error) for text in words)


def device_stopped(error: BaseException) -> bool:
    """Whether an error ends all work of this process on its device, which nothing can be read from any more."""
    return type(error).__name__ == "AcceleratorError" and not out_of_memory(error)


@contextlib.contextmanager
def _standard_streams() -> Iterator[None]:
    """Keep printing from ending a run: closed streams go to the null device, and writing to stderr never fails.

    Characters that an encoding lacks are shown by number.
    """
    before = sys.stdout, sys.stderr
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed: the next file opened would get its number, and what libraries print
            try:
                os.fstat(number)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = _Forgiving(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Forgiving:
    """A stream whose writing never fails: a message that cannot be printed must not cost a measurement."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed in the meantime
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

"""A user's mistake: one clear line, exit status 2, no traceback; the parser of command lines."""

import argparse
import contextlib
import difflib
import functools
import os
import signal
import sys
import threading
import warnings

from imagenet_biases.base.messages import show_messages


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


def clean(text, most=1200):
    """Return `text` as it may be shown: one line, no control characters, not much longer than `most` characters.

    Of a longer text the middle is left out. Whatever a message quotes (file names, keys of a stranger's file, answers
    of a server) passes here once, where it is printed: escape sequences would act on the terminal, and a name may be a
    megabyte long.
    """
    text = " ".join(_cut(str(text), most).split())
    # what is not printable (also half a character of a file name that is not UTF-8) is shown by its number
    return _cut("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), most)


def _cut(text, most):
    return text if len(text) <= most else f"{text[: most * 2 // 3]} [...] {text[-most // 3 :]}"


class Terminated(BaseException):
    """SIGTERM came."""


def _terminated(*_):
    raise Terminated


def some(names, most=3):
    """Return the first few names, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def nearest(name, known):
    """Return a hint at those of `known` that are spelled like `name`, or ''."""
    close = difflib.get_close_matches(name[:100], dict.fromkeys(known), n=3)
    return f"did you mean {' or '.join(close)}?" if close else ""


@contextlib.contextmanager
def noted():
    """Collect the texts of warnings, for a record."""
    notes = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield notes
    notes += dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line. `description`: a script's docstring, shown as it is."""

    def __init__(self, description):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")

    def print_help(self, file=None):  # argparse's own does not mind a stream that cannot be written
        print(self.format_help(), end="", file=file)


KEPT = "what was measured so far is kept; the same command resumes there"


def exit_on_user_error(main):
    """Decorate a script's main(): what ends it becomes one line on stderr and a status.

    2 for a UserError; 1 where the system refuses something (no space, no permission, no memory); 130 for Ctrl-C and 143
    for SIGTERM (which a cluster sends before it takes a machine away), both of which save what was measured; 141 where
    the reader of a pipe has seen enough. Warnings become one line each. main() may return an exit status.
    """

    @functools.wraps(main)
    def guarded(*args, **kwargs):
        # a user needs no place in our code
        warnings.formatwarning = lambda message, *_, **__: f"warning: {clean(message)}\n"
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminated)
        show_messages()
        with _standard_streams():
            line, status, result = None, None, None
            try:
                result = main(*args, **kwargs)
            except SystemExit as end:
                status = end.code or 0
            except UserError as error:
                line, status = f"error: {clean(error)}", 2
            except KeyboardInterrupt:
                line, status = f"\nstopped; {KEPT}", 130
            except Terminated:
                line, status = f"\nterminated; {KEPT}", 143
            except BrokenPipeError:  # `... | head` has seen enough
                status = 141
            except Exception as error:
                reason = refused(error)
                if reason is None:
                    raise  # a mistake of ours
                line, status = f"error: {clean(reason)}; {KEPT}", 1
            try:
                sys.stdout.flush()
            except OSError as error:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
                if not status:
                    line, status = f"error: standard output cannot be written: {error.strerror}", 1
            if line:
                print(line, file=sys.stderr)
        if status is not None:
            raise SystemExit(status)
        return result

    return guarded


def refused(error):
    """Return what the operating system refuses, in words, or None for any other error."""
    if out_of_memory(error):
        return "out of memory: repeat with a smaller --batch-size or fewer --num-workers"
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
    return None


def out_of_memory(error):
    """Whether an error says that memory is used up; torch says it in several ways."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )


@contextlib.contextmanager
def _standard_streams():
    """Make the standard streams such that no message ends a run: closed ones lead nowhere, stderr never fails.

    Characters that an encoding lacks are shown by their numbers.
    """
    before = sys.stdout, sys.stderr
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed: the next file to be opened would get its number, and with it what libraries print
            try:
                os.fstat(number)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = _Forgiving(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Forgiving:
    """A stream whose writing never fails: what cannot be said is not worth a measurement."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed in the meantime
            return self._stream.write(text)
        return len(text)

    def flush(self):
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name):
        return getattr(self._stream, name)

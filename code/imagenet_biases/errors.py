"""A user's mistake: one clear line, exit status 2, no traceback."""

import contextlib
import difflib
import functools
import os
import signal
import sys
import threading
import warnings


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


def clean(text, most=1200):
    """Return `text` as it may be shown: one line, no control characters, not much longer than `most` characters.

    Of a longer text the middle is left out. Whatever a message quotes (file names, keys of a stranger's file, answers
    of a server) passes here once, where it is printed: escape sequences would act on the terminal, and a name may be a
    megabyte long.
    """
    text = str(text)
    if len(text) > most:
        text = f"{text[: most * 2 // 3]} [...] {text[-most // 3 :]}"
    # what is not printable (also half a character of a file name that is not UTF-8) is shown by its number
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


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


def exit_on_user_error(main):
    """Decorate a script's main(): a UserError becomes one line on stderr and status 2; Ctrl-C and SIGTERM (which a
    cluster sends before it takes a machine away) save what was measured and become status 130 and 143.

    Warnings become one line each. main() may return an exit status.
    """

    @functools.wraps(main)
    def guarded(*args, **kwargs):
        warnings.formatwarning = lambda message, *_, **__: (
            f"warning: {clean(message)}\n"
        )  # a user needs no place in our code
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminated)
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {clean(error)}", file=sys.stderr)
            raise SystemExit(2) from None
        except BrokenPipeError:  # `... | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except KeyboardInterrupt:
            print("\nstopped; what was measured so far is kept, the same command goes on from there", file=sys.stderr)
            raise SystemExit(130) from None
        except Terminated:
            print(
                "\nterminated; what was measured so far is kept, the same command goes on from there", file=sys.stderr
            )
            raise SystemExit(143) from None

    return guarded

"""A user's mistake: one clear line, exit status 2, no traceback."""

import difflib
import functools
import os
import sys
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


def some(names, most=3):
    """Return the first few names, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def nearest(name, known):
    """Return a hint at those of `known` that are spelled like `name`, or ''."""
    close = difflib.get_close_matches(name[:100], dict.fromkeys(known), n=3)
    return f"did you mean {' or '.join(close)}?" if close else ""


def exit_on_user_error(main):
    """Decorate a script's main(): a UserError becomes one line on stderr and status 2, Ctrl-C becomes status 130.

    Warnings become one line each.
    """

    @functools.wraps(main)
    def guarded(*args, **kwargs):
        warnings.formatwarning = lambda message, *_: f"warning: {clean(message)}\n"  # a user needs no place in our code
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

    return guarded

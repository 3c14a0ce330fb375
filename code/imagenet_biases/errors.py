"""A user's mistake: one clear line, exit status 2, no traceback."""

import functools
import os
import sys
import warnings


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


def some(names, most=3):
    """Return the first few names, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def exit_on_user_error(main):
    """Decorate a script's main(): a UserError becomes one line on stderr and status 2, Ctrl-C becomes status 130.

    Warnings become one line each.
    """

    @functools.wraps(main)
    def guarded(*args, **kwargs):
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # a user needs no place in our code
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except BrokenPipeError:  # `... | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except KeyboardInterrupt:
            print("\nstopped; what was measured so far is kept, the same command goes on from there", file=sys.stderr)
            raise SystemExit(130) from None

    return guarded

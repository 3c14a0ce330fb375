"""What a file of ours holds, said once: its writer is held to it, and what is read passes it before anything uses it.

A shape is one of
  str, bool, int, float    a value of that type; a bool is no number, a float may be whole but must be finite
  dict, list               any such container
  None, 2, 'drawn'         that very value
  (shape, shape)           one of these
  [shape]                  a list of any length
  Row(shape, shape)        a list of just these
  {str: shape}             a dict with any texts as keys
  Fields({key: shape}, {key: shape})    a dict that has the first keys and may have the second; others are let be
  a function               what it returns True for; its name says what that is
"""

import json
from dataclasses import dataclass, field

from imagenet_biases.base.files import read_bytes

DEEPEST = 60  # levels of containers in a file of ours
LARGEST = 1e300  # numbers beyond it overflow in the arithmetic that follows


class Malformed(ValueError):
    """What does not fit its shape: where, and what it should be."""


class Row(tuple):
    """A list of just these shapes."""

    def __new__(cls, *shapes):
        return super().__new__(cls, shapes)


@dataclass(frozen=True)
class Fields:
    """A dict with these keys; the `optional` ones may be missing."""

    required: dict
    optional: dict = field(default_factory=dict)


def check(value, shape, where="it"):
    """Return `value` if it is of `shape`; raise Malformed, which names the first place that is not, if not."""
    if isinstance(shape, Row):
        if not isinstance(value, list) or len(value) != len(shape):
            raise _malformed(value, where, f"a list of {len(shape)}")
        for number, (item, inner) in enumerate(zip(value, shape, strict=True)):
            check(item, inner, f"{where}[{number}]")
    elif isinstance(shape, tuple):
        if not any(_fits(value, one) for one in shape):
            # the alternative that is of the right kind of container says best what is wrong within
            for one in shape:
                if _kind(one) in (dict, list) and isinstance(value, _kind(one)):
                    check(value, one, where)
            raise _malformed(value, where, " or ".join(map(_words, shape)))
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _malformed(value, where, "a list")
        for number, item in enumerate(value):
            check(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, dict | Fields):
        if not isinstance(value, dict):
            raise _malformed(value, where, "an object")
        _check_items(value, shape, "" if where == "it" else f"{where}/")
    elif not _plain(value, shape):
        raise _malformed(value, where, _words(shape))
    return value


def _check_items(value, shape, prefix):
    if isinstance(shape, dict):
        for key, item in value.items():
            check(item, shape[str], f"{prefix}{key}")
        return
    for key in shape.required:
        if key not in value:
            raise Malformed(f"{prefix}{key} is missing")
    for key, inner in (shape.required | shape.optional).items():
        if key in value:
            check(value[key], inner, f"{prefix}{key}")


def _fits(value, shape):
    try:
        check(value, shape)
        return True
    except Malformed:
        return False


def _plain(value, shape):
    """Whether a value is of a shape that is no container of shapes."""
    if shape is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
    if isinstance(shape, type):
        return isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
    if callable(shape):
        return bool(shape(value))
    return type(value) is type(shape) and value == shape


def _kind(shape):
    if isinstance(shape, dict | Fields) or shape is dict:
        return dict
    return list if isinstance(shape, list | Row) or shape is list else None


def _words(shape):
    if _kind(shape) is not None:
        return "an object" if _kind(shape) is dict else "a list"
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", None: "null"}
    if isinstance(shape, type) or shape is None:
        return names[shape]
    return f"a {shape.__name__.replace('_', ' ')}" if callable(shape) else repr(shape)


def _malformed(value, where, wanted):
    return Malformed(f"{where} is {_short(value)}, not {wanted}")


def _short(value):
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | None) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def count(value):
    """A shape: a whole number from 0 to 2^53."""
    return type(value) is int and 0 <= value <= 2**53


def parsed(data, shape):
    """Return what JSON in bytes (UTF-8) says. Raises Malformed for what is no JSON, too deep or not of `shape`."""
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse)
    except RecursionError:
        raise Malformed("it is nested without end") from None
    except ValueError as error:
        raise Malformed(f"it is not JSON, {str(error)[:200]}") from None
    if _deeper(value, DEEPEST):
        raise Malformed("it is nested without end")
    return check(value, shape)


def read_json(path, shape, most=1 << 28):
    """Return what a JSON file of ours holds. Raises OSError for no file, Malformed for one that is not of `shape`."""
    return parsed(read_bytes(path, most), shape)


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def _deeper(value, levels):
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_deeper(item, levels - 1) for item in items if isinstance(item, dict | list))

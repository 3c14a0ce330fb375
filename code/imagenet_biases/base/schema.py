"""Shapes of the project's JSON files: what is written must have them, and what is read, before it is used.

A shape is one of
  str, bool, int, float    a value of that type; a bool is not a number, a float may be whole but must be finite
  dict, list               any such container
  None, 2, 'drawn'         exactly that value
  (shape, shape)           one of these
  [shape]                  a list of any length
  Row(shape, shape)        a list of exactly these items
  {str: shape}             a dict with arbitrary keys
  Fields({key: shape}, {key: shape})    a dict with the first keys and optionally the second; other keys are ignored
  a function               a value for which it returns True; its name describes the value
"""

import json
import os
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias, TypeGuard

from imagenet_biases.base.files import read_bytes

Shape: TypeAlias = Any
DEPTH_LIMIT = 60  # levels of nested containers
LARGEST_NUMBER = 1e300  # larger numbers overflow in later arithmetic


class Malformed(ValueError):
    """A value does not have its shape; the message says where, and what it should be."""


class Row(tuple):
    """The shape of a list with exactly these items."""

    def __new__(cls, *shapes: Shape) -> "Row":
        return super().__new__(cls, shapes)


@dataclass(frozen=True)
class Fields:
    """The shape of a dict with these keys; the `optional` ones may be missing."""

    required: dict[str, Shape]
    optional: dict[str, Shape] = field(default_factory=dict)


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value from JSON is an object."""
    return isinstance(value, dict)


def check(value: Any, shape: Shape, place: str = "it") -> Any:
    """Return `value` if it has this shape.

    Raises:
        Malformed: it has not; the message names the first place that does not fit, in a value called `place`.
    """
    if isinstance(shape, Row):
        if not isinstance(value, list) or len(value) != len(shape):
            raise _malformed(value, place, f"a list of {len(shape)}")
        for number, (item, inner) in enumerate(zip(value, shape, strict=True)):
            check(item, inner, f"{place}[{number}]")
    elif isinstance(shape, tuple):
        _check_alternatives(value, shape, place)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _malformed(value, place, "a list")
        for number, item in enumerate(value):
            check(item, shape[0], f"{place}[{number}]")
    elif isinstance(shape, dict | Fields):
        _check_items(value, shape, place)
    elif not _plain(value, shape):
        raise _malformed(value, place, _words(shape))
    return value


def _check_alternatives(value: Any, shapes: tuple[Shape, ...], place: str) -> None:
    if any(_fits(value, shape) for shape in shapes):
        return
    # the alternative with the right kind of container names best what is wrong inside
    for shape in shapes:
        kind = _kind(shape)
        if kind is not None and isinstance(value, kind):
            check(value, shape, place)
    raise _malformed(value, place, " or ".join(map(_words, shapes)))


def _check_items(value: Any, shape: dict | Fields, place: str) -> None:
    if not isinstance(value, dict):
        raise _malformed(value, place, "an object")
    prefix = "" if place == "it" else f"{place}/"
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


def _fits(value: Any, shape: Shape) -> bool:
    try:
        check(value, shape)
        return True
    except Malformed:
        return False


def _plain(value: Any, shape: Shape) -> bool:
    """Whether a value has a shape that contains no other shapes."""
    if shape is float:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and -LARGEST_NUMBER <= value <= LARGEST_NUMBER
        )
    if isinstance(shape, type):
        return isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
    if callable(shape):
        return bool(shape(value))
    return type(value) is type(shape) and value == shape


def _kind(shape: Shape) -> type[dict] | type[list] | None:
    if isinstance(shape, dict | Fields) or shape is dict:
        return dict
    return list if isinstance(shape, list | Row) or shape is list else None


def _words(shape: Shape) -> str:
    if _kind(shape) is not None:
        return "an object" if _kind(shape) is dict else "a list"
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", None: "null"}
    if isinstance(shape, type) or shape is None:
        return names[shape]
    return f"a {shape.__name__.replace('_', ' ')}" if callable(shape) else repr(shape)


def _malformed(value: Any, place: str, wanted: str) -> Malformed:
    return Malformed(f"{place} is {_short(value)}, not {wanted}")


def _short(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | None) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def count(value: Any) -> bool:
    """Whether a value is a whole number from 0 to 2^53 (a shape)."""
    return type(value) is int and 0 <= value <= 2**53


def parsed(data: bytes, shape: Shape) -> Any:
    """Return the value of JSON in bytes (UTF-8). Raises Malformed if it is not JSON, too deep, or not of `shape`."""
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse)
    except RecursionError:
        raise Malformed("it is nested too deeply") from None
    except ValueError as error:
        raise Malformed(f"it is not JSON, {str(error)[:200]}") from None
    if _deeper(value, DEPTH_LIMIT):
        raise Malformed("it is nested too deeply")
    return check(value, shape)


def read_json(path: str | os.PathLike[str], shape: Shape, limit: int = 1 << 28) -> Any:
    """Return the value in a JSON file. Raises OSError where it cannot be read, Malformed if it is not of `shape`."""
    return parsed(read_bytes(path, limit), shape)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _deeper(value: Any, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_deeper(item, levels - 1) for item in items if isinstance(item, dict | list))

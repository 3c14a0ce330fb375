"""Shapes of the project's JSON files: what is written must have them, and what is read, before it is used.

A shape is a type that pydantic knows: dict[Text, Count], a TypedDict (whose further keys are ignored), a union. Nothing
is converted: true is not a number, and '1' neither.
"""

import json
import os
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, NoReturn, TypeAlias, TypeGuard

from pydantic import ConfigDict, Field, InstanceOf, Strict, TypeAdapter, ValidationError

from imagenet_biases.base.files import read_bytes

Shape: TypeAlias = Any
DEPTH_LIMIT = 60  # levels of nested containers
LARGEST_NUMBER = 1e300  # larger numbers overflow in later arithmetic

Text = InstanceOf[str]  # pydantic's own str refuses half of a character, which a file name may hold
Object = InstanceOf[dict[str, Any]]
Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Row = Strict(False)  # of a tuple, in whose place JSON has a list
WORDS = {  # pydantic's, and JSON's or plain ones in their place
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid ": "a ",
    "a dictionary": "an object",
    "a tuple": "a list",
    "a string": "a text",
    "None": "null",
    "an instance of str": "a text",
    "an instance of dict": "an object",
    "String should match pattern": "a text that matches",
}


class Malformed(ValueError):
    """A value does not have its shape; the message says where, and what it should be."""


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value from JSON is an object."""
    return isinstance(value, dict)


@cache
def _validator(shape: Shape) -> TypeAdapter[Any]:
    # within a list: a TypedDict takes its configuration from what it is in
    return TypeAdapter(list[shape], config=ConfigDict(strict=True))


def check(value: Any, shape: Shape, place: str = "it") -> Any:
    """Return `value` if it has this shape.

    Raises:
        Malformed: it has not; the message names a place that does not fit, in a value called `place`.
    """
    try:
        _validator(shape).validate_python([value])
        return value
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # of the alternatives of a union, the one that fits the deepest says best what is wrong within
    raise Malformed(max((_explained(value, problem, place) for problem in problems), key=lambda pair: pair[0])[1])


def _explained(value: Any, problem: Any, name: str) -> tuple[int, str]:
    """Return how deep one of pydantic's problems lies, and one line: where, what is there, and what should be."""
    place: list[str] = [] if name == "it" else [name]
    for part in problem["loc"][1:]:
        with suppress(LookupError, TypeError):  # it also names the alternatives of unions
            value = value[part]
            place.append(str(part))
    if problem["type"] == "missing":
        return len(place) + 1, f"{'/'.join([*place, str(problem['loc'][-1])])} is missing"
    wanted = problem["msg"].removeprefix("Input should be ")
    if "than" in problem["type"]:  # pydantic would write out 1e300
        wanted = "a number in the allowed range"
    elif problem["type"] in ("too_long", "too_short"):
        wanted = f"a list of {problem['ctx'].get('max_length', problem['ctx'].get('min_length'))}"
    for pydantic_word, word in WORDS.items():
        wanted = wanted.replace(pydantic_word, word)
    return len(place), f"{'/'.join(place) or 'it'} is {_short(value)}, not {wanted}"


def _short(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | None) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


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

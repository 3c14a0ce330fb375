"""What a record (results/LABEL/BENCHMARK.json) holds: for the code that writes, merges and shows records.

Records of the first edition lack some of it and call every subset True or False. Further keys are allowed everywhere.
"""

from contextlib import suppress
from functools import cache
from typing import Annotated, Any, NotRequired

from annotated_types import Len
from pydantic import ConfigDict, Field, InstanceOf, Strict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from imagenet_biases.base.schema import LARGEST_NUMBER, Malformed

FORMAT = 2

Text = InstanceOf[str]  # pydantic's own str refuses half of a character, which a file name may hold
Object = InstanceOf[dict[str, Any]]
Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Size = Annotated[int, Field(ge=1, le=2**53)]
Bounds = Annotated[list[Number], Len(2, 2)] | Annotated[list[None], Len(2, 2)]
Row = Strict(False)  # JSON has lists where Python has tuples
Layer = (
    Annotated[tuple[Number | None, Number, Number], Row] | Annotated[tuple[Number | None, None, None], Row]
)  # value, low, high
WORDS = {
    "a valid ": "a ",
    "a integer": "an integer",
    "a dictionary": "an object",
    "a tuple": "a list",
    "an instance of str": "a text",
    "an instance of dict": "an object",
}


class Part(TypedDict):
    """How many images of whole sets were measured; `without`: the sets that are lacking."""

    images: NotRequired[Count]
    of: NotRequired[Count]
    without: NotRequired[list[Text]]


class Share(TypedDict):
    """The first images of a set, in the fixed order of its images."""

    images: Size
    of: Size
    order: int
    asked: NotRequired[Size | None]


class Sample(TypedDict):
    """How many images a metric rests on, and the 95 % interval of what all of them would give."""

    images: Size
    of: Size
    low: Number | None
    high: Number | None


class Images(TypedDict):
    """An image set as it was shown."""

    fingerprint: Text
    images: Count
    subset: NotRequired[Object | None]
    share: NotRequired[Share | None]
    sample: NotRequired[Object | None]


class Moment(TypedDict):
    """When, where and by what (provenance.circumstances)."""

    time: Text


class Rescoring(Moment):
    """When the same responses were scored again, and what changed."""

    changed: list[Text]


class Provenance(TypedDict):
    """What was measured and how; `view` is what Python calls preprocessing, `native` what it is where it is native."""

    view: Text
    precision: Text
    seed: int
    collection: Text
    time: Text
    network: NotRequired[Text | None]
    source: NotRequired[Text | None]
    category: NotRequired[Text]
    frontend: NotRequired[Text]
    native: NotRequired[Text]
    image_sets: NotRequired[dict[Text, Images]]
    measured: NotRequired[list[Moment]]
    scored_from: NotRequired[Text | None]


class RecordContent(TypedDict):
    """What one benchmark measured of one network."""

    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")  # type: ignore[misc]

    model: Text
    benchmark: Text
    metrics: dict[Text, Number | None]
    intervals: dict[Text, Bounds]
    subset: bool | Part
    provenance: Provenance
    partial: NotRequired[dict[Text, Part]]
    share: NotRequired[Share | None]
    sampled: NotRequired[dict[Text, Sample]]
    layers: NotRequired[dict[Text, dict[Text, Layer]]]
    halves: NotRequired[dict[Text, Text]]
    images: NotRequired[Count | None]
    warnings: NotRequired[list[Text]]
    left_out: NotRequired[list[Text]]
    details: NotRequired[Object]
    options: NotRequired[Object]
    metric_options: NotRequired[dict[Text, Object]]
    scored: NotRequired[list[Rescoring]]


@cache
def _validator() -> TypeAdapter[RecordContent]:
    return TypeAdapter(RecordContent)


def check_record(record: Any) -> None:
    """Raise Malformed, which names a place that is wrong, for what is not the content of a record."""
    try:
        _validator().validate_python(record)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    else:
        return
    # of the alternatives of a union, the one that fits the deepest says best what is wrong within
    raise Malformed(max((_explained(record, problem) for problem in problems), key=lambda pair: pair[0])[1])


def _explained(record: Any, problem: Any) -> tuple[int, str]:
    """Return how deep one of pydantic's problems lies, and one line: where, what is there, and what should be."""
    place: list[str] = []
    value: Any = record
    for part in problem["loc"]:
        with suppress(LookupError, TypeError):  # it also names the alternatives of unions
            value = value[part]
            place.append(str(part))
    if problem["type"] == "missing":
        return len(place) + 1, f"{'/'.join([*place, str(problem['loc'][-1])])} is missing"
    content = {"dict": "an object", "list": "a list"}.get(type(value).__name__) or f"{value!r:.60}"
    wanted = problem["msg"].removeprefix("Input should be ")
    if problem["type"].endswith("than_equal"):  # pydantic would write out 1e300
        wanted = "a number in the allowed range"
    for pydantic_word, word in WORDS.items():
        wanted = wanted.replace(pydantic_word, word)
    return len(place), f"{'/'.join(place) or 'it'} is {content}, not {wanted}"

"""What a record (results/LABEL/BENCHMARK.json) holds: for the code that writes, merges and shows records.

Records of the first edition lack some of it and call every subset True or False. Further keys are allowed everywhere.
"""

from typing import Annotated, Any, NotRequired

from annotated_types import Len
from pydantic import Field
from typing_extensions import TypedDict

from imagenet_biases.base.schema import Count, Number, Object, Row, Text, check

FORMAT = 2

Size = Annotated[int, Field(ge=1, le=2**53)]
Bounds = Annotated[list[Number], Len(2, 2)] | Annotated[list[None], Len(2, 2)]
Layer = (
    Annotated[tuple[Number | None, Number, Number], Row] | Annotated[tuple[Number | None, None, None], Row]
)  # value, low, high


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


def check_record(record: Any) -> None:
    """Raise Malformed, which names a place that is wrong, for what is not the content of a record."""
    check(record, RecordContent)

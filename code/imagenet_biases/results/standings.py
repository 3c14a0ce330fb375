"""Where a run's networks stand among the published ones, as text, straight from its records."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imagenet_biases.results.measurements import Measurement, measurements
from imagenet_biases.results.places import missing, standings
from imagenet_biases.results.text_tables import aligned, interval, number
from imagenet_biases.study import BIASES, SCORES, about

COLUMNS = 4  # networks side by side; more are for compare.py


def of_photographs(records: Iterable[Mapping[str, Any]]) -> dict[str, Measurement]:
    """Return {network: its measurement} of records on photographs, measured as the study does."""
    by_network: dict[str, Measurement] = {}
    for key, measurement in measurements(records).items():
        if key.as_in_study and key.collection == "imagenet":
            by_network[key.model] = measurement
    return by_network


def in_a_line(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one line per network with its places: 'net: ID 7 (5 to 9), shape-bias 1 to 48, ...'."""
    lines: list[str] = []
    for model, measurement in of_photographs(records).items():
        places = standings(model, measurement.projections)
        listed = (f"{name} {place.text.replace(f'/{place.of}', '')}" for name, place in places.items())
        if places:
            lines.append(f"{model}: {', '.join(listed)}")
    return lines


def as_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table: value, interval and place of every score and bias; then what is lacking."""
    by_network = of_photographs(records)
    if not by_network or len(by_network) > COLUMNS:
        return []
    rows: list[list[str]] = [["", *by_network]]
    lacking: dict[str, dict[str, None]] = {}
    places = {model: standings(model, measurement.projections) for model, measurement in by_network.items()}
    for name in (*SCORES, *BIASES):
        cells: list[str] = []
        for model, measurement in by_network.items():
            cells.append(_cell(name, measurement, places[model].get(name)))
            for benchmark, folder in missing(name, measurement.values):
                lacking.setdefault(name, {})[f"--{folder} DIR (eval_{benchmark}.py)"] = None
        if any(cells):
            rows.append([name, *cells])
    if len(rows) == 1:
        return []
    title = "Where the networks stand among the study's 48: value [95 % interval] place (range), best or largest first"
    lines = [title, *aligned(rows)]
    lines += [f"not known: {name}, for which {', '.join(flags)} is missing" for name, flags in lacking.items()]
    return lines


def _cell(name: str, measurement: Measurement, place: Any) -> str:
    projection = measurement.projections.get(name)
    if projection is None or projection.value is None or place is None:
        return ""
    digits = about(name).digits
    bounds = "" if projection.share == 1 else interval(projection.low, projection.high, digits)
    return f"{number(projection.value, digits)} {bounds} {place.text}".replace("  ", " ")

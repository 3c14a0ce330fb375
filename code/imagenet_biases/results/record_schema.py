"""What a record (results/LABEL/BENCHMARK.json) holds: for those who write it, merge it and show it."""

from imagenet_biases.base.schema import Fields, Row, count

FORMAT = 2


NUMBER = (float, None)
BOUNDS = (Row(float, float), Row(None, None))  # both or none
LAYER = (Row(NUMBER, float, float), Row(NUMBER, None, None))
PART = Fields({}, {"images": count, "of": count, "without": [str]})
IMAGES = Fields({"fingerprint": str, "images": count}, {"subset": (dict, None), "sample": (dict, None)})
PROVENANCE = Fields(
    {"view": str, "precision": str, "seed": int, "collection": str, "time": str},
    {"network": (str, None), "source": (str, None), "category": str, "frontend": str, "image_sets": {str: IMAGES},
     "measured": [Fields({"time": str})], "scored_from": (str, None)},
)  # fmt: skip
RECORD = Fields(
    {"model": str, "benchmark": str, "metrics": {str: NUMBER}, "intervals": {str: BOUNDS},
     "subset": (False, True, PART), "provenance": PROVENANCE},
    {"partial": {str: PART}, "layers": {str: {str: LAYER}}, "halves": {str: str}, "images": (count, None),
     "warnings": [str], "left_out": [str], "details": dict, "options": dict, "metric_options": {str: dict},
     "scored": [Fields({"time": str, "changed": [str]})]},
)  # fmt: skip
"""What a record holds. Its first edition lacks some of it and calls every subset True or False."""

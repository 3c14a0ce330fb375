"""Records on samples of their image sets, as a run writes them after a round."""

from imagenet_biases.measures.split_half import as_text


def on_sample(record, images, of, bounds=None, halves=None):
    """Return a record as if it rested on the first `images` of `of`.

    Args:
        bounds: {metric: (low, high)} of the whole sets; metrics without are given no interval.
        halves: half-samples by metric.
    """
    sampled = {}
    for name in record["metrics"]:
        low, high = (bounds or {}).get(name, (None, None))
        sampled[name] = {"images": images, "of": of, "low": low, "high": high}
    share = {"images": images, "of": of, "order": 1}
    texts = {name: as_text(values) for name, values in (halves or {}).items()}
    sets = record["provenance"].get("image_sets", {})
    provenance = record["provenance"] | {"image_sets": {name: shown | {"share": share} for name, shown in sets.items()}}
    return record | {"share": share, "sampled": sampled, "provenance": provenance, "halves": texts}

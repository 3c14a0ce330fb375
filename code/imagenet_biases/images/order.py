"""The order of an image set: one fixed pseudo-random order, stratified by class, whose prefixes are samples."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

VERSION = 1  # of the order; records state it


def stratified_order(
    keys: Int64[np.ndarray, " N"],
    classes: Int64[np.ndarray, " N"],
    files: Sequence[str] = (),
    variant: str = "",
    seed: int = 0,
) -> Int64[np.ndarray, " N"]:
    """Return the images' positions in their order; a prefix of n holds n m / N images of a class of m, to about one.

    Within a class the images are sorted by random streams of their keys; the j-th (j = 0, 1, ...) of m lies at
    (j + u) / m, with u in [0, 1) from the class's own stream. All are then sorted by where they lie, ties by stream.

    Args:
        keys: a stable number per image (ImageSet.keys).
        classes: any numbers that tell the classes apart.
        files: paths, which decide between equal keys.
        variant: of a set of variants: each shows the same images in another order.
        seed: 0 for every set; others are for simulations.
    """
    import torch  # here: tables and figures import image sets, and need no torch

    from imagenet_biases.stimuli.seeded import streams, uniform
    from imagenet_biases.vocabulary import Batch

    name = f"order {variant}".rstrip()
    image_streams = streams(Batch(torch.from_numpy(np.ascontiguousarray(keys)), seed), name).numpy()
    ties = np.argsort(np.array(files, object), kind="stable").argsort() if len(files) else np.arange(len(keys))
    by_class = np.lexsort((ties, keys, image_streams, classes))
    _, starts, counts = np.unique(classes[by_class], return_index=True, return_counts=True)
    numbers = torch.from_numpy(np.ascontiguousarray(classes[by_class][starts]))
    offsets = uniform(streams(Batch(numbers, seed), f"class {name}"), (1,)).double().flatten().numpy()
    turns = np.arange(len(keys)) - np.repeat(starts, counts)
    places = np.empty(len(keys))
    places[by_class] = (turns + np.repeat(offsets, counts)) / np.repeat(counts, counts)
    return np.lexsort((ties, keys, image_streams, places)).astype(np.int64)

"""The data path alone: images a second from one decoding process to the main process, and what they cost the latter.

    python benchmarks/feed.py [--images 512] [--rounds 7] [--workers 1]

Photographs of real size: decoded from files, from a tar file, from a parquet file, and read from the cache; ready-made
224 x 224 JPEGs with and without simplejpeg. For the cache also the way it was before: a new shared tensor a batch
instead of slots that are used again. The ways take turns; medians of the rounds, in benchmarks/feed.json.
"""

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common import described, on, photographs
from imagenet_biases.images import preprocessing as decoding
from imagenet_biases.images.loader import batches
from imagenet_biases.images.preprocessing import STUDY, Reader
from imagenet_biases.images.sets import image_set
from imagenet_biases.study import wordnet_ids
from imagenet_biases.vocabulary import Data


class SharedTensors(torch.utils.data.Dataset):
    """Each batch in a shared tensor of its own."""

    def __init__(self, images, cache):
        self.images, self.cache, self.reader = images, cache, None

    def __getitem__(self, positions):
        self.reader = self.reader or Reader(self.images, STUDY, self.cache)
        found = np.zeros((len(positions), 224, 224, 3), np.uint8)
        for row, position in enumerate(positions):
            found[row] = self.reader.read(int(position))
        return torch.from_numpy(found).share_memory_()


def by_tensors(images, tasks, here):
    loader = torch.utils.data.DataLoader(
        SharedTensors(images, here.cache), sampler=tasks, batch_size=None, num_workers=here.workers
    )
    return iter(loader)


def by_slots(images, tasks, here):
    return (pixels for pixels, _ in batches([(images, STUDY)], [(0, task) for task in tasks], here))


def timed(feed):
    """Return (images a second once batches flow, main process's seconds an image, sum of pixels)."""
    next(feed)  # processes start
    started, busy, seen, total = time.perf_counter(), time.process_time(), 0, 0
    for pixels in feed:
        # what the loop does first: one pass over the bytes
        total += int(pixels.view(-1)[::4096].sum())
        seen += len(pixels)
    return seen / (time.perf_counter() - started), (time.process_time() - busy) / seen, total


def as_tar(folder, path):
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*.JPEG")):
            entry = tarfile.TarInfo(str(file.relative_to(folder)))  # by itself, also of a file with several names
            entry.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(entry, content)


def as_parquet(folder, path):
    """As Hugging Face writes it: groups of 100 rows, in no order."""
    import pyarrow
    import pyarrow.parquet

    files = sorted(folder.rglob("*.JPEG"))
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [wordnet_ids().index(file.parent.name) for file in files],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), path, row_group_size=100)


def ready_made(folder, target):
    """Write the photographs as 224 x 224 JPEGs, in the layout of ImageNet-C."""
    for file in folder.rglob("*.JPEG"):
        with Image.open(file) as image:
            data = io.BytesIO()
            image.resize((224, 224)).save(data, "JPEG", quality=85)
        path = target / "fog" / "1" / file.parent.name / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.getvalue())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, repeat = Path(temporary, "files"), 8  # the cache is fast: it is read several times over
        photographs(folder, args.images)
        as_tar(folder, Path(temporary, "images.tar"))
        as_parquet(folder, Path(temporary, "images.parquet"))
        ready_made(folder, Path(temporary, "c"))

        def given(path, name="imagenet"):
            return image_set(name, Data(folders={name.partition("/")[0]: path}, allow_partial=True))

        files, tar, parquet = (given(Path(temporary, name)) for name in ("files", "images.tar", "images.parquet"))
        corrupted = given(Path(temporary, "c"), "imagenet-c/fog/1")
        plain = on("cpu", workers=args.workers, batch_size=args.batch_size)
        cached = on("cpu", workers=args.workers, batch_size=args.batch_size, cache=f"{temporary}/cache")
        once = [range(i, min(i + args.batch_size, args.images)) for i in range(0, args.images, args.batch_size)]
        once = [np.array(task) for task in once]

        def in_order(images):
            """Return the tasks of a round that shows all images, as the loop shows them."""
            shown = images.as_stored(images.order)
            return [shown[i : i + args.batch_size] for i in range(0, args.images, args.batch_size)]

        simplejpeg = decoding._simplejpeg
        ways = {
            "files": lambda: by_slots(files, once, plain),
            "tar": lambda: by_slots(tar, once, plain),
            "parquet": lambda: by_slots(parquet, once, plain),
            "files, in the set's order": lambda: by_slots(files, in_order(files), plain),
            "tar, in the set's order": lambda: by_slots(tar, in_order(tar), plain),
            "parquet, in the set's order": lambda: by_slots(parquet, in_order(parquet), plain),
            "cache, in the set's order": lambda: by_slots(files, in_order(files) * repeat, cached),
            "cache, a new shared tensor a batch": lambda: by_tensors(files, once * repeat, cached),
            "cache": lambda: by_slots(files, once * repeat, cached),
            "ready-made, Pillow": lambda: by_slots(corrupted, once, plain),
            "ready-made": lambda: by_slots(corrupted, once, plain),
        }
        rates, costs, sums = ({name: [] for name in ways} for _ in range(3))
        for _ in range(args.rounds + 1):
            for name, way in ways.items():
                decoding._simplejpeg = (lambda: None) if name.endswith("Pillow") else simplejpeg
                rate, cost, total = timed(way())
                rates[name].append(rate)
                costs[name].append(cost)
                sums[name].append(total)
    for one, two in (("files", "tar"), ("files", "parquet"), ("ready-made", "ready-made, Pillow")):
        if sums[one] != sums[two]:
            raise AssertionError(f"{one} and {two} differ in their pixels")
    figures = {
        name: {
            "images_per_second": round(statistics.median(rates[name][1:])),  # the first round fills the cache
            "main_process_us_per_image": round(1e6 * statistics.median(costs[name][1:]), 1),
        }
        for name in ways
    }
    for name, found in figures.items():
        print(
            f"{name:36} {found['images_per_second']:>7,} images/s, {found['main_process_us_per_image']:>6} us an image"
        )
    content = {"machine": described(plain.device), "workers": args.workers, "figures": figures}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How far a run is: a bar on a terminal, a line now and then in a log file."""

import itertools
import sys
import time

from tqdm import tqdm

PAUSE = 30  # seconds between lines in a log file


class Progress:
    """Counts forward passes (of `total`) and the images of the group at hand. Silent unless `shown`."""

    def __init__(self, total, shown):
        self.total, self.shown = total, shown and total > 0
        self.done, self.name, self.seen, self.of = 0, "", 0, 0
        self.bar, self.turn = None, itertools.count()
        self.started = self.spoken = time.monotonic()

    def __enter__(self):
        if self.shown and sys.stderr.isatty():
            self.bar = tqdm(total=self.total, unit=" passes", unit_scale=True, mininterval=0.2, dynamic_ncols=True)
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def group(self, name, images):
        """Begin a group: an image set of so many images."""
        self.name, self.seen, self.of = name, 0, images

    def images(self, count):
        """Count images that are done with."""
        self.seen += count
        if self.bar is not None:
            self.bar.set_description(f"{self.name}, {self.seen:,} of {self.of:,} images", refresh=False)

    def passes(self, count):
        """Count forward passes."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)

    def tell(self, accuracies):
        """Show one of {(network, condition): per cent on the images so far}, a different one each time."""
        now = time.monotonic()
        if not self.shown or (self.bar is None and now - self.spoken < PAUSE):
            return
        said = ""
        if accuracies:
            (network, condition), value = list(accuracies.items())[next(self.turn) % len(accuracies)]
            said = f"{network} {condition} {value:.1f} % so far"
        if self.bar is not None:
            self.bar.set_postfix_str(said, refresh=False)
            return
        self.spoken = now
        pace = self.done / max(now - self.started, 1e-9)
        left = duration((self.total - self.done) / pace) if pace else "unknown"
        counts = f"{self.seen:,} of {self.of:,} images, {self.done:,} of {self.total:,} forward passes"
        print(
            f"{self.name}: {counts}, {pace:.0f} a second, {left} left; {said}".rstrip("; "), file=sys.stderr, flush=True
        )


def duration(seconds):
    """Return a time in words."""
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"

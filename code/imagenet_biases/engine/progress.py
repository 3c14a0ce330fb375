"""How far a run is: a bar on a terminal, a line now and then in a log file."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tqdm import tqdm

PAUSE = 30  # seconds between lines in a log file


@dataclass
class GroupProgress:
    """How many images of a group have been shown."""

    name: str
    images: int
    shown: int = 0


class Progress:
    """Counts forward passes (of `total`, and to the end of a round) and the current group's images.

    Silent unless `shown`. `deadline`, on the clock of time.monotonic, is when the run's time is over.
    """

    def __init__(self, shown: bool) -> None:
        self.shown, self.total, self.round_end, self.done = shown, 0, 0, 0
        self.group = GroupProgress("", 0)
        self.bar: tqdm | None = None
        self.deadline, self.turn = math.inf, 0
        self.started = self.reported = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def begin_round(self, passes: int) -> None:
        """Begin a round of so many forward passes."""
        self.round_end = self.done + passes
        if self.bar is None and self.shown and passes and sys.stderr.isatty():
            self.bar = tqdm(total=self.total, unit=" passes", unit_scale=True, mininterval=0.2, dynamic_ncols=True)

    def begin_group(self, name: str, images: int) -> None:
        """Begin a group: an image set of so many images."""
        self.group = GroupProgress(name, images)

    def count_images(self, count: int) -> None:
        """Count finished images."""
        self.group.shown += count
        if self.bar is not None:
            text = f"{self.group.name}, {self.group.shown:,} of {self.group.images:,} images"
            self.bar.set_description(text, refresh=False)

    def count_passes(self, count: int) -> None:
        """Count forward passes."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)

    def report(self, accuracies: Mapping[tuple[str, str], float]) -> None:
        """Show progress with one of {(network, condition): per cent on the images so far}, another each time."""
        now = time.monotonic()
        if not self.shown or (self.bar is None and now - self.reported < PAUSE):
            return
        accuracy = ""
        if accuracies:
            (network, condition), value = list(accuracies.items())[self.turn % len(accuracies)]
            self.turn += 1
            accuracy = f"{network} {condition} {value:.1f} % so far"
        pace = self.done / max(now - self.started, 1e-9)
        left = f"{duration((self.total - self.done) / pace)} left" if pace else "unknown time left"
        if pace and self.round_end < self.total:
            left = f"{duration((self.round_end - self.done) / pace)} to the next round, {left}"
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(filter(None, (left, accuracy))), refresh=False)
            return
        self.reported = now
        images = f"{self.group.shown:,} of {self.group.images:,} images"
        passes = f"{self.done:,} of {self.total:,} forward passes, {pace:.0f} per second, {left}"
        print(f"{self.group.name}: {images}, {passes}; {accuracy}".rstrip("; "), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a time in words."""
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"

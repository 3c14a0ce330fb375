"""What scripts show of the package's log: bare messages on standard error, above a progress bar if there is one."""

import logging
import sys

from tqdm import tqdm


class _Handler(logging.Handler):
    """Writes messages without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
        sys.stderr.flush()


def show_messages() -> None:
    """Show what the package logs, from INFO on; once, however often it is called."""
    logger = logging.getLogger("imagenet_biases")
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler())
        logger.setLevel(logging.INFO)

"""Send the logs of cluster libraries to a file of the run, and not between the lines of its progress."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def logged_to(file: Path, library: str) -> Iterator[None]:
    """Send what a library logs, and Python's warnings, to a file while inside.

    Args:
        file: where it is appended.
        library: the name of the library's logger.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(library), logging.getLogger("py.warnings")]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:], logger.propagate = [handler], False
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        for logger, handlers, propagates in before:
            logger.handlers[:], logger.propagate = handlers, propagates
        handler.close()

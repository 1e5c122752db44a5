"""What commands say while a model is loaded."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

NOTICE_AFTER = 3.0  # seconds


@contextmanager
def quietly() -> Iterator[None]:
    """Around the loading of a model: says nothing but warnings from here on, for the answers are what is asked for.

    On a terminal, one line reports a load that takes long.
    """
    notice = Timer(NOTICE_AFTER, sys.stderr.write, ["Loading the model...\n"])
    if sys.stderr.isatty():
        notice.start()
    try:
        from transformers.utils.logging import disable_progress_bar

        logging.getLogger().setLevel(logging.WARNING)
        disable_progress_bar()
        yield
    finally:
        notice.cancel()

"""SIGTERM and SIGINT as a wish to stop soon, not at once; and the end of the parent process as such a signal."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

GRACE = 30.0  # seconds, as torchrun allows its ranks


@contextmanager
def first_signal(action: Callable[[], None], *numbers: int) -> Iterator[None]:
    """Calls `action` at the first of each of these signals; a second one does what it always did."""

    def handle(number: int, _: FrameType | None) -> None:
        signal.signal(number, earlier[number])
        action()

    earlier: dict[int, Any] = {}
    for number in numbers:
        earlier[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """From now on, the end of the process that started this one is a SIGTERM, and some time later a SIGKILL."""
    threading.Thread(target=_watch, args=(os.getppid(),), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    logger.warning("process %d, which started this one, is gone: stopping", parent)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)  # a rank may wait for another that is gone
    os.kill(os.getpid(), signal.SIGKILL)

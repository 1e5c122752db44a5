"""SIGTERM and SIGINT as a wish to stop soon, not at once; and the end of the parent process as such a signal."""

import logging
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

_GRACE = 30.0  # seconds, as torchrun allows its ranks


class StopSignals:
    """Notes the first SIGTERM or SIGINT while it is entered; a second one does what it always did.

    Attributes:
        received: whether one came.
    """

    def __init__(self) -> None:
        self.received = False
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._earlier[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.signal(number, self._earlier[number])

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """From now on, the end of the process that started this one is a SIGTERM, and some time later a SIGKILL."""
    threading.Thread(target=_watch, args=(os.getppid(),), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    logger.warning("process %d, which started this one, is gone: stopping", parent)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)  # a rank may wait for another that is gone
    os.kill(os.getpid(), signal.SIGKILL)

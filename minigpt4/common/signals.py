"""SIGTERM and SIGINT as a wish to stop soon, not at once."""

import signal
from types import FrameType, TracebackType
from typing import Any


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

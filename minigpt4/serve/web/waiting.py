"""Those who ask while others are answered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class AnswerQueue:
    """A queue in front of a few places: first come, first served.

    Gradio's own queue begins an event only when its turn comes; who waits here can be told so, and can leave.
    """

    def __init__(self, places: int):
        self._places = places
        self._queue: list[object] = []  # those who have a place are its first

    @contextmanager
    def join(self) -> Iterator[Callable[[], int]]:
        """Waits at the end of the queue, and leaves it with its block.

        Gives a function that says how many have to leave before one's own turn comes.
        """
        me = object()
        self._queue.append(me)
        try:
            yield lambda: max(0, self._queue.index(me) + 1 - self._places)
        finally:
            self._queue.remove(me)

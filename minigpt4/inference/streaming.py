"""An answer on its way: it is made in a thread of its own, and its text so far is read in the caller's."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Event, Thread

from minigpt4.inference.requests import Answer


class Job:
    """Makes an answer in a thread and iterates over its text so far; `result` gives the answer or raises its error.

    To leave the `with` block before the end is to interrupt the answer, and to wait for the token it is at.

    Args:
        interrupt: what ends the answer.
        make: makes it, and calls its argument with the text so far.
    """

    def __init__(self, interrupt: Event, make: Callable[[Callable[[str], None]], Answer]):
        self._interrupt, self._make = interrupt, make
        self._texts: SimpleQueue[str | None] = SimpleQueue()
        self._answer: Future[Answer] = Future()
        self.result = self._answer.result
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Job":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._interrupt.set()
        self._thread.join()

    def __iter__(self) -> Iterator[str]:
        while (text := self._texts.get()) is not None:
            yield text

    def _run(self) -> None:
        try:
            self._answer.set_result(self._make(self._texts.put))
        except BaseException as error:  # noqa: B036 raised by result()
            self._answer.set_exception(error)
        finally:
            self._texts.put(None)

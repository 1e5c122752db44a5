"""An answer on its way: `generate` in a thread of its own, its text so far in the caller's."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Event, Thread
from typing import cast

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer


class Job(BaseStreamer):
    """Runs `generate` in a thread and iterates over its text so far; `result` gives the answer or raises its error.

    To leave the `with` block before the end is to interrupt the generation, and to wait for the token it is at.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, interrupt: Event, generate: Callable[["Job"], str]):
        self._tokenizer = tokenizer
        self._interrupt = interrupt
        self._generate = generate
        self._tokens: list[int] = []
        self._texts: SimpleQueue[str | None] = SimpleQueue()
        self._answer: Future[str] = Future()
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

    def put(self, value: Tensor) -> None:
        """Takes new tokens; all are decoded again, for one token alone is no text: it may be a part of a character."""
        self._tokens += value.flatten().tolist()
        self.say(cast(str, self._tokenizer.decode(self._tokens, skip_special_tokens=True)))

    def say(self, text: str) -> None:
        """Takes the whole text so far."""
        self._texts.put(text)

    def end(self) -> None:
        """Nothing: the stream ends when `generate` has returned or failed."""

    def _run(self) -> None:
        try:
            self._answer.set_result(self._generate(self))
        except BaseException as error:  # noqa: B036 raised by result()
            self._answer.set_exception(error)
        finally:
            self._texts.put(None)

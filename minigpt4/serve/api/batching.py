"""Batches queued requests for the model thread; the queue is limited."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread

from minigpt4.inference.requests import Answer, Answerer, Request
from minigpt4.serve.api.metrics import Metrics
from minigpt4.serve.errors import ApiError

logger = logging.getLogger(__name__)

GATHER_SECONDS = 0.01  # a batch that is not full waits this long for more


class QueueFullError(ApiError):
    """No more answers can be asked for now; `retry_after` is a guess in seconds."""

    def __init__(self, retry_after: int):
        message = f"The queue is full. Try again in {retry_after} s."
        super().__init__(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(retry_after)})


@dataclass(eq=False)
class QueuedRequest:
    """One answer that is asked for, until it has ended.

    Attributes:
        prompt_tokens: of the prompt, image rows included.
        size: of the last picture in pixels, which boxes of the answer are about.
        stream: pass on each further piece of the answer.
        send: called by the model's thread with each further piece, if `stream`, and at the end with the `Answer`.
    """

    request: Request
    prompt_tokens: int
    size: tuple[int, int] = (0, 0)
    stream: bool = False
    send: Callable[["str | Answer"], None] = lambda _: None
    gone: bool = False  # nobody waits for it any more
    asked: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    new_tokens: int = 0  # of the answer so far, with the one that ended it
    answer: Answer | None = None
    _sent: str = ""

    def __post_init__(self) -> None:
        self.request.on_token, self.request.on_end = self.count, self.finish
        self.request.on_text = self._send_text if self.stream else None

    def finish(self, answer: Answer) -> None:
        """Sends the answer, or the error in its place."""
        if self.answer is None:
            self.answer = answer
            self.send(answer)

    def count(self, tokens: int) -> None:
        """Notes how many tokens there are so far."""
        self.new_tokens = tokens
        self.first_token = self.first_token or time.perf_counter()

    def _send_text(self, text: str) -> None:
        if new := text[len(self._sent) :]:
            self._sent = text
            self.send(new)


class Batcher:
    """Answers what is asked for, in the order of asking, in batches of one way of decoding each.

    Args:
        engine: nobody else is to use it.
        max_batch: most answers at once.
        queue: most answers that wait for their batch.

    Attributes:
        waiting: requests whose batch has not started.
        at_work: those of the batch that is being answered.
    """

    def __init__(self, engine: Answerer, metrics: Metrics, max_batch: int = 8, queue: int = 64):
        self.engine = engine
        self.metrics = metrics
        self.max_batch = max_batch
        self.queue = queue
        self._changed = Condition()
        self.waiting: list[QueuedRequest] = []
        self.at_work: list[QueuedRequest] = []
        self._closed = False
        self._batch_seconds = 1.0  # of the last one
        self._thread = Thread(target=self._run, name="batcher", daemon=True)
        metrics.queue_length.set_function(lambda: len(self.waiting))

    @property
    def alive(self) -> bool:
        """Whether there is somebody to answer."""
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends all answers at the next token, and the thread."""
        with self._changed:
            self._closed = True
            for item in (*self.waiting, *self.at_work):
                self._leave(item)
            self._changed.notify()
        self._thread.join()

    def require_capacity(self, count: int) -> None:
        """Checks that the queue has capacity for `count` more answers.

        Raises:
            QueueFullError: it has not.
        """
        if len(self.waiting) + count > self.queue:
            batches = math.ceil((len(self.waiting) + len(self.at_work)) / self.max_batch)
            raise QueueFullError(max(1, math.ceil(batches * self._batch_seconds)))

    def submit(self, items: Sequence[QueuedRequest]) -> None:
        """Puts all of them into the queue, or none.

        Raises:
            QueueFullError: it is full.
        """
        with self._changed:
            self.require_capacity(len(items))
            self.waiting += items
            self._changed.notify()

    def cancel(self, items: Sequence[QueuedRequest]) -> None:
        """Nobody waits for these any more: they leave the queue, or end at the next token."""
        with self._changed:
            for item in items:
                self._leave(item)
            self.waiting = [item for item in self.waiting if not item.gone]

    def _leave(self, item: QueuedRequest) -> None:
        item.gone = True
        item.request.interrupt.set()

    def _run(self) -> None:
        while not self._closed:
            if not (batch := self._next()):
                continue
            start = time.perf_counter()
            try:
                for answer in self.engine.answer([item.request for item in batch]):
                    if answer.error is not None:
                        logger.error("an answer failed", exc_info=answer.error)
            except Exception as error:  # the thread has to outlive any
                logger.exception("a batch failed")
                for item in batch:
                    item.finish(Answer(finish="error", error=error))
            self._batch_seconds = time.perf_counter() - start
            self.metrics.note_batch(batch, start)

    def _next(self) -> list[QueuedRequest]:
        """The next batch; empty when those who asked have left."""
        with self._changed:
            self.at_work = []
            self._changed.wait_for(lambda: self.waiting or self._closed)
            # those whose answers just ended may ask again: without them two halves would take turns
            self._changed.wait_for(lambda: len(self.waiting) >= self.max_batch or self._closed, timeout=GATHER_SECONDS)
            decoding = self.waiting[0].request.decoding if self.waiting else None
            self.at_work = [item for item in self.waiting if item.request.decoding == decoding][: self.max_batch]
            self.waiting = [item for item in self.waiting if item not in self.at_work]
            return self.at_work

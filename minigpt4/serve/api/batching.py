"""One thread owns the model: answers that are asked for together are made together, and none waits without a bound."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Event, Thread
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from minigpt4.inference.generation import Answer, settled
from minigpt4.models.minigpt_base import MiniGPTBase
from minigpt4.serve.api.metrics import Metrics

logger = logging.getLogger(__name__)

_GATHER = 0.01  # seconds that a batch which is not full waits for more


class Sampling(NamedTuple):
    """How tokens are chosen; only answers of the same way can share a batch. See `MiniGPTBase.generate`."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


class QueueFullError(Exception):
    """No more answers can be asked for now; `retry_after` is a guess in seconds."""

    def __init__(self, retry_after: int):
        super().__init__(f"full for about {retry_after} s")
        self.retry_after = retry_after


@dataclass(eq=False)
class Ask(BaseStreamer):
    """One answer that is asked for. It follows its own tokens, and so ends when it is complete, not when its batch is.

    Attributes:
        images: pictures [n, 3, H, W] of the prompt, None for none.
        prompt_tokens: of the prompt, image rows included.
        max_tokens: most tokens of the answer, for which the LLM's window must have room.
        stops: strings before which it ends, besides the template's.
        begun: the beginning of the answer, with which the prompt ends; only what goes on from there is told.
        tell: called by the model's thread with each further piece, if `stream`, and at the end with the `Answer`.
    """

    model: MiniGPTBase
    prompt: str
    images: Tensor | None
    prompt_tokens: int
    max_tokens: int
    sampling: Sampling
    seed: int
    stops: tuple[str, ...] = ()
    begun: str = ""
    stream: bool = False
    tell: Callable[["str | Answer"], None] = lambda _: None
    interrupt: Event = field(default_factory=Event)
    gone: bool = False  # nobody waits for it any more
    asked: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    answer: Answer | None = None
    _tokens: list[int] = field(default_factory=list)
    _said: str = ""
    _before: list[int] = field(default_factory=list)  # the last tokens of `begun`

    def __post_init__(self) -> None:
        self._before = self.model.encode_text(self.begun)[-8:]

    @property
    def _continued(self) -> bool:
        """Whether the space before the next word is the answer's: `begun` does not end with it."""
        return bool(self.begun) and not self.begun.endswith(" ")

    @property
    def new_tokens(self) -> int:
        """Tokens of the answer so far, with the one that ended it."""
        return len(self._tokens)

    def put(self, value: Tensor) -> None:
        """Takes the next token [1], or none [0] where the generation begins."""
        if self.answer is not None:
            return
        if not len(value):
            self._tokens.clear()  # of a batch that another row made fail
        else:
            self._tokens += value.tolist()
            self.first_token = self.first_token or time.perf_counter()
            self._follow()

    def end(self) -> None:
        """Nothing: an answer's end shows in its tokens."""

    def _follow(self) -> None:
        tokens, stops = self._tokens, (*self.model.template.stop, *self.stops)
        ended = tokens[-1] in self.model.stop_ids
        if not ended:  # a stop string shows near the end, even if each of its characters is four bytes
            near = self._decode(tokens[-4 * max(map(len, stops), default=0) - 4 :])
            stopped = any(stop in near for stop in stops)
        if ended or stopped:
            text = self._decode(tokens[: len(tokens) - ended])
            self.finish(self.model.cut(text, self.stops, self._continued), "stop")
        elif len(tokens) >= self.max_tokens:
            self.finish(settled(self.model, self._decode(tokens), continued=self._continued), "length")
        elif self.stream:
            self._say(settled(self.model, self._decode(tokens), self.stops, self._continued))

    def _decode(self, tokens: list[int]) -> str:
        """The text of new tokens, with the space in front that they have behind what was begun."""
        before, text = (
            cast(str, self.model.llama_tokenizer.decode(own, skip_special_tokens=True))
            for own in (self._before, [*self._before, *tokens])
        )
        return text[len(before) :]

    def _say(self, text: str) -> None:
        """Tells what is new in the answer so far."""
        if new := text[len(self._said) :]:
            self._said = text
            self.tell(new)

    def finish(self, text: str, how: Literal["stop", "length"]) -> None:
        """Tells the answer, and ends its row."""
        if self.stream:
            self._say(text)
        answer = Answer(text)
        answer.finish, answer.prompt_tokens, answer.new_tokens = how, self.prompt_tokens, self.new_tokens
        self._tell_end(answer)
        self.interrupt.set()

    def fail(self, error: Exception) -> None:
        """Tells that there will be no answer."""
        answer = Answer()
        answer.finish, answer.error = "error", error
        self._tell_end(answer)

    def _tell_end(self, answer: Answer) -> None:
        if self.answer is None:
            self.answer = answer
            self.tell(answer)


class Batcher:
    """Answers what is asked for, in the order of asking, in batches of one sampling each.

    Args:
        model: in eval mode; nobody else is to use it.
        max_batch: most answers at once.
        queue: most answers that wait for their batch.
    """

    def __init__(self, model: MiniGPTBase, metrics: Metrics, max_batch: int = 8, queue: int = 64):
        self.model = model
        self.metrics = metrics
        self.max_batch = max_batch
        self.queue = queue
        self._changed = Condition()
        self._waiting: list[Ask] = []
        self._at_work: list[Ask] = []
        self._closed = False
        self._batch_seconds = 1.0  # of the last one
        self._thread = Thread(target=self._run, name="batcher", daemon=True)
        metrics.queue_length.set_function(lambda: len(self._waiting))

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
            for ask in (*self._waiting, *self._at_work):
                self._leave(ask)
            self._changed.notify()
        self._thread.join()

    def require_room(self, count: int) -> None:
        """Checks that the queue has room for `count` more answers.

        Raises:
            QueueFullError: it has not.
        """
        if len(self._waiting) + count > self.queue:
            batches = math.ceil((len(self._waiting) + len(self._at_work)) / self.max_batch)
            raise QueueFullError(max(1, math.ceil(batches * self._batch_seconds)))

    def submit(self, asks: Sequence[Ask]) -> None:
        """Puts all of them into the queue, or none.

        Raises:
            QueueFullError: there is no room.
        """
        with self._changed:
            self.require_room(len(asks))
            self._waiting += asks
            self._changed.notify()

    def cancel(self, asks: Sequence[Ask]) -> None:
        """Nobody waits for these any more: they leave the queue, or end at the next token."""
        with self._changed:
            for ask in asks:
                self._leave(ask)
            self._waiting = [ask for ask in self._waiting if not ask.gone]

    def _leave(self, ask: Ask) -> None:
        ask.gone = True
        ask.interrupt.set()

    def _run(self) -> None:
        while not self._closed:
            if not (batch := self._next()):
                continue
            start = time.perf_counter()
            try:
                self._answer(batch)
            except Exception as error:  # the thread has to outlive any
                logger.exception("a batch failed")
                for ask in batch:
                    ask.fail(error)
            self._batch_seconds = time.perf_counter() - start
            self.metrics.note_batch(batch, start)

    def _next(self) -> list[Ask]:
        """The next batch; empty when those who asked have left."""
        with self._changed:
            self._at_work = []
            self._changed.wait_for(lambda: self._waiting or self._closed)
            # those whose answers just ended may ask again: without them two halves would take turns
            self._changed.wait_for(lambda: len(self._waiting) >= self.max_batch or self._closed, timeout=_GATHER)
            sampling = self._waiting[0].sampling if self._waiting else None
            self._at_work = [ask for ask in self._waiting if ask.sampling == sampling][: self.max_batch]
            self._waiting = [ask for ask in self._waiting if ask not in self._at_work]
            return self._at_work

    def _answer(self, batch: list[Ask]) -> None:
        device = self.model.device
        options: dict[str, Any] = batch[0].sampling._asdict()
        answers = self.model.generate(
            [None if ask.images is None else ask.images.to(device) for ask in batch],
            [ask.prompt for ask in batch],
            max_new_tokens=max(ask.max_tokens for ask in batch),
            seed=[ask.seed for ask in batch],
            streamer=batch,
            interrupt=[ask.interrupt for ask in batch],
            raise_errors=False,
            **options,
        )
        for ask, answer in zip(batch, answers, strict=True):
            if ask.answer is not None:
                continue
            if answer.error is not None:
                logger.error("an answer failed", exc_info=answer.error)
                ask.fail(answer.error)
            else:  # it ended in a way that its tokens do not show; or it was interrupted, and nobody listens
                ask.finish(answer, "stop" if answer.finish == "stop" else "length")

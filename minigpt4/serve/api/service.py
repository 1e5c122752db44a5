"""From a request to its answers: prompts, pictures, limits."""

import asyncio
import io
import math
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Event

from anyio import CapacityLimiter, to_thread
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.common.limits import MAX_IMAGE_PIXELS
from minigpt4.conversation.conversation import Conversation
from minigpt4.inference.decoding import LEAST_TEMPERATURE, Decoding
from minigpt4.inference.pictures import data_of
from minigpt4.inference.requests import Answer, Answerer, Request
from minigpt4.processors.picture_file import PixelBudget, open_upright
from minigpt4.serve.api import remote
from minigpt4.serve.api.batching import Batcher, QueuedRequest
from minigpt4.serve.api.dialogue import conversation_of
from minigpt4.serve.api.errors import as_api_error
from minigpt4.serve.api.metrics import Metrics
from minigpt4.serve.api.protocol import ChatRequest
from minigpt4.serve.errors import ApiError
from minigpt4.serve.picture_decoding import Decoder

_ARRIVING = 16  # requests that may be read while all places of answers are taken
_READERS = 2  # requests whose words or pictures are read at once

Piece = tuple[int, str | Answer]  # of one of a request's answers, by its index; the `Answer` ends it


@dataclass(frozen=True)
class Limits:
    """What a server allows.

    Attributes:
        max_batch: answers made at once.
        queue: answers that wait for their batch.
        max_image_pixels: of one picture.
        max_body_mb: of a request, and of a picture from the web.
        remote_images: hosts from which pictures may come, by http(s) URLs; see `is_among`.
    """

    max_batch: int = 8
    queue: int = 64
    max_image_pixels: int = MAX_IMAGE_PIXELS
    max_body_mb: float = 20.0
    remote_images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.max_body_mb < math.inf:
            raise UserError(f"--max-body-mb: {self.max_body_mb} is out of range. Set it above 0, for example to 20.")

    @property
    def max_bytes(self) -> int:
        return int(self.max_body_mb * 1e6)

    @property
    def max_requests(self) -> int:
        """Requests at once: one for each answer that is made or waits, and some that are read meanwhile."""
        return self.max_batch + self.queue + _ARRIVING


class Service:
    """Serves requests to one model.

    Args:
        engine: nobody else is to use it.
        name: of the model, in requests and answers.
    """

    def __init__(self, engine: Answerer, name: str, limits: Limits):
        self.engine = engine
        self.name = name
        self.limits = limits
        self.metrics = Metrics()
        self.batcher = Batcher(engine, self.metrics, limits.max_batch, limits.queue)
        self._readers = CapacityLimiter(_READERS)

    async def read(self, request: ChatRequest) -> list[QueuedRequest]:
        """What a request asks for: `n` answers to one prompt, with seeds that follow one another.

        Raises:
            ApiError: the model is another, or the conversation too long.
            UserError: a message or a picture is not as it must be.
            QueueFullError: there would be no room for the answers now.
        """
        self.require_model(request.model)
        count = request.n or 1
        if count > self.limits.queue:
            raise ApiError(400, f"n: {count} is more than this server queues ({self.limits.queue}).", "n")
        self.batcher.require_capacity(count)  # before the work
        conversation, length = await to_thread.run_sync(self._read_words, request, limiter=self._readers)
        gone = Event()
        decoder = Decoder(self.limits.max_image_pixels, partial(check_client, gone))
        size = (0, 0)
        try:
            for turn in conversation.turns:
                for i, part in enumerate(turn.question):
                    if not isinstance(part, str):
                        image = await self._read_picture(part.url, decoder)
                        turn.question[i], size = self.engine.processor(image), image.info["size"]
        finally:
            gone.set()
        seed = secrets.randbits(62) if request.seed is None else request.seed
        return [
            QueuedRequest(
                Request(
                    conversation,
                    max_new_tokens=int(min(request.longest, self.engine.prompter.window - length)),
                    decoding=_decoding(request),
                    seed=(seed + index) % 2**63,
                    stops=request.stops,
                ),
                prompt_tokens=length,
                size=size,
                stream=bool(request.stream),
            )
            for index in range(count)
        ]

    def require_model(self, name: str) -> None:
        if name != self.name:
            message = f"The model '{name[:80]}' is not here. Ask for '{self.name}'."
            raise ApiError(404, message, "model", "model_not_found")

    async def answers(self, items: Sequence[QueuedRequest]) -> AsyncIterator[Piece]:
        """Queues requests; yields the index of one and, if it streams, each further piece, and at its end its `Answer`.

        To leave before the end is to interrupt what is under way.

        Raises:
            QueueFullError: there is no room for them.
            ApiError: one failed.
        """
        loop, parts = asyncio.get_running_loop(), asyncio.Queue[Piece]()

        def put(index: int, what: str | Answer) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody listens
                loop.call_soon_threadsafe(parts.put_nowait, (index, what))

        for index, item in enumerate(items):
            item.send = partial(put, index)
        self.batcher.submit(items)
        try:
            left = len(items)
            while left:
                index, what = await parts.get()
                if isinstance(what, Answer):
                    left -= 1
                    if what.error is not None:
                        raise as_api_error(what.error)
                yield index, what
        finally:
            self.batcher.cancel(items)
            self.metrics.note_tokens(items)

    def _read_words(self, request: ChatRequest) -> tuple[Conversation, int]:
        """The conversation, its pictures not yet opened, and how many tokens and image rows its prompt has."""
        conversation, prompter = conversation_of(request.messages), self.engine.prompter
        window = prompter.window
        if (length := prompter.length(prompter.read(conversation), window)) >= window:
            message = f"The messages have {length} tokens or more; the model reads and answers {window} at once."
            raise ApiError(400, f"{message} Shorten them, or show fewer images.", "messages", "context_length_exceeded")
        return conversation, length

    async def _read_picture(self, url: str, decoder: Decoder) -> Image.Image:
        source: str | bytes = url
        scheme, colon, _ = url[:80].partition(":")
        if colon and scheme.lower() != "data":  # no colon: base64 alone
            if not self.limits.remote_images:
                raise UserError(f"'{url[:40]}' is not a data: URL, and this server fetches no others. Send one.")
            source = await remote.download(url, self.limits.remote_images, self.limits.max_bytes)
        return await to_thread.run_sync(self._opened, source, decoder, limiter=self._readers, abandon_on_cancel=True)

    def _opened(self, source: str | bytes, decoder: Decoder) -> Image.Image:
        """A picture of base64 or a file's bytes, as large as the model sees it."""
        data = data_of(source) if isinstance(source, str) else source
        side = getattr(self.engine.processor, "image_size", None)  # a whole picture would have to come over
        (image,) = decoder(open_upright, io.BytesIO(data), PixelBudget(self.limits.max_image_pixels), side)
        return image


def check_client(gone: Event) -> None:
    if gone.is_set():
        raise ConnectionAbortedError("the client has gone")


def _decoding(request: ChatRequest) -> Decoding:
    temperature = 1.0 if request.temperature is None else request.temperature
    penalty = request.repetition_penalty or 1.0
    top_p = 1.0 if request.top_p is None else request.top_p
    if temperature < LEAST_TEMPERATURE or top_p == 0:
        return Decoding(repetition_penalty=penalty)
    return Decoding(do_sample=True, temperature=temperature, top_p=top_p, repetition_penalty=penalty)

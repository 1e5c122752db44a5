"""One visitor's conversation about images: what was said, and the embeddings of what was shown."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing
from threading import Thread
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextIteratorStreamer

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import IMAGE, Turn
from minigpt4.models.minigpt_base import MiniGPTBase
from minigpt4.models.splice import IMAGE_PLACEHOLDER


class RestartedError(UserError):
    """The conversation was restarted while an answer was under way."""


class Chat:
    """A session. Sessions share the model and nothing else.

    Args:
        model: in eval mode; its template says how the dialogue is written.
        processor: the model's eval processor, PIL image -> [3, H, W].
    """

    def __init__(self, model: MiniGPTBase, processor: Callable[[Image.Image], Tensor]):
        self.model = model
        self.processor = processor
        self.restart()

    def restart(self) -> None:
        """Forgets everything said and shown; an answer under way ends with a `RestartedError`."""
        self.turns: list[Turn] = []
        self.images: list[Tensor] = []  # embeddings [1, rows, D], in order of appearance
        self.forgotten = 0  # turns whose words the last prompt had no room for
        self._new_images = 0

    @torch.inference_mode()
    def upload_img(self, image: Image.Image) -> None:
        """Shows an image; the next question is about it. It is encoded now, once."""
        pixels = self.processor(image.convert("RGB")).unsqueeze(0).to(self.model.device)
        self.images.append(self.model.encode_img(pixels))
        self._new_images += 1

    def answer(self, question: str, **options: Any) -> str:
        """Asks and returns the whole answer. `options` are those of `MiniGPTBase.generate`."""
        *_, text = self.stream(question, **options)
        return text

    def stream(self, question: str, **options: Any) -> Iterator[str]:
        """Asks and yields the answer so far, growing; with beams it comes in one piece.

        A failure in generation is raised here. After it, or when the caller stops listening, the turn is taken back
        and the generation ends.

        Raises:
            UserError: the previous question is still being answered, or this one is too long.
            RestartedError: a restart came before the end.
        """
        turns, shown = self.turns, self._new_images
        if turns and turns[-1].answer is None:
            raise UserError("The previous question is still being answered. Wait for its answer, or restart.")
        words = question.replace(IMAGE_PLACEHOLDER, "")  # only an upload makes a place for an image
        before = len(turns)
        turns += [Turn(IMAGE) for _ in range(shown - 1)]  # as the original: each image but the last alone
        turn = Turn(f"{IMAGE} {words}" if shown else words)
        turns.append(turn)
        self._new_images = 0
        try:
            with closing(self._generate(options)) as answers:
                for text in answers:
                    if self.turns is not turns:
                        raise RestartedError("The conversation was restarted before the answer was complete.")
                    yield text
            turn.answer = text
        finally:
            if turn.answer is None:
                del turns[before:]
                self._new_images += shown if self.turns is turns else 0

    def _generate(self, options: dict[str, Any]) -> Generator[str, None, None]:
        options = {"max_new_tokens": 300, **options}
        prompt = self._prompt(options["max_new_tokens"])
        images = torch.cat(self.images) if self.images else None
        if options.get("num_beams", 1) > 1:  # no beam is final before the end
            yield self.model.generate(images, [prompt], **options)[0]
            return
        job = _Job(
            self.model.llama_tokenizer,
            lambda streamer: self.model.generate(images, [prompt], streamer=streamer, **options)[0],
        )
        text = shown = ""
        try:
            for piece in job:
                text += piece
                if shown != (shown := self._shown(text)):
                    yield shown
            yield job.result()
        finally:
            job.abandoned = True

    def _prompt(self, max_new_tokens: int) -> str:
        """The dialogue as the model reads it: of a too long one the oldest turns lose their words, never an image."""
        turns, self.forgotten = list(self.turns), 0
        while True:
            prompt = self.model.template.prompt(turns)
            excess = len(self.model.layout(prompt)) + max_new_tokens - self.model.max_context_len
            if excess <= 0:
                return prompt
            oldest = next((i for i, turn in enumerate(turns[:-1]) if turn.answer is not None), None)
            if oldest is None:
                raise UserError(
                    f"The message is {excess} tokens too long: the model reads {self.model.max_context_len} at once, "
                    f"{max_new_tokens} of them kept for its answer. Shorten it, show fewer images, or ask for a "
                    "shorter answer."
                )
            turns[oldest : oldest + 1] = [Turn(IMAGE)] * turns[oldest].question.count(IMAGE)
            self.forgotten += 1

    def _shown(self, text: str) -> str:
        """The text without a stop string, nor the beginning of one that may still arrive."""
        text = self.model.cut(text)
        tails = (stop[:n] for stop in self.model.template.stop for n in range(1, len(stop)))
        return text.removesuffix(max((t for t in tails if text.endswith(t)), key=len, default="")).rstrip()


class _Job(TextIteratorStreamer):
    """Runs `generate` in a thread and iterates over its text; `result` returns the answer or raises what it raised."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, generate: Callable[[TextIteratorStreamer], str]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.abandoned = False  # nobody listens any more
        self._generate = generate
        self._answer: Future[str] = Future()
        self.result = self._answer.result
        Thread(target=self._run, daemon=True).start()

    def put(self, value: Tensor) -> None:
        if self.abandoned:
            raise InterruptedError("nobody listens to this generation")
        super().put(value)

    def _run(self) -> None:
        try:
            self._answer.set_result(self._generate(self))
        except BaseException as error:  # noqa: B036 raised by result()
            self._answer.set_exception(error)
        finally:
            self.text_queue.put(self.stop_signal)  # a failure comes before generate ends the stream

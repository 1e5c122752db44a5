"""One visitor's conversation: what was said and shown, and what the model still holds of it."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from queue import SimpleQueue
from threading import Event, RLock, Thread
from typing import Any

from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.common.limits import MAX_IMAGE_PIXELS
from minigpt4.conversation.conversation import Conversation, Turn, spaced
from minigpt4.inference.caches import KeptCache
from minigpt4.inference.decoding import Decoding
from minigpt4.inference.pictures import MessagePart, Picture, Reader, Video, in_this_process, pictures_of
from minigpt4.inference.requests import Answer, Answerer, Request, raise_first
from minigpt4.inference.saved import check_size, from_json, to_json
from minigpt4.inference.truncation import remembered, to_forget
from minigpt4.processors.picture_file import PixelBudget


class RestartedError(UserError):
    """The conversation was restarted while an answer was under way."""


class Chat:
    """A session. Sessions share the model and nothing else, and may be used by different threads at once.

    A later question prefills only what the model has not read: the KV cache is kept, and rolled back to the first
    change. Pictures are encoded once. Both can be dropped at any time (`forget_cache`).

    Args:
        engine: answers; it must have a processor.
        on_use: called with this session when a question is asked (see `Sessions`).
        max_pixels: of a picture; see `PixelBudget` for what all may have together.
    """

    def __init__(
        self, engine: Answerer, on_use: Callable[["Chat"], None] = lambda _: None, max_pixels: int = MAX_IMAGE_PIXELS
    ):
        self.engine = engine
        self.max_pixels = max_pixels
        self._on_use = on_use
        self._claim = RLock()  # a stream that is thrown away puts its turn back wherever its thread is then
        self._interrupt = Event()
        self._restarts = 0
        self.restart()

    def restart(self) -> None:
        """Forgets everything said and shown; an answer under way ends with a `RestartedError`."""
        self._begin([], [])

    def _begin(self, turns: list[Turn], waiting: list[Picture]) -> None:
        with self._claim:
            self._restarts += 1
            self.turns = turns
            self.forgotten = 0  # turns whose words the last prompt had no room for
            self._waiting = waiting  # shown since the last question
            self._kept = KeptCache()  # not the old one, which the answer under way may be using
            self._interrupt.set()

    @property
    def pictures(self) -> list[Picture]:
        """All that was shown, in order of appearance."""
        return [picture for turn in self.turns for picture in turn.pictures] + self._waiting

    def pixel_budget(self) -> PixelBudget:
        """What is left for more pictures: what is shown can be saved, and so must load again."""
        return self._budget(self.pictures)

    def _budget(self, shown: Iterable[Picture]) -> PixelBudget:
        return PixelBudget(self.max_pixels, [picture.image for picture in shown], self.engine.prompter.max_pictures)

    @property
    def reused_tokens(self) -> int:
        """How many tokens and image rows of the last prompt the model did not have to read again."""
        return self._kept.reused

    def upload_img(self, *parts: Image.Image | Picture | Video) -> None:
        """Shows images, and videos as images; the next question is about them. They are encoded now, in one batch.

        Raises:
            UserError: they are too many, or one, or all of the conversation's together, too large (see `PixelBudget`).
        """
        restarts, budget = self._restarts, self.pixel_budget()
        budget.expect(len(parts))
        pictures = [picture for part in parts for picture in pictures_of(part, budget)]
        self._encode(pictures)
        with self._claim:
            if self._restarts == restarts:  # no restart came meanwhile
                self._waiting = self._waiting + pictures

    def answer(self, question: str | Sequence[MessagePart], **options: Any) -> str:
        """Asks and returns the whole answer. `options` are `max_new_tokens` (300), `seed`, and those of `Decoding`."""
        *_, text = self.stream(question, **options)
        return text

    def stream(self, question: str | Sequence[MessagePart], **options: Any) -> Iterator[str]:
        """Asks and yields the answer so far, growing; with beams it comes in one piece. The last is an `Answer`.

        Pictures and videos are read at once, the rest happens as the caller listens. A failure in generation is raised
        there. After it, or when the caller stops listening, the turn is taken back and the generation ends.

        Args:
            question: words, or words, images and videos in the order in which the model is to read them.

        Raises:
            UserError: the previous question is still being answered, this one is too long or has too many or too large
                pictures, or the conversation is too long to be loaded again.
            RestartedError: a restart came after this call and before the end.
        """
        restarts, parts, budget = self._restarts, list[Picture | str](), self.pixel_budget()
        given = [question] if isinstance(question, str) else question
        budget.expect(sum(not isinstance(part, str) for part in given))
        for part in given:
            parts += [part] if isinstance(part, str) else pictures_of(part, budget)
        return self._ask(restarts, lambda: self.turns + turns_of(self._waiting, parts), options)

    def edit(self, index: int, question: str, **options: Any) -> Iterator[str]:
        """Asks turn `index` again in other words, after the same pictures; what came after it is dropped.

        Raises as `stream`, after which everything is as it was; UserError also where there is no such turn.
        """

        def turns() -> list[Turn]:
            if not -len(self.turns) <= index < len(self.turns) or self.turns[index].answer is None:
                raise UserError(f"turn {index} was not asked. Choose one that has an answer.")
            at = index % len(self.turns)
            return [*self.turns[:at], *turns_of([], [*self.turns[at].pictures, question])]

        return self._ask(self._restarts, turns, options)

    def regenerate(self, **options: Any) -> Iterator[str]:
        """Asks the last question again; raises as `edit`. Greedy decoding gives the same answer."""

        def turns() -> list[Turn]:
            if not self.turns:
                raise UserError("Nothing was asked yet. Ask a question first.")
            return [*self.turns[:-1], replace(self.turns[-1], answer=None)]

        return self._ask(self._restarts, turns, options)

    def undo(self) -> list[Picture | str]:
        """Takes the last question and its answer back; returns its pictures and words, with which it can be asked."""
        with self._claim:
            self._require_idle()
            if not self.turns:
                raise UserError("Nothing was asked yet. There is nothing to take back.")
            first = len(self.turns) - 1
            while first and self.turns[first - 1].answer is None:  # pictures shown for this question
                first -= 1
            taken, self.turns = self.turns[first:], self.turns[:first]
        return [*(p for turn in taken for p in turn.pictures), taken[-1].words.lstrip()]

    def stop(self) -> None:
        """Ends the answer under way at the next token; what was said of it stays."""
        self._interrupt.set()

    def save(self) -> str:
        """The conversation as JSON, pictures included; without a question that is being answered."""
        answered = max((i for i, turn in enumerate(self.turns, start=1) if turn.answer is not None), default=0)
        return to_json(self.turns[:answered], self._waiting)

    def load(self, saved: str, reader: Reader = in_this_process) -> None:
        """Takes up a conversation that `save` wrote, instead of this one.

        Args:
            reader: opens the pictures, here or in another process.

        Raises:
            UserError: it or a picture can't be read, it is too long, or the pictures are too many or too large. All is
                as it was.
        """
        turns, waiting = from_json(saved, self._budget([]), reader)
        self._encode([*Conversation(turns).pictures, *waiting])
        self._begin(turns, waiting)

    def forget_cache(self, pictures_too: bool = False) -> None:
        """Frees the KV cache, and with `pictures_too` the image embeddings; the next question makes them again."""
        self._kept = KeptCache()
        for picture in self.pictures if pictures_too else ():
            picture.embedding = None

    def _require_idle(self) -> None:
        if self.turns and self.turns[-1].answer is None:
            raise UserError("The previous question is still being answered. Wait for its answer, or stop it.")

    def _encode(self, pictures: Sequence[Picture]) -> None:
        """Encodes what is not yet encoded, in one batch."""
        if any(picture.embedding is None for picture in pictures):
            self._on_use(self)
            self.engine.embeddings(pictures)

    def _ask(self, restarts: int, make_turns: Callable[[], list[Turn]], options: dict[str, Any]) -> Iterator[str]:
        """Puts turns in the place of a conversation's and answers the last; on failure puts the old ones back."""
        with self._claim:  # of two threads that ask at once one is refused
            if self._restarts != restarts:
                raise RestartedError("The conversation was restarted before the question was asked.")
            self._require_idle()
            before, waiting, forgotten, interrupt = self.turns, self._waiting, self.forgotten, Event()
            turns = make_turns()
            check_size([(turn.words, turn.answer or "") for turn in turns])
            self.turns = turns
            kept = self._kept  # a question after a restart has another
            asked = Conversation(turns).pictures
            self._waiting = [picture for picture in waiting if picture not in asked]
            self._interrupt = interrupt
        self._on_use(self)
        try:
            with closing(self._generate(turns, kept, interrupt, options)) as answers:
                for text in answers:
                    if self.turns is not turns:
                        raise RestartedError("The conversation was restarted before the answer was complete.")
                    yield text
            turns[-1].answer = text
        finally:
            with self._claim:
                if turns[-1].answer is None and self.turns is turns:
                    since = [picture for picture in self._waiting if picture not in waiting]
                    self.turns, self._waiting, self.forgotten = before, waiting + since, forgotten

    def _generate(
        self, turns: list[Turn], kept: KeptCache, interrupt: Event, options: dict[str, Any]
    ) -> Generator[str, None, None]:
        most, seed = options.pop("max_new_tokens", 300), options.pop("seed", None)
        decoding = Decoding(**options)
        request = Request(self._read(turns, most), most, decoding, seed, interrupt=interrupt, kept=kept)

        def make(on_text: Callable[[str], None]) -> Answer:
            request.on_text = on_text if decoding.num_beams == 1 else None  # beams are not final before the end
            answers = self.engine.answer([request])
            raise_first(answers)
            return answers[0]

        yield from _in_a_thread(interrupt, make)

    def _read(self, turns: list[Turn], max_new_tokens: int) -> Conversation:
        """The dialogue as the model reads it, without what it has no room for."""
        prompter = self.engine.prompter
        if (budget := prompter.window - max_new_tokens) < 1:
            raise UserError(
                f"max_new_tokens: {max_new_tokens} leaves nothing of the {prompter.window} tokens that the model reads "
                "and answers. Set it lower."
            )

        def length(turns: list[Turn]) -> int:
            return prompter.length(prompter.read(Conversation(turns)), budget)

        forgotten = to_forget(turns, self.forgotten, budget, length)
        left = remembered(turns, forgotten)
        nothing_more = all(turn.answer is None for turn in left)
        if nothing_more and (more := len(prompter.layout(prompter.read(Conversation(left)))) - budget) > 0:
            raise UserError(
                f"The message is {more} tokens too long: the model reads {prompter.window} at once, {max_new_tokens} "
                "of them kept for its answer. Shorten it, show fewer images, or ask for a shorter answer."
            )
        with self._claim:
            if self.turns is turns:  # no restart came
                self.forgotten = forgotten
        return Conversation(left)


def _in_a_thread(interrupt: Event, make: Callable[[Callable[[str], None]], Answer]) -> Iterator[str]:
    """Makes an answer in a thread of its own; yields its text so far, which `make` gives its argument, and the answer.

    To leave before the end is to interrupt the answer, and to wait for the token it is at.
    """
    texts, answer = SimpleQueue[str | None](), Future[Answer]()

    def run() -> None:
        try:
            answer.set_result(make(texts.put))
        except BaseException as error:  # noqa: B036 raised below
            answer.set_exception(error)
        finally:
            texts.put(None)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while (text := texts.get()) is not None:
            yield text
    except BaseException:
        interrupt.set()
        raise
    finally:
        thread.join()
    yield answer.result()


def turns_of(waiting: list[Picture], parts: Sequence[Picture | str]) -> list[Turn]:
    """A question's turns: as in the original, each picture shown before it but the last has one of its own."""
    return [*(Turn([picture]) for picture in waiting[:-1]), Turn(spaced([*waiting[-1:], *parts]))]

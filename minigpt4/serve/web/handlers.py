"""What happens on the page: each method answers one of its events."""

import html
import logging
import mimetypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from minigpt4.common.errors import UserError, first_line
from minigpt4.common.limits import MAX_UPLOAD_MB
from minigpt4.config.schema import PreprocessConfig
from minigpt4.conversation.conversation import Turn
from minigpt4.inference.chat import Chat, RestartedError
from minigpt4.inference.options import AnswerOptions
from minigpt4.inference.pictures import Picture, Video
from minigpt4.inference.sessions import Sessions
from minigpt4.processors.picture_file import PixelBudget
from minigpt4.serve.picture_decoding import Decoder
from minigpt4.serve.web.controls import decoding, labelled
from minigpt4.serve.web.status import READING, Clock, waiting
from minigpt4.serve.web.view import original_file, typed
from minigpt4.serve.web.visitor import AnswerQueue, GivenUpError, Message, PageUpdate, Visitor, message_box

logger = logging.getLogger(__name__)

PendingTurn = tuple[list[Turn], Callable[..., Iterator[str]]]  # the turns with a new question, and what answers that
Prepare = Callable[[Chat, Callable[[], None]], PendingTurn]  # it calls the second now and then, which raises to end it

_ANSWERS_AT_ONCE = 2
_REPORT_EVERY = 0.2  # seconds, who waits
_EMPTY: Message = {"text": "", "files": []}


class Handlers:
    """The page's events. Their last argument is the visitor, None before the first event.

    `options_and_visitor` are the values of the page's controls, as `decoding` takes them, and the visitor.

    Args:
        sessions: opens a visitor's conversation.
        max_upload_mb: larger conversations are not saved: they could not be loaded again.
        n_frms: pictures taken of a video.
    """

    def __init__(self, sessions: Sessions, max_upload_mb: int = MAX_UPLOAD_MB, n_frms: int = PreprocessConfig.n_frms):
        self.sessions = sessions
        self.max_upload_mb = max_upload_mb
        self.n_frms = n_frms
        self._queue = AnswerQueue(_ANSWERS_AT_ONCE)

    def ask(self, message: Message, *options_and_visitor: Any) -> Iterator[PageUpdate]:
        """Asks about a message's pictures and videos, and streams the answer."""
        with failure_in_words():
            words = _checked(message["text"])

        def prepare(chat: Chat, check: Callable[[], None]) -> PendingTurn:
            budget, decoder = chat.pixel_budget(), Decoder(chat.max_pixels, check)
            budget.expect(len(message["files"]))
            pictures = [picture for file in message["files"] for picture in self._open(Path(file), budget, decoder)]
            return [*chat.turns, Turn([*pictures, words])], partial(chat.stream, [*pictures, words])

        yield from self._answer(prepare, options_and_visitor, message)

    def edit(self, index: float, words: str, *options_and_visitor: Any) -> Iterator[PageUpdate]:
        """Asks the question of a message in other words; what came after it is dropped."""
        with failure_in_words():
            words = _checked(typed(words))

        def prepare(chat: Chat, _: Callable[[], None]) -> PendingTurn:
            asked = [i for i, turn in enumerate(chat.turns) if turn.answer is not None]
            if not 0 <= (number := int(index) // 2) < len(asked):  # a question and an answer each
                raise UserError("This question is no longer part of the conversation.")
            turn = asked[number]
            turns = [*chat.turns[:turn], Turn([*chat.turns[turn].pictures, words])]
            return turns, partial(chat.edit, turn, words)

        yield from self._answer(prepare, options_and_visitor)

    def regenerate(self, *options_and_visitor: Any) -> Iterator[PageUpdate]:
        """Asks the last question again."""

        def prepare(chat: Chat, _: Callable[[], None]) -> PendingTurn:
            return [*chat.turns[:-1], *(replace(turn, answer=None) for turn in chat.turns[-1:])], chat.regenerate

        yield from self._answer(prepare, options_and_visitor)

    def undo(self, visitor: Visitor | None) -> PageUpdate:
        """Takes the last question back into the message box, pictures included."""
        visitor = self._visitor(visitor)
        with failure_in_words():
            *pictures, words = visitor.chat.undo()
        files = [original_file(picture) for picture in pictures if isinstance(picture, Picture)]
        return visitor.shown({"text": words, "files": files})

    def stop(self, visitor: Visitor | None) -> None:
        """Ends the question under way; the text of its answer so far stays."""
        if visitor is not None:
            visitor.stop()

    def restart(self, visitor: Visitor | None) -> PageUpdate:
        """Forgets the conversation, and ends a question under way."""
        visitor = self._visitor(visitor)
        visitor.restart()
        return visitor.shown(_EMPTY)

    def save(self, visitor: Visitor | None) -> str:
        """The conversation as a JSON file."""
        visitor = self._visitor(visitor)
        with failure_in_words():
            if all(turn.answer is None for turn in visitor.chat.turns):
                raise UserError("There is nothing to save yet. Ask a question first.")
            saved = visitor.chat.save().encode()
            if len(saved) > self.max_upload_mb * 2**20:  # as gradio counts
                raise UserError(
                    f"The conversation would have {len(saved) / 2**20:.1f} MB; no more than {self.max_upload_mb} can "
                    "be loaded again. Take back questions with large pictures or videos."
                )
            return save_bytes_to_cache(saved, "conversation.json", get_upload_folder())

    def load(self, file: str, visitor: Visitor | None) -> PageUpdate:
        """Takes up a conversation that was saved, instead of this one."""
        visitor = self._visitor(visitor)
        with failure_in_words():
            try:
                saved = Path(file).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise UserError("This is not a saved conversation. Choose a JSON file that was saved here.") from None
            chat = self.sessions.open()  # another: while it can't be loaded, the answer under way continues
            chat.load(saved, Decoder(chat.max_pixels))
            visitor.restart()
            visitor.chat = chat
        return visitor.shown(_EMPTY, "The conversation was loaded.")

    def _open(self, file: Path, budget: PixelBudget, decoder: Decoder) -> list[Picture]:
        try:
            if str(mimetypes.guess_type(file)[0]).startswith("video/"):
                return Video(file, self.n_frms).pictures(budget, decoder)
            return [Picture.from_file(file, budget, decoder)]
        except RestartedError:
            raise
        except UserError as error:  # where we keep it is our business
            words = str(error).removeprefix(str(file)).lstrip(": ").replace(str(file), "it")
            raise UserError(f"{file.name}: {words}") from None

    def _visitor(self, visitor: Visitor | None) -> Visitor:
        return visitor or Visitor(self.sessions.open())

    def _answer(
        self, prepare: Prepare, options_and_visitor: Sequence[Any], message: Message | None = None
    ) -> Iterator[PageUpdate]:
        """Waits for its turn, prepares, and streams the answer; if that fails, `message` goes back into its box."""
        *controls, known = options_and_visitor
        visitor = self._visitor(known)
        with failure_in_words():
            options = decoding(*controls)
            with visitor.asking() as stopped, self._queue.join() as before:
                box = message_box(True)
                try:
                    while (others := before()) > 0:
                        yield visitor.view.messages(visitor.chat.turns), box, waiting(others), visitor
                        visitor.check(stopped, _REPORT_EVERY)
                        box = gr.skip()
                    # gradio keeps the visitor with the first of these: until then neither stop nor restart finds him
                    box = message_box(True, None if message is None else _EMPTY)
                    yield visitor.view.messages(visitor.chat.turns), box, READING, visitor
                    turns, stream = prepare(visitor.chat, partial(visitor.check, stopped))
                    answers = stream(**vars(options))  # which raises after a restart from here on
                    visitor.check(stopped)
                    yield from _stream(visitor, turns, answers, options, stopped)
                except RestartedError:
                    yield visitor.shown()  # gradio shows the last value once more: it must not be the old history
                except GivenUpError:
                    yield visitor.shown(message)
                except Exception:
                    yield visitor.shown(message)
                    raise


def _stream(
    visitor: Visitor, turns: list[Turn], answers: Iterator[str], options: AnswerOptions, stopped: Event
) -> Iterator[PageUpdate]:
    """Shows `turns` with a growing answer to the last."""
    chat, clock, forgotten, answer = visitor.chat, Clock(), visitor.chat.forgotten, ""
    yield visitor.view.messages(turns, "…"), gr.skip(), clock.status(), visitor
    for answer in answers:
        if stopped.is_set():  # maybe before there was something to stop
            chat.stop()
        if clock.tick():
            yield visitor.view.messages(turns, answer), gr.skip(), clock.status(), visitor
    if chat.forgotten > forgotten:
        gr.Info(f"The conversation is long: the model no longer reads its first {chat.forgotten} questions.")
    yield visitor.shown(status=clock.summary(chat, answer, options))


def _checked(words: str) -> str:
    """A visitor's words.

    Raises:
        UserError: there are none, or one holds half a character.
    """
    if not words.strip():
        raise UserError("The question is empty. Type one first.")
    try:
        words.encode()
    except UnicodeEncodeError:  # it could not be sent back to the browser either
        raise UserError("A character of the question is only half there. Type it again.") from None
    return words


@contextmanager
def failure_in_words() -> Iterator[None]:
    """Turns exceptions into messages on the page; what is not the visitor's doing is logged with its traceback.

    The page takes a message for HTML, and what a visitor sent may stand in it.
    """
    try:
        yield
    except UserError as error:
        raise gr.Error(html.escape(labelled(str(error)), quote=False), print_exception=False) from None
    except Exception as error:
        logger.exception("the model failed")
        words = html.escape(f"The model failed: {type(error).__name__}: {first_line(error)}", quote=False)
        raise gr.Error(words, print_exception=False) from error

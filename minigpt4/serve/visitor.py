"""What happens on the page: each method answers one of its events."""

import logging
import mimetypes
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from minigpt4.common.errors import UserError, first_line
from minigpt4.common.limits import MAX_IMAGE_PIXELS
from minigpt4.conversation.chat import Chat, RestartedError
from minigpt4.conversation.conversation import Turn
from minigpt4.conversation.pictures import Picture, Video, open_image
from minigpt4.conversation.session import Sessions
from minigpt4.serve.status import Clock
from minigpt4.serve.view import View, original_file, typed

logger = logging.getLogger(__name__)

GREEDY, SAMPLE, BEAMS = MODES = ("Greedy", "Sample", "Beams")
Message = dict[str, Any]  # {"text", "files": paths}
Shown = tuple[Any, Any, str, Any]  # the chat's messages, the message box, the status line, the visitor

_EMPTY: Message = {"text": "", "files": []}


class Visitor:
    """What the page keeps of one visitor, in his browser tab's session."""

    def __init__(self, chat: Chat):
        self.chat = chat
        self.view = View()

    def shown(self, message: Message | None = None, status: str = "") -> Shown:
        """The page between two answers; `message` replaces what is in the box."""
        return self.view.messages(self.chat.turns), _ready(message), status, self


class Handlers:
    """The page's events. Their last argument is the visitor, None before the first event.

    `options` are the values of the page's controls, as `decoding` takes them.

    Args:
        sessions: opens a visitor's conversation.
        max_image_pixels: larger pictures are refused, before they are decoded.
    """

    def __init__(self, sessions: Sessions, max_image_pixels: int = MAX_IMAGE_PIXELS):
        self.sessions = sessions
        self.max_image_pixels = max_image_pixels

    def ask(self, message: Message, *options_and_visitor: Any) -> Iterator[Shown]:
        """Asks about a message's pictures and videos, and streams the answer."""
        *options, visitor = options_and_visitor
        visitor = self._visitor(visitor)
        with failure_in_words():
            if not message["text"].strip():
                raise UserError("The question is empty. Type one first.")
            pictures = [picture for file in message["files"] for picture in self._open(Path(file))]
            chosen = decoding(*options)
        chat: Chat = visitor.chat
        asked = [*chat.turns, Turn(message["text"], pictures=pictures)]
        yield from _answer(visitor, asked, chosen, chat.stream([*pictures, message["text"]], **chosen), message)

    def edit(self, index: float, words: str, *options_and_visitor: Any) -> Iterator[Shown]:
        """Asks the question of a message in other words; what came after it is dropped."""
        *options, visitor = options_and_visitor
        visitor = self._visitor(visitor)
        chat: Chat = visitor.chat
        with failure_in_words():
            words, chosen = typed(words), decoding(*options)
            if not words.strip():
                raise UserError("The question is empty. Type one first.")
            asked = [i for i, turn in enumerate(chat.turns) if turn.answer is not None]
            if not 0 <= (number := int(index) // 2) < len(asked):  # a question and an answer each
                raise UserError("This question is no longer part of the conversation.")
        turn = asked[number]
        turns = [*chat.turns[:turn], Turn(words, pictures=chat.turns[turn].pictures)]
        yield from _answer(visitor, turns, chosen, chat.edit(turn, words, **chosen))

    def regenerate(self, *options_and_visitor: Any) -> Iterator[Shown]:
        """Asks the last question again."""
        *options, visitor = options_and_visitor
        visitor = self._visitor(visitor)
        chat: Chat = visitor.chat
        with failure_in_words():
            chosen = decoding(*options)
        turns = [*chat.turns[:-1], *(replace(turn, answer=None) for turn in chat.turns[-1:])]
        yield from _answer(visitor, turns, chosen, chat.regenerate(**chosen))

    def undo(self, visitor: Visitor | None) -> Shown:
        """Takes the last question back into the message box, pictures included."""
        visitor = self._visitor(visitor)
        with failure_in_words():
            *pictures, words = visitor.chat.undo()
        files = [original_file(picture) for picture in pictures if isinstance(picture, Picture)]
        return visitor.shown({"text": words, "files": files})

    def stop(self, visitor: Visitor | None) -> None:
        """Ends the answer under way; what was said of it stays."""
        if visitor is not None:
            visitor.chat.stop()

    def restart(self, visitor: Visitor | None) -> Shown:
        """Forgets the conversation, and ends an answer under way."""
        visitor = self._visitor(visitor)
        visitor.chat.stop()
        visitor.chat.restart()
        return visitor.shown(_EMPTY)

    def save(self, visitor: Visitor | None) -> str:
        """The conversation as a JSON file."""
        visitor = self._visitor(visitor)
        if not visitor.chat.turns:
            raise gr.Error("There is nothing to save yet. Ask a question first.", print_exception=False)
        return save_bytes_to_cache(visitor.chat.save().encode(), "conversation.json", get_upload_folder())

    def load(self, file: str, visitor: Visitor | None) -> Shown:
        """Takes up a conversation that was saved, instead of this one."""
        visitor = self._visitor(visitor)
        with failure_in_words():
            try:
                saved = Path(file).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise UserError("This is no saved conversation. Choose a JSON file that was saved here.") from None
            visitor.chat.stop()
            visitor.chat.load(saved, self.max_image_pixels)
        return visitor.shown(_EMPTY, "The conversation was loaded.")

    def _visitor(self, visitor: Visitor | None) -> Visitor:
        return visitor or Visitor(self.sessions.open())

    def _open(self, file: Path) -> list[Picture]:
        try:
            if str(mimetypes.guess_type(file)[0]).startswith("video/"):
                return Video(file).pictures()
            return [Picture(open_image(file, self.max_image_pixels))]
        except UserError as error:
            words = str(error).removeprefix(f"{file} ").replace(str(file), "it")  # where we keep it is our business
            raise UserError(f"{file.name}: {words}") from None


def decoding(
    mode: str,
    beams: float,
    temperature: float,
    top_p: float,
    repetition_penalty: float,
    length_penalty: float,
    min_new_tokens: float,
    max_new_tokens: float,
    seed: float,
) -> dict[str, Any]:
    """The options of `MiniGPTBase.generate` that the page's controls mean; below 0, the seed is drawn.

    Raises:
        UserError: the mode is none of `MODES`.
    """
    options: dict[str, Any] = {
        "repetition_penalty": float(repetition_penalty),  # JSON has one kind of number
        "min_new_tokens": int(min_new_tokens),
        "max_new_tokens": int(max_new_tokens),
    }
    if mode == SAMPLE:
        seed = random.randrange(2**31) if seed < 0 else int(seed)
        return options | {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "seed": seed}
    if mode == BEAMS:
        return options | {"num_beams": int(beams), "length_penalty": float(length_penalty)}
    if mode != GREEDY:
        raise UserError(f"The mode {mode!r} is unknown. Choose one of {', '.join(MODES)}.")
    return options


@contextmanager
def failure_in_words() -> Iterator[None]:
    """Turns exceptions into messages on the page; what is not the visitor's doing is logged with its traceback."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:
        logger.exception("the model failed")
        words = f"The model failed: {type(error).__name__}: {first_line(error)}"
        raise gr.Error(words, print_exception=False) from error


def _answer(
    visitor: Visitor, turns: list[Turn], options: dict[str, Any], answers: Iterator[str], message: Message | None = None
) -> Iterator[Shown]:
    """Streams `turns` with a growing answer to the last; if it fails, `message` goes back into its box."""
    chat, clock, forgotten = visitor.chat, Clock(), visitor.chat.forgotten
    yield visitor.view.messages(turns, "…"), _busy(None if message is None else _EMPTY), clock.status(), visitor
    with failure_in_words():
        try:
            answer = ""
            for answer in answers:
                if clock.tick():
                    yield visitor.view.messages(turns, answer), gr.skip(), clock.status(), visitor
        except RestartedError:
            yield visitor.shown()  # gradio shows the last value once more: it must not be the old history
            return
        except Exception:
            yield visitor.shown(message)
            raise
    if chat.forgotten > forgotten:
        gr.Info(f"The conversation is long: the model no longer reads its first {chat.forgotten} questions.")
    yield visitor.shown(status=clock.summary(chat, answer, options))


def _ready(message: Message | None) -> Any:
    """An update of the message box: it sends again, and its content is replaced, if there is another."""
    return gr.update(submit_btn=True, stop_btn=False) | ({} if message is None else {"value": message})


def _busy(message: Message | None) -> Any:
    return gr.update(submit_btn=False, stop_btn=True) | ({} if message is None else {"value": message})

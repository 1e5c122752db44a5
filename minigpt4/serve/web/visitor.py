"""What the page keeps of one visitor, and the queue that he waits in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import gradio as gr

from minigpt4.common.errors import UserError
from minigpt4.inference.chat import Chat, RestartedError
from minigpt4.serve.web.view import View

Message = dict[str, Any]  # {"text", "files": paths}
PageUpdate = tuple[Any, Any, Any, Any]  # the chat's messages, the message box, the status line, the visitor


class GivenUpError(Exception):
    """The visitor stopped before his answer began."""


class Visitor:
    """What the page keeps of one visitor, in his browser tab's session."""

    def __init__(self, chat: Chat):
        self.chat = chat
        self.view = View()
        self._stopped: Event | None = None  # of the question under way

    def shown(self, message: Message | None = None, status: str = "") -> PageUpdate:
        """The page between two answers; `message` replaces what is in the box."""
        return self.view.messages(self.chat.turns), message_box(False, message), status, self

    @contextmanager
    def asking(self) -> Iterator[Event]:
        """While a question is under way; gives what is set when the visitor no longer wants its answer.

        Raises:
            UserError: another one is under way.
        """
        if self._stopped is not None:
            raise UserError("The previous question is still being answered. Wait for its answer, or stop it.")
        self._stopped = stopped = Event()
        try:
            yield stopped
        finally:
            if self._stopped is stopped:  # no restart came
                self._stopped = None

    def stop(self) -> None:
        """Ends the question under way, whether its answer has started or not; the text so far stays."""
        if self._stopped is not None:
            self._stopped.set()
        self.chat.stop()

    def restart(self) -> None:
        """Forgets the conversation, and ends the question under way."""
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.set()
        self.chat.restart()

    def check(self, stopped: Event, seconds: float = 0) -> None:
        """Waits for what `asking` gave, and ends the question if that came.

        Raises:
            GivenUpError: by a stop.
            RestartedError: by a restart.
        """
        if stopped.wait(seconds):
            raise GivenUpError if self._stopped is stopped else RestartedError


class AnswerQueue:
    """A queue in front of a few places: first come, first served.

    Gradio's own queue starts an event only when its turn comes; who waits here is shown that, and can leave.
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


def message_box(busy: bool, message: Message | None = None) -> Any:
    """An update of the message box: whether it sends or stops; its content is replaced, if there is another."""
    return gr.update(submit_btn=not busy, stop_btn=busy) | ({} if message is None else {"value": message})

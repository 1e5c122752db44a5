"""The line editor of `minigpt4 chat`: history, and completion with Tab."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory

from minigpt4.common.errors import make_folder, writing


class Commands(Completer):
    """Completes a command's name, and what stands behind it."""

    def __init__(self, commands: Sequence[str], options: Sequence[str]):
        self._names = WordCompleter(commands, WORD=True)
        path = PathCompleter(expanduser=True)
        self._behind: dict[str, Completer] = {name: path for name in (":img", ":video", ":save", ":load")}
        self._behind[":conf"] = WordCompleter([f"{key}=" for key in options], WORD=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        name, space, rest = document.text_before_cursor.partition(" ")
        if not space:
            return self._names.get_completions(document, complete_event) if name.startswith(":") else []
        return self._behind[name].get_completions(Document(rest), complete_event) if name in self._behind else []


def line_editor(folder: Path, commands: Sequence[str], options: Sequence[str]) -> Callable[[], str]:
    """A function that asks for a line.

    Args:
        folder: where a file keeps the lines for the next time; only its owner may read it.
        commands, options: names that Tab completes.

    Raises:
        UserError: the folder can't be written to.
    """
    make_folder("env.cache_root", folder)
    history = folder / "chat_history"
    with writing("env.cache_root", history):
        history.touch(mode=0o600)
        history.chmod(0o600)  # one that was there, too
    session: PromptSession[str] = PromptSession(
        "> ", history=FileHistory(str(history)), completer=Commands(commands, options), complete_while_typing=False
    )
    return session.prompt

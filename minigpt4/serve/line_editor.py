"""The line editor of `minigpt4 chat`: history, and completion with Tab."""

from collections.abc import Callable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, NestedCompleter, PathCompleter, WordCompleter, merge_completers
from prompt_toolkit.history import FileHistory

from minigpt4.common.errors import UserError, make_folder

_TAKE_PATHS = (":img", ":video", ":save", ":load")


def completer(commands: Sequence[str], options: Sequence[str]) -> Completer:
    """Completes a command's name, and what stands behind it."""
    behind: dict[str, Completer | None] = dict.fromkeys(_TAKE_PATHS, PathCompleter(expanduser=True))
    behind[":conf"] = WordCompleter([f"{key}=" for key in options], WORD=True)
    own = NestedCompleter({name: behind[name] for name in commands if name in behind})
    return merge_completers([WordCompleter(commands, sentence=True), own], deduplicate=True)


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
    try:
        history.touch(mode=0o600)
        history.chmod(0o600)  # one that was there, too
    except OSError as error:
        raise UserError(
            f"env.cache_root: '{history}' can't be written ({error.strerror}). Set it to a folder you may write to."
        ) from None
    session: PromptSession[str] = PromptSession(
        "> ", history=FileHistory(str(history)), completer=completer(commands, options), complete_while_typing=False
    )
    return session.prompt

"""Where answers to many questions go, one JSON object a line: a file that a later run continues with, or stdout."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from minigpt4.common.command_line import say
from minigpt4.common.errors import UserError, make_folder
from minigpt4.common.files import regular_file, replace_file
from minigpt4.common.locks import locked_file

_LATER = "Make room, and run it again: it continues there."
_BEGINNING = b'{"id": '  # of every line
_ECHO = {"id", "images", "video", "text", "prompt"}  # what a line may repeat of its question
_ANSWERED = {"answer", "finish", "new_tokens"}
# by predict: boxes; the others by an evaluation
_ADDED = {"boxes", "seconds", "choice", "reference", "score", "parsed", "understood", "tags"}
_ENCODING: Any = {"encoding": "utf-8", "errors": "backslashreplace"}  # JSON's own escape for a file name's bad byte


class Question(Protocol):
    """What can be asked: it has a name, and says what an answer repeats of it, `id` first."""

    @property
    def id(self) -> str | int: ...

    def echo(self) -> dict[str, Any]: ...


Q = TypeVar("Q", bound=Question)


class Results(ExitStack, Generic[Q]):
    """Takes answers as they come, so that a run can end at any time; in the end they lie in the questions' order.

    A file that holds answers already keeps them. A line that was not written to its end, and questions that failed,
    are taken out and asked again.

    Args:
        path: None for stdout.
        key: the option or config key that names it.

    Attributes:
        open: the questions that have no answer yet.

    Raises:
        UserError: the file holds something else, is not a regular file, can't be written, or another run writes to it.
    """

    def __init__(self, path: Path | None, questions: Sequence[Q], key: str = "--output"):
        super().__init__()
        self._key = key
        self._path, self._order = path, [question.id for question in questions]
        self._lines: dict[str | int, str] = {}  # in the order of the file
        if path is None:
            cast(TextIOWrapper, sys.stdout).reconfigure(**_ENCODING)
        else:
            with _errors(key, path, "Name another file."), ExitStack() as opened:
                make_folder(key, regular_file(path).parent)
                opened.enter_context(locked_file(key, path))
                self._lines = _answered(key, path, questions) if path.exists() else {}
                self._replace()
                self._file = opened.enter_context(path.open("a", **_ENCODING))
                self.push(opened.pop_all())
        self.open = [question for question in questions if question.id not in self._lines]

    def write(self, results: Sequence[dict[str, Any]]) -> None:
        """Writes answers, each with the `id` of its question."""
        lines = {result["id"]: json.dumps(result, ensure_ascii=False) + "\n" for result in results}
        self._lines |= lines
        text = "".join(lines.values())
        if self._path is None:
            say(text)
            return
        with _errors(self._key, self._path, _LATER):
            try:
                self._file.write(text)
                self._file.flush()
            except OSError:
                with suppress(OSError):  # it tries to write once more
                    self._file.close()
                raise

    @property
    def written(self) -> list[dict[str, Any]]:
        """All answers, in the order in which they were given."""
        return [json.loads(line) for line in self._lines.values()]

    def finish(self) -> None:
        """Puts a file's lines in order, once all are there."""
        if self._path and list(self._lines) != self._order:
            self._lines = {name: self._lines[name] for name in self._order}
            with _errors(self._key, self._path, _LATER):
                self._file.close()
                self._replace()

    def _replace(self) -> None:
        assert self._path
        replace_file(self._path, "".join(self._lines.values()).encode(**_ENCODING))


@contextmanager
def _errors(key: str, path: Path, cure: str) -> Iterator[None]:
    """Says in words that a file can't be read or written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{key}: '{path}': {error.strerror}. {cure}") from None


def _answered(key: str, path: Path, questions: Sequence[Question]) -> dict[str | int, str]:
    """The lines of a file that answer one of the questions."""
    echoes, lines = {question.id: question.echo() for question in questions}, {}
    raw = path.read_bytes().split(b"\n")
    for number, line in enumerate(raw, start=1):
        last = number == len(raw)  # nothing, unless it was not written to its end
        try:
            result = json.loads(line)
        except (ValueError, RecursionError):
            if last and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]:
                break
            result = None
        if not _is_answer(result):
            where = "its end" if last else f"line {number}"
            raise UserError(f"{key}: {where} of '{path}' is not an answer of an earlier run. Name another file.")
        if "error" in result:
            continue
        name = result["id"]
        if echoes.get(name) != {key: value for key, value in result.items() if key in _ECHO}:
            raise UserError(
                f"{key}: line {number} of '{path}' answers '{name}', which is now another question, or none. "
                "Name another file."
            )
        lines[name] = line.decode() + "\n"
    return lines


def _is_answer(found: Any) -> bool:
    """Whether a run has written it. A question is not an answer, even with an "answer" or "error" of its own."""
    if not isinstance(found, dict) or not isinstance(found.get("id"), str | int):
        return False
    said = found.keys() - _ECHO - _ADDED
    if "error" in said:
        return said <= {"error", *_ANSWERED} and isinstance(found["error"], str)
    return said == _ANSWERED and isinstance(found["answer"], str)

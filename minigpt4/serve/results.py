"""Where answers go, one JSON object a line: a file that a later run goes on with, or stdout."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

from minigpt4.common.errors import UserError, make_folder
from minigpt4.common.files import regular_file, replace_file
from minigpt4.serve.questions import Question

_BEGINNING = b'{"id": '  # of every line
_ECHO = {"id", "images", "video", "text"}  # what a line may repeat of its question
_ENCODING: Any = {"encoding": "utf-8", "errors": "backslashreplace"}  # JSON's own escape for a file name's bad byte


class Results(ExitStack):
    """Takes answers as they come, so that a run can end at any time; in the end they lie in the questions' order.

    A file that holds answers already keeps them. A line that was not written to its end, and questions that failed,
    are taken out and asked again.

    Args:
        path: None for stdout.

    Raises:
        UserError: the file holds something else, is no regular file, or can't be written.
    """

    def __init__(self, path: Path | None, questions: Sequence[Question]):
        super().__init__()
        self._path, self._order = path, [question.id for question in questions]
        self._lines: dict[str | int, str] = {}  # in the order of the file
        self._file = cast(TextIOWrapper, sys.stdout)
        if path is None:
            self._file.reconfigure(**_ENCODING)
        else:
            try:
                make_folder("--output", regular_file(path).parent)
                self._lines = _answered(path, questions) if path.exists() else {}
                self._replace()
                self._file = self.enter_context(path.open("a", **_ENCODING))
            except OSError as error:
                raise UserError(f"--output: '{path}': {error.strerror}. Name another file.") from None
        self.open = [question for question in questions if question.id not in self._lines]

    def write(self, results: Sequence[dict[str, Any]]) -> None:
        """Writes answers, each with the `id` of its question."""
        lines = {result["id"]: json.dumps(result, ensure_ascii=False) + "\n" for result in results}
        self._lines |= lines
        self._file.write("".join(lines.values()))
        self._file.flush()

    def finish(self) -> None:
        """Puts a file's lines in order, once all are there."""
        if self._path and list(self._lines) != self._order:
            self._lines = {name: self._lines[name] for name in self._order}
            self._replace()

    def _replace(self) -> None:
        assert self._path
        replace_file(self._path, "".join(self._lines.values()).encode(**_ENCODING))


def _answered(path: Path, questions: Sequence[Question]) -> dict[str | int, str]:
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
            raise _foreign(path, "its end" if last else f"line {number}")
        if "error" in result:
            continue
        name = result["id"]
        if echoes.get(name) != {key: value for key, value in result.items() if key in _ECHO}:
            raise UserError(
                f"--output: line {number} of '{path}' answers '{name}', which is asked otherwise now, or not at all. "
                "Name another file."
            )
        lines[name] = line.decode() + "\n"
    return lines


def _is_answer(found: Any) -> bool:
    """Is it what predict writes? Questions are none, even where they have an "answer" or "error" of their own."""
    if not isinstance(found, dict) or not isinstance(found.get("id"), str | int):
        return False
    said = found.keys() - _ECHO
    if said == {"error"}:
        return isinstance(found["error"], str)
    return said == {"answer", "finish", "new_tokens"} and isinstance(found["answer"], str)


def _foreign(path: Path, where: str) -> UserError:
    return UserError(f"--output: {where} of '{path}' is no answer that predict wrote. Name another file.")

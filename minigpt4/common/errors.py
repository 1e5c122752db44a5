"""Errors that are the user's to fix."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class UserError(Exception):
    """Bad input: one line that names the key, the value and the cure. Entry points print it and exit with 2."""


class Problems(list[str]):
    """The messages of failed checks, to be raised together.

    Attributes:
        passed: what checks that have a name found in order.
        warnings: what may be wrong, but is not refused.
    """

    def __init__(self, messages: Iterable[str] = ()):
        super().__init__(messages)
        self.passed: list[str] = []
        self.warnings: list[str] = []

    @contextmanager
    def collect(self, what: str = "") -> Iterator[None]:
        """Records a `UserError` of its block instead of raising it; else records `what` as passed."""
        try:
            yield
        except UserError as error:
            self.extend(line for line in str(error).splitlines() if line not in self)
        else:
            self.passed += [what] if what else []

    def attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What a function returns; None where it raises a `UserError`, which is noted."""
        with self.collect():
            return function(*args, **kwargs)
        return None

    def check(self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """As `attempt`, with a name for what was found in order."""
        with self.collect(what):
            return function(*args, **kwargs)
        return None

    def raise_all(self) -> None:
        """Raises what was noted, if anything."""
        if self:
            raise UserError("\n".join(self))


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Puts a prefix, such as the place of a record, before the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


def first_line(error: BaseException) -> str:
    """An exception's message as one line; its type where it has no message."""
    if isinstance(error, UnpicklingError):  # torch advises to run what the file holds
        return "this is not a weights file"
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def make_folder(key: str, folder: Path) -> None:
    """Makes a folder and those above it.

    Raises:
        UserError: it can't be made. `key` is the config key or argument that names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{key}: '{folder}' can't be made ({error.strerror}). Set it to a folder you may write to."
        ) from None


@contextmanager
def writing(key: str, path: Path) -> Iterator[None]:
    """Around what writes to a file or folder: a failure of the system, such as a full disk, is reported in one line.

    Raises:
        UserError: `path` can't be written. `key` is the config key or argument that names the folder.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (why := _failed_write(error)) is None:
            raise
        raise UserError(
            f"{key}: '{path}' can't be written ({why}). Free space there and allow writing, or set {key} to another "
            "folder."
        ) from error


def _failed_write(error: BaseException) -> str | None:
    """Why a file could not be written, if that is what an error says; libraries wrap the system's in their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or first_line(cause)
        if match := re.search(r"I/O error: (.*?)(?: \(os error|$)", first_line(cause)):  # safetensors
            return match[1]
        cause = cause.__cause__ or cause.__context__
    return "torch could not write it whole" if "inline_container.cc" in str(error) else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'? Known: a, b, x." for an error's end."""
    known = sorted(known)
    return f"{closest(name, known)} Known: {', '.join(known) or 'none'}."


def closest(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?", or nothing where no known name is near."""
    lower = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f" Did you mean '{lower[close[0]]}'?" if close else ""

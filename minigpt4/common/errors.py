"""Errors that are the user's to fix."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError


class UserError(Exception):
    """Bad input: one line that names the key, the value and the cure. Entry points print it and exit with 2."""


class Problems(list[str]):
    """The messages of failed checks, to be told together."""

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Notes a `UserError` of its block, once, and goes on behind it."""
        try:
            yield
        except UserError as error:
            self.extend(line for line in str(error).splitlines() if line not in self)

    def tell(self) -> None:
        """Raises what was noted, if anything."""
        if self:
            raise UserError("\n".join(self))


def first_line(error: BaseException) -> str:
    """An exception's message as one line; its type where it has no message."""
    if isinstance(error, UnpicklingError):  # torch advises to run what the file holds
        return "this is no weights file"
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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'? Known: a, b, x." for an error's end."""
    known = sorted(known)
    lower = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f" Did you mean '{lower[close[0]]}'?" if close else ""
    return f"{hint} Known: {', '.join(known) or 'none'}."

"""Errors that are the user's to fix."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that names the key, the value and the cure. Entry points print it and exit with 2."""


def first_line(error: BaseException) -> str:
    """An exception's message as one line; its type where it has no message."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'? Known: a, b, x." for an error's end."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Known: {', '.join(known) or 'none'}."

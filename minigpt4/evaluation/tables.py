"""Scores as text."""

from collections.abc import Iterator, Mapping
from typing import Any

from minigpt4.evaluation.benchmark import Scores

_UNITS = {"percent": "%", "fraction": "%", "points": "points"}


def flat(scores: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """{name: number} of nested scores, the names of groups joined by dots; what is not a number is left out.

    Counts stay `int`, scores are `float`: see `Scores.scores`.
    """
    found: dict[str, float] = {}
    for key, value in scores.items():
        name = f"{above}.{key}".removeprefix(".")
        if isinstance(value, Mapping):
            found |= flat(value, name)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], int | float):
            found[name] = float(value[0])  # with the number of its questions
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found


def table(conditions: Mapping[str, Scores]) -> str:
    """Draws {condition: scores} of one benchmark as a Markdown table, one row a score, the main one last."""
    first = next(iter(conditions.values()))
    factor = 100 if first.scale == "fraction" else 1
    columns = {name: flat(scores.scores) for name, scores in conditions.items()}
    rows = [[f"score ({_UNITS[first.scale]})", *columns]]
    names = sorted(flat(first.scores), key=lambda name: (name == first.main, name))
    rows += [[name, *(_number(own[name], factor) for own in columns.values())] for name in names]
    return "\n".join(_drawn(rows))


def _number(value: float, factor: int) -> str:
    return str(value) if isinstance(value, int) else f"{factor * value:.1f}"


def _drawn(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"

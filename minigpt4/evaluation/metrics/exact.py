"""Exact match, and the choice that an answer names, for data of one's own."""

import re
from collections.abc import Sequence


def normalize(answer: str) -> str:
    """What exact match compares: lower case, one space between words, no full stop at the end."""
    return re.sub(r"\s+", " ", answer.lower()).strip().rstrip(".").strip()


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the answers, both normalized; else 0."""
    return float(normalize(prediction) in map(normalize, answers))


def chosen(prediction: str, choices: Sequence[str]) -> int | None:
    """The number of the choice whose text the prediction is, or whose letter it begins with: B, (b), `B. text`."""
    said = normalize(prediction)
    texts = [normalize(choice) for choice in choices]
    if said in texts:
        return texts.index(said)
    letter = re.fullmatch(r"\(?([a-z])(?:[).:]+(?:\s.*)?)?", said, re.DOTALL)
    number = ord(letter[1]) - ord("a") if letter else len(choices)
    return number if number < len(choices) else None

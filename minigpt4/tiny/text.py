"""Everything that is said about a scene: captions, descriptions, questions and answers, made of `text.yaml`."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from minigpt4.tiny.world import COLORS, POSITIONS, Fact

_WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PLACES: dict[str, str] = _WORDS["places"]
COUNTS: list[str] = _WORDS["counts"]
DETAIL_REQUESTS: list[str] = _WORDS["detail_requests"]
MORE_REQUESTS: list[str] = _WORDS["more_requests"]
PHRASINGS: dict[str, list[str]] = _WORDS["phrasings"]
QUESTION_TYPES = tuple(PHRASINGS)
EXPRESSIONS: dict[str, list[str]] = _WORDS["expressions"]


@dataclass(frozen=True)
class Question:
    """One question about a scene, its only right answer, and its type."""

    question_type: str
    question: str
    answer: str


def phrase(fact: Fact) -> str:
    """'a red 7 on the left'."""
    return f"a {fact.color} {fact.digit} {PLACES[fact.position]}"


def expressions(manner: str, fact: Fact) -> list[str]:
    """What names a digit, and no other of its scene, in the manner of a data set."""
    return [text.format(**vars(fact), place=PLACES[fact.position]) for text in EXPRESSIONS[manner]]


def caption(facts: Sequence[Fact]) -> str:
    """The stage-1 caption. Free of punctuation, so that `blip_caption` leaves it as it is."""
    return " and ".join(phrase(fact) for fact in facts)


def description(facts: Sequence[Fact]) -> str:
    """The detailed description of stage 2."""
    noun = "digit" if len(facts) == 1 else "digits"
    sentences = [f"The image shows {COUNTS[len(facts)]} handwritten {noun}."]
    return " ".join(sentences + [f"There is {phrase(fact)}." for fact in facts])


def ask(rng: random.Random, facts: Sequence[Fact], question_type: str) -> Question:
    """A question of one type about one of the facts."""
    fact = rng.choice(facts)
    words = {"place": PLACES[fact.position], "digit": str(fact.digit), "color": fact.color}
    answers = {
        "digit_at": words["digit"],
        "color_at": fact.color,
        "color_of": fact.color,
        "count": COUNTS[len(facts)],
        "where_color": words["place"],
        "where_digit": words["place"],
        "digit_of_color": words["digit"],
    }
    if question_type == "exists":
        words["thing"], answer = _thing(rng, facts, fact)
    else:
        answer = answers[question_type]
    return Question(question_type, rng.choice(PHRASINGS[question_type]).format(**words), answer)


def _thing(rng: random.Random, facts: Sequence[Fact], fact: Fact) -> tuple[str, str]:
    """What `exists` asks for, and the answer; half of the time the thing is not there."""
    by_color, present = rng.random() < 0.5, rng.random() < 0.5
    color, digit = fact.color, fact.digit
    if not present:
        color = rng.choice([name for name in COLORS if name not in {f.color for f in facts}])
        digit = rng.choice([value for value in range(10) if value not in {f.digit for f in facts}])
    name = f"{color} digit" if by_color else str(digit)
    article = "an" if name == "8" else "a"
    answer = f"Yes, there is {phrase(fact)}." if present else f"No, there is no {name}."
    return f"{article} {name}", answer


def ask_all(rng: random.Random, facts: Sequence[Fact]) -> list[Question]:
    return [ask(rng, facts, question_type) for question_type in QUESTION_TYPES]


def notes(rng: random.Random, facts: Sequence[Fact]) -> str:
    """The scene as a text that stands in the image slot while the language model learns to read it."""
    shuffled = rng.sample(list(facts), len(facts))
    style, separator = rng.choice(_WORDS["notes"]), rng.choice([" ", ", ", "; ", " and "])
    places = [{**vars(fact), "place": PLACES[fact.position]} for fact in shuffled]
    return separator.join(style.format(**words) for words in places)


def words_of_the_world() -> list[str]:
    """Words that must be one piece each in the tokenizer: the values that slots carry."""
    return [*map(str, range(10)), *COLORS, *POSITIONS]

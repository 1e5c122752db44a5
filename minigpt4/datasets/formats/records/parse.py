"""From a record as its file has it to questions, answers and pictures."""

import re
from typing import Any

from minigpt4.conversation.prompter import IMAGE_PLACEHOLDER
from minigpt4.datasets.formats.records import formats
from minigpt4.datasets.formats.records.files import BadLine
from minigpt4.datasets.formats.records.record import IMAGE, VIDEO, Record, RecordError, short


def parse_record(raw: Any) -> Record:
    """Understands one record, in any of the `formats`. It opens no file.

    Raises:
        RecordError: the format is not known, or the record makes no sense.
    """
    if isinstance(raw, BadLine):
        raise RecordError("unreadable line", raw.reason)
    if not isinstance(raw, dict):
        raise formats.unknown(f"expected an object, found {short(raw)}")
    # Parquet fills what a record lacks
    parsed = formats.read({key: value for key, value in raw.items() if value is not None})
    record = Record([], [], parsed.images, parsed.videos, parsed.format)
    _add_turns(record, parsed.turns)
    for marker, files in ((f"(<Img>)?{IMAGE_PLACEHOLDER}(</Img>)?", record.images), (VIDEO, record.videos)):
        if len(files) == 1:
            record.questions = _once(marker, record.questions)
    record.placed(record.questions)
    return record


def _add_turns(record: Record, turns: list[tuple[str, Any]]) -> None:
    """Pairs questions and answers. What is said before an answer, the system's words too, is one question."""
    asked: list[str] = []
    greets = any(role == "user" for role, _ in turns)  # else the system's words may be the question
    for role, text in turns:
        greets &= role != "user"
        if role == "assistant" and not record.questions and (greets or not asked):
            record.dropped += 1  # nobody asked
            continue
        _check_text(text)
        if role != "assistant":
            asked.append(_canonical(text, record))
        elif not asked:
            raise RecordError("turns", "an answer without a question")
        elif not text.strip():
            raise RecordError("empty answer", f"the answer of turn {len(record.questions) + 1} is empty")
        elif any(marker in text for marker in (IMAGE_PLACEHOLDER, "<image>", VIDEO)):
            raise RecordError("placeholder mismatch", "an answer holds a placeholder; only questions show pictures")
        else:
            record.questions.append("\n".join(asked))
            record.answers.append(text)
            asked = []
    if asked or not record.answers:
        problem = "the last question has no answer" if asked else "an answer without a question"
        raise RecordError("turns", problem if turns else "no turns")


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise RecordError("turns", f"expected a text, found {short(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[max(error.start - 20, 0) : error.end]
        raise RecordError("unreadable text", f"a character is only half there (a lone surrogate): {half!r}") from None


def _canonical(text: str, record: Record) -> str:
    """LLaVA's `<image>` becomes our placeholder, and the line break after it the space that a chat writes."""
    marker = IMAGE if record.images or not record.videos else VIDEO  # LLaVA-Video writes <image> for its videos too
    return re.sub("(<image>|<video>)\n", r"\1 ", text).replace("<image>", marker)


def _once(marker: str, questions: list[str]) -> list[str]:
    """Takes the places of the only picture out of all turns but the first that shows it."""
    shown = [len(re.findall(marker, question)) for question in questions]
    if sum(shown) < 2 or max(shown) > 1:
        return questions
    first = shown.index(1)
    later = [re.sub(f"{marker} ?", "", question).strip() for question in questions[first + 1 :]]
    return questions[: first + 1] + later

"""From a record as its file has it to questions, answers and pictures. Its keys tell its format.

messages            [{"role", "content": text or parts}]          OpenAI, Hugging Face, TRL, ms-swift
conversations       [{"from", "value"}], or as messages           LLaVA, ShareGPT, Qwen-VL
instruction, output                                               MiniGPT4Qwen, Alpaca (with "input")
query, response                                                   ms-swift (with "history")
question, answer
caption or text, beside a picture
"""

import base64
import re
from dataclasses import dataclass, field
from typing import Any

from minigpt4.conversation.prompter import IMAGE_PLACEHOLDER
from minigpt4.datasets.formats.records.record import IMAGE, VIDEO, Record, RecordError, short

_LISTS = ("messages", "conversations")
_PAIRS = {"instruction": "output", "query": "response", "question": "answer"}
_CAPTIONS = ("caption", "text")
_KNOWN = "; ".join([*_LISTS, *map(", ".join, _PAIRS.items()), "image, caption"])
_ROLES = {"system": "system"} | dict.fromkeys(("human", "user"), "user")
_ROLES |= dict.fromkeys(("gpt", "assistant", "bot", "chatgpt", "model"), "assistant")
_NAMED = "<img>(.+?)</img>"  # Qwen-VL's
_SHOWN = 10  # keys that an error names


@dataclass
class Parsed:
    """What a record says.

    Attributes:
        format: the keys by which it was known.
        turns: ("system", "user" or "assistant", what should be text). Pictures that are named
            within a turn have left a placeholder.
        images, videos: file names and data: URLs, in the order of their places.
    """

    format: str
    turns: list[tuple[str, Any]]
    images: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)


def parse_record(raw: Any) -> Record:
    """Understands one record, in any of these formats. It opens no file.

    Raises:
        RecordError: the format is not known, or the record makes no sense.
    """
    if isinstance(raw, RecordError):
        raise RecordError(raw.kind, raw.detail)
    if not isinstance(raw, dict):
        raise _unknown(f"expected an object, found {short(raw)}")
    # Parquet fills what a record lacks
    parsed = _read({key: value for key, value in raw.items() if value is not None})
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


def _read(raw: dict[str, Any]) -> Parsed:
    """Finds out what a record says, whatever its format.

    Raises:
        RecordError: none of the formats has its keys, or it does not keep to its format.
    """
    images, videos = (_files(raw.get(key)) + _files(raw.get(f"{key}s")) for key in ("image", "video"))
    lists = [key for key in _LISTS if key in raw]
    pairs = [(question, answer) for question, answer in _PAIRS.items() if question in raw and answer in raw]
    captions = [key for key in _CAPTIONS if key in raw and (images or videos)]
    if lists:
        parsed = Parsed(lists[0], _system(raw) + _listed(raw[lists[0]]))
    elif pairs:
        parsed = Parsed(", ".join(pairs[0]), _system(raw) + _history(raw) + _paired(raw, *pairs[0]))
    elif captions:
        parsed = Parsed(f"image, {captions[0]}", [("user", ""), ("assistant", raw[captions[0]])])
    else:
        raise _unknown(f"it has the keys {', '.join(map(str, list(raw)[:_SHOWN]))}")
    parsed.turns = [(role, _content(role, content, parsed)) for role, content in parsed.turns]
    if (images or videos) and (parsed.images or parsed.videos):
        raise RecordError("unknown format", "pictures are named within its turns and beside them. Do one of both")
    parsed.images, parsed.videos = parsed.images or images, parsed.videos or videos
    return parsed


def _unknown(why: str) -> RecordError:
    return RecordError("unknown format", f"{why}; known: {_KNOWN}")


def _system(raw: dict[str, Any]) -> list[tuple[str, Any]]:
    return [("system", raw["system"])] if raw.get("system") else []


def _history(raw: dict[str, Any]) -> list[tuple[str, Any]]:
    """Earlier turns, [[question, answer], ...]."""
    history = raw.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RecordError("turns", f"'history' is {short(history)}; expected [[question, answer], ...]")
    return [turn for question, answer in history for turn in (("user", question), ("assistant", answer))]


def _paired(raw: dict[str, Any], question: str, answer: str) -> list[tuple[str, Any]]:
    """One question and its answer, or lists of a turn each."""
    questions, answers = (x if isinstance(x, list) else [x] for x in (raw[question], raw[answer]))
    if len(questions) != len(answers):
        raise RecordError("turns", f"{len(questions)} {question}s, and {len(answers)} {answer}s")
    turns = [turn for q, a in zip(questions, answers, strict=True) for turn in (("user", q), ("assistant", a))]
    own = raw.get("input") if question == "instruction" else None  # what the instruction is about
    return turns[:1] + ([("user", own)] if own else []) + turns[1:]


def _listed(turns: Any) -> list[tuple[str, Any]]:
    """Turns with a role each."""
    found = []
    for turn in _objects(turns):
        role, content = _either(turn, "from", "role"), _either(turn, "value", "content")
        if not isinstance(turn.get(role), str) or turn[role].lower() not in _ROLES:
            raise RecordError("turns", f"'{role}' is {short(turn.get(role))}; known: {', '.join(_ROLES)}")
        found.append((_ROLES[turn[role].lower()], turn.get(content)))
    return found


def _either(turn: dict[str, Any], one: str, other: str) -> str:
    return other if turn.get(one) is None else one  # Parquet fills what a turn lacks


def _content(role: str, content: Any, parsed: Parsed) -> Any:
    """The text of a turn, with a placeholder for each picture that it names: among its parts, or as Qwen-VL does."""
    if isinstance(content, list):
        return " ".join(_part(part, parsed) for part in _objects(content))
    if role == "user" and isinstance(content, str):
        parsed.images += re.findall(_NAMED, content)
        return re.sub(_NAMED, "<image>", content)
    return content


def _part(part: dict[str, Any], parsed: Parsed) -> str:
    """A part's text, or the placeholder of its picture, which may be named beside the turns."""
    kind = str(part.get("type")).removesuffix("_url").removeprefix("input_").removeprefix("output_")
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    for known, files, marker in (("image", parsed.images, IMAGE), ("video", parsed.videos, VIDEO)):
        values = (part.get(key) for key in (f"{known}_url", known, "url", "path"))
        found = _files(next(filter(None, values), None)) if kind == known else []
        if kind == known and len(found) <= 1:
            files += found
            return marker
    raise RecordError("unknown format", f"a part of type {short(part.get('type'))}; known: text, image_url, video_url")


def _files(value: Any) -> list[str]:
    """File names and URLs, as Parquet columns and OpenAI's parts write them too."""
    if isinstance(value, list):
        return [file for one in value for file in _files(one)]
    if isinstance(value, dict):
        own = (value.get(key) for key in ("bytes", "url", "path"))
        value = next(filter(None, own), value)
    if isinstance(value, bytes):
        return ["data:;base64," + base64.b64encode(value).decode()]
    if value is not None and not isinstance(value, str):
        raise RecordError("unknown format", f"{short(value)} names no file")
    return [value] if value else []


def _objects(turns: Any) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RecordError("unknown format", f"expected a list of objects, found {short(turns)}")
    return turns

"""From a record as its file has it to questions, answers and pictures. Its keys show its format.

messages            [{"role", "content": text or parts}]          OpenAI, Hugging Face, TRL, ms-swift
conversations       [{"from", "value"}], or as messages           LLaVA, ShareGPT, Qwen-VL
instruction, output                                               MiniGPT4Qwen, Alpaca (with "input")
query, response                                                   ms-swift (with "history")
question, answer
caption or text, beside a picture
"""

import base64
import re
from typing import Any

from minigpt4.conversation.conversation import Conversation, Part, Turn, rewritten
from minigpt4.conversation.prompter import split_at_placeholders
from minigpt4.datasets.formats.records.record import IMAGE_MARKER, VIDEO_MARKER, File, Record, RecordError, short

_LISTS = ("messages", "conversations")
_PAIRS = {"instruction": "output", "query": "response", "question": "answer"}
_CAPTIONS = ("caption", "text")
_KNOWN = "; ".join([*_LISTS, *map(", ".join, _PAIRS.items()), "image, caption"])
_ROLES = {"system": "system"} | dict.fromkeys(("human", "user"), "user")
_ROLES |= dict.fromkeys(("gpt", "assistant", "bot", "chatgpt", "model"), "assistant")
# LLaVA's, and Qwen-VL's, which names its file: a line break behind it is the space that a chat writes
_PLACE = re.compile(rf"(?:{IMAGE_MARKER}|(?P<video>{VIDEO_MARKER})|<img>(?P<name>.+?)</img>)(?P<space>[ \n]?)")
_SHOWN = 10  # keys that an error names
Roles = list[tuple[str, Any]]  # "system", "user" or "assistant", and what should be text, or a list of parts


def parse_record(raw: Any) -> Record:
    """Understands one record, in any of these formats. It opens no file.

    Raises:
        RecordError: the format is not known, or the record makes no sense.
    """
    if isinstance(raw, RecordError):
        raise RecordError(raw.kind, raw.detail)
    if not isinstance(raw, dict):
        raise _unknown(f"expected an object, found {short(raw)}")
    raw = {key: value for key, value in raw.items() if value is not None}  # Parquet fills what a record lacks
    files = [
        File(name, key == "video")
        for key in ("image", "video")
        for name in _files(raw.get(key)) + _files(raw.get(f"{key}s"))
    ]
    known, roles = _read(raw, bool(files))
    turns, dropped = _turns(roles)
    _place([turn.question for turn in turns], files)
    return Record(Conversation(turns), known, dropped)


def _read(raw: dict[str, Any], shows: bool) -> tuple[str, Roles]:
    """The keys by which a format is known, and what is said in it."""
    lists = [key for key in _LISTS if key in raw]
    pairs = [(question, answer) for question, answer in _PAIRS.items() if question in raw and answer in raw]
    captions = [key for key in _CAPTIONS if key in raw and shows]
    if lists:
        return lists[0], _system(raw) + _listed(raw[lists[0]])
    if pairs:
        return ", ".join(pairs[0]), _system(raw) + _history(raw) + _paired(raw, *pairs[0])
    if captions:
        return f"image, {captions[0]}", [("user", ""), ("assistant", raw[captions[0]])]
    raise _unknown(f"it has the keys {', '.join(map(str, list(raw)[:_SHOWN]))}")


def _turns(roles: Roles) -> tuple[list[Turn], int]:
    """Pairs questions and answers, and counts those that nobody asked for.

    What is said before an answer, the system's words too, is one question.
    """
    turns: list[Turn] = []
    asked: list[Part] = []
    dropped = 0
    greets = any(role == "user" for role, _ in roles)  # else the system's words may be the question
    for role, content in roles:
        greets &= role != "user"
        if role == "assistant" and not turns and (greets or not asked):
            dropped += 1
            continue
        parts = _parts(content)
        if role != "assistant":
            asked += ["\n", *parts] if asked else parts
            continue
        answer = "".join(part for part in parts if isinstance(part, str))
        if not asked:
            raise RecordError("turns", "an answer without a question")
        if any(isinstance(part, File) for part in parts):
            raise RecordError("placeholder mismatch", "an answer holds a placeholder; only questions show pictures")
        if not answer.strip():
            raise RecordError("empty answer", f"the answer of turn {len(turns) + 1} is empty")
        turns.append(Turn(asked, answer))
        asked = []
    if asked or not turns:
        problem = "the last question has no answer" if asked else "an answer without a question"
        raise RecordError("turns", problem if roles else "no turns")
    return turns, dropped


def _parts(content: Any) -> list[Part]:
    """The text of a turn, and a file, with a name or yet without, where it shows one."""
    if isinstance(content, list):
        return [part for one in _objects(content) for part in (" ", *_part(one))][1:] or [""]
    if not isinstance(content, str):
        raise RecordError("turns", f"expected a text, found {short(content)}")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        half = content[max(error.start - 20, 0) : error.end]
        raise RecordError("unreadable text", f"a character is only half there (a lone surrogate): {half!r}") from None
    first, *others = split_at_placeholders(content)
    parts = _marked(first)
    for text in others:  # the original's
        parts += [File(""), *([" "] if text.startswith(" ") else []), *_marked(text.removeprefix(" "))]
    return parts


def _marked(text: str) -> list[Part]:
    """A text, cut at the markers of LLaVA and Qwen-VL, with a file in the place of each."""
    parts: list[Part] = []
    end = 0
    for found in _PLACE.finditer(text):
        parts += [text[end : found.start()], File(found["name"] or "", bool(found["video"]))]
        parts += [" "] if found["space"] else []
        end = found.end()
    return [*parts, text[end:]]


def _part(part: dict[str, Any]) -> list[Part]:
    """Of a list of parts, one's text, or its file, which may be named beside the turns."""
    kind = str(part.get("type")).removesuffix("_url").removeprefix("input_").removeprefix("output_")
    if kind == "text" and isinstance(part.get("text"), str):
        return _parts(part["text"])
    if kind in ("image", "video"):
        values = (part.get(key) for key in (f"{kind}_url", kind, "url", "path"))
        if len(found := _files(next(filter(None, values), None))) <= 1:
            return [File("".join(found), kind == "video")]
    raise RecordError("unknown format", f"a part of type {short(part.get('type'))}; known: text, image_url, video_url")


def _place(questions: list[list[Part]], beside: list[File]) -> None:
    """Puts files that are named beside the questions where these have places for them, or before the first.

    Raises:
        RecordError: there are more places than files, or fewer.
    """
    places = [part for question in questions for part in question if isinstance(part, File)]
    if not places:
        questions[0][:0] = [part for file in beside for part in (file, " ")]
        return
    named = [file for file in places if file.name]
    if named and beside:
        raise RecordError("unknown format", "pictures are named within its turns and beside them. Do one of both")
    files = named or beside
    if files and all(file.video for file in files):  # LLaVA-Video writes <image> for its videos too
        for question in questions:
            question[:] = [File(part.name, video=True) if isinstance(part, File) else part for part in question]
    for video, what in ((False, "images"), (True, "videos")):
        own = [file for file in files if file.video == video]
        shown = [[i for i, part in enumerate(q) if isinstance(part, File) and part.video == video] for q in questions]
        if len(own) == 1 and max(map(len, shown)) == 1:  # shown once more with each question
            first, *later = [number for number, places_ in enumerate(shown) if places_]
            for number in later:
                _remove(questions[number], *shown[number])
            shown = shown[: first + 1]
        if (written := sum(map(len, shown))) != len(own):
            raise RecordError("placeholder mismatch", f"{what} named: {len(own)}, shown in its questions: {written}")
        left = iter(own)
        for question, at in zip(questions, shown, strict=False):
            for i in at:
                question[i] = next(left)


def _remove(question: list[Part], place: int) -> None:
    """Takes a picture out of a question, with the space behind it and those at both ends."""
    del question[place : place + 2 if question[place + 1 : place + 2] == [" "] else place + 1]
    question[:] = rewritten(question, str.strip)


def _unknown(why: str) -> RecordError:
    return RecordError("unknown format", f"{why}; known: {_KNOWN}")


def _system(raw: dict[str, Any]) -> Roles:
    return [("system", raw["system"])] if raw.get("system") else []


def _history(raw: dict[str, Any]) -> Roles:
    """Earlier turns, [[question, answer], ...]."""
    history = raw.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RecordError("turns", f"'history' is {short(history)}; expected [[question, answer], ...]")
    return [turn for question, answer in history for turn in (("user", question), ("assistant", answer))]


def _paired(raw: dict[str, Any], question: str, answer: str) -> Roles:
    """One question and its answer, or lists of a turn each."""
    questions, answers = (x if isinstance(x, list) else [x] for x in (raw[question], raw[answer]))
    if len(questions) != len(answers):
        raise RecordError("turns", f"{len(questions)} {question}s, and {len(answers)} {answer}s")
    turns = [turn for q, a in zip(questions, answers, strict=True) for turn in (("user", q), ("assistant", a))]
    own = raw.get("input") if question == "instruction" else None  # what the instruction is about
    return turns[:1] + ([("user", own)] if own else []) + turns[1:]


def _listed(turns: Any) -> Roles:
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

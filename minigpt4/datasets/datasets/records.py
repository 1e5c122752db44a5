"""Records of own data: one of three formats, recognised record by record, becomes questions, answers and pictures.

{"image" | "images" | "video" | "videos", "instruction", "output"}    strings, or lists of a turn each (MiniGPT4Qwen)
{"image", "conversations": [{"from": "human" | "gpt", "value"}]}      LLaVA
{"messages": [{"role", "content": string or parts}]}                  OpenAI
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname, urlopen

from minigpt4.common.errors import UserError, first_line
from minigpt4.conversation.conversation import IMAGE
from minigpt4.models.splice import IMAGE_PLACEHOLDER

VIDEO = "<video>"
BETWEEN_TURNS = "\x1e"  # a record separator: no text of a record holds it

_Read = Callable[[Path | BinaryIO], Any]
_FORMATS = "image, instruction, output; or image, conversations; or messages"
_ROLES = {"human": "user", "user": "user", "system": "user", "gpt": "assistant", "assistant": "assistant"}


class RecordError(UserError):
    """What is wrong with one record: the kind of problem, and the detail."""

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


@dataclass
class Record:
    """One training conversation.

    Attributes:
        images: file names, or data: URLs; as many as the questions hold `<ImageHere>`, in that order.
        videos: the same of `<video>`. Where the questions hold neither, all belong in front of the first one.
        answers: one for each question.
    """

    questions: list[str]
    answers: list[str]
    images: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)

    def placed(self, questions: list[str]) -> list[str]:
        """Its questions, perhaps rewritten by a processor, with one placeholder for each image and video.

        Raises:
            RecordError: they hold another number of placeholders.
        """
        text = "".join(questions)
        counts = {IMAGE_PLACEHOLDER: (len(self.images), "images"), VIDEO: (len(self.videos), "videos")}
        if not any(marker in text for marker in counts):
            return [" ".join([IMAGE] * len(self.images) + [VIDEO] * len(self.videos) + questions[:1]), *questions[1:]]
        for marker, (given, what) in counts.items():
            if (written := text.count(marker)) != given:
                raise RecordError(
                    "placeholder mismatch", f"{what} named: {given}, {marker} in its questions: {written}"
                )
        return questions


def read_records(key: str, storage: str) -> list[Any]:
    """Reads the records of a JSON, JSON lines or Parquet file, and looks at none of them.

    Raises:
        UserError: the file is missing, can't be parsed, or is empty. `key` is the config key or argument that names it.
    """
    file = Path(storage)
    if not file.is_file():
        raise UserError(f"{key}: '{storage}' is no file. Set it to a JSON, JSON lines or Parquet file of records.")
    records = _read_parquet(file) if file.suffix == ".parquet" else _read_json(file)
    if not records:
        raise UserError(f"{file}: holds no records. Write a list of them, or one a line.")
    return records


def _read_json(file: Path) -> list[Any]:
    """A list, or else one record a line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error}. Write it anew in that encoding.") from None
    if text.lstrip().startswith("["):
        return _loads(str(file), text)
    # not splitlines: JSON's strings may hold other line breaks
    return [_loads(f"{file}: line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def _loads(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}. Write a list of records, or one record a line.") from None


def _read_parquet(file: Path) -> list[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{file}: needs pyarrow. Install it: pip install pyarrow") from error
    try:
        return pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not Parquet: {first_line(error)}. Write it anew, or name another file.") from None


def record_id(raw: Any, index: int) -> str:
    """A record's own id; without one its place in the file, counted from 0."""
    own = raw.get("id") if isinstance(raw, dict) else None
    return str(own) if isinstance(own, str | int) and own != "" else f"#{index}"


def image_folder(file: str | Path, images: str | None) -> Path:
    """Where file names of a record begin: `images`, else the folder image/ beside the file, else the file's own."""
    beside = Path(file).parent / "image"
    return Path(images) if images else beside if beside.is_dir() else Path(file).parent


def parse_record(raw: Any) -> Record:
    """Understands one record. It opens no file.

    Raises:
        RecordError: the format is not known, or the record makes no sense.
    """
    if not isinstance(raw, dict):
        raise RecordError("unknown format", f"expected an object with the keys {_FORMATS}")
    raw = {key: value for key, value in raw.items() if value is not None}  # Parquet fills what a record lacks
    record = Record([], [], _files(raw.get("image")) + _files(raw.get("images")))
    record.videos = _files(raw.get("video")) + _files(raw.get("videos"))
    if "messages" in raw:
        _add_turns(record, _messages(raw["messages"], record))
    elif "conversations" in raw:
        _add_turns(record, [(_role(turn, "from"), turn.get("value")) for turn in _list(raw["conversations"])])
    elif "instruction" in raw and "output" in raw:
        questions, answers = (x if isinstance(x, list) else [x] for x in (raw["instruction"], raw["output"]))
        if len(questions) != len(answers):
            raise RecordError("turns", f"{len(questions)} instructions, and {len(answers)} outputs")
        both = zip(questions, answers, strict=True)
        _add_turns(record, [turn for q, a in both for turn in (("user", q), ("assistant", a))])
    else:
        raise RecordError("unknown format", f"it has the keys {', '.join(map(str, raw))}; known: {_FORMATS}")
    record.placed(record.questions)
    return record


def _add_turns(record: Record, turns: list[tuple[str, Any]]) -> None:
    """Pairs questions and answers. What is said before an answer, the system's words too, is one question."""
    asked: list[str] = []
    for role, text in turns:
        if not isinstance(text, str) or BETWEEN_TURNS in text:
            raise RecordError("turns", f"expected a text without control characters, found {_short(text)}")
        if role == "user":
            asked.append(_canonical(text, record))
        elif not asked:
            raise RecordError("turns", "an answer without a question")
        elif not text.strip():
            raise RecordError("empty answer", f"the answer of turn {len(record.questions) + 1} is empty")
        elif IMAGE_PLACEHOLDER in (answer := _canonical(text, record)) or VIDEO in answer:
            raise RecordError("placeholder mismatch", "an answer holds a placeholder; only questions show pictures")
        else:
            record.questions.append("\n".join(asked))
            record.answers.append(text)
            asked = []
    if asked or not record.answers:
        raise RecordError("turns", "the last question has no answer" if asked else "no turns")


def _canonical(text: str, record: Record) -> str:
    """LLaVA's `<image>` becomes our placeholder, and the line break after it the space that a chat writes."""
    marker = IMAGE if record.images or not record.videos else VIDEO  # LLaVA-Video writes <image> for its videos too
    return re.sub("(<image>|<video>)\n", r"\1 ", text).replace("<image>", marker)


def _messages(messages: Any, record: Record) -> list[tuple[str, Any]]:
    """Turns of OpenAI's messages. Pictures among the parts leave a placeholder, and join those of the record."""
    beside = bool(record.images or record.videos)
    turns = []
    for message in _list(messages):
        role, content = _role(message, "role"), message.get("content")
        if isinstance(content, list):
            content = " ".join(_part(part, record) for part in _list(content))
        turns.append((role, content))
    if beside and any(isinstance(message.get("content"), list) for message in messages):
        raise RecordError("unknown format", "it has parts of content, and pictures beside the messages. Use parts only")
    return turns


def _part(part: dict[str, Any], record: Record) -> str:
    """A part's text, or the placeholder of its picture."""
    kind = str(part.get("type")).removesuffix("_url")
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    for known, files, marker in (("image", record.images, IMAGE), ("video", record.videos, VIDEO)):
        found = _files(part.get(f"{known}_url") or part.get(known)) if kind == known else []
        if len(found) == 1:
            files += found
            return marker
    raise RecordError("unknown format", f"a part of type {_short(part.get('type'))}; known: text, image_url, video_url")


def _files(value: Any) -> list[str]:
    """File names and URLs, as Parquet columns and OpenAI's parts write them too."""
    if isinstance(value, list):
        return [file for one in value for file in _files(one)]
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return ["data:;base64," + base64.b64encode(value["bytes"]).decode()]
    if isinstance(value, dict):
        value = value.get("url") or value.get("path") or value
    if value is not None and not isinstance(value, str):
        raise RecordError("unknown format", f"{_short(value)} names no file")
    return [value] if value else []


def _list(turns: Any) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RecordError("unknown format", f"expected a list of objects, found {_short(turns)}")
    return turns


def _role(turn: dict[str, Any], key: str) -> str:
    role = turn.get(key)
    if not isinstance(role, str) or role not in _ROLES:
        raise RecordError("turns", f"'{key}' is {_short(role)}; known: {', '.join(_ROLES)}")
    return _ROLES[role]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:30]}...{text[-47:]}"  # of a path, the end tells most


def load_pictures(
    record: Record, questions: list[str], folder: Path, image: _Read, video: _Read
) -> tuple[list[str], list[Any]]:
    """Reads a record's images and videos.

    Args:
        questions: those of `Record.placed`.
        folder: where file names begin.
        image: reads an image.
        video: reads a list of pictures.

    Returns:
        The questions with an `<ImageHere>` for each picture, and the pictures as they were read, in the order of
        appearance.

    Raises:
        RecordError: a file is missing or can't be read.
    """
    images, videos = iter(record.images), iter(record.videos)
    pictures: list[Any] = []

    def load(match: re.Match[str]) -> str:
        if match[0] == VIDEO:
            frames = _load(next(videos), folder, "unreadable video", video)
            pictures.extend(frames)
            return " ".join([IMAGE] * len(frames))
        pictures.append(_load(next(images), folder, "unreadable image", image))
        return match[0]

    return [re.sub(f"{IMAGE_PLACEHOLDER}|{VIDEO}", load, question) for question in questions], pictures


def _load(name: str, folder: Path, kind: str, read: _Read) -> Any:
    """Reads a file of the folder, or what a data: URL holds."""
    try:
        if name.startswith("data:"):
            with urlopen(name) as data:
                return read(BytesIO(data.read()))
        return read(_find(name, folder))
    except (ValueError, OSError) as error:
        raise RecordError(kind, f"{_short(name)}: {first_line(error)}") from None
    except RecordError:
        raise
    except UserError as error:
        raise RecordError(kind, str(error)) from None


def _find(name: str, folder: Path) -> Path:
    if name.startswith(("http://", "https://")):
        raise RecordError("missing file", f"{_short(name)} is not on this machine. Download it, and name the file")
    file = folder / (url2pathname(urlsplit(name).path) if name.startswith("file://") else name)
    if not file.is_file():
        raise RecordError("missing file", f"{_short(str(file))} does not exist")
    return file

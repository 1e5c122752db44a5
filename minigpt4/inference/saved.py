"""A conversation as JSON, pictures included."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from minigpt4.common.errors import UserError, prefixed
from minigpt4.common.limits import MAX_TEXT, MAX_TURNS
from minigpt4.conversation.conversation import Turn, joined
from minigpt4.conversation.prompter import IMAGE_PLACEHOLDER, split_at_placeholders
from minigpt4.inference.pictures import Picture, Reader, in_this_process
from minigpt4.processors.picture_file import PixelBudget

T = TypeVar("T")
_VERSION = 2


def check_size(turns: Sequence[tuple[str, str]]) -> None:
    """Refuses a conversation, of questions and answers, that is so long that it would hold up others.

    The last answer is not added to the rest, so that what could be asked can be saved and loaded again.

    Raises:
        UserError: it has more than `MAX_TURNS` turns or `MAX_TEXT` characters.
    """
    _check_turns(len(turns))
    lengths = [len(text) for turn in turns for text in turn]
    if max(sum(lengths[:-1]), *lengths[-1:], 0) > MAX_TEXT:
        raise UserError(f"the conversation has more than {MAX_TEXT} characters. Begin another.")


def _check_turns(count: int) -> None:
    if count > MAX_TURNS:
        raise UserError(f"the conversation has {count} turns; {MAX_TURNS} are the most. Begin another.")


def to_json(turns: list[Turn], waiting: list[Picture]) -> str:
    """Writes turns, and pictures that no question has been asked with yet.

    `{"version": 2, "turns": [{"question": [part, ...], "answer"}, ...], "pictures": [data: URL, ...]}`, where a part is
    a text or `{"picture": data: URL}`.
    """
    dialogue = []
    for turn in turns:
        parts = [part if isinstance(part, str) else {"picture": part.to_url()} for part in joined(turn.question)]
        dialogue.append({"question": parts, "answer": turn.answer})
    saved = {"version": _VERSION, "turns": dialogue, "pictures": [p.to_url() for p in waiting]}
    return json.dumps(saved, ensure_ascii=False, indent=1)


def from_json(text: str, budget: PixelBudget, reader: Reader = in_this_process) -> tuple[list[Turn], list[Picture]]:
    """Reads what `to_json` wrote, and version 1. Sizes are checked before anything is made of it.

    In version 1 a question is one text, with `<Img><ImageHere></Img>` for each of the turn's `pictures`.

    Args:
        budget: that of a conversation with no pictures yet.
        reader: opens the pictures, here or in another process.

    Raises:
        UserError: it is not such a file, or too much; the turn at fault is named.
    """
    if max(map(text.count, ",[{")) > 2 * MAX_TEXT:  # as many values would take long to parse; pictures are one each
        raise UserError("the saved conversation has far more values than one that was saved here. Choose another file.")
    try:
        saved = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the saved conversation is not JSON: {error}. Choose another file.") from None
    version = saved.get("version") if isinstance(saved, dict) else None
    if isinstance(version, int) and version not in (1, _VERSION):
        raise UserError(
            f'the saved conversation has "version": {version}; 1 and {_VERSION} can be read. Load it where it was '
            "saved."
        )
    if version not in (1, _VERSION) or not isinstance(saved.get("turns"), list):
        raise UserError(
            f'the JSON holds no "turns" of "version": {_VERSION}. Choose a file that a conversation was saved to.'
        )
    _check_turns(len(saved["turns"]))
    raw = [_numbered(n, _parts, turn) for n, turn in enumerate(saved["turns"], start=1)]
    check_size([("".join(p for p in parts if isinstance(p, str)), answer or "") for parts, answer in raw])
    waiting = _urls(saved.get("pictures", []))
    budget.expect(len(waiting) + sum(not isinstance(part, str) for parts, _ in raw for part in parts))
    turns = [_numbered(n, _turn, *turn, budget, reader) for n, turn in enumerate(raw, start=1)]
    if turns and turns[-1].answer is None:
        raise UserError("the last turn of the saved conversation has no answer. Remove it.")
    return turns, [Picture.from_url(url, budget, reader) for url in waiting]


def _numbered(number: int, read: Callable[..., T], *args: Any) -> T:
    """`read(*args)`, whose error names the turn."""
    with prefixed(f"turn {number} of the saved conversation: "):
        return read(*args)


def _parts(saved: Any) -> tuple[list[Any], str | None]:
    """A turn's question, as texts and `{"picture": URL}`, and its answer; nothing is opened."""
    question, answer = (saved.get(key) if isinstance(saved, dict) else None for key in ("question", "answer"))
    if not isinstance(question, str | list) or not isinstance(answer, str | None):
        raise UserError('"question" must be a text or a list of parts, "answer" text or null.')
    if isinstance(question, str):
        question = _version_1(question, _urls(saved.get("pictures", [])))
    for part in question:
        if not isinstance(part, str) and not (isinstance(part, dict) and isinstance(part.get("picture"), str)):
            raise UserError('a part of "question" must be a text or {"picture": data: URL}.')
    try:
        "".join([part for part in question if isinstance(part, str)] + [answer or ""]).encode()
    except UnicodeEncodeError:
        raise UserError("a character of it is only half there (a lone surrogate). Remove it.") from None
    return question, answer


def _version_1(question: str, urls: list[str]) -> list[Any]:
    first, *texts = split_at_placeholders(question)
    if len(texts) != len(urls):
        raise UserError(f"{len(texts)} {IMAGE_PLACEHOLDER} but {len(urls)} pictures. Give each its own.")
    return [first, *(part for url, text in zip(urls, texts, strict=True) for part in ({"picture": url}, text))]


def _turn(parts: list[Any], answer: str | None, budget: PixelBudget, reader: Reader) -> Turn:
    opened = [part if isinstance(part, str) else Picture.from_url(part["picture"], budget, reader) for part in parts]
    return Turn(joined(opened), answer)


def _urls(saved: Any) -> list[str]:
    if not isinstance(saved, list) or not all(isinstance(url, str) for url in saved):
        raise UserError('"pictures" must be a list of data: URLs.')
    return saved

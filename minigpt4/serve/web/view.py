"""How a conversation looks on the page: messages of gradio's chat, in which no HTML of anybody is live."""

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from gradio.processing_utils import save_bytes_to_cache, save_pil_to_cache
from gradio.utils import get_upload_folder
from markdown_it import MarkdownIt
from PIL import Image

from minigpt4.conversation.conversation import Turn, free_place, with_pictures
from minigpt4.inference.boxes import Box, draw_boxes, find_boxes, mark_phrases
from minigpt4.inference.pictures import Picture

History = list[dict[str, Any]]

_SIDE = 640  # pixels of a picture's longer side
_TILE, _COLUMNS, _SHEET = 224, 4, 4096  # of several pictures: pixels of one, the fewest in a row, pixels of all in it
_CHARACTERS, _BRACKETS = 10_000, 300  # models say no more, and somebody else's Markdown can take minutes to render
# tags become text, links of schemes that run code are text too, and an image, which would load what it names, is a link
_MARKDOWN = MarkdownIt("js-default", {"breaks": True}).disable("image")


class View:
    """The files that a visitor's browser is shown of a conversation: gradio serves files only."""

    def __init__(self) -> None:
        self._files: WeakKeyDictionary[Picture, dict[str, Path]] = WeakKeyDictionary()
        self._known: dict[str, tuple[str, list[Box]]] = {}  # answers as HTML, with their boxes: each event shows all

    def messages(self, turns: list[Turn], answer: str | None = None) -> History:
        """Turns as messages, two for each question: the pictures since the last with its words, and the answer.

        Args:
            answer: what there is so far of the last turn's.
        """
        messages: History = []
        pictures: list[Picture] = []
        shown: Picture | None = None
        known: dict[str, tuple[str, list[Box]]] = {}
        for turn in turns:
            pictures += turn.pictures
            text = turn.answer if turn is not turns[-1] or answer is None else answer
            if text is None:
                continue
            shown = pictures[-1] if pictures else shown
            rendered, boxes = known[text] = self._known.get(text) or (html_of(text), find_boxes(text))
            boxes = boxes if turn.answer is not None else []
            words = _text(turn.words.lstrip())
            messages.append(_message("user", self._file(pictures), words))
            drawn = self._file([shown] if boxes and shown else [], boxes, text)
            messages.append(_message("assistant", drawn, rendered))
            pictures = []
        self._known = known
        return messages

    def _file(self, pictures: list[Picture], boxes: Sequence[Box] = (), key: str = "") -> str:
        """The path of what is shown of pictures, made once for each `key`; "" for none."""
        if not pictures:
            return ""
        files = self._files.setdefault(pictures[-1], {})
        if key not in files or not files[key].exists():  # gradio removes old ones
            image, name = sheet([_resized(picture.image, _SIDE) for picture in pictures])
            files[key] = Path(save_pil_to_cache(draw_boxes(image, boxes), get_upload_folder(), name))
        return str(files[key])


def _message(role: str, file: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [*([{"path": file}] if file else []), text]}


def sheet(images: list[Image.Image]) -> tuple[Image.Image, str]:
    """One picture, or several side by side: gradio's chat would put them one below the other.

    With it comes a name for its file. Of several, that says to box_picker.js where the last one is: its left and top
    edge, width and height in pixels.
    """
    if len(images) == 1:
        return images[0], "image"
    columns = max(_COLUMNS, math.isqrt(len(images) - 1) + 1)  # at least as many as rows: no side may be endless
    tile = max(16, min(_TILE, _SHEET // columns))
    page = Image.new("RGBA", (tile * min(len(images), columns), tile * -(-len(images) // columns)))
    for i, image in enumerate(images):
        small, left, top = _resized(image, tile - 8), i % columns * tile + 4, i // columns * tile + 4
        page.paste(small, (left, top))
    return page, f"last-{left}-{top}-{small.width}-{small.height}"


def _resized(image: Image.Image, side: int) -> Image.Image:
    """The picture with `side` pixels on its longer side; a line stays one pixel wide."""
    scale = side / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def original_file(picture: Picture) -> str:
    """A file with the very pixels of a picture, with which it can be shown again."""
    data, kind = picture.encoded()
    return save_bytes_to_cache(data, f"picture.{kind}", get_upload_folder())


def typed(text: str) -> str:
    """What a visitor typed where the page had shown `_text`."""
    return text.replace("&lt;", "<").replace("&amp;", "&")


def _text(text: str) -> str:
    """Words as they are. The chat reads HTML: what could begin a tag or an entity is escaped, and only that, because
    it is what a visitor sees who edits the message."""
    return re.sub("<(?=[a-zA-Z/!?])", "&lt;", re.sub(r"&(?=[#\w])", "&amp;", text))


def html_of(answer: str) -> str:
    if len(answer) > _CHARACTERS or answer.count("[") > _BRACKETS:
        return html.escape(answer)
    phrases: list[str] = []

    def mark(text: str, color: str) -> str:
        """A character that Markdown leaves alone stands for the phrase, which is put back when all else is HTML."""
        phrases.append(f'<span style="border-bottom: 3px solid {color}; font-weight: 600">{html.escape(text)}</span>')
        return place

    place = free_place([answer])
    rendered = _MARKDOWN.render(mark_phrases(answer, mark)).strip() or "(The model ended its answer without a word.)"
    alone = rendered.removeprefix("<p>").removesuffix("</p>")  # most answers are one paragraph, and so plain text
    rendered = rendered if "<p>" in alone or len(alone) != len(rendered) - len("<p></p>") else alone
    return "".join(with_pictures(rendered, place, phrases))

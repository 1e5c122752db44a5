"""How a conversation looks on the page: messages of gradio's chat, in which no HTML of anybody is live."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder
from markdown_it import MarkdownIt
from PIL import Image

from minigpt4.conversation.conversation import IMAGE, Turn
from minigpt4.conversation.pictures import Picture
from minigpt4.serve.boxes import draw_boxes, find_boxes

History = list[dict[str, Any]]

_SHOWN_SIZE = (768, 768)  # pixels at most
# tags become text, links of schemes that run code are none, and an image, which would load what it names, is a link
_MARKDOWN = MarkdownIt("js-default", {"breaks": True}).disable("image")


class View:
    """The files that a visitor's browser is shown of a conversation: gradio serves files only."""

    def __init__(self) -> None:
        self._files: WeakKeyDictionary[Picture, dict[str, Path]] = WeakKeyDictionary()

    def messages(self, turns: list[Turn], answer: str | None = None) -> History:
        """Turns as messages, two for each question: the pictures since the last with its words, and the answer.

        Args:
            answer: what there is so far of the last turn's.
        """
        messages: History = []
        pictures: list[Picture] = []
        shown: Picture | None = None
        for turn in turns:
            pictures += turn.pictures
            said = turn.answer if turn is not turns[-1] or answer is None else answer
            if said is None:
                continue
            shown = pictures[-1] if pictures else shown
            files = [{"path": self._small(picture)} for picture in pictures]
            messages.append({"role": "user", "content": [*files, _text(turn.question.replace(IMAGE, "").lstrip())]})
            drawn = [{"path": self._with_boxes(shown, said)}] if shown and turn.answer and find_boxes(said) else []
            messages.append({"role": "assistant", "content": [_html(said), *drawn]})
            pictures = []
        return messages

    def _small(self, picture: Picture) -> str:
        return self._file(picture, "", lambda image: image)

    def _with_boxes(self, picture: Picture, answer: str) -> str:
        return self._file(picture, answer, lambda image: draw_boxes(image, find_boxes(answer)))

    def _file(self, picture: Picture, key: str, draw: Callable[[Image.Image], Image.Image]) -> str:
        files = self._files.setdefault(picture, {})
        if key not in files or not files[key].exists():  # gradio removes old ones
            image = picture.image.copy()
            image.thumbnail(_SHOWN_SIZE)
            files[key] = Path(save_pil_to_cache(draw(image), get_upload_folder()))
        return str(files[key])


def original_file(picture: Picture) -> str:
    """A file with the very pixels of a picture, with which it can be shown again."""
    return save_pil_to_cache(picture.image, get_upload_folder(), format="png")


def typed(text: str) -> str:
    """What a visitor typed where the page had shown `_text`."""
    return text.replace("&lt;", "<").replace("&amp;", "&")


def _text(text: str) -> str:
    """Words as they are. The chat reads HTML: what could begin a tag or an entity is escaped, and only that, because
    it is what a visitor sees who edits the message."""
    return re.sub("<(?=[a-zA-Z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", text))


def _html(answer: str) -> str:
    return _MARKDOWN.render(answer).strip() or "<em>The model ended its answer without a word.</em>"

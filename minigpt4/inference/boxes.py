"""The boxes of a MiniGPT-v2 answer, and the picture that they are drawn on (Chen et al. 2023, arXiv:2310.09478)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # slow to import, for texts alone
    from PIL import Image

_GRID = 100  # coordinates are integers from 0 to this, relative to the picture
_BOX = r"\{\s*" + r"\s*".join([r"<(-?\d{1,9})>"] * 4) + r"\s*\}"  # those that leave the picture are in the data, too
_LABELLED = re.compile(rf"(?:<p>(?P<label>[^<]*)</p>\s*)?(?P<boxes>{_BOX}(?:\s*<delim>\s*{_BOX})*)")
_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324")


TASKS = ("vqa", "caption", "grounding", "refer", "identify", "detection")  # in brackets before a question


@dataclass(frozen=True)
class Box:
    """A rectangle in hundredths of the picture's width and height, and what the answer says is in it."""

    label: str
    left: int
    top: int
    right: int
    bottom: int


def in_pixels(answer: str, size: tuple[int, int]) -> list[dict[str, Any]]:
    """The boxes of an answer: [{"phrase", "box": [x1, y1, x2, y2]}] in pixels of a picture of this width and height."""
    width, height = size
    found = []
    for box in find_boxes(answer):
        corners = (box.left * width, box.top * height, box.right * width, box.bottom * height)
        found.append({"phrase": box.label, "box": [round(value / _GRID) for value in corners]})
    return found


def in_task(task: str, question: str) -> str:
    """A question with the token of a task before it, in place of another's."""
    words = re.sub(rf"^\s*\[({'|'.join(TASKS)})\]\s*", "", question)
    return f"[{task}] {words}" if task else words


def find_boxes(answer: str) -> list[Box]:
    """The boxes `{<x1><y1><x2><y2>}` of an answer, in order.

    Several that `<delim>` joins share the phrase `<p>...</p>` before the first. A box that leaves the picture ends at
    its edge; one that has no area within it is left out.
    """
    boxes = []
    for match in _LABELLED.finditer(answer):
        for numbers in re.findall(_BOX, match["boxes"]):
            left, top, right, bottom = (min(max(int(number), 0), _GRID) for number in numbers)
            if left < right and top < bottom:
                boxes.append(Box((match["label"] or "").strip(), left, top, right, bottom))
    return boxes


def colors_of(boxes: Sequence[Box]) -> dict[str, str]:
    """{label: the color in which its boxes are drawn}."""
    labels = dict.fromkeys(box.label for box in boxes)
    return {label: _COLORS[i % len(_COLORS)] for i, label in enumerate(labels)}


def mark_phrases(answer: str, mark: Callable[[str, str], str]) -> str:
    """Puts `mark(text, color)` in the place of each phrase with boxes, or of the boxes that have no phrase."""
    colors = colors_of(find_boxes(answer))

    def marked(found: re.Match[str]) -> str:
        label = (found["label"] or "").strip()
        return mark(label or found["boxes"], colors[label]) if label in colors else found[0]

    return _LABELLED.sub(marked, answer)


def draw_boxes(image: "Image.Image", boxes: Sequence[Box]) -> "Image.Image":
    """A copy of a picture with the boxes; those of one label have one color."""
    from PIL import ImageDraw, ImageFont

    image = image.copy()
    draw, unit = ImageDraw.Draw(image), max(1, round(max(image.size) / 200))
    font = ImageFont.load_default(size=max(12, 8 * unit))
    colors = colors_of(boxes)
    for box in boxes:
        color = colors[box.label]
        width, height = image.width - 1, image.height - 1
        left, right = box.left * width / _GRID, box.right * width / _GRID
        top, bottom = box.top * height / _GRID, box.bottom * height / _GRID
        draw.rectangle((left, top, right, bottom), outline=color, width=unit)
        if box.label:
            wide, high = draw.textbbox((0, 0), box.label, font=font)[2:]
            x = max(0, min(left, image.width - wide - 2 * unit))
            y = top - high - 2 * unit if top > high + 2 * unit else top  # inside, where there is no room above
            draw.rectangle((x, y, x + wide + 2 * unit, y + high + 2 * unit), fill=color)
            draw.text((x + unit, y + unit), box.label, font=font, fill="white")
    return image

"""Boxes in answers, and how far two boxes overlap. Sources: eval_ref.py and computeIoU of the original; Qwen-VL."""

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # x0, y0, x1, y1

_BEGINS = re.compile(r"\{<\d{1,3}><\d{1,3}><\d{1,3}><\d{1,3}>\}")


def parse_box(text: str, width: float, height: float, bins: float = 100) -> Box | None:
    """The box of an answer in pixels, as the original reads it; None where it reads none.

    The answer, without its spaces, must begin with {<d><d><d><d>} and hold no other number. Corners are not sorted,
    and nothing is clipped to the picture.

    Args:
        width, height: the picture's, in pixels.
        bins: parts into which each side is divided.
    """
    text = text.replace("<unk>", "").replace(" ", "").strip()
    numbers = [int(digits) for digits in re.findall(r"\d+", text)]
    if not _BEGINS.match(text) or len(numbers) != 4:
        return None
    x0, y0, x1, y1 = numbers
    return x0 / bins * width, y0 / bins * height, x1 / bins * width, y1 / bins * height


def iou_of_pixels(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union as the original counts it: a box from 3 to 5 is 3 pixels wide."""
    return _iou(one, other, 1)


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of boxes whose corners are points (Qwen-VL, lmms-eval)."""
    return _iou(one, other, 0)


def _iou(one: Sequence[float], other: Sequence[float], extra: float) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0]) + extra
    height = min(one[3], other[3]) - max(one[1], other[1]) + extra
    overlap = max(0, width) * max(0, height)
    areas = [(box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (one, other)]
    union = sum(areas) - overlap
    return overlap / union if union else 0.0

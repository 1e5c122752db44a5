"""Phrases with their boxes, of Flickr30k's pictures: formats grounded_captions, captions_to_phrases and
phrases_to_boxes. Boxes stand in the files as the answers have them.
"""

from typing import Any

from minigpt4.common.registry import registry
from minigpt4.datasets.formats.annotated import AnnotatedDataset, Asked


@registry.register_format("grounded_captions")
class GroundedCaptions(AnnotatedDataset):
    """`{"image_id", "grounded_caption"}`: a description whose phrases have boxes."""

    def picture(self, row: Any) -> str:
        return f"{row['image_id']}.jpg"

    def name(self, row: Any) -> Any:
        return row["image_id"]

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        return Asked([""], {_text(row["grounded_caption"]): 1})


@registry.register_format("captions_to_phrases")
class CaptionsToPhrases(GroundedCaptions):
    """`{"image_id", "caption", "output"}`: of a caption all phrases with their boxes."""

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        return Asked([_text(row["caption"])], {_text(row["output"]): 1})


@registry.register_format("phrases_to_boxes")
class PhrasesToBoxes(GroundedCaptions):
    """`{"image_id", "phrase", "bbox"}`: of a phrase all boxes."""

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        phrase = _text(row["phrase"])
        return Asked([phrase], {f"<p>{phrase}</p> {_text(row['bbox'])}": 1})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {str(value)[:40]}")
    return value

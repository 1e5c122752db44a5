"""Phrases with their boxes, of Flickr30k's pictures: formats grounded_captions, captions_to_phrases and
phrases_to_boxes. Boxes stand in the files as the answers have them.
"""

from typing import Any

from minigpt4.common.registry import registry
from minigpt4.datasets.formats.annotated import AnnotatedDataset, Asked, Size
from minigpt4.datasets.formats.values import text_of, value_of


@registry.register_format("grounded_captions")
class GroundedCaptions(AnnotatedDataset):
    """`{"image_id", "grounded_caption"}`: a description whose phrases have boxes."""

    asks = False

    def picture(self, row: Any) -> str:
        return f"{value_of(row, 'image_id', str, int)}.jpg"

    def name(self, row: Any) -> Any:
        return row["image_id"]

    def asked(self, row: Any, size: Size) -> Asked:
        return Asked([""], {text_of(row, "grounded_caption"): 1})


@registry.register_format("captions_to_phrases")
class CaptionsToPhrases(GroundedCaptions):
    """`{"image_id", "caption", "output"}`: of a caption all phrases with their boxes."""

    asks = True

    def asked(self, row: Any, size: Size) -> Asked:
        return Asked([text_of(row, "caption")], {text_of(row, "output"): 1})


@registry.register_format("phrases_to_boxes")
class PhrasesToBoxes(GroundedCaptions):
    """`{"image_id", "phrase", "bbox"}`: of a phrase all boxes."""

    asks = True

    def asked(self, row: Any, size: Size) -> Asked:
        phrase = text_of(row, "phrase")
        return Asked([phrase], {f"<p>{phrase}</p> {text_of(row, 'bbox')}": 1})

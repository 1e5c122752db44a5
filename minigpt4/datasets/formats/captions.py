"""Short captions as answers to a request for one: formats coco_captions and textcaps."""

from typing import Any

from minigpt4.common.registry import registry
from minigpt4.datasets.formats.annotated import AnnotatedDataset, Asked, Size
from minigpt4.datasets.formats.values import text_of, value_of


@registry.register_format("coco_captions")
class CocoCaptions(AnnotatedDataset):
    """`{"image", "caption"}` of Karpathy's split of COCO, of which COCO's own training part is used, or its validation
    part.
    """

    asks = False

    def used(self, row: Any) -> bool:
        return self.split in text_of(row, "image")

    def picture(self, row: Any) -> str:
        return text_of(row, "image").split("/")[-1]

    def asked(self, row: Any, size: Size) -> Asked:
        return Asked([""], {self.text_processor(text_of(row, "caption")): 1})


@registry.register_format("textcaps")
class TextCaps(AnnotatedDataset):
    """`{"data": [{"image_id", "caption_str"}]}` (TextCaps: Sidorov et al. 2020)."""

    asks = False

    def picture(self, row: Any) -> str:
        return f"{value_of(row, 'image_id', str, int)}.jpg"

    def asked(self, row: Any, size: Size) -> Asked:
        return Asked([""], {self.text_processor(text_of(row, "caption_str")): 1})

"""Short captions as answers to a request for one: formats coco_captions and textcaps."""

from typing import Any

from minigpt4.common.registry import registry
from minigpt4.datasets.formats.annotated import AnnotatedDataset, Asked


@registry.register_format("coco_captions")
class CocoCaptions(AnnotatedDataset):
    """`{"image", "caption"}` of Karpathy's split of COCO, of which COCO's own training part is used."""

    def read(self) -> list[Any]:
        return [row for row in super().read() if "train" in row["image"]]

    def picture(self, row: Any) -> str:
        return row["image"].split("/")[-1]

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        return Asked([""], {self.text_processor(row["caption"]): 1})


@registry.register_format("textcaps")
class TextCaps(AnnotatedDataset):
    """`{"data": [{"image_id", "caption_str"}]}` (TextCaps: Sidorov et al. 2020)."""

    def picture(self, row: Any) -> str:
        return f"{row['image_id']}.jpg"

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        return Asked([""], {self.text_processor(row["caption_str"]): 1})

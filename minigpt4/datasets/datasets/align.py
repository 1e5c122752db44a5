"""The second stage's detailed descriptions: a folder with `filter_cap.json` and `image/` (MiniGPT-4, section 3.2)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import IMAGE
from minigpt4.processors.image import open_image


class CCSBUAlignDataset(Dataset):
    """Samples {image, answer, image_id, instruction_input} of `{"annotations": [{"image_id", "caption"}, ...]}`.

    An annotation may also hold an `instruction`: the question that its caption answers. Without one the model draws
    a prompt of its own list.

    Raises:
        UserError: the folder's JSON file is missing or malformed, or an image is missing.
    """

    def __init__(
        self,
        key: str,
        storage: str,
        vis_processor: Callable[..., Any],
        text_processor: Callable[[str], str],
        training: bool,
        seed: int,
    ):
        self.vis_processor = vis_processor  # captions stay as they are: punctuation and case are to be learnt
        self.images = Path(storage) / "image"
        file = Path(storage) / "filter_cap.json"
        if not file.is_file():
            raise UserError(
                f"{key}: '{storage}' holds no filter_cap.json. Set it to a folder with filter_cap.json and image/ "
                "(`minigpt4 tiny data` writes the tiny one)."
            )
        try:
            self.annotations = json.loads(file.read_text(encoding="utf-8"))["annotations"]
            names = {f"{a['image_id']}.jpg" for a in self.annotations}
            if wrong := [a for a in self.annotations if not isinstance(a["caption"], str)]:
                raise TypeError(f"no text in {wrong[0]}")
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f'{file}: expected {{"annotations": [{{"image_id", "caption"}}, ...]}}: {error!r}'
            ) from None
        missing = sorted(names - {p.name for p in self.images.glob("*.jpg")})
        if missing or not names:
            raise UserError(f"{file}: {len(missing)} of {len(names)} images are not in {self.images}: {missing[:3]}")

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        annotation = self.annotations[index]
        pixels = self.vis_processor(open_image(self.images / f"{annotation['image_id']}.jpg"))
        question = annotation.get("instruction")
        return {
            "image": pixels,
            "answer": annotation["caption"],
            "image_id": annotation["image_id"],
            "instruction_input": f"{IMAGE} {question}" if question else None,
        }

"""Instructions about images: a JSON list of `{"image", "instruction", "output"}` (MiniGPT4Qwen's format)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import IMAGE
from minigpt4.models.splice import IMAGE_PLACEHOLDER
from minigpt4.processors.image import open_image

_BETWEEN_TURNS = "\x1e"  # a record separator: no text holds it


class InstructionDataset(Dataset):
    """Samples {image, conv_q, conv_a, connect_sym}; instruction and output are strings, or lists of a turn each.

    The first question gets `<Img><ImageHere></Img>` in front, unless it says where the image goes.

    Raises:
        UserError: the file or an image is missing or malformed.
    """

    def __init__(
        self,
        key: str,
        storage: str,
        vis_processor: Any,
        text_processor: Callable[[str], str],
        training: bool,
        images: str | None = None,
    ):
        self.vis_processor, self.text_processor = vis_processor, text_processor
        file = Path(storage)
        self.images = Path(images) if images else file.parent / "image"
        if not file.is_file():
            raise UserError(f"{key}: '{storage}' does not exist. Set it to a JSON list of image, instruction, output.")
        try:
            self.records = [_Record(**record) for record in json.loads(file.read_text(encoding="utf-8"))]
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise UserError(f"{file}: expected a list of {{image, instruction, output}}: {error}") from None
        missing = sorted({r.image for r in self.records if not (self.images / r.image).is_file()})
        if missing or not self.records:
            raise UserError(f"{file}: {len(missing)} images are not in {self.images}: {missing[:3]}")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        questions = [self.text_processor(question) for question in record.instruction]
        if IMAGE_PLACEHOLDER not in questions[0]:
            questions[0] = f"{IMAGE} {questions[0]}"
        pixels = self.vis_processor(open_image(self.images / record.image))
        return {
            "image": pixels,
            "image_id": record.image,
            "conv_q": _BETWEEN_TURNS.join(questions),
            "conv_a": _BETWEEN_TURNS.join(record.output),
            "connect_sym": _BETWEEN_TURNS,
        }


class _Record:
    def __init__(self, image: str, instruction: str | list[str], output: str | list[str], **_: Any):
        self.image = image
        self.instruction = [instruction] if isinstance(instruction, str) else instruction
        self.output = [output] if isinstance(output, str) else output
        if not self.instruction or len(self.instruction) != len(self.output):
            raise ValueError(f"{image}: {len(self.instruction)} instructions, {len(self.output)} outputs")

"""Questions about images with one right answer each, and the controls that take sight away."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from minigpt4.common.errors import UserError
from minigpt4.processors.image import open_image

_KEYS = {"image", "question", "answer"}
_ANY_TYPE = "all"  # of a question without one


def _is_question(record: Any) -> bool:
    return isinstance(record, dict) and record.keys() >= _KEYS and all(isinstance(record[k], str) for k in _KEYS)


class VQADataset(Dataset):
    """Samples {image, question, answer, question_type} of a JSON list; `image` is a file name in `img_path`.

    Args:
        control: what the model is shown: "shuffled_images" another question's image, "blank_images" plain black,
            anything else the question's own.

    Raises:
        UserError: the file is missing or malformed, or an image is missing.
    """

    def __init__(
        self,
        name: str,
        eval_file_path: str,
        img_path: str,
        vis_processor: Callable[[Image.Image], Tensor],
        control: str,
    ):
        key = f"evaluation_datasets.{name}"
        file = Path(eval_file_path)
        if not file.is_file():
            raise UserError(
                f"{key}.eval_file_path: '{file}' does not exist. Set it to a JSON list of questions "
                "(`minigpt4 tiny data` writes the tiny one)."
            )
        try:
            self.records: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not JSON: {error}") from None
        if not isinstance(self.records, list) or not self.records or not all(map(_is_question, self.records)):
            raise UserError(f"{file}: expected a list of {{image, question, answer, question_type}}.")
        names = sorted({record["image"] for record in self.records})
        missing = [n for n in names if not (Path(img_path) / n).is_file()]
        if missing:
            raise UserError(
                f"{key}.img_path: {len(missing)} of {len(names)} images are not in '{img_path}': {missing[:3]}"
            )
        self.folder, self.vis_processor, self.control = Path(img_path), vis_processor, control
        # half the list away: never the same image, as long as there are at least two
        self.other = {n: names[(i + len(names) // 2) % len(names)] for i, n in enumerate(names)}

    @property
    def question_types(self) -> set[str]:
        return {record.get("question_type", _ANY_TYPE) for record in self.records}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        name = self.other[record["image"]] if self.control == "shuffled_images" else record["image"]
        image = open_image(self.folder / name)
        if self.control == "blank_images":
            image = Image.new("RGB", image.size)
        return {
            "image": self.vis_processor(image),
            "image_id": record["image"],
            "question": record["question"],
            "answer": record["answer"],
            "question_type": record.get("question_type", _ANY_TYPE),
        }

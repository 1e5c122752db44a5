"""The second stage's detailed descriptions: a folder with `filter_cap.json` and `image/` (MiniGPT-4, section 3.2)."""

import json
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from minigpt4.common.errors import UserError
from minigpt4.config.schema import BuildInfo
from minigpt4.conversation.conversation import Conversation, Turn, spaced


class CCSBUAlignDataset(Dataset):
    """Samples {conversation, image_id, files} of `{"annotations": [{"image_id", "caption"}, ...]}`.

    An annotation may also hold an `instruction`: the question that its caption answers. Without one a prompt of
    the model's own list is drawn.

    Raises:
        UserError: the folder's JSON file is missing or malformed, or no image is there. An annotation that can't be
            used is an error when its sample is read.
    """

    def __init__(self, key: str, storage: str, info: BuildInfo, vis_processor: Any, text_processor: Any, reduced: bool):
        self.vis_processor = vis_processor  # captions stay as they are: punctuation and case are to be learnt
        self.reduced = reduced  # JPEGs may be decoded at reduced size
        self.images = Path(storage) / "image"
        file = Path(storage) / "filter_cap.json"
        if not file.is_file():
            raise UserError(
                f"{key}: '{storage}' holds no filter_cap.json. Set it to a folder with filter_cap.json and image/ "
                "(`minigpt4 tiny data` writes the tiny one)."
            )
        try:
            self.annotations: list[Any] = list(json.loads(file.read_text(encoding="utf-8-sig"))["annotations"])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise UserError(
                f'{file}: expected {{"annotations": [{{"image_id", "caption"}}, ...]}}: {error!r}'
            ) from None
        names = {f"{a['image_id']}.jpg" for a in self.annotations if isinstance(a, dict) and "image_id" in a}
        if not names & {p.name for p in self.images.glob("*.jpg")}:
            raise UserError(f"{file}: none of its {len(names)} images is in {self.images}. Put them there, as ID.jpg.")

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        annotation = self.annotations[index]
        if not isinstance(annotation, dict) or "image_id" not in annotation:
            raise UserError(f'no image_id: {annotation!r:.60}. Write {{"image_id", "caption"}}, or remove it.')
        name, caption, question = (annotation.get(key) for key in ("image_id", "caption", "instruction"))
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(f"{name}: no caption. Write one, or remove the annotation.")
        if not isinstance(question, str | None):
            raise UserError(
                f"{name}: its instruction is not text: {question!r:.60}. Write a question, or leave it out."
            )
        file = self.images / f"{name}.jpg"
        picture = self.vis_processor.load(file, self.reduced)
        turn = Turn(spaced([picture, question] if question else [picture]), caption)
        conversation = Conversation([turn], kind="instruction" if question else "caption")
        return {"conversation": conversation, "image_id": name, "files": [str(file)]}

"""Own data: instructions about images and videos, or about none, in any of the formats of `records`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils.data import Dataset

from minigpt4.common.errors import UserError
from minigpt4.datasets.formats.records import (
    BETWEEN_TURNS,
    image_folder,
    load_pictures,
    parse_record,
    read_records,
    record_id,
)
from minigpt4.processors.video import open_video


class InstructionDataset(Dataset):
    """Samples {image, image_id, conv_q, conv_a, connect_sym} of a JSON, JSON lines or Parquet file.

    `image` is [3, H, W], of several pictures [n, 3, H, W], of text alone None. A record that can't be used is an error
    that names file and record when it is drawn.

    Args:
        images: where file names begin, see `image_folder`.
        n_frms: pictures taken of a video.

    Raises:
        UserError: the file can't be parsed or is empty.
    """

    def __init__(
        self,
        key: str,
        storage: str,
        vis_processor: Any,
        text_processor: Callable[[str], str],
        training: bool,
        images: str | None,
        n_frms: int,
    ):
        self.vis_processor, self.text_processor, self.n_frms = vis_processor, text_processor, n_frms
        self.reduced = training  # JPEGs may be decoded at reduced size
        self.file, self.images = storage, image_folder(storage, images)
        self.records = read_records(key, storage)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        raw = self.records[index]
        name = record_id(raw, index)
        try:
            record = parse_record(raw)
            questions = record.placed([self.text_processor(question) for question in record.questions])
            image = partial(self.vis_processor.load, reduced=self.reduced)
            questions, pixels = load_pictures(record, questions, self.images, image, self._frames)
        except UserError as error:
            raise UserError(f"{self.file}: record {name}: {error}") from None
        return {
            "image": torch.stack(pixels) if len(pixels) > 1 else pixels[0] if pixels else None,
            "image_id": name,
            "conv_q": BETWEEN_TURNS.join(questions),
            "conv_a": BETWEEN_TURNS.join(record.answers),
            "connect_sym": BETWEEN_TURNS,
        }

    def _frames(self, file: Path | BinaryIO) -> list[Tensor]:
        return [self.vis_processor(frame) for frame in open_video(file, self.n_frms)]

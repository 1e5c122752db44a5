"""Own data: instructions about images and videos, or about none, in any of the formats of `records`."""

from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor
from torch.utils.data import Dataset

from minigpt4.common.errors import prefixed
from minigpt4.config.schema import BuildInfo
from minigpt4.datasets.formats.records.files import image_folder, load_pictures, read_records, record_id
from minigpt4.datasets.formats.records.parse import parse_record
from minigpt4.processors.video import open_video


class InstructionDataset(Dataset):
    """Samples {conversation, image_id, files} of a JSON, JSON lines or Parquet file.

    A record that can't be used is an error that names file and record when it is drawn. For where file names begin, see
    `image_folder`.

    Raises:
        UserError: the file can't be parsed or is empty.
    """

    def __init__(self, key: str, storage: str, info: BuildInfo, vis_processor: Any, text_processor: Any, reduced: bool):
        self.vis_processor, self.text_processor, self.n_frms = vis_processor, text_processor, info.n_frms
        self.reduced = reduced  # JPEGs may be decoded at reduced size
        self.file, self.images = storage, image_folder(storage, info.images)
        self.records = read_records(key, storage)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        raw = self.records[index]
        name = record_id(raw, index)
        with prefixed(f"{self.file}: record {name}: "):
            conversation = parse_record(raw).processed(self.text_processor)
            files = [file.name for file in conversation.pictures]
            image = partial(self.vis_processor.load, reduced=self.reduced)
            conversation = load_pictures(conversation, self.images, image, self._frames)
        return {"conversation": conversation, "image_id": name, "files": files}

    def _frames(self, file: Path | BinaryIO) -> list[Tensor]:
        return [self.vis_processor(frame) for frame in open_video(file, self.n_frms)]

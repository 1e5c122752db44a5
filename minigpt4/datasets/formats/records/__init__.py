"""Records of own data: files of them, the formats that they come in, and the pictures that they name."""

from minigpt4.datasets.formats.records.files import image_folder, load_pictures, read_records, record_id
from minigpt4.datasets.formats.records.parse import parse_record
from minigpt4.datasets.formats.records.record import File, Record, RecordError

__all__ = [
    "File",
    "Record",
    "RecordError",
    "image_folder",
    "load_pictures",
    "parse_record",
    "read_records",
    "record_id",
]

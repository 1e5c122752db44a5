"""Lists of pictures' addresses and captions, as BLIP gives them out, to files that img2dataset reads."""

import shlex
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

from minigpt4.common.errors import UserError, first_line, writing
from minigpt4.common.locks import new_folder
from minigpt4.common.wrong_files import what_is_wrong

ROWS_PER_FILE = 1_000_000  # img2dataset reads a whole file into memory
ROWS_PER_SHARD = 10_000  # img2dataset's default: a file of 1,000,000 rows makes 100 whole shards
_ROWS_AT_ONCE = 20_000
_READ_AHEAD = 1 << 20  # bytes
_COLUMNS = ("url", "caption")


def write_captions(files: list[Path], out: Path, rows_per_file: int = ROWS_PER_FILE) -> tuple[int, int]:
    """Writes JSON lists of {"url", "caption"} as Parquet files 00000.parquet, 00001.parquet, ... of a new folder.

    Memory does not grow with the lists. The folder appears once it is complete.

    Returns:
        Rows that were written, and rows that were left out because they have no address or no caption.

    Raises:
        UserError: a file is missing or not such a list, the folder is not empty or can't be written, or a package is
            missing.
    """
    try:
        import ijson  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing. Install it: pip install 'minigpt4[data]'") from None
    for file in files:
        if not file.is_file():
            raise UserError(
                f"FILE: '{file}' is not a file. Name a JSON list, such as ccs_synthetic_filtered_large.json."
            )
    with new_folder("--out", out) as part, writing("--out", out):
        skipped = [0]
        rows = chain.from_iterable(_rows(file, skipped) for file in files)
        written = 0
        for first in rows:
            name = f"{written // rows_per_file:05d}.parquet"
            written += _write(part / name, chain([first], islice(rows, rows_per_file - 1)))
        if not written:
            raise UserError(f'{files[0]}: holds no {{"url", "caption"}} with text in both. Name another file.')
    return written, skipped[0]


def _rows(file: Path, skipped: list[int]) -> Iterator[tuple[str, str]]:
    """(address, caption) of a file; counts in `skipped` what has no text in one of both."""
    import ijson

    found = False
    with (
        file.open("rb") as plain,
        tqdm.wrapattr(plain, "read", total=file.stat().st_size, desc=file.name) as stream,
    ):
        try:
            # ijson would call a file's readinto, of which tqdm sees nothing
            for item in ijson.items(SimpleNamespace(read=stream.read), "item", buf_size=_READ_AHEAD):
                found = True
                row = _row(item)
                skipped[0] += row is None
                if row:
                    yield row
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise UserError(_refusal(file, first_line(error).rstrip("."))) from None
    if not found:
        raise UserError(f'{file}: is not a JSON list of {{"url", "caption"}}, or an empty one. Name another file.')


def _refusal(file: Path, why: str) -> str:
    """Says what a file is that could not be read as a JSON list."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.lstrip().startswith(b"{"):
        return (
            f"{file}: is one JSON object or JSON lines, not a JSON list. Put the objects into one list, "
            '[{"url": ..., "caption": ...}, ...], or name another file.'
        )
    if wrong := what_is_wrong(file):
        return f"{file}: {wrong}."
    return f'{file} is not one JSON list of {{"url", "caption"}}, or is truncated: {why}. Download it again.'


def _row(item: Any) -> tuple[str, str] | None:
    values = [item.get(column) for column in _COLUMNS] if isinstance(item, dict) else []
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    return (texts[0], texts[1]) if len(texts) == len(_COLUMNS) else None


def _write(file: Path, rows: Iterator[tuple[str, str]]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, written = pa.schema([(column, pa.string()) for column in _COLUMNS]), 0
    with pq.ParquetWriter(file, schema) as writer:
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.table(dict(zip(_COLUMNS, map(list, zip(*some, strict=True)), strict=True)), schema))
            written += len(some)
    return written


def download_command(urls: Path, shards: Path, image_size: int, processes: int, distributor: str) -> str:
    """The command that downloads what `write_captions` wrote, into shards that stage 1 reads.

    Its options are those of img2dataset 1.4x. The shards are NNNNN.tar, with NNNNN.parquet and NNNNN_stats.json beside.
    With `pyspark` the same runs on a Spark cluster, to which `spark-submit` sends it.
    """
    options = {
        "url_list": urls.absolute(),
        "output_folder": shards.absolute(),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "image_size": image_size,
        "number_sample_per_shard": ROWS_PER_SHARD,
        "processes_count": processes,
        "thread_count": 128,
        "distributor": distributor,
    }
    if distributor == "multiprocessing":
        return "img2dataset " + " ".join(f"--{key} {shlex.quote(str(value))}" for key, value in options.items())
    arguments = ", ".join(f"{key}={(str(v) if isinstance(v, Path) else v)!r}" for key, v in options.items())
    return (
        "cat > download.py <<'END'\n"
        "from img2dataset import download\n"
        "from pyspark.sql import SparkSession\n\n"
        "SparkSession.builder.getOrCreate()  # on the cluster that spark-submit names; img2dataset uses it\n"
        f"download({arguments})\n"
        "END\n"
        'spark-submit --master "$SPARK_MASTER" download.py'
    )

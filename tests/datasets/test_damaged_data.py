"""What can't be used of shards and map-style data is skipped, counted and named; too much of it stops a run."""

import gzip
import json
import tarfile
from pathlib import Path

import pytest
import webdataset as wds

from minigpt4.common.errors import UserError
from minigpt4.datasets.formats import shards as shards_module
from tests.datasets.mixing import batches, drawn, jpeg

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.fixture
def damaged(folder, tmp_path) -> Path:
    """The data with a truncated JPEG, a missing image, a missing caption, two broken shards and an empty one."""
    (tmp_path / "shards").mkdir()
    for shard in range(5):
        data = bytearray((folder / "shards" / f"{shard}.tar").read_bytes())
        if shard == 3:
            data = data[: len(data) // 2]
        (tmp_path / "shards" / f"{shard}.tar").write_bytes(data if shard != 4 else b"no tar at all")
    tarfile.open(tmp_path / "shards" / "5.tar", "w").close()
    with wds.TarWriter(str(tmp_path / "shards" / "6.tar")) as tar:
        tar.write({"__key__": "truncated", "jpg": jpeg(0)[:300], "json": json.dumps({"caption": "x"})})
        tar.write({"__key__": "unsaid", "jpg": jpeg(0), "json": json.dumps({"text": "x"})})
        tar.write({"__key__": "unseen", "json": json.dumps({"caption": "x"})})
        tar.write({"__key__": "no_json", "jpg": jpeg(0)})
        tar.write({"__key__": "bad_json", "jpg": jpeg(0), "json": b"{"})
    (tmp_path / "image").mkdir()
    for i in range(1, 20):
        (tmp_path / "image" / f"{i}.jpg").write_bytes(jpeg(i)[: 300 if i == 2 else None])
    records = json.loads((folder / "filter_cap.json").read_text())
    records["annotations"][3]["caption"] = None
    (tmp_path / "filter_cap.json").write_text(json.dumps(records))
    return tmp_path


def cut_header(data: bytes, at: int) -> bytes:
    return data[: at + 100]


def cut_boundary(data: bytes, at: int) -> bytes:
    return data[:at]


def bad_header(data: bytes, at: int) -> bytes:
    return data[:at] + b"x" * 512 + data[at + 512 :]


def zero_header(data: bytes, at: int) -> bytes:
    return data[:at] + bytes(512) + data[at + 512 :]


@pytest.mark.parametrize("damage", [cut_header, cut_boundary, bad_header, zero_header])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_shard_that_is_damaged_between_its_files_is_named(damage, compress, folder, tmp_path):
    """tarfile takes each of these for the end of the archive."""
    with tarfile.open(folder / "shards" / "0.tar") as tar:
        at = tar.getmembers()[6].offset
    data = damage((folder / "shards" / "0.tar").read_bytes(), at)
    (tmp_path / "0.tar").write_bytes(compress(data))
    *samples, last = shards_module.samples_of(str(tmp_path / "0.tar"))
    assert [sample["__key__"] for sample in samples] == ["000", "001", "002"]
    assert str(last["__error__"]).startswith("damaged at byte") and str(last["__error__"]).endswith(
        "the rest of it is lost"
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_used_is_skipped_counted_and_named(damaged, workers, caplog):
    found = batches(damaged, num_workers=workers, max_skip_rate=0.5)
    drawn(found, 40)
    for name in (
        "0.jpg",
        "2.jpg",
        "3: no caption",
        "3.tar",
        "4.tar",
        "5.tar: no samples",
        "truncated: this can't be read",
    ):
        assert name in caplog.text
    for name in ("unsaid: no caption", "unseen: no picture", "no_json: no caption", "bad_json: "):
        assert f"6.tar/{name}" in caplog.text


@pytest.mark.parametrize("names", [("laion",), ("cc_sbu_align",)])
@pytest.mark.parametrize("workers", [0, 1])
def test_too_much_that_cannot_be_used_stops_the_run_with_the_list(names, workers, damaged):
    found = batches(damaged, names, num_workers=workers)
    with pytest.raises(UserError, match=rf"(?s)datasets.{names[0]}: 1\d of \d+ .*max_skip_rate=0.01 allows.*can't be"):
        for _ in range(200):
            next(found)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_of_which_nothing_can_be_used_ends_in_words_not_in_a_hang(workers, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match="datasets.laion: .*\n  .*0.tar: "):
        next(batches(tmp_path, ("laion",), num_workers=workers, max_skip_rate=0.05))

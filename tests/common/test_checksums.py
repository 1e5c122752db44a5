"""A checkpoint's files are as they were written, or the one that is not is named."""

import json
from pathlib import Path

import pytest

from minigpt4.common.checksums import check_checksums, rename_checked, write_checksums
from minigpt4.common.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "engine").mkdir()
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    (tmp_path / "engine" / "rank 0.pt").write_bytes(b"state")
    write_checksums(tmp_path)
    check_checksums(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "engine/rank 0.pt"])
def test_one_flipped_bit_in_any_file_is_found(name, folder):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=f"'{folder}/{name}' can't be read as it was written: it is damaged") as error:
        check_checksums(folder)
    assert "\n" not in str(error.value)
    other = ({"model.safetensors", "engine/rank 0.pt"} - {name}).pop()
    check_checksums(folder, [other])  # which is whole


def test_a_cut_off_and_a_missing_file_are_found(folder):
    (folder / "engine" / "rank 0.pt").write_bytes(b"stat")
    with pytest.raises(UserError, match="rank 0.pt' can't be read as it was written: it has 4 bytes of 5"):
        check_checksums(folder)
    (folder / "engine" / "rank 0.pt").unlink()
    with pytest.raises(UserError, match="rank 0.pt' can't be read: No such file"):
        check_checksums(folder)


def test_a_file_of_its_own_may_come_later_and_one_may_be_renamed(folder):
    (folder / "measures.json").write_text("{}")
    rename_checked(folder / "model.safetensors", "weights.safetensors")
    check_checksums(folder)
    (folder / "weights.safetensors").write_bytes(bytes(256))
    with pytest.raises(UserError, match="weights.safetensors' .* damaged"):
        check_checksums(folder)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "a" * 5000])
def test_names_that_no_file_has_are_one_line(name, folder):
    (folder / "checksums.json").write_text(json.dumps({name: {"crc32": "0", "size": 0}}))
    with pytest.raises(UserError, match="can't be read: ") as error:
        check_checksums(folder)
    assert len(str(error.value)) < 400 and str(error.value).isprintable()


def test_without_checksums_nothing_is_reported_and_damaged_ones_are(folder):
    noted = folder / "checksums.json"
    outside = '{"../x": {"crc32": "0", "size": 0}}', '{"/dev/zero": {"crc32": "0", "size": 0}}'
    for content in (
        *outside,
        "",
        "[]",
        '{"model.safetensors": 7}',
        '{"model.safetensors": {"crc32": "0"}}',
        "[" * 100_000,
    ):
        noted.write_text(content)
        with pytest.raises(UserError, match="checksums.json' can't be read: it is damaged. Delete it"):
            check_checksums(folder)
    noted.unlink()
    (folder / "model.safetensors").unlink()
    check_checksums(folder)
    rename_checked(folder / "engine" / "rank 0.pt", "rank 1.pt")
    assert not noted.exists()

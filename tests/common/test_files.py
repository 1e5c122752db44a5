"""Files that are whole at any time."""

import os
from pathlib import Path

import pytest

from minigpt4.common.errors import UserError
from minigpt4.common.files import regular_file, replace_file, whole_files


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    replace_file(link, b"one")
    file.chmod(0o600)
    replace_file(link, b"two")
    assert link.is_symlink() and file.read_bytes() == b"two"
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == [file, link]


def test_what_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "file"
    replace_file(file, b"one")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        replace_file(file, b"two")
    assert file.read_bytes() == b"one" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_only_regular_files_are_replaced(make, tmp_path):
    make(tmp_path / "it")
    for use in (regular_file, lambda path: replace_file(path, b"")):
        with pytest.raises(OSError, match="is not a regular file"):
            use(tmp_path / "it")
    assert list(tmp_path.iterdir()) == [tmp_path / "it"]


def test_files_appear_together_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "x.onnx"
    with pytest.raises(KeyboardInterrupt), whole_files("--out", file) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert list(file.parent.iterdir()) == []
    with whole_files("--out", file) as part:
        part.write_text("graph")
        part.with_name("x.onnx.data").write_text("weights")
    assert sorted(own.name for own in file.parent.iterdir()) == ["x.onnx", "x.onnx.data"]
    with (
        pytest.raises(UserError, match=r"--out: '/dev/null' can't be written \("),
        whole_files("--out", Path("/dev/null")),
    ):
        pass

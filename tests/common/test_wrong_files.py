"""What stands where weights should be is recognised, each with its cure."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from minigpt4.common.errors import UserError
from minigpt4.common.wrong_files import what_is_wrong, wrong_file
from minigpt4.models.weight_file import load_tensors

WEIGHTS = {"llama_proj.weight": torch.rand(30, 40)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 13476839424\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"


def pth() -> bytes:
    torch.save(WEIGHTS, stream := io.BytesIO())
    return stream.getvalue()


def archive(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=stream, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("model.pth"))
    else:
        with zipfile.ZipFile(stream, "w") as zipped:
            zipped.writestr("model.pth", pth())
    return stream.getvalue()


WRONG = [
    (b"", "is empty. Delete it and download it again"),
    (POINTER, "is a Git LFS pointer, .*Run `git lfs pull`"),
    (PAGE, "is a web page, .*a link with /resolve/"),
    (DENIED, "is a web page, not the file"),
    (b'{"error": "Repository not found"}', "holds JSON, perhaps .*Repository not found.*download it again"),
    (b"Invalid username\nor password.", "holds text, .*'Invalid username or password.'"),
    (pth()[:-100], r"is truncated \(download incomplete\): the end of its zip archive is missing. .*download it again"),
    (save(WEIGHTS)[:-100], r"is truncated \(download incomplete\): it has \d+ bytes of \d+. .*download it again"),
    (save(WEIGHTS)[:20], r"is truncated \(download incomplete\) within its header"),
    (pth().replace(b"PK\1\2", b"PK\1\3"), "is a damaged zip archive. .*download it again"),
    (gzip.compress(pth()), "is a gzip archive. Unpack it"),
    (archive("tar"), "is a tar archive. Unpack it"),
    (archive("zip"), "is a zip archive. Unpack it"),
    (b"GGUF\3\0\0\0", "is a GGUF file"),
]


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize(("content", "message"), WRONG)
def test_each_is_distinguished_when_weights_are_read(content, message, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} can't be read as weights: it {message}") as error:
        load_tensors(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_folder_of_links_that_lead_nowhere_or_round_is_no_traceback(tmp_path):
    (tmp_path / "x.pth").symlink_to("x.pth")
    with pytest.raises(UserError, match="x.pth can't be read as weights: "):
        load_tensors(tmp_path / "x.pth")


def test_nothing_is_wrong_with_weights_nor_known_of_other_bytes(tmp_path):
    files = [
        tmp_path / name for name in ("a.pth", "b.pth", "c.safetensors", "d.safetensors", "e.bin", "f.json", "none")
    ]
    torch.save(WEIGHTS, files[0])
    torch.save(WEIGHTS, files[1], _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, files[2], {"format": "pt"})
    save_file({}, files[3])
    files[4].write_bytes(bytes(600))
    files[5].write_text('{"model_type": "llama"}')
    assert [what_is_wrong(file) for file in [*files, tmp_path]] == [None] * 8
    (tmp_path / "g.model").write_bytes(POINTER)
    assert str(wrong_file([*files, tmp_path / "g.model"])).startswith(f"'{Path(tmp_path / 'g.model')}' is a Git LFS")

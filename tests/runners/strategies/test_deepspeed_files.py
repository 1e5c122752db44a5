"""DeepSpeed's files are read as data alone, whoever opens them."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.runners.strategies.deepspeed_files import load_data, tensors_only


class Evil:
    """Code that runs where it is unpickled; it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


FORMATS = [{}, {"_use_new_zipfile_serialization": False}]


@pytest.mark.parametrize("file_format", FORMATS)
def test_code_is_refused_and_named_and_does_not_run(file_format, tmp_path):
    torch.save({"module": {}, "x": Evil(tmp_path / "ran")}, tmp_path / "x.pt", **file_format)
    with pytest.raises(UserError, match="x.pt' holds more than data.*it is not opened") as error:
        load_data(tmp_path / "x.pt")
    assert "\n" not in str(error.value) and ("posix.mkdir" in str(error.value) or file_format)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "x.pt", weights_only=False)  # the file does what it is made for
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_caller_of_torch_load_can_run_code(file_format, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Evil(tmp_path / "ran"), tmp_path / "x.pt", **file_format)
    with tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("opcodes", [b"\xff", b"(i", b"\x93."], ids=["unknown", "INST", "STACK_GLOBAL"])
def test_opcodes_that_no_pickle_has_are_one_line(opcodes, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + opcodes)
        archive.writestr("x/version", "3")
    with pytest.raises(UserError, match="x.pt' ") as error:
        load_data(tmp_path / "x.pt")
    assert "\n" not in str(error.value)


def test_deepspeeds_own_classes_are_read(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    state = {"scaler": DynamicLossScaler(2**16, 2, 1000, 1, 1, False), "stage": ZeroStageEnum(2)}
    state |= {"slice": fragment_address(numel=3, start=4), "sizes": torch.Size([2, 3])}
    torch.save(state, tmp_path / "x.pt")
    found = load_data(tmp_path / "x.pt")
    assert found["scaler"].cur_scale == 2**16
    assert {k: found[k] for k in ("stage", "slice", "sizes")} == {k: state[k] for k in ("stage", "slice", "sizes")}


def test_files_that_are_something_else_are_distinguished(tmp_path):
    (tmp_path / "x.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="x.pt' is a Git LFS pointer"):
        load_data(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"\x93 damaged")
    with pytest.raises(UserError, match="x.pt' "):
        load_data(tmp_path / "x.pt")

"""A checkpoint that is damaged anywhere is passed over by `run.resume=auto`, and refused where it is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.models.weight_file import load_tensors
from minigpt4.runners import run_state
from minigpt4.tiny.data import write_all
from tests.runners.run_strategies import options_of
from tests.runners.toy import on_ranks, toy_runner


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def in_weights(folder: Path) -> Path:
    flip(folder / "model.safetensors", -1)
    return folder / "model.safetensors"


def in_header(folder: Path) -> Path:
    flip(folder / "model.safetensors", (folder / "model.safetensors").read_bytes().index(b"llama"))
    return folder / "model.safetensors"


def in_length_of_header(folder: Path) -> Path:
    flip(folder / "model.safetensors", 7)
    return folder / "model.safetensors"


def in_moments(folder: Path) -> Path:
    """In the optimizer's state: within a tensor's bytes, which torch.load does not check."""
    (file,) = folder.glob("training_state_*.pt")
    state = torch.load(file)["engine"]["optimizer"]["state"]
    flip(file, file.read_bytes().index(state[0]["exp_avg"].numpy().tobytes()))
    return file


def in_checksums(folder: Path) -> Path:
    flip(folder / "checksums.json", 0)
    return folder / "checksums.json"


SPOILT = [in_weights, in_header, in_length_of_header, in_moments, in_checksums]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    toy_runner(folder, max_epoch=2).train()
    return folder


@pytest.mark.parametrize("spoil", SPOILT)
def test_one_flipped_bit_is_not_loaded_in_silence(spoil, whole, tmp_path, caplog):
    folder = shutil.copytree(whole, tmp_path / "run")
    file = spoil(folder / "checkpoint_1")
    with pytest.raises(UserError, match=f"^run.resume: '{file}' can't be read") as error:
        toy_runner(folder, resume=str(folder / "checkpoint_1"))
    assert "\n" not in str(error.value)
    assert toy_runner(folder, resume="auto").step == 8
    assert f"checkpoint_1 is passed over, the one before it is used: '{file}' can't be read" in caplog.text


def test_a_run_with_damaged_checkpoints_alone_is_not_written_over_unasked(whole, tmp_path, caplog):
    folder = shutil.copytree(whole, tmp_path / "run")
    for name in ("checkpoint_0", "checkpoint_1"):
        in_weights(folder / name)
    with pytest.raises(UserError, match="holds checkpoint_1 of an earlier run"):
        toy_runner(folder)
    assert toy_runner(folder, resume="auto").step == 0
    assert "checkpoint_0 is passed over, none is left, the run starts from the beginning" in caplog.text


def test_checkpoints_without_checksums_continue(whole, tmp_path):
    """Those that an earlier version wrote."""
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "checkpoint_1" / "checksums.json").unlink()
    assert toy_runner(folder, resume="auto").step == 16


def test_checksums_are_those_of_all_files_and_of_the_best_weights_too(whole):
    noted = json.loads((whole / "checkpoint_1" / "checksums.json").read_text())
    assert noted.keys() == {"model.safetensors", "training_state_16.pt", "config.yaml"}
    assert load_tensors(whole / "checkpoint_best").keys() == {"llama_proj.weight", "llama_proj.bias"}
    noted = json.loads((whole / "checkpoint_best" / "checksums.json").read_text())
    assert noted.keys() == {"model.safetensors", "measures.json", "config.yaml"}


@pytest.mark.slow
def test_epochs_of_another_length_keep_the_checksums(tmp_path):
    toy_runner(tmp_path, max_epoch=2, keep_last=2).train()
    toy_runner(tmp_path, max_epoch=3, iters_per_epoch=4, resume="auto", keep_last=3).train()
    assert [path.name for path in run_state.checkpoints(tmp_path)] == [f"checkpoint_{n}" for n in range(3)]
    for n in range(3):
        assert toy_runner(tmp_path / "b", iters_per_epoch=4, resume=str(tmp_path / f"checkpoint_{n}")).step == 4 * n + 4


def continue_with_the_one_before(folder: Path) -> None:
    assert toy_runner(folder, resume="auto").step == 8
    with pytest.raises(UserError, match="model.safetensors' can't be read as it was written"):
        toy_runner(folder, resume=str(folder / "checkpoint_1.abandoned"))


@pytest.mark.distributed
def test_all_ranks_follow_the_first_ones_choice(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    in_weights(folder / "checkpoint_1")
    on_ranks(2, continue_with_the_one_before, folder)
    assert [path.name for path in run_state.checkpoints(folder)] == ["checkpoint_0"]
    assert (folder / "checkpoint_1.abandoned").is_dir()


@pytest.mark.slow
def test_the_command_refuses_a_damaged_checkpoint_with_one_line(whole, tmp_path, minigpt4):
    write_all(tmp_path / "data", seed=1, scale=0.05)
    folder = shutil.copytree(whole, tmp_path / "run")
    file = in_weights(folder / "checkpoint_1")
    options = [*options_of("ddp", tmp_path / "data", tmp_path), f"run.resume={folder / 'checkpoint_1'}"]
    code, _, said = minigpt4("train", "--cfg-path", "minigpt4_tiny_stage2_finetune", "--options", *options)
    assert code == 2
    lines = [line for line in said.splitlines() if "error: " in line]
    assert lines == [
        f"error: run.resume: '{file}' can't be read as it was written: it is damaged, its checksum differs. Use "
        "another checkpoint."
    ]

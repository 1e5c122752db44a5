"""A checkpoint of DeepSpeed runs no code, and is damaged nowhere."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from minigpt4.common.checksums import write_checksums
from minigpt4.common.errors import UserError
from minigpt4.tools.convert_deepspeed import read_deepspeed
from tests.runners.strategies.test_deepspeed_files import Evil
from tests.runners.test_damaged_checkpoints import flip
from tests.runners.toy import on_ranks, toy_runner

pytestmark = pytest.mark.distributed

STAGES = {0: ["mp_rank_00_model_states.pt"]}
STAGES[2] = [*STAGES[0], "zero_pp_rank_1_mp_rank_00_optim_states.pt"]
STAGES[3] = ["zero_pp_rank_1_mp_rank_00_model_states.pt", STAGES[2][1]]


def train(folder: Path) -> None:
    for stage in STAGES:
        toy_runner(folder / str(stage), max_epoch=2, strategy="deepspeed", zero_stage=stage).train()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    on_ranks(2, train, folder)
    return folder


def copies(runs: Path, folder: Path) -> dict[Path, tuple[int, Path]]:
    """{folder of a run: (stage, file in its last checkpoint)}, one copy for each of the engine's kinds of files."""
    found = {}
    for stage, names in STAGES.items():
        for name in names:
            copy = shutil.copytree(runs / str(stage), folder / f"{stage}_{name}")
            found[copy] = (stage, copy / "checkpoint_1" / "deepspeed" / name)
    return found


def refuse_code(runs: dict[Path, tuple[int, Path]]) -> None:
    for folder, (stage, file) in runs.items():
        with pytest.raises(UserError, match=f"^run.resume: '{file}' holds more than data: posix.mkdir. ") as error:
            toy_runner(folder, resume="auto", strategy="deepspeed", zero_stage=stage)
        assert "\n" not in str(error.value)


def test_no_file_of_the_engine_runs_code(runs, tmp_path):
    spoilt = copies(runs, tmp_path)
    for i, (_, file) in enumerate(spoilt.values()):
        state = torch.load(file, weights_only=False)
        torch.save(state | {"x": Evil(tmp_path / f"ran{i}")}, file)
        write_checksums(file.parents[1])  # a stranger's are right
    on_ranks(2, refuse_code, spoilt)
    for folder in spoilt:
        with pytest.raises(UserError, match="can't be read as a checkpoint of DeepSpeed .*holds more than data: posix"):
            read_deepspeed(folder / "checkpoint_1")
    assert not list(tmp_path.glob("ran*"))


def pass_over_the_damaged(runs: dict[Path, tuple[int, Path]]) -> None:
    for folder, (stage, file) in runs.items():
        options = {"strategy": "deepspeed", "zero_stage": stage}
        with pytest.raises(UserError, match=f"^run.resume: '{file}' can't be read as it was written: it is damaged"):
            toy_runner(folder, resume=str(folder / "checkpoint_1"), **options)
        assert toy_runner(folder, resume="auto", **options).step == 8


def test_one_flipped_bit_in_a_file_of_the_engine_is_found(runs, tmp_path):
    spoilt = copies(runs, tmp_path)
    for _, file in spoilt.values():
        flip(file, os.path.getsize(file) // 2)
    on_ranks(2, pass_over_the_damaged, spoilt)
    assert len(spoilt) == sum(map(len, STAGES.values()))
    assert all((folder / "checkpoint_1.abandoned").is_dir() for folder in spoilt)

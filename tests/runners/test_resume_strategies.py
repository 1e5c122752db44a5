"""What a run continues from: another run's state with the config's own settings, or a refusal that tells the cure."""

from pathlib import Path

import pytest

from minigpt4.common.distributed import rank
from minigpt4.common.errors import UserError
from tests.runners.toy import on_ranks, toy_runner

OTHER = {"weight_decay": 0.5, "betas": (0.8, 0.9), "eps": 1e-3}


def settings(runner) -> list[dict]:
    return [{key: group[key] for key in OTHER} for group in runner.strategy.optimizer.param_groups]


def resumed(folder: Path, **run) -> list[dict]:
    runner = toy_runner(folder, max_epoch=2, resume="auto", **run)
    assert runner.step == 8
    return settings(runner)


@pytest.mark.slow
def test_changed_settings_of_the_optimizer_count(tmp_path):
    toy_runner(tmp_path, max_epoch=1).train()
    assert resumed(tmp_path, **OTHER) == [OTHER, OTHER | {"weight_decay": 0.0}]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("bf16", "fp16"), ("fp16", "bf16")])
def test_fp16_may_follow_bf16_and_the_reverse(before, after, tmp_path):
    toy_runner(tmp_path, max_epoch=1, amp=True, amp_dtype=before).train()
    runner = toy_runner(tmp_path, max_epoch=2, amp=True, amp_dtype=after, resume="auto")
    runner.train()
    assert runner.step == 16


def write_and_refuse(folder: Path, alone: Path) -> None:
    """Checkpoints of DeepSpeed, stage 2, and fsdp; and who continues from them."""
    deepspeed = {"strategy": "deepspeed", "zero_stage": 2}
    toy_runner(folder / "stage2", max_epoch=1, **deepspeed).train()
    toy_runner(folder / "fsdp", max_epoch=1, strategy="fsdp").train()
    expected = [OTHER, OTHER | {"weight_decay": 0.0}]
    assert resumed(folder / "stage2", **deepspeed, **OTHER) == expected
    assert resumed(folder / "fsdp", **OTHER) == resumed(folder / "fsdp", strategy="fsdp", **OTHER) == expected
    was = "was written by run.strategy=deepspeed on 2 processes with run.zero_stage=2; run.strategy="
    for options, now in (
        ({}, "ddp on 2 processes can't"),
        (deepspeed | {"zero_stage": 3}, "deepspeed on 2 processes with run.zero_stage=3 can't"),
        (deepspeed | {"zero_stage": 0}, "deepspeed on 2 processes with run.zero_stage=0 can't"),
    ):
        with pytest.raises(UserError, match=was + now):
            resumed(folder / "stage2", **options)
    with pytest.raises(UserError, match="written by a single process; .* its weights alone: model.ckpt="):
        resumed(alone, **deepspeed)
    engine = toy_runner(folder / "fsdp", max_epoch=2, strategy="fsdp", resume="auto").strategy.save(folder)
    kept = [value is not None for own in engine["optimizer"]["state"].values() for value in own.values()]
    assert kept == [rank() == 0] * len(kept) and kept  # the other ranks' memory stays free


@pytest.mark.distributed
def test_strategies_that_cannot_continue_say_so(tmp_path, caplog):
    caplog.set_level("INFO")
    toy_runner(tmp_path / "alone", max_epoch=1, strategy="deepspeed").train()
    assert "run.strategy=deepspeed: a single process" in caplog.text
    on_ranks(2, write_and_refuse, tmp_path, tmp_path / "alone")
    with pytest.raises(UserError, match="run.zero_stage=2; a single process can't continue from it"):
        resumed(tmp_path / "stage2")
    assert resumed(tmp_path / "fsdp", strategy="fsdp")

"""The runner by iterations: it ends at its number, saves and validates between, and continues to the bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, RunConfig
from minigpt4.runners.runner_base import RunnerBase
from tests.runners.toy import toy_runner

ITERATIONS = {"runner": "runner_iter", "max_iters": 20, "max_epoch": 1, "valid": True}


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    runner = toy_runner(folder, save_steps=5, **ITERATIONS)
    runner.train()
    return folder


@pytest.mark.slow
def test_it_ends_at_its_number_and_validates_between(whole):
    assert [r["step"] for r in records(whole) if "train_loss" in r] == list(range(1, 21))
    assert [(r["epoch"], r["step"]) for r in records(whole) if "val_loss" in r] == [(0, 8), (1, 16), (2, 20)]
    steps, pieces = (5, 13), range(3)  # not two steps before a piece ends: it saves too
    names = {*(f"checkpoint_step_{s}" for s in steps), *(f"checkpoint_{p}" for p in pieces), "checkpoint_best"}
    assert {p.name for p in whole.iterdir() if p.is_dir()} == names | {"tensorboard"}


@pytest.mark.slow
def test_the_schedule_is_that_of_the_iterations(whole, tmp_path):
    rates = [r["lr"] for r in records(whole) if "lr" in r]
    by_epochs = toy_runner(tmp_path, iters_per_epoch=20, max_epoch=1).schedule
    assert rates == pytest.approx([by_epochs(step) for step in range(20)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint_step_13", "checkpoint_1"])
def test_it_continues_to_the_bit(name, whole, tmp_path):
    runner = toy_runner(tmp_path, resume=str(whole / name), **ITERATIONS)
    runner.train()
    ours, theirs = (load_file(f / "checkpoint_2" / "model.safetensors") for f in (tmp_path, whole))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    ours, theirs = ([r["val_loss"] for r in records(f) if "val_loss" in r] for f in (tmp_path, whole))
    assert ours[-1] == theirs[-1]


@pytest.mark.slow
def test_a_longer_run_continues_within_the_piece_that_was_last(whole, tmp_path):
    runner = toy_runner(tmp_path, resume=str(whole / "checkpoint_2"), **ITERATIONS | {"max_iters": 30})
    assert runner.step == 20
    runner.train()
    assert [(r["epoch"], r["step"]) for r in records(tmp_path) if "val_loss" in r] == [(2, 24), (3, 30)]


def test_without_a_number_it_is_refused():
    with pytest.raises(UserError, match="run.max_iters: not set. Set it to the number of batches"):
        RunnerBase.check(Config(run=RunConfig(runner="runner_iter")))

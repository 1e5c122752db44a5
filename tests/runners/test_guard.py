"""What no training should continue with is skipped, reported with its likely cause, and in the end refused."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from minigpt4.common.errors import UserError
from minigpt4.runners.guard import LossMonitor
from tests.runners.toy import Poisoned, Toy, toy_runner


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_step_is_skipped_and_reported_with_its_samples(where, tmp_path, caplog):
    model = Poisoned({3}, where)
    runner = toy_runner(tmp_path, model=model, max_epoch=1)
    runner.train()
    assert "the step is skipped (1 in a row)" in caplog.text
    assert all(name in caplog.text for name in model.ids[0])
    assert all(p.isfinite().all() for p in model.parameters())
    records = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [r["step"] for r in records if "train_loss" in r] == [s for s in range(1, 9) if s != 3 or where != "loss"]


def test_a_bad_batch_spoils_the_whole_accumulated_step(tmp_path):
    model = Poisoned({2})
    runner = toy_runner(tmp_path, model=model, max_epoch=1, accum_grad_iters=2)
    before = model.projection.weight.clone()
    for update in (False, True):
        runner.train_iteration(runner.next_batch(), 1e-2, update)
    assert torch.equal(model.projection.weight, before)
    assert model.projection.weight.grad is None  # the good batch's is not for the next step
    for update in (False, True):
        runner.train_iteration(runner.next_batch(), 1e-2, update)
    assert not torch.equal(model.projection.weight, before)


@pytest.mark.slow
def test_one_bad_batch_in_each_accumulated_step_ends_the_run(tmp_path, caplog):
    """No step of the optimizer is left, however many good batches there are between the bad ones."""
    model = Poisoned({1, 6, 11, 13, 18, 23, 24}, "loss")  # of each 4 the first, the second, the third; ...
    before = model.projection.weight.clone()
    runner = toy_runner(tmp_path, model=model, accum_grad_iters=4, max_bad_steps=3)
    with pytest.raises(UserError, match="3 steps in a row"):
        runner.train()
    assert runner.step == 12 and torch.equal(model.projection.weight, before)
    counts = [caplog.text.index(f"the step is skipped ({n} in a row); batch: {model.ids[n - 1][0]}") for n in (1, 2, 3)]
    assert counts == sorted(counts) and (tmp_path / "checkpoint_step_12").is_dir()


@pytest.mark.slow
def test_a_good_step_resets_the_count(tmp_path, caplog):
    runner = toy_runner(tmp_path, model=Poisoned({1, 2, 5, 6, 7, 8}), accum_grad_iters=2, max_bad_steps=3)
    runner.train()
    assert runner.step == runner.total == 32  # three bad steps do not end it: a good one is between them
    bad = re.findall(r"the step is skipped \((\d) in a row\)", caplog.text)
    assert list(dict.fromkeys(bad)) == ["1", "2"] and len(bad) > len(set(bad))
    assert runner.guard.bad_steps == 0


@pytest.mark.slow
def test_too_many_bad_steps_end_the_run_with_a_saved_state(tmp_path):
    model = Poisoned(set(range(4, 99)))
    runner = toy_runner(tmp_path, model=model, max_bad_steps=3)
    with pytest.raises(UserError, match="3 steps in a row gave a loss or gradients that are not numbers") as error:
        runner.train()
    assert all(name in str(error.value) for name in model.ids[-1])
    saved = load_file(tmp_path / "checkpoint_step_6" / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())


def test_a_run_that_learns_nothing_is_reported_once(caplog):
    guard = LossMonitor(most=3, vocabulary=32000)
    guard.watch(100, math.log(32000))  # too early to say
    guard.watch(300, 3.0)
    assert not caplog.text
    guard.watch(300, math.log(32000))
    guard.watch(400, math.log(32000))
    assert caplog.text.count("that of guessing among all words (10.37)") == 1


@pytest.mark.slow
def test_a_run_watches_its_own_losses(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("minigpt4.runners.guard.CHANCE_STEPS", 20)
    model = Toy()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    toy_runner(tmp_path, model=model).train()
    assert caplog.text.count("after 20 steps the loss is 2.08, that of guessing among all words (2.08)") == 1

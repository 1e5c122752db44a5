"""A run that was cut off continues as if it had not been: to the bit, after a signal, after kill -9."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt4.common.distributed import rank, world_size
from minigpt4.common.errors import UserError
from minigpt4.runners import run_state
from minigpt4.runners.runner_base import RunnerBase
from tests.runners.toy import CONTEXT, Toy, on_ranks, toy_runner
from tests.waiting import wait_for


def weights(folder: Path, name: str = "checkpoint_3") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "model.safetensors")


def losses(folder: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [(r["step"], r["train_loss"]) for r in records if "train_loss" in r]


def stop_at(runner: RunnerBase, step: int) -> None:
    """A signal comes in this step."""
    iteration = runner.train_iteration

    def stop_after(*args, **kwargs):
        if runner.step + 1 == step:
            runner.signalled.set()
        return iteration(*args, **kwargs)

    runner.train_iteration = stop_after  # type: ignore[method-assign]


def assert_same_run(one: Path, two: Path) -> None:
    assert losses(one) == losses(two)
    assert all(torch.equal(weights(one)[name], value) for name, value in weights(two).items())
    states = [run_state.read_state(folder / "checkpoint_3") for folder in (one, two)]
    moments = [s["engine"]["optimizer"]["state"] for s in states]
    assert all(torch.equal(moments[0][i][k], v) for i, m in moments[1].items() for k, v in m.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    toy_runner(folder, valid=True).train()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5, 8, 11, 31])
def test_a_stopped_run_continues_to_the_bit(steps, whole, tmp_path):
    first = toy_runner(tmp_path, valid=True)
    stop_at(first, steps)
    first.train()
    assert first.step == steps
    second = toy_runner(tmp_path, valid=True, resume="auto")
    assert second.step == steps
    second.train()
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    toy_runner(tmp_path, max_epoch=1).train()
    again = toy_runner(tmp_path, max_epoch=1, resume="auto")
    again.train_iteration = None
    again.train()
    longer = toy_runner(tmp_path, max_epoch=2, resume="auto")
    longer.train()
    assert longer.step == 16 and len(losses(tmp_path)) == 16


@pytest.mark.slow
def test_a_run_of_before_is_not_written_over(tmp_path):
    toy_runner(tmp_path, max_epoch=1).train()
    with pytest.raises(UserError, match="holds checkpoint_0 of an earlier run. Set run.resume=auto"):
        toy_runner(tmp_path)
    with pytest.raises(UserError, match="run.resume: '.*nowhere' is not a checkpoint"):
        toy_runner(tmp_path / "b", resume=str(tmp_path / "nowhere"))
    other = toy_runner(tmp_path / "b", resume=str(tmp_path / "checkpoint_0"))
    assert other.step == 8


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["training_state_16.pt", "model.safetensors"])
def test_a_damaged_checkpoint_is_passed_over(damaged, tmp_path, caplog):
    toy_runner(tmp_path, max_epoch=2).train()
    file = tmp_path / "checkpoint_1" / damaged
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"(?s)^run.resume: .*{damaged}.* can't be read"):
        toy_runner(tmp_path, resume=str(tmp_path / "checkpoint_1"))
    assert toy_runner(tmp_path, resume="auto").step == 8
    assert "the one before it is used" in caplog.text


@pytest.mark.slow
def test_what_is_no_checkpoint_is_said_in_words(tmp_path):
    toy_runner(tmp_path, max_epoch=1).train()
    with pytest.raises(UserError, match="checkpoint_best' holds weights but no training state. Set model.ckpt to it"):
        toy_runner(tmp_path, resume=str(tmp_path / "checkpoint_best"))
    with pytest.raises(UserError, match="is a run's folder, not a checkpoint. Name one in it, such as checkpoint_0"):
        toy_runner(tmp_path, resume=str(tmp_path))


@pytest.mark.slow
def test_weights_of_another_model_name_the_key_that_chose_them(tmp_path):
    toy_runner(tmp_path, max_epoch=1).train()
    other = Toy()
    other.projection = torch.nn.Linear(16, 16, bias=False)
    with pytest.raises(UserError, match="^run.resume: .*unknown .'llama_proj.bias'"):
        toy_runner(tmp_path, model=other, resume="auto")


@pytest.mark.slow
def test_what_a_crash_left_does_not_stop_the_next_save(tmp_path):
    for left in (tmp_path / "checkpoint_0.old", tmp_path / "checkpoint_0"):
        left.mkdir()
        (left / "file").touch()
    toy_runner(tmp_path, max_epoch=1).train()
    assert not (tmp_path / "checkpoint_0.old").exists()
    assert not (tmp_path / "checkpoint_0" / "file").exists()


@pytest.mark.slow
def test_a_branch_that_is_left_does_not_come_back(tmp_path, caplog):
    toy_runner(tmp_path, valid=True, keep_last=9).train()
    older = str(tmp_path / "checkpoint_1")
    runner = toy_runner(tmp_path, resume=older, keep_last=1, save_steps=3, valid=True)
    assert "checkpoint_2, checkpoint_3: beyond step 16, from where this run continues" in caplog.text
    stop_at(runner, 20)
    runner.train()
    assert [folder.name for folder in run_state.checkpoints(tmp_path)] == ["checkpoint_step_20"]
    assert toy_runner(tmp_path, resume="auto").step == 20


@pytest.mark.slow
def test_the_best_of_a_branch_that_is_left_does_not_count(tmp_path):
    first = toy_runner(tmp_path, max_epoch=2)
    measures = iter([2.0, 0.0])
    first.validation.measure = lambda: {"val_loss": next(measures)}
    first.train()
    again = toy_runner(tmp_path, max_epoch=2, resume=str(tmp_path / "checkpoint_0"))
    again.validation.measure = lambda: {"val_loss": 1.0}
    again.train()
    assert run_state.read_measures(tmp_path / "checkpoint_best") == {"epochs": 2.0, "val_loss": 1.0}


@pytest.mark.slow
def test_checkpoints_within_an_epoch_and_the_last_ones_kept(tmp_path):
    toy_runner(tmp_path, max_epoch=2, save_steps=3, keep_last=2, valid=True).train()
    names = {p.name for p in tmp_path.iterdir() if p.is_dir()}
    assert names == {"checkpoint_step_14", "checkpoint_1", "checkpoint_best", "tensorboard"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_training_after_the_step_with_a_checkpoint(number, tmp_path):
    runner, handler = toy_runner(tmp_path), signal.getsignal(number)
    iteration = runner.train_iteration

    def signalled(*args, **kwargs):
        if runner.step == 4:
            os.kill(os.getpid(), number)
        return iteration(*args, **kwargs)

    runner.train_iteration = signalled  # type: ignore[method-assign]
    runner.train()
    assert signal.getsignal(number) == handler
    assert runner.step == 5
    assert (tmp_path / f"checkpoint_step_{runner.step}").is_dir()


def run_until_done(folder: Path) -> None:
    torch.set_num_threads(1)
    toy_runner(folder, pause=0.01, resume="auto", save_steps=1, keep_last=2, valid=True).train()


def step_reached(folder: Path) -> int:
    found = run_state.newest(folder)
    return found[1]["step"] if found else 0


def kill_once_beyond(step: int, folder: Path, later: float) -> None:
    process = CONTEXT.Process(target=run_until_done, args=(folder,))
    process.start()
    wait_for(lambda: not process.is_alive() or step_reached(folder) > step)
    time.sleep(later)
    process.kill()
    process.join()


@pytest.mark.distributed
def test_kill_9_at_random_moments_loses_nothing_but_the_steps_since_the_last_save(whole, tmp_path):
    moments = random.Random(0)
    reached = []
    for _ in range(20):
        kill_once_beyond(max(reached, default=0), tmp_path, moments.uniform(0, 0.05))
        reached.append(step_reached(tmp_path))
    assert reached == sorted(reached) and reached[-1] >= 20
    run_until_done(tmp_path)
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_without_the_random_numbers_of_before_the_run_would_be_another(whole, tmp_path, monkeypatch):
    toy_runner(tmp_path, valid=True, save_steps=5).train()
    for name in ("checkpoint_1", "checkpoint_2", "checkpoint_3", *(f"checkpoint_step_{n}" for n in (13, 21, 29))):
        shutil.rmtree(tmp_path / name)
    monkeypatch.setattr(run_state, "set_rng_state", lambda *_: None)
    toy_runner(tmp_path, valid=True, resume="auto").train()
    assert losses(tmp_path)[:8] == losses(whole)[:8] and losses(tmp_path)[8:] != losses(whole)[8:]


def train_and_stop(folder: Path, options: dict) -> None:
    runner = toy_runner(folder, valid=True, **options)
    stop = options.get("save_steps")
    iteration = runner.train_iteration

    def stop_after(*args, **kwargs):  # the last rank alone gets the signal
        if rank() == world_size() - 1 and runner.step + 1 == stop:
            runner.signalled.set()
        return iteration(*args, **kwargs)

    runner.train_iteration = stop_after
    runner.train()


def run_on(processes: int, folder: Path, **options) -> None:
    on_ranks(processes, train_and_stop, folder, options)


@pytest.mark.distributed
def test_two_processes_stop_together_and_continue_to_the_bit(tmp_path):
    run_on(2, tmp_path / "whole")
    run_on(2, tmp_path / "parts", save_steps=11)
    assert len(losses(tmp_path / "parts")) == 11
    run_on(2, tmp_path / "parts", resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.distributed
def test_another_number_of_processes_continues_from_the_same_weights(tmp_path, caplog):
    run_on(2, tmp_path, save_steps=11)
    runner = toy_runner(tmp_path, resume="auto", batch_size_train=8)
    assert runner.step == 11
    assert "2 processes" in caplog.text
    runner.train()
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 33))


def epochs(folder: Path) -> list[tuple[int, int]]:
    records = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [(r["epoch"], r["step"]) for r in records if "epoch" in r]


BY_DATA = {"iters_per_epoch": None, "keep_last": 2, "valid": True}  # of 50 samples


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "length"), [(4, 8, 6), (8, 4, 12)])
def test_another_batch_size_leaves_the_epochs_that_are_left(before, after, length, tmp_path, caplog):
    toy_runner(tmp_path, max_epoch=2, batch_size_train=before, **BY_DATA).train()
    runner = toy_runner(tmp_path, max_epoch=4, batch_size_train=after, resume="auto", **BY_DATA)
    assert (runner.step, runner.total) == (2 * length, 4 * length)
    assert f"an epoch has {length} steps now, {18 - length} before" in caplog.text
    stop_at(runner, 3 * length - 1)
    runner.train()
    again = toy_runner(tmp_path, max_epoch=4, batch_size_train=after, resume="auto", **BY_DATA)
    assert again.step == 3 * length - 1
    again.train()
    assert epochs(tmp_path) == [(n, (n + 1) * length) for n in range(4)]
    names = [folder.name for folder in run_state.checkpoints(tmp_path)]
    assert names == ["checkpoint_2", "checkpoint_3"]


@pytest.mark.slow
def test_another_batch_size_within_an_epoch_does_not_skip_its_end(tmp_path):
    runner = toy_runner(tmp_path, max_epoch=1, batch_size_train=4, **BY_DATA)
    stop_at(runner, 11)
    runner.train()
    runner = toy_runner(tmp_path, max_epoch=1, batch_size_train=8, resume="auto", **BY_DATA)
    assert runner.step == 5
    runner.train()
    assert epochs(tmp_path) == [(0, 6)]


def continue_with_the_epochs_left(folder: Path) -> None:
    runner = toy_runner(folder, max_epoch=3, resume="auto", **BY_DATA)
    assert (runner.step, runner.total) == (6, 18)
    runner.train()


@pytest.mark.distributed
def test_another_number_of_processes_leaves_the_epochs_that_are_left(tmp_path):
    toy_runner(tmp_path, max_epoch=1, **BY_DATA).train()
    on_ranks(2, continue_with_the_epochs_left, tmp_path)
    assert epochs(tmp_path) == [(0, 6), (1, 12), (2, 18)]

"""A full disk, or a folder that can't be written: one line says what and why, and the checkpoints of before stay."""

import json
import os
import resource
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from safetensors.torch import load_file

from minigpt4.common import command_line
from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, RunConfig
from minigpt4.runners.log import RunLog
from minigpt4.runners.run_state import checkpoint_to_continue
from tests.runners.toy import CONTEXT, toy_runner
from tests.waiting import LIMIT


def train_until_the_disk_is_full(folder: Path, limit: int, errors: Connection) -> None:
    """Files may not grow beyond a limit: to a program that looks like a full disk, and root is bound by it."""
    os.dup2(errors.fileno(), 2)

    def main() -> None:
        toy_runner(folder, max_epoch=1).train()
        runner = toy_runner(folder, max_epoch=2, resume="auto")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        runner.train()

    command_line.run(main)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "file"), [(8000, "checkpoint_1"), (1000, "log.txt")])
def test_a_full_disk_ends_a_run_in_one_line_and_leaves_its_checkpoints(limit, file, tmp_path):
    read_end, write_end = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=train_until_the_disk_is_full, args=(tmp_path, limit, write_end))
    process.start()
    write_end.close()
    with open(read_end.fileno(), closefd=False) as errors:
        stderr = errors.read()
    process.join(LIMIT)
    said = f"error: run.output_dir: '{tmp_path / file}' can't be written (File too large). Free space there and allow "
    assert process.exitcode == 2 and "Traceback" not in stderr, stderr
    assert stderr.splitlines()[-1].startswith(said) and stderr.count("error: ") == 1, stderr
    assert {p.name for p in tmp_path.glob("checkpoint_*")} == {"checkpoint_0", "checkpoint_best"}
    assert not list(tmp_path.glob("*.tmp"))

    runner = toy_runner(tmp_path, max_epoch=2, resume="auto")  # there is room again
    assert runner.step == 8
    runner.train()
    steps = [json.loads(line).get("step") for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert steps == [*range(1, 9), 8, *range(9, 17), 16]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.yaml", "run_info.json", "log.txt", "tensorboard"])
def test_a_folder_that_cannot_be_written_is_reported_at_the_start(file, tmp_path):
    toy_runner(tmp_path, max_epoch=1).train()
    weights = load_file(tmp_path / "checkpoint_0" / "model.safetensors")
    path = tmp_path / file
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(UserError, match=r"^run.output_dir: '.*' can't be written \(.*\)\. Free space") as error:
        toy_runner(tmp_path, max_epoch=2, resume="auto")
    assert len(str(error.value).splitlines()) == 1
    found = checkpoint_to_continue("auto", tmp_path)
    assert found is not None and load_file(found[0] / "model.safetensors").keys() == weights.keys()


@pytest.mark.slow
def test_a_best_checkpoint_that_cannot_be_written_is_reported(tmp_path):
    runner = toy_runner(tmp_path, max_epoch=1)
    (tmp_path / "checkpoint_best").write_text("")
    with pytest.raises(UserError, match="run.output_dir: '.*/checkpoint_best' can't be written"):
        runner.train()
    assert checkpoint_to_continue("auto", tmp_path) is not None


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "loss.png").mkdir()
    toy_runner(tmp_path, max_epoch=1).train()
    assert "loss.png can't be written" in caplog.text and (tmp_path / "checkpoint_best").is_dir()


def test_tensorboard_that_cannot_be_written_is_given_up(tmp_path, caplog, capfd):
    log = RunLog(Config(run=RunConfig(output_dir=str(tmp_path))))
    log.write(step=1, train_loss=1.0)
    shutil.rmtree(tmp_path / "tensorboard")
    (tmp_path / "tensorboard").write_text("")
    for step in (2, 3, 4):
        log.write(step=step, train_loss=1.0)
    log.close()
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 4
    assert caplog.text.count("tensorboard/ can't be written (") == 1
    assert "Exception in thread" not in capfd.readouterr().err

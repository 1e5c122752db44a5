"""A folder is one process's: a second is refused with its name, a dead one's is free, several ranks hold it as one."""

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from minigpt4.common.distributed import barrier, is_main
from minigpt4.common.errors import UserError
from minigpt4.common.locks import locked, new_folder
from tests.runners.toy import on_ranks
from tests.waiting import LIMIT

HOLD = """
import os, sys
from pathlib import Path
from minigpt4.common.locks import locked, new_folder

with locked("run.output_dir", Path(sys.argv[1])):
    # as a loader's worker: it has the parent's files, and outlives it
    forked = len(sys.argv) > 2 and os.fork() == 0
    if not forked:
        print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path, *more: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
def test_a_second_process_learns_whose_the_folder_is_until_the_first_is_killed(tmp_path):
    folder = tmp_path / "new" / "run"
    process = hold(folder)
    with process:
        held = rf"'{folder}' is in use by process {process.pid} on {socket.gethostname()}, since 20..-..-.. ..:..:..\. "
        with pytest.raises(UserError, match=f"^run.output_dir: {held}") as error, locked("run.output_dir", folder, 0):
            pass
        assert "Wait until it ends, end it, or set run.output_dir to another folder." in str(error.value)
        process.kill()
    with locked("run.output_dir", folder):
        assert json.loads((folder / ".lock.json").read_text())["pid"] == os.getpid()


@pytest.mark.slow
def test_what_a_killed_process_forked_is_waited_for(tmp_path):
    with hold(tmp_path, "fork") as process:
        process.kill()
        process.wait()
        holder = json.loads((tmp_path / ".lock.json").read_text())["pid"]
        process.stdin.close()  # the child ends: some versions of filelock leave it the parent's lock until then
        with locked("run.output_dir", tmp_path, LIMIT):
            assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid() != holder


def test_it_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked("run.output_dir", tmp_path):
        raise ZeroDivisionError
    with locked("run.output_dir", tmp_path, 0):
        pass


@pytest.mark.parametrize("broken", [False, True])
def test_a_holder_that_has_not_yet_said_who_it_is(broken, tmp_path):
    with filelock.FileLock(tmp_path / ".lock"):
        if broken:
            (tmp_path / ".lock.json").write_text("[")
        with pytest.raises(UserError, match="is in use by another process"), locked("run.output_dir", tmp_path, 0):
            pass


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"run.output_dir: '.*/.lock' can't be written \(Is a directory\). Free"):  # noqa: SIM117
        with locked("run.output_dir", tmp_path):
            pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with caplog.at_level(logging.WARNING), locked("run.output_dir", tmp_path):
        pass
    assert caplog.text.count("has no locks: see that no other run writes there") == 1


def be_refused_then_hold(folder: Path, process: int) -> None:
    for _ in range(2):  # no rank is left behind
        with pytest.raises(UserError, match=f"is in use by process {process} on "), locked("run.output_dir", folder, 0):
            pass
    if is_main():
        os.kill(process, signal.SIGKILL)
    with locked("run.output_dir", folder, LIMIT):
        barrier()


@pytest.mark.distributed
def test_all_ranks_hold_it_as_one_and_are_all_refused(tmp_path):
    with hold(tmp_path) as process:
        on_ranks(2, be_refused_then_hold, tmp_path, process.pid)
        assert process.wait() == -signal.SIGKILL
    assert json.loads((tmp_path / ".lock.json").read_text())["pid"] != process.pid  # a rank has had it since


def test_a_folder_that_another_run_fills_is_left_alone(tmp_path):
    with new_folder("--out", tmp_path / "new") as part:
        (part / "file").write_text("first")
        with pytest.raises(UserError, match=r"^--out: another run writes to '.*new'"):  # noqa: SIM117
            with new_folder("--out", tmp_path / "new"):
                pass
    assert (tmp_path / "new" / "file").read_text() == "first"
    with pytest.raises(UserError, match="is there already"), new_folder("--out", tmp_path / "new"):
        pass


def test_what_a_killed_run_left_is_not_in_a_new_folder(tmp_path):
    (tmp_path / ".new.part").mkdir()
    (tmp_path / ".new.part" / "old").touch()
    with new_folder("--out", tmp_path / "new") as part:
        (part / "file").touch()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["file"]

"""What the entry points share: a user's error is one line and exit code 2."""

import os
import subprocess
import sys

import pytest

from minigpt4.common import cli
from minigpt4.common.errors import UserError, did_you_mean, first_line


def fail(message: str):
    def main() -> None:
        raise UserError(message)

    return main


@pytest.mark.parametrize(("rank", "waited"), [("0", []), ("1", [cli.PATIENCE])])
def test_errors_are_one_line_and_exit_code_2_and_rank_0_speaks_first(rank, waited, monkeypatch, capsys):
    naps: list[float] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(cli.time, "sleep", naps.append)
    with pytest.raises(SystemExit) as ended:
        cli.run(fail("no such thing"))
    assert ended.value.code == 2
    assert naps == waited
    assert capsys.readouterr().err == "error: no such thing\n"


@pytest.mark.parametrize(("rank", "told"), [("0", True), ("1", False)])
def test_what_is_warned_of_before_ranks_join_is_told_once(rank, told):
    code = "import logging; from minigpt4.common import cli; cli.run(lambda: logging.warning('without effect'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | {"RANK": rank}, capture_output=True, text=True, check=True)
    assert ("without effect" in done.stderr) is told


def test_an_error_of_a_loaders_worker_is_shown_without_its_traceback(capsys):
    text = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nminigpt4.UserError: bad shard"
    with pytest.raises(SystemExit):
        cli.run(fail(text))
    assert capsys.readouterr().err == "error: bad shard\n"


def test_hints():
    assert did_you_mean("lion", ["laion", "cc_sbu"]) == " Did you mean 'laion'? Known: cc_sbu, laion."
    assert did_you_mean("x", []) == " Known: none."
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(EOFError()) == "EOFError"

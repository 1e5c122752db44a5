"""What the entry points share: one line for a user's error, from rank 0, exit code 2."""

import pytest

from minigpt4.common.cli import run
from minigpt4.common.errors import UserError, did_you_mean, first_line


def fail(message: str):
    def main() -> None:
        raise UserError(message)

    return main


@pytest.mark.parametrize(("rank", "shown"), [("0", "error: no such thing\n"), ("1", "")])
def test_rank_0_shows_the_error_and_all_exit_with_2(rank, shown, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as ended:
        run(fail("no such thing"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == shown


def test_an_error_of_a_loaders_worker_is_shown_without_its_traceback(capsys):
    text = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nminigpt4.UserError: bad shard"
    with pytest.raises(SystemExit):
        run(fail(text))
    assert capsys.readouterr().err == "error: bad shard\n"


def test_hints():
    assert did_you_mean("lion", ["laion", "cc_sbu"]) == " Did you mean 'laion'? Known: cc_sbu, laion."
    assert did_you_mean("x", []) == " Known: none."
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(EOFError()) == "EOFError"

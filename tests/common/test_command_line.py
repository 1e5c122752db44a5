"""What the entry points share: a user's error is one line and exit code 2."""

import argparse
import os
import subprocess
import sys

import pytest
import torch

from minigpt4.common import command_line
from minigpt4.common.errors import UserError, did_you_mean, first_line


def fail(message: str):
    def main() -> None:
        raise UserError(message)

    return main


@pytest.mark.parametrize(("rank", "waited"), [("0", []), ("1", [command_line.REPEAT_WAIT])])
def test_errors_are_one_line_and_exit_code_2_and_rank_0_speaks_first(rank, waited, monkeypatch, capsys):
    naps: list[float] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(command_line.time, "sleep", naps.append)
    with pytest.raises(SystemExit) as ended:
        command_line.run(fail("no such thing"))
    assert ended.value.code == 2
    assert naps == waited
    assert capsys.readouterr().err == "error: no such thing\n"


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("error", "waited"),
    [
        (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_a_rank_that_lost_another_lets_that_one_speak(error, waited, rank, monkeypatch):
    def main() -> None:
        raise error

    naps: list[float] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(command_line.time, "sleep", naps.append)
    with pytest.raises(RuntimeError):
        command_line.run(main)
    assert naps == [command_line.LOST_RANK_WAIT] * waited


LONE_RANK = """
import torch, sys
from minigpt4.common import command_line
from minigpt4.common.distributed import barrier, distributed, rank
from minigpt4.common.errors import UserError

def main():
    with distributed(torch.device("cpu")):
        if rank() == int(sys.argv[1]):
            raise UserError("only this rank knows")
        barrier()

command_line.run(main)
"""


@pytest.mark.distributed
@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_one_rank_alone_knows_is_one_line(rank, tmp_path):
    (tmp_path / "fail.py").write_text(LONE_RANK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launcher, str(tmp_path / "fail.py"), rank], capture_output=True, text=True)
    assert "error: only this rank knows\n" in done.stderr and "[rank" not in done.stderr, done.stderr


@pytest.mark.parametrize(("rank", "warned"), [("0", True), ("1", False)])
def test_what_is_warned_of_before_ranks_join_is_reported_once(rank, warned):
    code = (
        "import logging; from minigpt4.common.command_line import run; run(lambda: logging.warning('without effect'))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | {"RANK": rank}, capture_output=True, text=True, check=True)
    assert ("without effect" in done.stderr) is warned


def test_an_error_of_a_loaders_worker_is_shown_without_its_traceback(capsys):
    text = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nminigpt4.UserError: bad shard"
    with pytest.raises(SystemExit):
        command_line.run(fail(text))
    assert capsys.readouterr().err == "error: bad shard\n"


def test_hints():
    assert did_you_mean("lion", ["laion", "cc_sbu"]) == " Did you mean 'laion'? Known: cc_sbu, laion."
    assert did_you_mean("x", []) == " Known: none."
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(EOFError()) == "EOFError"


@pytest.mark.parametrize("wrong", ["ada", "ada:", ":secret", ""])
def test_credentials_are_a_user_and_a_password(wrong):
    assert command_line.credentials("ada:se:cret") == ("ada", "se:cret")
    with pytest.raises(argparse.ArgumentTypeError, match="USER:PASSWORD"):
        command_line.credentials(wrong)


@pytest.mark.parametrize("wrong", ["0", "-3", "1.5", "many", ""])
def test_numbers_from_one_on(wrong):
    assert command_line.positive("12") == 12
    with pytest.raises(argparse.ArgumentTypeError, match="not a number from 1 on"):
        command_line.positive(wrong)


@pytest.mark.slow
def test_the_demos_arguments_reach_the_page(monkeypatch, minigpt4):
    import gradio as gr

    from minigpt4.serve.web import server

    given = {}
    monkeypatch.setattr("minigpt4.inference.loading.load_engine", lambda *_: None)
    monkeypatch.setattr("minigpt4.inference.sessions.Sessions", lambda _, *sizes: given.update(sizes=sizes))
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda _: None)

    def launch(page, *values):
        page.share_url = page.local_url = "http://here"
        names = ("place", "host", "share", "auth", "max_upload_mb", "max_sessions", "allowed_hosts")
        given.update(zip(names, values, strict=True))

    monkeypatch.setattr(server, "launch", launch)
    assert minigpt4("demo", "--port", "0")[0] == 0
    assert (given["host"], given["share"], given["auth"]) == ("127.0.0.1", False, None) and given[
        "place"
    ].getsockname()[1]
    argv = "--host 0.0.0.0 --port 0 --share --auth a:b --auth c:d --max-sessions 3 --max-image-pixels 5"
    assert minigpt4("demo", *argv.split(), "--max-upload-mb", "7", "--allowed-hosts", "x.org")[0] == 0
    assert given.pop("place").getsockname()[1] and given == {
        "host": "0.0.0.0",
        "share": True,
        "auth": [("a", "b"), ("c", "d")],
        "sizes": (3, 5),
        "max_sessions": 3,
        "max_upload_mb": 7,
        "allowed_hosts": ["x.org"],
    }


def test_a_wrong_password_argument_is_reported(minigpt4):
    code, _, err = minigpt4("demo", "--auth", "ada")
    assert code == 2 and "argument --auth: write it as USER:PASSWORD" in err

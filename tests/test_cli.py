"""The console script: what its exit status says where a tool did not come to its end."""

import os
import subprocess
import sys

import pytest

from minigpt4.cli import TOOLS

# a tool that does what its argument says, in the place of one that takes long to start
FAKE = """
import sys, types
from minigpt4 import cli

tool = sys.modules["fake"] = types.ModuleType("fake")
tool.add_arguments = lambda parser: parser.set_defaults(main=lambda _: exec(code))
cli.TOOLS["fake"] = ("fake", "")
code = sys.argv.pop()
cli.main()
"""


def run(code: str, stdout: int) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", FAKE, "fake", code], stdout=stdout, stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("pass", 0, ""),
        ("import signal; signal.raise_signal(signal.SIGINT)", 130, ""),
        ("from minigpt4.common.errors import UserError; raise UserError('x: is wrong.')", 2, "error: x: is wrong.\n"),
    ],
)
def test_exit_statuses(code, status, message):
    assert run(code, subprocess.DEVNULL) == (status, message)


@pytest.mark.parametrize("code", ["print('x', flush=True)", "print('x' * 10**6)"])
def test_who_reads_the_output_may_leave(code):
    ours, theirs = os.pipe()
    os.close(ours)
    assert run(code, theirs) == (141, "")
    os.close(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", *TOOLS])
def test_help_is_instant(name):
    command = [sys.executable, "-X", "importtime", "-m", "minigpt4", *name.split(), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0 and f"usage: minigpt4 {name}" in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "minigpt4.common.command_line" in imported
    assert not imported & {"torch", "transformers", "numpy", "PIL", "gradio"}  # which take seconds

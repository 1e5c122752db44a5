"""A process ends with the one that started it, whatever it is busy with."""

import subprocess
import sys

import pytest

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
CHILD = """
import signal, sys, time
from minigpt4.common import signals
from minigpt4.common import command_line

def main():
    if sys.argv[1] == "blocked":  # as by a collective operation whose other ranks are gone
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("running", flush=True)
    while True:
        time.sleep(1)

signals.GRACE = 0.1
command_line.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("busy", ["free", "blocked"])
def test_a_rank_ends_when_torchrun_is_killed(busy, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    command = [sys.executable, "-c", PARENT, CHILD, busy]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "running\n"
        parent.kill()
        assert parent.communicate(timeout=300)[0] == ""  # its child had the pipe too

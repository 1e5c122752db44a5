"""What is said while a model is loaded."""

import sys
import time

import pytest

from minigpt4.serve import quiet_loading
from tests.waiting import wait_for


@pytest.mark.parametrize(
    ("terminal", "after", "message"), [(True, 0.01, "Loading the model...\n"), (True, 60, ""), (False, 0.01, "")]
)
def test_a_terminal_reports_a_load_that_takes_long(terminal, after, message, monkeypatch, capsys):
    monkeypatch.setattr(quiet_loading, "NOTICE_AFTER", after)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    said = []
    with quiet_loading.quietly():
        if message:
            wait_for(lambda: said.append(capsys.readouterr().err) or any(said))
        else:
            time.sleep(0.2)
    assert "".join([*said, capsys.readouterr().err]) == message

"""The line editor of `minigpt4 chat`: keys, history, completion."""

from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from minigpt4.serve.line_editor import Commands, line_editor

SCENE = Path(__file__).parents[2] / "minigpt4" / "assets" / "tiny" / "examples" / "scene1.jpg"


def test_the_line_editor_edits_and_remembers(tmp_path):
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        editor = line_editor(tmp_path / "cache", [], [])
        keys.send_text("Wat\x1b[D\x1b[Dh\r")  # left, left
        assert editor() == "What"
        keys.send_text("x\x03")
        with pytest.raises(KeyboardInterrupt):
            editor()
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            editor()
    history = tmp_path / "cache" / "chat_history"
    history.chmod(0o644)  # as earlier versions left it
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("\x1b[A\r")  # up
        assert line_editor(tmp_path / "cache", [], [])() == "What"
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (":im", ":img"),
        (":", ":img :conf"),
        (f":img {SCENE.with_suffix('')}", f":img {SCENE}"),
        (":conf num_beams=3 to", ":conf num_beams=3 top_p="),
        (":his t", ""),
        ("i", ""),
    ],
)
def test_tab_completes_commands_paths_and_options(typed, completed):
    found = Commands([":img", ":conf"], ["num_beams", "top_p"]).get_completions(Document(typed), CompleteEvent())
    assert " ".join(typed[: len(typed) + c.start_position] + c.text for c in found) == completed

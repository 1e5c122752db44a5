"""`minigpt4 chat`: commands, streaming, Ctrl-C, the line editor, a terminal, pipes."""

import codecs
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.output.vt100 import Vt100_Output

from minigpt4.conversation.conversation import Turn
from minigpt4.inference.chat import Chat
from minigpt4.inference.options import AnswerOptions
from minigpt4.serve.terminal import WELCOME, Terminal
from tests.waiting import LIMIT, wait_for

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "minigpt4" / "assets" / "tiny" / "examples" / "scene1.jpg"
SEEN = "The image shows three handwritten digits."
COMMAND = [sys.executable, "-c", "from minigpt4.cli import main; main()", "chat"]


@pytest.fixture
def terminal(tiny) -> Terminal:
    return Terminal(Chat(tiny), AnswerOptions(), interactive=True)


@pytest.fixture
def talk(terminal, capsys):
    """Types lines, the last of which leaves; returns failures, stdout and stderr."""

    def talk(*lines: str) -> tuple[int, str, str]:
        typed = iter([*lines, ":q", "never read"])
        failures = terminal.run(lambda: next(typed))
        assert list(typed) == ["never read"]
        return failures, *capsys.readouterr()

    return talk


def test_tasks_are_for_models_that_know_them(talk):
    failures, _, err = talk(":task refer")
    assert failures == 1 and "':task' is not a command" in err
    assert ":task" not in talk(":help")[1]


@pytest.mark.slow
def test_pictures_and_turns(talk, terminal):
    failures, out, err = talk(f":img {SCENE}", "Describe this image in detail.", "", " How many digits are there?")
    assert failures == 0 and out.startswith(SEEN) and out.endswith("\nthree\n")
    assert err == "The model sees 1 picture.\n"
    assert [turn.question for turn in terminal.chat.turns][1:] == [["How many digits are there?"]]


@pytest.mark.slow
def test_answers_are_printed_as_they_grow(talk, terminal, monkeypatch):
    words, write = [], sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: words.append(text) or write(text))
    talk(f":img {SCENE}", "Describe this image in detail.")
    assert len(words) > 20 and "".join(words) == terminal.chat.turns[0].answer + "\n"


def test_an_answer_whose_beginning_changes_is_shown_again(talk, terminal, monkeypatch):
    monkeypatch.setattr(terminal.chat, "stream", lambda *_, **__: iter(["do n", "don't"]))
    assert talk("?")[1] == "do n\ndon't\n"


def test_an_empty_answer_is_reported(talk, terminal, monkeypatch):
    monkeypatch.setattr(terminal.chat, "stream", lambda *_, **__: iter([""]))
    assert talk("?") == (0, "\n", "The answer is empty.\n")


@pytest.mark.slow
def test_several_paths_spaces_and_quotes(talk, terminal, tmp_path):
    for name in ("a b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(SCENE.read_bytes())
    assert talk(f":img\t{tmp_path}/a b.jpg", f':img "{tmp_path}/a b.jpg" {tmp_path}/c.jpg')[0] == 0
    assert len(terminal.chat.pictures) == 3
    many = " ".join([f"{tmp_path}/c.jpg"] * 50)  # longer than a file's name may be
    assert talk(f":img {many}", ":clh", f":img {SCENE} {SCENE} {SCENE}")[0] == 0
    failures, _, err = talk(":img it's", ":img nix.jpg", f":img {__file__}", ":img ~nobody-of-this-name/a.jpg")
    assert failures == 4 and len(terminal.chat.pictures) == 3
    assert "no closing quotation" in err and "nix.jpg can't be read as a picture: No such file" in err


def test_video(talk, terminal, video):
    failures, out, _ = talk(f":video {video}", "How many digits are there?", ":video nix.mp4")
    assert failures == 1 and len(terminal.chat.pictures) == 8


def test_history_is_shown_saved_loaded_and_forgotten(talk, terminal, tmp_path):
    file = tmp_path / "chat.json"
    ask = [f":img {SCENE}", "How many digits are there?"]
    assert talk(*ask, ":his")[1] == "three\n> [image] How many digits are there?\nthree\n"
    assert talk(f":save {file}", ":clh", ":his") == (0, "", f"The conversation is in '{file}'.\n")
    assert terminal.chat.pictures == []
    assert talk(f":load {file}", ":his", "Is there a red digit?")[1].endswith(
        "three\nYes, there is a red 2 on the left.\n"
    )
    failures, _, err = talk(":load nix.json", f":load {SCENE}", f":save {tmp_path}", f":load {__file__}")
    assert failures == 4 and len(terminal.chat.turns) == 2
    for words in ("No such file", "it is not text", "is not a regular file", "is not JSON"):
        assert words in err


def test_a_file_that_can_not_be_saved_to_keeps_what_it_holds(talk, terminal, tmp_path):
    file, link = tmp_path / "chat.json", tmp_path / "link.json"
    link.symlink_to(file)
    assert talk("How many digits are there?", f":save {link}")[0] == 0
    good = file.read_bytes()
    assert link.is_symlink() and sorted(tmp_path.iterdir()) == [file, link]
    terminal.chat.turns[0].question = "\ud800"  # which no file can hold
    failures, _, err = talk(f":save {file}", ":save \0", ":load \0")
    assert failures == 3 and file.read_bytes() == good
    assert f"'{file}' can't be written: it is not text." in err and "null byte" in err


def test_what_a_stranger_saved_does_not_steer_the_terminal(talk, terminal):
    terminal.chat.turns = [Turn(["\x1b[2Jboo\tx"], "\x9b31mé\n🐶\x07")]
    assert talk(":his")[1] == "> \ufffd[2Jboo\tx\n\ufffd31mé\n🐶\ufffd\n"


def test_the_screen_is_cleared_where_there_is_one(talk, monkeypatch):
    screen = io.StringIO()
    with create_app_session(output=Vt100_Output(screen, lambda: Size(24, 80))):
        assert talk(":clear") == (0, "", "") and screen.getvalue() == ""
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        talk(":clear")
    assert "\x1b[2J" in screen.getvalue()


@pytest.mark.slow
def test_options_and_seed(talk, terminal):
    terminal.options = terminal.initial_options = AnswerOptions(max_new_tokens=20)
    sample = ":conf do_sample=true temperature=9 top_p=1"
    asked = [f":img {SCENE}", "What?", ":clh"]
    _, out, err = talk(sample, ":seed 3", *asked, *asked, ":seed 4", *asked, ":seed")
    first, again, other, seed = out.splitlines()
    assert first == again != other and seed == "4" and "without effect" not in err
    _, out, _ = talk(":reset-conf", ":conf", ":seed")
    assert "max_new_tokens=20\n" in out and "do_sample=false\n" in out and out.endswith("seed=random\nrandom\n")
    assert talk(":seed 3", ":conf seed=random", ":seed")[:2] == (0, "random\n")  # as :conf shows it
    assert "temperature: without effect until" in talk(":conf temperature=0.5")[2]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (":hsi", "':hsi' is not a command. Did you mean ':his'? Known: :clear, :clh"),
        (":", "':' is not a command."),
        (":conf temprature=1", "'temprature' is not an option of an answer. Did you mean 'temperature'?"),
        (":conf top_p=2", "top_p: 2.0 is out of range"),
        (":conf num_beams=exit()", "num_beams: 'exit()' is not a whole number"),
        (":seed x", "seed: 'x' is not a whole number"),
        (":his 3", ":his takes nothing behind it, found '3'"),
        (":img", ":img needs something behind it. Write :img PATH..."),
    ],
)
def test_a_wrong_command_is_an_error_in_words(line, complaint, talk, terminal):
    failures, out, err = talk(line, ":help")
    assert failures == 1 and err.startswith(f"error: {complaint}") and ":load PATH" in out
    assert terminal.options == AnswerOptions()


def test_a_failing_model_is_an_error_in_words_and_the_next_question_is_answered(talk, terminal, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "answer", lambda *_, **__: 1 / 0)
        assert talk("?")[2] == "error: the model failed: ZeroDivisionError: division by zero\n"
    assert talk(f":img {SCENE}", "How many digits are there?")[:2] == (0, "three\n")


def test_words_that_the_model_no_longer_reads_are_reported(talk, terminal):
    terminal.options = AnswerOptions(max_new_tokens=4)
    terminal.chat.engine = copy(terminal.chat.engine)
    terminal.chat.engine.prompter = replace(terminal.chat.engine.prompter, window=40)
    err = talk("How many digits are there, and where?", "How many digits are there, and where are they?")[2]
    assert err == "The chat is long: the model no longer reads its first 1 questions.\n"


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_the_answer_and_not_the_program(presses, beams, talk, terminal, tiny, monkeypatch):
    terminal.options = AnswerOptions(num_beams=beams)
    read, stops, stop = [], [], terminal.chat.stop
    monkeypatch.setattr(terminal.chat, "stop", lambda: (stop(), stops.append(1)))

    def stopped() -> bool:
        # a press just before the main thread waits for a token is heeded with the next, which this holds back: wake it
        os.kill(os.getpid(), signal.SIGUSR1)
        return len(stops) == len([n for n in (5, 8)[:presses] if n <= len(read)])

    def press(*_):
        read.append(1)
        if len(read) in (5, 8)[:presses]:
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(stopped)

    handle, earlier = tiny.model.llm.register_forward_hook(press), signal.getsignal(signal.SIGINT)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        failures, out, _ = talk(f":img {SCENE}", "Describe this image in detail.", "And?")
    finally:
        handle.remove()
        signal.signal(signal.SIGUSR1, before)
    assert failures == 0 and signal.getsignal(signal.SIGINT) is earlier
    assert terminal.chat.turns[-1].question == ["And?"]
    if presses == 1:
        assert terminal.chat.turns[0].answer.finish == "interrupt"
        assert out.startswith(terminal.chat.turns[0].answer)


@pytest.mark.slow
def test_through_pipes_there_are_only_answers():
    lines = f":img {SCENE}\nHow many digits are there?\n:nix\n\xff\n".encode("latin-1")
    done = subprocess.run(COMMAND, cwd=ROOT, input=codecs.BOM_UTF8 + lines, capture_output=True, timeout=LIMIT)
    assert done.returncode == 1
    assert done.stdout.startswith(b"three\n") and b"\x1b" not in done.stdout + done.stderr
    assert done.stderr.startswith(b"The model sees 1 picture.\nerror: ':nix' is not a command.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stream", "code", "complaint"),
    [
        ("<&-", 2, "error: stdin: is closed."),
        ("0>/dev/null", 2, "error: stdin: can't be read (Bad file descriptor)."),
        (">&-", 2, "error: stdout: is closed."),
        (">/dev/full", 2, "error: stdout: can't be written (No space left on device)."),
        ("2>&-", 1, ""),
    ],
)
def test_a_stream_that_is_closed_or_full_ends_the_chat(stream, code, complaint):
    command = ["sh", "-c", f'exec "$@" {stream}', "sh", *COMMAND]
    done = subprocess.run(command, cwd=ROOT, input=":help\n:nix\n", capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == code
    assert done.stderr.startswith(complaint) and done.stderr.count("\n") == bool(complaint)


def test_through_pipes_no_question_is_asked_from_a_failed_command_to_the_next_picture(tiny, capsys):
    count = "How many digits are there?"
    lines = iter(
        [":img nix.jpg", count, ":seed 3", count, ":nix", f":img {SCENE}", count, ":his 3", count, ":clh", "?"]
    )
    terminal = Terminal(Chat(tiny), AnswerOptions(), interactive=False)
    assert terminal.run(lambda: next(lines, ":q")) == 6
    out, err = capsys.readouterr()
    assert out.startswith("three\n") and [turn.question for turn in terminal.chat.turns] == [["?"]]
    message = f"error: '{count}' was not asked, for '%s' failed. Write it right, or continue with one of :img, :video"
    assert err.count(message % ":img nix.jpg") == 2 and err.count(message % ":his 3") == 1


@pytest.mark.slow
def test_through_pipes_questions_are_asked_again_once_a_command_is_put_right(tiny, capsys):
    lines = iter([":img nix.jpg", ":conf num_bems=2", "A?", ":conf num_beams=2", "B?", f":img {SCENE}", "C?"])
    terminal = Terminal(Chat(tiny), AnswerOptions(), interactive=False)
    assert terminal.run(lambda: next(lines, ":q")) == 4
    err = capsys.readouterr().err
    assert "'A?' was not asked, for ':conf num_bems=2' failed" in err
    assert "'B?' was not asked, for ':img nix.jpg' failed" in err
    assert len(terminal.chat.turns) == 1 and terminal.options.num_beams == 2


@pytest.mark.slow
def test_ctrl_c_ends_a_piped_chat_while_it_answers():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # tests that a shell runs in the background ignore SIGINT, and so would the program
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(COMMAND, cwd=ROOT, env=environment, preexec_fn=heed, **pipes) as program:
        program.stdin.write(b"Describe this image in detail.\n" * 500)
        program.stdin.flush()  # and not closed: it would wait for more
        assert program.stdout.read(1)
        program.send_signal(signal.SIGINT)
        assert program.wait(LIMIT) == 130
        assert program.stderr.read() == b""


class Screen:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str], home: Path):
        keys, screen = pty.openpty()
        self.keys, self.shown = keys, ""
        env = os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "HOME": str(home), "OMP_NUM_THREADS": "1"}
        self.program = subprocess.Popen(
            command, cwd=ROOT, stdin=screen, stdout=screen, stderr=screen, env=env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(screen, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # a bar needs some width
        os.close(screen)

    def type(self, text: str) -> None:
        os.write(self.keys, text.encode())

    def wait_for(self, words: str) -> str:
        """Until words are shown, after those waited for before; returns what stands between."""
        end = time.monotonic() + LIMIT
        while words not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self.keys], [], [], 0.2)[0]:
                raw = os.read(self.keys, 4096).decode(errors="replace")
                self.shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw)
        before, _, self.shown = self.shown.partition(words)
        return before


@pytest.mark.slow
def test_in_a_terminal(tmp_path):
    screen = Screen(COMMAND, tmp_path)
    assert screen.wait_for(WELCOME).strip() in ("", "Loading the model...")
    screen.wait_for(">")
    screen.type("half a line\x03")
    screen.wait_for(">")
    screen.type(f":img {SCENE}\r")
    screen.wait_for("1 picture.")
    screen.wait_for(">")
    screen.type("Describe this image in detail.\r")
    screen.wait_for("\nThe")
    screen.type("\x03")  # while it answers, or a moment after
    screen.wait_for(">")
    screen.type("How many digits are there?\r")
    screen.wait_for("three")
    screen.wait_for(">")
    screen.type("\x04")
    assert screen.program.wait(LIMIT) == 0
    assert "Describe this image" in next(tmp_path.rglob("chat_history")).read_text()

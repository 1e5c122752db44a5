"""`minigpt4 chat`: talk about images in a terminal, or through pipes."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, cast

from minigpt4.common.command_line import StdoutError, require_open, say
from minigpt4.common.errors import UserError, did_you_mean, first_line
from minigpt4.common.files import replace_file
from minigpt4.common.signals import first_signal
from minigpt4.config.arguments import add_model_arguments, read_config
from minigpt4.config.finding import TINY
from minigpt4.config.schema import PreprocessConfig
from minigpt4.inference.boxes import TASKS, in_pixels, in_task
from minigpt4.inference.options import AnswerOptions, add_option_arguments, options_of
from minigpt4.serve.quiet_loading import quietly

if TYPE_CHECKING:  # slow to import
    from minigpt4.inference.chat import Chat
    from minigpt4.inference.pictures import Picture, Video

_NEW_TOPIC = (":img", ":video", ":load", ":clh")  # after these, it is clear again what a question is about
WELCOME = "Show a picture with :img PATH, then ask about it. :help tells more, :q leaves."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    add_model_arguments(parser, TINY)
    add_option_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Loads the model and talks until the input ends; through pipes it exits with 1 if a line could not be obeyed."""
    require_open("stdin", "stdout")
    config, options = read_config(args), options_of(args)
    with quietly():
        from minigpt4.inference.chat import Chat
        from minigpt4.inference.loading import load_engine

        engine = load_engine(config)

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    terminal = Terminal(Chat(engine), options, interactive, config.preprocess.n_frms, config.model.arch == "minigpt_v2")
    if interactive:
        from minigpt4.serve.line_editor import line_editor

        say(f"{WELCOME}\n")
        terminal.run(line_editor(Path(config.env.cache_root), list(terminal.commands), list(vars(options))))
        return
    # files that Windows wrote begin with a mark of their encoding
    for stream, encoding in ((sys.stdin, "utf-8-sig"), (sys.stdout, "utf-8")):
        cast(TextIOWrapper, stream).reconfigure(encoding=encoding, errors="replace")
    if terminal.run(_line_of_stdin):
        sys.exit(1)


def _line_of_stdin() -> str:
    try:
        line = sys.stdin.readline()
    except OSError as error:
        raise UserError(f"stdin: can't be read ({error.strerror}). Connect it to a file or a pipe.") from None
    if not line:
        raise EOFError
    return line


class Terminal:
    """Obeys the lines that are commands and asks the others. What was asked for goes to stdout, all else to stderr.

    Args:
        interactive: Ctrl-C ends the answer under way, or gives up a line, and not all of it.
        n_frms: pictures taken of a video.
        tasks: the model knows MiniGPT-v2's.
    """

    def __init__(
        self,
        chat: "Chat",
        options: AnswerOptions,
        interactive: bool,
        n_frms: int = PreprocessConfig.n_frms,
        tasks: bool = False,
    ):
        self.chat = chat
        self.n_frms = n_frms
        self.options = self.initial_options = options
        self.interactive = interactive
        self.task = ""
        self._failed: dict[str, str] = {}  # commands, by name, after which no question is asked through pipes
        about = f"begin questions with [NAME], of {', '.join(TASKS)}; none ends that"
        self.commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            ":img": ("PATH...", "show pictures; the next question is about them", self._show_images),
            ":video": ("PATH", f"show a video, as {n_frms} picture{'s' * (n_frms > 1)}", self._show_video),
            **({":task": ("[NAME]", about, self._set_task)} if tasks else {}),
            ":his": ("", "what was said", self._history),
            ":clh": ("", "forget what was said and shown", lambda _: self.chat.restart()),
            ":clear": ("", "clear the screen", self._clear_screen),
            ":seed": ("[N]", "the seed of sampling, or set it", self._seed),
            ":conf": ("[KEY=VALUE...]", "how answers are made, or change it", self._configure),
            ":reset-conf": ("", "make answers as at the start", self._reset_options),
            ":save": ("PATH", "write the conversation to a JSON file, pictures included", self._save),
            ":load": ("PATH", "continue with a conversation that was saved", self._load),
            ":help": ("", "this list", self._help),
            ":q": ("", "leave, as Ctrl-D does", self._leave),
        }

    def run(self, read: Callable[[], str]) -> int:
        """Talks until the end of the input; returns how many lines could not be obeyed.

        Args:
            read: gives the next line; raises EOFError at the end, and KeyboardInterrupt for a line that is given up.

        Raises:
            UserError: stdin can't be read, or stdout not be written.
        """
        failures = 0
        while True:
            try:
                failures += not self._succeeds(read())
            except EOFError:
                return failures
            except KeyboardInterrupt:
                if not self.interactive:
                    raise

    def _succeeds(self, line: str) -> bool:
        """Obeys a line, or asks it; says why that failed."""
        try:
            if line.startswith(":"):
                name = line.split()[0]
                self._failed = {key: own for key, own in self._failed.items() if key != name} | {name: line.strip()}
                self._run_command(line.strip())
                del self._failed[name]
                if name in _NEW_TOPIC:
                    self._failed.clear()
            elif line.strip() and self._failed and not self.interactive:  # who can't see that it failed
                *_, last = self._failed.values()
                cure = f"Write it right, or continue with one of {', '.join(_NEW_TOPIC)}."
                raise UserError(f"'{line.strip()}' was not asked, for '{last}' failed. {cure}")
            elif line.strip():
                self._ask(line.strip())
            return True
        except (EOFError, BrokenPipeError, StdoutError):  # the end, or nobody reads the answers any more
            raise
        except UserError as error:
            _note(f"error: {error}")
        except Exception as error:  # the model's, which may answer the next question
            _note(f"error: the model failed: {type(error).__name__}: {first_line(error)}")
        return False

    def _run_command(self, line: str) -> None:
        name, rest = [*line.split(maxsplit=1), ""][:2]
        if name not in self.commands:
            raise UserError(f"'{name}' is not a command.{did_you_mean(name, self.commands)}")
        usage, _, command = self.commands[name]
        if rest and not usage:
            raise UserError(f"{name} takes nothing behind it, found '{rest}'.")
        if usage and not rest and not usage.startswith("["):
            raise UserError(f"{name} needs something behind it. Write {name} {usage}")
        command(rest)

    def _ask(self, question: str) -> None:
        """Prints the answer as it grows. Ctrl-C ends it, and a second one takes the question back."""
        shown, forgotten = "", self.chat.forgotten
        try:
            with first_signal(self.chat.stop, signal.SIGINT) if self.interactive else nullcontext():
                asked = in_task(self.task, question) if self.task else question
                for answer in self.chat.stream(asked, **vars(self.options)):
                    if not answer.startswith(shown):  # a tokenizer may change its mind about a space
                        shown = ""
                        say("\n")
                    say(_printable(answer[len(shown) :]))
                    shown = answer
        finally:
            say("\n")
        if not shown:
            _note("The answer is empty.")
        for box in in_pixels(shown, self.chat.pictures[-1].image.size) if self.chat.pictures else []:
            _note(f"box {', '.join(map(str, box['box']))} {_printable(box['phrase'])}".rstrip())
        if self.chat.forgotten > forgotten:
            _note(f"The chat is long: the model no longer reads its first {self.chat.forgotten} questions.")

    def _show_images(self, rest: str) -> None:
        from minigpt4.inference.pictures import Picture

        paths, budget = _paths(rest), self.chat.pixel_budget()
        budget.expect(len(paths))
        self._show(*[Picture.from_file(path, budget) for path in paths])

    def _show_video(self, rest: str) -> None:
        from minigpt4.inference.pictures import Video

        self._show(Video(_path(rest), self.n_frms))

    def _show(self, *parts: "Picture | Video") -> None:
        self.chat.upload_img(*parts)
        count = len(self.chat.pictures)
        _note(f"The model sees {count} picture{'s' * (count != 1)}.")

    def _set_task(self, rest: str) -> None:
        if rest and rest not in (*TASKS, "none"):
            raise UserError(f"'{rest}' is not a task.{did_you_mean(rest, [*TASKS, 'none'])}")
        if rest:
            self.task = rest.removesuffix("none")
        else:
            say(f"{self.task or 'none'}\n")

    def _history(self, _: str) -> None:
        for turn in self.chat.turns:
            question = "".join(part if isinstance(part, str) else "[image]" for part in turn.question)
            say(f"> {_printable(question)}\n")
            if turn.answer is not None:
                say(f"{_printable(turn.answer)}\n")

    def _clear_screen(self, _: str) -> None:
        if sys.stdout.isatty():
            from prompt_toolkit.shortcuts import clear

            clear()

    def _seed(self, rest: str) -> None:
        if rest:
            self._change([f"seed={rest}"])
        else:
            say("random\n" if self.options.seed is None else f"{self.options.seed}\n")

    def _configure(self, rest: str) -> None:
        if rest:
            self._change(rest.split())
        else:
            for key, value in vars(self.options).items():
                say(f"{key}={'random' if value is None else str(value).lower()}\n")

    def _change(self, settings: list[str]) -> None:
        self.options = self.options.changed(settings)
        if idle := self.options.without_effect():
            _note(f"{', '.join(idle)}: without effect until :conf do_sample=true")

    def _reset_options(self, _: str) -> None:
        self.options = self.initial_options

    def _save(self, rest: str) -> None:
        try:
            replace_file(_path(rest), self.chat.save().encode())
        except (OSError, ValueError) as error:
            raise UserError(f"'{rest}' can't be written: {_reason(error)}. Name another file.") from None
        _note(f"The conversation is in '{rest}'.")

    def _load(self, rest: str) -> None:
        try:
            saved = _path(rest).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"'{rest}' can't be read: {_reason(error)}. Name a file that :save wrote.") from None
        self.chat.load(saved)
        _note(f"{sum(turn.answer is not None for turn in self.chat.turns)} questions were loaded.")

    def _help(self, _: str) -> None:
        say("Words without a command in front are a question; so is a line that begins with a space.\n")
        for name, (usage, about, _command) in self.commands.items():
            say(f"  {f'{name} {usage}':24}{about}\n")
        say("Ctrl-C ends the answer that is under way; through pipes, all.\n")

    def _leave(self, _: str) -> None:
        raise EOFError


def _paths(rest: str) -> list[Path]:
    """One path as it stands, or several, quoted as in a shell."""
    if os.path.exists(whole := _path(rest)):  # a list of paths can be too long for a name
        return [whole]
    try:
        return [Path(os.path.expanduser(path)) for path in shlex.split(rest)]
    except ValueError as error:
        raise UserError(f"{rest}: {str(error).lower()}. Close it, or write \\ before it.") from None


def _path(rest: str) -> Path:
    return Path(os.path.expanduser(rest.strip("\"'")))


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or ("it is not text" if isinstance(error, UnicodeError) else str(error))


def _printable(text: str) -> str:
    """Text of which no character steers the terminal, whoever wrote it; as long as it was."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")

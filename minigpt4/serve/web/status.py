"""The line below a conversation: how long an answer took, and how much of the model's window is used."""

import time

from minigpt4.inference.chat import Chat
from minigpt4.inference.options import AnswerOptions
from minigpt4.inference.requests import Answer

READING = "Reading …"
_SHOWN_EVERY = 0.05  # seconds; a browser that is sent more falls behind


def waiting(before: int) -> str:
    """Before its turn comes; so many answers must end first."""
    return f"Waiting for {before} other {'answers' if before > 1 else 'answer'} …"


class Clock:
    """Times one answer, from its making on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: float | None = None  # seconds to the first token
        self._last = 0.0
        self._shown = -_SHOWN_EVERY

    def tick(self) -> bool:
        """Notes that there is more of the answer; returns whether it is time to show it."""
        self._last = time.perf_counter() - self._start
        if self._first is None:
            self._first = self._last
        if self._last - self._shown < _SHOWN_EVERY:
            return False
        self._shown = self._last
        return True

    def status(self) -> str:
        """While it comes."""
        return READING if self._first is None else f"Answering … {self._last:.1f} s"

    def summary(self, chat: Chat, answer: str, options: AnswerOptions) -> str:
        """Once it is there; `answer` is the last that `chat` gave."""
        if self._first is None or not isinstance(answer, Answer):
            return ""
        rest = self._last - self._first
        if options.num_beams > 1 or answer.new_tokens < 2 or not rest:  # it came in one piece
            parts = [f"Answer after {self._last:.2f} s"]
        else:
            parts = [f"First token after {self._first:.2f} s", f"{(answer.new_tokens - 1) / rest:.1f} tokens/s"]
        if not answer:
            parts.append("the answer is empty")
        reused = f", {chat.reused_tokens} reused" if chat.reused_tokens else ""
        used = answer.prompt_tokens + answer.new_tokens
        parts.append(f"{used} of {chat.engine.prompter.window} tokens used ({answer.new_tokens} in the answer{reused})")
        if chat.forgotten:
            parts.append(f"first {chat.forgotten} questions forgotten")
        if options.seed is not None:
            parts.append(f"seed {options.seed}")
        if answer.finish == "interrupt":
            parts.append("stopped")
        if answer.finish == "length":
            full = answer.new_tokens < options.max_new_tokens
            parts.append("cut off: the window is full" if full else "cut off at the most tokens")
        return " · ".join(parts)

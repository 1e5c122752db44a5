"""Detects the end of an answer and emits its text, token by token. Nothing else decides either."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import StoppingCriteria

from minigpt4.conversation.conversation import Conversation
from minigpt4.conversation.prompter import Prompter
from minigpt4.inference.requests import Finish, Request

_CONTEXT = 8  # tokens of the beginning of an answer that show whether the next word has a space before it


class Ending:
    """Follows the tokens of one answer until it ends.

    It ends with a stop token, before the first stop string, with its limit of tokens, or when it is interrupted. The
    text so far never holds a stop string, the beginning of one, or half a character; and where the limit or an
    interrupt has ended it, no beginning of one of the template's is left.

    Args:
        request: whose answer it is; its callbacks report it, but for `on_end`.
        stop_ids: the tokens that end it.
        limit: most tokens.
        on_end: called with this, once it has ended.

    Attributes:
        finish: how it ended; None until then.
        tokens: of the answer so far, with the one that ended it.
    """

    def __init__(
        self, request: Request, prompter: Prompter, stop_ids: list[int], limit: int, on_end: Callable[["Ending"], None]
    ):
        self.request, self.tokenizer, self.stop_ids, self.limit = request, prompter.tokenizer, stop_ids, limit
        self._markers, self.stops = prompter.template.stop, (*prompter.template.stop, *request.stops)
        self.on_end = on_end
        self.finish: Finish | None = None
        self.tokens: list[int] = []
        self.text = ""
        prompt, beginning = request.prompt, ""  # the text is what follows it
        if isinstance(prompt, Conversation) and prompt.continued:
            beginning = prompt.turns[-1].answer or ""
        self._before = prompter.encode(beginning)[-_CONTEXT:]
        self._continues = beginning != "" and not beginning.endswith(" ")
        # a token has a byte or more; three more may be the end of a character that the first one cuts
        self._tail = max((len(stop.encode()) for stop in self.stops), default=0) + 3

    def put(self, token: int) -> None:
        """Takes the next token; what comes after the end is let pass."""
        if self.finish is not None:
            return
        tokens = self.tokens
        tokens.append(token)
        self.request.on_token(len(tokens))
        if token in self.stop_ids:
            self._finish("stop", self._decode(tokens[:-1]))
        elif self.stopped(tokens):
            self._finish("stop", self._decode(tokens))
        elif len(tokens) >= self.limit:
            self._finish("length", self._decode(tokens))
        elif self.request.on_text:
            self._report(stable_part(self._decode(tokens), self.stops, self._continues))

    def interrupt(self) -> None:
        """Ends the answer after the tokens that it has."""
        if self.finish is None:
            self._finish("interrupt", self._decode(self.tokens))

    def close(self) -> None:
        """There are no more tokens."""
        if self.finish is None:  # an LLM may have an end that is not a token of its own
            self._finish("stop" if len(self.tokens) < self.limit else "length", self._decode(self.tokens))

    def stopped(self, tokens: list[int]) -> bool:
        """Whether the last of an answer's tokens completes a stop string."""
        text = self._decode(tokens[-self._tail :]) if self.stops else ""
        return any(stop in text for stop in self.stops)

    def _finish(self, how: Finish, text: str) -> None:
        self.finish = how
        if how == "stop":
            self._report(cut(text, self.stops, self._continues))
        else:  # the beginning of a stop string that was asked for is a part of the answer as any other
            self._report(stable_part(text, self._markers, self._continues))
        self.on_end(self)

    def _report(self, text: str) -> None:
        if text != self.text:
            self.text = text
            if self.request.on_text:
                self.request.on_text(text)

    def _decode(self, tokens: list[int]) -> str:
        """The text of new tokens, with the space in front that they have behind the beginning of the answer."""
        before, text = (
            cast(str, self.tokenizer.decode(own, skip_special_tokens=True)) if own else ""
            for own in (self._before, [*self._before, *tokens])
        )
        return text[len(before) :]


def cut(text: str, stops: Sequence[str], continues: bool = False) -> str:
    """Ends a text where the first stop string begins; strips space around it.

    With `continues` it follows another text, and the space between them stays.
    """
    found = (text.find(stop) for stop in stops)
    text = text[: min((at for at in found if at >= 0), default=None)].rstrip()
    return text if continues else text.lstrip()


def stable_part(text: str, stops: Sequence[str], continues: bool = False) -> str:
    """The part of an unfinished answer that stays: no stop string nor the beginning of one, and no half character."""
    text = cut(text, stops, continues).rstrip("\N{REPLACEMENT CHARACTER}")
    tails = (stop[:n] for stop in stops for n in range(1, len(stop)))
    return text.removesuffix(max((t for t in tails if text.endswith(t)), key=len, default="")).rstrip()


class Endings(StoppingCriteria):
    """Follows the tokens of a batch as they are chosen, and reports to transformers which rows have ended.

    Not a streamer: transformers ask what has ended before or after they stream a token, as their version has it.

    With beams a prompt has several rows, all of as many, which change places: its tokens are known, and followed, in
    the end. Until then a row ends with a stop string.

    Attributes:
        interrupted: of prompts with beams, after how many tokens their answer was interrupted.
    """

    def __init__(self, endings: Sequence[Ending], beams: bool):
        self.endings, self.beams = endings, beams
        self.interrupted: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        ended = self._beams_ended(input_ids) if self.beams else self._ended(input_ids[:, -1].tolist())
        return torch.tensor(ended, device=input_ids.device)

    def _ended(self, tokens: list[int]) -> list[bool]:
        for ending, token in zip(self.endings, tokens, strict=True):
            ending.put(token)
            if ending.request.interrupt.is_set():
                ending.interrupt()
        return [ending.finish is not None for ending in self.endings]

    def _beams_ended(self, rows: Tensor) -> list[bool]:
        for number, ending in enumerate(self.endings):
            if ending.request.interrupt.is_set():
                self.interrupted.setdefault(number, rows.shape[1])
        candidates = len(rows) // len(self.endings)  # of a prompt, more than there are beams
        return [
            n // candidates in self.interrupted or self.endings[n // candidates].stopped(row)
            for n, row in enumerate(rows.tolist())
        ]

    def follow(self, tokens: Tensor) -> None:
        """Follows the tokens [B, T] that beams have chosen."""
        for number, (ending, row) in enumerate(zip(self.endings, tokens.tolist(), strict=True)):
            at = self.interrupted.get(number)
            for token in row[:at]:
                ending.put(token)
            if at is not None:
                ending.interrupt()

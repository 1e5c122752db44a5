"""Generation options as `key=value`, parsed by the key's type and never evaluated."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.conversation.conversation import Conversation

if TYPE_CHECKING:
    from minigpt4.inference.requests import Request

_LARGEST_SEED = 2**63 - 1  # of torch's generators


def _option(default: Any, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class AnswerOptions:
    """How somebody wants answers to be made: the fields of `Request` and `Decoding` that can be set.

    `vars` of them are the keyword arguments of `Chat.stream`.
    """

    max_new_tokens: int = _option(300, "most tokens of an answer")
    min_new_tokens: int = _option(0, "fewest tokens of an answer")
    num_beams: int = _option(1, "beams of the search; more than 1: the answer comes in one piece")
    do_sample: bool = _option(False, "draw words, instead of always taking the likeliest")
    temperature: float = _option(1.0, "of do_sample: above 1 more daring, below 1 more cautious")
    top_p: float = _option(0.9, "of do_sample: draw among the likeliest words that have this probability together")
    repetition_penalty: float = _option(1.0, "above 1: avoid what was said before")
    length_penalty: float = _option(1.0, "of num_beams: above 0 favours long answers, below 0 short ones")
    seed: int | None = _option(None, "of do_sample: the same seed draws the same answer; random draws one")

    def changed(self, settings: Sequence[str]) -> "AnswerOptions":
        """These options with `key=value` settings.

        Raises:
            UserError: an unknown key, or a value that is not of its type or out of range.
        """
        types = {option.name: option.type for option in fields(self)}
        values: dict[str, Any] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals:
                raise UserError(f"'{setting}' has no value. Write key=value, for example num_beams=3.")
            if key not in types:
                raise UserError(f"'{key}' is not an option of an answer.{did_you_mean(key, types)}")
            parse, expected = _PARSERS[types[key]]
            try:
                values[key] = parse(value)
            except (ValueError, KeyError):
                raise UserError(f"{key}: '{value}' is not {expected}.") from None
        options = replace(self, **values)
        options.request(Conversation([]))  # for its errors alone
        if options.seed is not None and not 0 <= options.seed <= _LARGEST_SEED:
            raise UserError(f"seed: {options.seed} is out of range. Set it to 0 to {_LARGEST_SEED}.")
        return options

    def request(self, conversation: Conversation) -> "Request":
        """The request for an answer.

        Raises:
            UserError: an option is out of range.
        """
        from minigpt4.inference.decoding import Decoding  # slow to import
        from minigpt4.inference.requests import Request

        ways = asdict(self)
        most, seed = ways.pop("max_new_tokens"), ways.pop("seed")
        return Request(conversation, most, Decoding(**ways), seed)

    def without_effect(self) -> list[str]:
        """What was set that only `do_sample` would heed."""
        default = AnswerOptions()
        keys = ("temperature", "top_p", "seed") if not self.do_sample else ()
        return [key for key in keys if getattr(self, key) != getattr(default, key)]


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a command the options of `AnswerOptions`, `--max-new-tokens` and so on."""
    group = parser.add_argument_group("how answers are made")
    for option in fields(AnswerOptions):
        how: dict[str, Any] = {"metavar": "N" if option.type in (int, int | None) else "X"}
        if option.type is bool:
            how = {"action": "store_const", "const": "true"}
        default = "" if option.type is bool else f" (default: {'random' if option.default is None else option.default})"
        group.add_argument(f"--{option.name.replace('_', '-')}", help=option.metadata["about"] + default, **how)


def options_of(args: argparse.Namespace) -> AnswerOptions:
    """The options that a command line sets.

    Raises:
        UserError: a value is not of its type, or out of range.
    """
    given = {option.name: getattr(args, option.name) for option in fields(AnswerOptions)}
    return AnswerOptions().changed([f"{key}={value}" for key, value in given.items() if value is not None])


def _finite(value: str) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError
    return number


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_PARSERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    int | None: (lambda value: None if value == "random" else int(value), "a whole number or random"),
    float: (_finite, "a number"),
    bool: (lambda value: _BOOLS[value.lower()], "true or false"),
}

"""What the page's controls mean."""

import random
import re

from minigpt4.common.errors import UserError
from minigpt4.inference.options import AnswerOptions

GREEDY, SAMPLE, BEAMS = MODES = ("Greedy", "Sample", "Beams")
LABELS = {  # in the order of the page's controls
    "num_beams": "Beams",
    "temperature": "Temperature",
    "top_p": "Top-p",
    "repetition_penalty": "Repetition penalty",
    "length_penalty": "Length penalty",
    "min_new_tokens": "Min tokens",
    "max_new_tokens": "Max tokens",
    "seed": "Seed",
}
_OF_MODE = {GREEDY: (), SAMPLE: ("temperature", "top_p", "seed"), BEAMS: ("num_beams", "length_penalty")}
_OF_ALL = ("repetition_penalty", "min_new_tokens", "max_new_tokens")
_OPTION = re.compile(rf"^({'|'.join(LABELS)})(?=:)|\b(max_new_tokens)(?=\.$)")  # "temperature: 0 is out of range ..."


def labelled(message: str) -> str:
    """What is said of options, with the names that they have on the page."""
    return _OPTION.sub(lambda option: LABELS[option[0]], message)


def decoding(mode: str, *values: float | None) -> AnswerOptions:
    """The options that the page's controls mean, whose values are in the order of `LABELS`.

    None, an empty field, is the default, and a seed of -1 is drawn.

    Raises:
        UserError: the mode is none of `MODES`, or a value is out of range.
    """
    if mode not in MODES:
        raise UserError(f"The mode {mode!r} is unknown. Choose one of {', '.join(MODES)}.")
    given = dict(zip(LABELS, values, strict=True))
    if given["seed"] in (None, -1):
        given["seed"] = random.randrange(2**31)
    settings = [f"{key}={given[key]}" for key in (*_OF_ALL, *_OF_MODE[mode]) if given[key] is not None]
    return AnswerOptions().changed([*settings, f"do_sample={mode == SAMPLE}"])

"""What the page's controls mean."""

import random
import re
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.inference.options import AnswerOptions

GREEDY, SAMPLE, BEAMS = MODES = ("Greedy", "Sample", "Beams")
LABELS = {
    "num_beams": "Beams",
    "length_penalty": "Length penalty",
    "temperature": "Temperature",
    "top_p": "Top-p",
    "repetition_penalty": "Repetition penalty",
    "min_new_tokens": "Min tokens",
    "max_new_tokens": "Max tokens",
    "seed": "Seed",
}
_OPTION = re.compile(rf"^({'|'.join(LABELS)})(?=:)|\b(max_new_tokens)(?=\.$)")  # "temperature: 0 is out of range ..."


def labelled(message: str) -> str:
    """What is said of options, with the names that they have on the page."""
    return _OPTION.sub(lambda option: LABELS[option[0]], message)


def decoding(
    mode: str,
    beams: float | None,
    temperature: float | None,
    top_p: float | None,
    repetition_penalty: float | None,
    length_penalty: float | None,
    min_new_tokens: float | None,
    max_new_tokens: float | None,
    seed: float | None,
) -> AnswerOptions:
    """The options that the page's controls mean: None, an empty field, is the default, and a seed of -1 is drawn.

    Raises:
        UserError: the mode is none of `MODES`, or a value is out of range.
    """
    values: dict[str, Any] = {
        "repetition_penalty": repetition_penalty,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
    }
    if mode == SAMPLE:
        seed = random.randrange(2**31) if seed in (None, -1) else seed
        values |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "seed": seed}
    elif mode == BEAMS:
        values |= {"num_beams": beams, "length_penalty": length_penalty}
    elif mode != GREEDY:
        raise UserError(f"The mode {mode!r} is unknown. Choose one of {', '.join(MODES)}.")
    return AnswerOptions().changed([f"{key}={value}" for key, value in values.items() if value is not None])

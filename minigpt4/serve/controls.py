"""What the page's controls mean."""

import random
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.conversation.options import AnswerOptions

GREEDY, SAMPLE, BEAMS = MODES = ("Greedy", "Sample", "Beams")


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

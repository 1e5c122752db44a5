"""Which lettered option an answer chose.

Sources: eval_science_qa.py and convert_seed_for_submission.py of LLaVA; lmms-eval's seedbench; MMBench's evaluator
(can_infer of VLMEvalKit's matching_util.py) without its judge model.
"""

import re
from collections.abc import Mapping

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SCIENCEQA = "ABCDE"
REFUSED = "Z"  # what MMBench's evaluator makes of an answer that declines
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FAILED = "Failed to obtain answer via API"
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST = 4  # words among which a letter must be


def llava_letter(text: str) -> str | None:
    """LLaVA's rule for ScienceQA: X alone, a beginning `X. `, or one `The answer is X` with a character behind it."""
    if text in tuple(_SCIENCEQA):
        return text
    if text[1:3] == ". " and text[0] in _SCIENCEQA:
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else None


def first_letter(text: str) -> str | None:
    """lmms-eval's rule for SEED-Bench: the first character of the stripped answer, in upper case."""
    return text.strip()[:1].upper() or None


def mmbench_option(text: str, choices: Mapping[str, str]) -> str | None:
    """MMBench's rules: one letter among the last words, `answer is X`, or the only option whose text is in the answer.

    Args:
        choices: {letter: text of the option}.
    """
    return _letter_of(text, choices) or _announced(text, choices) or _text_of(text, choices)


def _letter_of(text: str, choices: Mapping[str, str]) -> str | None:
    if _FAILED in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return REFUSED
    words = text.translate(_SEPARATORS).split()
    found = [letter for letter in choices if letter in words]
    if len(found) == 1 and words.index(found[0]) >= len(words) - _LAST:
        return found[0]
    if not found and REFUSED in words:
        return REFUSED
    return None


def _announced(text: str, choices: Mapping[str, str]) -> str | None:
    """X of `answer is X`, in any case."""
    found = re.search(r"\banswer is\s+([a-z])\b", text.translate(_SEPARATORS), re.IGNORECASE)
    letter = found[1].upper() if found else ""
    return letter if letter in choices else None


def _text_of(text: str, choices: Mapping[str, str]) -> str | None:
    lower = text.lower()
    if len(lower) > 2 * sum(map(len, choices.values())):
        return None
    found = [letter for letter, option in choices.items() if option.lower() in lower]
    return found[0] if len(found) == 1 else None

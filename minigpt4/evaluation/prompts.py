"""Prompts that several benchmarks share, as the original's evaluation scripts and LLaVA's write them."""

from collections.abc import Iterable

from minigpt4.evaluation.metrics.options import LETTERS

SHORT = "[vqa] Based on the image, respond to this question with a short answer: {question}"
LETTERED = "{hint}\n{question}\n{choices}\nAnswer with the option's letter from the given choices directly."


def lettered(template: str, hint: str, question: str, choices: Iterable[str], letters: Iterable[str] = LETTERS) -> str:
    """A question with its options, `A. text` a line; without a hint, its line is left out."""
    lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=False))
    return template.format(hint=hint, question=question, choices=lines).lstrip("\n")

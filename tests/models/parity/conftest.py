"""A look at what generation reads and gives."""

from dataclasses import dataclass

import pytest
from torch import Tensor
from transformers import GenerationMixin

from minigpt4.models import minigpt_base


@dataclass
class Generation:
    """One call of the LLM's `generate`: the layout [B, T] and mask [B, T] that it read, the tokens of each row."""

    layout: Tensor
    attention: Tensor
    tokens: list[list[int]]


@pytest.fixture
def generations(monkeypatch) -> list[Generation]:
    """Holds the generations of a test, in order."""
    layouts: list[Tensor] = []
    calls: list[Generation] = []
    splice, generate = minigpt_base.splice, GenerationMixin.generate

    def spliced(ids, *rest):
        layouts.append(ids)
        return splice(ids, *rest)

    def generated(llm, **options):
        tokens = generate(llm, **options)
        calls.append(Generation(layouts[-1], options["attention_mask"], tokens.tolist()))
        return tokens

    monkeypatch.setattr(minigpt_base, "splice", spliced)
    monkeypatch.setattr(GenerationMixin, "generate", generated)
    return calls

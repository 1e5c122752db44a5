"""Models set up as for a recorded case, and a look at what generation reads and gives."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import Tensor
from transformers import GenerationMixin

from minigpt4.inference import generation
from minigpt4.models.minigpt_base import MiniGPTBase
from tests.conftest import golden_json
from tests.models.parity import samples_of


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
    splice, generate = generation.splice, GenerationMixin.generate

    def spliced(ids, *rest):
        layouts.append(ids)
        return splice(ids, *rest)

    def generated(llm, **options):
        tokens = generate(llm, **options)
        calls.append(Generation(layouts[-1], options["attention_mask"], tokens.tolist()))
        return tokens

    monkeypatch.setattr(generation, "splice", spliced)
    monkeypatch.setattr(GenerationMixin, "generate", generated)
    return calls


@pytest.fixture
def prepared(parity_models, monkeypatch) -> Callable[[str, str], tuple[MiniGPTBase, dict, dict]]:
    """Gives, for a flavour and a training case, the model with the case's settings, the case, and its batch."""

    def prepare(flavour: str, case: str) -> tuple[MiniGPTBase, dict, dict]:
        model, spec = parity_models[flavour], golden_json(f"3_{flavour}")["cases"][case]
        settings = {name: spec[name] for name in ("max_txt_len", "end_sym")}
        for name, value in (settings | {"chat_template": spec.get("chat_template", False)}).items():
            monkeypatch.setattr(model, name, value)
        return model, spec, samples_of(flavour, case)

    return prepare

"""Models set up as for a recorded case, and a look at what generation reads and gives."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from torch import Tensor
from transformers import GenerationMixin

from minigpt4.conversation.conversation import Conversation
from minigpt4.inference import engine as engine_module
from minigpt4.inference.engine import Engine
from tests.conftest import golden_json
from tests.models.parity import conversations_of


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
    splice, generate = engine_module.splice, GenerationMixin.generate

    def spliced(ids, *rest):
        layouts.append(ids)
        return splice(ids, *rest)

    def generated(llm, **options):
        tokens = generate(llm, **options)
        calls.append(Generation(layouts[-1], options["attention_mask"], tokens.tolist()))
        return tokens

    monkeypatch.setattr(engine_module, "splice", spliced)
    monkeypatch.setattr(GenerationMixin, "generate", generated)
    return calls


@pytest.fixture
def prepared(parity_engines) -> Callable[[str, str], tuple[Engine, dict, list[Conversation]]]:
    """Gives, for a flavour and a training case, the engine with the case's settings, the case, and its samples."""

    def prepare(flavour: str, case: str) -> tuple[Engine, dict, list[Conversation]]:
        engine, spec = parity_engines[flavour], golden_json(f"3_{flavour}")["cases"][case]
        settings = {name: spec[name] for name in ("max_txt_len", "end_sym")}
        chat_template = spec.get("chat_template", False)
        engine.prompter = replace(engine.prompter, image_tags=("", ""), chat_template=chat_template, **settings)
        return engine, spec, conversations_of(flavour, case, engine.prompter)

    return prepare

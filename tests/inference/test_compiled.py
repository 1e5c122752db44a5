"""A compiled step with a static cache decodes what the usual one decodes, and is compiled once for many lengths."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from threading import Thread

import pytest
import torch
from transformers import MistralConfig

from minigpt4.common.errors import UserError
from minigpt4.inference.chat import Chat
from minigpt4.inference.compiled import CompiledDecoding
from minigpt4.inference.engine import Engine
from minigpt4.inference.requests import Answer, raise_first
from tests.inference.talking import IMAGE, asked, picture
from tests.llms import GROUPED, build
from tests.waiting import LIMIT

LENGTH = {"max_new_tokens": 8, "min_new_tokens": 8}
PROMPTS = ["7", f"{IMAGE} a dog?", "dog " * 40, f"a {IMAGE} and {IMAGE}"]


@pytest.fixture
def graphs(parity_engine):
    """The graphs that were compiled, by as cheap a compiler as there is."""
    compiled = []

    def backend(graph, inputs, **_):
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    parity_engine.compiled = CompiledDecoding(parity_engine.model.llm)
    parity_engine.compiled.config.backend = backend
    return compiled


def doing(engine: Engine, count: int, do: Callable[[], object], **options) -> list[Answer]:
    """Answers "7", and does something at the n-th token."""
    (request,) = asked(engine, ["7"], **options)
    request.on_token = lambda tokens: tokens == count and do()
    answers = engine.answer([request])
    raise_first(answers)
    return answers


@pytest.mark.slow
def test_tokens_are_equal_and_one_graph_serves_many_lengths(parity_engine, graphs):
    torch.manual_seed(1)
    images = [torch.randn(n, 3, 56, 56) if (n := prompt.count(IMAGE)) else None for prompt in PROMPTS]

    def answers():
        return [
            parity_engine.generate(own, [prompt], **LENGTH, **options)
            for options in ({}, {"do_sample": True, "seed": 3}, {"repetition_penalty": 1.5})
            for own, prompt in zip(images, PROMPTS, strict=True)
        ]

    ours = answers()
    assert len(graphs) == 1
    parity_engine.compiled = None
    assert ours == answers()


@pytest.mark.slow
def test_a_longer_cache_is_another_graph(parity_engine, graphs):
    parity_engine.prompter = replace(parity_engine.prompter, window=2048)
    for longest in (8, 1200, 8, 1200):
        (request,) = asked(parity_engine, ["7"], max_new_tokens=longest)
        request.on_token = lambda tokens, event=request.interrupt: tokens == 3 and event.set()
        (answer,) = parity_engine.answer([request])
        assert (answer.new_tokens, answer.finish) == (3, "interrupt")
    assert len(graphs) == 2


def test_beams_and_batches_decode_as_usual(parity_engine, graphs):
    parity_engine.generate(None, ["7"], num_beams=2, **LENGTH)
    parity_engine.generate(None, ["7", "dog"], **LENGTH)
    assert not graphs


@pytest.mark.slow
def test_each_session_keeps_its_own_cache(parity_engine, graphs):
    def course():
        ours, other = Chat(parity_engine), Chat(parity_engine)
        for ask in (
            lambda: ours.answer([picture("red"), "What is it?"], **LENGTH),
            lambda: ours.answer("Where is the small dog?", **LENGTH),
            lambda: list(ours.edit(0, "Who is it?", **LENGTH))[-1],
            lambda: ours.answer("Why?", **LENGTH),
        ):
            yield ask(), ours.reused_tokens, other.answer("What else is there to see?", **LENGTH), other.reused_tokens

    compiled = list(course())
    assert len(graphs) == 1 and compiled[1][1] > 20 < compiled[1][3]
    parity_engine.compiled = None
    assert compiled == list(course())


@pytest.mark.slow
def test_numbers_that_an_answer_left_reach_no_other(parity_engine, graphs):
    expected = parity_engine.generate(None, ["7"], **LENGTH)
    parity_engine.generate(None, ["dog " * 40], **LENGTH)
    (cache,) = parity_engine.compiled.caches.values()
    with torch.inference_mode():
        for layer in cache.layers:
            layer.values.fill_(torch.inf)
    assert parity_engine.generate(None, ["7"], **LENGTH) == expected


@pytest.mark.slow
def test_an_answer_beside_another_is_not_kept_waiting(parity_engine, graphs):
    expected = parity_engine.generate(None, ["dog"], **LENGTH)
    beside = []

    def ask():  # within the other's decoding, from a thread of its own
        thread = Thread(target=lambda: beside.extend(parity_engine.generate(None, ["dog"], **LENGTH)))
        thread.start()
        thread.join(LIMIT)

    doing(parity_engine, 3, ask, **LENGTH)
    assert beside == expected


@pytest.mark.slow
def test_a_failure_reaches_the_caller_and_the_next_answer_is_compiled(parity_engine, graphs):
    def fail():
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        doing(parity_engine, 3, fail, **LENGTH)
    graphs.clear()
    torch.compiler.reset()
    parity_engine.generate(None, ["7"], **LENGTH)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch's compiler needs a C++ compiler on a CPU")
def test_with_torchs_own_compiler(parity_engine, graphs):
    parity_engine.compiled.config.backend = "inductor"
    compiled = parity_engine.generate(None, ["dog " * 5], **LENGTH)
    parity_engine.compiled = None
    assert compiled == parity_engine.generate(None, ["dog " * 5], **LENGTH)


@pytest.mark.slow
def test_an_llm_that_forgets_is_refused(parity_config, tmp_path):
    engine = build(MistralConfig(**GROUPED, sliding_window=16), parity_config, tmp_path)
    with pytest.raises(UserError, match="model.compile: true needs an LLM that .* mistral .* Set it to false"):
        CompiledDecoding(engine.model.llm)

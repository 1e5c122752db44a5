"""A compiled step with a static cache decodes what the usual one decodes, and is compiled once for many lengths."""

import shutil
from threading import Event, Thread

import pytest
import torch
from PIL import Image
from transformers import MistralConfig
from transformers.generation.streamers import BaseStreamer

from minigpt4.common.errors import UserError
from minigpt4.config.schema import ProcessorConfig
from minigpt4.inference.chat import Chat
from minigpt4.inference.compiled import CompiledDecoding
from minigpt4.processors import build_processor
from tests.models.test_any_llm import GROUPED, build
from tests.waiting import LIMIT

IMAGE = "<Img><ImageHere></Img>"
LENGTH = {"max_new_tokens": 8, "min_new_tokens": 8}
PROMPTS = ["7", f"{IMAGE} a dog?", "dog " * 40, f"a {IMAGE} and {IMAGE}"]


@pytest.fixture
def graphs(parity_model, monkeypatch):
    """The graphs that were compiled, by as cheap a compiler as there is."""
    compiled = []

    def backend(graph, inputs, **_):
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(parity_model, "compiled", CompiledDecoding(parity_model.llm))
    parity_model.compiled.config.backend = backend
    return compiled


class After(BaseStreamer):
    """Does something at the n-th token."""

    def __init__(self, count, do):
        self.tokens, self.count, self.do = [], count, do

    def put(self, value):
        self.tokens += value.tolist()
        if len(self.tokens) == self.count:
            self.do()

    def end(self): ...


def test_tokens_are_equal_and_one_graph_serves_many_lengths(parity_model, graphs, monkeypatch):
    torch.manual_seed(1)
    images = [torch.randn(n, 3, 56, 56) if (n := prompt.count(IMAGE)) else None for prompt in PROMPTS]

    def answers():
        return [
            parity_model.generate(own, [prompt], **LENGTH, **options)
            for options in ({}, {"do_sample": True, "seed": 3}, {"repetition_penalty": 1.5})
            for own, prompt in zip(images, PROMPTS, strict=True)
        ]

    ours = answers()
    assert len(graphs) == 1
    monkeypatch.setattr(parity_model, "compiled", None)
    assert ours == answers()


def test_a_longer_cache_is_another_graph(parity_model, graphs, monkeypatch):
    monkeypatch.setattr(parity_model, "max_context_len", 2048)
    for longest in (8, 1200, 8, 1200):
        event = Event()
        streamer = After(2, event.set)
        parity_model.generate(None, ["7"], max_new_tokens=longest, streamer=streamer, interrupt=event)
        assert len(streamer.tokens) == 3
    assert len(graphs) == 2


def test_beams_and_batches_decode_as_usual(parity_model, graphs):
    parity_model.generate(None, ["7"], num_beams=2, **LENGTH)
    parity_model.generate(None, ["7", "dog"], **LENGTH)
    assert not graphs


def test_each_session_keeps_its_own_cache(parity_model, graphs, monkeypatch):
    picture = Image.new("RGB", (40, 30), "red")

    def course():
        ours, other = (
            Chat(parity_model, build_processor(ProcessorConfig(name="blip2_image_eval", image_size=56)))
            for _ in range(2)
        )
        for ask in (
            lambda: ours.answer([picture, "What is it?"], **LENGTH),
            lambda: ours.answer("Where is the small dog?", **LENGTH),
            lambda: list(ours.edit(0, "Who is it?", **LENGTH))[-1],
            lambda: ours.answer("Why?", **LENGTH),
        ):
            yield ask(), ours.reused_tokens, other.answer("What else is there to see?", **LENGTH), other.reused_tokens

    compiled = list(course())
    assert len(graphs) == 1 and compiled[1][1] > 20 < compiled[1][3]
    monkeypatch.setattr(parity_model, "compiled", None)
    assert compiled == list(course())


def test_numbers_that_an_answer_left_reach_no_other(parity_model, graphs):
    expected = parity_model.generate(None, ["7"], **LENGTH)
    parity_model.generate(None, ["dog " * 40], **LENGTH)
    (cache,) = parity_model.compiled._caches.values()
    with torch.inference_mode():
        for layer in cache.layers:
            layer.values.fill_(torch.inf)
    assert parity_model.generate(None, ["7"], **LENGTH) == expected


def test_an_answer_beside_another_is_not_kept_waiting(parity_model, graphs):
    expected = parity_model.generate(None, ["dog"], **LENGTH)
    beside = []

    def ask():  # within the other's decoding, from a thread of its own
        thread = Thread(target=lambda: beside.extend(parity_model.generate(None, ["dog"], **LENGTH)))
        thread.start()
        thread.join(LIMIT)

    parity_model.generate(None, ["7"], streamer=After(3, ask), **LENGTH)
    assert beside == expected


def test_a_failure_reaches_the_caller_and_the_next_answer_is_compiled(parity_model, graphs):
    def fail():
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        parity_model.generate(None, ["7"], streamer=After(3, fail), **LENGTH)
    graphs.clear()
    torch.compiler.reset()
    parity_model.generate(None, ["7"], **LENGTH)
    assert len(graphs) == 1


@pytest.mark.skipif(not shutil.which("g++"), reason="torch's compiler needs a C++ compiler on a CPU")
def test_with_torchs_own_compiler(parity_model, graphs, monkeypatch):
    parity_model.compiled.config.backend = "inductor"
    compiled = parity_model.generate(None, ["dog " * 5], **LENGTH)
    monkeypatch.setattr(parity_model, "compiled", None)
    assert compiled == parity_model.generate(None, ["dog " * 5], **LENGTH)


def test_an_llm_that_forgets_is_refused(parity_config, tmp_path):
    model = build(MistralConfig(**GROUPED, sliding_window=16), parity_config, tmp_path)
    with pytest.raises(UserError, match="model.compile: true needs an LLM that .* mistral .* Set it to false"):
        CompiledDecoding(model.llm)

"""What fails in a batch fails alone, and is reported once."""

import weakref
from dataclasses import replace

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.inference.engine import Engine
from tests.inference.talking import IMAGE, asked, facts


@pytest.mark.slow
def test_a_failing_row_names_itself_and_does_not_sink_the_others(parity_engine):
    parity_engine.prompter = replace(parity_engine.prompter, window=60)
    prompts = ["hello", "dog " * 60, f"{IMAGE} a dog", f"{IMAGE} 7"]
    images = [None, None, torch.randn(1, 3, 50, 50), torch.randn(1, 3, 56, 56)]
    ended, requests = [], asked(parity_engine, prompts, images)
    for request in requests:
        request.on_end = ended.append
    answers = parity_engine.answer(requests)
    assert [answer.finish == "error" for answer in answers] == [False, True, True, False]
    assert sorted(map(id, ended)) == sorted(map(id, answers))  # each once
    assert "tokens longer than the LLM can read" in str(answers[1].error)
    assert "50" in str(answers[2].error)  # which the image tower refuses
    assert answers[0] == parity_engine.generate(None, ["hello"])[0]
    assert answers[3] == parity_engine.generate(images[3], prompts[3:])[0]
    with pytest.raises(UserError, match="prompt 2 of 4: a prompt is"):
        parity_engine.generate(images, prompts)


def test_as_many_pictures_as_places(parity_engine):
    prompts, images = ["hello", IMAGE], [None, torch.randn(2, 3, 56, 56)]
    with pytest.raises(UserError, match="prompt 2 of 2: the prompt holds 1 <ImageHere> but 2 images were given"):
        parity_engine.generate(images, prompts)
    with pytest.raises(UserError, match="prompts hold 1 <ImageHere> but 2 images were given. Write one"):
        parity_engine.generate(images[1], prompts)


@pytest.mark.slow
def test_a_row_on_which_the_llm_fails(parity_engine, monkeypatch):
    generate = parity_engine.model.llm.generate

    def fails_on_long_ones(inputs_embeds, **options):
        if inputs_embeds.shape[1] > 30:
            raise RuntimeError("out of memory")
        return generate(inputs_embeds=inputs_embeds, **options)

    monkeypatch.setattr(parity_engine.model.llm, "generate", fails_on_long_ones)
    answers = parity_engine.answer(asked(parity_engine, ["hello", "dog " * 60, "7"]))
    assert [str(answer.error) for answer in answers] == ["None", "out of memory", "None"]
    with pytest.raises(RuntimeError, match="prompt 2 of 3: out of memory"):
        parity_engine.generate(None, ["hello", "dog " * 60, "7"])
    with pytest.raises(RuntimeError, match="^out of memory$"):
        parity_engine.generate(None, ["dog " * 60])


def test_a_batch_that_failed_holds_no_memory_while_its_rows_are_tried(parity_engine, monkeypatch):
    held = []

    def out_of_memory(inputs_embeds, **options):
        held[:] = [ref for ref in held if ref() is not None]
        assert not held
        held.append(weakref.ref(inputs_embeds))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(parity_engine.model.llm, "generate", out_of_memory)
    answers = parity_engine.answer(asked(parity_engine, ["hello", "7"]))
    assert [str(answer.error) for answer in answers] == ["out of memory"] * 2


def test_images_for_other_prompts(parity_engine):
    with pytest.raises(UserError, match="images were given for 1 prompts, and there are 2"):
        parity_engine.generate([None], ["hello", "7"])


@pytest.mark.slow
def test_what_no_tokenizer_takes_fails_alone(parity_engine):
    answers = parity_engine.answer(asked(parity_engine, ["hello", "\ud800", "a dog"]))
    assert "half there" in str(answers[1].error) and isinstance(answers[1].error, UserError)
    assert [answers[0], answers[2]] == parity_engine.generate(None, ["hello", "a dog"])
    with pytest.raises(UserError, match="prompt 2 of 3: a character of the text is only half there"):
        parity_engine.generate(None, ["hello", "\ud800", "a dog"])


def fails_after(engine: Engine, monkeypatch, tokens: int) -> list[int]:
    """Makes the LLM fail at its n-th step; returns the sizes of the batches that it began."""
    generate, batches, steps = engine.model.llm.generate, [], []

    def noted(inputs_embeds, **options):
        batches.append(len(inputs_embeds))
        steps.clear()
        return generate(inputs_embeds=inputs_embeds, **options)

    def step(*_) -> None:
        steps.append(1)
        if len(steps) > tokens and len(batches) == 1:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.model.llm, "generate", noted)
    monkeypatch.setattr(engine.model.llm.model, "forward", wrapped(engine.model.llm.model.forward, step))
    return batches


def wrapped(forward, before):
    def run(*args, **options):
        before()
        return forward(*args, **options)

    return run


@pytest.mark.slow
def test_what_had_ended_when_its_batch_failed_is_reported_once_and_not_made_again(parity_engine, monkeypatch):
    limits = (2, 8, 3)
    expected = [parity_engine.generate(None, ["a dog"], max_new_tokens=most, min_new_tokens=1)[0] for most in limits]
    requests = [asked(parity_engine, ["a dog"], max_new_tokens=most, min_new_tokens=1)[0] for most in limits]
    ended, texts = [], [[] for _ in requests]
    for request, own in zip(requests, texts, strict=True):
        request.on_end, request.on_text = ended.append, own.append
    batches = fails_after(parity_engine, monkeypatch, tokens=4)
    answers = parity_engine.answer(requests)
    assert facts(answers) == facts(expected) and [own[-1] for own in texts] == expected
    assert batches == [3, 1]
    assert [id(answer) for answer in ended] == [id(answers[n]) for n in (0, 2, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_what_fails_after_the_last_answer_has_ended_changes_none(count, parity_engine, monkeypatch):
    expected, ended = parity_engine.generate(None, ["a dog"] * count), []
    generate = parity_engine.model.llm.generate
    monkeypatch.setattr(parity_engine.model.llm, "generate", lambda **options: generate(**options) / 0 @ None)
    requests = asked(parity_engine, ["a dog"] * count)
    for request in requests:
        request.on_end = ended.append
    answers = parity_engine.answer(requests)
    assert facts(answers) == facts(expected)
    assert [id(answer) for answer in ended] == list(map(id, answers))

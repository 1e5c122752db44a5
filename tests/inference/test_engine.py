"""Batches: every request is answered as if it were alone, by any way of decoding, and failures stay where they are."""

import re
import threading
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.inference.caches import KeptCache
from minigpt4.inference.engine import Engine
from minigpt4.inference.pictures import Picture
from minigpt4.inference.requests import Decoding, Request
from tests.inference.talking import IMAGE, asked, facts, picture

TEXT = st.text(st.sampled_from("abc dog 7.#é"), max_size=60)
PROMPT = st.lists(st.one_of(TEXT, st.just(IMAGE)), min_size=1, max_size=4).map(" ".join)
LOOSE = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def images_for(prompts: list[str]) -> list[torch.Tensor | None]:
    counts = [prompt.count("<ImageHere>") for prompt in prompts]
    torch.manual_seed(1)
    return [torch.randn(count, 3, 56, 56) if count else None for count in counts]


def request_layout(engine: Engine, prompt: str) -> list[int]:
    return engine.prompter.layout(engine.prompter.parse(prompt, [None] * prompt.count("<ImageHere>")))


@pytest.mark.slow
@LOOSE
@given(prompts=st.lists(PROMPT, min_size=2, max_size=6), window=st.integers(30, 120), longest=st.integers(1, 24))
def test_a_batch_gives_what_one_by_one_gives(prompts, window, longest, parity_engine):
    """Also where the window ends some answers earlier than others."""
    parity_engine.prompter = replace(parity_engine.prompter, window=window)
    assume(all(len(request_layout(parity_engine, prompt)) < window for prompt in prompts))
    images, options = images_for(prompts), {"max_new_tokens": longest, "min_new_tokens": longest // 2}
    alone = [parity_engine.generate(own, [p], **options)[0] for own, p in zip(images, prompts, strict=True)]
    for given_ in (images, torch.cat(some) if (some := [i for i in images if i is not None]) else None):
        batch = parity_engine.generate(given_, prompts, **options)
        assert facts(batch) == facts(alone)


PROMPTS = [f"{IMAGE} a dog?", "hello", f"a {IMAGE} and {IMAGE} compared, at length and in detail", "7"]
SAMPLED = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12, "min_new_tokens": 12}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 2, "length_penalty": -1.0}, {"repetition_penalty": 1.5}],
    ids=lambda o: next(iter(o.items())),
)
def test_beams_and_penalties_in_a_batch(options, parity_engine):
    images = images_for(PROMPTS)
    alone = [parity_engine.generate(i, [p], **options)[0] for i, p in zip(images, PROMPTS, strict=True)]
    assert parity_engine.generate(images, PROMPTS, **options) == alone


@pytest.mark.slow
def test_seeds_give_the_same_in_any_batch_and_beside_any_thread(parity_engine):
    images, seeds = images_for(PROMPTS), [3, 4, 5, 6]
    alone = [
        parity_engine.generate(i, [p], seed=s, **SAMPLED)[0] for i, p, s in zip(images, PROMPTS, seeds, strict=True)
    ]
    assert parity_engine.generate(images, PROMPTS, seed=seeds, **SAMPLED) == alone
    assert parity_engine.generate(None, ["7"], seed=7, **SAMPLED) != alone[3:]
    answers: dict[int, list[str]] = {}

    def ask(seed: int) -> None:
        answers[seed] = parity_engine.generate(None, ["7"], seed=seed, **SAMPLED)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in (6, 7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers[6] == alone[3:] and len({tuple(a) for a in answers.values()}) == 3


@pytest.mark.slow
def test_seeds_of_sampled_beams_reproduce_and_leave_torchs_generator_alone(parity_engine):
    options = SAMPLED | {"num_beams": 2}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (parity_engine.generate(None, ["7"], seed=seed, **options) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    ended = threading.Event()

    def draw_unseeded() -> None:
        while not ended.is_set():
            parity_engine.generate(None, ["a dog"], do_sample=True, max_new_tokens=1)

    beside = threading.Thread(target=draw_unseeded)
    beside.start()
    try:
        assert [parity_engine.generate(None, ["7"], seed=1, **options) for _ in range(5)] == [first] * 5
    finally:
        ended.set()
        beside.join()


def test_greedy_decoding_leaves_torchs_generator_alone(parity_engine):
    state = torch.get_rng_state()
    parity_engine.generate(None, ["7"])
    assert torch.equal(torch.get_rng_state(), state)


def interrupted_at(request: Request, tokens: int) -> Request:
    request.on_token = lambda count: count == tokens and request.interrupt.set()
    return request


@pytest.mark.slow
def test_rows_are_streamed_and_interrupted_one_by_one(parity_engine):
    options = {"max_new_tokens": 30, "min_new_tokens": 30}
    whole = parity_engine.generate(None, ["hello", "a dog"], **options)
    requests, texts = asked(parity_engine, ["hello", "a dog"], **options), [[], []]
    for request, own in zip(requests, texts, strict=True):
        request.on_text = own.append
    interrupted_at(requests[0], 5)
    answers = parity_engine.answer(requests)
    assert answers[1] == whole[1]
    assert [a.finish for a in answers] == ["interrupt", "length"]
    assert answers[0].new_tokens == 5
    assert whole[0].startswith(answers[0]) and len(answers[0]) < len(whole[0])
    for answer, own in zip(answers, texts, strict=True):
        assert own[-1] == answer and len(own) > 2
        assert all(len(one) < len(other) and other.startswith(one) for one, other in pairwise(own))


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupt_before_the_start_leaves_one_token(beams, kept, parity_engine):
    (request,) = asked(parity_engine, ["hello"], num_beams=beams)
    request.kept = KeptCache() if kept else None
    request.interrupt.set()
    (answer,) = parity_engine.answer([request])
    assert (answer.finish, answer.new_tokens) == ("interrupt", 1)
    (whole,) = parity_engine.answer(asked(parity_engine, ["hello"], num_beams=beams))
    assert beams > 1 or whole.startswith(answer)


def test_one_of_two_beam_searches_is_interrupted(parity_engine):
    options = {"num_beams": 2, "max_new_tokens": 12, "min_new_tokens": 12}
    whole = parity_engine.generate(None, ["hello", "a dog"], **options)
    for number in (0, 1):
        requests = asked(parity_engine, ["hello", "a dog"], **options)
        requests[number].interrupt.set()
        answers = parity_engine.answer(requests)
        assert answers[1 - number] == whole[1 - number] and answers[1 - number].finish == "length"
        assert (answers[number].finish, answers[number].new_tokens) == ("interrupt", 1)


def test_a_beam_search_is_interrupted_in_the_middle(parity_engine, monkeypatch):
    options = {"num_beams": 2, "max_new_tokens": 12, "min_new_tokens": 12}
    whole = parity_engine.generate(None, ["hello", "a dog"], **options)
    requests, steps = asked(parity_engine, ["hello", "a dog"], **options), []

    def step(*_) -> None:
        steps.append(1)
        if len(steps) == 5:
            requests[0].interrupt.set()

    handle = parity_engine.model.llm.register_forward_hook(step)
    try:
        answers = parity_engine.answer(requests)
    finally:
        handle.remove()
    assert (answers[0].finish, answers[0].new_tokens) == ("interrupt", 5)
    assert facts(answers[1:]) == facts(whole[1:])


@pytest.mark.slow
def test_a_row_that_had_ended_is_not_interrupted_later(parity_engine):
    whole = parity_engine.generate(None, ["hello", "a dog"], max_new_tokens=30, min_new_tokens=30)
    first = parity_engine.prompter.encode(f" {whole[0]}")  # ends at a token that it says, and the other does not
    other = parity_engine.prompter.encode(f" {whole[1]}")
    parity_engine.stop_ids = [next(token for token in first[2:] if token not in other)]
    alone = parity_engine.generate(None, ["hello"], max_new_tokens=30)[0]
    assert alone.finish == "stop" and 0 < alone.new_tokens < 28
    requests = asked(parity_engine, ["hello", "a dog"], max_new_tokens=30)
    interrupted_at(requests[1], alone.new_tokens + 2)
    requests[0].interrupt = requests[1].interrupt
    answers = parity_engine.answer(requests)
    assert [a.finish for a in answers] == ["stop", "interrupt"]
    assert (answers[0], answers[0].new_tokens) == (alone, alone.new_tokens)


@pytest.mark.slow
def test_an_llm_without_an_end_of_its_own(parity_engine):
    """What pads a row behind a stop word or an interrupt is not part of its answer."""
    parity_engine.stop_ids = []
    whole = parity_engine.generate(None, ["hello", "a dog"], max_new_tokens=30)
    assert [a.finish for a in whole] == ["length", "length"]
    word = next(w for w in re.findall("[A-Za-z]{3,}", whole[0]) if w not in whole[1])
    template = replace(parity_engine.prompter.template, stop=(word,))
    parity_engine.prompter = replace(parity_engine.prompter, template=template)
    alone = [parity_engine.generate(None, [p], max_new_tokens=30)[0] for p in ("hello", "a dog")]
    batch = parity_engine.generate(None, ["hello", "a dog"], max_new_tokens=30)
    assert [(a, a.new_tokens, a.finish) for a in batch] == [(a, a.new_tokens, a.finish) for a in alone]
    assert [a.finish for a in batch] == ["stop", "length"]


def test_reading_what_all_prompts_begin_with_makes_no_logits(parity_engine):
    rows = []
    head = parity_engine.model.llm.lm_head
    handle = head.register_forward_hook(lambda _, args, out: rows.append(out.shape[1]))
    try:
        parity_engine.generate(None, ["the same words " * 20 + own for own in ("a", "b", "c d")], max_new_tokens=3)
    finally:
        handle.remove()
    assert rows and set(rows) == {1}


@pytest.mark.slow
@LOOSE
@given(
    rows=st.lists(
        st.tuples(TEXT, st.integers(1, 12), st.sampled_from([{}, {"num_beams": 2}, {"do_sample": True}])),
        min_size=2,
        max_size=4,
    )
)
def test_requests_of_any_kind_at_once_get_what_each_gets_alone(rows, parity_engine):
    """Also beams, whose search depends on how long the answer may be."""

    def requests() -> list[Request]:
        return [
            Request(parity_engine.prompter.parse(text, []), most, Decoding(**options), seed=number)
            for number, (text, most, options) in enumerate(rows)
        ]

    alone = [parity_engine.answer([request])[0] for request in requests()]
    assert facts(parity_engine.answer(requests())) == facts(alone)


@pytest.mark.slow
def test_answers_to_one_conversation_share_its_pictures(parity_engine, monkeypatch):
    pixels, encoded, encode = torch.randn(3, 56, 56), [], parity_engine.model.encode_img
    monkeypatch.setattr(parity_engine.model, "encode_img", lambda own: encoded.append(len(own)) or encode(own))
    conversation = Conversation([Turn([pixels, " a dog?"])])
    options = {"max_new_tokens": 8, "decoding": Decoding(do_sample=True)}
    answers = parity_engine.answer([Request(conversation, seed=seed, **options) for seed in (1, 2, 1)])
    assert encoded == [1]
    assert answers[0] == answers[2] != answers[1]
    (alone,) = parity_engine.answer([Request(Conversation([Turn([pixels, " a dog?"])]), seed=2, **options)])
    assert facts([alone]) == facts(answers[1:2])


@pytest.mark.slow
def test_embeddings_may_be_dropped_while_others_are_made(parity_engine, monkeypatch):
    red, blue = Picture(picture("red")), Picture(picture("blue"))
    expected = [own.clone() for own in parity_engine.embeddings([red, blue])]
    encode, blue.embedding = parity_engine.model.encode_img, None

    def dropping(pixels):
        red.embedding = None
        return encode(pixels)

    monkeypatch.setattr(parity_engine.model, "encode_img", dropping)
    for ours, own in zip(parity_engine.embeddings([red, blue, red]), [*expected, expected[0]], strict=True):
        torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
    assert red.embedding is None and blue.embedding is not None


def test_words_of_a_conversation_are_never_a_place_for_a_picture(parity_engine):
    words = "a <ImageHere> and <Img><ImageHere></Img>"
    turns = [Turn([words], words), Turn([words])]
    for conversation in (Conversation(turns), Conversation(turns, system=words)):
        (answer,) = parity_engine.answer([Request(conversation, max_new_tokens=2)])
        assert answer.error is None
        text = parity_engine.prompter.text(parity_engine.prompter.read(conversation))
        assert answer.prompt_tokens == len(parity_engine.prompter.encode(text)) + 1


@pytest.mark.parametrize("left", [0, 1, 2])
def test_an_answer_ends_where_the_window_does(left, parity_engine):
    read = len(request_layout(parity_engine, "a dog"))
    parity_engine.prompter = replace(parity_engine.prompter, window=read + left)
    (answer,) = parity_engine.answer(asked(parity_engine, ["a dog"], min_new_tokens=9))
    if left:
        assert (answer.finish, answer.prompt_tokens, answer.new_tokens) == ("length", read, left)
    else:
        assert "a prompt is 1 tokens longer" in str(answer.error)


@pytest.mark.slow
def test_how_long_one_answer_may_be_does_not_change_another_search(parity_engine):
    def requests() -> list[Request]:
        return [
            Request(parity_engine.prompter.parse(text, []), most, Decoding(num_beams=3))
            for text in ("hello", "a dog", "7")
            for most in (3, 5, 12)
        ]

    alone = [parity_engine.answer([request])[0] for request in requests()]
    assert any(not alone[n + 2].startswith(alone[n]) for n in (0, 3, 6))  # a longer search finds others
    assert facts(parity_engine.answer(requests())) == facts(alone)

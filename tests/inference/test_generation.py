"""Batches: every prompt is answered as if it were alone, by any way of decoding, and failures stay where they are."""

import re
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers.generation.streamers import BaseStreamer

from minigpt4.common.errors import UserError
from minigpt4.inference.decoding import Decoding, StopWords, _Draw

IMAGE = "<Img><ImageHere></Img>"
TEXT = st.text(st.sampled_from("abc dog 7.#é"), max_size=60)
PROMPT = st.lists(st.one_of(TEXT, st.just(IMAGE)), min_size=1, max_size=4).map(" ".join)
LOOSE = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def images_for(prompts: list[str]) -> list[torch.Tensor | None]:
    counts = [prompt.count("<ImageHere>") for prompt in prompts]
    torch.manual_seed(1)
    return [torch.randn(count, 3, 56, 56) if count else None for count in counts]


@pytest.mark.slow
@LOOSE
@given(prompts=st.lists(PROMPT, min_size=2, max_size=6), window=st.integers(30, 120), longest=st.integers(1, 24))
def test_a_batch_gives_what_one_by_one_gives(prompts, window, longest, parity_model):
    """Also where the window ends some answers earlier than others."""
    assume(all(len(parity_model.layout(prompt)) < window for prompt in prompts))
    images, options = images_for(prompts), {"max_new_tokens": longest, "min_new_tokens": longest // 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity_model, "max_context_len", window)
        alone = [parity_model.generate(own, [p], **options)[0] for own, p in zip(images, prompts, strict=True)]
        for given_ in (images, torch.cat(some) if (some := [i for i in images if i is not None]) else None):
            batch = parity_model.generate(given_, prompts, **options)
            assert [(a, a.prompt_tokens, a.new_tokens, a.finish) for a in batch] == [
                (a, a.prompt_tokens, a.new_tokens, a.finish) for a in alone
            ]


PROMPTS = [f"{IMAGE} a dog?", "hello", f"a {IMAGE} and {IMAGE} compared, at length and in detail", "7"]
SAMPLED = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12, "min_new_tokens": 12}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 2, "length_penalty": -1.0}, {"repetition_penalty": 1.5}],
    ids=lambda o: next(iter(o.items())),
)
def test_beams_and_penalties_in_a_batch(options, parity_model):
    images = images_for(PROMPTS)
    alone = [parity_model.generate(i, [p], **options)[0] for i, p in zip(images, PROMPTS, strict=True)]
    assert parity_model.generate(images, PROMPTS, **options) == alone


@pytest.mark.slow
def test_seeds_give_the_same_in_any_batch_and_beside_any_thread(parity_model):
    images, seeds = images_for(PROMPTS), [3, 4, 5, 6]
    alone = [
        parity_model.generate(i, [p], seed=s, **SAMPLED)[0] for i, p, s in zip(images, PROMPTS, seeds, strict=True)
    ]
    assert parity_model.generate(images, PROMPTS, seed=seeds, **SAMPLED) == alone
    assert parity_model.generate(None, ["7"], seed=7, **SAMPLED) != alone[3:]
    answers: dict[int, list[str]] = {}

    def ask(seed: int) -> None:
        answers[seed] = parity_model.generate(None, ["7"], seed=seed, **SAMPLED)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in (6, 7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers[6] == alone[3:] and len({tuple(a) for a in answers.values()}) == 3


def test_seeds_of_sampled_beams_reproduce_and_leave_torchs_generator_alone(parity_model):
    options = SAMPLED | {"num_beams": 2}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (parity_model.generate(None, ["7"], seed=seed, **options) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    ended = threading.Event()

    def draw_unseeded() -> None:
        while not ended.is_set():
            parity_model.generate(None, ["a dog"], do_sample=True, max_new_tokens=1)

    beside = threading.Thread(target=draw_unseeded)
    beside.start()
    try:
        assert [parity_model.generate(None, ["7"], seed=1, **options) for _ in range(5)] == [first] * 5
    finally:
        ended.set()
        beside.join()


def test_greedy_decoding_leaves_torchs_generator_alone(parity_model):
    state = torch.get_rng_state()
    parity_model.generate(None, ["7"])
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_follow_the_distribution():
    scores = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().expand(4000, -1)
    drawn = _Draw(list(range(4000)))(torch.zeros(4000, 0), scores).argmax(-1)
    shares = drawn.bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2, 0.0]), atol=0.03, rtol=0)
    assert shares[3] == 0


def test_only_the_likeliest_words_are_drawn():
    options = {"max_new_tokens": 1, "min_new_tokens": 0, "num_beams": 1, "length_penalty": 1, "repetition_penalty": 1}
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(300, -1)
    for top_p, possible in ((0.4, 1), (0.7, 2), (0.9, 3), (1.0, 4)):
        decoding = Decoding(**options, do_sample=True, temperature=1, top_p=top_p)
        drawn = decoding.processors(range(300))(torch.zeros(300, 0, dtype=torch.long), scores).argmax(-1)
        assert set(drawn.tolist()) == set(range(possible))
    decoding = Decoding(**options, do_sample=True, temperature=1, top_p=1)
    drawn = decoding.processors(range(300))(
        torch.zeros(300, 0, dtype=torch.long), torch.zeros(300, 99) - torch.arange(99) / 999
    )
    assert 40 < len(set(drawn.argmax(-1).tolist())) <= 50 and drawn.argmax(-1).max() < 50


def test_words_that_end_an_answer_may_come_in_pieces(parity_model):
    tokenizer, words = parity_model.llama_tokenizer, ("é🐶", "###")
    ends = StopWords(tokenizer, words)
    for text in ("a dogé🐶", "a ###", "###", "dog 7. é🐶 and"):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        first = next(n for n in range(len(tokens) + 1) if any(word in tokenizer.decode(tokens[:n]) for word in words))
        ended = [bool(ends(torch.tensor([tokens[:n]]), torch.empty(0))[0]) for n in range(1, first + 1)]
        assert ended == [False] * (first - 1) + [True]
    assert not ends(torch.tensor([tokenizer.encode("a dog ## #é 🐶")]), torch.empty(0)).any()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", 0),
        ("min_new_tokens", 21),
        ("num_beams", 0),
        ("temperature", 0.0),
        ("temperature", 1e-40),
        ("top_p", 1.5),
        ("repetition_penalty", -1.0),
    ],
)
def test_options_out_of_range(option, value, parity_model):
    with pytest.raises(UserError, match=rf"{option}: {value} is out of range. Set it to "):
        parity_model.generate(None, ["hello"], **{"do_sample": True, option: value})


def test_a_failing_row_names_itself_and_does_not_sink_the_others(parity_model, monkeypatch):
    monkeypatch.setattr(parity_model, "max_context_len", 60)
    prompts = ["hello", "dog " * 60, IMAGE, f"{IMAGE} a dog", f"{IMAGE} 7"]
    images = [None, None, torch.randn(2, 3, 56, 56), torch.randn(1, 3, 50, 50), torch.randn(1, 3, 56, 56)]
    answers = parity_model.generate(images, prompts, raise_errors=False)
    assert [answer.finish == "error" for answer in answers] == [False, True, True, True, False]
    assert "tokens longer than the LLM can read" in str(answers[1].error)
    assert "the prompt holds 1 <ImageHere> but 2 images were given" in str(answers[2].error)
    assert "50" in str(answers[3].error)  # which the image tower refuses
    assert answers[0] == parity_model.generate(None, ["hello"])[0]
    assert answers[4] == parity_model.generate(images[4], prompts[4:])[0]
    with pytest.raises(UserError, match="prompt 2 of 5: a prompt is"):
        parity_model.generate(images, prompts)


@pytest.mark.slow
def test_a_row_on_which_the_llm_fails(parity_model, monkeypatch):
    generate = parity_model.llama_model.generate

    def fails_on_long_ones(inputs_embeds, **options):
        if inputs_embeds.shape[1] > 30:
            raise RuntimeError("out of memory")
        return generate(inputs_embeds=inputs_embeds, **options)

    monkeypatch.setattr(parity_model.llama_model, "generate", fails_on_long_ones)
    answers = parity_model.generate(None, ["hello", "dog " * 60, "7"], raise_errors=False)
    assert [str(answer.error) for answer in answers] == ["None", "out of memory", "None"]
    with pytest.raises(RuntimeError, match="prompt 2 of 3: out of memory"):
        parity_model.generate(None, ["hello", "dog " * 60, "7"])
    with pytest.raises(RuntimeError, match="^out of memory$"):
        parity_model.generate(None, ["dog " * 60])


def test_a_batch_that_failed_holds_no_memory_while_its_rows_are_tried(parity_model, monkeypatch):
    held = []

    def out_of_memory(inputs_embeds, **options):
        held[:] = [ref for ref in held if ref() is not None]
        assert not held
        held.append(weakref.ref(inputs_embeds))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(parity_model.llama_model, "generate", out_of_memory)
    answers = parity_model.generate(None, ["hello", "7"], raise_errors=False)
    assert [str(answer.error) for answer in answers] == ["out of memory"] * 2


def test_images_for_other_prompts(parity_model):
    with pytest.raises(UserError, match="images were given for 1 prompts, and there are 2"):
        parity_model.generate([None], ["hello", "7"])


class Collect(BaseStreamer):
    """Interrupts its row once it has heard some tokens."""

    def __init__(self, patience: int):
        self.patience, self.tokens, self.event = patience, [], threading.Event()

    def put(self, value):
        self.tokens += value.tolist()
        if len(self.tokens) == self.patience:
            self.event.set()

    def end(self):
        pass


def test_rows_are_streamed_and_interrupted_one_by_one(parity_model):
    options = {"max_new_tokens": 30, "min_new_tokens": 30}
    whole = parity_model.generate(None, ["hello", "a dog"], **options)
    rows = [Collect(5), Collect(99)]
    answers = parity_model.generate(
        None, ["hello", "a dog"], streamer=rows, interrupt=[row.event for row in rows], **options
    )
    assert answers[1] == whole[1]
    assert [a.finish for a in answers] == ["interrupt", "length"]
    assert answers[0].new_tokens in (5, 6)
    assert whole[0].startswith(answers[0]) and len(answers[0]) < len(whole[0])
    assert parity_model.llama_tokenizer.decode(rows[1].tokens, skip_special_tokens=True).startswith(whole[1])


def test_one_of_two_beam_searches_is_interrupted(parity_model, monkeypatch):
    options = {"num_beams": 2, "max_new_tokens": 12, "min_new_tokens": 12}
    whole = parity_model.generate(None, ["hello", "a dog"], **options)
    for number in (0, 1):
        events = [threading.Event(), threading.Event()]
        events[number].set()
        answers = parity_model.generate(None, ["hello", "a dog"], interrupt=events, **options)
        assert answers[1 - number] == whole[1 - number] and answers[1 - number].finish == "length"
        assert (answers[number].finish, answers[number].new_tokens) == ("interrupt", 1)


def test_a_row_that_had_ended_is_not_interrupted_later(parity_model, monkeypatch):
    whole = parity_model.generate(None, ["hello", "a dog"], max_new_tokens=30, min_new_tokens=30)
    first = parity_model.encode_text(f" {whole[0]}")  # ends at a token that it says, and the other does not
    other = parity_model.encode_text(f" {whole[1]}")
    monkeypatch.setattr(parity_model, "stop_ids", [next(token for token in first[2:] if token not in other)])
    alone = parity_model.generate(None, ["hello"], max_new_tokens=30)[0]
    assert alone.finish == "stop" and 0 < alone.new_tokens < 28
    rows = [Collect(99), Collect(alone.new_tokens + 2)]
    answers = parity_model.generate(None, ["hello", "a dog"], max_new_tokens=30, streamer=rows, interrupt=rows[1].event)
    assert [a.finish for a in answers] == ["stop", "interrupt"]
    assert (answers[0], answers[0].new_tokens) == (alone, alone.new_tokens)


def test_an_llm_without_an_end_of_its_own(parity_model, monkeypatch):
    """What pads a row behind a stop word or an interrupt is no part of its answer."""
    monkeypatch.setattr(parity_model, "stop_ids", [])
    whole = parity_model.generate(None, ["hello", "a dog"], max_new_tokens=30)
    assert [a.finish for a in whole] == ["length", "length"]
    word = next(w for w in re.findall("[A-Za-z]{3,}", whole[0]) if w not in whole[1])
    monkeypatch.setattr(parity_model, "template", replace(parity_model.template, stop=(word,)))
    alone = [parity_model.generate(None, [p], max_new_tokens=30)[0] for p in ("hello", "a dog")]
    batch = parity_model.generate(None, ["hello", "a dog"], max_new_tokens=30)
    assert [(a, a.new_tokens, a.finish) for a in batch] == [(a, a.new_tokens, a.finish) for a in alone]
    assert [a.finish for a in batch] == ["stop", "length"]


def test_what_no_tokenizer_takes_fails_alone(parity_model):
    answers = parity_model.generate(None, ["hello", "\ud800", "a dog"], raise_errors=False)
    assert "half there" in str(answers[1].error) and isinstance(answers[1].error, UserError)
    assert [answers[0], answers[2]] == parity_model.generate(None, ["hello", "a dog"])
    with pytest.raises(UserError, match="prompt 2 of 3: a character of the text is only half there"):
        parity_model.generate(None, ["hello", "\ud800", "a dog"])


def test_reading_what_all_prompts_begin_with_makes_no_logits(parity_model):
    rows = []
    handle = parity_model.llama_model.lm_head.register_forward_hook(lambda _, args, out: rows.append(out.shape[1]))
    try:
        parity_model.generate(None, ["the same words " * 20 + own for own in ("a", "b", "c d")], max_new_tokens=3)
    finally:
        handle.remove()
    assert rows and set(rows) == {1}


def test_whole_numbers_are_taken_for_floats(parity_model):
    options = {"do_sample": True, "seed": 1, "max_new_tokens": 4}
    whole = parity_model.generate(None, ["a dog"], temperature=1, top_p=1, repetition_penalty=1, **options)
    assert whole == parity_model.generate(
        None, ["a dog"], temperature=1.0, top_p=1.0, repetition_penalty=1.0, **options
    )

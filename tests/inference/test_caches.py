"""A cache with room behind it holds what transformers' own holds, and one that a session keeps changes no token."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
)

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.conversation.prompter import IMAGE_ROW
from minigpt4.inference.caches import GrowingCache, new_cache
from minigpt4.inference.chat import Chat
from minigpt4.inference.engine import Engine
from minigpt4.inference.loading import load_engine
from minigpt4.inference.requests import Decoding, Request
from tests.inference.talking import picture, said
from tests.llms import FAMILIES, GROUPED, build

RED, BLUE = picture("red"), picture("blue")
WINDOW = GROUPED | {"sliding_window": 16}  # left behind within the first turn
SLIDING = {
    "mistral, sliding": MistralConfig(**WINDOW),
    "gemma2, sliding": Gemma2Config(**WINDOW, head_dim=12, query_pre_attn_scalar=12),
    "gemma3, sliding": Gemma3TextConfig(**WINDOW, head_dim=12, query_pre_attn_scalar=12),
}
LONGROPE = Phi3Config(
    **GROUPED | {"max_position_embeddings": 1024},
    pad_token_id=0,
    original_max_position_embeddings=64,
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 6,
        "long_factor": [4.0] * 6,
        "original_max_position_embeddings": 64,
    },
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from([1, 1, 5, 90])),
        st.tuples(st.just("crop"), st.integers(0, 6)),
        st.tuples(st.just("reorder"), st.permutations(range(3))),
    ),
    max_size=12,
)
LENGTH = {"max_new_tokens": 8, "min_new_tokens": 4}


@pytest.fixture(params=[*FAMILIES, *SLIDING], scope="module")
def engine(request, parity_config, tmp_path_factory) -> Engine:
    return build((FAMILIES | SLIDING)[request.param], parity_config, tmp_path_factory.mktemp("llm"))


def both(engine: Engine) -> Callable:
    """Does something to two sessions, one of which forgets its cache before; returns how much the other reused."""
    kept, full = Chat(engine), Chat(engine)

    def do(what: Callable[[Chat], object]) -> int:
        full.forget_cache()
        ours, expected = what(kept), what(full)
        assert said(kept.turns) == said(full.turns)
        assert (ours, full.reused_tokens) == (expected, 0)
        return kept.reused_tokens

    do.kept = kept
    return do


@pytest.mark.slow
def test_a_later_turn_reads_only_what_is_new(engine):
    do = both(engine)
    assert do(lambda chat: chat.answer([RED, "What is it?"], **LENGTH)) == 0
    reused = do(lambda chat: chat.answer("Where is the small dog?", **LENGTH))
    assert reused > do.kept.turns[0].answer.prompt_tokens - 2  # a template's last space may join a word
    assert do(lambda chat: chat.answer([BLUE, "And here?"], **LENGTH)) > reused
    assert do(lambda chat: list(chat.regenerate(**LENGTH))[-1]) == do.kept.turns[-1].answer.prompt_tokens - 1


@pytest.mark.slow
def test_edits_drops_and_other_pictures_roll_it_back(engine):
    do = both(engine)
    do(lambda chat: chat.answer([RED, "What is it?"], **LENGTH))
    do(lambda chat: chat.answer("Where?", **LENGTH))
    do(lambda chat: chat.answer("When?", **LENGTH))
    prompter = engine.prompter
    upto_image = prompter.layout(prompter.read(Conversation(do.kept.turns))).index(IMAGE_ROW) + prompter.rows
    assert do(lambda chat: list(chat.edit(1, "Who?", **LENGTH))[-1]) > upto_image
    assert upto_image <= do(lambda chat: list(chat.edit(0, "Who?", **LENGTH))[-1]) < upto_image + 16
    do(lambda chat: chat.answer("Why?", **LENGTH))
    do(lambda chat: len(chat.undo()))
    do(lambda chat: chat.answer("Where?", num_beams=2, **LENGTH))
    do(lambda chat: chat.answer("How?", **LENGTH))
    do(lambda chat: chat.restart())
    assert do(lambda chat: chat.answer([BLUE, "What is it?"], **LENGTH)) == 0
    do(lambda chat: len(chat.undo()))
    assert 0 < do(lambda chat: chat.answer([RED, "What is it?"], **LENGTH)) <= upto_image - prompter.rows


def test_beams_reuse_nothing_and_say_so(parity_engine):
    chat = Chat(parity_engine)
    chat.answer("What is it?", **LENGTH)
    chat.answer("Where?", **LENGTH)
    assert chat.reused_tokens > 0
    chat.answer("When?", num_beams=2, **LENGTH)
    assert chat.reused_tokens == 0


@pytest.mark.slow
def test_where_the_length_turns_all_keys_nothing_is_kept(parity_config, tmp_path):
    do = both(build(LONGROPE, parity_config, tmp_path))
    for question in ("hello", "Where is the small dog on the grass?", "hello"):
        assert do(lambda chat, question=question: chat.answer(question, **LENGTH)) == 0


@pytest.mark.slow
def test_where_the_length_turns_all_keys_a_batch_answers_as_one_by_one(parity_config, tmp_path):
    engine = build(LONGROPE, parity_config, tmp_path)
    asked = [Conversation([Turn([words])]) for words in ("hello", "the small dog " * 30, "Where?")]
    requests = [Request(conversation, 8, Decoding(min_new_tokens=4)) for conversation in asked]
    assert engine.answer(requests) == [engine.answer([request])[0] for request in requests]


@pytest.mark.slow
def test_the_tiny_model():
    config = load_config("eval_configs/minigpt4_tiny_eval.yaml")
    engine = load_engine(config)
    do = both(engine)
    with Image.open(f"{config.env.package_dir}/assets/tiny/examples/scene1.jpg") as example:
        do(lambda chat: chat.upload_img(example))
        do(lambda chat: chat.answer("Describe this image in detail."))
        assert do(lambda chat: chat.answer("How many digits are there?")) > engine.prompter.rows
        do(lambda chat: chat.answer([example, "And in this one?"]))
        do(lambda chat: list(chat.edit(1, "Is there a yellow digit?"))[-1])
        do(lambda chat: chat.answer("Where?"))


def test_only_what_is_new_is_fed_to_the_llm(parity_engine):
    chat, fed = Chat(parity_engine), []
    note = lambda module, args, kwargs: fed.append(kwargs.get("inputs_embeds"))  # noqa: E731
    handle = parity_engine.model.llm.register_forward_pre_hook(note, with_kwargs=True)
    try:
        chat.answer([RED, "What is it?"], **LENGTH)
        chat.answer("Where?", **LENGTH)
    finally:
        handle.remove()
    first, second = (embeds.shape[1] for embeds in fed if embeds is not None)
    prompt = chat.turns[1].answer.prompt_tokens
    assert second == prompt - chat.reused_tokens < prompt - first + 4  # a template's last space may join a word


def test_a_failure_in_the_middle_of_the_llm_empties_it(parity_engine):
    def fail(*_):
        raise RuntimeError("out of memory")

    do = both(parity_engine)
    do(lambda chat: chat.answer("hello", **LENGTH))
    handle = parity_engine.model.llm.model.layers[1].register_forward_hook(fail)  # layer 0 has read
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            do.kept.answer("Where?", **LENGTH)
    finally:
        handle.remove()
    assert do(lambda chat: chat.answer("Where?", **LENGTH)) == 0
    assert do(lambda chat: chat.answer("When?", **LENGTH)) > 0


ASK = st.tuples(
    st.just("ask"),
    st.lists(st.sampled_from([RED, BLUE, "a dog", "the grass on a small dog", "?"]), min_size=1, max_size=3),
)
ACTIONS = st.one_of(
    ASK,
    ASK,
    st.tuples(st.just("edit"), st.integers(0, 3), st.sampled_from(["a dog", "who"])),
    st.tuples(st.just("regenerate")),
    st.tuples(st.just("undo")),
    st.tuples(st.just("forget"), st.booleans()),
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, min_size=2, max_size=7), window=st.integers(130, 330))
def test_any_course_of_a_conversation(actions, window, parity_engine):
    """Also where the window makes it forget its first turns."""
    do = both(parity_engine)

    def act(chat: Chat, name: str, *args) -> object:
        try:
            return change(chat, name, *args), chat.forgotten
        except UserError as error:  # a message that cannot fit
            return str(error)

    def change(chat: Chat, name: str, *args) -> object:
        asked = [i for i, turn in enumerate(chat.turns) if turn.answer is not None]
        if name == "forget":
            return chat.forget_cache(*args)
        if name == "ask":
            return list(chat.stream(*args, **LENGTH))[-1]
        if not asked:
            return None
        if name == "edit":
            return list(chat.edit(asked[args[0] % len(asked)], args[1], **LENGTH))[-1]
        return list(chat.regenerate(**LENGTH))[-1] if name == "regenerate" else len(chat.undo())

    parity_engine.prompter = replace(parity_engine.prompter, window=window)
    for action in actions:
        do(lambda chat, action=action: act(chat, *action))
        assert not do.kept.turns or do.kept.turns[-1].answer is not None  # no question is left without its answer


def test_the_comparison_would_notice_a_wrong_cache(parity_engine, monkeypatch):
    """A cache that is not rolled back gives other tokens: the tests above are not blind."""
    monkeypatch.setattr(GrowingCache, "crop", lambda *_: None)
    do = both(parity_engine)
    do(lambda chat: chat.answer([RED, "What is it?"], **LENGTH))
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        do(lambda chat: list(chat.edit(0, "the small dog on the grass, at length and in detail", **LENGTH))[-1])


@pytest.mark.slow
@settings(deadline=None)
@given(steps=STEPS)
def test_it_holds_what_transformers_own_holds(steps):
    own, ours = DynamicCache(), GrowingCache()
    torch.manual_seed(0)
    for step, what in [("append", 8), *steps]:
        if step == "append":
            keys, values = torch.randn(3, 2, what, 4), torch.randn(3, 2, what, 6)
            given_, kept = (cache.update(keys, values, 0) for cache in (own, ours))
            assert all(torch.equal(a, b) for a, b in zip(given_, kept, strict=True))
        elif step == "crop" and what < own.get_seq_length():
            own.crop(-what), ours.crop(-what)
        elif step == "reorder":
            own.reorder_cache(torch.tensor(what)), ours.reorder_cache(torch.tensor(what))
        assert ours.get_seq_length() == own.get_seq_length()
        assert torch.equal(ours.layers[0].keys, own.layers[0].keys)


def test_a_token_is_added_without_copying():
    cache = GrowingCache()
    cache.update(torch.zeros(1, 1, 100, 4), torch.zeros(1, 1, 100, 4), 0)
    places = set()
    for _ in range(200):
        keys, values = cache.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4), 0)
        places.add((keys.data_ptr(), values.data_ptr()))
    assert len(places) == 2 and keys.shape[-2] == 300
    assert keys.untyped_storage().nbytes() < 1.5 * keys.numel() * keys.element_size()


def test_an_llm_with_another_kind_of_cache_keeps_its_own():
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    assert isinstance(new_cache(LlamaForCausalLM(LlamaConfig(**sizes, **heads))), GrowingCache)
    assert new_cache(MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=4))) is None

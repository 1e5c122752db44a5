"""A cache with room behind it holds what transformers' own holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from minigpt4.inference.growing_cache import GrowingCache, new_cache

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from([1, 1, 5, 90])),
        st.tuples(st.just("crop"), st.integers(0, 6)),
        st.tuples(st.just("reorder"), st.permutations(range(3))),
    ),
    max_size=12,
)


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

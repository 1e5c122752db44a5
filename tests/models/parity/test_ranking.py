"""`rank` ranks candidates as the original did."""

from dataclasses import replace

import pytest
import torch

from minigpt4.inference.ranking import losses_of, rank
from tests.conftest import assert_recorded, golden, golden_json
from tests.models.parity import FLAVOURS, pictures


@pytest.fixture(params=FLAVOURS)
def case(request, parity_engines):
    """Flavour, engine, prompts with their pictures, and each prompt's candidates."""
    flavour, engine = request.param, parity_engines[request.param]
    recorded = golden_json(f"3_{flavour}")
    spec, (*_, last) = recorded["multi_select"], recorded["cases"].values()  # of stage 2, as is the ranking
    own = replace(engine.prompter, **{name: last[name] for name in ("max_txt_len", "end_sym")})
    engine.prompter = own
    template = own.prompt_template if recorded.get("model_cfg", {}).get("chat_template") else "{}"
    candidates = [list(c) for c in zip(*spec["candidates"], strict=True)]
    texts = [template.format(text) for text in spec["texts"]]
    return flavour, engine, own.parse_all(texts, pictures(flavour)[: len(candidates)]), candidates


@pytest.mark.slow
@torch.inference_mode()
def test_losses_behind_the_ranks(case):
    flavour, engine, prompts, candidates = case
    for i, answers in enumerate(zip(*candidates, strict=True)):
        losses = losses_of(engine, prompts, answers, "original")
        recorded = golden(f"3_{flavour}")["multi_select.losses"][:, i]
        assert_recorded(f"3_{flavour}", "losses behind ranks", losses, recorded, 2e-5)


@pytest.mark.slow
def test_ranks(case):
    flavour, engine, prompts, candidates = case
    recorded = golden_json(f"3_{flavour}")["multi_select"]["ranks"]
    assert rank(engine, prompts, candidates, "original") == recorded


@pytest.mark.slow
def test_ranks_of_candidates_that_differ_in_number(case):
    """Quirk 11, both values: the original pads with the fillers of prompts that have fewer, here they have none."""
    flavour, engine, prompts, candidates = case
    spec = golden_json(f"3_{flavour}")["multi_select"]
    recorded = [ranks[:count] for ranks, count in zip(spec["ranks_num_cand"], spec["num_cand"], strict=True)]
    filled = zip(rank(engine, prompts, candidates, "original"), spec["num_cand"], strict=True)
    assert [[candidate for candidate in ranks if candidate < count] for ranks, count in filled] == recorded
    own = [answers[:count] for answers, count in zip(candidates, spec["num_cand"], strict=True)]
    losses = golden(f"3_{flavour}")["multi_select.losses"].clone()
    for i, answers in enumerate(zip(*candidates, strict=True)):  # means over the positions of the longest in a batch
        pairs = [engine.prompter.pair(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        lengths = [len(shown) + len(learned) - 1 for shown, learned in pairs]
        with_it = [length for length, mine in zip(lengths, own, strict=True) if i < len(mine)]
        losses[:, i] *= (max(lengths)) / max(with_it, default=1)
    expected = [row[:count].argsort().tolist() for row, count in zip(losses, spec["num_cand"], strict=True)]
    assert rank(engine, prompts, own, "original") == expected

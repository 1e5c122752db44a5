"""`multi_select` ranks candidates as the original did."""

import pytest
import torch

from tests.conftest import assert_recorded, golden, golden_json
from tests.models.parity import FLAVOURS, pictures


@pytest.fixture(params=FLAVOURS)
def case(request, parity_models, monkeypatch):
    """Flavour, model, pictures, prompts, and each prompt's candidates."""
    flavour, model = request.param, parity_models[request.param]
    spec = golden_json(f"3_{flavour}")["multi_select"]
    *_, last = golden_json(f"3_{flavour}")["cases"].values()  # stage 2's, as is the ranking
    chat_template = golden_json(f"3_{flavour}").get("model_cfg", {}).get("chat_template", False)
    settings = {name: last[name] for name in ("max_txt_len", "end_sym")} | {"chat_template": chat_template}
    for name, value in settings.items():
        monkeypatch.setattr(model, name, value)
    candidates = [list(c) for c in zip(*spec["candidates"], strict=True)]
    return flavour, model, pictures(flavour)[: len(candidates)], spec["texts"], candidates


@torch.inference_mode()
def test_losses_behind_the_ranks(case):
    flavour, model, images, texts, candidates = case
    for i, answers in enumerate(zip(*candidates, strict=True)):
        losses = model._losses({"image": images, "instruction_input": texts, "answer": answers}, "original")
        recorded = golden(f"3_{flavour}")["multi_select.losses"][:, i]
        assert_recorded(f"3_{flavour}", "losses behind ranks", losses, recorded, 2e-5)


def test_ranks(case):
    flavour, model, images, texts, candidates = case
    recorded = golden_json(f"3_{flavour}")["multi_select"]["ranks"]
    assert model.multi_select(images, texts, candidates, "original") == recorded


def test_ranks_of_candidates_that_differ_in_number(case):
    """Quirk 11, both values: the original pads with the fillers of prompts that have fewer, here they have none."""
    flavour, model, images, texts, candidates = case
    spec = golden_json(f"3_{flavour}")["multi_select"]
    recorded = [ranks[:count] for ranks, count in zip(spec["ranks_num_cand"], spec["num_cand"], strict=True)]
    filled = zip(model.multi_select(images, texts, candidates, "original"), spec["num_cand"], strict=True)
    assert [[candidate for candidate in ranks if candidate < count] for ranks, count in filled] == recorded
    own = [answers[:count] for answers, count in zip(candidates, spec["num_cand"], strict=True)]
    losses = golden(f"3_{flavour}")["multi_select.losses"].clone()
    for i in range(losses.shape[1]):  # a mean over the positions of the longest prompt that has such a candidate
        answers = [row[i] for row in candidates]
        examples = model._examples({"image": images, "instruction_input": texts, "answer": answers})
        lengths = [len(example) for example in examples]
        losses[:, i] *= max(lengths) / max((n for n, row in zip(lengths, own, strict=True) if i < len(row)), default=1)
    expected = [row[:count].argsort().tolist() for row, count in zip(losses, spec["num_cand"], strict=True)]
    assert model.multi_select(images, texts, own, "original") == expected

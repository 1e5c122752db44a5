"""The model's construction from configs, what trains, and generation in batches."""

import re
from dataclasses import replace

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config
from minigpt4.inference.endings import cut
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.projection import build_projection
from tests.batches import batch_of, instructed


def test_only_the_projection_trains(parity_model):
    assert {n for n, p in parity_model.named_parameters() if p.requires_grad} == {
        "projection.weight",
        "projection.bias",
    }
    assert sum(p.numel() for p in parity_model.projection.parameters()) == 64 * 64 + 64


def test_frozen_towers_stay_in_eval_mode(parity_model):
    parity_model.train()
    assert not any(m.training for m in parity_model.vision.modules())
    assert not parity_model.llm.training and parity_model.projection.training
    parity_model.eval()


@pytest.mark.parametrize("key", ["vit_model", "q_former_model", "ckpt", "llama_model", "prompt_path"])
def test_missing_files_are_named_before_anything_is_loaded(key, parity_config, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("something was loaded")

    monkeypatch.setattr("minigpt4.models.minigpt4.load_llm", fail)
    config = Config(model=replace(parity_config, **{key: "/no/such/file"}))
    with pytest.raises(UserError, match=f"model.{key}: '/no/such/file'"):
        MiniGPT4.from_config(config)


@pytest.mark.slow
def test_files_of_another_size_are_refused(parity_config):
    vit = replace(parity_config.vit, embed_dim=48)
    with pytest.raises(UserError, match="model.vit_model: .* does not fit model.vit"):
        MiniGPT4.from_config(Config(model=replace(parity_config, vit=vit)))
    vit = replace(parity_config.vit, depth=5)
    with pytest.raises(UserError, match="an EVA-ViT of depth 5: missing"):
        MiniGPT4.from_config(Config(model=replace(parity_config, vit=vit)))
    with pytest.raises(UserError, match="model.q_former_model: .* does not fit"):
        MiniGPT4.from_config(Config(model=replace(parity_config, num_query_token=9)))
    with pytest.raises(UserError, match="model.conversation: 'vicuna_v9' is unknown. Did you mean"):
        MiniGPT4.from_config(Config(model=replace(parity_config, conversation="vicuna_v9")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("pos_embed", torch.zeros(17, 32), "does not fit model.vit, .*: pos_embed is .17, 32."),
        ("blocks.x", torch.zeros(3), "an EVA-ViT of depth 3: .*unknown .'blocks.x'"),
    ],
)
def test_a_tower_of_another_kind_is_refused_in_words(name, value, complaint, parity_config, tmp_path):
    weights = torch.load(parity_config.vit_model, weights_only=True) | {name: value}
    torch.save(weights, tmp_path / "vit.pth")
    config = replace(parity_config, vit_model=str(tmp_path / "vit.pth"))
    with pytest.raises(UserError, match=f"model.vit_model: .*{complaint}"):
        MiniGPT4.from_config(Config(model=config))


@pytest.mark.slow
def test_batches_answer_as_one_by_one(parity_engine):
    torch.manual_seed(0)
    images = torch.randn(3, 3, 56, 56)
    texts = [
        "###Human: <Img><ImageHere></Img> What? ###Assistant: ",
        "###Human: hello ###Assistant: ",
        "###Human: <Img><ImageHere></Img><Img><ImageHere></Img> Compare the two, at length. ###Assistant: ",
    ]
    batch = parity_engine.generate(images, texts, max_new_tokens=12)
    single = [
        parity_engine.generate(images[:1], texts[:1], max_new_tokens=12)[0],
        parity_engine.generate(None, texts[1:2], max_new_tokens=12)[0],
        parity_engine.generate(images[1:], texts[2:], max_new_tokens=12)[0],
    ]
    assert batch == single


@pytest.mark.slow
def test_generation_stops_each_row_at_its_own_stop_string(parity_engine):
    texts = ["###Human: hello ###Assistant: ", "###Human: a dog ###Assistant: "]
    own = parity_engine.prompter

    def answers(stop: str) -> list[str]:
        parity_engine.prompter = replace(own, template=replace(own.template, stop=(stop,)))
        return parity_engine.generate(None, texts, max_new_tokens=16)

    whole = answers("no such text")
    stop = re.findall(r"[a-z]{3}", whole[1])[0]
    assert stop not in whole[0]
    assert answers(stop) == [whole[0], whole[1].split(stop)[0].strip()]


@pytest.mark.slow
def test_a_seed_reproduces_sampling(parity_engine):
    def sample(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return parity_engine.generate(None, ["hi "], do_sample=True, temperature=2.0)

    assert sample(1) == sample(1) != sample(2)


def test_answers_are_cut_at_the_stop_string(parity_prompter):
    stops = parity_prompter.template.stop
    assert cut(" a red 7###Human: more", stops) == "a red 7"
    assert cut("plain ", stops) == "plain"


@pytest.mark.slow
def test_another_projection_leaves_no_trace(parity_model):
    trained = parity_model.projection
    other = build_projection("linear", trained.in_features, parity_model.llm)
    picture = torch.randn(1, 3, 56, 56)
    own = parity_model.encode_img(picture)
    with pytest.raises(ZeroDivisionError), parity_model.projecting_with(other):
        assert parity_model.projection is other and not torch.equal(parity_model.encode_img(picture), own)
        raise ZeroDivisionError
    assert parity_model.projection is trained and torch.equal(parity_model.encode_img(picture), own)


@pytest.mark.slow
def test_the_window_limits_prompts_answers_and_training(parity_engine):
    own = parity_engine.prompter
    prompt = "###Human: hello ###Assistant: "
    length, long = len(own.layout([prompt])), {"max_new_tokens": 50, "min_new_tokens": 50}
    three = parity_engine.generate(None, [prompt], max_new_tokens=3, min_new_tokens=3)
    assert parity_engine.generate(None, [prompt], **long) != three
    parity_engine.prompter = replace(own, window=length + 3)
    assert parity_engine.generate(None, [prompt], **long) == three
    parity_engine.prompter = replace(own, window=length - 2)
    with pytest.raises(UserError, match="a prompt is 3 tokens longer than the LLM can read and answer"):
        parity_engine.generate(None, [prompt])
    with pytest.raises(UserError, match=rf"^it has \d+ tokens, and the LLM reads {length - 2} at once"):
        batch_of(parity_engine.prompter, [instructed("a dog", prompt)])

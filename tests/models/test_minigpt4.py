"""The model's construction from configs, what trains, and generation in batches."""

import dataclasses
import re

import pytest
import torch
from minigpt4.models.minigpt_base import read_prompts

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config
from minigpt4.models.minigpt4 import MiniGPT4


def test_only_the_projection_trains(parity_model):
    assert {n for n, p in parity_model.named_parameters() if p.requires_grad} == {
        "projection.weight",
        "projection.bias",
    }
    trainable, total = parity_model.count_parameters()
    assert trainable == 64 * 64 + 64 and total > trainable


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
    config = Config(model=dataclasses.replace(parity_config, **{key: "/no/such/file"}))
    with pytest.raises(UserError, match=f"model.{key}: '/no/such/file'"):
        MiniGPT4.from_config(config)


def test_files_of_another_size_are_refused(parity_config):
    vit = dataclasses.replace(parity_config.vit, embed_dim=48)
    with pytest.raises(UserError, match="model.vit_model: .* does not fit model.vit"):
        MiniGPT4.from_config(Config(model=dataclasses.replace(parity_config, vit=vit)))
    vit = dataclasses.replace(parity_config.vit, depth=5)
    with pytest.raises(UserError, match="no EVA-ViT of depth 5: missing"):
        MiniGPT4.from_config(Config(model=dataclasses.replace(parity_config, vit=vit)))
    with pytest.raises(UserError, match="model.q_former_model: .* does not fit"):
        MiniGPT4.from_config(Config(model=dataclasses.replace(parity_config, num_query_token=9)))
    with pytest.raises(UserError, match="model.conversation: 'vicuna_v9' is unknown. Did you mean"):
        MiniGPT4.from_config(Config(model=dataclasses.replace(parity_config, conversation="vicuna_v9")))


def test_batches_answer_as_one_by_one(parity_model):
    torch.manual_seed(0)
    images = torch.randn(3, 3, 56, 56)
    texts = [
        "###Human: <Img><ImageHere></Img> What? ###Assistant: ",
        "###Human: hello ###Assistant: ",
        "###Human: <Img><ImageHere></Img><Img><ImageHere></Img> Compare the two, at length. ###Assistant: ",
    ]
    batch = parity_model.generate(images, texts, max_new_tokens=12)
    single = [
        parity_model.generate(images[:1], texts[:1], max_new_tokens=12)[0],
        parity_model.generate(None, texts[1:2], max_new_tokens=12)[0],
        parity_model.generate(images[1:], texts[2:], max_new_tokens=12)[0],
    ]
    assert batch == single


def test_generation_stops_each_row_at_its_own_stop_string(parity_model, monkeypatch):
    texts = ["###Human: hello ###Assistant: ", "###Human: a dog ###Assistant: "]

    def answers(stop: str) -> list[str]:
        monkeypatch.setattr(parity_model, "template", dataclasses.replace(parity_model.template, stop=(stop,)))
        return parity_model.generate(None, texts, max_new_tokens=16)

    whole = answers("no such text")
    stop = re.findall(r"[a-z]{3}", whole[1])[0]
    assert stop not in whole[0]
    assert answers(stop) == [whole[0], whole[1].split(stop)[0].strip()]


def test_a_seed_reproduces_sampling(parity_model):
    def sample(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return parity_model.generate(None, ["hi "], do_sample=True, temperature=2.0)

    assert sample(1) == sample(1) != sample(2)


def test_answers_are_cut_at_the_stop_string(parity_model):
    assert parity_model.cut(" a red 7###Human: more") == "a red 7"
    assert parity_model.cut("plain ") == "plain"


def test_untrained_projection_is_a_control_and_leaves_no_trace(parity_model):
    trained = parity_model.projection
    with parity_model.untrained_projection():
        assert parity_model.projection is not trained
        first = parity_model.projection.weight.clone()
    with parity_model.untrained_projection():
        assert torch.equal(parity_model.projection.weight, first)
    with parity_model.untrained_projection(active=False):
        assert parity_model.projection is trained
    assert parity_model.projection is trained


def test_prompt_files(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("<Img><ImageHere></Img> Describe.\nno placeholder\n\n")
    assert read_prompts(str(file), "Q: {} A: ") == ["Q: <Img><ImageHere></Img> Describe. A: "]
    assert read_prompts("", "{}") == []
    file.write_text("nothing\n")
    with pytest.raises(UserError, match="holds <ImageHere>"):
        read_prompts(str(file), "{}")


@torch.inference_mode()
def test_the_window_limits_prompts_answers_and_training(parity_model, monkeypatch):
    prompt = "###Human: hello ###Assistant: "
    length, long = len(parity_model.layout(prompt)), {"max_new_tokens": 50, "min_new_tokens": 50}
    three = parity_model.generate(None, [prompt], max_new_tokens=3, min_new_tokens=3)
    assert parity_model.generate(None, [prompt], **long) != three
    monkeypatch.setattr(parity_model, "max_context_len", length + 3)
    assert parity_model.generate(None, [prompt], **long) == three
    monkeypatch.setattr(parity_model, "max_context_len", length - 2)
    with pytest.raises(UserError, match="a prompt is 3 tokens longer than the LLM can read and answer"):
        parity_model.generate(None, [prompt])
    with pytest.raises(UserError, match="training sample without image_id is .* tokens longer than the .* Shorten"):
        parity_model({"instruction_input": [prompt], "answer": ["a dog"]})


def test_the_window_is_the_llms_unless_the_config_says_less(parity_config, parity_model):
    assert parity_model.max_context_len == 1024
    config = dataclasses.replace(parity_config, max_context_len=100)
    assert MiniGPT4.from_config(Config(model=config)).max_context_len == 100

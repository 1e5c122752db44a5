"""Any causal LM can be aligned and talked to: one conformance test over small random models of many families."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MptConfig,
)

from minigpt4.config.schema import ModelConfig
from minigpt4.conversation.conversation import Conversation, Turn, spaced
from minigpt4.conversation.prompter import IGNORE, IMAGE_ROW
from minigpt4.conversation.templates import get_template
from minigpt4.datasets.loading import Batch, collate, tensors_of
from minigpt4.inference.engine import Engine
from minigpt4.inference.requests import Request
from minigpt4.inference.shared_prefix import SharedPrefix, shared_prefix
from minigpt4.models.llm import add_lora, check_lora
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.projection import build_projection
from tests.batches import batch_of, captioned
from tests.llms import FAMILIES, SMALL, build


@pytest.fixture(params=FAMILIES, scope="module")
def engine(request, parity_config, tmp_path_factory) -> Engine:
    return build(FAMILIES[request.param], parity_config, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def model(engine) -> MiniGPT4:
    return engine.model


@pytest.fixture
def batch(engine) -> Batch:
    return batch_of(engine.prompter, captioned(torch.randn(2, 3, 56, 56), ["a dog", "the small grass"]))


@pytest.mark.slow
def test_a_training_step_moves_only_the_projection(model, batch):
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    first = model(batch)["loss"]
    first.backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"projection.weight", "projection.bias"}
    assert model(batch)["loss"] < first


@pytest.mark.slow
@pytest.mark.parametrize("answers", [["a dog", "the small grass"], [], ["", "a"]], ids=["both", "none", "one"])
def test_label_positions_alone_give_the_loss_and_gradients_of_all(answers, engine, model):
    prompter = replace(engine.prompter, end_sym="")
    prompts = prompter.parse_all(["<Img><ImageHere></Img> What is it?", "<ImageHere> Hm?"], (1, 2))
    pairs = zip(prompts, answers or ["", ""], strict=True)  # answers begin elsewhere
    batch = collate([tensors_of(sum(prompter.pair(prompt, answer), [])) for prompt, answer in pairs])
    batch["pictures"] = torch.randn(2, 3, 56, 56)
    labels = batch["labels"]
    embeds = model.embed(batch["ids"], model.encode_img(batch["pictures"]))
    logits = model.llm(inputs_embeds=embeds, attention_mask=batch["mask"]).logits[:, :-1].float()
    total = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    tokens = int((labels != IGNORE).sum())
    results = []
    for loss in (total / max(tokens, 1), model(batch)["loss"]):
        model.zero_grad()
        loss.backward()
        results.append([loss.detach(), model.projection.weight.grad.clone(), model.projection.bias.grad.clone()])
    for ours, expected in zip(*results[::-1], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert model(batch)["tokens"] == tokens


def test_an_llm_whose_head_is_no_module_gives_the_same_loss(model, batch, monkeypatch):
    expected = model(batch)["loss"]
    monkeypatch.setattr(model.llm, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(model(batch)["loss"], expected, atol=1e-6, rtol=0)


def test_the_head_reads_label_positions_alone(model, batch):
    seen = []
    hook = model.llm.get_output_embeddings().register_forward_hook(lambda m, i, o: seen.append(o.shape))
    output = model(batch)
    hook.remove()
    assert [tuple(shape[:2]) for shape in seen] == [(1, output["tokens"])]


TARGETS = {"phi3": ["qkv_proj"], "gpt_neox": ["query_key_value"], "opt": ["q_proj", "fc1"]}


def test_adapters_train_beside_the_projection(model, batch):
    config = ModelConfig(lora_r=2, lora_targets=TARGETS.get(model.llm.config.model_type, ["q_proj", "down_proj"]))
    check_lora(config, model.llm)
    whole = model.llm
    model.llm = add_lora(copy.deepcopy(whole), config)
    try:
        model(batch)["loss"].backward()
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained == {n for n, p in model.named_parameters() if p.grad is not None}
        kinds = {n.split(".lora_")[0].rpartition(".")[2] for n in trained if ".lora_" in n}
        assert kinds == set(config.lora_targets) and {n for n in trained if ".lora_" not in n} == {
            "projection.weight",
            "projection.bias",
        }
    finally:
        model.llm = whole


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_soft_tokens_begin_as_large_as_words(kind, model):
    with torch.no_grad():
        embedding = model.llm.get_input_embeddings()
        words = embedding(torch.arange(embedding.num_embeddings)).square().mean().sqrt()
        soft = build_projection(kind, 64, model.llm)(torch.randn(500, 64)).square().mean().sqrt()
    assert 0.8 < (soft / words).item() < 1.25


@pytest.mark.slow
def test_batches_answer_as_one_by_one(engine):
    one, two = torch.randn(2, 3, 56, 56)
    dialogues = [
        [Turn(spaced([one, "What is it?"]), "a dog"), Turn(["Where?"])],
        [Turn(["hello"])],
        [Turn(spaced([two, "Describe the small dog on the grass, at length."]))],
    ]
    requests = [Request(Conversation(turns), max_new_tokens=8) for turns in dialogues]
    batch = engine.answer(requests)
    assert batch == [engine.answer([request])[0] for request in requests]
    assert not any(answer.error for answer in batch)


def test_a_batch_reads_a_long_common_beginning_once(engine):
    llm, read = engine.model.llm, []
    hook = llm.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: read.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    asked = [Conversation([Turn([words])]) for words in ("hello", "Where is the small dog?", "hi")]
    lengths = [len(engine.prompter.layout(engine.prompter.read(own))) for own in asked]
    try:
        batch = engine.answer([Request(own, max_new_tokens=1) for own in asked])
    finally:
        hook.remove()
    shared = read[0][1]
    slides = "sliding_attention" in getattr(llm.config, "layer_types", [])
    assert read == ([(3, max(lengths))] if slides else [(1, shared), (3, max(lengths) - shared)])
    assert batch == [engine.answer([Request(own, max_new_tokens=1)])[0] for own in asked]


def test_positions_that_are_not_the_masks_forbid_it():
    config = MptConfig(d_model=48, n_heads=4, n_layers=1, max_seq_len=64, vocab_size=99)
    layouts = [[1] * 70, [1] * 71]
    assert shared_prefix(AutoModelForCausalLM.from_config(config), layouts).length == 0
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, vocab_size=99))
    assert shared_prefix(llama, layouts) == SharedPrefix(69, [0, 0])
    assert shared_prefix(llama, [[1] * 65 + [IMAGE_ROW] * 9, [1] * 65 + [IMAGE_ROW] * 9]).length == 65
    assert (
        shared_prefix(llama, [[1] * 63 + [2], [1] * 63 + [3]]).length == shared_prefix(llama, layouts[:1]).length == 0
    )


def test_what_begins_with_the_same_picture_is_read_once():
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, vocab_size=99))
    words, picture = [1] * 9, [IMAGE_ROW] * 60
    layouts = [[*words, *picture, 2, 3], [*words, *picture, 2, 4], [*words, *picture, 2, 5]]
    assert shared_prefix(llama, layouts, ["a", "b", "a"]) == SharedPrefix(70, [0, 1, 0])
    assert shared_prefix(llama, layouts, ["a", "a", "a"]) == SharedPrefix(70, [0, 0, 0])
    assert shared_prefix(llama, layouts, ["a", "b", "c"]) == SharedPrefix(0, [0, 0, 0])  # 9 words are not worth a pass
    long = [[1] * 90 + row[9:] for row in layouts]
    assert shared_prefix(llama, long, ["a", "b", "c"]) == SharedPrefix(90, [0, 0, 0])
    two = [[*words, *picture, *picture, 2, 3], [*words, *picture, 2, *picture, 3]]
    assert shared_prefix(llama, two, ["ab", "ac"]) == SharedPrefix(69, [0, 0])  # and not into the second picture


def test_generation_stops_at_the_end_of_the_turn(engine):
    """The LLM is made to say "a dog<|im_end|>" and more; nothing of the rest is shown."""
    encode = engine.prompter.encode
    said = encode("a dog<|im_end|> the grass")
    wanted = iter(said)

    def forced(module, args, kwargs, output):
        output.logits[:] = -1e4
        output.logits[..., next(wanted)] = 1e4
        return output

    handle = engine.model.llm.register_forward_hook(forced, with_kwargs=True)
    try:
        assert engine.answer([Request(Conversation([Turn(["hello"])]), max_new_tokens=8)]) == ["a dog"]
    finally:
        handle.remove()
    assert len(list(wanted)) == len(encode(" the grass"))


def test_the_tokenizers_own_template_equals_chatml(engine):
    own, chatml = (
        replace(engine.prompter, template=get_template(name, engine.prompter.tokenizer))
        for name in ("tokenizer", "chatml")
    )
    asked = Conversation([Turn(["hi"], "yo"), Turn(["bye"])])
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert system + own.text(own.read(asked)) == chatml.text(chatml.read(asked))

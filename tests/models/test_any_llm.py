"""Any causal LM can be aligned and talked to: one conformance test over small random models of many families."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from minigpt4.config.schema import Config, ModelConfig
from minigpt4.conversation.conversation import IMAGE, Turn
from minigpt4.conversation.prompter import IMAGE_ROW
from minigpt4.inference.kept_cache import shared_prefix
from minigpt4.models.llm import add_lora, check_lora
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.splice import IGNORE

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
FAMILIES = {
    "llama": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=12),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "phi3": Phi3Config(**GROUPED, pad_token_id=0),
    "gemma2": Gemma2Config(**GROUPED, head_dim=12, query_pre_attn_scalar=12),
    "gemma3": Gemma3TextConfig(**GROUPED, head_dim=12, query_pre_attn_scalar=12),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "opt": OPTConfig(
        hidden_size=48, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=48, pad_token_id=0
    ),
}
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def tokenizer_without_bos_and_pad() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["a small dog on the grass"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = CHATML
    return fast


def build(sizes: PretrainedConfig, config: ModelConfig, folder: Path) -> MiniGPT4:
    """A model with random weights around an LLM of these sizes, whose files are put into a folder."""
    torch.manual_seed(0)
    tokenizer = tokenizer_without_bos_and_pad()
    sizes.vocab_size, sizes.bos_token_id, sizes.eos_token_id = len(tokenizer) + 6, None, tokenizer.eos_token_id
    llm = AutoModelForCausalLM.from_config(sizes)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = replace(config, llama_model=str(folder), ckpt=None, conversation="chatml", end_sym="<|im_end|>")
    return MiniGPT4.from_config(Config(model=config)).eval()


@pytest.fixture(params=FAMILIES, scope="module")
def model(request, parity_config, tmp_path_factory):
    return build(FAMILIES[request.param], parity_config, tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
def test_a_training_step_moves_only_the_projection(model):
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    samples = {"image": torch.randn(2, 3, 56, 56), "answer": ["a dog", "the grass"]}
    first = model(samples)["loss"]
    first.backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"llama_proj.weight", "llama_proj.bias"}
    assert model(samples)["loss"] < first


@pytest.mark.slow
@pytest.mark.parametrize("answers", [["a dog", "the small grass"], [], ["", "a"]], ids=["both", "none", "one"])
def test_label_positions_alone_give_the_loss_and_gradients_of_all(answers, model, monkeypatch):
    monkeypatch.setattr(model, "end_sym", "")
    answers = answers or ["", ""]
    samples = {"image": torch.randn(2, 3, 56, 56), "answer": answers}
    samples["instruction_input"] = ["<Img><ImageHere></Img> What is it?", "<ImageHere> Hm?"]  # answers begin elsewhere
    embeds, mask, labels = model._inputs(model._examples(samples), model._encode_images(samples))
    logits = model.llama_model(inputs_embeds=embeds, attention_mask=mask).logits[:, :-1].float()
    total = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    tokens = int((labels != IGNORE).sum())
    results = []
    for loss in (total / max(tokens, 1), model(samples)["loss"]):
        model.zero_grad()
        loss.backward()
        results.append([loss.detach(), model.llama_proj.weight.grad.clone(), model.llama_proj.bias.grad.clone()])
    for ours, expected in zip(*results[::-1], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert model(samples)["tokens"] == tokens


@pytest.mark.slow
def test_an_llm_whose_head_is_no_module_gives_the_same_loss(model, monkeypatch):
    samples = {"image": torch.randn(2, 3, 56, 56), "answer": ["a dog", "the small grass"]}
    expected = model(samples)["loss"]
    monkeypatch.setattr(model.llama_model, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(model(samples)["loss"], expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_the_head_reads_label_positions_alone(model):
    seen = []
    hook = model.llama_model.get_output_embeddings().register_forward_hook(lambda m, i, o: seen.append(o.shape))
    output = model({"image": torch.randn(2, 3, 56, 56), "answer": ["a dog", "the small grass"]})
    hook.remove()
    assert [tuple(shape[:2]) for shape in seen] == [(1, output["tokens"])]


TARGETS = {"phi3": ["qkv_proj"], "gpt_neox": ["query_key_value"], "opt": ["q_proj", "fc1"]}


@pytest.mark.slow
def test_adapters_train_beside_the_projection(model):
    config = ModelConfig(
        lora_r=2, lora_targets=TARGETS.get(model.llama_model.config.model_type, ["q_proj", "down_proj"])
    )
    check_lora(config, model.llama_model)
    whole = model.llama_model
    model.llama_model = add_lora(copy.deepcopy(whole), config)
    try:
        model({"image": torch.randn(2, 3, 56, 56), "answer": ["a dog", "the grass"]})["loss"].backward()
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained == {n for n, p in model.named_parameters() if p.grad is not None}
        kinds = {n.split(".lora_")[0].rpartition(".")[2] for n in trained if ".lora_" in n}
        assert kinds == set(config.lora_targets) and {n for n in trained if ".lora_" not in n} == {
            "llama_proj.weight",
            "llama_proj.bias",
        }
    finally:
        model.llama_model = whole


def test_soft_tokens_begin_as_large_as_words(model):
    with torch.no_grad():
        embedding = model.llama_model.get_input_embeddings()
        words = embedding(torch.arange(embedding.num_embeddings)).square().mean().sqrt()
        soft = model.new_projection(64)(torch.randn(500, 64)).square().mean().sqrt()
    assert 0.8 < (soft / words).item() < 1.25


@pytest.mark.slow
def test_batches_answer_as_one_by_one(model):
    images = torch.randn(2, 3, 56, 56)
    prompts = [
        model.template.prompt([Turn(f"{IMAGE} What is it?", "a dog"), Turn("Where?")]),
        model.template.prompt([Turn("hello")]),
        model.template.prompt([Turn(f"{IMAGE} Describe the small dog on the grass, at length.")]),
    ]
    batch = model.generate(images, prompts, max_new_tokens=8)
    single = [
        model.generate(images[:1], prompts[:1], max_new_tokens=8)[0],
        model.generate(None, prompts[1:2], max_new_tokens=8)[0],
        model.generate(images[1:], prompts[2:], max_new_tokens=8)[0],
    ]
    assert batch == single


@pytest.mark.slow
def test_a_batch_reads_a_long_common_beginning_once(model):
    read = []
    hook = model.llama_model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: read.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    prompts = [model.template.prompt([Turn(words)]) for words in ("hello", "Where is the small dog?", "hi")]
    lengths = [len(model.layout(prompt)) for prompt in prompts]
    try:
        batch = model.generate(None, prompts, max_new_tokens=1)
    finally:
        hook.remove()
    shared = read[0][1]
    slides = "sliding_attention" in getattr(model.llama_model.config, "layer_types", [])
    assert read == ([(3, max(lengths))] if slides else [(1, shared), (3, max(lengths) - shared)])
    assert batch == [model.generate(None, [prompt], max_new_tokens=1)[0] for prompt in prompts]


def test_positions_that_are_not_the_masks_forbid_it():
    config = MptConfig(d_model=48, n_heads=4, n_layers=1, max_seq_len=64, vocab_size=99)
    layouts = [[1] * 70, [1] * 71]
    assert shared_prefix(AutoModelForCausalLM.from_config(config), layouts) == 0
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, vocab_size=99))
    assert shared_prefix(llama, layouts) == 69
    assert shared_prefix(llama, [[1] * 65 + [IMAGE_ROW] * 9, [1] * 65 + [IMAGE_ROW] * 9]) == 65
    assert shared_prefix(llama, [[1] * 63 + [2], [1] * 63 + [3]]) == shared_prefix(llama, layouts[:1]) == 0


def test_generation_stops_at_the_end_of_the_turn(model, monkeypatch):
    """The LLM is made to say "a dog<|im_end|>" and more; nothing of the rest is shown."""
    said = model.encode_text("a dog<|im_end|> the grass")
    wanted = iter(said)

    def forced(module, args, kwargs, output):
        output.logits[:] = -1e4
        output.logits[..., next(wanted)] = 1e4
        return output

    handle = model.llama_model.register_forward_hook(forced, with_kwargs=True)
    try:
        assert model.generate(None, [model.template.prompt([Turn("hello")])], max_new_tokens=8) == ["a dog"]
    finally:
        handle.remove()
    assert len(list(wanted)) == len(model.encode_text(" the grass"))


def test_the_tokenizers_own_template_equals_chatml(model):
    from minigpt4.conversation.conversation import get_template

    own = get_template("tokenizer", model.llama_tokenizer).prompt([Turn("hi", "yo"), Turn("bye")])
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert system + own == get_template("chatml", model.llama_tokenizer).prompt([Turn("hi", "yo"), Turn("bye")])

"""Small random LLMs of many families, and a model around each."""

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from minigpt4.config.schema import ModelConfig
from minigpt4.inference.engine import Engine
from tests.conftest import engine_of

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


def build(sizes: PretrainedConfig, config: ModelConfig, folder: Path) -> Engine:
    """An engine of a model with random weights around an LLM of these sizes, whose files are put into a folder."""
    torch.manual_seed(0)
    tokenizer = tokenizer_without_bos_and_pad()
    sizes.vocab_size, sizes.bos_token_id, sizes.eos_token_id = len(tokenizer) + 6, None, tokenizer.eos_token_id
    llm = AutoModelForCausalLM.from_config(sizes)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = replace(config, llama_model=str(folder), ckpt=None, conversation="chatml", end_sym="<|im_end|>")
    return engine_of(config)

"""The frozen language model: any Hugging Face causal LM, and its tokenizer."""

import re
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from minigpt4.common.errors import UserError, first_line

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class LlamaSentencePieceTokenizer(SentencePieceBackend):
    """The tokenizer that LLaMA-family weights of MiniGPT-4 were aligned with.

    Text is split at `<s>`, `</s>` and `<unk>`; sentencepiece encodes every other piece by itself, each with its own
    dummy prefix. transformers' own LlamaTokenizer gives other ids around special tokens and spaces.
    """

    def __init__(self, vocab_file: str, **kwargs):
        specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        super().__init__(vocab_file=vocab_file, legacy=True, special_tokens_pattern="bos", **(specials | kwargs))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Joins pieces; byte pieces become UTF-8. Special tokens break the text as they do in encoding."""
        text, piece = "", list[str]()
        for token in tokens:
            if token in self.all_special_tokens:
                text += self.sp_model.decode(piece) + token
                piece = []
            else:
                piece.append(token)
        return text + self.sp_model.decode(piece)


def check_llm_path(path: str) -> None:
    """Refuses, before anything is loaded, what is neither a folder nor the form of a hub id (`owner/name`)."""
    looks_local = path.startswith(("/", ".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path)
    if looks_local and not (Path(path) / "config.json").is_file():
        raise UserError(
            f"model.llama_model: '{path}' is no folder with a config.json. Set it to the folder of a Hugging Face "
            "causal LM or to a hub id; see README 'Real weights'."
        )


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer: sentencepiece itself for LLaMA-family folders with a `tokenizer.model`, else AutoTokenizer.

    A tokenizer without a pad token keeps none: padding is known by position (mask), never by id.
    """
    vocab_file = Path(path) / "tokenizer.model"
    try:
        if vocab_file.is_file():
            return LlamaSentencePieceTokenizer(vocab_file=str(vocab_file))
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model.llama_model: no tokenizer in '{path}': {first_line(error)}") from error


def load_llm(path: str, dtype: str = "auto", low_resource: bool = False) -> PreTrainedModel:
    """Loads a causal LM's weights, frozen; `dtype` auto means fp32 without an accelerator and bf16 with one.

    `low_resource` keeps linear layers in 8 bits (LLM.int8(): Dettmers et al. 2022).

    Raises:
        UserError: the folder holds no causal LM, or bitsandbytes is missing.
    """
    if dtype == "auto":
        dtype = "bf16" if torch.accelerator.is_available() else "fp32"
    quantization = BitsAndBytesConfig(load_in_8bit=True) if low_resource else None
    try:
        llm = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], quantization_config=quantization)
    except ImportError as error:
        raise UserError("model.low_resource: True needs bitsandbytes. Install it: pip install bitsandbytes") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model.llama_model: no causal LM in '{path}': {first_line(error)}") from error
    return llm.requires_grad_(False)

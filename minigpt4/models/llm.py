"""The frozen language model: any Hugging Face causal LM, and its tokenizer."""

import json
import logging
import re
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from minigpt4.common.config import ModelConfig
from minigpt4.common.errors import UserError, first_line

logger = logging.getLogger(__name__)

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


def is_hub_id(path: str) -> bool:
    """Whether a path has the form of a hub id (`owner/name`) and is no folder."""
    return bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path)) and not Path(path).is_dir()


def check_llm_path(path: str) -> None:
    """Refuses, before anything is loaded, what is neither a folder nor a hub id."""
    if not is_hub_id(path) and not (Path(path) / "config.json").is_file():
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
        if vocab_file.is_file() and _family(path) == "llama":  # Gemma's and others' have special tokens of their own
            return LlamaSentencePieceTokenizer(vocab_file=str(vocab_file))
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model.llama_model: no tokenizer in '{path}': {first_line(error)}") from error


def _family(path: str) -> str:
    config = Path(path) / "config.json"
    return json.loads(config.read_text(encoding="utf-8")).get("model_type", "llama") if config.is_file() else "llama"


def load_llm(config: ModelConfig, device: torch.device) -> PreTrainedModel:
    """Loads a causal LM's weights, frozen, as `llama_model`, `llm_dtype`, `quantization` and `device_map` say.

    Quantized (8bit is LLM.int8(): Dettmers et al. 2022; 4bit is NF4: Dettmers et al. 2023) it goes straight to the
    device, with a device map to where that says, else to the CPU. `llm_dtype: auto` is bf16 where the device has it,
    fp16 on other accelerators, fp32 on a CPU.

    Raises:
        UserError: the folder holds no causal LM, or bitsandbytes is missing.
    """
    path, quantization = config.llama_model, quantization_of(config)
    kwargs: dict[str, Any] = {"dtype": pick_dtype(config.llm_dtype, device)}
    if quantization == "8bit":
        kwargs["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        # it says at every step of every layer that it computes in fp16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    elif quantization == "4bit":
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=kwargs["dtype"]
        )
    if config.device_map or quantization != "none":
        kwargs["device_map"] = config.device_map or {"": device}
    try:
        llm = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    except ImportError as error:
        raise UserError(f"model.quantization: {quantization} needs bitsandbytes: pip install bitsandbytes") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model.llama_model: no causal LM in '{path}': {first_line(error)}") from error
    return llm.requires_grad_(False)


def quantization_of(config: ModelConfig) -> str:
    """8bit, 4bit or none; the original's `low_resource` means 8 bits."""
    return "8bit" if config.low_resource and config.quantization == "none" else config.quantization


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; what "auto" is depends on the device."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", lambda: False)
    # old cards say yes to what they emulate, slowly
    native = {"including_emulation": False} if "including_emulation" in signature(supported).parameters else {}
    return torch.bfloat16 if supported(**native) else torch.float16


def stop_ids(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer: the tokenizer's, and those that the LLM's own settings add to it.

    Settings that do not hold the tokenizer's are wrong (Vicuna v0's config says bos 0, eos 1) and are not used.
    """
    own = tokenizer.eos_token_id
    named = llm.generation_config.eos_token_id if llm.generation_config else None
    listed = named if isinstance(named, list) else [named]
    if own is None:
        return [i for i in listed if i is not None]
    if own in listed:
        return [own, *(i for i in listed if i != own)]
    logger.warning("the LLM's config says eos %s, its tokenizer %s: the tokenizer's is used", named, own)
    return [own]


def add_lora(llm: PreTrainedModel, rank: int, alpha: int, dropout: float) -> PreTrainedModel:
    """Adds trainable low-rank adapters to the query and value projections (LoRA: Hu et al. 2021); rank 0 adds none.

    Raises:
        UserError: peft is missing, or the LLM has no q_proj and v_proj.
    """
    if rank <= 0:
        return llm
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("model.lora_r: needs peft. Install it: pip install peft, or set model.lora_r=0") from error
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    try:
        return cast(PreTrainedModel, get_peft_model(llm, config))  # which it wraps
    except ValueError as error:
        raise UserError(f"model.lora_r: {rank} does not suit this LLM: {first_line(error)}") from error

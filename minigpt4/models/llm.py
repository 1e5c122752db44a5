"""The frozen language model: any Hugging Face causal LM, and its tokenizer."""

import json
import logging
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from minigpt4.common.errors import UserError, did_you_mean, first_line
from minigpt4.common.wrong_files import wrong_file
from minigpt4.config.schema import ModelConfig
from minigpt4.models.cpu_linear import pack_4bit
from minigpt4.models.pretrained import load_pretrained, reading, reason_of, settings_folder
from minigpt4.models.quantized_llm import load_quantized

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TOKENIZERS = ("tokenizer.model", "tokenizer.json")


class LlamaSentencePieceTokenizer(SentencePieceBackend):
    """The tokenizer that LLaMA-family weights of MiniGPT-4 were aligned with.

    Text is split at `<s>`, `</s>` and `<unk>`; sentencepiece encodes every other piece by itself, each with its own
    dummy prefix. transformers' own LlamaTokenizer gives other ids around special tokens and spaces.
    """

    def __init__(self, vocab_file: str, **kwargs):
        # those of the vocabulary; some folders' settings say otherwise (eos "", bos "</s>", legacy False)
        kwargs |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        kwargs |= {"legacy": True, "special_tokens_pattern": "bos"}
        super().__init__(vocab_file=vocab_file, **kwargs)

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


def llm_folder(path: str) -> Path:
    """A local folder with an LLM's settings and tokenizer; see `settings_folder`."""
    return settings_folder("model.llama_model", path, "causal LM")


def load_tokenizer(folder: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads a tokenizer: sentencepiece itself for LLaMA-family folders with a `tokenizer.model`, else AutoTokenizer.

    One without a pad token pads with `<unk>` or the end of sequence, under the mask. The model itself never uses it:
    its padding is known by position.

    Raises:
        UserError: the folder holds none that can be loaded.
    """
    try:
        tokenizer = _llama_tokenizer(Path(folder)) or AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # tokenizers raises no other kind
        if wrong := wrong_file(Path(folder) / name for name in (*_TOKENIZERS, "tokenizer_config.json", "config.json")):
            raise UserError(f"model.llama_model: no tokenizer in '{folder}': {wrong}.") from error
        # without a file to read, transformers speaks of all that could be installed
        known = "trust_remote_code" in str(error) or any((Path(folder) / name).is_file() for name in _TOKENIZERS)
        raise UserError(_no_tokenizer(folder, reason_of(error) if known else "it has no file of the kind")) from error
    if not tokenizer.encode("hello world", add_special_tokens=False):  # a class without a vocabulary
        raise UserError(_no_tokenizer(folder, "its tokenizer turns text into nothing"))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    # some settings take spaces out of text that has been streamed already: " ." becomes "." with the next word
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def _no_tokenizer(folder: str | Path, reason: str) -> str:
    cure = f"Put {' or '.join(_TOKENIZERS)} of this LLM into the folder."
    return f"model.llama_model: no tokenizer in '{folder}': {reason.removesuffix('.')}. {cure}"


def _llama_tokenizer(folder: Path) -> LlamaSentencePieceTokenizer | None:
    """None for other families, and where the vocabulary begins texts with another token (Yi's `<|startoftext|>`)."""
    config = folder / "config.json"
    family = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else "llama"
    if family != "llama" or not (folder / "tokenizer.model").is_file():
        return None
    tokenizer = LlamaSentencePieceTokenizer.from_pretrained(str(folder))
    pieces = tokenizer.sp_model
    return tokenizer if pieces.id_to_piece(pieces.bos_id()) == tokenizer.bos_token else None


def load_llm(config: ModelConfig, device: torch.device) -> PreTrainedModel:
    """Loads a causal LM's weights as `llama_model`, `llm_dtype`, `quantization` and `device_map` say.

    They are frozen unless `unfreeze` names them. Quantized by bitsandbytes (8bit is LLM.int8(): Dettmers et al. 2022;
    4bit is NF4: Dettmers et al. 2023) they go straight to the device, with a device map to where that says, else to the
    CPU; there they are of `quantized_linear` where nothing asks for bitsandbytes.
    `llm_dtype: auto` is bf16 where the device has it, fp16 on other accelerators, fp32 on a CPU.

    Raises:
        UserError: the folder holds no causal LM, or bitsandbytes is missing.
    """
    path, quantization, dtype = config.llama_model, quantization_of(config), dtype_of(config, device)
    if quantizes_itself(config, device):
        folder = llm_folder(path)
        with reading("model.llama_model", folder, "causal LM"):
            llm = load_quantized(folder, int(quantization[0]), dtype, config.trust_remote_code)
        if llm is not None:
            return llm
    kwargs: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": config.trust_remote_code,  # False, not None: that would ask on the terminal
    }
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
    llm = load_pretrained("model.llama_model", path, "causal LM", AutoModelForCausalLM, **kwargs)
    pack_4bit(llm, allowed=False)  # it may be trained through
    return llm.requires_grad_("llm" in config.trained)


def quantizes_itself(config: ModelConfig, device: torch.device) -> bool:
    """Whether a quantized LLM is of `quantized_linear`: on a CPU, unless it has adapters, which know bitsandbytes."""
    asked = quantization_of(config) != "none" and device.type == "cpu"
    return asked and config.lora_r <= 0 and not config.device_map


def quantization_of(config: ModelConfig) -> str:
    """8bit, 4bit or none; the original's `low_resource` means 8 bits."""
    return "8bit" if config.low_resource and config.quantization == "none" else config.quantization


def dtype_of(config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype of the LLM's weights: `llm_dtype`, or fp32 where they train."""
    return torch.float32 if "llm" in config.trained else pick_dtype(config.llm_dtype, device)


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


def embedding_of(llm: PreTrainedModel) -> nn.Embedding:
    """The LLM's input embedding, ids [B, T] -> [B, T, D]."""
    return cast(nn.Embedding, llm.get_input_embeddings())


def window_of(llm: PretrainedConfig) -> float:
    """How many tokens the LLM reads at once; infinite where its config says nothing."""
    return getattr(llm.get_text_config(), "max_position_embeddings", None) or float("inf")


def check_lora(config: ModelConfig, llm: PreTrainedModel) -> None:
    """Refuses adapters on layers that the LLM, or its outline, does not have.

    Raises:
        UserError: with the names that it has.
    """
    linear = [name for name, module in llm.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    for target in config.lora_targets if config.lora_r > 0 else ():
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = {name.rpartition(".")[2] for name in linear}
            raise UserError(
                f"model.lora_targets: '{target}' is not a linear layer of this LLM.{did_you_mean(target, known)}"
            )


def add_lora(llm: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """Adds trainable low-rank adapters to `lora_targets` (LoRA: Hu et al. 2021); `lora_r` 0 adds none.

    Raises:
        UserError: peft refuses these layers.
    """
    if config.lora_r <= 0:
        return llm
    from peft import LoraConfig, get_peft_model  # slow to import

    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets),
        task_type="CAUSAL_LM",
    )
    try:
        return cast(PreTrainedModel, get_peft_model(llm, lora))  # which it wraps
    except ValueError as error:
        raise UserError(
            f"model.lora_targets: {config.lora_targets} do not suit this LLM: {first_line(error)}"
        ) from error

"""An engine of full size whose weights are random numbers: speed and memory are those of real ones, answers are not."""

from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from minigpt4.common.distributed import pick_device
from minigpt4.common.errors import UserError
from minigpt4.common.paths import TINY_LLM
from minigpt4.config.schema import Config
from minigpt4.conversation.prompter import Prompter
from minigpt4.inference.engine import Engine
from minigpt4.models.llm import dtype_of, load_tokenizer, quantization_of, quantizes_itself
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.preflight import check_memory, memory_of_devices
from minigpt4.models.projection import build_projection
from minigpt4.models.quantized_linear import QuantizedLinear
from minigpt4.models.quantized_llm import layers_to_quantize
from minigpt4.models.random_weights import random_vision
from minigpt4.models.vision import build_vision, vision_class

_WINDOW = 4096
_DRAWN = 512  # rows of a quantized layer, which repeat: more would take minutes to draw
SIZES: dict[str, dict[str, Any]] = {  # of LLaMA; its own defaults are those of 7B
    "7b": {},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


def llama_sizes(name: str) -> LlamaConfig:
    """LLaMA's sizes as 7b, 13b, or tiny for those of the bundled LLM; it reads 4096 tokens at once."""
    own = LlamaConfig.from_pretrained(TINY_LLM) if name == "tiny" else LlamaConfig.from_dict(SIZES[name])
    own.max_position_embeddings = _WINDOW
    return own


def random_prompter(config: Config) -> Prompter:
    """The prompter of such an engine, which needs no weights."""
    rows, _ = vision_class(config.model).shape(config)
    return Prompter.of(config.model, load_tokenizer(TINY_LLM), rows, _WINDOW)


def random_engine(config: Config, sizes: LlamaConfig) -> Engine:
    """An engine around a LLaMA of these sizes; towers, precision and device are the config's, the tokenizer is tiny's.

    Weights are drawn on the device, in the dtype that they have there. On a CPU the LLM may be quantized.

    Raises:
        UserError: an accelerator has too little memory, or the LLM should be quantized there.
    """
    c, device = config.model, pick_device(config.run.device)
    bits = int(quantization_of(c)[0]) if quantizes_itself(c, device) else None
    if quantization_of(c) != "none" and bits is None:
        raise UserError(
            "model.quantization: random weights are quantized on CPUs only. Set model.quantization=none "
            "model.low_resource=False."
        )
    dtype, prompter = dtype_of(c, device), random_prompter(config)
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(sizes)
    check_memory(memory_of_devices(c, build_vision(config), outline, device))
    torch.manual_seed(0)
    if bits:
        llm = _quantized(sizes, bits, dtype)
    else:
        with torch.device(device):
            llm = AutoModelForCausalLM.from_config(sizes, dtype=dtype)
    _mask_unknown_tokens(llm, len(prompter.tokenizer))
    vision = random_vision(config, device)
    model = MiniGPT4(vision, build_projection(c.projection.name, vision.width, llm), llm.requires_grad_(False))
    model.place(device).prepare_for_inference()
    return Engine(model, prompter, config.preprocess.vis_processor.eval.build(), c.compile)


def _quantized(sizes: LlamaConfig, bits: int, dtype: torch.dtype) -> PreTrainedModel:
    """Layer by layer, so that no more is in memory than what is kept."""
    with init_empty_weights():  # buffers have memory
        llm = AutoModelForCausalLM.from_config(sizes, dtype=dtype)
    llm.tie_weights()
    for name, own in layers_to_quantize(llm, bits).items():
        layer = QuantizedLinear(cast(nn.Linear, llm.get_submodule(name)), own)
        some = torch.randn(_DRAWN, layer.in_features) * sizes.initializer_range
        for start in range(0, layer.out_features, _DRAWN):
            layer.quantize(start, some[: layer.out_features - start])
        llm.set_submodule(name, layer)
    for name, weight in list(llm.named_parameters()):
        module, _, key = name.rpartition(".")
        values = torch.randn(weight.shape) * sizes.initializer_range if weight.dim() > 1 else torch.ones(weight.shape)
        setattr(llm.get_submodule(module), key, nn.Parameter(values.to(dtype), requires_grad=False))
    llm.tie_weights()
    llm.is_quantized = True  # as transformers says of its own
    return llm


def _mask_unknown_tokens(llm: PreTrainedModel, words: int) -> None:
    """Gives words that the tokenizer does not have a logit of 0, which the likeliest word's is above."""
    head = llm.get_output_embeddings()
    if isinstance(head, QuantizedLinear):
        head.codes[words:] = 0
    else:
        head.weight.data[words:] = 0

"""Parts of a model, run on tensors without memory: how much their activations would take."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from minigpt4.config.schema import ModelConfig
from minigpt4.models.cpu_linear import compute_in_fp32
from minigpt4.models.llm import add_lora, dtype_of, quantization_of
from minigpt4.models.parts import checkpoint_blocks
from minigpt4.models.quantized_linear import Unpacked
from minigpt4.models.vision import VisionPart
from minigpt4.tools.doctor.peak_memory import PeakMemory

_FEW = 2  # layers: what more of them take grows evenly


@dataclass(frozen=True)
class Run:
    """Bytes at the peak of a run, bytes of what it keeps (a KV cache), and how many weights train."""

    peak: float
    kept: float = 0.0
    trained: float = 0.0


def run_llm(
    c: ModelConfig,
    llm: PreTrainedModel,
    batch: int,
    length: int,
    labels: int,
    amp: torch.dtype | None,
    devices: int = 1,
) -> Run:
    """What a forward pass of an LLM takes; with `labels` of each sample, forward and backward.

    Args:
        llm: an outline.
        amp: dtype of mixed precision.
        devices: that the layers are spread over; what one of them takes is returned.
    """
    depth = -(-getattr(llm.config.get_text_config(), "num_hidden_layers", 0) // devices)
    if depth <= 2 * _FEW:
        return _run_llm(c, llm.config if devices == 1 else _cut(llm.config, depth), batch, length, labels, amp)
    few, more = (_run_llm(c, _cut(llm.config, n), batch, length, labels, amp) for n in (_FEW, 2 * _FEW))
    rest = (depth - _FEW) / _FEW
    values = (a + rest * (b - a) for a, b in zip(vars(few).values(), vars(more).values(), strict=True))
    return Run(*values)


def _cut(config: Any, layers: int) -> Any:
    own = copy.deepcopy(config)
    text = own.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return own


def _run_llm(c: ModelConfig, config: Any, batch: int, length: int, labels: int, amp: torch.dtype | None) -> Run:
    dtype = dtype_of(c, torch.device("cpu"))
    with torch.device("meta"):
        llm: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=c.trust_remote_code)
        llm.requires_grad_("llm" in c.trained).eval()
        if labels and quantization_of(c) != "none":
            _unpack_for_each_product(llm)
        llm = add_lora(llm, c) if labels else llm
    if c.use_grad_checkpoint and labels:
        checkpoint_blocks(llm)
    with FakeTensorMode(allow_non_fake_inputs=True):
        llm.to_empty(device="cpu")
        width = llm.get_input_embeddings().weight.shape[1]
        embeds = torch.randn(batch, length, width, dtype=dtype, requires_grad=bool(labels))
        trained = sum(p.numel() for p in llm.parameters() if p.requires_grad)
        with PeakMemory() as memory, torch.inference_mode() if not labels else nullcontext():
            if not labels:
                output = llm(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
                return Run(memory.most, _cache_bytes(output.past_key_values))
            with torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None):
                hidden = llm.get_base_model().model if hasattr(llm, "get_base_model") else llm.get_decoder()
                states = hidden(inputs_embeds=embeds, use_cache=False).last_hidden_state
                head = llm.get_output_embeddings()
                logits = head(states[:, -labels:].reshape(1, -1, width))[0].float()
                loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
            loss.backward()
            return Run(memory.most, trained=trained)


def _cache_bytes(cache: Any) -> float:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in getattr(cache, "layers", []))


def _unpack_for_each_product(llm: nn.Module) -> None:
    """As a quantized layer, which makes a weight of its codes for each product."""
    for name, module in list(llm.named_modules()):
        if isinstance(module, nn.Linear):
            llm.set_submodule(name, _Unpacked(module))


class _Unpacked(nn.Module):
    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear

    @property
    def weight(self) -> Tensor:
        return self.linear.weight.bfloat16().clone()

    def forward(self, input: Tensor) -> Tensor:
        found = Unpacked.apply(input, self)
        return found if self.linear.bias is None else found + self.linear.bias


@lru_cache(maxsize=4)  # an estimate asks again for each phase, and for each cure that it tries
def run_vision(vision: VisionPart, pictures: int, in_fp32: bool) -> Run:
    """What a forward pass of a vision part takes; `in_fp32`: as it answers on a CPU."""
    part = copy.deepcopy(vision).requires_grad_(False).eval()
    if in_fp32:
        compute_in_fp32(part)
    with FakeTensorMode(allow_non_fake_inputs=True):
        part.to_empty(device="cpu")
        blank = part.blank(torch.device("cpu"))
        with PeakMemory() as memory, torch.no_grad():
            part(blank.repeat(pictures, *[1] * (blank.dim() - 1)))
    return Run(memory.most)

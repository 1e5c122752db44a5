"""Linear layers on CPUs: in fp32 by oneDNN, which is faster than PyTorch's own MKL; in half precision; in 4 bits."""

from functools import cache
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 1024  # of a weight that are converted at once
_WORTH_A_CALL = 2**18  # weights; MKL is done with smaller ones before a call of oneDNN has started to compute


class OneDnnLinear(nn.Linear):
    """`nn.Linear`, computed by oneDNN where no gradient is asked for. Its weight stays as it is, and is not copied."""

    def forward(self, input: Tensor) -> Tensor:
        return _linear(input, self.weight, self.bias)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, by oneDNN where that can be: on a CPU in fp32, where no gradient is asked for."""
    plain = input.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not (input.is_cpu and plain and _has_onednn()):
        return F.linear(input, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


@cache
def _has_onednn() -> bool:
    """Whether this PyTorch was built with oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class HalfLinear(nn.Module):
    """`nn.Linear` whose weight is kept in half precision, and computed with in fp32.

    Processors without products in half precision are many times as slow with them; some rows of the weight at a time in
    fp32 cost little. A copy of the whole weight would be new memory from the system for each product, a third slower.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.kept, self.bias = linear.weight, linear.bias

    @property
    def weight(self) -> Tensor:
        """[out, in] in fp32; timm's attention multiplies with it itself."""
        return self.kept.float()

    def forward(self, input: Tensor) -> Tensor:
        biases = repeat(None) if self.bias is None else self.bias.float().split(_ROWS)
        pieces = zip(self.kept.split(_ROWS), biases, strict=False)  # there is no end of `repeat`
        return torch.cat([_linear(input, rows.float(), bias) for rows, bias in pieces], -1)


def compute_in_fp32(tower: nn.Module) -> None:
    """Makes large linear layers in half precision `HalfLinear`; what else is in half precision becomes fp32."""
    for name, module in list(tower.named_modules()):
        if not isinstance(module, nn.Linear | nn.Conv2d) or module.weight.dtype.itemsize != 2:
            continue
        if type(module) is nn.Linear and module.weight.numel() >= _WORTH_A_CALL:
            tower.set_submodule(name, HalfLinear(module))
        else:
            module.float()


def use_onednn(model: nn.Module) -> None:
    """Makes a model's large linear layers in fp32 `OneDnnLinear`, where this PyTorch was built with oneDNN."""
    if not _has_onednn():
        return
    for module in model.modules():
        large = type(module) is nn.Linear and module.weight.numel() >= _WORTH_A_CALL
        if large and module.weight.dtype == torch.float32:
            module.__class__ = OneDnnLinear  # nothing but how it computes: keys, hooks and optimizers notice nothing


def pack_4bit(model: nn.Module, allowed: bool) -> None:
    """Says whether bitsandbytes may pack 4-bit weights at their first use, as it does for CPUs with bf16 products.

    Products are far faster then, but gradients do not go through it, and nothing says so. Layers whose
    sizes are not of whole blocks are left as they are: they can't be packed.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # a Linear4bit
            from bitsandbytes.functional import has_avx512bf16

            state = getattr(module.weight, "quant_state", None)  # None while the weight is not loaded
            fits = state is not None and state.shape[0] % 32 == 0 and state.shape[1] % state.blocksize == 0
            module.support_avx512bf16_for_cpu = allowed and fits and has_avx512bf16()

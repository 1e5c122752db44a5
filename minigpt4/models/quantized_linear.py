"""Frozen linear layers for CPUs with weights of 4 or 8 bits, multiplied by PyTorch's own kernels.

Rounding to the nearest of 16 values between the least and the greatest of 64 neighbours, or of 255 values of a row.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt4.models.cpu_memory import release_freed_memory

_GROUP = 64  # neighbours that share a scale and an offset
_HALF = 8  # the kernel's offsets belong to this value of 0 to 15
_BLOCK = 64  # rows that the kernel's layout keeps together
_ROWS = 512  # that are quantized at once: few enough for the processor's caches
_SMALLEST = 1e-8  # scale, where all weights are zero


class QuantizedLinear(nn.Module):
    """`nn.Linear` with a frozen weight of few bits. Products are in bf16, results in the input's dtype.

    Args:
        like: the layer that it stands for; its weight may be without memory (on the meta device).
        bits: 4 or 8.
    """

    def __init__(self, like: nn.Linear, bits: int):
        super().__init__()
        self.in_features, self.out_features, self.bits = like.in_features, like.out_features, bits
        self.bias = like.bias
        self.packed = False
        rows, columns = like.out_features, like.in_features
        self.codes: Tensor
        self.scales: Tensor
        if bits == 4:
            codes = torch.empty(rows, columns // 2, dtype=torch.uint8, device="cpu")
            scales = torch.empty(columns // _GROUP, rows, 2, dtype=torch.bfloat16, device="cpu")
        else:
            codes = torch.empty(rows, columns, dtype=torch.int8, device="cpu")
            scales = torch.empty(rows, dtype=torch.bfloat16, device="cpu")
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    @staticmethod
    def fits(linear: nn.Linear, bits: int) -> bool:
        """Whether a layer's sizes are of whole groups and blocks."""
        return bits == 8 or linear.in_features % _GROUP == 0 and linear.out_features % _BLOCK == 0

    @staticmethod
    def bytes_of(linear: nn.Linear, bits: int) -> float:
        """What a layer will take of memory."""
        scales = 4 / _GROUP if bits == 4 else 2 / linear.in_features
        return linear.weight.numel() * (bits / 8 + scales)

    def quantize(self, first: int, weight: Tensor) -> None:
        """Takes some rows of the weight, [rows, in], from the row `first` on."""
        for start in range(0, len(weight), _ROWS):
            rows = weight[start : start + _ROWS].float()
            place = slice(first + start, first + start + len(rows))
            if self.bits == 4:
                self.codes[place], self.scales[:, place] = _four_bits(rows)
            else:
                self.codes[place], self.scales[place] = _eight_bits(rows)

    def pack(self) -> None:
        """Changes 4-bit codes to the layout of the kernel. Gradients of inputs are lost by that, speed is won."""
        if self.bits == 4 and not self.packed:
            codes = torch.stack([self.codes & 15, self.codes >> 4], -1).flatten(1).int()
            self.codes, self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), True

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and input.requires_grad or self.bits == 4 and not self.packed:
            found = Unpacked.apply(input, self)
            bias = self._bias(found.dtype)
            return found if bias is None else found + bias
        rows = input.reshape(-1, self.in_features).bfloat16()
        if self.bits == 4:
            found = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.codes, _GROUP, self.scales)
        else:
            found = torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.scales)
        found = found.to(input.dtype).view(*input.shape[:-1], self.out_features)
        bias = self._bias(input.dtype)
        return found if bias is None else found + bias

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for, [out, in] in bf16."""
        if self.bits == 8:
            return self.codes * self.scales[:, None]
        if self.packed:
            raise RuntimeError("its codes are packed for answers alone: there are no gradients")
        codes = torch.stack([self.codes & 15, self.codes >> 4], -1).view(self.out_features, -1, _GROUP)
        scale, offset = self.scales.transpose(0, 1).unsqueeze(2).unbind(-1)
        return ((codes.bfloat16() - _HALF) * scale + offset).flatten(1)


class Unpacked(torch.autograd.Function):
    """The product of an input with the weight of a layer, which is made of its codes again for backward.

    Autograd would keep what was made for forward: as much memory as the LLM takes without quantization.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: Any) -> Tensor:
        ctx.layer, ctx.dtype = layer, input.dtype
        found = F.linear(input, layer.weight.to(input.dtype))
        release_freed_memory()  # between activations that are kept the weights would leave gaps
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        found = (gradient @ ctx.layer.weight.to(gradient.dtype)).to(ctx.dtype)
        release_freed_memory()
        return found, None


def _four_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [rows, in / 2], two a byte, and scale and offset of each group [groups, rows, 2]."""
    weight = rows.T.contiguous()  # neighbours below one another: what is done to a group is done to many at once
    groups = weight.view(-1, _GROUP, len(rows))
    least, greatest = groups.amin(1), groups.amax(1)
    scale = ((greatest - least) / 15).clamp_(min=_SMALLEST).bfloat16()
    offset = (least + _HALF * scale.float()).bfloat16()
    inverse = scale.float().reciprocal_()
    shift = _HALF + 0.5 - offset.float() * inverse  # the half makes of cutting off a rounding
    codes = groups.mul_(inverse[:, None]).add_(shift[:, None]).clamp_(0, 15).to(torch.uint8)
    pairs = codes.view(-1, 2, len(rows))
    return (pairs[:, 0] | pairs[:, 1] << 4).T, torch.stack([scale, offset], -1)


def _eight_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [rows, in] and scale of each row."""
    scale = (rows.abs().amax(1) / 127).clamp_(min=_SMALLEST).bfloat16()
    return (rows / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale

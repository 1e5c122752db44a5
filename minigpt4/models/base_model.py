"""What every model shares: construction from a config, frozen parts that stay frozen."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from minigpt4.common.errors import Problems
from minigpt4.config.schema import Config
from minigpt4.models.cpu_linear import compute_in_fp32, pack_4bit, use_onednn
from minigpt4.models.cpu_memory import release_freed_memory
from minigpt4.models.quantized_linear import QuantizedLinear


class PartlyFrozen(nn.Module):
    """A module of parts, of which those that are frozen stay in eval mode: no dropout, no drop path."""

    def train(self, mode: bool = True) -> Self:
        """Sets training mode for what trains."""
        super().train(mode)
        for part in self.children():
            if not trains(part):
                part.eval()
        return self


def trains(module: nn.Module) -> bool:
    """Whether any of its weights does."""
    return any(p.requires_grad for p in module.parameters())


class BaseModel(PartlyFrozen):
    """Base of all registered models. `forward(batch)` returns the scalars `loss` and `tokens`, its labels."""

    @property
    def vocabulary(self) -> int:
        """How many words the LLM chooses from."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Config, towers: bool = True, problems: Problems | None = None) -> Self:
        """Builds the model and loads its weights. Without `towers` it reads cached features in place of pictures.

        Raises:
            UserError: a file is missing or does not fit; all paths are checked before the first is read. It tells
                the problems that were found elsewhere too.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def place(self, device: torch.device) -> Self:
        """Moves the model to the device, except for parts that are placed already: a mapped or quantized LLM."""
        placed = {
            name: part
            for name, part in self.named_children()
            if getattr(part, "is_quantized", False) or getattr(part, "hf_device_map", None)
        }
        for name in placed:
            setattr(self, name, None)
        self.to(device)
        for name, part in placed.items():
            setattr(self, name, part)
        if device.type == "cpu":
            use_onednn(self)
        return self

    def answering(self) -> Self:
        """Sets eval mode for good: what makes answers faster, but gradients wrong, is allowed from here on."""
        pack_4bit(self, allowed=True)
        for module in self.modules():
            if isinstance(module, QuantizedLinear):
                module.pack()
                release_freed_memory()
        vision = getattr(self, "vision", None)
        if vision is not None and self.device.type == "cpu":
            compute_in_fp32(vision)
        return self.eval()


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost ModuleLists: inner ones may hold experts, which not every process calls."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def checkpoint_blocks(tower: nn.Module) -> None:
    """Makes the blocks of a tower compute their activations anew for backward, instead of keeping them.

    transformers' own switch does so in training mode only, in which a frozen LLM would also drop out (Chen et al. 2016,
    arXiv:1604.06174).
    """
    for block in blocks(tower):
        block.forward = partial(_computed_anew, block.forward)  # type: ignore[method-assign]


def _computed_anew(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)

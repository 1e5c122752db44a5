"""A model's parts: frozen ones stay frozen, and blocks of towers may compute their activations again."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self


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
    """Whether any weight of the module trains."""
    return any(p.requires_grad for p in module.parameters())


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost ModuleLists: inner ones may hold experts, which not every process calls."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def checkpoint_blocks(tower: nn.Module) -> None:
    """Makes the blocks of a tower compute their activations again for backward, instead of keeping them.

    transformers' own switch does so in training mode only, in which a frozen LLM would also drop out (Chen et al. 2016,
    arXiv:1604.06174).
    """
    for block in blocks(tower):
        block.forward = partial(_computed_anew, block.forward)  # type: ignore[method-assign]


def _computed_anew(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)

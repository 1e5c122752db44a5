"""What every model shares: construction from a config, frozen parts that stay frozen, counting."""

import torch
from torch import nn
from typing_extensions import Self

from minigpt4.common.config import Config
from minigpt4.common.errors import Problems


class BaseModel(nn.Module):
    """Base of all registered models. `forward(samples)` returns a dict with the scalar `loss`."""

    @classmethod
    def from_config(cls, config: Config, problems: Problems | None = None) -> Self:
        """Builds the model and loads its weights.

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
        return self

    def train(self, mode: bool = True) -> Self:
        """Sets training mode for what trains; frozen parts stay in eval mode (no dropout, no drop path)."""
        super().train(mode)
        for module in self.children():
            if not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def count_parameters(self) -> tuple[int, int]:
        """Returns (trainable, all)."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)

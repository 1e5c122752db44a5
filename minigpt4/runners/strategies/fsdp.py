"""Training on several processes, each of which holds a share of the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from minigpt4.common.distributed import world_size
from minigpt4.common.errors import UserError
from minigpt4.config.schema import RunConfig
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.parts import blocks
from minigpt4.runners.strategies.strategy import Strategy


class FSDP(Strategy):
    """torch's FSDP2: each process holds a share of every block of the ViT, the Q-Former and the LLM.

    Frozen and trained parameters are mixed; blocks move to the device one by one, so the whole model need not fit it.
    """

    sharded = True

    def __init__(self, model: MiniGPT4, run: RunConfig, device: torch.device):
        if any(getattr(m, "is_quantized", False) for m in model.modules()):
            raise UserError("run.strategy: fsdp cannot shard a quantized LLM. Set model.quantization=none, or use ddp.")
        super().__init__(model, run, device)

    def _wrap(self) -> nn.Module:
        mesh = init_device_mesh(self.device.type, (world_size(),))
        for block in blocks(self.model):
            fully_shard(block, mesh=mesh)
        return cast(nn.Module, fully_shard(self.model, mesh=mesh))

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        cast(FSDPModule, self.model).set_requires_gradient_sync(last)
        yield

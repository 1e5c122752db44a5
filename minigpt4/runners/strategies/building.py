"""From `run.strategy` to what it names."""

import logging

import torch

from minigpt4.common.distributed import world_size
from minigpt4.common.errors import UserError
from minigpt4.config.schema import RunConfig
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.strategies.deepspeed import DeepSpeed
from minigpt4.runners.strategies.fsdp import FSDP
from minigpt4.runners.strategies.strategy import Strategy, amp_dtype

logger = logging.getLogger(__name__)


def build_strategy(model: MiniGPT4, run: RunConfig, device: torch.device) -> Strategy:
    """Builds what `run.strategy` names; a single process needs none of them.

    Raises:
        UserError: the strategy cannot do what else is asked for, or its package is missing.
    """
    if world_size() == 1 and run.strategy != "ddp":
        logger.info("run.strategy=%s: a single process has nothing to share out and trains without", run.strategy)
    if world_size() == 1 or run.strategy == "ddp":
        return Strategy(model, run, device)
    if amp_dtype(run, device) == torch.float16:  # which DeepSpeed scales at stage 0 only, in its own way
        raise UserError(
            f"run.strategy: {run.strategy} does not scale fp16 gradients. Set run.amp_dtype=bf16, or use ddp."
        )
    if run.strategy == "fsdp":
        return FSDP(model, run, device)
    return DeepSpeed(model, run, device)

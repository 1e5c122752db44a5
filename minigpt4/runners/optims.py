"""Optimizer and learning-rate schedules. A schedule is a pure function of the step, so it has no state to lose."""

import math
from collections.abc import Callable
from functools import partial

from torch import nn
from torch.optim import AdamW, Optimizer

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.config.schema import RunConfig

Schedule = Callable[[int], float]  # of a step, counted from 0 over the whole run, the learning rate


def build_optimizer(model: nn.Module, run: RunConfig) -> Optimizer:
    """AdamW over the trainable parameters; biases and vectors (LayerNorm) get no weight decay, as in the original.

    Raises:
        UserError: nothing is trainable.
    """
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    trainable.sort(key=lambda item: item[0] != "vision.queries")  # states go by position, and our first runs' had it so
    if not trainable:
        raise UserError(
            "model.unfreeze: every parameter is frozen, there is nothing to train. Name a part of it in model.unfreeze."
        )
    plain = [p for n, p in trainable if p.ndim < 2 or "bias" in n]
    decayed = [p for n, p in trainable if not (p.ndim < 2 or "bias" in n)]
    groups = [{"params": decayed, "weight_decay": run.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamW([g for g in groups if g["params"]], lr=run.init_lr, betas=run.betas, eps=run.eps)


def build_schedule(run: RunConfig, iters_per_epoch: int) -> Schedule:
    return partial(registry.get_lr_scheduler_class(run.lr_sched), run, iters_per_epoch)


def _warmup(run: RunConfig, step: int) -> float:
    start = run.warmup_lr if run.warmup_lr >= 0 else run.init_lr
    return min(run.init_lr, start + (run.init_lr - start) * step / max(run.warmup_steps, 1))


@registry.register_lr_scheduler("linear_warmup_cosine_lr")
def linear_warmup_cosine(run: RunConfig, iters_per_epoch: int, step: int) -> float:
    """Linear warm-up from warmup_lr to init_lr, then a cosine to min_lr that counts from the run's first step."""
    if step < run.warmup_steps:
        return _warmup(run, step)
    total = run.max_iters or run.max_epoch * iters_per_epoch
    return (run.init_lr - run.min_lr) * 0.5 * (1 + math.cos(math.pi * step / total)) + run.min_lr


@registry.register_lr_scheduler("linear_warmup_step_lr")
def linear_warmup_step(run: RunConfig, iters_per_epoch: int, step: int) -> float:
    """Linear warm-up in the first epoch, then init_lr * lr_decay_rate ** epoch, not below min_lr."""
    epoch = step // iters_per_epoch
    return _warmup(run, step) if epoch == 0 else max(run.min_lr, run.init_lr * run.lr_decay_rate**epoch)


@registry.register_lr_scheduler("constant_lr")
def constant(run: RunConfig, iters_per_epoch: int, step: int) -> float:
    """Linear warm-up, then init_lr."""
    return _warmup(run, step) if step < run.warmup_steps else run.init_lr

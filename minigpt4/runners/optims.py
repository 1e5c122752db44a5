"""Optimizer and learning-rate schedules. A schedule is a pure function of the step, so it has no state to lose."""

import math
from typing import Protocol

from torch import nn
from torch.optim import AdamW, Optimizer

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.config.schema import RunConfig


class Schedule(Protocol):
    def lr(self, step: int) -> float:
        """Learning rate of a step, counted from 0 over the whole run."""
        ...


def build_optimizer(model: nn.Module, run: RunConfig) -> Optimizer:
    """AdamW over the trainable parameters; biases and vectors (LayerNorm) get no weight decay, as in the original.

    Raises:
        UserError: nothing is trainable.
    """
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    trainable.sort(key=lambda item: item[0] != "vision.queries")  # states go by position, and our first runs' had it so
    if not trainable:
        raise UserError("model: every parameter is frozen, there is nothing to train.")
    plain = [p for n, p in trainable if p.ndim < 2 or "bias" in n]
    decayed = [p for n, p in trainable if not (p.ndim < 2 or "bias" in n)]
    groups = [{"params": decayed, "weight_decay": run.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamW([g for g in groups if g["params"]], lr=run.init_lr, betas=run.betas, eps=run.eps)


def build_schedule(run: RunConfig, iters_per_epoch: int) -> Schedule:
    """Builds the schedule that `run.lr_sched` names."""
    return registry.get_lr_scheduler_class(run.lr_sched)(run, iters_per_epoch)


def _warmup(run: RunConfig, step: int) -> float:
    start = run.warmup_lr if run.warmup_lr >= 0 else run.init_lr
    return min(run.init_lr, start + (run.init_lr - start) * step / max(run.warmup_steps, 1))


@registry.register_lr_scheduler("linear_warmup_cosine_lr")
class LinearWarmupCosine:
    """Linear warm-up from warmup_lr to init_lr, then a cosine to min_lr that counts from the run's first step."""

    def __init__(self, run: RunConfig, iters_per_epoch: int):
        self.run, self.total = run, run.max_iters or run.max_epoch * iters_per_epoch

    def lr(self, step: int) -> float:
        run = self.run
        if step < run.warmup_steps:
            return _warmup(run, step)
        return (run.init_lr - run.min_lr) * 0.5 * (1 + math.cos(math.pi * step / self.total)) + run.min_lr


@registry.register_lr_scheduler("linear_warmup_step_lr")
class LinearWarmupStep:
    """Linear warm-up in the first epoch, then init_lr * lr_decay_rate ** epoch, not below min_lr."""

    def __init__(self, run: RunConfig, iters_per_epoch: int):
        self.run, self.iters_per_epoch = run, iters_per_epoch

    def lr(self, step: int) -> float:
        run, epoch = self.run, step // self.iters_per_epoch
        return _warmup(run, step) if epoch == 0 else max(run.min_lr, run.init_lr * run.lr_decay_rate**epoch)


@registry.register_lr_scheduler("constant_lr")
class Constant:
    """Linear warm-up, then init_lr."""

    def __init__(self, run: RunConfig, iters_per_epoch: int):
        self.run = run

    def lr(self, step: int) -> float:
        return _warmup(self.run, step) if step < self.run.warmup_steps else self.run.init_lr

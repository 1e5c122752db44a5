"""The one training loop of the tiny model's pretraining stages, and their log."""

import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

CLIP_NORM = 1.0
FLOOR = 0.05  # the cosine ends at this part of the peak
WARMUP = 100


@dataclass(frozen=True)
class Stage:
    """One stage of pretraining: its name in the log, its length and its peak learning rate."""

    name: str
    steps: int
    lr: float
    batch: int
    weight_decay: float = 0.01

    def scaled(self, scale: float) -> Self:
        return replace(self, steps=max(2, round(self.steps * scale)))


def _write(log: Path, **record: object) -> None:
    """Appends a JSON line. Both chains of stages write to one file, a whole line at a time."""
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    logging.info("%s", record)


def seed_all(seed: int, stage: str) -> random.Random:
    """Seeds torch and returns the stage's own generator: a stage gives the same result when others are skipped."""
    rng = random.Random(f"{seed}/{stage}")
    torch.manual_seed(rng.getrandbits(32))
    np.random.seed(rng.getrandbits(32))
    return rng


def rate(step: int, stage: Stage) -> float:
    """Linear warm-up, then a cosine down to FLOOR, as a part of the peak."""
    warmup = min(WARMUP, max(1, stage.steps // 5))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, stage.steps - warmup)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    stage: Stage,
    groups: Iterable[tuple[nn.Module, float]],
    loss_at: Callable[[int], Tensor],
    log: Path,
    validate: Callable[[], dict[str, float]],
) -> None:
    """Runs a stage. `groups` pairs modules with factors on the rate; `loss_at(step)` draws a batch itself."""
    rated = [{"params": list(module.parameters()), "factor": factor} for module, factor in groups]
    optimizer = torch.optim.AdamW(rated, lr=stage.lr, betas=(0.9, 0.98), weight_decay=stage.weight_decay)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    start, running = time.monotonic(), 0.0
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * rate(step, stage) * group["factor"]
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == stage.steps:
            seconds = round(time.monotonic() - start, 1)
            lr = stage.lr * rate(step, stage)
            _write(log, stage=stage.name, step=step + 1, loss=round(running, 4), lr=lr, seconds=seconds)
        if (step + 1) % 500 == 0 or step + 1 == stage.steps:
            _write(log, stage=stage.name, step=step + 1, **validate())

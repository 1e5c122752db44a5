"""Watches the losses of training: those that are not numbers, and those of a model that learns nothing."""

import logging
import math
from pathlib import Path
from typing import Any

from minigpt4.common import distributed
from minigpt4.common.errors import UserError

logger = logging.getLogger(__name__)

CHANCE_STEPS = 200  # steps in which any recipe has left chance behind


class LossMonitor:
    """Watches the losses of a run.

    Args:
        most: bad steps in a row before the run must stop.
        vocabulary: words that the LLM chooses from.
    """

    def __init__(self, most: int, vocabulary: int):
        self.most, self.chance = most, math.log(vocabulary)
        self.bad: list[str] = []  # ids of the batches of the bad steps in a row
        self.bad_steps = 0
        self._spoiled = False  # the step to come
        self._warned = False

    def record(self, good: bool, loss: float, batch: dict[str, Any], update: bool) -> bool:
        """Takes note of a batch; with `update` it was the last of its step. False once too many steps were bad.

        A bad batch spoils the whole step, which all ranks skip.
        """
        reported = self._spoiled and math.isfinite(loss)  # by the batch that spoiled it
        self._spoiled |= not good
        if not good and not reported:
            ids = [str(i) for i in distributed.all_gather(list(batch.get("image_id", ["?"])))]
            self.bad.append(", ".join(ids[:10]) + (", ..." if len(ids) > 10 else ""))
            message = "loss %s: the step is skipped (%d in a row); batch: %s"
            logger.warning(message, loss, self.bad_steps + 1, self.bad[-1])
        if update:
            self.bad_steps, self.bad = (self.bad_steps + 1, self.bad) if self._spoiled else (0, [])
            self._spoiled = False
        return self.bad_steps < self.most

    def stop_run(self, output_dir: Path) -> None:
        """Raises the error that ends the run."""
        raise UserError(
            f"{self.bad_steps} steps in a row gave a loss or gradients that are not numbers, the last with the samples "
            f"{self.bad[-1]}. The state before them is saved in '{output_dir}'. Look at these samples, lower "
            "run.init_lr, set run.max_grad_norm=1.0, or run.amp_dtype=bf16 instead of fp16."
        )

    def watch(self, step: int, loss: float) -> None:
        """Warns once that a run learns nothing: its loss stays that of guessing any word."""
        if step >= CHANCE_STEPS and loss > 0.9 * self.chance and not self._warned:
            self._warned = True
            logger.warning(
                "after %d steps the loss is %.2f, that of guessing among all words (%.2f). Likely causes: the LLM's "
                "weights or tokenizer are wrong, the learning rate is far too large or small, or answers are empty.",
                *(step, loss, self.chance),
            )

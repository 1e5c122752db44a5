"""A run's output folder: what is written before the first step, and the checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from minigpt4.common.distributed import barrier, is_main
from minigpt4.common.errors import UserError, make_folder, writing
from minigpt4.common.run_info import run_info
from minigpt4.config.finding import CONFIG
from minigpt4.config.loading import save_config
from minigpt4.config.schema import Config
from minigpt4.models.checkpoint import save_weights
from minigpt4.runners import run_state
from minigpt4.runners.best import BEST
from minigpt4.runners.strategies.strategy import Strategy


def prepare(config: Config, device: torch.device, step: int | None, iters_per_epoch: int | None = None) -> None:
    """Makes the output folder and writes what describes the run. All ranks must call it.

    Args:
        step: the step that the run continues from; None for a new run, which replaces what an earlier one left.
        iters_per_epoch: the length of an epoch, where it was another when the checkpoints were written.

    Raises:
        UserError: the folder can't be written.
    """
    barrier()  # all have looked for checkpoints
    if not is_main():
        return
    folder = Path(config.run.output_dir)
    with writing("run.output_dir", folder):
        make_folder("run.output_dir", folder)
        run_state.prune(folder, None)
        if step is None:
            shutil.rmtree(folder / BEST, ignore_errors=True)
        else:
            run_state.set_aside_later_checkpoints(folder, step, iters_per_epoch)
        save_config(config, folder / CONFIG)
        (folder / "run_info.json").write_text(json.dumps(run_info(device), indent=2) + "\n")


def save_checkpoint(config: Config, name: str, strategy: Strategy, state: dict[str, Any]) -> None:
    """Writes a checkpoint to continue from, and deletes those beyond `run.keep_last`. All ranks must call it.

    Args:
        state: what the runner needs to continue; the strategy's own state is added.

    Raises:
        UserError: it can't be written; the earlier ones stay.
    """
    folder, weights = Path(config.run.output_dir), strategy.weights()
    path = folder / name
    try:
        with writing("run.output_dir", path), run_state.whole_folder(path) as unfinished:
            engine = strategy.save(unfinished)
            if is_main():
                save_weights(weights, unfinished)
                run_state.write_state(unfinished, state["step"], state | {"engine": engine})
                save_config(config, unfinished / CONFIG)
    except UserError:
        if is_main():
            run_state.prune(folder, None)  # the unfinished one takes room
        raise
    if is_main():
        with writing("run.output_dir", folder):
            run_state.prune(folder, config.run.keep_last)

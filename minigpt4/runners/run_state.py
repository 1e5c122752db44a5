"""Checkpoints that a run can continue from: folders that appear whole or not at all, and what is in them."""

import json
import logging
import math
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape, glob
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from minigpt4.common.checksums import check_checksums, rename_checked, write_checksums
from minigpt4.common.distributed import all_gather, barrier, is_main
from minigpt4.common.errors import Problems, UserError, first_line
from minigpt4.common.files import replace_file
from minigpt4.models.checkpoint import load_checkpoints
from minigpt4.models.weight_file import WEIGHTS, shapes_of
from minigpt4.runners.log import to_json

logger = logging.getLogger(__name__)

_STATE = "training_state_{}.pt"  # its step: copies of folders lose their times
_MEASURES = "measures.json"
_UNFINISHED, _REPLACED, _ABANDONED = ".tmp", ".old", ".abandoned"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to write to that takes the name `folder` at the end; a crash leaves the earlier one, or none.

    All ranks write to the same one.
    """
    temporary, replaced = (folder.with_name(folder.name + suffix) for suffix in (_UNFINISHED, _REPLACED))
    if is_main():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    yield temporary
    barrier()
    if is_main():
        write_checksums(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _to_disk(path)
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)  # a crash left it
            folder.rename(replaced)  # found as well, until the new one has its name
        temporary.rename(folder)
        _to_disk(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_state(folder: Path, step: int, state: dict[str, Any]) -> None:
    with (folder / _STATE.format(step)).open("wb") as file:  # opened by torch, it fails without saying why
        torch.save(state, file)


def read_state(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's training state; its tensors are mapped, so what a rank leaves unused is not read.

    Raises:
        UserError: there is none, or it can't be read.
    """
    file = next(folder.glob(_STATE.format("*")), None)
    if file is None:
        raise UserError(f"run.resume: '{folder}' {_what_it_is(folder)}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's reader raises many kinds
        raise UserError(f"run.resume: '{file}' can't be read ({first_line(error)}). Use another checkpoint.") from None


def load_weights(model: nn.Module, folder: Path) -> None:
    """Loads a checkpoint's weights.

    Raises:
        UserError: they can't be read, or don't fit the model.
    """
    try:
        load_checkpoints(model, [folder])
    except UserError as error:
        raise UserError(f"run.resume: {str(error).removeprefix('model.ckpt: ')}") from None


def _what_it_is(folder: Path) -> str:
    """Describes a folder without a training state."""
    if own := checkpoints(folder):
        return f"is a run's folder, not a checkpoint. Name one in it, such as {own[-1].name}."
    if any(folder.glob("*.safetensors")):
        return "holds weights but no training state. Set model.ckpt to it, or run.resume=auto."
    return "is not a checkpoint to continue from. Set it to auto or to a checkpoint folder of a run."


def write_measures(folder: Path, epochs: float, measures: dict[str, float]) -> None:
    """Notes in a checkpoint of an epoch's end what validation found, after so many epochs."""
    replace_file(folder / _MEASURES, to_json({"epochs": epochs, **measures}).encode())


def read_measures(folder: Path) -> dict[str, float] | None:
    """What `write_measures` noted, or None."""
    try:
        found = json.loads((folder / _MEASURES).read_text())
    except (OSError, ValueError):  # a loss of power left it empty
        return None
    return {name: math.nan if value is None else value for name, value in found.items()}


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run that can be continued from, the oldest first."""
    return [folder for _, folder in _by_step(output_dir)]


def _by_step(output_dir: Path) -> list[tuple[int, Path]]:
    # not Path.glob, which fails where a run that continues deletes an old one meanwhile
    states = map(Path, glob(f"{escape(str(output_dir))}/*/{_STATE.format('*')}"))
    passed_over = (_UNFINISHED, _ABANDONED)
    found = [file for file in states if file.parent.suffix not in passed_over]
    return sorted((int(file.stem.rpartition("_")[2]), file.parent) for file in found)


def set_aside_later_checkpoints(output_dir: Path, step: int, iters_per_epoch: int | None) -> None:
    """Makes the checkpoint that a run continues from, at this step, the newest.

    Those beyond it, of a branch that is left, get a name that no run continues from: else the run's own would be pruned
    as the older ones. With `iters_per_epoch`, epochs had another length: the others' steps are counted again.
    """
    if iters_per_epoch:
        _renumber(output_dir, iters_per_epoch)
    later = [folder for own, folder in _by_step(output_dir) if own > step]
    for folder in later:
        abandoned = folder.with_name(folder.name + _ABANDONED)
        shutil.rmtree(abandoned, ignore_errors=True)
        folder.rename(abandoned)
    if later:
        names = ", ".join(folder.name for folder in later)
        logger.warning("%s: beyond step %d, from where this run continues; now named *%s", names, step, _ABANDONED)


def _renumber(output_dir: Path, iters_per_epoch: int) -> None:
    for folder in checkpoints(output_dir):
        (file,) = folder.glob(_STATE.format("*"))
        try:
            state = read_state(folder)
            step = state["step"] * iters_per_epoch // state.get("iters_per_epoch", iters_per_epoch)
            rename_checked(file, _STATE.format(step))
        except UserError:  # no run continues from it
            continue


def newest(output_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and its state; None where a run is to begin."""
    found = checkpoints(output_dir)
    while found:
        folder = found.pop()
        try:
            return folder, _whole_state(folder)
        except UserError as error:
            instead = "the one before it is used" if found else "none is left, the run starts from the beginning"
            logger.warning("%s is passed over, %s: %s", folder.name, instead, error)
    return None


def _whole_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's training state, once all its files are found to be as they were written; else it is refused."""
    check_checksums(folder)
    state = read_state(folder)
    shapes_of(folder / WEIGHTS)  # whole, as header and size say
    return state


def checkpoint_to_continue(resume: str | None, output_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that `run.resume` names, and its state; None where a run is to begin.

    All ranks must call it; the first one reads the files to check them, and the others follow.

    Raises:
        UserError: it can't be read, or an earlier run's checkpoints would be lost.
    """
    problems = Problems()
    found = problems.attempt(_choose, resume, output_dir) if is_main() else None
    folder, problems = all_gather([(found, problems)])[0]
    problems.raise_all()
    return (folder, read_state(folder)) if folder else None


def _choose(resume: str | None, output_dir: Path) -> Path | None:
    if resume is None and (earlier := checkpoints(output_dir)):
        raise UserError(
            f"run.output_dir: '{output_dir}' holds {earlier[-1].name} of an earlier run. Set run.resume=auto to "
            "continue with it, set another folder, or delete it."
        )
    if resume in (None, "auto"):
        found = newest(output_dir)
        return found and found[0]
    folder = Path(str(resume)).expanduser()
    try:
        _whole_state(folder)
    except UserError as error:
        raise UserError(f"run.resume: {str(error).removeprefix('run.resume: ')}") from None
    return folder


def prune(output_dir: Path, keep: int | None) -> None:
    """Deletes all but the newest `keep` checkpoints, and what a crash left unfinished."""
    for path in output_dir.glob(f"*{_UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)
    if keep is not None:
        for folder in checkpoints(output_dir)[:-keep]:
            shutil.rmtree(folder)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The random-number states of this process, in types that `read_state` reads back."""
    _, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    state: dict[str, Any] = {"python": random.getstate(), "numpy": (keys.tolist(), *rest)}
    state["torch"] = torch.get_rng_state()
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Sets what `rng_state` returned; the device's only where it was one."""
    random.setstate(state["python"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys, *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])

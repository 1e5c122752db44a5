"""Checkpoints that a run can continue from: folders that appear whole or not at all, and what is in them."""

import logging
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

from minigpt4.common.dist_utils import barrier, is_main
from minigpt4.common.errors import UserError, first_line

logger = logging.getLogger(__name__)

_STATE = "training_state_{}.pt"  # its step: copies of folders lose their times
_UNFINISHED, _REPLACED = ".tmp", ".old"


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
        for path in [*temporary.rglob("*"), temporary]:
            _to_disk(path)
        if folder.exists():
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
    torch.save(state, folder / _STATE.format(step))


def read_state(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's training state.

    Raises:
        UserError: there is none, or it can't be read.
    """
    try:
        (file,) = folder.glob(_STATE.format("*"))
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises many kinds
        raise UserError(
            f"run.resume: '{folder}' is no checkpoint to continue from ({first_line(error)}). "
            "Set it to auto or to a checkpoint folder of a run."
        ) from None


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run that can be continued from, the oldest first."""
    # not Path.glob, which fails where a run that goes on deletes an old one meanwhile
    states = map(Path, glob(f"{escape(str(output_dir))}/*/{_STATE.format('*')}"))
    found = [(int(file.stem.rpartition("_")[2]), file.parent) for file in states if file.parent.suffix != _UNFINISHED]
    return [folder for _, folder in sorted(found)]


def newest(output_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, and its state; None where a run is to begin."""
    for folder in reversed(checkpoints(output_dir)):
        try:
            return folder, read_state(folder)
        except UserError as error:
            logger.warning("%s; the one before it is used", error)
    return None


def checkpoint_to_continue(resume: str | None, output_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that `run.resume` names, and its state; None where a run is to begin.

    Raises:
        UserError: it can't be read, or an earlier run's checkpoints would be lost.
    """
    if resume not in (None, "auto"):
        return Path(str(resume)), read_state(Path(str(resume)))
    found = newest(output_dir)
    if found and resume is None:
        raise UserError(
            f"run.output_dir: '{output_dir}' holds {found[0].name} of an earlier run. Set run.resume=auto to go on "
            "with it, set another folder, or delete it."
        )
    return found


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

"""DeepSpeed's files. It opens them as pickles, which can run code; here it is held to those that hold data alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from minigpt4.common.errors import UserError, first_line
from minigpt4.common.wrong_files import what_is_wrong

# DeepSpeed's own classes in its files: records and an enumeration, whose making does nothing else
_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}
_FORCED, _FORBIDDEN = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def tensors_only() -> Iterator[None]:
    """Within it `torch.load` runs no code that a file holds, whoever calls it: DeepSpeed asks for weights_only=False.

    torch's own switch overrules that. Besides tensors and plain data, DeepSpeed's classes are read.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCED, _FORBIDDEN)}
    os.environ[_FORCED] = "1"
    try:
        with safe_globals(_classes()):
            yield
    finally:
        del os.environ[_FORCED]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _classes() -> list[Any]:
    if not find_spec("deepspeed"):
        return []
    return [getattr(import_module(module), name) for module, names in _CLASSES.items() for name in names]


def load_data(file: Path) -> Any:
    """Reads one of DeepSpeed's files, to the CPU; tensors are mapped where its format allows.

    Raises:
        UserError: it holds more than data, or can't be read.
    """
    try:
        with tensors_only():
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except Exception as error:  # torch's reader raises many kinds
        if wrong := what_is_wrong(file):
            raise UserError(f"'{file}' {wrong}.") from None
        if isinstance(error, UnpicklingError):
            raise UserError(
                f"'{file}' holds {_what_else(file)}. Reading that could run code, so it is not opened."
            ) from None
        raise UserError(f"'{file}' can't be read ({first_line(error)}).") from None


def _what_else(file: Path) -> str:
    try:
        with safe_globals(_classes()):
            names = get_unsafe_globals_in_checkpoint(file) if is_zipfile(file) else []
    except Exception:  # a pickle that is damaged, or made to be
        names = []
    return f"more than data: {', '.join(names[:3])}" if names else "more than data"

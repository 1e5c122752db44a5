"""One file of weights, read or written whole: `.safetensors` or PyTorch's. tensor_files.py reads parts of tensors."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minigpt4.common.checksums import check_checksums
from minigpt4.common.errors import UserError, first_line
from minigpt4.common.wrong_files import what_is_wrong

WEIGHTS = "model.safetensors"  # in a checkpoint folder
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")  # what others keep the weights under, nested too
# what DataParallel, torch.compile, FSDP and activation checkpointing put before or between the names
_WRAPPED = re.compile(r"^(module\.)+|_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")


def load_tensors(path: str | Path, outline: bool = False) -> dict[str, Tensor]:
    """Reads a `.safetensors` file, a `.pth` file, bare or as others wrap it, or a checkpoint folder, by its checksum.

    Names lose what wrappers put before them (`module.`, `_orig_mod.`).

    Args:
        outline: whether names and shapes are enough: files that can't be mapped then come without values.

    Raises:
        UserError: the file is something else or damaged, or holds more than tensors.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if file.name == WEIGHTS:  # other files' checksums are other programs'
        check_checksums(file.parent, [WEIGHTS])
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:  # mapped: what the model leaves unused is not read
            mapped = zipfile.is_zipfile(file)
            device = "meta" if outline and not mapped else "cpu"
            state = torch.load(file, map_location=device, weights_only=True, mmap=mapped)
    except Exception as error:  # torch's reader raises many kinds
        raise unreadable(file, error) from error
    return _own_names(file, state)


def _own_names(file: Path, state: Any) -> dict[str, Tensor]:
    """The weights in what a file holds, without wrappers around them and in their names; nothing else will do."""
    for _ in _WRAPPERS:
        inner = next((key for key in _WRAPPERS if isinstance(state, dict) and isinstance(state.get(key), dict)), None)
        state = state[inner] if inner else state
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise UserError(f"{file} can't be read as weights: expected names and tensors. Use another file.")
    while (bare := {_WRAPPED.sub("", name): value for name, value in state.items()}).keys() != state.keys():
        if len(bare) < len(state):
            raise UserError(
                f"{file} can't be read as weights: it holds some twice, with and without a prefix. Use another file."
            )
        state = bare
    return state


def unreadable(file: Path, error: Exception) -> UserError:
    """What is said of a file that raised an error when it was read as weights."""
    wrong = what_is_wrong(file)
    return UserError(f"{file} can't be read as weights: {f'it {wrong}' if wrong else first_line(error)}.")


def shapes_of(file: Path) -> dict[str, list[int]]:
    """{name: shape} of a `.safetensors` file, of which only the header is read.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise unreadable(file, error) from error


def write_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically, for all whom the umask lets read: safetensors' own are private."""
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary, metadata)
    os.umask(mask := os.umask(0o077))  # the only way to read it
    temporary.chmod(0o666 & ~mask)
    os.replace(temporary, file)

"""The only file that reads or writes weights on disk."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from iopath.common.file_io import HTTPURLHandler, PathManager
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minigpt4.common.errors import UserError, first_line

logger = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"  # in a checkpoint folder
_manager = PathManager()
_manager.register_handler(HTTPURLHandler())


def local_files(paths: dict[str, str], cache_root: str) -> dict[str, Path]:
    """Maps {config key: path or URL} to {config key: local file or folder}.

    All local paths are checked before the first URL is downloaded, once, into `cache_root`.

    Raises:
        UserError: there is no such file, or it could not be downloaded.
    """
    for key, path in paths.items():
        if not _is_url(path) and not Path(path).expanduser().exists():
            raise UserError(f"{key}: '{path}' does not exist. Set it to a file or folder; see README 'Real weights'.")
    return {key: _fetch(key, path, cache_root) for key, path in paths.items()}


def _is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _fetch(key: str, path: str, cache_root: str) -> Path:
    if not _is_url(path):
        return Path(path).expanduser()
    logger.info("%s: %s", key, path)
    try:
        return Path(_manager.get_local_path(path, cache_dir=os.path.expanduser(cache_root)))
    except OSError as error:
        raise UserError(
            f"{key}: {path} can't be downloaded ({first_line(error)}). Get the file by other means and set {key} to it."
        ) from error


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads a `.safetensors` file, a `.pth` file of the original (`{"model": ...}` or bare), or a checkpoint folder.

    Raises:
        UserError: the file is damaged, or holds more than tensors.
    """
    path = Path(path)
    file = path / _WEIGHTS if path.is_dir() else path
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} can't be read as weights: {first_line(error)}") from error
    state = state.get("model", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} can't be read as weights: expected names and tensors.")
    return state


@dataclass
class LoadReport:
    """What a checkpoint gave: names loaded, and names in the file that the model has no use for."""

    path: str
    loaded: list[str]
    ignored: list[str]

    def __str__(self) -> str:
        return (
            f"checkpoint {self.path}: loaded {', '.join(self.loaded)}; ignored {', '.join(self.ignored) or 'nothing'}"
        )


def load_checkpoint(model: nn.Module, path: str | Path) -> LoadReport:
    """Loads the trainable weights of a model.

    Frozen parts come from their own files; buffers of the original (`inv_freq`, `position_ids`) are ignored.

    Raises:
        UserError: a trainable weight is missing, a shape differs, or the file holds an unknown weight.
    """
    state = load_tensors(path)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ignored = sorted(key for key in state if key.endswith((".inv_freq", ".position_ids")))
    weights = {key: value for key, value in state.items() if key not in set(ignored)}
    missing, unknown = sorted(trainable.keys() - weights.keys()), sorted(weights.keys() - trainable.keys())
    if missing or unknown:
        raise UserError(
            f"model.ckpt: {path} does not hold this model's trainable weights: missing {missing[:3]}, "
            f"unknown {unknown[:3]}."
        )
    for name, parameter in trainable.items():
        if weights[name].shape != parameter.shape:
            raise UserError(
                f"model.ckpt: {path}: {name} is {list(weights[name].shape)}, this model has {list(parameter.shape)}. "
                "Use the checkpoint that was trained with this LLM (model.llama_model)."
            )
    for name, parameter in trainable.items():  # only once all fit
        parameter.data.copy_(weights[name])
    report = LoadReport(str(path), sorted(weights), ignored)
    logger.info("%s", report)
    return report


def save_checkpoint(model: nn.Module, folder: str | Path) -> None:
    """Writes the trainable weights to `folder/model.safetensors`, atomically."""
    file = Path(folder) / _WEIGHTS
    file.parent.mkdir(parents=True, exist_ok=True)
    trainable = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    temporary = file.with_suffix(".tmp")
    save_file(trainable, temporary)
    os.replace(temporary, file)

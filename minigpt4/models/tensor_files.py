"""A model's weight files, read and written piece by piece: whole models, or whole tensors, are never in memory."""

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from minigpt4.common.errors import UserError, make_folder, prefixed, writing
from minigpt4.common.files import check_space, replace_file
from minigpt4.common.locks import locked_file
from minigpt4.models.weight_file import unreadable

INDEXES = "model.safetensors.index.json", "pytorch_model.bin.index.json"
UNFINISHED = "unfinished.json"  # in a folder that is being written: what it is made from
FILE_BYTES = 2 * 2**30  # of a file that is written; one that was not finished is written again
PIECE_BYTES = 64 * 2**20  # of a tensor that are in memory at once
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's magic number, with which files of before 1.6 begin
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Rows = Callable[[str, slice], Tensor]  # of a tensor's name and some of its rows: those


@dataclass(frozen=True)
class Outline:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def pieces(self) -> Iterator[slice]:
        """Slices of the rows that follow one another, each of a few megabytes."""
        step = max(1, self.shape[0] * PIECE_BYTES // max(self.bytes, 1))
        return (slice(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step))


def weight_files(folder: Path) -> list[Path]:
    """The files of a local folder that a model's weights are read from: safetensors, else PyTorch's."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def complete_weight_files(key: str, folder: Path) -> list[Path]:
    """Those of `weight_files`; `key` is the option that names the folder.

    Raises:
        UserError: the folder holds no weights, or lacks a file that its index names.
    """
    files = weight_files(folder)
    if not files:
        raise UserError(
            f"{key}: '{folder}' holds no weights (model*.safetensors, pytorch_model*.bin). Name the folder of a "
            "Hugging Face model; the weights that Meta gave out become one by: minigpt4 convert-llama"
        )
    for index in (folder / name for name in INDEXES):
        if index.is_file() and index.name.startswith(files[0].name[:5]):
            with prefixed(f"{key}: "), _readable(index):
                named = set(json.loads(index.read_bytes())["weight_map"].values())
            if lacking := sorted(named - {file.name for file in files}):
                raise UserError(f"{key}: '{folder}' lacks {', '.join(lacking)}. Download what is missing.")
    return files


class TensorFiles(Mapping[str, Outline]):
    """{name: outline} of the weights in files, `.safetensors` or PyTorch's.

    Scalars, and tensors of other types than those of `_DTYPES`, such as masks, are left out.

    Raises:
        UserError: a file is not weights, is damaged, or holds a tensor that another one holds.
    """

    def __init__(self, files: Sequence[Path]):
        self._files: dict[str, Path] = {}
        self._outlines: dict[str, Outline] = {}
        for file in files:
            with _readable(file):
                found = _outlines(file)
            for name, outline in found.items():
                if name in self._files:
                    raise UserError(f"'{file}' holds {name}, and so does '{self._files[name]}'. Keep one of them.")
                self._files[name], self._outlines[name] = file, outline

    @classmethod
    def of_folder(cls, key: str, folder: Path) -> "TensorFiles":
        """Those of a Hugging Face model.

        Args:
            key: the option that names the folder.

        Raises:
            UserError: as `complete_weight_files`, and as the class.
        """
        return cls(complete_weight_files(key, folder))

    def __getitem__(self, name: str) -> Outline:
        return self._outlines[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outlines)

    def __len__(self) -> int:
        return len(self._outlines)

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or some of its rows. The file is mapped meanwhile only: mapped pages count as memory.

        Raises:
            UserError: the file can't be read any more.
        """
        file = self._files[name]
        with _readable(file):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as tensors:
                    return tensors.get_slice(name)[rows].clone()
            return _pytorch(file)[name][rows].clone()


def _outlines(file: Path) -> dict[str, Outline]:
    if file.suffix != ".safetensors":
        return {
            name: Outline(tuple(own.shape), own.dtype)
            for name, own in _pytorch(file).items()
            if own.ndim and own.dtype in _NAMES
        }
    with safe_open(file, framework="pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {
            name: Outline(tuple(own.get_shape()), _DTYPES[own.get_dtype()])
            for name, own in slices.items()
            if own.get_shape() and own.get_dtype() in _DTYPES
        }


def _pytorch(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        if stream.read(len(_LEGACY)) == _LEGACY:
            raise ValueError(
                "it is in PyTorch's format from before 1.6, which can't be read in parts. Save it again: "
                f"python -c \"import torch; f = '{file}'; torch.save(torch.load(f), f)\""
            )
    state: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError("expected names and tensors")
    return state


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # readers of weights raise many kinds
        raise unreadable(file, error) from error


@contextmanager
def resumable(key: str, folder: Path, made_from: Mapping[str, Any]) -> Iterator[None]:
    """Around the writing of a folder, which may be ended at any time and continues there.

    Args:
        key: the option that names the folder.
        made_from: what JSON can hold, and says whether files of an earlier run are those of this one.

    Raises:
        UserError: the folder holds something else, another run writes to it, or it can't be written.
    """
    make_folder(key, folder)
    note = folder / UNFINISHED
    text = json.dumps(made_from, indent=2).encode()
    with writing(key, folder), locked_file(key, note):
        if note.is_file() and note.read_bytes() != text:
            raise UserError(
                f"{key}: '{folder}' was started with other files, see {UNFINISHED} in it. Name another folder."
            )
        if not note.is_file() and any(not file.name.startswith(f".{UNFINISHED}") for file in folder.iterdir()):
            raise UserError(f"{key}: '{folder}' is not empty. Name a new folder.")
        replace_file(note, text)
        yield
        note.unlink()


def write_tensors(folder: Path, outlines: Mapping[str, Outline], rows: Rows, what: str) -> None:
    """Writes a model's weights as `.safetensors` files with an index. Files that an earlier run has finished stay.

    Args:
        rows: gives the rows of a tensor that are written next, of the dtype of its outline.
        what: names the progress bar.

    Raises:
        OSError: a file can't be written.
    """
    groups: list[dict[str, Outline]] = [{}]
    for name, outline in outlines.items():
        if groups[-1] and sum(own.bytes for own in groups[-1].values()) + outline.bytes > FILE_BYTES:
            groups.append({})
        groups[-1][name] = outline
    files = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    total = sum(outline.bytes for outline in outlines.values())
    for file in files:  # of a run that was ended
        (folder / file).with_suffix(".part").unlink(missing_ok=True)
    missing = [group for file, group in zip(files, groups, strict=True) if not (folder / file).is_file()]
    check_space(folder, sum(outline.bytes for group in missing for outline in group.values()))
    with tqdm(total=total, desc=what, unit="B", unit_scale=True) as bar:
        for file, group in zip(files, groups, strict=True):
            if (folder / file).is_file():
                bar.update(sum(outline.bytes for outline in group.values()))
            else:
                _write_file(folder / file, group, rows, bar)
    places = {name: file for file, group in zip(files, groups, strict=True) for name in group}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    replace_file(folder / INDEXES[0], json.dumps(index, indent=2).encode())


def _write_file(file: Path, outlines: Mapping[str, Outline], rows: Rows, bar: tqdm) -> None:
    """Writes one file; it has its name once it is whole. Format: https://github.com/huggingface/safetensors#format"""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, outline in outlines.items():
        begin, end = end, end + outline.bytes
        header[name] = {"dtype": _NAMES[outline.dtype], "shape": outline.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, outline in outlines.items():
            for piece in outline.pieces():
                data = rows(name, piece).contiguous().view(torch.uint8).numpy().data
                bar.update(stream.write(data))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)

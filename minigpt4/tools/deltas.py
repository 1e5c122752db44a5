"""Weights that are given out as a difference to LLaMA's, as Vicuna v0 and v1.1 were: taken apart and put together.

Source: apply_delta.py and make_delta.py of FastChat; before its 0.2 the vocabulary grew by the row of a padding token,
to which LLaMA contributes zeros.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minigpt4.common.errors import UserError
from minigpt4.common.files import replace_file
from minigpt4.common.wrong_files import wrong_file
from minigpt4.models.preflight import holds_delta
from minigpt4.models.pretrained import settings_folder
from minigpt4.models.tensor_files import INDEXES, Outline, TensorFiles, resumable, write_tensors

logger = logging.getLogger(__name__)

_GROWING = ("embed_tokens.weight", "lm_head.weight")  # a row for each token
_BUFFERS = "rotary_emb.inv_freq"  # in files of old versions of transformers; it is computed
_OLD_NAMES = {"LLaMAForCausalLM": "LlamaForCausalLM", "LLaMATokenizer": "LlamaTokenizer"}
_SETTINGS = ("*.json", "*.model")
_OF_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens")
_SAMPLED = 4  # tensors, and
_SAMPLED_ROWS = 256  # of each, that show whether two folders belong together
_SMALL, _ROUNDED, _ROUNDED_OF_LARGE = 0.25, 0.8, 0.32  # see `_check_pair`


def combine(named: Mapping[str, str], sign: int, out: tuple[str, Path]) -> None:
    """Adds a delta to LLaMA's weights, or takes LLaMA's away from a model's, in float16 as FastChat does.

    Args:
        named: {option: folder, or hub id that was downloaded} of LLaMA, and of the delta or model. The second's config
            and tokenizer are those of what is written.
        sign: +1 or -1.
        out: the option that names the folder to write, and that. If the run is ended, the same call continues there.

    Raises:
        UserError: weights are missing or damaged, the two do not belong together, or the result is not finite.
    """
    folders = {option: settings_folder(option, path, "model") for option, path in named.items()}
    base_folder, other_folder = folders.values()
    if base_folder.samefile(other_folder):
        raise UserError(f"{' and '.join(folders)} are both '{base_folder}'. {_cure(folders)}")
    if wrong := wrong_file([file for folder in folders.values() for file in _settings(folder)]):
        raise UserError(f"{wrong}.")
    base, other = (TensorFiles.of_folder(key, folder) for key, folder in folders.items())
    outlines = _outlines(base, other, folders)
    _check_kinds(base, other, folders, sign)
    if sign > 0:
        _check_pair(base, other, outlines, _cure(folders))

    def rows(name: str, piece: slice) -> Tensor:
        found = other.read(name, piece).to(torch.float16)
        known = base.read(name, piece).to(torch.float16)
        found[: len(known)] += sign * known
        if not torch.isfinite(found).all():
            raise UserError(
                f"{name} is not finite in the result. Check the checksums of the files in '{base_folder}' and "
                f"'{other_folder}'."
            )
        return found

    key, target = out
    made_from = {own: [[file.name, file.stat().st_size] for file in _inputs(folder)] for own, folder in folders.items()}
    with resumable(key, target, made_from):
        write_tensors(target, outlines, rows, target.name)
        _write_settings(base_folder, other_folder, target, outlines)
    logger.info("%s: %d tensors", target, len(outlines))


def _inputs(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file())


def _settings(folder: Path) -> list[Path]:
    """The files of a model besides its weights."""
    return sorted(file for pattern in _SETTINGS for file in folder.glob(pattern) if file.name not in INDEXES)


def _outlines(base: TensorFiles, other: TensorFiles, folders: Mapping[str, Path]) -> dict[str, Outline]:
    """{name: outline} of the result.

    Raises:
        UserError: the two hold other tensors, or of other shapes.
    """
    base_key, other_key = folders
    names = [name for name in other if not name.endswith(_BUFFERS)]
    if not any(name.endswith(_GROWING) for name in names):
        raise UserError(
            f"{other_key} ('{folders[other_key]}') has no {_GROWING[0]}: it is not of a LLaMA. {_cure(folders)}"
        )
    differing = {name for name in base if not name.endswith(_BUFFERS)} ^ set(names)
    if differing:
        name = min(differing)
        has, lacks = (base_key, other_key) if name in base else (other_key, base_key)
        raise UserError(f"{has} holds {name}, {lacks} does not: they are not of the same model. {_cure(folders)}")
    for name in names:
        one, two = base[name].shape, other[name].shape
        if one != two and not (name.endswith(_GROWING) and one[1:] == two[1:] and one[0] < two[0]):
            raise UserError(
                f"{name} is {list(one)} in {base_key} and {list(two)} in {other_key}: they are not of the same size. "
                f"{_cure(folders)}"
            )
    return {name: Outline(other[name].shape, torch.float16) for name in names}


def _cure(folders: Mapping[str, Path]) -> str:
    base, other = (f"{key} ('{folder}')" for key, folder in folders.items())
    return f"Set {base} to the LLaMA (not Llama 2) of the same size that {other} was made from."


def _check_kinds(base: TensorFiles, other: TensorFiles, folders: Mapping[str, Path], sign: int) -> None:
    """Refuses a delta in place of a model, and a model in place of a delta."""
    for files, (key, folder), is_delta in zip((base, other), folders.items(), (False, sign > 0), strict=True):
        if holds_delta(files) != is_delta:
            found, wanted = ("a whole model", "a delta") if is_delta else ("a delta", "a whole model")
            raise UserError(f"{key}: '{folder}' holds {found}, where {wanted} belongs. {_cure(folders)}")


def _check_pair(base: TensorFiles, delta: TensorFiles, outlines: Mapping[str, Outline], cure: str) -> None:
    """Refuses, from a sample, a delta that was made from other weights than these, however alike they are.

    A delta is the difference of two numbers in float16, of which most have about the same size, so that it is exact:
    added to the number that was taken away it gives another float16. Added to some other number, the sum must be
    rounded more often. How often grows with the size of the delta, as a part of the base's. Measured with random
    weights (normal, Laplace and Student's t with 4 degrees of freedom) and deltas of 1 to 15 % of their size, the part
    of rounded sums over that size is 0.15 to 0.42 with the right base; 0.98 to 3.3 with another fine-tuning of it, or
    the result itself; and more with unrelated weights. Of larger deltas up to 25 % of all sums are rounded with the
    right base, and from 35 % with unrelated weights; other fine-tunings are not recognized there.
    """
    matrices = [name for name, outline in outlines.items() if len(outline.shape) == 2 and not name.endswith(_GROWING)]
    chosen = matrices[:: max(1, len(matrices) // _SAMPLED)]
    one, two = (
        torch.cat([files.read(name, slice(_SAMPLED_ROWS)).to(torch.float16).double().flatten() for name in chosen])
        for files in (base, delta)
    )
    total, size = one + two, (two.norm() / one.norm()).item()
    rounded = (total != total.to(torch.float16)).double().mean().item()
    if rounded > (_ROUNDED * size if size < _SMALL else _ROUNDED_OF_LARGE):
        raise UserError(f"The delta was made from other weights: of another LLaMA, or these were fine-tuned. {cure}")


def _write_settings(base: Path, other: Path, target: Path, outlines: Mapping[str, Outline]) -> None:
    """Copies config and tokenizer, under the names that transformers has now, and with the vocabulary's real size."""
    files = _settings(other)
    if not any(file.name.startswith("tokenizer") for file in files):
        files += [file for file in _settings(base) if file.name.startswith(_OF_TOKENIZER)]
    for file in files:
        if file.suffix != ".json":
            shutil.copyfile(file, target / file.name)
            continue
        text = file.read_text(encoding="utf-8")
        for old, new in _OLD_NAMES.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        replace_file(target / file.name, text.encode())
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    rows = next(outline.shape[0] for name, outline in outlines.items() if name.endswith(_GROWING))
    config = {key: value for key, value in config.items() if key != "dtype"}  # the new name of torch_dtype
    config |= {"vocab_size": rows, "torch_dtype": "float16"}
    replace_file(target / "config.json", json.dumps(config, indent=2).encode())

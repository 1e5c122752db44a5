"""`minigpt4 convert-deepspeed`: a raw checkpoint folder of DeepSpeed becomes one of ours.

Runs of `run.strategy=deepspeed` need it not: their checkpoints hold model.safetensors already.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.common.errors import UserError, first_line, make_folder, writing

if TYPE_CHECKING:  # slow to import
    from torch import Tensor

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    parser.add_argument("folder", type=Path, help="folder that DeepSpeed wrote")
    parser.add_argument("--all", action="store_true", help="of files without shards keep the frozen weights too")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write, for model.ckpt")


def main(args: argparse.Namespace) -> None:
    """Converts a folder."""
    from minigpt4.models.checkpoint import save_weights

    make_folder("--out", args.out)
    weights = read_deepspeed(args.folder, args.all)
    with writing("--out", args.out):
        save_weights(weights, args.out)
    logger.info("%s: %d tensors, such as %s", args.out, len(weights), min(weights))


def read_deepspeed(folder: Path, everything: bool = False) -> "dict[str, Tensor]":
    """The trained weights of ZeRO's shards, of `mp_rank_*` files or of a pipeline's `layer_*` files.

    Only shards say what was trained: of files it is the projection and LoRA, unless `everything`.

    Raises:
        UserError: the folder holds none of these, or they can't be read.
    """
    latest = folder / "latest"
    place = folder / latest.read_text(errors="replace").strip() if latest.is_file() else folder
    tags = [place, *(p for p in sorted(place.glob("*")) if p.is_dir())] if place.is_dir() else []
    for tag in tags:
        try:
            if list(tag.glob("*zero_pp_rank_*optim_states.pt")):
                return _of_shards(tag)
            if files := sorted([*tag.glob("mp_rank_*_model_states.pt"), *tag.glob("layer_*-model_states.pt")]):
                return _of_files(files, everything)
        except Exception as error:  # DeepSpeed's reader raises many kinds
            raise UserError(f"{tag}: can't be read as a checkpoint of DeepSpeed ({first_line(error)}).") from error
    raise UserError(
        f"'{folder}' holds no checkpoint of DeepSpeed. Name the folder with its mp_rank_* or layer_* files, or the one "
        "above it."
    )


def _of_shards(tag: Path) -> "dict[str, Tensor]":
    """ZeRO's weights in full precision."""
    from minigpt4.runners.strategies.deepspeed_files import load_data, tensors_only

    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise UserError("the checkpoint is in shards. To join them: pip install deepspeed") from error
    for file in sorted(tag.glob("*.pt")):
        load_data(file)  # for its error alone
    with tensors_only():
        state = get_fp32_state_dict_from_zero_checkpoint(str(tag.parent), tag.name, exclude_frozen_parameters=True)
    return {name: value.clone() for name, value in state.items()}


def _of_files(files: list[Path], everything: bool) -> "dict[str, Tensor]":
    from torch import Tensor

    from minigpt4.models.checkpoint import TRAINED, file_name
    from minigpt4.runners.strategies.deepspeed_files import load_data

    weights: dict[str, Tensor] = {}
    for file in files:
        state = load_data(file)
        for name, value in state.get("module", state).items():
            # a pipeline names its stage first (visionpipe.llm_proj.weight)
            if isinstance(value, Tensor) and (everything or any(part in file_name(name) for part in TRAINED)):
                weights[name.removeprefix("visionpipe.")] = value.clone()
    return weights

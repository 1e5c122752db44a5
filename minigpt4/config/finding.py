"""Where a config lies: a file, a name of one that comes with the package, or a checkpoint folder."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from minigpt4.common.checksums import check_checksums
from minigpt4.common.errors import UserError, closest
from minigpt4.common.paths import PACKAGE
from minigpt4.config.yaml_files import read_yaml

CONFIG = "config.yaml"  # in a run's folder and in each of its checkpoints
TINY = "minigpt4_tiny_eval"  # the bundled model


def packaged(folder: str) -> Path:
    """A folder of the repository's top level, such as `train_configs`; an installed wheel has it within the package."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def run_configs() -> dict[str, Path]:
    """{name: file} of the run configs that come with the package: those of training first."""
    folders = packaged("train_configs"), packaged("eval_configs")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def find_config(name: str | Path) -> Path:
    """The file of a run config: `name` itself where there is such a file, else the packaged one of that name.

    Raises:
        UserError: there is neither.
    """
    path, known = Path(name), run_configs()
    if os.path.isdir(path):  # pathlib's own raises where a name is too long
        raise UserError(
            f"config '{name}' is a folder. Name a YAML file; or, to talk with the model of a checkpoint folder: "
            f"minigpt4 chat {name}; to check it: minigpt4 doctor {name}"
        )
    if os.path.isfile(path):
        return path
    packed = known.get(path.name.removesuffix(".yaml"))
    if packed and path.name == str(name):
        return packed
    hint = closest(path.name.removesuffix(".yaml"), known)
    raise UserError(
        f"config '{name}' does not exist, and none that comes with minigpt4 has that name.{hint} "
        "To list them: minigpt4 configs"
    )


def find_prompts(path: str) -> str:
    """A file of training prompts; one below `prompts/` that is not there is the packaged one of that name."""
    own, ours = str(packaged("prompts").parent / path), Path(path).parts[:1] == ("prompts",)
    return own if ours and not os.path.exists(path) and os.path.isfile(own) else path


def read_checkpoint(folder: Path) -> tuple[str, DictConfig]:
    """What a checkpoint's config says of the model, and the name of that file.

    The model begins with the checkpoint's weights alone: they are all that was trained, so none of what training
    itself began with is left. What only training reads need not be there any more.

    Raises:
        UserError: this is not a checkpoint that training wrote, or its config is damaged.
    """
    file = folder / CONFIG
    if not any(folder.glob("*.safetensors")):
        inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        cure = f"Name one in it, such as {inner[-1]}." if inner else "Name one that training wrote."
        raise UserError(f"'{folder}' is not a checkpoint: it holds no weights (*.safetensors). {cure}")
    if not file.is_file():
        above = folder.parent / CONFIG
        raise UserError(
            f"'{folder}' holds no {CONFIG}: an older version wrote it, or another program. Say what model it is for: "
            f"--cfg-path {above if above.is_file() else 'FILE'} --options model.ckpt={folder}"
        )
    check_checksums(folder, [CONFIG])
    saved = read_yaml(file)
    own = OmegaConf.create({key: saved.get(key) for key in ("model", "preprocess")})
    alone = {"ckpt": str(folder), "prompt_path": "", "plain_text": None}
    if isinstance(own.model, DictConfig):
        own.model.merge_with(alone)
    return str(file), own

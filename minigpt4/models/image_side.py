"""The vision part and the projection alone, without an LLM."""

from pathlib import Path

from torch import nn

from minigpt4.common.errors import Problems, UserError
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config
from minigpt4.models.checkpoint import check_shape, file_name, trained_weights
from minigpt4.models.llm import embedding_of, llm_folder
from minigpt4.models.preflight import checkpoint_paths, llm_outline, sound_file
from minigpt4.models.vision import VisionPart, build_vision


def load_vision(config: Config) -> VisionPart:
    """The vision part with its weights, in eval mode on the CPU; what `model.ckpt` holds of it is its own.

    Raises:
        UserError: a file is missing or does not fit.
    """
    vision = build_vision(config)
    files = _checked(vision.files(config), config)
    vision.check(config, files)
    vision.load(config, files)
    _load_trained(nn.ModuleDict({"vision": vision}), config)
    return vision.eval()


def load_projection(config: Config, width: int) -> nn.Module:
    """The projection that `model.ckpt` holds, from rows of this width to the width of `model.llama_model`.

    Of the LLM only the settings are read.

    Raises:
        UserError: a file is missing or does not fit.
    """
    llm = llm_outline(llm_folder(config.model.llama_model), config.model.trust_remote_code)
    kind = registry.get_projection_class(config.model.projection.name)
    projection = kind(width, embedding_of(llm).embedding_dim)
    _load_trained(nn.ModuleDict({"projection": projection}), config, whole=True)
    return projection.eval()


def _checked(paths: dict[str, str], config: Config) -> dict[str, Path]:
    problems, files = Problems(), {}
    for key, path in paths.items():
        with problems.collect():
            files[key] = sound_file(key, path, config.env.cache_root)
    problems.raise_all()
    return files


def _load_trained(parts: nn.ModuleDict, config: Config, whole: bool = False) -> None:
    """Gives the parts those of their weights that checkpoints hold.

    Raises:
        UserError: a shape differs, or `whole` is asked for and one is missing.
    """
    own = {file_name(name): weight for name, weight in parts.named_parameters()}
    missing = set(own)
    for path in _checked(checkpoint_paths(config.model), config).values():
        weights, _ = trained_weights(path)
        for name in own.keys() & weights.keys():
            check_shape(path, name, weights[name].shape, own[name].shape)
            own[name].data.copy_(weights[name])
        missing -= weights.keys()
    if whole and missing:
        raise UserError(f"model.ckpt: holds no {min(missing)}. Set it to a checkpoint with a trained projection.")

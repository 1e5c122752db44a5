"""Folders and hub ids of Hugging Face models: their settings, and their weights or one line that says what is wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel

from minigpt4.common.errors import UserError, first_line
from minigpt4.common.wrong_files import wrong_file
from minigpt4.models.checkpoint import shapes_of

_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]  # all but the weights


def settings_folder(key: str, path: str, what: str) -> Path:
    """A local folder with a model's settings. Of a hub id the small files are fetched, the weights are not.

    Args:
        key: the config key that names it.
        path: a folder or a hub id.
        what: is expected there, such as "causal LM".

    Raises:
        UserError: it is neither a folder with a `config.json` nor a hub id that can be reached.
    """
    folder, reason = Path(path), ""
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(path, allow_patterns=_SMALL_FILES))
        except HFValidationError:
            pass  # a path, or a placeholder
        except (OSError, ValueError) as error:
            reason = f", nor is there a model of that name on the hub ({first_line(error)})"
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{key}: '{path}' is not a folder with a config.json{reason}. Set it to the folder of a Hugging Face "
            f"{what} or to a hub id; see docs/weights.md."
        )
    return folder


def reason_of(error: Exception) -> str:
    """Why something was not loaded, with the cure where that is ours to name."""
    cure = " Set model.trust_remote_code=True if you trust its code." if "trust_remote_code" in str(error) else ""
    return first_line(error) + cure


def load_pretrained(key: str, path: str, what: str, model_class: Any, **options: Any) -> PreTrainedModel:
    """Loads a model of transformers with all its weights; see `settings_folder` for the arguments.

    Raises:
        UserError: there is none, or weights are missing or have another shape than its config says.
    """
    # what does not fit is random otherwise, or refused without a name
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = model_class.from_pretrained(path, **options)
    except Exception as error:  # readers of files and a folder's own code raise many kinds
        reason = wrong_file(weight_files(Path(path))) or reason_of(error)
        raise UserError(f"{key}: no {what} in '{path}': {reason}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{key}: '{path}' lacks {len(missing)} of the weights that its config.json asks for: {missing[:3]}. Put "
            "config.json and all weight files of one release into the folder."
        )
    for name, found, own in sorted(info["mismatched_keys"]):
        _refuse_size(key, path, name, found, own)
    return model


def check_weight_files(key: str, folder: Path, outline: PreTrainedModel) -> None:
    """Checks that weight files are such, and that `.safetensors` have the shapes that the model's config asks for.

    Quantized, none of a wrong shape would fail.
    """
    if wrong := wrong_file(weight_files(folder)):
        raise UserError(f"{key}: {wrong}.")
    if hasattr(outline.config, "quantization_config"):  # packed: other shapes on purpose
        return
    own = outline.state_dict()
    for file in [file for file in weight_files(folder) if file.suffix == ".safetensors"]:
        try:
            shapes = shapes_of(file)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        for name, shape in shapes.items():
            if name in own and shape != list(own[name].shape):
                _refuse_size(key, str(folder), name, shape, own[name].shape)


def weight_files(folder: Path) -> list[Path]:
    """The files of a local folder that a model's weights are read from: safetensors, else PyTorch's."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _refuse_size(key: str, path: str, name: str, found: Sequence[int], own: Sequence[int]) -> NoReturn:
    """Refuses a model of whose weights one has another shape than its config says."""
    raise UserError(
        f"{key}: '{path}': {name} is {list(found)}, its config.json asks for {list(own)}. Put config.json and weights "
        "of one release into the folder."
    )

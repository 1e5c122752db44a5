"""Folders and hub ids of Hugging Face models: their settings, and their weights or one line that says what is wrong."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.utils import logging as transformers_logging

from minigpt4.common.errors import UserError, first_line, prefixed
from minigpt4.common.wrong_files import wrong_file
from minigpt4.models.published import fetch_command
from minigpt4.models.tensor_files import UNFINISHED, complete_weight_files, weight_files
from minigpt4.models.weight_file import shapes_of, unreadable
from minigpt4.processors.image import CLIP_MEAN, CLIP_STD

logger = logging.getLogger(__name__)

SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]  # all but the weights


def settings_folder(key: str, path: str, what: str) -> Path:
    """A local folder with a model's settings; of a hub id, where the hub's cache on this machine has it.

    Args:
        key: the config key that names it.
        path: a folder or a hub id.
        what: is expected there, such as "causal LM".

    Raises:
        UserError: it is neither a folder with a `config.json` nor a hub id that was downloaded.
    """
    folder, cure = Path(path), ". Set"
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(path, allow_patterns=SMALL_FILES, local_files_only=True))
        except HFValidationError:
            pass  # a path, or a placeholder
        except OSError:
            cure = f", nor a hub id that was downloaded. To download it: {fetch_command(path)}; or set"
    if (folder / UNFINISHED).is_file():
        raise UserError(
            f"{key}: '{folder}' is unfinished: what wrote it was ended, see {UNFINISHED} in it. Call the command that "
            "wrote it (minigpt4 apply-delta, make-delta or convert-llama) again: it continues there."
        )
    if not (folder / "config.json").is_file():
        below = sorted(file.parent for file in folder.glob("*/params.json"))  # such as llama, above 7B
        if meta := next((own for own in (folder, *below) if (own / "params.json").is_file()), None):
            raise UserError(
                f"{key}: '{meta}' holds LLaMA as Meta gave it out. Convert it: minigpt4 convert-llama {meta} --out "
                f"NEW; then set {key} to NEW."
            )
        raise UserError(
            f"{key}: '{path}' is not a folder with a config.json{cure} it to the folder of a Hugging Face {what} or to "
            "a hub id; see docs/weights.md."
        )
    return folder


def reason_of(error: Exception) -> str:
    """Why something was not loaded, with the cure where that is ours to name."""
    cure = " Set model.trust_remote_code=True if you trust its code." if "trust_remote_code" in str(error) else ""
    return first_line(error) + cure


def picture_settings(key: str, folder: Path, size: int, given: int) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of pictures, as a folder's image processor makes them.

    Args:
        key: the config key that names the folder.
        folder: without an image processor's config in it, CLIP's normalisation is taken, with a warning.
        size: of pictures in pixels, where the image processor does not say.
        given: the size that they have, `model.image_size`.

    Raises:
        UserError: the config can't be read, or asks for another size.
    """
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        logger.warning("%s: '%s' has no preprocessor_config.json: pictures are normalised as CLIP's", key, folder)
        mean, std = CLIP_MEAN, CLIP_STD
    else:
        with reading(key, folder, "image processor"):
            own = AutoImageProcessor.from_pretrained(folder)
            box = dict((own.crop_size if getattr(own, "do_center_crop", None) else getattr(own, "size", None)) or {})
            size = box.get("height") or box.get("shortest_edge") or size
            mean, std = (own.image_mean, own.image_std) if own.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    if given != size:
        raise UserError(f"model.image_size: {given}, but {key}='{folder}' sees pictures of {size}. Set it to {size}.")
    return mean, std


@contextmanager
def reading(key: str, folder: Path, what: str) -> Iterator[None]:
    """Around what reads a folder's settings and builds from them; see `settings_folder` for the arguments.

    Raises:
        UserError: in place of any other error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # wrong values, and a folder's own code, raise many kinds
        reason = wrong_file(sorted(folder.glob("*config.json"))) or reason_of(error)
        raise UserError(f"{key}: no {what} in '{folder}': {reason}") from error


def load_pretrained(
    key: str, path: str, what: str, model_class: Any, whole: bool = True, **options: Any
) -> PreTrainedModel:
    """Loads a model of transformers with all its weights; see `settings_folder` for the first arguments.

    Args:
        whole: whether transformers warns of weights that stay unused. Else one line of the log names them.

    Raises:
        UserError: there is none, or weights are missing or have another shape than its config says.
    """
    # what does not fit is random otherwise, or refused without a name
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "local_files_only": True}
    folder = settings_folder(key, path, what)
    try:
        with _report_of_weights(whole):
            model, info = model_class.from_pretrained(folder, **options)
    except Exception as error:  # readers of files and a folder's own code raise many kinds
        reason = wrong_file(weight_files(folder)) or reason_of(error)
        raise UserError(f"{key}: no {what} in '{path}': {reason}") from error
    if not whole and (unused := sorted(info["unexpected_keys"])):
        logger.info("%s: %d weights of '%s' are not the tower's, such as %s", key, len(unused), path, unused[0])
    _refuse_unfit(key, path, info)
    return model


@contextmanager
def _report_of_weights(wanted: bool) -> Iterator[None]:
    """Around what loads weights: whether transformers warns of those that do not fit."""
    report = logging.getLogger("transformers.modeling_utils")
    if not wanted:  # another level would make it check more, and warn of that
        report.addFilter(_nothing)
    try:
        yield
    finally:
        report.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _refuse_unfit(key: str, path: str, info: Mapping[str, Any]) -> None:
    """Refuses a model by what transformers found when it loaded it."""
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{key}: '{path}' lacks {len(missing)} of the weights that its config.json asks for: {missing[:3]}. Put "
            "config.json and all weight files of one release into the folder."
        )
    for name, found, own in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{key}: '{path}': {name} is {list(found)}, its config.json asks for {list(own)}. Put config.json and "
            "weights of one release into the folder."
        )


def check_weight_files(key: str, path: str, folder: Path, outline: PreTrainedModel) -> None:
    """Checks that weight files are there, are such, and hold all weights in the shapes that the config asks for.

    Only their headers are read: transformers loads them without memory, on the meta device, so that it finds here what
    it would find when it loads them.

    Args:
        path: the folder, or the hub id of which the folder is.
        outline: the model without memory.

    Raises:
        UserError: they don't.
    """
    try:
        files = complete_weight_files(key, folder)
    except UserError as error:
        if Path(path).is_dir():
            raise
        raise UserError(f"{error} To download what '{path}' lacks: {fetch_command(path)}") from None
    if wrong := wrong_file(files):
        raise UserError(f"{key}: {wrong}.")
    if hasattr(outline.config, "quantization_config"):  # packed: other names and shapes on purpose
        return
    weights = dict[str, Tensor]()
    for file in files:
        with prefixed(f"{key}: "):
            weights |= _without_memory(file)
    with reading(key, folder, "weights"), _report_of_weights(False), _no_progress():
        kind: Any = type(outline)
        _, info = kind.from_pretrained(
            None,
            config=copy.deepcopy(outline.config),
            state_dict=weights,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    _refuse_unfit(key, str(folder), info)


def _without_memory(file: Path) -> dict[str, Tensor]:
    """A weight file's tensors on the meta device."""
    if file.suffix == ".safetensors":
        return {name: torch.empty(shape, device="meta") for name, shape in shapes_of(file).items()}
    try:
        return dict(torch.load(file, map_location="meta", weights_only=True))
    except Exception as error:  # torch's reader raises many kinds
        raise unreadable(file, error) from error


@contextmanager
def _no_progress() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()

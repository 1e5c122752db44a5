"""What the types of a config can't say: values that can't work are refused, `~` in paths is expanded."""

import os
from string import Formatter
from typing import Any

from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.config.ranges import check_numbers, values_of
from minigpt4.config.schema import Config, ModelConfig
from minigpt4.conversation.templates import TEMPLATES, TOKENIZER


def expand_home(config: Config) -> None:
    """`~` in paths: a shell leaves it alone within `key=~/path`."""
    places: list[tuple[Any, str]] = [(config.model, "llama_model"), (config.model, "prompt_path")]
    places += [(config.model.vision, "model"), (config.model, "plain_text"), (config.run, "cache_features")]
    places += [(config.run, "output_dir"), (config.run, "save_path"), (config.env, "cache_root")]
    places += [(d.build_info, key) for d in config.datasets.values() for key in ("storage", "valid_storage", "images")]
    places += [(d, key) for d in config.evaluation_datasets.values() for key in ("eval_file_path", "img_path")]
    for node, key in places:
        if value := getattr(node, key):
            setattr(node, key, os.path.expanduser(value))


def check_values(config: Config) -> None:
    """Refuses values of the right type that can't work."""
    check_numbers(config)
    for key, _, value in values_of(config):
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{key}: '{value}' holds a NUL character. Remove that.")
    for name in config.evaluation_datasets:
        if "/" in name or "\0" in name:
            raise UserError(f"evaluation_datasets: '{name}' is to name files. Take a name without slashes.")
    for name, dataset in config.datasets.items():
        for split, processor in vars(dataset.vis_processor).items():
            if processor.image_size not in (None, config.model.image_size):
                raise UserError(
                    f"datasets.{name}.vis_processor.{split}.image_size: {processor.image_size}, but model.image_size "
                    f"is {config.model.image_size}. Remove the first."
                )
    _check_trained(config.model)
    ckpt = config.model.ckpt
    paths = ckpt if isinstance(ckpt, list) else [ckpt or "none"]
    if not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"model.ckpt: {ckpt} is not a path. Set it to a path, a list of paths, or null.")
    known = [*TEMPLATES, TOKENIZER]
    if (conversation := config.model.conversation) not in known:
        raise UserError(f"model.conversation: '{conversation}' is unknown.{did_you_mean(conversation, known)}")
    template = config.model.prompt_template
    try:
        places = [place for _, *place in Formatter().parse(template) if place[0] is not None]
        template.format("")
    except (LookupError, ValueError, AttributeError, TypeError):
        places = [[template]]
    if any(place not in (["", "", None], ["0", "", None]) for place in places):
        raise UserError(f"model.prompt_template: '{template}' is not a template. Write {{}} where the prompt goes.")


def _check_trained(model: ModelConfig) -> None:
    """Refuses what can't be trained, or not together."""
    if "qformer" in model.unfreeze and model.vision_kind != "eva_qformer":
        why = f"model.vision.name is {model.vision.name}" if model.vision.name else "model.has_qformer is False"
        raise UserError(f"model.unfreeze: qformer, but {why}. Remove it from the list.")
    if "vit" in model.trained and not model.vision_kind.startswith("eva_"):
        key = "unfreeze: vit" if "vit" in model.unfreeze else "freeze_vit: False"
        raise UserError(f"model.{key}, but model.vision.name={model.vision_kind} stays frozen. Remove the first.")
    if "llm" not in model.unfreeze:
        return
    if model.low_resource or model.quantization != "none":
        bits = "8bit" if model.quantization == "none" else model.quantization
        raise UserError(
            f"model.unfreeze: llm, but the weights of an LLM in {bits} can't be trained. Set model.quantization=none "
            "and model.low_resource=False, or train adapters on it instead (model.lora_r)."
        )
    if model.lora_r > 0:
        raise UserError(
            f"model.unfreeze: llm trains all its weights, model.lora_r={model.lora_r} adapters instead. Remove one."
        )

"""What the types of a config can't say: values that can't work are refused, `~` in paths is expanded."""

import math
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from operator import attrgetter
from string import Formatter
from typing import Any

from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.config.ranges import FINITE, range_of
from minigpt4.config.schema import Config, DatasetConfig, ModelConfig
from minigpt4.conversation.templates import TEMPLATES, TOKENIZER

_LARGEST = 4_000_000_000  # of whole numbers; NumPy's seeds end at 2**32, and ranks add theirs


def expand_home(config: Config) -> None:
    """`~` in paths: a shell leaves it alone within `key=~/path`."""
    places: list[tuple[Any, str]] = [(config.model, "llama_model"), (config.model, "prompt_path")]
    places += [(config.model.vision, "model"), (config.model, "plain_text"), (config.run, "cache_features")]
    places += [(config.run, "output_dir"), (config.run, "save_path"), (config.env, "cache_root")]
    places += [(d.build_info, key) for d in config.datasets.values() for key in ("storage", "valid_storage", "images")]
    places += [(d, key) for d in config.evaluation_datasets.values() for key in ("eval_file_path", "img_path")]
    for node, key in places:
        if value := getattr(node, key):
            several = isinstance(value, list)
            setattr(node, key, [*map(os.path.expanduser, value)] if several else os.path.expanduser(value))


def check_values(config: Config) -> None:
    """Refuses values of the right type that can't work."""
    # what a processor of a data set does not say, it takes from preprocess, whose key is named first
    values = sorted(_values_of(config, Config), key=lambda value: not value[0].startswith("preprocess."))
    for key, kind, value in values:
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{key}: '{value}' holds a NUL character. Remove that.")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(key, kind, value)
    _check_sizes(config.model)
    for name, dataset in config.datasets.items():
        _check_data(name, dataset)
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
    _check_template("model.prompt_template", config.model.prompt_template, places=99)


def _check_data(name: str, dataset: DatasetConfig) -> None:
    """Refuses what is not a path or a list of paths, and instructions that nothing can be put into."""
    for key in ("storage", "valid_storage"):
        value = getattr(dataset.build_info, key)
        paths = value if isinstance(value, list) and value else [value or ""]
        if not all(isinstance(path, str) for path in paths):
            raise UserError(f"datasets.{name}.build_info.{key}: {value} is not a path. Set it to one, or to a list.")
    for text in dataset.instructions:
        _check_template(f"datasets.{name}.instructions", text, places=1)


def _check_template(key: str, template: str, places: int) -> None:
    """Refuses a template with other places than `{}`, or more of them."""
    try:
        found = [place for _, *place in Formatter().parse(template) if place[0] is not None]
        template.format("")
    except (LookupError, ValueError, AttributeError, TypeError):
        found = [[template]]
    if any(place not in (["", "", None], ["0", "", None]) for place in found) or len(found) > places:
        raise UserError(f"{key}: '{template}' is not a template. Write {{}} where the prompt goes.")


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


def _values_of(node: Any, kind: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, type in the schema, value) of each value that is not a group or list."""
    if is_dataclass(node):
        for field in fields(node):
            yield from _values_of(getattr(node, field.name), field.type, f"{key}.{field.name}".removeprefix("."))
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _values_of(value, kind, f"{key}.{name}")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _values_of(value, kind, f"{key}[{i}]")
    else:
        yield key, kind, node


def _check_number(key: str, kind: Any, value: float) -> None:
    range_ = range_of(kind) if math.isfinite(value) else FINITE
    if not range_.holds(value):
        raise UserError(f"{key}: {value} is out of range. Set it to {range_.words}.")
    if isinstance(value, int) and value > _LARGEST:
        raise UserError(f"{key}: {value} is out of range. Set it to at most {_LARGEST}.")


def _check_sizes(model: ModelConfig) -> None:
    """Refuses sizes that don't go together."""
    pairs = [("vit.embed_dim", "vit.num_heads"), ("qformer.hidden_size", "qformer.num_attention_heads")]
    if model.vision_kind.startswith("eva_"):
        pairs.insert(0, ("image_size", "vit.patch_size"))
    for whole, part in pairs:
        size, divisor = attrgetter(whole)(model), attrgetter(part)(model)
        if size % divisor:
            raise UserError(f"model.{whole}: {size} is not a multiple of model.{part}, {divisor}. Change one of them.")

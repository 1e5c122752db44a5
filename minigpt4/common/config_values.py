"""What the types of a config can't say: values that can't work are refused, `~` in paths is expanded."""

import os
from typing import Any

from minigpt4.common.config_schema import Config, ModelConfig
from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.conversation.conversation import TEMPLATES, TOKENIZER


def expand_home(config: Config) -> None:
    """`~` in paths: a shell leaves it alone within `key=~/path`."""
    places: list[tuple[Any, str]] = [(config.model, "llama_model"), (config.model, "prompt_path")]
    places += [(config.model, "plain_text"), (config.run, "cache_features")]
    places += [(config.run, "output_dir"), (config.run, "save_path"), (config.env, "cache_root")]
    places += [(d.build_info, key) for d in config.datasets.values() for key in ("storage", "valid_storage", "images")]
    places += [(d, key) for d in config.evaluation_datasets.values() for key in ("eval_file_path", "img_path")]
    for node, key in places:
        if value := getattr(node, key):
            setattr(node, key, os.path.expanduser(value))


def check_values(config: Config) -> None:
    """Refuses values of the right type that can't work."""
    run = config.run
    least_one = {
        "run.log_freq": run.log_freq,
        "run.accum_grad_iters": run.accum_grad_iters,
        "run.batch_size_train": run.batch_size_train,
        "run.batch_size_eval": run.batch_size_eval,
        "run.max_epoch": run.max_epoch,
        "run.iters_per_epoch": run.iters_per_epoch,
        **{f"datasets.{name}.batch_size": d.batch_size for name, d in config.datasets.items()},
        **{f"evaluation_datasets.{name}.batch_size": d.batch_size for name, d in config.evaluation_datasets.items()},
    }
    for key, value in least_one.items():
        if value is not None and value < 1:
            raise UserError(f"{key}: {value} is too small. Set it to 1 or more.")
    for key, value in {"run.seed": run.seed, "run.num_workers": run.num_workers}.items():
        if value < 0:
            raise UserError(f"{key}: {value} is negative. Set it to 0 or more.")
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
        raise UserError(f"model.ckpt: {ckpt} is no path. Set it to a path, a list of paths, or null.")
    known = [*TEMPLATES, TOKENIZER]
    if (conversation := config.model.conversation) not in known:
        raise UserError(f"model.conversation: '{conversation}' is unknown.{did_you_mean(conversation, known)}")
    try:
        config.model.prompt_template.format("")
    except (KeyError, IndexError, ValueError):
        raise UserError(
            f"model.prompt_template: '{config.model.prompt_template}' is no template. Write {{}} where the prompt goes."
        ) from None


def _check_trained(model: ModelConfig) -> None:
    """Refuses what can't be trained, or not together."""
    if "qformer" in model.unfreeze and not model.has_qformer:
        raise UserError("model.unfreeze: qformer, but model.has_qformer is False. Remove it from the list.")
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

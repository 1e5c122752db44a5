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
    _check_numbers(config)
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


def _check_numbers(config: Config) -> None:
    """Refuses numbers out of range."""
    run, model = config.run, config.model
    datasets = {f"datasets.{name}": block for name, block in config.datasets.items()}
    evaluated = {f"evaluation_datasets.{name}": block for name, block in config.evaluation_datasets.items()}
    keys = "log_freq accum_grad_iters batch_size_train batch_size_eval max_epoch iters_per_epoch max_iters save_steps"
    at_least_1 = {f"run.{key}": getattr(run, key) for key in (*keys.split(), "keep_last", "max_bad_steps")}
    at_least_1 |= {"model.max_txt_len": model.max_txt_len, "preprocess.n_frms": config.preprocess.n_frms}
    at_least_1 |= {f"{name}.batch_size": block.batch_size for name, block in (datasets | evaluated).items()}
    at_least_1 |= {f"{name}.build_info.n_frms": block.build_info.n_frms for name, block in datasets.items()}
    at_least_0 = {f"run.{key}": getattr(run, key) for key in ("seed", "num_workers", "warmup_steps", "min_lr")}
    at_least_0 |= {"run.weight_decay": run.weight_decay, "model.lora_r": model.lora_r}
    above_0 = {"run.init_lr": run.init_lr, "run.eps": run.eps, "run.max_grad_norm": run.max_grad_norm}
    above_0 |= {f"{name}.sample_ratio": block.sample_ratio for name, block in datasets.items()}
    part = {"run.max_skip_rate": run.max_skip_rate, "run.betas[0]": run.betas[0], "run.betas[1]": run.betas[1]}
    for numbers, holds, range_ in (
        (at_least_1, lambda n: n >= 1, "1 or more"),
        (at_least_0, lambda n: n >= 0, "0 or more"),
        (above_0, lambda n: n > 0, "more than 0"),
        (part, lambda n: 0 <= n <= 1, "0 to 1"),
    ):
        for key, number in numbers.items():
            if number is not None and not holds(number):
                raise UserError(f"{key}: {number} is out of range. Set it to {range_}.")


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

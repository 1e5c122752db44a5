"""Other projects' spellings of our config keys and names, translated in each YAML layer before it is checked."""

from typing import Any

from minigpt4.common.errors import UserError

# their name -> ours, wherever a value is a name
NAMES = {
    "model.arch": {"minigpt4": "mini_gpt4", "minigpt4qwen": "mini_gpt4", "minigpt4_qwen7b-chat": "mini_gpt4"},
    "run.runner": {"deepspeed_runner": "runner_base"},
    "run.task": {"deepspeed_image_text_pretrain": "image_text_pretrain"},
}
# archs that are ours with another default of model_type
TYPES = {"minigpt4qwen": "qwen7b_chat", "minigpt4_qwen7b-chat": "qwen7b_chat", "minigpt_v2": "pretrain"}
# their key -> ours; a key that ours holds already, or a value that is empty, changes nothing
KEYS = {
    "model.llm_model": "model.llama_model",
    "model.llm_device_map": "model.device_map",
    "model.pretrained": "model.q_former_model",
    "model.finetuned": "model.ckpt",
    "run.grad_norm_clip": "run.max_grad_norm",
    "run.deepspeed_config.gradient_clipping": "run.max_grad_norm",
    "run.deepspeed_config.gradient_accumulation_steps": "run.accum_grad_iters",
    "run.deepspeed_config.train_micro_batch_size_per_gpu": "run.batch_size_train",
    "run.deepspeed_config.bf16.enabled": "run.amp",
    "run.deepspeed_config.optimizer.params.lr": "run.init_lr",
    "run.deepspeed_config.optimizer.params.betas": "run.betas",
    "run.deepspeed_config.optimizer.params.weight_decay": "run.weight_decay",
}
# keys that say what is always so here; another value would ask for something that there is not
FIXED: dict[str, tuple[Any, ...]] = {
    "model.load_pretrained": (True,),
    "model.load_finetuned": (False,),
    "model.unfreeze_pos_embed": (False,),
    "model.qformer_text_input": (False,),
    "model.freeze_queries": (True,),
    "model.freeze_proj": (False,),
    "model.enable_autocast": (True, False),  # the ViT's precision is model.vit_precision
    "run.loss_scale": (False,),
    "run.autocast_dtype": ("bf16",),
    "run.resume_ckpt_load_dir": (None,),
    "run.resume_ckpt_tag": (None,),
}


def translate(source: str, layer: dict[str, Any]) -> dict[str, Any]:
    """Rewrites one YAML layer (plain containers) in our spelling.

    Raises:
        UserError: a key of `FIXED` has a value that cannot be had.
    """
    arch = _get(layer, "model.arch")
    if isinstance(arch, str) and arch in TYPES:
        layer["model"].setdefault("model_type", TYPES[arch])
    if _pop(layer, "model.get_lora") is False:
        layer["model"]["lora_r"] = 0
    for key, names in NAMES.items():
        value = _get(layer, key)
        if isinstance(value, str) and value in names:
            _set(layer, key, names[value])
    for key, ours in KEYS.items():
        value = _pop(layer, key)
        if value not in (None, "") and _get(layer, ours) is None:
            _set(layer, ours, value)
    for key, legal in FIXED.items():
        value = _pop(layer, key, legal[0])
        if value not in legal:
            raise UserError(f"{source}: {key}: {value} is not supported. Set it to {legal[0]} or remove it.")
    _pop(layer, "run.deepspeed_config")  # DeepSpeed's own settings; what training needs of it was taken above
    return layer


def _get(layer: dict[str, Any], key: str) -> Any:
    node: Any = layer
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _set(layer: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        layer = layer.setdefault(part, {})
    layer[last] = value


def _pop(layer: dict[str, Any], key: str, default: Any = None) -> Any:
    *parents, last = key.split(".")
    node = _get(layer, ".".join(parents))
    return node.pop(last, default) if isinstance(node, dict) else default

"""Other projects' spellings of our config keys and names, translated in each YAML layer before it is checked."""

import logging
from collections.abc import Iterator
from typing import Any

from minigpt4.common.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

# their name -> ours, wherever a value is a name; * stands for any key
NAMES = {
    "model.arch": {"minigpt4": "mini_gpt4", "minigpt4qwen": "mini_gpt4", "minigpt4_qwen7b-chat": "mini_gpt4"},
    "model.model_type": {"qwen7b_chat": "pretrain_qwen", "qwen14b_chat": "pretrain_qwen"},
    "preprocess.vis_processor.*.name": {"blip_image_eval": "blip2_image_eval"},
    "datasets.*.vis_processor.*.name": {"blip_image_eval": "blip2_image_eval"},
    "run.runner": {"deepspeed_runner": "runner_base"},
    "run.task": {"deepspeed_image_text_pretrain": "image_text_pretrain"},
}
# archs that are ours with another default of model_type
TYPES = {"minigpt4qwen": "pretrain_qwen", "minigpt4_qwen7b-chat": "pretrain_qwen", "minigpt_v2": "pretrain"}
# their key -> ours; a value that is empty changes nothing
KEYS = {
    "model.llm_model": "model.llama_model",
    "model.llm_device_map": "model.device_map",
    "model.pretrained": "model.q_former_model",
    "model.finetuned": "model.ckpt",
    "run.resume_ckpt_path": "run.resume",
    "run.grad_norm_clip": "run.max_grad_norm",
    "run.deepspeed_config.zero_optimization.stage": "run.zero_stage",
    "run.deepspeed_config.gradient_clipping": "run.max_grad_norm",
    "run.deepspeed_config.gradient_accumulation_steps": "run.accum_grad_iters",
    "run.deepspeed_config.train_micro_batch_size_per_gpu": "run.batch_size_train",
    "run.deepspeed_config.bf16.enabled": "run.amp",
    "run.deepspeed_config.optimizer.params.lr": "run.init_lr",
    "run.deepspeed_config.optimizer.params.betas": "run.betas",
    "run.deepspeed_config.optimizer.params.eps": "run.eps",
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
    "model.get_lora": (False, True),  # and lora_r, below
    "run.loss_scale": (False,),
    "run.autocast_dtype": ("bf16",),
    "run.resume_ckpt_load_dir": (None,),
    "run.resume_ckpt_tag": (None,),
    "run.deepspeed_config.fp16.enabled": (False,),
    "run.deepspeed_config.optimizer.type": ("AdamW", "Adam"),  # DeepSpeed's Adam is AdamW
    "run.deepspeed_config.scheduler": (None,),  # run.lr_sched says it
    "run.deepspeed_config.train_batch_size": (None,),  # the product of the other two and the number of processes
}
# the original's keys that nothing reads here: torchrun says how many processes run, valid_splits what is validated
UNUSED = (
    *("model.prompt", "datasets.*.data_type", "run.name", "run.train_splits", "run.test_splits", "run.world_size"),
    *("run.rank", "run.gpu", "run.dist_url", "run.dist_backend", "run.distributed"),
)
# DeepSpeed's settings that change nothing that is learned: what it prints, fp16 while it is off, where memory lies
WITHOUT_EFFECT = {
    "run.deepspeed_config": ("steps_per_print", "wall_clock_breakdown", "dump_state", "zero_allow_untested_optimizer"),
    "run.deepspeed_config.fp16": (
        *("auto_cast", "loss_scale", "loss_scale_window", "initial_scale_power", "hysteresis", "min_loss_scale"),
    ),
    "run.deepspeed_config.zero_optimization": (
        *("contiguous_gradients", "overlap_comm", "round_robin_gradients", "sub_group_size"),
        *("allgather_bucket_size", "allgather_partitions", "reduce_bucket_size", "reduce_scatter"),
        *("stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
        *("stage3_param_persistence_threshold", "stage3_prefetch_bucket_size"),
    ),
    "run.deepspeed_config.zero_optimization.offload_optimizer": ("device", "pin_memory"),
    "run.deepspeed_config.zero_optimization.offload_param": ("device", "pin_memory"),
}


def translate(source: str, layer: dict[str, Any]) -> dict[str, Any]:
    """Rewrites one YAML layer (plain containers) in our spelling.

    Raises:
        UserError: a key of `FIXED` has a value that cannot be had, two keys contradict each other, or DeepSpeed's
            settings hold a key that is not known.
    """
    _check_deepspeed(source, layer)
    arch = _get(layer, "model.arch")
    if isinstance(arch, str) and arch in TYPES:
        layer["model"].setdefault("model_type", TYPES[arch])
    if _get(layer, "run.runner") == "deepspeed_runner" and _get(layer, "run.strategy") is None:
        _set(layer, "run.strategy", "deepspeed")
    get_lora = _get(layer, "model.get_lora")
    for key in UNUSED:
        for group, name in _places(layer, key):
            del group[name]
    for key, names in NAMES.items():
        for group, name in _places(layer, key):
            group[name] = names.get(group[name], group[name]) if isinstance(group[name], str) else group[name]
    origin: dict[str, str] = {}
    for key, ours in KEYS.items():
        value, own = _pop(layer, key), _get(layer, ours)
        if value in (None, ""):
            continue
        if own not in (None, "", value):
            raise UserError(f"{source}: {key}: {value}, but {origin.get(ours, ours)}: {own}. Remove one of them.")
        _set(layer, ours, value)
        origin.setdefault(ours, key)
    for key, legal in FIXED.items():
        value = _pop(layer, key, legal[0])
        if value not in legal:
            cure = "Remove it." if legal[0] is None else f"Set it to {legal[0]} or remove it."
            raise UserError(f"{source}: {key}: {value} is not supported. {cure}")
    if get_lora is not None and not get_lora:
        layer["model"]["lora_r"] = 0
    elif get_lora and not _get(layer, "model.lora_r"):  # the original's default could hide the rank of a lower layer
        raise UserError(
            f"{source}: model.get_lora: True, but no model.lora_r. Set it too, the original's default is 8."
        )
    _pop(layer, "run.deepspeed_config")
    return layer


def _check_deepspeed(source: str, layer: dict[str, Any]) -> None:
    """Refuses DeepSpeed's settings that are not known, and says which are without effect."""
    place = "run.deepspeed_config"
    idle = [f"{group}.{name}" for group, names in WITHOUT_EFFECT.items() for name in names]
    _check_keys(source, place, _get(layer, place), [*KEYS, *FIXED, *idle])
    if found := [key.removeprefix(f"{place}.") for key in idle if _get(layer, key) is not None]:
        logger.warning("%s: %s: without effect here: %s", source, place, ", ".join(found))


def _check_keys(source: str, place: str, node: Any, known: list[str]) -> None:
    """Refuses what a group holds but for the known keys, all of them in full."""
    names = dict.fromkeys(k.removeprefix(f"{place}.").split(".")[0] for k in known if k.startswith(f"{place}."))
    if not names or node is None:
        return
    if not isinstance(node, dict):
        raise UserError(f"{source}: {place}: expected keys and values below it, found '{node}'.")
    for name, value in node.items():
        if name not in names:
            raise UserError(f"{source}: {place}.{name}: not known here.{did_you_mean(str(name), names)}")
        _check_keys(source, f"{place}.{name}", value, known)


def _places(node: Any, key: str) -> Iterator[tuple[dict[str, Any], str]]:
    """(group, name in it) of what stands at a dotted key, in which * stands for any name."""
    head, _, rest = key.partition(".")
    for name in [name for name in node if head in ("*", name)] if isinstance(node, dict) else []:
        if rest:
            yield from _places(node[name], rest)
        else:
            yield node, name


def _get(layer: dict[str, Any], key: str) -> Any:
    return next((group[name] for group, name in _places(layer, key)), None)


def _pop(layer: dict[str, Any], key: str, default: Any = None) -> Any:
    return next((group.pop(name) for group, name in _places(layer, key)), default)


def _set(layer: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        layer = layer.setdefault(part, {})
    layer[last] = value

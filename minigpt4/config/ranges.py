"""The range of every number in a config."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from operator import attrgetter
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, ModelConfig

_LARGEST = 4_000_000_000  # of whole numbers; NumPy's seeds end at 2**32, and ranks add theirs
_PROCESSORS = [
    f"{group}.{kind}.{split}"
    for group in ("preprocess", "datasets.*")
    for kind in ("vis_processor", "text_processor")
    for split in ("train", "eval")
]


@dataclass(frozen=True)
class Range:
    """Which numbers a key takes, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


_COUNT = Range("1 or more", lambda n: n >= 1)
_NOT_NEGATIVE = Range("0 or more", lambda n: n >= 0)
_POSITIVE = Range("more than 0", lambda n: n > 0)
_PART = Range("0 to 1", lambda n: 0 <= n <= 1)
_BELOW_1 = Range("0 or more and less than 1", lambda n: 0 <= n < 1)
_ABOVE_0 = Range("more than 0 and at most 1", lambda n: 0 < n <= 1)
_WORKERS = Range("0 to 1024", lambda n: 0 <= n <= 1024)
_ANY = Range("a finite number", math.isfinite)

_KEYS = {  # * is any name, or any place in a list
    "model": {
        _COUNT: "image_size num_query_token lora_alpha max_txt_len max_context_len",
        _NOT_NEGATIVE: "lora_r",
        _BELOW_1: "drop_path_rate lora_dropout",
    },
    "model.vision": {_COUNT: "join rows width", _ANY: "layer"},
    "model.vit": {_COUNT: "patch_size embed_dim depth num_heads", _POSITIVE: "mlp_ratio"},
    "model.qformer": {
        _COUNT: "hidden_size num_hidden_layers num_attention_heads intermediate_size cross_attention_frequency"
    },
    "preprocess": {_COUNT: "n_frms"},
    "datasets.*": {_COUNT: "batch_size build_info.n_frms", _POSITIVE: "sample_ratio"},
    "evaluation_datasets.*": {_COUNT: "batch_size max_new_tokens limit"},
    "run": {
        _COUNT: "max_epoch iters_per_epoch max_iters batch_size_train batch_size_eval accum_grad_iters log_freq "
        "save_steps keep_last max_bad_steps",
        _NOT_NEGATIVE: "seed warmup_steps min_lr weight_decay",
        _POSITIVE: "init_lr lr_decay_rate eps max_grad_norm",
        _BELOW_1: "betas[*]",
        _PART: "max_skip_rate",
        _WORKERS: "num_workers",
        _ANY: "warmup_lr",
    },
    **dict.fromkeys(
        _PROCESSORS,
        {_COUNT: "image_size max_words", _ABOVE_0: "min_scale max_scale", _POSITIVE: "std[*]", _ANY: "mean[*]"},
    ),
}
RANGES = {
    f"{group}.{key}": range_
    for group, ranges in _KEYS.items()
    for range_, keys in ranges.items()
    for key in keys.split()
}


def check_numbers(config: Config) -> None:
    """Refuses numbers out of range, and sizes that don't go together.

    Raises:
        UserError: names the key, its value and the range.
    """
    for key, place, value in values_of(config):
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        range_ = RANGES.get(place, _ANY) if math.isfinite(value) else _ANY
        if not range_.holds(value):
            raise UserError(f"{key}: {value} is out of range. Set it to {range_.words}.")
        if isinstance(value, int) and value > _LARGEST:
            raise UserError(f"{key}: {value} is out of range. Set it to at most {_LARGEST}.")
    _check_sizes(config.model)


def _check_sizes(model: ModelConfig) -> None:
    pairs = [("vit.embed_dim", "vit.num_heads"), ("qformer.hidden_size", "qformer.num_attention_heads")]
    if model.vision_kind.startswith("eva_"):
        pairs.insert(0, ("image_size", "vit.patch_size"))
    for whole, part in pairs:
        size, divisor = attrgetter(whole)(model), attrgetter(part)(model)
        if size % divisor:
            raise UserError(f"model.{whole}: {size} is not a multiple of model.{part}, {divisor}. Change one of them.")


def values_of(node: Any, key: str = "", place: str = "") -> Iterator[tuple[str, str, Any]]:
    """(key, its place as in `RANGES`, value) of each value that is not a group or list."""
    if is_dataclass(node):
        for name, value in vars(node).items():
            yield from values_of(value, f"{key}.{name}".removeprefix("."), f"{place}.{name}".removeprefix("."))
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from values_of(value, f"{key}.{name}", f"{place}.*")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from values_of(value, f"{key}[{i}]", f"{place}[*]")
    else:
        yield key, place, node

"""Q-Former, which distils an image's tokens into a few query outputs (BLIP-2: Li et al. 2023, section 3.1)."""

import logging
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from minigpt4.common.errors import UserError
from minigpt4.config.schema import QformerConfig
from minigpt4.models.checkpoint import load_tensors

logger = logging.getLogger(__name__)

# original (LAVIS) name -> transformers' name; applied in order, each at most once per key
_RENAMES = (
    (r"^bert\.embeddings\.LayerNorm\.", "layernorm."),
    (r"^bert\.encoder\.", "encoder."),
    (r"\.(attention|crossattention)\.self\.", r".\1.attention."),
)
# in the files, but not in a Q-Former that reads images only
_UNUSED = re.compile(
    r"^(t5_proj|llm_proj|opt_proj|vision_proj|text_proj|itm_head|temp|Qformer\.cls)\b"
    r"|\.position_ids$|embeddings\.(word|position)_embeddings|\.layer\.\d+\.(intermediate|output)\.|^visual_encoder\."
)


def build_qformer(
    config: QformerConfig, num_query_token: int, encoder_width: int
) -> tuple[Blip2QFormerModel, nn.Parameter]:
    """Builds Q-Former and query tokens [1, num_query_token, hidden_size] with random weights.

    `encoder_width` is the width of the vision tower's tokens. On the meta device only the query tokens have memory.
    """
    qformer = Blip2QFormerModel(
        Blip2QFormerConfig(
            vocab_size=1,  # no text side
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            cross_attention_frequency=config.cross_attention_frequency,
            encoder_hidden_size=encoder_width,
            layer_norm_eps=1e-12,
        )
    )
    query_tokens = nn.Parameter(torch.zeros(1, num_query_token, config.hidden_size, device="cpu").normal_(std=0.02))
    return qformer, query_tokens


def from_original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Maps the original's `Qformer.bert.*` names to those of `Blip2QFormerModel`."""
    renamed = {}
    for key, value in state.items():
        name = key.removeprefix("Qformer.")
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def to_original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_original_names`."""
    renamed = {}
    for key, value in state.items():
        name = re.sub(r"^layernorm\.", "embeddings.LayerNorm.", key)
        name = re.sub(r"\.(attention|crossattention)\.attention\.", r".\1.self.", name)
        renamed[f"Qformer.bert.{name}"] = value
    return renamed


def load_qformer_weights(
    qformer: nn.Module, query_tokens: nn.Parameter, ln_vision: nn.LayerNorm, path: str | Path
) -> None:
    """Loads `query_tokens`, `ln_vision.*` and `Qformer.*` of a BLIP-2 checkpoint in the original's names, strictly.

    The Q-Former may be on the meta device: the file's tensors, in fp32, become its own.

    Raises:
        UserError: a key is missing or unknown, or a shape differs.
    """
    state = {key: value.float() for key, value in load_tensors(path).items()}
    unused = sorted(key for key in state if _UNUSED.search(key))
    parts = nn.ModuleDict({"Qformer": qformer, "ln_vision": ln_vision})
    parts.register_parameter("query_tokens", query_tokens)
    used = {key: value for key, value in state.items() if key not in set(unused)}
    tower = from_original_names({key: value for key, value in used.items() if key.startswith("Qformer.")})
    rest = {key: value for key, value in used.items() if not key.startswith("Qformer.")}
    try:
        parts.load_state_dict(rest | {f"Qformer.{key}": value for key, value in tower.items()}, assign=True)
    except RuntimeError as error:
        problem = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise UserError(f"model.q_former_model: {path} does not fit model.qformer and model.vit: {problem}") from None
    query_tokens.data = parts.get_parameter("query_tokens").data  # which stays the caller's parameter
    logger.info("Q-Former: %d tensors from %s, unused: %s", len(used), path, unused or "none")

"""Q-Former, which distils an image's tokens into a few query outputs (BLIP-2: Li et al. 2023, section 3.1)."""

import logging
from pathlib import Path

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from minigpt4.common.errors import UserError
from minigpt4.config.schema import QformerConfig
from minigpt4.models.checkpoint import QFORMER_UNUSED, file_name, load_tensors

logger = logging.getLogger(__name__)


def build_qformer(
    config: QformerConfig, num_query_token: int, encoder_width: int
) -> tuple[Blip2QFormerModel, nn.Parameter]:
    """Builds Q-Former and queries [1, num_query_token, hidden_size] with random weights.

    `encoder_width` is the width of the vision tower's tokens. On the meta device only the queries have memory.
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
    queries = nn.Parameter(torch.zeros(1, num_query_token, config.hidden_size, device="cpu").normal_(std=0.02))
    return qformer, queries


def load_qformer_weights(qformer: nn.Module, queries: nn.Parameter, norm: nn.LayerNorm, path: str | Path) -> None:
    """Loads `query_tokens`, `ln_vision.*` and `Qformer.*` of a BLIP-2 checkpoint in the original's names, strictly.

    The Q-Former may be on the meta device: the file's tensors, in fp32, become its own.

    Raises:
        UserError: a key is missing or unknown, or a shape differs.
    """
    state = {key: value.float() for key, value in load_tensors(path).items()}
    unused = sorted(key for key in state if QFORMER_UNUSED.search(key))
    parts = nn.ModuleDict({"qformer": qformer, "norm": norm})
    parts.register_parameter("queries", queries)
    names = {file_name(f"vision.{name}"): name for name in parts.state_dict()}
    used = {names.get(key, key): value for key, value in state.items() if key not in set(unused)}
    try:
        parts.load_state_dict(used, assign=True)
    except RuntimeError as error:
        problem = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise UserError(f"model.q_former_model: {path} does not fit model.qformer and model.vit: {problem}") from None
    queries.data = parts.get_parameter("queries").data  # which stays the caller's parameter
    logger.info("Q-Former: %d tensors from %s, unused: %s", len(used), path, unused or "none")

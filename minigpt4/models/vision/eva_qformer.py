"""EVA-ViT -> LayerNorm -> Q-Former, which distils an image's tokens into a few query outputs: what sees in MiniGPT-4 on
Vicuna (BLIP-2: Li et al. 2023, section 3.1).
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from minigpt4.common.errors import Problems
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config, QformerConfig
from minigpt4.models.checkpoint import QFORMER_UNUSED, file_name
from minigpt4.models.vision.eva import check_vit_weights, load_vit_weights, new_vit, vit_file, vit_tokens
from minigpt4.models.vision.part import VisionPart, check_fit
from minigpt4.models.weight_file import load_tensors

logger = logging.getLogger(__name__)


@registry.register_vision("eva_qformer")
class EvaQformer(VisionPart):
    """The Q-Former's outputs for `num_query_token` learned queries, which read all tokens of the ViT."""

    def __init__(self, config: Config):
        super().__init__(config)
        c = config.model
        self.vit = new_vit(c)
        with torch.device("meta"):  # but for the queries, which are drawn: projections of all runs begin behind that
            self.qformer, self.queries = build_qformer(c.qformer, c.num_query_token, c.vit.embed_dim)
        self.norm = nn.LayerNorm(c.vit.embed_dim)
        for own, key in ((self.vit, "vit"), (self.norm, "vit"), (self.qformer, "qformer"), (self.queries, "qformer")):
            own.requires_grad_(key in c.trained)

    @classmethod
    def shape(cls, config: Config) -> tuple[int, int]:
        return config.model.num_query_token, config.model.qformer.hidden_size

    @classmethod
    def files(cls, config: Config) -> dict[str, str]:
        return vit_file(config.model) | {"model.q_former_model": config.model.q_former_model}

    def check(self, config: Config, files: Mapping[str, Path]) -> None:
        problems = Problems()
        problems.attempt(check_vit_weights, self.vit, files["model.vit_model"])
        problems.attempt(check_qformer_weights, self.qformer, self.queries, self.norm, files["model.q_former_model"])
        problems.raise_all()

    def load(self, config: Config, files: Mapping[str, Path]) -> dict[str, str]:
        vit, qformer = files["model.vit_model"], files["model.q_former_model"]
        load_vit_weights(self.vit, vit)
        load_qformer_weights(self.qformer, self.queries, self.norm, qformer)
        return {"vit": str(vit), **dict.fromkeys(("queries", "qformer", "norm"), str(qformer))}

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(vit_tokens(self.vit, images))
        queries = self.queries.expand(images.shape[0], -1, -1)  # len() would be a constant in ONNX
        return self.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state


def build_qformer(
    config: QformerConfig, num_query_token: int, encoder_width: int
) -> tuple[Blip2QFormerModel, nn.Parameter]:
    """Builds Q-Former and queries [1, num_query_token, hidden_size] with random weights.

    `encoder_width` is the width of the vision tower's tokens. On the meta device only the queries have memory.
    """
    qformer = Blip2QFormerModel(
        Blip2QFormerConfig(
            vocab_size=1,  # no text side
            encoder_hidden_size=encoder_width,
            layer_norm_eps=1e-12,
            **asdict(config),
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
    parts, used, unused = _fitting(qformer, queries, norm, path)
    parts.load_state_dict({name: value.float() for name, value in used.items()}, assign=True)
    queries.data = parts.get_parameter("queries").data  # which stays the caller's parameter
    logger.info("Q-Former: %d tensors from %s, unused: %s", len(used), path, unused or "none")


def check_qformer_weights(qformer: nn.Module, queries: nn.Parameter, norm: nn.LayerNorm, path: str | Path) -> None:
    """Refuses what `load_qformer_weights` would refuse; only names and shapes are read."""
    _fitting(qformer, queries, norm, path, outline=True)


def _fitting(
    qformer: nn.Module, queries: nn.Parameter, norm: nn.LayerNorm, path: str | Path, outline: bool = False
) -> tuple[nn.ModuleDict, dict[str, Tensor], list[str]]:
    """The parts together, what a file holds of them by their own names, and the names of what it holds besides."""
    state = load_tensors(path, outline)
    unused = sorted(key for key in state if QFORMER_UNUSED.search(key))
    parts = nn.ModuleDict({"qformer": qformer, "norm": norm})
    parts.register_parameter("queries", queries)
    built = parts.state_dict()
    names = {file_name(f"vision.{name}"): name for name in built}
    used = {names.get(key, key): value for key, value in state.items() if key not in set(unused)}
    what = f"model.q_former_model: {path} does not fit model.qformer and model.vit"
    check_fit(what, used, built, "Use another file, or change these settings.")
    return parts, used, unused

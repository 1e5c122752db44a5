"""EVA-ViT -> LayerNorm -> Q-Former: what sees in MiniGPT-4 on Vicuna (BLIP-2: Li et al. 2023, section 3.1)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from minigpt4.common.registry import registry
from minigpt4.config.schema import Config
from minigpt4.models.vision.eva import load_vit_weights, new_vit, vit_file, vit_tokens
from minigpt4.models.vision.part import VisionPart
from minigpt4.models.vision.qformer import build_qformer, load_qformer_weights


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

    @classmethod
    def shape(cls, config: Config) -> tuple[int, int]:
        return config.model.num_query_token, config.model.qformer.hidden_size

    @classmethod
    def files(cls, config: Config) -> dict[str, str]:
        return vit_file(config.model) | {"model.q_former_model": config.model.q_former_model}

    def load(self, config: Config, files: Mapping[str, Path]) -> dict[str, str]:
        vit, qformer = files["model.vit_model"], files["model.q_former_model"]
        load_vit_weights(self.vit, vit)
        load_qformer_weights(self.qformer, self.queries, self.norm, qformer)
        for own, key in ((self.vit, "vit"), (self.norm, "vit"), (self.qformer, "qformer"), (self.queries, "qformer")):
            own.requires_grad_(key in config.model.trained)
        return {"vit": str(vit), **dict.fromkeys(("queries", "qformer", "norm"), str(qformer))}

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(vit_tokens(self.vit, images))
        queries = self.queries.expand(len(images), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state

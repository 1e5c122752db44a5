"""What sees: EVA-ViT, ln_vision and Q-Former, from pictures to the features that the projection reads."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerModel

from minigpt4.config.schema import ModelConfig
from minigpt4.models.base_model import BaseModel, checkpoint_blocks
from minigpt4.models.qformer import build_qformer, load_qformer_weights
from minigpt4.models.vision import JOINED, build_vit, convert_weights, load_vit_weights, vit_dtype

_TOWERS = ("visual_encoder.", "ln_vision.", "Qformer.", "query_tokens")


class TowersMixin(nn.Module):
    """The towers as parts of a module, under the names of the original's checkpoints."""

    Qformer: Blip2QFormerModel
    query_tokens: nn.Parameter

    def _build_towers(self, config: ModelConfig) -> None:
        width = config.vit.embed_dim
        self.vit_dtype = vit_dtype(config)
        self.has_qformer = config.has_qformer
        # no memory, and no random numbers for what a file replaces: the projection begins alike with towers and without
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            self.visual_encoder = build_vit(config.vit, config.image_size, config.drop_path_rate)
            convert_weights(self.visual_encoder, self.vit_dtype)
            if config.has_qformer:
                self.Qformer, self.query_tokens = build_qformer(config.qformer, config.num_query_token, width)
        self.ln_vision = nn.LayerNorm(width)
        if config.use_grad_checkpoint:
            checkpoint_blocks(self.visual_encoder)

    def _load_towers(self, config: ModelConfig, files: dict[str, Path]) -> None:
        load_vit_weights(self.visual_encoder, files["model.vit_model"])
        self.visual_encoder.requires_grad_("vit" in config.trained)
        self.ln_vision.requires_grad_("vit" in config.trained)
        if self.has_qformer:
            load_qformer_weights(self.Qformer, self.query_tokens, self.ln_vision, files["model.q_former_model"])
            self.Qformer.requires_grad_("qformer" in config.trained)
            self.query_tokens.requires_grad_("qformer" in config.trained)

    def image_features(self, image: Tensor) -> Tensor:
        """Maps images [B, 3, H, W] to [B, rows, width]: query outputs, or joined patch tokens."""
        trains = any(p.requires_grad for n, p in self.named_parameters() if n.startswith(_TOWERS))
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            with self._vit_autocast(image.device):
                tokens = self.visual_encoder(image)
            tokens = self.ln_vision(tokens.float())
            if self.has_qformer:
                queries = self.query_tokens.expand(len(image), -1, -1)
                return self.Qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
            # without the class token; raster order, not 2 x 2 squares
            return tokens[:, 1:].reshape(len(image), -1, tokens.shape[2] * JOINED)

    def _vit_autocast(self, device: torch.device) -> Any:
        # LayerNorms and biases stay in fp32 while conv and linear weights are in half precision
        half = self.vit_dtype != torch.float32
        return torch.autocast(device.type, self.vit_dtype) if half else nullcontext()


class Towers(TowersMixin, BaseModel):
    """The towers alone, with their weights: what fills a feature cache."""

    def __init__(self, config: ModelConfig, files: dict[str, Path]):
        super().__init__()
        self._build_towers(config)
        self._load_towers(config, files)
        self.eval()

"""MiniGPT-4: EVA-ViT -> ln_vision -> Q-Former -> one trained linear layer -> frozen LLM."""

import logging
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from minigpt4.common.checkpoint import load_checkpoint, local_files
from minigpt4.common.config import Config, ModelConfig
from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.conversation.conversation import get_template
from minigpt4.models.llm import DTYPES, check_llm_path, load_llm, load_tokenizer
from minigpt4.models.minigpt_base import MiniGPTBase, read_prompts
from minigpt4.models.qformer import build_qformer, load_qformer_weights
from minigpt4.models.vision import build_vit, convert_weights, load_vit_weights

logger = logging.getLogger(__name__)

_WELL_KNOWN = {
    "eva_clip_g": "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
}


@registry.register_model("mini_gpt4", "minigpt4")
class MiniGPT4(MiniGPTBase):
    """MiniGPT-4 with a Q-Former (Zhu et al. 2023, section 3). Only `llama_proj` trains by default."""

    def __init__(self, config: ModelConfig, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__(config, llm, tokenizer)
        self.visual_encoder = build_vit(
            config.vit, config.image_size, config.drop_path_rate, config.use_grad_checkpoint
        )
        self.ln_vision = nn.LayerNorm(config.vit.embed_dim)
        self.Qformer, self.query_tokens = build_qformer(config.qformer, config.num_query_token, config.vit.embed_dim)
        self.llama_proj = self.new_projection(config.qformer.hidden_size)
        self.vit_dtype = DTYPES[config.vit_precision]

    @classmethod
    def from_config(cls, config: Config) -> Self:
        c = config.model
        if not c.has_qformer:
            raise UserError("model.has_qformer: False is not supported yet. Use a model type with a Q-Former.")
        check_llm_path(c.llama_model)
        get_template(c.conversation)
        read_prompts(c.prompt_path, c.prompt_template)
        paths = {"model.vit_model": _WELL_KNOWN.get(c.vit_model, c.vit_model), "model.q_former_model": c.q_former_model}
        if c.ckpt:
            paths["model.ckpt"] = c.ckpt
        files = local_files(paths, config.env.cache_root)
        model = cls(c, load_llm(c.llama_model, c.llm_dtype, c.low_resource), load_tokenizer(c.llama_model))
        model._load_towers(c, files["model.vit_model"], files["model.q_former_model"])
        if c.ckpt:
            load_checkpoint(model, files["model.ckpt"])
        return model

    def _load_towers(self, config: ModelConfig, vit_file: Path, qformer_file: Path) -> None:
        load_vit_weights(self.visual_encoder, vit_file)
        load_qformer_weights(self.Qformer, self.query_tokens, self.ln_vision, qformer_file)
        convert_weights(self.visual_encoder, self.vit_dtype)
        if config.freeze_vit:
            self.visual_encoder.requires_grad_(False)
            self.ln_vision.requires_grad_(False)
        if config.freeze_qformer:
            self.Qformer.requires_grad_(False)
            self.query_tokens.requires_grad_(False)

    @property
    def rows_per_image(self) -> int:
        return self.query_tokens.shape[1]

    def encode_img(self, image: Tensor) -> Tensor:
        """Maps images [B, 3, H, W] to LLM embeddings [B, num_query_token, D]."""
        frozen = not any(p.requires_grad for p in (*self.visual_encoder.parameters(), *self.Qformer.parameters()))
        with torch.no_grad() if frozen else nullcontext():
            with self._vit_autocast():
                tokens = self.visual_encoder(image)
            tokens = self.ln_vision(tokens.float())
            queries = self.query_tokens.expand(len(image), -1, -1)
            output = self.Qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        return self.llama_proj(output)

    def _vit_autocast(self):
        # LayerNorms and biases stay in fp32 while conv and linear weights are in half precision
        half = self.vit_dtype != torch.float32
        return torch.autocast(self.device.type, self.vit_dtype) if half else nullcontext()

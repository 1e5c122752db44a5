"""MiniGPT-4: EVA-ViT -> ln_vision -> Q-Former -> one trained linear layer -> frozen LLM."""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from minigpt4.common.checkpoint import load_checkpoints
from minigpt4.common.config import Config, ModelConfig
from minigpt4.common.dist_utils import pick_device
from minigpt4.common.errors import Problems
from minigpt4.common.registry import registry
from minigpt4.models.llm import DTYPES, add_lora, load_llm, load_tokenizer
from minigpt4.models.minigpt_base import MiniGPTBase
from minigpt4.models.preflight import preflight
from minigpt4.models.qformer import build_qformer, load_qformer_weights
from minigpt4.models.vision import JOINED, build_vit, convert_weights, feature_width, load_vit_weights

_TOWERS = ("visual_encoder.", "ln_vision.", "Qformer.", "query_tokens")


@registry.register_model("mini_gpt4", "minigpt4")
class MiniGPT4(MiniGPTBase):
    """MiniGPT-4 (Zhu et al. 2023, section 3), with a Q-Former (Vicuna) or without (Llama-2).

    Without a Q-Former, four patch tokens that follow one another are joined into one. Only `llama_proj` trains by
    default.
    """

    def __init__(self, config: ModelConfig, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__(config, llm, tokenizer)
        width = config.vit.embed_dim
        self.vit_dtype = DTYPES[config.vit_precision]
        self.has_qformer = config.has_qformer
        with torch.device("meta"):  # no memory and no random numbers for what a file replaces
            self.visual_encoder = build_vit(
                config.vit, config.image_size, config.drop_path_rate, config.use_grad_checkpoint
            )
            convert_weights(self.visual_encoder, self.vit_dtype)
            if config.has_qformer:
                self.Qformer, self.query_tokens = build_qformer(config.qformer, config.num_query_token, width)
        self.ln_vision = nn.LayerNorm(width)
        self.llama_proj = self.new_projection(feature_width(config))

    @classmethod
    def from_config(cls, config: Config, problems: Problems | None = None) -> Self:
        c = config.model
        files = preflight(config, problems)
        llm = load_llm(c, pick_device(config.run.device))
        tokenizer = load_tokenizer(files["model.llama_model"], c.trust_remote_code)
        model = cls(c, add_lora(llm, c.lora_r, c.lora_alpha, c.lora_dropout), tokenizer)
        model._load_towers(c, files)
        qformer_file = str(files.get("model.q_former_model", "its initial values"))
        sources = dict.fromkeys(("query_tokens", "Qformer", "ln_vision"), qformer_file)
        sources |= {"visual_encoder": str(files["model.vit_model"]), "llama_model": c.llama_model}
        load_checkpoints(model, [f for key, f in files.items() if key.startswith("model.ckpt")], sources)
        return model

    def _load_towers(self, config: ModelConfig, files: dict[str, Path]) -> None:
        load_vit_weights(self.visual_encoder, files["model.vit_model"])
        self.visual_encoder.requires_grad_(not config.freeze_vit)
        self.ln_vision.requires_grad_(not config.freeze_vit)
        if self.has_qformer:
            load_qformer_weights(self.Qformer, self.query_tokens, self.ln_vision, files["model.q_former_model"])
            self.Qformer.requires_grad_(not config.freeze_qformer)
            self.query_tokens.requires_grad_(not config.freeze_qformer)

    @property
    def rows_per_image(self) -> int:
        if self.has_qformer:
            return self.query_tokens.shape[1]
        return self.visual_encoder.patch_embed.num_patches // JOINED

    def encode_img(self, image: Tensor) -> Tensor:
        """Maps images [B, 3, H, W] to LLM embeddings [B, rows_per_image, D]."""
        trains = any(p.requires_grad for n, p in self.named_parameters() if n.startswith(_TOWERS))
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            with self._vit_autocast():
                tokens = self.visual_encoder(image)
            tokens = self.ln_vision(tokens.float())
            if self.has_qformer:
                queries = self.query_tokens.expand(len(image), -1, -1)
                tokens = self.Qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
            else:  # without the class token; raster order, not 2 x 2 squares
                tokens = tokens[:, 1:].reshape(len(image), -1, tokens.shape[2] * JOINED)
        return self.llama_proj(tokens)

    def _vit_autocast(self):
        # LayerNorms and biases stay in fp32 while conv and linear weights are in half precision
        half = self.vit_dtype != torch.float32
        return torch.autocast(self.device.type, self.vit_dtype) if half else nullcontext()


@registry.register_model("minigpt_v2")
class MiniGPTv2(MiniGPT4):
    """MiniGPT-v2 (Chen et al. 2023, arXiv:2310.09478): 448 px, no Q-Former, LoRA on the LLM.

    What differs is in its YAML: `has_qformer` False, `lora_r` 64, templates wrapped around every instruction.
    """

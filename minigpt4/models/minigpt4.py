"""MiniGPT-4: a frozen vision part -> a trained projection -> a frozen LLM."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from minigpt4.common.distributed import pick_device
from minigpt4.common.errors import Problems
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config, ModelConfig
from minigpt4.models.base_model import checkpoint_blocks, trains
from minigpt4.models.checkpoint import ADAPTERS, load_checkpoints
from minigpt4.models.llm import add_lora, load_llm, load_tokenizer
from minigpt4.models.minigpt_base import MiniGPTBase
from minigpt4.models.preflight import preflight
from minigpt4.models.projection import build_projection
from minigpt4.models.vision import VisionPart, build_vision


@registry.register_model("mini_gpt4", "minigpt4")
class MiniGPT4(MiniGPTBase):
    """MiniGPT-4 (Zhu et al. 2023, section 3), made of three parts. Only the projection trains by default."""

    def __init__(
        self,
        vision: VisionPart,
        projection: nn.Module,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: ModelConfig,
    ):
        super().__init__(config, llm, tokenizer, vision.rows)
        self.vision, self.projection = vision, projection
        if config.use_grad_checkpoint:
            checkpoint_blocks(llm)

    @classmethod
    def from_config(cls, config: Config, towers: bool = True, problems: Problems | None = None) -> Self:
        c, vision, problems = config.model, None, Problems() if problems is None else problems
        with problems.collect():
            vision = build_vision(config, towers)
        files = preflight(config, vision, problems)
        assert vision is not None
        llm = add_lora(load_llm(c, pick_device(config.run.device)), c)
        tokenizer = load_tokenizer(files["model.llama_model"], c.trust_remote_code)
        projection = build_projection(c.projection.name, vision.width, llm)
        model = cls(vision, projection, llm, tokenizer, c)
        sources = {f"vision.{part}": source for part, source in vision.load(config, files).items()}
        sources |= {"llm": c.llama_model, ADAPTERS: "their initial values"}  # with which the LLM is as it was
        load_checkpoints(model, [f for key, f in files.items() if key.startswith("model.ckpt")], sources)
        return model

    def image_features(self, image: Tensor) -> Tensor:
        """Maps images [B, 3, H, W] to what the projection reads of them, [B, rows_per_image, width]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(self.vision)):
            return self.vision(image)

    def encode_img(self, image: Tensor) -> Tensor:
        """Maps images [B, 3, H, W] to LLM embeddings [B, rows_per_image, D]; of cached features likewise."""
        return self.projection(self.image_features(image))


@registry.register_model("minigpt_v2")
class MiniGPTv2(MiniGPT4):
    """MiniGPT-v2 (Chen et al. 2023, arXiv:2310.09478): 448 px, no Q-Former, LoRA on the LLM.

    What differs is in its YAML: `has_qformer` False, `lora_r` 64, templates wrapped around every instruction.
    """

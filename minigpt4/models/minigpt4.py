"""MiniGPT-4: EVA-ViT -> ln_vision -> Q-Former -> one trained linear layer -> frozen LLM."""

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from minigpt4.common.distributed import pick_device
from minigpt4.common.errors import Problems
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config, ModelConfig
from minigpt4.models.base_model import checkpoint_blocks
from minigpt4.models.checkpoint import ADAPTERS, load_checkpoints
from minigpt4.models.llm import add_lora, load_llm, load_tokenizer
from minigpt4.models.minigpt_base import MiniGPTBase
from minigpt4.models.preflight import preflight
from minigpt4.models.towers import TowersMixin
from minigpt4.models.vision import feature_rows, feature_width


@registry.register_model("mini_gpt4", "minigpt4")
class MiniGPT4(TowersMixin, MiniGPTBase):
    """MiniGPT-4 (Zhu et al. 2023, section 3), with a Q-Former (Vicuna) or without (Llama-2).

    Without a Q-Former, four patch tokens that follow one another are joined into one. Only `llama_proj` trains by
    default. Without `towers` it reads features that were cached, and no pictures.
    """

    def __init__(
        self, config: ModelConfig, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, towers: bool = True
    ):
        super().__init__(config, llm, tokenizer)
        self.has_towers, self._rows = towers, feature_rows(config)
        if towers:
            self._build_towers(config)
        self.projection = self.new_projection(feature_width(config))
        if config.use_grad_checkpoint:
            checkpoint_blocks(self.llm)

    @classmethod
    def from_config(cls, config: Config, towers: bool = True, problems: Problems | None = None) -> Self:
        c = config.model
        files = preflight(config, towers, problems)
        llm = load_llm(c, pick_device(config.run.device))
        tokenizer = load_tokenizer(files["model.llama_model"], c.trust_remote_code)
        model = cls(c, add_lora(llm, c), tokenizer, towers)
        if towers:
            model._load_towers(c, files)
        qformer_file = str(files.get("model.q_former_model", "its initial values"))
        sources = dict.fromkeys(("query_tokens", "Qformer", "ln_vision"), qformer_file)
        sources |= {"visual_encoder": str(files["model.vit_model"]), "llama_model": c.llama_model}
        sources[ADAPTERS] = "their initial values"  # with which the LLM is as it was
        load_checkpoints(model, [f for key, f in files.items() if key.startswith("model.ckpt")], sources)
        return model

    @property
    def rows_per_image(self) -> int:
        return self._rows

    def encode_img(self, image: Tensor) -> Tensor:
        """Maps images [B, 3, H, W] to LLM embeddings [B, rows_per_image, D]."""
        return self.projection(self.image_features(image))


@registry.register_model("minigpt_v2")
class MiniGPTv2(MiniGPT4):
    """MiniGPT-v2 (Chen et al. 2023, arXiv:2310.09478): 448 px, no Q-Former, LoRA on the LLM.

    What differs is in its YAML: `has_qformer` False, `lora_r` 64, templates wrapped around every instruction.
    """

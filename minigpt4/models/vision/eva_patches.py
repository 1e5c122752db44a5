"""EVA-ViT -> LayerNorm -> patch tokens, four joined into a row: what sees in MiniGPT-4 on Llama-2 and MiniGPT-v2."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from minigpt4.common.registry import registry
from minigpt4.config.schema import Config
from minigpt4.models.vision.eva import load_vit_weights, new_vit, vit_file, vit_tokens
from minigpt4.models.vision.part import VisionPart, joined, joined_shape

_JOINED = 4


@registry.register_vision("eva_patches")
class EvaPatches(VisionPart):
    """Patch tokens that follow one another in raster order, not squares of them; the class token is left out."""

    settings = ("join",)

    def __init__(self, config: Config):
        super().__init__(config)
        self.join = config.model.vision.join or _JOINED
        self.vit, self.norm = new_vit(config.model), nn.LayerNorm(config.model.vit.embed_dim)

    @classmethod
    def shape(cls, config: Config) -> tuple[int, int]:
        c = config.model
        return joined_shape(c.image_size // c.vit.patch_size, c.vit.embed_dim, c.vision.join or _JOINED)

    @classmethod
    def files(cls, config: Config) -> dict[str, str]:
        return vit_file(config.model)

    def load(self, config: Config, files: Mapping[str, Path]) -> dict[str, str]:
        load_vit_weights(self.vit, file := files["model.vit_model"])
        self.requires_grad_("vit" in config.model.trained)
        return {"vit": str(file)}

    def forward(self, images: Tensor) -> Tensor:
        return joined(self.norm(vit_tokens(self.vit, images))[:, 1:], self.join)

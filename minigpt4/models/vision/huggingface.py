"""Any vision transformer of Hugging Face as a frozen tower: CLIP, SigLIP, SigLIP 2, DINOv2 and their like."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config
from minigpt4.models.pretrained import check_weight_files, load_pretrained, picture_settings, reading, settings_folder
from minigpt4.models.vision import part
from minigpt4.models.vision.part import VisionPart

_KEY, _WHAT = "model.vision.model", "vision transformer"


@registry.register_vision("huggingface")
class HuggingFace(VisionPart):
    """All patch tokens of the tower's last hidden state; class and register tokens, which come first, are left out.

    SigLIP's and DINOv2's last hidden state has gone through a final LayerNorm, CLIP's has not. `layer` names one before
    it: -1 is the last block's, -2 (LLaVA's) the one before. Pictures get the image processor's size and normalisation.
    """

    settings = ("model", "layer", "join")

    def __init__(self, config: Config):
        super().__init__(config)
        (folder, own, patch), c = _read(config), config.model
        self.layer, self.join, self.dtype = c.vision.layer, c.vision.join or 1, part.tower_dtype(c)
        if self.layer is not None and abs(self.layer) > (depth := own.num_hidden_layers):
            raise UserError(f"model.vision.layer: {self.layer} of a tower of {depth} layers. Set it to -1 or null.")
        self.patch = None if hasattr(own, "image_size") else patch  # SigLIP 2's NaFlex towers take patches
        mean, std = picture_settings(_KEY, folder, getattr(own, "image_size", c.image_size), c.image_size)
        self.normalised = part.Normalised(config, mean, std)
        with reading(_KEY, folder, _WHAT), torch.device("meta"), torch.random.fork_rng(devices=[]):
            self.tower = AutoModel.from_config(own)
        part.convert_weights(self.tower.requires_grad_(False), self.dtype)

    @classmethod
    def shape(cls, config: Config) -> tuple[int, int]:
        _, own, patch = _read(config)
        return part.joined_shape(config.model.image_size // patch, own.hidden_size, config.model.vision.join or 1)

    @classmethod
    def files(cls, config: Config) -> dict[str, str]:
        return {_KEY: str(settings_folder(_KEY, config.model.vision.model or "", _WHAT))}

    def check(self, config: Config, files: Mapping[str, Path]) -> None:
        check_weight_files(_KEY, str(config.model.vision.model), files[_KEY], self.tower)

    def load(self, config: Config, files: Mapping[str, Path]) -> dict[str, str]:
        path = str(config.model.vision.model)
        self.tower = load_pretrained(_KEY, path, _WHAT, type(self.tower), whole=False, dtype=torch.float32)
        part.convert_weights(self.tower.requires_grad_(False), self.dtype)
        return {"tower": path}

    def forward(self, images: Tensor) -> Tensor:
        inputs = {"pixel_values": self.normalised(images)}
        if p := self.patch:  # [B, 3, h * p, w * p] -> [B, h * w, p * p * 3], none of them padding
            cut = inputs["pixel_values"].unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 4, 5, 1).flatten(3)
            mask = torch.ones(cut.shape[:3], dtype=torch.long, device=cut.device).flatten(1)
            inputs = {"pixel_values": cut.flatten(1, 2), "pixel_attention_mask": mask}
            inputs["spatial_shapes"] = mask.new_tensor([cut.shape[1:3]] * len(cut))
        with part.in_half(images.device, part.weights_dtype(self.tower)):
            output = self.tower(**inputs, output_hidden_states=self.layer is not None)
        tokens = output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]
        return part.joined(tokens[:, -self.rows * self.join :].float(), self.join)


def _read(config: Config) -> tuple[Path, PretrainedConfig, int]:
    """The tower's folder, its settings, which may be within those of a model with text, and its patches' size."""
    folder = Path(HuggingFace.files(config)[_KEY])
    with reading(_KEY, folder, _WHAT):
        own = AutoConfig.from_pretrained(folder, local_files_only=True)
        own = getattr(own, "vision_config", own)
        return folder, own, int(own.patch_size)

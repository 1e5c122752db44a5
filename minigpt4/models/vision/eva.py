"""EVA-ViT, the original's vision tower (EVA: Fang et al. 2022, arXiv:2211.07636, section 2; BLIP-2, section 3.1).

Alone, with its patch tokens joined by fours, it is what sees in MiniGPT-4 on Llama-2 and MiniGPT-v2.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from torch import Tensor, nn

from minigpt4.common.registry import registry
from minigpt4.config.schema import Config, ModelConfig, VitConfig
from minigpt4.models.parts import checkpoint_blocks
from minigpt4.models.vision.part import (
    VisionPart,
    check_fit,
    convert_weights,
    in_half,
    joined,
    joined_shape,
    tower_dtype,
)
from minigpt4.models.weight_file import load_tensors

logger = logging.getLogger(__name__)

_EVA_CLIP_G = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
_JOINED = 4


def vit_file(config: ModelConfig) -> dict[str, str]:
    """{config key: path or URL} of the tower's weights."""
    return {"model.vit_model": _EVA_CLIP_G if config.vit_model == "eva_clip_g" else config.vit_model}


def build_vit(config: VitConfig, image_size: int, drop_path_rate: float = 0.0) -> Eva:
    """Builds the tower with random weights: images [B, 3, H, W] -> tokens [B, 1 + H*W / patch_size**2, embed_dim].

    The class token comes first. There is no final norm and no head: BLIP-2 reads the output of the last block that it
    keeps (`depth` 39 of EVA-ViT-g's 40). Parameter names are those of the original's `eva_vit_g.pth`.
    """
    vit = Eva(
        img_size=image_size,
        num_classes=0,
        global_pool="",
        qkv_bias=True,
        drop_path_rate=drop_path_rate,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **asdict(config),
    )
    vit.norm = nn.Identity()
    return vit


def new_vit(config: ModelConfig) -> Eva:
    """The config's tower, without memory."""
    with torch.device("meta"):
        vit = build_vit(config.vit, config.image_size, config.drop_path_rate)
    convert_weights(vit, tower_dtype(config))
    if config.use_grad_checkpoint:
        checkpoint_blocks(vit)
    return vit


def vit_tokens(vit: Eva, images: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> tokens [B, 1 + patches, D] in fp32, with the weights in the dtype that they have."""
    with in_half(images.device, vit.patch_embed.proj.weight.dtype):
        return vit(images).float()


def load_vit_weights(vit: Eva, path: str | Path) -> None:
    """Loads weights in the original's names, strictly, into a tower that may be on the meta device.

    The file's tensors become the tower's, on the CPU and in the dtypes that the tower was built in. `norm.*`, `head.*`
    and blocks past `depth` are the only keys left unused. Position embeddings of another image size are interpolated.

    Raises:
        UserError: a key is missing or unknown, or a shape differs.
    """
    used, unused = _fitting(vit, path)
    built = vit.state_dict()
    vit.load_state_dict({key: value.to(built[key].dtype) for key, value in used.items()}, assign=True)
    for name, buffer in vit.named_buffers():  # timm's k_bias, which no file holds: EVA's keys have no bias
        vit.get_submodule(name.rpartition(".")[0]).k_bias = torch.zeros_like(buffer, device="cpu")
    logger.info("ViT: %d tensors from %s, unused: %s", len(used), path, unused or "none")


def check_vit_weights(vit: Eva, path: str | Path) -> None:
    """Refuses what `load_vit_weights` would refuse; only names and shapes are read."""
    _fitting(vit, path, outline=True)


def _fitting(vit: Eva, path: str | Path, outline: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file that are the tower's, and the names of the others; `outline` as in `load_tensors`."""
    state, built = load_tensors(path, outline), vit.state_dict()
    depth = len(vit.blocks)
    unused = {k for k in state if k.startswith(("norm.", "head.", "fc_norm."))}
    past = re.compile(r"blocks\.(\d+)\.")
    unused |= {k for k in state if (block := past.match(k)) and int(block[1]) >= depth}
    if "pos_embed" in state and state["pos_embed"].dim() == built["pos_embed"].dim():
        grid = list(vit.patch_embed.grid_size)  # bicubic, without antialiasing, as the original
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"].float(), grid, antialias=False)
    used = {key: value for key, value in state.items() if key not in unused}
    what = f"model.vit_model: {path} does not fit model.vit, an EVA-ViT of depth {depth}"
    check_fit(what, used, built, "Use another file, or change model.vit.")
    return used, sorted(unused)


@registry.register_vision("eva_patches")
class EvaPatches(VisionPart):
    """Patch tokens that follow one another in raster order, not squares of them; the class token is left out."""

    settings = ("join",)

    def __init__(self, config: Config):
        super().__init__(config)
        self.join = config.model.vision.join or _JOINED
        self.vit, self.norm = new_vit(config.model), nn.LayerNorm(config.model.vit.embed_dim)
        self.requires_grad_("vit" in config.model.trained)

    @classmethod
    def shape(cls, config: Config) -> tuple[int, int]:
        c = config.model
        return joined_shape(c.image_size // c.vit.patch_size, c.vit.embed_dim, c.vision.join or _JOINED)

    @classmethod
    def files(cls, config: Config) -> dict[str, str]:
        return vit_file(config.model)

    def check(self, config: Config, files: Mapping[str, Path]) -> None:
        check_vit_weights(self.vit, files["model.vit_model"])

    def load(self, config: Config, files: Mapping[str, Path]) -> dict[str, str]:
        load_vit_weights(self.vit, file := files["model.vit_model"])
        return {"vit": str(file)}

    def forward(self, images: Tensor) -> Tensor:
        return joined(self.norm(vit_tokens(self.vit, images))[:, 1:], self.join)

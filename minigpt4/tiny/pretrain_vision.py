"""Pretrains the tiny vision tower: every patch learns to name the digit and the colour that cover it."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from minigpt4.config.schema import VitConfig
from minigpt4.models.vision.eva import build_vit, load_vit_weights
from minigpt4.processors.image import Blip2ImageEvalProcessor
from minigpt4.tiny.fit import Stage, fit, seed_all
from minigpt4.tiny.world import COLORS, SIDE, Scene, covered_patches, render, sample_scene

VIT = Stage("vit", steps=2200, lr=1.5e-3, batch=48, weight_decay=0.05)
SIZES = VitConfig(patch_size=14, embed_dim=128, depth=5, num_heads=4, mlp_ratio=4.0)
VIT_FILE = "eva_vit.safetensors"
VALIDATION_SCENES = 300
NO_DIGIT = -100
NO_COLOR = len(COLORS)


class PatchNames(nn.Module):
    """Reads digit and colour off each patch token; thrown away after pretraining."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.digit = nn.Linear(width, 10)
        self.color = nn.Linear(width, NO_COLOR + 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Maps [B, 1 + P, D] to digit logits [B, P, 10] and colour logits [B, P, 7]; the class token is left out."""
        patches = self.norm(tokens[:, 1:])
        return self.digit(patches), self.color(patches)


def pretrain_vit(out: Path, seed: int, scale: float, log: Path) -> None:
    """Writes `out/eva_vit.safetensors` in EVA's own names, in fp16."""
    rng = seed_all(seed, VIT.name)
    vit = build_vit(SIZES, SIDE)
    names = PatchNames(SIZES.embed_dim)
    stage = VIT.scaled(scale)

    def loss_at(step: int) -> Tensor:
        scenes = [sample_scene(rng, "train", least=2, most=5, warped=True) for _ in range(stage.batch)]
        digits, colors = names(vit(pixels(scenes)))
        digit_targets, color_targets = patch_targets(scenes)
        color_weights = torch.tensor([1.0] * NO_COLOR + [0.2])
        digit_loss = F.cross_entropy(digits.flatten(0, 1), digit_targets.flatten())
        return digit_loss + F.cross_entropy(colors.flatten(0, 1), color_targets.flatten(), weight=color_weights)

    fit(stage, [(vit, 1.0), (names, 1.0)], loss_at, log, lambda: validate_vit(vit, names))
    state = {name: value.half().contiguous() for name, value in vit.state_dict().items() if "k_bias" not in name}
    save_file(state, out / VIT_FILE)


def load_vit(out: Path) -> nn.Module:
    """The pretrained tower, frozen."""
    vit = build_vit(SIZES, SIDE)
    load_vit_weights(vit, out / VIT_FILE)
    return vit.eval().requires_grad_(False)


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Renders scenes to [B, 3, SIDE, SIDE], normalised as `blip2_image_eval` does."""
    processor = Blip2ImageEvalProcessor(SIDE)
    return torch.stack([processor(render(scene)) for scene in scenes])


def patch_targets(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Digits [B, P], NO_DIGIT on the background, and colours [B, P], NO_COLOR on the background."""
    color_names = list(COLORS)
    digits, colors = [], []
    for scene in scenes:
        owner = covered_patches(scene)
        digits.append(np.array([*(fact.digit for fact in scene.facts), NO_DIGIT])[owner])
        colors.append(np.array([*(color_names.index(fact.color) for fact in scene.facts), NO_COLOR])[owner])
    return torch.from_numpy(np.stack(digits)), torch.from_numpy(np.stack(colors))


@torch.no_grad()
def validate_vit(vit: nn.Module, names: PatchNames) -> dict[str, float]:
    """Part of digits and colours named right by the patches of each object together, on unseen handwriting."""
    rng = random.Random(2)
    scenes = [sample_scene(rng, "val") for _ in range(VALIDATION_SCENES)]
    digits, colors = names(vit(pixels(scenes)))
    right = {"digit": 0, "color": 0}
    for scene, digit_logits, color_logits in zip(scenes, digits.log_softmax(-1), colors.log_softmax(-1), strict=True):
        owner = torch.from_numpy(covered_patches(scene))
        for index, fact in enumerate(scene.facts):
            right["digit"] += int(digit_logits[owner == index].sum(0).argmax()) == fact.digit
            right["color"] += list(COLORS)[int(color_logits[owner == index, :NO_COLOR].sum(0).argmax())] == fact.color
    objects = sum(len(scene.facts) for scene in scenes)
    return {name: round(count / objects, 4) for name, count in right.items()}

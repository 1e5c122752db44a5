"""Weights of random numbers, for measuring speed and memory without any files."""

import torch
from torch import nn

from minigpt4.config.schema import Config
from minigpt4.models.vision import VisionPart, build_vision

_STD = 0.02  # of matrices: BERT's and LLaMA's own


def random_vision(config: Config, device: torch.device, seed: int = 0) -> VisionPart:
    """The vision part that a config names, of its full size, drawn on the device in the dtypes that it has."""
    vision = build_vision(config).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, weight in vision.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=_STD, generator=generator)
        else:
            nn.init.constant_(weight, float(name.endswith("weight")))  # of norms
    for buffer in vision.buffers():
        buffer.zero_()
    return vision.requires_grad_(False).eval()

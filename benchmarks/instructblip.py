"""The rival of benchmarks/chat.py: transformers' InstructBLIP, its towers of the same sizes, its LLM the very same.

All of it computes as transformers and PyTorch do it by themselves.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
)

from minigpt4.config.schema import ModelConfig
from minigpt4.conversation.prompter import IMAGE_ROW
from minigpt4.models.cpu_linear import OneDnnLinear
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.splice import pad

IMAGE_TOKEN, PAD = 0, 1  # ids that no prompt of the benchmark holds


def use_mkl(model: nn.Module) -> None:
    """On a CPU, has linear layers computed as PyTorch does it by itself."""
    for module in model.modules():
        if type(module) is OneDnnLinear:
            module.__class__ = nn.Linear


def instructblip(config: ModelConfig, ours: MiniGPT4) -> InstructBlipForConditionalGeneration:
    """InstructBLIP around `ours.llm`; random towers in half precision throughout on a GPU, as it is used."""
    vit, qformer, device = config.vit, config.qformer, ours.device
    llm = ours.llm.config.to_dict()
    sizes = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=vit.embed_dim,
            intermediate_size=int(vit.embed_dim * vit.mlp_ratio),
            num_hidden_layers=vit.depth,
            num_attention_heads=vit.num_heads,
            image_size=config.image_size,
            patch_size=vit.patch_size,
        ).to_dict(),
        qformer_config=InstructBlipQFormerConfig(
            hidden_size=qformer.hidden_size,
            num_hidden_layers=qformer.num_hidden_layers,
            num_attention_heads=qformer.num_attention_heads,
            intermediate_size=qformer.intermediate_size,
            cross_attention_frequency=qformer.cross_attention_frequency,
            encoder_hidden_size=vit.embed_dim,
        ).to_dict(),
        text_config=llm | {"num_hidden_layers": 1},  # which is replaced
        num_query_tokens=config.num_query_token,
        image_token_index=IMAGE_TOKEN,
    )
    with torch.device(device):
        model = InstructBlipForConditionalGeneration(sizes)
    for tower in (model.vision_model, model.qformer, model.language_projection):
        for weight in tower.parameters():
            nn.init.normal_(weight, std=0.02)  # its own 1e-10 would make numbers that a CPU is slow with
    model = model.to(torch.float32 if device.type == "cpu" else torch.float16).eval()
    weights = {id(weight): weight for weight in ours.llm.parameters()}
    model.language_model = deepcopy(ours.llm, weights)  # which are not copied
    use_mkl(model.language_model)
    return model


@dataclass
class Rival:
    """InstructBLIP and one batch: as many tokens for its LLM as ours has; its Q-Former reads each question's words."""

    model: InstructBlipForConditionalGeneration
    pixels: Tensor
    layouts: list[list[int]]
    words: list[int]

    def __post_init__(self) -> None:
        device = self.pixels.device
        self.pixels = self.pixels.to(self.model.dtype)
        rows = [[IMAGE_TOKEN if i == IMAGE_ROW else i for i in layout] for layout in self.layouts]
        self.ids, self.mask = (t.to(device) for t in pad(rows, value=PAD, behind=0))
        questions, mask = pad([[101, *range(1000, 1000 + words), 102] for words in self.words], value=0)
        self.questions = {"qformer_input_ids": questions.to(device), "qformer_attention_mask": mask.to(device)}

    def encode(self) -> Tensor:
        """Images and questions to embeddings."""
        return self.model.get_image_features(self.pixels, **self.questions).pooler_output

    def answer(self, new_tokens: int) -> Tensor:
        """A batch of answers, greedy, with its own generate."""
        length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        return self.model.generate(
            self.pixels, **self.questions, input_ids=self.ids, attention_mask=self.mask, do_sample=False, **length
        )

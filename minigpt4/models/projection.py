"""Projections: what maps the vision part's rows to the LLM's width. Each function registers a kind."""

import torch
from torch import nn
from transformers import PreTrainedModel

from minigpt4.common.registry import registry
from minigpt4.models.llm import embedding_of

_GELU_GAIN = 0.652  # root mean square of GELU's outputs for inputs of variance 1


@registry.register_projection("linear")
def linear(width: int, llm_width: int) -> nn.Module:
    """One linear layer (MiniGPT-4: Zhu et al. 2023, section 3)."""
    return nn.Linear(width, llm_width)


@registry.register_projection("mlp")
def mlp(width: int, llm_width: int) -> nn.Module:
    """Two linear layers with GELU between them (LLaVA-1.5: Liu et al. 2023, arXiv:2310.03744, section 3.3)."""
    return nn.Sequential(nn.Linear(width, llm_width), nn.GELU(), nn.Linear(llm_width, llm_width))


def build_projection(kind: str, width: int, llm: PreTrainedModel) -> nn.Module:
    """An untrained projection from rows of this width to the LLM's embeddings.

    Its outputs are as large as word embeddings from the first step on, given features of variance 1; nn.Linear's own
    scale suits no LLM in particular.
    """
    embedding = embedding_of(llm)
    some = range(0, embedding.num_embeddings, max(1, embedding.num_embeddings // 4096))
    with torch.no_grad():  # what the layers see: Gemma scales its embeddings
        words = embedding(torch.tensor(some, device=embedding.weight.device)).float()
    projection = registry.build("projection", kind, width=width, llm_width=words.shape[1])
    *hidden, last = [layer for layer in projection.modules() if isinstance(layer, nn.Linear)]
    size = float(words.square().mean().sqrt()) / (_GELU_GAIN if hidden else 1)
    for layer, own in (*((layer, 1.0) for layer in hidden), (last, size)):
        nn.init.normal_(layer.weight, std=own / layer.in_features**0.5)
        nn.init.zeros_(layer.bias)
    return projection

"""A KV cache that a token is added to without copying what it holds."""

from typing import Any, cast

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values in larger buffers, where `DynamicLayer` copies all of both for each token.

    A buffer is a quarter larger than what it holds, so that copies stay few and memory bounded. Whatever replaces
    `keys` and `values` (cropping, reordering) is noticed by their address.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._buffers: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def _append(self, name: str, held: Tensor | None, new: Tensor) -> Tensor:
        """Writes [B, heads, T, D] behind what is held; returns both."""
        assert held is not None  # since lazy_initialization
        past = held.shape[-2] if held.numel() else 0
        total, buffer = past + new.shape[-2], self._buffers.get(name)
        if buffer is None or total > buffer.shape[-2] or held.data_ptr() != buffer.data_ptr():
            buffer = new.new_empty((*new.shape[:-2], total + total // 4 + 64, new.shape[-1]))
            if past:
                buffer[..., :past, :] = held
            self._buffers[name] = buffer
        buffer[..., past:total, :] = new
        return buffer[..., :total, :]


class GrowingCache(DynamicCache):
    """A cache of `GrowingLayer`s. None of them forgets what left a sliding window: the masks hide it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer


def new_cache(llm: PreTrainedModel) -> DynamicCache | None:
    """An empty cache for `generate`; None where this LLM's own is of another kind."""
    layers = DynamicCache(config=llm.config.get_text_config(decoder=True)).layers
    known = cast(Any, llm)._supports_default_dynamic_cache() and all(type(layer) is DynamicLayer for layer in layers)
    return GrowingCache() if known else None

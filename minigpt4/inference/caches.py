"""KV caches: one that a token is added to without copying what it holds, and one that outlives a call of `generate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


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


class KeptCache:
    """What an LLM has read of one conversation. One call of `generate` at a time may use it.

    What it holds is compared by embeddings, so an edited word, another picture and a dropped turn all roll it back to
    the last place where nothing changed. Its keys and values are those that the LLM computed when it read them: in
    half precision a full pass can round differently.
    """

    def __init__(self) -> None:
        self.reused = 0  # embeddings that the last call did not have to read
        self._cache: DynamicCache | None = None
        self._read: Tensor | None = None  # [T, D], what the cache holds

    @contextmanager
    def reading(self, llm: PreTrainedModel, embeds: Tensor) -> Iterator[DynamicCache | None]:
        """Gives the cache for a prompt [T, D], rolled back to what they have in common; None if this LLM has none.

        A failure leaves it empty: some layers may have read more than others.
        """
        try:
            self.reused = self._roll_back(embeds)
            if self._cache is None and can_keep(llm):
                # in which no layer forgets what left its sliding window, so that it can be rolled back into
                self._cache = GrowingCache()
            yield self._cache
        except BaseException:
            self._cache = self._read = None
            raise

    def note(self, embeds: Tensor) -> None:
        """Says what the cache was fed [T, D]; of the answer, the last token may not have been read."""
        if self._cache is not None:
            self._read = embeds[: self._cache.get_seq_length()]

    def _roll_back(self, embeds: Tensor) -> int:
        if self._cache is None or self._read is None:
            return 0
        most = min(len(self._read), len(embeds) - 1)  # the last one is read again: its logits begin the answer
        differs = (self._read[:most] != embeds[:most]).any(1).nonzero()
        common = int(differs[0]) if len(differs) else most
        if common < len(self._read):
            self._cache.crop(common - len(self._read))  # negative: how many go
        return common


def new_cache(llm: PreTrainedModel) -> DynamicCache | None:
    """An empty cache for `generate`; None where this LLM's own is of another kind."""
    layers = DynamicCache(config=llm.config.get_text_config(decoder=True)).layers
    known = cast(Any, llm)._supports_default_dynamic_cache() and all(type(layer) is DynamicLayer for layer in layers)
    return GrowingCache() if known else None


def rope_depends_on_length(llm: PreTrainedModel) -> bool:
    """Whether all keys turn otherwise once the longest text of a batch is long: dynamic and longrope positions."""
    ropes = getattr(llm.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
    return bool(kinds & {"dynamic", "longrope"})


def can_keep(llm: PreTrainedModel) -> bool:
    """Whether keys and values of a prefix depend on nothing that follows, and can be cropped."""
    layers = {type(layer) for layer in DynamicCache(config=llm.config.get_text_config(decoder=True)).layers}
    # recurrent layers have no past to go back to
    return not rope_depends_on_length(llm) and layers <= {DynamicLayer, DynamicSlidingWindowLayer}

"""A KV cache that outlives one call of `generate`, so that the next reads only what is new."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from minigpt4.inference.growing_cache import GrowingCache


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

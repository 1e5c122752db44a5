"""Decoding one answer with a compiled step and a static KV cache (`model.compile`)."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, CompileConfig, DynamicCache, GenerationConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from minigpt4.common.errors import UserError
from minigpt4.inference.caches import can_keep, new_cache

_LEAST = 1024  # tokens of the smallest static cache


class CompiledDecoding:
    """Reads a prompt as usual and decodes its answer with a compiled step, one answer at a time.

    A compiled step belongs to one cache and to one thread, so all answers share them: what a session holds is copied
    in before, and what is new is copied back after. Caches have 1024, 2048, 4096, ... places, so that the step is
    compiled once for each of these sizes and not for each length.

    Raises:
        UserError: this LLM's cache can't be static.
    """

    def __init__(self, llm: PreTrainedModel):
        self._text_config = llm.config.get_text_config(decoder=True)
        layers = StaticCache(config=self._text_config, max_cache_len=1).layers
        if new_cache(llm) is None or not can_keep(llm) or any(type(layer) is not StaticLayer for layer in layers):
            raise UserError(
                f"model.compile: true needs an LLM that sees all of its past alike, and {self._text_config.model_type} "
                "does not with these settings. Set it to false."
            )
        self.config = CompileConfig(dynamic=False)  # else the second size would make a slower step for all sizes
        cast(Any, self.config)._compile_all_devices = True  # a CPU too, which its default leaves out
        self.caches: dict[int, StaticCache] = {}
        self._free = Lock()
        self._thread = ThreadPoolExecutor(1, "compiled-decoding")  # a device's graphs are the recording thread's

    def generate(self, llm: Any, cache: DynamicCache, generation_config: GenerationConfig, **options: Any) -> Tensor:
        """As transformers' `generate` with `inputs_embeds` [1, T, D]; while another answer is decoded, that itself.

        `cache` holds some first part of the prompt, and in the end all that was read.
        """
        if not self._free.acquire(blocking=False):
            return cast(Tensor, llm.generate(past_key_values=cache, generation_config=generation_config, **options))
        try:
            return self._thread.submit(self._generate, llm, cache, generation_config, options).result()
        finally:
            self._free.release()

    @torch.inference_mode()
    def _generate(self, llm: Any, cache: DynamicCache, config: GenerationConfig, options: dict[str, Any]) -> Tensor:
        config.compile_config = self.config
        tokens = options["inputs_embeds"].shape[1] + config.max_new_tokens
        size = max(_LEAST, 1 << (tokens - 1).bit_length())
        if size not in self.caches:
            self.caches[size] = StaticCache(config=self._text_config, max_cache_len=size)
        static = self.caches[size]
        static.reset()  # not only forgotten: an infinity that another answer left would show through the mask
        held = cache.get_seq_length()
        _copy(cache, static, 0, held)
        answer = llm.generate(past_key_values=static, generation_config=config, **options)
        _copy(static, cache, held, int(static.get_seq_length()))
        return cast(Tensor, answer)


def _copy(source: Cache, target: Cache, start: int, end: int) -> None:
    """Appends keys and values of these places."""
    if start == end:
        return
    for index, layer in enumerate(cast(list[Any], source.layers)):
        target.update(layer.keys[:, :, start:end], layer.values[:, :, start:end], index)

"""Requests in, answers out: the one way to a model for chat, API, batches and evaluation."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteriaList

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Part
from minigpt4.conversation.prompter import Prompter
from minigpt4.inference import ranking
from minigpt4.inference.caches import new_cache, rope_depends_on_length
from minigpt4.inference.compiled import CompiledDecoding
from minigpt4.inference.decoding import Decoding, draw_seeds
from minigpt4.inference.endings import Ending, Endings
from minigpt4.inference.pictures import Picture
from minigpt4.inference.requests import Answer, LengthNorm, Request, raise_first
from minigpt4.inference.shared_prefix import SharedPrefix, shared_prefix
from minigpt4.models.llm import stop_ids
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.splice import pad, splice

Processor = Callable[[Image.Image], Tensor]


@dataclass(eq=False)
class _Row:
    """The state of one request in a batch."""

    request: Request
    parts: list[Part] = field(default_factory=list)
    layout: list[int] = field(default_factory=list)
    images: Tensor | None = None  # embeddings [n, rows, D]
    seed: int = 0
    limit: int = 0  # most tokens that the batch it is in may generate
    answer: Answer | None = None

    @property
    def pictures(self) -> list[Part]:
        return [part for part in self.parts if not isinstance(part, str)]

    def ended(self, ending: Ending) -> None:
        """Makes the answer of what was followed."""
        tokens = {"prompt_tokens": len(self.layout), "new_tokens": len(ending.tokens)}
        self.answer = Answer(ending.text, finish=ending.finish, **tokens)
        self.request.on_end(self.answer)

    def fail(self, error: Exception) -> None:
        clear_frames(error.__traceback__)  # their tensors
        if self.answer is None:  # else it was reported before
            self.answer = Answer(finish="error", error=error)
            self.request.on_end(self.answer)


class Engine:
    """Answers requests with one model.

    Args:
        model: in eval mode, on its device.
        processor: the model's eval processor, PIL image -> [3, H, W].
        compile: decode single answers with a compiled step, see `CompiledDecoding`.
    """

    def __init__(self, model: MiniGPT4, prompter: Prompter, processor: Processor, compile: bool = False):
        self.model, self.prompter, self.processor = model, prompter, processor
        tokenizer, stops = prompter.tokenizer, prompter.template.stop
        special = [stop for stop in stops if stop in tokenizer.all_special_tokens]
        ids = cast(list[int], tokenizer.convert_tokens_to_ids(special))
        self.stop_ids = list(dict.fromkeys([*stop_ids(model.llm, tokenizer), *ids]))
        self.compiled = CompiledDecoding(model.llm) if compile else None

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers each request as if it were alone, in batches of those that are decoded alike.

        One that fails has an empty answer with its `error`, and does no harm to the others.
        """
        rows = [_Row(request) for request in requests]
        for row in rows:
            _isolated([row], self._lay_out)
        _isolated(_open(rows), self._encode)
        most: dict[Decoding, int] = defaultdict(int)
        for row in _open(rows):
            most[row.request.decoding] = max(most[row.request.decoding], row.request.max_new_tokens)
        groups: dict[Any, list[_Row]] = defaultdict(list)
        for number, row in enumerate(_open(rows)):
            decoding = row.request.decoding
            # a search for beams depends on how long they may be
            row.limit = min(row.limit, row.request.max_new_tokens if decoding.num_beams > 1 else most[decoding])
            # rows near the window's end get a batch of their own: others would continue where it has no positions
            groups[number if rope_depends_on_length(self.model.llm) else (decoding, row.limit)].append(row)
        for group in groups.values():
            _isolated(group, lambda some: self._generate(some, alone=len(rows) == 1))
        return [cast(Answer, row.answer) for row in rows]

    def rank(
        self, prompts: Sequence[Sequence[Part]], answers: Sequence[Sequence[str]], length_norm: LengthNorm = "mean"
    ) -> list[list[int]]:
        """The numbers of each prompt's candidate answers, the most likely first; see `ranking.rank`."""
        return ranking.rank(self, prompts, answers, length_norm)

    def generate(
        self,
        images: Tensor | Sequence[Tensor | None] | None,
        texts: Sequence[str],
        *,
        max_new_tokens: int = 20,
        seed: int | Sequence[int] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answers a batch of prompts as the original's `generate` does.

        Args:
            images: pictures [N, 3, H, W] or embeddings from `encode_img` [N, rows, D] of all prompts in order of
                appearance, or for each prompt its own (None where it has none); None when no prompt holds
                `<ImageHere>`.
            texts: B prompts, each as the LLM is to read it, with `<ImageHere>` for each picture.
            seed: see `Request`; for each prompt or one for all.
            options: those of `Decoding`.

        Raises:
            UserError: an option is out of range, a prompt is too long, or placeholders and images differ in number.
        """
        decoding = Decoding(**options)
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(texts)
        prompts = self.prompter.parse_all(texts, images)
        requests = [Request(prompt, max_new_tokens, decoding, own) for prompt, own in zip(prompts, seeds, strict=True)]
        answers = self.answer(requests)
        raise_first(answers)
        return answers

    def encode_img(self, images: Tensor) -> Tensor:
        """Maps pictures [N, 3, H, W] to embeddings [N, rows, D] that the LLM reads."""
        return self.model.encode_img(images.to(self.model.device))

    @torch.inference_mode()
    def embeddings(self, pictures: Sequence[Part]) -> list[Tensor]:
        """Embeddings [rows, D] of pictures; those not yet known are made in one batch. See `Request.prompt`."""
        # looked at once: another thread may drop them
        known = {id(picture): _embedding(picture) for picture in pictures}
        new = {id(picture): picture for picture in pictures if known[id(picture)] is None}
        if new:
            pixels = torch.stack([p if isinstance(p, Tensor) else self.processor(p.image) for p in new.values()])
            for (key, picture), embedding in zip(new.items(), self.encode_img(pixels), strict=True):
                known[key] = embedding
                if isinstance(picture, Picture):
                    picture.embedding = embedding
        return [cast(Tensor, known[id(picture)]) for picture in pictures]

    def _lay_out(self, rows: list[_Row]) -> None:
        for row in rows:
            prompt, window = row.request.prompt, self.prompter.window
            row.parts = self.prompter.read(prompt) if isinstance(prompt, Conversation) else list(prompt)
            row.layout = self.prompter.layout(row.parts)
            row.limit = cast(int, window - len(row.layout))  # infinite where the LLM sets no limit
            if row.limit < 1:
                raise UserError(
                    f"a prompt is {1 - row.limit} tokens longer than the LLM can read and answer (it reads {window} at "
                    "once). Shorten it, or show fewer images."
                )
            sampled = row.request.decoding.do_sample and row.request.seed is None
            # greedy decoding leaves torch's generator alone: training continues after an evaluation
            row.seed = draw_seeds(1)[0] if sampled else row.request.seed or 0

    def _encode(self, rows: list[_Row]) -> None:
        embeddings = iter(self.embeddings([picture for row in rows for picture in row.pictures]))
        for row in rows:
            own = [next(embeddings) for _ in row.pictures]
            row.images = torch.stack(own) if own else None

    def _generate(self, rows: list[_Row], alone: bool) -> None:
        llm, decoding = cast(Any, self.model.llm), rows[0].request.decoding
        embedding = llm.get_input_embeddings()
        beams = decoding.num_beams > 1  # they multiply and reorder a cache
        kept = rows[0].request.kept if alone else None
        if kept is not None and beams:
            kept.reused, kept = 0, None
        fresh = None if beams or kept is not None else new_cache(llm)
        layouts, shown = [row.layout for row in rows], [[id(picture) for picture in row.pictures] for row in rows]
        shared = SharedPrefix(0, []) if fresh is None else shared_prefix(llm, layouts, shown)
        ids, mask = (t.to(self.model.device) for t in pad(layouts, value=0, behind=shared.length))
        images = [row.images for row in rows if row.images is not None]
        embeds = splice(ids, torch.cat(images) if images else None, embedding)
        endings = [
            Ending(row.request, self.prompter, self.stop_ids, min(row.limit, row.request.max_new_tokens), row.ended)
            for row in rows
        ]
        ends = Endings(endings, beams)
        seeds = [row.seed for row in rows]
        options: dict[str, Any] = {
            "inputs_embeds": embeds,
            "attention_mask": mask,
            "generation_config": self._config(decoding, rows[0].limit),
            "logits_processor": decoding.processors(seeds),
            "stopping_criteria": StoppingCriteriaList([ends]),
        }
        held = nullcontext(fresh) if kept is None else kept.reading(llm, embeds[0])
        with decoding.seeded(seeds), held as cache:
            if shared.length:
                shared.read(llm, cast(DynamicCache, cache), embeds)
            if self.compiled and cache is not None and len(rows) == 1:
                tokens = self.compiled.generate(llm, cache, **options)
            else:
                tokens = llm.generate(**options, **({} if cache is None else {"past_key_values": cache}))
            if kept is not None:
                kept.note(torch.cat([embeds[0], embedding(tokens[0])]))
        if beams:
            ends.follow(tokens)
        for ending in endings:
            ending.close()

    def _config(self, decoding: Decoding, limit: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=limit,
            min_new_tokens=min(decoding.min_new_tokens, limit),
            bos_token_id=self.prompter.tokenizer.bos_token_id,
            eos_token_id=self.stop_ids or None,
            pad_token_id=(self.stop_ids or [0])[0],  # any id: masked before the prompt, not followed after the end
            **decoding.config(),
        )


def _embedding(picture: Part) -> Tensor | None:
    if isinstance(picture, Tensor):
        return picture if picture.dim() == 2 else None
    return cast(Picture, picture).embedding


def _open(rows: Iterable[_Row]) -> list[_Row]:
    return [row for row in rows if row.answer is None]


def _isolated(rows: list[_Row], work: Callable[[list[_Row]], None]) -> None:
    """Works on all rows at once; if that fails, on each alone, so that only what is at fault fails."""
    try:
        if rows:
            work(rows)
        return
    except Exception as error:
        if len(rows) == 1:
            rows[0].fail(error)
            return
    for row in _open(rows):  # out here, where the error no longer holds the batch's memory
        _isolated([row], work)

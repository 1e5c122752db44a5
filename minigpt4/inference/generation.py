"""Answers to a batch of prompts, each exactly what it would be alone, and a failing one without harm to the others."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Event
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from minigpt4.common.errors import UserError
from minigpt4.conversation.prompter import IMAGE_PLACEHOLDER
from minigpt4.inference.decoding import Decoding, Ending, Fanout, Interrupt, StopWords
from minigpt4.inference.growing_cache import new_cache
from minigpt4.inference.kept_cache import KeptCache, shared_prefix, turns_with_length
from minigpt4.models.splice import pad, splice

if TYPE_CHECKING:  # which imports this
    from minigpt4.models.minigpt_base import MiniGPTBase

Images = Tensor | Sequence[Tensor | None] | None


class Answer(str):
    """An answer's text, what it took, and how it ended.

    `finish`: "stop" the LLM ended it; "length" it had no room for more; "interrupt" somebody ended it; "error" it
    failed, with the exception in `error` and no text. Tokens include image rows and the token that ends an answer.
    """

    prompt_tokens = 0
    new_tokens = 0
    finish: Literal["stop", "length", "interrupt", "error"] = "stop"
    error: Exception | None = None


@dataclass
class Row:
    """One prompt on its way to an answer."""

    text: str
    places: int  # for images
    seed: int
    interrupt: Event
    streamer: BaseStreamer | None = None
    layout: list[int] = field(default_factory=list)
    images: Tensor | None = None  # pictures [n, 3, H, W], then their embeddings [n, rows, D]
    limit: int = 0  # most tokens that its answer may have
    answer: Answer | None = None

    def fail(self, error: Exception) -> None:
        self.answer = Answer()
        self.answer.finish, self.answer.error = "error", error
        clear_frames(error.__traceback__)  # their tensors


def make_rows(
    model: "MiniGPTBase",
    texts: Sequence[str],
    seed: int | Sequence[int],
    streamer: BaseStreamer | Sequence[BaseStreamer] | None,
    interrupt: Event | Sequence[Event] | None,
) -> list[Row]:
    """Rows of prompts; what is given once is for all of them."""
    count = len(texts)
    seeds, interrupts, streamers = (_each(own, count) for own in (seed, interrupt or Event(), streamer))
    rows = [
        Row(text, text.count(IMAGE_PLACEHOLDER), *own)
        for text, *own in zip(texts, seeds, interrupts, streamers, strict=True)
    ]
    for row in rows:
        _isolated([row], lambda own: _lay_out(model, *own))
    return rows


def _lay_out(model: "MiniGPTBase", row: Row) -> None:
    row.layout = model.layout(row.text)


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else [value] * count


def answer_rows(
    model: "MiniGPTBase", rows: list[Row], images: Images, decoding: Decoding, kept: KeptCache | None
) -> list[Answer]:
    """Answers each row, or notes why it failed.

    Raises:
        UserError: images for all rows together, and not as many as they have places for, or for other rows.
    """
    _give_images(rows, images)
    for row in _open(rows):
        _check(model, row, decoding)
    _isolated([row for row in _open(rows) if row.images is not None and row.images.dim() == 4], _encoder(model))
    groups: dict[int, list[Row]] = {}
    for number, row in enumerate(_open(rows)):
        # rows near the window's end get a batch of their own: others would go on where it has no positions
        groups.setdefault(number if turns_with_length(model.llm) else row.limit, []).append(row)
    for group in groups.values():
        _isolated(group, lambda some: _generate(model, some, decoding, kept if len(rows) == 1 else None))
    return [cast(Answer, row.answer) for row in rows]


def raise_first(answers: Sequence[Answer]) -> None:
    """Raises the first error; in a batch, with the number of its prompt."""
    for number, answer in enumerate(answers, start=1):
        if (error := answer.error) is not None:
            if len(answers) == 1:
                raise error
            kind = UserError if isinstance(error, UserError) else RuntimeError
            raise kind(f"prompt {number} of {len(answers)}: {error}") from error


def _open(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.answer is None]


def _isolated(rows: list[Row], work: Callable[[list[Row]], None]) -> None:
    """Works on all rows at once; if that fails, on each alone, so that only what is at fault fails."""
    try:
        if rows:
            work(rows)
        return
    except Exception as error:
        if len(rows) == 1:
            rows[0].fail(error)
            return
    for row in rows:  # out here, where the error no longer holds the batch's memory
        _isolated([row], work)


def _give_images(rows: list[Row], images: Images) -> None:
    if isinstance(images, Tensor) or images is None:
        places = [row.places for row in rows]
        if (given := 0 if images is None else len(images)) != sum(places):
            raise UserError(_mismatch("prompts hold", sum(places), given))
        images = [None] * len(rows) if images is None else list(images.split(places))
    if len(images) != len(rows):
        raise UserError(f"images were given for {len(images)} prompts, and there are {len(rows)}.")
    for row, own in zip(rows, images, strict=True):
        given = 0 if own is None else len(own)
        if given != row.places:
            row.fail(UserError(_mismatch("the prompt holds", row.places, given)))
        row.images = own if given else None


def _mismatch(who: str, places: int, given: int) -> str:
    return (
        f"{who} {places} {IMAGE_PLACEHOLDER} but {given} images were given. Write one {IMAGE_PLACEHOLDER} for each "
        "image."
    )


def _check(model: "MiniGPTBase", row: Row, decoding: Decoding) -> None:
    if (room := model.max_context_len - len(row.layout)) < 1:
        row.fail(
            UserError(
                f"a prompt is {1 - room} tokens longer than the LLM can read and answer (it reads "
                f"{model.max_context_len} at once). Shorten it, or show fewer images."
            )
        )
    row.limit = int(min(decoding.max_new_tokens, room))


def _encoder(model: "MiniGPTBase") -> Callable[[list[Row]], None]:
    def encode(rows: list[Row]) -> None:
        pictures = [cast(Tensor, row.images) for row in rows]
        embeddings = model.encode_img(torch.cat(pictures)).split([len(own) for own in pictures])
        for row, own in zip(rows, embeddings, strict=True):
            row.images = own

    return encode


def _generate(model: "MiniGPTBase", rows: list[Row], decoding: Decoding, kept: KeptCache | None) -> None:
    llm = cast(Any, model.llm)
    embedding = llm.get_input_embeddings()
    beams = decoding.num_beams > 1  # they multiply and reorder a cache
    fresh = None if beams or kept is not None else new_cache(llm)
    shared = 0 if fresh is None else shared_prefix(llm, [row.layout for row in rows])
    ids, mask = (t.to(model.device) for t in pad([row.layout for row in rows], value=0, behind=shared))
    images = [row.images for row in rows if row.images is not None]
    embeds = splice(ids, torch.cat(images) if images else None, embedding)
    limit, seeds = rows[0].limit, [row.seed for row in rows]
    streamers = [row.streamer for row in rows if row.streamer is not None]
    config = GenerationConfig(
        max_new_tokens=limit,
        min_new_tokens=min(decoding.min_new_tokens, limit),
        bos_token_id=model.llama_tokenizer.bos_token_id,
        eos_token_id=model.stop_ids or None,
        pad_token_id=(model.stop_ids or [0])[0],  # any id: masked before the prompt, cut off after the end
        **decoding.config(),
    )
    if beams and kept is not None:
        kept.reused, kept = 0, None
    held = nullcontext(fresh) if kept is None else kept.reading(llm, embeds[0])
    endings: list[Ending] = [Interrupt([row.interrupt for row in rows])]
    if model.template.stop:
        endings.append(StopWords(model.llama_tokenizer, model.template.stop, len(rows)))
    options: dict[str, Any] = {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "generation_config": config,
        "logits_processor": decoding.processors(seeds),
        "stopping_criteria": StoppingCriteriaList(endings),
        "streamer": Fanout(streamers) if streamers else None,
    }
    with decoding.seeded(seeds), held as cache:
        if shared:  # read once for all rows
            llm.get_decoder()(inputs_embeds=embeds[:1, :shared], past_key_values=cache, use_cache=True)  # no logits
            cast(DynamicCache, cache).batch_repeat_interleave(len(rows))
        if model.compiled and cache is not None and len(rows) == 1:
            tokens = model.compiled.generate(llm, cache, **options)
        else:
            tokens = llm.generate(**options, **({} if cache is None else {"past_key_values": cache}))
        if kept is not None:
            kept.note(torch.cat([embeds[0], embedding(tokens[0])]))
    for number, (row, own) in enumerate(zip(rows, tokens.tolist(), strict=True)):
        ends = [ending.at[number] for ending in (endings[:1] if beams else endings) if number in ending.at]
        row.answer = _answer(model, row, own[: min(ends, default=None)], interrupted=number in endings[0].at)


def _answer(model: "MiniGPTBase", row: Row, tokens: list[int], interrupted: bool) -> Answer:
    end = next((i for i, token in enumerate(tokens) if token in model.stop_ids), len(tokens))
    text = cast(str, model.llama_tokenizer.decode(tokens[:end], skip_special_tokens=True))
    said = any(stop in text for stop in model.template.stop)
    interrupted = interrupted and not said and end == len(tokens)  # else it had ended before
    ended = said or (end < row.limit and not interrupted)
    answer = Answer(model.cut(text) if ended else settled(model, text))
    answer.finish = "stop" if ended else "interrupt" if interrupted else "length"
    answer.prompt_tokens = len(row.layout)
    answer.new_tokens = end + (ended and not said)  # with the token that ended it
    return answer


def settled(model: "MiniGPTBase", text: str, stops: Sequence[str] = (), continued: bool = False) -> str:
    """The part of an unfinished answer that stays: no stop string nor the beginning of one, and no half character."""
    text = model.cut(text, stops, continued).rstrip("\N{REPLACEMENT CHARACTER}")
    tails = (stop[:n] for stop in (*model.template.stop, *stops) for n in range(1, len(stop)))
    return text.removesuffix(max((t for t in tails if text.endswith(t)), key=len, default="")).rstrip()

"""Training: samples become layouts, layouts the loss of their labels."""

import logging
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Template, TokenizerTemplate
from minigpt4.conversation.prompter import IMAGE_PLACEHOLDER, Example, Prompter
from minigpt4.models.base_model import BaseModel
from minigpt4.models.llm import embedding_of
from minigpt4.models.splice import IGNORE, splice, training_batch
from minigpt4.models.vision import VisionPart

logger = logging.getLogger(__name__)

_MOST_REPORTED = 20


class TrainingModel(BaseModel):
    """The part of a MiniGPT model that computes losses; `MiniGPTBase` is the whole."""

    llm: PreTrainedModel
    llama_tokenizer: PreTrainedTokenizerBase
    template: Template | TokenizerTemplate
    projection: nn.Module
    vision: VisionPart
    image_size: int
    end_sym: str
    max_txt_len: int
    max_context_len: float
    prompt_template: str
    turn_template: str
    chat_template: bool
    prompt_list: list[str]
    unlearned: set[str]  # samples reported as teaching nothing

    @property
    def rows_per_image(self) -> int:
        """Embeddings that stand for one image."""
        return self.vision.rows

    @abstractmethod
    def encode_img(self, image: Tensor) -> Tensor:
        """Maps images [B, 3, H, W], or their cached features, to LLM embeddings [B, rows, D]."""

    @property
    def prompter(self) -> Prompter:
        """What lays out the texts of samples, as this model is set now."""
        return Prompter(
            self.llama_tokenizer,
            self.template.learned,
            self.rows_per_image,
            self.prompt_list,
            self.prompt_template,
            self.turn_template,
            self.chat_template,
            self.end_sym,
            self.max_txt_len,
            self.max_context_len,
        )

    def sample_check(self) -> Callable[[dict[str, Any]], None]:
        return self.prompter.check

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """Computes the mean negative log-likelihood of the answers' tokens over the batch; 0 where there are none.

        Args:
            samples: `image` [B, 3, H, W], or [B, n, 3, H, W] with `length` (B numbers: how many of the n images a
                sample has), or a list of each sample's [3, H, W], [n, 3, H, W] or None; none for text alone. And
                either `answer` (B strings) with `instruction_input` (B prompts with `<ImageHere>`; without it one of
                the configured prompts is drawn, and without those the image alone is the prompt, as in stage 1), or a
                conversation: `conv_q` and `conv_a`, B strings of turns joined by `connect_sym`. In place of `image`,
                `image_features` of the vision part: [rows, width] for each [3, H, W].
        """
        images = self._encode_images(samples)
        examples = self._examples(samples)
        self._report_unlearned(samples, examples)
        # text alone still needs a gradient, of zeros, and ranks wait for one another in all parts of the model, in the
        # same order forward and backward
        blank = self.encode_img(self.vision.blank(self.device)) if images is None else None
        embeds, mask, labels = self._inputs(examples, images, samples.get("image_id"))
        if blank is not None:
            embeds = embeds + (0 * blank.sum()).to(embeds)
        logits, labels, _ = self._label_logits(embeds, mask, labels)
        loss = F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)
        return {"loss": loss, "tokens": torch.tensor(len(labels), device=loss.device)}

    def _report_unlearned(self, samples: dict[str, Any], examples: list[Example]) -> None:
        """Warns, once of each, of samples that teach nothing, with the likely cause."""
        answers = samples["conv_a"] if "conv_q" in samples else samples["answer"]
        between = samples.get("connect_sym", [" "] * len(answers))
        ids = samples.get("image_id", ["without image_id"] * len(answers))
        for name, answer, sym, example in zip(map(str, ids), answers, between, examples, strict=True):
            empty = not answer.replace(sym, " ").strip()
            if not empty and any(learned for _, learned in example):
                continue
            if name not in self.unlearned and len(self.unlearned) <= _MOST_REPORTED:
                self.unlearned.add(name)
                cause = (
                    "its answer is empty" if empty else f"model.max_txt_len={self.max_txt_len} leaves no room for it"
                )
                more = "; more such samples are not reported" if len(self.unlearned) > _MOST_REPORTED else ""
                logger.warning("sample %s teaches no answer: %s%s", name, cause, more)

    def _label_logits(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, V] in fp32 of the positions before the N labels, the labels [N], and whose sample each is [N].

        The arguments are what `_inputs` returns.

        Only these positions go through the LLM's head: a large vocabulary's logits of all positions would take more
        memory than everything else.
        """
        rows, positions = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        with _head_reads(self.llm, rows, positions):
            logits = self.llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        if logits.shape[:2] == labels.shape:  # its head is no module of its own
            logits = logits[rows, positions].unsqueeze(0)
        return logits[0].float(), labels[rows, positions + 1].to(logits.device), rows

    def _inputs(
        self, examples: list[Example], images: Tensor | None, names: Sequence[Any] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the LLM reads, embeddings [B, T, D] and mask [B, T], and the labels [B, T], on the CPU."""
        ids, mask, labels = training_batch(examples, self.llama_tokenizer.bos_token_id)
        if (excess := ids.shape[1] - self.max_context_len) > 0:
            name = names[int(mask.sum(1).argmax())] if names else "without image_id"
            raise UserError(
                f"training sample {name} is {excess} tokens longer than the {self.max_context_len} that the LLM reads "
                "at once. Shorten its prompt, or lower model.max_txt_len."
            )
        embeds = splice(ids.to(self.device), images, embedding_of(self.llm))
        return embeds, mask.to(self.device), labels

    def _encode_images(self, samples: dict[str, Any]) -> Tensor | None:
        """Embeddings [N, rows, D] of all images of a batch, in order of appearance; None without images."""
        cached = "image_features" in samples
        images, dims = samples.get("image_features" if cached else "image"), 2 if cached else 3  # dims of one image
        if isinstance(images, list):  # of samples that have different numbers of images
            own = [i if i.dim() > dims else i.unsqueeze(0) for i in images if i is not None]
            images = torch.cat(own).to(self.device) if sum(map(len, own)) else None
        if images is None:
            return None
        if images.dim() == dims + 2:
            lengths = torch.as_tensor(samples.get("length", [images.shape[1]] * len(images)), device=images.device)
            images = images[torch.arange(images.shape[1], device=images.device) < lengths[:, None]]
        return self.encode_img(images)

    def _examples(self, samples: dict[str, Any]) -> list[Example]:
        """Training layouts of a batch: each a prompt and its answer, or the turns of a conversation."""
        prompter = self.prompter
        if "conv_q" in samples:
            turns = zip(samples["conv_q"], samples["conv_a"], samples["connect_sym"], strict=True)
            return [prompter.conversation(q.split(sym), a.split(sym)) for q, a, sym in turns]
        pairs = zip(self._prompts(samples), samples["answer"], strict=True)
        return [prompter.single(prompt, answer) for prompt, answer in pairs]

    def _prompts(self, samples: dict[str, Any]) -> list[str]:
        """The prompts of a batch: a sample's own instruction beats the configured list (as in the original)."""
        if "instruction_input" in samples:
            own = self.prompter.instruction
            # a sample of a mixed file may come without one
            return [own(text) if text else self._draw_prompt() for text in samples["instruction_input"]]
        return [self._draw_prompt() for _ in samples["answer"]]

    def _draw_prompt(self) -> str:
        if not self.prompt_list:
            return IMAGE_PLACEHOLDER
        return random.choice(self.prompt_list) if self.training else self.prompt_list[0]  # validation repeats


@contextmanager
def _head_reads(llm: PreTrainedModel, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """For the duration the LLM's head reads these N places of its input [B, T, D] alone, as [1, N, D].

    Not its argument `logits_to_keep`: some LLMs lack it, and in older versions it names columns, not places.
    """
    head = llm.get_output_embeddings()
    if head is None:
        yield
        return

    def pick(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]
        return (hidden[rows.to(hidden.device), positions.to(hidden.device)].unsqueeze(0),)

    hook = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()

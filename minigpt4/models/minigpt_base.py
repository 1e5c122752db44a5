"""What the MiniGPT models share: image embeddings spliced into what a frozen LLM reads. Tensors only."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from minigpt4.conversation.prompter import IGNORE
from minigpt4.models.base_model import BaseModel
from minigpt4.models.llm import embedding_of
from minigpt4.models.splice import splice


class MiniGPTBase(BaseModel):
    """A frozen LLM that reads image embeddings (MiniGPT-4: Zhu et al. 2023, arXiv:2304.10592, section 3)."""

    projection: nn.Linear

    def __init__(self, llm: PreTrainedModel):
        super().__init__()
        self.llm = llm

    @property
    def device(self) -> torch.device:
        # the LLM may be spread over several; by its name, ZeRO-3 would gather the weight, for which ranks wait
        return next(self.projection.parameters()).device

    @property
    def vocabulary(self) -> int:
        """How many words the LLM chooses from."""
        return embedding_of(self.llm).num_embeddings

    @abstractmethod
    def encode_img(self, image: Tensor) -> Tensor:
        """Maps images [B, 3, H, W] to LLM embeddings [B, rows, D]."""

    @abstractmethod
    def blank(self) -> Tensor:
        """One image of zeros, as `encode_img` takes it."""

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Computes the mean negative log-likelihood of a batch's labels; 0 where there are none.

        Args:
            batch: `ids` [B, T], layouts of `Prompter.example`, `mask` [B, T], `labels` [B, T], and `pictures` of all
                samples in order, as `encode_img` takes them; without any it may be left out.
        """
        pictures = batch.get("pictures")
        # text alone still needs a gradient, of zeros, and ranks wait for one another in all parts of the model
        images = self.encode_img(self.blank() if pictures is None else pictures)
        embeds = self.embed(batch["ids"], None if pictures is None else images)
        if pictures is None:
            embeds = embeds + (0 * images.sum()).to(embeds)
        logits, labels, _ = self.label_logits(embeds, batch["mask"], batch["labels"])
        loss = F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)
        return {"loss": loss, "tokens": torch.tensor(len(labels), device=loss.device)}

    def embed(self, ids: Tensor, images: Tensor | None) -> Tensor:
        """Embeds layouts [B, T] to [B, T, D]; images [N, rows, D] fill their slots in order, see `splice`."""
        return splice(ids.to(self.device), images, embedding_of(self.llm))

    def label_logits(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the LLM predicts in the places of a batch's N labels.

        Only the positions before them go through the LLM's head: a large vocabulary's logits of all positions would
        take more memory than everything else.

        Args:
            embeds: [B, T, D].
            mask, labels: [B, T].

        Returns:
            Logits [N, V] in fp32, the labels [N], and whose row each is [N].
        """
        rows, positions = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        with _head_reads(self.llm, rows, positions):
            logits = self.llm(
                inputs_embeds=embeds, attention_mask=mask.to(embeds.device), use_cache=False
            ).logits
        if logits.shape[:2] == labels.shape:  # its head is no module of its own
            logits = logits[rows, positions].unsqueeze(0)
        return logits[0].float(), labels[rows, positions + 1].to(logits.device), rows

    def new_projection(self, width: int) -> nn.Linear:
        """An untrained projection from the image tower's width to the LLM's.

        Its outputs are as large as word embeddings from the first step on; nn.Linear's own scale suits no LLM in
        particular.
        """
        embedding = embedding_of(self.llm)
        some = range(0, embedding.num_embeddings, max(1, embedding.num_embeddings // 4096))
        with torch.no_grad():  # what the layers see: Gemma scales its embeddings
            words = embedding(torch.tensor(some, device=embedding.weight.device)).float()
        projection = nn.Linear(width, words.shape[1])
        nn.init.normal_(projection.weight, std=float(words.square().mean().sqrt()) / width**0.5)
        nn.init.zeros_(projection.bias)
        return projection

    @contextmanager
    def untrained_projection(self, active: bool = True) -> Iterator[None]:
        """Replaces the trained projection by an untrained one for the duration: a control of evaluation."""
        trained = self.projection
        if active:
            torch.manual_seed(0)  # the same control at each evaluation, and on each rank
            self.projection = self.new_projection(trained.in_features).to(self.device)
        try:
            yield
        finally:
            self.projection = trained


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

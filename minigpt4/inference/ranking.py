"""Candidate answers ranked by how likely the model finds them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt4.conversation.conversation import Part
from minigpt4.datasets.loading import collate, tensors_of
from minigpt4.inference.requests import LengthNorm

if TYPE_CHECKING:  # which ranks by this
    from minigpt4.inference.engine import Engine


@torch.inference_mode()
def rank(
    engine: "Engine",
    prompts: Sequence[Sequence[Part]],
    answers: Sequence[Sequence[str]],
    length_norm: LengthNorm = "mean",
) -> list[list[int]]:
    """Ranks each prompt's candidate answers, the most likely first (the original's `multi_select`).

    Args:
        prompts: B prompts, see `Prompter.read` and `Prompter.parse`.
        answers: B lists of candidates; their lengths may differ.
        length_norm: what is compared: the mean or the sum of the tokens' log-likelihoods, or the original's mean over
            all positions of the padded batch, under which a rank depends on the other rows.

    Returns:
        B lists of the candidates' numbers.
    """
    most = max(map(len, answers))
    losses = torch.full((len(prompts), most), float("inf"))
    for candidate in range(most):
        rows = [i for i, own in enumerate(answers) if candidate < len(own)]
        losses[rows, candidate] = losses_of(
            engine, [prompts[i] for i in rows], [answers[i][candidate] for i in rows], length_norm
        )
    return [losses[i].argsort()[: len(own)].tolist() for i, own in enumerate(answers)]


def losses_of(
    engine: "Engine", prompts: Sequence[Sequence[Part]], answers: list[str], length_norm: LengthNorm
) -> Tensor:
    """Negative log-likelihood of each prompt's answer, [B]."""
    prompter, model = engine.prompter, engine.model
    pairs = [prompter.pair(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    pairs = [(prompt, answer[: prompter.max_txt_len]) for prompt, answer in pairs]
    batch = collate([tensors_of(prompt + answer) for prompt, answer in pairs])
    pictures = [part for prompt in prompts for part in prompt if not isinstance(part, str)]
    images = torch.stack(engine.embeddings(pictures)) if pictures else None
    logits, labels, rows = model.label_logits(model.embed(batch["ids"], images), batch["mask"], batch["labels"])
    each = F.cross_entropy(logits, labels, reduction="none").cpu()
    losses = torch.zeros(len(pairs)).index_add_(0, rows.cpu(), each)
    lengths = [[len(part) for part in pair] for pair in pairs]
    if length_norm == "mean":
        return losses / torch.tensor([answer for _, answer in lengths])
    if length_norm == "original":  # it pads prompts, without the BOS, and answers each to their longest
        bos = prompter.tokenizer.bos_token_id is not None
        longest = [max(own) for own in zip(*lengths, strict=True)]
        return losses / (sum(longest) - bos)
    return losses

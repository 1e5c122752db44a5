"""An LLM that finds plain text unlikely has the wrong weights or the wrong tokenizer."""

import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt4.models.llm import embedding_of

logger = logging.getLogger(__name__)

_MOST_TOKENS = 256  # enough to know, and little memory with any vocabulary
_BAD = 0.6  # of the loss of guessing: real LLMs have a third, wrong tokenizers nearly all of it or more


@torch.inference_mode()
def plain_text_loss(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """Mean negative log-likelihood of a text's first tokens, on the device where the LLM is."""
    bos = tokenizer.bos_token_id
    ids = ([] if bos is None else [bos]) + tokenizer.encode(text, add_special_tokens=False)
    tokens = torch.tensor([ids[:_MOST_TOKENS]], device=embedding_of(llm).weight.device)
    logits = llm(input_ids=tokens, use_cache=False).logits[0, :-1].float()
    return F.cross_entropy(logits, tokens[0, 1:].to(logits.device)).item()


def check_plain_text(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: str) -> None:
    """Logs how likely the LLM finds a file's text, and warns where that is close to guessing."""
    words = embedding_of(llm).num_embeddings
    loss = plain_text_loss(llm.eval(), tokenizer, Path(file).read_text(encoding="utf-8").strip())
    perplexity = math.exp(min(loss, 700.0))
    if loss < _BAD * math.log(words):
        logger.info("the LLM reads plain text with a perplexity of %.3g", perplexity)
        return
    logger.warning(
        "model.llama_model: it finds plain text about as unlikely as guessing (perplexity %.3g, vocabulary %d): wrong "
        "weights or tokenizer. If it does not speak the language of '%s', set model.plain_text to a file of its own.",
        *(perplexity, words, file),
    )

"""ChatML: batches and contexts equal those of MiniGPT4Qwen."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from minigpt4.config.loading import load_config
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.conversation.prompter import IGNORE, IMAGE_PLACEHOLDER, IMAGE_ROW, Prompter
from tests.conftest import golden_json

ROOT = Path(__file__).parents[3]
SPEC = golden_json("8_qwen_preprocess")
EXTRA, PAD = 258, 259
TYPED_EXTRA = "<|extra_0|>"
TYPED = [case for case in SPEC["preprocess"] if TYPED_EXTRA in case["conversation"][0]["value"]]


class ByteTokenizer:
    """The stand-in of the recorded cases: UTF-8 bytes, and ids of its own for ChatML's markers."""

    bos_token_id = bos_token = None
    special = {"<|im_start|>": 256, "<|im_end|>": 257}

    def encode(self, text: str, add_special_tokens: bool = False, verbose: bool = True) -> list[int]:
        pieces = re.split("(" + "|".join(map(re.escape, self.special)) + ")", text)
        return [i for p in pieces for i in ([self.special[p]] if p in self.special else p.encode())]


class ExtraTokenizer(ByteTokenizer):
    """Takes a typed <|extra_0|> for a place of an image, as the original's does."""

    special = ByteTokenizer.special | {TYPED_EXTRA: EXTRA}


def prompter_of(tokenizer: ByteTokenizer) -> Prompter:
    """As the Qwen recipe sets it; the recorded texts have tags around their pictures already."""
    config = load_config(ROOT / "minigpt4/config/defaults/models/mini_gpt4/pretrain_qwen.yaml").model
    config = replace(config, conversation="chatml", prompt_path="", max_txt_len=SPEC["max_len"])
    return replace(Prompter.of(config, tokenizer, SPEC["image_len"], math.inf), image_tags=("", ""))


def laid_out(turns: list[dict[str, str]], tokenizer: ByteTokenizer) -> tuple[list[int], list[int]]:
    """Ids and labels of one recorded conversation."""
    own = prompter_of(tokenizer)
    values = [turn["value"] for turn in turns[turns[0]["from"] == "assistant" :]]
    questions = [own.parse(text, [None] * text.count(IMAGE_PLACEHOLDER)) for text in values[::2]]
    example = own.example(Conversation([Turn(*turn) for turn in zip(questions, values[1::2], strict=True)]))
    return [EXTRA if i == IMAGE_ROW else i for i, _ in example], [i if learned else IGNORE for i, learned in example]


@pytest.mark.parametrize("case", SPEC["preprocess"], ids=lambda c: c["conversation"][-1]["value"])
def test_training_examples(case):
    turns, recorded = case["conversation"], case["input_ids"]
    ids, labels = laid_out(turns, ExtraTokenizer())
    too_long = len(ids) > SPEC["max_len"]
    length = min(len(ids), len(recorded))
    assert ids[:length] == recorded[:length]
    assert labels[:length] == case["labels"][:length]
    assert case["attention_mask"] == [1] * length + [0] * (len(recorded) - length)
    assert set(recorded[length:]) <= {PAD}
    if too_long:  # both values: the original cuts off the answer, here max_txt_len counts what follows the prompt
        answer = turns[-1]["value"].encode()
        assert answer not in bytes(i for i in case["labels"] if 0 <= i < 256)
        assert bytes(i for i in labels if 0 <= i < 256).endswith(answer + b"\n")


@pytest.mark.parametrize("case", TYPED, ids=lambda c: c["conversation"][-1]["value"])
def test_a_typed_place_for_an_image_is_text(case):
    """Both values: the original takes it for a place that no image fills (the case is among the above)."""
    ids, _ = laid_out(case["conversation"], ByteTokenizer())
    assert EXTRA not in ids and EXTRA in case["input_ids"]
    assert TYPED_EXTRA.encode() in bytes(i for i in ids if i < 256)


@pytest.mark.parametrize("case", SPEC["make_context"], ids=lambda c: c["query"])
def test_contexts(case):
    own = prompter_of(ByteTokenizer())
    turns = [*(Turn([question], answer) for question, answer in case["history"]), Turn([case["query"]])]
    parts = own.read(Conversation(turns))
    if len(own.layout(parts)) > case["max_window_size"]:
        # both values: the original forgets the oldest turns of what does not fit, here nothing is cut
        assert case["raw_text"] != own.text(parts)
        later = (own.read(Conversation(turns[first:])) for first in range(1, len(turns)))
        parts = next(parts for parts in later if own.text(parts) == case["raw_text"])
    assert own.text(parts) == case["raw_text"]
    assert own.layout(parts) == case["context_tokens"]

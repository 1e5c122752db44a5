"""ChatML: batches and contexts equal those of MiniGPT4Qwen."""

import re
from pathlib import Path

import pytest

from minigpt4.config.loading import load_config
from minigpt4.conversation.conversation import Turn, get_template
from minigpt4.conversation.prompter import IMAGE_ROW
from minigpt4.models.splice import training_batch
from tests.conftest import golden_json

ROOT = Path(__file__).parents[3]
SPEC = golden_json("8_qwen_preprocess")
EXTRA, PAD = 258, 259
TYPED_EXTRA = "<|extra_0|>"


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


@pytest.fixture
def batch(parity_model, monkeypatch):
    """Builds the batch of one recorded conversation: ids and labels."""
    config = load_config(ROOT / "minigpt4/config/defaults/models/mini_gpt4/pretrain_qwen.yaml").model
    settings = {
        "template": get_template("chatml", ByteTokenizer()),
        "prompt_template": config.prompt_template,
        "turn_template": config.turn_template,
        "end_sym": config.end_sym,
        "max_txt_len": SPEC["max_len"],
    }
    for name, value in settings.items():
        monkeypatch.setattr(parity_model, name, value)
    monkeypatch.setattr(type(parity_model), "rows_per_image", SPEC["image_len"])

    def build(turns: list[dict[str, str]], tokenizer: ByteTokenizer) -> tuple[list[int], list[int]]:
        monkeypatch.setattr(parity_model, "llama_tokenizer", tokenizer)
        values = [turn["value"] for turn in turns[turns[0]["from"] == "assistant" :]]
        samples = {"conv_q": ["@@".join(values[::2])], "conv_a": ["@@".join(values[1::2])], "connect_sym": ["@@"]}
        ids, _, labels = training_batch(parity_model._examples(samples), None)
        return ids[0].masked_fill(ids[0] == IMAGE_ROW, EXTRA).tolist(), labels[0].tolist()

    return build


@pytest.mark.parametrize("case", SPEC["preprocess"], ids=lambda c: c["conversation"][-1]["value"])
def test_training_examples(case, batch):
    turns, recorded = case["conversation"], case["input_ids"]
    ids, labels = batch(turns, ExtraTokenizer())
    too_long = len(ids) > SPEC["max_len"]
    length = min(len(ids), len(recorded))
    assert ids[:length] == recorded[:length]
    assert labels[:length] == case["labels"][:length]
    assert case["attention_mask"] == [1] * length + [0] * (len(recorded) - length)
    assert set(recorded[length:]) <= {PAD}
    if too_long:  # both values: the original cuts off the answer, here max_txt_len counts what follows the prompt
        assert len(recorded) == SPEC["max_len"]
        answer = turns[-1]["value"].encode()
        assert answer not in bytes(i for i in case["labels"] if 0 <= i < 256)
        assert bytes(i for i in labels if 0 <= i < 256).endswith(answer + b"\n")


def test_a_typed_place_for_an_image_is_text(batch):
    """Both values: the original takes it for a place that no image fills (the case is among the above)."""
    (case,) = [c for c in SPEC["preprocess"] if TYPED_EXTRA in c["conversation"][0]["value"]]
    ids, _ = batch(case["conversation"], ByteTokenizer())
    assert EXTRA not in ids and EXTRA in case["input_ids"]
    assert TYPED_EXTRA.encode() in bytes(i for i in ids if i < 256)


@pytest.mark.parametrize("case", SPEC["make_context"], ids=lambda c: c["query"])
def test_contexts(case):
    template = get_template("chatml", ByteTokenizer())
    turns = [*(Turn(question, answer) for question, answer in case["history"]), Turn(case["query"])]
    if len(ByteTokenizer().encode(template.prompt(turns))) > case["max_window_size"]:
        # both values: the original forgets the oldest turns of what does not fit, here nothing is cut
        assert case["raw_text"] in [template.prompt(turns[first:]) for first in range(1, len(turns))]
    else:
        assert template.prompt(turns) == case["raw_text"]
    assert ByteTokenizer().encode(case["raw_text"]) == case["context_tokens"]

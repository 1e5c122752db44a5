"""Tokenizers of LLaMA folders: the original's ids, and everything else that a Hugging Face tokenizer offers."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from minigpt4.models.llm import LlamaSentencePieceTokenizer, load_tokenizer
from tests.conftest import PARITY, golden_json

CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"


def special(text: str) -> dict:
    return {"content": text, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


LLAMA2 = {  # as the released folders
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "pad_token": None,
    "chat_template": CHAT,
    **{name: {"__type": "AddedToken", **special(t)} for name, t in (("bos_token", "<s>"), ("eos_token", "</s>"))},
    "added_tokens_decoder": {str(i): special(t) | {"special": True} for i, t in enumerate(("<unk>", "<s>", "</s>"))},
}
FOLDERS = {  # the files beside tokenizer.model
    "bare": {},
    "recorded": {p.name: p.read_text() for p in (PARITY / "tokenizer").glob("*.json")},
    "llama2": {"tokenizer_config.json": LLAMA2},
    "decapoda": {  # an early conversion of LLaMA, with wrong names for the special tokens
        "tokenizer_config.json": {
            "bos_token": "",
            "eos_token": "",
            "unk_token": "",
            "tokenizer_class": "LLaMATokenizer",
        },
        "special_tokens_map.json": {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"},
    },
    "padded": {"added_tokens.json": {"[PAD]": 480}, "special_tokens_map.json": {"pad_token": "[PAD]"}},
    "template": {"chat_template.jinja": CHAT},
}


@pytest.fixture
def folder(request, tmp_path) -> Path:
    shutil.copy(PARITY / "tokenizer" / "tokenizer.model", tmp_path)
    for name, content in FOLDERS[request.param].items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("folder", FOLDERS, indirect=True)
def test_ids_are_the_originals_whatever_the_folders_settings_say(folder):
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    for case in golden_json("tokenizer_cases")["cases"]:
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"], case["text"]
        assert tokenizer.encode(case["text"]) == case["ids_with_bos"], case["text"]


@pytest.mark.parametrize("folder", ["llama2", "template"], indirect=True)
def test_the_folders_chat_template_is_kept(folder):
    text = load_tokenizer(folder).apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<s>[hi]"


@pytest.mark.parametrize(("folder", "pad"), [("bare", 0), ("llama2", 0), ("padded", 480)], indirect=["folder"])
def test_batches_are_padded_under_a_mask(folder, pad):
    tokenizer = load_tokenizer(folder)
    batch = tokenizer(["a dog", "a"], padding=True)
    assert batch["input_ids"] == [[1, 260, 393], [1, 260, pad]]
    assert batch["attention_mask"] == [[1, 1, 1], [1, 1, 0]]
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["a dog", "a"]
    assert tokenizer(["a dog", "a"], padding=True, padding_side="left")["input_ids"][1] == [pad, 1, 260]


@pytest.mark.parametrize("folder", ["padded"], indirect=True)
def test_added_tokens_are_one_id_each(folder):
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == 481
    assert tokenizer.encode("a[PAD]a", add_special_tokens=False) == [260, 480, 260]


@pytest.mark.parametrize("folder", ["llama2"], indirect=True)
def test_a_saved_tokenizer_loads_as_the_same(folder, tmp_path):
    load_tokenizer(folder).save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    assert isinstance(saved, LlamaSentencePieceTokenizer) and saved.chat_template == CHAT
    assert saved.encode("<s> hi</s>") == load_tokenizer(folder).encode("<s> hi</s>")


def test_a_decoded_text_grows_at_its_end_only(tmp_path):
    words = ["wait", " .", " is", " n't", " 're", " I", "?"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer, tokenizer.decoder = Split(" ", "merged_with_next"), Fuse()
    settings = {"eos_token": "?", "clean_up_tokenization_spaces": True}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.decode(range(5)) == "wait . is n't 're"


def test_vocabularies_with_other_special_tokens_are_left_to_transformers(tmp_path):
    """Yi's folders say model_type llama, and begin a text with <|startoftext|>."""
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a dog and a cat", "two dogs"]),
        model_writer=model,
        vocab_size=15,
        bos_piece="<|startoftext|>",
        eos_piece="<|endoftext|>",
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "LlamaTokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    assert not isinstance(tokenizer, LlamaSentencePieceTokenizer)
    assert tokenizer.bos_token == "<|startoftext|>"

"""The tiny language model's sentencepiece tokenizer, of the same make as Llama's."""

import io
import random
from pathlib import Path

import sentencepiece

from minigpt4.common.paths import TINY_LLM
from minigpt4.conversation.templates import SYSTEM
from minigpt4.tiny.text import DETAIL_REQUESTS, ask_all, caption, description, notes
from minigpt4.tiny.world import sample_facts

VOCABULARY = 512
CHARACTERS = "".join(map(chr, range(33, 127)))
# what transformers needs to know beside the pieces: the bundled model's, whose values are those of the original's Llama
_SETTINGS = TINY_LLM / "tokenizer_config.json"


def train_tokenizer(folder: Path, seed: int, scenes: int = 3000) -> None:
    """Writes `tokenizer.model` and `tokenizer_config.json` into `folder`."""
    rng = random.Random(seed)
    lines = [CHARACTERS]
    for _ in range(scenes):
        facts = sample_facts(rng)
        lines += [caption(facts), description(facts), notes(rng, facts), rng.choice((SYSTEM, *DETAIL_REQUESTS))]
        for question in ask_all(rng, facts):  # written out: pieces of the bundled model come of exactly this text
            lines.append(f"###Human: <Img></Img> {question.question} ###Assistant: {question.answer}###")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,  # not a path: the trainer would write it into the model
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        user_defined_symbols=["###", "<Img>", "</Img>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(_SETTINGS.read_text())


def load_tokenizer(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))

import argparse
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minigpt4.tiny import cli, lm_data, pretrain, pretrain_llm, pretrain_qformer, pretrain_vision
from minigpt4.tiny.fit import Stage
from minigpt4.tiny.tokenizer import load_tokenizer, train_tokenizer
from minigpt4.tiny.world import Fact

FILES = ("llm/tokenizer.model", "llm/model.safetensors", "eva_vit.safetensors", "blip2_qformer.safetensors")
FACTS = (Fact(7, "red", "left"), Fact(3, "blue", "top"))


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> lm_data.Writer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder, seed=0, scenes=1000)
    return lm_data.Writer(load_tokenizer(folder))


def decode(writer: lm_data.Writer, ids: list[int]) -> str:
    return writer.encode.__self__.decode(ids)


def test_every_word_of_the_world_is_one_piece(writer: lm_data.Writer) -> None:
    pieces = [writer.words(fact) for fact in FACTS]
    assert [decode(writer, [i]).strip() for ids in pieces for i in ids] == [
        "red",
        "7",
        "left",
        "blue",
        "3",
        "top",
    ]


def test_chat_learns_all_answers_and_nothing_else(writer: lm_data.Writer) -> None:
    turns = [("Which digit is red?", "7"), ("Where is the 3?", "at the top"), ("How many digits?", "two")]
    for seed in range(20):
        example = writer.chat(random.Random(seed), FACTS, seed % 2 == 0, turns)
        learned = [token for token, known in zip(example.ids, example.learned, strict=True) if known]
        assert decode(writer, learned).replace(" ", "") == "7###atthetop###two###"
        assert len(example.ids) == len(example.learned)


def test_caption_has_no_prompt(writer: lm_data.Writer) -> None:
    example = writer.caption(random.Random(0), FACTS, True)
    assert example.ids[0] == lm_data.BOS and example.slots == list(range(1, 1 + lm_data.SLOTS))
    assert decode(writer, example.ids[1 + lm_data.SLOTS :]) == "a red 7 on the left and a blue 3 at the top\n"


def test_blends_are_sums_of_the_digits_words(writer: lm_data.Writer) -> None:
    example = writer.caption(random.Random(0), FACTS[:1], True)
    table = torch.randn(512, 16)
    embeddings, labels = lm_data.collate([example], table, torch.zeros(1))
    position, words, weights = example.blends[0]
    here = [(w, a) for p, w, a in example.blends if p == position]
    expected = sum((table[list(w)] * torch.tensor(a)[:, None]).sum(0) for w, a in here)
    assert torch.allclose(embeddings[0, position], expected, atol=1e-5)
    assert torch.equal(embeddings[0, 0], table[lm_data.BOS])
    empty = set(example.slots) - {p for p, _, _ in example.blends}
    assert embeddings[0, list(empty)].abs().max() == 0
    assert (labels[0] != -100).sum() == sum(example.learned)


def test_commands_import_nothing_heavy() -> None:
    code = "import sys, minigpt4.tiny.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0  # noqa: S603


@pytest.mark.slow
def test_pretrain_is_deterministic_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pretrain_llm, pretrain_vision, pretrain_qformer):
        monkeypatch.setattr(module, "VALIDATION_SCENES", 4)
        for name, stage in vars(module).copy().items():
            if isinstance(stage, Stage):
                monkeypatch.setattr(module, name, replace(stage, batch=8))

    def run_here(name: str) -> dict[str, bytes]:
        (tmp_path / name).mkdir()
        train_tokenizer(tmp_path / name / "llm", 0)
        for index in range(len(pretrain.CHAINS)):
            pretrain.run_chain(index, tmp_path / name, 0, 1e-3)
        return read(name)

    def read(name: str) -> dict[str, bytes]:
        return {file: (tmp_path / name / file).read_bytes() for file in FILES}

    threads = torch.get_num_threads()
    first = run_here("a")
    assert first == run_here("b")
    torch.set_num_threads(threads)  # a chain takes one
    log = (tmp_path / "a" / "pretrain_log.jsonl").read_text()
    stages = {json.loads(line)["stage"] for line in log.splitlines()}
    assert stages == {"helper_lm", "llm", "llm_polish", "vit", "qformer", "qformer_joint"}

    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    cli.main(parser.parse_args(["pretrain", "--out", str(tmp_path / "a")]))  # all is done already
    assert read("a") == first
    assert (tmp_path / "a" / "pretrain_log.jsonl").read_text() == log

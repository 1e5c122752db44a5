"""Pretrains the tiny language model (the "Vicuna" of the bundled model) and its throw-away helper, on text alone."""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.tiny.fit import Stage, fit, seed_all
from minigpt4.tiny.lm_data import Writer, collate, sample_examples
from minigpt4.tiny.text import DETAIL_REQUESTS, QUESTION_TYPES, ask, description
from minigpt4.tiny.tokenizer import VOCABULARY, load_tokenizer
from minigpt4.tiny.world import sample_facts


@dataclass(frozen=True)
class TextStage(Stage):
    """A stage of a language model, and what it reads."""

    noise: float = 0.6  # on blended slots, in parts of the word embeddings' root mean square
    turns: int = 3  # of a chat, at most
    drill: float = 0.0  # part of the steps that are recall drills, at the start
    ramp: float = 0.0  # part of the steps over which the noise rises


HELPER = TextStage("helper_lm", steps=1600, lr=2e-3, batch=32, noise=0.5, turns=2, drill=0.25, ramp=0.5)
LLM_BINDING = TextStage("llm", steps=2600, lr=2e-3, batch=32, drill=0.2, ramp=0.5)
LLM_POLISH = TextStage("llm_polish", steps=2000, lr=1.5e-3, batch=32)
VALIDATION_SCENES = 100
LENGTH_GROUPS = 3  # a batch is run in groups of like length: a third less padding


def build_lm(width: int, heads: int, mlp: int) -> LlamaForCausalLM:
    """A Llama with random weights. The small initial outputs of each block keep a 3-layer model's start stable."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=3,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
        elif isinstance(module, nn.Linear) and name != "lm_head":
            gain = 0.2 if name.endswith(("o_proj", "down_proj")) else 1.0
            nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)
    return model


def labelled_logits(model: LlamaForCausalLM, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, V], targets [N] and rows [N] of the labelled positions; padding is on the right and needs no mask."""
    hidden = model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    known = targets != -100
    return F.linear(hidden[known], model.lm_head.weight), targets[known], known.nonzero()[:, 0]


def part_right(wrong: Tensor, rows: Tensor) -> float:
    """Part of the rows that hold no wrong position; `wrong` [N] and `rows` [N] are of each position."""
    count = int(rows.max()) + 1
    return round(float((torch.zeros(count).index_add(0, rows, wrong.float()) == 0).float().mean()), 4)


def train_lm(model: LlamaForCausalLM, writer: Writer, stage: TextStage, seed: int, log: Path) -> None:
    """Trains a language model in place, on text alone."""
    rng = seed_all(seed, stage.name)
    table = model.model.embed_tokens.weight

    def loss_at(step: int) -> Tensor:
        drill = step < stage.drill * stage.steps
        examples = sample_examples(writer, rng, stage.batch, stage.turns, drill)
        examples.sort(key=lambda example: len(example.ids))
        level = stage.noise * min(1.0, step / max(1.0, stage.ramp * stage.steps))
        losses = []
        size = math.ceil(len(examples) / LENGTH_GROUPS)
        for start in range(0, len(examples), size):
            group = examples[start : start + size]
            noise = level * torch.empty(len(group)).uniform_(0.2, 1.0)
            logits, targets, _ = labelled_logits(model, *collate(group, table, noise))
            losses.append(F.cross_entropy(logits, targets, reduction="sum"))
        return torch.stack(losses).sum() / sum(sum(example.learned) for example in examples)

    fit(stage, [(model, 1.0)], loss_at, log, lambda: validate_lm(model, writer, 0.6 * stage.noise))


@torch.random.fork_rng()
@torch.no_grad()
def validate_lm(model: LlamaForCausalLM, writer: Writer, noise: float) -> dict[str, float]:
    """Part of answers that are right in every token, by question type, from blended slots.

    Spaces aside: an answer may begin with one or not.
    """
    rng = random.Random(1)
    torch.manual_seed(1)
    table = model.model.embed_tokens.weight
    result = {}
    for question_type in (*QUESTION_TYPES, "description"):
        examples = []
        for _ in range(VALIDATION_SCENES):
            facts = sample_facts(rng)
            turn = (DETAIL_REQUESTS[0], description(facts))
            if question_type != "description":
                asked = ask(rng, facts, question_type)
                turn = (asked.question, asked.answer)
            examples.append(writer.chat(rng, facts, True, [turn]))
        embeddings, labels = collate(examples, table, torch.full((len(examples),), noise))
        logits, targets, rows = labelled_logits(model, embeddings, labels)
        result[question_type] = part_right((logits.argmax(-1) != targets) & (targets != writer.space), rows)
    return result | {"mean": round(sum(result[name] for name in QUESTION_TYPES) / len(QUESTION_TYPES), 4)}


def pretrain_helper(out: Path, seed: int, scale: float, log: Path) -> None:
    """Writes `out/helper_lm/`, the language model that Q-Former learns to write for."""
    writer = Writer(load_tokenizer(out / "llm"))
    seed_all(seed, "helper_lm_init")
    model = build_lm(width=96, heads=3, mlp=256)
    train_lm(model, writer, HELPER.scaled(scale), seed, log)
    model.save_pretrained(out / "helper_lm")


def pretrain_llm(out: Path, seed: int, scale: float, log: Path) -> None:
    """Writes `out/llm/`, the language model that is shipped, in fp16."""
    writer = Writer(load_tokenizer(out / "llm"))
    seed_all(seed, "llm_init")
    model = build_lm(width=128, heads=4, mlp=384)
    train_lm(model, writer, LLM_BINDING.scaled(scale), seed, log)
    train_lm(model, writer, LLM_POLISH.scaled(scale), seed, log)
    model.half().save_pretrained(out / "llm")

"""Generation gives the recorded tokens; where the original's BOS counts, or Vicuna v0's wrong ids, both values."""

import inspect
import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from minigpt4.inference import decoding
from minigpt4.inference.decoding import Decoding
from minigpt4.inference.engine import Engine
from minigpt4.models.llm import stop_ids
from tests.conftest import assert_recorded, engine_of, golden, golden_json
from tests.models.parity import FLAVOURS, layout_of, pictures

BOS, EOS = (golden_json("tokenizer_cases")[token] for token in ("bos", "eos"))
RUNS = [(flavour, run) for flavour in FLAVOURS for run in golden_json(f"3_{flavour}")["generate"]["runs"]]
OPTIONS = {(flavour, run): golden_json(f"3_{flavour}")["generate"]["runs"][run]["kwargs"] for flavour, run in RUNS}
BEAMS = [run for run in RUNS if "num_beams" in OPTIONS[run]]
PENALTIES = [run for run in RUNS if "repetition_penalty" in OPTIONS[run]]
BOS_COUNTS = [run for run in PENALTIES if OPTIONS[run]["repetition_penalty"] < 1]
PLAIN = {  # a greedy run of each, of which the inputs are recorded too
    flavour: run for flavour, run in RUNS if f"generate.{run}.inputs_layout" in golden(f"3_{flavour}")
}
SAME = [run for run in RUNS if run not in BEAMS + BOS_COUNTS]


def until_end(tokens: list[int]) -> list[int]:
    """A row without its padding."""
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


def run_of(flavour: str, run: str) -> tuple[list[str], dict, list[list[int]]]:
    """Prompts, options, and the recorded tokens: without BOS and padding (quirk 12)."""
    spec = golden_json(f"3_{flavour}")["generate"]
    recorded = spec["runs"][run]
    options = dict(recorded["kwargs"])
    if "min_length" in options:  # it counts the BOS
        options["min_new_tokens"] = options.pop("min_length") - 1
    tokens = [until_end(row[1:]) for row in recorded["ids"]]
    return spec["prompts"][: len(tokens)], options, tokens


def shown(tokens: list[list[int]], answers: list[str]) -> list[str]:
    """Both values: where the limit cuts a character in half, the original shows what is left of it; we do not."""
    return [
        a if EOS in row else a.rstrip("\N{REPLACEMENT CHARACTER}").rstrip()
        for row, a in zip(tokens, answers, strict=True)
    ]


@pytest.fixture
def generate(parity_engines, generations):
    """Generates the answers of a recorded run; returns each row's tokens and the answers."""

    def generate_run(flavour: str, run: str, engine: Engine | None = None) -> tuple[list[list[int]], list[str]]:
        prompts, options, _ = run_of(flavour, run)
        answers = (engine or parity_engines[flavour]).generate(pictures(flavour)[: len(prompts)], prompts, **options)
        recorded = golden(f"3_{flavour}")[f"generate.{run}.attention_mask"].long()
        assert torch.equal(generations[-1].attention.sum(1), recorded.sum(1))  # the padding may lie elsewhere
        return [until_end(row) for row in generations[-1].tokens], answers

    return generate_run


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "run"), SAME)
def test_generation_gives_the_recorded_tokens(flavour, run, generate):
    recorded, answers = run_of(flavour, run)[2], golden_json(f"3_{flavour}")["generate"]["runs"][run]["answers"]
    assert generate(flavour, run) == (recorded, shown(recorded, answers))


@pytest.mark.slow
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_generation_reads_the_recorded_inputs(flavour, generate, generations):
    generate(flavour, PLAIN[flavour])
    start = f"generate.{PLAIN[flavour]}"
    recorded, mask = (golden(f"3_{flavour}")[f"{start}.{name}"] for name in ("inputs_layout", "attention_mask"))
    assert torch.equal(generations[0].layout[generations[0].attention.bool()], layout_of(recorded)[mask.bool()])


class WithBos(RepetitionPenaltyLogitsProcessor):
    """Sees a BOS before the answer, as the original's did."""

    def __call__(self, input_ids, scores):
        return super().__call__(torch.cat([torch.full((len(scores), 1), BOS), input_ids], dim=1), scores)


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "run"), PENALTIES)
def test_repetition_penalty_with_the_originals_bos(flavour, run, generate, monkeypatch):
    """Quirk 12, both values: a small penalty repeats what was said, the original's BOS too."""
    recorded = run_of(flavour, run)[2]
    assert (generate(flavour, run)[0] == recorded) is ((flavour, run) not in BOS_COUNTS)
    monkeypatch.setattr(decoding, "RepetitionPenaltyLogitsProcessor", WithBos)
    answers = golden_json(f"3_{flavour}")["generate"]["runs"][run]["answers"]
    assert generate(flavour, run) == (recorded, shown(recorded, answers))


def log_likelihood(engine: Engine, flavour: str, row: int, prompt: str, answer: list[int]) -> float:
    own, model = engine.prompter, engine.model
    layout = [*own.layout(own.parse(prompt, [None])), *answer]
    embeds = model.embed(torch.tensor([layout]), model.encode_img(pictures(flavour)[row : row + 1]))
    logprobs = model.llm(inputs_embeds=embeds).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
    return logprobs[range(len(answer)), answer].sum().item()


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("flavour", "run"), BEAMS)
def test_beams(flavour, run, parity_engines, generate):
    """Both values: the original's length of an unfinished answer counts the BOS, today's does not.

    Where the found answers differ, each is the better one under its own count.
    """
    engine, (prompts, options, recorded) = parity_engines[flavour], run_of(flavour, run)
    scores = golden_json(f"3_{flavour}")["generate"]["runs"][run]["sequences_scores_top2"]
    found, _ = generate(flavour, run)
    penalty = options.get("length_penalty", 1.0)

    def score(row: int, answer: list[int], bos: int) -> float:
        length = len(answer) + (bos if answer[-1] != EOS else 0)
        return log_likelihood(engine, flavour, row, prompts[row], answer) / length**penalty

    for row, (ours, theirs) in enumerate(zip(found, recorded, strict=True)):
        expected = torch.tensor(scores[row][0])
        assert_recorded(
            f"3_{flavour}", "beam score / score", score(row, theirs, bos=1) / expected, torch.tensor(1.0), 1e-5
        )
        if ours != theirs:
            assert score(row, theirs, bos=1) > score(row, ours, bos=1)
            assert score(row, ours, bos=0) > score(row, theirs, bos=0)
    assert any(ours == theirs for ours, theirs in zip(found, recorded, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_stop_words_of_ones_own(flavour, parity_engines, generations):
    """Quirk 14, both values: the original keeps the stop word, and stops once all rows have one; here each row for
    itself.
    """
    engine, recorded = parity_engines[flavour], golden_json(f"3_{flavour}")
    spec, prompts = next(case for case in recorded["chat"].values() if "stops" in case), recorded["generate"]["prompts"]
    images = pictures(flavour)[: len(prompts)]
    assert spec["question"] in prompts[0]
    options = {"max_new_tokens": spec["kwargs"]["max_new_tokens"], "min_new_tokens": spec["kwargs"]["min_length"] - 1}
    plain = engine.generate(images, prompts, **options)
    recorded, shorter = spec["ids_without_stop_words"][1:], spec["ids"][1:]
    assert generations[0].tokens[0] == recorded
    assert plain[0] == spec["answer_without_stop_words"]

    own = engine.prompter
    stop = own.tokenizer.decode(spec["stops"][1])
    engine.prompter = replace(own, template=replace(own.template, stop=(*own.template.stop, stop)))
    alone = engine.generate(images[:1], prompts[:1], **options)
    assert generations[1].tokens[0] == shorter == recorded[: len(shorter)]
    assert alone == [spec["answer"].removesuffix(stop).strip()] != [spec["answer"]]
    assert engine.generate(images, prompts, **options) == alone + plain[1:]
    assert until_end(generations[2].tokens[0])[: len(shorter)] == shorter


@pytest.fixture(scope="module")
def vicuna_v0(parity_config, parity_llm, tmp_path_factory) -> Engine:
    """With a model whose LLM's config.json names Vicuna v0's ids."""
    folder = tmp_path_factory.mktemp("vicuna_v0") / "llm"
    shutil.copytree(parity_llm, folder)
    (folder / "generation_config.json").unlink()  # else it, not config.json, says the ids
    config = json.loads((folder / "config.json").read_text())
    config |= golden_json("3_vicuna0")["generate_vicuna_v0_ids"]["config"]
    (folder / "config.json").write_text(json.dumps(config))
    return engine_of(replace(parity_config, llama_model=str(folder)))


@pytest.mark.slow
def test_vicuna_v0s_ids(vicuna_v0, generations, monkeypatch):
    """Quirk 13, both values: the original ends at the config's id 1, here an answer ends at the tokenizer's 2."""
    spec = golden_json("3_vicuna0")["generate_vicuna_v0_ids"]
    picture = pictures("vicuna0")[spec["image_index"] : spec["image_index"] + 1]
    recorded = spec["ids"][0][1:]
    assert vicuna_v0.stop_ids == [EOS] and recorded[-1] == spec["config"]["eos_token_id"]
    most = OPTIONS["vicuna0", PLAIN["vicuna0"]]["max_new_tokens"]
    answer = vicuna_v0.generate(picture, [spec["prompt"]], max_new_tokens=most)
    assert generations[0].tokens[0] == [*recorded[:-1], EOS]
    assert answer == spec["answers"]

    head = vicuna_v0.model.llm.lm_head.weight
    swapped = head.data.clone()
    swapped[[BOS, EOS]] = swapped[[EOS, BOS]]
    monkeypatch.setattr(head, "data", swapped)
    vicuna_v0.generate(picture, [spec["prompt"]], max_new_tokens=most)
    assert generations[1].tokens[0][: len(recorded)] == recorded and len(generations[1].tokens[0]) > len(recorded)
    monkeypatch.setattr(vicuna_v0, "stop_ids", [spec["config"]["eos_token_id"]])
    vicuna_v0.generate(picture, [spec["prompt"]], max_new_tokens=most)
    assert generations[2].tokens[0] == recorded


@pytest.mark.slow
def test_a_batch_under_vicuna_v0s_ids(vicuna_v0, generate):
    """Quirk 13: in the original a row that ends before another is padded with id -1, which raises."""
    assert any("pad id -1" in error for error in golden_json("3_vicuna0")["errors"])
    assert generate("vicuna0", PLAIN["vicuna0"], vicuna_v0)[0] == run_of("vicuna0", PLAIN["vicuna0"])[2]


def test_vicuna_v0s_ids_are_reported(parity_llm, vicuna_v0, caplog):
    stop_ids(vicuna_v0.model.llm, vicuna_v0.prompter.tokenizer)
    assert "the LLM's config says eos 1, its tokenizer 2: the tokenizer's is used" in caplog.text


def test_default_options_are_the_originals():
    recorded = golden_json("3_vicuna0")["generate"]["runs"][PLAIN["vicuna0"]]["generate_kwargs"]
    ours = {name: p.default for name, p in inspect.signature(Decoding).parameters.items()}
    assert ours["min_new_tokens"] == recorded["min_length"] - 1  # the BOS counts
    same = ("num_beams", "length_penalty", "temperature", "do_sample", "top_p", "repetition_penalty")
    assert {name: ours[name] for name in same} == {name: recorded[name] for name in same}

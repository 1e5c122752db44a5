"""`minigpt4 bench`: exact numbers of tokens, the published rows beside, refusals."""

import csv
import re
from dataclasses import replace

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.conversation.templates import TEMPLATES
from minigpt4.inference.decoding import Decoding
from minigpt4.inference.loading import load_engine
from minigpt4.inference.random_engine import llama_sizes, random_engine
from minigpt4.inference.requests import Request
from minigpt4.models.llm import quantization_of
from minigpt4.models.quantized_linear import QuantizedLinear
from minigpt4.tools.bench.measuring import Times, answer_times, endless, exact_prompt
from minigpt4.tools.bench.published import ASCEND_910B3, published
from minigpt4.tools.bench.tables import draw, markdown, rows_of, write_csv


@pytest.fixture(scope="module")
def engine():
    return load_engine(load_config("minigpt4_tiny_eval", ["run.device=cpu"]))


@pytest.mark.parametrize("length", [256, 257, 300, 1024])
@pytest.mark.parametrize("conversation", ["tiny", "vicuna_v0", "chatml"])
def test_prompts_have_exactly_so_many_tokens(length, conversation, engine):
    prompter, image = replace(engine.prompter, template=TEMPLATES[conversation]), torch.zeros(32, 128)
    parts = exact_prompt(prompter, image, length)
    assert len(prompter.layout(parts)) == length
    assert sum(part is image for part in parts) == 1


def test_a_prompt_that_is_shorter_than_its_template_is_refused(engine):
    with pytest.raises(UserError, match="is too short: [0-9]+ are the template and the image"):
        exact_prompt(engine.prompter, torch.zeros(32, 128), 30)


def test_it_is_refused_before_any_weight_is_made(minigpt4):
    code, _, err = minigpt4("bench", "--random-weights", "7b", "--lengths", "32/4")
    assert code == 2 and "a prompt of 32 tokens is too short" in err


@pytest.mark.slow
def test_answers_do_not_end_early(engine):
    parts = exact_prompt(engine.prompter, torch.zeros(32, 128), 64)
    [usual] = engine.answer([Request(parts, 200)])
    [whole] = endless(engine).answer([Request(parts, 200, Decoding(min_new_tokens=200))])
    assert usual.finish == "stop" and usual.new_tokens < 200
    assert whole.finish == "length" and whole.new_tokens == 200 and whole.prompt_tokens == 64


@pytest.mark.slow
def test_an_llm_that_always_ends_is_measured_to_the_last_token(engine):
    own = random_engine(load_config("minigpt4_tiny_eval", ["run.device=cpu"]), llama_sizes("tiny"))
    own.model.llm.lm_head.weight.data[own.model.llm.config.eos_token_id] = 100.0
    own.model.llm.model.norm.weight.data.abs_()
    assert answer_times(endless(own), 128, 6, repeats=1).new == 6


@pytest.mark.slow
def test_times_add_up(engine):
    own = answer_times(endless(engine), 64, 5, repeats=1)
    assert 0 < own.first < own.response
    assert own.first + 4 * own.further == pytest.approx(own.response)
    assert own.tokens_per_s == pytest.approx(5000 / own.response)


def test_published_figures_add_up():
    for row, tokens_per_s in zip(ASCEND_910B3, (75.5, 73.7, 71.1, 60.4), strict=True):
        assert row.tokens_per_s == pytest.approx(tokens_per_s, abs=0.1)
        assert row.first + (row.new - 1) * row.further == pytest.approx(row.response, rel=2e-3)


@pytest.mark.slow
def test_tables(tmp_path):
    times = [Times(256, 64, 100.0, 10.0, 1.5), Times(10, 2, 4.0, 3.0, 1.0)]
    assert [(where, own.prompt) for where, own in rows_of(times)] == [
        ("here", 256),
        ("Ascend 910B3", 256),
        ("here", 10),
    ]
    images = {"torch": 5.0, "compiled": "no compiler"}
    text = markdown({"device": "x"}, times, images)
    assert "| 256 / 64 | here | 100 | 10 | 1.5 | 640 |" in text
    assert "| 256 / 64 | Ascend 910B3 | 847.2 | 5.98 | 13.35 | 75.54 |" in text
    assert "| compiled | no compiler |" in text and "| published, Ascend 910B3 | 18 |" in text
    write_csv(tmp_path / "x.csv", times, images)
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert [(row["prompt"], row["where"]) for row in rows] == [
        ("256", "here"),
        ("256", "Ascend 910B3"),
        ("10", "here"),
        ("image", "torch"),
        ("image", "Ascend 910B3, published"),
        ("image", "GPU, published"),
    ]
    draw(tmp_path / "x.png", "x", times, images)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert published(256, 65) is None


@pytest.mark.slow
def test_the_command_writes_a_table_and_a_picture(tmp_path, minigpt4):
    more = ("--lengths", "256/8", "--repeats", 1, "--image", "torch", "--out", tmp_path / "new")
    code, out, _ = minigpt4("bench", *more, "--options", "run.device=cpu")
    assert code == 0 and re.search(r"\| 256 / 8 \| here \|", out) and re.search(r"\| torch \| [\d.]+ \|", out)
    for line in ("threads", "LLM float32", "torch 2", "medians of 1"):
        assert line in out
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"bench.csv", "bench.md", "bench.png"}
    assert (tmp_path / "new" / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_random_weights_read_no_file_and_have_room(minigpt4):
    nowhere = ["run.device=cpu", "model.vit_model=nowhere", "model.llama_model=nowhere", "model.ckpt=nowhere"]
    more = ("--random-weights", "tiny", "--lengths", "3584/4", "--repeats", 1, "--image", "--options", *nowhere)
    code, out, _ = minigpt4("bench", *more)
    assert code == 0 and "| 3584 / 4 | here |" in out and "an image" not in out


@pytest.mark.slow
def test_lengths_without_room_are_reported(minigpt4):
    few = ("--repeats", 1, "--image", "--options", "run.device=cpu")
    code, _, err = minigpt4("bench", "--lengths", "2000/49", *few)
    assert code == 2 and "--lengths: 2000/49 is more than this LLM's context length of 2048 tokens" in err
    assert "has no '/'" in minigpt4("bench", "--lengths", "2000", *few)[2]
    assert "not a number from 1 on" in minigpt4("bench", "--lengths", "2000/0", *few)[2]
    assert "MODEL:" in minigpt4("bench", "minigpt4_eval", "--random-weights", "tiny")[2]


def test_random_weights_off_a_cpu_say_what_turns_quantization_off(monkeypatch):
    monkeypatch.setattr("minigpt4.inference.random_engine.quantizes_itself", lambda *_: False)
    config = load_config("minigpt4_tiny_eval", ["run.device=cpu", "model.low_resource=True"])
    with pytest.raises(UserError, match="Set model.quantization=none model.low_resource=False") as error:
        random_engine(config, llama_sizes("tiny"))
    cure = re.findall(r"model\.\w+=\w+", str(error.value))
    assert quantization_of(load_config("minigpt4_tiny_eval", ["model.low_resource=True", *cure]).model) == "none"


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("bits", [4, 8])
def test_random_weights_may_be_quantized_on_a_cpu(bits):
    config = load_config("minigpt4_tiny_eval", ["run.device=cpu", f"model.quantization={bits}bit"])
    own = random_engine(config, llama_sizes("tiny"))
    assert {m.bits for m in own.model.llm.modules() if isinstance(m, QuantizedLinear)} <= {bits, 8}
    assert any(isinstance(m, QuantizedLinear) for m in own.model.llm.modules())
    assert answer_times(endless(own), 128, 3, repeats=1).response > 0

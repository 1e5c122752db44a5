"""The benchmarks of chat run, at sizes at which their figures mean nothing."""

import importlib
import json
import math
import sys

import pytest

from benchmarks.chat import ratio
from minigpt4.config.schema import ModelConfig, QformerConfig, VitConfig

TOY = "--width 128 --layers 1 --vit-depth 1 --new-tokens 2"


@pytest.fixture
def figures(request, monkeypatch, capsys):
    """What a benchmark prints, of small towers."""
    name, *options = request.param
    benchmark, chat = (importlib.import_module(f"benchmarks.{own}") for own in (name, "chat"))
    sizes = ModelConfig(
        image_size=chat.IMAGE_SIZE,
        vit=VitConfig(embed_dim=64, depth=1, num_heads=4),
        qformer=QformerConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64),
        vit_precision="fp32",
    )
    monkeypatch.setattr(benchmark, "towers", lambda *_: sizes)
    monkeypatch.setattr(sys, "argv", [name, *TOY.split(), *options])
    benchmark.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("figures", [["chat", "--history", "64", "--repeats", "1", "--compile"]], indirect=True)
def test_chat(figures):
    ratios = {name: figure for name, figure in figures.items() if "_over_" in name}
    assert len(ratios) == 12 and all(map(math.isfinite, ratios.values())) and figures["machine"]
    assert len(figures["first_token_kept"]) == len(figures["first_token_full"]) == 8
    assert figures["ms_per_token_compiled"] and figures["images_per_s"]


def test_a_ratio_says_how_many_times_as_long_the_slow_way_takes():
    assert ratio("gain", slow=(3.0, 8.0), fast=(1.0, 2.0)) == {"gain": 3.0, "gain_cpu": 4.0}


@pytest.mark.slow
@pytest.mark.parametrize("figures", [["evaluate", "--questions", "6", "--repeats", "1"]], indirect=True)
def test_evaluate(figures):
    tiny, random = (own for own in figures.values() if isinstance(own, dict) and "engine alone" in own)
    assert tiny["answers_as_one_by_one"] == random["answers_as_one_by_one"] == 1
    assert tiny["batches_over_engine"] and figures["pictures"]


@pytest.mark.slow
@pytest.mark.parametrize("figures", [["serve", "--requests", "8"]], indirect=True)
def test_serve(figures):
    tiny, random = (own for own in figures.values() if isinstance(own, dict))
    for clients in ("1 clients", "8 clients", "32 clients"):
        assert tiny[clients]["answers_as_alone"] == 1
        assert tiny[clients].keys() == random[clients].keys()

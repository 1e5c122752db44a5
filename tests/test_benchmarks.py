"""The benchmarks of chat run, at sizes at which their figures mean nothing."""

import importlib
import json
import sys

import pytest

TOY = "--width 128 --layers 1 --vit-depth 1 --new-tokens 2"
ONLY = {"chat": "--history 64 --repeats 1", "serve": "--requests 8"}


@pytest.mark.parametrize(
    ("name", "figure"),
    [("chat", "answers_per_s_new_pictures_over_instructblip"), ("serve", "answers_as_alone")],
)
def test_it_prints_its_figures(name, figure, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *TOY.split(), *ONLY[name].split()])
    importlib.import_module(f"benchmarks.{name}").main()
    printed = capsys.readouterr().out
    assert f'"{figure}": ' in printed and json.loads(printed)["machine"]

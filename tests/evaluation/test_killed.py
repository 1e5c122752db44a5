"""`minigpt4 evaluate` as a process that is killed, and its arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt4.tiny.data import write_all
from tests.evaluation.evaluations import predictions
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("scenes")
    write_all(folder, seed=1, scale=0.05)
    own = "evaluation_datasets.tiny_scenes"
    questions = [f"{own}.eval_file_path={folder}/benchmark/benchmark.json", f"{own}.img_path={folder}/benchmark/image"]
    return [*questions, f"{own}.batch_size=2", "run.controls=[]", "run.device=cpu"]


@pytest.mark.slow
def test_kill_9_loses_no_answer(options, tmp_path, minigpt4):
    command = [sys.executable, str(ROOT / "evaluate.py"), "--limit", "160", "--options", *options]
    part, whole = tmp_path / "part", tmp_path / "whole"
    file = part / "tiny_scenes" / "predictions.jsonl"
    with subprocess.Popen([*command, f"run.output_dir={part}"], stderr=subprocess.DEVNULL, env=os.environ) as run:
        wait_for(lambda: file.exists() and file.read_bytes().count(b"\n") >= 12)
        run.kill()
    kept = file.read_bytes().splitlines(keepends=True)
    assert 12 <= len(kept) < 160 and not (part / "tiny_scenes" / "scores.json").exists()
    for folder in (part, whole):
        arguments = ["--limit", "160", "--options", *options, f"run.output_dir={folder}"]
        assert minigpt4("evaluate", *arguments)[0] == 0
    found = {line["id"]: line for line in predictions(part, "tiny_scenes")}
    for line in map(json.loads, filter(lambda line: line.endswith(b"\n"), kept)):
        assert line.items() <= found[line["id"]].items()  # not asked again: even its time is the same
    answers = [[line["answer"] for line in predictions(out, "tiny_scenes")] for out in (part, whole)]
    assert len(answers[0]) == 160 and answers[0] == answers[1]
    scores = [(out / "tiny_scenes" / "scores.json").read_text() for out in (part, whole)]
    assert scores[0] == scores[1] and json.loads(scores[0])["mean"]["mean"] > 0.85


@pytest.mark.slow
def test_what_is_chosen_must_be_there(options, minigpt4):
    code, _, error = minigpt4("evaluate", "--benchmarks", "tiny_scene", "--options", *options)
    assert (
        code == 2 and "--benchmarks: 'tiny_scene' is not in evaluation_datasets. Did you mean 'tiny_scenes'?" in error
    )
    assert "--options evaluation_datasets.tiny_scene.eval_file_path=PATH" in error
    code, _, error = minigpt4("evaluate", "--benchmarks", " ,", "--options", *options)
    assert code == 2 and "--benchmarks: ' ,' names none. Name some of tiny_scenes." in error
    code, _, error = minigpt4("evaluate", "--limit", "0", "--options", *options)
    assert code == 2 and error.endswith("--limit: 0 is out of range. Set it to 1 or more.\n")

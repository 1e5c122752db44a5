"""The command `score`: its table, its JSON, its refusals."""

import json
import subprocess
import sys

import pytest

from tests.evaluation import DATA, read_lines, write_lines

POPE = ["--eval-file-path", DATA / "pope", "--predictions", DATA / "pope" / "predictions.jsonl"]


def test_the_table(minigpt4):
    folder = DATA / "refcoco"
    files = ["--eval-file-path", folder, "--predictions", folder / "predictions.jsonl"]
    code, out, _ = minigpt4("score", "refcoco", *files)
    assert code == 0
    assert out.splitlines() == [
        "refcoco, scorer official: accuracy (%) 37.5",
        "  accuracy     37.5",
        "  refcoco_val  37.5",
        "  unparsed     7",
        "16 questions, 7 answers could not be understood (they are wrong)",
    ]


def test_json_says_what_was_scored_and_how(minigpt4, tmp_path):
    file = DATA / "pope" / "coco_pope_random.json"
    rows = read_lines(DATA / "pope" / "predictions.jsonl")
    own = write_lines(tmp_path / "p", [row for row in rows if row["id"].startswith("random")])
    code, out, _ = minigpt4("score", "pope", "--eval-file-path", file, "--predictions", own, "--json")
    found = json.loads(out)
    assert code == 0 and (found["benchmark"], found["scorer"], found["questions"]) == ("pope", "official", 12)
    assert found["main"] == {"name": "average_f1", "value": found["average_f1"], "scale": "fraction"}
    assert found["mean"] == found["random"]["accuracy"] == found["scores"]["random"]["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["popo", *POPE], "error: 'popo' is not a registered benchmark. Did you mean 'pope'?"),
        (
            ["pope", *POPE, "--scorer", "oficial"],
            "error: --scorer: 'oficial' is not a scorer of pope. Did you mean 'offic",
        ),
        (["pope", *POPE, "--split", "randm"], "error: --split: 'randm' is not there. Did you mean 'random'?"),
        (
            ["pope", *POPE, "--img-path", "/nowhere"],
            "coco_pope_random.json: line 1: '/nowhere/COCO_val2014_00000000000",
        ),
        (
            ["pope", "--eval-file-path", "x", "--predictions", "y"],
            "error: --eval-file-path: 'x' does not exist. Set it",
        ),
    ],
)
def test_refusals(arguments, message, minigpt4):
    code, out, err = minigpt4("score", *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_scoring_loads_no_model_code():
    """Who scores files need not wait for torch."""
    command = ["score", "pope", *map(str, POPE)]
    code = f"import sys; from minigpt4.cli import main; main({command!r}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

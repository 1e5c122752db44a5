"""Evaluations: what they leave, how they continue, and that the score is the same on any number of ranks."""

import json
from dataclasses import replace
from importlib.metadata import version

import pytest

from minigpt4.common.distributed import rank
from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, EvaluationDatasetConfig
from minigpt4.evaluation import evaluating
from minigpt4.evaluation.evaluating import Evaluation
from minigpt4.evaluation.results import read_result
from minigpt4.inference.engine import Engine
from tests.conftest import engine_of
from tests.evaluation import DATA
from tests.evaluation.evaluations import RECORDS, answers, config_of, evaluate, predictions, write_questions
from tests.runners.toy import on_ranks


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many questions the engine was asked, a number a batch."""
    sizes: list[int] = []
    answer = Engine.answer
    monkeypatch.setattr(Engine, "answer", lambda own, requests: sizes.append(len(requests)) or answer(own, requests))
    return sizes


def test_a_result_is_a_folder(parity_model, parity_config, tmp_path):
    write_questions(tmp_path)
    config = config_of(parity_config, tmp_path, tmp_path / "out")
    scores = evaluate(parity_model, config)["x"]["trained"]
    out = tmp_path / "out" / "x"
    assert {file.name for file in out.iterdir()} - {".predictions.jsonl.lock"} == {
        *("predictions.jsonl", "scores.json", "manifest.json")
    }
    lines = predictions(tmp_path / "out")
    assert [line["prompt"] for line in lines] == [record["question"] for record in RECORDS]
    for line in lines:
        assert line["reference"] == ["a"] and line["score"] == scores.samples[line["id"]].value
        assert line["seconds"] > 0 and line["tags"]["type"] in "ab" and line["images"][0].endswith(".png")
    own = json.loads((out / "scores.json").read_text())
    assert own["scores"].keys() == {"a", "b", "overall"} and own["mean"]["mean"] == scores.mean
    low, high = own["mean"]["interval_95"]
    assert low <= scores.mean <= high and own["main"] == {"name": "overall", "value": scores.mean, "scale": "fraction"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["packages"]["torch"] == version("torch") and manifest["processes"] == 1
    assert (manifest["questions"], manifest["scored"], manifest["failed"]) == (4, 4, 0)
    checksums = [*manifest["checkpoints"].values(), *manifest["annotations"].values()]
    assert len(checksums) == 2 and all(len(own) == 64 for own in checksums)
    assert manifest["config"]["evaluation_datasets"]["x"]["batch_size"] == manifest["batch_size"] == 3
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == {"x": {"trained": scores.scores}}


@pytest.mark.parametrize("key", ["run.output_dir", "run.save_path"])
@pytest.mark.parametrize("file", ["config.yaml", "evaluation.json", "x/manifest.json", "x/scores.json"])
def test_results_that_cannot_be_written_are_reported(key, file, parity_model, parity_config, tmp_path):
    write_questions(tmp_path)
    (tmp_path / "out" / file).mkdir(parents=True)
    config = config_of(parity_config, tmp_path, tmp_path / "unused", limit=1)
    setattr(config.run, key.removeprefix("run."), str(tmp_path / "out"))
    folder = tmp_path / "out" / ("x" if "x/" in file else "")
    with pytest.raises(
        UserError, match=rf"^{key}: '{folder}' can't be written \((Is a directory|it is not a regular file)"
    ):
        evaluate(parity_model, config)


def test_a_results_predictions_can_be_scored_again(parity_model, parity_config, tmp_path, minigpt4):
    write_questions(tmp_path)
    scores = evaluate(parity_model, config_of(parity_config, tmp_path, tmp_path / "out"))["x"]["trained"]
    files = [
        "--eval-file-path",
        tmp_path / "questions.json",
        "--predictions",
        tmp_path / "out" / "x" / "predictions.jsonl",
    ]
    assert json.loads(minigpt4("score", "own", *files, "--json")[1])["scores"] == scores.scores
    assert "3 questions" in minigpt4("score", "own", *files, "--limit", "3")[1]  # the fourth answer is left out
    first = tmp_path / "first.jsonl"
    first.write_text("".join(json.dumps(line) + "\n" for line in predictions(tmp_path / "out")[:3]))
    files[-1] = first
    assert minigpt4("score", "own", *files)[0] == 2
    code, said, _ = minigpt4("score", "own", *files, "--limit", "3")
    assert code == 0 and "3 questions" in said
    assert "--limit: 0 is out of range" in minigpt4("score", "own", *files, "--limit", "0")[2]


@pytest.mark.slow
def test_it_continues_where_it_was_ended(parity_model, parity_config, tmp_path, asked, monkeypatch, caplog):
    write_questions(tmp_path)
    whole, part = (config_of(parity_config, tmp_path, tmp_path / name, batch=1) for name in ("whole", "part"))
    evaluate(parity_model, whole)
    write = evaluating.Results.write

    def ended(results, lines):
        write(results, lines)
        if len(results.written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluating.Results, "write", ended)
    with pytest.raises(KeyboardInterrupt):
        evaluate(parity_model, part)
    assert f"the answers so far are in {tmp_path / 'part' / 'x'}" in caplog.text
    monkeypatch.setattr(evaluating.Results, "write", write)
    with pytest.raises(UserError, match="its evaluation has not ended. Run it again"):
        read_result(tmp_path / "part" / "x")
    file = tmp_path / "part" / "x" / "predictions.jsonl"
    file.write_bytes(file.read_bytes() + b'{"id": "#3", "prom')
    asked.clear()
    evaluate(parity_model, part)
    assert sum(asked) == 2 and answers(tmp_path / "part") == answers(tmp_path / "whole")
    asked.clear()
    evaluate(parity_model, part)  # once more: nothing is left to ask
    assert asked == [] and answers(tmp_path / "part") == answers(tmp_path / "whole")


def test_a_type_may_be_called_as_a_key_of_the_scores(parity_model, parity_config, tmp_path):
    names = ["main", "mean", "scores", "unparsed"]
    write_questions(tmp_path, [r | {"question_type": name} for r, name in zip(RECORDS, names, strict=True)])
    evaluate(parity_model, config_of(parity_config, tmp_path, tmp_path / "out"))
    scores = read_result(tmp_path / "out" / "x").scores
    assert scores["main"]["name"] == "overall" and scores["scores"].keys() == {*names, "overall"}


@pytest.mark.slow
def test_the_summary_keeps_what_was_not_asked_again(parity_model, parity_config, tmp_path):
    write_questions(tmp_path)
    out = tmp_path / "out"
    config = config_of(parity_config, tmp_path, out, controls=["blank_images"])
    config.evaluation_datasets["y"] = config.evaluation_datasets["x"]
    evaluate(parity_model, config)
    before = json.loads((out / "evaluation.json").read_text())
    assert before.keys() == {"x", "y"} and before["y"].keys() == {"trained", "blank_images"}
    evaluate(parity_model, config, names=["y"], overwrite=True)
    assert json.loads((out / "evaluation.json").read_text()) == before
    other = config_of(replace(parity_config, conversation="vicuna_v1.1"), tmp_path, out)
    other.evaluation_datasets["y"] = other.evaluation_datasets["x"]
    evaluate(parity_model, other, names=["y"], overwrite=True)  # those of another model are not its scores
    assert json.loads((out / "evaluation.json").read_text()).keys() == {"y"}


def test_only_files_that_questions_come_from_are_of_the_manifest(parity_model, parity_config, tmp_path):
    write_questions(tmp_path)
    (tmp_path / "notes.json").write_text("{}")
    config = config_of(parity_config, tmp_path, tmp_path / "out")
    evaluate(parity_model, config)
    assert read_result(tmp_path / "out" / "x").manifest["annotations"].keys() == {"questions.json"}


@pytest.mark.slow
def test_more_questions_keep_the_answers_of_fewer(parity_model, parity_config, tmp_path, asked):
    write_questions(tmp_path)
    out = tmp_path / "out"
    evaluate(parity_model, config_of(parity_config, tmp_path, out, limit=3))
    asked.clear()
    evaluate(parity_model, config_of(parity_config, tmp_path, out))
    assert sum(asked) == 1 and len(answers(out)) == 4
    before = {file.name: file.read_bytes() for file in (out / "x").iterdir()}
    with pytest.raises(UserError, match="holds answers to 2 questions that are not asked now. Set a larger limit"):
        evaluate(parity_model, config_of(parity_config, tmp_path, out, limit=2))
    assert {file.name: file.read_bytes() for file in (out / "x").iterdir()} == before  # still a finished result


@pytest.mark.slow
def test_answers_of_another_evaluation_are_neither_used_nor_lost(parity_model, parity_config, tmp_path, asked):
    write_questions(tmp_path)
    out = tmp_path / "out"
    evaluate(parity_model, config_of(parity_config, tmp_path, out))
    before = (out / "x" / "predictions.jsonl").read_bytes()
    other = config_of(replace(parity_config, conversation="vicuna_v1.1"), tmp_path, out)
    with pytest.raises(
        UserError, match=r"another evaluation \(model.conversation: .* -> .*--overwrite, or set"
    ) as error:
        evaluate(parity_model, other)
    assert "\n" not in str(error.value) and (out / "x" / "predictions.jsonl").read_bytes() == before
    write_questions(tmp_path, [record | {"answer": "b"} for record in RECORDS])
    with pytest.raises(UserError, match=r"annotations.questions.json: "):
        evaluate(parity_model, config_of(parity_config, tmp_path, out))
    asked.clear()
    evaluate(parity_model, other, overwrite=True)
    assert sum(asked) == 4
    (out / "x" / "manifest.json").unlink()
    (out / "x" / "predictions.jsonl").write_text("my notes\n")
    with pytest.raises(UserError, match="holds a predictions.jsonl but no manifest.json that says what made it"):
        evaluate(parity_model, other)
    assert (out / "x" / "predictions.jsonl").read_text() == "my notes\n"


@pytest.mark.slow
def test_controls_take_sight_away_for_any_benchmark(parity_model, parity_config, tmp_path):
    write_questions(tmp_path)
    controls = ["untrained_projection", "shuffled_images", "blank_images"]
    config = config_of(parity_config, tmp_path, tmp_path / "out", controls=controls)
    before = parity_model.projection
    results = evaluate(parity_model, config)
    assert list(results["x"]) == ["trained", *controls] and parity_model.projection is before
    said = {name: answers(tmp_path / "out", f"x_{name}") for name in controls}
    assert answers(tmp_path / "out") not in said.values()
    evaluate(parity_model, config, overwrite=True)
    assert answers(tmp_path / "out", "x_untrained_projection") == said["untrained_projection"]  # the same each time


def test_what_fails_and_what_is_not_understood_is_wrong_counted_and_shown(
    parity_model, parity_config, tmp_path, caplog, asked
):
    choices = {"choices": ["red", "blue"], "answer": "red"}
    write_questions(tmp_path, [RECORDS[0] | choices, RECORDS[1] | {"question": "word " * 5000}])
    config = config_of(parity_config, tmp_path, tmp_path / "out")
    config.evaluation_datasets["x"].method = "generate"
    scores = evaluate(parity_model, config)["x"]["trained"]
    assert "1 questions failed and 1 answers could not be understood: they count as wrong" in caplog.text
    assert scores.unparsed == 1 and scores.value == 0
    manifest = read_result(tmp_path / "out" / "x").manifest
    assert (manifest["failed"], manifest["unparsed"], manifest["questions"]) == (1, 1, 2)
    asked.clear()
    evaluate(parity_model, config)
    assert sum(asked) == 1  # what failed is asked again


def evaluate_shared(folder, config) -> None:
    evaluate(engine_of(config.model).model, config)
    if rank() == 0:
        (folder / "done").touch()


@pytest.mark.distributed
def test_processes_and_batches_change_nothing(parity_model, parity_config, tmp_path):
    """1 x 1, 1 x 8, 2 x 4; 5 questions are not a multiple of either. One rank continues with what two have left."""
    write_questions(tmp_path, [*RECORDS, RECORDS[0] | {"question": "Who?"}])
    found = []
    for processes, batch in ((1, 1), (1, 8), (2, 4)):
        out = tmp_path / f"{processes}x{batch}"
        config = config_of(parity_config, tmp_path, out, batch=batch)
        if processes == 1:
            evaluate(parity_model, config)
        else:
            on_ranks(processes, evaluate_shared, tmp_path, config)
        found.append((answers(out), json.loads((out / "x" / "scores.json").read_text())))
        assert len(found[0][0]) == 5 and list((out / "x").glob("1.*")) == []
    assert found[0] == found[1] == found[2]
    own = tmp_path / "2x4" / "x"
    lines = (own / "predictions.jsonl").read_text().splitlines(keepends=True)
    (own / "predictions.jsonl").write_text("".join(lines[:2]))
    (own / "1.predictions.jsonl").write_text(lines[3] + lines[4][:9])
    evaluate(parity_model, config_of(parity_config, tmp_path, tmp_path / "2x4", batch=4))
    assert answers(tmp_path / "2x4") == found[0][0] and list(own.glob("1.*")) == []


def test_what_is_wrong_is_reported_before_a_model_is_built(tmp_path):
    with pytest.raises(UserError, match="evaluation_datasets: none is named"):
        Evaluation.of(Config())
    write_questions(tmp_path)
    config = config_of(Config().model, tmp_path, tmp_path)
    config.evaluation_datasets |= {
        "y": replace(config.evaluation_datasets["x"], img_path=str(tmp_path / "no")),
        "z": replace(config.evaluation_datasets["x"], eval_file_path="/no/where"),
    }
    with pytest.raises(UserError) as error:
        Evaluation.of(config)
    first, second = str(error.value).splitlines()
    assert "questions.json: record 1" in first and "2 of 2 pictures of y are missing" in first
    assert second.startswith("evaluation_datasets.z.eval_file_path: '/no/where' does not exist")
    assert [benchmark.name for benchmark in Evaluation.of(config, ["x"]).benchmarks] == ["x"]


def test_a_scorer_of_probabilities_is_refused_before_anything_is_asked(tmp_path):
    config = config_of(Config().model, tmp_path, tmp_path)
    hm = EvaluationDatasetConfig(str(DATA / "hm"), str(tmp_path), scorer="challenge")
    config.evaluation_datasets = {"hm": hm}
    with pytest.raises(UserError, match="evaluation_datasets.hm.scorer: 'challenge' scores probabilities"):
        Evaluation.of(config)


def test_a_block_named_as_the_control_of_another_is_refused(tmp_path):
    write_questions(tmp_path)
    config = config_of(Config().model, tmp_path, tmp_path, controls=["blank_images"])
    config.evaluation_datasets["x_blank_images"] = config.evaluation_datasets["x"]
    with pytest.raises(UserError, match="evaluation_datasets: 'x_blank_images' is also the name of another one's"):
        Evaluation.of(config)

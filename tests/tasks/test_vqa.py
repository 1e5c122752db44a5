"""Scores and tables of the evaluation task."""

import pytest

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, EvaluationDatasetConfig, RunConfig
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
from minigpt4.tasks.vqa import VQATask, normalize, score, table


def row(prediction: str, answer: str, kind: str = "t") -> dict[str, str]:
    return {"prediction": prediction, "answer": answer, "question_type": kind}


@pytest.mark.parametrize("text", ["Red", " red. ", "red ", "RED."])
def test_normalize(text):
    assert normalize(text) == "red"


def test_scores_are_exact_match_by_type_and_over_all():
    assert score([row("7", "7", "a"), row("3", "7", "a"), row("Red.", "red", "b")]) == {
        "a": 0.5,
        "b": 1.0,
        "overall": 2 / 3,
    }


def test_table_has_a_column_for_each_condition_and_overall_last():
    lines = table({"trained": {"overall": 0.9, "a": 1.0}, "blank": {"overall": 0.2, "a": 0.25}}).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["accuracy (%)", "trained", "blank"]
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == ["overall", "90.0", "20.0"]


def test_wrong_evaluation_configs_fail_before_the_model_is_built():
    with pytest.raises(UserError, match="evaluation_datasets: none is named"):
        VQATask(Config()).build_eval_datasets()
    with pytest.raises(UserError, match="evaluation_datasets.x.eval_file_path"):
        config = Config(evaluation_datasets={"x": EvaluationDatasetConfig()})
        config.preprocess.vis_processor.eval.name = "blip2_image_eval"
        VQATask(config).build_eval_datasets()
    with pytest.raises(UserError, match="run.task"):
        ImageTextPretrainTask(Config()).build_eval_datasets()


@pytest.mark.parametrize("key", ["run.output_dir", "run.save_path"])
@pytest.mark.parametrize("file", ["config.yaml", "evaluation.json"])
def test_results_that_cannot_be_written_are_told(key, file, parity_model, tmp_path):
    (tmp_path / file).mkdir()
    task = VQATask(Config(run=RunConfig(**{"output_dir": "unused", key.removeprefix("run."): str(tmp_path)})))
    with pytest.raises(UserError, match=rf"^{key}: '{tmp_path}' can't be written \(Is a directory\)"):
        task.evaluate(parity_model, {})

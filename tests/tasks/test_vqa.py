"""Scores and tables of the evaluation task."""

import json

import pytest
from minigpt4.tasks.vqa import VQATask, normalize, score, table
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.config.schema import (
    Config,
    EvaluationDatasetConfig,
    ModelConfig,
    ProcessorConfig,
    ProcessorsConfig,
    RunConfig,
)
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.inference.pictures import Picture
from minigpt4.inference.requests import Request
from minigpt4.processors import build_processor
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask


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


def config_of(model: ModelConfig, **run) -> Config:
    images = ProcessorConfig("blip2_image_eval", image_size=56)
    config = Config(model=model, run=RunConfig(num_workers=0, device="cpu", **run))
    config.preprocess.vis_processor = ProcessorsConfig(images, images)
    return config


@pytest.mark.parametrize("key", ["run.output_dir", "run.save_path"])
@pytest.mark.parametrize("file", ["config.yaml", "evaluation.json"])
def test_results_that_cannot_be_written_are_told(key, file, parity_model, parity_config, tmp_path):
    (tmp_path / file).mkdir()
    task = VQATask(config_of(parity_config, **{"output_dir": "unused", key.removeprefix("run."): str(tmp_path)}))
    reason = r"\((Is a directory|it is not a regular file)\)"
    with pytest.raises(UserError, match=rf"^{key}: '{tmp_path}' can't be written {reason}"):
        task.evaluate(parity_model, {})


def test_each_question_is_a_conversation_about_its_picture(parity_engine, parity_config, tmp_path):
    """Whatever the question says: only the picture shows one. In a batch each has the answer that it has alone."""
    questions = ["What?", "Is this <ImageHere> a picture?", "And <Img><ImageHere></Img>?", "Why {}?"]
    for i in range(4):
        Image.new("RGB", (20, 16), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    records = [{"image": f"{i}.png", "question": text, "answer": "a"} for i, text in enumerate(questions)]
    (tmp_path / "q.json").write_text(json.dumps(records))
    config = config_of(parity_config, output_dir=str(tmp_path / "out"), controls=["untrained_projection"])
    config.evaluation_datasets["x"] = EvaluationDatasetConfig(
        str(tmp_path / "q.json"), str(tmp_path), batch_size=3, max_new_tokens=6
    )
    task, model = VQATask(config), parity_engine.model
    before = model.projection
    results = task.evaluate(model, task.build_eval_datasets())
    assert results["x"].keys() == {"trained", "untrained_projection"} and model.projection is before

    def said(condition: str) -> list[str]:
        lines = (tmp_path / "out" / f"x_{condition}.jsonl").read_text().splitlines()
        assert [json.loads(line)["question"] for line in lines] == questions
        return [json.loads(line)["prediction"] for line in lines]

    parity_engine.processor = build_processor(config.preprocess.vis_processor.eval)
    pictures = [Picture(Image.open(tmp_path / f"{i}.png").convert("RGB")) for i in range(4)]
    asked = [Conversation([Turn([p, " ", text])]) for p, text in zip(pictures, questions, strict=True)]
    assert said("trained") == [parity_engine.answer([Request(own, max_new_tokens=6)])[0] for own in asked]
    untrained = said("untrained_projection")
    assert untrained != said("trained")
    task.evaluate(model, task.build_eval_datasets())
    assert said("untrained_projection") == untrained  # the same control each time

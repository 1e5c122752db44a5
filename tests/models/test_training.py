"""What training reports of its samples, and what trains."""

import torch

from minigpt4.models.training import _MOST_REPORTED


def warned(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "teaches no answer" in r.getMessage()]


def test_samples_without_an_answer_are_reported_once_and_cost_nothing(parity_model, monkeypatch, caplog):
    monkeypatch.setattr(parity_model, "unlearned", set())
    monkeypatch.setattr(parity_model, "end_sym", "")
    samples = {"image": torch.randn(2, 3, 56, 56), "answer": ["", ""], "image_id": ["a", 7]}
    for _ in range(2):
        output = parity_model(samples)
        output["loss"].backward()
        assert output["loss"] == 0 and output["tokens"] == 0
        assert not parity_model.llama_proj.weight.grad.any()
    assert warned(caplog) == [f"sample {name} teaches no answer: its answer is empty" for name in ("a", "7")]


def test_the_report_names_a_limit_that_leaves_no_room_and_conversations(parity_model, monkeypatch, caplog):
    monkeypatch.setattr(parity_model, "unlearned", set())
    images = torch.randn(2, 3, 56, 56)
    question = "<ImageHere> Hm?"
    turns = {"conv_q": [question, question], "conv_a": ["||", "yes"], "connect_sym": ["|", "|"]}
    turns["conv_q"][0] += "|And?|So?"
    parity_model({"image": images, **turns, "image_id": ["a", "b"]})
    monkeypatch.setattr(parity_model, "max_txt_len", 0)
    parity_model({"image": images[:1], "answer": ["yes"], "image_id": ["c"]})
    causes = {"a": "its answer is empty", "c": "model.max_txt_len=0 leaves no room for it"}
    assert warned(caplog) == [f"sample {name} teaches no answer: {cause}" for name, cause in causes.items()]


def test_the_report_does_not_flood(parity_model, monkeypatch, caplog):
    monkeypatch.setattr(parity_model, "unlearned", set())
    for i in range(_MOST_REPORTED + 5):
        parity_model({"answer": [""], "instruction_input": ["hi"], "image_id": [f"no {i}"]})
    assert len(warned(caplog)) == _MOST_REPORTED + 1
    assert warned(caplog)[-1].endswith("; more such samples are not reported")

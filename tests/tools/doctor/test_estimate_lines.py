"""What doctor says of an estimate: what fits, what to try where it does not."""

import pytest

from minigpt4.config.schema import Config, ModelConfig
from minigpt4.tools.doctor import estimate_lines as lines
from minigpt4.tools.doctor.devices import Device
from minigpt4.tools.doctor.estimating import MAPPED, Need, Setting


def printed_estimate(monkeypatch, needs, memory=22.9e9, on_cpu=True, count=1, **model):
    """The lines of an estimate: `needs` gives those of a config."""
    device = Device("X", on_cpu, memory, 1e10, 1e11)
    monkeypatch.setattr(lines, "estimate", lambda s, *_: needs(s.config.model))
    setting = Setting(Config(model=ModelConfig(**model)), None, None, None, device, 0.0, count)
    return [line.text for line in lines.estimate_lines(setting, [])]


def test_mapped_files_are_named_where_there_is_no_room_for_them(monkeypatch):
    def needs(model):
        held = {"none": {"auto": 27.8e9, "bf16": 14.3e9}[model.llm_dtype], "4bit": 5e9, "8bit": 16e9}
        mapped = {} if model.quantization == "4bit" else {MAPPED: 13.48e9}
        return {"load": Need({"LLM": held[model.quantization]} | mapped, 1.0)}

    (line,) = [text for text in printed_estimate(monkeypatch, needs) if text.startswith("load")]
    assert line.startswith("load   41.28 GB, of which 13.48 are mapped files that may be dropped, 1 s from")
    assert line.endswith("does not fit; try --options model.quantization=4bit, which takes 5.00 GB")

    def without_4bit(model):
        return needs(model) if model.quantization == "none" else {"load": Need({"LLM": 99e9}, 1.0)}

    (line,) = [text for text in printed_estimate(monkeypatch, without_4bit) if text.startswith("load")]
    cure = "model.llm_dtype=bf16, which takes 27.78 GB, of which 13.48 are mapped files that may be dropped"
    assert line.endswith(f"try --options {cure}")


def test_a_chat_that_needs_more_after_loading_does_not_fit():
    assert Need({"LLM": 4.0, MAPPED: 3.0}, 1.0, later=5.0).held == 5.0


def test_with_a_device_map_training_is_said_to_be_one_process(monkeypatch):
    def texts(**model) -> str:
        return " ".join(printed_estimate(monkeypatch, lambda _: {}, on_cpu=False, count=2, **model))

    assert "spread over all of them; training is one process" in texts(device_map="auto")
    assert "trains with all weights" not in texts(device_map="auto") and "trains with all weights" in texts()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2660, "44 min"),
        (9000, "2.5 h"),
        (90, "90 s"),
        (3.52, "3.5 s"),
        (0.00141, "1.4 ms"),
        (9e-5, "0.09 ms"),
        (1e-6, "less than 0.01 ms"),
    ],
)
def test_times_are_readable(seconds, text):
    assert lines.readable_time(seconds) == text

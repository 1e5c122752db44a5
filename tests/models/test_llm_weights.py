"""An LLM's weights are all there and as its config says, or one line says what is not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, RunConfig
from minigpt4.models.llm import load_llm
from minigpt4.models.minigpt4 import MiniGPT4

CPU = torch.device("cpu")


@pytest.fixture
def llm(parity_llm, tmp_path) -> Path:
    """A copy of the LLM's folder, to spoil."""
    return shutil.copytree(parity_llm, tmp_path / "llm")


def change_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
@pytest.mark.parametrize(
    ("spoil", "count", "name"),
    [
        (lambda f: change_config(f, num_hidden_layers=3), "9", "model.layers.2.input_layernorm.weight"),
        (lambda f: change_weights(f, lambda w: {f"x.{k}": v for k, v in w.items()}), r"\d+", "lm_head.weight"),
        (lambda f: change_weights(f, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}), "1", "lm_head"),
    ],
)
def test_missing_weights_are_refused(spoil, count, name, quantization, parity_config, llm):
    spoil(llm)
    config = replace(parity_config, llama_model=str(llm), quantization=quantization)
    with pytest.raises(UserError, match=rf"lacks {count} of the weights .*: \['{name}.* of one release") as error:
        load_llm(config, CPU)
    assert "\n" not in str(error.value)


def test_a_tied_head_is_not_missing(parity_config, llm):
    change_config(llm, tie_word_embeddings=True)
    change_weights(llm, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
    tied = load_llm(replace(parity_config, llama_model=str(llm)), CPU)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


class Evil:
    """Code that runs where it is unpickled."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_pth_does_not_run(parity_config, llm, capsys):
    torch.save(load_file(llm / "model.safetensors") | {"x": Evil()}, llm / "pytorch_model.bin")
    (llm / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.llama_model: no causal LM in"):
        load_llm(replace(parity_config, llama_model=str(llm)), CPU)
    assert "code ran" not in capsys.readouterr().out


def test_a_pth_of_another_size_is_refused(parity_config, llm):
    torch.save(load_file(llm / "model.safetensors"), llm / "pytorch_model.bin")
    (llm / "model.safetensors").unlink()
    change_config(llm, vocab_size=481)
    with pytest.raises(UserError, match=r"lm_head.weight is \[480, 64\], its config.json asks for \[481, 64\]. Put"):
        load_llm(replace(parity_config, llama_model=str(llm)), CPU)


@pytest.mark.parametrize("quantization", ["none", "8bit"])
def test_sizes_of_safetensors_are_checked_before_anything_is_loaded(quantization, parity_config, llm, monkeypatch):
    change_config(llm, intermediate_size=100)
    monkeypatch.setattr("minigpt4.models.minigpt4.load_llm", None)
    config = replace(parity_config, llama_model=str(llm), quantization=quantization)
    with pytest.raises(UserError, match=r"mlp.down_proj.weight is \[64, .*\], its config.json asks for \[64, 100\]"):
        MiniGPT4.from_config(Config(model=config, run=RunConfig(device="cpu")))


def test_damaged_files_are_one_line(parity_config, llm):
    config, file = replace(parity_config, llama_model=str(llm)), llm / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    for attempt in (lambda: load_llm(config, CPU), lambda: MiniGPT4.from_config(Config(model=config))):
        with pytest.raises(UserError, match="model.llama_model: .*is truncated .*: it has 5000 bytes of") as error:
            attempt()
        assert "\n" not in str(error.value)
    file.unlink()
    (llm / "pytorch_model.bin").write_bytes(b"\xffgarbage" * 9)
    with pytest.raises(UserError, match=r"no causal LM in '.*': this is not a weights file$"):
        load_llm(config, CPU)

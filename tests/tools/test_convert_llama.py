"""Meta's files of LLaMA become what transformers' own script makes of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.conftest import PARITY

META = Path(__file__).parents[1] / "fixtures" / "llama_meta"


@pytest.fixture
def llama(tmp_path) -> Path:
    """Meta's layout: the tokenizer lies above the folder of a size."""
    shutil.copytree(META / "2B", tmp_path / "llama" / "2B")
    shutil.copy(PARITY / "tokenizer" / "tokenizer.model", tmp_path / "llama")
    return tmp_path / "llama" / "2B"


def test_it_is_what_the_script_of_transformers_makes(llama, tmp_path, minigpt4):
    assert minigpt4("convert-llama", llama, "--out", tmp_path / "out")[0] == 0
    theirs = load_file(META / "transformers_4_46.safetensors")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    ours = load_file(file)
    assert ours.keys() == theirs.keys() and ours["lm_head.weight"].dtype == torch.float16
    assert all(torch.equal(ours[name].float(), weight.float()) for name, weight in theirs.items())
    model, info = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True, dtype="auto")
    assert not any(info.values()) and model.dtype == torch.float16
    config = model.config
    assert (config.num_key_value_heads, config.intermediate_size, config.vocab_size) == (2, 96, 320)
    assert (config.max_position_embeddings, config.rms_norm_eps) == (2048, 1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a")["input_ids"][0] == config.bos_token_id == 1


def test_one_file_alone_and_llama_2(llama, tmp_path, minigpt4):
    parts = [torch.load(file) for file in sorted(llama.glob("*.pth"))]
    columns = ("tok_embeddings", "wo", "w2")
    whole = {
        name: weight if "norm" in name or "rope" in name else torch.cat([part[name] for part in parts], int(column))
        for name, weight in parts[0].items()
        for column in [name.split(".")[-2] in columns]
    }
    (llama / "consolidated.01.pth").unlink()
    torch.save(whole, llama / "consolidated.00.pth")
    params = json.loads((llama / "params.json").read_text()) | {"norm_eps": 1e-5}
    (llama / "params.json").write_text(json.dumps(params))
    tokenizer = shutil.move(llama.parent / "tokenizer.model", tmp_path / "t.model")
    assert minigpt4("convert-llama", llama, "--tokenizer", tokenizer, "--out", tmp_path / "out")[0] == 0
    theirs = load_file(META / "transformers_4_46.safetensors")
    ours = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert all(torch.equal(ours[name].float(), weight.float()) for name, weight in theirs.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 4096


def test_what_cannot_be_converted_is_named(llama, tmp_path, minigpt4):
    def refused(folder: Path = llama, *options: object) -> str:
        code, _, error = minigpt4("convert-llama", folder, *options, "--out", tmp_path / "out")
        assert code == 2 and error.count("\n") == 1 and not (tmp_path / "out").exists()
        return error

    def settings(**changed: object) -> str:
        params = json.loads((META / "2B" / "params.json").read_text()) | changed
        (llama / "params.json").write_text(json.dumps(params))
        return refused()

    assert "lacks consolidated.00.pth. Name the folder that Meta's files are in" in refused(tmp_path)
    assert f"lacks consolidated.00.pth. Name the folder of one size: {llama}." in refused(llama.parent)
    assert f"--tokenizer: '{tmp_path}' is a folder" in refused(llama, "--tokenizer", tmp_path)
    assert "--tokenizer: '/no/file' does not exist" in refused(llama, "--tokenizer", "/no/file")
    assert "holds a Llama 3. Download it as a Hugging Face model" in settings(rope_theta=500000.0)
    assert "holds impossible sizes: {'dim': 32, 'n_layers': 2, 'n_heads': 0" in settings(n_heads=0)
    assert "2 files have 32 of 64 rows of a matrix" in settings(dim=64)
    assert "params.json': n_layers is 1, and the files hold more layers" in settings(n_layers=1)
    assert "holds impossible sizes: {'dim': 32, 'n_layers': 2.0" in settings(n_layers=2.0)
    (llama / "params.json").write_text("[]")
    assert "params.json' is not a JSON object. Put Meta's own file there" in refused()
    (llama / "params.json").write_text('{"dim": 32, "norm_eps": 1e-6}')
    assert "params.json' lacks n_layers, n_heads. Put Meta's own file there" in refused()
    assert "lacks 9 tensors, such as layers.2.attention.wq.weight" in settings(n_layers=3)
    (llama / "params.json").write_text("<!doctype html>")
    assert "is a web page" in refused()
    settings_file = shutil.copy(META / "2B" / "params.json", llama)
    (llama / "consolidated.01.pth").unlink()
    assert "1 files have 16 of 32 rows of a matrix. Put all of Meta's consolidated" in refused()
    shutil.copy(META / "2B" / "consolidated.01.pth", llama)
    (llama / "consolidated.00.pth").unlink()
    assert "lacks consolidated.00.pth. Download it to the others." in refused()
    (llama / "consolidated.00.pth").write_bytes((META / "2B" / "consolidated.00.pth").read_bytes()[:9000])
    assert "consolidated.00.pth' is truncated (download incomplete): the end of its zip archive is missing" in refused()
    Path(settings_file).unlink()
    shutil.copy(META / "2B" / "consolidated.00.pth", llama)
    assert "params.json' can't be read" in refused()

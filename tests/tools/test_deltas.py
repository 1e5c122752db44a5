"""Deltas of LLaMA: equal to FastChat's programs, resumable, and refused where they do not belong to the base."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.common.errors import UserError
from minigpt4.models import tensor_files
from tests.conftest import PARITY

ROWS = 320


def llama(rows: int = ROWS) -> LlamaForCausalLM:
    """Three layers."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes)).half()


def model(folder: Path, weights: dict[str, torch.Tensor], rows: int = ROWS) -> Path:
    own = llama(rows)
    own.load_state_dict(weights)
    own.save_pretrained(folder)
    for file in (PARITY / "tokenizer").iterdir():
        shutil.copy(file, folder)
    return folder


def random_weights(seed: int, rows: int = ROWS) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return llama(rows).state_dict()


def tuned(base: dict[str, torch.Tensor], rows: int = ROWS, amount: float = 1e-3) -> dict[str, torch.Tensor]:
    """What a fine-tuning makes of weights, with more tokens perhaps."""
    grown = {}
    for name, weight in base.items():
        more = torch.randn(rows - len(weight), *weight.shape[1:]) if len(weight) == ROWS else torch.zeros(0)
        changed = weight + amount * torch.randn_like(weight.float())
        grown[name] = torch.cat([changed, more]).half() if len(more) else changed.half()
    return grown


def in_pieces(folder: Path, prefix: str = "pytorch_model") -> None:
    """Puts a model's weights into two files of PyTorch, as they were published."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        torch.save({name: weights[name] for name in part}, folder / f"{prefix}-{number:05}-of-00002.bin")
    places = {name: f"{prefix}-{1 + i % 2:05}-of-00002.bin" for i, name in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "model.safetensors").unlink()


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """LLaMA, and a delta without the extra row, as v1.1's."""
    base = random_weights(0)
    wished = tuned(base)
    delta = {name: wished[name] - weight for name, weight in base.items()}
    return model(tmp_path / "base", base), model(tmp_path / "delta", delta)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: own for file in sorted(folder.glob("model*.safetensors")) for name, own in load_file(file).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [False, True])
def test_it_is_what_fastchat_makes(pair, pieces, tmp_path, minigpt4, monkeypatch):
    fastchat = pytest.importorskip("fastchat.model.apply_delta")
    base, delta = pair
    fastchat.apply_delta(str(base), str(tmp_path / "theirs"), str(delta))
    if pieces:
        in_pieces(base)
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 100_000)
    monkeypatch.setattr(tensor_files, "PIECE_BYTES", 1000)
    assert minigpt4("apply-delta", "--base", base, "--delta", delta, "--target", tmp_path / "ours")[0] == 0
    assert equal(weights_of(tmp_path / "ours"), weights_of(tmp_path / "theirs"))
    assert len(list((tmp_path / "ours").glob("model*.safetensors"))) > 2
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert loaded.dtype == torch.float16 and equal(loaded.state_dict(), weights_of(tmp_path / "theirs"))
    assert (tmp_path / "ours" / "tokenizer.model").read_bytes() == (delta / "tokenizer.model").read_bytes()


def test_the_extra_row_and_the_old_names_of_v0(tmp_path, minigpt4):
    base = random_weights(0)
    wished = tuned(base, ROWS + 1)
    model(tmp_path / "llama", base)
    model(tmp_path / "vicuna", wished, ROWS + 1)
    old_names = {
        "config": {"architectures": ["LLaMAForCausalLM"]},
        "tokenizer_config": {"tokenizer_class": "LLaMATokenizer"},
    }
    for name, old in old_names.items():
        file = tmp_path / "vicuna" / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | old | {"vocab_size": ROWS}))
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}  # of an old transformers
    in_pieces(tmp_path / "llama")
    torch.save(buffer, tmp_path / "llama" / "pytorch_model-00003-of-00003.bin")
    vicuna, delta, again = (tmp_path / name for name in ("vicuna", "delta", "again"))
    common = ["--base", tmp_path / "llama", "--delta", delta, "--target"]
    assert minigpt4("make-delta", *common, vicuna)[0] == 0
    assert minigpt4("apply-delta", *common, again)[0] == 0
    found = weights_of(again)
    assert found.keys() == wished.keys() and len(found["lm_head.weight"]) == ROWS + 1
    for name, weight in wished.items():
        torch.testing.assert_close(found[name], weight, atol=2e-6, rtol=1e-3)
    assert torch.equal(found["lm_head.weight"][ROWS], wished["lm_head.weight"][ROWS])  # LLaMA's row is zero
    config = json.loads((again / "config.json").read_text())
    assert (config["vocab_size"], config["architectures"]) == (ROWS + 1, ["LlamaForCausalLM"])
    assert json.loads((again / "tokenizer_config.json").read_text())["tokenizer_class"] == "LlamaTokenizer"


def test_an_ended_run_continues_and_inputs_stay_as_they_are(pair, tmp_path, minigpt4, monkeypatch):
    base, delta = pair
    before = {file: file.read_bytes() for folder in pair for file in folder.iterdir()}
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 100_000)
    arguments = ["apply-delta", "--base", base, "--delta", delta, "--target"]
    assert minigpt4(*arguments, tmp_path / "whole")[0] == 0
    replace, files = os.replace, []

    def ended(part, file):
        if str(file).endswith(".safetensors"):
            files.append(file)
            if len(files) == 3:
                raise KeyboardInterrupt
        replace(part, file)

    monkeypatch.setattr(os, "replace", ended)
    assert minigpt4(*arguments, tmp_path / "part")[0] == 130
    monkeypatch.setattr(os, "replace", replace)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "part").glob("model*.safetensors")}
    assert len(kept) == 2 and not (tmp_path / "part" / "config.json").exists()
    other = shutil.copytree(base, tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    code, _, error = minigpt4("apply-delta", "--base", other, "--delta", delta, "--target", tmp_path / "part")
    assert code == 2 and "was started with other files" in error
    assert minigpt4(*arguments, tmp_path / "part")[0] == 0
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    own, whole = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("part", "whole"))
    assert own == whole and "unfinished.json" not in own
    assert {file: file.read_bytes() for file in before} == before
    code, _, error = minigpt4(*arguments, tmp_path / "part")
    assert code == 2 and f"--target: '{tmp_path / 'part'}' is not empty" in error


@pytest.mark.parametrize("amount", [1e-4, 1e-3, 3e-3, 1.0])
def test_only_its_own_base_gives_a_model(amount, tmp_path, minigpt4):
    base = random_weights(0)
    wished = tuned(base, amount=amount) if amount < 1 else random_weights(1)
    model(tmp_path / "base", base)
    model(tmp_path / "other", random_weights(2))
    model(tmp_path / "delta", {name: wished[name] - weight for name, weight in base.items()})
    arguments = "--delta", tmp_path / "delta", "--target", tmp_path / "out"
    code, _, error = minigpt4("apply-delta", "--base", tmp_path / "other", *arguments)
    assert code == 2 and "The delta was made from other weights: of another LLaMA" in error
    assert "--base ('" in error and not (tmp_path / "out").exists()
    assert minigpt4("apply-delta", "--base", tmp_path / "base", *arguments)[0] == 0


@pytest.mark.parametrize("amount", [3e-4, 1e-3, 3e-3])
def test_a_fine_tuned_base_is_refused_as_well(amount, tmp_path, minigpt4):
    base = random_weights(0)
    wished, other = (tuned(base, amount=amount) for _ in range(2))
    model(tmp_path / "delta", {name: wished[name] - weight for name, weight in base.items()})
    arguments = "--delta", tmp_path / "delta", "--target", tmp_path / "out"
    for name, weights in (("applied already", wished), ("another one", other)):
        code, _, error = minigpt4("apply-delta", "--base", model(tmp_path / name, weights), *arguments)
        assert (
            code == 2
            and "The delta was made from other weights: of another LLaMA" in error
            and not (tmp_path / "out").exists()
        )
    assert minigpt4("apply-delta", "--base", model(tmp_path / "base", base), *arguments)[0] == 0


def test_models_and_deltas_are_not_mistaken_for_each_other(pair, tmp_path, minigpt4):
    base, delta = pair

    def refused(base: Path, delta: Path) -> str:
        code, _, error = minigpt4("apply-delta", "--base", base, "--delta", delta, "--target", tmp_path / "out")
        assert code == 2 and not (tmp_path / "out").exists()
        return error

    assert f"--base and --delta are both '{base}'" in refused(base, base)
    again = model(tmp_path / "again", random_weights(0))
    assert f"--delta: '{again}' holds a whole model, where a delta belongs" in refused(base, again)
    assert f"--base: '{delta}' holds a delta, where a whole model belongs" in refused(delta, base)


def test_what_cannot_be_combined_is_named(pair, tmp_path, minigpt4):
    base, delta = pair

    def refused(base: Path = base, delta: Path = delta) -> str:
        code, _, error = minigpt4("apply-delta", "--base", base, "--delta", delta, "--target", tmp_path / "out")
        assert (
            code == 2
            and error.splitlines()[-1].startswith("error: ")
            and not (tmp_path / "out" / "config.json").exists()
        )
        return error

    assert "--base: '/no/where' is not a folder with a config.json. Set it" in refused(base=Path("/no/where"))
    assert "--delta: '/no/where' is not a folder with a config.json. Set it" in refused(delta=Path("/no/where"))
    assert "download it: minigpt4 fetch owner/name --download" in refused(delta=Path("owner/name"))
    other = model(tmp_path / "other", random_weights(0, ROWS - 10), ROWS - 10)
    assert f"is [{ROWS}, 64] in --base and [{ROWS - 10}, 64] in --delta" in refused(delta=other)
    other = model(tmp_path / "neox", random_weights(0))
    tensor = {"wte.weight": torch.zeros(3, 3).half()}
    (other / "model.safetensors").unlink()
    torch.save(tensor, other / "pytorch_model.bin")
    assert "has no embed_tokens.weight: it is not of a LLaMA" in refused(delta=other)
    half = shutil.copytree(base, tmp_path / "half")
    in_pieces(half)
    (half / "pytorch_model-00002-of-00002.bin").unlink()
    assert "lacks pytorch_model-00002-of-00002.bin. Download what is missing" in refused(base=half)
    (half / "pytorch_model.bin.index.json").unlink()
    assert "--delta holds model.embed_tokens.weight, --base does not" in refused(base=half)
    pointer = shutil.copytree(base, tmp_path / "pointer")
    (pointer / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "is a Git LFS pointer" in refused(base=pointer)
    infinite = shutil.copytree(delta, tmp_path / "infinite")
    weights = load_file(infinite / "model.safetensors")
    weights["model.layers.0.input_layernorm.weight"][3] = float("inf")
    tensor_files.write_tensors(
        infinite,
        {name: tensor_files.Outline(tuple(own.shape), own.dtype) for name, own in weights.items()},
        lambda name, rows: weights[name][rows],
        "",
    )
    (infinite / "model.safetensors").unlink()
    assert "input_layernorm.weight is not finite in the result. Check the checksums" in refused(delta=infinite)


def test_a_delta_in_the_hubs_cache_is_found_by_its_id(pair, tmp_path, minigpt4, monkeypatch):
    base, delta = pair
    own = tmp_path / "hub" / "models--owner--delta"
    (own / "refs").mkdir(parents=True)
    (own / "refs" / "main").write_text("1" * 40)
    (own / "snapshots").mkdir()
    delta.rename(own / "snapshots" / ("1" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert minigpt4("apply-delta", "--base", base, "--delta", "owner/delta", "--target", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_second_run_into_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "PIECE_BYTES", 1000)
    out, refused = tmp_path / "out", []

    def write() -> None:
        with tensor_files.resumable("--target", out, {"x": 1}):
            tensor_files.write_tensors(out, {"w": tensor_files.Outline((8, 500), torch.float16)}, rows, "")

    def rows(name: str, piece: slice) -> torch.Tensor:
        if piece.start == 5:
            with pytest.raises(UserError, match=r"^--target: another run writes to ") as error:
                write()
            refused.append(error)
        return torch.ones(piece.stop - piece.start, 500).half()

    write()
    assert len(refused) == 1 and torch.all(weights_of(out)["w"] == 1)


def test_a_full_disk_is_reported_before_the_first_byte(pair, tmp_path, minigpt4, monkeypatch):
    base, delta = pair
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    arguments = ["apply-delta", "--base", base, "--delta", delta, "--target", tmp_path / "out"]
    code, _, error = minigpt4(*arguments)
    assert code == 2 and "(no space left: 0.0 GB are needed, 0.0 GB are free). Free space there" in error
    assert not list((tmp_path / "out").glob("model*"))
    monkeypatch.undo()
    assert minigpt4(*arguments)[0] == 0


def test_a_format_that_is_read_whole_is_refused_with_the_cure(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"format from before 1\.6, .* Save it again: python -c") as error:
        tensor_files.TensorFiles([tmp_path / "pytorch_model.bin"])
    command = str(error.value).split('python -c "')[1].split('"')[0]
    exec(command)
    assert tensor_files.TensorFiles([tmp_path / "pytorch_model.bin"])["w"].shape == (3,)


def test_a_model_is_not_subtracted_from_itself(pair, tmp_path, minigpt4):
    base, _ = pair
    code, _, error = minigpt4("make-delta", "--base", base, "--target", base, "--delta", tmp_path / "new")
    assert code == 2 and f"--base and --target are both '{base}'" in error and not (tmp_path / "new").exists()
